"""Sizes and costs of the released architectures: by formula, by the network, and as measured on the released models."""

import itertools

import pytest
import torch

from training.backbones.movinet import COUNT, MoViNet
from training.backbones.movinet_cost import conv_macs, num_buffers, num_parameters, state_elements
from training.backbones.movinet_layout import (
    ARCHITECTURES,
    BASE,
    STREAM,
    Layer,
    MoViNetLayout,
    Variant,
    architecture,
    gate_widths,
    places,
    plain_round,
)
from training.core.cost import count_macs, count_params
from training.layers.streaming import state_bytes

FLAT_BASE = Variant(False, "2plus1d", "3d", "silu", "sigmoid", "silu")
CAUSAL_3D = Variant(True, "3d", "2plus3d", "silu", "sigmoid", "silu")
STREAM_3D = Variant(True, "3d", "2plus3d", "hard_swish", "hard_sigmoid", "silu")
POSITIONAL = Variant(True, "2plus1d", "2plus3d", "hard_swish", "hard_sigmoid", "silu", positional=True)

INPUTS = {
    "t0": (25, 160), "a0": (50, 172), "a1": (50, 172), "a2": (50, 224), "a3": (120, 256), "a4": (80, 290),
    "a5": (120, 320),
}  # fmt: skip

# Parameters, statistics of batch norms, multiply-accumulates, millions of these per frame, and parts in thousands of
# millions, as printed.
FACTS = [
    ("a0", BASE, 3_111_799, 14_272, 2_630_733_808, "52.61", "2.0255 0.5228 0.0003 0.0799 0.0022"),
    ("a0", FLAT_BASE, 3_075_847, 17_952, 2_376_212_208, "47.52", "2.0255 0.2683 0.0003 0.0799 0.0022"),
    ("a0", CAUSAL_3D, 3_783_983, 14_272, 2_680_966_640, "53.62", "2.0255 0.5228 0.0506 0.0799 0.0022"),
    ("a0", STREAM, 3_748_031, 17_952, 2_426_445_040, "48.53", "2.0255 0.2683 0.0506 0.0799 0.0022"),
    ("a1", BASE, 4_690_296, 27_616, 5_865_612_704, "117.31", "4.724 0.9786 0.0009 0.1598 0.0025"),
    ("a1", STREAM, 6_447_352, 34_208, 5_540_325_200, "110.81", "4.724 0.5197 0.1344 0.1598 0.0025"),
    ("a2", BASE, 5_249_562, 31_360, 11_558_071_168, "231.16", "9.2032 2.0803 0.0011 0.271 0.0025"),
    ("a2", STREAM, 7_326_962, 39_088, 10_700_453_120, "214.01", "9.2032 1.0618 0.1619 0.271 0.0025"),
    ("a3", BASE, 7_397_545, 45_744, 55_593_197_440, "463.28", "45.968 8.7713 0.0019 0.8493 0.0028"),
    ("a3", STREAM, 10_986_585, 56_528, 52_133_563_392, "434.45", "45.968 4.6486 0.665 0.8493 0.0028"),
    ("a4", BASE, 11_349_463, 73_264, 103_338_794_368, "1291.7", "86.866 15.377 0.0034 1.0899 0.003"),
    ("a4", STREAM, 18_136_135, 92_144, 96_741_128_448, "1209.3", "86.866 7.9526 0.8298 1.0899 0.003"),
    ("a5", BASE, 18_650_523, 112_832, 276_334_081_024, "2302.8", "239.192 35.142 0.0064 1.9907 0.0033"),
    ("a5", STREAM, 31_495_875, 140_800, 261_710_004_736, "2180.9", "239.192 18.186 2.3382 1.9907 0.0033"),
]
PARTS = ("pointwise", "depthwise", "squeeze", "stem", "head")
IDS = [f"{row[0]}-{row[1].conv}-{row[1].squeeze}" for row in FACTS]


def build(model, variant, num_classes=600):
    layout = architecture(model) if isinstance(model, str) else model
    with torch.device("meta"):
        return MoViNet(layout, variant, num_classes=num_classes).eval()


