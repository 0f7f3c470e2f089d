"""The scaling study as a page: static HTML without scripts, to read off what to scale next."""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import yaml

from training.core.pages import markup, render_page
from training.resnet_rs.records import AXES, Configuration, Record, Variant, place_name, varying
from training.resnet_rs.resampling import Estimate
from training.resnet_rs.scaling import Level, Scaling
from training.resnet_rs.scaling_charts import axis_name, axis_title, cloud, gains, gmac, hint, legend, percent, trades
from training.resnet_rs.scaling_effects import INTERACTION, Comparison, Fit
from training.resnet_rs.scaling_next import Next, Place

MOST_COMPARISONS = 25
"""Rows of the table; `scaling.json` has all."""


def render(result: Scaling, records: Sequence[Record], *, title: str = "Scaling", dataset: str = "") -> str:
    """Return the page.

    Args:
        result: of `analyse` on the same records.
        records: for the search trials, stopped ones among them.
        title: headline.
        dataset: name of the data set, shown and named in the params file to change; "": `<dataset>`.
    """
    return render_page(
        "training.resnet_rs",
        "scaling.html.j2",
        title=title,
        dataset=dataset,
        result=result,
        top1=_best(result),
        cloud=markup(cloud(result, records)),
        legend=[(markup(mark), text) for mark, text in legend(result, records)],
        heat=_heat(result.configurations),
        gains=markup(gains(result)),
        bends=_bends(result),
        fit=None if result.fit is None else _fit(result.fit),
        trades=markup(trades(result)) if result.trades else "",
        comparisons=[_comparison(comparison) for comparison in result.comparisons[:MOST_COMPARISONS]],
        levels=[_level(level) for level in result.levels],
        trials=_trials(records),
        step=_step(result.next),
        yaml=_yaml(result.next),
    )


# --- grid --------------------------------------------------------------------------------------


def _heat(found: Sequence[Configuration]) -> list[dict[str, Any]]:
    """Return frames × size tables of the grid, one per depth, width and variant."""
    grid = [c for c in found if not c.searched]
    if not grid:
        return []
    low, high = min(c.top1 for c in grid), max(c.top1 for c in grid)
    groups: dict[tuple[int, float, Variant], list[Configuration]] = {}
    for c in sorted(grid, key=lambda c: (c.depth, c.width, astuple(c.variant))):
        groups.setdefault((c.depth, c.width, c.variant), []).append(c)
    widths, several = {c.width for c in grid}, varying([c.variant for c in grid])
    tables = []
    for (depth, width, variant), members in groups.items():
        cells = {(c.frames, c.size): c for c in members}
        sizes = sorted({c.size for c in members})
        rest = [f"width {width:g}"] * (len(widths) > 1) + [f"{name} {getattr(variant, name)}" for name in several]
        rows = []
        for frames in sorted({c.frames for c in members}):
            row = [_cell(cells.get((frames, size)), low, high) for size in sizes]
            rows.append({"frames": frames, "cells": row})
        tables.append({"name": ", ".join([f"depth {depth}", *rest]), "sizes": sizes, "rows": rows})
    return tables


def _cell(c: Configuration | None, low: float, high: float) -> dict[str, Any] | None:
    if c is None:
        return None
    share = (c.top1 - low) / (high - low) if high > low else 0.0
    spread = f"{100 * c.seed_low:.1f}–{100 * c.seed_high:.1f}" if c.seeds > 1 else ""
    return {
        "top1": percent(c.top1),
        "gmac": gmac(c.gmac),
        "seeds": spread,
        "share": round(4 + 46 * share),
        "title": hint(c),
    }


# --- effects -----------------------------------------------------------------------------------


def _bends(result: Scaling) -> list[str]:
    """Return a sentence for each axis whose first and last segment can be compared."""
    said = []
    for axis in AXES:
        bend = result.gains[axis].bend
        if bend is None:
            continue
        if bend.high < 0:
            word = "saturation, the last step gains clearly less than the first"
        elif bend.low > 0:
            word = "the last step gains clearly more than the first"
        else:
            word = "no clear bend between the first and the last step"
        said.append(f"{axis_title(axis)}: {word} ({_points(bend)}).")
    return said


def _fit(fit: Fit) -> dict[str, Any]:
    rows = []
    for term in fit.terms:
        unit = "points per doubling of cost"
        if term.name == INTERACTION:
            unit = "points per doubling of both"
        elif term.name.startswith("intercept"):
            unit = "% top-1 at the centre of the records"
        rows.append(
            {
                "name": axis_name(term.name),
                "value": "–" if term.estimate is None else f"{100 * term.estimate.value:+.2f}",
                "interval": _interval(term.estimate, 2),
                "unit": unit if term.estimate else f"not estimable: {term.reason}",
                "known": term.estimate is not None,
            }
        )
    interaction = fit.term(INTERACTION)
    sentence = ""
    if interaction and interaction.estimate:
        estimate = interaction.estimate
        if estimate.low > 0:
            sentence = "The interaction is above 0: depth and frames gain more when they are raised together."
        elif estimate.high < 0:
            sentence = "The interaction is below 0: depth and frames replace one another in part."
        else:
            sentence = "The interval of the interaction contains 0: joint scaling is neither supported nor refuted."
    return {
        "rows": rows,
        "r2": "" if fit.r2 is None else f"{fit.r2:.3f}",
        "freedom": fit.freedom,
        "records": fit.records,
        "interaction": sentence,
    }


