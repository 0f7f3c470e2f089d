"""Charts of the page: accuracy against cost, by motion and class, and the offsets with their marginals."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from training.core.box_metrics import RECALLS
from training.core.charts import number, svg, ticks
from training.core.charts_compare import COLOURS, Interval, Mark, forest, palette, swatch
from training.core.charts_curves import Line, line_swatch, plane, shares
from training.core.pages import percent
from training.lsts.report.findings import Detector, Findings
from training.lsts.report.motion import Motion

__all__ = ["by_class", "by_column", "class_curves", "cost", "curves", "gains", "offsets"]

Floats = NDArray[np.float64]
Legend = list[tuple[str, str]]

COST = "GMAC per frame, executed"
MOST = 60
"""Classes with a chart of their own; of more nobody looks at them."""
CELL = 0.5
"""Width of the bins of offsets and displacements, cells; one is centred on 0."""


def said(detector: Detector, name: str) -> str:
    """Return a detector in words."""
    low, high = detector.interval
    return f"{name}: mAP50 {percent(detector.mean)} ({100 * low:.1f} to {percent(high)}), {number(detector.gmac)} GMAC"


def cost(found: Sequence[Findings]) -> tuple[str, Legend]:
    """Draw mAP50 of every detector against what was executed per frame."""
    colours = palette(len(found))
    marks = []
    for each, colour in zip(found, colours, strict=True):
        marks.append(_mark(each.main, each.name, colour, "diamond" if each.oracle else "circle"))
        marks += [_mark(one, f"{each.name}, {one.name}", colour, "triangle", hollow=True) for one in each.variants]
    singles = [each.single for each in found if each.single is not None]
    marks += [_mark(one, "single frames", "var(--ink)", "square", hollow=True) for one in singles[:1]]
    legend = [(swatch(colours[0]), "a method as it was trained, with 95 % interval")]
    if any(each.variants for each in found):
        legend.append((swatch(colours[0], "triangle", True), "the same networks under other settings"))
    if any(each.oracle for each in found):
        legend.append((swatch("var(--soft)", "diamond"), "oracle: is told how the objects moved"))
    if singles:
        legend.append((swatch("var(--ink)", "square", True), "the single-frame detector on every frame"))
    return plane([], marks, COST, "mAP50"), legend


def _mark(detector: Detector, name: str, colour: str, shape: str, hollow: bool = False) -> Mark:
    low, high = detector.interval
    return Mark(detector.gmac, detector.mean, said(detector, name), name, colour, shape, hollow, low, high)


def gains(found: Sequence[Findings]) -> str:
    """Draw each method's mAP50 minus that of the single-frame detector, with the paired interval."""
    rows = [
        Interval(each.name, gain.value, gain.low, gain.high, f"\u2003{percent(ratio)} of its cost")
        for each in found
        if (gain := each.gain) is not None and (ratio := each.ratio) is not None
    ]
    return forest(rows, "points of mAP50: method minus single frames", scale=100)


def by_column(found: Sequence[Findings]) -> tuple[str, Legend]:
    """Draw mAP50 by motion and by set of frames, a line per method."""
    columns = [name for name in found[0].main.table.columns if found[0].main.table.mean(name) is not None]
    detectors = [(each.name, each.main, colour) for each, colour in zip(found, palette(len(found)), strict=True)]
    single = next((each.single for each in found if each.single is not None), None)
    if single is not None:
        detectors.append(("single frames", single, "var(--ink)"))
    lines = []
    for name, detector, colour in detectors:
        values = [(i, float(detector.table.mean(column) or 0.0)) for i, column in enumerate(columns)]
        titles = [f"{name}, {columns[i]}: {percent(value)}" for i, value in values]
        lines.append(Line(name, [(float(i), v) for i, v in values], colour, detector is single, (), titles))
    ticks_ = [(float(i), name) for i, name in enumerate(columns)]
    legend = [(line_swatch(line.colour, line.dashed), line.name) for line in lines]
    return plane(lines, [], "objects", "mAP50", x_ticks=ticks_, width=820, height=340), legend


