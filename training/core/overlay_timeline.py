"""What a model used of each clip of a video, as a band under the picture: a row per input, a column per clip.

Columns are equally wide, whatever the clips' lengths: ten clips of a second each would be hair lines on the time axis
of two minutes, and those of a short video overlap. A line moves through the columns with the present time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
RGB = tuple[int, int, int]

GROUND: RGB = (20, 24, 29)
WORDS: RGB = (205, 212, 218)
LINES: RGB = (94, 104, 114)
PRESENT: RGB = (255, 255, 255)
ROWS: tuple[RGB, ...] = ((86, 180, 216), (232, 152, 86), (150, 200, 96), (190, 140, 210), (170, 176, 182))
"""Colours of used cells, row by row."""

LEAST_ROW, MOST_ROW = 18, 40
"""Height of a row, pixels; between them 1/16 of the picture's shorter side."""


@dataclass(frozen=True)
class Timeline:
    """What was used when."""

    names: tuple[str, ...]
    """Of the R rows."""
    time_S2: NDArray[np.float64]
    """Start and end of each clip, seconds; clips may overlap."""
    used_SR: NDArray[np.bool_]
    available_SR: NDArray[np.bool_] | None = None
    """What could have been used; None: everything."""

    def __post_init__(self) -> None:
        clips, rows = len(self.time_S2), len(self.names)
        if clips == 0 or rows == 0:
            raise ValueError("a timeline needs at least one clip and one row")
        if self.time_S2.shape != (clips, 2):
            raise ValueError(f"time_S2 must be ({clips}, 2), got {self.time_S2.shape}")
        for name, value in (("used_SR", self.used_SR), ("available_SR", self.available_SR)):
            if value is not None and value.shape != (clips, rows):
                raise ValueError(f"{name} must be ({clips}, {rows}), one column for each name, got {value.shape}")

    def in_order(self) -> "Timeline":
        """Return the same with the clips in order of their starts."""
        order = np.lexsort((self.time_S2[:, 1], self.time_S2[:, 0]))
        available = None if self.available_SR is None else self.available_SR[order]
        return Timeline(self.names, self.time_S2[order], self.used_SR[order], available)

    def column(self, time_s: float) -> float | None:
        """Return where in the row of columns a time lies, 0 (left edge) to S; clips must be in order.

        Of clips that follow one another the time runs through each column while its clip lasts, and rests on the edge
        between two of them; of overlapping ones it passes the middle of a column in the middle of its clip. None where
        all clips show the same moment.
        """
        start_S, end_S = self.time_S2[:, 0], self.time_S2[:, 1]
        count = len(start_S)
        if (start_S[1:] >= end_S[:-1] - 1e-6).all():
            edges = np.arange(count, dtype=np.float64)
            return float(np.interp(time_s, self.time_S2.ravel(), np.stack([edges, edges + 1], axis=1).ravel()))
        centre_S = self.time_S2.mean(axis=1)
        moments, inverse = np.unique(centre_S, return_inverse=True)
        if len(moments) == 1:
            return None
        places = np.bincount(inverse, weights=np.arange(count) + 0.5) / np.bincount(inverse)
        first, last = float(start_S.min()), float(end_S.max())
        return float(np.interp(time_s, [first, *moments, last], [0.0, *places, float(count)]))

    def present(self, time_s: float) -> NDArray[np.bool_]:
        """Return which clips (S,) contain a time."""
        return np.asarray((self.time_S2[:, 0] <= time_s) & (time_s < self.time_S2[:, 1]))