def count_statistics(net):
    return sum(buffer.numel() for name, buffer in net.named_buffers() if "running" in name)


def printed(value, text):
    return f"{value:.{len(text.partition('.')[2])}f}" == text


@pytest.mark.parametrize("row", FACTS, ids=IDS)
def test_parameters_statistics_and_macs_by_formula(row):
    model, variant, parameters, buffers, macs, per_frame, parts = row
    layout, (frames, size) = architecture(model), INPUTS[model]
    assert num_parameters(layout, variant) == parameters
    assert num_buffers(layout, variant) == buffers
    cost = conv_macs(layout, variant, frames, size)
    assert cost["total"] == macs
    assert printed(macs / frames / 1e6, per_frame)
    for part, text in zip(PARTS, parts.split(), strict=True):
        assert printed(cost[part] / 1e9, text), part


@pytest.mark.parametrize("row", FACTS, ids=IDS)
def test_parameters_and_statistics_of_the_network(row):
    net = build(row[0], row[1])
    assert count_params(net) == row[2]
    assert count_statistics(net) == row[3]


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=name, marks=[] if row[0] == "a0" and row[1] in (BASE, STREAM) else pytest.mark.slow)
     for row, name in zip(FACTS, IDS, strict=True)],
)  # fmt: skip
def test_macs_of_the_network(row):
    frames, size = INPUTS[row[0]]
    assert count_macs(build(row[0], row[1]), torch.empty(1, 3, frames, size, size, device="meta")) == row[4]


@pytest.mark.parametrize(("variant", "parameters", "total", "per_frame"), [
    (BASE, 1_727_414, "0.8712", "34.8"), (STREAM, 2_368_958, "0.8346", "33.4"),
])  # fmt: skip
def test_t0(variant, parameters, total, per_frame):
    frames, size = INPUTS["t0"]
    net = build("t0", variant)
    assert num_parameters(net.layout, variant) == count_params(net) == parameters
    macs = conv_macs(net.layout, variant, frames, size)["total"]
    assert printed(macs / 1e9, total)
    assert printed(macs / frames / 1e6, per_frame)


def test_causal_3d_parameters():
    expected = [6_504_408, 7_392_554, 11_073_705, 18_279_335, 31_704_675]
    assert [num_parameters(architecture(f"a{i}"), CAUSAL_3D) for i in range(1, 6)] == expected


@pytest.mark.parametrize(("model", "parameters"), [("a3", 10_986_618), ("a4", 18_136_182), ("a5", 31_495_934)])
def test_positional_scalars(model, parameters):
    layout = architecture(model)
    assert num_parameters(layout, POSITIONAL) == num_parameters(layout, STREAM) + layout.num_layers == parameters
    assert count_params(build(model, POSITIONAL)) == parameters


def test_other_numbers_of_classes():
    a0, t0 = architecture("a0"), architecture("t0")
    assert num_parameters(a0, BASE, 400) == count_params(build("a0", BASE, 400)) == 2_701_999
    assert num_parameters(t0, BASE) - num_parameters(t0, BASE, 500) == 1025 * 100
    headless = build("a0", BASE, None)
    assert num_parameters(a0, BASE, None) == count_params(headless) == 897_311
    assert count_params(headless) + count_statistics(headless) == 911_583


@pytest.mark.parametrize(("model", "flat", "full", "pools", "head", "flat_bytes", "full_bytes"), [
    ("a0", 670_944, 1_287_072, 2_768, 480, 2_696_768, 5_161_280),
    ("a1", 1_214_416, 1_945_168, 5_544, 600, 4_882_240, 7_805_248),
    ("a2", 2_700_096, 3_998_400, 6_352, 640, 10_828_352, 16_021_568),
    ("a3", 4_558_848, 6_414_336, 9_288, 744, 18_275_520, 25_697_472),
    ("a4", 12_334_016, 15_622_976, 15_208, 856, 49_400_320, 62_556_160),
    ("a5", 18_748_800, 25_132_800, 23_600, 992, 75_093_568, 100_629_568),
])  # fmt: skip
def test_states(model, flat, full, pools, head, flat_bytes, full_bytes):
    layout, size = architecture(model), INPUTS[model][1]
    for variant, buffers, total in ((STREAM, flat, flat_bytes), (STREAM_3D, full, full_bytes)):
        expected = {"buffers": buffers, "pools": pools, "head": head, "total": buffers + pools + head}
        assert state_elements(layout, variant, size) == expected
        state = build(model, variant).initial_state(1, (size, size))
        assert state_bytes(state) - state[COUNT].element_size() == total


