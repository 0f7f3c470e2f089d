"""Charts of the report as SVG text: no library, no script, colours from the page's style sheet.

Every mark has a `<title>`, which browsers show when the mouse rests on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Point:
    """A model in the accuracy-cost plane."""

    x: float
    y: float
    label: str
    kind: str = "version"
    """CSS class: champion, challenger, version or arm."""
    low: float | None = None
    high: float | None = None
    """Interval of y."""
    title: str = ""


@dataclass(frozen=True)
class Series:
    """A curve."""

    name: str
    points: Sequence[tuple[float, float]]


def number(value: float) -> str:
    """Return a short form of a number for axes and tables."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 10000 or abs(value) < 0.001:
        return f"{value:.1e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:.4g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round values between two bounds."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw), 10 * power)
    first = math.ceil(low / step - 1e-9) * step
    return [round(first + i * step, 12) for i in range(int((high - first) / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    marks = [
        m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    inside = [mark for mark in marks if low <= mark <= high]
    # Less than a decade may hold one or none of them.
    return inside if len(inside) > 2 else ticks(low, high)


@dataclass(frozen=True)
class Frame:
    """Plot area with its two scales."""

    width: int
    height: int
    x0: float
    x1: float
    y0: float
    y1: float
    log_x: bool = False
    left: int = 52
    right: int = 14
    top: int = 12
    bottom: int = 40
    y_ticks: int = 5
    """About how many."""

    def px(self, x: float) -> float:
        """Return the horizontal place of a value, pixels from the left edge."""
        if self.log_x:
            share = (math.log10(x) - math.log10(self.x0)) / (math.log10(self.x1) - math.log10(self.x0))
        else:
            share = (x - self.x0) / (self.x1 - self.x0)
        return self.left + share * (self.width - self.left - self.right)

    def py(self, y: float) -> float:
        """Return the vertical place of a value, pixels from the top edge."""
        return self.height - self.bottom - (y - self.y0) / (self.y1 - self.y0) * (self.height - self.top - self.bottom)

    def axes(self, x_label: str, y_label: str, percent: bool) -> list[str]:
        """Return grid lines, tick labels and the names of both axes."""
        parts = []
        for tick in ticks(self.y0, self.y1, self.y_ticks):
            y = self.py(tick)
            text = f"{100 * tick:.4g} %" if percent else number(tick)
            parts.append(
                f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            parts.append(f'<text class="tick" x="{self.left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
        for tick in _log_ticks(self.x0, self.x1) if self.log_x else ticks(self.x0, self.x1):
            x = self.px(tick)
            base = self.height - self.bottom
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{base}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 15}" text-anchor="middle">{number(tick)}</text>')
        middle = (self.left + self.width - self.right) / 2
        parts.append(
            f'<text class="axis" x="{middle:.0f}" y="{self.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
        )
        if y_label:
            parts.append(f'<text class="axis" x="{self.left}" y="{self.top - 2}">{escape(y_label)}</text>')
        return parts


def svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    """Return an image that is as wide as its place allows, at most `width` pixels."""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}" '
        f'style="max-width:{width}px">{"".join(parts)}</svg>'
    )


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both accuracy and cost, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def pareto(points: Sequence[Point], x_label: str, y_label: str, width: int = 860, height: int = 380) -> str:
    """Draw accuracy against cost with the frontier; the cost axis is logarithmic when it spans a decade."""
    points = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not points:
        return '<p class="none">No model has both accuracy and cost.</p>'
    xs = [p.x for p in points]
    log_x = min(xs) > 0 and max(xs) / min(xs) > 8
    pad = (max(xs) - min(xs)) * 0.08 or max(xs) * 0.2 or 1.0
    x0, x1 = (min(xs) / 1.35, max(xs) * 1.6) if log_x else (max(0.0, min(xs) - pad), max(xs) + 2 * pad)
    lows = [p.low if p.low is not None else p.y for p in points]
    highs = [p.high if p.high is not None else p.y for p in points]
    y0, y1 = max(0.0, min(lows) - 0.03), min(1.0, max(highs) + 0.03)
    frame = Frame(width, height, x0, x1, y0, y1, log_x, top=20)
    parts = frame.axes(x_label, y_label, percent=True)
    steps = []
    for i, point in enumerate(best := frontier(points)):
        if i:
            steps.append(f"{frame.px(point.x):.1f},{frame.py(best[i - 1].y):.1f}")
        steps.append(f"{frame.px(point.x):.1f},{frame.py(point.y):.1f}")
    parts.append(f'<polyline class="frontier" points="{" ".join(steps)}"/>')
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda p: -p.y):
        x, y = frame.px(point.x), frame.py(point.y)
        title = escape(point.title or f"{point.label}: {point.y:.1%} at {number(point.x)}")
        whisker = ""
        if point.low is not None and point.high is not None:
            low, high = frame.py(point.low), frame.py(point.high)
            whisker = f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        radius = 6 if point.kind in ("champion", "challenger") else 4.5
        parts.append(
            f'<g class="mark {point.kind}"><title>{title}</title>{whisker}'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/></g>'
        )
        if point.label:
            parts.append(_label(x, y, point.label, taken, frame))
    return svg(width, height, parts, f"{y_label} against {x_label}")


def _label(x: float, y: float, text: str, taken: list[tuple[float, float, float]], frame: Frame) -> str:
    """Place a label beside its point, moved down (with a hair line) until it covers no other label."""
    wide = 6.6 * len(text)
    start = x + 9
    if start + wide > frame.width - 2:
        start = x - 9 - wide
    line = y + 4
    while any(abs(line - other) < 13 and start < right and left < start + wide for left, right, other in taken):
        line += 3
    taken.append((start, start + wide, line))
    hair = ""
    if abs(line - y - 4) > 8:
        hair = f'<line class="hair" x1="{x:.1f}" y1="{y:.1f}" x2="{start - 2:.1f}" y2="{line - 4:.1f}"/>'
    return f'{hair}<text class="label" x="{start:.1f}" y="{line:.1f}">{escape(text)}</text>'


def lines(series: Sequence[Series], title: str, percent: bool = False, width: int = 400, height: int = 220) -> str:
    """Draw curves over steps; not-a-number values leave a gap."""
    shown = [s for s in series if any(math.isfinite(y) for _, y in s.points)]
    if not shown:
        return ""
    values = [y for s in shown for _, y in s.points if math.isfinite(y)]
    xs = [x for s in shown for x, _ in s.points]
    pad = (max(values) - min(values)) * 0.06 or abs(values[0]) * 0.1 or 1.0
    frame = Frame(width, height, min(xs), max(xs) + (max(xs) == min(xs)), min(values) - pad, max(values) + pad, top=22)
    parts = frame.axes("step", title, percent)
    for number_, item in enumerate(shown):
        pieces: list[list[str]] = [[]]
        for x, y in item.points:
            if math.isfinite(y):
                pieces[-1].append(f"{frame.px(x):.1f},{frame.py(y):.1f}")
            elif pieces[-1]:
                pieces.append([])
        last = next(y for _, y in reversed(item.points) if math.isfinite(y))
        hint = f"<title>{escape(item.name)}: last {number(last)}</title>"
        for piece in pieces:
            if len(piece) == 1:
                cx, cy = piece[0].split(",")
                parts.append(f'<circle class="dot s{number_ % 5}" cx="{cx}" cy="{cy}" r="3">{hint}</circle>')
            elif piece:
                parts.append(f'<polyline class="curve s{number_ % 5}" points="{" ".join(piece)}">{hint}</polyline>')
    if len(shown) > 1:
        x = float(width - frame.right)
        for number_, item in reversed(list(enumerate(shown))):
            parts.append(
                f'<text class="legend s{number_ % 5}" x="{x:.0f}" y="10" text-anchor="end">{escape(item.name)}</text>'
            )
            x -= 6.4 * len(item.name) + 12
    return svg(width, height, parts, title)


def heat(grid_HW: NDArray[np.float64], title: str, side: int = 220) -> str:
    """Draw a map of values from 0 to its maximum as squares of growing opacity."""
    height, width = grid_HW.shape
    top = float(grid_HW.max()) or 1.0
    cell_w, cell_h = side / width, side / height
    parts = [f'<rect class="ground" width="{side}" height="{side}"/>']
    for row in range(height):
        for column in range(width):
            share = float(grid_HW[row, column])
            if share > 0:
                parts.append(
                    f'<rect class="heat" x="{column * cell_w:.2f}" y="{row * cell_h:.2f}" width="{cell_w + 0.3:.2f}" '
                    f'height="{cell_h + 0.3:.2f}" fill-opacity="{share / top:.3f}"/>'
                )
    return svg(side, side, parts, title)


def confusion(matrix_KK: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Draw a confusion matrix: rows true class, columns predicted; shade by share of the row."""
    count = len(classes)
    longest = max(len(name) for name in classes)
    left, top = min(190, 8 + int(6.6 * longest)), min(150, 10 + int(5.2 * longest))
    cell = max(16, min(54, 560 // count))
    parts = []
    for i, name in enumerate(classes):
        y = top + (i + 0.5) * cell + 4
        parts.append(f'<text class="tick" x="{left - 6}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>')
        x = left + (i + 0.5) * cell
        parts.append(
            f'<text class="tick" transform="translate({x + 4:.1f},{top - 6}) rotate(-50)">{escape(name)}</text>'
        )
    for i in range(count):
        total = int(matrix_KK[i].sum()) or 1
        for j in range(count):
            value = int(matrix_KK[i, j])
            share = value / total
            kind = "right" if i == j else "wrong"
            title = escape(f"{classes[i]} named {classes[j]}: {value} of {total}")
            place = f'x="{left + j * cell}" y="{top + i * cell}" width="{cell - 1}" height="{cell - 1}"'
            parts.append(f'<g><title>{title}</title><rect class="cell" {place}/>')
            parts.append(f'<rect class="{kind}" {place} fill-opacity="{share:.3f}"/>')
            if value and cell >= 20:
                x, y = left + (j + 0.5) * cell - 0.5, top + (i + 0.5) * cell + 4
                dark = " on" if share > 0.55 else ""
                parts.append(f'<text class="count{dark}" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{value}</text>')
            parts.append("</g>")
    width, height = left + count * cell + 60, top + count * cell + 4
    return svg(width, height, parts, "confusion matrix")
