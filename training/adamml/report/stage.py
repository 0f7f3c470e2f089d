"""The stage that reads all evaluations of a data set, and writes the page."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.adamml.config import ReportConfig
from training.adamml.report.findings import Findings, chosen
from training.adamml.report.page import render
from training.adamml.report.records import SPLIT, read_evaluations
from training.core.pages import write_text


class AdaMMLReport:
    """Implements `training.core.stage.Report`.

    Args:
        config: the stage's config; its modalities must be those of the evaluations.
        classes: class names of the data set.
        results: stage → run folders of its instances; `adamml_eval` only.
    """

    def __init__(self, config: ReportConfig, classes: tuple[str, ...], results: Mapping[str, tuple[Path, ...]]) -> None:
        self.modalities = config.model.modalities
        self.classes = classes
        self.results = results

    def write(self, folder: Path) -> dict[str, float]:
        """Write `page.html` and `report.json` into a folder; return the figures.

        `test/best_top1` (share of videos whose best class is right, or one of theirs), `test/<measure>`, `test/saving`,
        `test/gmac_per_video` and `test/price` are of the model that the page names on top (see
        `training.adamml.report.findings.chosen`); `…_<price>` of each price. The measure is `top1`, or `map` of
        multi-label data.

        Raises:
            RecordError: see `read_evaluations`.
        """
        found = [Findings(each) for each in read_evaluations(self.results, self.classes, self.modalities)]
        page = render(found, self.classes)
        write_text(folder / "report.json", json.dumps(summary(found), indent=1, sort_keys=True) + "\n")
        write_text(folder / "page.html", page)
        return figures(found)


def figures(found: list[Findings]) -> dict[str, float]:
    """Return the figures for metrics.json."""
    measure = found[0].evaluated.segments.measure
    best = chosen(found)
    segments = best.evaluated.segments
    result = {f"{SPLIT}/best_top1": float(segments.correct(segments.scores_NC).mean())}
    for each, suffix in [(best, ""), *((each, f"_{each.evaluated.price:g}") for each in found)]:
        result[f"{SPLIT}/{measure}{suffix}"] = each.model.top1
        result[f"{SPLIT}/{measure}_fusion{suffix}"] = each.fusion.top1
        result[f"{SPLIT}/saving{suffix}"] = each.saving
        result[f"{SPLIT}/gmac_per_video{suffix}"] = each.model.gmac
    result[f"{SPLIT}/price"] = best.evaluated.price
    return result


def summary(found: list[Findings]) -> dict[str, Any]:
    """Return what the page shows as plain values."""
    return {
        "dataset": found[0].evaluated.dataset,
        "measure": found[0].evaluated.segments.measure,
        "videos": len(found[0].evaluated.key),
        "chosen_price": chosen(found).evaluated.price,
        "prices": [
            {
                "price": each.evaluated.price,
                "decide": each.evaluated.decide,
                "draws": each.evaluated.draws,
                "model": asdict(each.model),
                "fusion": asdict(each.fusion),
                "alone": [asdict(point) for point in each.alone],
                "controls": [asdict(point) for point in each.controls],
                "curves": [asdict(curve) for curve in (each.threshold, each.random, each.blocks)],
                "saving": each.saving,
                "comparisons": [asdict(row) for row in each.comparisons],
                "usage": [asdict(row) for row in each.usage],
                "subsets": [
                    {"name": name, "videos": count, "model": asdict(point), "fusion": fused}
                    for name, count, point, fused in each.subsets
                ],
                "scores_differ": each.evaluated.scores_differ,
                "costs_differ": each.evaluated.costs_differ,
            }
            for each in found
        ],
    }
