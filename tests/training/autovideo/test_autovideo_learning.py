"""How a recogniser learns: repeatably, in micro-batches as in one and from mixed targets."""

import dataclasses

import pytest
import torch
from torch import Tensor

from training.autovideo.augment.augmentation import Augmentation
from training.autovideo.system import TargetBatch
from training.backbones.segment_nets import TSN_RATES, TSN_UNDECAYED
from training.core.config import ConfigError
from training.core.data import open_loader
from training.core.evaluate import evaluate
from training.core.loop import Hooks, fit
from training.core.system import RawBatch

CLASSES = ("blue", "green", "red")
CPU = torch.device("cpu")
SMALL = {"frames": 3, "size": 16, "width": 0.125}
TSN = {**SMALL, "backbone": "resnet18"}
AUGMENTERS = (
    {"use": "augment/brightness", "with": {"p": 0.7}},
    {"use": "augment/gaussian_noise", "with": {"p": 0.5}},
    {"use": "augment/cutmix", "with": {"p": 0.8}},
)


def raw_batch(count: int = 4, frames: int = 3, size: int = 24, label: Tensor | None = None) -> RawBatch:
    noise = torch.randint(0, 256, (count, frames, size, size, 3), generator=torch.Generator().manual_seed(3))
    return RawBatch(
        frames_BTHWC=noise.to(torch.uint8),
        size_B2=torch.tensor([[size, size]] * count),
        label_B=torch.arange(count) % len(CLASSES) if label is None else label,
        key=tuple(map(str, range(count))),
        seed_B=torch.arange(count) + 5,
        valid_B=torch.ones(count, dtype=torch.bool),
    )


def part_of(raw: RawBatch, rows: slice) -> RawBatch:
    fields = ("frames_BTHWC", "size_B2", "label_B", "key", "seed_B", "valid_B")
    return dataclasses.replace(raw, **{name: getattr(raw, name)[rows] for name in fields})


# --- repeatable ---------------------------------------------------------------------------------


def losses(shards, config, system) -> list[float]:
    """Return the loss of each step, and leave the system trained."""
    seen: list[float] = []

    def log(step, values):
        seen.extend(value for name, value in values.items() if name == "train/loss")

    loader = open_loader(shards, config.data, split="train", train=True, seed=config.fit.seed)
    fit(system, loader, config.fit, device=CPU, hooks=Hooks(log=log))
    loader.close()
    assert len(seen) == config.fit.steps
    return seen


def test_same_seed_same_losses(tiny_shards, train_config, build_system):
    curves = {}
    for augmenters in ((), AUGMENTERS):
        ends = []
        for seed in (1, 1, 2):
            steps = ("transform/flip", *augmenters)
            config = train_config("recognition/tsn", *steps, **TSN, dropout=0.3, seed=seed, steps=2)
            system = build_system(config, CLASSES)
            with torch.no_grad():
                system.net.fc.weight.mul_(100)  # at first it answers everything alike
            ends.append((losses(tiny_shards, config, system), system.net.fc.weight))
        (first, again, other) = (curve for curve, _ in ends)
        assert first == again
        assert torch.equal(ends[0][1], ends[1][1])
        assert all(one != two for one, two in zip(first, other, strict=True))
        curves[len(augmenters)] = first
    assert curves[0][0] != curves[3][0]


def test_evaluation_repeats_itself_and_knows_no_augmenters(tiny_shards, train_config, build_system):
    """D9: validation clips were drawn at random. Neither the loader's seed nor what happens in training counts."""
    results = []
    for middle, seed in (((), 0), ((), 1), (("transform/flip", "transform/multiscale_crop", *AUGMENTERS), 2)):
        config = train_config("recognition/tsn", *middle, **TSN)
        loader = open_loader(tiny_shards, config.data, split="val", train=False, seed=seed)
        results.append(evaluate(build_system(config, CLASSES), loader, split="val", device=CPU))
        loader.close()
    for other in results[1:]:
        assert other.metrics == results[0].metrics
        assert (other.predictions.scores == results[0].predictions.scores).all()
    assert results[0].metrics["val/num_evaluated"] == 10
    assert len({tuple(row) for row in results[0].predictions.scores.tolist()}) > 1, "clips are told apart"


# --- augmenters ---------------------------------------------------------------------------------


def test_augmenters_change_training_batches_only(train_config, build_system):
    plain = build_system(train_config("recognition/tsn", **TSN), CLASSES)
    changed = build_system(train_config("recognition/tsn", *AUGMENTERS, **TSN), CLASSES)
    raw = raw_batch()
    before = raw.frames_BTHWC.clone()
    for train in (True, False):
        videos = [system.prepare(raw, train=train).video_BCTHW for system in (plain, changed)]
        assert torch.equal(*videos) != train
    assert torch.equal(raw.frames_BTHWC, before)


