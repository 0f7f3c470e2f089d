"""The `boxes.json` member of a sample: which objects are where, frame by frame.

Boxes are x0, y0, x1, y1 in pixels of the stored clip and name edges: pixel i covers [i, i + 1), so a box of one pixel
is (i, j, i + 1, j + 1). Annotations that name the first and the last pixel (VOC, ImageNet) get 1 added to the last;
areas and overlaps then need no "+1".
"""

import math
from typing import Annotated

from pydantic import Field, model_validator

from data_specs.schema import Strict

__all__ = ["BOXES_MEMBER", "BoxTrack", "ClipBoxes"]

BOXES_MEMBER = "boxes.json"
"""Extension of the member."""

Edges = tuple[float, float, float, float]


class BoxTrack(Strict):
    """One object: its boxes, by frame."""

    track: int = Field(ge=0)
    """Number of the object, once per clip."""
    label: int = Field(ge=0)
    """Class index."""
    frames: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Frame numbers of the stored clip, increasing."""
    boxes: tuple[Edges, ...]
    """x0, y0, x1, y1 per entry of `frames`."""

    @model_validator(mode="after")
    def _fits(self) -> "BoxTrack":
        if len(self.boxes) != len(self.frames):
            raise ValueError(f"track {self.track} has {len(self.boxes)} boxes for {len(self.frames)} frames")
        if any(after <= before for before, after in zip(self.frames, self.frames[1:], strict=False)):
            raise ValueError(f"track {self.track}: its frames must increase")
        for frame, (x0, y0, x1, y1) in zip(self.frames, self.boxes, strict=True):
            if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
                raise ValueError(f"track {self.track}, frame {frame}: ({x0}, {y0}, {x1}, {y1}) is no box")
        return self


class ClipBoxes(Strict):
    """All objects of a clip."""

    tracks: tuple[BoxTrack, ...]
    labelled: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Frames whose objects are known, increasing; None: all. A frame that is not among them is unknown, not empty."""
    subsets: dict[str, tuple[Annotated[int, Field(ge=0)], ...]] = Field(default_factory=dict)
    """Named sets of frames that evaluation also reports by themselves, e.g. those that were made hard to see."""

    @model_validator(mode="after")
    def _fits(self) -> "ClipBoxes":
        numbers = [track.track for track in self.tracks]
        if len(set(numbers)) < len(numbers):
            raise ValueError("two tracks have the same number")
        known = None if self.labelled is None else set(self.labelled)
        for track in self.tracks:
            if known is not None and not known.issuperset(track.frames):
                strange = min(set(track.frames) - known)
                raise ValueError(f"track {track.track} has a box in frame {strange}, which is not labelled")
        return self
