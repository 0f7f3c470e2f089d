"""Fits on real Ray workers, killed in every way; results must equal those of uninterrupted runs.

Slow: each fit starts a local Ray. Workers are found by their parents, never by name, so that nothing else on the
machine is touched.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from infra.settings import Settings
from training.core.checkpoint import model_digest
from training.core.evaluate import Predictions
from training.core.run import run_stage
from training.core.stage import StageRef

PARAMS = Path(__file__).parents[2] / "params.tiny.yaml"
INSTANCE = "adafocus_pretrain@tiny-local"
FOLDER = "adafocus_pretrain/local"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def make_project(root: Path, shards: Path, store: Path, **fit: object) -> Path:
    (root / "params").mkdir(parents=True)
    values = yaml.safe_load(PARAMS.read_text())
    values["adafocus_pretrain"]["fit"] |= fit
    (root / "params" / "tiny.yaml").write_text(yaml.safe_dump(values))
    (root / "params.yaml").write_text("datasets: [tiny]\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    shutil.copytree(shards, root / "data" / "shards" / "tiny")
    shutil.copy(store, root)
    return root


def run_here(root: Path) -> None:
    """Run the stage in this process, without Ray: what the references of these tests are made by."""
    run_stage(
        StageRef.parse(INSTANCE),
        Settings(root=root, train_workers=0, train_cpus_per_worker=1, progress=False, device="cpu"),
    )


def start(root: Path, workers: int, **env: str) -> subprocess.Popen[bytes]:
    values = {
        **os.environ,
        "FOVEA_TRAIN_WORKERS": str(workers),
        "FOVEA_TRAIN_CPUS_PER_WORKER": "1",
        "FOVEA_PROGRESS": "false",
        "FOVEA_DEVICE": "cpu",
        **env,
    }
    command = [sys.executable, "-m", "training", "run", INSTANCE]
    log = (root / f"log-{time.time()}").open("wb")
    return subprocess.Popen(command, cwd=root, env=values, stdout=log, stderr=log, start_new_session=True)


def finish(root: Path, process: subprocess.Popen[bytes]) -> None:
    code = process.wait(timeout=400)
    assert code == 0, "\n".join(path.read_text() for path in sorted(root.glob("log-*")))


def wait_for_checkpoints(root: Path, process: subprocess.Popen[bytes], count: int) -> None:
    """Wait until the fit has written a checkpoint of at least `count` × 4 steps."""
    deadline = time.monotonic() + 300
    while newest(root) < 4 * count:
        assert process.poll() is None, "\n".join(path.read_text() for path in sorted(root.glob("log-*")))
        assert time.monotonic() < deadline
        time.sleep(0.05)


def newest(root: Path) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    return max((int(path.name.split("-")[1]) for path in root.glob(".work/runs/*/*/checkpoints/step-*")), default=0)


def resumed_at(root: Path) -> list[int]:
    """Return the steps at which workers went on, from their log."""
    (log,) = (root / ".work").rglob("worker-0.log")
    return [int(rest.split()[0]) for rest in log.read_text().split("resumed at step ")[1:]]


def train_workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # some of Ray's processes end by themselves
            if any("RayTrainWorker" in part for part in child.cmdline()):
                found.append(child)
    return found


def result(root: Path) -> tuple[dict[str, float], Path]:
    folder = root / "runs" / "tiny" / FOLDER
    return json.loads((folder / "metrics.json").read_text()), folder


def resumed_from(root: Path) -> int:
    """Return the step at which the process that finished the fit had begun."""
    return int(json.loads((result(root)[1] / "run.json").read_text())["fit"]["resumed_from"])


LONG = {"steps": 120, "checkpoint_every": 4, "log_every": 4, "eval_every": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, empty_store: Path) -> Path:
    """The uninterrupted run."""
    root = make_project(tmp_path_factory.mktemp("whole"), tiny_shards, empty_store, **LONG)
    run_here(root)
    return root


def test_killed_worker_and_killed_driver_go_on_from_the_last_checkpoint(tmp_path, tiny_shards, empty_store, whole):
    """One fit whose worker dies first, and whose driver then dies with the worker that took its place."""
    root = make_project(tmp_path / "p", tiny_shards, empty_store, **LONG)
    process = start(root, 1)
    wait_for_checkpoints(root, process, 3)
    (worker,) = train_workers(process)
    worker.kill()
    # Ray's own restart: the driver lives, another worker goes on.
    wait_for_checkpoints(root, process, newest(root) // 4 + 2)
    (other,) = train_workers(process)
    assert other.pid != worker.pid
    assert resumed_at(root)[0] >= 12
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = newest(root)
    assert before < LONG["steps"]
    again = start(root, 1)  # at once, beside whatever of the first is still dying
    finish(root, again)
    assert resumed_from(root) >= before
    log = "".join(path.read_text() for path in (root / ".work").rglob("worker-0.log"))
    assert not log, "the work folder must be gone after success"
    assert result(root)[0] == result(whole)[0]
    assert model_digest(result(root)[1] / "model") == model_digest(result(whole)[1] / "model")
    psutil.wait_procs(family, timeout=60)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_two_workers_follow_one_worker(tmp_path, tiny_shards, empty_store, whole):
    """D11: another worker count changes the sums' order and nothing else; batch norm is synchronised."""
    root = make_project(tmp_path / "p", tiny_shards, empty_store, **{**LONG, "steps": 24})
    one = make_project(tmp_path / "q", tiny_shards, empty_store, **{**LONG, "steps": 24})
    for folder in (root, one):  # dropout masks are drawn per rank: without them nothing but the order of sums differs
        path = folder / "params" / "tiny.yaml"
        values = yaml.safe_load(path.read_text())
        values["adafocus_pretrain"]["dropout"] = 0.0
        path.write_text(yaml.safe_dump(values))
    finish(root, start(root, 2))
    run_here(one)
    a, b = (Predictions.load(result(r)[1] / "predictions.npz") for r in (root, one))
    assert list(a.key) == list(b.key)
    assert len(set(a.key)) == 10
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-3, atol=1e-4)


