"""What the results of the family say: the numbers of the report, without a page."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from training.core.gate import holm
from training.movinet.report.paired import Comparison, accuracy, compare
from training.movinet.report.records import Net, Results
from training.movinet.report.search_records import UNIFORM
from training.movinet.report.searches import Group, RankCorrelation, groups_of, ranks_of
from training.movinet.report.streams import Stream, stream_of

EQUAL_COST = 0.05
"""Costs that differ by less count as equal where no search says its tolerance."""


@dataclass(frozen=True, eq=False)
class Findings:
    """All numbers of the report."""

    results: Results
    best: Net | None
    """Most accurate trained net on val."""
    reference: Net | None
    """The hand-made architecture that found nets are compared with."""
    tolerance: float
    """Share within which costs count as equal."""
    groups: tuple[Group, ...]
    """The searches themselves first."""
    found: tuple[Comparison, ...]
    """Found nets minus the hand-made one: one per group, each followed by its seeds where there are several."""
    random: tuple[Comparison, ...]
    """Groups minus the nets found by random search: the best of uniform draws."""
    ranks: RankCorrelation
    stream: Stream | None
    ensemble: tuple[Comparison, ...]
    """Ensemble minus its members, its other ways to average, and the net at full rate."""

    def equal_cost(self, comparison: Comparison) -> bool:
        """Whether two sides cost the same within the tolerance."""
        return abs(math.log(comparison.cost_ratio)) <= math.log1p(self.tolerance) + 1e-9

    def holm(self) -> list[float]:
        """Return p of `found` after Holm's correction for their number."""
        return holm([comparison.p for comparison in self.found])

    def metrics(self) -> dict[str, float]:
        """Return the figures; `val/best_top1` is always there, 0 where no net was trained."""
        values: dict[str, float | None] = {
            "val/best_top1": self.best.top1 if self.best else 0.0,
            "report/trained_nets": float(len(self.results.nets)),
        }
        searched = [group for group in self.groups if group.searched and group.top1]
        if searched:
            top = max(searched, key=lambda group: group.top1.value if group.top1 else 0.0)
            values["report/found_top1"] = top.top1.value if top.top1 else None
            values["report/temporal_share"] = top.temporal_found.value if top.temporal_found else None
            values["report/temporal_share_best"] = top.temporal_best.value if top.temporal_best else None
            for key, rows in (("found_gain", self.found), ("random_gain", self.random)):
                row = next((row for row in rows if row.first == top.name), None)
                if row:
                    values |= {
                        f"report/{key}": row.value,
                        f"report/{key}_low": row.low,
                        f"report/{key}_high": row.high,
                    }
        values |= {"report/tau": self.ranks.value, "report/tau_nets": float(self.ranks.nets)}
        if self.stream:
            values |= {"report/stream_top1": self.stream.top1.value, "report/stream_difference": self.stream.largest}
        if ensemble := self.results.net("movinet_ensemble"):
            values["report/ensemble_top1"] = ensemble.top1
        return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}

    def to_json(self) -> str:
        """Return all numbers as text."""
        return json.dumps(
            {
                "dataset": self.results.dataset,
                "missing": list(self.results.missing),
                "metrics": self.metrics(),
                "nets": [_net(net) for net in (*self.results.nets, *self.results.tests)],
                "found_against_hand_made": [asdict(row) for row in self.found],
                "against_random": [asdict(row) for row in self.random],
                "groups": [_group(group) for group in self.groups],
                "ranks": asdict(self.ranks),
                "stream": {
                    "split": self.stream.split,
                    "after": [asdict(share) for share in self.stream.after],
                    "clip": self.stream.clip and asdict(self.stream.clip),
                    "largest_difference": self.stream.largest,
                    "changed": self.stream.changed,
                    "state_bytes": self.stream.state_bytes,
                }
                if self.stream
                else None,
                "ensemble": [asdict(row) for row in self.ensemble],
            },
            indent=1,
        ) + "\n"  # fmt: skip


def _net(net: Net) -> dict[str, Any]:
    share = accuracy([net])
    values = {"top1": net.top1, "low": share.low, "high": share.high, "clips": share.total}
    names = ("name", "stage", "arm", "split", "gmac", "params", "state_bytes")
    return {name: getattr(net, name) for name in names} | values


def _group(group: Group) -> dict[str, Any]:
    shares = {
        name: asdict(share) if (share := getattr(group, name)) is not None else None
        for name in ("top1", "temporal_last", "temporal_best", "temporal_found")
    }
    rest = {name: getattr(group, name) for name in ("engine", "control", "inherited", "expected", "p_temporal")}
    searches = [
        {
            "name": search.name,
            "candidates": len(search.candidates),
            "failed": search.failed,
            "inherited": search.inherited,
            "architecture": search.layout.entry() if search.layout else None,
        }
        for search in group.searches
    ]
    return {**rest, **shares, "searches": searches, "options": [asdict(options) for options in group.options]}


# --- from results -------------------------------------------------------------------------------


def analyse(results: Results, *, resamples: int = 2000, seed: int = 0) -> Findings:
    """Compute all numbers of the report.

    Args:
        results: of `read_results`.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    draws = {"resamples": resamples, "seed": seed}
    groups = tuple(groups_of(results))
    reference = _reference(results)
    found: list[Comparison] = []
    for group in groups:
        if not (group.nets and reference):
            continue
        found.append(compare(group.nets, [reference], (group.name, reference.name), **draws))
        if len(group.nets) > 1:
            found += [compare([net], [reference], (net.name, reference.name), **draws) for net in group.nets]
    drawn = [net for group in groups if group.uniform for net in group.nets]
    return Findings(
        results=results,
        best=max(results.nets, key=lambda net: net.top1, default=None),
        reference=reference,
        tolerance=max((search.tolerance for search in results.searches), default=EQUAL_COST),
        groups=groups,
        found=tuple(found),
        random=tuple(
            compare(group.nets, drawn, (group.name, UNIFORM), **draws)
            for group in groups
            if drawn and group.nets and not group.uniform
        ),
        ranks=ranks_of(results),
        stream=stream_of(results, resamples, seed),
        ensemble=_ensemble(results, resamples, seed),
    )


def _reference(results: Results) -> Net | None:
    """Return the hand-made net that computes like the found ones: same variant if there is such a net."""
    hand = [net for net in (results.net("movinet_train"), results.net("movinet_stream")) if net]
    variants = [net.config.get("variant") for net in results.nets if net.stage == "movinet_found"]
    like = [net for net in hand if variants and net.config.get("variant") == variants[0]]
    return next(iter([*like, *hand]), None)


def _ensemble(results: Results, resamples: int, seed: int) -> tuple[Comparison, ...]:
    ensemble = results.net("movinet_ensemble")
    if ensemble is None:
        return ()
    others = [net for net in results.tests if net.stage == "movinet_ensemble" and net.arm]
    others += [net for net in (results.net("movinet_eval"),) if net]
    return tuple(
        compare([ensemble], [net], (ensemble.name, net.name), resamples=resamples, seed=seed) for net in others
    )
