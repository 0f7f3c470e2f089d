"""Position-sensitive average pooling of regions (R-FCN, Dai et al. 2016, section 3), by summed-area tables."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ps_roi_pool"]


def ps_roi_pool(map_NCHW: Tensor, box_NR4: Tensor, bins: int, stride: int) -> Tensor:
    """Average a map over the bins of regions, each bin over channels of its own.

    The rules are those of R-FCN's public operator. Edges of a region are rounded to whole pixels, half a pixel up, and
    divided by the stride; a side is at least 0.1 cells long. Bin i of an axis covers the cells from ⌊begin⌋ up to ⌈end⌉
    of its part, cut off at the map's border. A bin without cells has the value 0. Bin (row, column) of channel c reads
    channel (c·bins + row)·bins + column of the map. The borders of bins are computed in integers: no rounding error can
    add a cell.

    A sum over a rectangle is four entries of a table of sums. The table is made of differences from each channel's
    mean, which is added again after: what is lost by subtracting large sums then grows with the spread of a
    channel instead of its values (in fp32 about 1e-6 of the spread per cell of the map's side).

    Args:
        map_NCHW: with C = channels · bins²; gradients flow to it.
        box_NR4: regions in pixels, edges, inside the image (negative coordinates are not rounded as the operator did).
        bins: side of the grid of bins.
        stride: pixels per cell of the map.

    Returns:
        (N,R,channels,bins,bins), fp64 for fp64 maps, else fp32.

    Raises:
        ValueError: the number of channels is no multiple of bins².
    """
    batch, total, height, width = map_NCHW.shape
    if total % bins**2:
        raise ValueError(
            f"position-sensitive pooling into {bins}×{bins} bins needs a multiple of {bins**2} channels, got {total}"
        )
    table, mean_NKC = _tables(map_NCHW, bins)
    with torch.no_grad():
        low_NR2, high_NR2 = _whole(box_NR4[..., :2]), _whole(box_NR4[..., 2:])
        x0, x1 = _borders(low_NR2[..., 0], high_NR2[..., 0], bins, stride, width)
        y0, y1 = _borders(low_NR2[..., 1], high_NR2[..., 1], bins, stride, height)
        corner_x = torch.stack((x1, x0, x1, x0), -1)[:, :, None]  # (N,R,1,bins,4)
        corner_y = torch.stack((y1, y1, y0, y0), -1)[:, :, :, None]  # (N,R,bins,1,4)
        first = torch.arange(batch * bins**2, device=table.device).view(batch, 1, bins, bins, 1)
        row = (first * (height + 1) + corner_y) * (width + 1) + corner_x
        cells = ((y1 - y0)[..., None] * (x1 - x0)[..., None, :])[..., None]
    corners = table.index_select(0, row.flatten()).view(*row.shape, -1)
    sums = corners[..., 0, :] - corners[..., 1, :] - corners[..., 2, :] + corners[..., 3, :]
    means = sums / cells.clamp_min(1) + mean_NKC.view(batch, 1, bins, bins, -1)
    return torch.where(cells > 0, means, 0).permute(0, 1, 4, 2, 3)


def _tables(map_NCHW: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Return rows (N·bins²·(H+1)·(W+1), channels) of sums above and left of each corner, and the means left out."""
    exact = map_NCHW if map_NCHW.dtype == torch.float64 else map_NCHW.float()
    by_bin = exact.unflatten(1, (-1, bins**2)).permute(0, 2, 3, 4, 1)  # (N,bins²,H,W,channels): a row is one read
    # A constant may be added to a channel before and taken away after; so its gradient is none of the map's.
    mean = by_bin.detach().mean((2, 3), keepdim=True)
    sums = (by_bin - mean).cumsum(3).cumsum(2)
    return F.pad(sums, (0, 0, 1, 0, 1, 0)).flatten(0, 3), mean


def _whole(edge: Tensor) -> Tensor:
    """Round to integers, halves up; `floor(edge + 0.5)` would be wrong just below a half."""
    down = edge.floor()
    return (down + (edge - down >= 0.5)).long()


def _borders(low: Tensor, high: Tensor, bins: int, stride: int, cells: int) -> tuple[Tensor, Tensor]:
    """Return first cell and end of each bin, (N,R) whole pixels → (N,R,bins) twice, in 0 … cells.

    In units of 1/(10·bins·stride) cells everything is an integer, also the smallest side of 0.1 cells.
    """
    side = torch.maximum(10 * (high - low), torch.full_like(low, stride))[..., None]
    begin = (low * 10 * bins)[..., None]
    number = torch.arange(bins, device=low.device)
    unit = 10 * bins * stride
    first = torch.div(begin + number * side, unit, rounding_mode="floor")
    end = -torch.div(-(begin + (number + 1) * side), unit, rounding_mode="floor")
    return first.clamp(0, cells), end.clamp(0, cells)
