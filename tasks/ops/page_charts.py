"""Small charts as inline SVG, colored by the page's style sheet (so that they follow light and dark)."""

import html
import math
from collections import Counter
from collections.abc import Sequence

_WIDTH, _HEIGHT = 360, 150
_LEFT, _BOTTOM, _TOP = 34, 24, 8


def _nice(step: float) -> float:
    """Return the next of 1, 2, 5 × 10^n that is not below a step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _number(value: float) -> str:
    """Return a number for an axis."""
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def bins(values: Sequence[float], most: int = 30) -> tuple[list[float], list[int]]:
    """Return (edges, counts) of a histogram with round edges.

    Args:
        values: At least one finite number.
        most: Largest number of bins.
    """
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        step = _nice(max(abs(high), 1.0) / 10)
        first = math.floor(low / step) * step
        return [first, first + step], [len(values)]
    step = _nice((high - low) / most)
    first = math.floor(low / step + 1e-9) * step
    count = int((high - first) / step + 1e-9) + 1
    tally = Counter(min(count - 1, int((value - first) / step + 1e-9)) for value in values)
    return [first + n * step for n in range(count + 1)], [tally[n] for n in range(count)]


def histogram(values: Sequence[float], title: str, unit: str) -> str:
    """Return a histogram as SVG; an empty string when there is nothing to show."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    if min(values) == max(values):
        return f'<p class="one"><b>{values[0]:g}</b> {html.escape(unit)}, all of them</p>'
    edges, counts = bins(values)
    top = max(counts)
    width, height = _WIDTH - _LEFT - 8, _HEIGHT - _TOP - _BOTTOM
    bar = width / len(counts)
    parts = [_open(title)]
    for share in (0.5, 1.0):
        y = _TOP + height * (1 - share)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if top * share == int(top * share):
            parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" class="end">{_number(top * share)}</text>')
    for number, count in enumerate(counts):
        if count:
            size = max(1.5, height * count / top)
            tip = f"{edges[number]:g} to {edges[number + 1]:g} {unit}: {count}"
            parts.append(
                f'<rect class="bar" x="{_LEFT + number * bar + 0.5:.1f}" y="{_TOP + height - size:.1f}" '
                f'width="{max(1.0, min(bar - 1, 40)):.1f}" height="{size:.1f}"><title>{html.escape(tip)}</title></rect>'
            )
    base = _TOP + height
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{base}" y2="{base}"/>')
    step = _nice((edges[-1] - edges[0]) / 6)
    for number in range(math.ceil(edges[0] / step - 1e-9), int(edges[-1] / step + 1e-9) + 1):
        x = _LEFT + width * (number * step - edges[0]) / (edges[-1] - edges[0])
        parts.append(f'<text x="{x:.1f}" y="{base + 15}" class="mid">{_number(round(number * step, 9))}</text>')
    return "".join((*parts, "</svg>"))


def _open(title: str) -> str:
    """Return the opening tag of a chart."""
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title, quote=True)}">'
    )


def scatter(points: Sequence[tuple[float, float]], title: str, units: tuple[str, str]) -> str:
    """Return a scatter plot of (x, y) as SVG; points that coincide are drawn larger."""
    if not points:
        return ""
    tally = Counter(points)
    high_x, high_y = (max(point[axis] for point in tally) * 1.08 or 1.0 for axis in (0, 1))
    width, height = _WIDTH - _LEFT - 8, _HEIGHT - _TOP - _BOTTOM
    base = _TOP + height
    parts = [_open(title)]
    for axis_high, horizontal in ((high_x, True), (high_y, False)):
        step = _nice(axis_high / 4)
        for number in range(1, int(axis_high / step) + 1):
            value = number * step
            if horizontal:
                x = _LEFT + width * value / axis_high
                parts.append(f'<text x="{x:.1f}" y="{base + 15}" class="mid">{_number(value)}</text>')
            else:
                y = base - height * value / axis_high
                parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
                parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" class="end">{_number(value)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{base}" y2="{base}"/>')
    most = max(tally.values())
    for (x, y), count in sorted(tally.items()):
        radius = 2.5 + 6 * math.sqrt(count / most) * (most > 1)
        tip = f"{x:g} {units[0]}, {y:g} {units[1]}: {count}"
        parts.append(
            f'<circle class="dot" cx="{_LEFT + width * x / high_x:.1f}" cy="{base - height * y / high_y:.1f}" '
            f'r="{radius:.1f}"><title>{html.escape(tip)}</title></circle>'
        )
    return "".join((*parts, "</svg>"))
