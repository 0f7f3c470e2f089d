"""Searches whose trials are scored, not trained: the process that scores, and the search's side of it. Without Ray.

A candidate of a one-shot search takes a fraction of a second, and there are thousands: a process makes its scorer once
(loads a trained supernet) and scores trial after trial. A trial has no folder, no result file and no MLflow run of its
own; its metrics go into the search's journal, and value and best value into the history of the search's run.
"""

import contextlib
import logging
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import training
from infra.settings import Settings
from training.core.config import ConfigError, validate
from training.core.failures import StageFailed
from training.core.ray_runner import FitJob, source_digest, worker_resources
from training.core.search_run import SearchRun
from training.core.stage import ScoreInputs
from training.core.tracking import attach_run, metric_history
from training.core.trials import Mode, Outcome, Scorer, Search, Trial

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """What came of scoring a trial: metrics or an error."""

    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    trace: str = ""


def device_of(settings: Settings) -> str:
    """Return the device on which scorers of these settings work: their own, else the GPU that a worker is given."""
    return settings.device or ("cuda" if "GPU" in worker_resources(settings) else "cpu")


def make_scorer(job: FitJob, device: str) -> Scorer:
    """Make the scorer of a search stage in this process.

    Raises:
        StageFailed: this process runs other sources than the driver, or the stage's `scorer` raised.
    """
    here = source_digest()
    log.info("scoring from %s (%s) on %s", training.__file__, here, device)
    if here != job.source_digest:
        raise StageFailed(
            f"this worker's training package ({training.__file__}, {here}) differs from the driver's "
            f"({job.source_digest}); install the same commit on every node or ship it with runtime_env"
        )
    torch.set_num_threads(job.cpus)
    from training.registry import all_stages

    stage = all_stages()[job.stage]
    assert stage.scorer is not None, f"{job.stage} has no scorer"
    inputs = ScoreInputs(
        config=validate(stage.config, job.config, f"config of {job.stage}"),
        classes=tuple(job.classes),
        upstream={name: Path(path) for name, path in job.upstream.items()},
        root=Path(job.root),
        shards=Path(job.shards),
        device=device,
        allow_decoder_change=job.allow_decoder_change,
    )
    try:
        return stage.scorer(inputs)
    except Exception as error:
        log.exception("the scorer cannot be made")
        raise StageFailed(f"the scorer of {job.stage} cannot be made: {type(error).__name__}: {error}") from error


def score_trial(scorer: Scorer, trial: Trial) -> Score:
    """Score one trial; an exception becomes its error."""
    try:
        return Score({name: float(value) for name, value in scorer.score(trial).items()})
    except Exception as error:
        log.exception("trial %s", trial.name)
        return Score({}, f"{type(error).__name__}: {error}", traceback.format_exc())


class ScoringProcess:
    """What a worker process keeps: one scorer. The class of the Ray actors; all that goes in and out is plain."""

    def __init__(self, values: dict[str, Any], device: str, number: int) -> None:
        """Remember what to do; nothing is loaded yet.

        Args:
            values: the search's `FitJob` as a dict.
            device: see `ScoreInputs`.
            number: of this process, for its log `scorer-<number>.log`; that of a dead one it stands in for.
        """
        self._job, self._device, self._number = FitJob(**values), device, number
        self._scorer: Scorer | None = None

    def start(self) -> str | None:
        """Make the scorer; return the message of an error that another start would only repeat."""
        with log_to_file(Path(self._job.work), self._number):
            try:
                self._scorer = make_scorer(self._job, self._device)
            except (StageFailed, ConfigError) as error:
                return str(error)
        return None

    def score(self, values: dict[str, Any]) -> Score:
        """Score a trial, given as a dict."""
        assert self._scorer is not None, "start comes first"
        with log_to_file(Path(self._job.work), self._number):
            return score_trial(self._scorer, Trial(**values))


@contextlib.contextmanager
def log_to_file(work: Path, number: int) -> Iterator[None]:
    """Let `scorer-<number>.log` of a search's folder have what is logged within the block."""
    handler = logging.FileHandler(work / f"scorer-{number}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("training")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class ScoredRun(SearchRun):
    """A search under way whose trials are scored: the journal alone has their outcomes.

    A candidate is scored again only when its score had not reached the journal.
    """

    scored = True

    def __init__(self, search: Search, job: FitJob, settings: Settings, *, metric: str, mode: Mode) -> None:
        self._history: list[tuple[int, dict[str, float]]] = []
        super().__init__(search, job, settings, metric=metric, mode=mode, stops=None)
        if self._history and self._parent is not None:  # a death came between the journal and the tracking store
            keys = ("search/value", "search/best")
            known = {step for key in keys for step, _ in metric_history(settings, self._parent.run_id, key)}
            self._history = [(step, values) for step, values in self._history if step not in known]

    def limit(self, room: int) -> int:
        """Return how many processes are worth starting where there is room for so many."""
        return room if self._search.total is None else max(1, min(room, self._search.total - len(self.outcomes)))

    def note(self, name: str, score: Score) -> None:
        """Keep what came of a trial in the journal, and tell the search."""
        trial, error = self._trials[name], score.error
        if error is None and self.metric not in score.metrics:
            error = f"its scores lack {self.metric!r}, which the search compares; they have {sorted(score.metrics)}"
        if error is not None:
            log.error("trial %s failed: %s\n%s", name, error, score.trace.rstrip())
            self._keep(Outcome(trial, "failed", 0, None, score.metrics, [], error))
        else:
            self._keep(Outcome(trial, "finished", 0, score.metrics[self.metric], score.metrics, []))

    def end(self, name: str, died: bool = False) -> None:
        """Give up a trial whose process dies each time."""
        times = self._settings.train_max_failures
        self.note(name, Score({}, f"the process that scored it died more than {times} times; see {self.work}"))

    def again(self, trial: Trial) -> None:
        """Let a trial, whose process died, be the next one."""
        self._waiting.insert(0, trial)

    def log_history(self) -> None:
        """Log value and best value of the outcomes since the last call."""
        if self._parent is not None and self._job.tracking is not None:
            run = attach_run(self._job.tracking["uri"], self._parent.run_id)
            while self._history:
                step, values = self._history[0]
                run.log_metrics(values, step=step)
                self._history.pop(0)

    def finish(self) -> list[Outcome]:
        """Return all outcomes; see `SearchRun.finish`."""
        self.log_history()
        return super().finish()

    def _is_over(self, name: str) -> bool:
        return False

    def _open_trial(self, trial: Trial) -> None:
        """Nothing: no folder, no run."""

    def _tell(self, outcome: Outcome) -> None:
        super()._tell(outcome)
        values: Mapping[str, float | None] = {
            "search/value": outcome.value,
            "search/best": self._best.value if self._best is not None else None,
        }
        if known := {key: value for key, value in values.items() if value is not None}:
            self._history.append((len(self.outcomes), known))


def score_here(run: ScoredRun, job: FitJob, settings: Settings) -> None:
    """Score the trials of a search one after another in this process.

    Raises:
        StageFailed: see `make_scorer`.
    """
    with log_to_file(run.work, 0):
        scorer = make_scorer(job, device_of(settings))
        while (trial := run.next()) is not None:
            run.note(trial.name, score_trial(scorer, trial))
            run.log_history()
