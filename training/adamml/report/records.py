"""What the evaluations left, read with errors that name the file and say what to do."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.adamml.arms import Segments, SegmentsError
from training.core.evaluate import Predictions

STAGE = "adamml_eval"
"""The stage whose results are read."""

SPLIT = "test"


class RecordError(ValueError):
    """Run folders that are incomplete, of another family, or that cannot be compared."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation, of the model of one price."""

    dataset: str
    price: float
    decide: str
    draws: int
    key: NDArray[Any]
    """(N,) names of the videos, sorted."""
    segments: Segments
    constants: str
    """How its cost was counted, `AdaMMLConfig.constants`."""

    @property
    def name(self) -> str:
        """How it is called in charts."""
        return f"price {self.price:g}"

    @property
    def scores_differ(self) -> float:
        """Mean difference (total variation, 0 to 1) between its scores and those recomputed from its segments."""
        again_NC = self.segments.scores(self.segments.choices_NSK)
        return float(0.5 * np.abs(again_NC - self.segments.scores_NC).sum(axis=1).mean())

    @property
    def costs_differ(self) -> float:
        """Largest difference between executed and counted cost of a video, as a share."""
        counted_N = self.segments.gmac(self.segments.choices_NSK, policy=True)
        return float(np.abs(counted_N - self.segments.gmac_N).max() / max(float(counted_N.max()), 1e-12))


def read_evaluations(
    results: Mapping[str, Sequence[Path]], classes: Sequence[str], modalities: Sequence[str]
) -> tuple[Evaluated, ...]:
    """Read all evaluations of a data set, lowest price first.

    Args:
        results: stage → run folders of its instances; only `adamml_eval` is known.
        classes: of the data set.
        modalities: of the report's model, in the order of the decisions.

    Raises:
        RecordError: no evaluation, a stage or a model of another kind, a file that is missing or lacks something, or
            evaluations of different videos. The message names the file and what to do.
    """
    if unknown := sorted(set(results) - {STAGE}):
        raise RecordError(f"stages {unknown} are not read by this report; it knows {STAGE}")
    folders = results.get(STAGE, ())
    if not folders:
        raise RecordError(f"there is no instance of {STAGE}: name prices in params.yaml, then run `dvc repro {STAGE}`")
    found = sorted((_read(Path(folder), classes, modalities) for folder in folders), key=lambda each: each.price)
    for each in found[1:]:
        _check_same_videos(found[0], each)
    return tuple(found)


def _read(folder: Path, classes: Sequence[str], modalities: Sequence[str]) -> Evaluated:
    config, metrics = _json(folder / "config.json"), _json(folder / "metrics.json")
    where = folder / "config.json"
    model = _field(config, "model", where)
    of = [str(name) for name in _field(model, "modalities", where)]
    if of != list(modalities):
        raise RecordError(f"{where}: its modalities are {of}, the report's {list(modalities)}; evaluate again")
    path = folder / "predictions.npz"
    if not path.exists():
        raise RecordError(f"{path} is missing; run {STAGE} again")
    predictions = Predictions.load(path)
    if predictions.classes != tuple(classes):
        raise RecordError(
            f"{path} names other classes than the data set ({len(predictions.classes)} and {len(classes)}); run "
            f"{STAGE} again on its shards"
        )
    cost = {name: _gmac(metrics, f"{SPLIT}/gmac_{name}", folder / "metrics.json") for name in of}
    try:
        segments = Segments.of(
            predictions,
            cost,
            policy_gmac=_gmac(metrics, f"{SPLIT}/gmac_policy", folder / "metrics.json"),
            mean=_field(model, "mean", where),
            least_one=bool(_field(model, "least_one", where)),
        )
    except SegmentsError as error:
        raise RecordError(f"{path}: {error}") from None
    if lacking := [name for name in ("fusion", *of) if name not in predictions.arms]:
        raise RecordError(f"{path} lacks the arms {', '.join(lacking)}; run {STAGE} again with this version")
    return Evaluated(
        dataset=folder.parent.name if folder.name == STAGE else folder.parent.parent.name,
        price=float(_field(config, "price", where)),
        decide=str(_field(config, "decide", where)),
        draws=int(_field(config, "draws", where)),
        key=predictions.key,
        segments=segments,
        constants=str(_field(model, "constants", where)),
    )


def _check_same_videos(first: Evaluated, other: Evaluated) -> None:
    if not np.array_equal(first.key, other.key):
        odd = sorted(set(first.key.tolist()) ^ set(other.key.tolist()))
        raise RecordError(
            f"{first.name} and {other.name} were evaluated on different videos: {len(odd)} belong to one only, such as "
            f"{odd[0]!r}; run both on the same shards"
        )
    if not np.array_equal(first.segments.label, other.segments.label):
        raise RecordError(f"{first.name} and {other.name} have different labels; run both on the same shards")


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


def _field(values: Any, name: str, where: Path) -> Any:
    if not isinstance(values, Mapping) or name not in values:
        raise RecordError(f"{where} lacks the field {name!r}: it is no evaluation of AdaMML of this version")
    return values[name]


def _gmac(metrics: Mapping[str, Any], name: str, where: Path) -> float:
    value = _field(metrics, name, where)
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise RecordError(f"{where}: {name} must be a cost, got {value!r}")
    return float(value)
