"""The commands as processes: runs, predictions and searches, also after `kill -9`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings import Settings
from training.autovideo.document import Document
from training.autovideo.pipeline import PipelineRun
from training.autovideo.values import Shards
from training.core.registration import CHALLENGER, CHAMPION, Registry

pytestmark = pytest.mark.timeout(600)

Make = Callable[..., dict[str, Any]]
Call = Callable[..., "subprocess.CompletedProcess[str]"]
SPACE = {
    "schema": "space/v1",
    "auto": False,
    "slots": {
        "net": [
            {"use": "recognition/tsn", "with": {"backbone": "resnet18", "width": 0.125}},
            {"use": "recognition/tsm", "with": {"backbone": "resnet18", "width": 0.125}},
        ],
        "aug": ["augment/hflip", "augment/brightness", None],
    },
    "set": {"net.lr": {"kind": "float", "low": 0.001, "high": 0.02, "log": True}, "vars.frames": [2, 3]},
    "limits": {"gmac": 0.5},
}


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture
def make_place(ran: PipelineRun, project: Settings, new_project: Callable[[], Settings]) -> Callable[[], Settings]:
    """Return a function that makes a project which has the videos' shards already: nothing is encoded again."""

    def make() -> Settings:
        settings = new_project()
        shards = ran.value("shards")
        assert isinstance(shards, Shards)
        settings.shards.mkdir(parents=True)
        (settings.shards / "tiny").symlink_to(shards.folder, target_is_directory=True)
        shutil.copytree(project.root / "pipelines" / ".data", settings.root / "pipelines" / ".data", symlinks=True)
        return settings

    return make


@pytest.fixture
def place(make_place: Callable[[], Settings]) -> Settings:
    """A project of the test's own."""
    return make_place()


def searched(document: dict[str, Any], name: str, **learner: Any) -> dict[str, Any]:
    """Return the whole pipeline as the beginning of a search."""
    values = {**document, "name": name, "vars": {"size": 32, "frames": 2}}
    for step in values["steps"]:
        if step["id"] == "clip":
            step["with"]["frames"] = "${frames}"
        if step["id"] == "net":
            step["with"] |= {"steps": 2, **learner}
    return values


def state(root: Path) -> dict[str, int]:
    """Return the times of all results below a workspace."""
    kept = ("runs", "done")
    return {str(path): path.stat().st_mtime_ns for name in kept for path in (root / name).rglob("*") if path.is_file()}


def test_run_and_predict(short: Make, place: Settings, fovea: Call, videos: Path, tmp_path: Path) -> None:
    root = place.root
    write(root / "short.yaml", short("commands"))
    first = fovea(root, "pipeline", "run", "short.yaml", "--save", "fitted", "--json")
    said = json.loads(first.stdout.strip().splitlines()[-1])
    assert {row["step"]: row["cached"] for row in said["steps"]} == dict.fromkeys(
        ("data", "clip", "net", "eval"), False
    )
    assert "val/top1" in said["metrics"]
    broken = tmp_path / "clips" / "broken.mp4"
    broken.parent.mkdir()
    broken.write_bytes(b"no video")
    shutil.copy(videos / "red" / "g0_2.mp4", broken.parent / "good.mp4")
    told = fovea(root, "pipeline", "predict", "fitted", broken.parent, "--top", 2, "--json", status=1)
    (row,) = [json.loads(line) for line in told.stdout.splitlines()]
    assert row["video"].endswith("good.mp4")
    assert len(row["classes"]) == 2
    assert "broken.mp4" in told.stderr
    assert "Traceback" not in told.stderr


def test_what_is_refused_is_one_message(short: Make, place: Settings, fovea: Call) -> None:
    root = place.root
    write(root / "short.yaml", short("refused"))
    (root / "taken").mkdir()
    (root / "taken" / "mine.txt").write_text("x")
    refused = fovea(root, "pipeline", "run", "short.yaml", "--save", "taken", status=1)
    assert "taken exists, and is no saved pipeline" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (root / "pipelines" / "refused" / "runs").exists(), "said before anything is trained"
    assert (root / "taken" / "mine.txt").exists()
    assert (
        "no step is called 'nett'; did you mean 'net'"
        in fovea(root, "pipeline", "run", "short.yaml", "--only", "nett", status=1).stderr
    )


