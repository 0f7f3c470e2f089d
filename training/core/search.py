"""Runs a search: trials train a registered fit stage, or are scored. The only file that imports `ray.tune`.

A trial is trained exactly as its stage would be, by `ray_runner.train_worker`, inside its own Ray Tune trial (no Ray
Train in it: a second worker group per trial costs a minute), or one after another in this process. Results are files
in the trial's folder; Tune only places the trials and carries the values that decide about stopping them early.

Where the search stage has a scorer, nothing is trained: plain Ray actors (`training.core.scoring`), or this process,
score one trial after another, since there are thousands and each is too short for a process of its own.

What a search has done is in its journal, not in Tune's own state: started again after any kind of death it repeats
the calls of the ask/tell object, fills the rungs of early stopping, and goes on with the trials that have no outcome,
each from its own newest checkpoint.
"""

import contextlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from infra.environment import apply_defaults
from infra.locks import stage_lock
from infra.settings import Settings
from training.core.config import ConfigError
from training.core.failures import StageFailed
from training.core.progress import progress_bar
from training.core.ray_runner import FitJob, note_error, ray_session, train_worker, worker_resources
from training.core.scoring import ScoredRun, ScoringProcess, device_of, score_here
from training.core.search_run import SearchRun
from training.core.system import Logger
from training.core.trials import EarlyStopping, Mode, Outcome, Prepares, Search, Trial


def run_search(
    search: Search,
    job: FitJob,
    settings: Settings,
    *,
    metric: str,
    mode: Mode = "max",
    stopping: EarlyStopping | None = None,
    scored: bool = False,
) -> list[Outcome]:
    """Train the trials that a search asks for, or have them scored, until it asks for none.

    With `settings.train_workers` 0 they run one after another in this process; early stopping then compares each with
    those before it. Otherwise as many as the machine or cluster has room for run on Ray (`settings.search_trials`
    sets another number), each as one process; a process that scores takes the next trial when it has scored one.

    Args:
        search: the logic; new, even when an interrupted search goes on.
        job: of the search stage itself; each trial's job is this one with its own stage, config, folder and run.
            `job.work` is the search's folder: `journal.jsonl` and `trials/<name>/`, or `scorer-<n>.log`.
        settings: where and how.
        metric: key of the evaluations' metrics by which trials are compared.
        mode: whether it is better when larger.
        stopping: rule of early stopping within a group; None: none.
        scored: the stage `job.stage` has a scorer, which scores the trials.

    Returns:
        One outcome per trial, in the order in which they ended.

    Raises:
        ConfigError: early stopping of trials that are only scored.
        StageFailed: no trial was asked for or all failed; a trial that the search may not ask for; a search that does
            not repeat itself; a cluster without room for one trial; a scorer that cannot be made.
    """
    apply_defaults()  # before Ray is imported, which early stopping does
    if scored and stopping is not None:
        raise ConfigError(
            f"{job.stage}: early stopping compares evaluations of trainings, and candidates are only scored here; set "
            f"{job.stage}.stopping to null"
        )
    if isinstance(search, Prepares):
        Path(job.work).mkdir(parents=True, exist_ok=True)
        search.prepare(Path(job.work))
    run: SearchRun
    if scored:
        run = scoring = ScoredRun(search, job, settings, metric=metric, mode=mode)
        go = partial(score_here if settings.train_workers == 0 else _score_on_ray, scoring, job, settings)
    else:
        stops = Halving(stopping, mode).stops if stopping is not None else None
        run = SearchRun(search, job, settings, metric=metric, mode=mode, stops=stops)
        go = partial(_run_here if settings.train_workers == 0 else _run_on_ray, run, settings)
    with progress_bar(run.work / "progress.json", job.stage, settings.progress):
        try:
            if run.has_more():
                go()
        except BaseException:
            run.abandon()
            raise
    return run.finish()


