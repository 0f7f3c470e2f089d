"""Answers while a video runs: frames in, one running answer per chosen frame out, and what it cost.

The network is behind `StreamModel`: it carries its state from frame to frame and says how large that is. Nothing
here smooths answers. When the state is forgotten is decided here (`LiveSession`), because long streams
drift beyond what a network was trained on (issue 10352 of the reference code).
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from training.movinet.live.reader import Counts, Frame, LiveReader
from training.movinet.live.timing import EXACT_S, FrameSelector

__all__ = ["Answer", "LiveSession", "StreamModel", "Summary", "resident_bytes"]

RECENT = 10_000
"""Answers whose latency is kept: an endless stream must not fill the memory."""


class StreamModel(Protocol):
    """A network that sees a video frame by frame."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""

    @property
    def stride(self) -> int:
        """Every how many frames of its videos the network was trained on."""

    @property
    def state_bytes(self) -> int:
        """Size of what it carries from frame to frame."""

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a new video."""

    def push(self, frames_THWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities (T,K) after each of these T frames."""


@dataclass(frozen=True)
class Answer:
    """What the network says after one frame."""

    time_s: float
    """Of the frame, since the first one, by the source's timestamps."""
    frame: int
    """Number of the frame in the source, dropped ones counted."""
    classes: tuple[str, ...]
    """Best first."""
    scores: tuple[float, ...]
    dropped: int
    """Frames dropped so far."""
    latency_ms: float
    """From the frame's arrival at the reader to this answer."""
    answers_per_s: float
    """Recent speed, by the clock; 0 before the second answer."""

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as one line of `--json`."""
        return {"kind": "answer", **asdict(self)}


@dataclass(frozen=True)
class Summary:
    """A whole run."""

    ended: str
    """end of stream, interrupted, time limit, or error."""
    seconds: float
    """Time of the last frame that was read, by the source's timestamps."""
    decoded: int
    read: int
    selected: int
    """Frames that the network saw."""
    dropped: int
    corrupt: int
    gaps: int
    reconnects: int
    resets: int
    source_rate: float
    """Frames per second that arrived at the reader, by timestamps; 0 with fewer than two."""
    model_rate: float | None
    """Frames per second that the network was to see; None: every frame."""
    slower_than_model: bool
    """Whether the source has fewer frames per second than the network was trained at: each frame was seen once."""
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    answers_per_s: float
    """Over the whole run, by the clock."""
    state_bytes: int
    rss_growth_bytes: int | None
    """Resident memory at the end, less that after the first answer; None where the system does not tell."""
    rss_peak_growth_bytes: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as the last line of `--json`."""
        return {"kind": "summary", **asdict(self)}


class LiveSession:
    """One run of a network over one source."""

    def __init__(
        self,
        model: StreamModel,
        reader: LiveReader,
        *,
        chunk: int = 1,
        top: int = 3,
        rate: float | None = None,
        reset_every_s: float | None = None,
        reset_on_gap_s: float | None = None,
        max_seconds: float | None = None,
        on_frame: Callable[[Frame, Answer | None, int], None] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: is reset before the first frame.
            reader: started by the caller.
            chunk: frames that are pushed at once; more are cheaper per frame and answer later.
            top: classes per answer.
            rate: frames per second that the model sees; None: the source's announced rate over the model's stride.
            reset_every_s: forget the state at every multiple of this time, seconds of the source.
            reset_on_gap_s: forget the state when frames are further apart than this, seconds of the source
                (dropped frames included), when timestamps go back and when the source was opened again.
            max_seconds: stop before the first frame at or after this time, seconds of the source.
            on_frame: called for every frame that was read, after what it led to, with the newest answer and the
                number of dropped frames.
        """
        if chunk < 1:
            raise ValueError(f"a chunk has at least one frame, got {chunk}")
        for name, value in (("reset_every_s", reset_every_s), ("reset_on_gap_s", reset_on_gap_s)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.model = model
        self.reader = reader
        self._chunk, self._top = chunk, min(top, len(model.classes))
        self._reset_every_s, self._reset_on_gap_s, self._max_seconds = reset_every_s, reset_on_gap_s, max_seconds
        self._on_frame = on_frame
        if rate is not None and not rate > 0:
            raise ValueError(f"rate must be positive, got {rate}")
        self._rate = rate
        self._selector: FrameSelector[Frame] | None = None  # the source's rate is known with its first frame
        self._waiting: list[Frame] = []
        self._newest: Answer | None = None
        self._seen: Frame | None = None
        self._period = 0
        self._selected = self._resets = 0
        self._last: Frame | None = None
        self._ended = "error"
        self._interrupted = False
        self._latency_ms: deque[float] = deque(maxlen=RECENT)
        self._times_s: deque[float] = deque(maxlen=50)
        self._started_s = time.monotonic()
        self._first_rss: int | None = None
        self._peak_rss: int | None = None

    def interrupt(self) -> None:
        """End the run after the current frame. Safe in a signal handler: it only sets a flag."""
        self._interrupted = True

    def answers(self) -> Iterator[Answer]:
        """Yield an answer for each chosen frame until the source ends, the time is over, or `interrupt`.

        Raises:
            LiveError: the source could not be opened or ended unexpectedly; the answers before it were given, and
                `summary` is valid.
            ValueError: the model answers in another shape than (T,K).
        """
        self.model.reset()
        self._started_s = time.monotonic()
        failure: Exception | None = None
        while True:
            if self._interrupted:
                self._ended = "interrupted"
                return
            try:
                frame = self.reader.take(0.1)
            except Exception as error:
                failure = error
                break
            if frame is None:
                if self.reader.ended:
                    break
                continue
            if self._max_seconds is not None and frame.time_s >= self._max_seconds - EXACT_S:
                self._ended = "time limit"
                yield from self._flush()
                return
            self._last = frame
            if self._selector is None:
                if self._rate is None and self.model.stride > 1:
                    self._rate = self.reader.rate / self.model.stride
                self._selector = FrameSelector(self._rate)
            for chosen in self._selector.add(frame.time_s, frame):
                yield from self._see(chosen)
            if self._on_frame is not None:
                self._on_frame(frame, self._newest, self.reader.counts.dropped)
        yield from self._flush()
        if failure is not None:
            raise failure
        self._ended = "end of stream"

    def summary(self) -> Summary:
        """Return what happened so far."""
        counts: Counts = self.reader.counts
        latency = np.array(self._latency_ms)
        seconds = 0.0 if self._last is None else self._last.time_s
        source_rate = self._last.number / seconds if self._last is not None and seconds > 0 else 0.0
        wall_s = time.monotonic() - self._started_s
        rss = resident_bytes()
        self._note_memory(rss)
        return Summary(
            ended=self._ended,
            seconds=seconds,
            **asdict(counts),
            selected=self._selected,
            resets=self._resets,
            source_rate=source_rate,
            model_rate=self._rate,
            slower_than_model=self._rate is not None and 0 < source_rate < 0.99 * self._rate,
            latency_ms_p50=float(np.percentile(latency, 50)) if len(latency) else None,
            latency_ms_p95=float(np.percentile(latency, 95)) if len(latency) else None,
            answers_per_s=self._selected / wall_s if wall_s > 0 else 0.0,
            state_bytes=self.model.state_bytes,
            rss_growth_bytes=None if rss is None or self._first_rss is None else rss - self._first_rss,
            rss_peak_growth_bytes=_difference(self._peak_rss, self._first_rss),
        )

    # --- parts ----------------------------------------------------------------------------------

    def _see(self, frame: Frame) -> Iterator[Answer]:
        """Put a chosen frame into the chunk; push the chunk when it is full or cannot be continued."""
        before = self._seen
        fresh = self._must_forget(frame)
        # Frames of another size (the sender changed it) cannot be in one array.
        if fresh or (self._waiting and self._waiting[-1].pixels.shape != frame.pixels.shape):
            yield from self._push()
        if fresh and before is not None:
            self.model.reset()
            self._resets += 1
        self._seen = frame
        self._waiting.append(frame)
        if len(self._waiting) >= self._chunk:
            yield from self._push()

    def _must_forget(self, frame: Frame) -> bool:
        fresh = False
        if self._reset_every_s is not None:
            # Multiples of the period, not time since the last reset: the same whatever else caused a reset.
            period = int((frame.time_s + EXACT_S) / self._reset_every_s)
            fresh, self._period = period != self._period, period
        if self._reset_on_gap_s is not None and self._seen is not None:
            fresh |= frame.breaks != self._seen.breaks or frame.time_s - self._seen.time_s > self._reset_on_gap_s
        return fresh

    def _push(self) -> Iterator[Answer]:
        frames, self._waiting = self._waiting, []
        if not frames:
            return
        scores_TK = self.model.push(np.stack([frame.pixels for frame in frames]))
        expected = (len(frames), len(self.model.classes))
        if scores_TK.shape != expected:
            raise ValueError(f"the model answered {scores_TK.shape} to {len(frames)} frames, expected {expected}")
        now = time.monotonic()
        dropped = self.reader.counts.dropped
        for frame, scores_K in zip(frames, scores_TK, strict=True):
            order = np.argsort(-scores_K, kind="stable")[: self._top]
            self._selected += 1
            self._times_s.append(now)
            self._latency_ms.append(1000 * (now - frame.arrived_s))
            if self._first_rss is None or self._selected % 64 == 0:
                self._note_memory(resident_bytes())
            span_s = self._times_s[-1] - self._times_s[0]
            self._newest = Answer(
                time_s=frame.time_s,
                frame=frame.number,
                classes=tuple(self.model.classes[i] for i in order),
                scores=tuple(float(scores_K[i]) for i in order),
                dropped=dropped,
                latency_ms=self._latency_ms[-1],
                answers_per_s=(len(self._times_s) - 1) / span_s if span_s > 0 else 0.0,
            )
            yield self._newest

    def _flush(self) -> Iterator[Answer]:
        for frame in self._selector.flush() if self._selector is not None else ():
            yield from self._see(frame)
        yield from self._push()

    def _note_memory(self, rss: int | None) -> None:
        if rss is not None and self._selected:
            self._first_rss = rss if self._first_rss is None else self._first_rss
            self._peak_rss = max(rss, self._peak_rss or 0)


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None where the system has no /proc."""
    import resource

    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def _difference(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a - b
