"""Pooling by tables of sums against a loop over cells in the legacy form, with exact fractions."""

import math
from fractions import Fraction

import pytest
import torch

from training.layers.ps_roi import ps_roi_pool


def legacy_round(value: float) -> int:
    """C's `round`: halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def legacy_pool(cells: torch.Tensor, last_pixel_box: list[float], bins: int, stride: int) -> torch.Tensor:
    """One region, (C,H,W) → (C/bins²,bins,bins); the box names first and last pixels."""
    channels, height, width = cells.shape[0] // bins**2, *cells.shape[1:]
    x_low, y_low = (Fraction(legacy_round(v), stride) for v in last_pixel_box[:2])
    x_high, y_high = (Fraction(legacy_round(v) + 1, stride) for v in last_pixel_box[2:])
    bin_width, bin_height = (max(s, Fraction(1, 10)) / bins for s in (x_high - x_low, y_high - y_low))
    result = torch.zeros(channels, bins, bins, dtype=cells.dtype)
    for channel in range(channels):
        for row in range(bins):
            for column in range(bins):
                top, bottom = math.floor(row * bin_height + y_low), math.ceil((row + 1) * bin_height + y_low)
                left, right = math.floor(column * bin_width + x_low), math.ceil((column + 1) * bin_width + x_low)
                top, bottom = (min(max(v, 0), height) for v in (top, bottom))
                left, right = (min(max(v, 0), width) for v in (left, right))
                if bottom > top and right > left:
                    plane = cells[(channel * bins + row) * bins + column]
                    result[channel, row, column] = plane[top:bottom, left:right].mean()
    return result


def regions(count: int, height: int, width: int) -> torch.Tensor:
    """Boxes inside an image; some are tiny, at the border, on whole pixels or on halves."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * torch.tensor([width - 1, height - 1])
    box = torch.cat((corner.amin(1), corner.amax(1) + 1), -1)
    box[::3] = box[::3].round()
    box[1::5] = (box[1::5] * 2).round() / 2
    box[::7, 2:] = box[::7, :2] + 1
    box[0] = torch.tensor([0, 0, width, height])
    box[1] = torch.tensor([width - 1, height - 1, width, height])
    return box


@pytest.mark.parametrize(("bins", "stride"), [(7, 16), (3, 8), (1, 16)])
def test_equals_the_legacy_loop(bins: int, stride: int):
    height, width = 9 * stride - 3, 13 * stride
    cells = torch.randn(2, 2 * bins**2, 9, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    box = regions(60, height, width).view(2, 30, 4)
    pooled = ps_roi_pool(cells, box, bins, stride)
    assert pooled.shape == (2, 30, 2, bins, bins)
    for n in range(2):
        for r in range(30):
            last = (box[n, r] - torch.tensor([0, 0, 1, 1])).tolist()
            assert torch.allclose(pooled[n, r], legacy_pool(cells[n], last, bins, stride), atol=1e-12)


def test_shapes_of_bins_follow_every_rule():
    """Bins that share cells, empty ones, and ends on borders of cells, by hand."""
    cells = torch.arange(5.0, dtype=torch.float64).expand(1, 4, 5, 5)  # value = column
    values = ps_roi_pool(cells, torch.tensor([[[8.0, 0, 40, 80]]]), 2, 16)[0, 0, 0]
    # 0.5 … 2.5 cells in two bins: columns ⌊0.5⌋ … ⌈1.5⌉ and ⌊1.5⌋ … ⌈2.5⌉.
    assert values.tolist() == [[0.5, 1.5], [0.5, 1.5]]
    # Beyond the map there are no cells.
    assert ps_roi_pool(cells, torch.tensor([[[70.0, 0, 120, 80]]]), 2, 16)[0, 0, 0].tolist() == [[4, 0], [4, 0]]
    # An end on a border of cells adds no cell, whatever the width is divided by.
    cells = torch.arange(64.0).expand(1, 49, 1, 64).clone()
    for cell in range(1, 64):
        value = ps_roi_pool(cells, torch.tensor([[[0.0, 0, 16 * cell, 16]]]), 7, 16)[0, 0, 0, 0, 6].item()
        assert value == pytest.approx((math.floor(6 * cell / 7) + cell - 1) / 2, abs=1e-4)


def test_layout_of_channels():
    """A map that is 1 in one channel gives 1 in one bin of one class."""
    classes, bins = 3, 7
    for channel in (0, 1, 7, 48, 49, 100, 146):
        cells = torch.zeros(1, classes * bins**2, 20, 20)
        cells[0, channel] = 1
        pooled = ps_roi_pool(cells, torch.tensor([[[16.0, 16, 300, 300]]]), bins, 16)[0, 0]
        assert pooled.flatten().nonzero().flatten().tolist() == [channel]
        assert pooled[channel // 49, channel // 7 % 7, channel % 7] == pytest.approx(1)


def test_gradient():
    cells = torch.randn(2, 8, 4, 5, dtype=torch.float64, requires_grad=True)
    box = regions(6, 60, 80).view(2, 3, 4)
    assert torch.autograd.gradcheck(lambda x: ps_roi_pool(x, box, 2, 16), cells)


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_single_precision_loses_little_on_large_maps(mean: float):
    """Values 100 ± 1 on 4096 cells: in sums up to 4e5 fp32 would lose 0.01 and more were the mean not left out."""
    exact = torch.randn(1, 2 * 49, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + mean
    box = regions(200, 1024, 1024)[None]
    reference = exact.clone().requires_grad_()
    single = exact.float().requires_grad_()
    expected, found = ps_roi_pool(reference, box, 7, 16), ps_roi_pool(single, box.float(), 7, 16)
    rounded = ps_roi_pool(exact.float().double(), box, 7, 16)  # the loss of the map's own precision is not the table's
    assert (found.double() - rounded).abs().max() < 1e-4
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert single.grad is not None
    assert reference.grad is not None
    assert (single.grad.double() - reference.grad).abs().max() < 1e-4 * reference.grad.abs().max()
    plain = exact.float().cumsum(-1).cumsum(-2)
    one = plain[..., 63, 63] - plain[..., 62, 63] - plain[..., 63, 62] + plain[..., 62, 62]
    lost = (one.double() - exact.float().double()[..., 63, 63]).abs().max().item()
    assert (lost > 1e-2) == (mean == 100)  # the control: a plain table


def test_halves_compute_in_single_precision():
    cells = torch.randn(1, 4, 6, 6)
    box = torch.tensor([[[0.0, 0, 50, 70]]])
    pooled = ps_roi_pool(cells.bfloat16(), box, 2, 16)
    assert pooled.dtype == torch.float32
    assert torch.allclose(pooled, ps_roi_pool(cells.bfloat16().float(), box, 2, 16))


def test_wrong_channels():
    with pytest.raises(ValueError, match="multiple of 49"):
        ps_roi_pool(torch.zeros(1, 50, 4, 4), torch.zeros(1, 1, 4), 7, 16)
