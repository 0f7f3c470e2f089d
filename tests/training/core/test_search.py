"""Searches: early stopping within groups, the journal, trials in this process, and on Ray with everything killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from infra.settings import Settings
from training.core.evaluate import Predictions
from training.core.failures import StageFailed
from training.core.ray_runner import FitJob, source_digest
from training.core.run import run_stage
from training.core.search import Halving, run_search
from training.core.search_run import SearchRun
from training.core.stage import StageRef
from training.core.tracking import client, download_artifacts, read_run
from training.core.trials import EarlyStopping, Journal, Outcome, Trial, best
from training.registry import FAMILIES

SECTIONS = yaml.safe_load((Path(__file__).parents[2] / "params.tiny.yaml").read_text())
METRIC = "val/top1"
HALF = EarlyStopping(grace_steps=3, reduction_factor=2)


class Listed:
    """The plainest search: trials of a list; remembers in which order it was told what."""

    def __init__(self, trials: list[Trial], on_tell: Callable[[Outcome], None] = lambda outcome: None) -> None:
        self._todo = list(trials)
        self._on_tell = on_tell
        self.total = len(trials)
        self.told: list[tuple[str, str, float | None]] = []

    def ask(self) -> Trial | None:
        return self._todo.pop(0) if self._todo else None

    def tell(self, outcome: Outcome) -> None:
        self.told.append((outcome.trial.name, outcome.status, outcome.value))
        self._on_tell(outcome)

    def summary(self) -> dict[str, float]:
        return {"search/told": float(len(self.told))}


def make_trial(name: str, group: str = "all", **fit: Any) -> Trial:
    fit = {**SECTIONS["adafocus_pretrain"]["fit"], **fit}
    config = {**SECTIONS["adafocus_pretrain"], "fit": fit, "net": "local"}
    config |= {"data": SECTIONS["adafocus_data"], "model": SECTIONS["adafocus_model"]}
    return Trial(name, group, "adafocus_pretrain", config, {"seed": fit["seed"]})


def make_job(work: Path, shards: Path) -> FitJob:
    return FitJob(
        stage="toy_search",
        dataset="tiny",
        name="tiny-toy_search",
        config={},
        classes=["blue", "green", "red"],
        root=str(work),
        shards=str(shards),
        upstream={},
        work=str(work),
        tracking=None,
        source_digest=source_digest(),
        cpus=1,
        allow_decoder_change=False,
    )


def make_settings(root: Path, **more: Any) -> Settings:
    return Settings(root=root, **{"train_workers": 0, "train_cpus_per_worker": 1, "progress": False} | more)


def trainings(work: Path) -> dict[str, int]:
    """Trial → how often its training was started."""
    logs = {path.parent.name: path.read_text() for path in (work / "trials").glob("*/worker-0.log")}
    return {name: text.count("training from") for name, text in logs.items()}


# --- early stopping ------------------------------------------------------------------------------


def stopped(groups: dict[str, str], values: list[tuple[str, int, float]], mode: str = "max") -> list[tuple[str, int]]:
    """Feed (trial, step, value) in order; return where the rule wanted to end a trial."""
    halving = Halving(HALF, mode)  # type: ignore[arg-type]
    trials = {name: make_trial(name, group, steps=12) for name, group in groups.items()}
    return [(name, step) for name, step, value in values if halving.stops(trials[name], step, value)]


GOOD_AND_BAD = [("good-1", 3, 0.8), ("bad-1", 3, 0.1), ("good-2", 3, 0.9), ("bad-2", 3, 0.2), ("bad-3", 3, 0.3)]
LEVELS = {"good-1": "high", "good-2": "high", "good-3": "high", "bad-1": "low", "bad-2": "low", "bad-3": "low"}


def test_trials_are_stopped_by_their_own_group_only():
    assert stopped(LEVELS, GOOD_AND_BAD) == []
    one = dict.fromkeys(LEVELS, "all")
    assert stopped(one, GOOD_AND_BAD) == [("bad-1", 3), ("bad-2", 3), ("bad-3", 3)]
    # Nor do bad ones of another group keep a mediocre one alive.
    assert stopped(LEVELS, [*GOOD_AND_BAD, ("good-3", 3, 0.5)]) == [("good-3", 3)]
    assert stopped(one, [*GOOD_AND_BAD, ("good-3", 3, 0.5)])[-1] == ("bad-3", 3)


def test_rungs_are_powers_and_the_last_step_is_none():
    one = dict.fromkeys("ab", "all")
    later = [("a", step, 0.9) for step in (3, 6, 9, 12)]
    assert stopped(one, [*later, ("b", 3, 0.9), ("b", 6, 0.1)]) == [("b", 6)]
    assert stopped(one, [*later, ("b", 3, 0.9), ("b", 6, 0.9), ("b", 9, 0.1)]) == []  # 9 is no rung
    assert stopped(one, [*later, ("b", 3, 0.9), ("b", 6, 0.9), ("b", 12, 0.1)]) == []  # a rung, but the end
    # Judged once per rung reached: a late first evaluation is not compared at the rungs below it afterwards.
    assert stopped(one, [*later, ("b", 8, 0.9), ("b", 9, 0.1)]) == []
    assert stopped(one, [("a", 3, 0.1), ("b", 3, 0.9)], mode="min") == [("b", 3)]


# --- the journal ---------------------------------------------------------------------------------


def test_journal_drops_a_line_cut_short_and_refuses_damage(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.read() == []
    events: list[dict[str, Any]] = [{"event": "ask", "n": n} for n in range(3)]
    for event in events:
        journal.append(event)
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-4])
    assert journal.read() == events[:2]
    journal.append(events[2])  # not glued to what was cut
    assert journal.read() == events
    journal.path.write_bytes(content.replace(b'{"event": "ask", "n": 1}', b'{"event": "ask", "n"'))
    with pytest.raises(StageFailed, match="line 2 is damaged"):
        journal.read()


SCRIPT: dict[str, list[float] | str] = {
    "a": [0.5, 0.6, 0.7, 0.8],
    "b": [0.4],  # stopped at the first rung
    "c": "out of memory",
    "d": [0.6, 0.5],  # stopped at the second
    "e": [0.7, 0.8, 0.9, 0.9],
}
"""Trial → its evaluations at steps 3, 6, 9, 12, or how it fails."""


def scripted(work: Path) -> tuple[Listed, SearchRun]:
    search = Listed([make_trial(name, steps=12) for name in SCRIPT])
    stops = Halving(HALF, "max").stops
    job = make_job(work, work)
    return search, SearchRun(search, job, make_settings(work), metric=METRIC, mode="max", stops=stops)


def play(run: SearchRun) -> Iterator[str]:
    """Do what trials would do; yields before each thing that the journal notes. Repeats all evaluations on resuming."""
    while (trial := run.next()) is not None:
        folder, values = run.folder(trial.name), SCRIPT[trial.name]
        yield "asked"
        if isinstance(values, str):
            (folder / "fatal.txt").write_text(f"{values}\n\ntrace")
        else:
            for step, value in zip((3, 6, 9, 12), values, strict=False):
                yield "evaluated"
                if run.report(trial.name, step, {METRIC: value}):
                    break
            else:
                (folder / "result").mkdir(exist_ok=True)
                (folder / "result" / "metrics.json").write_text(json.dumps({METRIC: values[-1]}))
        yield "over"
        run.end(trial.name)


def test_search_goes_on_from_any_point_as_if_it_had_not_stopped(tmp_path):
    search, run = scripted(tmp_path / "whole")
    points = list(play(run))
    whole, told = run.finish(), search.told
    assert [name for name, _, _ in told] == list("abcde")
    assert [o.status for o in whole] == ["finished", "stopped", "failed", "stopped", "finished"]
    assert [o.steps for o in whole] == [12, 3, 0, 6, 12]
    assert whole[2].error == "out of memory"
    assert whole[3].curve == [(3, 0.6), (6, 0.5)]
    for stop_after in range(len(points)):
        work = tmp_path / f"cut-{stop_after}"
        _, first = scripted(work)
        for number, _ in enumerate(play(first)):
            if number == stop_after:
                break
        search, second = scripted(work)
        list(play(second))
        assert second.finish() == whole, points[stop_after]
        assert search.told == told
    # Nothing of a complete search is asked or told anew.
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    search, again = scripted(tmp_path / "whole")
    assert not again.has_more()
    assert again.finish() == whole
    assert search.told == told
    assert (tmp_path / "whole" / "journal.jsonl").read_bytes() == lines


def test_time_of_a_search_goes_on_where_it_stopped_and_leaves_interruptions_out(tmp_path):
    _, run = scripted(tmp_path)
    points = play(run)
    while len(run.outcomes) < 3:
        next(points)
    times = [o.elapsed_s for o in run.outcomes]
    assert 0 < times[0] <= times[1] <= times[2]
    lines = run._journal.read()
    assert [event["outcome"]["elapsed_s"] for event in lines if event["event"] == "tell"] == times

    def journal(change: Callable[[dict[str, Any]], None]) -> None:
        for event in lines:
            change(event["outcome"] if event["event"] == "tell" else event)
        run._journal.path.write_text("".join(json.dumps(event) + "\n" for event in lines))

    # As if it had run for hours: what is told is what the journal has, and time goes on from its last event.
    journal(lambda part: part.update(elapsed_s=part["elapsed_s"] + 7200))
    _, again = scripted(tmp_path)
    assert [o.elapsed_s for o in again.outcomes] == [time + 7200 for time in times]
    list(play(again))
    later = [o.elapsed_s for o in again.finish()]
    assert later == sorted(later)
    assert 7200 < later[-1] < 7200 + 600  # not the time of day, nor the age of the journal
    # A journal from before there were times.
    journal(lambda part: part.pop("elapsed_s"))
    _, old = scripted(tmp_path)
    assert [o.elapsed_s for o in old.outcomes] == [0.0] * 3


def test_search_that_does_not_repeat_itself_is_refused(tmp_path):
    _, run = scripted(tmp_path)
    next(play(run))
    job, settings = make_job(tmp_path, tmp_path), make_settings(tmp_path)
    for trials in ([make_trial("z", steps=12)], [make_trial("a", steps=11)], []):
        with pytest.raises(StageFailed, match="does not repeat itself"):
            SearchRun(Listed(trials), job, settings, metric=METRIC, mode="max", stops=None)


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ([make_trial("a"), make_trial("a")], "'a' twice"),
        ([make_trial("a/b")], "must be 1 to 100"),
        ([Trial("a", "all", "nothing_train", {"fit": {}})], "not a registered fit stage"),
        ([Trial("a", "all", "adafocus_eval", {"fit": {}})], "not a registered fit stage"),
        ([make_trial("a", eval_every=0)], "set fit.eval_every"),
        ([], "asked for no trial"),
    ],
)
def test_wrong_trials_are_named(tmp_path, trials, message):
    run = SearchRun(
        Listed(trials),
        make_job(tmp_path, tmp_path),
        make_settings(tmp_path),
        metric=METRIC,
        mode="max",
        stops=Halving(HALF, "max").stops,
    )
    with pytest.raises(StageFailed, match=message):
        (run.next(), run.next(), run.finish())


def test_best_is_a_finished_trial_with_a_value():
    trial = make_trial("a")
    rows = [("stopped", 0.9), ("finished", float("nan")), ("finished", 0.5), ("finished", 0.7), ("failed", None)]
    outcomes = [Outcome(trial, status, 1, value, {}, []) for status, value in rows]  # type: ignore[arg-type]
    assert best(outcomes, "max") is outcomes[3]
    assert best(outcomes, "min") is outcomes[2]
    assert best(outcomes[:2], "max") is None


# --- trials in this process ----------------------------------------------------------------------

BROKEN = {"name": "sgd", "lr": {"nothing": 1.0}, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}


def test_search_in_this_process(tmp_path, tiny_shards):
    """Interrupted after the first trial; one fails, one is stopped early; files and weights are as they should be."""

    def interrupt(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    frozen = {"name": "sgd", "lr": {"main": 0.0}, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}
    trials = [make_trial("bad", optim=BROKEN), make_trial("good", steps=12), make_trial("idle", optim=frozen, steps=12)]
    job, settings = make_job(tmp_path, tiny_shards), make_settings(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_search(Listed(trials[1:], interrupt), job, settings, metric=METRIC, stopping=HALF)
    search = Listed([*trials[1:], trials[0]])
    outcomes = run_search(search, job, settings, metric=METRIC, stopping=HALF)
    assert [o.trial.name for o in outcomes] == ["good", "idle", "bad"]
    assert [o.status for o in outcomes] == ["finished", "stopped", "failed"]
    assert trainings(tmp_path) == {"good": 1, "idle": 1, "bad": 1}
    good, idle, bad = outcomes
    assert 0 < good.elapsed_s < idle.elapsed_s < bad.elapsed_s  # the first is from before the interruption
    assert [step for step, _ in good.curve] == [3, 6, 9, 12]
    assert good.steps == good.metrics["train/steps"] == 12
    assert good.value == good.metrics[METRIC] == good.curve[-1][1]
    assert idle.steps < 12
    assert "no learning rate for group 'main'" in str(bad.error)
    folder = tmp_path / "trials" / "good"
    assert sorted(p.name for p in (folder / "result").iterdir()) == ["config.json", "metrics.json", "predictions.npz"]
    assert json.loads((folder / "result" / "config.json").read_text()) == trials[1].config
    assert not list(tmp_path.rglob("state.pt"))
    # Each training has a log of its own, though one process did them all.
    assert "no learning rate" not in (folder / "worker-0.log").read_text()


def test_when_all_fail_the_first_is_named_and_the_next_start_tries_again(tmp_path, tiny_shards):
    job, settings = make_job(tmp_path, tiny_shards), make_settings(tmp_path)
    trials = [make_trial("a", optim=BROKEN), make_trial("b", optim=BROKEN)]
    for _ in range(2):
        with pytest.raises(StageFailed, match=r"all 2 trials failed; the first, a: ConfigError.*'nothing'"):
            run_search(Listed(trials), job, settings, metric=METRIC)
        assert trainings(tmp_path) == {"a": 1, "b": 1}
    with pytest.raises(StageFailed, match="evaluations lack 'val/speed'"):
        run_search(Listed([make_trial("a", steps=3)]), job, settings, metric="val/speed")


# --- as a stage ----------------------------------------------------------------------------------

FAMILY = '''
"""A family with one search: over seeds."""

from typing import Any

from training.core.stage import Stage
from training.core.trials import SearchConfig, Trial


class Config(SearchConfig):
    seeds: list[int]
    model: dict[str, Any]
    pretrain: dict[str, Any]


class Seeds:
    def __init__(self, config):
        self.total, self._config, self._next, self._sum = len(config.seeds), config, 0, 0.0

    def ask(self):
        if self._next == self.total:
            return None
        seed, own = self._config.seeds[self._next], self._config.pretrain
        self._next += 1
        data = self._config.data.model_dump(mode="json")
        config = {**own, "net": "local", "model": self._config.model, "data": data, "fit": {**own["fit"], "seed": seed}}
        return Trial(f"seed-{seed}", "all", "adafocus_pretrain", config, {"seed": seed, "gmac": 0.5})

    def tell(self, outcome):
        self._sum += outcome.value
        if (flag := __import__("pathlib").Path("interrupt")).exists():
            flag.unlink()
            raise KeyboardInterrupt

    def summary(self):
        return {"search/mean": self._sum / self.total}


SHARED = {"data": "adafocus_data", "model": "adafocus_model", "pretrain": "adafocus_pretrain"}
STAGES = (
    Stage("toy_search", "search", Config, lambda inputs: Seeds(inputs.config), shared=SHARED),
)
MODELS = {}
'''
INSTANCE = StageRef.parse("toy_search@tiny")


def make_project(root: Path, shards: Path, store: Path, seeds: tuple[int, ...] = (2, 3), **fit: Any) -> Path:
    """A project with the search of `FAMILY`, which lies in it as a module."""
    (root / "params").mkdir(parents=True)
    values = {**SECTIONS, "toy_search": {"stopping": None, "seeds": list(seeds)}}
    values["adafocus_pretrain"] = {**SECTIONS["adafocus_pretrain"], "fit": {**make_trial("x", **fit).config["fit"]}}
    (root / "params" / "tiny.yaml").write_text(yaml.safe_dump(values))
    (root / "params.yaml").write_text("datasets: [tiny]\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "toy_family.py").write_text(FAMILY)
    shutil.copytree(shards, root / "data" / "shards" / "tiny")
    shutil.copy(store, root)
    return root


@pytest.fixture
def toy(tmp_path: Path, tiny_shards: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose family is registered in this process."""
    root = make_project(tmp_path / "here", tiny_shards, empty_store)
    monkeypatch.setitem(FAMILIES, "toy", "toy_family")
    monkeypatch.syspath_prepend(root)
    monkeypatch.chdir(root)
    yield root
    sys.modules.pop("toy_family", None)


