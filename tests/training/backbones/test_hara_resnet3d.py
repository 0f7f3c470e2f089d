"""3D-ResNets of Hara et al.: published figures, names of the authors' files, shortcuts, time and colour."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from training.backbones.hara_resnet3d import LAYOUTS, HaraResNet3D
from training.core.cost import count_macs, count_params
from training.core.weights import WeightError, load_weights

NARROW = 1 / 8


def meta_net(depth, **options):
    with torch.device("meta"):
        return HaraResNet3D(depth, **options)


@pytest.mark.parametrize(
    ("depth", "form", "params", "gmac"),
    [
        (18, "r3d", 33.41, 8.31),
        (34, "r3d", 63.72, 12.70),
        (50, "r3d", 47.02, 10.07),
        (101, "r3d", 86.06, 13.89),
        (152, "r3d", 118.22, 18.61),
        (200, "r3d", 127.42, 25.80),
        (18, "r2plus1d", 33.42, 8.48),
        (34, "r2plus1d", 63.75, 12.87),
    ],
)
def test_parameters_and_macs(depth, form, params, gmac):
    net = meta_net(depth, form=form)
    assert round(count_params(net) / 1e6, 2) == params
    clip = torch.empty(1, 3, 16, 112, 112, device="meta")
    assert round(count_macs(net, clip) / 1e9, 2) == gmac
    if depth == 18:  # what the pool after the stem saves
        unpooled = meta_net(depth, form=form, pool=False)
        assert count_params(unpooled) == count_params(net)
        assert count_macs(unpooled, clip) > 4 * count_macs(net, clip)


# --- the authors' names -----------------------------------------------------------------------


def norm(name, channels):
    shapes = {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {f"{name}.num_batches_tracked": ()}


def pair(name, number, inputs, outputs, frames, side):
    inside = frames * side**2 * inputs * outputs // (side**2 * inputs + frames * outputs)
    return {
        f"{name}conv{number}_s.weight": (inside, inputs, 1, side, side),
        **norm(f"{name}bn{number}_s", inside),
        f"{name}conv{number}_t.weight": (outputs, inside, frames, 1, 1),
        **norm(f"{name}bn{number}_t", outputs),
    }


def hara_layout(depth, form="r3d", classes=400, width=64, shortcut="B"):
    """Names and shapes of the authors' files, written down independently of the network."""
    counts = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 200: (3, 24, 36, 3)}[depth]
    expansion = 1 if depth < 50 else 4
    if form == "r3d":
        layout = {"conv1.weight": (width, 3, 7, 7, 7), **norm("bn1", width)}
    else:
        layout = pair("", 1, 3, width, 7, 7)
    inputs = width
    for stage, count in enumerate(counts, start=1):
        inside = width * 2 ** (stage - 1)
        outputs = inside * expansion
        for block in range(count):
            name = f"layer{stage}.{block}."
            sizes = [(inputs, inside, 3), (inside, inside, 3)]
            if expansion == 4:
                sizes = [(inputs, inside, 1), (inside, inside, 3), (inside, outputs, 1)]
            for number, (source, target, kernel) in enumerate(sizes, start=1):
                if form == "r2plus1d" and kernel == 3:
                    layout |= pair(name, number, source, target, 3, 3)
                else:
                    layout[f"{name}conv{number}.weight"] = (target, source, kernel, kernel, kernel)
                    layout |= norm(f"{name}bn{number}", target)
            if block == 0 and (stage > 1 or expansion == 4) and shortcut == "B":
                layout[f"{name}downsample.0.weight"] = (outputs, inputs, 1, 1, 1)
                layout |= norm(f"{name}downsample.1", outputs)
            inputs = outputs
    return layout | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


@pytest.mark.parametrize("form", ["r3d", "r2plus1d"])
@pytest.mark.parametrize("depth", [10, 34, 50])
def test_names_and_shapes(depth, form):
    ours = {name: tuple(value.shape) for name, value in meta_net(depth, form=form).state_dict().items()}
    assert ours == hara_layout(depth, form)


