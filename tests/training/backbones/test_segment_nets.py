"""TSN and TSM against plain forms: frames one by one, shift as a wrapper, consensus as a loop; figures and streams."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.backbones.frame_nets import FRAME_NETS, build_frame_net, run_block
from training.backbones.mobilenetv2 import MobileNetV2
from training.backbones.resnet import ResNet
from training.backbones.segment_nets import (
    FLOW_RATES,
    TSN_RATES,
    TSN_UNDECAYED,
    Consensus,
    SegmentNet,
    cross_modality,
    partial_norms,
    rgb_differences,
    tsn_groups,
)
from training.core.cost import count_macs, count_params

NARROW = 1 / 8


def meta_net(backbone="resnet50", **options):
    with torch.device("meta"):
        return SegmentNet(backbone, **options)


def build(backbone="resnet18", *, width=NARROW, **options):
    """A narrow net in eval mode whose norms and head are not at their initial values."""
    torch.manual_seed(0)
    net = SegmentNet(backbone, num_classes=5, width=width, **options)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
                module.running_mean.normal_(std=0.2)
        net.fc.weight.normal_()
    return net.eval()


def distance(one, other):
    """Largest difference over the largest value."""
    return ((one - other).abs().max() / other.abs().max()).item()


def coded_clip(batch=2, frames=4, side=32, channels=3):
    """Frame number in the first channel, the column in the second, the clip in the third."""
    video = torch.zeros(batch, channels, frames, side, side)
    video[:, 0] = torch.arange(frames).reshape(1, frames, 1, 1)
    video[:, 1] = torch.linspace(-1, 1, side)
    video[:, 2] = torch.arange(batch).reshape(batch, 1, 1, 1) - 0.5
    return video


# --- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "figures"),
    [(None, ((1, 4.09), (3, 12.3), (8, 32.7), (25, 102.2))), (True, ((8, 32.7), (16, 65.4)))],
)
def test_parameters_and_macs(shift, figures):
    """R50 of TSN and TSM: the shift adds neither parameters nor MACs."""
    net = meta_net(shift=shift)
    assert round(count_params(net) / 1e6, 2) == 24.33
    for frames, gmac in figures:
        macs = count_macs(net, torch.empty(1, 3, frames, 224, 224, device="meta")) / 1e9
        assert round(macs, 2 if frames == 1 else 1) == gmac


def test_other_backbones_and_inputs_cost_other_amounts():
    mobile = meta_net("mobilenetv2", shift=True)
    assert round(count_params(mobile) / 1e6, 2) == 2.74
    clip = torch.empty(1, 3, 8, 224, 224, device="meta")
    assert count_macs(mobile, clip) == count_macs(meta_net("mobilenetv2"), clip)
    assert count_params(meta_net(in_channels=10)) - count_params(meta_net()) == 7 * 49 * 64
    pooled = meta_net(temporal_pool=True)
    assert count_params(pooled) == count_params(meta_net())
    assert count_macs(pooled, clip) < 0.65 * count_macs(meta_net(), clip)


# --- frames -----------------------------------------------------------------------------------


def test_backbones_are_the_image_nets():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    for name, image_net in (("resnet18", ResNet(18)), ("resnet50", ResNet(50)), ("mobilenetv2", MobileNetV2())):
        frame_net = build_frame_net(name)
        frame_net.load_state_dict(image_net.state_dict())
        image_net.eval()
        frame_net.eval()
        with torch.no_grad():
            x = frame_net.stem(images)
            for _, block in frame_net.blocks():
                x = block(x)
            assert torch.equal(x, image_net.features_map(images))
        assert frame_net.out_channels == image_net.out_channels


def test_a_block_with_its_own_input_is_the_block():
    torch.manual_seed(0)
    for name in ("resnet18", "resnet50", "mobilenetv2"):
        net = build_frame_net(name, width=NARROW).eval()
        places = net.shift_places()
        block = dict(net.blocks())[places[-1]]
        channels = next(m for m in block.modules() if isinstance(m, nn.Conv2d)).in_channels
        x = torch.randn(2, channels, 5, 5)
        assert torch.equal(run_block(block, x, x), block(x))
        assert not torch.equal(run_block(block, x, x.flip(0)), block(x))
    with pytest.raises(TypeError, match="no residual block to shift: Sequential"):
        run_block(nn.Sequential(), x, x)


def test_frames_go_through_one_by_one():
    """Channel and time arrive as they are; clips do not mix. Defect D2's reading of the same clip gives others."""
    net = build()
    video = coded_clip()
    with torch.no_grad():
        logits = net.segment_logits(video)
        for clip in range(2):
            for t in range(4):
                x = net.backbone.stem(video[clip : clip + 1, :, t])
                for _, block in net.backbone.blocks():
                    x = block(x)
                alone = net.fc(x.mean((2, 3)))[0]
                assert torch.allclose(logits[clip, t], alone, atol=1e-4)
        assert torch.allclose(net(video), logits.mean(1), atol=1e-5)
        scrambled = video.transpose(1, 2).reshape(video.shape)
        assert not torch.allclose(net.segment_logits(scrambled), logits, atol=1e-2)
        # Without shift the order of frames is nothing to the net.
        assert torch.allclose(net(video.flip(2)), net(video), atol=1e-4)
        shifting = build(shift=True)
        assert not torch.allclose(shifting(video.flip(2)), shifting(video), atol=1e-4)


