"""Searches whose trials are scored: in this process and by actors, killed, resumed, with candidates that kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from infra.settings import Settings
from training.core.config import ConfigError
from training.core.failures import StageFailed
from training.core.run import run_stage
from training.core.stage import StageRef
from training.core.tracking import client, find_runs, metric_history
from training.core.trials import Journal, Trial, check_trial
from training.registry import FAMILIES

SECTIONS = yaml.safe_load((Path(__file__).parents[2] / "params.tiny.yaml").read_text())

FAMILY = '''
"""A family whose search climbs a hill: candidates are numbers, and a resident scorer knows how high each lies."""

import json
import os
import time
from pathlib import Path

from training.core.checkpoint import load_state
from training.core.stage import Stage
from training.core.trials import SearchConfig, Trial

HERE = Path(__file__).parent


class Config(SearchConfig):
    rounds: int
    width: int
    engine: str = ""
    shift: int = 0  # what a search that does not repeat itself would change


class Hill:
    """Rounds of `width` candidates around the best of the rounds before; a round waits for the whole one before it."""

    def __init__(self, config):
        self.total = config.rounds * config.width
        self._config, self._round, self._todo, self._missing = config, 0, [], 0
        self._best = (float("-inf"), 0)
        self._table = None

    def prepare(self, work):
        path = work / "table.json"
        if not path.exists():  # measured once: another measurement would give another table
            path.write_text(json.dumps({"unit": time.time_ns()}))
        self._table = json.loads(path.read_text())

    def ask(self):
        if not self._todo and not self._missing and self._round < self._config.rounds:
            centre, width = self._best[1], self._config.width
            self._todo = [(self._round, centre + self._config.shift + n - width // 2) for n in range(width)]
            self._missing, self._round = width, self._round + 1
        if not self._todo:
            return None
        number, x = self._todo.pop(0)
        config = {"x": x, "unit": self._table["unit"]}
        return Trial(f"r{number}_x{x}".replace("-", "m"), "all", config=config, facts={"x": x})

    def tell(self, outcome):
        self._missing -= 1
        if outcome.value is not None:
            self._best = max(self._best, (outcome.value, outcome.trial.config["x"]))

    def summary(self):
        return {"search/found": float(self._best[1])}

    def files(self):
        return {"found.yaml": f"x: {self._best[1]}\\n"}


class Height:
    def __init__(self, inputs):
        assert inputs.config.rounds and inputs.classes and (inputs.shards / "index.json").exists()
        if (HERE / "no_scorer").exists():
            raise OSError("no weights")
        self._tensors = len(load_state(inputs.upstream["adafocus_pretrain-local"])) if inputs.upstream else 0
        self._device = inputs.device
        note("made")

    def score(self, trial):
        x = trial.config["x"]
        note(f"scored {trial.name}")
        if (HERE / "scripts" / trial.name).exists():
            exec((HERE / "scripts" / trial.name).read_text())
        return {"val/top1": 1.0 - abs(x - 7) / 100, "val/x": x, "val/tensors": self._tensors}


def note(what):
    with (HERE / "notes").open("a") as file:
        file.write(f"{os.getpid()} {what}\\n")


LEAVES = ("found.yaml",)
STAGES = (
    Stage(
        "hill_search", "search", Config, lambda inputs: Hill(inputs.config), scorer=Height, leaves=LEAVES,
        shared={"data": "adafocus_data"},
    ),
    Stage(
        "hill_super", "search", Config, lambda inputs: Hill(inputs.config), scorer=Height, leaves=LEAVES,
        upstream=("adafocus_pretrain-local",), shared={"data": "adafocus_data"},
    ),
)
MODELS = {}
'''
SITE = """
from training.registry import FAMILIES

FAMILIES["hill"] = "hill_family"
"""
"""Registers the family in every process that starts with the project in its path: Ray's workers, too."""

INSTANCE = StageRef.parse("hill_search@tiny")


