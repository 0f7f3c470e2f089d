"""What the detection heads have in common. Suffixes: N images, G objects or rows for them, M boxes reported."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Boxes", "DetectionHead", "Targets", "best_boxes", "mean_over_images"]


class Targets(NamedTuple):
    """Objects of images, in rows filled up to a common number."""

    box_NG4: Tensor
    """x0, y0, x1, y1 in pixels of the network's input, edges."""
    label_NG: Tensor
    """int64 class index, −1: no object."""
    weight_N: Tensor
    """How much an image's loss counts; 0 where its objects are unknown."""

    def with_row(self) -> "Targets":
        """Return the same with at least one row, so that there is something to take the largest of."""
        if self.label_NG.shape[1]:
            return self
        return Targets(F.pad(self.box_NG4, (0, 0, 0, 1)), F.pad(self.label_NG, (0, 1), value=-1), self.weight_N)


class Boxes(NamedTuple):
    """Objects found in images, by falling score; rows that are not valid come last."""

    box_NM4: Tensor
    """fp32 pixels of the network's input, edges, inside the image; 0 where not valid."""
    score_NM: Tensor
    """fp32 in [0, 1]; 0 where not valid."""
    label_NM: Tensor
    """int64 class index; −1 where not valid."""
    valid_NM: Tensor
    """bool."""


class DetectionHead(nn.Module, ABC):
    """Turns features into boxes.

    Args:
        in_channels: channels of the features.
        classes: number of classes, without background.
    """

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.in_channels, self.classes = in_channels, classes

    @abstractmethod
    def initialise(self) -> None:
        """Draw the weights anew from torch's generator (the constructor has done so)."""

    @abstractmethod
    def forward(self, feature_NCHW: Tensor) -> Any:
        """Return the head's raw maps, a named tuple of tensors: all of it that has weights."""

    @abstractmethod
    def losses(self, maps: Any, targets: Targets, size_N2: Tensor, seed_N: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch; nothing in it waits for the device.

        Args:
            maps: what `forward` returned, of any precision.
            targets: objects.
            size_N2: height and width of each image inside the padded input, pixels.
            seed_N: int64, what is drawn for an image is a function of its seed.

        Returns:
            fp32 scalars, means over the images by weight (0 if none counts): the parts, and their sum under `loss`.
        """

    @abstractmethod
    def detect(self, maps: Any, size_N2: Tensor) -> Boxes:
        """Return what is found, M = `max_boxes`; may wait for the device. Arguments as of `losses`."""


def mean_over_images(value_N: Tensor, weight_N: Tensor) -> Tensor:
    """Return the weighted mean; 0 if no image has weight, whose values then get no gradient."""
    weight_N = weight_N.to(value_N.dtype)
    return (torch.where(weight_N > 0, value_N, 0) * weight_N).sum() / weight_N.sum().clamp_min(1e-12)


def best_boxes(box_NK4: Tensor, score_NK: Tensor, label_NK: Tensor, count: int) -> Boxes:
    """Return the `count` best-scored of K boxes; a score of −inf is no box."""
    score, index = torch.sort(score_NK, dim=-1, descending=True, stable=True)
    score, index = score[:, :count], index[:, :count]
    missing = count - score.shape[1]
    score, index = F.pad(score, (0, missing), value=-torch.inf), F.pad(index, (0, missing))
    valid = score > -torch.inf
    box = (
        box_NK4.gather(1, index[..., None].expand(-1, -1, 4))
        if box_NK4.shape[1]
        else score[..., None].expand(-1, -1, 4)
    )
    label = label_NK.gather(1, index) if label_NK.shape[1] else index
    return Boxes(
        torch.where(valid[..., None], box, 0), torch.where(valid, score, 0), torch.where(valid, label, -1), valid
    )
