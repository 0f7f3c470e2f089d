"""Boxes: areas, overlaps, codes relative to other boxes, and non-maximum suppression.

A box is x0, y0, x1, y1 in pixels and names edges: pixel i covers [i, i + 1), so its width is x1 − x0. Code that names
the first and the last pixel and writes "+1" in its widths means the same boxes with 1 added to x1 and y1.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "areas",
    "clip_boxes",
    "decode_boxes",
    "encode_boxes",
    "generalised_iou",
    "iou",
    "nms",
    "nms_keep",
    "nms_picks",
]

MAX_LOG_RATIO = math.log(1000 / 16)
"""Largest logarithm of a decoded box's side over its anchor's; above, exp would overflow before training recovers."""

BLOCK = 256
"""Boxes of falling score that are compared with one another at once."""


def areas(box: Tensor) -> Tensor:
    """(…,4) → (…), square pixels."""
    return (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return intersection over union of all pairs, (…,N,4) and (…,M,4) → (…,N,M); leading axes broadcast.

    Two boxes without area have 0.
    """
    first, second = first.unsqueeze(-2), second.unsqueeze(-3)
    low = torch.maximum(first[..., :2], second[..., :2])
    side = (torch.minimum(first[..., 2:], second[..., 2:]) - low).clamp_min(0)
    intersection = side[..., 0] * side[..., 1]
    union = areas(first) + areas(second) - intersection
    return intersection / union.clamp_min(torch.finfo(union.dtype).tiny)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return GIoU of boxes pair by pair, (…,4) and (…,4) → (…), in (−1, 1] (Rezatofighi et al. 2019, algorithm 1).

    It is less than the IoU by the share of the smallest enclosing box that neither of the two covers.
    """
    tiny = torch.finfo(first.dtype).tiny
    inner = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp_min(
        0
    )
    outer = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    intersection, hull = inner[..., 0] * inner[..., 1], outer[..., 0] * outer[..., 1]
    union = areas(first) + areas(second) - intersection
    return intersection / union.clamp_min(tiny) - (hull - union) / hull.clamp_min(tiny)


def encode_boxes(box: Tensor, anchor: Tensor, std: tuple[float, float]) -> Tensor:
    """Return boxes relative to anchors (R-CNN's code): shift of the centre and logarithm of the sides' ratio.

    Args:
        box: (…,4).
        anchor: (…,4).
        std: what shifts and logarithms are divided by.

    Returns:
        (…,4): Δx/w, Δy/h, both over std[0], log ratios of widths and heights, over std[1]. Finite for boxes without
        area too.
    """
    box_side = (box[..., 2:] - box[..., :2]).clamp_min(1e-3)
    anchor_side = (anchor[..., 2:] - anchor[..., :2]).clamp_min(1e-3)
    shift = (box[..., :2] + box[..., 2:] - anchor[..., :2] - anchor[..., 2:]) / (2 * anchor_side)
    return torch.cat((shift / std[0], (box_side / anchor_side).log() / std[1]), -1)


def decode_boxes(code: Tensor, anchor: Tensor, std: tuple[float, float]) -> Tensor:
    """Undo `encode_boxes`; no side becomes larger than 62.5 times the anchor's (`MAX_LOG_RATIO`)."""
    side = anchor[..., 2:] - anchor[..., :2]
    centre = (anchor[..., :2] + anchor[..., 2:]) / 2 + code[..., :2] * std[0] * side
    half = (code[..., 2:] * std[1]).clamp_max(MAX_LOG_RATIO).exp() * side / 2
    return torch.cat((centre - half, centre + half), -1)


def clip_boxes(box: Tensor, size_N2: Tensor, least: float = 0.0) -> Tensor:
    """Cut boxes off at the borders of their images.

    Args:
        box: (N,…,4).
        size_N2: height and width of each image.
        least: how far from the opposite border each edge stays, pixels. 1 is what clipping the first and the last pixel
            to those of the image does: a box beyond the border becomes one pixel wide.
    """
    limit = size_N2.flip(-1).to(box.dtype).view(-1, *[1] * (box.dim() - 2), 2)
    low = torch.minimum(box[..., :2], limit - least).clamp_min(0)
    high = torch.minimum(box[..., 2:], limit).clamp_min(least)
    return torch.cat((low, high), -1)


# --- non-maximum suppression ---------------------------------------------------------------------


def nms_picks(
    box_BN4: Tensor,
    score_BN: Tensor,
    threshold: float,
    count: int,
    *,
    group_BN: Tensor | None = None,
    may_wait: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the first `count` boxes that greedy non-maximum suppression keeps, of every image.

    Going by falling score, a box is kept if its IoU with no box kept before is above the threshold; of equal scores
    the first box comes first. Exact, whatever the way: on CPU, or where waiting is allowed, in blocks of falling score
    until all images have `count` boxes; else one box after another out of the matrix of all overlaps (B·N² bytes),
    whose work does not depend on values, so that nothing waits for the device and CUDA graphs can record it.

    Args:
        box_BN4: boxes.
        score_BN: −inf or NaN: no box.
        threshold: IoU above which a box suppresses another.
        count: most boxes to be kept per image.
        group_BN: boxes of different groups do not suppress one another (classes); None: one group.
        may_wait: whether the host may look at values on the way, which is faster on an accelerator that is not behind.

    Returns:
        index_BM and valid_BM with M = count, in order of falling score; invalid entries have index 0. No gradients.
    """
    with torch.no_grad():
        score_BN = torch.where(score_BN > -torch.inf, score_BN, -torch.inf)
        score_BN, order_BN = torch.sort(score_BN, dim=-1, descending=True, stable=True)
        box_BN4 = box_BN4.gather(1, order_BN[..., None].expand(-1, -1, 4))
        group_BN = None if group_BN is None else group_BN.gather(1, order_BN)
        alive_BN = score_BN > -torch.inf
        if box_BN4.shape[1] == 0 or count == 0:
            return order_BN.new_zeros(len(box_BN4), count), alive_BN.new_zeros(len(box_BN4), count)
        if may_wait or box_BN4.device.type == "cpu":
            place_BM, valid_BM = _by_blocks(box_BN4, alive_BN, group_BN, threshold, count)
        else:
            place_BM, valid_BM = _one_by_one(box_BN4, alive_BN, group_BN, threshold, count)
        return torch.where(valid_BM, order_BN.gather(1, place_BM), 0), valid_BM


def nms(box_N4: Tensor, score_N: Tensor, threshold: float) -> Tensor:
    """Return indices (M,) of the boxes of one frame that greedy suppression keeps, by falling score (`nms_picks`)."""
    index_BM, valid_BM = nms_picks(box_N4[None], score_N[None], threshold, len(score_N), may_wait=True)
    return index_BM[0, valid_BM[0]]


def nms_keep(overlap: Tensor, score: Tensor) -> Tensor:
    """Greedy suppression where the overlaps are known already, of many sets of boxes at once; waits for the device.

    Classes that score the same boxes share the overlaps, (B,1,N,N) with scores (B,C,N).

    Args:
        overlap: (…,N,N) bool, whether one of two boxes suppresses the other; leading axes broadcast.
        score: (…,N), −inf: no box.

    Returns:
        (…,N) bool, the boxes kept. Of equal scores the first box comes first.
    """
    score = score.contiguous()  # of a transposed one all that follows would be transposed, and the products slow
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return _settle(overlap & (rank.unsqueeze(-1) < rank.unsqueeze(-2)), score > -torch.inf)


def _settle(suppresses: Tensor, free: Tensor) -> Tensor:
    """Solve keep_i = free_i ∧ ¬∃ j: keep_j ∧ suppresses_ji, where `suppresses` (…,N,N) has no cycles.

    Such a system has one solution. After n rounds all boxes are right that stand at the end of chains of fewer than n
    suppressions, so that a round which changes nothing was the last.
    """
    numbers = suppresses.float()  # a product with 0 and 1 is faster than the logic, and sums of them are 0 or not
    keep = free
    while True:
        after = free & ((keep.float().unsqueeze(-2) @ numbers).squeeze(-2) == 0)
        if torch.equal(after, keep):
            return keep
        keep = after


def _overlaps(
    first: Tensor, second: Tensor, group_first: Tensor | None, group_second: Tensor | None, threshold: float
) -> Tensor:
    """(B,N,4), (B,M,4) → (B,N,M), whether of two boxes only one is kept."""
    over = iou(first, second) > threshold
    if group_first is None or group_second is None:
        return over
    return over & (group_first[:, :, None] == group_second[:, None])


def _by_blocks(
    box_BN4: Tensor, alive_BN: Tensor, group_BN: Tensor | None, threshold: float, count: int
) -> tuple[Tensor, Tensor]:
    """Places of the boxes kept among sorted ones: each block against the boxes kept so far, then against itself."""
    batch, total = alive_BN.shape
    place_BM = torch.zeros(batch, 0, dtype=torch.int64, device=box_BN4.device)
    valid_BM = alive_BN[:, :0]
    for start in range(0, total, BLOCK):
        block = slice(start, start + BLOCK)
        box, free = box_BN4[:, block], alive_BN[:, block]
        group = None if group_BN is None else group_BN[:, block]
        if start:
            kept_BM4 = box_BN4.gather(1, place_BM[..., None].expand(-1, -1, 4))
            kept_group = None if group_BN is None else group_BN.gather(1, place_BM)
            over_BNM = _overlaps(box, kept_BM4, group, kept_group, threshold)
            free = free & ~(over_BNM & valid_BM[:, None]).any(-1)
        keep = _settle(_overlaps(box, box, group, group, threshold).triu(1), free)
        # What is kept moves to the front, in order; a place beyond the end marks the rest.
        place = torch.arange(start, start + box.shape[1], device=box.device).expand(batch, -1)
        found = torch.cat((torch.where(valid_BM, place_BM, total), torch.where(keep, place, total)), 1)
        found = found.sort(-1)[0][:, : min(count, start + box.shape[1])]
        valid_BM = found < total
        found = found[:, : int(valid_BM.sum(1).max())]
        place_BM, valid_BM = found.clamp_max(total - 1), found < total
        if bool((valid_BM.sum(1) == count).all()):
            break
    missing = count - place_BM.shape[1]
    pad = torch.nn.functional.pad
    return pad(place_BM, (0, missing)), pad(valid_BM, (0, missing))


def _one_by_one(
    box_BN4: Tensor, alive_BN: Tensor, group_BN: Tensor | None, threshold: float, count: int
) -> tuple[Tensor, Tensor]:
    """The same in `count` steps of four small operators each, without a look at values."""
    batch, total = alive_BN.shape
    clear_RN = torch.empty(batch, total, total, dtype=torch.bool, device=box_BN4.device)
    for start in range(0, total, BLOCK):  # in parts, because the overlaps as numbers are large
        block = slice(start, start + BLOCK)
        group = None if group_BN is None else group_BN[:, block]
        clear_RN[:, block] = ~_overlaps(box_BN4[:, block], box_BN4, group, group_BN, threshold)
    clear_RN.diagonal(dim1=1, dim2=2).fill_(False)  # a box without area does not overlap even itself
    clear_RN = clear_RN.flatten(0, 1)
    first_row_B = torch.arange(batch, device=box_BN4.device) * total
    alive_BN = alive_BN.clone()
    places, valid = [], []
    for _ in range(count):
        any_B, place_B = alive_BN.max(-1)  # the first of equal values, which is the best-scored box left
        places.append(place_B)
        valid.append(any_B)
        alive_BN &= clear_RN.index_select(0, place_B + first_row_B)
    return torch.stack(places, 1), torch.stack(valid, 1)