@pytest.fixture
def search_place(document: dict[str, Any], place: Settings) -> Settings:
    """A project with a pipeline over the folder of videos and a space."""
    write(place.root / "pipeline.yaml", searched(document, "searched"))
    write(place.root / "space.yaml", SPACE)
    return place


@pytest.mark.slow
def test_a_search_to_its_end_and_again(search_place: Settings, fovea: Call) -> None:
    root = search_place.root
    command = ("search", "pipeline.yaml", "--space", "space.yaml", "--budget", "3trials", "--engine", "random")
    found = json.loads(fovea(root, *command, "--json").stdout.strip().splitlines()[-1])
    board = found["leaderboard"]
    assert len(board["trials"]) == 3
    assert {trial["status"] for trial in board["trials"]} == {"finished"}
    (winner,) = [trial for trial in board["trials"] if trial["winner"]]
    assert winner["value"] == max(trial["value"] for trial in board["trials"])
    assert all(trial["gmac"] <= 0.5 for trial in board["trials"])
    # What it leaves.
    workspace = root / "pipelines" / "searched"
    (best,) = workspace.glob("runs/*/autovideo_search/**/winner.yaml")
    assert Document.from_file(best).digest() == Document.from_dict(found["winner"]).digest()
    (leaderboard,) = workspace.glob("runs/*/autovideo_search/**/leaderboard.json")
    assert json.loads(leaderboard.read_text()) == board
    page = Path(found["page"]).read_text()
    assert all(trial["name"] in page for trial in board["trials"])
    assert (Path(found["model"]) / "model.safetensors").is_file()
    # Test was looked at once, by the evaluation of the winner, and by no trial.
    assert found["metrics"]["test/num_evaluated"] == 6
    assert not [
        path for path in workspace.glob("runs/*/autovideo_search/**/metrics.json") if "test/" in path.read_text()
    ]
    assert not [
        path for path in workspace.glob("runs/*/autovideo_found/**/metrics.json") if "test/" in path.read_text()
    ]
    evaluations = [path for path in workspace.glob("runs/**/metrics.json") if "test/num_evaluated" in path.read_text()]
    assert len(evaluations) == 1
    assert not (workspace / "predictions").exists()
    # The registry: a version, and the alias that the gate gave it.
    registry = Registry.open(search_place)
    (name,) = registry.names()
    (version,) = registry.versions(name)
    assert f"{name}/{version.version}" in found["version"] or str(version.version) in found["version"]
    gate = version.tags["gate"]
    assert version.aliases == ((CHAMPION,) if gate == "passed" else (CHALLENGER,))
    assert gate in ("passed", "failed", "underpowered")
    # Again: nothing.
    before = state(workspace)
    again = json.loads(fovea(root, *command, "--json").stdout.strip().splitlines()[-1])
    assert state(workspace) == before
    assert again == found
    assert len(registry.versions(name)) == 1
    # The control: something that was lost is made again, and is the same.
    shutil.rmtree(found["model"])
    mended = json.loads(fovea(root, *command, "--json").stdout.strip().splitlines()[-1])
    assert mended["metrics"]["test/top1"] == found["metrics"]["test/top1"]
    assert (Path(found["model"]) / "model.safetensors").is_file()
    assert state(workspace) != before


@pytest.mark.slow
def test_a_budget_in_seconds(search_place: Settings, fovea: Call) -> None:
    root = search_place.root
    command = ("search", "pipeline.yaml", "--space", "space.yaml", "--budget", "1s", "--no-register", "--json")
    found = json.loads(fovea(root, *command).stdout.strip().splitlines()[-1])
    board = found["leaderboard"]
    assert len(board["trials"]) >= 1, "what runs when the time is over runs to its end"
    assert board["budget"]["used_seconds"] >= 1
    assert found["version"] is None
    refused = fovea(root, *command[:5], "1 fortnight", status=1)
    assert "is no budget" in refused.stderr


