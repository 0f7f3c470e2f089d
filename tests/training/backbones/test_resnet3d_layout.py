"""Sizes and costs of the family, to every digit that was measured or published; wrong layouts are refused."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.backbones.resnet3d import ResNet3D
from training.backbones.resnet3d_layout import (
    BLOCKS,
    TEMPORAL,
    ResNet3DLayout,
    conv_macs,
    num_parameters,
    r3d50_layout,
    receptive_frames,
    rs_layout,
    slowonly50_layout,
)
from training.core.cost import count_macs, count_params

SIZES = (112, 128, 160, 192, 224, 256, 288, 320)

GRID = """
 50 16   11.58  14.39  22.47  32.35  44.02  57.49  72.76  89.82
 50 32   23.14  28.75  44.92  64.68  88.02  114.97 145.50 179.62
 50 48   34.69  43.12  67.37  97.00  132.03 172.44 218.24 269.43
 50 64   46.25  57.49  89.82  129.33 176.03 229.91 290.98 359.23
101 16   22.50  28.65  44.76  64.44  87.70  114.54 144.96 178.96
101 32   44.98  57.28  89.49  128.86 175.38 229.06 289.90 357.89
101 48   67.46  85.91  134.23 193.27 263.06 343.58 434.83 536.82
152 32   65.18  83.67  130.71 188.21 256.16 334.56 423.42 522.73
152 48   97.75  125.48 196.05 282.29 384.22 501.83 635.12 784.09
200 32   79.16  101.92 159.23 229.28 312.06 407.58 515.83 636.82
200 48   118.72 152.86 238.83 343.90 468.07 611.35 773.73 955.22
270 32   107.92 138.98 217.12 312.64 425.52 555.77 703.38 868.36
270 48   161.86 208.44 325.66 468.94 638.26 833.63 1055.05 1302.5
300 32   115.32 148.64 232.23 334.38 455.12 594.42 752.30 928.76
350 32   138.46 178.85 279.42 402.34 547.61 715.23 905.20 1117.5
350 48   207.65 268.25 419.10 603.48 821.39 1072.8 1357.8 1676.2
"""
"""ResNet-RS, pool_t=1, 400 classes: depth, frames, GMACs at each of `SIZES`."""

MILLION_PARAMETERS = {
    50: "48.13",
    101: "84.97",
    152: "114.79",
    200: "121.38",
    270: "169.04",
    300: "174.09",
    350: "213.09",
}


def as_printed(macs, printed):
    """GMACs with as many decimals as `printed` has."""
    return f"{macs / 1e9:.{len(printed.partition('.')[2])}f}"


@pytest.mark.parametrize("line", GRID.strip().splitlines(), ids=lambda line: "-".join(line.split()[:2]))
def test_cost_grid(line):
    depth, frames, *printed = line.split()
    ours = [conv_macs(rs_layout(int(depth)), int(frames), size, 400) for size in SIZES]
    assert [as_printed(macs, text) for macs, text in zip(ours, printed, strict=True)] == printed
    # One class or one frame more is seen in the number, not always in the printed digits.
    assert conv_macs(rs_layout(int(depth)), int(frames), 112, 401) == ours[0] + 2048


@pytest.mark.parametrize(
    ("depth", "short", "long"),
    [
        (50, "47.23", "92.51"),
        (101, "90.91", "178.09"),
        (152, "131.30", "257.21"),
        (200, "159.26", "311.98"),
        (270, "215.99", "423.12"),
        (350, "277.04", "542.72"),
    ],
)
def test_cost_with_temporal_pooling(depth, short, long):
    """32×224² and 48×256² with pool_t=2; RS-200's is within 2 % of what was published (307 G)."""
    layout = rs_layout(depth, pool_t=2)
    assert as_printed(conv_macs(layout, 32, 224, 400), short) == short
    assert as_printed(conv_macs(layout, 48, 256, 400), long) == long


@pytest.mark.parametrize(
    ("layout", "frames", "params", "gmac", "pooled"),
    [
        (slowonly50_layout(), 8, 32_454_096, "54.5", None),
        (slowonly50_layout(), 16, 32_454_096, "109.0", None),
        (r3d50_layout(), 32, 33_617_872, "117.3", "64.8"),
        (rs_layout(50), 32, 48_129_840, "115.0", "61.7"),
        (rs_layout(101), 32, 84_969_520, "229.1", "118.7"),
        (rs_layout(152), 32, 114_788_144, "334.6", "171.5"),
        (rs_layout(200), 32, 121_376_560, "407.6", "208.0"),
        (rs_layout(200), 48, 121_376_560, "611.4", "312.0"),
    ],
)
def test_published_models_at_256_pixels(layout, frames, params, gmac, pooled):
    assert num_parameters(layout, 400) == params
    for pool_t, printed in ((1, gmac), (2, pooled)):
        if printed is not None:
            macs = conv_macs(dataclasses.replace(layout, pool_t=pool_t), frames, 256, 400)
            assert as_printed(macs, printed) == printed