def test_first_layer_sees_each_frames_channels():
    net = build(in_channels=10)
    video = coded_clip(channels=10)
    seen = []
    net.backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        net(video)
    images, maps = seen[0]
    frames = torch.stack([video[clip, :, t] for clip in range(2) for t in range(4)])
    assert torch.equal(images, frames)
    assert torch.allclose(maps, F.conv2d(frames, net.backbone.conv1.weight, stride=2, padding=3), atol=1e-4)
    assert not torch.equal(images, video.transpose(1, 2).reshape(video.shape).transpose(1, 2).flatten(0, 1))


# --- shift ------------------------------------------------------------------------------------


class LoopShift(nn.Module):
    """A convolution before which frames exchange channels, written as a loop."""

    def __init__(self, conv, frames, causal=False, div=8):
        super().__init__()
        self.conv, self.frames, self.causal, self.fold = conv, frames, causal, div

    def forward(self, x):
        fold, shifted = x.shape[1] // self.fold, x.clone()
        for row in range(len(x)):
            t = row % self.frames
            earlier = x[row - 1] if t > 0 else torch.zeros_like(x[row])
            later = x[row + 1] if t < self.frames - 1 else torch.zeros_like(x[row])
            if self.causal:
                shifted[row, :fold] = earlier[:fold]
            else:
                shifted[row, :fold] = later[:fold]
                shifted[row, fold : 2 * fold] = earlier[fold : 2 * fold]
        return self.conv(shifted)


def wrapped(net, frames, every=1, causal=False, div=8):
    """The same net without shift whose blocks' first convolutions are wrapped, as TSM's authors build it."""
    plain = copy.deepcopy(net)
    plain.shifted = frozenset()
    for _, block in plain.backbone.blocks():
        if getattr(block, "adds_input", False) and len(block.conv) == 4:
            block.conv[0] = LoopShift(block.conv[0], frames, causal, div)
    for stage in (getattr(plain.backbone, f"layer{n}", ()) for n in range(1, 5)):
        for position, block in enumerate(stage):
            if position % every == 0:
                block.conv1 = LoopShift(block.conv1, frames, causal, div)
    return plain


@pytest.mark.parametrize(
    ("backbone", "every", "options"),
    [
        ("resnet18", 1, {}),
        ("resnet18", 1, {"causal": True}),
        ("resnet50", 1, {"shift_div": 4}),
        ("resnet101", 2, {}),
        ("mobilenetv2", 1, {}),
    ],
)
def test_shift_is_a_wrapped_convolution(backbone, every, options):
    net = build(backbone, shift=True, **options)
    video = torch.randn(2, 3, 3, 32, 32)
    how = {"causal": options.get("causal", False), "div": options.get("shift_div", 8)}
    with torch.no_grad():
        logits = net.segment_logits(video)
        assert distance(logits, wrapped(net, 3, every, **how).segment_logits(video)) < 2e-5
        other = wrapped(net, 3, every, **{**how, "causal": not how["causal"]})
        assert distance(logits, other.segment_logits(video)) > 1e-4
        if backbone != "mobilenetv2":
            assert distance(logits, wrapped(net, 3, 3 - every, **how).segment_logits(video)) > 1e-4


