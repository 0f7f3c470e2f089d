"""Clip-consistent crop, flip and normalisation, once per clip on the device.

Crop, resize and flip are one resampling straight from the uint8 canvas. Per clip two small matrices
hold the weights of a triangle filter: bilinear when enlarging, and widened by the scale when reducing
(as Pillow and `interpolate(antialias=True)` do), so a strong reduction does not alias. The filter
sees only the clip's own area, never the padding of the canvas, and when box and input have the same
size at whole pixels the result equals slicing exactly.

All draws are hashes of `seed_B` (no generator): the same on every device, rank and batch
composition. Nothing here makes the host wait for the device.
"""

import torch
from torch import Tensor

from training.core.config import TransformConfig
from training.core.system import ClipBatch, RawBatch
from training.layers.seeded import seeded_uniform

__all__ = ["ClipTransform", "crop_boxes", "resample_clips", "source_rectangle"]

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
}

STREAM = 1 << 32
"""Stream of the draws made here; the systems' own draws from the same seeds use small numbers."""

CHUNK_BYTES = 1 << 28
"""Upper bound of the float copy of the canvas that exists at one time."""


class ClipTransform:
    """Turns a raw batch into the network input, without parameters or state."""

    def __init__(self, config: TransformConfig) -> None:
        if config.eval_short_side < config.size:
            raise ValueError(
                f"transform.eval_short_side {config.eval_short_side} is smaller than transform.size {config.size}: "
                "the centre crop would not fit into the clip"
            )
        self.config = config
        mean, std = MEAN_STD[config.normalise]
        self._scale_shift = tuple((1 / (255 * s), -m / s) for m, s in zip(mean, std, strict=True))

    def __call__(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        """Crop, flip and normalise.

        Args:
            raw: frames on the device where the network is.
            train: random crop and flip; otherwise the centre crop without flip.
        """
        box_B4 = crop_boxes(raw.size_B2, raw.seed_B, self.config, train=train)
        if train and self.config.flip:
            flip_B = seeded_uniform(raw.seed_B, (1,), stream=STREAM + 1)[:, 0] < 0.5
        else:
            flip_B = torch.zeros_like(raw.valid_B)
        video_BCTHW = resample_clips(raw.frames_BTHWC, raw.size_B2, box_B4, flip_B, self.config.size)
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
    # Equal to scaling the short side to `eval_short_side` and cutting `size` out of that.
    side_B2 = (short_B1 * config.size / config.eval_short_side).expand(-1, 2)
    if crop == "random":
        places_B2 = (size - side_B2).floor() + 1
        corner_B2 = (seeded_uniform(seed_B, (2,), stream=STREAM) * places_B2).floor()
    else:
        corner_B2 = ((size - side_B2) / 2).floor()
    return torch.cat([corner_B2, side_B2], dim=1).float()


def resample_clips(frames_BTHWC: Tensor, size_B2: Tensor, box_B4: Tensor, flip_B: Tensor, side: int) -> Tensor:
    """Resample a box of each clip to `side` × `side`.

    Args:
        frames_BTHWC: uint8 canvas.
        size_B2: valid height and width of each clip in the canvas.
        box_B4: y0, x0, height, width in pixels.
        flip_B: bool, mirror horizontally.

    Returns:
        (B,C,T,side,side) float32 in 0…255.
    """
    batch, frames, height, width, channels = frames_BTHWC.shape
    never = torch.zeros_like(flip_B)
    rows = _weights(box_B4[:, 0], box_B4[:, 2], size_B2[:, 0], never, side, height)
    columns = _weights(box_B4[:, 1], box_B4[:, 3], size_B2[:, 1], flip_B, side, width)
    result = frames_BTHWC.new_empty((batch, channels, frames, side, side), dtype=torch.float32)
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