def test_shortcut_a_has_no_parameters():
    ours = {name: tuple(value.shape) for name, value in meta_net(34, shortcut="A").state_dict().items()}
    assert ours == hara_layout(34, shortcut="A")
    assert ours != hara_layout(34)


@pytest.mark.parametrize(("depth", "form", "shortcut"), [(18, "r3d", "A"), (50, "r3d", "B"), (10, "r2plus1d", "B")])
def test_files_load(depth, form, shortcut, tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.tensor(3) if shape == () else torch.rand(shape, generator=generator) + 0.1
        for name, shape in hara_layout(depth, form, classes=6, width=8, shortcut=shortcut).items()
    }
    wrapped = {f"module.{name}": value for name, value in state.items()}
    path = tmp_path / "resnet.pth"
    torch.save({"arch": f"resnet-{depth}", "epoch": 200, "state_dict": wrapped}, path)

    def build(classes=6):
        return HaraResNet3D(depth, form=form, shortcut=shortcut, num_classes=classes, width=NARROW).eval()

    one, two = build(), build()
    assert load_weights(one, path).complete
    assert load_weights(two, wrapped, convert=LAYOUTS["hara"]).complete
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    video = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(one(video), two(video))

    headless = build(classes=2)
    with pytest.raises(WeightError, match=r"fc\.weight"):
        load_weights(headless, path)
    assert load_weights(headless, path, ignore=headless.heads).complete
    name = next(name for name in state if name.startswith("layer3.0.conv2"))
    state[name.replace("conv2", "conv4")] = state.pop(name)
    with pytest.raises(WeightError, match="conv4"):
        load_weights(one, state)
    other = HaraResNet3D(depth, form=form, shortcut="AB"[shortcut == "A"], num_classes=6, width=NARROW)
    with pytest.raises(WeightError, match=r"downsample"):
        load_weights(other, path)


# --- behaviour --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["r3d", "r2plus1d"])
def test_colour_and_time_reach_the_first_layer(form):
    torch.manual_seed(0)
    net = HaraResNet3D(10, form=form, num_classes=3, width=NARROW)
    video = torch.full((1, 3, 6, 32, 32), 0.25)
    video[:, 0] = torch.arange(6).reshape(1, 6, 1, 1) / 6
    video[:, 1] = torch.linspace(-1, 1, 32)
    conv = net.conv1 if form == "r3d" else net.conv1_s
    taps = conv.weight.shape[2]
    expected = torch.zeros(1, conv.out_channels, 6, 16, 16)
    for t, tap in itertools.product(range(6), range(taps)):
        source = t + tap - taps // 2
        if 0 <= source < 6:
            expected[:, :, t] += F.conv2d(video[:, :, source], conv.weight[:, :, tap], stride=2, padding=3)
    assert torch.allclose(conv(video), expected, atol=1e-4)
    scrambled = video.transpose(1, 2).reshape(video.shape)  # defect D2
    assert not torch.allclose(conv(scrambled), expected, atol=1e-2)


def test_map_sizes():
    clip = torch.empty(1, 3, 16, 112, 112, device="meta")
    assert meta_net(18).features_map(clip).shape == (1, 512, 1, 4, 4)
    assert meta_net(50, form="r2plus1d").features_map(clip).shape == (1, 2048, 1, 4, 4)
    assert meta_net(18, pool=False).features_map(clip).shape == (1, 512, 2, 7, 7)
    longer = torch.empty(1, 3, 64, 112, 112, device="meta")
    assert meta_net(18, stem_stride=2).features_map(longer).shape == (1, 512, 2, 4, 4)


