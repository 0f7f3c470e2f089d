"""A search under way: asks, judges, tells and remembers. Knows nothing of where trials run."""

import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_specs.schema import digest
from infra.settings import Settings
from training.core.failures import StageFailed
from training.core.progress import write_progress
from training.core.ray_runner import FitJob
from training.core.tracking import Run, attach_run, start_run
from training.core.trials import (
    HasFiles,
    Journal,
    Mode,
    Outcome,
    Search,
    Status,
    Trial,
    best,
    check_trial,
    count_statuses,
    outcome_values,
)

log = logging.getLogger(__name__)


class SearchRun:
    """A search under way: asks, judges, tells and remembers. Knows nothing of where trials run."""

    scored = False
    """Whether trials are scored instead of trained."""

    def __init__(
        self,
        search: Search,
        job: FitJob,
        settings: Settings,
        *,
        metric: str,
        mode: Mode,
        stops: Callable[[Trial, int, float], bool] | None,
    ) -> None:
        self.work = Path(job.work)
        self.metric = metric
        self.outcomes: list[Outcome] = []
        self._search, self._job, self._settings = search, job, settings
        self._mode, self._stops = mode, stops
        self._trials: dict[str, Trial] = {}
        self._evaluations: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self._stopped: set[str] = set()
        self._runs: dict[str, Run] = {}
        self._best: Outcome | None = None
        self._counts: Counter[Status] = Counter()
        self._open: list[str] = []
        """Trials without an outcome, in the order in which they were asked for."""
        self._waiting: list[Trial] = []
        """Those of them that nothing trains or scores yet."""
        self._parent = attach_run(job.tracking["uri"], job.tracking["run_id"]).record() if job.tracking else None
        self._journal = Journal(self.work / "journal.jsonl")
        self._started = time.monotonic()
        self._elapsed_before = 0.0
        self.work.mkdir(parents=True, exist_ok=True)
        self._replay()

    def has_more(self) -> bool:
        """Return whether there is a trial to run now."""
        if not self._waiting and (trial := self._ask()) is not None:
            self._waiting.append(trial)
        return bool(self._waiting)

    def next(self) -> Trial | None:
        """Return the next trial to run, with its MLflow run open if it is to have one; None: none now."""
        if not self.has_more():
            return None
        trial = self._waiting.pop(0)
        self._open_trial(trial)
        return trial

    def job_of(self, trial: Trial) -> FitJob:
        """Return what a worker needs to train a trial."""
        run = self._run_of(trial)
        return replace(
            self._job,
            stage=trial.stage,
            name=f"{self._job.name}-{trial.name}",
            config=trial.config,
            work=str(self.folder(trial.name)),
            tracking={"uri": run.tracking_uri, "run_id": run.run_id} if run is not None else None,
        )

    def report(self, name: str, step: int, metrics: dict[str, float]) -> bool:
        """Note an evaluation of a trial, and return whether the trial should end here."""
        known = self._evaluations[name]
        if known and step <= known[-1][0]:  # repeated since its last checkpoint: judged before
            return False
        stop = self._judge(name, step, metrics)
        self._note({"event": "report", "name": name, "step": step, "metrics": metrics, "stop": stop})
        if stop:
            self._stopped.add(name)
        return stop

    def end(self, name: str, died: bool = False) -> None:
        """Find out what became of a trial, keep what is to be kept, and tell the search."""
        outcome = self._outcome(name, died)
        folder = self.folder(name)
        for part in ("checkpoints", "result/model"):
            shutil.rmtree(folder / part, ignore_errors=True)
        self._close_run(outcome)
        self._keep(outcome)

    def abandon(self) -> None:
        """Mark the runs of unfinished trials: this process stops here."""
        for name in self._open:
            if name in self._runs:
                self._runs[name].finish("KILLED")

    def finish(self) -> list[Outcome]:
        """Return all outcomes.

        Raises:
            StageFailed: there are none, or only failures; then a new start tries the trials again.
        """
        if self._open:
            raise StageFailed(f"the search ended while trials were running: {', '.join(self._open)}")
        if not self.outcomes:
            raise StageFailed(f"the search of {self._job.stage} asked for no trial")
        if all(outcome.status == "failed" for outcome in self.outcomes):
            first = self.outcomes[0]
            self._journal.path.unlink()
            raise StageFailed(f"all {len(self.outcomes)} trials failed; the first, {first.trial.name}: {first.error}")
        return self.outcomes

    def folder(self, name: str) -> Path:
        """Return the folder of a trial."""
        return self.work / "trials" / name

    def _replay(self) -> None:
        events = self._journal.read()
        if not events:
            shutil.rmtree(self.work / "trials", ignore_errors=True)
        for event in events:
            spent = event["outcome"] if event["event"] == "tell" else event
            self._elapsed_before = max(self._elapsed_before, spent.get("elapsed_s", 0.0))
            if event["event"] == "ask":
                trial = self._ask_search()
                if trial is None or _plain(trial) != event["trial"]:
                    raise StageFailed(
                        f"the search does not repeat itself: it asked for {event['trial']['name']!r} before it was "
                        f"interrupted and for {trial.name if trial else None!r} now; remove {self.work} to search anew"
                    )
            elif event["event"] == "report":
                self._judge(event["name"], event["step"], event["metrics"])
                if event["stop"]:
                    self._stopped.add(event["name"])
            else:
                values = event["outcome"]
                curve = [(step, value) for step, value in values["curve"]]
                self._tell(Outcome(**{**values, "trial": self._trials[values["trial"]], "curve": curve}))
        self._started = time.monotonic()  # repeating the calls is no part of the search
        for name in list(self._open):
            if self._is_over(name):
                self.end(name)  # only the outcome was not written any more
            else:
                self._waiting.append(self._trials[name])

    def _is_over(self, name: str) -> bool:
        files = (self.folder(name) / file for file in ("fatal.txt", "result/metrics.json"))
        return name in self._stopped or any(path.exists() for path in files)

    def _open_trial(self, trial: Trial) -> None:
        self._run_of(trial)
        self.folder(trial.name).mkdir(parents=True, exist_ok=True)

    def _ask(self) -> Trial | None:
        trial = self._ask_search()
        if trial is not None:
            self._note({"event": "ask", "trial": _plain(trial)})
        return trial

    def _ask_search(self) -> Trial | None:
        trial = self._search.ask()
        if trial is not None:
            check_trial(trial, self._trials, early_stopping=self._stops is not None, scored=self.scored)
            self._trials[trial.name] = trial
            self._evaluations[trial.name] = []
            self._open.append(trial.name)
        return trial

    def _judge(self, name: str, step: int, metrics: dict[str, float]) -> bool:
        self._evaluations[name].append((step, metrics))
        return self._stops is not None and self._stops(self._trials[name], step, metrics[self.metric])

    def _elapsed_s(self) -> float:
        """Return for how long the search has been running; what came after a killed process's last event is lost."""
        return round(self._elapsed_before + time.monotonic() - self._started, 6)

    def _note(self, event: dict[str, Any]) -> None:
        self._journal.append({**event, "elapsed_s": self._elapsed_s()})

    def _keep(self, outcome: Outcome) -> None:
        outcome = replace(outcome, elapsed_s=self._elapsed_s())
        self._journal.append({"event": "tell", "outcome": outcome_values(outcome)})
        self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        self._open.remove(outcome.trial.name)
        self.outcomes.append(outcome)
        self._search.tell(outcome)
        # There may be thousands of outcomes: each is compared with the best so far, not all with each other.
        self._best = best([outcome if self._best is None else self._best, outcome], self._mode)
        self._counts[outcome.status] += 1
        shown = {"best": self._best.value} if self._best is not None and self._best.value is not None else {}
        counts = {f"trials_{name}": float(count) for name, count in sorted(self._counts.items())}
        total = self._search.total
        write_progress(self.work / "progress.json", len(self.outcomes), total, shown | counts, unit="trial")

    def _outcome(self, name: str, died: bool) -> Outcome:
        trial, folder, evaluations = self._trials[name], self.folder(name), self._evaluations[name]
        curve = [(step, metrics[self.metric]) for step, metrics in evaluations]
        steps, metrics = evaluations[-1] if evaluations else (0, {})
        status: Status = "failed"
        error = None
        if name in self._stopped:
            status = "stopped"
        elif (folder / "result" / "metrics.json").exists():
            status, steps = "finished", trial.steps
            metrics = json.loads((folder / "result" / "metrics.json").read_text())
            (folder / "result" / "config.json").write_text(json.dumps(trial.config, indent=1, sort_keys=True) + "\n")
        elif (folder / "fatal.txt").exists():
            error, _, trace = (folder / "fatal.txt").read_text().partition("\n\n")
            log.error("trial %s failed: %s\n%s", name, error, trace.rstrip())
        else:
            how = f"died more than {self._settings.train_max_failures} times" if died else "ended without a result"
            error = f"its process {how}; see {folder}"
            log.error("trial %s failed: %s", name, error)
        run = self._run_of(trial)
        value = metrics.get(self.metric, curve[-1][1] if curve else None)
        return Outcome(trial, status, steps, value, metrics, curve, error, run.run_id if run is not None else None)

    def _run_of(self, trial: Trial) -> Run | None:
        """Return the trial's MLflow run below the search's, opened at the first call."""
        if self._parent is None or trial.name in self._runs:
            return self._runs.get(trial.name)
        tags = {key: value for key, value in self._parent.tags.items() if key != "instance"}
        tags |= {"stage": trial.stage, "kind": "trial", "trial_group": trial.group, "trial_status": "running"}
        self._runs[trial.name] = start_run(
            self._settings,
            experiment=self._parent.experiment,
            name=trial.name,
            tags={**tags, "config_digest": digest(trial.config)},
            params={"config": trial.config, "facts": dict(trial.facts)},
            parent_run_id=self._parent.run_id,
        )
        return self._runs[trial.name]

    def _close_run(self, outcome: Outcome) -> None:
        run = self._run_of(outcome.trial)
        if run is None:
            return
        if outcome.status == "finished":
            run.log_metrics(outcome.metrics)
        run.set_tags({"trial_status": outcome.status, "trial_error": outcome.error or ""})
        for path in sorted(self.folder(outcome.trial.name).glob("worker-*.log")):
            run.log_artifact(path, "logs")
        run.finish("FAILED" if outcome.status == "failed" else "FINISHED")


