"""Charts of the page: accuracy against cost, usage, and what was used when."""

from collections.abc import Sequence

import numpy as np

from training.adamml.arms import Curve, Point
from training.adamml.report.findings import Findings, majority
from training.core.charts import number
from training.core.charts_compare import COLOURS, Interval, Mark, forest, palette, swatch
from training.core.charts_curves import Line, choices, histogram, line_swatch, plane, shares

MEASURES = {"top1": "top-1", "map": "mAP"}
COST = "GMAC per video"
CLOSE = 0.05
"""Models at most this much below fusion are in the close-up; a share."""


def measure(found: Findings) -> str:
    """Return how accuracy is called."""
    return MEASURES[found.evaluated.segments.measure]


def percent(value: float) -> str:
    """Return a share in per cent."""
    return f"{100 * value:.1f} %"


def p_value(value: float | None) -> str:
    """Return a p-value with as many digits as it needs."""
    if value is None:
        return "–"
    if value < 1e-9:
        return "< 1e-9"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


def count(value: float) -> str:
    """Return a number of videos, which may be a mean over draws."""
    return f"{value:.1f}".removesuffix(".0")


def said(point: Point, what: str) -> str:
    """Return a point in words."""
    text = f"{point.name}: {what} {percent(point.top1)}"
    if point.low is not None and point.high is not None:
        text += f" ({100 * point.low:.1f} to {percent(point.high)})"
    if point.draws > 1:
        text += f", {point.draws} draws, standard deviation {100 * point.deviation:.2f}"
    return f"{text}, {number(point.gmac)} GMAC"


def _mark(point: Point, what: str, label: str, colour: str, shape: str, hollow: bool = False) -> Mark:
    return Mark(point.gmac, point.top1, said(point, what), label, colour, shape, hollow, point.low, point.high)


def _line(curve: Curve, what: str, colour: str, dashed: bool = False) -> Line:
    points = [(point.gmac, point.top1) for point in curve.points]
    band = [point.deviation for point in curve.points] if any(point.draws > 1 for point in curve.points) else ()
    return Line(curve.name, points, colour, dashed, band, [said(point, what) for point in curve.points])


# --- accuracy against cost ----------------------------------------------------------------------


def overview(found: Sequence[Findings]) -> tuple[str, str, list[tuple[str, str]]]:
    """Draw all prices with their threshold curves, fusion and each modality.

    Returns:
        The chart; the same around the accuracy of fusion, empty where that shows nothing more; the legend.
    """
    what, colours = measure(found[0]), palette(len(found))
    lines = [_line(each.threshold, what, colour) for each, colour in zip(found, colours, strict=True)]
    marks = [
        _mark(each.model, what, each.evaluated.name, colour, "circle")
        for each, colour in zip(found, colours, strict=True)
    ]
    for each, colour in zip(found, colours, strict=True):
        label = "fusion" if each is max(found, key=lambda other: other.fusion.top1) else ""
        marks.append(_mark(each.fusion, what, label, colour, "square", hollow=True))
    marks += [_mark(point, what, f"{point.name} alone", "var(--soft)", "triangle") for point in found[0].alone]
    legend = [
        (swatch(colours[0]), "AdaMML, one mark per price, with 95 % interval"),
        (line_swatch(colours[0]), "the same model at other thresholds of its policy"),
        (swatch(colours[0], "square", True), "all modalities, no policy (same weights)"),
        (swatch("var(--soft)", "triangle"), "one modality by itself, all segments"),
    ]
    chart = plane(lines, marks, COST, what, across=[(majority(found[0]), _majority_words(found[0]))])
    top = max(each.fusion.top1 for each in found)
    ends = [each.model.low or each.model.top1 for each in found if each.model.top1 > top - CLOSE]
    low = min([top, *ends]) - 0.01
    high = min(1.0, max(point.high or point.top1 for each in found for point in (each.model, each.fusion)) + 0.005)
    # Nothing is gained where everything lies in the range anyway.
    wide = min(point.top1 for each in found for point in (each.model, *each.alone, *each.threshold.points)) < low - 0.1
    close = plane(lines, marks, COST, what, y_range=(low, high), height=330) if ends and wide else ""
    return chart, close, legend


def detail(found: Findings) -> tuple[str, list[tuple[str, str]]]:
    """Draw one price against blind choices of the same cost; returns chart and legend."""
    what = measure(found)
    random, blocks, oracle = found.controls
    lines = [
        _line(found.threshold, what, COLOURS[0]),
        _line(found.random, what, COLOURS[1], dashed=True),
        _line(found.blocks, what, COLOURS[2], dashed=True),
    ]
    marks = [
        _mark(found.model, what, found.evaluated.name, COLOURS[0], "circle"),
        _mark(random, what, "", COLOURS[1], "circle", hollow=True),
        _mark(blocks, what, "", COLOURS[2], "circle", hollow=True),
        _mark(oracle, what, "oracle", COLOURS[3], "diamond"),
        _mark(found.fusion, what, "fusion", "var(--ink)", "square", hollow=True),
    ]
    marks += [_mark(point, what, f"{point.name} alone", "var(--soft)", "triangle") for point in found.alone]
    legend = [
        (line_swatch(COLOURS[0]), "policy, at thresholds 0.1 to 0.9"),
        (line_swatch(COLOURS[1], True), "random at the same rates"),
        (line_swatch(COLOURS[2], True), "all or none: random whole segments"),
        (swatch(COLOURS[3], "diamond"), "oracle: knows the label"),
    ]
    across = [(majority(found), _majority_words(found))]
    return plane(lines, marks, COST, what, across=across, width=1080, height=400), legend