@pytest.mark.parametrize(("model", "layers", "by_taps", "frames", "sides"), [
    ("a0", 15, {5: 3, 3: 8}, 29, [43, 22, 11, 11, 6]),
    ("a1", 24, {5: 3, 3: 14}, 41, [43, 22, 11, 11, 6]),
    ("a2", 26, {5: 3, 3: 16}, 45, [56, 28, 14, 14, 7]),
    ("a3", 33, {5: 3, 3: 20}, 53, [64, 32, 16, 16, 8]),
    ("a4", 47, {5: 3, 3: 32}, 77, [73, 37, 19, 19, 10]),
    ("a5", 59, {5: 4, 3: 39}, 95, [80, 40, 20, 20, 10]),
])  # fmt: skip
def test_structure(model, layers, by_taps, frames, sides):
    layout, size = architecture(model), INPUTS[model][1]
    assert layout.num_layers == layers
    assert layout.receptive_frames == frames
    kernels = [layer.kernel[0] for block in layout.blocks for layer in block.layers]
    assert {taps: kernels.count(taps) for taps in (5, 3)} == by_taps
    state = build(model, STREAM).initial_state(1, (size, size))
    assert sum(name.endswith(".conv") for name in state) == sum(by_taps.values())
    for name, buffer in state.items():
        if name.endswith(".conv"):
            assert list(buffer.shape[-2:]) == [sides[int(name.split(".")[1])]] * 2


def test_the_networks_convolutions_see_as_many_frames():
    layout = architecture("t0").scaled(0.125)
    torch.manual_seed(0)
    net = MoViNet(layout, Variant(True, "2plus1d", "none", "silu", "sigmoid", "silu")).eval().double()
    for layer in itertools.chain(*net.blocks):
        torch.nn.init.ones_(layer.scale)
        if layer.depthwise.temporal is not None:  # else the oldest frame's part is lost in rounding
            torch.nn.init.ones_(layer.depthwise.temporal.weight)
    seen = layout.receptive_frames
    video = torch.randn(1, 3, seen + 2, 32, 32, dtype=torch.float64)
    first = video.clone()
    first[:, :, 2] += 1  # the last frame that the last one sees
    before = video.clone()
    before[:, :, 1] += 1
    with torch.no_grad():
        last = [net.features_map(clip)[:, :, -1] for clip in (video, first, before)]
    assert not torch.equal(last[0], last[1])
    assert torch.equal(last[0], last[2])


# --- formulas against networks of every kind --------------------------------------------------------

TINY = architecture(
    {
        "stem": 8,
        "blocks": [
            {"width": 8, "stride": 2, "layers": "1x5x5:16"},
            {"width": 16, "stride": 1, "layers": "3x3x3:24/no-gate 5x1x1:32"},
            {"width": 24, "stride": 2, "layers": "5x3x3:40 1x3x3:48/no-gate"},
        ],
        "project": 32,
        "head": 40,
    }
)


