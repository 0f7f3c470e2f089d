"""Looks at a source video before it is encoded: PyAV in process (a ffprobe per file would cost 20 times as much).

`python -m tasks.ops.probe <file>` prints what the probe finds, or the reason for which it rejects the file.
"""

import struct
import sys
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from data_specs.schema import RejectReason

MIN_SIDE = 16
"""Pixels; one macroblock, and the smallest short side that a clip policy may ask for."""

_MAX_RATE = 1000
"""Frames per second; a higher rate is the time base of a stream that does not state its rate."""


class Reject(NamedTuple):
    """Why a video did not become a sample."""

    reason: RejectReason
    detail: str
    command: str
    """Shell command that shows it."""


class RejectedError(Exception):
    """Carries a `Reject` up to the code that writes it down."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class VideoInfo:
    """What the container and the first frame say about a video."""

    container: str
    codec: str
    pix_fmt: str
    stream: int
    """Index of the video stream in the file."""
    coded_width: int
    coded_height: int
    width: int
    """Pixels as shown: after rotation, and with square pixels."""
    height: int
    rotation: int
    """Degrees by which a player turns the picture: 0, 90, 180 or 270."""
    full_range: bool
    rate: Fraction
    """Average frames per second."""
    duration_s: float
    """Of the video stream."""
    frames: int | None
    """As the container says; None when it does not."""
    start_s: float
    """Time stamp of the file's first packet; players count from there."""
    audio_stream: int | None
    audio_codec: str | None
    audio_rate: int | None
    """Samples per second."""

    @property
    def expected_frames(self) -> int:
        """Frames that the container promises, by count or by duration and rate."""
        return self.frames if self.frames else max(1, round(self.duration_s * self.rate))


def missing_end(path: Path) -> str | None:
    """Say what an MP4 or QuickTime file lacks when its top-level boxes do not fit into it, else None.

    A decoder does not notice a cut file when the cut falls between two frames, and cannot open one whose index
    was at the end; the box sizes tell both.
    """
    size = path.stat().st_size
    seen: list[str] = []
    with open(path, "rb") as file:
        if file.read(8)[4:] not in (b"ftyp", b"wide", b"mdat", b"moov", b"free", b"skip"):
            return None
        offset = 0
        while offset + 8 <= size:
            file.seek(offset)
            length, kind = struct.unpack(">I4s", file.read(8))
            if length == 1:
                large = file.read(8)
                length = struct.unpack(">Q", large)[0] if len(large) == 8 else size + 1
            elif length == 0:  # to the end of the file
                length = size - offset
            if length < 8 or not kind.isascii():
                return None  # not boxes any more: leave the judgement to the demuxer
            name = kind.decode()
            seen.append(name)
            if offset + length > size:
                return f"box {name!r} of {length} bytes at offset {offset} ends after the file's {size} bytes"
            offset += length
    if "moov" not in seen:
        return f"no 'moov' box in {size} bytes (found: {', '.join(seen)}): the end with the index is missing"
    return None


