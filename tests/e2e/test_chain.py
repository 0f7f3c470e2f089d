"""Synthetic videos → shards → trainings → registry → champion → prediction, with real processes."""

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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def run(project: Path, env: dict[str, str], *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def fovea(project: Path, env: dict[str, str], *arguments: str) -> Any:
    return json.loads(run(project, env, sys.executable, "-m", "training", *arguments).stdout)


@pytest.fixture(scope="module")
def services(project: Path, project_env: dict[str, str], start_services: Callable[..., Any]) -> Any:
    """Prefect's server, pool, deployments and worker, of the project."""
    return start_services(project, project_env)


@pytest.fixture(scope="module")
def reproduced(project: Path, services: Any) -> dict[str, str]:
    """The whole chain has run once, as a deployment; returns the environment. Tests leave the project as it was."""
    services.ask("deployment", "run", "reproduce/reproduce", "-p", "dataset=demo", "-p", f"root={project}", "--watch")
    return services.env


def set_fit(project: Path, section: str, **fit: int) -> None:
    path = project / "params/demo.yaml"
    values = yaml.safe_load(path.read_text())
    values[section]["fit"] |= fit
    path.write_text(yaml.safe_dump(values))


def test_every_deployment_is_made(services: Any) -> None:
    listed = services.ask("deployment", "ls")
    for name in ("reproduce/reproduce", "promote/promote", "nightly/nightly", "ingest/ingest"):
        assert name.split("/")[0] in listed


def test_a_failing_stage_fails_the_run_of_a_deployment(
    services: Any, repository: Path, ran_stages: Callable[[], list[str]]
) -> None:
    """The control of `reproduced`, in another root: `--watch` does not say that all is well when it is not."""
    (repository / "sources/trouble-left").write_text("fail")
    arguments = ["deployment", "run", "reproduce/reproduce", "-p", "dataset=demo", "-p", f"root={repository}"]
    with pytest.raises(AssertionError, match="toy_train@demo-left"):
        services.ask(*arguments, "-p", "finish=false", "--watch")
    assert ran_stages() == ["manifest", "shards", "toy_train-right"]
    # The stages spoke to the worker's server, under the worker's flow run.
    line = (repository / "environment.log").read_text().splitlines()[0]
    assert line.endswith(services.env["PREFECT_API_URL"])


def test_deployment_run_moves_the_champion(project: Path, reproduced: dict) -> None:
    metrics = json.loads((project / "runs/demo/adafocus_eval/metrics.json").read_text())
    assert metrics["test/num_evaluated"] == metrics["test/num_listed"] == 108
    assert metrics["test/top1"] > metrics["test/majority"]
    assert {"test/top1_random", "test/top1_center", "test/top1_fullframe"} <= set(metrics)
    lineage = fovea(project, reproduced, "lineage", "adafocus-demo@champion", "--json")
    text = json.dumps(lineage)
    assert (
        subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True
        ).stdout.strip()
        in text
    )
    assert yaml.safe_load((project / "dvc.lock").read_text())["stages"]["shards@demo"]["outs"][0]["md5"] in text
    assert (project / "reports/index.html").exists()


def test_champion_predicts_a_file(project: Path, reproduced: dict) -> None:
    clip = next((project / "data/raw/demo/test/red_vertical").glob("*.mp4"))
    overlay = project / "overlay.mp4"
    rows = fovea(
        project, reproduced, "predict", "adafocus-demo@champion", str(clip), "--json", "--overlay", str(overlay)
    )
    text = json.dumps(rows)
    assert "red_" in text  # the colour has been learned
    assert overlay.stat().st_size > 1000


def test_nothing_to_do_starts_no_stage(project: Path, reproduced: dict) -> None:
    before = {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("metrics.json")}
    done = run(project, reproduced, sys.executable, "-m", "flows.reproduce", "demo", "--no-finish")
    assert before == {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("metrics.json")}
    assert "python -m training run" not in done.stdout + done.stderr


def test_changed_parameter_makes_stale_what_depends_on_it_and_nothing_else(project: Path, reproduced: dict) -> None:
    def stale() -> set[str]:
        status = json.loads(run(project, reproduced, "dvc", "status", "--json").stdout)
        return {name for name in status if name.startswith("adafocus_")}

    assert stale() == set()
    set_fit(project, "adafocus_finetune", steps=21)
    try:
        assert stale() == {"adafocus_finetune@demo"}  # the evaluation follows once its input has changed
    finally:
        set_fit(project, "adafocus_finetune", steps=20)
    assert stale() == set()