def test_the_shortcut_is_not_shifted():
    """Placement `residual`, not `block`: with the branch at zero the block is the identity."""
    net = build(shift=True)
    block = dict(net.backbone.blocks())["layer1.1"]
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    x = torch.rand(4, 8, 4, 4)
    assert torch.equal(run_block(block, x, x.roll(1, 0)), x)


def test_which_blocks_are_shifted():
    places = {name: meta_net(name, shift=True).shifted for name in FRAME_NETS}
    assert places["resnet50"] == {f"layer{s}.{b}" for s, count in enumerate((3, 4, 6, 3), 1) for b in range(count)}
    deep = {f"layer{s}.{b}" for s, count in enumerate((3, 4, 23, 3), 1) for b in range(0, count, 2)}
    assert places["resnet101"] == deep
    assert {len(places[f"resnet{depth}"]) for depth in (18, 34, 101, 152)} == {8, 16, 2 + 2 + 12 + 2, 2 + 4 + 18 + 2}
    # The blocks with a buffer in the authors' MobileNetV2 for streams.
    assert places["mobilenetv2"] == {f"features.{n}" for n in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)}
    assert meta_net().shifted == meta_net(shift=False).shifted == frozenset()


@pytest.mark.parametrize("frames", [4, 5])
def test_temporal_pool(frames):
    net = build(shift=True, temporal_pool=True)
    video = torch.randn(2, 3, frames, 32, 32)
    with torch.no_grad():
        x = wrapped(net, frames).backbone.stem(video.transpose(1, 2).flatten(0, 1))
        for block in wrapped(net, frames).backbone.layer1:
            x = block(x)
        clips = x.reshape(2, frames, *x.shape[1:]).transpose(1, 2)
        x = F.max_pool3d(clips, (3, 1, 1), (2, 1, 1), (1, 0, 0)).transpose(1, 2)
        left = x.shape[1]
        x = x.flatten(0, 1)
        rest = wrapped(net, left).backbone
        for block in (*rest.layer2, *rest.layer3, *rest.layer4):
            x = block(x)
        expected = net.fc(x.mean((2, 3))).reshape(2, left, 5)
        assert torch.allclose(net.segment_logits(video), expected, atol=1e-4)
        assert left == (frames + 1) // 2
        unpooled = build(shift=True)
        unpooled.load_state_dict(net.state_dict())
        assert not torch.allclose(unpooled(video), net(video), atol=1e-3)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2"])
