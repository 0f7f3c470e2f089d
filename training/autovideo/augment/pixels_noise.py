"""Noise, lost pixels, compression. See `pixels.py` for the layouts and the rules.

Noise is a pattern that stands still in the clip, unless `per_frame` is set.
"""

import math
from typing import Any

import torch
from kornia import color
from torch import Tensor
from torch.nn import functional as F

from training.autovideo.augment.draws import Draws
from training.autovideo.augment.pixels import clips, colours, each, frames, per_frame, table


def _shape(video_BCTHW: Tensor, config: Any, draw: Draws) -> tuple[int, ...]:
    return (colours(draw, config.per_channel), 1, *video_BCTHW.shape[-2:])


def gaussian_noise(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Add normal noise."""
    return video_BCTHW + draw.normal(*_shape(video_BCTHW, config, draw)) * each(draw.span(config.scale))


def laplace_noise(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Add Laplace noise."""
    return video_BCTHW + draw.laplace(*_shape(video_BCTHW, config, draw)) * each(draw.span(config.scale))


def uniform_noise(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Add a number of its own to each pixel."""
    return video_BCTHW + draw.uniform(-1, 1, *_shape(video_BCTHW, config, draw)) * each(draw.span(config.scale))


def multiply_noise(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Multiply each pixel by a number of its own."""
    return video_BCTHW * (1 + draw.uniform(-1, 1, *_shape(video_BCTHW, config, draw)) * each(draw.span(config.scale)))


def speckle_noise(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Add normal noise in proportion to the value."""
    return video_BCTHW * (1 + draw.normal(*_shape(video_BCTHW, config, draw)) * each(draw.span(config.scale)))


def shot_noise(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Count photons: noise that grows with the root of the value."""
    return shot(video_BCTHW, draw.normal(*_shape(video_BCTHW, config, draw)), each(draw.span(config.photons)))


def shot(video_BCTHW: Tensor, normal: Tensor, photons: Tensor | float) -> Tensor:
    """Return Poisson counts at a mean of `photons` for white, over it, from standard normal numbers.

    Anscombe's transform makes the counts normal (Anscombe 1948); its inverse has one root, where a sampler would loop.
    """
    root = (video_BCTHW.clamp(0, 1) * photons + 0.375).sqrt() + normal / 2
    return ((root.clamp_min(0) ** 2 - 0.375).round().clamp_min(0)) / photons


def _replaced(video_BCTHW: Tensor, mask: Tensor, value: Tensor | float) -> Tensor:
    fresh = value if isinstance(value, Tensor) else torch.full((), value, device=video_BCTHW.device)
    return torch.where(mask, fresh, video_BCTHW)


def _dots(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Return which pixels are hit, bool."""
    return draw.uniform(0, 1, *_shape(video_BCTHW, config, draw)) < each(draw.span(config.share))


def _patches(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Return which cells of a coarse grid are hit, for each pixel, bool; at least one per clip and channel."""
    height, width = video_BCTHW.shape[-2:]
    channels = colours(draw, config.per_channel)
    rows, columns = min(config.cells, height), min(config.cells, width)
    value_BCN = draw.uniform(0, 1, channels, rows * columns)
    hit = (value_BCN < draw.span(config.share, 1, 1)) | (value_BCN == value_BCN.amin(dim=2, keepdim=True))
    row_H = torch.arange(height, device=video_BCTHW.device)[:, None] * rows // height
    column_W = torch.arange(width, device=video_BCTHW.device)[None] * columns // width
    return hit[:, :, row_H * columns + column_W][:, :, None]


def dropout(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Make pixels black."""
    return _replaced(video_BCTHW, _dots(video_BCTHW, config, draw), 0.0)


def coarse_dropout(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Make cells of a grid black."""
    return _replaced(video_BCTHW, _patches(video_BCTHW, config, draw), 0.0)


def salt(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Make pixels light."""
    bright = draw.uniform(0.5, 1, *_shape(video_BCTHW, config, draw))
    return _replaced(video_BCTHW, _dots(video_BCTHW, config, draw), bright)


def pepper(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Make pixels dark."""
    return _replaced(
        video_BCTHW, _dots(video_BCTHW, config, draw), draw.uniform(0, 0.5, *_shape(video_BCTHW, config, draw))
    )


def salt_and_pepper(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Make pixels black or white."""
    value = draw.bernoulli(0.5, *_shape(video_BCTHW, config, draw)).float()
    return _replaced(video_BCTHW, _dots(video_BCTHW, config, draw), value)


def coarse_salt_and_pepper(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Fill cells of a grid with black and white dots."""
    value = draw.bernoulli(0.5, *_shape(video_BCTHW, config, draw)).float()
    return _replaced(video_BCTHW, _patches(video_BCTHW, config, draw), value)


def replace_noise(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Replace pixels by random ones."""
    value = draw.uniform(0, 1, *_shape(video_BCTHW, config, draw))
    return _replaced(video_BCTHW, _dots(video_BCTHW, config, draw), value)


def channel_dropout(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Make one or two channels black."""
    rank_B3 = draw.permutation(3)
    return _replaced(video_BCTHW, (rank_B3 < draw.integers(*config.channels, 1))[:, :, None, None, None], 0.0)


def cutout(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Fill rectangles."""
    batch, _, _, height, width = video_BCTHW.shape
    y = torch.arange(height, device=video_BCTHW.device)[:, None]
    x = torch.arange(width, device=video_BCTHW.device)[None]
    for _ in range(config.holes):
        # At least one pixel; the rectangle lies wholly inside.
        high, wide = ((draw.span(config.size, 1, 1) * side).round().clamp_min(1) for side in (height, width))
        top, left = (
            (draw.uniform(0, 1, 1, 1) * (height - high)).round(),
            (draw.uniform(0, 1, 1, 1) * (width - wide)).round(),
        )
        hole_BHW = (y >= top) & (y < top + high) & (x >= left) & (x < left + wide)
        if config.fill == "noise":
            value = draw.uniform(0, 1, 3, 1, height, width)
        elif config.fill == "mean":
            value = video_BCTHW.mean((2, 3, 4), keepdim=True)
        else:
            value = torch.full((batch, 1, 1, 1, 1), config.grey, device=video_BCTHW.device)
        video_BCTHW = torch.where(hole_BHW[:, None, None], value, video_BCTHW)
    return video_BCTHW


def grid_mask(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Make the squares of a lattice black (GridMask, Chen et al. 2020)."""
    height, width = video_BCTHW.shape[-2:]
    period = (draw.span(config.period, 1, 1) * min(height, width)).clamp_min(2)
    y = torch.arange(height, device=video_BCTHW.device)[:, None] + draw.uniform(0, 1, 1, 1) * period
    x = torch.arange(width, device=video_BCTHW.device)[None] + draw.uniform(0, 1, 1, 1) * period
    hole_BHW = (y % period < period * config.ratio) & (x % period < period * config.ratio)
    return _replaced(video_BCTHW, hole_BHW[:, None, None], 0.0)


_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA = (
    (17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99),
)  # fmt: skip
"""Quantisation tables of ITU-T T.81, annex K; the chroma table is 99 beyond its first quarter."""


def jpeg(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Compress each frame as JPEG does."""
    return jpeg_at(video_BCTHW, draw.span(config.quality))


def jpeg_at(video_BCTHW: Tensor, quality_B: Tensor) -> Tensor:
    """Quantise the frequencies of 8 × 8 blocks, chroma at half resolution.

    Written here since kornia's codec reads the quality on the host.
    """
    height, width = video_BCTHW.shape[-2:]
    padded = F.pad(frames(video_BCTHW), (0, -width % 16, 0, -height % 16), "replicate")
    luma, chroma = (color.rgb_to_ycbcr(padded) * 255 - 128).split([1, 2], dim=1)  # type: ignore[no-untyped-call]
    # The scale of the tables as libjpeg has it.
    scale_B = torch.where(quality_B < 50, 5000 / quality_B.clamp_min(1), 200 - 2 * quality_B)
    scale = per_frame(scale_B, video_BCTHW)[:, None, None, None, None, None]
    table_luma = ((table(_LUMA, padded) * scale + 50) / 100).floor().clamp(1, 255)
    wide = F.pad(table(_CHROMA, padded), (0, 4, 0, 4), value=99.0)
    table_chroma = ((wide * scale + 50) / 100).floor().clamp(1, 255)
    small = _quantised(F.avg_pool2d(chroma, 2), table_chroma)
    full = torch.cat([_quantised(luma, table_luma), F.interpolate(small, scale_factor=2.0, mode="bilinear")], dim=1)
    return clips(color.ycbcr_to_rgb((full + 128) / 255)[..., :height, :width], video_BCTHW)


def _quantised(plane_NCHW: Tensor, table_N11188: Tensor) -> Tensor:
    number = torch.arange(8, device=plane_NCHW.device, dtype=torch.float32)
    basis = ((2 * number + 1) * number[:, None] * (math.pi / 16)).cos() / 2
    basis = basis * torch.where(number == 0, 0.5**0.5, 1.0)[:, None]
    count, channels, height, width = plane_NCHW.shape
    block = plane_NCHW.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    frequency = basis @ block @ basis.T
    frequency = (frequency / table_N11188).round() * table_N11188
    plane: Tensor = (basis.T @ frequency @ basis).transpose(3, 4).reshape(plane_NCHW.shape)
    return plane


def iso_noise(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Noise of a camera at high sensitivity: shot noise, and coarse patches of wrong colour."""
    height, width = video_BCTHW.shape[-2:]
    strength = each(draw.span(config.strength))
    # Photons for white; fewer at higher sensitivity.
    grainy = shot(video_BCTHW, draw.normal(1, 1, height, width), 60 / strength.clamp_min(1e-3))
    coarse = F.interpolate(draw.normal(3, -(-height // 3), -(-width // 3)), (height, width), mode="bilinear")
    return grainy + coarse[:, :, None] * strength * 0.04