def by_class(found: Sequence[Findings], classes: Sequence[str]) -> str:
    """Draw average precision per class, a column per method and one for single frames."""
    single = next((each.single for each in found if each.single is not None), None)
    columns = [(each.name, each.main) for each in found] + ([("single frames", single)] if single is not None else [])
    counts_K = found[0].main.table.objects_SK[0]
    present = np.flatnonzero(counts_K).tolist()
    values = np.stack([detector.class_K[present] for _, detector in columns], axis=1)
    notes = [f"{int(counts_K[k])} boxes" for k in present]
    return shares([classes[k] for k in present], [name for name, _ in columns], values, notes)


def curves(best: Findings) -> tuple[str, Legend]:
    """Draw precision at each recall, mean over the classes, of a method, its variants and single frames."""
    lines = [_curve(best.name, best.main, COLOURS[0])]
    lines += [_curve(one.name, one, COLOURS[2 + i % 3]) for i, one in enumerate(best.variants[:3])]
    if best.single is not None:
        lines.append(_curve("single frames", best.single, "var(--ink)", dashed=True))
    legend = [(line_swatch(line.colour, line.dashed), line.name) for line in lines]
    return plane(lines, [], "recall", "precision", y_range=(0.0, 1.0), width=820, height=340), legend


def class_curves(best: Findings, classes: Sequence[str]) -> list[str]:
    """Draw the same of each class; nothing where there are too many."""
    present = np.flatnonzero(~np.isnan(best.main.class_K)).tolist()
    if len(present) > MOST:
        return []
    charts = []
    for k in present:
        lines = [Line(best.name, _points(best.main.curves_KR[k]), COLOURS[0])]
        words = f"{classes[k]}: {percent(float(best.main.class_K[k]))}"
        if best.single is not None:
            lines.append(Line("single frames", _points(best.single.curves_KR[k]), "var(--ink)", True))
            words += f", single frames {percent(float(best.single.class_K[k]))}"
        charts.append(plane(lines, [], "recall", words, y_range=(0.0, 1.0), width=330, height=230))
    return charts


def _curve(name: str, detector: Detector, colour: str, dashed: bool = False) -> Line:
    known_KR = detector.curves_KR[~np.isnan(detector.class_K)]
    return Line(f"{name} ({percent(detector.mean)})", _points(known_KR.mean(axis=0)), colour, dashed)


def _points(precision_R: Floats) -> list[tuple[float, float]]:
    return [(float(recall), float(value)) for recall, value in zip(RECALLS, precision_R, strict=True)]


# --- offsets ------------------------------------------------------------------------------------

SIDE, BESIDE, LEFT, TOP = 380, 96, 50, 12
"""Of the square of the offsets, of the marginals beside it, and margins, pixels."""


def offsets(motion: Motion) -> tuple[str, Legend]:
    """Draw the offsets before and after training over the true displacements, with their distributions by axis."""
    tables = [motion.initial_K2, motion.learned_K2]
    reach = max(float(np.abs(table).max()) for table in tables)
    if len(motion.true_P2):
        reach = max(reach, float(np.quantile(np.abs(motion.true_P2), 0.99)))
    half = max(2.0, math.ceil(reach)) + CELL / 2

    def px(x: float) -> float:
        return LEFT + SIDE * (x + half) / (2 * half)

    def py(y: float) -> float:
        # Downwards, as in pictures.
        return TOP + BESIDE + SIDE * (y + half) / (2 * half)

    parts = [*_heat(motion.true_P2, half, px, py), *_grid(half, px, py)]
    for (x0, y0), (x1, y1) in zip(motion.initial_K2.tolist(), motion.learned_K2.tolist(), strict=True):
        words = escape(f"from ({x0:.2f}, {y0:.2f}) to ({x1:.2f}, {y1:.2f})")
        parts.append(
            f'<line class="moved" x1="{px(x0):.1f}" y1="{py(y0):.1f}" x2="{px(x1):.1f}" y2="{py(y1):.1f}"/>'
            f'<circle class="before" cx="{px(x0):.1f}" cy="{py(y0):.1f}" r="3.4"/>'
            f'<circle class="after" cx="{px(x1):.1f}" cy="{py(y1):.1f}" r="4.2"><title>{words}</title></circle>'
        )
    kinds = [("true", motion.true_P2), ("before", motion.initial_K2), ("after", motion.learned_K2)]
    for axis in (0, 1):
        parts += _marginal([(kind, table[:, axis]) for kind, table in kinds if len(table)], axis, half, px, py)
    width, height = LEFT + SIDE + BESIDE + 14, TOP + BESIDE + SIDE + 40
    parts.append(
        f'<text class="axis" x="{LEFT + SIDE / 2}" y="{height - 4}" text-anchor="middle">x, cells</text>'
        f'<text class="axis" transform="translate(13,{TOP + BESIDE + SIDE / 2}) rotate(-90)" '
        f'text-anchor="middle">y, cells (downwards)</text>'
    )
    legend = [(_dot("before"), "before training"), (_dot("after"), "learned")]
    if len(motion.true_P2):
        legend.append((_dot("true"), "true displacements of the objects"))
    return svg(width, height, parts, "offsets before and after training"), legend