def test_order_of_a_document_matters(train_config, build_system):
    steps = [
        {"use": "augment/invert", "with": {"p": 1.0}},
        {"use": "augment/gamma", "with": {"p": 1.0, "gamma": [2.0, 2.0]}},
    ]
    videos = []
    for order in (steps, steps[::-1], steps):
        system = build_system(train_config("recognition/tsn", *order, **TSN), CLASSES)
        videos.append(system.prepare(raw_batch(), train=True).video_BCTHW)
    assert torch.equal(videos[0], videos[2])
    assert not torch.allclose(videos[0], videos[1], atol=0.1)


def test_a_clip_is_augmented_whatever_is_beside_it(train_config, build_system):
    raw = raw_batch(6)

    def one_by_one(*steps) -> bool:
        system = build_system(train_config("recognition/tsn", "transform/flip", *steps, **TSN), CLASSES)
        together = system.prepare(raw, train=True).video_BCTHW
        single = [system.prepare(part_of(raw, slice(n, n + 1)), train=True).video_BCTHW for n in range(6)]
        return torch.allclose(together, torch.cat(single), atol=1e-5)

    assert one_by_one(*AUGMENTERS[:2])
    assert not one_by_one(*AUGMENTERS), "clips are mixed with their neighbours"


@pytest.mark.parametrize("use", ["mixup", "cutmix", "videomix", "fademix"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_mixed_targets(use, loss, train_config, build_system):
    step = {"use": f"augment/{use}", "with": {"p": 1.0}}
    many = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]])
    hard = many if loss == "binary" else torch.eye(3)[[0, 1, 2, 0]]
    raw = raw_batch(label=many if loss == "binary" else None)
    plain, mixed = (
        build_system(train_config("recognition/tsn", *steps, **TSN, loss=loss, dropout=0.0), CLASSES).prepare(
            raw, train=True
        )
        for steps in ((), (step,))
    )
    assert isinstance(plain, TargetBatch)
    assert isinstance(mixed, TargetBatch)
    assert torch.equal(plain.target_BK, hard)
    assert not torch.equal(mixed.target_BK, hard)
    assert ((mixed.target_BK >= 0) & (mixed.target_BK <= 1)).all()
    # Each row lies between its own and its neighbour's.
    low, high = torch.minimum(hard, hard.roll(-1, 0)), torch.maximum(hard, hard.roll(-1, 0))
    assert ((mixed.target_BK >= low - 1e-6) & (mixed.target_BK <= high + 1e-6)).all()
    if loss == "cross_entropy":
        assert torch.allclose(mixed.target_BK.sum(1), torch.ones(4))
    system = build_system(train_config("recognition/tsn", step, **TSN, loss=loss, dropout=0.0), CLASSES).train()
    output = system(mixed)
    assert output.loss.isfinite()
    with torch.no_grad():
        logits = system.net(mixed.video_BCTHW)
    own = (
        torch.nn.functional.binary_cross_entropy_with_logits if loss == "binary" else torch.nn.functional.cross_entropy
    )
    assert torch.allclose(output.loss, own(logits, mixed.target_BK), atol=1e-4)
    assert not torch.allclose(output.loss, own(logits, hard), atol=1e-4), "the loss compares with mixed targets"


@pytest.mark.parametrize(
    ("loss", "label", "message"),
    [
        ("cross_entropy", torch.eye(4, 3), "several classes per video, and loss is 'cross_entropy'"),
        ("binary", None, "one class per video, and loss is 'binary'"),
    ],
)
def test_loss_and_data_that_disagree(loss, label, message, train_config, build_system):
    system = build_system(train_config("recognition/tsn", **TSN, loss=loss, dropout=0.0), CLASSES)
    with pytest.raises(ConfigError, match=message):
        system.prepare(raw_batch(label=label), train=True)


def test_mixing_without_targets_is_an_error(train_config):
    config = train_config("recognition/tsn", AUGMENTERS[2], **TSN)
    with pytest.raises(ValueError, match="give target_BK"):
        Augmentation(config.augment)(torch.rand(2, 3, 2, 8, 8), torch.arange(2))


# --- accumulation -------------------------------------------------------------------------------


class Batches:
    """Endless parts of a list of raw batches."""

    def __init__(self, raws: list[RawBatch], parts: int) -> None:
        self.raws, self.parts, self.taken = raws, parts, 0

    def __iter__(self):
        for raw in self.raws:
            share = len(raw.key) // self.parts
            for number in range(self.parts):
                self.taken += 1
                yield part_of(raw, slice(number * share, (number + 1) * share))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def close(self):
        pass


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name].double() - value.double()).abs().max()) for name, value in other.items())


NORMLESS = [
    ("recognition/c3d", {"frames": 16, "size": 16, "width": 0.0625, "adaptive": True}),
    ("recognition/tsn", {**TSN, "freeze": "norms"}),
]


