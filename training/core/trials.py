"""What a search is, without Ray: trials, their outcomes, the ask/tell object of a family, and the journal.

A family writes the logic of its search as a plain object (D12): `ask` hands out trials, `tell` receives what
became of them. `training.core.search` trains the trials, or has them scored by a `Scorer` of the family.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from training.core.config import StageConfig, Strict
from training.core.failures import StageFailed

Status = Literal["finished", "stopped", "failed"]
Mode = Literal["max", "min"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]{0,99}")


@dataclass(frozen=True)
class Trial:
    """One training, or one candidate to be scored, that a search wants to see."""

    name: str
    """Unique in the search; name of its folder and of its MLflow run (letters, digits and `_.=+-`)."""
    group: str
    """Trials are compared for early stopping only within one group (one level of cost, for example)."""
    stage: str = ""
    """Registered fit stage that is trained; empty where the search stage has a scorer."""
    config: dict[str, Any] = field(default_factory=dict)
    """Plain JSON values: the complete config of that stage, validated by the family, or what the scorer is to score."""
    facts: Mapping[str, float | str] = field(default_factory=dict)
    """What is known beforehand (multiply-accumulates, parameters, axes): goes into MLflow and the result."""

    @property
    def steps(self) -> int:
        """Steps of the whole training; 0 where nothing is trained."""
        return int(self.config["fit"]["steps"]) if self.stage else 0


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    trial: Trial
    status: Status
    """`stopped`: early, by comparison with others of its group; `failed`: see `error`."""
    steps: int
    """Steps done when it ended; for failed trials those of its last evaluation; 0 where nothing is trained."""
    value: float | None
    """The search's metric: of the final evaluation, else of the last one; None where there was none."""
    metrics: dict[str, float]
    """Of the final evaluation; of the last one where the trial did not finish; what the scorer returned."""
    curve: list[tuple[int, float]]
    """(step, value of the search's metric) of every evaluation during the training."""
    error: str | None = None
    run_id: str | None = None
    """MLflow run of the trial; None for a scored one, which has none."""
    elapsed_s: float = field(default=0.0, compare=False)
    """Seconds for which the search had been running, interruptions left out, when the outcome was kept. It is in the
    journal, so that a budget of time is the same when a search is repeated; 0 in journals that are older than it."""


class Search(Protocol):
    """Logic of a search.

    What `ask` returns may depend only on the settings of the search and on what it was told, in order: a search that
    was killed is brought back by repeating its calls.
    """

    @property
    def total(self) -> int | None:
        """Number of trials, where it is known beforehand."""

    def ask(self) -> Trial | None:
        """Return the next trial; None (which must change nothing): no more, or not before the next `tell`."""

    def tell(self, outcome: Outcome) -> None:
        """Receive what became of a trial."""

    def summary(self) -> dict[str, float]:
        """Return the search's own figures for metrics.json."""


@runtime_checkable
class Prepares(Protocol):
    """A search that has to know something first."""

    def prepare(self, work: Path) -> None:
        """Find out what has to be known once, before the first `ask`.

        Called on every start, also when an interrupted search goes on. What is measured (a table of latencies) has to
        be kept in a file in `work` and read from there the next time: a search must repeat itself.
        """


@runtime_checkable
class HasFiles(Protocol):
    """A search that leaves further result files."""

    def files(self) -> Mapping[str, str]:
        """Return file name → text, after the last `tell`; exactly the `leaves` of the stage."""


class Scorer(Protocol):
    """Scores candidates, one after another; lives as long as its process, so it may keep models and data at hand.

    `Stage.scorer` makes it, once per process. A score may depend only on the trial, not on those before it.
    """

    def score(self, trial: Trial) -> Mapping[str, float]:
        """Return the trial's metrics, the primary metric of the search stage among them.

        An exception makes the trial a failed one; the search goes on.
        """