def test_a_stream_is_answered_as_its_clip(backbone):
    net = build(backbone, shift=True, causal=True)
    video = torch.randn(2, 3, 4, 32, 32)
    both_ways = build(backbone, shift=True)
    both_ways.load_state_dict(net.state_dict())
    with torch.no_grad():
        whole, other = net.segment_logits(video), both_ways.segment_logits(video)
        state, answers = None, []
        for t in range(4):
            logits, state = net.step(video[:, :, t], state)
            answers.append(logits)
            assert distance(logits, whole[:, t]) < 2e-5
        assert distance(torch.stack(answers, 1), other) > 1e-4
        # What is carried matters, and is a share of the channels.
        assert distance(net.step(video[:, :, 3])[0], answers[3]) > 1e-4
        assert set(state) == net.shifted
        if backbone == "resnet18":
            assert state["layer2.1"].shape == (2, 16 // 8, 4, 4)
        # A frame's answer does not depend on what comes later.
        assert distance(net.segment_logits(video[:, :, :2]), whole[:, :2]) < 2e-5


def test_streams_refuse():
    with pytest.raises(ValueError, match="shift=True and causal=True"):
        build(shift=True).step(torch.zeros(1, 3, 32, 32))
    net = build(shift=True, causal=True)
    _, state = net.step(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="another net, input size or batch"):
        net.step(torch.zeros(2, 3, 32, 32), state)
    del state["layer1.0"]
    with pytest.raises(ValueError, match=r"another net: \['layer1\.0'\]"):
        net.step(torch.zeros(1, 3, 32, 32), state)


# --- consensus --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["avg", "max", "topk", "weighted"])
def test_consensus_is_the_loop(kind):
    torch.manual_seed(0)
    consensus = Consensus(kind, segments=6, top_k=2)
    logits = torch.randn(3, 6, 4)
    if kind == "weighted":
        assert torch.allclose(consensus(logits), logits.mean(1), atol=1e-6)
        consensus.weight.data.normal_()
    weights = consensus.weight.tolist() if kind == "weighted" else [0] * 6
    expected = torch.zeros(3, 4)
    for row in range(3):
        for k in range(4):
            scores = [logits[row, t, k].item() for t in range(6)]
            expected[row, k] = {
                "avg": sum(scores) / 6,
                "max": max(scores),
                "topk": sum(sorted(scores)[-2:]) / 2,
                "weighted": sum(s * w for s, w in zip(scores, weights, strict=True)),
            }[kind]
    assert torch.allclose(consensus(logits), expected, atol=1e-5)
    others = [Consensus(other, segments=6, top_k=2) for other in ("avg", "max", "topk") if other != kind]
    assert not any(torch.allclose(other(logits), expected, atol=1e-3) for other in others)


def test_consensus_is_taken_before_the_softmax():
    net = build()
    video = torch.randn(1, 3, 3, 32, 32)
    with torch.no_grad():
        logits = net.segment_logits(video)
        assert torch.allclose(net(video).softmax(1), logits.mean(1).softmax(1), atol=1e-5)
        assert not torch.allclose(net(video).softmax(1), logits.softmax(2).mean(1), atol=1e-3)


def test_consensus_and_segments():
    net = build(consensus="weighted", segments=5, temporal_pool=True)
    assert net.consensus.weight.shape == (3,)
    net.check_input(5, 32, 32)
    with pytest.raises(ValueError, match="weights for 3 segments, got 4"):
        net.check_input(8, 32, 32)
    with pytest.raises(ValueError, match="3 largest needs as many segments, got 2"):
        build(consensus="topk").check_input(2, 32, 32)
    with pytest.raises(ValueError, match="needs the number of segments"):
        Consensus("weighted")
    with pytest.raises(ValueError, match="avg, max, topk or weighted, got 'mean'"):
        Consensus("mean")
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        Consensus("topk", top_k=0)


# --- inputs -----------------------------------------------------------------------------------


def test_differences_are_the_loop():
    video = torch.randn(2, 3, 3 * 6, 4, 4)
    segments = rgb_differences(video)
    assert segments.shape == (2, 15, 3, 4, 4)
    for segment in range(3):
        for n in range(5):
            first = 6 * segment + n
            expected = video[:, :, first + 1] - video[:, :, first]
            assert torch.equal(segments[:, 3 * n : 3 * n + 3, segment], expected)
    still = video[:, :, :1].expand(-1, -1, 6, -1, -1)
    assert not rgb_differences(still).any()
    with pytest.raises(ValueError, match="17 frames are no whole number of segments of 6"):
        rgb_differences(video[:, :, :17])


def test_cross_modality():
    weight = torch.randn(4, 3, 7, 7)
    flow = cross_modality(weight, 10)
    assert flow.shape == (4, 10, 7, 7)
    for channel in range(10):
        assert torch.allclose(flow[:, channel], (weight[:, 0] + weight[:, 1] + weight[:, 2]) / 3)
    # On grey pictures in every channel the response is that to RGB, times the channels' ratio: no rescale.
    grey = torch.randn(1, 1, 9, 9)
    rgb = F.conv2d(grey.expand(-1, 3, -1, -1), weight)
    assert torch.allclose(F.conv2d(grey.expand(-1, 10, -1, -1), flow), rgb * 10 / 3, atol=1e-4)


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2"])
@pytest.mark.parametrize("consensus", ["avg", "weighted"])
def test_groups_hold_everything_once(backbone, consensus):
    net = meta_net(backbone, consensus=consensus, segments=3)
    groups = tsn_groups(net)
    held = sorted(id(parameter) for members in groups.values() for parameter in members)
    assert held == sorted(id(parameter) for parameter in net.parameters())
    assert set(groups) == {"first_conv_weight", "normal_weight", "normal_bias", "norm"}
    assert groups["first_conv_weight"][0] is net.backbone.first_conv.weight
    assert len(groups["first_conv_weight"]) == 1
    assert groups["normal_bias"][0] is net.fc.bias
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(groups["norm"]) == 2 * len(norms)
    assert (consensus == "weighted") == any(p is net.consensus.weight for p in groups["normal_weight"])


def test_groups_of_other_nets():
    net = meta_net("resnet18")
    net.backbone.conv1 = nn.Conv2d(3, 64, 7, device="meta")
    assert tsn_groups(net)["first_conv_bias"] == [net.backbone.conv1.bias]
    assert set(tsn_groups(net)) == set(TSN_RATES) == set(FLOW_RATES)
    assert set(TSN_UNDECAYED) < set(TSN_RATES)
    assert [FLOW_RATES[name] for name in ("first_conv_weight", "first_conv_bias", "normal_weight")] == [5, 10, 1]
    net.fc = nn.LayerNorm(3, device="meta")
    with pytest.raises(ValueError, match=r"no parameter group for fc\.weight"):
        tsn_groups(net)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2"])
def test_partial_norms(backbone):
    net = build(backbone).train()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    first, frozen = norms[0], partial_norms(net)
    assert frozen == norms[1:]
    if backbone == "resnet18":
        assert first is net.backbone.bn1
    for module in frozen:
        module.eval()
        module.requires_grad_(False)
    before = [module.running_mean.clone() for module in norms]
    net(torch.randn(2, 3, 2, 32, 32)).sum().backward()
    moved = [not torch.equal(module.running_mean, old) for module, old in zip(norms, before, strict=True)]
    assert moved == [True] + [False] * len(frozen)
    assert first.weight.grad is not None
    # The groups leave out what is frozen.
    assert tsn_groups(net)["norm"] == [first.weight, first.bias]


def test_initial_values():
    torch.manual_seed(0)
    net = SegmentNet("resnet18", num_classes=50)
    assert net.fc.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not net.fc.bias.any()
    conv = net.backbone.layer3[1].conv1.weight
    assert conv.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert (net.dropout.p, SegmentNet("resnet18", shift=True, width=NARROW).dropout.p) == (0.8, 0.5)
    assert SegmentNet("resnet18", dropout=0.1, width=NARROW).dropout.p == 0.1


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2"])
def test_gradients_modes_and_memory(backbone):
    net = build(backbone, shift=True, consensus="weighted", segments=3)
    video = torch.randn(2, 3, 3, 32, 32)
    net(video).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    with torch.no_grad():
        expected = net(video)
        last = net.to(memory_format=torch.channels_last)(video.to(memory_format=torch.channels_last_3d))
        assert torch.allclose(last, expected, atol=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            assert F.cosine_similarity(net(video).float(), expected).min() > 0.99


def test_exports():
    net = build(shift=True)
    video = torch.randn(2, 3, 4, 32, 32)
    batch = torch.export.Dim("batch", min=2, max=8)
    program = torch.export.export(net, (video,), dynamic_shapes=({0: batch},)).module()
    other = torch.randn(3, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.allclose(program(other), net(other), atol=1e-4)
        assert not torch.allclose(program(other.flip(2)), net(other), atol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"backbone": "mobilenetv2", "shift": True}, {"consensus": "weighted", "segments": 4}]
)
def test_parts_hold_everything_once(options):
    net = meta_net(**options)
    parts = net.parts()
    held = [id(parameter) for _, part in parts for parameter in part.parameters()]
    assert held == [id(parameter) for parameter in net.parameters()]
    assert all(net.get_submodule(name) is part for name, part in parts)


def test_refusals():
    with pytest.raises(ValueError, match="no frame network 'resnet20'; known: resnet18"):
        SegmentNet("resnet20")
    with pytest.raises(ValueError, match="causal is a kind of shift"):
        SegmentNet("resnet18", causal=True)
    with pytest.raises(ValueError, match="no temporal pool"):
        SegmentNet("resnet18", shift=True, causal=True, temporal_pool=True)
    with pytest.raises(ValueError, match="mobilenetv2 has no variant with a temporal pool"):
        meta_net("mobilenetv2", temporal_pool=True)
    with pytest.raises(ValueError, match=r"needs clips \(B,10,T,H,W\), got \(1, 3, 2, 32, 32\)"):
        build(in_channels=10)(torch.zeros(1, 3, 2, 32, 32))
    with pytest.raises(ValueError, match="at least 1 frames of 16×16 pixels"):
        build()(torch.zeros(1, 3, 2, 8, 32))