def _rate(stream: Any) -> Fraction | None:
    """Return the first believable frame rate of a stream."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= _MAX_RATE:
            return Fraction(rate)
    return None


def _tag_duration(stream: Any) -> float | None:
    """Return the duration that Matroska keeps in a tag of the stream, seconds."""
    for name, value in stream.metadata.items():
        if name.upper().startswith("DURATION"):
            try:
                hours, minutes, seconds = value.split(":")
                return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
            except ValueError:
                return None
    return None


def _scan(container: Any, stream: Any) -> tuple[int, float, Fraction | None]:
    """Read all packets (without decoding) and return their count, seconds from first to last, and rate."""
    first = last = None
    count = 0
    for packet in container.demux(stream):
        if packet.pts is None:
            continue
        count += 1
        first = packet.pts if first is None else min(first, packet.pts)
        last = packet.pts if last is None else max(last, packet.pts)
    if first is None or last is None:
        return 0, 0.0, None
    between = float((last - first) * stream.time_base)
    rate = Fraction((count - 1) / between).limit_denominator(1001) if between > 0 else None
    return count, between, rate


def probe(path: Path) -> VideoInfo:
    """Look at a video file.

    Raises:
        RejectedError: it cannot become a sample; carries reason and detail.
    """
    import av

    size = path.stat().st_size
    if size == 0:
        raise RejectedError(RejectReason.EMPTY, "file has 0 bytes")
    cut = missing_end(path)
    try:
        # An absolute path with the protocol: a name may start with a dash or contain a colon.
        container = av.open(f"file:{path.absolute()}")
    except av.error.FFmpegError as error:
        if cut:
            raise RejectedError(RejectReason.TRUNCATED, cut) from error
        raise RejectedError(RejectReason.NOT_A_VIDEO, f"cannot be opened: {error.strerror}") from error
    with container:
        if cut:
            raise RejectedError(RejectReason.TRUNCATED, cut)
        return _describe(container)


def _describe(container: Any) -> VideoInfo:
    """Return the facts of an open container."""
    import av

    # A cover picture of a music file is a video stream to the demuxer.
    videos = [s for s in container.streams.video if not int(s.disposition) & int(av.stream.Disposition.attached_pic)]
    if not videos:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise RejectedError(RejectReason.NO_VIDEO_STREAM, f"{container.format.name} with streams: {kinds}")
    stream = container.streams.best("video")
    if stream not in videos:
        stream = videos[0]
    context = stream.codec_context
    if context is None:
        raise RejectedError(RejectReason.UNSUPPORTED_CODEC, "no decoder for the video stream")
    audio = container.streams.best("audio")
    if audio is not None and (audio.codec_context is None or not audio.codec_context.sample_rate):
        audio = None
    rate = _rate(stream)
    frames = stream.frames or None
    start_s = (container.start_time or 0) / av.time_base
    duration_s = float(stream.duration * stream.time_base) if stream.duration else _tag_duration(stream)
    if duration_s is None and container.duration:
        duration_s = container.duration / av.time_base
    context.thread_count = 1
    frame = _first_frame(container, stream)
    if duration_s is None or duration_s <= 0 or rate is None:
        try:
            container.seek(0)
            count, between, scanned = _scan(container, stream)
        except av.error.FFmpegError as error:
            raise RejectedError(RejectReason.CORRUPT, f"packets cannot be read: {error.strerror}") from error
        rate = rate or scanned or Fraction(25)
        frames = frames or count or None
        duration_s = between + float(1 / rate)
    rotation = -round(frame.rotation / 90) * 90 % 360
    aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
    # Wider pixels stretch the width, narrower ones the height: no picture loses detail.
    shown = (frame.width * max(aspect, Fraction(1)), frame.height / min(aspect, Fraction(1)))
    if rotation in (90, 270):
        shown = shown[::-1]
    info = VideoInfo(
        container=container.format.name,
        codec=context.codec.canonical_name,
        pix_fmt=frame.format.name,
        stream=stream.index,
        coded_width=frame.width,
        coded_height=frame.height,
        width=round(shown[0]),
        height=round(shown[1]),
        rotation=rotation,
        full_range=frame.format.name.startswith("yuvj") or int(frame.color_range) == 2,
        rate=rate,
        duration_s=duration_s,
        frames=frames,
        start_s=start_s,
        audio_stream=None if audio is None else audio.index,
        audio_codec=None if audio is None else audio.codec_context.codec.canonical_name,
        audio_rate=None if audio is None else audio.codec_context.sample_rate,
    )
    if min(info.coded_width, info.coded_height) < MIN_SIDE:
        raise RejectedError(
            RejectReason.TOO_SMALL, f"{info.coded_width}x{info.coded_height} pixels, the least is {MIN_SIDE}"
        )
    return info


def _first_frame(container: Any, stream: Any) -> Any:
    """Decode until the first frame: only it tells rotation, true size and whether anything decodes at all."""
    import av

    problem = "no packets"
    try:
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    return frame
                problem = "no packet gives a frame"
            except av.error.FFmpegError as error:  # the next packet may be whole
                problem = f"decoder says: {error.strerror}"
    except av.error.FFmpegError as error:
        problem = f"packets cannot be read: {error.strerror}"
    raise RejectedError(RejectReason.CORRUPT, f"no frame can be decoded ({problem})")


def main(arguments: list[str]) -> int:
    """Print what the probe says about one file."""
    if len(arguments) != 1:
        print("usage: python -m tasks.ops.probe <file>", file=sys.stderr)
        return 2
    try:
        info = probe(Path(arguments[0]))
    except (RejectedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, value in asdict(info).items():
        print(f"{name:14} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
