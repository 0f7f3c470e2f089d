"""Blurs, edges, sharpening, pooling and segments. See `pixels.py` for the layouts and the rules."""

import math
from typing import Any

import torch
from kornia import enhance
from kornia.filters import laplacian, median_blur
from torch import Tensor
from torch.nn import functional as F

from training.autovideo.augment.draws import Draws
from training.autovideo.augment.pixels import (
    clips,
    each,
    filtered,
    frames,
    gaussian,
    grid,
    luma,
    odd,
    per_frame,
    planes,
    sampled,
)

from training.autovideo.augment.pixels import separable, table  # isort: skip


def gaussian_blur(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Blur by a Gaussian of a drawn width."""
    return gaussian(video_BCTHW, draw.span(config.sigma), config.sigma[1])


def box_blur(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Average over a square of a drawn odd side."""
    radius = config.size[1] // 2
    offset_K = torch.arange(-radius, radius + 1, device=video_BCTHW.device)
    weight_BK = (offset_K.abs() <= draw.integers(config.size[0] // 2, radius, 1)).float()
    weight_BK = weight_BK / weight_BK.sum(dim=1, keepdim=True)
    return separable(video_BCTHW, weight_BK, weight_BK)


def median(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Take the median of a square."""
    return median_blur(planes(video_BCTHW), odd(config.size), "replicate").view_as(video_BCTHW)


def bilateral_blur(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Average over near pixels of a near colour, so that edges stay."""
    return bilateral(video_BCTHW, odd(config.size) // 2, draw.span(config.sigma_color), config.size / 3)


def bilateral(video_BCTHW: Tensor, radius: int, sigma_color_B: Tensor, sigma_space: float) -> Tensor:
    """Filter tap by tap: kornia's unfolds every window, 25 copies of the batch at 5 × 5."""
    height, width = video_BCTHW.shape[-2:]
    padded = F.pad(planes(video_BCTHW), (radius,) * 4, "replicate")
    padded = padded.reshape(*video_BCTHW.shape[:3], *padded.shape[2:])
    scale = -0.5 / each(sigma_color_B) ** 2
    total, weight = torch.zeros_like(video_BCTHW), torch.zeros_like(video_BCTHW[:, :1])
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            tap = padded[..., dy : dy + height, dx : dx + width]
            far = ((dy - radius) ** 2 + (dx - radius) ** 2) / (2 * sigma_space**2)
            share = ((tap - video_BCTHW).square().sum(dim=1, keepdim=True) * scale - far).exp()
            total += tap * share
            weight += share
    return total / weight


def line_kernel(length: Tensor, angle_B: Tensor, direction_B: Tensor, radius: int) -> Tensor:
    """Return kernels of straight strokes, (B,k,k), sums 1.

    Args:
        length: (B,) pixels.
        angle_B: radians, anti-clockwise.
        direction_B: −1…1, which end is heavier.
    """
    y, x = grid(2 * radius + 1, 2 * radius + 1, angle_B)
    x, y = x - radius, radius - y
    cos, sin, half = (value[:, None, None] for value in (angle_B.cos(), angle_B.sin(), length / 2))
    along, across = x * cos + y * sin, (y * cos - x * sin).abs()
    weight = (1 - across).clamp_min(0) * (half + 0.5 - along.abs()).clamp(0, 1)
    weight = weight * (1 + direction_B[:, None, None] * along / half.clamp_min(0.5)).clamp_min(0)
    return weight / weight.sum((1, 2), keepdim=True)


def motion_blur(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Blur along a straight line, as a moving camera does."""
    angle_B, direction_B = draw.span(config.angle).deg2rad(), draw.span(config.direction)
    length_B = draw.span(config.length)
    return filtered(video_BCTHW, line_kernel(length_B, angle_B, direction_B, math.ceil(config.length[1] / 2)))


def defocus_blur(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Blur by a disk, as a lens out of focus does."""
    return disk_blur(video_BCTHW, draw.span(config.radius), config.radius[1])


def disk_blur(video_BCTHW: Tensor, radius_B: Tensor, largest: float) -> Tensor:
    """Blur by a disk with a soft edge of one pixel; `largest` bounds the radius."""
    size = math.ceil(largest)
    y, x = grid(2 * size + 1, 2 * size + 1, video_BCTHW)
    kernel = (radius_B[:, None, None] + 0.5 - ((y - size) ** 2 + (x - size) ** 2).sqrt()).clamp(0, 1)
    return filtered(video_BCTHW, kernel / kernel.sum((1, 2), keepdim=True))


def zoom_blur(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Average over growing scales, as a zooming lens does."""
    return zoomed(video_BCTHW, draw.span(config.zoom), config.steps)


def zoomed(video_BCTHW: Tensor, zoom_B: Tensor, steps: int) -> Tensor:
    """Average the clip and `steps` enlarged ones, up to a scale."""
    height, width = video_BCTHW.shape[-2:]
    y, x = grid(height, width, video_BCTHW)
    x, y, shape = x - (width - 1) / 2, y - (height - 1) / 2, (len(video_BCTHW), height, width)
    total = video_BCTHW
    for step in range(1, steps + 1):
        scale = 1 + (zoom_B[:, None, None] - 1) * step / steps
        x_BHW, y_BHW = x / scale + (width - 1) / 2, y / scale + (height - 1) / 2
        total = total + sampled(video_BCTHW, x_BHW.expand(shape), y_BHW.expand(shape), None)
    return total / (steps + 1)


def glass_blur(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Exchange pixels with near ones, as rough glass does."""
    return shattered(video_BCTHW, draw, draw.span(config.distance), config.sigma)


def shattered(video_BCTHW: Tensor, draw: Draws, distance_B: Tensor, sigma: float) -> Tensor:
    """Blur, take each pixel from a drawn distance, blur."""
    height, width = video_BCTHW.shape[-2:]
    sigma_B = torch.full_like(distance_B, sigma)
    y, x = grid(height, width, video_BCTHW)
    move = draw.uniform(-1, 1, 2, height, width) * distance_B[:, None, None, None]
    x_BHW, y_BHW = (x + move[:, 0]).round(), (y + move[:, 1]).round()
    taken = sampled(gaussian(video_BCTHW, sigma_B, sigma), x_BHW, y_BHW, None, mode="nearest")
    return gaussian(taken, sigma_B, sigma)


def sharpness(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Mix with a smoothed clip: below 1 softer, above 1 sharper, as Pillow does."""
    batch, channels, count = video_BCTHW.shape[:3]
    changed = enhance.sharpness(frames(video_BCTHW), per_frame(draw.span(config.factor), video_BCTHW))
    return clips(changed.view(batch * count, channels, *video_BCTHW.shape[3:]), video_BCTHW)


def unsharp_mask(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Add the difference from a blurred clip."""
    soft = gaussian(video_BCTHW, draw.span(config.sigma), config.sigma[1])
    return video_BCTHW + (video_BCTHW - soft) * each(draw.span(config.amount))


def emboss(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Light the picture as a relief, from the upper left."""
    strength = draw.span(config.strength, 1, 1)
    relief = table([[-1, -1, 0], [-1, 0, 1], [0, 1, 1]], video_BCTHW)
    kernel = relief * strength + table([[0, 0, 0], [0, 1, 0], [0, 0, 0]], video_BCTHW)
    return torch.lerp(video_BCTHW, filtered(video_BCTHW, kernel), each(draw.span(config.alpha)))


def edge_detect(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Mix with the edges of all directions."""
    edges = laplacian(planes(video_BCTHW), 3, "replicate", normalized=False).view_as(video_BCTHW)
    return torch.lerp(video_BCTHW, (-edges).clamp(0, 1), each(draw.span(config.alpha)))


def gradients(grey_N1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return Sobel's derivatives along x and y, a full step giving 1; without a constant kernel on the device."""
    padded = F.pad(grey_N1HW, (1, 1, 1, 1), "replicate")
    smooth_y = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
    smooth_x = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    return smooth_y[..., 2:] - smooth_y[..., :-2], smooth_x[..., 2:, :] - smooth_x[..., :-2, :]


def directed_edge_detect(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Mix with the edges that rise in one direction."""
    dx, dy = gradients(planes(video_BCTHW))
    angle = draw.span(config.angle, 1, 1, 1).deg2rad()
    edges = (2 * (dx * angle.cos() - dy * angle.sin())).clamp(0, 1).view_as(video_BCTHW)
    return torch.lerp(video_BCTHW, edges, each(draw.span(config.alpha)))


def canny(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Mix with thin edges, white on black (Canny 1986)."""
    grey = frames(luma(video_BCTHW))
    sigma_N = torch.ones(len(grey), device=grey.device)
    dx, dy = gradients(gaussian(grey[:, :, None], sigma_N, 1.0)[:, :, 0])
    size = (dx**2 + dy**2).sqrt()
    # Thin: a pixel stays if no neighbour across the edge is stronger; the direction is one of four.
    padded = F.pad(size, (1, 1, 1, 1))
    octant = (torch.atan2(dy, dx) * 4 / math.pi).round().long() % 4
    height, width = size.shape[-2:]
    keep = torch.zeros_like(size, dtype=torch.bool)
    for number, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]
        behind = padded[..., 1 - y : 1 - y + height, 1 - x : 1 - x + width]
        keep = keep | ((octant == number) & (size >= ahead) & (size > behind))
    high = per_frame(draw.span(config.threshold), video_BCTHW)[:, None, None, None]
    weak, strong = keep & (size > high / 2), (keep & (size > high)).float()
    for _ in range(config.reach):  # weak edges that touch a strong one, by a fixed number of steps
        strong = F.max_pool2d(strong, 3, 1, 1) * weak
    edges = clips(strong.expand(-1, 3, -1, -1), video_BCTHW)
    return torch.lerp(video_BCTHW, edges, each(draw.span(config.alpha)))


_KERNELS = {
    "smooth": ([[1, 1, 1], [1, 5, 1], [1, 1, 1]], 13.0, 0.0),
    "detail": ([[0, -1, 0], [-1, 10, -1], [0, -1, 0]], 6.0, 0.0),
    "edge_enhance": ([[-1, -1, -1], [-1, 10, -1], [-1, -1, -1]], 2.0, 0.0),
    "contour": ([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], 1.0, 1.0),
    "find_edges": ([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], 1.0, 0.0),
    "sharpen": ([[-2, -2, -2], [-2, 32, -2], [-2, -2, -2]], 16.0, 0.0),
}
"""Kernel, divisor and offset of Pillow's ready-made filters."""


def convolve(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Mix with the result of a fixed 3 × 3 filter."""
    weights, divisor, offset = _KERNELS[config.filter]
    changed = filtered(video_BCTHW, table(weights, video_BCTHW)[None] / divisor) + offset
    return torch.lerp(video_BCTHW, changed.clamp(0, 1), each(draw.span(config.alpha)))


def _pooled(video_BCTHW: Tensor, size: int, mode: str) -> Tensor:
    """Replace each cell by its average, largest, least or middle value; the border repeats to fill the last cells."""
    batch, channels, count, height, width = video_BCTHW.shape
    padded = F.pad(planes(video_BCTHW), (0, -width % size, 0, -height % size), "replicate")
    if mode == "average":
        small = F.avg_pool2d(padded, size)
    elif mode == "max":
        small = F.max_pool2d(padded, size)
    elif mode == "min":
        small = -F.max_pool2d(-padded, size)
    else:
        small = padded.unfold(2, size, size).unfold(3, size, size).flatten(-2).median(dim=-1).values
    large = small.repeat_interleave(size, 2).repeat_interleave(size, 3)[..., :height, :width]
    return large.reshape(batch, channels, count, height, width)


def _one_pool(video_BCTHW: Tensor, config: Any, draw: Draws, mode: str) -> Tensor:
    size_B = draw.integers(*config.size)
    changed = video_BCTHW
    for size in range(max(2, config.size[0]), config.size[1] + 1):
        changed = torch.where(each(size_B == size), _pooled(video_BCTHW, size, mode), changed)
    return changed


def average_pooling(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Replace cells by their average."""
    return _one_pool(video_BCTHW, config, draw, "average")


def max_pooling(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Replace cells by their largest value."""
    return _one_pool(video_BCTHW, config, draw, "max")


def min_pooling(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Replace cells by their least value."""
    return _one_pool(video_BCTHW, config, draw, "min")


def median_pooling(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Replace cells by their middle value."""
    return _one_pool(video_BCTHW, config, draw, "median")


def dilate(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Grow what is bright: the largest value of a square.

    Not by kornia, whose function holds a copy of the batch for each pixel of the square.
    """
    return F.max_pool2d(planes(video_BCTHW), odd(config.size), 1, config.size // 2).view_as(video_BCTHW)


def erode(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Grow what is dark: the least value of a square."""
    return -dilate(-video_BCTHW, config, draw)


def pixelate(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Average over blocks of a drawn size."""
    return blocks(video_BCTHW, draw.span(config.blocks))


def blocks(video_BCTHW: Tensor, share_B: Tensor) -> Tensor:
    """Average over blocks; `share_B` is the number of blocks along an axis, as a share of its pixels."""
    height, width = video_BCTHW.shape[-2:]

    def averages(extent: int) -> Tensor:
        place_N = torch.arange(extent, device=video_BCTHW.device, dtype=torch.float32) + 0.5
        block_BN = (place_N * share_B[:, None]).floor()
        same_BNN = (block_BN[:, :, None] == block_BN[:, None]).float()
        return same_BNN / same_BNN.sum(dim=2, keepdim=True)

    return (averages(height)[:, None] @ planes(video_BCTHW) @ averages(width)[:, None].mT).view_as(video_BCTHW)


def cartoon(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Smooth surfaces of few strong colours with dark outlines."""
    smooth = video_BCTHW
    for _ in range(2):
        smooth = bilateral(smooth, 2, torch.full_like(draw.seed_B, 0.15, dtype=torch.float32), 2.0)
    grey = luma(smooth)
    strong = grey + (smooth - grey) * each(draw.span(config.saturation))
    steps = each(draw.integers(*config.levels).float() - 1)
    flat = (strong.clamp(0, 1) * steps).round() / steps
    dx, dy = gradients(planes(grey))
    outline = ((dx**2 + dy**2).sqrt() * 4 - 0.4).clamp(0, 1).view_as(grey)
    return flat * (1 - outline * each(draw.span(config.edges)))