@pytest.mark.parametrize("depth", sorted(MILLION_PARAMETERS))
def test_parameters_of_every_depth(depth):
    ours = num_parameters(rs_layout(depth), 400)
    assert f"{ours / 1e6:.2f}" == MILLION_PARAMETERS[depth]
    for classes in (1, 600):
        assert num_parameters(rs_layout(depth), classes) == ours + 2049 * (classes - 400)
    assert num_parameters(rs_layout(depth)) == ours - 2049 * 400


def test_parameters_of_600_classes():
    assert num_parameters(rs_layout(50), 600) == 48_539_640


@pytest.mark.parametrize(
    ("changes", "params", "gmac"),
    [
        ({}, 48_129_840, "88.024"),
        ({"se_ratio": 0.0}, 38_051_184, "88.014"),
        ({"gating": "none"}, 42_555_440, "88.019"),
        ({"stem": "v0"}, 48_144_784, "91.049"),
        ({"stem": "v0", "se_ratio": 0.0, "gating": "none"}, 32_491_728, "91.034"),
    ],
)
def test_ablations_of_rs50(changes, params, gmac):
    layout = rs_layout(50, **changes)
    with torch.device("meta"):
        assert count_params(ResNet3D(layout, num_classes=400)) == params
    assert num_parameters(layout, 400) == params
    assert as_printed(conv_macs(layout, 32, 224, 400), gmac) == gmac


def test_where_the_parameters_are():
    with torch.device("meta"):
        net = ResNet3D(rs_layout(50), num_classes=400)
    sizes = {
        kind: sum(p.numel() for name, p in net.named_parameters() if kind in name)
        for kind in (".gating.", ".se.", "stem.", "fc.")
    }
    assert sizes == {".gating.": 5_574_400, ".se.": 10_078_656, "stem.": 32_224, "fc.": 819_600}


@pytest.mark.parametrize(
    ("layout", "frames", "size", "gmac"),
    [
        (rs_layout(50), 32, 224, "88.02"),
        (rs_layout(50, pool_t=2), 48, 256, "92.51"),
        (rs_layout(101), 16, 112, "22.50"),
        (r3d50_layout(), 32, 224, "49.63"),
        (r3d50_layout(pool_t=1), 32, 224, "89.81"),
        (r3d50_layout(), 16, 224, "24.82"),
        (slowonly50_layout(), 8, 256, "54.52"),
    ],
)
def test_counted_cost_is_that_of_the_formula(layout, frames, size, gmac):
    """torch's own counter on the network that runs."""
    with torch.device("meta"):
        net = ResNet3D(layout, num_classes=400)
    macs = count_macs(net, torch.empty(1, 3, frames, size, size))
    assert macs == conv_macs(layout, frames, size, 400)
    assert as_printed(macs, gmac) == gmac
    assert count_params(net) == num_parameters(layout, 400)


layouts = st.builds(
    ResNet3DLayout,
    depth=st.sampled_from((26, 26, 26, 38)),
    width=st.sampled_from((1 / 16, 0.2, 0.25, 0.5, 2**0.5)),
    stem=st.sampled_from(("v0", "v1")),
    stem_temporal_kernel=st.sampled_from((3, 5)),
    stem_temporal_stride=st.sampled_from((1, 2, 3)),
    pool_t=st.sampled_from((1, 2)),
    temporal=st.sampled_from(sorted(TEMPORAL)),
    se_ratio=st.sampled_from((0.0, 0.01, 0.2, 0.25)),
    gating=st.sampled_from(("last", "all", "none")),
    gate_order=st.sampled_from(("code", "paper")),
    padding=st.sampled_from(("same", "symmetric")),
    drop_path=st.just(0.1),
)


@settings(deadline=None, max_examples=12)
@given(
    layouts,
    st.integers(1, 20),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from((None, 7)),
    st.booleans(),
)
def test_formula_equals_count_for_any_layout(layout, frames, size, num_classes, folded):
    with torch.device("meta"):
        net = ResNet3D(layout, num_classes=num_classes, folded=folded)
    assert count_macs(net, torch.empty(1, 3, frames, *size)) == conv_macs(layout, frames, size, num_classes)
    assert count_params(net) == num_parameters(layout, num_classes)


