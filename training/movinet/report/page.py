"""The report of the family as a page: static HTML without scripts."""

from collections.abc import Sequence
from typing import Any

from training.core.pages import markup, render_page
from training.movinet.report import drawing, search_charts
from training.movinet.report.charts import (
    differences,
    interval,
    legend,
    p_value,
    pareto,
    percent,
    points,
    rank_chart,
    stream_chart,
)
from training.movinet.report.findings import Findings
from training.movinet.report.paired import Comparison, Share, accuracy, by_class
from training.movinet.report.records import Net, Results
from training.movinet.report.searches import FEWEST_NETS, Group

MOST_DRAWN = 3
"""Found architectures that are drawn beside the hand-made one."""

MISSING = {
    "movinet_train": "the hand-made architecture, with which everything is compared",
    "movinet_eval": "the same on test",
    "movinet_stream": "the stream net",
    "movinet_stream_eval": "accuracy after each frame",
    "movinet_half": "the members of the ensemble",
    "movinet_ensemble": "two nets at half the frame rate",
    "movinet_search": "searches and their controls",
    "movinet_found": "found architectures trained by themselves: without them a search is evidence of nothing",
}
"""What a stage is for. `movinet_search` and `movinet_found` run over lists of params.yaml."""


def render(findings: Findings, classes: Sequence[str]) -> str:
    """Return the page."""
    results = findings.results
    searched = any(group.searches for group in findings.groups)
    return render_page(
        "training.movinet",
        "movinet.html.j2",
        title=f"MoViNet: {results.dataset}" if results.dataset else "MoViNet",
        dataset=results.dataset,
        missing=_missing(results),
        best=_best(findings),
        counts=_counts(findings),
        verdicts=_verdicts(findings),
        found=_found(findings),
        classes=_classes(findings, classes),
        nets=[_net(net) for net in (*results.nets, *results.tests)],
        pareto=_pareto(results.nets),
        tests=_pareto(results.tests),
        drawings=_drawings(findings),
        search=_search(findings) if searched else None,
        groups=[_group(group) for group in findings.groups],
        ranks=_ranks(findings),
        stream=_stream(findings),
        ensemble=_ensemble(findings),
    )


# --- summary ------------------------------------------------------------------------------------


def _missing(results: Results) -> list[dict[str, str]]:
    place = results.dataset or "<dataset>"
    rows = []
    for stage in results.missing:
        command = f"dvc repro {stage}@{place}"
        if stage in ("movinet_search", "movinet_found"):
            command = f"name engines, controls and seeds in params.yaml, then: dvc repro {stage}"
        rows.append({"stage": stage, "what": MISSING[stage], "command": command})
    return rows


def _best(findings: Findings) -> dict[str, str] | None:
    net = findings.best
    if net is None:
        return None
    share = accuracy([net])
    return {
        "top1": percent(net.top1),
        "interval": interval(share.low, share.high),
        "name": net.name,
        "gmac": f"{net.gmac:.3g}",
        "clips": str(share.total),
    }


def _counts(findings: Findings) -> dict[str, int]:
    results = findings.results
    return {
        "nets": len(results.nets),
        "searches": len(results.searches),
        "candidates": sum(len(search.candidates) for search in results.searches),
        "failed": sum(search.failed for search in results.searches),
        "clips": len(results.nets[0].key) if results.nets else 0,
        "tests": len(results.tests[0].key) if results.tests else 0,
    }


def _verdicts(findings: Findings) -> list[dict[str, str]]:
    """Return a sentence for each engine that searched: against the hand-made net, then against uniform draws."""
    said = []
    for rows, other in ((findings.found, "the hand-made net"), (findings.random, "random search")):
        for group in (group for group in findings.groups if group.searched):
            row = next((row for row in rows if row.first == group.name), None)
            if row:
                said.append(_verdict(findings, row, other, len(group.nets)))
    return said


def _verdict(findings: Findings, row: Comparison, other: str, nets: int) -> dict[str, str]:
    mean = f" (mean of {nets} searches)" if nets > 1 else ""
    text = (
        f"{row.first}{mean} against {other}: {points(row.value)} points, 95 % {points(row.low)} to {points(row.high)}, "
    )
    text += f"at {row.cost_ratio:.2f} × the GMAC. "
    equal = findings.equal_cost(row)
    dearer = row.cost_ratio > 1
    if not equal:
        text += f"{'More' if dearer else 'Less'} cost: a difference of the architecture alone is not shown. "
    if row.unequal:
        text += f"The two also differ in {', '.join(row.unequal)}. "
    if row.few:
        text += f"They differ on {row.gained + row.lost} clips only: too few to trust the interval. "
    tag, word = {"better": "passed", "worse": "failed"}.get(row.verdict, "underpowered"), row.verdict
    if not equal and word != "not clear":
        at_odds = dearer == (word == "better")
        word += f"{', but' if at_odds else ' and'} {'dearer' if dearer else 'cheaper'}"
        tag = "underpowered" if at_odds else tag
    return {"text": text.strip(), "word": word, "tag": tag}


