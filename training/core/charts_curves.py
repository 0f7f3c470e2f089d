"""Charts of curves with marks, of counts, of shares per row, and of what was used when.

Like `charts`: SVG text, colours from the page's style sheet, a `<title>` on every mark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.core.charts import Frame, number, svg, ticks
from training.core.charts_compare import CHARACTER, COLOURS, Mark, drawn


@dataclass(frozen=True)
class Line:
    """A curve of the plane."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = "var(--one)"
    dashed: bool = False
    band: Sequence[float] = ()
    """Half height of a band around each point."""
    titles: Sequence[str] = ()
    """Shown when the mouse rests on a point; the points are then drawn as dots."""


def plane(
    lines: Sequence[Line],
    marks: Sequence[Mark],
    x_label: str,
    y_label: str,
    *,
    across: Sequence[tuple[float, str]] = (),
    x_ticks: Sequence[tuple[float, str]] = (),
    percent: bool = True,
    y_range: tuple[float, float] | None = None,
    width: int = 1080,
    height: int = 460,
) -> str:
    """Draw curves and measurements on linear axes; the cost axis begins at 0, so that lengths are savings.

    Args:
        lines: curves, drawn below the marks.
        marks: measurements with their intervals; those with a label get it beside them.
        x_label: of the lower axis.
        y_label: of the other one, written above it.
        across: horizontal lines with their names.
        x_ticks: places and words of the lower axis; empty: round numbers from 0 on.
        percent: whether values of y are shares.
        y_range: ends of the upright axis; None: what is drawn, with a margin.
        width: pixels.
        height: pixels.
    """
    named = bool(x_ticks)
    places = [x for line in lines for x, _ in line.points] + [mark.x for mark in marks]
    values = [y for line in lines for _, y in line.points]
    values += [v for mark in marks for v in (mark.y, mark.low, mark.high) if v is not None]
    if not places or not all(math.isfinite(value) for value in (*places, *values)):
        return '<p class="none">Nothing to draw.</p>'
    if y_range is None:
        y_range = _y_range(values, [y for y, _ in across], percent)
    x_ticks = x_ticks or [(tick, number(tick)) for tick in ticks(0.0, (max(places) or 1.0) * 1.04, 7)]
    first, last = min(x for x, _ in x_ticks), max(x for x, _ in x_ticks)
    if not named:
        last = max(last, max(places) * 1.04)
    margin = 0.04 * ((last - first) or 1.0) if named else 0.0
    frame = Frame(
        width, height, first - margin, last + margin, *y_range, left=56, right=18, top=26, bottom=44, y_ticks=8
    )
    parts = _axes(frame, x_label, y_label, x_ticks, percent)
    for y, name in across:
        parts += _across(y, name, frame)
    # An image in the image cuts off what lies beyond the range; its coordinates are those around it.
    box = (frame.left, frame.top - 4, width - frame.left - frame.right + 6, height - frame.top - frame.bottom + 8)
    place = 'x="{}" y="{}" width="{}" height="{}" viewBox="{} {} {} {}"'.format(*box, *box)
    inside = [mark for mark in marks if y_range[0] <= mark.y <= y_range[1]]
    cut = [part for line in lines for part in _line(line, frame)]
    for mark in inside:
        if mark.low is not None and mark.high is not None:
            x, low, high = frame.px(mark.x), frame.py(mark.low), frame.py(mark.high)
            cut.append(
                f'<g style="color:{mark.colour}"><line class="whisker" x1="{x:.1f}" x2="{x:.1f}" '
                f'y1="{low:.1f}" y2="{high:.1f}"/></g>'
            )
    parts.append(f"<svg {place}>{''.join(cut)}</svg>")
    parts += [
        drawn(mark, frame.px(mark.x), frame.py(mark.y)) for mark in sorted(inside, key=lambda mark: not mark.hollow)
    ]
    dots = [(frame.px(mark.x), frame.py(mark.y)) for mark in inside]
    for line in lines:
        dots += _along([(frame.px(x), frame.py(y)) for x, y in line.points])
    taken: list[tuple[float, float, float]] = []
    for mark in sorted((mark for mark in inside if mark.label), key=lambda mark: -mark.y):
        parts.append(_label(mark, frame, taken, dots))
    return svg(width, height, parts, f"{y_label} against {x_label}")