class Band:
    """The band of one video, drawn once; only the present time changes from frame to frame.

    Args:
        timeline: what to show.
        width: of the picture, pixels.
        height: of the picture, pixels.
    """

    def __init__(self, timeline: Timeline, width: int, height: int) -> None:
        self.timeline = timeline.in_order()
        self.width = width
        self.row = min(MOST_ROW, max(LEAST_ROW, min(width, height) // 16))
        self.pad = max(5, self.row // 3)
        # Even, as 4:2:0 needs.
        self.height = (2 * self.pad + self.row * len(timeline.names) + 1) // 2 * 2
        self.scale, self.left = self._words()
        self._still = self._draw()

    def cell(self, clip: int, row: int) -> tuple[int, int, int, int]:
        """Return y0, x0, y1, x1 (exclusive) of a cell in the band, pixels; clips counted in order of time."""
        x0, x1 = self._x(clip), self._x(clip + 1)
        gap = 1 if x1 - x0 >= 5 else 0
        top = self.pad + row * self.row
        return top + 1, x0 + gap, top + self.row - 1, max(x0 + gap + 1, x1 - gap)

    def at(self, time_s: float) -> Picture:
        """Return the band (height, width, 3) RGB at a time."""
        import cv2

        band = self._still.copy()
        base = self.pad + self.row * len(self.timeline.names)
        for clip in np.flatnonzero(self.timeline.present(time_s)):
            _, x0, _, x1 = self.cell(int(clip), 0)
            band[self.pad - 3 : self.pad - 1, x0:x1] = PRESENT
        place = self.timeline.column(time_s)
        if place is not None:
            x = min(self.width - 1, round(self._x(place)))
            cv2.line(band, (x, self.pad - 3), (x, base + 2), (0, 0, 0), 3)
            cv2.line(band, (x, self.pad - 3), (x, base + 2), PRESENT, 1)
        return band

    def _x(self, column: float) -> int:
        right = self.width - max(3, self.pad // 2)
        return round(self.left + (right - self.left) * column / len(self.timeline.used_SR))

    def _words(self) -> tuple[float, int]:
        """Return size of the letters and where the columns begin: the names get a third of the width at most."""
        import cv2

        scale = self.row / 46
        while True:
            sizes = [
                cv2.getTextSize(_ascii(name), cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0] for name in self.timeline.names
            ]
            wide = max(size[0] for size in sizes)
            if wide <= self.width // 3 - 10 or scale < 0.2:
                break
            scale *= 0.92
        return scale, min(wide + 10, self.width // 3)

    def _draw(self) -> Picture:
        import cv2

        band = np.empty((self.height, self.width, 3), np.uint8)
        band[:] = GROUND
        band[0] = LINES
        timeline = self.timeline
        for row, name in enumerate(timeline.names):
            colour = ROWS[row % len(ROWS)]
            middle = self.pad + row * self.row + self.row // 2
            (_, high), _ = cv2.getTextSize(_ascii(name), cv2.FONT_HERSHEY_SIMPLEX, self.scale, 1)
            names = band[:, : self.left - 2]  # what does not fit is cut off there
            cv2.putText(
                names,
                _ascii(name),
                (4, middle + high // 2),
                cv2.FONT_HERSHEY_SIMPLEX,
                self.scale,
                WORDS,
                1,
                cv2.LINE_AA,
            )
            for clip in range(len(timeline.used_SR)):
                y0, x0, y1, x1 = self.cell(clip, row)
                there = timeline.available_SR is None or bool(timeline.available_SR[clip, row])
                if timeline.used_SR[clip, row]:
                    band[y0:y1, x0:x1] = colour
                elif there:
                    dim = tuple(int(0.7 * c + 0.3 * g) for c, g in zip(colour, GROUND, strict=True))
                    cv2.rectangle(band, (x0, y0), (x1 - 1, y1 - 1), dim, 1)
                else:
                    _hatch(band[y0:y1, x0:x1])
        return band


def _hatch(cell: Picture) -> None:
    """Fill a cell with slanted lines, in place."""
    y, x = np.indices(cell.shape[:2])
    cell[(x + y) % 6 < 1] = LINES


def _ascii(text: str) -> str:
    """Return what the built-in font can show."""
    return text.encode("ascii", "replace").decode()


def clip_times(frames_S: Sequence[NDArray[np.int64]], time_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return start and end (S,2) of clips, seconds: from the first frame's time to the end of the last one.

    Args:
        frames_S: numbers of each clip's frames.
        time_T: time of each frame of the video; the last one lasts as long as the middle one of all.
    """
    last = float(np.median(np.diff(time_T))) if len(time_T) > 1 else 1.0
    ends = np.append(time_T[1:], time_T[-1] + last)
    return np.array([[time_T[int(frames.min())], ends[int(frames.max())]] for frames in frames_S])
