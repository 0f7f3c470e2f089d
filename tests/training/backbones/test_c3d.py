"""C3D: published figures, names of public files, its one input size, time and colour."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from training.backbones.c3d import C3D, LAYOUTS
from training.core.cost import count_macs, count_params
from training.core.weights import WeightError, load_weights

NARROW = 1 / 8
NAMES = ("1", "2", "3a", "3b", "4a", "4b", "5a", "5b")


def meta_net(**options):
    with torch.device("meta"):
        return C3D(**options)


@pytest.mark.parametrize(("classes", "params"), [(400, 79.63), (101, 78.41), (51, 78.20)])
def test_parameters_and_macs(classes, params):
    net = meta_net(num_classes=classes)
    assert round(count_params(net) / 1e6, 2) == params
    assert round(count_macs(net, torch.empty(1, 3, 16, 112, 112, device="meta")) / 1e9, 2) == 38.55
    norms = count_params(meta_net(num_classes=classes, batch_norm=True)) - count_params(net)
    assert norms == 64 + 128 + 256 * 2 + 512 * 4  # scale and shift instead of a bias


# --- names of public files --------------------------------------------------------------------


def shapes(classes=487, width=64):
    """(our owner, shape of its weight) in order, written down independently of the network."""
    layout, inputs = {}, 3
    for name, times in zip(NAMES, (1, 2, 4, 4, 8, 8, 8, 8), strict=True):
        layout[f"conv{name}"] = (width * times, inputs, 3, 3, 3)
        inputs = width * times
    return layout | {
        "fc6": (64 * width, 16 * inputs),
        "fc7": (64 * width, 64 * width),
        "fc8": (classes, 64 * width),
    }


PUBLIC = {
    "sports1m": [*(f"conv{name}" for name in NAMES), "fc6", "fc7", "fc8"],
    "sequential": [*(f"features.{n}" for n in (0, 3, 6, 8, 11, 13, 16, 18)), *(f"classifier.{n}" for n in (0, 3, 6))],
    "mmaction2": [
        *(f"backbone.conv{name}.conv" for name in ("1a", "2a", "3a", "3b", "4a", "4b", "5a", "5b")),
        "backbone.fc6",
        "backbone.fc7",
        "cls_head.fc_cls",
    ],
}


def public_state(layout, classes=5, width=8):
    """State dict in a public layout, and the same in our names."""
    generator = torch.Generator().manual_seed(0)
    theirs, ours = {}, {}
    for public, (name, shape) in zip(PUBLIC[layout], shapes(classes, width).items(), strict=True):
        for leaf, size in (("weight", shape), ("bias", shape[:1])):
            value = torch.randn(size, generator=generator) * 0.05
            theirs[f"{public}.{leaf}"] = ours[f"{name}.{leaf}"] = value
    return theirs, ours


def test_names_and_shapes():
    ours = {name: tuple(value.shape) for name, value in meta_net(num_classes=487).state_dict().items()}
    expected = {f"{name}.weight": shape for name, shape in shapes().items()}
    assert ours == expected | {f"{name}.bias": shape[:1] for name, shape in shapes().items()}


@pytest.mark.parametrize("layout", PUBLIC)
def test_files_load(layout, tmp_path):
    theirs, ours = public_state(layout)
    path = tmp_path / "c3d.pth"
    torch.save(theirs, path)
    net = C3D(num_classes=5, width=NARROW).eval()
    assert load_weights(net, path, convert=LAYOUTS[layout]).complete
    assert all(torch.equal(value, ours[name]) for name, value in net.state_dict().items())

    headless = C3D(num_classes=3, width=NARROW)
    with pytest.raises(WeightError, match=r"fc8"):
        load_weights(headless, path, convert=LAYOUTS[layout])
    assert load_weights(headless, path, convert=LAYOUTS[layout], ignore=headless.heads).complete
    first = next(iter(theirs))
    theirs[first.replace("conv", "conv9").replace("features.0", "features.1")] = theirs.pop(first)
    with pytest.raises(WeightError, match=r"conv1\.weight"):
        load_weights(net, theirs, convert=LAYOUTS[layout])


def test_all_layouts_give_the_same_logits():
    torch.manual_seed(0)
    video = torch.randn(1, 3, 16, 112, 112)
    results = []
    for layout in PUBLIC:
        net = C3D(num_classes=5, width=NARROW).eval()
        load_weights(net, public_state(layout)[0], convert=LAYOUTS[layout])
        with torch.no_grad():
            results.append(net(video))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    with torch.no_grad():
        assert not torch.equal(results[0], C3D(num_classes=5, width=NARROW).eval()(video))


def test_backbone_file_and_norms_of_mmaction2():
    """Its pretrained backbone has no prefix; its nets with norms have a `bn` beside each `conv`."""
    theirs, _ = public_state("mmaction2")
    plain = {name.removeprefix("backbone."): v for name, v in theirs.items() if not name.startswith("cls_head")}
    net = C3D(num_classes=5, width=NARROW)
    assert load_weights(net, plain, convert=LAYOUTS["mmaction2"], ignore=net.heads).complete
    normed = C3D(num_classes=5, width=NARROW, batch_norm=True)
    both = dict(theirs)
    for name in [name for name in theirs if name.endswith("conv.bias")]:
        del theirs[name]
    for name, value in normed.state_dict().items():
        if name.startswith("bn"):
            owner, leaf = name.split(".")
            number = owner.removeprefix("bn")
            theirs[f"backbone.conv{number if len(number) == 2 else number + 'a'}.bn.{leaf}"] = value
    assert load_weights(normed, theirs, convert=LAYOUTS["mmaction2"]).complete
    with pytest.raises(WeightError, match=r"bn1\.weight"):
        load_weights(net, theirs, convert=LAYOUTS["mmaction2"])
    with pytest.raises(WeightError, match="both become"):
        load_weights(net, {**plain, **both}, convert=LAYOUTS["mmaction2"])


# --- behaviour --------------------------------------------------------------------------------


def test_colour_and_time_reach_the_first_layer():
    torch.manual_seed(0)
    conv = C3D(num_classes=3, width=NARROW).conv1
    video = torch.full((1, 3, 6, 12, 12), 0.25)
    video[:, 0] = torch.arange(6).reshape(1, 6, 1, 1) / 6
    video[:, 1] = torch.linspace(-1, 1, 12)
    expected = torch.zeros(1, 8, 6, 12, 12) + conv.bias[:, None, None, None]
    for t, tap in itertools.product(range(6), range(3)):
        if 0 <= t + tap - 1 < 6:
            expected[:, :, t] += F.conv2d(video[:, :, t + tap - 1], conv.weight[:, :, tap], padding=1)
    assert torch.allclose(conv(video), expected, atol=1e-5)
    scrambled = video.transpose(1, 2).reshape(video.shape)  # defect D2
    assert not torch.allclose(conv(scrambled), expected, atol=1e-2)


def test_whole_net_against_its_formula():
    torch.manual_seed(0)
    net = C3D(num_classes=3, width=NARROW, adaptive=True).eval()
    for module in net.children():
        if hasattr(module, "bias"):
            torch.nn.init.normal_(module.bias, std=0.1)
    torch.nn.init.normal_(net.fc6.weight, std=0.1)
    video = torch.randn(2, 3, 16, 112, 112)
    windows = {"1": (1, 2, 2), "2": (2, 2, 2), "3b": (2, 2, 2), "4b": (2, 2, 2)}
    with torch.no_grad():
        x = video
        for name in NAMES:
            conv = net.get_submodule(f"conv{name}")
            x = F.conv3d(x, conv.weight, conv.bias, padding=1).relu()
            if name in windows:
                x = F.max_pool3d(x, windows[name], windows[name])
        padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
        x = F.max_pool3d(padded, 2, 2).flatten(1)
        assert x.shape == (2, 64 * 1 * 4 * 4)
        expected = net.fc8(net.fc7(net.fc6(x).relu()).relu())
        # The option to take other sizes changes nothing at the published one.
        assert torch.allclose(net(video), expected, atol=1e-5)
        exact = C3D(num_classes=3, width=NARROW).eval()
        exact.load_state_dict(net.state_dict())
        assert torch.allclose(exact(video), expected, atol=1e-5)
        assert not torch.allclose(exact(video.flip(2)), expected, atol=1e-5)


def test_input_size_is_exact_unless_adaptive():
    net = meta_net()
    net.check_input(16, 112, 112)
    for size in ((8, 112, 112), (16, 128, 171), (16, 224, 224), (32, 112, 112)):
        with pytest.raises(ValueError, match=r"exactly 16 frames of 112×112 pixels.*adaptive=True"):
            net.check_input(*size)
    with pytest.raises(ValueError, match="exactly 16 frames"):
        net(torch.empty(1, 3, 8, 112, 112, device="meta"))
    with pytest.raises(ValueError, match="needs clips"):
        net(torch.empty(1, 16, 3, 112, 112, device="meta"))
    loose = meta_net(adaptive=True)
    for size in ((16, 16, 16), (17, 64, 48), (32, 128, 171)):
        loose.check_input(*size)
        assert loose(torch.empty(1, 3, *size, device="meta")).shape == (1, 400)
    with pytest.raises(ValueError, match="at least 16 frames of 16×16 pixels"):
        loose.check_input(15, 112, 112)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_parts_hold_everything_once(batch_norm):
    net = meta_net(batch_norm=batch_norm)
    parts = net.parts()
    held = [id(parameter) for _, part in parts for parameter in part.parameters()]
    assert held == [id(parameter) for parameter in net.parameters()]
    assert all(net.get_submodule(name) is part for name, part in parts)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradients_modes_and_memory(batch_norm):
    torch.manual_seed(0)
    net = C3D(num_classes=3, width=NARROW, adaptive=True, batch_norm=batch_norm)
    video = torch.randn(2, 3, 16, 32, 32)
    net(video).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    net.eval()
    expected = net(video)
    last = net.to(memory_format=torch.channels_last_3d)(video.to(memory_format=torch.channels_last_3d))
    assert torch.allclose(last, expected, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(net(video).float(), expected, atol=0.1)
