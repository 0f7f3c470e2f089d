"""Shapes, costs, and the key layout of public weight files."""

import pytest
import torch
from torch import nn

from training.backbones import BACKBONES, VIDEO_BACKBONES, build_backbone
from training.backbones.mobilenetv2 import MobileNetV2, SameConv2d, round_channels
from training.backbones.resnet import ResNet
from training.backbones.tiny import TinyConvNet
from training.core.cost import count_macs, count_params
from training.core.weights import WeightError, load_weights


def norm_layout(name, channels):
    return {
        **{f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")},
        f"{name}.num_batches_tracked": (),
    }


def resnet_layout(depth, classes=1000):
    """Names and shapes as public ResNet files have them, written down independently of the network."""
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    expansion = 1 if depth < 50 else 4
    layout = {"conv1.weight": (64, 3, 7, 7), **norm_layout("bn1", 64)}
    inputs = 64
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), start=1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            if expansion == 1:
                shapes = [(width, inputs, 3, 3), (width, width, 3, 3)]
            else:
                shapes = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            for number, shape in enumerate(shapes, start=1):
                layout[f"{name}.conv{number}.weight"] = shape
                layout |= norm_layout(f"{name}.bn{number}", shape[0])
            if block == 0 and (stage > 1 or expansion == 4):
                layout[f"{name}.downsample.0.weight"] = (width * expansion, inputs, 1, 1)
                layout |= norm_layout(f"{name}.downsample.1", width * expansion)
            inputs = width * expansion
    return layout | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def mobilenet_layout(classes=1000):
    layout = {"features.0.0.weight": (32, 3, 3, 3), **norm_layout("features.0.1", 32)}
    inputs, index = 32, 1
    table = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for expansion, outputs, count in table:
        for _ in range(count):
            hidden, name, position = inputs * expansion, f"features.{index}.conv", 0
            if expansion != 1:
                layout[f"{name}.0.0.weight"] = (hidden, inputs, 1, 1)
                layout |= norm_layout(f"{name}.0.1", hidden)
                position = 1
            layout[f"{name}.{position}.0.weight"] = (hidden, 1, 3, 3)
            layout |= norm_layout(f"{name}.{position}.1", hidden)
            layout[f"{name}.{position + 1}.weight"] = (outputs, hidden, 1, 1)
            layout |= norm_layout(f"{name}.{position + 2}", outputs)
            inputs, index = outputs, index + 1
    layout["features.18.0.weight"] = (1280, 320, 1, 1)
    layout |= norm_layout("features.18.1", 1280)
    return layout | {"classifier.1.weight": (classes, 1280), "classifier.1.bias": (classes,)}


def random_state(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(7) if name.endswith("num_batches_tracked") else torch.rand(shape, generator=generator) + 0.1
        for name, shape in layout.items()
    }


def shapes_of(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnet_layout(depth):
    with torch.device("meta"):
        assert shapes_of(ResNet(depth, num_classes=1000)) == resnet_layout(depth)


def test_mobilenet_layout():
    with torch.device("meta"):
        assert shapes_of(MobileNetV2(num_classes=1000)) == mobilenet_layout()


@pytest.mark.parametrize(
    ("build", "layout", "head"),
    [
        (lambda: ResNet(18, num_classes=1000), resnet_layout(18), "fc.*"),
        (lambda: MobileNetV2(num_classes=1000), mobilenet_layout(), "classifier.*"),
    ],
)
def test_public_layout_loads_by_path(tmp_path, build, layout, head):
    state = random_state(layout)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    net = build()
    report = load_weights(net, path)
    assert report.complete
    assert len(report.matched) == len(layout)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())

    renamed = dict(state)
    victim = next(name for name in renamed if name.endswith("1.weight") and renamed[name].dim() == 1)
    renamed[victim + "s"] = renamed.pop(victim)
    torch.save(renamed, path)
    with pytest.raises(WeightError, match=victim):
        load_weights(net, path)

    other_head = {**state, **{n: v[:10] for n, v in state.items() if n.startswith(head[:-1])}}
    torch.save({"state_dict": {f"module.{n}": v for n, v in other_head.items()}}, path)
    with pytest.raises(WeightError, match="mismatched"):
        load_weights(net, path)
    assert len(load_weights(net, path, ignore=[head]).matched) == len(layout) - 2


@pytest.mark.parametrize(
    ("patch", "gmac"),
    [
        (64, 0.3336),
        (96, 0.7507),
        (112, 1.0759),
        (128, 1.3346),
        (144, 1.7576),
        (160, 2.0853),
        (176, 2.6061),
        (192, 3.0028),
        (224, 4.0871),
    ],
)
def test_resnet50_cost_per_crop(patch, gmac):
    with torch.device("meta"):
        net = ResNet(50)
    assert round(count_macs(net, torch.empty(1, 3, patch, patch)) / 1e9, 4) == gmac


