"""Synthetic videos → shards → trainings → registry → champion → prediction, with real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(project: Path, env: dict[str, str], *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def fovea(project: Path, env: dict[str, str], *arguments: str) -> Any:
    return json.loads(run(project, env, sys.executable, "-m", "training", *arguments).stdout)


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory, project: Path, project_env: dict[str, str]) -> Iterator[dict]:
    """Server, work pool, deployments and a worker on loopback; yields the environment that reaches them."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**project_env, "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    env["FOVEA_ROOT"] = str(project)
    running = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        with (home / f"{arguments[0]}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                cwd=project, env=env, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        running.append(process)
        return process

    try:
        server = start("server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
        deadline = time.monotonic() + 240
        while True:
            assert server.poll() is None, (home / "server.log").read_text()
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.3)
        cli = [sys.executable, "-m", "prefect"]
        run(project, env, *cli, "work-pool", "create", "fovea", "--type", "process")
        run(project, env, *cli, "--no-prompt", "deploy", "--prefect-file", "infra/prefect.yaml", "--all")
        start("worker", "start", "--pool", "fovea", "--limit", "1")
        yield env
    finally:
        for process in reversed(running):
            for number in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    os.killpg(process.pid, number)
                try:
                    process.wait(timeout=20)
                    break
                except subprocess.TimeoutExpired:
                    continue


def test_deployment_run_moves_the_champion(project: Path, prefect: dict) -> None:
    run(
        project, prefect, sys.executable, "-m", "prefect", "deployment", "run", "reproduce/reproduce",
        "-p", "dataset=demo", "-p", f"root={project}", "--watch",
    )  # fmt: skip
    metrics = json.loads((project / "runs/demo/adafocus_eval/metrics.json").read_text())
    assert metrics["test/num_evaluated"] == metrics["test/num_listed"] == 108
    assert metrics["test/top1"] > metrics["test/majority"]
    assert {"test/top1_random", "test/top1_center", "test/top1_fullframe"} <= set(metrics)
    lineage = fovea(project, prefect, "lineage", "adafocus-demo@champion", "--json")
    text = json.dumps(lineage)
    assert (
        subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True
        ).stdout.strip()
        in text
    )
    assert yaml.safe_load((project / "dvc.lock").read_text())["stages"]["shards@demo"]["outs"][0]["md5"] in text
    assert (project / "reports/index.html").exists()


def test_champion_predicts_a_file(project: Path, prefect: dict) -> None:
    clip = next((project / "data/raw/demo/test/red_vertical").glob("*.mp4"))
    overlay = project / "overlay.mp4"
    rows = fovea(project, prefect, "predict", "adafocus-demo@champion", str(clip), "--json", "--overlay", str(overlay))
    text = json.dumps(rows)
    assert "red_" in text  # the colour has been learned
    assert overlay.stat().st_size > 1000


def test_nothing_to_do_starts_no_stage(project: Path, prefect: dict) -> None:
    before = {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("metrics.json")}
    done = run(project, prefect, sys.executable, "-m", "flows.reproduce", "demo")
    assert before == {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("metrics.json")}
    assert "python -m training run" not in done.stdout + done.stderr


def test_changed_parameter_reruns_what_depends_on_it_and_nothing_else(project: Path, project_env: dict) -> None:
    path = project / "params/demo.yaml"
    values = yaml.safe_load(path.read_text())
    values["adafocus_finetune"]["fit"]["steps"] = 21
    path.write_text(yaml.safe_dump(values))
    changed = json.loads(run(project, project_env, "dvc", "status", "--json").stdout)
    stale = {name for name in changed if name.startswith("adafocus_")}
    assert stale == {"adafocus_finetune@demo"}  # the evaluation follows once its input changes
    values["adafocus_finetune"]["fit"]["steps"] = 20
    path.write_text(yaml.safe_dump(values))
    clean = json.loads(run(project, project_env, "dvc", "status", "--json").stdout)
    assert not {name for name in clean if name.startswith("adafocus_")}


def test_kill_of_dvc_in_the_middle_of_a_fit(project: Path, project_env: dict) -> None:
    """`kill -9` of dvc, and at once again: one writer, the fit goes on from its checkpoint (D2, D3)."""
    path = project / "params/demo.yaml"
    values = yaml.safe_load(path.read_text())
    values["adafocus_pretrain"]["fit"] |= {"steps": 300, "checkpoint_every": 10}
    path.write_text(yaml.safe_dump(values))
    command = ["dvc", "repro", "--single-item", "adafocus_pretrain@demo-glance"]
    first = subprocess.Popen(command, cwd=project, env=project_env, start_new_session=True)
    deadline = time.monotonic() + 200
    while not list((project / ".work/runs").rglob("step-*")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    run(project, project_env, *command)
    info = json.loads((project / "runs/demo/adafocus_pretrain-glance/run.json").read_text())
    assert info["fit"]["resumed_from"] >= 10
    assert info["fit"]["steps"] == 300


def test_push_and_pull_bring_models_and_shards_back(project: Path, project_env: dict, tmp_path: Path) -> None:
    run(project, project_env, "dvc", "remote", "add", "-f", "-d", "here", str(tmp_path / "store"))
    run(project, project_env, "dvc", "push", "shards@demo", "adafocus_finetune@demo")
    shard = next((project / "data/shards/demo").glob("*.tar"))
    content = shard.read_bytes()
    run(project, project_env, "dvc", "gc", "--workspace", "--force", check=False)
    subprocess.run(["rm", "-rf", ".dvc/cache", "data/shards/demo"], cwd=project, check=True)
    run(project, project_env, "dvc", "pull", "--force", "shards@demo")
    assert shard.read_bytes() == content