def _found(findings: Findings) -> dict[str, Any] | None:
    if not findings.found:
        return None
    names = {group.name for group in findings.groups}
    holm = findings.holm()
    rows = [
        {
            "name": row.first,
            "minor": row.first not in names,
            "gmac": f"{row.cost_ratio:.2f} ×",
            "equal": "equal" if findings.equal_cost(row) else "dearer" if row.cost_ratio > 1 else "cheaper",
            "points": points(row.value),
            "interval": f"{points(row.low)} to {points(row.high)}",
            "clips": f"{row.gained} / {row.lost}",
            "p": p_value(row.p),
            "holm": p_value(adjusted),
            "unequal": ", ".join(row.unequal),
        }
        for row, adjusted in zip(findings.found, holm, strict=True)
    ]
    words = f"points of top-1: found minus {findings.found[0].second}"
    minor = [row.first not in names for row in findings.found]
    random = differences(findings.random, "points of top-1: found minus the mean of random search")
    return {
        "rows": rows,
        "chart": markup(differences(findings.found, words, minor=minor)),
        "random": markup(random) if findings.random else "",
        "tolerance": f"{100 * findings.tolerance:g}",
    }


def _classes(findings: Findings, classes: Sequence[str]) -> dict[str, Any] | None:
    found = [net for group in findings.groups if group.searched for net in group.nets]
    if not (found and findings.reference):
        return None
    top = max(found, key=lambda net: net.top1)
    rows = by_class(top, findings.reference, classes)
    return {
        "first": top.name,
        "second": findings.reference.name,
        "rows": [
            {"name": r.name, "clips": r.clips, "first": percent(r.first), "second": percent(r.second),
             "points": points(r.first - r.second)}
            for r in rows
        ],
    } if rows else None  # fmt: skip


# --- accuracy and cost --------------------------------------------------------------------------


def _net(net: Net) -> dict[str, str]:
    share = accuracy([net])
    return {
        "name": net.name,
        "split": net.split,
        "top1": percent(net.top1),
        "interval": interval(share.low, share.high),
        "gmac": f"{net.gmac:.3g}",
        "params": f"{net.params / 1e6:.3g}",
        "state": "" if net.state_bytes is None else f"{net.state_bytes / 1e3:.4g}",
    }


def _pareto(nets: Sequence[Net]) -> dict[str, Any] | None:
    if not nets:
        return None
    streams = any(net.state_bytes for net in nets)
    return {
        "legend": [(markup(mark), words) for mark, words in legend(nets)],
        "gmac": markup(pareto(nets, "gmac")),
        "params": markup(pareto(nets, "params", width=540, height=360)),
        "state": markup(pareto(nets, "state_bytes", width=540, height=360)) if streams else "",
    }


# --- architectures ------------------------------------------------------------------------------


def _drawings(findings: Findings) -> dict[str, Any] | None:
    shown = []
    net = findings.reference
    if net:
        model = net.config["model"]["architecture"]
        name = f"hand-made{f': {model}' if isinstance(model, str) else ''}"
        shown.append((name, net.layout, net.side, f"top-1 {percent(net.top1)}, {net.gmac:.3g} GMAC"))
    for group in [group for group in findings.groups if group.searched][:MOST_DRAWN]:
        top = max(group.nets, key=lambda net: net.top1, default=None)
        if top:
            words = f"top-1 {percent(top.top1)}, {top.gmac:.3g} GMAC"
            shown.append((f"found: {top.name}", top.layout, top.side, words))
            continue
        chosen = max((s for s in group.searches if s.layout), key=lambda s: s.inherited or 0.0, default=None)
        if chosen and chosen.layout:
            shown.append((f"found: {chosen.name}", chosen.layout, chosen.side, "not trained by itself"))
    if not shown:
        return None
    figures = []
    for name, layout, side, words in shown:
        layers = [layer for block in layout.blocks for layer in block.layers]
        temporal = sum(layer.kernel[0] > 1 for layer in layers)
        figures.append(
            {
                "name": name,
                "picture": markup(drawing.draw(layout, side)),
                "words": f"{words}; {temporal} of {len(layers)} layers have k_t > 1 "
                f"({100 * temporal / len(layers):.0f} %), {sum(layer.gate for layer in layers)} have a gate; "
                f"convolutions see {layout.receptive_frames} frames",
            }
        )
    return {
        "figures": figures,
        "legend": [(markup(mark), words) for mark, words in drawing.legend([layout for _, layout, _, _ in shown])],
    }


# --- searches -----------------------------------------------------------------------------------