class Halving:
    """Early stopping: Ray's asynchronous successive halving, one scheduler per group so that rungs never meet."""

    def __init__(self, stopping: EarlyStopping, mode: Mode) -> None:
        self._stopping = stopping
        self._mode = mode
        self._groups: dict[str, Any] = {}
        self._known: set[str] = set()

    def stops(self, trial: Trial, step: int, value: float) -> bool:
        """Note an evaluation, and return whether the trial should end here."""
        if step >= trial.steps:
            return False
        from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

        if trial.group not in self._groups:
            self._groups[trial.group] = AsyncHyperBandScheduler(
                time_attr="step",
                metric="value",
                mode=self._mode,
                max_t=10**9,  # rungs without end: trials end by their own number of steps
                grace_period=self._stopping.grace_steps,
                reduction_factor=self._stopping.reduction_factor,
                stop_last_trials=False,  # a trial is judged once per rung, and never again at a lower one
            )
        scheduler, key = self._groups[trial.group], SimpleNamespace(trial_id=trial.name)
        if trial.name not in self._known:
            self._known.add(trial.name)
            scheduler.on_trial_add(None, key)
        decision = scheduler.on_trial_result(None, key, {"step": step, "value": value})
        return bool(decision == TrialScheduler.STOP)


def train_trial(values: dict[str, Any], metric: str, report: Logger) -> None:
    """Train one trial in this process; an error is noted in its folder, only the death of the process is not.

    Args:
        values: the trial's `FitJob` as a dict.
        metric: key that the evaluations must have.
        report: called with (step, metrics) after each evaluation; may leave by an exception that is no `Exception`.
    """

    def after_evaluation(step: int, metrics: dict[str, float]) -> None:
        if metric not in metrics:
            raise StageFailed(f"evaluations lack {metric!r}, which the search compares; they have {sorted(metrics)}")
        report(step, metrics)

    work = Path(values["work"])
    # What is left of a killed search may live a moment longer: never two processes in one folder.
    with stage_lock(work / "lock", wait_s=60):
        try:
            train_worker(values, after_evaluation)
        except Exception as error:
            note_error(work / "fatal.txt", error)


class _Stopped(BaseException):
    """Ends a training in this process early; like SystemExit it is nothing that the training may handle."""


def _run_here(run: SearchRun, settings: Settings) -> None:
    while (trial := run.next()) is not None:

        def report(step: int, metrics: dict[str, float], name: str = trial.name) -> None:
            if run.report(name, step, metrics):
                raise _Stopped

        with contextlib.suppress(_Stopped):
            train_trial(asdict(run.job_of(trial)), run.metric, report)
        run.end(trial.name)


def _tune_trial(config: dict[str, Any]) -> None:
    """Entry of every Tune trial."""
    from ray import tune

    def report(step: int, metrics: dict[str, float]) -> None:
        # Returns when the scheduler has judged, or never: then Tune ends this process.
        tune.report({"step": step, "metrics": json.dumps(metrics)})

    train_trial(json.loads(config["job"]), config["metric"], report)


def _run_on_ray(run: SearchRun, settings: Settings) -> None:
    # Results are files, and the journal is the state: nothing is to be printed or kept by Tune itself. An interrupt has
    # to end the search; Tune's own handler would end it as if it were complete.
    for name, value in (
        ("RAY_AIR_NEW_OUTPUT", "0"),
        ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
        ("TUNE_DISABLE_SIGINT_HANDLER", "1"),
        ("TUNE_MAX_PENDING_TRIALS_PG", "1000"),  # otherwise trials start one after another; `_room` is the limit
    ):
        os.environ.setdefault(name, value)
    shutil.rmtree(run.work / "ray", ignore_errors=True)
    with ray_session(settings):
        from ray import tune

        needs = worker_resources(settings)
        searcher, scheduler, silence, errors = _bridge(run, lambda: _room(needs, settings))
        tuner = tune.Tuner(
            tune.with_resources(_tune_trial, {name.lower(): amount for name, amount in needs.items()}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=False,  # a new process per trial: nothing is left of the one before it
                trial_name_creator=lambda trial: trial.config["name"],
                trial_dirname_creator=lambda trial: trial.config["name"],
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(run.work / "ray"),
                failure_config=tune.FailureConfig(max_failures=settings.train_max_failures),
                verbose=0,
                callbacks=[silence],
            ),
        )
        try:
            tuner.fit()
        finally:
            if errors:
                raise errors[0]


