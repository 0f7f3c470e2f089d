"""Readers of ImageNet VID (videos as frame folders) and DET (pictures), with the XML annotations beside them."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data_specs.box_sources import ImagenetDetSource, ImagenetVidSource
from tasks.ops import acquire
from tasks.ops.boxes import Annotation, Seen, annotate
from tasks.ops.frames import frame_number, is_image
from tasks.ops.imagenet_xml import XmlPicture, read_xml
from tasks.ops.readers_base import AnnotatedVideo, ReadContext, ReaderError, existing, lines_of, walk_files

CLASSES = {
    "n02691156": "airplane", "n02419796": "antelope", "n02131653": "bear", "n02834778": "bicycle",
    "n01503061": "bird", "n02924116": "bus", "n02958343": "car", "n02402425": "cattle", "n02084071": "dog",
    "n02121808": "domestic_cat", "n02503517": "elephant", "n02118333": "fox", "n02510455": "giant_panda",
    "n02342885": "hamster", "n02374451": "horse", "n02129165": "lion", "n01674464": "lizard",
    "n02484322": "monkey", "n03790512": "motorcycle", "n02324045": "rabbit", "n02509815": "red_panda",
    "n02411705": "sheep", "n01726692": "snake", "n02355227": "squirrel", "n02129604": "tiger", "n04468005": "train",
    "n01662784": "turtle", "n04530566": "watercraft", "n02062744": "whale", "n02391049": "zebra",
}  # fmt: skip
"""WordNet id → class of ImageNet VID, in the order of its class numbers."""


class _Classes:
    """Turns names of XML files into class indices: WordNet ids, or class names as they are."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        index = {name: number for number, name in enumerate(classes)}
        self._index = index | {wnid: index[name] for wnid, name in CLASSES.items() if name in index}

    def seen(self, picture: XmlPicture, frame: int, notes: Counter[str]) -> Iterator[Seen]:
        """Give the objects of a picture that belong to the data set; others are counted."""
        for item in picture.objects:
            label = self._index.get(item.name)
            if label is None:
                notes[f"objects of class {item.name}, which the data set does not have, left out"] += 1
            else:
                yield Seen(frame, item.track, label, item.box)


def _annotations(source: ImagenetVidSource | ImagenetDetSource, kind: str, root: str, project: Path) -> Path:
    """Return the folder with the annotations of a source.

    Raises:
        ReaderError: there is none.
    """
    if source.annotations is not None:
        return existing(source.annotations, project)
    if acquire.is_remote(root):
        raise ReaderError(
            f"{root}: annotations are read from this machine only: copy Annotations/{kind} here and give the folder as "
            "source.annotations"
        )
    return existing(f"{root}/Annotations/{kind}", project)


def _data_files(prefix: str, root: str, context: ReadContext) -> Iterator[str]:
    """Give the files below a folder of the root, by their paths below the root, in sorted order.

    Raises:
        ReaderError: a local folder that does not exist.
    """
    if acquire.is_remote(root):
        yield from (path for path in context.list_folder() if path.startswith(f"{prefix}/"))
        return
    folder = Path(root, prefix)
    if not folder.is_dir():
        raise ReaderError(f"{folder} does not exist; the layout is <root>/Data/… with <root>/Annotations/… beside it")
    yield from (f"{prefix}/{path}" for path in walk_files(folder))


def _numbers(text: str, count: int, layout: str, where: str) -> tuple[str, tuple[int, ...]]:
    """Split a line into a name and so many numbers.

    Raises:
        ReaderError: it has not this layout.
    """
    name, *rest = text.split()
    if len(rest) != count or not all(item.isdecimal() for item in rest):
        raise ReaderError(f"{where}: {text!r} is not `{layout}`")
    return name, tuple(map(int, rest))


def _split_of(path: str) -> str | None:
    """Return the split that the first folder names."""
    first = path.split("/", 1)[0]
    return first if first in ("train", "val", "test") else None


