"""The stage that reads what all others of the family left, and writes the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.core.pages import write_text
from training.movinet.report.findings import analyse
from training.movinet.report.page import render
from training.movinet.report.records import read_results


class MoViNetReport:
    """Implements `training.core.stage.Report`.

    Args:
        config: the stage's config; `bootstrap` (resamples of the intervals) and `seed` (of the resampling) are read,
            2000 and 0 where it has no such fields.
        classes: class names of the data set.
        results: stage → run folders of its instances, of the stages in `training.movinet.report.records.STAGES`; stages
            without instances may be left out.
    """

    def __init__(self, config: Any, classes: tuple[str, ...], results: Mapping[str, tuple[Path, ...]]) -> None:
        self.resamples = int(getattr(config, "bootstrap", 2000))
        self.seed = int(getattr(config, "seed", 0))
        self.classes = classes
        self.results = results

    def write(self, folder: Path) -> dict[str, float]:
        """Write `page.html` and `report.json` into a folder; return the figures.

        `val/best_top1` is always among them; it is 0 where no net was trained.

        Raises:
            RecordError: a run folder that lacks something, or nets that were evaluated on different clips.
        """
        findings = analyse(read_results(self.results), resamples=self.resamples, seed=self.seed)
        write_text(folder / "report.json", findings.to_json())
        write_text(folder / "page.html", render(findings, self.classes))
        return findings.metrics()
