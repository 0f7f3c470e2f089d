"""Checks and counts the boxes of stored samples, and draws them: for `fovea data check` and the data page."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from data_specs.boxes import BOXES_MEMBER, ClipBoxes
from data_specs.schema import ClipRecord, ListedVideo
from tasks.ops.shard_reader import StoredSample

if TYPE_CHECKING:
    from PIL.Image import Image

_COLOURS = ("#e8413c", "#2f9e63", "#3a7bd5", "#e0a11b", "#a34fc4", "#18a5b5", "#f26fa8", "#8a9a1c")


def read_boxes(sample: StoredSample) -> ClipBoxes | None:
    """Return the boxes of a stored sample; None when it has none.

    Raises:
        ValueError: the member cannot be read.
    """
    if BOXES_MEMBER not in sample.entry.members:
        return None
    return ClipBoxes.model_validate_json(sample.read(BOXES_MEMBER))


def box_problem(boxes: ClipBoxes, record: ClipRecord, num_classes: int) -> str | None:
    """Say what is wrong with the boxes of a clip; None when all is well.

    Args:
        boxes: Of the clip.
        record: Of the clip.
        num_classes: Of the data set.
    """
    last = max(boxes.labelled or (), default=-1)
    for track in boxes.tracks:
        name = f"track {track.track} of its boxes"
        if track.label >= num_classes:
            return f"{name} has class {track.label}, the data set has {num_classes}"
        last = max(last, track.frames[-1])
        for frame, (x0, y0, x1, y1) in zip(track.frames, track.boxes, strict=True):
            if x0 < 0 or y0 < 0 or x1 > record.width or y1 > record.height:
                return (
                    f"{name} leaves the picture in frame {frame}: ({x0:g}, {y0:g}, {x1:g}, {y1:g}) in "
                    f"{record.width}x{record.height}"
                )
    for name, frames in boxes.subsets.items():
        last = max(last, *frames, -1)
        if list(frames) != sorted(set(frames)):
            return f"the frames of subset {name!r} of its boxes do not increase"
    if last >= record.num_frames:
        return f"its boxes name frame {last}, its record says {record.num_frames} frames"
    seen = {track.label for track in boxes.tracks}
    labels = {record.label} if isinstance(record.label, int) else set(record.label or ())
    if seen != labels:
        return f"its boxes are of classes {sorted(seen)}, its record says {sorted(labels)}"
    return None


def stored_problem(sample: StoredSample, num_classes: int) -> str | None:
    """Say what is wrong with the boxes of a stored sample; None when all is well, or when it has none."""
    try:
        boxes = read_boxes(sample)
        problem = None if boxes is None else box_problem(boxes, sample.record(), num_classes)
    except (ValueError, OSError) as error:
        problem = f"{BOXES_MEMBER}: {error}"
    return None if problem is None else f"{sample.shard.name}: {sample.entry.key}: {problem}"


def lacking_boxes(rows: Sequence[ListedVideo], samples: Sequence[StoredSample]) -> list[str]:
    """Return the keys of samples that are listed with boxes and stored without, or the other way round."""
    listed = {row.key: bool(row.boxes) for row in rows}
    return [s.entry.key for s in samples if listed.get(s.entry.key, False) != (BOXES_MEMBER in s.entry.members)]


class ClassObjects(NamedTuple):
    """How often a class occurs."""

    name: str
    clips: int
    objects: int
    """Tracks."""
    boxes: int


class Objects(NamedTuple):
    """What the boxes of some clips come to."""

    clips: int
    frames: int
    labelled: int
    """Frames whose objects are known."""
    classes: list[ClassObjects]
    """Of each class, in index order."""

    @property
    def total(self) -> ClassObjects:
        """Sum over the classes."""
        return ClassObjects("all", self.clips, sum(c.objects for c in self.classes), sum(c.boxes for c in self.classes))


def count_objects(samples: Iterable[StoredSample], classes: Sequence[str]) -> Objects | None:
    """Count objects and boxes of stored samples; None when none of them has boxes."""
    clips = frames = labelled = 0
    counts = [[0, 0, 0] for _ in classes]
    for sample in samples:
        boxes = read_boxes(sample)
        if boxes is None:
            continue
        clips += 1
        frames += sample.entry.num_frames
        labelled += sample.entry.num_frames if boxes.labelled is None else len(boxes.labelled)
        for label in {track.label for track in boxes.tracks}:
            counts[label][0] += 1
        for track in boxes.tracks:
            counts[track.label][1] += 1
            counts[track.label][2] += len(track.boxes)
    if not clips:
        return None
    return Objects(clips, frames, labelled, [ClassObjects(n, *c) for n, c in zip(classes, counts, strict=True)])


def draw_boxes(image: "Image", frame: int, boxes: ClipBoxes, width: int) -> "Image":
    """Draw the boxes of a frame, one colour per class; a frame that is not labelled stays as it is.

    Args:
        image: The whole frame, in any size; drawn on.
        frame: Its number.
        boxes: Of the clip.
        width: Of the stored clip, pixels, in which boxes are counted.
    """
    from PIL import ImageDraw

    scale = image.width / width
    line = max(1, round(image.height / 60))
    drawing = ImageDraw.Draw(image)
    for track in boxes.tracks:
        if frame in track.frames:
            x0, y0, x1, y1 = (scale * edge for edge in track.boxes[track.frames.index(frame)])
            # The line lies on the box's own pixels: a far edge is the first pixel that is not the box's.
            corners = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
            drawing.rectangle(corners, outline=_COLOURS[track.label % len(_COLOURS)], width=line)
    return image
