"""Sizes and checksums of sources, kept between listings: of files, and of folders of frames."""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_specs.files import sha256_of
from infra.settings import Settings
from tasks.ops import acquire
from tasks.ops.atomic import write_atomically
from tasks.ops.frames import folder_checksum, in_order, is_image
from tasks.ops.readers_base import RawItem, ReaderError

__all__ = ["Checksums"]

_BYTES_WITHOUT_BAR = 500_000_000
_Todo = tuple[str, str, int, int]
"""Path below the root, full path, size, time of change (ns)."""

Remote = dict[str, tuple[int, str]]
"""Path below a URL → (size, etag)."""


class Checksums:
    """Sizes and checksums, kept between listings by path, size and time of change.

    New ones are appended as they come, so a killed listing does not hash again what it had hashed; the file is
    rewritten at the end only when entries went out of date.
    """

    def __init__(self, dataset: str, settings: Settings) -> None:
        self._path = settings.work / f"checksums-{dataset}.jsonl"
        self._settings = settings
        self._known: dict[str, tuple[int, int, str]] = {}
        self._used: set[str] = set()
        self._lines = 0
        self.ignored: Counter[str] = Counter()
        """Extension → files in folders of frames that are no pictures, of all items so far."""

    def __enter__(self) -> "Checksums":
        if self._path.exists():
            with self._path.open(encoding="utf-8") as file:
                for line in file:
                    self._lines += 1
                    try:
                        path, size, changed, checksum = json.loads(line)
                        self._known[path] = (int(size), int(changed), str(checksum))
                    except (ValueError, TypeError):
                        continue  # the torn last line of a killed run
        return self

    def __exit__(self, *_: object) -> None:
        if sys.exc_info()[0] is None and self._lines > len(self._used) + 100:
            text = "".join(json.dumps([path, *self._known[path]]) + "\n" for path in sorted(self._used))
            write_atomically(self._path, text.encode())

    def of_items(
        self, items: list[RawItem], root: str, remote: Remote | None, frames: bool = False
    ) -> list[tuple[int | None, str]]:
        """Return (size in bytes, checksum) of each item; (None, "") where the source has no such file.

        Args:
            items: What a part lists.
            root: Root of the part.
            remote: What lies below it, when it is a URL.
            frames: Items may be folders of pictures.

        Raises:
            ReaderError: an item is a folder and may not be, or a file changed while it was read.
        """
        if remote is not None and frames:
            remote = remote | _remote_folders(remote)
        result: dict[str, tuple[int | None, str]] = {}
        todo: list[_Todo] = []
        urls: list[str] = []
        for path in dict.fromkeys(item.path for item in items):
            if "://" in path:
                urls.append(path)
            elif remote is not None:
                result[path] = remote.get(path, (None, ""))
            else:
                full = f"{root}/{path}"
                try:
                    size, changed = self._signature(full, frames)
                except (FileNotFoundError, NotADirectoryError):
                    result[path] = (None, "")
                    continue
                known = self._known.get(full)
                self._used.add(full)
                if known is not None and known[:2] == (size, changed):
                    result[path] = (size, known[2])
                else:
                    todo.append((path, full, size, changed))
        if todo:
            result.update(self._hash(todo))
        if urls:
            with ThreadPoolExecutor(16) as pool:
                stats = pool.map(lambda url: acquire.stat(url, self._settings.s3_endpoint_url), urls)
                result.update((url, found or (None, "")) for url, found in zip(urls, stats, strict=True))
        return [result[item.path] for item in items]

    def _signature(self, path: str, frames: bool, count: bool = True) -> tuple[int, int]:
        """Return size and time of change (ns) of a file.

        Of a folder: the bytes of its pictures, and a number that changes with any name, size or time of them.
        """
        stat = os.stat(path)
        if not os.path.isdir(path):
            return stat.st_size, stat.st_mtime_ns
        if not frames:
            raise ReaderError(
                f"{path} is a folder; folders of frames are read by sources with `fps` (kind imagenet_vid, coco_video)"
            )
        size, seen = 0, hashlib.sha256()
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not is_image(entry.name):
                    if count and not entry.name.startswith("."):
                        self.ignored[os.path.splitext(entry.name)[1].lower() or "none"] += 1
                    continue
                stat = entry.stat()
                size += stat.st_size
                seen.update(f"{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return size, int.from_bytes(seen.digest()[:7], "big")

    def _hash(self, todo: list[_Todo]) -> Iterator[tuple[str, tuple[int, str]]]:
        """Hash files in threads and note each result at once."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            if self._lines:
                file.write("\n")  # a torn last line must not take the next entry with it
            checksums = pool.map(_checksum, (entry[1] for entry in todo))
            for (path, full, size, changed), checksum in zip(_progress(todo, self._settings), checksums, strict=True):
                if self._signature(full, True, count=False) != (size, changed):
                    raise ReaderError(f"{full} changed while it was being read; list again when it is complete")
                file.write(json.dumps([full, size, changed, checksum]) + "\n")
                self._known[full] = (size, changed, checksum)
                self._lines += 1
                yield path, (size, checksum)


def _checksum(path: str) -> str:
    """Return the checksum of a file, or of the pictures of a folder."""
    if not os.path.isdir(path):
        return sha256_of(Path(path))
    return folder_checksum((name, sha256_of(Path(path, name))) for name in in_order(os.listdir(path)))


def _remote_folders(remote: Remote) -> Remote:
    """Return folder → (bytes of its pictures, checksum) of all folders with pictures below a URL."""
    names: dict[str, list[str]] = {}
    for path in remote:
        folder, _, name = path.rpartition("/")
        if folder and is_image(name):
            names.setdefault(folder, []).append(name)
    return {
        folder: (
            sum(remote[f"{folder}/{name}"][0] for name in found),
            folder_checksum((name, remote[f"{folder}/{name}"][1]) for name in in_order(found)),
        )
        for folder, found in names.items()
    }


def _progress(todo: Sequence[_Todo], settings: Settings) -> Iterable[_Todo]:
    """Draw a progress bar (to stderr) where that many bytes have to be read that it takes a while."""
    if not settings.progress or sum(entry[2] for entry in todo) < _BYTES_WITHOUT_BAR:
        return todo
    from rich.console import Console
    from rich.progress import track

    return track(todo, description="checksums", console=Console(stderr=True))
