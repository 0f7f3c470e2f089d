"""Boxes of a video on their way from an annotation into the `boxes.json` member of a sample.

An annotation counts in pixels of the source; its sha256 stands in the manifest. At the ingest it is read again, and its
boxes are scaled to the stored clip.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import Field

from data_specs.boxes import BoxTrack, ClipBoxes
from data_specs.schema import RejectReason, Strict
from tasks.ops.probe import RejectedError, VideoInfo

Edges = tuple[float, float, float, float]

_LEAST_SIDE = 0.01
"""Source pixels; a box with a smaller side holds nothing."""
_DECIMALS = 3
"""Of boxes in the stored clip: a thousandth of a pixel."""


class Seen(NamedTuple):
    """One object in one frame, as annotated."""

    frame: int
    """From 0."""
    track: int | None
    """Number that the source gives the object; None where it does not follow objects."""
    label: int
    """Class index."""
    box: Edges
    """x0, y0, x1, y1: edges, pixels of the source."""


class Annotation(Strict):
    """What is known of a source video's objects."""

    num_frames: int | None
    """Frames that the video must have; None where the source does not say."""
    width: int | None
    """Pixels of a frame, as annotated; None where the source does not say."""
    height: int | None
    labelled: tuple[int, ...]
    """Frames whose objects are known, increasing."""
    tracks: tuple[BoxTrack, ...]
    subsets: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Name → frames of a named set, increasing."""

    @property
    def sha256(self) -> str:
        """Checksum of all of it."""
        values = self.model_dump(mode="json")
        if not self.subsets:
            del values["subsets"]  # sums of what was listed before there were any stay valid
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def label(self, classes: Sequence[str]) -> str:
        """Return the names of the classes that occur, in index order, joined by `|`."""
        return "|".join(classes[number] for number in sorted({track.label for track in self.tracks}))


def annotate(
    seen: Iterable[Seen], labelled: Iterable[int], num_frames: int | None, size: tuple[int, int] | None
) -> tuple[Annotation, Counter[str]]:
    """Make an annotation of what was seen in single frames.

    Boxes are cut at the borders of the picture. A track has one class, and one box per frame: what the source gives
    beyond that becomes further tracks.

    Args:
        seen: Objects in labelled frames.
        labelled: Frames whose objects are known.
        num_frames: Frames of the video, where known.
        size: Width and height, where known.

    Returns:
        The annotation, and what is to be said about it → how often.
    """
    notes: Counter[str] = Counter()
    tracks: dict[tuple[int, int, int], dict[int, Edges]] = {}
    loose: list[tuple[int, int, Edges]] = []
    for frame, number, label, box in sorted(seen, key=lambda s: (s.frame, -1 if s.track is None else s.track, s[2:])):
        inside = _cut(box, size)
        if inside is None:
            notes["boxes without area inside the picture, left out"] += 1
        elif number is None:
            loose.append((frame, label, inside))
        else:
            copy = 0
            while frame in tracks.setdefault((number, copy, label), {}):
                copy += 1
            if copy:
                notes["boxes whose track has another box in the same frame, each a track of its own"] += 1
            tracks[number, copy, label][frame] = inside
    free = max((number for number, _, _ in tracks), default=-1) + 1
    taken: set[int] = set()
    made: list[BoxTrack] = []
    for (number, copy, label), boxes in sorted(tracks.items()):
        if number in taken:
            if not copy:
                notes["tracks that change their class, cut there"] += 1
            number, free = free, free + 1
        taken.add(number)
        made.append(_track(number, label, boxes))
    for place, (frame, label, box) in enumerate(loose):
        made.append(_track(free + place, label, {frame: box}))
    width, height = size or (None, None)
    known = tuple(sorted(set(labelled)))
    made.sort(key=lambda track: track.track)
    return Annotation(num_frames=num_frames, width=width, height=height, labelled=known, tracks=tuple(made)), notes


def _cut(box: Edges, size: tuple[int, int] | None) -> Edges | None:
    """Return the part of a box inside the picture; None when there is none."""
    x0, y0, x1, y1 = box
    x0, y0 = max(0.0, x0), max(0.0, y0)
    if size is not None:
        x1, y1 = min(float(size[0]), x1), min(float(size[1]), y1)
    return (x0, y0, x1, y1) if min(x1 - x0, y1 - y0) >= _LEAST_SIDE else None


def _track(number: int, label: int, boxes: dict[int, Edges]) -> BoxTrack:
    """Return a track of boxes by frame."""
    frames = tuple(sorted(boxes))
    return BoxTrack(track=number, label=label, frames=frames, boxes=tuple(boxes[frame] for frame in frames))


def check_picture(annotation: Annotation, info: VideoInfo) -> None:
    """Check that a source's pictures are those that the boxes were drawn on.

    Raises:
        RejectedError: they have another size, are turned, or have pixels that are not square.
    """
    if info.rotation or (info.width, info.height) != (info.coded_width, info.coded_height):
        turned = f"turned by {info.rotation}°" if info.rotation else "stretched, its pixels are not square"
        raise RejectedError(
            RejectReason.BOXES_MISMATCH,
            f"the video is shown {turned} ({info.coded_width}x{info.coded_height} becomes {info.width}x{info.height}), "
            "which boxes cannot follow; encode it anew without that",
        )
    if annotation.width is not None and (annotation.width, annotation.height) != (info.width, info.height):
        raise RejectedError(
            RejectReason.BOXES_MISMATCH,
            f"the boxes are of pictures of {annotation.width}x{annotation.height}, the video has "
            f"{info.width}x{info.height}",
        )


def stored_boxes(
    annotation: Annotation, num_frames: int, source: tuple[int, int], stored: tuple[int, int]
) -> ClipBoxes:
    """Return the boxes of a stored clip.

    Args:
        annotation: In pixels of the source.
        num_frames: Of the stored clip.
        source: Width and height of the source.
        stored: Width and height of the stored clip, which shows the whole picture.

    Raises:
        RejectedError: the clip has not the frames that are annotated.
    """
    last = max(annotation.labelled, default=-1)
    if annotation.num_frames not in (None, num_frames):
        detail = f"{annotation.num_frames} frames are annotated, the video has {num_frames}"
        raise RejectedError(RejectReason.BOXES_MISMATCH, detail)
    if last >= num_frames:
        detail = f"frame {last} is annotated (the first is 0), the video has {num_frames} frames"
        raise RejectedError(RejectReason.BOXES_MISMATCH, detail)
    tracks = []
    for track in annotation.tracks:
        boxes = tuple(_scaled(box, source, stored) for box in track.boxes)
        tracks.append(track.model_copy(update={"boxes": boxes}))
    labelled = None if len(annotation.labelled) == num_frames else annotation.labelled
    beyond = [name for name, frames in annotation.subsets.items() if frames and frames[-1] >= num_frames]
    if beyond:
        detail = f"the set of frames {beyond[0]!r} goes beyond the video's {num_frames} frames"
        raise RejectedError(RejectReason.BOXES_MISMATCH, detail)
    return ClipBoxes(tracks=tuple(tracks), labelled=labelled, subsets=annotation.subsets)


def _scaled(box: Edges, source: tuple[int, int], stored: tuple[int, int]) -> Edges:
    """Return a box of the source in pixels of the stored clip.

    Raises:
        RejectedError: it lies outside of the picture.
    """
    sides = []
    for axis in (0, 1):
        low, high = (min(1.0, edge / source[axis]) * stored[axis] for edge in (box[axis], box[axis + 2]))
        if low >= stored[axis]:
            detail = f"box {box} lies outside of a picture of {source[0]}x{source[1]}"
            raise RejectedError(RejectReason.BOXES_MISMATCH, detail)
        least = 10**-_DECIMALS  # a box never becomes empty by rounding
        first = min(round(low, _DECIMALS), round(stored[axis] - least, _DECIMALS))
        sides.append((first, max(round(high, _DECIMALS), round(first + least, _DECIMALS))))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def member_bytes(boxes: ClipBoxes) -> bytes:
    """Return the `boxes.json` member: equal boxes give equal bytes."""
    return (json.dumps(boxes.model_dump(mode="json"), separators=(",", ":")) + "\n").encode()
