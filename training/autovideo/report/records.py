"""What the page of a search is made of: the leaderboard, checked, and the evaluation of the winner."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from data_specs.strict import Strict
from training.core.config import ConfigError, validate
from training.core.metrics import classification_metrics

Choice = bool | int | float | str | None | tuple[Any, ...] | dict[str, Any]


class Trial(Strict):
    """A pipeline that was tried."""

    name: str
    status: str
    """finished, stopped (by a scheduler), failed, …"""
    value: float | None = None
    """Of the metric; None: it has none."""
    gmac: float | None = None
    """Per video."""
    params: int | None = None
    seconds: float | None = None
    choices: dict[str, Choice] = Field(default_factory=dict)
    """None: the choice does not exist in this trial, because of what others chose."""
    error: str | None = None
    """Its class and message, of one that failed."""
    front: bool = False
    """Whether no other trial beats it in all objectives."""

    @property
    def scored(self) -> bool:
        """Whether it has a value that can be compared."""
        return self.value is not None and math.isfinite(self.value)


class Refused(Strict):
    """A candidate that was over a limit, and so never started."""

    digest: str
    gmac: float | None = None
    params: int | None = None
    why: str


class Leaderboard(Strict):
    """A search as plain data."""

    trials: tuple[Trial, ...] = ()
    """In the order in which they were started."""
    refused: tuple[Refused, ...] = ()
    budget: dict[str, Any] = Field(default_factory=dict)
    """Name → what was used, or `{used, limit}`."""
    winner: str | None = None
    metric: str = "val/top1"
    mode: Literal["max", "min"] = "max"
    engine: str = ""

    @model_validator(mode="after")
    def _names(self) -> "Leaderboard":
        names = [trial.name for trial in self.trials]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"trials have the same name: {', '.join(twice)}")
        if self.winner is not None and self.winner not in names:
            raise ValueError(f"the winner {self.winner!r} is none of the {len(names)} trials")
        return self

    @property
    def best_first(self) -> list[Trial]:
        """Trials that finished with a value, best first, the winner before its equals; then the others."""
        sign = -1 if self.mode == "max" else 1

        def place(item: tuple[int, Trial]) -> tuple[int, float, bool, int]:
            number, trial = item
            if not trial.scored:
                return 2, 0.0, True, number
            assert trial.value is not None
            return (0 if trial.status == "finished" else 1), sign * trial.value, trial.name != self.winner, number

        return [trial for _, trial in sorted(enumerate(self.trials), key=place)]

    @property
    def ranked(self) -> list[Trial]:
        """Finished trials with a value, best first."""
        return [trial for trial in self.best_first if trial.scored and trial.status == "finished"]

    @property
    def won(self) -> Trial | None:
        """The winner."""
        return next((trial for trial in self.trials if trial.name == self.winner), None)

    @property
    def shares(self) -> bool:
        """Whether the metric is a share, shown in per cent."""
        values = [trial.value for trial in self.trials if trial.value is not None and math.isfinite(trial.value)]
        return self.mode == "max" and all(0 <= value <= 1 for value in values)

    @property
    def varied(self) -> list[str]:
        """Names of the choices in which trials differ, in the order in which they first occur."""
        seen: dict[str, set[str]] = {}
        for trial in self.trials:
            for name in trial.choices:
                seen.setdefault(name, set())
        for trial in self.trials:
            for name, values in seen.items():
                values.add(json.dumps(trial.choices.get(name), sort_keys=True, default=str))
        return [name for name, values in seen.items() if len(values) > 1]


def read_leaderboard(values: Mapping[str, Any]) -> Leaderboard:
    """Return a checked leaderboard.

    Raises:
        ConfigError: unknown or missing fields, names that occur twice, or a winner that is no trial.
    """
    return validate(Leaderboard, dict(values), "leaderboard of the search")


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the shortest end of each dotted name that no other name has."""
    ends = {name: [".".join(name.split(".")[-count:]) for count in range(1, name.count(".") + 2)] for name in names}
    counts = Counter(end for each in ends.values() for end in each)
    return {name: next((end for end in each if counts[end] == 1), name) for name, each in ends.items()}


def word(value: Any) -> str:
    """Return a chosen value as a page writes it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation folder, read without torch."""

    split: str
    arrays: dict[str, NDArray[Any]]
    metrics: dict[str, float]
    """Without the split's name."""


def read_evaluation(folder: Path) -> Evaluated:
    """Read `predictions.npz` and, if it is there, `metrics.json`; figures are computed from the predictions.

    Raises:
        ConfigError: no predictions, or some that are not what an evaluation writes.
    """
    path = folder / "predictions.npz"
    if not path.exists():
        raise ConfigError(f"{path} is missing: {folder} is no folder of an evaluation")
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file if not name.startswith("boxes/")}
        figures = classification_metrics(arrays["scores"], arrays["label"], "x")
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not what an evaluation writes: {type(error).__name__}: {error}") from error
    written = folder / "metrics.json"
    names = json.loads(written.read_text()) if written.exists() else {}
    splits = sorted({name.partition("/")[0] for name in names if "/" in name} & {"train", "val", "test"})
    split = splits[0] if len(splits) == 1 else "test"
    return Evaluated(split, arrays, {name.removeprefix("x/"): value for name, value in figures.items()})