def start(root: Path, environment: dict[str, str], *arguments: str) -> "subprocess.Popen[bytes]":
    with (root / "killed.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "infra.cli", *arguments],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_when(process: "subprocess.Popen[bytes]", ready: Callable[[], bool], root: Path) -> None:
    """End a process, and nothing else, by SIGKILL as soon as something has happened."""
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, (root / "killed.log").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_fit_goes_on_after_a_kill(short: Make, place: Settings, fovea: Call, environment: dict[str, str]) -> None:
    root, recipe = place.root, {"steps": 150, "checkpoint_every": 5}
    write(root / "killed.yaml", short("killed", **recipe))
    write(root / "whole.yaml", short("untouched", **recipe))
    workspace = root / "pipelines" / "killed"
    process = start(root, environment, "pipeline", "run", "killed.yaml")
    kill_when(process, lambda: any(workspace.glob(".work/runs/*/*/checkpoints/step-*")), root)
    assert not list(workspace.glob("runs/**/model"))
    results = [
        json.loads(fovea(root, "pipeline", "run", name, "--json").stdout.strip().splitlines()[-1])
        for name in ("killed.yaml", "whole.yaml")
    ]
    assert results[0]["metrics"] == results[1]["metrics"]
    models, facts = [], []
    for name in ("killed", "untouched"):
        (model,) = (root / "pipelines" / name).glob("runs/**/model.safetensors")
        models.append(model.read_bytes())
        facts.append(json.loads((model.parents[1] / "run.json").read_text())["fit"])
    assert models[0] == models[1]
    assert facts[0]["resumed_from"] >= 5
    assert not facts[1]["resumed_from"]  # the control


def told(workspace: Path) -> dict[str, str]:
    """Return the trials that a search's journal has outcomes of, with their runs in MLflow."""
    found = {}
    for path in workspace.glob(".work/runs/*/*/journal.jsonl"):
        for line in path.read_text().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # being written
            if event["event"] == "tell":
                found[event["outcome"]["trial"]] = event["outcome"]["run_id"]
    return found


@pytest.mark.slow
def test_a_search_goes_on_after_a_kill(
    document: dict[str, Any], make_place: Callable[[], Settings], fovea: Call, environment: dict[str, str]
) -> None:
    roots = [make_place().root, make_place().root]
    for root in roots:
        write(root / "pipeline.yaml", searched(document, "searched", steps=20))
        write(root / "space.yaml", SPACE)
    command = ["search", "pipeline.yaml", "--space", "space.yaml", "--budget", "4trials", "--no-register", "--json"]
    workspace = roots[0] / "pipelines" / "searched"
    process = start(roots[0], environment, *command)
    kill_when(process, lambda: bool(told(workspace)), roots[0])
    finished = told(workspace)
    assert 1 <= len(finished) < 4
    killed, whole = (json.loads(fovea(root, *command).stdout.strip().splitlines()[-1]) for root in roots)
    (trials,) = workspace.glob("runs/*/autovideo_search/**/trials.json")
    runs = {row["name"]: row["run_id"] for row in json.loads(trials.read_text())}
    assert len(runs) == 4
    assert finished.items() <= runs.items(), "a finished trial has the run that it had before the kill"
    for found in (killed, whole):
        assert found["leaderboard"]["budget"].pop("used_seconds") > 0
    assert killed["leaderboard"] == whole["leaderboard"]
    assert killed["winner"] == whole["winner"]
    assert killed["metrics"]["test/top1"] == whole["metrics"]["test/top1"]
    models = [(Path(found["model"]) / "model.safetensors").read_bytes() for found in (killed, whole)]
    assert models[0] == models[1]