def _y_range(values: Sequence[float], across: Sequence[float], percent: bool) -> tuple[float, float]:
    """Return the ends of the upright axis; lines across are within it only if they do not squeeze all else."""
    low, high = min(values), max(values)
    near = [y for y in across if low - y <= 0.25 * (high - low) and y - high <= 0.25 * (high - low)]
    low, high = min(low, *near, low), max(high, *near, high)
    pad = max(0.06 * (high - low), 0.01)
    share = percent and high <= 1
    return max(0.0, low - pad) if low >= 0 else low - pad, min(1.0, high + pad) if share else high + pad


def _across(y: float, name: str, frame: Frame) -> list[str]:
    """Return a horizontal line with its name; one beyond the range is named at the edge, with an arrow."""
    right, base = frame.width - frame.right, frame.height - frame.bottom
    if y < frame.y0:
        return [f'<text class="tick note" x="{right}" y="{base - 6}" text-anchor="end">↓ {escape(name)}</text>']
    if y > frame.y1:
        return [f'<text class="tick note" x="{right}" y="{frame.top + 12}" text-anchor="end">↑ {escape(name)}</text>']
    at = frame.py(y)
    return [
        f'<line class="across" x1="{frame.left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="tick note" x="{right}" y="{at - 5:.1f}" text-anchor="end">{escape(name)}</text>'
    ]


def _along(places: Sequence[tuple[float, float]], step: float = 7.0) -> list[tuple[float, float]]:
    """Return points along a curve, so close that no label fits between them."""
    found = list(places[:1])
    for (x0, y0), (x1, y1) in pairwise(places):
        count = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / step))
        found += [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(1, count + 1)]
    return found


def _axes(frame: Frame, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]], percent: bool) -> list[str]:
    parts, base = [], frame.height - frame.bottom
    for tick in ticks(frame.y0, frame.y1, frame.y_ticks):
        y, text = frame.py(tick), f"{100 * tick:.4g} %" if percent else number(tick)
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for place, text in x_ticks:
        x = frame.px(place)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{base}"/>'
            f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{escape(text)}</text>'
        )
    middle = (frame.left + frame.width - frame.right) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{frame.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="axis" x="{frame.left}" y="{frame.top - 11}">{escape(y_label)}</text>'
    )
    return parts


def _line(line: Line, frame: Frame) -> list[str]:
    places = [(frame.px(x), frame.py(y)) for x, y in line.points]
    parts = []
    if line.band:
        upper = [f"{frame.px(x):.1f},{frame.py(y + b):.1f}" for (x, y), b in zip(line.points, line.band, strict=True)]
        lower = [f"{frame.px(x):.1f},{frame.py(y - b):.1f}" for (x, y), b in zip(line.points, line.band, strict=True)]
        parts.append(f'<polygon class="around" points="{" ".join([*upper, *reversed(lower)])}"/>')
    kind = "trace dashed" if line.dashed else "trace"
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline class="{kind}" points="{joined}"><title>{escape(line.name)}</title></polyline>')
    for (x, y), title in zip(places, line.titles, strict=False):
        if not frame.top - 4 <= y <= frame.height - frame.bottom + 4:
            continue
        parts.append(f'<circle class="step" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>{escape(title)}</title></circle>')
    return [f'<g style="color:{line.colour}">', *parts, "</g>"]


