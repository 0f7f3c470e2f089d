"""I3D-ResNet: published figures, the inflation of an image net, published weights by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.backbones.i3d_resnet import LAYOUTS, I3DResNet
from training.backbones.resnet import ResNet
from training.core.cost import count_macs, count_params
from training.core.weights import WeightError, load_weights
from training.layers.conv3d import FoldedMaxPool3d
from training.layers.inflate import inflate_2d

NARROW = 1 / 8


def randomise(net, seed=0):
    """Give every parameter and statistic a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
    return net.eval()


def small(**options):
    torch.manual_seed(0)
    return randomise(I3DResNet(num_classes=5, width=NARROW, **options))


# --- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "size", "pool", "gmac"), [(32, 224, True, 33.128), (32, 224, False, 49.621), (32, 256, True, 43.269)]
)
def test_figures(frames, size, pool, gmac):
    with torch.device("meta"):
        net = I3DResNet(num_classes=400, temporal_pool=pool)
        clip = torch.empty(1, 3, frames, size, size)
    assert count_params(net) == 28_043_472
    assert count_macs(net, clip) / 1e9 == pytest.approx(gmac, rel=1e-3)


def test_mmaction2s_figure_is_ours_at_256_pixels_with_what_its_counter_adds():
    """Its counter adds 2 per normalised value, 1 per ReLU, 1 per pooled value; exactly its 43,564,040,192."""
    with torch.device("meta"):
        net = I3DResNet(num_classes=400).eval()
        clip = torch.empty(1, 3, 32, 256, 256)
    added = [0]
    handles = []
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            count = lambda _, inputs, output: added.append(2 * output.numel())  # noqa: E731
        elif isinstance(module, nn.ReLU):
            count = lambda _, inputs, output: added.append(output.numel())  # noqa: E731
        elif isinstance(module, FoldedMaxPool3d | nn.MaxPool3d):
            count = lambda _, inputs, output: added.append(inputs[0].numel())  # noqa: E731
        else:
            continue
        handles.append(module.register_forward_hook(count))
    pooled = net.features_map(clip).numel()
    for handle in handles:
        handle.remove()
    assert count_macs(net, clip) + sum(added) + pooled == 43_564_040_192


def test_figure_depends_on_what_is_inflated():
    """The control: an image ResNet-50 lacks what 9 kernels of 3 frames and the stem's of 5 have more."""
    with torch.device("meta"):
        assert count_params(I3DResNet(num_classes=400)) - count_params(ResNet(50, 400)) == 3_715_840


@pytest.mark.parametrize(("pool", "frames"), [(True, 4), (False, 8)])
def test_map(pool, frames):
    with torch.device("meta"):
        net = I3DResNet(num_classes=3, temporal_pool=pool)
        assert net.features_map(torch.empty(1, 3, 32, 224, 224)).shape == (1, 2048, frames, 7, 7)


# --- inflation --------------------------------------------------------------------------------


def test_inflated_kernel_on_a_still_video_is_the_image_kernel():
    torch.manual_seed(0)
    weight, frame = torch.randn(4, 3, 3, 3), torch.randn(1, 3, 6, 6)
    video = frame.unsqueeze(2).expand(-1, -1, 9, -1, -1)
    wanted = F.conv2d(frame, weight, padding=1)
    result = F.conv3d(video, inflate_2d(weight, 5), padding=(2, 1, 1))
    assert torch.allclose(result[:, :, 2:-2], wanted.unsqueeze(2).expand(-1, -1, 5, -1, -1), atol=1e-5)
    assert not torch.allclose(result[:, :, 0], wanted, atol=1e-2)  # the border sees the padding
    with pytest.raises(ValueError, match="only kernels"):
        inflate_2d(torch.zeros(3, 3), 3)
    with pytest.raises(ValueError, match="at least 1 frame"):
        inflate_2d(weight, 0)