def test_error_of_the_user_is_one_message_and_no_restart(tmp_path, tiny_shards, empty_store):
    root = make_project(tmp_path / "p", tiny_shards, empty_store, **LONG)
    shard = next((root / "data/shards/tiny").glob("*train*.tar"))
    shard.write_bytes(shard.read_bytes()[:2048])
    process = start(root, 1)
    assert process.wait(timeout=300) == 1
    text = "".join(path.read_text() for path in root.glob("log-*"))
    assert shard.name in text
    assert "error:" in text


def test_lost_node_is_survived(tmp_path, tiny_shards, empty_store, whole):
    """Two-node cluster on this machine; the node of the worker dies, the fit goes on on the other."""
    root = make_project(tmp_path / "p", tiny_shards, empty_store, **LONG)
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FOVEA_TRAIN_CPUS_PER_WORKER": "1",
        "FOVEA_PROGRESS": "false",
        "FOVEA_DEVICE": "cpu",
    }
    with (root / "log-cluster").open("wb") as log:
        done = subprocess.run(
            [sys.executable, str(script), str(root), INSTANCE],
            cwd=root, env=env, stdout=log, stderr=log, timeout=500, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (root / "log-cluster").read_text()
    assert "node removed" in (root / "log-cluster").read_text()
    assert resumed_from(root) >= 12
    assert model_digest(result(root)[1] / "model") == model_digest(result(whole)[1] / "model")


CLUSTER = """
import os, subprocess, sys, time
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

root, instance = Path(sys.argv[1]), sys.argv[2]
# The head only schedules: the worker, which asks for a CPU, must go to one of the other nodes.
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
env = {**os.environ, "RAY_ADDRESS": cluster.address}
fit = subprocess.Popen([sys.executable, "-m", "training", "run", instance], cwd=root, env=env)
deadline = time.monotonic() + 200
while not any(int(p.name.split("-")[1]) >= 12 for p in root.glob(".work/runs/*/*/checkpoints/step-*")):
    assert fit.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
family = psutil.Process().children(recursive=True)
(worker,) = (p for p in family if any("RayTrainWorker" in part for part in p.cmdline()))
(lost,) = (node for node in nodes if worker.ppid() == node.all_processes["raylet"][0].process.pid)
cluster.remove_node(lost, allow_graceful=False)
print("node removed", flush=True)
code = fit.wait(timeout=300)
cluster.shutdown()
sys.exit(code)
"""
