"""The evaluations as a page: static HTML without scripts."""

import math
from collections.abc import Sequence
from typing import Any

from training.adamml.report import charts
from training.adamml.report.charts import p_value, percent
from training.adamml.report.findings import TOLERANCE, Comparison, Findings, Usage, chosen
from training.core.charts import number
from training.core.pages import markup, render_page

MOST_DIFFERENCE = 0.02
"""Share by which recomputed scores or costs may differ from the evaluation's before the page says so."""

MOST_SPREAD = 1.15
"""A usage whose spread over videos is larger than this times that of blind choices is called adaptive, …"""

LEAST_TOLD = 0.02
"""… and so is one whose decisions tell this share of their entropy about the class, beyond chance."""

COUNTED = {
    "measured": "of convolutions and linear layers, counted from the networks",
    "release": "of convolutions, by the public code's constants as they are",
    "corrected": "of convolutions, by the public code's constants with that of the policy's difference net mended",
}
"""`AdaMMLConfig.constants` in words."""


def render(found: Sequence[Findings], classes: Sequence[str]) -> str:
    """Return the page.

    Args:
        found: of each price, lowest first.
        classes: class names in index order.
    """
    best = chosen(found)
    chart, close, legend = charts.overview(found)
    dataset = best.evaluated.dataset
    return render_page(
        "training.adamml",
        "adamml.html.j2",
        title=f"AdaMML: {dataset}" if dataset else "AdaMML",
        dataset=dataset,
        measure=charts.measure(best),
        videos=len(best.evaluated.key),
        segments=best.evaluated.segments.shape[1],
        modalities=" and ".join(best.evaluated.segments.names),
        counted=COUNTED.get(best.evaluated.constants, f"counted as {best.evaluated.constants!r}"),
        policy=number(best.evaluated.segments.policy_gmac),
        costs=[
            f"{name} {number(float(cost))}"
            for name, cost in zip(best.evaluated.segments.names, best.evaluated.segments.cost_K, strict=True)
        ],
        best=_best(best),
        verdicts=_verdicts(best),
        warnings=_warnings(found),
        overview=markup(chart),
        close=markup(close),
        legend=_legend(legend),
        prices=[_price(each, classes, each is best) for each in found],
        several=markup(charts.against_price(found)) if len(found) > 1 else "",
        rows=[_row(each) for each in found],
        modality_legend=_legend(charts.modality_legend(best)),
        names=best.evaluated.segments.names,
    )


def _legend(rows: Sequence[tuple[str, str]]) -> list[tuple[Any, str]]:
    return [(markup(mark), words) for mark, words in rows]


# --- summary ------------------------------------------------------------------------------------


def _best(found: Findings) -> dict[str, str]:
    model = found.model
    return {
        "price": f"{found.evaluated.price:g}",
        "top1": percent(model.top1),
        "interval": _interval(model.low, model.high),
        "gmac": number(model.gmac),
        "fusion": percent(found.fusion.top1),
        "fusion_gmac": number(found.fusion.gmac),
        "saving": percent(found.saving),
        "tolerance": f"{100 * TOLERANCE:g}",
    }


def _verdicts(found: Findings) -> list[dict[str, str]]:
    """Return a sentence about each question that the page answers."""
    rows = []
    fusion, random, blocks = found.comparisons[:3]
    rows.append(_compared(fusion, f"{_saved(fusion.saving)} of the executed cost of all modalities, policy included"))
    rows.append(_compared(random, "the same rates of use, drawn blindly"))
    rows.append(_compared(blocks, "whole segments drawn blindly, at the executed cost"))
    for usage in found.usage:
        rows.append(_adaptive(usage))
    return rows


def _saved(saving: float) -> str:
    return f"saves {percent(saving)}" if saving >= 0 else f"costs {percent(-saving)} more"


def _compared(row: Comparison, words: str) -> dict[str, str]:
    text = f"Against {row.other} ({words}): {100 * row.difference:+.1f} points"
    if row.low is None or row.high is None or row.p is None:
        return {"text": f"{text}.", "word": "no test", "tag": ""}
    text += f", 95 % {100 * row.low:+.1f} to {100 * row.high:+.1f}, p {p_value(row.p)}."
    if row.p > 0.05 or row.low <= 0 <= row.high:
        return {"text": text, "word": "not clear", "tag": "underpowered"}
    better = row.difference > 0
    return {"text": text, "word": "better" if better else "worse", "tag": "passed" if better else "failed"}


def _adaptive(usage: Usage) -> dict[str, str]:
    text = f"{usage.name} is used in {percent(usage.rate)} of the segments"
    if usage.rate_there != usage.rate:
        text += f" ({percent(usage.rate_there)} of those that have it)"
    text += f"; from video to video it varies by {usage.spread:.2f}, blind choices would by {usage.chance_spread:.2f}."
    if usage.bits is not None and usage.chance_bits is not None:
        text += f" A decision tells {usage.bits:.3f} bits of the class ({usage.chance_bits:.3f} by chance)."
    if usage.rate_there in (0.0, 1.0):
        return {"text": text, "word": "never used" if usage.rate == 0 else "always used", "tag": "failed"}
    told = 0.0 if usage.bits is None or usage.chance_bits is None else usage.bits - usage.chance_bits
    if usage.spread > MOST_SPREAD * usage.chance_spread or told > LEAST_TOLD * _entropy(usage.rate_there):
        return {"text": text, "word": "adaptive", "tag": "passed"}
    return {"text": text, "word": "close to constant", "tag": "underpowered"}