@pytest.mark.parametrize("conv", ["3d", "2plus1d"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("squeeze", ["none", "2d", "3d", "2plus3d"])
def test_formulas_are_right_for_every_variant(conv, causal, squeeze):
    variant = Variant(causal, conv, squeeze, "silu", "sigmoid", "silu")
    net = build(TINY, variant, 5)
    assert num_parameters(TINY, variant, 5) == count_params(net)
    assert num_buffers(TINY, variant) == count_statistics(net)
    macs = count_macs(net, torch.empty(1, 3, 4, 33, 33, device="meta"))
    assert conv_macs(TINY, variant, 4, 33, 5)["total"] == macs
    if causal:
        elements = sum(tensor.numel() for name, tensor in net.initial_state(1, (33, 33)).items() if name != COUNT)
        assert state_elements(TINY, variant, 33)["total"] == elements
    else:
        with pytest.raises(ValueError, match="only causal nets"):
            state_elements(TINY, variant, 32)


# --- the table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_entries_are_read_and_written(model):
    layout = architecture(model)
    assert layout.entry() == ARCHITECTURES[model]
    assert MoViNetLayout.parse(layout.entry()) == architecture(layout.entry()) == layout


def test_layers_are_read_and_written():
    assert Layer.parse("5x3x3:184") == Layer((5, 3), 184)
    assert Layer.parse("1×7×7:16/no-gate") == Layer((1, 7), 16, gate=False)
    assert str(Layer((5, 1), 8, gate=False)) == "5x1x1:8/no-gate"
    for text, message in (
        ("5x3:184", "must look like"),
        ("5x3x5:184", "height and width are equal"),
        ("4x3x3:184", "odd"),
        ("3x2x2:184", "odd"),
        ("3x3x3:0", "must be positive"),
        ("3x3x3:8/nogate", "must look like"),
    ):
        with pytest.raises(ValueError, match=message):
            Layer.parse(text)


@pytest.mark.parametrize(("change", "message"), [
    (lambda e: e.pop("head"), "architecture lacks head and has unknown none"),
    (lambda e: e.update(depth=3), "lacks nothing and has unknown depth"),
    (lambda e: e.update(stem=0), "stem must be a positive whole number, got 0"),
    (lambda e: e.update(project="240"), "project must be a positive whole number"),
    (lambda e: e.update(blocks=[]), "has no blocks"),
    (lambda e: e["blocks"][1].update(stride=3), "block 3: stride must be 1 or 2, got 3"),
    (lambda e: e["blocks"][0].update(layers=""), "block 2 has no layers"),
    (lambda e: e["blocks"][0].update(layers="3x3"), "must look like"),
    (lambda e: e["blocks"][0].pop("width"), "block 2 lacks width"),
    (lambda e: e["blocks"][0].update(width=-8), "width must be a positive"),
])  # fmt: skip
def test_wrong_entries_are_named(change, message):
    entry = architecture("t0").entry()
    change(entry)
    with pytest.raises(ValueError, match=message):
        architecture(entry)


def test_unknown_names_and_kinds_are_named():
    with pytest.raises(ValueError, match=r"unknown architecture 'a9'.*t0, a0"):
        architecture("a9")
    with pytest.raises(ValueError, match="gate must be one of sigmoid"):
        Variant(True, "3d", "3d", "silu", "tanh", "silu")
    for causal, squeeze in ((True, "3d"), (False, "2plus3d")):
        with pytest.raises(ValueError, match="positional encoding belongs to"):
            Variant(causal, "3d", squeeze, "silu", "sigmoid", "silu", positional=True)


def test_scaled_widths():
    layout = architecture("a0")
    assert layout.scaled(1) is layout
    small = layout.scaled(0.25)
    assert (small.stem, small.project, small.head) == (8, 120, 512)
    assert [block.width for block in small.blocks] == [8, 8, 16, 16, 24]
    assert [layer.expand for layer in small.blocks[4].layers] == [96, 72, 72, 88]
    assert [layer.kernel for block in small.blocks for layer in block.layers] == [
        layer.kernel for block in layout.blocks for layer in block.layers
    ]
    assert plain_round(18) == 16  # the guard of layers would give 24
    assert gate_widths(72, "3d") == (72, 24)  # with it: 0.25·72 = 18
    assert gate_widths(72, "2plus3d") == (144, 40)


def test_places_follow_one_another():
    found = places(TINY)
    assert [place.name for place in found] == ["blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0", "blocks.2.1"]
    assert [(p.in_channels, p.out_channels, p.stride, p.projects_skip) for p in found] == [
        (8, 8, 2, True), (8, 16, 1, True), (16, 16, 1, False), (16, 24, 2, True), (24, 24, 1, False),
    ]  # fmt: skip
