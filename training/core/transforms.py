"""Clip-consistent crop, flip and normalisation, once per clip on the device.

Crop, resize and flip are one resampling straight from the uint8 canvas. Per clip two small matrices
hold the weights of a triangle filter: bilinear when enlarging, and widened by the scale when reducing
(as Pillow and `interpolate(antialias=True)` do), so a strong reduction does not alias. The filter
sees only the clip's own area, never the padding of the canvas, and when box and input have the same
size at whole pixels the result equals slicing exactly.

All draws are hashes of `seed_B` (no generator): the same on every device, rank and batch
composition. Nothing here makes the host wait for the device.
"""

import math

import torch
from torch import Tensor

from training.core.config import TransformConfig
from training.core.system import ClipBatch, RawBatch
from training.layers.seeded import seeded_uniform

__all__ = ["ClipTransform", "crop_boxes", "resample_clips", "source_rectangle", "three_crops"]

SCALES = (1.0, 0.875, 0.75, 0.66)
"""Sides of the multi-scale crop as shares of the short side."""

PAIRS = tuple((i, j) for i in range(len(SCALES)) for j in range(len(SCALES)) if abs(i - j) <= 1)
"""(height, width) as places in `SCALES`, at most one notch apart."""

ANCHORS = (
    *((y, x) for y in (0, 2, 4) for x in (0, 2, 4)),
    *((y, x) for y in (1, 3) for x in (1, 3)),
)
"""The 13 fixed places of the multi-scale crop, (y, x) in quarters of the free space."""

MEAN_STD = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
    "kinetics_hara": ((0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)),
    # Its Caffe weights want BGR in 0…255 minus (104, 117, 128); the factor 1/58 is in the converted first convolution.
    "bninception": ((128 / 255, 117 / 255, 104 / 255), (58 / 255, 58 / 255, 58 / 255)),
}
"""Mean and standard deviation of the channels R, G, B, for pixels in 0…1."""

STREAM = 1 << 32
"""Stream of the draws made here; the systems' own draws from the same seeds use small numbers."""

CHUNK_BYTES = 1 << 28
"""Upper bound of the float copy of the canvas that exists at one time."""


