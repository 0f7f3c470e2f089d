"""What the pixel operations share: layouts, filters, warps and noise fields.

Operations get `(video_BCTHW, config, draw)`, float32 in 0…1, and draw once per clip. Three layouts without a loop over
frames: `planes` (frames as channels: one filter or warp per clip), `tall` (frames below one another: one colour change
per clip) and `frames` (for what looks at single pictures). Work is done by kornia's functions where these neither wait
for the device nor draw from torch's generator.
"""

import math

import torch
from kornia.filters import filter2d
from torch import Tensor
from torch.nn import functional as F

from training.autovideo.augment.draws import Draws

GREY = (0.299, 0.587, 0.114)
"""Weights of luma, ITU-R BT.601."""


def planes(video_BCTHW: Tensor) -> Tensor:
    """Return (B, C·T, H, W)."""
    return video_BCTHW.flatten(1, 2)


def tall(video_BCTHW: Tensor) -> Tensor:
    """Return (B, C, T·H, W): statistics over it are those of the clip."""
    return video_BCTHW.flatten(2, 3)


def frames(video_BCTHW: Tensor) -> Tensor:
    """Return (B·T, C, H, W)."""
    return video_BCTHW.transpose(1, 2).flatten(0, 1)


def clips(frames_NCHW: Tensor, video_BCTHW: Tensor) -> Tensor:
    """Undo `frames`."""
    batch, _, count = video_BCTHW.shape[:3]
    return frames_NCHW.reshape(batch, count, *frames_NCHW.shape[1:]).transpose(1, 2)


def each(value_B: Tensor) -> Tensor:
    """Shape numbers per clip for a product with a video, (B,1,1,1,1)."""
    return value_B[:, None, None, None, None]


def per_frame(value_B: Tensor, video_BCTHW: Tensor) -> Tensor:
    """Repeat numbers of clips for the rows of `frames`, (B·T,)."""
    return value_B.repeat_interleave(video_BCTHW.shape[2], dim=0, output_size=len(value_B) * video_BCTHW.shape[2])


def luma(video_BCTHW: Tensor) -> Tensor:
    """Return the grey clip, (B,1,T,H,W)."""
    red, green, blue = video_BCTHW.split(1, dim=1)  # type: ignore[no-untyped-call]
    grey: Tensor = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    return grey


def colours(draw: Draws, per_channel: bool) -> int:
    """Return the size of the channel axis of a draw."""
    return 3 if per_channel else 1


def table(values: object, like: Tensor) -> Tensor:
    """Return a small constant on a device, without waiting for it."""
    return torch.tensor(values, dtype=torch.float32).to(like.device, non_blocking=True)


def grid(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels' y (H,1) and x (1,W)."""
    y = torch.arange(height, device=like.device, dtype=torch.float32)[:, None]
    return y, torch.arange(width, device=like.device, dtype=torch.float32)[None]


def filtered(video_BCTHW: Tensor, kernel_BKK: Tensor) -> Tensor:
    """Correlate each clip with its kernel, (B,k,k) or (1,k,k); the border repeats."""
    return filter2d(planes(video_BCTHW), kernel_BKK, border_type="replicate").view_as(video_BCTHW)


def separable(video_BCTHW: Tensor, row_BK: Tensor, column_BK: Tensor) -> Tensor:
    """Correlate along y with one kernel of each clip and along x with another."""
    narrow = filter2d(planes(video_BCTHW), row_BK[:, :, None], border_type="replicate")
    return filter2d(narrow, column_BK[:, None, :], border_type="replicate").view_as(video_BCTHW)


def gaussian(video_BCTHW: Tensor, sigma_B: Tensor, largest: float) -> Tensor:
    """Blur each clip; `largest` bounds sigma, and with it the kernel. A sigma of 0 changes nothing."""
    radius = max(1, math.ceil(3 * largest))
    offset_K = torch.arange(-radius, radius + 1, device=video_BCTHW.device, dtype=torch.float32)
    weight_BK = (-0.5 * (offset_K / sigma_B[:, None].clamp_min(1e-3)) ** 2).exp()
    weight_BK = weight_BK / weight_BK.sum(dim=1, keepdim=True)
    return separable(video_BCTHW, weight_BK, weight_BK)


def sampled(video_BCTHW: Tensor, x_BHW: Tensor, y_BHW: Tensor, fill_B: Tensor | None, mode: str = "bilinear") -> Tensor:
    """Take each clip's pixels from other places.

    Args:
        x_BHW, y_BHW: where the pixel comes from, in pixels.
        fill_B: grey value beyond the edge; None: the picture is mirrored there.
    """
    border = "reflection" if fill_B is None else "zeros"
    shift = 0 if fill_B is None else fill_B[:, None, None, None]
    height, width = video_BCTHW.shape[-2:]
    # kornia's `remap` does the same, but makes a tensor of the size on the host, for which the device is waited for.
    grid_BHW2 = torch.stack([2 * x_BHW / max(width - 1, 1) - 1, 2 * y_BHW / max(height - 1, 1) - 1], dim=-1)
    flat = planes(video_BCTHW) - shift
    moved = F.grid_sample(flat, grid_BHW2.to(flat.dtype), mode=mode, padding_mode=border, align_corners=True)
    return (moved + shift).view_as(video_BCTHW)


def plasma(draw: Draws, height: int, width: int, *, coarse: int = 2, decay: float = 0.55) -> Tensor:
    """Draw fractal noise: octaves of smooth noise, each finer and weaker.

    Args:
        coarse: cells along an axis in the first octave.
        decay: weight of an octave relative to the one before.

    Returns:
        (B,1,H,W), from 0 to 1 in each clip.
    """
    total, weight, cells = torch.zeros((), device=draw.seed_B.device), 1.0, coarse
    while True:
        shape = (min(cells + 1, height), min(cells + 1, width))
        octave = draw.uniform(0, 1, 1, *shape)
        total = total + weight * F.interpolate(octave, (height, width), mode="bicubic", align_corners=True)
        weight, cells = weight * decay, cells * 2
        if cells >= min(height, width):
            break
    low, high = total.amin((1, 2, 3), keepdim=True), total.amax((1, 2, 3), keepdim=True)
    return (total - low) / (high - low).clamp_min(1e-6)


def odd(size: int) -> int:
    """Return the next odd number."""
    return size | 1
