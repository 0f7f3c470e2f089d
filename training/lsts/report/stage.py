"""The stage that reads all evaluations of a data set, and writes the page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.core.pages import write_text
from training.lsts.config import ReportConfig
from training.lsts.report.findings import RESAMPLES, Detector, Findings, chosen
from training.lsts.report.hard_frames import compare
from training.lsts.report.motion import motion_of
from training.lsts.report.page import render
from training.lsts.report.records import SPLIT, read_evaluations

__all__ = ["LSTSReport"]


class LSTSReport:
    """Implements `training.core.stage.Report`.

    Args:
        config: the stage's config.
        classes: class names of the data set.
        results: stage → run folders of its instances; `lsts_eval` only.
        shards: folder of the data set's shards, for pictures; None shows none.
        resamples: draws of videos for the intervals.
    """

    def __init__(
        self,
        config: ReportConfig,
        classes: tuple[str, ...],
        results: Mapping[str, tuple[Path, ...]],
        shards: Path | None = None,
        resamples: int = RESAMPLES,
    ) -> None:
        self.config = config
        self.classes = classes
        self.results = results
        self.shards = shards
        self.resamples = resamples

    def write(self, folder: Path) -> dict[str, float]:
        """Write `page.html` and `report.json` into a folder; return the figures.

        `test/best_map50`, `test/best_gmac_per_frame`, `test/best_gmac_ratio` (to the single-frame detector) and
        `test/best_gain` (mAP50 minus its) are of the method that the page names on top (see
        `training.lsts.report.findings.chosen`); `test/map50_<method>`, … of each method.

        Raises:
            RecordError: see `read_evaluations`.
        """
        found: list[Findings] = []
        for evaluated in read_evaluations(self.results, self.classes):
            known = next((each.single for each in found if each.single is not None), None)
            found.append(Findings(evaluated, known, self.resamples))
        page = render(found, self.classes, self.shards)
        write_text(folder / "report.json", json.dumps(summary(found), indent=1, sort_keys=True) + "\n")
        write_text(folder / "page.html", page)
        return figures(found)


def figures(found: Sequence[Findings]) -> dict[str, float]:
    """Return the figures for metrics.json."""
    best = chosen(found)
    result: dict[str, float] = {}
    for each, prefix, suffix in [(best, "best_", ""), *((each, "", f"_{each.name}") for each in found)]:
        result[f"{SPLIT}/{prefix}map50{suffix}"] = each.main.mean
        result[f"{SPLIT}/{prefix}gmac_per_frame{suffix}"] = each.main.gmac
        if each.gain is not None and each.ratio is not None:
            result[f"{SPLIT}/{prefix}gain{suffix}"] = each.gain.value
            result[f"{SPLIT}/{prefix}gmac_ratio{suffix}"] = each.ratio
    return result


def summary(found: Sequence[Findings]) -> dict[str, Any]:
    """Return what the page shows as plain values."""
    return {
        "dataset": found[0].evaluated.dataset,
        "videos": len(found[0].evaluated.predictions.key),
        "chosen": chosen(found).name,
        "methods": [_method(each) for each in found],
    }


def _method(found: Findings) -> dict[str, Any]:
    gain, motion = found.gain, motion_of(found.evaluated)
    comparison = None if found.single is None else compare(found.main, found.single, 0)
    return {
        "name": found.name,
        "oracle": found.oracle,
        "ratio": found.ratio,
        "gain": None if gain is None else vars(gain),
        "detectors": [_detector(one) for one in (found.main, found.single, *found.variants) if one is not None],
        "objects_more": None if comparison is None else comparison.objects_more,
        "objects_less": None if comparison is None else comparison.objects_less,
        "offsets": None
        if motion is None
        else {
            "initial": motion.initial_K2.tolist(),
            "learned": motion.learned_K2.tolist(),
            "pairs": len(motion.true_P2),
            "distance_initial": motion.distance(motion.initial_K2),
            "distance_learned": motion.distance(motion.learned_K2),
        },
    }


def _detector(detector: Detector) -> dict[str, Any]:
    table = detector.table
    return {
        "name": detector.name,
        "map50": detector.mean,
        "interval": detector.interval,
        "gmac_per_frame": detector.gmac,
        "params": detector.params,
        "columns": {name: table.mean(name) for name in table.columns},
        "sure": detector.sure,
    }
