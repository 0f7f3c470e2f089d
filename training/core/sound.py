"""Sound of a video around given frames: decoded, mixed to mono and resampled, placed by its own time stamps (PyAV).

Picture and sound share the container's clock. When a frame is shown is read from the packets of the picture, without
decoding it, so any frame rate is right, a changing one too. Sound that starts before or after the picture stays where
it belongs, and what is missing between its packets is silence (zeros).

The whole track is decoded, also where only a few windows of a long one are wanted. Decoding only what windows need is
not exact: AAC fills bands with noise from a generator that runs on from packet to packet, so a window's samples would
depend on which others were asked for. Only mono samples at the wanted rate are kept (48 kB per second at 24 kHz).

`python -m training.core.sound <file|shard.tar> <rate> <samples> <frame,…> [<member> [<start> <frames per second>]]`
repeats one reading from the command line; loader errors print this line.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.config import SoundConfig
from training.core.decode_rungs import DecodeError, Source, opened, video_stream

__all__ = ["presentation_times", "read_sound", "reproduce_sound", "start_beside"]

Index = NDArray[np.int64]
Times = NDArray[np.float64]

GAP_S = 0.01
"""Time stamps that differ by less from where the samples before end are rounded ones (milliseconds in Matroska);
what differs by more is a gap or a jump. Half a packet of most codecs, which is the least that can be lost."""

CHUNK = 32
"""Decoded packets that are resampled together: calls cost more than the filter does."""


def read_sound(
    source: Source,
    centres: Index,
    config: SoundConfig,
    *,
    times: Times | None = None,
    start: float | None = None,
) -> NDArray[np.int16] | None:
    """Read the stretch of sound around each of some frames.

    A window that would start before the first sample is the first `samples` ones, one that would end behind the last
    is the last ones; a track that is shorter than a window is repeated (AdaMML's rules, with true times in the place of
    29.97 frames per second).

    Args:
        source: a file with sound, as bytes or path; of several tracks the best one is taken.
        centres: (V,) frame numbers.
        times: (L,) when each frame is shown, seconds on the clock of the sound; None: as the file's own picture says.
        start: time of the first sample, seconds, for a track without a clock (wav); None: as its time stamps say.

    Returns:
        (V,N) int16, or None where there is no sound: no track, or one without any sample.

    Raises:
        DecodeError: no readable file, sound that is there and cannot be decoded, or frames without times.
    """
    import av

    try:
        with av.open(opened(source), metadata_errors="ignore") as container:
            stream = container.streams.best("audio")
            if stream is None:
                return None
            streams = [stream] if times is not None else [video_stream(container), stream]
            packets: dict[int, list[Any]] = {each.index: [] for each in streams}
            for packet in container.demux(*streams):
                # An empty packet that only ends a stream does not know its own number.
                packets[packet.stream.index].append(packet)
            if times is None:
                times = _times(streams[0], packets[streams[0].index])
            if not any(packet.size for packet in packets[stream.index]):
                return None
            if stream.codec_context is None:
                raise DecodeError("there is no decoder for its sound")
            track = _track(stream, packets[stream.index], config.rate)
    except DecodeError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError) as error:
        raise DecodeError(f"its sound cannot be decoded: {type(error).__name__}: {error}") from error
    if track is None:
        return None
    samples, began = track
    if len(centres) and int(centres.max()) >= len(times):
        raise DecodeError(f"sound around frame {int(centres.max())} is wanted, but {len(times)} frames have a time")
    offsets = np.rint((times[centres] - (began if start is None else start)) * config.rate).astype(np.int64)
    return _windows(samples, offsets - config.samples // 2, config.samples)


def presentation_times(source: Source) -> Times:
    """Return when each frame of a video is shown, seconds on the file's clock, in display order, without decoding.

    Raises:
        DecodeError: no readable container or no video stream.
    """
    import av

    try:
        with av.open(opened(source), metadata_errors="ignore") as container:
            stream = video_stream(container)
            return _times(stream, list(container.demux(stream)))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"it is not a readable video: {type(error).__name__}: {error}") from error


def start_beside(wav: bytes, source: Source) -> float:
    """Return when the sound of a wav begins, seconds on the clock of the file whose own sound is the same.

    An encoder puts a packet of silence before what it is given. Players cut it off where the file says so; in a track
    that begins late nothing says so, and that packet is what this track is longer by.

    Returns:
        0 where the file has no sound.

    Raises:
        DecodeError: one of the two cannot be read.
    """
    import av

    try:
        with av.open(opened(source), metadata_errors="ignore") as container:
            stream = container.streams.best("audio")
            packets = [] if stream is None else [packet for packet in container.demux(stream) if packet.size]
            first = next((f for packet in packets for f in packet.decode() if f.pts is not None), None)
        if first is None:
            return 0.0
        with av.open(opened(wav)) as container:
            length = sum(packet.duration * packet.time_base for packet in container.demux(audio=0) if packet.size)
        began = first.pts * first.time_base
        surplus = packets[-1].pts * packets[-1].time_base - began - length
        # Without its last packet, a track that was encoded from the wav is longer only by what lies before it.
        priming = packets[0].duration * packets[0].time_base
        uncut = first.pts == packets[0].pts
        return float(began + priming if uncut and 0 <= surplus < priming else began)
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        raise DecodeError(f"its sound cannot be decoded: {type(error).__name__}: {error}") from error


def _times(stream: Any, packets: list[Any]) -> Times:
    shown = [packet.pts for packet in packets if packet.size and not packet.is_discard]
    if any(pts is None for pts in shown):
        # AVI and raw streams: a constant rate is all that is known.
        if not stream.average_rate:
            raise DecodeError("its frames have no times and no frame rate")
        first = float((stream.start_time or 0) * stream.time_base)
        return np.asarray(first + np.arange(len(shown)) / float(stream.average_rate))
    return np.sort(np.array(shown, dtype=np.float64)) * float(stream.time_base)


def _track(stream: Any, packets: list[Any], rate: int) -> tuple[NDArray[np.int16], float] | None:
    """Decode a track to mono samples with silence in its gaps; return them and the time of the first one."""
    runs: list[tuple[int, NDArray[np.int16]]] = []
    began: float | None = None
    for start, parts in _runs(stream, packets, rate):
        if began is None:
            began = start
        runs.append((round((start - began) * rate), np.concatenate(parts)))
    runs = [(place, part) for place, part in runs if len(part)]
    if began is None or not runs:
        return None
    if len(runs) == 1:
        return runs[0][1], began
    # A later run may lie before the first one, where time stamps jump back.
    first = min(place for place, _ in runs)
    track = np.zeros(max(place + len(part) for place, part in runs) - first, dtype=np.int16)
    for place, part in runs:
        track[place - first : place - first + len(part)] = part
    return track, began + first / rate


def _runs(stream: Any, packets: list[Any], rate: int) -> Iterator[tuple[float, list[NDArray[np.int16]]]]:
    """Yield the stretches without gaps: time of the first sample, and the resampled samples in parts."""
    from av.audio.resampler import AudioResampler

    waiting: list[Any] = []
    parts: list[NDArray[np.int16]] = []
    resampler: Any = None
    kind: tuple[Any, ...] | None = None
    start, length = 0.0, 0.0

    def resample(last: bool) -> None:
        fed = _joined(waiting)
        waiting.clear()
        for frame in [*fed, None] if last else fed:
            # Their own times are in the runs; the filter would take jitter of time stamps for gaps.
            if frame is not None:
                frame.pts = None
            parts.extend(done.to_ndarray()[0] for done in resampler.resample(frame))

    for frame in _frames(stream, packets):
        known = (frame.format.name, frame.layout.name, frame.sample_rate)
        time = start + length if frame.pts is None else float(frame.pts * frame.time_base)
        if kind != known or abs(time - (start + length)) > GAP_S:
            if kind is not None:
                resample(last=True)
                yield start, parts
            kind, start, length, parts = known, time, 0.0, []
            resampler = AudioResampler(format="s16", layout="mono", rate=rate)
        waiting.append(frame)
        length += frame.samples / frame.sample_rate
        if len(waiting) == CHUNK:
            resample(last=False)
    if kind is not None:
        resample(last=True)
        yield start, parts


def _frames(stream: Any, packets: list[Any]) -> Iterator[Any]:
    for packet in [*(packet for packet in packets if packet.size), None]:
        for frame in stream.codec_context.decode(packet):
            if frame.samples:
                yield frame


def _joined(frames: list[Any]) -> list[Any]:
    """Return frames of one kind as one, where their format has a NumPy type."""
    import av

    if len(frames) < 2:
        return list(frames)
    first = frames[0]
    try:
        axis = 1  # (channels, samples), or (1, samples × channels) where channels are interleaved
        joined = av.AudioFrame.from_ndarray(
            np.concatenate([frame.to_ndarray() for frame in frames], axis=axis), first.format.name, first.layout.name
        )
    except (KeyError, ValueError):
        return list(frames)
    joined.sample_rate = first.sample_rate
    joined.time_base = first.time_base
    return [joined]


def _windows(track: NDArray[np.int16], starts: Index, samples: int) -> NDArray[np.int16]:
    if len(track) < samples:
        track = np.tile(track, -(-samples // len(track)))[:samples]
    starts = np.clip(starts, 0, len(track) - samples)
    return np.stack([track[start : start + samples] for start in starts.tolist()])


# --- one reading from the command line --------------------------------------------------------


def reproduce_sound(path: str, config: SoundConfig, centres: Sequence[int], *more: str) -> str:
    """Return the command that repeats a reading; `more` is the member, for one without picture also start and rate."""
    frames = ",".join(str(int(c)) for c in centres)
    return " ".join(["python -m training.core.sound", path, str(config.rate), str(config.samples), frames, *more])


def main(arguments: Sequence[str]) -> None:
    """Read the sound that `reproduce_sound` names and print what came out."""
    path, rate, samples, frames, *more = arguments
    centres = np.array([int(f) for f in frames.split(",")], dtype=np.int64)
    source: Source = Path(path)
    if more:
        import tarfile

        with tarfile.open(path) as tar:
            file = tar.extractfile(more[0])
            if file is None:
                raise DecodeError(f"{path} has no file {more[0]}")
            source = file.read()
    start, times = None, None
    if len(more) == 3:
        start, times = float(more[1]), np.arange(centres.max() + 1) / float(more[2])
    result = read_sound(source, centres, SoundConfig(rate=int(rate), samples=int(samples)), times=times, start=start)
    if result is None:
        print("no sound")
    else:
        print(f"read {result.shape}, loudness {np.sqrt((result.astype(np.float64) ** 2).mean()):.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
