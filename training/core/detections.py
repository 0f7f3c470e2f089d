"""What detection is made of: objects of frames as batches have them, and as predictions have them.

Boxes are x0, y0, x1, y1; they name edges (`data_specs/boxes.py`). Suffixes: B videos, T frames, N boxes.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from training.core.system import ClipBatch, FrameBoxes, RawBatch

__all__ = ["Detections", "FrameBatch", "VideoAnswer", "VideoRunner"]

Array = NDArray[Any]


@dataclass(frozen=True)
class FrameBatch(ClipBatch):
    """Frames of videos as a detector sees them: scaled, mirrored, padded at the right and at the bottom."""

    size_B2: Tensor
    """float32 height and width of each video's frames inside the input, pixels."""
    sizes: tuple[tuple[int, int], ...]
    """The same on the host, so that nothing waits for the device."""
    number_BT: Tensor
    """int64, frame numbers of the stored clip."""
    boxes: FrameBoxes | None = None
    """In pixels of the input; None where nothing is known (served videos)."""


@dataclass(frozen=True)
class Detections:
    """Objects found in frames of one video, in order of frame, and in a frame of falling score."""

    frame_N: Array
    """int64, frame numbers of the stored clip."""
    box_N4: Array
    """float32, pixels of the stored clip."""
    score_N: Array
    """float32 in [0, 1]."""
    label_N: Array
    """int64 class index."""
    track_N: Array | None = None
    """int64, number of the object, −1: none; None where nobody linked them."""

    def __len__(self) -> int:
        return len(self.frame_N)

    def __getitem__(self, chosen: Array | slice) -> Self:
        """Return some of them."""
        track_N = None if self.track_N is None else self.track_N[chosen]
        return type(self)(
            self.frame_N[chosen], self.box_N4[chosen], self.score_N[chosen], self.label_N[chosen], track_N
        )

    @classmethod
    def empty(cls) -> Self:
        """Return none."""
        none = np.empty(0, np.int64)
        return cls(none, np.empty((0, 4), np.float32), np.empty(0, np.float32), none)

    @classmethod
    def join(cls, parts: "list[Detections]") -> Self:
        """Return all of several, which have no tracks, in order of frame and falling score."""
        if not parts:
            return cls.empty()
        columns = [
            np.concatenate([getattr(part, f) for part in parts]) for f in ("frame_N", "box_N4", "score_N", "label_N")
        ]
        order = np.lexsort((-columns[2], columns[0]))
        return cls(*(column[order] for column in columns))


@dataclass(frozen=True)
class VideoAnswer:
    """What a detector says of a whole video."""

    detections: Detections
    frames: tuple[int, ...]
    """Frames that were answered, in the order of the answers; each frame of the video must occur once."""
    key_frames: tuple[int, ...]
    """Frames on which the whole network was run."""
    gmac: float
    """Executed, over all frames."""
    extras: dict[str, Array] = field(default_factory=dict)
    """Further facts, e.g. scene cuts."""


class VideoRunner(Protocol):
    """Goes through one video, block by block."""

    def push(self, block: RawBatch) -> None:
        """Take the next frames, a batch of one video that follows the frames before."""
        ...

    def finish(self) -> VideoAnswer:
        """Answer what is left; no frame comes any more."""
        ...