@pytest.mark.parametrize(
    ("depth", "params", "gmac"),
    [(18, 11_689_512, 1.814), (34, 21_797_672, 3.664), (50, 25_557_032, 4.089), (101, 44_549_160, 7.801)],
)
def test_resnet_with_head_has_the_published_size(depth, params, gmac):
    with torch.device("meta"):
        net = ResNet(depth, num_classes=1000)
    assert count_params(net) == params
    assert count_macs(net, torch.empty(1, 3, 224, 224)) / 1e9 == pytest.approx(gmac, abs=0.001)


def test_mobilenet_size_and_cost():
    with torch.device("meta"):
        net = MobileNetV2()
        with_head = MobileNetV2(num_classes=1000)
    assert round(count_params(net) / 1e6, 2) == 2.22
    assert count_params(with_head) == 3_504_872
    assert count_macs(net, torch.empty(1, 3, 224, 224)) / 1e9 == pytest.approx(0.2995, abs=5e-5)


DEEP = (
    *(f"resnet3d_rs{depth}" for depth in (152, 200, 270, 300, 350)),
    *(f"movinet_a{size}{kind}" for size in (1, 2, 3, 4, 5) for kind in ("", "_stream")),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in sorted(BACKBONES)]
)
def test_shared_interface(name):
    with torch.device("meta"):
        net = build_backbone(name).eval()
        x = torch.empty(2, 3, *((8,) if name in VIDEO_BACKBONES else ()), 64, 64)
        features, pooled = net.features_map(x), net(x)
        logits = build_backbone(name, num_classes=5).eval()(x)
    assert features.shape[:2] == (2, net.out_channels)
    assert features.dim() == x.dim()
    assert pooled.shape == (2, net.out_channels)
    assert logits.shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "tiny_glance", "tiny_local"])
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    net = build_backbone(name, num_classes=3)
    net(torch.randn(4, 3, 48, 48)).square().mean().backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_pooled_vector_is_the_mean_of_the_map():
    torch.manual_seed(0)
    net = build_backbone("mobilenetv2").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(net(x), net.features_map(x).mean((2, 3)), atol=1e-6)
        assert net.features_map(torch.randn(1, 3, 224, 224)).shape == (1, 1280, 7, 7)


def test_resnet_strides_in_the_3x3_convolution():
    with torch.device("meta"):
        block = ResNet(50).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_zero_init_starts_blocks_as_identity():
    torch.manual_seed(0)
    block = ResNet(50, zero_init_residual=True).layer1[1].eval()
    x = torch.rand(1, 256, 8, 8)
    assert torch.equal(block(x), x)
    assert not torch.equal(ResNet(50).layer1[1].eval()(x), x)


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        build_backbone("resnet5O")
    with pytest.raises(ValueError, match=r"no option widht.*width"):
        build_backbone("mobilenetv2", widht=1.0)
    with pytest.raises(ValueError, match="no ResNet of depth 51"):
        ResNet(51)
    with pytest.raises(ValueError, match="padding must be"):
        MobileNetV2(padding="same")


@pytest.mark.parametrize(("size", "pads"), [(8, (0, 1)), (9, (1, 1)), (7, (1, 1)), (224, (0, 1))])
def test_same_padding_puts_the_odd_pixel_last(size, pads):
    torch.manual_seed(0)
    ours = SameConv2d(2, 3, 3, stride=2, bias=False)
    x = torch.randn(1, 2, size, size)
    padded = nn.functional.pad(x, (*pads, *pads))
    assert torch.equal(ours(x), nn.functional.conv2d(padded, ours.weight, stride=2))
    symmetric = nn.functional.conv2d(x, ours.weight, stride=2, padding=1)
    assert torch.allclose(ours(x), symmetric) == (pads == (1, 1))


def test_same_padding_of_an_oblong_input():
    torch.manual_seed(0)
    ours = SameConv2d(1, 1, 3, stride=2, bias=False)
    x = torch.randn(1, 1, 8, 9)
    expected = nn.functional.conv2d(nn.functional.pad(x, (1, 1, 0, 1)), ours.weight, stride=2)
    assert torch.equal(ours(x), expected)


def test_round_channels_never_loses_more_than_a_tenth():
    assert [round_channels(c) for c in (32, 24 * 1.4, 16 * 0.35, 12, 8.9)] == [32, 32, 8, 16, 16]


def test_tiny_net_averages_large_inputs_down():
    torch.manual_seed(0)
    net = TinyConvNet(input_size=16).eval()
    large = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(net(large), net(nn.functional.avg_pool2d(large, 4)), atol=1e-6)
        # Texture finer than the averaging window is invisible.
        stripes = torch.ones(1, 3, 64, 64)
        stripes[..., ::2] = -1
        assert torch.allclose(net(stripes), net(torch.zeros(1, 3, 64, 64)), atol=1e-6)
        assert not torch.allclose(TinyConvNet().eval()(stripes), TinyConvNet().eval()(torch.zeros(1, 3, 64, 64)))
    with pytest.raises(ValueError, match="smaller than input_size"):
        net(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match="at least one stage"):
        TinyConvNet(())