class ImagenetVid:
    """Reader of ImageNet VID. Frame i is the picture with number i."""

    def __init__(self, source: ImagenetVidSource, root: str, project: Path, classes: tuple[str, ...]) -> None:
        self._source = source
        self._root = root
        self._classes = _Classes(classes)
        self._folder = _annotations(source, "VID", root, project)
        self._lines: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._listed: dict[str, set[int]] | None = None
        self.origin = f"{root}/Data/VID"
        for name, read in ((source.videos, self._read_videos), (source.frames, self._read_frames)):
            if name is not None:
                path = existing(name, project)
                self.origin = str(path)
                read(path)

    def _read_videos(self, path: Path) -> None:
        """Read a list of whole videos."""
        next_frame = 1
        for line, text in lines_of(path):
            where = f"{path}:{line}"
            layout = "<folder> <number of its first frame in the whole list> 0 <number of frames>"
            name, (first, start, count) = _numbers(text, 3, layout, where)
            if first != next_frame:
                raise ReaderError(f"{where}: its first frame has number {first}, must be {next_frame}")
            if start or not count:
                raise ReaderError(f"{where}: {count} frames from frame {start}; videos are read whole, from 0")
            if name in self._lines:
                raise ReaderError(f"{where}: {name} is already listed in line {self._lines[name]}")
            next_frame += count
            self._lines[name], self._counts[name] = line, count

    def _read_frames(self, path: Path) -> None:
        """Read a list of labelled frames."""
        self._listed = {}
        first = self._source.frames_from
        for line, text in lines_of(path):
            where = f"{path}:{line}"
            name, (_, number, count) = _numbers(text, 3, "<folder> <number> <frame> <number of frames>", where)
            if self._counts.setdefault(name, count) != count:
                raise ReaderError(
                    f"{where}: {name} has {count} frames here, {self._counts[name]} in line {self._lines[name]}"
                )
            self._lines.setdefault(name, line)
            frame = number - first
            if not 0 <= frame < count:
                raise ReaderError(
                    f"{where}: frame {number} is not among {count} frames counted from {first}; "
                    f"source.frames_from: {1 - first} would count from {1 - first}"
                )
            frames = self._listed.setdefault(name, set())
            if frame in frames:
                raise ReaderError(f"{where}: frame {number} of {name} is listed twice")
            frames.add(frame)

    def videos(self, context: ReadContext) -> Iterator[AnnotatedVideo]:
        """Give the videos of the list, or every folder with pictures."""
        subset = self._source.subset
        if self._lines:
            for name, line in self._lines.items():
                if subset is None or name.split("/", 1)[0] == subset:
                    yield AnnotatedVideo(f"Data/VID/{name}", _split_of(name), line)
            return
        prefix = "Data/VID" if subset is None else f"Data/VID/{subset}"
        files = _data_files(prefix, self._root, context)
        for folder in dict.fromkeys(path.rsplit("/", 1)[0] for path in files if is_image(path)):
            yield AnnotatedVideo(folder, _split_of(folder.removeprefix("Data/VID/")), 0)

    def _files(self, path: str) -> dict[int, os.DirEntry[str]]:
        """Return frame → annotation file of a video, of the frames that count as labelled."""
        name = path.removeprefix("Data/VID/")
        wanted = None
        if self._listed is not None and self._source.labelled == "listed":
            wanted = self._listed.get(name, set())
        found: dict[int, os.DirEntry[str]] = {}
        count = self._counts.get(name)
        try:
            with os.scandir(self._folder / name) as entries:
                for entry in entries:
                    if not entry.name.endswith(".xml") or entry.name.startswith("."):
                        continue
                    number = frame_number(entry.name)
                    if number is None or number in found or (count is not None and number >= count):
                        has = f"the list says {count} frames" if count else "names are <number>.xml"
                        raise ReaderError(f"{entry.path}: no frame of the video has this number, or two have; {has}")
                    if wanted is None or number in wanted:
                        found[number] = entry
        except FileNotFoundError:
            return {}
        return dict(sorted(found.items()))

    def signature(self, path: str) -> str:
        """Return what changes with names, sizes and times of a video's annotation files."""
        name = path.removeprefix("Data/VID/")
        wanted = sorted(self._listed.get(name, ())) if self._listed is not None else None
        seen = hashlib.sha256(f"{self._counts.get(name)} {wanted}\n".encode())
        for number, entry in self._files(path).items():
            stat = entry.stat()
            seen.update(f"{number} {entry.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return seen.hexdigest()

    def read(self, path: str) -> tuple[Annotation | None, Counter[str]]:
        """Return the annotation of a video, and what to say about it.

        Raises:
            ReaderError: a file cannot be read, or two of them give pictures of different sizes.
        """
        name = path.removeprefix("Data/VID/")
        notes: Counter[str] = Counter()
        seen: list[Seen] = []
        labelled: list[int] = []
        sizes: dict[tuple[int, int], Path] = {}
        for frame, entry in self._files(path).items():
            file = Path(entry.path)
            picture = read_xml(file)
            if picture.size is not None:
                sizes.setdefault(picture.size, file)
            labelled.append(frame)
            seen += self._classes.seen(picture, frame, notes)
        if len(sizes) > 1:
            (one, first), (other, second) = list(sizes.items())[:2]
            raise ReaderError(f"{second}: the picture has {other[0]}x{other[1]} pixels, in {first} {one[0]}x{one[1]}")
        count = self._counts.get(name)
        expected = set(range(max(labelled, default=-1) + 1 if count is None else count))
        if self._listed is not None and self._source.labelled == "listed":
            expected = self._listed.get(name, set())
        missing = len(expected - set(labelled))
        if not labelled:
            notes["videos without annotation"] += 1
        elif missing:
            notes["frames without annotation (unlabelled) in annotated videos"] += missing
        made, told = annotate(seen, labelled, count, next(iter(sizes), None))
        return made, notes + told


class ImagenetDet:
    """Reader of ImageNet DET. A picture is a clip of one frame."""

    def __init__(self, source: ImagenetDetSource, root: str, project: Path, classes: tuple[str, ...]) -> None:
        self._source = source
        self._root = root
        self._classes = _Classes(classes)
        self._folder = _annotations(source, "DET", root, project)
        self._list = None if source.images is None else existing(source.images, project)
        self.origin = f"{root}/Data/DET" if self._list is None else str(self._list)

    def videos(self, context: ReadContext) -> Iterator[AnnotatedVideo]:
        """Give the pictures of the list, or all."""
        subset = self._source.subset
        if self._list is None:
            prefix = "Data/DET" if subset is None else f"Data/DET/{subset}"
            for path in _data_files(prefix, self._root, context):
                if is_image(path):
                    yield AnnotatedVideo(path, _split_of(path.removeprefix("Data/DET/")), 0)
            return
        lines: dict[str, int] = {}
        again = 0
        for line, text in lines_of(self._list):
            name, _ = _numbers(text, 1, "<picture without extension> <number>", f"{self._list}:{line}")
            if name in lines:
                again += 1
            elif subset is None or name.split("/", 1)[0] == subset:
                lines[name] = line
                yield AnnotatedVideo(f"Data/DET/{name}.JPEG", _split_of(name), line)
        if again:
            context.notes.append(f"{self._list}: {again} lines repeat a picture, which is taken once")

    def _file(self, path: str) -> Path:
        """Return the annotation of a picture."""
        return self._folder / PurePosixPath(path.removeprefix("Data/DET/")).with_suffix(".xml")

    def signature(self, path: str) -> str:
        """Return size and time of change of a picture's annotation."""
        try:
            stat = self._file(path).stat()
        except FileNotFoundError:
            return "none"
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def read(self, path: str) -> tuple[Annotation | None, Counter[str]]:
        """Return the annotation of a picture, None when it shows nothing of the data set's classes."""
        notes: Counter[str] = Counter()
        file = self._file(path)
        if not file.exists():
            return None, Counter({"pictures without annotation, left out": 1})
        picture = read_xml(file)
        foreign: Counter[str] = Counter()
        seen = list(self._classes.seen(picture, 0, foreign))
        if not seen:
            return None, Counter({"pictures without an object of the data set's classes, left out": 1})
        if foreign:
            notes["objects of other classes in pictures that are taken, left out"] += foreign.total()
        made, told = annotate(seen, [0], 1, picture.size)
        return made, notes + told