def _label(
    mark: Mark, frame: Frame, taken: list[tuple[float, float, float]], dots: Sequence[tuple[float, float]]
) -> str:
    """Write a label at the right or left of its mark, on the nearest line that is free."""
    x, y = frame.px(mark.x), frame.py(mark.y)
    wide = CHARACTER * len(mark.label)
    sides = [start for start in (x + 9, x - 9 - wide) if frame.left < start and start + wide < frame.width - 4] or [
        x + 9
    ]
    shifts = sorted(range(-120, 121, 3), key=lambda shift: (abs(shift), shift))
    lines = [y + 4 + shift for shift in shifts if frame.top + 6 < y + 4 + shift < frame.height - frame.bottom - 3]

    def free(start: float, line: float) -> bool:
        covered = any(abs(line - other) < 15 and start < right and left < start + wide for left, right, other in taken)
        return not covered and not any(start - 2 < px < start + wide and abs(line - 4 - py) < 9 for px, py in dots)

    def starts(line: float) -> list[float]:
        """Return where a label may begin; well above or below the mark also over the mark itself."""
        middle = x - wide / 2
        return [*sides, middle] if abs(line - y - 4) >= 14 and middle > frame.left else sides

    start, line = next(((s, line) for line in lines for s in starts(line) if free(s, line)), (sides[0], y + 4))
    taken.append((start, start + wide, line))
    hair = ""
    if abs(line - y - 4) > 9:
        near = min(max(x, start - 2), start + wide + 2)
        hair = f'<line class="hair" x1="{x:.1f}" y1="{y:.1f}" x2="{near:.1f}" y2="{line - 4:.1f}"/>'
    return f'{hair}<text class="label" x="{start:.1f}" y="{line:.1f}">{escape(mark.label)}</text>'


def line_swatch(colour: str, dashed: bool = False) -> str:
    """Return a piece of a curve for a legend in the text."""
    kind = "trace dashed" if dashed else "trace"
    return (
        '<svg class="swatch" width="24" height="14" viewBox="0 0 24 14" aria-hidden="true">'
        f'<g style="color:{colour}"><line class="{kind}" x1="1" x2="23" y1="7" y2="7"/></g></svg>'
    )


