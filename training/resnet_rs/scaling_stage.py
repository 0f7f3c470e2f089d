"""The stage that reads what grid and search left, and writes the scaling page."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.backbones.resnet3d_layout import BLOCKS, conv_macs
from training.core.pages import write_text
from training.resnet_rs.config import ScalingConfig, evaluated_short_side
from training.resnet_rs.records import Record, evaluated_clips
from training.resnet_rs.scaling import Allowed, analyse
from training.resnet_rs.scaling_next import Place, default_sections
from training.resnet_rs.scaling_page import render


class ScalingReport:
    """Implements `training.core.stage.Report`.

    Args:
        config: the stage's config.
        classes: class names of the data set.
        results: stage → run folders of its instances: `resnet_rs_grid` and `resnet_rs_search`.
    """

    def __init__(
        self, config: ScalingConfig, classes: tuple[str, ...], results: Mapping[str, tuple[Path, ...]]
    ) -> None:
        self.config = config
        self.num_classes = len(classes)
        self.results = results

    def write(self, folder: Path) -> dict[str, float]:
        """Write `page.html` and `report.json`; return the figures.

        Raises:
            RecordError: trainings that cannot be compared.
        """
        records = list(self.records())
        scaling = analyse(
            records,
            self.cost,
            Allowed(depth=tuple(sorted(BLOCKS)), width=tuple(sorted({record.width for record in records}))),
            sections=self.sections,
            resamples=self.config.bootstrap,
            seed=self.config.seed,
        )
        write_text(folder / "report.json", scaling.to_json())
        write_text(folder / "page.html", render(scaling, records, title=f"Scaling of 3D ResNet-RS: {self.dataset}"))
        return scaling.metrics()

    @property
    def dataset(self) -> str:
        """Name of the data set: that of the folder in which all its stages lie."""
        return self.results["resnet_rs_search"][0].parent.name

    def cost(self, depth: int, frames: int, size: int, width: float) -> float:
        """Return the cost of one view of a net of the model section with other axes, GMAC."""
        layout = self.config.model.model_copy(update={"depth": depth, "width": width}).layout()
        return conv_macs(layout, frames, size, self.num_classes) / 1e9

    def sections(self, place: Place) -> dict[str, dict[str, Any]]:
        """Return the settings of a place on the axes, for the params file; the short side keeps its ratio."""
        sections = default_sections(place)
        transform = self.config.data.transform
        size = place[2]
        short_side = evaluated_short_side(size, transform.eval_short_side / transform.size)
        sections["resnet_rs_data"]["transform"] = {"size": size, "eval_short_side": short_side}
        return sections

    def records(self) -> Iterator[Record]:
        """Yield the trainings of the grid, then those of the search."""
        for folder in self.results["resnet_rs_grid"]:
            yield grid_record(folder)
        for folder in self.results["resnet_rs_search"]:
            yield from search_records(folder)


FACTS = ("depth", "frames", "size", "pool_t", "seed", "width", "temporal", "se_ratio", "gmac")
"""Facts of a trial that are fields of its record."""


def grid_record(folder: Path) -> Record:
    """Read a point of the grid from its run folder."""
    config = json.loads((folder / "config.json").read_text())
    key, label, correct = evaluated_clips(folder / "predictions.npz")
    return Record(
        name=folder.name,
        source="grid",
        level="",
        **{axis: config[axis] for axis in ("depth", "frames", "size", "width", "seed")},
        **_measured(folder, config),
        key=key,
        label=label,
        correct=correct,
        steps=config["fit"]["steps"],
        status="finished",
    )


def search_records(folder: Path) -> Iterator[Record]:
    """Yield the trials of a search; failed ones have nothing to show, and trials.json names their errors."""
    none: NDArray[Any] = np.zeros(0)
    for row in json.loads((folder / "trials.json").read_text()):
        if row["status"] == "failed" or row["value"] is None:
            continue
        finished = row["status"] == "finished"
        facts = row["facts"]
        arrays = (none.astype(str), none.astype(np.int64), none.astype(bool))
        key, label, correct = (
            evaluated_clips(folder / "trials" / row["name"] / "predictions.npz") if finished else arrays
        )
        yield Record(
            name=row["name"],
            source="search",
            level=row["group"],
            **{name: facts[name] for name in FACTS},
            params=int(facts["params"]),
            key=key,
            label=label,
            correct=correct,
            steps=row["steps"],
            status=row["status"],
            last_top1=None if finished else row["value"],
        )


def _measured(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    views = config["data"]["eval_clips"] * config["data"]["transform"]["eval_crops"]
    model = config["model"]
    return {
        "gmac": metrics["val/gmac_per_video"] / views,
        "params": int(metrics["val/params"]),
        **{name: model[name] for name in ("pool_t", "temporal", "se_ratio")},
    }
