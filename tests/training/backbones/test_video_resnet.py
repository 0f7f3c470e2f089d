"""R3D, MC3 and R(2+1)D: published figures, inner channels, names of torchvision's files, time and colour."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from training.backbones.video_resnet import LAYOUTS, MODELS, VideoResNet, midplanes_of
from training.core.cost import count_macs, count_params
from training.core.weights import WeightError, load_weights

NARROW = 1 / 8


def meta_net(model, **options):
    with torch.device("meta"):
        return VideoResNet(model, **options)


def scramble(video_BCTHW):
    """Defect D2: frames of three colours read as three colours of frames."""
    return video_BCTHW.transpose(1, 2).reshape(video_BCTHW.shape)


def coded_clip(frames, side, channels=3):
    """Frame number in the first channel, its column in the second, a constant in the third."""
    video = torch.full((1, channels, frames, side, side), 0.25)
    video[:, 0] = torch.arange(frames).reshape(1, frames, 1, 1) / frames
    video[:, 1] = torch.linspace(-1, 1, side)
    return video


# --- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "midplanes", "frames", "params", "gmac"),
    [
        ("r2plus1d_18", "block", 16, 31.51, 40.52),
        ("r2plus1d_34", "block", 32, 61.83, 150.4),
        ("r2plus1d_34", "conv", 32, 63.70, 152.36),
        ("r2plus1d_18", "conv", 16, 33.37, 41.50),
        ("r3d_18", "block", 16, 33.37, 40.70),
        ("r3d_34", "block", 32, 63.68, 150.8),
        ("mc3_18", "block", 16, 11.70, 43.34),
    ],
)
def test_parameters_and_macs(model, midplanes, frames, params, gmac):
    """At the precision in which the figures are printed."""
    net = meta_net(model, midplanes=midplanes)
    assert round(count_params(net) / 1e6, 2) == params
    macs = count_macs(net, torch.empty(1, 3, frames, 112, 112, device="meta")) / 1e9
    assert round(macs, 1 if gmac > 100 and gmac != 152.36 else 2) == gmac


def test_papers_figure_is_without_norms():
    """33.3 M of the paper for R(2+1)D-18: the per-conv rule, batch norms not counted."""
    net = meta_net("r2plus1d_18", midplanes="conv")
    norms = sum(p.numel() for name, p in net.named_parameters() if p.dim() == 1 and name != "fc.bias")
    assert (count_params(net) - norms) / 1e6 == pytest.approx(33.3, abs=0.05)
    assert (count_params(meta_net("r2plus1d_18")) - norms) / 1e6 < 31.6


def test_the_formula():
    pairs = [(64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    assert [midplanes_of(*pair) for pair in pairs] == [144, 230, 288, 460, 576, 921, 1152]
    assert (midplanes_of(3, 64, 3, 7), midplanes_of(3, 64, 7, 7)) == (83, 110)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("block", [144] * 4 + [230, 230, 288, 288, 460, 460, 576, 576, 921, 921, 1152, 1152]),
        ("conv", [144] * 4 + [230, 288, 288, 288, 460, 576, 576, 576, 921, 1152, 1152, 1152]),
    ],
)
def test_midplanes(rule, expected):
    net = meta_net("r2plus1d_18", midplanes=rule)
    inside = [
        getattr(block, name)[0][0].out_channels
        for stage in range(1, 5)
        for block in getattr(net, f"layer{stage}")
        for name in ("conv1", "conv2")
    ]
    assert inside == expected
    assert net.stem[0].out_channels == 45


# --- torchvision's names ----------------------------------------------------------------------


def norm(name, channels):
    shapes = {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def torchvision_layout(model, classes=400, width=64, stem_inside=45, rule="block"):
    """Names and shapes of torchvision's files (of IG-65M's with rule "conv"), written independently of the network."""
    kind, depth = model.split("_")
    if kind == "r2plus1d":
        layout = {"stem.0.weight": (stem_inside, 3, 1, 7, 7), **norm("stem.1", stem_inside)}
        layout |= {"stem.3.weight": (width, stem_inside, 3, 1, 1), **norm("stem.4", width)}
    else:
        layout = {"stem.0.weight": (width, 3, 3, 7, 7), **norm("stem.1", width)}
    inputs = width
    counts = (2, 2, 2, 2) if depth == "18" else (3, 4, 6, 3)
    for stage, block in ((s, b) for s, count in enumerate(counts, start=1) for b in range(count)):
        outputs, name = width * 2 ** (stage - 1), f"layer{stage}.{block}"
        inside = 27 * inputs * outputs // (9 * inputs + 3 * outputs)
        for number, source in ((1, inputs), (2, outputs)):
            conv = f"{name}.conv{number}"
            if kind == "r2plus1d":
                if rule == "conv":
                    inside = 27 * source * outputs // (9 * source + 3 * outputs)
                layout |= {f"{conv}.0.0.weight": (inside, source, 1, 3, 3), **norm(f"{conv}.0.1", inside)}
                layout[f"{conv}.0.3.weight"] = (outputs, inside, 3, 1, 1)
            else:
                layout[f"{conv}.0.weight"] = (outputs, source, 1 if kind == "mc3" and stage > 1 else 3, 3, 3)
            layout |= norm(f"{conv}.1", outputs)
        if block == 0 and stage > 1:
            layout |= {
                f"{name}.downsample.0.weight": (outputs, inputs, 1, 1, 1),
                **norm(f"{name}.downsample.1", outputs),
            }
        inputs = outputs
    return layout | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def random_state(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(7) if shape == () else torch.rand(shape, generator=generator) + 0.1
        for name, shape in layout.items()
    }


@pytest.mark.parametrize("model", MODELS)
def test_names_and_shapes(model):
    ours = {name: tuple(value.shape) for name, value in meta_net(model).state_dict().items()}
    assert ours == torchvision_layout(model)


def test_names_and_shapes_of_caffe2s_rule():
    ours = {name: tuple(v.shape) for name, v in meta_net("r2plus1d_34", midplanes="conv").state_dict().items()}
    assert ours == torchvision_layout("r2plus1d_34", rule="conv")
    assert ours != torchvision_layout("r2plus1d_34")


@pytest.mark.parametrize("model", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_files_load(model, tmp_path):
    layout = torchvision_layout(model, classes=5, width=8, stem_inside=8)
    state = random_state(layout)
    path = tmp_path / "video.pth"
    torch.save(state, path)
    nets = [VideoResNet(model, num_classes=5, width=NARROW).eval() for _ in range(2)]
    for net in nets:
        assert load_weights(net, path, convert=LAYOUTS["torchvision"]).complete
    video = torch.randn(1, 3, 8, 16, 16)
    assert torch.equal(nets[0](video), nets[1](video))
    assert all(torch.equal(value, state[name]) for name, value in nets[0].state_dict().items())

    other = VideoResNet(model, num_classes=7, width=NARROW)
    with pytest.raises(WeightError, match=r"fc\.weight"):
        load_weights(other, path)
    assert load_weights(other, path, ignore=other.heads).complete
    state["layer2.0.conv3.1.weight"] = state.pop("layer2.0.conv2.1.weight")
    with pytest.raises(WeightError, match=r"layer2\.0\.conv2\.1\.weight"):
        load_weights(other, state, ignore=other.heads)


def test_a_file_of_the_other_rule_is_refused():
    state = random_state(torchvision_layout("r2plus1d_18", classes=5, width=8, stem_inside=8, rule="conv"))
    with pytest.raises(WeightError, match=r"layer2\.0\.conv2\.0\.0\.weight"):
        load_weights(VideoResNet("r2plus1d_18", num_classes=5, width=NARROW), state)
    assert load_weights(VideoResNet("r2plus1d_18", num_classes=5, width=NARROW, midplanes="conv"), state).complete


# --- behaviour --------------------------------------------------------------------------------


def test_colour_and_time_reach_the_first_layer():
    """The stem is a sum of image convolutions of neighbouring frames; a scrambled clip gives something else."""
    torch.manual_seed(0)
    conv = VideoResNet("r3d_18", num_classes=3, width=NARROW).stem[0]
    video = coded_clip(6, 16)
    expected = torch.zeros(1, 8, 6, 8, 8)
    for t, tap in itertools.product(range(6), range(3)):
        if 0 <= t + tap - 1 < 6:
            expected[:, :, t] += F.conv2d(video[:, :, t + tap - 1], conv.weight[:, :, tap], stride=2, padding=3)
    assert torch.allclose(conv(video), expected, atol=1e-5)
    assert not torch.allclose(conv(scramble(video)), expected, atol=1e-2)


def test_factorised_stem_sees_single_frames():
    torch.manual_seed(0)
    stem = VideoResNet("r2plus1d_18", num_classes=3, width=NARROW).stem
    video = coded_clip(5, 16)
    expected = torch.stack([F.conv2d(f, stem[0].weight[:, :, 0], stride=2, padding=3) for f in video.unbind(2)], 2)
    assert torch.allclose(stem[0](video), expected, atol=1e-5)
    assert not torch.allclose(stem[0](scramble(video)), expected, atol=1e-2)


@pytest.mark.parametrize(("model", "frames"), [("r3d_18", 2), ("r2plus1d_18", 2), ("mc3_18", 16)])
def test_map_sizes(model, frames):
    net = meta_net(model)
    assert net.features_map(torch.empty(1, 3, 16, 112, 112, device="meta")).shape == (1, 512, frames, 7, 7)


def test_block_against_its_formula():
    torch.manual_seed(0)
    block = VideoResNet("r3d_18", num_classes=3, width=NARROW).eval().layer2[0]
    x = torch.randn(2, 8, 4, 6, 6)
    branch = F.conv3d(x, block.conv1[0].weight, stride=2, padding=1) / (1 + 1e-5) ** 0.5
    branch = F.conv3d(branch.relu(), block.conv2[0].weight, padding=1) / (1 + 1e-5) ** 0.5
    shortcut = F.conv3d(x, block.downsample[0].weight, stride=2) / (1 + 1e-5) ** 0.5
    assert torch.allclose(block(x), (branch + shortcut).relu(), atol=1e-5)
    assert not torch.allclose(block(x), branch.relu(), atol=1e-2)


@pytest.mark.parametrize("model", ["r3d_34", "mc3_18", "r2plus1d_34"])
def test_parts_hold_everything_once(model):
    net = meta_net(model)
    parts = net.parts()
    held = [id(parameter) for _, part in parts for parameter in part.parameters()]
    assert held == [id(parameter) for parameter in net.parameters()]
    assert all(net.get_submodule(name) is part for name, part in parts)


def test_gradients_modes_and_memory():
    torch.manual_seed(0)
    net = VideoResNet("r2plus1d_18", num_classes=3, width=NARROW, dropout=0.5, in_channels=2)
    video = torch.randn(2, 2, 4, 16, 16)
    net(video).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    net.eval()
    expected = net(video)
    last = net.to(memory_format=torch.channels_last_3d)(video.to(memory_format=torch.channels_last_3d))
    assert torch.allclose(last, expected, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(net(video).float(), expected, atol=0.1)


def test_refusals():
    with pytest.raises(ValueError, match="no video ResNet 'r3d_50'; known: r3d_18"):
        VideoResNet("r3d_50")
    with pytest.raises(ValueError, match="midplanes must be"):
        VideoResNet(midplanes="layer")
    net = meta_net("r3d_18")
    with pytest.raises(ValueError, match="at least 1 frames of 16×16 pixels, got 8 of 8×16"):
        net.check_input(8, 8, 16)
    with pytest.raises(ValueError, match=r"needs clips \(B,3,T,H,W\), got \(1, 8, 3, 16, 16\)"):
        net(torch.empty(1, 8, 3, 16, 16, device="meta"))
