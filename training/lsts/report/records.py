"""What the evaluations left, read with errors that name the file and say what to do."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.box_results import BoxResults
from training.core.config import ConfigError, validate
from training.core.evaluate import Predictions
from training.lsts.config import EvalConfig, MethodConfig

__all__ = ["SINGLE", "SPLIT", "Evaluated", "RecordError", "read_evaluations"]

STAGE = "lsts_eval"
"""The stage whose results are read."""

SPLIT = "test"

SINGLE = "single"
"""Name of the single-frame detector among the detectors of an evaluation."""


class RecordError(ValueError):
    """Run folders that are incomplete, of another family, or that cannot be compared."""


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of one method."""

    dataset: str
    config: EvalConfig
    metrics: Mapping[str, float]
    predictions: Predictions
    where: Path
    """Its run folder."""

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.config.method

    @property
    def method(self) -> MethodConfig:
        """Settings of the method."""
        return self.config.methods[self.config.method]

    @property
    def boxes(self) -> BoxResults:
        """Found and true boxes."""
        assert self.predictions.boxes is not None, "checked on reading"
        return self.predictions.boxes

    def metric(self, name: str, detector: str = "main") -> float | None:
        """Return a figure of one of its detectors; None where it has none."""
        return self.metrics.get(f"{SPLIT}/{name}" + ("" if detector == "main" else f"_{detector}"))

    def cost(self, detector: str = "main") -> float:
        """Return what was executed per frame, GMAC.

        Raises:
            RecordError: it was not counted.
        """
        value = self.metric("gmac_per_frame", detector)
        if value is None or not math.isfinite(value) or value < 0:
            raise RecordError(f"{self.where / 'metrics.json'} has no cost per frame of {detector!r}; run {STAGE} again")
        return value

    def extra(self, name: str) -> NDArray[Any]:
        """Return an array with a row per video.

        Raises:
            RecordError: an evaluation of an earlier version.
        """
        if name not in self.predictions.extras:
            raise RecordError(f"{self.where / 'predictions.npz'} lacks {name!r}; run {STAGE} again with this version")
        return self.predictions.extras[name]


def read_evaluations(results: Mapping[str, Sequence[Path]], classes: Sequence[str]) -> tuple[Evaluated, ...]:
    """Read all evaluations of a data set, in the order of params.yaml.

    Args:
        results: stage → run folders of its instances; only `lsts_eval` is known.
        classes: of the data set.

    Raises:
        RecordError: no evaluation, a stage of another kind, a file that is missing or lacks something, or evaluations
            of different videos. The message names the file and what to do.
    """
    if unknown := sorted(set(results) - {STAGE}):
        raise RecordError(f"stages {unknown} are not read by this report; it knows {STAGE}")
    folders = results.get(STAGE, ())
    if not folders:
        raise RecordError(
            f"there is no instance of {STAGE}: name methods in `lsts_grid.method` of params.yaml, then run "
            f"`dvc repro {STAGE}`"
        )
    found = tuple(_read(Path(folder), classes) for folder in folders)
    for each in found[1:]:
        _check_same_videos(found[0], each)
    return found


def _read(folder: Path, classes: Sequence[str]) -> Evaluated:
    try:
        config = validate(EvalConfig, _json(folder / "config.json"), str(folder / "config.json"))
    except ConfigError as error:
        raise RecordError(f"{error}\nit is no evaluation of LSTS of this version; run {STAGE} again") from None
    path = folder / "predictions.npz"
    if not path.exists():
        raise RecordError(f"{path} is missing; run {STAGE} again")
    predictions = Predictions.load(path)
    if predictions.classes != tuple(classes):
        raise RecordError(
            f"{path} names other classes than the data set ({len(predictions.classes)} and {len(classes)}); run "
            f"{STAGE} again on its shards"
        )
    if predictions.boxes is None or "main" not in predictions.boxes.found:
        raise RecordError(f"{path} has no boxes; run {STAGE} again")
    metrics = {str(name): float(value) for name, value in _json(folder / "metrics.json").items()}
    dataset = folder.parent.name if folder.name == STAGE else folder.parent.parent.name
    return Evaluated(dataset, config, metrics, predictions, folder)


def _check_same_videos(first: Evaluated, other: Evaluated) -> None:
    if not np.array_equal(first.predictions.key, other.predictions.key):
        odd = sorted(set(first.predictions.key.tolist()) ^ set(other.predictions.key.tolist()))
        raise RecordError(
            f"{first.name} and {other.name} were evaluated on different videos: {len(odd)} belong to one only, such as "
            f"{odd[0]!r}; run both on the same shards"
        )
    one, two = first.boxes.truth, other.boxes.truth
    if not all(
        np.array_equal(getattr(one, column), getattr(two, column))
        for column in ("video_N", "frame_N", "box_N4", "label_N", "track_N", "labelled_M2")
    ):
        raise RecordError(f"{first.name} and {other.name} have different true boxes; run both on the same shards")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{path} is missing; run {STAGE} again") from None
    except ValueError as error:
        raise RecordError(f"{path} is no JSON ({error}); run {STAGE} again") from None
    if not isinstance(content, Mapping):
        raise RecordError(f"{path} must hold a mapping; run {STAGE} again")
    return content
