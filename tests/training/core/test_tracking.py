import math
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import Settings
from training.core.tracking import (
    attach_run,
    ensure_store,
    find_runs,
    flatten,
    git_facts,
    list_artifacts,
    metric_history,
    read_run,
    start_run,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    """One store for the module: making one takes seconds."""
    settings = Settings(root=tmp_path_factory.mktemp("project"), mlflow_tracking_uri=None)
    ensure_store(settings)
    return settings


FOUR_AT_ONCE = """
import multiprocessing, sys
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store  # once, before the processes part
from infra.settings import Settings
from training.core.tracking import start_run

def log_something(name):  # what a stage does first
    settings = Settings(root=Path(sys.argv[1]), mlflow_tracking_uri=None)
    run = start_run(settings, experiment="adafocus", name=name, tags={"stage": "x"}, params={"a": 1})
    run.log_metrics({"loss": 1.0}, 1)
    run.finish()

context = multiprocessing.get_context("fork")
children = [context.Process(target=log_something, args=(f"n{i}",)) for i in range(4)]
for child in children:
    child.start()
for child in children:
    child.join(80)
sys.exit([child.exitcode for child in children] != [0, 0, 0, 0])
"""


def test_four_processes_may_create_the_store_at_once(tmp_path):
    # In a process of its own: a fork of pytest's would inherit whatever other tests have opened and started.
    command = [sys.executable, "-c", FOUR_AT_ONCE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=85, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = find_runs(Settings(root=tmp_path, mlflow_tracking_uri=None), {"stage": "x"}, finished=True)
    assert sorted(run.name for run in runs) == ["n0", "n1", "n2", "n3"]
    assert not list(tmp_path.glob("mlflow.db.new*"))


def test_run_keeps_params_metrics_tags_and_artifacts(settings, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = start_run(
        settings,
        experiment="adafocus",
        name="adafocus_eval@demo",
        tags={"stage": "adafocus_eval", "flow_run_id": ""},
        params={"config": {"data": {"num_frames": 8}, "lr": [0.1, 0.2], "name": "x" * 9000, "none": None}},
    )
    run.log_metrics({"train/loss": 2.0, "bad": math.nan}, 1)
    run.log_metrics({"train/loss": 1.0}, 2)
    run.log_metrics({"test/top1": 0.5}, None)
    (tmp_path / "a.txt").write_text("a")
    run.log_artifact(tmp_path / "a.txt", "files")
    run.log_table({"check": ["x"], "pass": ["yes"]}, "gate/table.json")
    run.finish()
    record = attach_run(settings.tracking_uri, run.run_id).record()
    assert record.status == "FINISHED"
    assert record.tags == {"stage": "adafocus_eval"}  # an unknown fact is left out
    assert record.params["config.data.num_frames"] == "8"
    assert record.params["config.lr"] == "[0.1, 0.2]"
    assert record.params["config.none"] == "null"
    assert len(record.params["config.name"]) == 6000
    assert record.params["config.name"].endswith("(cut; whole in config.json)")
    assert record.metrics["test/top1"] == 0.5
    assert math.isnan(record.metrics["bad"])
    assert metric_history(settings, run.run_id, "train/loss") == [(1, 2.0), (2, 1.0)]
    assert list_artifacts(settings, run.run_id, "files") == ["files/a.txt"]
    # The artifacts lie below the root whatever the current folder is.
    assert list((settings.root / "mlruns").rglob("a.txt"))
    assert not (Path.cwd() / "mlruns").exists()


def test_more_than_a_hundred_params_and_a_thousand_metrics(settings):
    run = start_run(settings, experiment="many", name="m", tags={}, params={f"p{i}": i for i in range(230)})
    run.log_metrics({f"m/{i}": float(i) for i in range(1500)}, 3)
    record = run.record()
    assert len(record.params) == 230
    assert record.metrics["m/1499"] == 1499.0


def test_unfinished_run_of_the_same_inputs_is_continued(settings):
    def start(digest: str, name: str = "adafocus_policy@demo"):
        return start_run(
            settings,
            experiment="adafocus",
            name=name,
            tags={"stage": "adafocus_policy"},
            params={"steps": 10},
            resume_tag=("input_digest", digest),
        )

    first = start("one")
    first.log_metrics({"loss": 3.0}, 1)
    first.log_metrics({"loss": 2.0}, 2)
    first.finish("KILLED")
    again = start("one")
    assert again.run_id == first.run_id
    assert again.record().status == "RUNNING"
    again.log_metrics({"loss": 2.5}, 2)  # the step after the checkpoint is done again: the later value counts
    assert metric_history(settings, again.run_id, "loss") == [(1, 3.0), (2, 2.5)]
    again.finish()
    # A finished run, other inputs, and another stage of the same inputs are never continued.
    assert start("one").run_id != first.run_id
    other = start("two")
    assert other.run_id != first.run_id
    assert start("two", "adafocus_policy@other").run_id != other.run_id


def test_find_runs_needs_all_tags(settings):
    run = start_run(settings, experiment="finding", name="f", tags={"model_digest": "m1", "stage": "s"}, params={})
    assert [r.run_id for r in find_runs(settings, {"model_digest": "m1", "stage": "s"})] == [run.run_id]
    assert find_runs(settings, {"model_digest": "m1", "stage": "t"}) == []
    assert find_runs(settings, {"model_digest": "m1"}, finished=True) == []
    assert read_run(settings, "0" * 32) is None


def test_flatten_names_by_dots_and_keeps_empty_mappings():
    assert flatten({"a": {"b": {"c": 1}}, "d": {}, "e": "text", "f": True}) == {
        "a.b.c": "1",
        "d": "{}",
        "e": "text",
        "f": "true",
    }


def test_git_facts(tmp_path):
    assert git_facts(tmp_path) == {}  # nothing is invented where there is no repository

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    assert git_facts(tmp_path) == {}  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    facts = git_facts(tmp_path)
    assert facts["git_dirty"] == "false"
    assert len(facts["git_commit"]) == 40
    (tmp_path / "a").write_text("2")
    assert git_facts(tmp_path)["git_dirty"] == "true"
