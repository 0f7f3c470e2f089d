"""Finished trainings, evaluations and searches of the family, as the report reads them from their run folders."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.backbones.movinet_layout import MoViNetLayout, architecture
from training.core.evaluate import Predictions
from training.movinet.report.run_folder import RecordError, read_json
from training.movinet.report.search_records import Search, read_search

Split = Literal["val", "test"]

TRAINED = ("movinet_train", "movinet_stream", "movinet_half", "movinet_found")
EVALUATED = ("movinet_eval", "movinet_stream_eval", "movinet_ensemble")
SEARCHED = "movinet_search"
STAGES = (SEARCHED, *TRAINED, *EVALUATED)
"""What a report may read; stages without instances are left out or have an empty list."""


@dataclass(frozen=True, eq=False)
class Net:
    """A trained net, or one arm of an evaluation, with what it said about each clip of one split."""

    name: str
    """Short and unique within its split: `train` (on test that of `movinet_eval`), `half 0`, `evolution-none-0`,
    `ensemble member0`."""
    stage: str
    split: Split
    gmac: float
    """10⁹ multiply-accumulates of a video."""
    params: int
    state_bytes: float | None
    """What a stream carries from frame to frame; None: the net is no stream."""
    key: NDArray[Any]
    """(N,) str, sorted."""
    label: NDArray[np.int64]
    """(N,)."""
    scores: NDArray[np.float32]
    """(N,K) probabilities."""
    extras: Mapping[str, NDArray[Any]]
    """Rows as those of `key`."""
    config: Mapping[str, Any]
    """`config.json`."""
    arm: str = ""
    """"": the main model."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,): whether the top class is the label."""
        return np.asarray(self.scores.argmax(axis=1) == self.label)

    @property
    def top1(self) -> float:
        """Share of clips named right."""
        return float(self.correct.mean())

    @property
    def layout(self) -> MoViNetLayout:
        """The architecture with its widths as trained."""
        model = self.config["model"]
        return architecture(model["architecture"]).scaled(model["width"])

    @property
    def side(self) -> int:
        """Side of the input at evaluation, pixels."""
        transform = self.config["data"]["transform"]
        return int(transform.get("eval_size") or transform["size"])

    @property
    def conditions(self) -> dict[str, Any]:
        """Settings that have to be equal for a comparison of architectures."""
        data, fit = self.config.get("data", {}), self.config.get("fit", {})
        return {
            "variant": self.config.get("variant"),
            "input": (self.side, data.get("num_frames"), data.get("eval_clips", 1)),
            "steps": fit.get("steps"),
        }


@dataclass(frozen=True)
class Results:
    """All that the report reads."""

    dataset: str
    nets: tuple[Net, ...]
    """Trained nets on val."""
    tests: tuple[Net, ...]
    """Evaluations on test, main models and arms."""
    searches: tuple[Search, ...]
    missing: tuple[str, ...]
    """Stages without instances."""

    def net(self, stage: str, arm: str = "") -> Net | None:
        """Return the first net of a stage."""
        return next((n for n in (*self.nets, *self.tests) if (n.stage, n.arm) == (stage, arm)), None)


def read_results(results: Mapping[str, Sequence[Path]]) -> Results:
    """Read the run folders of all stages' instances.

    Args:
        results: stage → run folders, `runs/<dataset>/<stage>[/<items>]`.

    Raises:
        RecordError: an unknown stage, a file that is missing or lacks something, or nets that were evaluated on
            different clips. The message names the file or the nets, and what to do.
    """
    if unknown := sorted(set(results) - set(STAGES)):
        raise RecordError(f"stages {unknown} are not read by this report; it knows {', '.join(STAGES)}")
    found = {stage: results.get(stage, ()) for stage in STAGES}
    dataset = next((_dataset(stage, folders[0]) for stage, folders in found.items() if folders), "")
    return Results(
        dataset=dataset,
        nets=_aligned([net for stage in TRAINED for folder in found[stage] for net in _nets(stage, folder, "val")]),
        tests=_aligned([net for stage in EVALUATED for folder in found[stage] for net in _nets(stage, folder, "test")]),
        searches=tuple(read_search(folder) for folder in found[SEARCHED]),
        missing=tuple(stage for stage, folders in found.items() if not folders),
    )


def _dataset(stage: str, folder: Path) -> str:
    return folder.parent.name if folder.name == stage else folder.parent.parent.name


# --- nets ---------------------------------------------------------------------------------------


def _nets(stage: str, folder: Path, split: Split) -> list[Net]:
    """Return the main model of a run folder and, of an evaluation, its arms."""
    metrics, config = read_json(folder / "metrics.json"), read_json(folder / "config.json")
    path = folder / "predictions.npz"
    if not path.exists():
        raise RecordError(f"{path} is missing; run {stage} again")
    predictions = Predictions.load(path)
    if predictions.label.ndim != 1:
        raise RecordError(f"{path}: labels of shape {predictions.label.shape} are not one class per clip")
    if len(predictions.key) == 0:
        raise RecordError(f"{path} has no clips; the split {split!r} needs some")
    order = np.argsort(predictions.key)
    words = "train" if stage == "movinet_eval" else stage.removeprefix("movinet_").removesuffix("_eval")
    if folder.name != stage:
        words = folder.name if stage == "movinet_found" else f"{words} {folder.name}"
    main = Net(
        name=words,
        stage=stage,
        split=split,
        **_cost(folder / "metrics.json", metrics, split, ""),
        key=predictions.key[order],
        label=predictions.label[order],
        scores=predictions.scores[order],
        extras={name: value[order] for name, value in predictions.extras.items()},
        config=config,
    )
    if split == "val":
        return [main]
    arms = [
        replace(
            main,
            name=f"{words} {name}",
            arm=name,
            scores=scores[order],
            extras={},
            **_cost(folder / "metrics.json", metrics, split, f"_{name}"),
        )
        for name, scores in sorted(predictions.arms.items())
    ]
    return [main, *arms]


def _cost(path: Path, metrics: Mapping[str, float], split: str, suffix: str) -> dict[str, Any]:
    names = (f"{split}/gmac_per_video{suffix}", f"{split}/params{suffix}")
    if missing := [name for name in names if name not in metrics]:
        raise RecordError(f"{path} lacks {', '.join(missing)}; run the stage again with this version")
    gmac = float(metrics[names[0]])
    if not (math.isfinite(gmac) and gmac > 0):
        raise RecordError(f"{path}: {names[0]} must be a positive number, got {gmac}")
    state = metrics.get(f"{split}/state_bytes{suffix}")
    return {"gmac": gmac, "params": int(metrics[names[1]]), "state_bytes": None if state is None else float(state)}


def _aligned(nets: list[Net]) -> tuple[Net, ...]:
    """Return the nets of one split after a check that all saw the same clips."""
    for net in nets[1:]:
        first = nets[0]
        if not np.array_equal(net.key, first.key):
            odd = sorted(set(net.key.tolist()) ^ set(first.key.tolist()))
            raise RecordError(
                f"{first.name} and {net.name} were evaluated on different {net.split} clips: {len(odd)} belong to one "
                f"only, such as {odd[0]!r}; run both on the same shards"
            )
        if not np.array_equal(net.label, first.label):
            wrong = str(net.key[np.flatnonzero(net.label != first.label)[0]])
            raise RecordError(
                f"{first.name} and {net.name} have different labels for {net.split} clip {wrong!r}; run both on the "
                "same shards"
            )
    return tuple(nets)
