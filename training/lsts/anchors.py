"""Anchors of the region proposals, and which of them train (Ren et al. 2015, sections 3.1.1 and 3.1.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.layers.boxes import iou
from training.layers.seeded import seeded_bits, seeded_uniform
from training.lsts.head_base import Targets

__all__ = ["BATCH", "assign_anchors", "base_anchors", "grid_anchors", "sample_anchors"]

BASE = 16
"""Pixels that a scale of 1 is."""
FOREGROUND, BACKGROUND = 0.7, 0.3
"""IoU with an object from which, and below which, an anchor is an example."""
BATCH = 256
"""Anchors that train per image; at most half of them foreground."""


def base_anchors(scales: Sequence[float], ratios: Sequence[float], stride: int) -> Tensor:
    """Return the anchors of the first cell, (A,4) float32 edges in pixels; ratios vary slower than scales.

    Sides of ratio r are those of the legacy code, rounded before they are scaled: width = round(√(16²/r)), height =
    round(r·width), halves to even. The centre is the cell's (where the legacy code, of stride 16 only, has it).
    """
    sides = []
    for ratio in ratios:
        width = round((BASE * BASE / ratio) ** 0.5)
        height = round(width * ratio)
        sides += [(width * scale, height * scale) for scale in scales]
    half = torch.tensor(sides, dtype=torch.float64) / 2
    return torch.cat((stride / 2 - half, stride / 2 + half), 1).float()


def grid_anchors(base_A4: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Return the anchors of all cells, (H·W·A,4): rows of the map, then columns, then anchors of a cell."""
    x = torch.arange(width, device=base_A4.device) * stride
    y = torch.arange(height, device=base_A4.device) * stride
    shift = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), -1).repeat(1, 1, 2)
    return (shift[:, :, None] + base_A4).flatten(0, 2)


def assign_anchors(anchor_K4: Tensor, targets: Targets, size_N2: Tensor) -> tuple[Tensor, Tensor]:
    """Say which anchors are examples of what.

    Foreground are those with an IoU of at least 0.7 with an object and, for each object, those whose IoU with it is
    the largest (all of equal ones, if above 0); background those below 0.3 with all objects. Anchors that are not
    fully inside the image are neither, and do not count as the best of an object.

    Args:
        anchor_K4: anchors.
        targets: objects, at least one row.
        size_N2: height and width of the images.

    Returns:
        label_NK int64 (1 foreground, 0 background, −1 neither) and match_NK, the row of the object that overlaps most.
    """
    overlap_NKG = iou(anchor_K4, targets.box_NG4) * (targets.label_NG >= 0)[:, None]
    low, high = anchor_K4[:, :2], anchor_K4[:, 2:]
    inside_NK = (low >= 0).all(-1) & (high <= size_N2.flip(-1)[:, None]).all(-1)
    overlap_NKG = overlap_NKG * inside_NK[..., None]
    best_N1G = overlap_NKG.amax(1, keepdim=True)
    is_best_NK = ((overlap_NKG == best_N1G) & (best_N1G > 0)).any(-1)
    overlap_NK, match_NK = overlap_NKG.max(-1)
    foreground = (is_best_NK | (overlap_NK >= FOREGROUND)) & inside_NK
    background = (overlap_NK < BACKGROUND) & inside_NK
    return torch.where(foreground, 1, torch.where(background, 0, -1)), match_NK


def sample_anchors(label_NHWA: Tensor, seed_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw up to 256 anchors per image: up to 128 of the foreground, and background for the rest.

    The draw of an anchor is a hash of the image's seed, its row and its place in the row; it does not depend on how far
    the map was padded.

    Returns:
        foreground indices (N,128) into H·W·A and which of them count, background indices (N,256) and which count; both
        shorter for maps of fewer anchors.
    """
    batch, height = label_NHWA.shape[:2]
    label_NK = label_NHWA.flatten(1)
    row_seed = seeded_bits(seed_N, (height,)).flatten()
    draw_NK = seeded_uniform(row_seed, (label_NK.shape[1] // height,)).view(batch, -1)
    first, fg_index = torch.where(label_NK == 1, draw_NK, -1).topk(min(BATCH // 2, label_NK.shape[1]))
    fg_counts = first >= 0
    second, bg_index = torch.where(label_NK == 0, draw_NK, -1).topk(min(BATCH, label_NK.shape[1]))
    room = BATCH - fg_counts.sum(-1, keepdim=True)
    bg_counts = (second >= 0) & (torch.arange(second.shape[1], device=room.device) < room)
    return fg_index, fg_counts, bg_index, bg_counts