def _plain(trial: Trial) -> Any:
    """Return a trial as JSON has it."""
    return json.loads(json.dumps(asdict(trial)))


def write_result(
    folder: Path,
    work: Path,
    search: Search,
    outcomes: list[Outcome],
    metric: str,
    mode: Mode,
    *,
    scored: bool = False,
    leaves: Sequence[str] = (),
) -> None:
    """Write `trials.json`, `metrics.json`, the search's own files and, of trainings, `trials/<name>/` into a folder.

    Args:
        folder: made where it is missing.
        work: the search's folder, as in `run_search`.
        search: adds its `summary()` to the metrics and its `files()`, where it has any, to the files.
        outcomes: of `run_search`.
        metric: key under which the best value stands in `metrics.json`.
        mode: whether it is better when larger.
        scored: trials were scored, not trained: they left no files.
        leaves: names of the search's own files.

    Raises:
        StageFailed: `files()` has another file than those of `leaves`, or lacks one.
    """
    files = search.files() if isinstance(search, HasFiles) else {}
    if set(files) != set(leaves):
        raise StageFailed(
            f"{type(search).__name__}.files() has {sorted(files)}, and the stage says that it leaves {sorted(leaves)} "
            "(Stage.leaves): the two must name the same files"
        )
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "trials", ignore_errors=True)
    if not scored:
        (folder / "trials").mkdir()
    rows = []
    for outcome in outcomes:
        if outcome.status == "finished" and not scored:
            shutil.copytree(work / "trials" / outcome.trial.name / "result", folder / "trials" / outcome.trial.name)
        trial = asdict(outcome.trial)
        # Without times: the result of a search that repeats itself is the same file.
        left_out = ("trial", "elapsed_s")
        rows.append({**trial, **{key: value for key, value in outcome_values(outcome).items() if key not in left_out}})
    _write(folder / "trials.json", json.dumps(rows, indent=1) + "\n")
    for name, text in files.items():
        _write(folder / name, text)
    found = best(outcomes, mode)
    metrics = {f"search/trials_{name}": float(count) for name, count in count_statuses(outcomes).items()}
    if found is not None and found.value is not None:
        metrics[metric] = found.value
    metrics |= search.summary()
    _write(folder / "metrics.json", json.dumps(metrics, indent=1, sort_keys=True) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
