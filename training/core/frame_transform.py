"""Whole frames for detectors: scaled, mirrored, padded, together with the boxes of their objects.

One resampling from the uint8 canvas, with the triangle filter of `training/core/transforms.py`. Edges map to edges: a
box of the stored clip times (input side / stored side) is the same box in the input, and mirroring swaps its edges, so
that boxes stay exact to rounding of floats. Nothing here makes the host wait for the device.
"""

import math

import torch
from torch import Tensor

from training.core.config import TransformConfig
from training.core.detections import FrameBatch
from training.core.system import FrameBoxes, RawBatch
from training.core.transforms import CHUNK_BYTES, MEAN_STD, STREAM
from training.layers.seeded import seeded_uniform

__all__ = ["FrameTransform", "scaled_size", "stored_boxes"]


def scaled_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return height and width of a scaled frame: as large as both bounds allow, ratio kept to the pixel."""
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


class FrameTransform:
    """Turns a raw batch into a detector's input, without parameters or state."""

    def __init__(self, config: TransformConfig, multiple: int = 1) -> None:
        """Prepare.

        Args:
            config: with `train_crop: whole`.
            multiple: the padded sides of a batch are multiples of this, pixels.
        """
        assert config.long_side is not None, "a detector's transform has train_crop `whole`"
        self.config = config
        self._long_side = config.long_side
        self._multiple = multiple
        mean, std = MEAN_STD[config.normalise]
        self._scale_shift = tuple((1 / (255 * s), -m / s) for m, s in zip(mean, std, strict=True))

    def __call__(self, raw: RawBatch, *, train: bool) -> FrameBatch:
        """Scale, mirror and normalise.

        Args:
            raw: frames on the device where the network is, with `number_BT` and `sizes`.
            train: mirror half of the videos, where the config says so.

        Returns:
            The batch; all frames of a video are treated alike. The padding is 0 after normalisation.
        """
        assert raw.number_BT is not None, "a detector needs sampling `frames`"
        stored = raw.sizes or tuple((int(h), int(w)) for h, w in raw.size_B2.tolist())
        short = self.config.size if train else self.config.eval_side
        sizes = tuple(scaled_size(h, w, short, self._long_side) for h, w in stored)
        height, width = (-(-max(axis) // self._multiple) * self._multiple for axis in zip(*sizes, strict=True))
        device = raw.frames_BTHWC.device
        size_B2 = _on_device(torch.tensor(sizes, dtype=torch.float32), device)
        if train and self.config.flip:
            flip_B = seeded_uniform(raw.seed_B, (1,), stream=STREAM + 1)[:, 0] < 0.5
        else:
            flip_B = torch.zeros_like(raw.valid_B)
        stored_B2 = raw.size_B2.float()
        never = torch.zeros_like(flip_B)
        rows = _axis_weights(stored_B2[:, 0], size_B2[:, 0], never, height, raw.frames_BTHWC.shape[2])
        columns = _axis_weights(stored_B2[:, 1], size_B2[:, 1], flip_B, width, raw.frames_BTHWC.shape[3])
        video_BCTHW = self._resampled(raw.frames_BTHWC, rows, columns, size_B2)
        boxes = None if raw.boxes is None else _scaled(raw.boxes, size_B2 / stored_B2, size_B2, flip_B)
        return FrameBatch(
            video_BCTHW=video_BCTHW,
            label_B=raw.label_B,
            key=raw.key,
            seed_B=raw.seed_B,
            valid_B=raw.valid_B,
            box_B4=torch.cat([torch.zeros_like(stored_B2), stored_B2], dim=1),
            flip_B=flip_B,
            size_B2=size_B2,
            sizes=sizes,
            number_BT=raw.number_BT,
            boxes=boxes,
        )

    def _resampled(self, frames_BTHWC: Tensor, rows: Tensor, columns: Tensor, size_B2: Tensor) -> Tensor:
        batch, frames, height, width, channels = frames_BTHWC.shape
        out_h, out_w = rows.shape[1], columns.shape[1]
        result = frames_BTHWC.new_empty((batch, channels, frames, out_h, out_w), dtype=torch.float32)
        most = max(1, CHUNK_BYTES // (4 * height * width * channels))
        videos = max(1, most // frames)
        with torch.autocast(frames_BTHWC.device.type, enabled=False):
            for row in range(0, batch, videos):
                some = slice(row, row + videos)
                for start in range(0, frames, most):
                    pixels = frames_BTHWC[some, start : start + most].float().flatten(3)
                    narrow = (rows[some, None] @ pixels).view(*pixels.shape[:2], out_h, width, channels)
                    flat = narrow.permute(0, 4, 1, 2, 3).flatten(1, 3)
                    part = (flat @ columns[some].mT).view(len(pixels), channels, -1, out_h, out_w)
                    result[some, :, start : start + part.shape[2]] = part
        line = torch.arange(out_h, device=size_B2.device)[:, None] < size_B2[:, 0, None, None]
        inside = line & (torch.arange(out_w, device=size_B2.device) < size_B2[:, 1, None, None])
        for channel, (scale, shift) in enumerate(self._scale_shift):
            result[:, channel].mul_(scale).add_(shift).mul_(inside[:, None])
        return result

    def to_pixels(self, video_BCTHW: Tensor) -> Tensor:
        """Undo the normalisation: uint8 (B,T,H,W,C), for pictures."""
        pixels = video_BCTHW.float().clone()
        for channel, (scale, shift) in enumerate(self._scale_shift):
            pixels[:, channel].sub_(shift).div_(scale)
        return pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def stored_boxes(box_N4: Tensor, batch: FrameBatch, row: int) -> Tensor:
    """Map boxes of the network input back to pixels of the stored clip.

    Args:
        box_N4: x0, y0, x1, y1 in pixels of the input.
        batch: whose input it is.
        row: which of its videos.
    """
    width = batch.size_B2[row, 1]
    mirrored = torch.stack([width - box_N4[:, 2], box_N4[:, 1], width - box_N4[:, 0], box_N4[:, 3]], dim=1)
    box_N4 = torch.where(batch.flip_B[row], mirrored, box_N4)
    scale_y, scale_x = (batch.box_B4[row, 2:] / batch.size_B2[row]).unbind()
    return box_N4 * torch.stack([scale_x, scale_y, scale_x, scale_y])


def _on_device(value: Tensor, device: torch.device) -> Tensor:
    """Copy a small host tensor without waiting for the device."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def _scaled(boxes: FrameBoxes, scale_B2: Tensor, size_B2: Tensor, flip_B: Tensor) -> FrameBoxes:
    scale_B4 = scale_B2.flip(1).repeat(1, 2)
    box = boxes.box_BTN4 * scale_B4[:, None, None]
    width = size_B2[:, 1, None, None]
    mirrored = torch.stack([width - box[..., 2], box[..., 1], width - box[..., 0], box[..., 3]], dim=-1)
    box = torch.where(flip_B[:, None, None, None], mirrored, box)
    # Rows without an object stay zero.
    box = box * (boxes.label_BTN >= 0)[..., None]
    return FrameBoxes(boxes.labelled_BT, box, boxes.label_BTN, boxes.track_BTN)


def _axis_weights(stored_B: Tensor, size_B: Tensor, flip_B: Tensor, side: int, extent: int) -> Tensor:
    """Return the resampling matrix (B, side, extent) along one axis; rows beyond `size_B` are 0."""
    target = torch.arange(side, device=stored_B.device, dtype=torch.float32)
    inside = target < size_B[:, None]
    target = torch.where(flip_B[:, None], size_B[:, None] - 1 - target, target.expand(len(stored_B), -1))
    scale = (stored_B / size_B)[:, None]
    centre = (target + 0.5) * scale - 0.5
    centre = torch.minimum(centre.clamp_min(-0.5), stored_B[:, None] - 0.5)
    pixel = torch.arange(extent, device=stored_B.device, dtype=torch.float32)
    distance = (pixel - centre[:, :, None]).abs() / scale.clamp_min(1)[:, :, None]
    weight = (1 - distance).clamp_min(0) * (pixel < stored_B[:, None, None])
    return weight / weight.sum(dim=2, keepdim=True).clamp_min(1e-12) * inside[:, :, None]