def _score_on_ray(run: ScoredRun, job: FitJob, settings: Settings) -> None:
    """Keep actors busy until the search asks for nothing any more; they end with the Ray session, and with the driver.

    Raises:
        StageFailed: no room for one actor; the scorer cannot be made; its process died too often while it was made.
    """
    with ray_session(settings):
        import ray
        from ray.exceptions import RayActorError

        needs = worker_resources(settings)
        actor = ray.remote(ScoringProcess).options(
            num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_restarts=0, max_task_retries=0
        )
        values, device = asdict(job), device_of(settings)
        slots: dict[int, Any] = {}
        starting: dict[Any, int] = {}  # future of an actor's start → slot
        scoring: dict[Any, tuple[int, Trial]] = {}  # future of a score → slot and trial
        idle: deque[int] = deque()
        deaths: Counter[str] = Counter()

        def start(slot: int) -> None:
            slots[slot] = actor.remote(values, device, slot)
            starting[slots[slot].start.remote()] = slot

        for slot in range(run.limit(_room(needs, settings))):
            start(slot)
        while True:
            while idle and (trial := run.next()) is not None:
                slot = idle.popleft()
                scoring[slots[slot].score.remote(asdict(trial))] = (slot, trial)
            if not scoring and not run.has_more():
                return
            run.log_history()  # while the actors are busy
            (ended,), _ = ray.wait([*starting, *scoring], num_returns=1)
            slot, trial = (starting.pop(ended), None) if ended in starting else scoring.pop(ended)
            try:
                result = ray.get(ended)
            except RayActorError:
                ray.kill(slots[slot])  # it may only have been out of reach
                who = trial.name if trial is not None else ""
                deaths[who] += 1
                if deaths[who] > settings.train_max_failures:
                    if trial is None:
                        raise StageFailed(
                            f"the process of a scorer of {job.stage} died {deaths[who]} times while the scorer was "
                            f"made; see {run.work}/scorer-*.log (memory is a common reason)"
                        ) from None
                    run.end(trial.name, died=True)
                elif trial is not None:
                    run.again(trial)
                start(slot)
                continue
            if trial is not None:
                run.note(trial.name, result)
            elif result is not None:
                raise StageFailed(result)
            else:
                deaths[""] = 0
            idle.append(slot)


def _room(needs: dict[str, float], settings: Settings) -> int:
    """Return how many trials may run at the same time."""
    import ray

    have = ray.cluster_resources()
    room = min(int(have.get(name, 0) // amount) for name, amount in needs.items())
    may_grow = settings.search_trials is not None and settings.ray_address is not None
    if room < 1 and not may_grow:
        raise StageFailed(
            f"a trial needs {needs}, and Ray has { ({name: have.get(name, 0) for name in needs}) }: see the settings "
            "train_cpus_per_worker and train_gpu; where a cluster grows when asked to, set search_trials"
        )
    return settings.search_trials or room


def _bridge(run: SearchRun, room: Callable[[], int]) -> tuple[Any, Any, Any, list[Exception]]:
    """Return Tune's searcher and scheduler that only hand on to a `SearchRun`, a callback, and a list of errors.

    Tune turns an error in some of these calls into the failure of a trial; the list has the first cause.
    """
    from ray.tune.progress_reporter import TrialProgressCallback
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    running: dict[str, str] = {}
    errors: list[Exception] = []

    @contextlib.contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            errors.append(error)
            raise

    class AskTell(Searcher):  # type: ignore[misc]
        """Tune's ids of trials in, names of ours out."""

        def suggest(self, trial_id: str) -> Any:
            if errors:
                raise errors[0]
            with noted():
                if len(running) >= room():
                    return None
                trial = run.next()
                if trial is None:
                    return None if running else Searcher.FINISHED
                running[trial_id] = trial.name
                return {"name": trial.name, "metric": run.metric, "job": json.dumps(asdict(run.job_of(trial)))}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            with noted():
                run.end(running.pop(trial_id), died=error)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the journal is the state."""

    class Judge(FIFOScheduler):  # type: ignore[misc]
        """First in, first out, and out early where the search's rule says so."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            with noted():
                stop = "step" in result and run.report(
                    trial.config["name"], result["step"], json.loads(result["metrics"])
                )
            return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    class Silence(TrialProgressCallback):  # type: ignore[misc]
        """Stands where Tune's own would print trials that end without a report, whatever the verbosity."""

        def log_result(self, trial: Any, result: dict[str, Any], error: bool = False) -> None:
            """Print nothing."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            """Print nothing."""

    return AskTell(), Judge(), Silence(), errors