def test_kill_of_dvc_in_the_middle_of_a_fit(project: Path, reproduced: dict) -> None:
    """`kill -9` of dvc, and at once again: one writer, the fit goes on from its checkpoint (D2, D3)."""
    env = {**reproduced, "SHELL": "/bin/sh"}  # DVC's shell; unlike bash, dash stays as the parent of what it runs
    set_fit(project, "adafocus_pretrain", steps=80)
    command = ["dvc", "repro", "--single-item", "adafocus_pretrain@demo-glance"]
    try:
        first = subprocess.Popen(command, cwd=project, env=env, start_new_session=True)
        deadline = time.monotonic() + 200
        while not list((project / ".work/runs").rglob("step-*")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        run(project, env, *command)
        info = json.loads((project / "runs/demo/adafocus_pretrain/glance/run.json").read_text())
        assert info["fit"]["resumed_from"] >= 10
        assert info["fit"]["steps"] == 80
    finally:
        set_fit(project, "adafocus_pretrain", steps=60)
        run(project, reproduced, *command)  # DVC has this result in its run cache


def test_push_and_pull_bring_models_and_shards_to_another_checkout(
    project: Path, reproduced: dict, tmp_path: Path
) -> None:
    targets = ["shards@demo", "adafocus_finetune@demo"]
    remote = ["--remote", "here"]
    run(project, reproduced, "dvc", "remote", "add", "-f", "here", str(tmp_path / "store"))
    run(project, reproduced, "dvc", "push", *remote, *targets)
    other = tmp_path / "checkout"
    without = shutil.ignore_patterns("cache", "tmp", "data", "runs", "mlruns", "reports", ".work", "mlflow.db*")
    shutil.copytree(project, other, ignore=without)
    shutil.copytree(project / "data_specs", other / "data_specs", dirs_exist_ok=True)
    assert not (other / "data").exists()
    run(other, {**reproduced, "FOVEA_ROOT": str(other)}, "dvc", "pull", *remote, *targets)
    for name in ("data/shards/demo", "runs/demo/adafocus_finetune/model"):
        files = [path for path in (project / name).rglob("*") if path.is_file()]
        assert files
        for path in files:
            assert (other / path.relative_to(project)).read_bytes() == path.read_bytes()


def test_a_sweep_runs_as_stages_and_its_report_follows_the_grid(project: Path, reproduced: dict) -> None:
    """3D ResNet-RS on the same videos: planned grid, search at equal cost, page; nothing is trained twice."""
    lists, params = project / "params.yaml", project / "params/demo.yaml"
    before = {path: path.read_text() for path in (lists, params)}
    tiny = yaml.safe_load((project / "tests/params.tiny.yaml").read_text())
    sections = {name: values for name, values in tiny.items() if name.startswith("resnet_rs_")}
    grid = {"depth": [26], "frames": [2, 4], "size": [32], "width": [0.125], "seed": [0]}
    try:
        params.write_text(before[params] + "\n" + yaml.safe_dump(sections))
        values = yaml.safe_load(before[lists])
        lists.write_text(yaml.safe_dump({**values, "resnet_rs": ["demo"], "resnet_rs_grid": grid}))
        command = [sys.executable, "-m", "flows.reproduce", "demo", "--target", "resnet_rs_scaling"]
        run(project, reproduced, *command)
        results = project / "runs/demo"
        first = {path: path.stat().st_mtime_ns for path in results.glob("resnet_rs_grid/*/metrics.json")}
        assert len(first) == 2
        trials = json.loads((results / "resnet_rs_search/trials.json").read_text())
        assert {trial["status"] for trial in trials} <= {"finished", "stopped"}
        report = json.loads((results / "resnet_rs_scaling/metrics.json").read_text())
        assert report["val/trainings"] == 2 + sum(trial["status"] == "finished" for trial in trials)
        page = (results / "resnet_rs_scaling/page.html").read_text()
        assert "26-4-32" in page
        stale = set(json.loads(run(project, reproduced, "dvc", "status", "--json").stdout))
        made = ("resnet_rs_grid@", "resnet_rs_search@", "resnet_rs_scaling@")
        assert not any(name.startswith(made) for name in stale), stale
        # Another grid: one new point, one gone; the point that stays is not trained again, the report follows.
        other = {**grid, "frames": [4, 6]}
        lists.write_text(yaml.safe_dump({**values, "resnet_rs": ["demo"], "resnet_rs_grid": other}))
        run(project, reproduced, *command)
        kept = results / "resnet_rs_grid/26-4-32-0.125-0/metrics.json"
        assert kept.stat().st_mtime_ns == first[kept]
        page = (results / "resnet_rs_scaling/page.html").read_text()
        assert "26-6-32" in page
        assert "26-2-32" not in page
    finally:
        for path, text in before.items():
            path.write_text(text)
