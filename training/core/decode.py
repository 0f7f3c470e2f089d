"""The decoder ladder: bytes of a clip → only the frames that are asked for, as RGB.

Rungs in fixed order: torchcodec (needs FFmpeg's shared libraries), PyAV, OpenCV. All three convert with
FFmpeg's swscale and agree bit for bit on 8-bit 4:2:0 video of even size, the format of stored clips. They
do not on other sources: with 10 bits or an odd size single pixels differ by up to half the range, and of
several video streams OpenCV takes the first, the others the best. So the rung is part of a run's state.
One thread per clip: the loader decodes several clips at once, which scales better than threads inside one.

`python -m training.core.decode <file.mp4|shard.tar> <rung> <frame,…> [<member of the tar>]` repeats one
decode from the command line; loader errors print this line.
"""

import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_specs.jpgs import unpack_jpgs
from training.core.decode_rungs import RUNGS, DecodeError, opened, video_stream

__all__ = [
    "LADDER",
    "DecodeError",
    "coded_size",
    "count_frames",
    "count_key_frames",
    "count_packets",
    "decode_clip",
    "decode_jpegs",
    "frame_times",
    "reproduce_line",
    "resolve_decoder",
    "usable",
]

log = logging.getLogger(__name__)

LADDER = ("torchcodec", "pyav", "opencv")
"""Fixed order; `auto` takes the first that works on this machine."""

Frame = NDArray[np.uint8]
Source = bytes | Path
Index = NDArray[np.int64]


# --- ladder -----------------------------------------------------------------------------------


@functools.cache
def usable(name: str) -> str | None:
    """Return None when a rung works here, else why it does not."""
    try:
        if name == "torchcodec":
            from torchcodec.decoders import VideoDecoder  # noqa: F401
        elif name == "pyav":
            import av  # noqa: F401
        elif name == "opencv":
            import cv2

            if cv2.CAP_FFMPEG not in cv2.videoio_registry.getStreamBufferedBackends():
                return "this OpenCV cannot read video from memory"
        else:
            return f"there is no such decoder (known: auto, {', '.join(LADDER)})"
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def resolve_decoder(name: str) -> str:
    """Return the rung to use: `auto` → the first of the ladder that works here, else `name` itself.

    Raises:
        DecodeError: the named rung, or every rung, does not work here; the message says why.
    """
    if name != "auto":
        reason = usable(name)
        if reason is not None:
            raise DecodeError(f"decoder {name!r} cannot be used on this machine: {reason}")
        return name
    reasons: list[str] = []
    for rung in LADDER:
        reason = usable(rung)
        if reason is None:
            log.info("decoder: %s%s", rung, f" ({'; '.join(reasons)})" if reasons else "")
            return rung
        reasons.append(f"{rung} not usable: {reason}")
    raise DecodeError("no decoder works on this machine: " + "; ".join(reasons))


# --- decoding ---------------------------------------------------------------------------------


def decode_clip(source: Source, positions: Index, decoder: str, out: Frame | None = None) -> Frame:
    """Decode chosen frames of a video.

    Args:
        source: the file's bytes, or its path.
        positions: (T,) frame numbers in display order; repeats allowed.
        decoder: a rung, not `auto`.
        out: (T,H,W,3) array to write into, of exactly the video's size.

    Returns:
        (T,H,W,3) uint8 RGB; `out` if given.

    Raises:
        DecodeError: not decodable, too few frames, or another size than `out`.
    """
    wanted = sorted({int(p) for p in positions})
    if not wanted or wanted[0] < 0:
        raise DecodeError(f"frame numbers must be given and not negative, got {list(positions)}")
    places: dict[int, list[int]] = {}
    for place, position in enumerate(positions):
        places.setdefault(int(position), []).append(place)
    found = 0
    try:
        for position, frame in RUNGS[decoder](source, wanted):
            if out is None:
                out = np.empty((len(positions), *frame.shape), dtype=np.uint8)
            elif frame.shape != out.shape[1:]:
                raise DecodeError(f"frame {position} has {_size(frame.shape)}, expected {_size(out.shape[1:])}")
            for place in places[position]:
                out[place] = frame
            found += 1
    except DecodeError:
        raise
    except Exception as error:  # every library has its own exceptions; all mean the same here
        raise DecodeError(f"{decoder} cannot decode it: {type(error).__name__}: {error}") from error
    if out is None or found < len(wanted):
        raise DecodeError(
            f"{decoder} gave {found} of {len(wanted)} frames (last wanted: {wanted[-1]}); it is truncated"
        )
    return out


def count_packets(source: Source) -> int:
    """Count the packets that a video shows, without decoding: its frames, for nearly every file (PyAV).

    Raises:
        DecodeError: no readable container or no video stream.
    """
    import av

    try:
        with av.open(opened(source), metadata_errors="ignore") as container:
            packets = container.demux(video_stream(container))
            return sum(1 for packet in packets if packet.size and not packet.is_discard)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"it is not a readable video: {type(error).__name__}: {error}") from error