def make_project(root: Path, shards: Path, store: Path, rounds: int = 3, width: int = 4) -> Path:
    (root / "params").mkdir(parents=True)
    (root / "scripts").mkdir()
    section = {"stopping": None, "rounds": rounds, "width": width}
    values = {**SECTIONS, "hill_search": section, "hill_super": section}
    (root / "params" / "tiny.yaml").write_text(yaml.safe_dump(values))
    (root / "params.yaml").write_text("datasets: [tiny]\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "hill_family.py").write_text(FAMILY)
    (root / "sitecustomize.py").write_text(SITE)
    shutil.copytree(shards, root / "data" / "shards" / "tiny")
    shutil.copy(store, root)
    return root


@pytest.fixture
def hill(tmp_path: Path, tiny_shards: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose family is registered in this process."""
    root = make_project(tmp_path / "here", tiny_shards, empty_store)
    monkeypatch.setitem(FAMILIES, "hill", "hill_family")
    monkeypatch.syspath_prepend(root)
    monkeypatch.chdir(root)
    yield root
    sys.modules.pop("hill_family", None)


def make_settings(root: Path, **more: Any) -> Settings:
    return Settings(root=root, **{"train_workers": 0, "train_cpus_per_worker": 1, "progress": False} | more)


def scored(root: Path) -> Counter[str]:
    """Trial → how often it was given to a scorer."""
    lines = (root / "notes").read_text().splitlines() if (root / "notes").exists() else []
    return Counter(line.split()[2] for line in lines if " scored " in line)


def makers(root: Path) -> list[int]:
    """Processes in which a scorer was made, one entry each time."""
    return [int(line.split()[0]) for line in (root / "notes").read_text().splitlines() if line.endswith(" made")]


def result(output: Path) -> tuple[Any, Any, str]:
    """What a search left, less the table that each measures for itself, in order of name (actors end in any)."""
    rows = json.loads((output / "trials.json").read_text())
    for row in rows:
        del row["config"]["unit"]
    rows = sorted(rows, key=lambda row: row["name"])
    return rows, json.loads((output / "metrics.json").read_text()), (output / "found.yaml").read_text()


def script(root: Path, trial: str, code: str) -> None:
    """Let a scorer do something more when it scores a trial."""
    (root / "scripts" / trial).write_text(code)


# --- in this process -----------------------------------------------------------------------------


def test_scored_search_is_a_stage(hill):
    settings = make_settings(hill)
    script(hill, "r1_x0", "raise RuntimeError('no such kernel')")
    output = run_stage(INSTANCE, settings)
    assert sorted(p.name for p in output.iterdir()) == [
        "config.json", "found.yaml", "metrics.json", "run.json", "trials.json"
    ]  # fmt: skip
    rows = json.loads((output / "trials.json").read_text())
    assert [row["facts"]["x"] for row in rows] == [-2, -1, 0, 1, -1, 0, 1, 2, 0, 1, 2, 3]
    assert {name: row for row in rows if (name := row["name"]) == "r0_x1"}["r0_x1"] | {"config": None} == {
        "name": "r0_x1", "group": "all", "stage": "", "config": None, "facts": {"x": 1}, "status": "finished",
        "steps": 0, "value": 0.94, "metrics": {"val/top1": 0.94, "val/x": 1.0, "val/tensors": 0.0}, "curve": [],
        "error": None, "run_id": None,
    }  # fmt: skip
    (failed,) = (row for row in rows if row["status"] == "failed")
    assert (failed["name"], failed["value"], failed["error"]) == ("r1_x0", None, "RuntimeError: no such kernel")
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics == {
        "search/found": 3.0, "val/top1": 0.96, "search/trials_failed": 1.0, "search/trials_finished": 11.0,
        "search/trials_stopped": 0.0,
    }  # fmt: skip
    assert (output / "found.yaml").read_text() == "x: 3\n"
    assert len(makers(hill)) == 1

    # One MLflow run, with the history of the search, the worker's log and the files; none per trial.
    mlflow = client(settings.tracking_uri)
    (run,) = mlflow.search_runs([e.experiment_id for e in mlflow.search_experiments()])
    values = metric_history(settings, run.info.run_id, "search/value")
    assert values == [(n, row["value"]) for n, row in enumerate(rows, start=1) if row["value"] is not None]
    best = [value for _, value in metric_history(settings, run.info.run_id, "search/best")]
    assert len(best) == 12
    assert best == sorted(best)
    logged = {item.path for item in mlflow.list_artifacts(run.info.run_id)}
    assert {"logs", "found.yaml", "trials.json"} <= logged
    assert [item.path for item in mlflow.list_artifacts(run.info.run_id, "logs")] == ["logs/scorer-0.log"]
    assert not (hill / ".work").exists() or not list((hill / ".work").rglob("trials"))


@pytest.mark.parametrize("stop_at", ["r0_xm2", "r1_xm1", "r2_x3"])
def test_interrupted_search_goes_on_without_scoring_anything_twice(hill, tmp_path, tiny_shards, stop_at):
    script(hill, stop_at, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        run_stage(INSTANCE, make_settings(hill))
    (hill / "scripts" / stop_at).unlink()
    (table,) = (hill / ".work").rglob("table.json")
    unit = json.loads(table.read_text())["unit"]
    output = run_stage(INSTANCE, make_settings(hill))
    assert {row["config"]["unit"] for row in json.loads((output / "trials.json").read_text())} == {unit}
    again = scored(hill)
    assert again.pop(stop_at) == 2  # the one that was being scored
    assert set(again.values()) == {1}
    assert len(again) == 11

    (run,) = find_runs(make_settings(hill), {"stage": "hill_search"})
    points = client(make_settings(hill).tracking_uri).get_metric_history(run.run_id, "search/value")
    assert sorted(point.step for point in points) == list(range(1, 13))  # none missing, none twice

    interrupted = result(output)
    shutil.rmtree(hill / "runs")
    (hill / "notes").unlink()
    assert result(run_stage(INSTANCE, make_settings(hill))) == interrupted
    assert set(scored(hill).values()) == {1}


def test_search_that_does_not_repeat_itself_is_refused(hill):
    script(hill, "r1_x0", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        run_stage(INSTANCE, make_settings(hill))
    (table,) = (hill / ".work").rglob("table.json")
    kept = table.read_text()
    table.unlink()  # what `prepare` keeps is part of what is repeated
    with pytest.raises(StageFailed, match=r"does not repeat itself: it asked for 'r0_xm2'"):
        run_stage(INSTANCE, make_settings(hill))
    (hill / "scripts" / "r1_x0").unlink()
    table.write_text(kept)
    assert run_stage(INSTANCE, make_settings(hill)).exists()


def test_point_that_died_before_the_tracking_store_had_it_is_made_up_for(hill):
    settings = make_settings(hill)
    script(hill, "r2_x0", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        run_stage(INSTANCE, settings)
    (hill / "scripts" / "r2_x0").unlink()
    (path,) = (hill / ".work").rglob("journal.jsonl")
    journal = Journal(path)
    last = {**journal.read()[-2]["outcome"], "trial": journal.read()[-1]["trial"]["name"], "value": 0.5}
    journal.append({"event": "tell", "outcome": last})  # it died right after this
    run_stage(INSTANCE, settings)
    (run,) = find_runs(settings, {"stage": "hill_search"})
    points = client(settings.tracking_uri).get_metric_history(run.run_id, "search/value")
    assert sorted(point.step for point in points) == list(range(1, 13))
    assert dict(metric_history(settings, run.run_id, "search/value"))[9] == 0.5
    assert "r2_x0" in scored(hill)
    assert scored(hill)["r2_x0"] == 1


def test_scorer_reads_an_upstream_model(hill):
    settings = make_settings(hill)
    with pytest.raises(FileNotFoundError, match="adafocus_pretrain-local"):
        run_stage(StageRef.parse("hill_super@tiny"), settings)
    run_stage(StageRef.parse("adafocus_pretrain@tiny-local"), settings)
    rows, _, _ = result(run_stage(StageRef.parse("hill_super@tiny"), settings))
    assert rows[0]["metrics"]["val/tensors"] > 10


def test_what_goes_wrong_is_named(hill):
    settings = make_settings(hill)
    (hill / "no_scorer").touch()
    with pytest.raises(StageFailed, match=r"the scorer of hill_search cannot be made: OSError: no weights"):
        run_stage(INSTANCE, settings)
    (hill / "no_scorer").unlink()
    for path in ("m2", "m1", "0", "1"):
        script(hill, f"r0_x{path}", "x = 1 / 0")
    with pytest.raises(StageFailed, match=r"all 4 trials failed; the first, r0_xm2: ZeroDivisionError"):
        run_stage(INSTANCE, settings, ["rounds=1"])
    with pytest.raises(ConfigError, match=r"set hill_search\.stopping to null"):
        run_stage(INSTANCE, settings, ["stopping={grace_steps: 3, reduction_factor: 2}"])
    assert list((hill / "runs").glob("*")) == []  # nothing of all this passes for a result


def test_only_scores_with_the_primary_metric_count(hill):
    script(hill, "r0_x0", "global Height\nself.score = lambda trial: {'val/x': 1.0}")
    rows, _, _ = result(run_stage(INSTANCE, make_settings(hill), ["rounds=1"]))
    (failed,) = (row for row in rows if row["status"] == "failed")
    assert failed["name"] == "r0_x1"  # the one after it
    assert "its scores lack 'val/top1'" in failed["error"]
    assert "['val/x']" in failed["error"]


def test_trials_to_be_scored_are_checked():
    good = Trial("a", "all", config={"blocks": [[1, 2], [3]], "name": "x"}, facts={"gmac": 0.5})
    check_trial(good, {}, early_stopping=False, scored=True)
    assert good.steps == 0
    with pytest.raises(StageFailed, match="'' is not a registered fit stage"):
        check_trial(good, {}, early_stopping=False)
    with pytest.raises(StageFailed, match="'a' twice"):
        check_trial(good, {"a": good}, early_stopping=False, scored=True)
    with pytest.raises(StageFailed, match="its trials are not trained"):
        check_trial(Trial("a", "all", "adafocus_pretrain"), {}, early_stopping=False, scored=True)
    for config in ({"blocks": (1, 2)}, {"blocks": {1: 2}}, {"blocks": {1}}, {"blocks": float("nan")}):
        with pytest.raises(StageFailed, match="plain JSON values"):
            check_trial(Trial("a", "all", config=config), {}, early_stopping=False, scored=True)


def test_files_of_a_search_are_those_of_its_stage(hill):
    text = FAMILY.replace('LEAVES = ("found.yaml",)', 'LEAVES = ("found.yaml", "front.json")')
    (hill / "hill_family.py").write_text(text)
    with pytest.raises(StageFailed, match=r"has \['found.yaml'\].*leaves \['found.yaml', 'front.json'\]"):
        run_stage(INSTANCE, make_settings(hill))
    (hill / "hill_family.py").write_text(FAMILY)
    sys.modules.pop("hill_family")
    assert set(scored(hill).values()) == {1}
    run_stage(INSTANCE, make_settings(hill))
    assert set(scored(hill).values()) == {1}  # the mistake cost no scores


# --- on Ray --------------------------------------------------------------------------------------


def start(root: Path, **env: str) -> subprocess.Popen[bytes]:
    """Run the stage in a process of its own, with its own process group."""
    values = {
        "FOVEA_ROOT": str(root),
        "FOVEA_TRAIN_WORKERS": "1",
        "FOVEA_TRAIN_CPUS_PER_WORKER": "1",
        "FOVEA_TRAIN_GPU": "false",
        "FOVEA_SEARCH_TRIALS": "2",
        "FOVEA_PROGRESS": "false",
        "PYTHONPATH": os.pathsep.join((str(root), os.environ.get("PYTHONPATH", str(Path(__file__).parents[3])))),
    }
    with (root / f"log-{time.time()}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "training", "run", str(INSTANCE)], cwd=root, env={**os.environ, **values, **env},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def logs(root: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(root.glob("log-*")))


def wait_for_outcomes(root: Path, process: subprocess.Popen[bytes], count: int) -> set[str]:
    """Wait until a search's journal has so many outcomes; return whose they are."""
    deadline = time.monotonic() + 200
    while True:
        for path in (root / ".work").rglob("journal.jsonl"):
            lines = path.read_bytes().split(b"\n")[:-1]
            told = {event["outcome"]["trial"] for line in lines if (event := json.loads(line))["event"] == "tell"}
            if len(told) >= count:
                return told
        assert process.poll() is None, logs(root)
        assert time.monotonic() < deadline, logs(root)
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_search_on_actors_ends_as_an_uninterrupted_one(tmp_path, tiny_shards, empty_store, hill):
    """Driver and Ray die together; then the driver alone; nothing of either lives on."""
    root = make_project(tmp_path / "killed", tiny_shards, empty_store, rounds=8)
    for path in ("r1_xm1", "r2_x1", "r4_x3", "r5_x6"):
        script(root, path, "time.sleep(1)")
    told: dict[str, int] = {}  # trial with an outcome → how often it had been scored until then
    family: list[psutil.Process] = []
    for count, group in ((6, True), (20, False)):
        process = start(root)
        names, counts = wait_for_outcomes(root, process, count), scored(root)
        told |= {name: counts[name] for name in names - set(told)}
        family += psutil.Process(process.pid).children(recursive=True)
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
    again = start(root)  # at once, beside whatever of the others is still dying
    assert again.wait(timeout=300) == 0, logs(root)
    assert len(family) > 4
    psutil.wait_procs(family, timeout=60)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    counts = scored(root)
    assert len(counts) == 32
    assert len(told) >= 20
    assert {name: counts[name] for name in told} == told
    assert sum(counts.values()) <= 32 + 4  # at most what the two actors had in hand, twice
    (run,) = find_runs(make_settings(root), {"stage": "hill_search"})
    points = client(make_settings(root).tracking_uri).get_metric_history(run.run_id, "search/value")
    assert sorted(point.step for point in points) == list(range(1, 33))

    values = yaml.safe_load((root / "params" / "tiny.yaml").read_text())
    (hill / "params" / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert result(run_stage(INSTANCE, make_settings(hill))) == result(root / "runs/tiny/hill_search")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_actors_are_replaced_and_a_deadly_candidate_is_given_up(tmp_path, tiny_shards, empty_store):
    root = make_project(tmp_path / "deadly", tiny_shards, empty_store)
    script(root, "r0_x0", "os._exit(1)")
    once = "flag = HERE / 'died'\nif not flag.exists():\n    flag.touch()\n    os._exit(1)"
    script(root, "r1_x2", once)
    script(root, "r1_x1", "raise RuntimeError('no such kernel')")
    process = start(root, FOVEA_TRAIN_MAX_FAILURES="1")
    assert process.wait(timeout=400) == 0, logs(root)
    rows, metrics, found = result(root / "runs/tiny/hill_search")
    assert {row["name"]: row["error"] for row in rows if row["status"] == "failed"} == {
        "r0_x0": next(row["error"] for row in rows if "died more than 1 times" in str(row["error"])),
        "r1_x1": "RuntimeError: no such kernel",
    }
    counts = scored(root)
    assert (counts.pop("r0_x0"), counts.pop("r1_x2")) == (2, 2)
    assert set(counts.values()) == {1}
    assert metrics["search/trials_finished"] == 10.0
    assert found == "x: 3\n"
    # Two actors, and one more for each death (the last may come too late); none for a trial that only failed.
    assert len(makers(root)) == len(set(makers(root))) in (4, 5)
    assert os.getpid() not in makers(root)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_scorer_that_cannot_be_made_ends_the_search(tmp_path, tiny_shards, empty_store):
    root = make_project(tmp_path / "none", tiny_shards, empty_store)
    (root / "no_scorer").touch()
    process = start(root, FOVEA_SEARCH_TRIALS="1")
    assert process.wait(timeout=200) == 1
    assert "error: the scorer of hill_search cannot be made: OSError: no weights" in logs(root)
    (root / "no_scorer").unlink()
    (root / "hill_family.py").write_text(FAMILY.replace('raise OSError("no weights")', "").replace(
        'if (HERE / "no_scorer").exists():', "os._exit(1)"
    ))  # fmt: skip
    process = start(root, FOVEA_SEARCH_TRIALS="1", FOVEA_TRAIN_MAX_FAILURES="1")
    assert process.wait(timeout=200) == 1
    assert "died 2 times while the scorer was made" in logs(root)
