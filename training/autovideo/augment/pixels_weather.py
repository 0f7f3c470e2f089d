"""Weather and light. See `pixels.py` for the layouts and the rules.

Fog, drops and flakes stand still in the clip, unless `per_frame` is set.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.autovideo.augment.draws import Draws
from training.autovideo.augment.pixels import each, filtered, gaussian, grid, luma, plasma, table
from training.autovideo.augment.pixels_filter import gradients, line_kernel

SNOW_BLUE = (0.94, 0.97, 1.0)
"""Colour of snow and frost."""


def _noise(video_BCTHW: Tensor, draw: Draws, coarse: int = 2, decay: float = 0.55) -> Tensor:
    return plasma(draw, *video_BCTHW.shape[-2:], coarse=coarse, decay=decay)[:, :, None]


def fog(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Mix with light grey that is thicker in places."""
    return fogged(video_BCTHW, draw, each(draw.span(config.density)))


def fogged(video_BCTHW: Tensor, draw: Draws, density: Tensor | float) -> Tensor:
    """Mix with fog of a mean density, 0…1."""
    thickness = (density * (0.6 + 0.8 * _noise(video_BCTHW, draw))).clamp(0, 1)
    return video_BCTHW * (1 - thickness) + 0.88 * thickness


def clouds(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Lay white clouds with clear gaps over the clip."""
    cover = each(draw.span(config.cover))
    opacity = ((_noise(video_BCTHW, draw, coarse=3) - (1 - cover)) / 0.25).clamp(0, 1) * config.opacity
    white = torch.full_like(video_BCTHW, 0.95)
    return torch.lerp(video_BCTHW, white, opacity)


def rain(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Draw slanted light streaks, and darken the scene a little."""
    height, width = video_BCTHW.shape[-2:]
    length = config.length * min(height, width)
    drops = (draw.uniform(0, 1, 1, 1, height, width) < each(draw.span(config.drops))).float()
    angle_B = draw.span(config.slant).deg2rad() + math.pi / 2
    radius = max(1, math.ceil(length / 2))
    streaks = _stroked(drops, angle_B, length, radius).clamp(0, 1)
    return video_BCTHW * 0.9 * (1 - 0.7 * streaks) + 0.7 * 0.85 * streaks


def _stroked(drops_B11HW: Tensor, angle_B: Tensor, length: float, radius: int) -> Tensor:
    """Turn dots into strokes whose middle has the dot's value."""
    kernel = line_kernel(torch.full_like(angle_B, length), angle_B, torch.zeros_like(angle_B), radius)
    return filtered(drops_B11HW, kernel / kernel.amax((1, 2), keepdim=True))


def snow(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Draw flakes of several sizes, and whiten the scene a little."""
    return snowed(
        video_BCTHW, draw, each(draw.span(config.flakes)), config.size, draw.span(config.slant).deg2rad(), config.white
    )


def snowed(
    video_BCTHW: Tensor, draw: Draws, share: Tensor | float, size: float, slant_B: Tensor, white: float
) -> Tensor:
    """Draw flakes.

    Args:
        share: of the pixels at which a small flake lies.
        size: of the largest flakes, a share of the short side.
        white: how far the scene is whitened, 0…1.
    """
    height, width = video_BCTHW.shape[-2:]
    short = min(height, width)
    pale = torch.maximum(video_BCTHW, (luma(video_BCTHW) * 1.5 + 0.3).clamp(0, 1))
    scene = torch.lerp(video_BCTHW, pale, white)
    layer = torch.zeros_like(video_BCTHW[:, :1, :1])
    for step, weight in ((0.35, 0.8), (0.7, 0.9), (1.0, 1.0)):
        sigma = max(0.35, size * step * short / 3)
        # A flake takes the room of a few pixels: larger ones are fewer.
        dots = (draw.uniform(0, 1, 1, 1, height, width) < share / (1 + 2 * sigma**2)).float()
        flakes = gaussian(dots, torch.full_like(slant_B, sigma), sigma) * (2 * math.pi * sigma**2 + 1)
        length = 1 + size * step * short
        fallen = _stroked(flakes.clamp(0, 1), slant_B + math.pi / 2, length, max(1, math.ceil(length / 2)))
        layer = torch.maximum(layer, (fallen * weight).clamp(0, 1))
    return scene * (1 - layer) + table(SNOW_BLUE, scene)[:, None, None, None] * layer


def snowy_landscape(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Whiten what is lighter than a threshold."""
    light = ((luma(video_BCTHW) - each(draw.span(config.threshold))) / 0.1).clamp(0, 1)
    white = (luma(video_BCTHW) * 0.3 + 0.75) * table(SNOW_BLUE, video_BCTHW)[:, None, None, None]
    return torch.lerp(video_BCTHW, white.clamp(0, 1), light * config.whiteness)


def frost(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Grow ice crystals from the edge of the picture inwards."""
    return frosted(video_BCTHW, draw, each(draw.span(config.strength)))


def frosted(video_BCTHW: Tensor, draw: Draws, strength: Tensor | float) -> Tensor:
    """Mix with ice; `strength` 0…1 is how much of it there is."""
    height, width = video_BCTHW.shape[-2:]
    # Ridges of noise look like crystals: they are sharp where the noise crosses its middle.
    ridge = 1 - (2 * _noise(video_BCTHW, draw, coarse=4, decay=0.75) - 1).abs()
    needles = ((ridge - 0.72) / 0.25).clamp(0, 1)
    y = torch.linspace(-1, 1, height, device=video_BCTHW.device)[:, None].abs()
    x = torch.linspace(-1, 1, width, device=video_BCTHW.device).abs()
    edge = (torch.maximum(y, x) * 1.6 - 0.8 + _noise(video_BCTHW, draw) * 0.6).clamp(0, 1)
    ice = ((0.35 + 0.65 * needles) * (edge * 0.75 + 0.25) * strength * 1.3).clamp(0, 0.95)
    tint = table((0.82, 0.9, 0.97), video_BCTHW)[:, None, None, None]
    return video_BCTHW * (1 - ice) + (0.55 + 0.45 * needles) * tint * ice


def spatter(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Put drops of water, or mud, on the lens."""
    return spattered(video_BCTHW, draw, each(draw.span(config.cover)), config.liquid)


def spattered(video_BCTHW: Tensor, draw: Draws, cover: Tensor | float, liquid: str) -> Tensor:
    """Cover a share of the picture with drops."""
    height, width = video_BCTHW.shape[-2:]
    cells = max(4, min(height, width) // 6)
    blobs = F.interpolate(draw.uniform(0, 1, 1, cells, cells), (height, width), mode="bicubic")[:, :, None]
    inside = ((blobs - (1 - cover)) / 0.12).clamp(0, 1)
    if liquid == "mud":
        return torch.lerp(video_BCTHW, table((0.25, 0.17, 0.09), video_BCTHW)[:, None, None, None], inside * 0.95)
    # Drops are pale, with a lit upper and a dark lower rim.
    _, dy = gradients(inside[:, :, 0])
    wet = torch.lerp(video_BCTHW, table((0.69, 0.93, 0.93), video_BCTHW)[:, None, None, None], inside * 0.5)
    return wet + dy[:, :, None] * 0.3


def sun_flare(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Put a glare and a row of ghosts over the picture."""
    height, width = video_BCTHW.shape[-2:]
    y, x = grid(height, width, video_BCTHW)
    y, x = y / height - 0.5, (x / width - 0.5) * (width / height)
    side = 0.5 * width / height
    sun_y, sun_x = draw.uniform(-0.45, 0.0, 1, 1), draw.uniform(-side, side, 1, 1)
    strength = draw.span(config.strength, 1, 1)
    glare = (-((y - sun_y) ** 2 + (x - sun_x) ** 2) / (2 * config.size**2)).exp()
    for place, size in ((0.4, 0.03), (-0.3, 0.06), (-0.8, 0.1)):  # on the line through the centre
        far = ((y - sun_y * place) ** 2 + (x - sun_x * place) ** 2).sqrt()
        glare = glare + 0.25 * ((size - far) / 0.01 + 0.5).clamp(0, 1)
    light = (glare * strength)[:, None, None] * table((1.0, 0.95, 0.8), video_BCTHW)[:, None, None, None]
    return torch.lerp(video_BCTHW, torch.ones_like(video_BCTHW), light.clamp(0, 1))


def shadow(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Darken one side of a line."""
    height, width = video_BCTHW.shape[-2:]
    y, x = grid(height, width, video_BCTHW)
    angle, shift = draw.uniform(0, 2 * math.pi, 1, 1), draw.uniform(-0.5, 0.5, 1, 1)
    side = (y / height - 0.5) * angle.sin() + (x / width - 0.5) * angle.cos() - shift * 0.6
    return video_BCTHW * (1 - (side * 40 + 0.5).clamp(0, 1) * draw.span(config.darkness, 1, 1))[:, None, None]


def plasma_light(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Make the light uneven: add smooth noise around 0."""
    return video_BCTHW + (_noise(video_BCTHW, draw) - 0.5) * 2 * each(draw.span(config.strength))
