"""Videos that are folders of numbered pictures, or one picture: order, checksum, and how they get into ffmpeg.

Pictures are not decoded here. They are put into a temporary QuickTime file as they are, one packet each, and from there
on are a video like any other. Picture i, by the number in its name, is frame i.

EXIF is left out on the way: its orientation would turn pictures, and boxes count the pixels as they are stored.
"""

import hashlib
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from data_specs.schema import RejectReason
from tasks.ops import acquire
from tasks.ops.acquire import Fetched, SourceFile, changed
from tasks.ops.probe import RejectedError

IMAGE_EXTENSIONS = (".jpeg", ".jpg", ".png")

_NUMBER = re.compile(r"(\d+)$")
_DOWNLOADS = 8
"""Objects of one folder that are downloaded at a time."""


class Picture(NamedTuple):
    """What the header of an image file says; all of a folder's must say the same."""

    codec: str
    """ffmpeg's name: mjpeg or png."""
    width: int
    height: int
    layout: tuple[int, ...]
    """Bits per sample, then sampling factors of the components (JPEG) or the colour type (PNG)."""


def is_image(path: str) -> bool:
    """Tell by its name whether a path is an image file."""
    return os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS


def frame_number(name: str) -> int | None:
    """Return the number at the end of a file name without its extension; None when there is none."""
    found = _NUMBER.search(os.path.splitext(name)[0])
    return int(found[1]) if found else None


def in_order(names: Iterable[str]) -> list[str]:
    """Return the image files among some names in the order of their numbers (of their names where these are equal)."""
    found = [(frame_number(name), name) for name in names if is_image(name)]
    return [name for _, name in sorted(found, key=lambda item: (-1 if item[0] is None else item[0], item[1]))]


def numbering_problem(names: Sequence[str], first: int | None = None) -> str | None:
    """Say why the names of a folder's pictures, in order, are no sequence of frames; None when they are.

    The step between numbers may be any (sets that were annotated at every fifth frame keep the numbers), but only one.
    With `first`, the first number must be this, and the step 1.
    """
    numbers = [frame_number(name) for name in names]
    if first is not None and numbers and numbers[0] != first:
        return f"the first picture is {names[0]!r}, its number must be {first}"
    if len(names) < 2:
        return None
    stems = {_NUMBER.sub("", os.path.splitext(name)[0]) for name in names}
    if None in numbers:
        return f"{names[numbers.index(None)]!r} has no number at the end of its name"
    if len(stems) > 1:
        one, other = sorted(stems)[:2]
        return f"pictures of several series are in one folder: names that begin with {one!r} and with {other!r}"
    counted = [number for number in numbers if number is not None]
    steps = [after - before for before, after in pairwise(counted)]
    if min(steps) == 0:
        at = steps.index(0)
        return f"{names[at]!r} and {names[at + 1]!r} have the same number"
    usual = min(steps) if first is None else 1
    if max(steps) > usual:
        at = next(i for i, step in enumerate(steps) if step > usual)
        return f"frames are missing between {names[at]!r} and {names[at + 1]!r}"
    return None


