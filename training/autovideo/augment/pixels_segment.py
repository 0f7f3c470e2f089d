"""Cells of one colour: Voronoi cells and superpixels. See `pixels.py` for the layouts and the rules.

Cells lie on a grid with a centre each, so that a pixel can only belong to one of nine; there is no loop over cells.
They are the same in all frames of a clip, their colours are those of the frame.
"""

from typing import Any

import torch
from torch import Tensor

from training.autovideo.augment.draws import Draws
from training.autovideo.augment.pixels import grid


def _neighbours(rows: int, columns: int, video_BCTHW: Tensor) -> Tensor:
    """Return the nine cells that a pixel can belong to, (9,H,W); outside of the grid the nearest cell is repeated."""
    height, width = video_BCTHW.shape[-2:]
    row_H1 = torch.arange(height, device=video_BCTHW.device)[:, None] * rows // height
    column_1W = torch.arange(width, device=video_BCTHW.device)[None] * columns // width
    near = [
        (row_H1 + dy).clamp(0, rows - 1) * columns + (column_1W + dx).clamp(0, columns - 1)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    return torch.stack(near)


def _nearest(near_9HW: Tensor, centre_BNF: Tensor, feature_BFHW: Tensor) -> Tensor:
    """Return the cell of each pixel, (B,H,W): the nearest centre in feature space among the nine."""
    best: Tensor | None = None
    cell_BHW = near_9HW[0].expand(len(centre_BNF), -1, -1)
    for near_HW in near_9HW:
        centre_BFHW = centre_BNF[:, near_HW].permute(0, 3, 1, 2)
        distance = (centre_BFHW - feature_BFHW).square().sum(dim=1)
        if best is None:
            best = distance
            continue
        closer = distance < best
        best, cell_BHW = torch.where(closer, distance, best), torch.where(closer, near_HW, cell_BHW)
    return cell_BHW


def _cell_means(value_BFP: Tensor, cell_BHW: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return the sums of values over cells (B,F,N), and how many pixels each cell has (B,1,N)."""
    index_B1P = cell_BHW.flatten(1)[:, None]
    total = value_BFP.new_zeros(*value_BFP.shape[:2], cells).scatter_add_(2, index_B1P.expand_as(value_BFP), value_BFP)
    ones = torch.ones_like(value_BFP[:, :1])
    return total, value_BFP.new_zeros(len(value_BFP), 1, cells).scatter_add_(2, index_B1P, ones)


def _painted(video_BCTHW: Tensor, cell_BHW: Tensor, replaced_BN: Tensor) -> Tensor:
    """Paint the chosen cells in their mean colour, frame by frame."""
    batch, channels, count, height, width = video_BCTHW.shape
    value_BFP = video_BCTHW.reshape(batch, channels * count, height * width)
    total, number = _cell_means(value_BFP, cell_BHW, replaced_BN.shape[1])
    index_B1P = cell_BHW.flatten(1)[:, None]
    painted = (total / number.clamp_min(1)).gather(2, index_B1P.expand_as(value_BFP)).view_as(video_BCTHW)
    replaced = replaced_BN.gather(1, index_B1P[:, 0]).view(batch, 1, 1, height, width)
    return torch.where(replaced, painted, video_BCTHW)


def _grid_centres(rows: int, columns: int, video_BCTHW: Tensor, jitter_BN2: Tensor) -> Tensor:
    """Return centres (B,N,2), y and x in pixels, moved by shares of a cell."""
    height, width = video_BCTHW.shape[-2:]
    number_N = torch.arange(rows * columns, device=video_BCTHW.device)
    y_BN = (number_N // columns + 0.5 + jitter_BN2[..., 0]) * (height / rows) - 0.5
    x_BN = (number_N % columns + 0.5 + jitter_BN2[..., 1]) * (width / columns) - 0.5
    return torch.stack([y_BN, x_BN], dim=2)


def _places(video_BCTHW: Tensor) -> Tensor:
    height, width = video_BCTHW.shape[-2:]
    y, x = grid(height, width, video_BCTHW)
    return torch.stack([y.expand(height, width), x.expand(height, width)])


def voronoi(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Paint the cells of drawn points."""
    height, width = video_BCTHW.shape[-2:]
    rows, columns = min(config.rows, height), min(config.columns, width)
    jitter_BN2 = draw.uniform(-0.5, 0.5, rows * columns, 2) * config.irregularity
    centre_BN2 = _grid_centres(rows, columns, video_BCTHW, jitter_BN2)
    place_B2HW = _places(video_BCTHW).expand(len(video_BCTHW), -1, -1, -1)
    cell_BHW = _nearest(_neighbours(rows, columns, video_BCTHW), centre_BN2, place_B2HW)
    return _painted(video_BCTHW, cell_BHW, draw.bernoulli(draw.span(config.share, 1), rows * columns))


def superpixels(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Paint cells that follow the edges (SLIC: k-means of place and colour; Achanta et al. 2012, §III)."""
    height, width = video_BCTHW.shape[-2:]
    rows, columns = min(config.rows, height), min(config.columns, width)
    near = _neighbours(rows, columns, video_BCTHW)
    # Segments of the mean picture, so that they stand still; place in units of a cell, colour in those of compactness.
    unit = 1.0 / max(1.0, (height / rows * width / columns) ** 0.5)
    colour_B3HW = video_BCTHW.mean(dim=2) / config.compactness
    feature = torch.cat([_places(video_BCTHW).expand(len(video_BCTHW), -1, -1, -1) * unit, colour_B3HW], dim=1)
    still_BN2 = torch.zeros(len(video_BCTHW), rows * columns, 2, device=video_BCTHW.device)
    start_BN2 = _grid_centres(rows, columns, video_BCTHW, still_BN2)
    row_N, column_N = start_BN2[0].round().long().unbind(1)
    centre_BNF = feature[:, :, row_N.clamp(0, height - 1), column_N.clamp(0, width - 1)].mT
    for _ in range(config.iterations):
        cell_BHW = _nearest(near, centre_BNF, feature)
        total, number = _cell_means(feature.flatten(2), cell_BHW, rows * columns)
        centre_BNF = torch.where(number > 0, total / number.clamp_min(1), centre_BNF.mT).mT
    cell_BHW = _nearest(near, centre_BNF, feature)
    return _painted(video_BCTHW, cell_BHW, draw.bernoulli(draw.span(config.share, 1), rows * columns))
