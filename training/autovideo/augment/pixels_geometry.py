"""Flips, warps, crops and rearranged pieces. See `pixels.py` for the layouts and the rules.

Warps are made from the map of each output pixel to its place in the input, so that no matrix has to be inverted.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.autovideo.augment.draws import Draws
from training.autovideo.augment.pixels import grid, sampled


def hflip(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Mirror left and right."""
    return video_BCTHW.flip(-1)


def vflip(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Mirror top and bottom."""
    return video_BCTHW.flip(-2)


def rot90(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Turn by quarter turns; where the picture is not square it is scaled back to its shape."""
    turns_B = draw.integers(*config.turns)
    changed = video_BCTHW
    for turns in range(config.turns[0], config.turns[1] + 1):
        turned = video_BCTHW.rot90(turns, (-2, -1))
        if turned.shape != video_BCTHW.shape:
            resized = F.interpolate(turned.flatten(1, 2), video_BCTHW.shape[-2:], mode="bilinear", antialias=True)
            turned = resized.view_as(video_BCTHW)
        changed = torch.where((turns_B == turns)[:, None, None, None, None], turned, changed)
    return changed


def _warped(
    video_BCTHW: Tensor,
    fill_B: Tensor | None,
    *,
    angle_B: Tensor | float = 0.0,
    scale_x_B: Tensor | float = 1.0,
    scale_y_B: Tensor | float = 1.0,
    shear_x_B: Tensor | float = 0.0,
    shear_y_B: Tensor | float = 0.0,
    move_x_B: Tensor | float = 0.0,
    move_y_B: Tensor | float = 0.0,
) -> Tensor:
    """Scale, shear, turn (radians, anti-clockwise) and move (shares of the side) about the centre."""
    height, width = video_BCTHW.shape[-2:]

    def shaped(value: Tensor | float) -> Tensor:
        if isinstance(value, float):
            return torch.full((1, 1, 1), value, device=video_BCTHW.device)
        return value[:, None, None]

    y, x = grid(height, width, video_BCTHW)
    x = x - (width - 1) / 2 - shaped(move_x_B) * width
    y = y - (height - 1) / 2 - shaped(move_y_B) * height
    cos, sin = shaped(angle_B).cos(), shaped(angle_B).sin()
    # The inverse of a turn that is anti-clockwise on the screen, where y points down.
    x, y = cos * x - sin * y, sin * x + cos * y
    tan_x, tan_y = shaped(shear_x_B).tan(), shaped(shear_y_B).tan()
    determinant = 1 - tan_x * tan_y
    x, y = (x - tan_x * y) / determinant, (y - tan_y * x) / determinant
    x = x / shaped(scale_x_B) + (width - 1) / 2
    y = y / shaped(scale_y_B) + (height - 1) / 2
    shape = (len(video_BCTHW), height, width)
    return sampled(video_BCTHW, x.expand(shape), y.expand(shape), fill_B)


def _fill(config: Any, draw: Draws) -> Tensor | None:
    """Return the grey beyond the edge; None where the picture is mirrored."""
    return None if config.border == "mirror" else draw.span(config.fill)


def affine(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Turn, scale, shear and move at once."""
    scale_B = draw.span(config.scale)
    return _warped(
        video_BCTHW,
        _fill(config, draw),
        angle_B=draw.span(config.rotate).deg2rad(),
        scale_x_B=scale_B,
        scale_y_B=scale_B,
        shear_x_B=draw.span(config.shear).deg2rad(),
        move_x_B=draw.span(config.translate),
        move_y_B=draw.span(config.translate),
    )


def rotate(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Turn about the centre."""
    return _warped(video_BCTHW, _fill(config, draw), angle_B=draw.span(config.degrees).deg2rad())


def zoom(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Scale both axes alike."""
    scale_B = draw.span(config.scale)
    return _warped(video_BCTHW, _fill(config, draw), scale_x_B=scale_B, scale_y_B=scale_B)


def scale_x(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Stretch along x."""
    return _warped(video_BCTHW, _fill(config, draw), scale_x_B=draw.span(config.scale))


def scale_y(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Stretch along y."""
    return _warped(video_BCTHW, _fill(config, draw), scale_y_B=draw.span(config.scale))


def shear_x(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Slant along x."""
    return _warped(video_BCTHW, _fill(config, draw), shear_x_B=draw.span(config.degrees).deg2rad())


def shear_y(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Slant along y."""
    return _warped(video_BCTHW, _fill(config, draw), shear_y_B=draw.span(config.degrees).deg2rad())


def translate_x(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Move along x."""
    return _warped(video_BCTHW, _fill(config, draw), move_x_B=draw.span(config.share))


def translate_y(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Move along y."""
    return _warped(video_BCTHW, _fill(config, draw), move_y_B=draw.span(config.share))


def perspective(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Tilt the picture: each corner comes from a place of its own near the corner."""
    height, width = video_BCTHW.shape[-2:]
    strength_B11 = draw.span(config.strength, 1, 1)
    inward_B42 = draw.uniform(0, 1, 4, 2) * strength_B11
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = [corner.unbind(1) for corner in inward_B42.unbind(1)]
    # Corners in shares of the sides, from the top left clockwise; the map of the unit square onto them in closed form
    # (Heckbert, Fundamentals of Texture Mapping and Image Warping, 1989, §2.2.3).
    x1, x2, y2, y3 = 1 - x1, 1 - x2, 1 - y2, 1 - y3
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    denominator = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / denominator, (dx1 * sy - sx * dy1) / denominator
    a, b = x1 - x0 + g * x1, x3 - x0 + h * x3
    d, e = y1 - y0 + g * y1, y3 - y0 + h * y3
    y, x = grid(height, width, video_BCTHW)
    u, v = x / max(1, width - 1), y / max(1, height - 1)

    def value(first: Tensor, second: Tensor, third: Tensor | float) -> Tensor:
        constant = third[:, None, None] if isinstance(third, Tensor) else third
        return first[:, None, None] * u + second[:, None, None] * v + constant

    depth = value(g, h, 1.0)
    x_BHW = value(a, b, x0) / depth * (width - 1)
    y_BHW = value(d, e, y0) / depth * (height - 1)
    return sampled(video_BCTHW, x_BHW, y_BHW, None)


def _displaced(video_BCTHW: Tensor, shift_B2HW: Tensor) -> Tensor:
    """Take each pixel from some pixels away, x before y."""
    y, x = grid(video_BCTHW.shape[-2], video_BCTHW.shape[-1], video_BCTHW)
    return sampled(video_BCTHW, x + shift_B2HW[:, 0], y + shift_B2HW[:, 1], None)


def elastic(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Displace by smooth noise."""
    height, width = video_BCTHW.shape[-2:]
    short = min(height, width)
    return elastic_by(video_BCTHW, draw, draw.span(config.strength) * short, config.smoothness * short)


def elastic_by(video_BCTHW: Tensor, draw: Draws, amount_B: Tensor, sigma: float) -> Tensor:
    """Displace by noise of a scale and an amount, pixels."""
    height, width = video_BCTHW.shape[-2:]
    # Noise on a grid of this spacing, interpolated, has the correlation length of a Gaussian filter without its cost.
    cells = (max(2, round(height / max(1.0, sigma)) + 1), max(2, round(width / max(1.0, sigma)) + 1))
    noise = F.interpolate(draw.uniform(-1, 1, 2, *cells), (height, width), mode="bicubic", align_corners=True)
    return _displaced(video_BCTHW, noise * amount_B[:, None, None, None])


def piecewise_affine(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Move the nodes of a coarse grid, and what is between them with them."""
    height, width = video_BCTHW.shape[-2:]
    move = draw.normal(2, config.cells + 1, config.cells + 1) * draw.span(config.strength, 1, 1, 1) * min(height, width)
    return _displaced(video_BCTHW, F.interpolate(move, (height, width), mode="bilinear", align_corners=True))


def lens_distortion(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Bend straight lines outwards (barrel, above 0) or inwards (pincushion)."""
    height, width = video_BCTHW.shape[-2:]
    y, x = grid(height, width, video_BCTHW)
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    radius = (x**2 + y**2) / max(1.0, ((width - 1) ** 2 + (height - 1) ** 2) / 4)
    factor = 1 + draw.span(config.strength, 1, 1) * (radius - 0.5)
    return sampled(video_BCTHW, x * factor + (width - 1) / 2, y * factor + (height - 1) / 2, None)


def swirl(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Turn the middle more than the edge."""
    height, width = video_BCTHW.shape[-2:]
    y, x = grid(height, width, video_BCTHW)
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    radius = (x**2 + y**2).sqrt() / (max(height, width) / 2)
    angle = draw.span(config.degrees, 1, 1).deg2rad() * (1 - radius).clamp_min(0) ** 2
    x_BHW = angle.cos() * x - angle.sin() * y + (width - 1) / 2
    return sampled(video_BCTHW, x_BHW, angle.sin() * x + angle.cos() * y + (height - 1) / 2, None)


def _box(video_BCTHW: Tensor, top: Tensor, left: Tensor, high: Tensor, wide: Tensor, fill_B: Tensor | None) -> Tensor:
    """Scale a box of each clip to the full picture; shares of the sides, (B,)."""
    height, width = video_BCTHW.shape[-2:]
    y, x = grid(height, width, video_BCTHW)
    # Pixels are squares with their centre at .5, as in `training/core/transforms.py`.
    x_BW = (left[:, None, None] + (x + 0.5) / width * wide[:, None, None]) * width - 0.5
    y_BH = (top[:, None, None] + (y + 0.5) / height * high[:, None, None]) * height - 0.5
    shape = (len(video_BCTHW), height, width)
    return sampled(video_BCTHW, x_BW.expand(shape), y_BH.expand(shape), fill_B)


def random_resized_crop(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Scale a box of drawn area and aspect ratio to the full picture."""
    area_B = draw.span(config.area)
    aspect_B = draw.uniform(math.log(config.aspect[0]), math.log(config.aspect[1])).exp()
    high_B, wide_B = (area_B / aspect_B).sqrt().clamp_max(1), (area_B * aspect_B).sqrt().clamp_max(1)
    top_B, left_B = draw.uniform() * (1 - high_B), draw.uniform() * (1 - wide_B)
    return _box(video_BCTHW, top_B, left_B, high_B, wide_B, None)


def crop_and_pad(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Cut from each side, or add to it (below 0), and scale back."""
    top, bottom, left, right = draw.span(config.share, 4).unbind(1)
    return _box(video_BCTHW, top, left, 1 - top - bottom, 1 - left - right, _fill(config, draw))


def crop_to_aspect(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Cut to an aspect ratio at a drawn place, and scale back to the shape of the clip."""
    ratio_B = draw.span(config.ratio)
    high_B, wide_B = ratio_B.reciprocal().clamp_max(1), ratio_B.clamp_max(1)
    return _box(video_BCTHW, draw.uniform() * (1 - high_B), draw.uniform() * (1 - wide_B), high_B, wide_B, None)


def pad_to_aspect(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Add bars until there is an aspect ratio, and scale back to the shape of the clip."""
    ratio_B = draw.span(config.ratio)
    high_B, wide_B = ratio_B.reciprocal().clamp_min(1), ratio_B.clamp_min(1)
    return _box(video_BCTHW, draw.uniform() * (1 - high_B), draw.uniform() * (1 - wide_B), high_B, wide_B,
                _fill(config, draw))  # fmt: skip


def jigsaw(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Exchange the cells of a grid; what does not divide stays at the lower right edge."""
    batch, channels, count, height, width = video_BCTHW.shape
    rows, columns = min(config.rows, height), min(config.columns, width)
    high, wide = height // rows, width // columns
    # Each cell moves with the drawn probability; those that move change places in a drawn order.
    cells = rows * columns
    rank_BN = torch.where(draw.bernoulli(config.share, cells), draw.uniform(0, 1, cells), torch.inf)
    order_BN = rank_BN.argsort(dim=1, stable=True)
    ahead_BN = torch.roll(order_BN, 1, dims=1)
    moving_BN = rank_BN.gather(1, order_BN).isfinite()
    # The first of the moving ones takes from the last of them, so that every cell is still there once.
    last_B1 = (moving_BN.sum(dim=1, keepdim=True) - 1).clamp_min(0)
    ahead_BN = torch.cat([order_BN.gather(1, last_B1), ahead_BN[:, 1:]], dim=1)
    source_BN = torch.zeros_like(order_BN).scatter(1, order_BN, torch.where(moving_BN, ahead_BN, order_BN))
    y = torch.arange(height, device=video_BCTHW.device)[:, None]
    x = torch.arange(width, device=video_BCTHW.device)[None]
    inside = (y < rows * high) & (x < columns * wide)
    cell = torch.where(inside, y // high * columns + x // wide, 0)
    from_BHW = source_BN[:, cell]
    taken_BHW = (from_BHW // columns * high + y % high) * width + from_BHW % columns * wide + x % wide
    taken_BHW = torch.where(inside, taken_BHW, y * width + x)
    index = taken_BHW.view(batch, 1, height * width).expand(-1, channels * count, -1)
    return video_BCTHW.reshape(batch, channels * count, height * width).gather(2, index).view_as(video_BCTHW)