def _search(findings: Findings) -> dict[str, Any]:
    groups = [group for group in findings.groups if group.searches]
    bounds = search_charts.value_range(findings.results.searches)
    kinds = search_charts.kinds_of(groups)
    return {
        "clouds": [markup(search_charts.cloud(groups, kind)) for kind in kinds],
        "every": max(search_charts.every(groups, kind) for kind in kinds),
        "legend": [(markup(mark), words) for mark, words in search_charts.cloud_legend(groups)],
        "panels": _panels([group for group in groups if group.searched], bounds),
        "controls": _panels([group for group in groups if not group.searched], bounds),
        "baseline": any(c.baseline is not None for s in findings.results.searches for c in s.candidates),
        "bars": [
            {
                "name": group.name,
                "open": group.searched,
                "chart": markup(search_charts.option_bars(group.options, group.name)),
            }
            for group in groups
            if group.options
        ],
    }


def _panels(groups: Sequence[Group], bounds: tuple[float, float]) -> list[Any]:
    return [markup(search_charts.history(search, bounds)) for group in groups for search in group.searches]


def _group(group: Group) -> dict[str, str]:
    inherited = ""
    if group.inherited:
        inherited = percent(max(group.inherited))
        if len(group.inherited) > 1:
            inherited = f"{100 * min(group.inherited):.1f}–{inherited}"
    alone = [net.top1 for net in group.nets]
    return {
        "name": group.name,
        "tag": "search" if group.searched else "control",
        "searches": str(len(group.searches)),
        "candidates": str(sum(len(search.candidates) for search in group.searches)),
        "failed": str(sum(search.failed for search in group.searches)),
        "inherited": inherited,
        "alone": percent(group.top1.value) if group.top1 else "not trained",
        "spread": f"{100 * min(alone):.1f}–{percent(max(alone))}" if len(alone) > 1 else "",
        "last": _share(group.temporal_last),
        "best": _share(group.temporal_best),
        "found": _share(group.temporal_found),
        "expected": percent(group.expected) if group.expected is not None else "unknown",
        "p": p_value(group.p_temporal) if group.p_temporal is not None else "",
    }


def _share(share: Share | None) -> str:
    return f"{100 * share.value:.0f} % ({100 * share.low:.0f}–{100 * share.high:.0f})" if share else "–"


def _ranks(findings: Findings) -> dict[str, Any] | None:
    ranks = findings.ranks
    if not ranks.points:
        return None
    if ranks.value is not None and ranks.p is not None:
        text = f"Kendall's τ = {ranks.value:+.2f} over {ranks.nets} nets, p {p_value(ranks.p)}."
        if ranks.p > 0.05:
            text += " No association is shown: what the search maximised may say nothing about the trained nets."
    elif ranks.nets < FEWEST_NETS:
        text = f"{ranks.nets} of the nets count: too few for a rank correlation, which needs {FEWEST_NETS}."
    else:
        text = f"All {ranks.nets} nets are equal in one of the two accuracies: there are no ranks."
    return {"chart": markup(rank_chart(ranks)), "text": text, "hollow": any(not point.counts for point in ranks.points)}


# --- stream and ensemble ------------------------------------------------------------------------


def _stream(findings: Findings) -> dict[str, Any] | None:
    stream = findings.stream
    if stream is None:
        return None
    equality = "The predictions have no arm `clip`: whether stream and whole clip agree is not known."
    if stream.largest is not None:
        equality = f"Largest difference of a score between stream and whole clip: {stream.largest:.1e}; "
        equality += f"the top class differs on {stream.changed} of {stream.top1.total} clips."
    row = stream.against_base
    base = ""
    if row:
        base = f"Stream minus {row.second} ({row.cost_ratio:.2f} × its GMAC): {points(row.value)} points, 95 % "
        base += f"{points(row.low)} to {points(row.high)}, McNemar p {p_value(row.p)}"
        base += f"; they also differ in {', '.join(row.unequal)}." if row.unequal else "."
    return {
        "split": stream.split,
        "top1": percent(stream.top1.value),
        "interval": interval(stream.top1.low, stream.top1.high),
        "state": f"{stream.state_bytes / 1e3:.4g} kB" if stream.state_bytes else "unknown",
        "frames": len(stream.after),
        "chart": markup(stream_chart(stream)) if stream.after else "",
        "equality": equality,
        "base": base,
    }


def _ensemble(findings: Findings) -> dict[str, Any] | None:
    nets = [net for net in findings.results.tests if net.stage == "movinet_ensemble"]
    if not nets:
        return None
    nets += [net for net in findings.results.tests if net.stage == "movinet_eval" and not net.arm]
    words = {
        "": "mean of logits", "member0": "even frames", "member1": "odd frames",
        "probabilities": "mean of probabilities", "aligned": "both on the even frames",
    }  # fmt: skip
    rows = [
        {**_net(net), "what": words.get(net.arm, net.arm) if net.stage == "movinet_ensemble" else "one net, all frames"}
        for net in nets
    ]
    chart = differences(findings.ensemble, "points of top-1: ensemble minus …", second=True)
    return {"rows": rows, "chart": markup(chart), "few": any(row.few for row in findings.ensemble)}
