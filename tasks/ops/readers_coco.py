"""Reader of json files in the layout of COCO-video (CocoVID, mmtracking): videos, frames, boxes with instance ids.

The file is read whole and kept as small tuples, once per process: a file of all of ImageNet VID needs some gigabytes
while it is parsed.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_specs.box_sources import CocoVideoSource
from tasks.ops import acquire
from tasks.ops.boxes import Annotation, Seen, annotate
from tasks.ops.frames import in_order, is_image
from tasks.ops.readers_base import AnnotatedVideo, ReadContext, ReaderError, existing


class _Image(NamedTuple):
    """One frame, as listed."""

    frame: int
    """From 0."""
    file: str
    labelled: bool
    subsets: tuple[str, ...] = ()
    """Named sets of frames that it belongs to."""


class _Video(NamedTuple):
    """One video and what is annotated in it."""

    path: str
    images: dict[int, _Image]
    """By frame, in order."""
    num_frames: int | None
    size: tuple[int, int] | None
    seen: list[Seen]


class CocoVideo:
    """Reader of a json file."""

    def __init__(self, source: CocoVideoSource, root: str, project: Path, classes: tuple[str, ...]) -> None:
        self._source = source
        self._root = root
        path = existing(source.file, project)
        self.origin = str(path)
        self._notes: Counter[str] = Counter()
        self._videos = _Parser(source, path, classes, self._notes).videos()

    def videos(self, context: ReadContext) -> Iterator[AnnotatedVideo]:
        """Give the videos; folders of frames are compared with the file names of the list.

        Raises:
            ReaderError: frame numbers of the list are not those of the folder's pictures.
        """
        context.notes += [f"{self.origin}: {count} {what}" for what, count in sorted(self._notes.items())]
        folders: dict[str, list[str]] | None = None
        for path, video in self._videos.items():
            if self._source.fps is not None and not is_image(path):
                if acquire.is_remote(self._root):
                    if folders is None:
                        folders = {}
                        for file in context.list_folder():
                            folder, _, name = file.rpartition("/")
                            folders.setdefault(folder, []).append(name)
                    names = folders.get(path, [])
                else:
                    place = Path(self._root, path)
                    names = os.listdir(place) if place.is_dir() else []
                if names:
                    self._compare(video, in_order(names))
            yield AnnotatedVideo(path, self._source.split, 0)

    def _compare(self, video: _Video, names: Sequence[str]) -> None:
        """Check that frame i of the list is picture i of its folder."""
        first = self._source.frames_from
        for image in video.images.values():
            name = image.file.rsplit("/", 1)[-1]
            if image.frame < len(names) and names[image.frame] == name:
                continue
            there = f"picture {names.index(name) + first} of the folder" if name in names else "not in the folder"
            hint = ""
            other = image.frame + 2 * first - 1
            if 0 <= other < len(names) and names[other] == name:
                hint = f"; frame_id seems to count from {1 - first}: set source.frames_from: {1 - first}"
            raise ReaderError(
                f"{self.origin}: {image.file!r} has frame_id {image.frame + first}, but is {there} {video.path!r}, "
                f"counted from {first} (source.frames_from){hint}"
            )

    def signature(self, path: str) -> str:
        """Return nothing: the file is read anyway."""
        return ""

    def read(self, path: str) -> tuple[Annotation | None, Counter[str]]:
        """Return the annotation of a video, and what to say about it."""
        video = self._videos.get(path)
        if video is None:
            raise ReaderError(f"{self.origin}: has no video {path!r} any more; list again")
        labelled = [image.frame for image in video.images.values() if image.labelled]
        known = set(labelled)
        notes: Counter[str] = Counter()
        if not labelled:
            notes["videos without labelled frames"] += 1
        seen = [item for item in video.seen if item.frame in known]
        if len(seen) < len(video.seen):
            notes["boxes in frames without is_vid_train_frame, left out (source.labelled: train)"] += len(
                video.seen
            ) - len(seen)
        made, told = annotate(seen, labelled, video.num_frames, video.size)
        subsets: dict[str, list[int]] = {}
        for image in video.images.values():
            for name in image.subsets:
                subsets.setdefault(name, []).append(image.frame)
        if subsets:
            made = made.model_copy(update={"subsets": {name: tuple(subsets[name]) for name in sorted(subsets)}})
        return made, notes + told


class _Parser:
    """Reads the parts of a json file."""

    def __init__(self, source: CocoVideoSource, path: Path, classes: tuple[str, ...], notes: Counter[str]) -> None:
        self._source = source
        self._path = path
        self._index = {name: number for number, name in enumerate(classes)}
        self._notes = notes
        try:
            data = json.loads(path.read_bytes())
        except ValueError as error:
            raise ReaderError(f"{path}: not valid JSON: {error}") from error
        for name in ("videos", "images", "annotations", "categories"):
            if not isinstance(data, dict) or not isinstance(data.get(name), list):
                raise ReaderError(
                    f"{path}: has no list `{name}`; the layout is that of CocoVID: videos, images (one per frame, with "
                    "video_id and frame_id), annotations (one per box, with image_id and instance_id), categories"
                )
        self._data = data

    def _get(self, item: Any, field: str, kind: type | tuple[type, ...], where: str) -> Any:
        """Return a field that must be there."""
        value = item.get(field) if isinstance(item, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ReaderError(f"{self._path}: {where}: {field} is {value!r}")
        return value

    def videos(self) -> dict[str, _Video]:
        """Return path → video, in the order of the file."""
        names: dict[int, dict[str, Any]] = {}
        for place, item in enumerate(self._data["videos"]):
            number = self._get(item, "id", int, f"videos[{place}]")
            if names.setdefault(number, item) is not item:
                raise ReaderError(f"{self._path}: videos[{place}]: id {number} is given twice")
        images, where = self._images(names)
        boxes = self._boxes(where)
        found: dict[str, _Video] = {}
        for number, item in names.items():
            mine = sorted(images.get(number, {}).items())
            if not mine:
                self._notes["videos without images, left out"] += 1
                continue
            video = self._video(number, item, [entry for _, entry in mine], boxes.get(number, []))
            if video.path in found:
                raise ReaderError(f"{self._path}: video {number}: {video.path!r} is another video's folder or file too")
            found[video.path] = video
        return found

    def _images(
        self, names: dict[int, dict[str, Any]]
    ) -> tuple[dict[int, dict[int, tuple[_Image, tuple[int, int] | None]]], dict[int, tuple[int, int]]]:
        """Return video → frame → (image, size), and image id → (video, frame)."""
        images: dict[int, dict[int, tuple[_Image, tuple[int, int] | None]]] = {}
        where: dict[int, tuple[int, int]] = {}
        only_train, flagged = self._source.labelled == "train", False
        for place, item in enumerate(self._data["images"]):
            at = f"images[{place}]"
            number, video = (self._get(item, name, int, at) for name in ("id", "video_id"))
            frame_id = self._get(item, "frame_id", int, at)
            # Frames of a video file have no file of their own.
            file = self._get(item, "file_name", str, at) if self._source.fps is not None else ""
            if video not in names:
                raise ReaderError(f"{self._path}: {at}: video_id {video} is not among `videos`")
            if number in where:
                raise ReaderError(f"{self._path}: {at}: id {number} is given twice")
            frame = frame_id - self._source.frames_from
            mine = images.setdefault(video, {})
            if frame < 0 or frame in mine:
                why = "is given twice" if frame >= 0 else f"is below source.frames_from: {self._source.frames_from}"
                raise ReaderError(f"{self._path}: {at}: frame_id {frame_id} of video {video} {why}")
            flagged = flagged or "is_vid_train_frame" in item
            labelled = not only_train or bool(item.get("is_vid_train_frame"))
            width, height = item.get("width"), item.get("height")
            size = (width, height) if isinstance(width, int) and isinstance(height, int) and width and height else None
            subsets = item.get("subsets", [])
            if not isinstance(subsets, list) or not all(isinstance(name, str) and name for name in subsets):
                raise ReaderError(f"{self._path}: {at}: subsets is {subsets!r}, must be a list of names")
            mine[frame] = (_Image(frame, file, labelled, tuple(subsets)), size)
            where[number] = (video, frame)
        if only_train and not flagged:
            raise ReaderError(f"{self._path}: no image has is_vid_train_frame, which source.labelled: train asks for")
        return images, where

    def _boxes(self, where: dict[int, tuple[int, int]]) -> dict[int, list[Seen]]:
        """Return video → what is annotated."""
        names: dict[int, str] = {}
        for place, item in enumerate(self._data["categories"]):
            names[self._get(item, "id", int, f"categories[{place}]")] = self._get(
                item, "name", str, f"categories[{place}]"
            )
        boxes: dict[int, list[Seen]] = {}
        for place, item in enumerate(self._data["annotations"]):
            at = f"annotations[{place}]"
            image, category = (self._get(item, name, int, at) for name in ("image_id", "category_id"))
            if image not in where or category not in names:
                what = f"image_id {image}" if image not in where else f"category_id {category}"
                raise ReaderError(f"{self._path}: {at}: {what} is not in the file")
            video, frame = where[image]
            if item.get("video_id", video) != video:
                raise ReaderError(f"{self._path}: {at}: video_id {item['video_id']}, its image is of video {video}")
            label = self._index.get(names[category])
            track = item.get("instance_id")
            if track is not None and (not isinstance(track, int) or track < 0):
                raise ReaderError(f"{self._path}: {at}: instance_id is {track!r}, must be a number from 0 on")
            if label is None:
                self._notes[f"boxes of class {names[category]!r}, which the data set does not have, left out"] += 1
            elif item.get("iscrowd"):
                self._notes["boxes around crowds (iscrowd), left out"] += 1
            else:
                box = self._box(self._get(item, "bbox", list, at), at)
                boxes.setdefault(video, []).append(Seen(frame, track, label, box))
        return boxes

    def _box(self, values: list[Any], at: str) -> tuple[float, float, float, float]:
        """Return the edges of a box given by corner, width and height."""
        if len(values) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise ReaderError(f"{self._path}: {at}: bbox is {values}, must be four numbers x, y, width, height")
        x, y, width, height = map(float, values)
        return x, y, x + width, y + height

    def _video(
        self, number: int, item: dict[str, Any], entries: list[tuple[_Image, tuple[int, int] | None]], seen: list[Seen]
    ) -> _Video:
        """Return one video."""
        at = f"video {number}"
        images = {image.frame: image for image, _ in entries}
        sizes = sorted({size for _, size in entries if size is not None})
        if len(sizes) > 1:
            raise ReaderError(f"{self._path}: {at}: its images have different sizes, such as {sizes[0]} and {sizes[1]}")
        whole = list(images) == list(range(len(images)))
        count = len(images) if whole else None
        if self._source.fps is not None:
            folders = sorted({image.file.rpartition("/")[0] for image in images.values()})
            if len(folders) > 1:
                raise ReaderError(f"{self._path}: {at}: its images are in several folders: {folders[0]}, {folders[1]}")
            path = folders[0] or self._get(item, "name", str, at)
        else:
            path = item.get("file_name") or self._get(item, "name", str, at)
            length = item.get("length", count)
            if isinstance(length, int):
                count = length
            elif list(images) == list(range(1, len(images) + 1)) and len(images) > 1:
                raise ReaderError(
                    f"{self._path}: {at}: its frame_ids are {1 + self._source.frames_from} to "
                    f"{len(images) + self._source.frames_from}, source.frames_from is {self._source.frames_from}; "
                    + ("set source.frames_from: 1" if not self._source.frames_from else "its first frame is missing")
                )
        if not path:
            raise ReaderError(f"{self._path}: {at}: has no name, and its images no folder")
        if count is not None and max(images) >= count:
            raise ReaderError(
                f"{self._path}: {at}: has frame_id {max(images) + self._source.frames_from}, but only {count} frames "
                f"counted from {self._source.frames_from}"
            )
        return _Video(path, images, count, sizes[0] if sizes else None, seen)