def test_shortcut_a_by_hand():
    torch.manual_seed(0)
    block = HaraResNet3D(18, shortcut="A", num_classes=3, width=NARROW).eval().layer2[0]
    x = torch.randn(2, 8, 3, 5, 4, requires_grad=True)
    shortcut = block.downsample(x)
    assert shortcut.shape == (2, 16, 2, 3, 2)
    for t, h, w in itertools.product(range(2), range(3), range(2)):
        assert torch.equal(shortcut[:, :8, t, h, w], x[:, :, 2 * t, 2 * h, 2 * w])
    assert not shortcut[:, 8:].any()
    shortcut.sum().backward()
    assert x.grad.sum() == 2 * 8 * 2 * 3 * 2  # the gradient is not cut
    block.conv2.weight.data.zero_()
    assert torch.equal(block(x), shortcut.relu())
    assert not torch.equal(block(x), F.pad(x[:, :, 1::2, 1::2, 1::2], (0, 1, 0, 1, 0, 1, 0, 8)).relu())


@pytest.mark.parametrize(("depth", "form"), [(18, "r3d"), (50, "r2plus1d")])
def test_block_against_its_formula(depth, form):
    torch.manual_seed(0)
    block = HaraResNet3D(depth, form=form, num_classes=3, width=NARROW).eval().layer2[0]
    x = torch.randn(2, 8 if depth == 18 else 32, 4, 6, 6)
    scale = (1 + 1e-5) ** -0.5

    def conv(y, number, stride):
        if hasattr(block, f"conv{number}"):
            weight = getattr(block, f"conv{number}").weight
            return F.conv3d(y, weight, stride=stride, padding=weight.shape[2] // 2) * scale
        y = F.conv3d(y, getattr(block, f"conv{number}_s").weight, stride=(1, stride, stride), padding=(0, 1, 1)) * scale
        y = F.conv3d(y.relu(), getattr(block, f"conv{number}_t").weight, stride=(stride, 1, 1), padding=(1, 0, 0))
        return y * scale

    branch = conv(x, 1, 2 if depth == 18 else 1).relu()
    branch = conv(branch, 2, 1 if depth == 18 else 2)
    if depth == 50:
        branch = conv(branch.relu(), 3, 1)
    shortcut = F.conv3d(x, block.downsample[0].weight, stride=2) * scale
    assert torch.allclose(block(x), (branch + shortcut).relu(), atol=1e-4)
    assert not torch.allclose(block(x), branch.relu(), atol=1e-2)


@pytest.mark.parametrize("form", ["r3d", "r2plus1d"])
@pytest.mark.parametrize("depth", [18, 50])
def test_parts_hold_everything_once(depth, form):
    net = meta_net(depth, form=form)
    parts = net.parts()
    held = [id(parameter) for _, part in parts for parameter in part.parameters()]
    assert held == [id(parameter) for parameter in net.parameters()]
    assert all(net.get_submodule(name) is part for name, part in parts)


@pytest.mark.parametrize(("form", "shortcut"), [("r3d", "A"), ("r2plus1d", "B")])
def test_gradients_modes_and_memory(form, shortcut):
    torch.manual_seed(0)
    net = HaraResNet3D(10, form=form, shortcut=shortcut, num_classes=3, width=NARROW, dropout=0.5, in_channels=2)
    video = torch.randn(2, 2, 4, 36, 36)
    net(video).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    net.eval()
    expected = net(video)
    last = net.to(memory_format=torch.channels_last_3d)(video.to(memory_format=torch.channels_last_3d))
    assert torch.allclose(last, expected, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(net(video).float(), expected, atol=0.1)


def test_refusals():
    with pytest.raises(ValueError, match="no 3-D ResNet of depth 20; known: 10, 18"):
        HaraResNet3D(20)
    with pytest.raises(ValueError, match="form must be"):
        HaraResNet3D(form="mc3")
    with pytest.raises(ValueError, match="shortcut must be"):
        HaraResNet3D(shortcut="C")
    with pytest.raises(ValueError, match="stem_frames must be odd, got 4"):
        HaraResNet3D(stem_frames=4)
    with pytest.raises(ValueError, match="at least 1 frames of 32×32 pixels, got 16 of 24×32"):
        meta_net(18).check_input(16, 24, 32)
    meta_net(18, pool=False).check_input(16, 24, 32)
    with pytest.raises(ValueError, match="needs clips"):
        meta_net(18)(torch.empty(1, 16, 3, 112, 112, device="meta"))