def _entropy(rate: float) -> float:
    """Return the entropy of a decision, bits."""
    return -sum(share * math.log2(share) for share in (rate, 1 - rate) if share > 0)


def _warnings(found: Sequence[Findings]) -> list[str]:
    said = []
    for each in found:
        scores, costs = each.evaluated.scores_differ, each.evaluated.costs_differ
        if scores > MOST_DIFFERENCE:
            said.append(
                f"{each.evaluated.name}: scores recomputed from the segments differ from the model's by "
                f"{percent(scores)} on average. Curves and controls do not belong to this model; evaluate it again."
            )
        if costs > MOST_DIFFERENCE:
            said.append(
                f"{each.evaluated.name}: the executed cost of a video differs from the sum of its parts by up to "
                f"{percent(costs)}. Do not trust the costs of curves and controls."
            )
    return said


# --- prices -------------------------------------------------------------------------------------


def _row(found: Findings) -> dict[str, Any]:
    random, blocks, oracle = found.controls
    return {
        "price": f"{found.evaluated.price:g}",
        "top1": percent(found.model.top1),
        "interval": _interval(found.model.low, found.model.high),
        "gmac": number(found.model.gmac),
        "saving": percent(found.saving),
        "usage": [f"{100 * usage.rate:.0f} %" for usage in found.usage],
        "fusion": percent(found.fusion.top1),
        "random": f"{percent(random.top1)} ± {100 * random.deviation:.1f}",
        "blocks": f"{percent(blocks.top1)} ± {100 * blocks.deviation:.1f}",
        "oracle": f"{percent(oracle.top1)} at {number(oracle.gmac)}",
    }


def _price(found: Findings, classes: Sequence[str], top: bool) -> dict[str, Any]:
    chart, legend = charts.detail(found)
    return {
        "name": found.evaluated.name,
        "open": top,
        "decide": found.evaluated.decide,
        "draws": found.evaluated.draws,
        "chart": markup(chart),
        "legend": _legend(legend),
        "differences": markup(charts.differences(found)) if not found.evaluated.segments.multi_label else "",
        "comparisons": [_comparison(row) for row in found.comparisons],
        "classes": markup(charts.classes(found, classes)),
        "positions": markup(charts.positions(found)),
        "distributions": [markup(chart) for chart in charts.distributions(found)],
        "usage": [_usage(row) for row in found.usage],
        "subsets": [
            {
                "name": name,
                "videos": count,
                "top1": percent(point.top1),
                "interval": _interval(point.low, point.high),
                "fusion": percent(fused),
                "gmac": number(point.gmac),
            }
            for name, count, point, fused in found.subsets
        ],
        "videos": [_video(found, row, classes) for row in charts.sample(found)],
    }


def _comparison(row: Comparison) -> dict[str, str]:
    return {
        "other": row.other,
        "points": f"{100 * row.difference:+.1f}",
        "interval": "–" if row.low is None or row.high is None else f"{100 * row.low:+.1f} to {100 * row.high:+.1f}",
        "counts": "–" if row.p is None else f"{charts.count(row.gained)} / {charts.count(row.lost)}",
        "p": p_value(row.p),
        "gmac": number(row.gmac),
        "saving": percent(row.saving) if row.saving > -0.995 else f"costs {1 - row.saving:.3g} ×",
    }


def _usage(usage: Usage) -> dict[str, str]:
    return {
        "name": usage.name,
        "rate": percent(usage.rate),
        "spread": f"{usage.spread:.3f}",
        "chance_spread": f"{usage.chance_spread:.3f}",
        "bits": "–" if usage.bits is None else f"{usage.bits:.3f}",
        "chance_bits": "–" if usage.chance_bits is None else f"{usage.chance_bits:.3f}",
    }


def _video(found: Findings, row: int, classes: Sequence[str]) -> dict[str, Any]:
    segments = found.evaluated.segments
    scores = segments.scores_NC[row]
    named = int(scores.argmax())
    truth = (
        [int(c) for c in (segments.label[row] > 0).nonzero()[0]] if segments.multi_label else [int(segments.label[row])]
    )
    return {
        "key": str(found.evaluated.key[row]),
        "truth": ", ".join(classes[c] for c in truth) or "no class",
        "named": classes[named],
        "score": f"{100 * float(scores[named]):.0f} %",
        "right": named in truth,
        "gmac": number(float(segments.gmac_N[row])),
        "chart": markup(charts.timeline(found, row)),
    }


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f} %"
