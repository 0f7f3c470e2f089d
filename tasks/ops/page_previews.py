"""Animated thumbnails of clips: WebP files that any browser plays, with a still for readers who want no motion."""

import io
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, TypeVar

from data_specs.boxes import ClipBoxes
from data_specs.jpgs import unpack_jpgs
from data_specs.schema import ListedVideo
from tasks.ops.box_checks import draw_boxes, read_boxes
from tasks.ops.frames import in_order, is_image
from tasks.ops.shard_reader import StoredSample

if TYPE_CHECKING:
    from PIL.Image import Image

_T = TypeVar("_T")

FRAMES = 10
_HEIGHT = 112
_MOST = 60
_MILLISECONDS = 180


class Preview(NamedTuple):
    """One thumbnail of the contact sheet."""

    file: str
    """Name of the animated file; empty when the video cannot be shown."""
    still: str
    width: int
    height: int
    row: ListedVideo


def choose(rows: Sequence[ListedVideo], seed: int = 0, most: int = _MOST) -> list[ListedVideo]:
    """Choose rows for the contact sheet: as many of each class as fit, of different groups, by the seed."""
    choice = random.Random(seed)
    by_class: dict[str, list[ListedVideo]] = defaultdict(list)
    for row in rows:
        by_class[row.label].append(row)
    names = sorted(by_class)
    if len(names) > most:
        names = sorted(choice.sample(names, most))
    each = max(1, min(6, most // max(1, len(names))))
    chosen: list[ListedVideo] = []
    for name in names:
        found = by_class[name]
        choice.shuffle(found)
        # One of each source first: six clips of one recording show little of the class.
        first_of_group = {row.group: row for row in reversed(found)}
        others = [row for row in found if first_of_group[row.group] is not row]
        chosen += [*first_of_group.values(), *others][:each]
    return chosen


def frames_of_video(source: str | IO[bytes], count: int = FRAMES, boxes: ClipBoxes | None = None) -> "list[Image]":
    """Decode a video and return `count` frames, evenly spread (fewer when it has fewer), with their boxes."""
    import av

    with av.open(source) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        kept: list[Image] = []
        step = 1
        # The number of frames is not known beforehand: keep every step-th, and double the step when too many.
        for number, frame in enumerate(container.decode(stream)):
            if number % step == 0:
                image = _small(frame.to_image())
                kept.append(image if boxes is None else draw_boxes(image, number, boxes, frame.width))
                if len(kept) >= 2 * count:
                    kept, step = kept[::2], step * 2
            if number > 3000:
                break
    return _spread(kept, count)


def frames_of_folder(place: Path, count: int = FRAMES) -> "list[Image]":
    """Return at most `count` pictures of a folder of frames, or the picture at that place."""
    from PIL import Image

    files = [place / name for name in in_order(os.listdir(place))] if place.is_dir() else [place]
    found = []
    for file in _spread(files, count):
        with Image.open(file) as image:
            found.append(_small(image))
    return found


def frames_of_jpgs(data: bytes, count: int = FRAMES) -> "list[Image]":
    """Return at most `count` frames of a `jpgs` member."""
    from PIL import Image

    return [_small(Image.open(io.BytesIO(bytes(item)))) for item in _spread(unpack_jpgs(data), count)]


def _spread(items: list[_T], count: int) -> list[_T]:
    """Return at most `count` items, evenly spread."""
    if len(items) <= count:
        return items
    return [items[(2 * n + 1) * len(items) // (2 * count)] for n in range(count)]


def _small(image: "Image") -> "Image":
    """Return a picture of the height of the contact sheet."""
    image = image.convert("RGB")
    width = max(16, round(image.width * _HEIGHT / image.height))
    return image.resize((min(width, 3 * _HEIGHT), _HEIGHT), resample=2)  # bilinear


def write_preview(frames: "Sequence[Image]", folder: Path, key: str, row: ListedVideo) -> Preview:
    """Write one thumbnail: `<key>.webp` (animated) and `<key>.jpg` (its middle frame)."""
    animated, still = f"{key}.webp", f"{key}.jpg"
    frames[0].save(
        folder / animated,
        save_all=True,
        append_images=list(frames[1:]),
        duration=_MILLISECONDS,
        loop=0,
        quality=55,
        method=2,
    )
    frames[len(frames) // 2].save(folder / still, quality=70)
    return Preview(animated, still, frames[0].width, frames[0].height, row)


def preview(row: ListedVideo, place: str | StoredSample, folder: Path) -> Preview:
    """Make the thumbnail of one video; one that cannot be decoded gives a preview without file.

    Args:
        row: What is listed.
        place: Path of the source video, or the stored sample.
        folder: Where the files go.
    """
    import av

    try:
        if isinstance(place, str) and (is_image(place) or os.path.isdir(place)):
            frames = frames_of_folder(Path(place))
        elif isinstance(place, str):
            frames = frames_of_video(f"file:{place}")
        elif place.video == "jpgs":
            frames = frames_of_jpgs(place.read("jpgs"))
        else:
            frames = frames_of_video(io.BytesIO(place.read("mp4")), boxes=read_boxes(place))
    except (av.error.FFmpegError, OSError, ValueError, IndexError, KeyError):
        frames = []
    if not frames:
        return Preview("", "", 0, 0, row)
    return write_preview(frames, folder, row.key, row)
