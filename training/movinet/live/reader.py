"""Frames of a file, a URL or a camera, in a thread of its own, with everything counted that goes missing.

Two ways of handing frames on. A recording (a file, a pipe, a URL with a known end) waits for the consumer and loses
nothing. A live source (another URL, a camera, or a recording that is played at its own speed) does not wait: of a
full queue the oldest frame is dropped and counted, so answers are about now.

Read through PyAV, so whatever FFmpeg can open: MPEG-TS over udp, tcp or http, rtsp, devices by `format`.
Files and MPEG-TS on loopback are tested. Cameras (`/dev/video0`, or `format` v4l2, avfoundation, dshow) share this
reader and are UNTESTED: no machine of the project has one.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.decode_rungs import DecodeError, video_stream
from training.movinet.live.timing import Timeline

__all__ = ["Counts", "Frame", "LiveError", "LiveReader"]

DAMAGED_IN_A_ROW = 100
"""After so many damaged packets without a frame the source is given up."""

FASTEST = 120
"""Frame rates above this, frames per second, are not believed: variable ones are announced as thousands."""


class LiveError(RuntimeError):
    """A source cannot be opened, or ended before its end; the message names it and says what to do."""


@dataclass(frozen=True)
class Counts:
    """What became of the frames: `decoded` = `read` + `dropped` + those that still wait in the queue."""

    decoded: int = 0
    read: int = 0
    """Handed to the consumer."""
    dropped: int = 0
    """Thrown away because the consumer was slow."""
    corrupt: int = 0
    """Packets that could not be read or decoded, and frames that came damaged (these are handed on)."""
    gaps: int = 0
    """Steps of the source's timestamps that were longer than `gap_s` or went back."""
    reconnects: int = 0