def count_key_frames(source: Source) -> int:
    """Count the pictures that can be decoded by themselves, without decoding (PyAV).

    Raises:
        DecodeError: no readable container or no video stream.
    """
    import av

    try:
        with av.open(opened(source), metadata_errors="ignore") as container:
            return sum(1 for packet in container.demux(video_stream(container)) if packet.size and packet.is_keyframe)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"it is not a readable video: {type(error).__name__}: {error}") from error


def count_frames(source: Source) -> int:
    """Count the frames of any video by decoding all of them (PyAV), without converting pixels.

    Raises:
        DecodeError: not decodable.
    """
    import av

    try:
        with av.open(opened(source), metadata_errors="ignore") as container:
            stream = video_stream(container)
            return sum(1 for _ in container.decode(stream))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"it is not a readable video: {type(error).__name__}: {error}") from error


def frame_times(source: Source) -> list[float]:
    """Return the time of every frame from the first one, seconds, in display order; decodes all of them (PyAV).

    Raises:
        DecodeError: not decodable.
    """
    import av

    try:
        with av.open(opened(source), metadata_errors="ignore") as container:
            times = [float(frame.time or 0.0) for frame in container.decode(video_stream(container))]
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"it is not a readable video: {type(error).__name__}: {error}") from error
    return [time - times[0] for time in times]


def coded_size(source: Source) -> tuple[int, int]:
    """Return height and width of a video as its container says, without decoding (PyAV).

    Raises:
        DecodeError: no readable container or no video stream.
    """
    import av

    try:
        with av.open(opened(source), metadata_errors="ignore") as container:
            context = video_stream(container).codec_context
            return int(context.height), int(context.width)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"it is not a readable video: {type(error).__name__}: {error}") from error


def decode_jpegs(member: bytes, places: Index, decoder: str, out: Frame | None = None) -> Frame:
    """Decode chosen frames of a `jpgs` member.

    Args:
        member: the packed JPEG files.
        places: (T,) places in the list of stored frames.
        decoder: a rung; `opencv` decodes with OpenCV, the others with simplejpeg.
        out: (T,H,W,3) array to write into.

    Raises:
        DecodeError: broken JPEG, too few frames, or another size than `out`.
    """
    try:
        files = unpack_jpgs(member)
        frames: dict[int, Frame] = {}
        for place, number in enumerate(int(p) for p in places):
            if number not in frames:
                if number >= len(files):
                    raise DecodeError(f"frame {number} is wanted, but only {len(files)} are stored")
                frames[number] = _jpeg(files[number], decoder)
            frame = frames[number]
            if out is None:
                out = np.empty((len(places), *frame.shape), dtype=np.uint8)
            elif frame.shape != out.shape[1:]:
                raise DecodeError(f"frame {number} has {_size(frame.shape)}, expected {_size(out.shape[1:])}")
            out[place] = frame
    except ValueError as error:
        raise DecodeError(f"broken jpgs member: {error}") from error
    if out is None:
        raise DecodeError("no frames asked for")
    return out


def _jpeg(file: memoryview, decoder: str) -> Frame:
    if decoder == "opencv":
        import cv2

        frame = cv2.imdecode(np.frombuffer(file, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
        if frame is None:
            raise DecodeError("opencv cannot decode a JPEG frame")
        return np.asarray(frame, dtype=np.uint8)
    import simplejpeg

    return np.asarray(simplejpeg.decode_jpeg(file, "RGB"), dtype=np.uint8)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}×{shape[1]} pixels (height × width)"


# --- one decode from the command line ---------------------------------------------------------


def reproduce_line(path: str, decoder: str, positions: Sequence[int], member: str | None = None) -> str:
    """Return the command that repeats a decode."""
    frames = ",".join(str(p) for p in positions)
    return " ".join(["python -m training.core.decode", path, decoder, frames, *([member] if member else [])])


def main(arguments: Sequence[str]) -> None:
    """Decode the frames that `reproduce_line` names and print the shape of the result."""
    path, decoder, frames, *member = arguments
    positions = np.array([int(f) for f in frames.split(",")], dtype=np.int64)
    source: Source = Path(path)
    if member:
        import tarfile

        with tarfile.open(path) as tar:
            file = tar.extractfile(member[0])
            if file is None:
                raise DecodeError(f"{path} has no file {member[0]}")
            source = file.read()
    if member and member[0].endswith(".jpgs") and isinstance(source, bytes):
        result = decode_jpegs(source, positions, decoder)
    elif member and member[0].endswith(".flow") and isinstance(source, bytes):
        from data_specs.flows import unpack_flow

        result = unpack_flow(source, positions.tolist())
    else:
        result = decode_clip(source, positions, decoder)
    print(f"decoded {result.shape} with {decoder}, mean {result.mean():.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
