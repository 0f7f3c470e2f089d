"""Times of live frames, and which frames a model sees: plain arithmetic on timestamps, no clock."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Generic, TypeVar

__all__ = ["FrameSelector", "Timeline", "nearest_frames"]

T = TypeVar("T")

WRAP = 1 << 33
"""Timestamps of MPEG transport streams have 33 bits: at 90 kHz they start again after 26.5 hours."""

TRANSPORT_TICK = Fraction(1, 90_000)

EXACT_S = 1e-3
"""Times this near to one another are the same: Matroska rounds timestamps to milliseconds. Seconds."""


class Timeline:
    """Turns timestamps into seconds since the first frame that never go back.

    libavformat undoes one wrap of a transport stream only; here every wrap is undone. Other steps back (the sender
    started again) put the frame one frame interval after the one before, and are reported.
    """

    def __init__(self) -> None:
        self._tick = TRANSPORT_TICK
        self._interval_s = 0.0
        self._base_s = 0.0
        self._ticks = 0
        self._last_pts: int | None = None
        self._last_s: float | None = None

    def open(self, tick: Fraction, interval_s: float, away_s: float = 0.0) -> None:
        """Start a connection; after the first one its first frame follows the last frame of the one before.

        Args:
            tick: length of one unit of the timestamps, seconds.
            interval_s: what is taken for the distance of two frames where timestamps do not say it, seconds.
            away_s: time since the last frame, seconds.
        """
        self._tick, self._interval_s = tick, interval_s
        self._last_pts = None
        self._base_s = 0.0 if self._last_s is None else self._last_s + max(interval_s, away_s)
        self._ticks = 0

    def place(self, pts: int | None) -> tuple[float, bool]:
        """Return the time of the next frame, seconds since the first one, and whether its timestamp went back.

        Args:
            pts: timestamp in units of `tick`; None where the source gives none.
        """
        if pts is None:
            time_s = self._base_s if self._last_s is None else self._last_s + self._interval_s
            self._last_s = time_s
            return time_s, False
        step = 0 if self._last_pts is None else pts - self._last_pts
        if self._tick == TRANSPORT_TICK and abs(step) > WRAP // 2:
            step += WRAP if step < 0 else -WRAP
        self._last_pts = pts
        self._ticks += step
        time_s = self._base_s + float(self._ticks * self._tick)
        back = self._last_s is not None and time_s < self._last_s
        if back:
            assert self._last_s is not None
            self._base_s, self._ticks = self._last_s + self._interval_s, 0
            time_s = self._base_s
        self._last_s = time_s
        return time_s, back


class FrameSelector(Generic[T]):
    """Chooses the frame nearest to each tick k/rate; each frame at most once, of two equally near ones the earlier.

    A frame at or after a tick decides it, so what is chosen is known at most one frame late, and at once where
    frames lie on the ticks. A source slower than the model's rate gives each of its frames once. A tick beyond the
    last frame is decided as if one more frame had come, at the distance of the last two.
    """

    def __init__(self, rate: float | None) -> None:
        """Make a selector.

        Args:
            rate: ticks per second; None chooses every frame.

        Raises:
            ValueError: a rate that is not positive.
        """
        if rate is not None and not rate > 0:
            raise ValueError(f"the model's rate must be positive, got {rate}")
        self._rate = rate
        self._next = 0
        self._time_s: float | None = None
        self._step_s = 0.0
        self._held: T | None = None

    def add(self, time_s: float, frame: T) -> list[T]:
        """Take a frame, in order of time, and return those that are now chosen (none, one or two).

        Args:
            time_s: seconds since the first frame.
        """
        if self._rate is None:
            return [frame]
        chosen: list[T] = []
        taken = False
        last = math.floor((time_s + EXACT_S) * self._rate)
        if last >= self._next:
            last_s = last / self._rate
            # Ticks up to the middle between two frames belong to the earlier one.
            middle_s = -math.inf if self._time_s is None else (self._time_s + time_s) / 2 + EXACT_S
            if self._next / self._rate <= middle_s and self._held is not None:
                chosen.append(self._held)
            taken = last_s > middle_s or abs(time_s - last_s) <= EXACT_S
            if taken:
                chosen.append(frame)
            self._next = last + 1
        self._step_s = 0.0 if self._time_s is None else time_s - self._time_s
        self._time_s, self._held = time_s, None if taken else frame
        return chosen

    def flush(self) -> list[T]:
        """Return the last frame if the stream ended before the tick that it is the nearest to."""
        held, self._held = self._held, None
        if held is None or self._rate is None or self._time_s is None:
            return []
        return [held] if self._next / self._rate <= self._time_s + self._step_s / 2 + EXACT_S else []


def nearest_frames(times_s: Sequence[float], rate: float | None) -> list[int]:
    """Return the places of the frames that a model of a rate sees, for a whole list of times.

    Args:
        times_s: seconds since the first frame, not decreasing.
        rate: ticks per second; None: every frame.
    """
    selector: FrameSelector[int] = FrameSelector(rate)
    chosen = [place for number, time_s in enumerate(times_s) for place in selector.add(time_s, number)]
    return chosen + selector.flush()