def children(root: Path) -> dict[str, list[Any]]:
    """MLflow runs below those of the stage, by name; the parent's name is that of the instance."""
    mlflow = client(make_settings(root).tracking_uri)
    runs: dict[str, list[Any]] = {}
    for run in mlflow.search_runs([e.experiment_id for e in mlflow.search_experiments()]):
        runs.setdefault(run.info.run_name, []).append(run)
    return runs


def test_search_is_a_stage_and_a_trial_is_one_too(toy):
    (toy / "interrupt").touch()
    with pytest.raises(KeyboardInterrupt):
        run_stage(INSTANCE, make_settings(toy))
    output = run_stage(INSTANCE, make_settings(toy))
    assert sorted(p.name for p in output.iterdir()) == [
        "config.json", "metrics.json", "run.json", "trials", "trials.json"
    ]  # fmt: skip
    rows = json.loads((output / "trials.json").read_text())
    assert "elapsed_s" not in rows[0]  # repeated, the file is the same
    assert [row["name"] for row in rows] == ["seed-2", "seed-3"]
    assert {row["status"] for row in rows} == {"finished"}
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics == {
        METRIC: max(row["value"] for row in rows),
        "search/mean": pytest.approx(sum(row["value"] for row in rows) / 2),
        "search/trials_failed": 0.0,
        "search/trials_finished": 2.0,
        "search/trials_stopped": 0.0,
    }
    for row in rows:
        kept = output / "trials" / row["name"]
        assert len(Predictions.load(kept / "predictions.npz").key) == 10
        assert json.loads((kept / "metrics.json").read_text()) == row["metrics"]
    assert not list((toy / ".work").rglob("journal.jsonl"))

    runs = children(toy)
    assert {name: len(found) for name, found in runs.items()} == {
        "toy_search@tiny": 1, "seed-2": 1, "seed-3": 1
    }  # fmt: skip
    (parent,) = runs["toy_search@tiny"]
    for row in rows:
        (run,) = runs[row["name"]]
        assert run.info.run_id == row["run_id"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        record = read_run(make_settings(toy), row["run_id"])
        assert record is not None
        assert record.tags["trial_status"] == "finished"
        assert record.tags["stage"] == "adafocus_pretrain"
        assert record.tags["data_digest"] == parent.data.tags["data_digest"]
        assert "instance" not in record.tags  # or it could pass for the stage's own run
        assert record.params["config.fit.seed"] == str(row["facts"]["seed"])
        assert record.params["facts.gmac"] == "0.5"
        assert record.metrics[METRIC] == row["value"]
        assert "train/loss" in record.metrics

    # The same config, trained by the stage's own name, gives the same predictions byte for byte; another does not.
    stage = run_stage(StageRef.parse("adafocus_pretrain@tiny-local"), make_settings(toy))
    trials = [output / "trials" / name for name in ("seed-2", "seed-3")]  # the stage's own seed is 3
    two, three, own = ((folder / "predictions.npz").read_bytes() for folder in (*trials, stage))
    assert three == own
    assert two != own


def test_outputs_of_a_search_in_dvc(toy):
    from training.core.dvcfile import training_entries

    (toy / "toy_family").mkdir()
    entry = training_entries(toy)["toy_search"]
    run = "runs/${item.data}/toy_search"
    assert entry["outs"] == [f"{run}/config.json", f"{run}/trials.json", f"{run}/trials"]
    assert entry["metrics"] == [f"{run}/metrics.json"]
    assert {"training/core/stage.py": ["CODE_VERSION.search"]} in entry["params"]


# --- on Ray --------------------------------------------------------------------------------------

STAGE_SCRIPT = """
import sys
from infra.settings import Settings
from training.core.run import run_stage
from training.core.stage import StageRef
from training.registry import FAMILIES

FAMILIES["toy"] = "toy_family"
run_stage(StageRef.parse("toy_search@tiny"), Settings())
"""

LONG = {"steps": 96, "checkpoint_every": 4, "log_every": 4, "eval_every": 24}


def start(root: Path, script: str, **env: str) -> subprocess.Popen[bytes]:
    """Run a script in a project, with its own process group and one trial at a time."""
    values = {
        "FOVEA_ROOT": str(root),
        "FOVEA_TRAIN_WORKERS": "1",
        "FOVEA_TRAIN_CPUS_PER_WORKER": "1",
        "FOVEA_SEARCH_TRIALS": "1",
        "FOVEA_PROGRESS": "false",
        "PYTHONPATH": os.pathsep.join((str(root), os.environ.get("PYTHONPATH", str(Path(__file__).parents[3])))),
    }
    with (root / f"log-{time.time()}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", script], cwd=root, env={**os.environ, **values, **env}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def logs(root: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(root.glob("log-*")))


def wait_for_steps(root: Path, trial: str, process: subprocess.Popen[bytes], steps: int) -> Path:
    """Wait for a checkpoint of a trial (a pattern below the root), and return the trial's folder."""
    deadline = time.monotonic() + 300
    while True:
        for path in root.glob(f"{trial}/checkpoints/step-*"):
            if int(path.name.split("-")[1]) >= steps:
                return path.parents[1]
        assert process.poll() is None, logs(root)
        assert time.monotonic() < deadline, logs(root)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_search_ends_as_an_uninterrupted_one(tmp_path, tiny_shards, empty_store):
    """Driver and Ray die together while the second trial trains; the reference is trained in this process."""
    root = make_project(tmp_path / "killed", tiny_shards, empty_store, (1, 2), **LONG)
    process = start(root, STAGE_SCRIPT)
    folder = wait_for_steps(root, ".work/runs/*/*/trials/seed-2", process, 16)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert trainings(folder.parents[1]) == {"seed-1": 1, "seed-2": 1}
    again = start(root, STAGE_SCRIPT)  # at once, beside whatever of the first is still dying
    assert again.wait(timeout=300) == 0, logs(root)
    psutil.wait_procs(family, timeout=60)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    runs = children(root)
    assert {name: len(found) for name, found in runs.items()} == {"toy_search@tiny": 1, "seed-1": 1, "seed-2": 1}
    settings = make_settings(root)
    texts = {
        name: download_artifacts(settings, runs[name][0].info.run_id, "logs/worker-0.log", tmp_path / name).read_text()
        for name in ("seed-1", "seed-2")
    }
    assert {name: text.count("training from") for name, text in texts.items()} == {"seed-1": 1, "seed-2": 2}
    assert int(texts["seed-2"].split("resumed at step ")[1].split()[0]) >= 16

    output, work = root / "runs/tiny/toy_search", tmp_path / "whole"
    work.mkdir()
    trials = [make_trial(f"seed-{seed}", seed=seed, **LONG) for seed in (1, 2)]
    whole = run_search(Listed(trials), make_job(work, tiny_shards), make_settings(work), metric=METRIC)
    rows = json.loads((output / "trials.json").read_text())
    for row, outcome in zip(rows, whole, strict=True):
        assert (row["name"], row["status"], row["steps"]) == (outcome.trial.name, "finished", outcome.steps)
        assert (row["value"], row["metrics"]) == (outcome.value, outcome.metrics)
        assert [tuple(point) for point in row["curve"]] == outcome.curve
        assert len(outcome.curve) == 4
        paths = [output / "trials" / row["name"], work / "trials" / row["name"] / "result"]
        one, other = ((path / "predictions.npz").read_bytes() for path in paths)
        assert one == other


TRIALS_SCRIPT = """
import importlib.util, json, sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("search_tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
work, shards = Path(sys.argv[2]), Path(sys.argv[3])
idle = {"name": "sgd", "lr": {"main": 0.0}, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}
trials = [
    tests.make_trial("good", **tests.LONG),
    tests.make_trial("alone", "other", **{**tests.LONG, "optim": idle}),
    tests.make_trial("bad", **{**tests.LONG, "optim": tests.BROKEN}),
    tests.make_trial("idle", **{**tests.LONG, "optim": idle}),
]
settings = tests.Settings(root=work)
stopping = tests.EarlyStopping(grace_steps=24, reduction_factor=2)
outcomes = tests.run_search(
    tests.Listed(trials), tests.make_job(work, shards), settings, metric="val/top1", stopping=stopping
)
rows = [[o.trial.name, o.status, o.steps, o.value, o.error] for o in outcomes]
(work / "outcomes.json").write_text(json.dumps(rows))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_on_ray_die_fail_and_are_stopped_on_their_own(tmp_path, tiny_shards):
    """Two at a time; the process of one is killed and goes on from its checkpoint while the other learns."""
    work = tmp_path / "work"
    work.mkdir()
    script = TRIALS_SCRIPT.replace("sys.argv[1]", repr(__file__)).replace("sys.argv[2]", repr(str(work)))
    process = start(work, script.replace("sys.argv[3]", repr(str(tiny_shards))), FOVEA_SEARCH_TRIALS="2")
    folder = wait_for_steps(work, "trials/alone", process, 16)
    os.kill(int((folder / "lock").read_text()), signal.SIGKILL)  # the holder's pid is in its lock file
    assert process.wait(timeout=400) == 0, logs(work)
    rows = {name: rest for name, *rest in json.loads((work / "outcomes.json").read_text())}
    assert rows["good"][:2] == ["finished", 96]
    assert rows["good"][2] > 0.5
    assert rows["bad"][0] == "failed"
    assert "no learning rate" in rows["bad"][3]
    assert rows["idle"][0] == "stopped"
    assert rows["alone"][:2] == ["finished", 96]
    assert rows["idle"][1] < 96
    assert rows["alone"][2] < rows["good"][2]  # the rule would have stopped it in the other group
    assert trainings(work) == {"good": 1, "bad": 1, "idle": 1, "alone": 2}
    assert "resumed at step" in (folder / "worker-0.log").read_text()
    assert "9223372036854775807" not in logs(work)  # Tune's own output is off
    assert not list(work.rglob("state.pt"))