def shares(
    rows: Sequence[str], columns: Sequence[str], values_RK: NDArray[np.float64], notes: Sequence[str] = (), *,
    width: int = 1080,
) -> str:  # fmt: skip
    """Draw a table of shares as shaded cells; many rows run on in further columns of the page.

    Args:
        rows: names from top to bottom.
        columns: names of what the shares are of.
        values_RK: between 0 and 1; not-a-number leaves a cell empty.
        notes: words of each row for the mouse.
        width: pixels at most.
    """
    if not rows:
        return ""
    longest = max(len(row) for row in rows)
    name, cell, line = min(170.0, 10 + 6.9 * longest), 40.0, 17.0
    block = name + cell * len(columns) + 22
    fit = max(1, int((width + 22) / block))
    # A few rows stay in one column; hundreds are spread over all that fit.
    across = min(fit, max(1, math.ceil(len(rows) / 24)))
    deep = math.ceil(len(rows) / across)
    tall = 8 + 6.3 * max(len(column) for column in columns) * (len(max(columns, key=len)) > 6)
    top = max(20.0, 0.72 * tall + 8)
    keep = int((name - 10) / 6.9)
    parts = []
    for group in range(across):
        for k, column in enumerate(columns):
            x = group * block + name + (k + 0.5) * cell
            turn = f'transform="translate({x - 4:.1f},{top - 6:.1f}) rotate(-45)"'
            here = turn if tall > 8 else f'x="{x:.1f}" y="{top - 6:.1f}" text-anchor="middle"'
            parts.append(f'<text class="tick" {here}>{escape(column)}</text>')
    for i, row in enumerate(rows):
        x0, y0 = (i // deep) * block, top + (i % deep) * line
        shown = row if len(row) <= keep + 1 else row[:keep] + "…"
        note = f" ({notes[i]})" if notes else ""
        parts.append(
            f'<text class="tick" x="{x0 + name - 6:.1f}" y="{y0 + 12:.1f}" text-anchor="end">{escape(shown)}'
            f"<title>{escape(row + note)}</title></text>"
        )
        for k, column in enumerate(columns):
            value = float(values_RK[i, k])
            place = f'x="{x0 + name + k * cell:.1f}" y="{y0:.1f}" width="{cell - 1}" height="{line - 1}"'
            parts.append(f'<rect class="cell" {place}/>')
            if not math.isfinite(value):
                continue
            title = escape(f"{row}, {column}: {value:.1%}{note}")
            dark = " on" if value > 0.7 else ""
            parts.append(
                f'<g><title>{title}</title><rect class="heat" {place} fill-opacity="{value:.3f}"/>'
                f'<text class="count{dark}" x="{x0 + name + (k + 0.5) * cell - 0.5:.1f}" y="{y0 + 12:.1f}" '
                f'text-anchor="middle">{100 * value:.0f}</text></g>'
            )
    return svg(math.ceil(across * block - 22), math.ceil(top + deep * line + 2), parts, "shares per row")


def histogram(
    counts: Sequence[float], expected: Sequence[float], labels: Sequence[str], title: str, x_label: str, *,
    colour: str = "var(--one)", width: int = 400, height: int = 210,
) -> str:  # fmt: skip
    """Draw how often each value occurs as bars, and as dots what chance would give.

    Args:
        counts: per value, any scale.
        expected: of the same values; empty: no dots.
        labels: of the values.
        title: written above.
        x_label: of the values.
        colour: of the bars.
        width: pixels.
        height: pixels.
    """
    total = sum(counts)
    if not total:
        return ""
    bars, dots = [value / total for value in counts], [value / (sum(expected) or 1.0) for value in expected]
    top = 1.08 * max(*bars, *dots)
    frame = Frame(width, height, -0.5, len(bars) - 0.5, 0.0, top, left=50, right=8, top=26, bottom=42)
    base = height - frame.bottom
    parts = []
    for tick in ticks(0, top, 4):
        y = frame.py(tick)
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{width - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * tick:.4g} %</text>'
        )
    wide = 0.76 * (frame.px(1) - frame.px(0))
    every = math.ceil(len(labels) / 11)
    for i, (share, label) in enumerate(zip(bars, labels, strict=True)):
        x, y = frame.px(i), frame.py(share)
        words = escape(f"{label}: {share:.1%}" + (f", by chance {dots[i]:.1%}" if dots else ""))
        parts.append(
            f'<g style="color:{colour}"><rect class="stick" x="{x - wide / 2:.1f}" y="{y:.1f}" width="{wide:.1f}" '
            f'height="{base - y:.1f}"><title>{words}</title></rect></g>'
        )
        if i % every == 0:
            parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 15}" text-anchor="middle">{escape(label)}</text>')
    for i, share in enumerate(dots):
        parts.append(f'<circle class="chance" cx="{frame.px(i):.1f}" cy="{frame.py(share):.1f}" r="3"/>')
    parts.append(f'<text class="label" x="{frame.left}" y="14">{escape(title)}</text>')
    middle = (frame.left + width - frame.right) / 2
    parts.append(f'<text class="axis" x="{middle:.0f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return svg(width, height, parts, title)


def choices(
    names: Sequence[str],
    used_SR: NDArray[np.bool_],
    available_SR: NDArray[np.bool_] | None = None,
    titles: Sequence[Sequence[str]] = (),
    *,
    colours: Sequence[str] = COLOURS,
    cell: float = 30,
    line: float = 17,
) -> str:
    """Draw what was used in each of S segments, a row per name: filled, hollow (skipped), or crossed (not there).

    Args:
        names: of the R rows.
        used_SR: what was used.
        available_SR: what could have been; None: all.
        titles: per row and segment, for the mouse.
        colours: of the rows.
        cell: width of a segment, pixels.
        line: height of a row, pixels.
    """
    left = 8 + 6.6 * max(len(name) for name in names)
    parts = []
    for r, name in enumerate(names):
        y = r * line
        base = y + line / 2 + 3.5
        parts.append(f'<text class="tick" x="{left - 6:.1f}" y="{base:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<g style="color:{colours[r % len(colours)]}">')
        for s in range(len(used_SR)):
            x0, y0, x1, y1 = left + s * cell + 1, y + 1.5, left + (s + 1) * cell - 1, y + line - 1.5
            there = available_SR is None or bool(available_SR[s, r])
            kind = "used" if used_SR[s, r] else "skipped" if there else "absent"
            title = titles[r][s] if titles else f"{name}, segment {s + 1}: {kind}"
            parts.append(
                f'<rect class="{kind}" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}">'
                f"<title>{escape(title)}</title></rect>"
            )
            if kind == "absent":
                cross = f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}M{x0:.1f} {y1:.1f}L{x1:.1f} {y0:.1f}"
                parts.append(f'<path class="absent" d="{cross}"/>')
        parts.append("</g>")
    return svg(math.ceil(left + cell * len(used_SR)), math.ceil(line * len(names)), parts, "what was used when")
