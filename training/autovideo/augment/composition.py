"""Operations of combiners and policies: which of their parts change which clip.

All choices are made per clip, as masks. Parts get streams of their own, so a part draws the same whatever the others
do.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.autovideo.augment.augmentation import Augmented, Part
from training.autovideo.augment.draws import Draws
from training.autovideo.augment.pixels import plasma

_PARTS = 1 << 20
"""Streams of parts start here, above those of the composite's own draws."""


def sequential(batch: Augmented, config: Any, draw: Draws, chosen_B: Tensor, parts: Sequence[Part]) -> Augmented:
    """Apply all parts, in order or in an order drawn per clip."""
    if not config.random_order:
        for place, part in enumerate(parts):
            batch = part(batch, draw.child(_PARTS + place), chosen_B)
        return batch
    return _in_order(batch, draw, chosen_B, parts, draw.permutation(len(parts)))


def some_of(batch: Augmented, config: Any, draw: Draws, chosen_B: Tensor, parts: Sequence[Part]) -> Augmented:
    """Apply `n` different parts, drawn per clip."""
    order_BN = draw.permutation(len(parts))[:, : config.n]
    if config.random_order:
        return _in_order(batch, draw, chosen_B, parts, order_BN)
    for place, part in enumerate(parts):
        batch = part(batch, draw.child(_PARTS + place), chosen_B & (order_BN == place).any(dim=1))
    return batch


def one_of(batch: Augmented, config: Any, draw: Draws, chosen_B: Tensor, parts: Sequence[Part]) -> Augmented:
    """Apply one part, drawn per clip."""
    return _in_order(batch, draw, chosen_B, parts, draw.choice(len(parts), 1))


def _in_order(batch: Augmented, draw: Draws, chosen_B: Tensor, parts: Sequence[Part], order_BN: Tensor) -> Augmented:
    for slot in range(order_BN.shape[1]):
        for place, part in enumerate(parts):
            batch = part(batch, draw.child(_PARTS + place), chosen_B & (order_BN[:, slot] == place))
    return batch


def sometimes(batch: Augmented, config: Any, draw: Draws, chosen_B: Tensor, parts: Sequence[Part]) -> Augmented:
    """Apply one list or the other; the parts are those of `then`, followed by those of `otherwise`."""
    first_B = draw.bernoulli(config.chance)
    for place, part in enumerate(parts):
        mine_B = first_B if place < len(config.then) else ~first_B
        batch = part(batch, draw.child(_PARTS + place), chosen_B & mine_B)
    return batch


def with_channels(batch: Augmented, config: Any, draw: Draws, chosen_B: Tensor, parts: Sequence[Part]) -> Augmented:
    """Apply the parts, and keep the change of some colour channels only."""
    changed = batch
    for place, part in enumerate(parts):
        changed = part(changed, draw.child(_PARTS + place), chosen_B)
    mixed = [
        (changed if channel in config.channels else batch).video_BCTHW[:, number]
        for number, channel in enumerate(("red", "green", "blue"))
    ]
    return Augmented(torch.stack(mixed, dim=1), batch.target_BK)


def blend(batch: Augmented, config: Any, draw: Draws, chosen_B: Tensor, parts: Sequence[Part]) -> Augmented:
    """Apply the parts, and lay the result over the clip through a mask."""
    changed = batch
    for place, part in enumerate(parts):
        changed = part(changed, draw.child(_PARTS + place), chosen_B)
    draw = draw.to(batch.video_BCTHW.device)
    mask = _mask(config, draw, *batch.video_BCTHW.shape[-2:])
    return Augmented(torch.lerp(batch.video_BCTHW, changed.video_BCTHW, mask), batch.target_BK)


