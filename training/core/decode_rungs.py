"""The rungs of the decoder ladder: each yields (frame number, RGB picture) for sorted frame numbers.

All decode with one thread and yield in display order. Which rung is used is decided in `decode`.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RUNGS", "DecodeError", "opened", "video_stream"]

Frame = NDArray[np.uint8]
Source = bytes | Path


class DecodeError(RuntimeError):
    """A clip cannot be decoded, or has fewer frames or another size than its record says."""


def opened(source: Source) -> Any:
    """Return what PyAV and OpenCV can open: a stream over bytes, or a path as text."""
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


# --- torchcodec -------------------------------------------------------------------------------


def _torchcodec(source: Source, wanted: list[int]) -> Iterator[tuple[int, Frame]]:
    from torchcodec.decoders import VideoDecoder

    def opened_decoder() -> Any:
        name = source if isinstance(source, bytes) else str(source)
        return VideoDecoder(name, dimension_order="NHWC", num_ffmpeg_threads=1)

    decoder = opened_decoder()
    total = decoder.metadata.num_frames
    if total is None or wanted[-1] >= total:
        raise DecodeError(f"frame {wanted[-1]} is wanted, but the video has {total}")
    try:
        frames = decoder.get_frames_at(wanted).data.numpy()
    except RuntimeError:
        # Seeking in open groups of pictures can run past the end; without a seek such clips decode.
        decoder, chosen = opened_decoder(), set(wanted)
        for position in range(wanted[-1] + 1):
            frame = decoder.get_frame_at(position)
            if position in chosen:
                yield position, frame.data.numpy()
        return
    yield from zip(wanted, frames, strict=True)


# --- PyAV -------------------------------------------------------------------------------------


def _pyav(source: Source, wanted: list[int]) -> Iterator[tuple[int, Frame]]:
    import av
    from av.video.reformatter import VideoReformatter

    with av.open(opened(source), metadata_errors="ignore") as container:
        stream = video_stream(container)
        reformatter = VideoReformatter()
        packets = [packet for packet in container.demux(stream) if packet.size]
        plan = _plan(packets, wanted) if stream.codec_context.name == "h264" else None
        frames = _counted(stream, packets, wanted) if plan is None else _by_time(stream, plan)
        for position, frame in frames:
            if frame.is_corrupt:
                raise DecodeError(f"frame {position} is damaged")
            rgb = reformatter.reformat(frame, format="rgb24", threads=1)
            plane = rgb.planes[0]
            lines = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(rgb.height, plane.line_size)
            pixels = lines[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
            yield position, np.rot90(pixels, frame.rotation // 90) if frame.rotation else pixels


def video_stream(container: Any) -> Any:
    """Return the video stream that FFmpeg (and torchcodec) takes as the best one, set to one thread.

    Raises:
        DecodeError: no video stream, or only a cover picture.
    """
    from av.stream import Disposition

    if not any(not int(s.disposition) & int(Disposition.attached_pic) for s in container.streams.video):
        raise DecodeError("it has no video stream")
    stream = container.streams.best("video")
    stream.codec_context.thread_count = 1
    return stream


def _counted(stream: Any, packets: list[Any], wanted: list[int]) -> Iterator[tuple[int, Any]]:
    """Decode from the start to the last wanted frame and count."""
    chosen, position = set(wanted), 0
    for packet in [*packets, None]:
        for frame in stream.codec_context.decode(packet):
            if position in chosen:
                yield position, frame
            if position == wanted[-1]:
                return
            position += 1


class _Plan:
    """What to send to an H.264 decoder to get some frames: packets in decoding order, and frame numbers by time."""

    def __init__(self, packets: list[Any], position: dict[int, int]) -> None:
        self.packets = packets
        self.position = position


def _plan(packets: list[Any], wanted: list[int]) -> _Plan | None:
    """Leave out groups of pictures without wanted frames; None where time stamps or groups do not allow it."""
    shown = [packet.pts for packet in packets if not packet.is_discard]
    if any(pts is None for pts in shown) or len(set(shown)) != len(shown) or not packets[0].is_keyframe:
        return None
    shown.sort()
    if wanted[-1] >= len(shown):
        raise DecodeError(f"frame {wanted[-1]} is wanted, but the video has {len(shown)}")
    position = {shown[number]: number for number in wanted}
    groups: list[list[Any]] = []
    for packet in packets:
        if packet.is_keyframe:
            groups.append([])
        groups[-1].append(packet)
    # An open group has pictures shown before its key frame, which refer to the group before.
    if any(packet.pts < group[0].pts for group in groups for packet in group):
        return None
    chosen: list[Any] = []
    for group in groups:
        places = [place for place, packet in enumerate(group) if packet.pts in position]
        if places:
            chosen += group[: places[-1] + 1]
    return _Plan(chosen, position)


def _by_time(stream: Any, plan: _Plan) -> Iterator[tuple[int, Any]]:
    """Decode a plan; pictures that nothing refers to are skipped unless wanted."""
    context = stream.codec_context
    missing = dict(plan.position)
    skipping = False
    for packet in [*plan.packets, None]:
        skip = packet is not None and packet.pts not in plan.position
        if skip != skipping and packet is not None:
            context.skip_frame = "NONREF" if skip else "DEFAULT"
            skipping = skip
        for frame in context.decode(packet):
            position = missing.pop(frame.pts, None)
            if position is not None:
                yield position, frame
                if not missing:
                    return


# --- OpenCV -----------------------------------------------------------------------------------


def _opencv(source: Source, wanted: list[int]) -> Iterator[tuple[int, Frame]]:
    import cv2

    # OpenCV does not own the stream that it reads: this name must outlive `release`.
    stream = opened(source)
    capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            raise DecodeError("opencv cannot open it")
        chosen = set(wanted)
        for position in range(wanted[-1] + 1):
            if not capture.grab():
                return
            if position in chosen:
                ok, frame = capture.retrieve()
                if not ok:
                    raise DecodeError(f"opencv cannot decode frame {position}")
                yield position, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    finally:
        capture.release()
        del stream


RUNGS: dict[str, Callable[[Source, list[int]], Iterator[tuple[int, Frame]]]] = {
    "torchcodec": _torchcodec,
    "pyav": _pyav,
    "opencv": _opencv,
}
