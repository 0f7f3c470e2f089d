"""Colour, contrast and quantisation. See `pixels.py` for the layouts and the rules."""

import math
from typing import Any

import torch
from kornia import color, enhance
from kornia.color.sepia import sepia_from_rgb
from torch import Tensor

from training.autovideo.augment.draws import Draws
from training.autovideo.augment.pixels import clips, colours, each, frames, table, tall

LEVELS = 256
"""Bins of histograms."""


def brightness(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Add one number to all channels."""
    return enhance.adjust_brightness(tall(video_BCTHW), draw.span(config.add)).view_as(video_BCTHW)


def add(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Add a number to each channel."""
    red_B, green_B, blue_B = draw.span(config.add, 3).unbind(1)
    return enhance.shift_rgb(tall(video_BCTHW), red_B, green_B, blue_B).view_as(video_BCTHW)


def multiply(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Multiply all channels, or each, by a number."""
    return video_BCTHW * draw.span(config.factor, colours(draw, config.per_channel), 1, 1, 1)


def contrast(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Scale the distance from the clip's mean grey."""
    changed = enhance.adjust_contrast_with_mean_subtraction(tall(video_BCTHW), draw.span(config.factor))
    return changed.view_as(video_BCTHW)


def linear_contrast(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Scale the distance from mid-grey."""
    return 0.5 + (video_BCTHW - 0.5) * draw.span(config.factor, colours(draw, config.per_channel), 1, 1, 1)


def gamma(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Raise to a power; kornia's looks at the exponents on the host."""
    return video_BCTHW.clamp_min(0) ** each(draw.span(config.gamma))


def log_contrast(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Gain times log2(1 + v)."""
    gain: Any = each(draw.span(config.gain))  # kornia declares a float, and broadcasts
    return enhance.adjust_log(video_BCTHW, gain)


def sigmoid_contrast(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Map through a sigmoid around a cut-off."""
    cutoff: Any = each(draw.span(config.cutoff))
    gain: Any = each(draw.span(config.gain))
    return enhance.adjust_sigmoid(video_BCTHW, cutoff, gain)


def saturation(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Scale the distance from grey."""
    changed = enhance.adjust_saturation_with_gray_subtraction(tall(video_BCTHW), draw.span(config.factor))
    return changed.view_as(video_BCTHW)


def hue(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Turn the hue."""
    return enhance.adjust_hue(tall(video_BCTHW), draw.span(config.turn) * (2 * math.pi)).view_as(video_BCTHW)


def hsv(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Turn hue, scale saturation and value."""
    hue_N, saturation_N, value_N = color.rgb_to_hsv(tall(video_BCTHW)).unbind(1)
    hue_N = (hue_N + draw.span(config.hue, 1, 1) * (2 * math.pi)) % (2 * math.pi)
    saturation_N = (saturation_N * draw.span(config.saturation, 1, 1)).clamp(0, 1)
    value_N = (value_N * draw.span(config.value, 1, 1)).clamp(0, 1)
    return color.hsv_to_rgb(torch.stack([hue_N, saturation_N, value_N], dim=1)).view_as(video_BCTHW)


def color_jitter(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Brightness, contrast, saturation and hue in turn; each factor is within 1 ± its setting."""
    flat = enhance.adjust_brightness_accumulative(
        tall(video_BCTHW), draw.uniform(1 - config.brightness, 1 + config.brightness)
    )
    flat = enhance.adjust_contrast_with_mean_subtraction(flat, draw.uniform(1 - config.contrast, 1 + config.contrast))
    flat = enhance.adjust_saturation_with_gray_subtraction(
        flat, draw.uniform(1 - config.saturation, 1 + config.saturation)
    )
    return enhance.adjust_hue(flat, draw.uniform(-config.hue, config.hue) * (2 * math.pi)).view_as(video_BCTHW)


def grayscale(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Mix with the grey clip."""
    grey = color.rgb_to_grayscale(tall(video_BCTHW)).view(len(video_BCTHW), 1, *video_BCTHW.shape[2:])
    return torch.lerp(video_BCTHW, grey.expand_as(video_BCTHW), each(draw.span(config.alpha)))


def sepia(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Mix with brown tones."""
    brown = sepia_from_rgb(tall(video_BCTHW), rescale=False).view_as(video_BCTHW)
    return torch.lerp(video_BCTHW, brown, each(draw.span(config.alpha)))


def color_temperature(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Light the clip by a black body, relative to daylight of 6500 K; luma is kept."""
    kelvin_B1 = draw.span(config.kelvin, 1)
    # Planck's law at a wavelength of each primary, nanometres; 1.4388e7 nm·K is the second radiation constant.
    exponent_3 = 1.4388e7 / table([600.0, 545.0, 450.0], video_BCTHW)
    gain_B3 = (exponent_3 / 6500).expm1() / (exponent_3 / kelvin_B1).expm1()
    gain_B3 = gain_B3 / (gain_B3 * table([0.299, 0.587, 0.114], video_BCTHW)).sum(dim=1, keepdim=True)
    return video_BCTHW * gain_B3[:, :, None, None, None]


def invert(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Negate the clip, or some channels of it."""
    if not config.per_channel:
        return enhance.invert(video_BCTHW, torch.ones((), device=video_BCTHW.device))
    on = draw.bernoulli(0.5, 3, 1, 1, 1)
    # At least one channel.
    first = torch.arange(3, device=video_BCTHW.device)[:, None, None, None] == draw.choice(3, 1, 1, 1, 1)
    return torch.where(on | first, 1 - video_BCTHW, video_BCTHW)


def solarize(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Negate what is at or above a threshold."""
    return enhance.solarize(video_BCTHW, draw.span(config.threshold))


def posterize(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Keep the highest bits of each byte."""
    step = each(2.0 ** (8 - draw.integers(*config.bits)).float())
    return ((video_BCTHW * 255).floor() / step).floor() * step / 255


def color_quantization(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Round each channel to levels of equal distance."""
    steps = each(draw.integers(*config.levels).float() - 1)
    return (video_BCTHW * steps).round() / steps


def kmeans_quantization(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Replace each colour by the nearest of k means of the clip's own colours."""
    pixel_BN3 = video_BCTHW.flatten(2).transpose(1, 2)
    total = pixel_BN3.shape[1]
    # The means are found on a sample of the clip, drawn once.
    place_BS = draw.integers(0, min(total, 1 << 20) - 1, min(1024, total)) * max(1, total // (1 << 20))
    sample_BS3 = pixel_BN3.gather(1, place_BS[:, :, None].expand(-1, -1, 3))
    mean_BK3 = sample_BS3[:, : config.colors]
    for _ in range(config.iterations):
        member_BSK = torch.nn.functional.one_hot(_nearest(sample_BS3, mean_BK3), mean_BK3.shape[1]).float()
        count_BK1 = member_BSK.sum(dim=1)[:, :, None]
        mean_BK3 = torch.where(count_BK1 > 0, member_BSK.mT @ sample_BS3 / count_BK1.clamp_min(1), mean_BK3)
    chosen_BN = _nearest(pixel_BN3, mean_BK3)
    return mean_BK3.gather(1, chosen_BN[:, :, None].expand(-1, -1, 3)).transpose(1, 2).reshape(video_BCTHW.shape)


def _nearest(pixel_BN3: Tensor, mean_BK3: Tensor) -> Tensor:
    # |p − m|² without the term of p, which is the same for every m.
    return (mean_BK3.square().sum(dim=2)[:, None] - 2 * pixel_BN3 @ mean_BK3.mT).argmin(dim=2)


def equalize(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Flatten the histogram of each channel over the clip."""
    flat_BCN = video_BCTHW.flatten(2)
    level_BCN = (flat_BCN * (LEVELS - 1)).round().long()
    ones = torch.ones_like(flat_BCN)
    count_BCL = torch.zeros(*flat_BCN.shape[:2], LEVELS, device=flat_BCN.device).scatter_add_(2, level_BCN, ones)
    sum_BCL = count_BCL.cumsum(dim=2)
    # Pixels of the lowest level become 0, those of the highest 1.
    least_BC1 = torch.where(count_BCL > 0, sum_BCL, torch.inf).amin(dim=2, keepdim=True)
    span_BC1 = flat_BCN.shape[2] - least_BC1
    table_BCL = (sum_BCL - least_BC1).clamp_min(0) / span_BC1.clamp_min(1)
    equal = table_BCL.gather(2, level_BCN)
    equal = torch.where(span_BC1 > 0, equal, flat_BCN).view_as(video_BCTHW)
    return torch.lerp(video_BCTHW, equal, each(draw.span(config.alpha)))


def autocontrast(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Stretch each channel of the clip to the full range, but for a share of pixels at both ends."""
    flat_BCN = video_BCTHW.flatten(2)
    sorted_BCN = flat_BCN.sort(dim=2).values
    last = flat_BCN.shape[2] - 1
    cut_B11 = (draw.span(config.cutoff, 1, 1) * last).long().expand(-1, 3, -1)
    low_BC1, high_BC1 = sorted_BCN.gather(2, cut_B11), sorted_BCN.gather(2, last - cut_B11)
    span_BC1 = high_BC1 - low_BC1
    stretched = (flat_BCN - low_BC1) / span_BC1.clamp_min(1 / 255)
    return torch.where(span_BC1 > 0, stretched, flat_BCN).view_as(video_BCTHW)


def clahe(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Equalise the luma of each tile of each frame, with a limit on the gain; mixed with the clip."""
    height, width = video_BCTHW.shape[-2:]
    ycbcr = color.rgb_to_ycbcr(frames(video_BCTHW))
    tiles = (min(config.tiles, max(1, (height - 1) // 2)), min(config.tiles, max(1, (width - 1) // 2)))
    equal = enhance.equalize_clahe(ycbcr[:, :1].clamp(0, 1), config.clip_limit, tiles)
    changed = clips(color.ycbcr_to_rgb(torch.cat([equal, ycbcr[:, 1:]], dim=1)), video_BCTHW)
    return torch.lerp(video_BCTHW, changed, each(draw.span(config.alpha)))


def channel_shuffle(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Put the channels in another order."""
    # One of the five orders that are not the identity.
    orders = torch.tensor([[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    order_B3 = orders.to(video_BCTHW.device, non_blocking=True)[draw.choice(5)]
    return video_BCTHW.gather(1, order_B3[:, :, None, None, None].expand_as(video_BCTHW))


def vignette(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Darken towards the corners."""
    height, width = video_BCTHW.shape[-2:]
    y_H = torch.linspace(-1, 1, height, device=video_BCTHW.device)[:, None]
    x_W = torch.linspace(-1, 1, width, device=video_BCTHW.device)
    return video_BCTHW * (1 - each(draw.span(config.strength)) * (y_H**2 + x_W**2) / 2)


def illumination(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Light the clip from one side."""
    height, width = video_BCTHW.shape[-2:]
    angle_B1 = draw.uniform(0, 2 * math.pi, 1)
    y_BH = torch.linspace(-1, 1, height, device=video_BCTHW.device) * angle_B1.sin()
    x_BW = torch.linspace(-1, 1, width, device=video_BCTHW.device) * angle_B1.cos()
    slope = (y_BH[:, :, None] + x_BW[:, None]) / math.sqrt(2)
    return video_BCTHW + (0.6 * slope * draw.span(config.strength, 1, 1))[:, None, None]


def saturate_shift(video_BCTHW: Tensor, factor: float, shift: float) -> Tensor:
    """Scale saturation and add to it."""
    hue_N, saturation_N, value_N = color.rgb_to_hsv(tall(video_BCTHW)).unbind(1)
    saturation_N = (saturation_N * factor + shift).clamp(0, 1)
    return color.hsv_to_rgb(torch.stack([hue_N, saturation_N, value_N], dim=1)).view_as(video_BCTHW)


def value_shift(video_BCTHW: Tensor, shift: float) -> Tensor:
    """Add to the value of HSV."""
    hue_N, saturation_N, value_N = color.rgb_to_hsv(tall(video_BCTHW)).unbind(1)
    value_N = (value_N + shift).clamp(0, 1)
    return color.hsv_to_rgb(torch.stack([hue_N, saturation_N, value_N], dim=1)).view_as(video_BCTHW)


def grey_contrast(video_BCTHW: Tensor, factor: float) -> Tensor:
    """Scale the distance from each channel's mean over the clip."""
    mean = video_BCTHW.mean((2, 3, 4), keepdim=True)
    return (video_BCTHW - mean) * factor + mean