def steeper(system):
    """Enlarge the dense layers, whose small beginnings leave the layers below hardly any gradient."""
    with torch.no_grad():
        for module in system.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(30)
    return system


@pytest.mark.parametrize(("use", "net"), NORMLESS)
def test_accumulation_is_the_large_batch(use, net, train_config, build_system):
    """D10. Also of the last step: nothing is left over, and the rate falls once per step, not per micro-batch."""
    raws = [raw_batch(6, net["frames"]) for _ in range(3)]
    for number, raw in enumerate(raws):
        raw.frames_BTHWC.copy_(raw.frames_BTHWC.roll(number + 1, 2))
    ends, rates, taken = {}, {}, {}
    for parts in (1, 3):
        config = train_config(use, **net, dropout=0.0, accumulate=parts, lr=0.1, clip_grad_norm=1.0)
        system, batches, seen = steeper(build_system(config, CLASSES)), Batches(raws, parts), []
        hooks = Hooks(log=lambda step, values: seen.append(values["lr/main"]))  # noqa: B023
        ends[parts] = fit(system, batches, config.fit, device=CPU, hooks=hooks).weights
        rates[parts], taken[parts] = seen, batches.taken
    start = steeper(build_system(train_config(use, **net), CLASSES)).state_dict()
    assert taken == {1: 3, 3: 9}
    assert rates[1] == rates[3]
    assert distance(start, ends[1]) > 1e-2
    assert distance(ends[1], ends[3]) < 1e-3 * distance(start, ends[1])


def test_losing_a_micro_batch_would_be_seen(train_config, build_system):
    use, net = NORMLESS[0]
    raw = raw_batch(6, 16)
    ends = []
    for part in (raw, part_of(raw, slice(0, 4))):
        config = train_config(use, **net, dropout=0.0, steps=1, lr=0.1)
        ends.append(fit(steeper(build_system(config, CLASSES)), Batches([part], 1), config.fit, device=CPU).weights)
    start = steeper(build_system(train_config(use, **net), CLASSES)).state_dict()
    assert distance(*ends) > 0.05 * distance(start, ends[0])


# --- the policy of TSN --------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["recognition/tsn", "recognition/tsm"])
def test_policy_of_tsn(use, train_config, build_system):
    settings = {**TSN, "lr": 0.01, "weight_decay": 0.1}
    config = train_config(use, **settings, policy="tsn", decay="all")
    system = build_system(config, CLASSES)
    groups = {group["name"]: group for group in system.optimizers(config.fit.optim)["main"].param_groups}
    # The convolutions of a ResNet have no biases.
    assert set(groups) == {"first_conv_weight", "normal_weight", "normal_bias/undecayed", "norm/undecayed"}
    for name, group in groups.items():
        base, _, undecayed = name.partition("/")
        assert group["lr"] == pytest.approx(0.01 * TSN_RATES[base])
        assert group["weight_decay"] == (0.0 if undecayed else 0.1)
        assert bool(undecayed) == (base in TSN_UNDECAYED)
    assert groups["normal_bias/undecayed"]["lr"] == pytest.approx(0.02)
    assert [tuple(p.shape) for p in groups["first_conv_weight"]["params"]] == [(8, 3, 7, 7)]
    assert [tuple(p.shape) for p in groups["normal_bias/undecayed"]["params"]] == [(3,)]
    assert sum(len(group["params"]) for group in groups.values()) == len(list(system.parameters()))
    uniform = build_system(train_config(use, **settings), CLASSES)
    assert {g["name"] for g in uniform.optimizers(train_config(use, **settings).fit.optim)["main"].param_groups} == {
        "main",
        "main/1d",
    }


def test_policy_of_tsn_with_its_partial_norms(train_config, build_system):
    config = train_config("recognition/tsn", **TSN, policy="tsn", freeze="later_norms")
    system = build_system(config, CLASSES)
    names = {
        group["name"].partition("/")[0]: group for group in system.optimizers(config.fit.optim)["main"].param_groups
    }
    assert len(names["norm"]["params"]) == 2, "scale and shift of the first norm"
    config = train_config("recognition/tsn", **TSN, policy="tsn", freeze="backbone")
    system = build_system(config, CLASSES)
    optimizer = system.optimizers(config.fit.optim)["main"]
    assert {group["name"].partition("/")[0] for group in optimizer.param_groups} == {"normal_weight", "normal_bias"}


@pytest.mark.parametrize("use", ["r3d", "c3d", "i3d", "eco_lite"])
def test_policy_of_tsn_is_not_for_other_nets(use, train_config, build_system):
    clip = {"frames": 16, "size": 112 if use == "c3d" else 32, "width": 0.0625}
    with pytest.raises(ConfigError, match=f"policy `tsn` is for tsn and tsm, not for {use}: write `policy: uniform`"):
        build_system(train_config(f"recognition/{use}", **clip, policy="tsn"), CLASSES)