class EarlyStopping(Strict):
    """Asynchronous successive halving (Li et al., 2020): at a rung, only the best 1/`reduction_factor` go on.

    Rungs lie at `grace_steps` times the powers of `reduction_factor`; a trial is compared with those of its group
    that reached the rung before it. One bracket: Ray draws brackets at random, and decisions must be repeatable.
    """

    grace_steps: int = Field(ge=1)
    reduction_factor: float = Field(gt=1)


class SearchConfig(StageConfig):
    """Base of the configs of search stages."""

    stopping: EarlyStopping | None
    """None: every trial runs to its end; the only possible value where trials are scored."""


def check_trial(trial: Trial, known: Mapping[str, Trial], *, early_stopping: bool, scored: bool = False) -> None:
    """Check what a search asks for.

    Args:
        trial: what it asks for.
        known: trials it asked for before, by name.
        early_stopping: whether trials may be stopped early.
        scored: whether a scorer scores the trials instead of their being trained.

    Raises:
        StageFailed: a name that cannot be a file name or was used before; a stage that is no registered fit; early
            stopping of a trial that is only evaluated at its end; a trial to be scored that names a stage, or whose
            config would come out of JSON as something else.
    """
    from training.registry import all_stages

    if not NAME.fullmatch(trial.name):
        raise StageFailed(f"trial name {trial.name!r} must be 1 to 100 of letters, digits and _.=+-")
    if trial.name in known:
        raise StageFailed(f"the search asked for trial {trial.name!r} twice; every trial needs a name of its own")
    if scored:
        _check_scored(trial)
        return
    stage = all_stages().get(trial.stage)
    if stage is None or stage.kind != "fit":
        raise StageFailed(f"trial {trial.name!r}: {trial.stage!r} is not a registered fit stage")
    if early_stopping and not 0 < trial.config["fit"]["eval_every"] < trial.steps:
        raise StageFailed(f"trial {trial.name!r}: early stopping needs evaluations before the end; set fit.eval_every")


def _check_scored(trial: Trial) -> None:
    if trial.stage:
        raise StageFailed(
            f"trial {trial.name!r} names the stage {trial.stage!r}, but this search has a scorer: its trials are not "
            "trained; leave Trial.stage empty"
        )
    for name, value in (("config", trial.config), ("facts", dict(trial.facts))):
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise StageFailed(
                f"trial {trial.name!r}: {name} must be plain JSON values (lists instead of tuples, keys that are "
                f"strings, no NaN), it is {value!r}"
            )


def outcome_values(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain values, its trial by name only."""
    values = asdict(outcome)
    return {**values, "trial": outcome.trial.name}


def best(outcomes: list[Outcome], mode: Mode) -> Outcome | None:
    """Return the finished trial with the best value, the earliest of equals; None where no trial has one."""
    sign = 1 if mode == "max" else -1
    valued = [(sign * o.value, o) for o in outcomes if o.status == "finished" and o.value is not None]
    valued = [pair for pair in valued if not math.isnan(pair[0])]
    return max(valued, key=lambda pair: pair[0])[1] if valued else None


def count_statuses(outcomes: list[Outcome]) -> dict[str, int]:
    """Return how many trials finished, were stopped and failed."""
    return {name: sum(o.status == name for o in outcomes) for name in ("finished", "stopped", "failed")}


class Journal:
    """Events of a search in the order in which they happened, one JSON object per line.

    An event is appended and synced before anything is built on it. A line that the death of the process cut short is
    no event: it is taken away when the journal is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return all events.

        Raises:
            StageFailed: a line other than the last is damaged.
        """
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        events = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                events.append(json.loads(line))
            except ValueError as error:
                raise StageFailed(
                    f"{self.path}, line {number} is damaged ({error}); remove {self.path.parent} to search anew"
                ) from None
        return events

    def append(self, event: dict[str, Any]) -> None:
        """Add an event; it is on disk when this returns."""
        with self.path.open("ab") as file:
            file.write(json.dumps(event).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