class Frame:
    """One picture; the pixels are converted when they are asked for, so frames that nobody looks at cost little."""

    def __init__(
        self, picture: Any, reformatter: Any, number: int, time_s: float, arrived_s: float, breaks: int, corrupt: bool
    ) -> None:
        self.number = number
        """Place in the order of decoding, dropped frames included, from 0."""
        self.time_s = time_s
        """Seconds since the first frame, by the source's timestamps."""
        self.arrived_s = arrived_s
        """`time.monotonic()` when it was handed on by the reader."""
        self.breaks = breaks
        """How often timestamps went back or the source was opened again until this frame."""
        self.corrupt = corrupt
        self._picture = picture
        self._reformatter = reformatter
        self._pixels: NDArray[np.uint8] | None = None

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """(H,W,3) RGB, rotated as the loader's decoders do, equal to theirs; not to be written into."""
        if self._pixels is None:
            rgb = self._reformatter.reformat(self._picture, format="rgb24", threads=1)
            plane = rgb.planes[0]
            lines = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(rgb.height, plane.line_size)
            pixels = lines[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
            turned = int(getattr(self._picture, "rotation", 0) or 0)
            self._pixels = np.rot90(pixels, turned // 90) if turned else pixels
            self._picture = None
        return self._pixels


class LiveReader:
    """Reads one source; use as a context manager, iterate over it or poll `take`."""

    def __init__(
        self,
        source: str,
        *,
        realtime: bool = False,
        format: str | None = None,
        options: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
        reconnect: int = 0,
        queue: int = 8,
        gap_s: float = 1.0,
    ) -> None:
        """Describe the source; nothing is opened before `start`.

        Args:
            source: path, URL or device.
            realtime: play a recording at the speed of its timestamps and drop what the consumer cannot take.
            format: FFmpeg's name of the input format, needed for devices.
            options: FFmpeg's options of the input (`framerate`, `video_size`, `rtsp_transport`, …).
            timeout_s: how long opening, or waiting for the next packet, may take, seconds.
            reconnect: how often in a row a live source is opened again after it failed or ended.
            queue: frames that may wait.
            gap_s: steps of timestamps above this are counted as gaps, seconds.

        Raises:
            LiveError: no file, and neither a URL nor a device.
        """
        if queue < 1:
            raise ValueError(f"the queue must hold at least one frame, got {queue}")
        path = Path(source)
        camera = path.is_char_device()
        if not path.exists() and format is None and ":" not in source:
            raise LiveError(f"{source} does not exist; give a file, a URL (udp://, tcp://, rtsp://, …) or a device")
        self.source = source
        self.rate = 0.0
        """Frames per second that the source announces; known when the first frame is there."""
        self.live = False
        """Whether frames are dropped when the consumer is slow; known when the first frame is there."""
        self._realtime = realtime
        self._format = format or ("v4l2" if camera else None)
        self._device = camera or format is not None
        self._local = not self._device and (path.exists() or source.startswith(("pipe:", "file:")))
        self._options = dict(options or {})
        self._timeout_s, self._reconnect, self._gap_s = timeout_s, reconnect, gap_s
        self._capacity = queue
        self._timeline = Timeline()
        self._started_s: float | None = None
        self._last: tuple[float, float] | None = None
        self._breaks = 0
        self._reformatter: Any = None
        self._queue: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._ended = False
        self._error: BaseException | None = None
        self._decoded = self._read = self._dropped = self._corrupt = self._gaps = self._reconnects = 0
        # A daemon: a read that hangs in a silent network ends at its time-out and must not keep the program alive.
        self._thread = threading.Thread(target=self._run, name=f"live {source}", daemon=True)

    # --- the consumer's side --------------------------------------------------------------------

    def start(self) -> None:
        """Open the source and begin to read, in the background."""
        self._thread.start()

    def take(self, wait_s: float) -> Frame | None:
        """Return the oldest waiting frame, or None when none came within `wait_s` seconds or the source has ended.

        Raises:
            LiveError: the source could not be opened or ended unexpectedly; after the frames before it.
        """
        with self._changed:
            if not self._queue and not self._ended:
                self._changed.wait(wait_s)
            if self._queue:
                self._read += 1
                self._changed.notify_all()
                return self._queue.popleft()
            if self._ended and self._error is not None:
                raise self._error
            return None

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until the end of the source."""
        while True:
            frame = self.take(0.2)
            if frame is not None:
                yield frame
            elif self.ended:
                return

    @property
    def ended(self) -> bool:
        """Whether no frame will come any more."""
        with self._changed:
            return self._ended and not self._queue

    @property
    def counts(self) -> Counts:
        """What became of the frames so far."""
        with self._changed:
            return Counts(self._decoded, self._read, self._dropped, self._corrupt, self._gaps, self._reconnects)

    def close(self, wait_s: float = 2.0) -> bool:
        """Stop reading; returns whether the thread has ended (it may hang in a silent network until the time-out)."""
        self._stop.set()
        with self._changed:
            self._queue.clear()
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(wait_s)
        return not self._thread.is_alive()

    def __enter__(self) -> "LiveReader":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the reader's side ----------------------------------------------------------------------

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._read_until_the_end()
        except BaseException as caught:
            error = caught
        with self._changed:
            # What fails because it is being closed is nobody's business.
            self._error = None if self._stop.is_set() else error
            self._ended = True
            self._changed.notify_all()

    def _read_until_the_end(self) -> None:
        failures = 0
        while not self._stop.is_set():
            before = self._decoded
            error: LiveError | None = None
            try:
                self._read_once()
            except LiveError as caught:
                error = caught
            failures = failures + 1 if self._decoded == before else 1
            if self._local or self._stop.is_set() or failures > self._reconnect:
                if error is not None:
                    raise error
                return
            with self._changed:
                self._reconnects += 1
                self._breaks += 1
            self._stop.wait(min(1.0, self._timeout_s))

    def _read_once(self) -> None:
        """Open the source and hand on its frames until it ends.

        Raises:
            LiveError: it cannot be opened, or fails before its end.
        """
        import av
        from av.video.reformatter import VideoReformatter

        try:
            container = self._open()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise LiveError(f"{self.source}: cannot be opened: {_reason(error, self._timeout_s)}") from None
        packets = 0
        with container:
            try:
                stream = video_stream(container)
                self._reformatter = self._reformatter or VideoReformatter()
                self.rate = _announced_rate(stream)
                self.live = self._realtime or self._device or (not self._local and container.duration is None)
                away_s = 0.0 if self._last is None else time.monotonic() - self._last[1]
                self._timeline.open(stream.time_base, 1 / self.rate, away_s)
                for packet in self._packets(container, stream):
                    packets += bool(packet.size)
                    for picture in self._decode(stream, packet):
                        self._hand_on(picture)
                        if self._stop.is_set():
                            return
            except DecodeError as error:
                raise LiveError(f"{self.source}: {error}") from None
            except (av.FFmpegError, OSError) as error:
                raise LiveError(
                    f"{self.source}: ended unexpectedly after {self._position()}: {_reason(error, self._timeout_s)}"
                ) from None
            # What could not be read is a packet too: then the file is damaged, not cut off.
            if packets + self._corrupt < stream.frames:
                raise LiveError(
                    f"{self.source}: ends after {packets} of the {stream.frames} frames that it announces "
                    f"({self._position()}); it is cut off or still being written"
                )
            if not self._decoded and not self._stop.is_set():
                raise LiveError(f"{self.source}: no frame could be decoded")

    def _open(self) -> Any:
        import av

        options = dict(self._options)
        if not self._local and not self._device:
            # By default five seconds of a live source are looked at before the first frame is given out.
            options.setdefault("analyzeduration", "1000000")
        timeout = None if self._local else (self._timeout_s, self._timeout_s)
        return av.open(self.source, format=self._format, options=options, timeout=timeout, metadata_errors="ignore")

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """Yield packets; unreadable places are counted and passed over."""
        import av

        failures = 0
        while not self._stop.is_set():
            try:
                for packet in container.demux(stream):
                    failures = 0
                    if self._stop.is_set():
                        return
                    yield packet
                return
            except av.error.InvalidDataError:
                failures += 1
                self._count_corrupt()
                if failures >= DAMAGED_IN_A_ROW:
                    raise

    def _decode(self, stream: Any, packet: Any) -> Any:
        import av

        try:
            return stream.codec_context.decode(packet if packet.size else None)
        except av.error.InvalidDataError:
            self._count_corrupt()
            return ()
        except av.error.EOFError:
            return ()

    def _count_corrupt(self) -> None:
        with self._changed:
            self._corrupt += 1

    def _hand_on(self, picture: Any) -> None:
        """Give a frame its time, wait for that time or for room, and put it into the queue."""
        time_s, back = self._timeline.place(picture.pts)
        if self._realtime and self.live:
            if self._started_s is None:
                self._started_s = time.monotonic() - time_s
            self._stop.wait(max(0.0, self._started_s + time_s - time.monotonic()))
        with self._changed:
            while not self.live and len(self._queue) >= self._capacity and not self._stop.is_set():
                self._changed.wait()
            if self._stop.is_set():
                return
            while len(self._queue) >= self._capacity:
                self._queue.popleft()
                self._dropped += 1
            now = time.monotonic()
            self._breaks += back
            self._gaps += back or (self._last is not None and time_s - self._last[0] > self._gap_s)
            self._corrupt += bool(picture.is_corrupt)
            self._queue.append(
                Frame(picture, self._reformatter, self._decoded, time_s, now, self._breaks, bool(picture.is_corrupt))
            )
            self._decoded += 1
            self._last = (time_s, now)
            self._changed.notify_all()

    def _position(self) -> str:
        return "no frame" if self._last is None else f"{self._last[0]:.1f} s"


def _announced_rate(stream: Any) -> float:
    """Return the frames per second on whose grid the timestamps lie, or the average where that is not believable."""
    for rate in (stream.guessed_rate, stream.average_rate):
        if isinstance(rate, Fraction) and 0 < rate <= FASTEST:
            return float(rate)
    return 25.0


def _reason(error: Exception, timeout_s: float) -> str:
    import av

    if isinstance(error, av.error.ExitError | av.error.TimeoutError):
        return f"nothing came for {timeout_s:g} s; is the sender running?"
    if isinstance(error, av.error.InvalidDataError):
        return "it is not a video that FFmpeg knows, or too damaged"
    return str(getattr(error, "strerror", None) or error)