def _dot(kind: str) -> str:
    return (
        '<svg class="swatch" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">'
        f'<circle class="{kind}" cx="7" cy="7" r="4.5"/></svg>'
    )


def _grid(half: float, px, py) -> list[str]:  # type: ignore[no-untyped-def]
    parts = []
    for tick in ticks(-half, half, 8):
        kind = "zero" if tick == 0 else "grid"
        x, y, base = px(tick), py(tick), TOP + BESIDE + SIDE
        parts.append(
            f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP + BESIDE}" y2="{base}"/>'
            f'<line class="{kind}" x1="{LEFT}" x2="{LEFT + SIDE}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{number(tick)}</text>'
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    return parts


def _heat(true_P2: Floats, half: float, px, py) -> list[str]:  # type: ignore[no-untyped-def]
    """Return the displacements as shaded bins; the shade is the root of the share, so that rare ones are seen."""
    if not len(true_P2):
        return []
    edges = np.linspace(-half, half, round(2 * half / CELL) + 1)
    counts_XY, _, _ = np.histogram2d(true_P2[:, 0], true_P2[:, 1], bins=[edges, edges])
    top = counts_XY.max() or 1.0
    side = px(CELL) - px(0.0)
    return [
        f'<rect class="true" x="{px(edges[i]):.1f}" y="{py(edges[j]):.1f}" width="{side:.1f}" height="{side:.1f}" '
        f'fill-opacity="{0.75 * math.sqrt(counts_XY[i, j] / top):.3f}">'
        f"<title>{counts_XY[i, j] / len(true_P2):.1%} of the displacements</title></rect>"
        for i, j in zip(*np.nonzero(counts_XY), strict=True)
    ]


def _marginal(rows: Sequence[tuple[str, Floats]], axis: int, half: float, px, py) -> list[str]:  # type: ignore[no-untyped-def]
    """Return the distributions along an axis as outlines of equal height: above the square (x) or at its right (y)."""
    edges = np.linspace(-half, half, round(2 * half / CELL) + 1)
    shares_ = [np.histogram(np.clip(values, -half, half), bins=edges)[0] / len(values) for _, values in rows]
    base = TOP + BESIDE - 6 if axis == 0 else LEFT + SIDE + 6
    parts = []
    for (kind, _), share in zip(rows, shares_, strict=True):
        places = []
        for i, value in enumerate(share.tolist()):
            away = (BESIDE - 14) * value / float(share.max())
            for edge in (edges[i], edges[i + 1]):
                places.append((px(edge), base - away) if axis == 0 else (base + away, py(edge)))
        ends = [(px(e), base) if axis == 0 else (base, py(e)) for e in (edges[0], edges[-1])]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in [ends[0], *places, ends[1]])
        parts.append(f'<polyline class="marginal {kind}" points="{points}"/>')
    return parts
