"""The corruptions of ImageNet-C and its four further ones (Hendrycks and Dietterich 2019), in five severities.

Strengths of noise, blur (but for motion), colour, pixelate and JPEG follow the published code, against which they have
not been compared. Lengths there are pixels of a picture of 224; here they grow with the short side. Fog, frost, snow,
spatter, motion blur and the elastic transform are ours, with strengths of our own that look alike: frost there is
photographs, snow and spatter are made with the help of ImageMagick and OpenCV.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from training.autovideo.augment import pixels_colour as colour
from training.autovideo.augment import pixels_filter as filters
from training.autovideo.augment import pixels_geometry as geometry
from training.autovideo.augment import pixels_noise as noise
from training.autovideo.augment import pixels_weather as weather
from training.autovideo.augment.draws import Draws
from training.autovideo.augment.pixels import filtered, gaussian

_Corrupt = Callable[[Tensor, Draws, int, float], Tensor]
"""(video, draws, severity − 1, pixels per pixel of a picture of 224) → video."""


def _all(video_BCTHW: Tensor, value: float) -> Tensor:
    return torch.full((len(video_BCTHW),), value, device=video_BCTHW.device)


def _normal(video_BCTHW: Tensor, draw: Draws) -> Tensor:
    return draw.normal(3, 1, *video_BCTHW.shape[-2:])


def _gaussian_noise(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return video + _normal(video, draw) * (0.08, 0.12, 0.18, 0.26, 0.38)[level]


def _shot_noise(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return noise.shot(video, _normal(video, draw), (60.0, 25.0, 12.0, 5.0, 3.0)[level])


def _impulse_noise(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    shape = (3, 1, *video.shape[-2:])
    hit = draw.bernoulli((0.03, 0.06, 0.09, 0.17, 0.27)[level], *shape)
    return torch.where(hit, draw.bernoulli(0.5, *shape).float(), video)


def _speckle_noise(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return video * (1 + _normal(video, draw) * (0.15, 0.2, 0.35, 0.45, 0.6)[level])


def _gaussian_blur(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    sigma = max(0.4, (1, 2, 3, 4, 6)[level] * unit)
    return gaussian(video, _all(video, sigma), sigma)


def _defocus_blur(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    radius = max(0.75, (3, 4, 6, 8, 10)[level] * unit)
    return filters.disk_blur(video, _all(video, radius), radius)


def _glass_blur(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    sigma, distance = ((0.7, 1), (0.9, 2), (1.0, 2), (1.1, 3), (1.5, 4))[level]
    return filters.shattered(video, draw, _all(video, max(0.9, distance * unit)), max(0.3, sigma * unit))


def _motion_blur(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    length = max(2.0, 2 * (6, 9, 12, 14, 18)[level] * unit)
    angle_B = draw.uniform(-45, 45).deg2rad()
    kernel = filters.line_kernel(_all(video, length), angle_B, _all(video, 0.6), int(length / 2) + 1)
    return filtered(video, kernel)


def _zoom_blur(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return filters.zoomed(video, _all(video, (1.11, 1.16, 1.21, 1.26, 1.33)[level]), 10)


def _fog(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return weather.fogged(video, draw, (0.4, 0.5, 0.6, 0.68, 0.75)[level])


def _frost(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return weather.frosted(video, draw, (0.5, 0.65, 0.8, 0.9, 1.0)[level])


def _snow(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    share, white = ((0.006, 0.2), (0.01, 0.3), (0.015, 0.35), (0.02, 0.45), (0.03, 0.55))[level]
    return weather.snowed(video, draw, share, 0.03, draw.uniform(-35, 35).deg2rad(), white)


def _spatter(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    cover, liquid = ((0.15, "water"), (0.25, "water"), (0.35, "water"), (0.25, "mud"), (0.35, "mud"))[level]
    return weather.spattered(video, draw, cover, liquid)


def _brightness(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return colour.value_shift(video, (0.1, 0.2, 0.3, 0.4, 0.5)[level])


def _contrast(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return colour.grey_contrast(video, (0.4, 0.3, 0.2, 0.1, 0.05)[level])


def _saturate(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return colour.saturate_shift(video, *((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[level])


def _elastic_transform(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    amount, sigma = ((4.0, 28.0), (5.0, 22.0), (5.5, 16.0), (5.5, 12.0), (5.5, 9.0))[level]
    return geometry.elastic_by(video, draw, _all(video, max(0.8, amount * unit)), sigma * unit)


def _pixelate(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return filters.blocks(video, _all(video, (0.6, 0.5, 0.4, 0.3, 0.25)[level]))


def _jpeg_compression(video: Tensor, draw: Draws, level: int, unit: float) -> Tensor:
    return noise.jpeg_at(video, _all(video, (25.0, 18.0, 15.0, 10.0, 7.0)[level]))


_CORRUPTIONS: dict[str, _Corrupt] = {
    "gaussian_noise": _gaussian_noise, "shot_noise": _shot_noise, "impulse_noise": _impulse_noise,
    "speckle_noise": _speckle_noise, "gaussian_blur": _gaussian_blur, "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur, "motion_blur": _motion_blur, "zoom_blur": _zoom_blur, "fog": _fog, "frost": _frost,
    "snow": _snow, "spatter": _spatter, "brightness": _brightness, "contrast": _contrast, "saturate": _saturate,
    "elastic_transform": _elastic_transform, "pixelate": _pixelate, "jpeg_compression": _jpeg_compression,
}  # fmt: skip


def imagenet_c(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Apply one corruption at a severity."""
    unit = min(video_BCTHW.shape[-2:]) / 224
    return _CORRUPTIONS[config.corruption](video_BCTHW, draw, config.severity - 1, unit)
