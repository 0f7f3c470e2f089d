"""Draw where a model looked onto the video it looked at, and what it used under it; the sound is kept.

Boxes are fractions of the picture, so they fit whatever size the loader decoded at. Pictures go through
ffmpeg on both sides: it applies rotation and gives a constant rate, so that a frame's number is its time.
Small pictures are enlarged before anything is drawn: lines and letters have a least size.
"""

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from training.core.overlay_timeline import Band, Timeline

COLOUR = (80, 220, 255)
"""RGB of the patch."""

SHORT_SIDE = 256
"""Pictures with a smaller short side are enlarged to at least this, pixels."""

LONG_SIDE = 4096
"""No picture is enlarged beyond this: a strip would become one that no encoder takes."""


class OverlayError(RuntimeError):
    """The video cannot be read or written; the message has ffmpeg's last line."""


@dataclass(frozen=True)
class Track:
    """Where a model looked in one video."""

    time_T: NDArray[np.float64]
    """Seconds from the start, increasing."""
    box_T4: NDArray[np.float64]
    """y0, x0, y1, x1 as fractions of the picture."""


@dataclass(frozen=True)
class Written:
    """What `write_overlay` made."""

    frames: int
    sound: str
    """none, copied, or re-encoded (the container does not take the original's codec)."""


def patch_boxes(
    origin_T2: NDArray[np.generic],
    patch: float,
    input_size: tuple[int, int],
    crop: Sequence[float],
    picture: tuple[int, int],
    flipped: bool = False,
) -> NDArray[np.float64]:
    """Map patches from network-input coordinates to fractions of the whole picture.

    Args:
        origin_T2: top left corner (y, x) of the patch per frame, pixels of the network input.
        patch: side of the patch, pixels of the network input.
        input_size: height and width of the network input.
        crop: y0, x0, height, width of what was resized to the input, pixels of the decoded picture.
        picture: height and width of the decoded picture.
        flipped: whether the input was mirrored after the crop.

    Returns:
        (T, 4): y0, x0, y1, x1 in [0, 1].
    """
    origin = origin_T2.astype(np.float64)
    scale = np.array([crop[2] / input_size[0], crop[3] / input_size[1]])
    low = origin.copy()
    if flipped:
        low[:, 1] = input_size[1] - origin[:, 1] - patch
    corners = np.concatenate([low, low + patch], axis=1)
    offset = np.array([crop[0], crop[1]] * 2)
    size = np.array([picture[0], picture[1]] * 2, dtype=np.float64)
    return np.asarray(np.clip((offset + corners * np.tile(scale, 2)) / size, 0.0, 1.0))


def draw_box(frame: NDArray[np.uint8], box: Sequence[float], colour: tuple[int, int, int] = COLOUR) -> None:
    """Draw a box (fractions) into an RGB frame (H,W,3), in place."""
    import cv2

    height, width = frame.shape[:2]
    y0, x0, y1, x1 = (round(v * side) for v, side in zip(box, (height, width, height, width), strict=True))
    thick = max(1, min(height, width) // 120)
    outer = (max(0, x0), max(0, y0)), (min(width - 1, x1 - 1), min(height - 1, y1 - 1))
    cv2.rectangle(frame, *outer, (0, 0, 0), thick + 2)
    cv2.rectangle(frame, *outer, colour, thick)


def draw_label(frame: NDArray[np.uint8], text: str) -> None:
    """Write a line of text into the lower left corner of an RGB frame, in place, as large as fits."""
    import cv2

    height, width = frame.shape[:2]
    # The built-in font is ASCII only; what it cannot show becomes a question mark instead of three.
    text = text.encode("ascii", "replace").decode()
    scale = max(0.35, height / 480)
    while scale > 0.25 and cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] > 0.95 * width:
        scale *= 0.9
    thick = max(1, round(scale * 1.5))
    (wide, high), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    top = max(0, height - high - base - 6)
    frame[top:, : min(width, wide + 10)] //= 4
    cv2.putText(
        frame, text, (5, height - base - 2), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thick, cv2.LINE_AA
    )