def _majority_words(found: Findings) -> str:
    value = percent(majority(found))
    return f"chance {value}" if found.evaluated.segments.multi_label else f"most frequent class {value}"


def differences(found: Findings) -> str:
    """Draw the paired differences of one price; nothing for mAP, which has no pairs."""
    rows = [
        Interval(
            f"against {row.other}", row.difference, row.low, row.high,
            f"\u2003{count(row.gained)} won, {count(row.lost)} lost, p {p_value(row.p)}",
        )
        for row in found.comparisons
        if row.low is not None and row.high is not None
    ]  # fmt: skip
    return forest(rows, f"points of {measure(found)}: {found.evaluated.name} minus the other", scale=100)


# --- usage --------------------------------------------------------------------------------------


def classes(found: Findings, names: Sequence[str]) -> str:
    """Draw usage per class, most of the dearest modality first; classes without a video are left out."""
    usage_CK, count_C = found.by_class
    dearest = int(np.argmax(found.evaluated.segments.cost_K))
    order = [int(c) for c in np.argsort(-np.nan_to_num(usage_CK[:, dearest], nan=-1), kind="stable") if count_C[c]]
    notes = [f"{count_C[c]} videos" for c in order]
    return shares([names[c] for c in order], found.evaluated.segments.names, usage_CK[order], notes)


def positions(found: Findings) -> str:
    """Draw usage per position of the segment in the video."""
    segments = found.evaluated.segments
    rate_SK = segments.choices_NSK.mean(axis=0)
    count = len(rate_SK)
    lines = []
    for k, name in enumerate(segments.names):
        titles = [f"{name}, segment {s + 1}: {percent(float(rate_SK[s, k]))}" for s in range(count)]
        lines.append(Line(name, [(s + 1, float(rate_SK[s, k])) for s in range(count)], _colour(k), False, (), titles))
    every = -(-count // 20)
    ticks = [(float(s), str(s)) for s in range(1, count + 1) if (s - 1) % every == 0]
    ticks += [] if ticks[-1][0] == count else [(float(count), "")]
    return plane(lines, [], "segment", "share of videos", x_ticks=ticks, y_range=(0.0, 1.0), width=540, height=260)


def distributions(found: Findings) -> list[str]:
    """Draw, of each modality, how many segments of a video use it."""
    charts = []
    for k, row in enumerate(found.usage):
        labels = [str(count) for count in range(len(row.histogram))]
        words = f"{row.name}: spread {row.spread:.2f}, blind {row.chance_spread:.2f}"
        charts.append(
            histogram(row.histogram, row.expected, labels, words, "segments used of a video", colour=_colour(k))
        )
    return [chart for chart in charts if chart]


def against_price(found: Sequence[Findings]) -> str:
    """Draw usage and saving against price, at even distances."""
    ticks = [(float(i), f"{each.evaluated.price:g}") for i, each in enumerate(found)]
    lines = []
    for k, name in enumerate(found[0].evaluated.segments.names):
        values = [each.usage[k].rate for each in found]
        titles = [f"{each.evaluated.name}: {name} in {percent(v)}" for each, v in zip(found, values, strict=True)]
        lines.append(Line(name, list(enumerate(values)), _colour(k), False, (), titles))
    saved = [each.saving for each in found]
    titles = [f"{each.evaluated.name}: saving {percent(v)}" for each, v in zip(found, saved, strict=True)]
    lines.append(Line("saving", list(enumerate(saved)), "var(--ink)", True, (), titles))
    return plane(
        lines, [], "price", "share", x_ticks=ticks, y_range=(min(0.0, *saved) - 0.02, 1.0), width=720, height=300
    )


def modality_legend(found: Findings) -> list[tuple[str, str]]:
    """Return the colours of the modalities."""
    return [(swatch(_colour(k), "square"), name) for k, name in enumerate(found.evaluated.segments.names)]


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


# --- single videos ------------------------------------------------------------------------------


def sample(found: Findings, right: int = 8, wrong: int = 4) -> list[int]:
    """Return rows of videos to show: rightly named ones from least to most cost, then wrongly named ones."""
    segments = found.evaluated.segments
    correct_N = segments.correct(segments.scores_NC)
    picked: list[int] = []
    for group, count in ((np.flatnonzero(correct_N), right), (np.flatnonzero(~correct_N), wrong)):
        ordered = group[np.argsort(segments.gmac_N[group], kind="stable")]
        places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int))
        picked += [int(ordered[place]) for place in places]
    return picked


def timeline(found: Findings, row: int) -> str:
    """Draw what was used in each segment of one video."""
    segments = found.evaluated.segments
    used_SK, there_SK = segments.choices_NSK[row], segments.available_NSK[row]
    use_SK = 0.5 * (1 + np.tanh(segments.use_logits_NSK[row].astype(np.float64) / 2))
    titles = [
        [
            f"{name}, segment {s + 1}: "
            + (
                f"{'used' if used_SK[s, k] else 'skipped'}, probability {use_SK[s, k]:.2f}"
                if there_SK[s, k]
                else "none"
            )
            for s in range(len(used_SK))
        ]
        for k, name in enumerate(segments.names)
    ]
    return choices(segments.names, used_SK, there_SK, titles, cell=max(9.0, min(30.0, 300 / len(used_SK))))