# --- equal cost --------------------------------------------------------------------------------


def _comparison(c: Comparison) -> dict[str, str]:
    words = [f"more {axis_name(axis)}" for axis in c.more] + [f"less {axis_name(axis)}" for axis in c.less]
    words += [f"other {name}" for name in c.other]
    return {
        "first": c.first,
        "second": c.second,
        "what": ", ".join(words),
        "gmac": f"{c.gmac_first:.3g} / {c.gmac_second:.3g}",
        "difference": f"{100 * c.difference.value:+.1f}",
        "interval": _interval(c.difference, 1),
        "clips": f"{c.gained} / {c.lost}",
        "p": _p(c.p),
        "holm": _p(c.p_holm),
        "mark": "clear" if c.p_holm <= 0.05 else "",
    }


# --- search ------------------------------------------------------------------------------------


def _level(level: Level) -> dict[str, str]:
    best = level.best
    return {
        "name": level.name or "–",
        "gmac": gmac(level.gmac),
        "finished": str(level.finished),
        "stopped": str(level.stopped),
        "best": best.name if best else "none finished",
        "top1": percent(best.top1) if best else "–",
        "interval": f"{100 * best.low:.1f} to {100 * best.high:.1f}" if best else "",
    }


def _trials(records: Sequence[Record]) -> list[dict[str, str]]:
    """Return the search trials: cheapest level first, then the longest trained, then the most accurate."""
    trials = [record for record in records if record.source == "search"]
    several = varying([record.variant for record in trials])
    hidden = [name for name in several if name != "steps"]
    costs: dict[str, list[float]] = {}
    for trial in trials:
        costs.setdefault(trial.level, []).append(trial.gmac)

    def order(trial: Record) -> tuple[float, str, int, float]:
        return (sum(costs[trial.level]) / len(costs[trial.level]), trial.level, -trial.steps, -(trial.top1 or 0.0))

    return [
        {
            "level": trial.level or "–",
            "name": trial.name,
            "place": place_name(trial.place, trial.variant, hidden),
            "gmac": gmac(trial.gmac),
            "steps": str(trial.steps),
            "status": trial.status,
            "last": "–" if trial.top1 is None else percent(trial.top1),
        }
        for trial in sorted(trials, key=order)
    ]


# --- recommendation ----------------------------------------------------------------------------


def _step(step: Next) -> dict[str, Any]:
    words = {
        "clear": "next configuration",
        "unclear": "next configuration, the data do not separate the axes",
        "no gain": "no gain is expected",
        "no candidate": "no allowed configuration",
        "not estimated": "nothing is recommended",
    }
    tag = {"clear": "passed", "unclear": "underpowered", "no gain": "failed"}.get(step.verdict, "ungated")
    candidates = [
        {
            "axes": " and ".join(axis_name(axis) for axis in c.axes),
            "name": _named(c.place),
            "gmac": gmac(c.gmac),
            "ratio": f"{c.ratio:.2f} ×",
            "gain": f"{100 * c.gain.value:+.1f}",
            "interval": _interval(c.gain, 1),
            "rate": f"{100 * c.per_doubling:+.1f}",
            "beyond": ", ".join(axis_name(axis) for axis in c.beyond),
        }
        for c in step.candidates
    ]
    return {
        "word": words[step.verdict],
        "tag": tag,
        "text": step.text,
        "name": _named(step.place) if step.place else "",
        "base": step.base or "",
        "candidates": candidates,
    }


def _named(place: Place) -> str:
    depth, frames, size, width = place
    return f"{depth}-{frames}-{size}-{width:g}"


def _yaml(step: Next) -> str:
    if step.sections is None:
        return ""
    plain = {name: dict(fields) for name, fields in step.sections.items()}
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=100)


# --- words -------------------------------------------------------------------------------------


def _best(result: Scaling) -> dict[str, str] | None:
    if not result.configurations:
        return None
    best = max(result.configurations, key=lambda c: c.top1)
    return {
        "value": percent(best.top1),
        "interval": f"{100 * best.low:.1f} to {100 * best.high:.1f} %",
        "name": best.name,
        "gmac": gmac(best.gmac),
    }


def _interval(estimate: Estimate | None, digits: int) -> str:
    return "" if estimate is None else f"{100 * estimate.low:+.{digits}f} to {100 * estimate.high:+.{digits}f}"


def _points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} points per doubling, 95 %: {_interval(estimate, 1)}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")
