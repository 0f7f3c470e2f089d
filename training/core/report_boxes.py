"""The section of a report page about a model that finds boxes: precision by class, motion, set of frames and cost."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.box_matching import match
from training.core.box_metrics import MAIN, RECALLS, every_recall, precision_at, views
from training.core.box_results import BoxResults
from training.core.charts import Point, number, pareto
from training.core.charts_compare import COLOURS
from training.core.charts_curves import Line, line_swatch, plane, shares
from training.core.modelcard import BoxFacts, Facts
from training.core.pages import markup, percent

__all__ = ["arms", "section"]

MOST = 60
"""Classes with a chart of their own; of more nobody looks at them."""


def section(results: BoxResults, facts: Facts, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return what the template `boxes.html.j2` shows.

    Args:
        results: of the registered evaluation.
        facts: of the version, with `boxes`.
        classes: names of the K classes.
    """
    matched = match(results.truth, results.found[MAIN], len(classes))
    columns: list[str] = []
    objects: list[NDArray[np.int64]] = []
    areas: list[NDArray[np.float64]] = []
    means: list[tuple[str, NDArray[np.float64]]] = []
    curves: list[str] = []
    for view in views(results, matched):
        if view.lenient:  # the plain ones come first
            break
        present = np.flatnonzero(view.positives_K)
        area_K, curves_KR = np.full(len(classes), np.nan), np.empty((len(present), len(RECALLS)))
        for i, k in enumerate(present):
            highest_T, positives = view.envelope(matched, int(k)), int(view.positives_K[k])
            area_K[k] = every_recall(highest_T, positives)
            curves_KR[i] = precision_at(RECALLS, highest_T, positives)
        if view.column == "all" and len(present) <= MOST:
            curves = [_curve(f"{classes[k]} ({area_K[k]:.0%})", curves_KR[i]) for i, k in enumerate(present)]
        if len(present):
            means.append((f"{view.column} ({area_K[present].mean():.1%})", curves_KR.mean(axis=0)))
        columns.append(view.column)
        objects.append(view.positives_K)
        areas.append(area_K)
    lines = [
        Line(name, _points(values), COLOURS[i % len(COLOURS)], dashed=i >= len(COLOURS))
        for i, (name, values) in enumerate(means)
    ]
    others = sorted(set(results.found) - {MAIN})
    return {
        "arms": others,
        "rows": [
            _row(facts, others, column, int(count_K.sum())) for column, count_K in zip(columns, objects, strict=True)
        ],
        "coco": _coco(facts),
        "cost": _cost(facts, facts.boxes),
        "overall": markup(plane(lines, [], "recall", "precision", y_range=(0.0, 1.0), width=760, height=380)),
        "legend": [(markup(line_swatch(line.colour, line.dashed)), line.name) for line in lines],
        "shares": markup(_shares(np.stack(areas, axis=1), columns, classes, objects[0])),
        "curves": [markup(curve) for curve in curves],
    }


def arms(facts: Facts, boxes: BoxFacts) -> list[dict[str, Any]]:
    """Return the other detectors of an evaluation, each with its difference to the model, for the index."""
    rows = []
    for name, arm in boxes.arms.items():
        gmac = facts.arms[name].gmac if name in facts.arms else None
        low, high = arm.interval
        rows.append(
            {
                "name": name,
                "x": gmac,
                "y": arm.map50,
                "top1": percent(arm.map50),
                "gmac": "–" if gmac is None else number(gmac),
                "gflop": "–" if gmac is None else number(2 * gmac),
                "difference": f"{100 * arm.difference:+.1f} points",
                "p": f"{100 * low:+.1f} to {100 * high:+.1f} points",
                "evaluated": f"{facts.evaluated} of {facts.listed}",
            }
        )
    return rows


def _metric(facts: Facts, name: str) -> str:
    return percent(facts.metrics.get(f"{facts.split}/{name}"))


def _row(facts: Facts, others: list[str], column: str, boxes: int) -> dict[str, Any]:
    stem = "map50" if column == "all" else f"map50_{column}"
    return {
        "name": column,
        "boxes": boxes,
        "plain": _metric(facts, stem),
        "lenient": _metric(facts, f"{stem}_lenient"),
        "arms": [_metric(facts, f"{stem}_{name}") for name in others],
    }


def _coco(facts: Facts) -> str:
    if f"{facts.split}/coco_map" not in facts.metrics:
        return ""
    return f"{_metric(facts, 'coco_map')} (overlap .5 to .95), {_metric(facts, 'coco_map50')} (.5)"


def _cost(facts: Facts, boxes: BoxFacts | None) -> Any:
    if facts.gmac is None or boxes is None:
        return None
    low, high = boxes.interval
    title = f"mAP50 {boxes.map50:.1%}, {number(facts.gmac)} GMAC per frame"
    points = [Point(facts.gmac, boxes.map50, "this version", "champion", low, high, title)]
    for name, arm in boxes.arms.items():
        cost = facts.arms[name].gmac if name in facts.arms else None
        if cost is not None:
            points.append(Point(cost, arm.map50, name, "arm"))
    return markup(pareto(points, "GMAC per frame", "mAP50")) if len(points) > 1 else None


def _curve(name: str, precision_R: NDArray[np.float64]) -> str:
    line = Line(name, _points(precision_R))
    return plane([line], [], "recall", f"precision: {name}", y_range=(0.0, 1.0), width=320, height=230)


def _points(precision_R: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(float(recall), float(value)) for recall, value in zip(RECALLS, precision_R, strict=True)]


def _shares(
    area_KS: NDArray[np.float64], columns: list[str], classes: tuple[str, ...], objects_K: NDArray[np.int64]
) -> str:
    present = np.flatnonzero(objects_K)
    notes = [f"{int(objects_K[k])} boxes" for k in present]
    return shares([classes[k] for k in present], columns, area_KS[present], notes)