def folder_checksum(files: Iterable[tuple[str, str]]) -> str:
    """Return the checksum of a folder: sha256 over the names of its pictures and their checksums, in order."""
    text = "".join(f"{name}\0{checksum}\n" for name, checksum in files)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _jpeg_parts(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Give (marker, start, end) of the segments of a JPEG before its first scan, which is the last one given.

    Raises:
        ValueError: it ends, or is no JPEG, before its scan.
    """
    at = 2
    while True:
        start = at
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if data[at : at + 1] != b"\xff" or len(data) < at + 4:
            raise ValueError(f"no segment at byte {at}")
        marker = data[at + 1]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, start, at
        if marker == 0xDA:
            return


def _look_at_jpeg(data: bytes) -> tuple[Picture, bytes]:
    """Return the header of a JPEG, and the file without EXIF."""
    picture = None
    kept = [data[:2]]
    end = 2
    for marker, start, end in _jpeg_parts(data):
        body = data[start:end].lstrip(b"\xff")[3:]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, count = struct.unpack(">BHHB", body[:6])
            picture = Picture("mjpeg", width, height, (bits, *body[7 : 7 + 3 * count : 3]))
        if not (marker == 0xE1 and body.startswith(b"Exif\0")):
            kept.append(data[start:end])
    if picture is None or not picture.width or not picture.height:
        raise ValueError("no frame header before the scan")
    if data.find(b"\xff\xd9", end) < 0:  # a decoder fills what is missing with grey, without a word
        raise ValueError("it has no end")
    return picture, b"".join((*kept, data[end:]))


def _look_at_png(data: bytes) -> tuple[Picture, bytes]:
    """Return the header of a PNG, and the file without EXIF."""
    if data[12:16] != b"IHDR":
        raise ValueError("no header chunk")
    width, height, bits, colour = struct.unpack(">IIBB", data[16:26])
    kept, at = [data[:8]], 8
    while data[at - 8 : at - 4] != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise ValueError("it has no end")
        if data[at + 4 : at + 8] != b"eXIf":
            kept.append(data[at:end])
        at = end
    return Picture("png", width, height, (bits, colour)), b"".join(kept)


def look(data: bytes, name: str) -> tuple[Picture, bytes]:
    """Return what the header of an image file says, and its bytes without EXIF.

    The content decides what it is: there are PNG files that are called .JPEG.

    Raises:
        RejectedError: it is neither JPEG nor PNG, or is damaged.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _look_at_jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _look_at_png(data)
    except (ValueError, struct.error) as error:
        raise RejectedError(RejectReason.CORRUPT, f"{name}: the picture cannot be read: {error}") from error
    problem = f"has {len(data)} bytes" if len(data) < 8 else "is neither JPEG nor PNG"
    raise RejectedError(RejectReason.BAD_FRAMES, f"{name}: {problem}")


class _Muxer:
    """Puts pictures into a QuickTime file, whose time stamps are exact at any rate."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path = path
        self._rate = Fraction(rate).limit_denominator(1001)
        self._container: Any = None
        self._stream: Any = None
        self._first: tuple[str, Picture] | None = None
        self._count = 0

    def add(self, data: bytes, name: str) -> None:
        """Append a picture.

        Raises:
            RejectedError: it is damaged, or differs from the first in size or format.
        """
        import av

        picture, data = look(data, name)
        if self._first is None:
            self._first = (name, picture)
            self._container = av.open(f"file:{self._path.absolute()}", "w", format="mov")
            self._stream = self._container.add_mux_stream(
                picture.codec, rate=self._rate, width=picture.width, height=picture.height, time_base=1 / self._rate
            )
        elif picture != self._first[1]:
            first = self._first[1]
            raise RejectedError(
                RejectReason.BAD_FRAMES,
                f"{name} is {_described(picture)}, {self._first[0]} is {_described(first)}"
                + ("" if _described(picture) != _described(first) else " with another sampling of colours"),
            )
        packet = av.Packet(data)
        packet.stream = self._stream
        packet.time_base = 1 / self._rate
        packet.pts = packet.dts = self._count
        packet.duration = 1
        packet.is_keyframe = True
        self._container.mux(packet)
        self._count += 1

    def close(self) -> None:
        """Finish the file."""
        if self._container is not None:
            self._container.close()
            self._container = None


def _described(picture: Picture) -> str:
    """Return size and format for a message."""
    return f"{picture.width}x{picture.height} {'JPEG' if picture.codec == 'mjpeg' else 'PNG'}"


def remux(pictures: Iterable[tuple[str, bytes]], path: Path, rate: float, first: int | None = None) -> str:
    """Put pictures into a QuickTime file without encoding them.

    Args:
        pictures: (name, content) in order; all are read, also behind one that cannot be used.
        path: File that is made.
        rate: Frames per second.
        first: See `numbering_problem`.

    Returns:
        Checksum of the pictures, as `folder_checksum` makes it.

    Raises:
        RejectedFramesError: they are no video; carries the checksum too, since only listed bytes can be rejected.
    """
    muxer = _Muxer(path, rate)
    sums: list[tuple[str, str]] = []
    problem: RejectedError | None = None
    try:
        for name, data in pictures:
            sums.append((name, hashlib.sha256(data).hexdigest()))
            if problem is None:
                try:
                    muxer.add(data, name)
                except RejectedError as error:
                    problem = error
    finally:
        muxer.close()
    if problem is None:
        told = numbering_problem([name for name, _ in sums], first)
        problem = RejectedError(RejectReason.BAD_FRAMES, told) if told else None
    if problem is not None:
        raise RejectedFramesError(problem, folder_checksum(sums)) from problem
    return folder_checksum(sums)


class RejectedFramesError(RejectedError):
    """Pictures that are no video, with the checksum of what was read."""

    def __init__(self, problem: RejectedError, checksum: str) -> None:
        super().__init__(problem.reason, problem.detail)
        self.checksum = checksum


@contextmanager
def fetch_frames(
    location: str,
    folder: Path,
    size: int,
    checksum: str,
    rate: float,
    first: int | None = None,
    endpoint_url: str | None = None,
) -> Iterator[Fetched]:
    """Give a folder of pictures, or one picture, as a checked video file for the length of the block.

    Args:
        location: Folder or image file: path or URL.
        folder: The caller's own temporary folder; needs room for the pictures.
        size: Bytes of all pictures, as listed.
        checksum: As listed.
        rate: Frames per second that the file gets.
        first: Number that the first picture of a folder must have, with every number after it; None allows any.
        endpoint_url: S3 server, when not AWS's own.

    Raises:
        RejectedError: the pictures are no video.
        SourceChangedError: they are not those of the listing.
        SourceUnavailableError: not reachable.
    """
    target = folder / "frames.mov"
    if is_image(location) and not (not acquire.is_remote(location) and acquire.local_path(location).is_dir()):
        with acquire.fetch(location, folder, size, checksum, endpoint_url) as got:
            remux([(location.rsplit("/", 1)[-1], got.path.read_bytes())], target, rate)  # its number says nothing
            yield Fetched(target, got.sha256)
        return
    if acquire.is_remote(location):
        yield Fetched(target, _remux_remote(location, folder, size, checksum, rate, first, endpoint_url))
        return
    place = acquire.local_path(location)
    if not place.is_dir():
        raise changed(location, "it is gone")
    names = in_order(os.listdir(place))
    total = sum((place / name).stat().st_size for name in names)
    if total != size:
        raise changed(location, f"its {len(names)} pictures have {total} bytes, listed are {size}")
    try:
        found = remux(((name, (place / name).read_bytes()) for name in names), target, rate, first)
    except RejectedFramesError as reject:
        _compare(location, reject.checksum, checksum)
        raise
    _compare(location, found, checksum)
    yield Fetched(target, found)


def _compare(location: str, found: str, listed: str) -> None:
    """Refuse pictures that are not those of the listing."""
    if listed and found != listed:
        raise changed(location, f"the checksum of its pictures is {found[:12]}…, listed is {listed[:12]}…")


def _remux_remote(
    location: str, folder: Path, size: int, checksum: str, rate: float, first: int | None, endpoint_url: str | None
) -> str:
    """Download the pictures below a URL and make `frames.mov` of them; returns the checksum of their content."""
    found = {f.path: f for f in acquire.list_files(location, IMAGE_EXTENSIONS, endpoint_url) if "/" not in f.path}
    files = [found[name] for name in in_order(found)]
    total = sum(file.size for file in files)
    if total != size:
        raise changed(location, f"its {len(files)} pictures have {total} bytes, listed are {size}")
    _compare(location, folder_checksum((file.path, file.checksum) for file in files), checksum)

    def download(file: SourceFile) -> tuple[str, Path]:
        target = folder / f"picture-{file.path}"
        acquire.download(f"{location.rstrip('/')}/{file.path}", target, file.size, file.checksum, endpoint_url)
        return file.path, target

    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        return remux(
            ((name, _taken(path)) for name, path in pool.map(download, files)), folder / "frames.mov", rate, first
        )


def _taken(path: Path) -> bytes:
    """Return the content of a downloaded file and remove it."""
    data = path.read_bytes()
    path.unlink()
    return data