def _mask(config: Any, draw: Draws, height: int, width: int) -> Tensor:
    """Return the weight of the changed clip, 0…1, (B,1,1,H or 1,W or 1)."""
    device = draw.seed_B.device
    if config.mask == "uniform":
        return draw.span(config.alpha, 1, 1, 1, 1)
    if config.mask == "pixels":
        return draw.span(config.alpha, 1, 1, height, width)
    if config.mask == "noise":
        low, high = config.alpha
        mask_B11HW: Tensor = low + (high - low) * plasma(draw, height, width)[:, :, None]
        return mask_B11HW
    if config.mask in ("checkerboard", "grid"):
        row_H = torch.arange(height, device=device) * config.cells // height
        column_W = torch.arange(width, device=device) * config.cells // width
        if config.mask == "grid":
            cell_BRR = draw.span(config.alpha, config.cells, config.cells)
            return cell_BRR[:, row_H][:, :, column_W][:, None, None]
        odd_B = draw.choice(2)[:, None, None]
        on_BHW = ((row_H[:, None] + column_W + odd_B) % 2).float()
        mask_BHW: Tensor = config.alpha[0] + (config.alpha[1] - config.alpha[0]) * on_BHW
        return mask_BHW[:, None, None]
    extent = width if config.mask == "horizontal" else height
    ramp_N = torch.arange(extent, device=device, dtype=torch.float32) / max(1, extent - 1)
    ramp_BN = torch.where(draw.bernoulli(0.5, 1), ramp_N, 1 - ramp_N)
    low, high = (float(value) for value in config.alpha)
    ramp_BN = low + (high - low) * ramp_BN
    return ramp_BN[:, None, None, None] if config.mask == "horizontal" else ramp_BN[:, None, None, :, None]


def randaugment(batch: Augmented, config: Any, draw: Draws, chosen_B: Tensor, parts: Sequence[Part]) -> Augmented:
    """Apply `n` operations, drawn per clip with replacement; signs are drawn, too."""
    for slot in range(config.n):
        batch = _one_signed(batch, draw, chosen_B, parts, slot)
    return batch


def trivialaugment(batch: Augmented, config: Any, draw: Draws, chosen_B: Tensor, parts: Sequence[Part]) -> Augmented:
    """Apply one operation, drawn per clip; its strength is drawn by the operation itself."""
    return one_of(batch, config, draw, chosen_B, parts)


def augmix(batch: Augmented, config: Any, draw: Draws, chosen_B: Tensor, parts: Sequence[Part]) -> Augmented:
    """Mix chains of operations with one another and with the clip."""
    device = batch.video_BCTHW.device
    share_BW = draw.exponential(config.width)
    share_BW = (share_BW / share_BW.sum(dim=1, keepdim=True)).to(device, non_blocking=True)
    kept_B = draw.beta(1.0).to(device, non_blocking=True)
    depth_BW = draw.integers(config.depth[0], config.depth[1], config.width)
    mixed = torch.zeros_like(batch.video_BCTHW)
    for chain in range(config.width):
        state = batch
        for step in range(config.depth[1]):
            active_B = chosen_B & (depth_BW[:, chain] > step)
            state = _one_signed(state, draw, active_B, parts, chain * config.depth[1] + step)
        mixed += state.video_BCTHW * share_BW[:, chain, None, None, None, None]
    mixed = torch.lerp(mixed, batch.video_BCTHW, kept_B[:, None, None, None, None])
    chosen_B = chosen_B.to(device, non_blocking=True)[:, None, None, None, None]
    return Augmented(torch.where(chosen_B, mixed, batch.video_BCTHW), batch.target_BK)


def _one_signed(batch: Augmented, draw: Draws, chosen_B: Tensor, parts: Sequence[Part], slot: int) -> Augmented:
    """Apply one operation; parts come in pairs, with the positive and with the negative magnitude."""
    own = draw.child(slot)
    place_B = own.choice(len(parts) // 2) * 2 + own.choice(2)
    for place, part in enumerate(parts):
        batch = part(batch, own.child(_PARTS + place), chosen_B & (place_B == place))
    return batch
