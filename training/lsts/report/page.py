"""The evaluations as a page: static HTML without scripts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.core.charts import number
from training.core.pages import markup, percent, render_page
from training.lsts.report import charts
from training.lsts.report.findings import RESAMPLES, Detector, Findings, chosen
from training.lsts.report.hard_frames import Comparison, HardFrame, compare, from_key, pictures_of, shot
from training.lsts.report.motion import Motion, motion_of
from training.lsts.report.records import SPLIT

__all__ = ["render"]

SHOWN, SHOWN_WORSE = 8, 3
"""Frames that are shown where the method is better, and where single frames are."""


def render(found: Sequence[Findings], classes: Sequence[str], shards: Path | None) -> str:
    """Return the page.

    Args:
        found: of each method.
        classes: class names in index order.
        shards: folder with the pictures of the evaluated videos; None shows no pictures.
    """
    best = chosen(found)
    cost, cost_legend = charts.cost(found)
    columns, columns_legend = charts.by_column(found)
    curves, curves_legend = charts.curves(best)
    dataset, truth = best.evaluated.dataset, best.evaluated.boxes.truth
    return render_page(
        "training.lsts",
        "lsts.html.j2",
        title=f"LSTS: {dataset}" if dataset else "LSTS",
        videos=len(best.evaluated.predictions.key),
        frames=len(truth.labelled_M2),
        boxes=len(truth.video_N),
        resamples=RESAMPLES,
        best=_best(best),
        verdict=_verdict(best),
        cost=markup(cost),
        cost_legend=_legend(cost_legend),
        gains=markup(charts.gains(found)) if any(each.gain for each in found) else "",
        columns=[name for name in best.main.table.columns if name != "all"],
        rows=_rows(found, best),
        by_column=markup(columns),
        columns_legend=_legend(columns_legend),
        by_class=markup(charts.by_class(found, classes)),
        curves=markup(curves),
        curves_legend=_legend(curves_legend),
        class_curves=[markup(chart) for chart in charts.class_curves(best, classes)],
        hard=_hard(best, classes, shards),
        offsets=_offsets(found, best),
    )


def _legend(rows: Sequence[tuple[str, str]]) -> list[tuple[Any, str]]:
    return [(markup(mark), words) for mark, words in rows]


# --- summary ------------------------------------------------------------------------------------


def _best(found: Findings) -> dict[str, Any]:
    low, high = found.main.interval
    return {
        "name": found.name,
        "map50": percent(found.main.mean),
        "interval": f"{100 * low:.1f} to {100 * high:.1f} %",
        "gmac": number(found.main.gmac),
        "ratio": percent(found.ratio),
        "single": None if found.single is None else percent(found.single.mean),
        "single_gmac": None if found.single is None else number(found.single.gmac),
    }


def _verdict(found: Findings) -> dict[str, str] | None:
    """Return in words whether the method is as good as single frames, at what cost."""
    gain, ratio = found.gain, found.ratio
    if gain is None or ratio is None:
        return None
    text = (
        f"{found.name} against the single-frame detector on every frame: {100 * gain.value:+.1f} points of mAP50, 95 % "
        f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}, at {percent(ratio)} of its executed cost."
    )
    if gain.low <= 0 <= gain.high:
        return {"text": text, "word": "not clear", "tag": "underpowered"}
    better = gain.value > 0
    return {"text": text, "word": "better" if better else "worse", "tag": "passed" if better else "failed"}


# --- methods ------------------------------------------------------------------------------------


def _rows(found: Sequence[Findings], best: Findings) -> list[dict[str, Any]]:
    rows = []
    for each in found:
        rows.append(_row(each.name, each.main, each, top=each is best))
        rows += [_row(one.name, one, each, minor=True) for one in each.variants]
    single = next((each for each in found if each.single is not None), None)
    if single is not None and single.single is not None:
        rows.append(_row("single frames", single.single, single))
    return rows


def _row(name: str, detector: Detector, found: Findings, *, top: bool = False, minor: bool = False) -> dict[str, Any]:
    low, high = detector.interval
    lenient, params = detector.evaluated.metric("map50_lenient", detector.name), detector.params
    single = found.single
    return {
        "name": name,
        "top": top,
        "minor": minor,
        "oracle": detector is found.main and found.oracle,
        "map50": percent(detector.mean),
        "interval": f"{100 * low:.1f} to {100 * high:.1f}",
        "lenient": percent(lenient),
        "columns": [percent(detector.table.mean(column)) for column in detector.table.columns if column != "all"],
        "gmac": number(detector.gmac),
        "ratio": percent(None if single is None else detector.gmac / single.gmac),
        "params": "–" if params is None else f"{params / 1e6:.3g}",
    }


# --- hard frames --------------------------------------------------------------------------------


def _hard(best: Findings, classes: Sequence[str], shards: Path | None) -> dict[str, Any] | None:
    """Return frames side by side; None without a single-frame detector."""
    if best.single is None:
        return None
    gained, lost = compare(best.main, best.single, SHOWN), compare(best.single, best.main, SHOWN_WORSE)
    return {
        "more": gained.objects_more,
        "less": gained.objects_less,
        "frames_more": gained.frames_more,
        "frames_less": gained.frames_less,
        "frames": len(best.main.matched.objects.first_F) - 1,
        "sure": percent(best.main.sure),
        "single_sure": percent(best.single.sure),
        "better": _shots(best, gained, classes, shards),
        "worse": _shots(best, lost, classes, shards),
        "pictures": shards is not None,
    }


def _shots(best: Findings, comparison: Comparison, classes: Sequence[str], shards: Path | None) -> list[dict[str, Any]]:
    assert best.single is not None
    if shards is None or not comparison.frames:
        return []
    keys = [str(key) for key in best.evaluated.predictions.key]
    pictures = pictures_of(shards, SPLIT, keys, comparison.frames, best.evaluated.config.data.decoder)
    return [
        {
            "caption": _caption(frame, keys[frame.video], best),
            "single": markup(shot(picture, best.single, frame, classes)),
            "method": markup(shot(picture, best.main, frame, classes)),
        }
        for frame, picture in zip(comparison.frames, pictures, strict=True)
    ]


def _caption(frame: HardFrame, key: str, best: Findings) -> str:
    parts = [f"{key}, frame {frame.frame}", from_key(frame, best.main)]
    truth = best.evaluated.boxes.truth
    here = np.array([frame.video, frame.frame])
    parts += [name for name, pairs in truth.subsets.items() if (pairs == here).all(axis=1).any()]
    return ", ".join(part for part in parts if part)


# --- offsets ------------------------------------------------------------------------------------


def _offsets(found: Sequence[Findings], best: Findings) -> list[dict[str, Any]]:
    """Return the offsets of each method that has some; the one on top of the page first."""
    rows: list[dict[str, Any]] = []
    for each in sorted(found, key=lambda one: one is not best):
        motion = motion_of(each.evaluated)
        if motion is None:
            continue
        chart, legend = charts.offsets(motion)
        rows.append(
            {
                "name": each.name,
                "open": not rows,
                "chart": markup(chart),
                "legend": _legend(legend),
                "rows": _offset_rows(motion),
                "moved": bool(np.abs(motion.learned_K2 - motion.initial_K2).max() > 1e-6),
                "pairs": len(motion.true_P2),
                "alignment": {
                    name.removeprefix(f"{SPLIT}/"): number(value)
                    for name, value in each.evaluated.metrics.items()
                    if name.startswith(f"{SPLIT}/alignment_")
                },
            }
        )
    return rows


def _offset_rows(motion: Motion) -> list[dict[str, str]]:
    rows = []
    named = [("before training", motion.initial_K2), ("learned", motion.learned_K2)]
    for name, table in [*named, *([("true displacements", motion.true_P2)] if len(motion.true_P2) else [])]:
        size = np.abs(table)
        distance = None if table is motion.true_P2 else motion.distance(table)
        rows.append(
            {
                "name": name,
                "count": str(len(table)),
                "x": f"{size[:, 0].mean():.2f}",
                "y": f"{size[:, 1].mean():.2f}",
                "most": f"{size.max():.2f}",
                "distance_x": "" if distance is None else f"{distance[0]:.2f}",
                "distance_y": "" if distance is None else f"{distance[1]:.2f}",
            }
        )
    return rows
