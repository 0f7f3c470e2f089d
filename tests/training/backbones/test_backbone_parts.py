"""Parts of the image backbones: their composition is the net, and other channel counts change the stem only."""

import pytest
import torch

from training.backbones import build_backbone
from training.backbones.mobilenetv2 import BLOCKS, InvertedResidual, MobileNetV2, round_channels
from training.backbones.resnet import ResNet

NETS = {
    "resnet18": {},
    "mobilenetv2": {"width": 0.35},
    "tiny_glance": {"channels": (4, 8)},
    "tiny_local": {"channels": (4, 8, 6), "input_size": 16},
}


def compose(net, x):
    for part in net.parts():
        x = part(x)
    return x


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("channels", [1, 3, 10])
def test_the_composition_of_the_parts_is_the_map(name, channels):
    torch.manual_seed(0)
    net = build_backbone(name, **NETS[name], in_channels=channels).eval()
    x = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(compose(net, x), net.features_map(x))
        assert torch.equal(compose(net, x).mean((2, 3)), net(x))


@pytest.mark.parametrize(("name", "pools"), [("resnet18", (2, 3, 4)), ("mobilenetv2", (1, 2)), ("tiny_local", (1, 2))])
def test_pools_lie_between_the_parts(name, pools):
    net = build_backbone(name)
    assert net.temporal_pools == pools
    assert max(pools) < len(net.parts())


def test_resnet_is_cut_after_each_stage():
    with torch.device("meta"):
        net, x = ResNet(50), torch.empty(1, 3, 224, 224)
    shapes = []
    for part in net.parts():
        x = part(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 56, 56), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


@pytest.mark.parametrize("width", [1.0, 0.35, 1.4])
def test_mobilenet_is_cut_before_the_stages_of_64_and_160_channels(width):
    """Inputs of these stages: what the stages of 32 and of 96 channels give, at 1/8 and 1/16 of the side."""
    with torch.device("meta"):
        net, x = MobileNetV2(width=width), torch.empty(1, 3, 160, 160)
    first, second, last = net.parts()
    x = first(x)
    assert tuple(x.shape[1:]) == (round_channels(32 * width), 20, 20)
    x = second(x)
    assert tuple(x.shape[1:]) == (round_channels(96 * width), 10, 10)
    assert tuple(last(x).shape[1:]) == (net.out_channels, 5, 5)
    # The blocks there have a stride, so no shortcut leads past the pool.
    starts = [1 + sum(count for _, _, count, _ in BLOCKS[:stage]) for stage in (3, 5)]
    blocks = [net.features[start] for start in starts]
    assert all(isinstance(block, InvertedResidual) and not block.adds_input for block in blocks)


@pytest.mark.parametrize("name", NETS)
def test_other_channels_change_the_stem_only(name):
    with torch.device("meta"):
        ours = build_backbone(name, **NETS[name], in_channels=7).state_dict()
        usual = build_backbone(name, **NETS[name]).state_dict()
    assert list(ours) == list(usual)
    other = [key for key in ours if ours[key].shape != usual[key].shape]
    assert len(other) == 1
    assert ours[other[0]].shape == (usual[other[0]].shape[0], 7, *usual[other[0]].shape[2:])
    assert other[0] == next(iter(ours))


@pytest.mark.parametrize("name", NETS)
def test_three_channels_are_the_default_to_the_bit(name):
    torch.manual_seed(3)
    usual = build_backbone(name, **NETS[name])
    torch.manual_seed(3)
    named = build_backbone(name, **NETS[name], in_channels=3)
    assert all(torch.equal(a, b) for a, b in zip(usual.parameters(), named.parameters(), strict=True))
