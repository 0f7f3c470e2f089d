"""What every recogniser sees and trains: the defects D2 to D5 of the notes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.autovideo.catalogue import catalogue, find
from training.autovideo.recognisers import Recogniser
from training.core.config import ConfigError
from training.core.data import open_loader
from training.core.system import RawBatch
from training.core.transforms import MEAN_STD

CLASSES = ("blue", "green", "red")
NARROW = {"width": 0.125, "dropout": 0.0}
FRAME_NET = {**NARROW, "backbone": "resnet18"}

NETS = {
    # Form → primitive, settings, least frames and side, patterns of the classifier, names of the first two parts.
    "tsn": ("recognition/tsn", FRAME_NET, (1, 16), "fc.", ("backbone.conv1.", "backbone.bn1.")),
    "tsm": ("recognition/tsm", FRAME_NET, (1, 16), "fc.", ("backbone.conv1.", "backbone.bn1.")),
    "tsm_mobile": (
        "recognition/tsm",
        {**NARROW, "backbone": "mobilenetv2"},
        (1, 16),
        "fc.",
        ("backbone.features.0.", "backbone.features.1."),
    ),
    "i3d": ("recognition/i3d", NARROW, (16, 32), "head.", ("conv1a.", "conv2b.")),
    "i3d_resnet": ("recognition/i3d_resnet", NARROW, (8, 32), "fc.", ("stem.", "layer1.")),
    "eco_lite": ("recognition/eco_lite", NARROW, (4, 32), "fc.", ("lower.conv1_7x7_s2.", "lower.conv2_3x3_reduce.")),
    "eco_full": ("recognition/eco_full", NARROW, (4, 32), "fc.", ("lower.conv1_7x7_s2.", "lower.conv2_3x3_reduce.")),
    "c3d": ("recognition/c3d", {**NARROW, "width": 0.0625}, (16, 112), "fc8.", ("conv1.", "conv2.")),
    "c3d_adaptive": (
        "recognition/c3d",
        {**NARROW, "width": 0.0625, "adaptive": True, "norms": True},
        (16, 16),
        "fc8.",
        ("conv1.", "bn1."),
    ),
    "r2plus1d.tv": ("recognition/r2plus1d", NARROW, (1, 16), "fc.", ("stem.", "layer1.")),
    "r2plus1d.hara": ("recognition/r2plus1d", {**NARROW, "form": "hara"}, (1, 32), "fc.", ("conv1_s.", "bn1_s.")),
    "r3d.tv": ("recognition/r3d", NARROW, (1, 16), "fc.", ("stem.", "layer1.")),
    "r3d.hara": ("recognition/r3d", {**NARROW, "form": "hara", "depth": 10}, (1, 32), "fc.", ("conv1.", "bn1.")),
}
every_net = pytest.mark.parametrize("name", NETS)


def clip_of(name):
    """Frames and side of a small clip; of nets that take one frame, three, so that their order can be seen."""
    frames, side = NETS[name][2]
    return {"frames": max(frames, 3), "size": side}


def test_every_recogniser_is_here():
    known = {name for name, item in catalogue().items() if issubclass(item, Recogniser)}
    assert known == {use for use, *_ in NETS.values()}


@every_net
def test_smallest_clip_is_the_smallest(name, train_config, build_system):
    use, settings, (frames, side), head, _ = NETS[name]
    net = build_system(train_config(use, frames=frames, size=side, **settings), tuple("abcdefg")).net
    for smaller in ((frames - 1, side, side), (frames, side - 1, side)):
        with pytest.raises(ValueError, match="needs"):
            net.check_input(*smaller)
    # D7: an output for each class of the map.
    assert {value.shape[0] for key, value in net.state_dict().items() if key.startswith(head)} == {7}


@pytest.mark.parametrize(("use", "clip"), [("i3d", {"frames": 15}), ("eco_lite", {"frames": 6}), ("c3d", {"size": 96})])
def test_clips_that_do_not_fit_are_refused_before_anything_runs(use, clip, train_config, build_system):
    config = train_config(f"recognition/{use}", **{"frames": 16, "size": 112, **clip}, **NARROW)
    with pytest.raises(ConfigError, match=f"recognition/{use} cannot take the clips of this pipeline"):
        build_system(config, CLASSES)


# --- D2: colours and time -----------------------------------------------------------------------

LENGTH = 16


@pytest.fixture(scope="module")
def coded_shards(tmp_path_factory, shard_writer, record_maker, mp4_encoder) -> Path:
    """Videos of 16 frames: red grows and green falls with the frame number, blue is dark left and bright right."""
    scratch = tmp_path_factory.mktemp("coded")
    frames = np.zeros((LENGTH, 48, 48, 3), np.uint8)
    for number in range(LENGTH):
        frames[number, ..., 0], frames[number, ..., 1] = 30 + 12 * number, 220 - 12 * number
    frames[:, :, :24, 2], frames[:, :, 24:, 2] = 60, 190
    content = mp4_encoder(frames, scratch / "coded.mp4", "-g", "1")
    splits = {
        split: [(record_maker(f"{split}-{n}", split, n, LENGTH, 48, 48), {"mp4": content}) for n in range(len(CLASSES))]
        for split in ("train", "val")
    }
    return shard_writer(tmp_path_factory.mktemp("data") / "coded", splits)


def numbers_of(video_CTHW: Tensor) -> list[int]:
    """Return the frame numbers that the colours (0…1) say."""
    red_T, green_T = video_CTHW[0].mean((1, 2)), video_CTHW[1].mean((1, 2))
    return [round((float(r - g) * 255 + 190) / 24) for r, g in zip(red_T, green_T, strict=True)]


def is_intact(video_CTHW: Tensor, length: int) -> bool:
    """Whether a clip (0…1) has successive frames in order, and colours and columns where they belong."""
    numbers = numbers_of(video_CTHW)
    flat = float(video_CTHW[:2].amax((2, 3)).sub(video_CTHW[:2].amin((2, 3))).max()) < 0.15
    half = video_CTHW.shape[3] // 2
    left, right = video_CTHW[2, :, :, : half - 1], video_CTHW[2, :, :, half + 1 :]
    sides = float(left.mean((1, 2)).max()) < 0.4 < float(right.mean((1, 2)).min())
    return numbers == list(range(numbers[0], numbers[0] + length)) and flat and sides


def scramble(video_CTHW: Tensor) -> Tensor:
    """Defect D2: frames of three colours read as three colours of frames."""
    return video_CTHW.transpose(0, 1).reshape(video_CTHW.shape)


class Seen(Exception):
    """Ends a forward where the network begins: what it computes does not matter here."""


def seen_by_net(system, run) -> Tensor:
    """Return what first reaches the network while something runs."""

    def stop(net, inputs):
        raise Seen(inputs[0].clone())

    hook = system.net.register_forward_pre_hook(stop)
    with pytest.raises(Seen) as caught:
        run()
    hook.remove()
    return caught.value.args[0]


def in_pixels(video: Tensor, config) -> Tensor:
    """Undo the normalisation: 0…1, the channels on axis −4."""
    mean, std = (torch.tensor(values)[:, None, None, None] for values in MEAN_STD[config.data.transform.normalise])
    return video * std + mean


@every_net
def test_colours_and_time_reach_the_net(name, coded_shards, train_config, build_system):
    use, settings, *_ = NETS[name]
    config = train_config(use, decoder="decoder/dense", clip={"stride": 1}, **clip_of(name), batch_size=3, **settings)
    system = build_system(config, CLASSES)
    length = config.data.num_frames
    for split, train in (("train", True), ("val", False)):
        loader = open_loader(coded_shards, config.data, split=split, train=train, seed=0)
        batch = system.prepare(next(iter(loader)), train=train)
        loader.close()
        system.train(train)
        seen = seen_by_net(system, lambda: system(batch) if train else system.predict(batch))  # noqa: B023
        assert seen.shape == (3, 3, length, config.data.transform.size, config.data.transform.size)
        for video in in_pixels(seen, config):
            assert is_intact(video, length)
            assert not is_intact(scramble(video), length)
            assert not is_intact(video.flip(0), length), "blue, green, red"
            assert not is_intact(video.flip(1), length), "backwards"
            if not train:
                assert numbers_of(video)[0] == (LENGTH - length) // 2


def test_views_reach_the_net_one_by_one(coded_shards, train_config, build_system):
    views = {"use": "transform/views", "with": {"clips": 2, "crops": 3}}
    config = train_config(
        "recognition/r3d", views, decoder="decoder/dense", clip={"stride": 1}, frames=4, size=16, batch_size=3, **NARROW
    )
    system = build_system(config, CLASSES).eval()
    loader = open_loader(coded_shards, config.data, split="val", train=False, seed=0)
    raw = next(iter(loader))
    loader.close()
    seen = seen_by_net(system, lambda: system.predict(system.prepare(raw, train=False)))
    assert seen.shape == (3 * 6, 3, 4, 16, 16), "in one go, as there are less than 32"
    assert [numbers_of(video) for video in in_pixels(seen, config)[:6]] == 3 * [[0, 1, 2, 3], [12, 13, 14, 15]]


# --- D3: scale of the input ---------------------------------------------------------------------


def raw_batch(size: int = 48, frames: int = 16, count: int = 4, label: Tensor | None = None) -> RawBatch:
    """Return black, white and noisy clips."""
    noise = torch.randint(0, 256, (count, frames, size, size, 3), generator=torch.Generator().manual_seed(1))
    noise[0], noise[1] = 0, 255
    return RawBatch(
        frames_BTHWC=noise.to(torch.uint8),
        size_B2=torch.tensor([[size, size]] * count),
        label_B=torch.arange(count) % len(CLASSES) if label is None else label,
        key=tuple(str(number) for number in range(count)),
        seed_B=torch.arange(count),
        valid_B=torch.ones(count, dtype=torch.bool),
    )


def in_range(video: Tensor) -> bool:
    return float(video.abs().max()) < 4 and float(video.max() - video.min()) > 1.5


@every_net
def test_input_is_around_zero(name, train_config, build_system):
    use, settings, *_ = NETS[name]
    config = train_config(use, **clip_of(name), **settings)
    system = build_system(config, CLASSES)
    raw = raw_batch(frames=config.data.num_frames)
    assert config.data.transform.normalise == find(use).normalise
    for train in (True, False):
        batch = system.prepare(raw, train=train)
        assert in_range(batch.video_BCTHW)
        assert abs(float(batch.video_BCTHW[2:].mean())) < 1


def test_range_of_ecos_reference_input_and_of_the_defect(train_config, build_system):
    """The reference is BGR in 0…255 less its means, 58 times ours; the defect took the means from 0…1."""
    system = build_system(train_config("recognition/eco_lite", frames=4, size=48, clip={"short_side": 48}), CLASSES)
    raw = raw_batch(frames=4)
    video = system.prepare(raw, train=False).video_BCTHW
    pixels = raw.frames_BTHWC.permute(0, 4, 1, 2, 3).float()
    means = torch.tensor([104.0, 117, 128])[:, None, None, None]
    reference = pixels.flip(1) - means
    assert torch.allclose(video.flip(1) * 58, reference, atol=1e-3)
    assert not in_range(reference)
    defect = pixels / 255 - means
    assert not in_range(defect)
    assert float(defect.max()) < -100


# --- D4, D5: what is trained --------------------------------------------------------------------


def norms_of(net: nn.Module) -> list[str]:
    """Return the names of the norms, in order: what has running statistics."""
    return [name.rpartition(".")[0] for name in net.state_dict() if name.endswith(".running_mean")]


def planned(name: str, net: nn.Module, freeze: str) -> set[str]:
    """Return the parameters that are trained by the declared plan."""
    *_, head, first = NETS[name]
    norms = norms_of(net)
    frozen: tuple[str, ...] = {
        "none": (),
        "norms": tuple(f"{norm}." for norm in norms),
        "later_norms": tuple(f"{norm}." for norm in norms[1:]),
        "backbone": (),
        "parts": first,
    }[freeze]
    names = {parameter for parameter, _ in net.named_parameters()}
    if freeze == "backbone":
        return {parameter for parameter in names if parameter.startswith(head)}
    return {parameter for parameter in names if not parameter.startswith(frozen)} if frozen else names


KINDS = ("none", "norms", "later_norms", "backbone")
FREEZES = {"parts": {"freeze_parts": 2}} | {kind: {"freeze": kind} for kind in KINDS}


@every_net
def test_trained_is_what_the_plan_says(name, train_config, build_system):
    use, settings, *_ = NETS[name]
    for freeze, setting in FREEZES.items():
        config = train_config(use, **clip_of(name), **settings, **setting)
        system = build_system(config, CLASSES)
        plan = planned(name, system.net, freeze)
        sizes = {key: value.numel() for key, value in system.net.named_parameters()}
        assert {key for key, value in system.net.named_parameters() if value.requires_grad} == plan
        group = system.optimizers(config.fit.optim)["main"].param_groups
        trained = sum(value.numel() for part in group for value in part["params"])
        assert trained == sum(sizes[key] for key in plan)
        assert (trained == sum(sizes.values())) == (freeze == "none" or len(plan) == len(sizes))
        norms = norms_of(system.net)
        system.train()
        still = {norm for norm in norms if not system.net.get_submodule(norm).training}
        expected = {"none": [], "norms": norms, "later_norms": norms[1:], "backbone": norms}
        assert still == set(expected.get(freeze, [norm for norm in norms if f"{norm}.".startswith(NETS[name][4])]))
        assert system.net.training
        assert not any(module.training for module in system.eval().modules())


STEPPED = [("r3d.tv", freeze) for freeze in FREEZES] + [
    ("tsm", "later_norms"),
    ("eco_lite", "norms"),
    ("i3d", "backbone"),
]


@pytest.mark.parametrize(("name", "freeze"), STEPPED)
def test_a_step_moves_what_is_trained_and_nothing_else(name, freeze, train_config, build_system):
    use, settings, *_ = NETS[name]
    config = train_config(use, **clip_of(name), **settings, **FREEZES[freeze], lr=0.05)
    system = build_system(config, CLASSES)
    net, plan = system.net, planned(name, system.net, freeze)
    parameters = dict(net.named_parameters())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = system.optimizers(config.fit.optim)["main"]
    batch = system.prepare(raw_batch(32, config.data.num_frames), train=True)
    system.train()
    system(batch).loss.backward()
    optimizer.step()

    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved & set(parameters) <= plan
    assert all(parameters[key].grad is not None for key in plan)
    assert {key for key in plan if parameters[key].dim() > 1} <= moved, "kernels decay besides"
    buffers = {f"{norm}.running_mean" for norm in norms_of(net) if net.get_submodule(norm).training}
    assert {key for key in moved if key.endswith("running_mean")} == buffers
    assert bool(buffers) == (freeze in ("none", "later_norms", "parts"))


def test_the_plans_differ(train_config, build_system):
    system = build_system(train_config("recognition/eco_full", **NARROW), CLASSES)
    plans = [planned("eco_full", system.net, freeze) for freeze in FREEZES]
    assert len({frozenset(plan) for plan in plans}) == len(FREEZES)
    assert all(plans)


def test_freezing_everything_is_refused(train_config, build_system, monkeypatch):
    with pytest.raises(ConfigError, match=r"freeze_parts is 6, and the net has 6 parts.*stem, layer1, .*, fc"):
        build_system(train_config("recognition/r3d", **NARROW, freeze_parts=6), CLASSES)
    build_system(train_config("recognition/r3d", **NARROW, freeze_parts=5), CLASSES)
    # A net of another package, whose patterns name no parameter.
    from training.backbones.video_resnet import VideoResNet

    monkeypatch.setattr(VideoResNet, "heads", ("classifier.*",))
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        build_system(train_config("recognition/r3d", **NARROW, freeze="backbone"), CLASSES)
