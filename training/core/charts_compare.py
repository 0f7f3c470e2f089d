"""Charts that compare measurements: accuracy against cost with marks of several kinds, and interval (forest) charts.

Like `charts`: SVG text, colours from the page's style sheet, a `<title>` on every mark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from training.core.charts import Frame, number, svg, ticks

COLOURS = ("var(--one)", "var(--two)", "var(--three)", "var(--four)", "var(--five)")
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
CHARACTER = 6.7
"""Mean width of a character of 12.5 px text, pixels; generous, because the reader's font is not known."""


@dataclass(frozen=True)
class Mark:
    """A measurement in the accuracy-cost plane."""

    x: float
    y: float
    title: str
    """Shown when the mouse rests on it."""
    label: str = ""
    """Written beside it."""
    colour: str = "var(--one)"
    """CSS colour, best one of `palette`: dark pages then get the dark colours."""
    shape: str = "circle"
    """One of SHAPES."""
    hollow: bool = False
    low: float | None = None
    high: float | None = None
    """Interval of y."""


@dataclass(frozen=True)
class Interval:
    """A row of a forest chart."""

    label: str
    value: float | None
    """None: the row shows its note only."""
    low: float = math.nan
    high: float = math.nan
    note: str = ""
    """Right of the numbers."""
    minor: bool = False
    """Drawn smaller and indented."""


def scatter(
    marks: Sequence[Mark],
    x_label: str,
    y_label: str,
    *,
    line: Sequence[tuple[float, float]] = (),
    rules: Sequence[tuple[float, str]] = (),
    width: int = 1080,
    height: int = 470,
) -> str:
    """Draw accuracy against cost on a logarithmic axis.

    Args:
        marks: measurements; those with a label get it at their upper left, where a front leaves the plane empty.
        x_label: of the cost axis.
        y_label: of the accuracy axis, whose values are shares and are shown in per cent.
        line: points of the front, cheapest first; drawn as steps.
        rules: vertical lines of equal cost with their names.
        width: pixels.
        height: pixels.
    """
    marks = [mark for mark in marks if math.isfinite(mark.y) and mark.x > 0]
    if not marks:
        return '<p class="none">No measurement has both accuracy and cost.</p>'
    places = [*(mark.x for mark in marks), *(x for x, _ in rules)]
    span = max(max(places) / min(places), 1.5)
    ends = [value for mark in marks for value in (mark.y, mark.low, mark.high) if value is not None]
    pad = max(0.08 * (max(ends) - min(ends)), 0.01)
    rows = _rule_rows(rules, min(places), span, width)
    # Below the names of the rules there is room for the label of a mark at the upper edge.
    top = 26 + 16 * (max(rows, default=-1) + 1) + (14 if rules else 0)
    # Where marks lie at the upper edge (100 %), their labels are stacked above it.
    upper, lower = min(1.0, max(ends) + 1.6 * pad), max(0.0, min(ends) - pad)
    crowd = sum(bool(mark.label) and mark.y > upper - 0.06 * (upper - lower) for mark in marks)
    top += 15 * min(crowd, 6)
    frame = Frame(
        width,
        height + 15 * min(crowd, 6),
        min(places) / span**0.06,
        max(places) * span**0.06,
        lower,
        upper,
        log_x=True,
        left=56,
        top=top,
        bottom=44,
        y_ticks=9,
    )
    parts = frame.axes(x_label, "", percent=True)
    parts.append(f'<text class="axis" x="{frame.left}" y="12">{escape(y_label)}</text>')
    for (x, name), row in zip(rules, rows, strict=True):
        px, text = frame.px(x), 36 + 16 * row
        base = frame.height - frame.bottom
        parts.append(f'<line class="rule" x1="{px:.1f}" x2="{px:.1f}" y1="{text + 4}" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{px:.1f}" y="{text}" text-anchor="middle">{escape(name)}</text>')
    steps: list[str] = []
    for i, (x, y) in enumerate(line):
        if i:
            steps.append(f"{frame.px(x):.1f},{frame.py(line[i - 1][1]):.1f}")
        steps.append(f"{frame.px(x):.1f},{frame.py(y):.1f}")
    if len(line) > 1:
        parts.append(f'<polyline class="frontier" points="{" ".join(steps)}"/>')
    for mark in marks:
        if mark.low is not None and mark.high is not None:
            px, low, high = frame.px(mark.x), frame.py(mark.low), frame.py(mark.high)
            parts.append(
                f'<g style="color:{mark.colour}"><line class="whisker" x1="{px:.1f}" x2="{px:.1f}" '
                f'y1="{low:.1f}" y2="{high:.1f}"/></g>'
            )
    # Hollow marks lie below: a stopped trial must not hide a finished one.
    for mark in sorted(marks, key=lambda m: not m.hollow):
        parts.append(drawn(mark, frame.px(mark.x), frame.py(mark.y)))
    taken: list[tuple[float, float, float]] = []
    for mark in sorted((m for m in marks if m.label), key=lambda m: (m.x, m.y)):
        parts.append(_upper_left(mark, frame, taken))
    return svg(width, frame.height, parts, f"{y_label} against {x_label}")