def test_settings_of_equal_cost():
    """The frames-against-pixels comparisons of the paper's scaling rule."""
    layout = rs_layout(50)
    for (frames, size), (more, smaller) in [((16, 160), (32, 112)), ((16, 224), (32, 160)), ((32, 224), (64, 160))]:
        ratio = conv_macs(layout, more, smaller, 400) / conv_macs(layout, frames, size, 400)
        assert ratio == pytest.approx(1, abs=0.031)


def test_blocks_and_their_kernels():
    usual = {depth: 3 * sum(blocks) + 2 for depth, blocks in BLOCKS.items()}
    assert {depth: count for depth, count in usual.items() if depth != count} == {270: 272, 300: 296}
    assert r3d50_layout().temporal_kernels == ((3, 3, 3), (3, 1, 3, 1), (3, 1, 3, 1, 3, 1), (1, 3, 1))
    assert rs_layout(50).temporal_kernels == ((1,) * 3, (1,) * 4, (3,) * 6, (3,) * 3)
    assert rs_layout(26, temporal="1313").temporal_kernels == ((1, 3),) * 4
    assert slowonly50_layout().temporal_kernels == rs_layout(50).temporal_kernels
    gated = [[block.gated for block in group] for group in rs_layout(26).groups()]
    assert gated == [[False, True]] * 4
    assert all(block.gated for group in rs_layout(26, gating="all").groups() for block in group)


def test_widths():
    assert rs_layout(26, width=0.25).channels == (16, 32, 64, 128)
    assert [conv.out_channels for conv in rs_layout(26, width=0.25).stem_convs] == [8, 8, 16]
    assert rs_layout(50, width=2**0.5).channels == (88, 184, 360, 728)
    assert {block.se_channels for block in next(rs_layout(50, se_ratio=0.2).groups())} == {51}
    assert {block.se_channels for block in next(rs_layout(26, width=1 / 16, se_ratio=0.01).groups())} == {1}
    assert {group[0].shortcut for group in rs_layout(26).groups()} == {"conv"}
    narrow = [[block.shortcut for block in group] for group in rs_layout(26, width=1 / 16).groups()]
    assert narrow == [["conv", "identity"], ["pool", "identity"], ["conv", "identity"], ["conv", "identity"]]


def test_strides_rates_and_receptive_field():
    assert rs_layout().drop_path_rates == pytest.approx((0.04, 0.06, 0.08, 0.10))
    assert (rs_layout().temporal_stride, rs_layout(pool_t=2).temporal_stride) == (2, 4)
    assert slowonly50_layout().temporal_stride == 1
    assert receptive_frames(rs_layout(50)) == 41
    assert receptive_frames(rs_layout(50, pool_t=2)) == 5 + 2 * 2 + 9 * 2 * 4
    assert receptive_frames(slowonly50_layout()) == 19


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 51}, "depth must be one of 26, 38, 50.*got 51"),
        ({"stem": "v2"}, "stem must be one of v0, v1, got 'v2'"),
        ({"pool_t": 3}, "pool_t must be one of 1, 2, got 3"),
        ({"temporal": "1331"}, "temporal must be one of 1133.*got '1331'"),
        ({"gating": "first"}, "gating must be one of last, all, none"),
        ({"gate_order": "both"}, "gate_order must be one of code, paper"),
        ({"padding": "valid"}, "padding must be one of same, symmetric"),
        ({"stem_temporal_kernel": 4}, "stem_temporal_kernel must be odd"),
        ({"stem_temporal_kernel": 1}, "stem_temporal_stride must be from 1 to stem_temporal_kernel"),
        ({"width": 0.0}, "width must be positive"),
        ({"width": float("nan")}, "width must be positive"),
        ({"norm_eps": 0.0}, "norm_eps must be positive"),
        ({"se_ratio": 1.5}, "se_ratio must be from 0"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1"),
        ({"norm_momentum": -0.1}, "norm_momentum .* from 0 to 1"),
    ],
)
def test_impossible_layouts(changes, message):
    with pytest.raises(ValueError, match=message):
        rs_layout(**changes)


def test_an_empty_clip_has_no_cost():
    with pytest.raises(ValueError, match="at least 1 frame of 1×1 pixels, got 0 of 224×224"):
        conv_macs(rs_layout(), 0, 224)
    assert conv_macs(rs_layout(), 8, (64, 96)) == conv_macs(rs_layout(), 8, (96, 64))