def image_resnet():
    """An image ResNet-50 in torchvision's layout, of an eighth of the width."""
    torch.manual_seed(1)
    net = ResNet(50, 7)
    for name, module in list(net.named_modules()):
        parent = net.get_submodule(name.rpartition(".")[0]) if name else None
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.Conv2d):
            inside = 3 if module.in_channels == 3 else module.in_channels // 8
            options = {"stride": module.stride, "padding": module.padding, "bias": False}
            setattr(parent, leaf, nn.Conv2d(inside, module.out_channels // 8, module.kernel_size, **options))
        elif isinstance(module, nn.BatchNorm2d):
            setattr(parent, leaf, nn.BatchNorm2d(module.num_features // 8))
        elif isinstance(module, nn.Linear):
            setattr(parent, leaf, nn.Linear(256, 7))
    return randomise(net, seed=1)


def test_inflated_net_on_a_still_video_is_the_image_net():
    image, net = image_resnet(), small()
    report = load_weights(net, image.state_dict(), convert=LAYOUTS["torchvision_resnet50"], ignore=net.heads)
    assert report.complete
    frame = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = image.features(frame)
        still = net.features_map(frame.unsqueeze(2).expand(-1, -1, 160, -1, -1))
    scale = float(wanted.abs().max())
    assert float((still[0, :, 10] - wanted[0]).abs().max()) < 1e-5 * scale
    assert float((still[0, :, 0] - wanted[0]).abs().max()) > 1e-3 * scale  # the first frames see the padding


def test_image_net_of_another_depth_is_refused():
    net = small()
    state = {name: value for name, value in image_resnet().state_dict().items() if "layer3.5" not in name}
    with pytest.raises(WeightError, match=r"layer3\.5"):
        load_weights(net, state, convert=LAYOUTS["torchvision_resnet50"], ignore=net.heads)


# --- published weights ------------------------------------------------------------------------


def mmaction2_state(net):
    """The net's weights under MMAction2's names, written from its ConvModule layout."""
    state = {}
    for name, value in net.state_dict().items():
        parts = name.split(".")
        if parts[0] == "fc":
            new = f"cls_head.fc_cls.{parts[1]}"
        elif parts[0] == "stem":
            new = f"backbone.conv1.{'bn' if parts[1] == 'bn1' else 'conv'}.{parts[2]}"
        elif parts[2] == "downsample":
            new = f"backbone.{parts[0]}.{parts[1]}.downsample.{'conv' if parts[3] == '0' else 'bn'}.{parts[4]}"
        else:
            kind, number = parts[2][:-1], parts[2][-1]
            new = f"backbone.{parts[0]}.{parts[1]}.conv{number}.{kind}.{parts[3]}"
        state[new] = value.clone()
    return state


def test_mmaction2s_weights():
    source, net = small(), small()
    state = mmaction2_state(source)
    assert state["backbone.conv1.conv.weight"].shape == (8, 3, 5, 7, 7)
    assert state["backbone.layer1.0.conv1.conv.weight"].shape == (8, 8, 3, 1, 1)
    assert state["backbone.layer2.1.conv1.conv.weight"].shape == (16, 64, 1, 1, 1)
    assert {"backbone.layer4.0.downsample.bn.running_var", "backbone.layer3.5.conv3.bn.bias"} < set(state)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
        clip = torch.randn(1, 3, 8, 32, 32)
        assert not torch.allclose(net(clip), source(clip), atol=1e-3)
        load_weights(net, state, convert=LAYOUTS["mmaction2"])
        assert torch.equal(net(clip), source(clip))
    state["backbone.layer2.0.conv1.bn.scale"] = state.pop("backbone.layer2.0.conv1.bn.weight")
    with pytest.raises(WeightError, match=r"layer2\.0\.bn1\.weight"):
        load_weights(net, state, convert=LAYOUTS["mmaction2"])


# --- form -------------------------------------------------------------------------------------


def test_colours_and_time_reach_the_first_layer_intact():
    """Frame t has the value t in one colour; compared with the kernel applied by hand to the frames it covers."""
    net = small(folded=True)
    with torch.no_grad():
        clip = torch.zeros(1, 3, 8, 32, 32)
        clip[0, 1] = torch.arange(8.0)[:, None, None]
        ours = net.stem.conv1(clip)
        weight = net.stem.conv1.weight
        for place in range(4):
            wanted = torch.zeros_like(ours[:, :, 0])
            for tap in range(5):
                frame = 2 * place + tap - 2
                if 0 <= frame < 8:
                    wanted += F.conv2d(clip[:, :, frame], weight[:, :, tap], stride=2, padding=3)
            assert torch.allclose(ours[:, :, place], wanted, atol=1e-4)
        # Defect D2: a stack (T,C,H,W) reshaped to (C,T,H,W) instead of transposed.
        scrambled = clip.transpose(1, 2).reshape(1, 3, 8, 32, 32)
        assert not torch.allclose(net.stem.conv1(scrambled), ours, atol=1e-2)


def test_both_forms_are_equal_and_parts_hold_everything():
    folded, plain = small(), small(folded=False)
    clip = torch.randn(2, 3, 9, 40, 33)
    with torch.no_grad():
        assert torch.allclose(folded(clip), plain(clip), atol=1e-4)
        assert torch.allclose(folded(clip.to(memory_format=torch.channels_last_3d)), plain(clip), atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(folded(clip).float(), plain(clip).float(), atol=0.1)
    held = [id(parameter) for _, part in folded.parts() for parameter in part.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in folded.parameters())


def test_training_reaches_every_parameter():
    net = small().train()
    net(torch.randn(2, 3, 8, 32, 32)).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in net.parameters())


def test_small_input_is_refused():
    with pytest.raises(ValueError, match="at least 8 frames of 32×32"):
        small()(torch.zeros(1, 3, 4, 32, 32))
    assert small(temporal_pool=False)(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 5)
    with pytest.raises(ValueError, match="width"):
        I3DResNet(num_classes=5, width=0)


def assert_exports_and_compiles(part, clip):
    with torch.no_grad():
        wanted = part(clip)
        assert torch.allclose(torch.export.export(part, (clip,)).module()(clip), wanted, atol=1e-5)
        assert torch.allclose(torch.compile(part, backend="eager", fullgraph=True)(clip), wanted, atol=1e-5)


def test_stem_and_a_block_export_and_compile():
    net = small()
    assert_exports_and_compiles(nn.Sequential(net.stem, net.layer1[0]).eval(), torch.randn(1, 3, 8, 32, 32))


@pytest.mark.slow
def test_exports_and_compiles():
    assert_exports_and_compiles(small(), torch.randn(1, 3, 8, 32, 32))
