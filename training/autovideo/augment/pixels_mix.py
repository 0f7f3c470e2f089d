"""Clips mixed with their neighbour in the batch, and their targets with them.

The partner of a clip is the next one of the batch, the last one's is the first: batches are shuffled already, and no
draw is needed that would depend on what else is in the batch. How much is mixed is a function of the clip's seed.
"""

from typing import Any

import torch
from torch import Tensor

from training.autovideo.augment.draws import Draws
from training.autovideo.augment.pixels import each


def _mixed_targets(target_BK: Tensor, kept_B: Tensor) -> Tensor:
    kept = kept_B[:, None].to(target_BK.dtype)
    return target_BK * kept + target_BK.roll(-1, 0) * (1 - kept)


def mixup(video_BCTHW: Tensor, config: Any, draw: Draws, target_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Average two clips with drawn weights (Zhang et al. 2018)."""
    kept_B = draw.beta(config.alpha)
    return torch.lerp(video_BCTHW.roll(-1, 0), video_BCTHW, each(kept_B)), _mixed_targets(target_BK, kept_B)


def _pasted(video_BCTHW: Tensor, target_BK: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Paste the partner where `inside` (B,1,T,H,W) is set; targets by the share that is left."""
    inside = inside.expand(-1, -1, *video_BCTHW.shape[2:])
    kept_B = 1 - inside.float().mean((1, 2, 3, 4))
    return torch.where(inside, video_BCTHW.roll(-1, 0), video_BCTHW), _mixed_targets(target_BK, kept_B)


def _interval(draw: Draws, share_B: Tensor, extent: int) -> Tensor:
    """Return a drawn interval of a share of an axis, bool (B, extent)."""
    length_B1 = (share_B[:, None] * extent).round()
    start_B1 = (draw.uniform(0, 1, 1) * (extent - length_B1)).round()
    place = torch.arange(extent, device=share_B.device)
    return (place >= start_B1) & (place < start_B1 + length_B1)


def cutmix(video_BCTHW: Tensor, config: Any, draw: Draws, target_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of the partner, the same in all frames (Yun et al. 2019)."""
    side_B = (1 - draw.beta(config.alpha)).sqrt()
    row_BH = _interval(draw, side_B, video_BCTHW.shape[3])
    column_BW = _interval(draw, side_B, video_BCTHW.shape[4])
    return _pasted(video_BCTHW, target_BK, (row_BH[:, :, None] & column_BW[:, None])[:, None, None])


def videomix(video_BCTHW: Tensor, config: Any, draw: Draws, target_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a cuboid of the partner: a rectangle of all frames, whole frames, or both (Yun et al. 2020, §3)."""
    share_B = 1 - draw.beta(config.alpha)
    if config.mode == "spatial":
        time_B, side_B = torch.ones_like(share_B), share_B.sqrt()
    elif config.mode == "temporal":
        time_B, side_B = share_B, torch.ones_like(share_B)
    else:
        time_B = side_B = share_B ** (1 / 3)
    time_BT = _interval(draw, time_B, video_BCTHW.shape[2])
    row_BH = _interval(draw, side_B, video_BCTHW.shape[3])
    column_BW = _interval(draw, side_B, video_BCTHW.shape[4])
    inside = time_BT[:, :, None, None] & row_BH[:, None, :, None] & column_BW[:, None, None]
    return _pasted(video_BCTHW, target_BK, inside[:, None])


def fademix(video_BCTHW: Tensor, config: Any, draw: Draws, target_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-fade to the partner: the weight changes along time."""
    start_B, end_B = draw.beta(config.alpha), draw.beta(config.alpha)
    ramp_T = torch.linspace(0, 1, video_BCTHW.shape[2], device=video_BCTHW.device)
    kept_BT = torch.lerp(start_B[:, None], end_B[:, None], ramp_T)
    video = torch.lerp(video_BCTHW.roll(-1, 0), video_BCTHW, kept_BT[:, None, :, None, None])
    return video, _mixed_targets(target_BK, kept_BT.mean(dim=1))
