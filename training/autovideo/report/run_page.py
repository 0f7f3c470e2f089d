"""The page of one run of a pipeline, and the parts that pages of evaluations share."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.autovideo.evaluation.figures import Scored
from training.autovideo.report.records import Evaluated, read_evaluation
from training.core.charts import Series, lines, number
from training.core.pages import markup, percent, percent_range, render_page, write_text
from training.core.report_classes import by_class


def evaluated_section(evaluated: Evaluated) -> dict[str, Any]:
    """Return accuracy with its interval, the baseline of the most frequent class, a row per class and the confusion."""
    figures, single = evaluated.metrics, evaluated.arrays["label"].ndim == 1
    low, high, majority = figures["top1_low"], figures["top1_high"], figures["majority"]
    verdict = ("passed", "above the most frequent class") if low > majority else (
        ("failed", "below the most frequent class") if high < majority
        else ("underpowered", "not told apart from the most frequent class")
    )  # fmt: skip
    return {
        "split": evaluated.split,
        "top1": percent(figures["top1"]),
        "interval": percent_range((low, high)),
        "majority": percent(majority),
        "map": "" if single else percent(figures["map"]),
        "samples": int(figures["samples"]),
        "classes": len(evaluated.arrays["classes"]),
        "tag": verdict[0],
        "verdict": verdict[1],
        **({"per_class": [], "confusion": None} | by_class(evaluated.arrays)),
    }


def write_confusion(folder: Path, step: str, splits: Sequence[Scored]) -> None:
    """Write `page.html` with a row per class and the confusion matrix of each split."""
    sections = []
    for scored in splits:
        arrays: dict[str, Any] = {
            "label": scored.label, "scores": scored.scores, "classes": np.asarray(scored.classes),
        }  # fmt: skip
        sections.append({"split": scored.split, "samples": len(scored.key), **by_class(arrays)})
    folder.mkdir(parents=True, exist_ok=True)
    page = render_page("training.autovideo", "confusion.html.j2", title=f"Confusion: {step}", sections=sections)
    write_text(folder / "page.html", page)


class RunReport:
    """Writes `page.html` and `report.json` of one run of a pipeline.

    Args:
        document: the pipeline as YAML.
        metrics: step → figures with the split before their name.
        evaluation: folder of an evaluation; None: no classes are shown.
        edges: (from, to) of the steps, in the order of the document.
        curves: name → (step, value) of training.
        title: of the page.
    """

    def __init__(
        self,
        document: str,
        metrics: Mapping[str, Mapping[str, float]],
        evaluation: Path | None = None,
        edges: Sequence[tuple[str, str]] = (),
        curves: Mapping[str, Sequence[tuple[float, float]]] | None = None,
        title: str = "Pipeline",
    ) -> None:
        self.document, self.metrics, self.evaluation = document, metrics, evaluation
        self.edges, self.curves, self.title = tuple(edges), curves or {}, title

    def write(self, folder: Path) -> dict[str, float]:
        """Write both files into a folder; return the figures, `<step>/<split>/<name>`.

        Raises:
            ConfigError: an evaluation that cannot be read.
        """
        evaluated = read_evaluation(self.evaluation) if self.evaluation is not None else None
        figures = {f"{step}/{name}": value for step, row in self.metrics.items() for name, value in row.items()}
        charts = []
        for name, points in sorted(self.curves.items()):
            share = all(0 <= value <= 1 for _, value in points) and "loss" not in name
            charts.append(markup(lines([Series(name, points)], name, share)))
        rows = [
            {"step": step, "name": name, "value": _figure(name, value)}
            for step, row in self.metrics.items() for name, value in sorted(row.items())
        ]  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        page = render_page(
            "training.autovideo",
            "run.html.j2",
            title=self.title,
            document=self.document.strip(),
            edges=self.edges,
            rows=rows,
            curves=charts,
            evaluated=evaluated_section(evaluated) if evaluated else None,
        )
        write_text(folder / "report.json", json.dumps({"figures": figures}, indent=1, sort_keys=True) + "\n")
        write_text(folder / "page.html", page)
        return figures


SHARES = ("top", "map", "accuracy", "precision", "recall", "majority", "f1", "ece")


def _figure(name: str, value: float) -> str:
    last = name.rpartition("/")[2]
    return percent(value) if 0 <= value <= 1 and any(part in last for part in SHARES) else number(value)