class ClipTransform:
    """Turns a raw batch into the network input, without parameters or state."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        mean, std = MEAN_STD[config.normalise]
        self._scale_shift = tuple((1 / (255 * s), -m / s) for m, s in zip(mean, std, strict=True))

    def __call__(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        """Crop, flip and normalise.

        Args:
            raw: frames on the device where the network is.
            train: random crop and flip; otherwise the centre crop without flip.

        Returns:
            The batch. With several crops at evaluation their frames follow one another along T, each crop of all
            clips before the next crop; `box_B4` is then the centre crop.
        """
        box_B4 = crop_boxes(raw.size_B2, raw.seed_B, self.config, train=train)
        boxes = [box_B4] if train or self.config.eval_crops == 1 else three_crops(raw.size_B2, box_B4)
        side = self.config.size if train else self.config.eval_side
        if train and self.config.flip:
            flip_B = seeded_uniform(raw.seed_B, (1,), stream=STREAM + 1)[:, 0] < 0.5
        else:
            flip_B = torch.zeros_like(raw.valid_B)
        crops = [resample_clips(raw.frames_BTHWC, raw.size_B2, box, flip_B, side) for box in boxes]
        video_BCTHW = crops[0] if len(crops) == 1 else torch.cat(crops, dim=2)
        for channel, (scale, shift) in enumerate(self._scale_shift):
            video_BCTHW[:, channel].mul_(scale).add_(shift)
        return ClipBatch(
            video_BCTHW=video_BCTHW,
            label_B=raw.label_B,
            key=raw.key,
            seed_B=raw.seed_B,
            valid_B=raw.valid_B,
            box_B4=box_B4,
            flip_B=flip_B,
        )

    def to_pixels(self, video_BCTHW: Tensor) -> Tensor:
        """Undo the normalisation: uint8 (B,T,H,W,C), for pictures."""
        pixels = video_BCTHW.float().clone()
        for channel, (scale, shift) in enumerate(self._scale_shift):
            pixels[:, channel].sub_(shift).div_(scale)
        return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def crop_boxes(size_B2: Tensor, seed_B: Tensor, config: TransformConfig, *, train: bool) -> Tensor:
    """Choose the crop of each clip.

    Args:
        size_B2: int64 height and width of the clips, pixels.
        seed_B: int64 seeds of the draws.

    Returns:
        (B,4) float32: y0, x0, height, width. Corners lie on whole pixels.
    """
    size = size_B2.double()
    short_B1 = size.amin(dim=1, keepdim=True)
    crop = config.train_crop if train else "center"
    if crop == "multiscale":
        draw_B2 = seeded_uniform(seed_B, (2,), stream=STREAM)
        scales = torch.tensor(SCALES, dtype=torch.float64)
        sides_P2 = scales[torch.tensor(PAIRS)].to(size.device, non_blocking=True)
        quarters_A2 = (torch.tensor(ANCHORS, dtype=torch.float64) / 4).to(size.device, non_blocking=True)
        side_B2 = (short_B1 * sides_P2[(draw_B2[:, 0] * len(PAIRS)).long()]).floor().clamp_min(1)
        corner_B2 = ((size - side_B2) * quarters_A2[(draw_B2[:, 1] * len(ANCHORS)).long()]).floor()
        return torch.cat([corner_B2, side_B2], dim=1).float()
    if crop == "area":
        return _area_boxes(size, seed_B, config)
    # Equal to scaling the short side to `eval_short_side`, or to a drawn one, and cutting the input's side out of that.
    side = config.size if train else config.eval_side
    scaled: int | Tensor = config.eval_short_side
    if train and config.train_short_side is not None:
        least, largest = config.train_short_side
        scaled = least + (seeded_uniform(seed_B, (1,), stream=STREAM + 2) * (largest - least + 1)).floor()
    side_B2 = (short_B1 * side / scaled).expand(-1, 2)
    if crop == "random":
        places_B2 = (size - side_B2).floor() + 1
        corner_B2 = (seeded_uniform(seed_B, (2,), stream=STREAM) * places_B2).floor()
    else:
        corner_B2 = ((size - side_B2) / 2).floor()
    return torch.cat([corner_B2, side_B2], dim=1).float()


TRIES = 10
"""Draws of an area crop; the first that fits into the frame is taken."""


def _area_boxes(size_B2: Tensor, seed_B: Tensor, config: TransformConfig) -> Tensor:
    """Draw boxes of random area and log-uniform aspect ratio (Inception); the whole frame where no draw fits.

    All tries are drawn at once, so that nothing waits for the device.
    """
    assert config.area is not None
    assert config.aspect is not None
    draw_BN4 = seeded_uniform(seed_B, (TRIES, 4), stream=STREAM)
    area_BN = size_B2.prod(dim=1, keepdim=True) * (
        config.area[0] + draw_BN4[..., 0] * (config.area[1] - config.area[0])
    )
    low, high = math.log(config.aspect[0]), math.log(config.aspect[1])
    aspect_BN = (low + draw_BN4[..., 1] * (high - low)).exp()
    side_BN2 = torch.stack([(area_BN / aspect_BN).sqrt(), (area_BN * aspect_BN).sqrt()], dim=2).round().clamp_min(1)
    fits_BN = (side_BN2 <= size_B2[:, None]).all(dim=2)
    # argmax of bools gives the first True.
    first_B11 = fits_BN.int().argmax(dim=1)[:, None, None].expand(-1, 1, 2)
    side_B2 = torch.where(fits_BN.any(dim=1)[:, None], side_BN2.gather(1, first_B11)[:, 0], size_B2)
    draw_B2 = draw_BN4[..., 2:].gather(1, first_B11)[:, 0]
    corner_B2 = (draw_B2 * (size_B2 - side_B2 + 1)).floor()
    return torch.cat([corner_B2, side_B2], dim=1).float()


def three_crops(size_B2: Tensor, centre_B4: Tensor) -> list[Tensor]:
    """Return the crops at the start, centre and end along the longer side of each clip (30-view testing).

    Args:
        size_B2: int64 height and width of the clips, pixels.
        centre_B4: the centre crop.
    """
    free_B2 = size_B2 - centre_B4[:, 2:]
    longer_B2 = size_B2 >= size_B2.amax(dim=1, keepdim=True)
    # A square clip has no longer side: the width is taken.
    longer_B2 = torch.stack([longer_B2[:, 0] & ~longer_B2[:, 1], longer_B2[:, 1]], dim=1)
    corner_B2, side_B2 = centre_B4.split(2, dim=1)  # type: ignore[no-untyped-call]
    start_B2 = torch.where(longer_B2, 0, corner_B2)
    end_B2 = torch.where(longer_B2, free_B2.floor().to(centre_B4.dtype), corner_B2)
    return [torch.cat([start_B2, side_B2], dim=1), centre_B4, torch.cat([end_B2, side_B2], dim=1)]


def resample_clips(frames_BTHWC: Tensor, size_B2: Tensor, box_B4: Tensor, flip_B: Tensor, side: int) -> Tensor:
    """Resample a box of each clip to `side` × `side`.

    Args:
        frames_BTHWC: uint8 canvas.
        size_B2: valid height and width of each clip in the canvas.
        box_B4: y0, x0, height, width in pixels.
        flip_B: bool, mirror horizontally.

    Returns:
        (B,C,T,side,side) float32 in 0…255; T may be 0, and C is whatever the canvas has.
    """
    batch, frames, height, width, channels = frames_BTHWC.shape
    never = torch.zeros_like(flip_B)
    rows = _weights(box_B4[:, 0], box_B4[:, 2], size_B2[:, 0], never, side, height)
    columns = _weights(box_B4[:, 1], box_B4[:, 3], size_B2[:, 1], flip_B, side, width)
    result = frames_BTHWC.new_empty((batch, channels, frames, side, side), dtype=torch.float32)
    if frames == 0:
        return result
    step = max(1, CHUNK_BYTES // (4 * frames * height * width * channels))
    # Mixed precision of the surrounding code must not round pixels.
    with torch.autocast(frames_BTHWC.device.type, enabled=False):
        for start in range(0, batch, step):
            part = slice(start, start + step)
            pixels = frames_BTHWC[part].float().flatten(3)
            narrow = (rows[part, None] @ pixels).view(-1, frames, side, width, channels)
            flat = narrow.permute(0, 4, 1, 2, 3).reshape(-1, channels * frames * side, width)
            result[part] = (flat @ columns[part].mT).view(-1, channels, frames, side, side)
    return result


def _weights(start_B: Tensor, length_B: Tensor, limit_B: Tensor, flip_B: Tensor, side: int, extent: int) -> Tensor:
    """Return the resampling matrix (B, side, extent) along one axis; rows sum to 1, zero beyond `limit_B`."""
    device = start_B.device
    target = torch.arange(side, device=device, dtype=torch.float32)
    target = torch.where(flip_B[:, None], side - 1 - target, target)
    scale = (length_B / side)[:, None]
    # Pixels are squares with their centre at .5 (the half-pixel convention).
    centre = start_B[:, None] + (target + 0.5) * scale - 0.5
    # A box may reach over the clip's edge: there the edge repeats.
    centre = torch.minimum(centre.clamp_min(-0.5), limit_B[:, None] - 0.5)
    pixel = torch.arange(extent, device=device, dtype=torch.float32)
    distance = (pixel - centre[:, :, None]).abs() / scale.clamp_min(1)[:, :, None]
    weight = (1 - distance).clamp_min(0) * (pixel < limit_B[:, None, None])
    return weight / weight.sum(dim=2, keepdim=True)


def source_rectangle(
    batch: ClipBatch, index: int, y: float, x: float, h: float, w: float
) -> tuple[float, float, float, float]:
    """Map a rectangle of the network input back to the stored frame, for overlays.

    Args:
        index: clip in the batch.
        y, x, h, w: corner, height and width in input pixels.

    Returns:
        y, x, height, width in pixels of the stored frame.
    """
    side_y, side_x = batch.video_BCTHW.shape[-2:]
    y0, x0, height, width = batch.box_B4[index].tolist()
    if bool(batch.flip_B[index]):
        x = side_x - x - w
    return y0 + y * height / side_y, x0 + x * width / side_x, h * height / side_y, w * width / side_x