def output_size(width: int, height: int) -> tuple[int, int]:
    """Return width and height of the written pictures: enlarged by a whole number where small, and even.

    A whole number shows every pixel that the model saw as a square of equal size.
    """
    factor = max(1, min(-(-SHORT_SIDE // min(width, height)), LONG_SIDE // max(width, height)))
    # Even sides, as 4:2:0 needs; a picture of one pixel has at least two.
    return max(2, width * factor // 2 * 2), max(2, height * factor // 2 * 2)


def write_overlay(
    source: Path,
    target: Path,
    *,
    label: str,
    track: Track | None = None,
    timeline: Timeline | None = None,
    ffmpeg_program: str,
    on_frame: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a copy of a video with label and patches drawn; the file appears only when it is complete.

    Its pictures have the size of `output_size`, below which a timeline's band is added; number of frames, rate and
    sound are the source's.

    Args:
        source: the video.
        target: an `.mp4` to write.
        label: text of every frame.
        track: where the model looked; a box stays until the next one's time. None draws none.
        timeline: what the model used of each clip, drawn under the picture; None adds no band.
        ffmpeg_program: path of ffmpeg.
        on_frame: called with (frames done, frames expected) for progress.

    Raises:
        OverlayError: the source cannot be decoded, or the target not be written.
    """
    import ffmpeg

    if target.suffix.lower() != ".mp4":
        raise OverlayError(f"{target}: the overlay is written as .mp4; name it so")
    width, height, fps, expected, stream = _probe(source)
    size = output_size(width, height)
    band = Band(timeline, *size) if timeline is not None else None
    enlarging = {"flags": "neighbor"} if size[1] > height else {}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".overlay-") as temporary:
        silent = Path(temporary) / "silent.mp4"
        log = Path(temporary) / "log"
        reading = (
            ffmpeg.input(str(source.absolute()))[str(stream)]
            .filter("scale", *size, **enlarging)
            .filter("fps", fps)
            .output("pipe:", format="rawvideo", pix_fmt="rgb24", an=None)
        )
        writing = (
            ffmpeg.input(
                "pipe:",
                format="rawvideo",
                pix_fmt="rgb24",
                s=f"{size[0]}x{size[1] + (band.height if band else 0)}",
                r=fps,
            )
            .output(str(silent), vcodec="libx264", pix_fmt="yuv420p", crf=20, preset="veryfast")
            .overwrite_output()
        )
        with log.open("wb") as errors:
            count = _copy_frames(
                reading.compile(cmd=ffmpeg_program),
                writing.compile(cmd=ffmpeg_program),
                errors,
                size,
                lambda number, frame: _draw(frame, number / fps, label, track, band),
                (lambda done: on_frame(done, expected)) if on_frame else None,
            )
        if count == 0:
            raise OverlayError(f"{source}: no frame could be decoded: {_last_line(log.read_bytes())}")
        whole, sound = add_sound(silent, source, Path(temporary), ffmpeg_program)
        whole.replace(target)
    return Written(count, sound)


def _draw(
    frame: NDArray[np.uint8], time_s: float, label: str, track: Track | None, band: Band | None
) -> NDArray[np.uint8]:
    """Draw into a frame and return it, with the band below."""
    # Half a millisecond: the time of a frame is rounded differently by the decoder and by us.
    time_s += 5e-4
    if track is not None and len(track.time_T):
        index = int(np.searchsorted(track.time_T, time_s, side="right")) - 1
        draw_box(frame, track.box_T4[max(0, index)].tolist())
    draw_label(frame, label)
    return frame if band is None else np.concatenate([frame, band.at(time_s)])


def _probe(source: Path) -> tuple[int, int, float, int, int]:
    """Return width, height (after rotation), frames per second, expected frames, number of the stream."""
    import av

    from training.core.decode_rungs import DecodeError, video_stream

    try:
        with av.open(str(source)) as container:
            stream = video_stream(container)
            fps = float(stream.average_rate or stream.guessed_rate or 25)
            duration = float(container.duration or 0) / 1e6
            frame = next(iter(container.decode(stream)), None)
            if frame is None:
                raise OverlayError(f"{source}: no frame can be decoded")
            rotation = abs(int(getattr(frame, "rotation", 0) or 0)) % 180
            width, height = frame.width, frame.height
            if rotation == 90:
                width, height = height, width
            return width, height, fps, round(duration * fps), stream.index
    except (av.FFmpegError, DecodeError) as error:
        raise OverlayError(f"{source}: cannot be opened as a video: {error}") from None


def _copy_frames(
    reading: list[str],
    writing: list[str],
    errors: IO[bytes],
    size: tuple[int, int],
    draw: Callable[[int, NDArray[np.uint8]], NDArray[np.uint8]],
    progress: Callable[[int], None] | None,
) -> int:
    """Pass every frame from one ffmpeg process to another; return how many.

    Raises:
        OverlayError: the writing process failed.
    """
    width, height = size
    length = width * height * 3
    count = 0
    with (
        subprocess.Popen([*reading, "-nostdin"], stdout=subprocess.PIPE, stderr=errors) as reader,
        subprocess.Popen(writing, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors) as writer,
    ):
        source, sink = _pipe(reader.stdout), _pipe(writer.stdin)
        try:
            while len(content := source.read(length)) == length:
                frame = np.frombuffer(bytearray(content), np.uint8).reshape(height, width, 3)
                sink.write(draw(count, frame).tobytes())
                count += 1
                if progress is not None:
                    progress(count)
            sink.close()
        except BrokenPipeError as error:
            reader.kill()
            raise OverlayError("ffmpeg stopped writing the overlay") from error
        except BaseException:
            reader.kill()
            writer.kill()
            raise
        if writer.wait() != 0 and count:
            raise OverlayError(f"ffmpeg could not write the overlay (status {writer.returncode})")
    return count


def _pipe(handle: IO[bytes] | None) -> IO[bytes]:
    if handle is None:
        raise OverlayError("ffmpeg was started without a pipe")
    return handle


def add_sound(silent: Path, source: Path, folder: Path, program: str) -> tuple[Path, str]:
    """Add the source's first sound track: copied, or as AAC where mp4 does not take its codec.

    Args:
        silent: pictures, an mp4.
        source: where the sound is; it may have none.
        folder: for what is written on the way.
        program: path of ffmpeg.

    Returns:
        A file in `folder`, or `silent` itself, and what became of the sound (see `Written`).

    Raises:
        OverlayError: the sound can be neither copied nor encoded again.
    """
    import av
    import ffmpeg

    with av.open(str(source), metadata_errors="ignore") as container:
        if not container.streams.audio:
            return silent, "none"
    whole = folder / "whole.mp4"
    message = ""
    for codec, said in (("copy", "copied"), ("aac", "re-encoded")):
        command: Any = ffmpeg.output(
            ffmpeg.input(str(silent)).video,
            ffmpeg.input(str(source.absolute()))["a:0"],
            str(whole),
            vcodec="copy",
            acodec=codec,
        ).overwrite_output()
        done = subprocess.run([*command.compile(cmd=program), "-nostdin"], capture_output=True)
        if done.returncode == 0:
            return whole, said
        message = _last_line(done.stderr)
    raise OverlayError(f"{source}: its sound can be neither copied nor re-encoded: {message}")


def _last_line(text: bytes) -> str:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
