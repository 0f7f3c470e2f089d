"""Reads sources whose videos have boxes: which videos there are, and what is annotated in each.

The listing notes a checksum of each video's annotation; the ingest reads the annotation again (`open_boxes`) and
compares. Reading 1.2 million XML files takes minutes, so a listing keeps what it found in
`.work/annotations-<dataset>-<part>.jsonl`, by names, sizes and times of change of the files.
"""

import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from data_specs.box_sources import BoxSource, CocoVideoSource, ImagenetDetSource
from data_specs.schema import digest
from tasks.ops.atomic import write_atomically
from tasks.ops.boxes import Annotation
from tasks.ops.readers_base import AnnotatedVideo, RawItem, ReadContext, ReaderError
from tasks.ops.readers_coco import CocoVideo
from tasks.ops.readers_imagenet import ImagenetDet, ImagenetVid

__all__ = ["AnnotationCache", "BoxReader", "open_boxes", "read_boxed"]


class BoxReader(Protocol):
    """What a kind of source with boxes can do."""

    origin: str
    """File that `AnnotatedVideo.line` counts in."""

    def videos(self, context: ReadContext) -> Iterable[AnnotatedVideo]:
        """Give the videos of the source."""

    def signature(self, path: str) -> str:
        """Return what changes with the files of a video's annotation; empty where reading it costs no more."""

    def read(self, path: str) -> tuple[Annotation | None, Counter[str]]:
        """Return a video's annotation, or None when it does not belong to the data set, and what to say about it."""


class _Known(NamedTuple):
    """What the listing keeps of an annotation."""

    signature: str
    sha256: str
    """Empty: the video does not belong to the data set."""
    label: str
    notes: dict[str, int]


class AnnotationCache:
    """Checksums of annotations, kept between listings; a killed listing keeps what it had read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, _Known] = {}
        self._used: dict[str, _Known] = {}
        self._lines = 0

    def __enter__(self) -> "AnnotationCache":
        if self._path.exists():
            with self._path.open(encoding="utf-8") as file:
                for line in file:
                    self._lines += 1
                    try:
                        key, signature, sha256, label, notes = json.loads(line)
                        self._known[key] = _Known(signature, sha256, label, dict(notes))
                    except (ValueError, TypeError):
                        continue  # the torn last line of a killed run
        return self

    def __exit__(self, *_: object) -> None:
        if sys.exc_info()[0] is None and self._lines > len(self._used) + 100:
            text = "".join(json.dumps([key, *known]) + "\n" for key, known in sorted(self._used.items()))
            write_atomically(self._path, text.encode())

    def of_videos(
        self, reader: BoxReader, videos: Iterable[AnnotatedVideo], part: str, classes: tuple[str, ...], source: str
    ) -> Iterator[tuple[AnnotatedVideo, _Known]]:
        """Give each video with what is known of its annotation, which is read where it is new or has changed.

        Args:
            reader: Of the source.
            videos: Of the source.
            part: Name of the part.
            classes: Class names in index order.
            source: What says how the annotation is read.
        """
        how = digest([source, list(classes)])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            if self._lines:
                file.write("\n")  # a torn last line must not take the next entry with it
            for video in videos:
                key = f"{part}\0{video.path}"
                signature = reader.signature(video.path)
                known = self._known.get(key)
                if known is None or not signature or known.signature != f"{how}{signature}":
                    annotation, notes = reader.read(video.path)
                    if signature and signature != reader.signature(video.path):
                        raise ReaderError(f"the annotation of {video.path} changed while it was being read; list again")
                    sha256, label = ("", "") if annotation is None else (annotation.sha256, annotation.label(classes))
                    known = _Known(f"{how}{signature}", sha256, label, dict(notes))
                    if signature:
                        file.write(json.dumps([key, *known]) + "\n")
                        self._lines += 1
                if signature:
                    self._used[key] = known
                yield video, known


def read_boxed(source: BoxSource, context: ReadContext) -> Iterator[RawItem]:
    """Read a source with boxes. An item's label is the classes that occur in it; it may be empty.

    Raises:
        ReaderError: a list or annotation is not as the specification says.
    """
    reader = open_boxes(source, context.root, context.project, context.classes)
    context.origin = reader.origin
    notes: Counter[str] = Counter()
    found = 0
    how = source.model_dump_json()
    with AnnotationCache(context.cache or context.project / ".work" / "annotations.jsonl") as cache:
        for video, known in cache.of_videos(reader, reader.videos(context), context.part, context.classes, how):
            notes.update(known.notes)
            if known.sha256:
                found += 1
                yield RawItem(video.path, known.label, video.split, None, None, None, video.line, known.sha256)
    context.notes += [f"{reader.origin}: {count} {what}" for what, count in sorted(notes.items())]
    if not found:
        raise ReaderError(f"{reader.origin}: no video with annotations of this data set's classes was found")


def open_boxes(source: BoxSource, root: str, project: Path, classes: tuple[str, ...]) -> BoxReader:
    """Return the reader of a source.

    Args:
        source: Of the specification.
        root: Root of its part: absolute folder, or URL.
        project: Project root; paths of lists are relative to it.
        classes: Class names in index order.

    Raises:
        ReaderError: a list or annotation file is missing or not as the specification says.
    """
    files = [getattr(source, name, None) for name in ("file", "videos", "frames", "images")]
    changed = []
    for name in filter(None, files):
        path = Path(name) if os.path.isabs(name) else project / name
        stat = path.stat() if path.exists() else None
        changed.append((str(path), stat and (stat.st_size, stat.st_mtime_ns)))
    return _open(source, root, project, classes, repr(changed))


@functools.lru_cache(maxsize=4)
def _open(source: BoxSource, root: str, project: Path, classes: tuple[str, ...], _: str) -> BoxReader:
    """Return the reader; one per process and state of its files, since a json file may have gigabytes."""
    if isinstance(source, CocoVideoSource):
        return CocoVideo(source, root, project, classes)
    if isinstance(source, ImagenetDetSource):
        return ImagenetDet(source, root, project, classes)
    return ImagenetVid(source, root, project, classes)