def palette(count: int) -> list[str]:
    """Return colours for `count` ordered values: five that are told apart easily, or else a ramp."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [f"color-mix(in oklch, var(--two) {100 * i / (count - 1):.0f}%, var(--one))" for i in range(count)]


def swatch(colour: str = "var(--soft)", shape: str = "circle", hollow: bool = False) -> str:
    """Return a mark for a legend in the text."""
    mark = Mark(0, 0, "", colour=colour, shape=shape, hollow=hollow)
    return (
        f'<svg class="swatch" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">{drawn(mark, 7, 7)}</svg>'
    )


def forest(rows: Sequence[Interval], x_label: str, *, scale: float = 1.0, digits: int = 1, width: int = 1080) -> str:
    """Draw values with their intervals, one row each, around a line at 0.

    Args:
        rows: from top to bottom.
        x_label: name and unit of the values.
        scale: values are multiplied by it: 100 shows shares as points.
        digits: after the decimal point of the written numbers.
        width: pixels.
    """
    if not rows:
        return '<p class="none">Nothing to compare.</p>'
    known = [row for row in rows if row.value is not None]
    ends = [0.0] + [scale * v for row in known for v in (row.value, row.low, row.high) if v is not None]
    pad = 0.05 * (max(ends) - min(ends)) or 1.0
    texts = [_numbers(row, scale, digits) for row in rows]
    left = 16 + CHARACTER * max(len(row.label) + 3 * row.minor for row in rows)
    numbers = CHARACTER * max(len(text) for text, row in zip(texts, rows, strict=True) if row in known) if known else 0
    notes = CHARACTER * max((len(row.note) for row in known), default=0)
    right = width - notes - numbers - (46 if notes else 24)
    if right - left < 200:  # long names: the chart becomes wider and is scrolled
        width += int(200 - (right - left))
        right = left + 200
    base = 14 + 24 * len(rows)
    height = base + 44 * bool(known)

    def px(value: float) -> float:
        low, high = min(ends) - pad, max(ends) + pad
        return left + (value - low) / (high - low) * (right - left)

    parts = []
    for tick in ticks(min(ends) - pad, max(ends) + pad, 6) if known else []:
        x = px(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{number(tick)}</text>')
    if known:
        middle = (left + right) / 2
        parts.append(f'<line class="zero" x1="{px(0):.1f}" x2="{px(0):.1f}" y1="8" y2="{base}"/>')
        parts.append(
            f'<text class="axis" x="{middle:.0f}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
        )
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        y = 14 + 24 * i + 12
        indent = 3 * CHARACTER * row.minor
        kind = "minor" if row.minor else "major"
        parts.append(f'<text class="{kind}" x="{4 + indent:.0f}" y="{y + 4}">{escape(row.label)}</text>')
        if row.value is None:
            parts.append(f'<text class="tick note" x="{left + 8:.0f}" y="{y + 4}">{escape(row.note)}</text>')
            continue
        x, low, high = px(scale * row.value), px(scale * row.low), px(scale * row.high)
        thick = 1.4 if row.minor else 2.4
        parts.append(
            f'<g class="effect {kind}"><title>{escape(f"{row.label}: {text}")}</title>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke-width="{thick}"/>'
            f'<circle cx="{x:.1f}" cy="{y}" r="{3 if row.minor else 4.5}"/></g>'
        )
        parts.append(f'<text class="{kind}" x="{right + 14:.0f}" y="{y + 4}">{escape(text)}</text>')
        parts.append(f'<text class="tick" x="{right + 34 + numbers:.0f}" y="{y + 4}">{escape(row.note)}</text>')
    return svg(width, height, parts, x_label)


def _numbers(row: Interval, scale: float, digits: int) -> str:
    if row.value is None:
        return ""
    value, low, high = (f"{scale * v:+.{digits}f}" for v in (row.value, row.low, row.high))
    return f"{value} [{low}, {high}]"


def drawn(mark: Mark, x: float, y: float) -> str:
    """Return a mark at a place of the image, pixels."""
    r = 5.0
    shapes = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
        "square": f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>',
        "triangle": f'<path d="M{x:.1f} {y - 5.8:.1f}l5.6 10h-11.2z"/>',
        "diamond": f'<path d="M{x:.1f} {y - 6.3:.1f}l6.3 6.3l-6.3 6.3l-6.3 -6.3z"/>',
        "cross": f'<path d="M{x - 1.8:.1f} {y - 5.5:.1f}h3.6v3.7h3.7v3.6h-3.7v3.7h-3.6v-3.7h-3.7v-3.6h3.7z"/>',
    }
    kind = "point hollow" if mark.hollow else "point"
    title = f"<title>{escape(mark.title)}</title>" if mark.title else ""
    return f'<g class="{kind}" style="color:{mark.colour}">{title}{shapes[mark.shape]}</g>'


def _rule_rows(rules: Sequence[tuple[float, str]], least: float, span: float, width: int) -> list[int]:
    """Return the line of text of each rule's name, so that none covers another."""
    scale = (width - 70) / (1.12 * math.log(span))
    ends: dict[int, float] = {}
    chosen = []
    for x, name in rules:
        centre, half = math.log(x / least) * scale, CHARACTER * len(name) / 2 + 5
        row = next(row for row in range(len(rules) + 1) if ends.get(row, -math.inf) < centre - half)
        ends[row] = centre + half
        chosen.append(row)
    return chosen


def _upper_left(mark: Mark, frame: Frame, taken: list[tuple[float, float, float]]) -> str:
    """Place a label at the upper left of its mark, moved up (with a hair line) until it covers no other label."""
    x, y = frame.px(mark.x), frame.py(mark.y)
    wide = CHARACTER * len(mark.label)
    start = max(x - 8 - wide, frame.left + 2)
    line = y - 8
    while any(abs(line - other) < 15 and start < right and left < start + wide for left, right, other in taken):
        line -= 3
    taken.append((start, start + wide, line))
    hair = ""
    if y - 8 - line > 8:
        hair = f'<line class="hair" x1="{x:.1f}" y1="{y - 6:.1f}" x2="{start + wide:.1f}" y2="{line + 2:.1f}"/>'
    return f'{hair}<text class="label" x="{start:.1f}" y="{line:.1f}">{escape(mark.label)}</text>'
