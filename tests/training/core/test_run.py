"""A stage instance from params to outputs, in this process (no Ray), and what must be refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from infra.locks import StageLockedError, stage_lock
from infra.settings import Settings
from training.core.checkpoint import CheckpointError, load_model, model_digest, read_model_info
from training.core.config import ConfigError
from training.core.evaluate import Predictions
from training.core.run import resolve, run_stage
from training.core.stage import StageRef
from training.core.tracking import download_artifacts

PARAMS = Path(__file__).parents[2] / "params.tiny.yaml"


def settings_of(root: Path) -> Settings:
    return Settings(root=root, train_workers=0, train_cpus_per_worker=1, progress=False, device="cpu")


def make_project(root: Path, shards: Path, store: Path) -> Settings:
    (root / "params").mkdir()
    shutil.copy(PARAMS, root / "params" / "tiny.yaml")
    (root / "params.yaml").write_text("datasets: [tiny]\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    shutil.copytree(shards, root / "data" / "shards" / "tiny")
    shutil.copy(store, root)
    return settings_of(root)


@pytest.fixture
def project(tmp_path: Path, tiny_shards: Path, empty_store: Path) -> Settings:
    """A project with the tiny data set, its shards and no Ray."""
    return make_project(tmp_path, tiny_shards, empty_store)


GLANCE = StageRef.parse("adafocus_pretrain@tiny-glance")


def edit(settings: Settings, section: str, **fit: object) -> None:
    path = settings.root / "params" / "tiny.yaml"
    values = yaml.safe_load(path.read_text())
    values[section]["fit"] |= fit
    path.write_text(yaml.safe_dump(values))


def test_outputs_of_a_fit(project):
    output = run_stage(GLANCE, project)
    assert output == project.runs / "tiny" / "adafocus_pretrain/glance"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["val/num_evaluated"] == 10
    assert metrics["val/num_listed"] == 11  # one listed video was rejected: it must stay visible
    assert 0 <= metrics["val/top1"] <= 1
    assert metrics["val/gmac_per_video"] > 0
    predictions = Predictions.load(output / "predictions.npz")
    assert len(set(predictions.key)) == 10
    loaded = load_model(output / "model")
    assert loaded.stage == "adafocus_pretrain"
    assert loaded.classes == ("blue", "green", "red")
    assert json.loads((output / "config.json").read_text())["net"] == "glance"
    assert not list((project.work / "runs").rglob("checkpoints")), "work of a finished stage must go"
    run_id = json.loads((output / "run.json").read_text())["run_id"]
    log = download_artifacts(project, run_id, "logs/worker-0.log", project.root / "log").read_text()
    assert "parameter group" in log


def test_same_inputs_give_the_same_bytes(project, tmp_path):
    first = model_digest(run_stage(GLANCE, project) / "model")
    shutil.rmtree(project.runs)
    assert model_digest(run_stage(GLANCE, project) / "model") == first
    edit(project, "adafocus_pretrain", seed=4)
    assert model_digest(run_stage(GLANCE, project) / "model") != first


def test_overrides_go_to_scratch(project):
    output = run_stage(GLANCE, project, ["fit.steps=2"])
    assert output == project.root / "scratch" / "tiny" / "adafocus_pretrain/glance"
    assert not project.runs.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit.stepz=2", "did you mean 'steps'"),
        ("fit.steps=0", "fit.steps"),
        ("data.num_frames=5", "must be equal"),
        ("fit", "key=value"),
    ],
)
def test_wrong_settings_name_the_field(project, override, message):
    with pytest.raises(ConfigError, match=message):
        resolve(GLANCE, project, [override])


@pytest.mark.parametrize(
    "name", ["adafocus_pretrain@tiny", "adafocus_pretrain@tiny-both", "adafocus_nothing@tiny", "x"]
)
def test_unknown_instances_are_refused(project, name):
    with pytest.raises(ConfigError):
        resolve(StageRef.parse(name), project)


def test_missing_inputs_say_what_to_run(project):
    with pytest.raises(FileNotFoundError, match="adafocus_pretrain-glance"):
        run_stage(StageRef.parse("adafocus_warmup@tiny"), project)
    shutil.rmtree(project.shards / "tiny")
    with pytest.raises(FileNotFoundError, match="dvc repro shards@tiny"):
        run_stage(GLANCE, project)


def test_second_writer_is_refused(project, monkeypatch):
    monkeypatch.setattr("training.core.run.stage_lock", lambda path: stage_lock(path, wait_s=0.2))
    with stage_lock(project.work / f"{GLANCE}.lock"), pytest.raises(StageLockedError, match=str(os.getpid())):
        run_stage(GLANCE, project)


def test_damaged_model_is_refused(project):
    model = run_stage(GLANCE, project) / "model"
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_model(model)
    with pytest.raises(CheckpointError, match="not a model folder"):
        read_model_info(model.parent)


def start(project: Settings, *options: str, workers: int = 0, **variables: str) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "FOVEA_TRAIN_WORKERS": str(workers),
        "FOVEA_PROGRESS": "false",
        "FOVEA_TRAIN_CPUS_PER_WORKER": "1",
        "FOVEA_DEVICE": "cpu",
        **variables,
    }
    command = [sys.executable, "-m", "training", "run", str(GLANCE), *options]
    return subprocess.Popen(command, cwd=project.root, env=env, stderr=subprocess.PIPE, start_new_session=True)


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, empty_store: Path) -> Path:
    """A project after `kill -9` of a fit that had written two of its ten checkpoints."""
    project = make_project(tmp_path_factory.mktemp("killed"), tiny_shards, empty_store)
    edit(project, "adafocus_pretrain", steps=100, checkpoint_every=10, eval_every=0)
    process = start(project)
    deadline = time.monotonic() + 120
    while len(list(project.root.glob(".work/runs/*/*/checkpoints/step-*"))) < 2:
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not project.runs.exists()
    return project.root


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Settings:
    """A copy of that project: where a work folder lies does not matter."""
    root = tmp_path / "project"
    shutil.copytree(killed_once, root)
    return settings_of(root)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_run_ends_as_an_uninterrupted_one(killed):
    project = killed
    # What was killed has to be a process of its own; what goes on from there does not.
    output = run_stage(GLANCE, project)
    assert json.loads((output / "run.json").read_text())["fit"]["resumed_from"] >= 20
    resumed = model_digest(output / "model")
    shutil.rmtree(project.runs)
    shutil.rmtree(project.work)
    assert model_digest(run_stage(GLANCE, project) / "model") == resumed
    assert json.loads((output / "run.json").read_text())["fit"]["resumed_from"] == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_changed_parameter_never_resumes_the_old_run(killed):
    project = killed
    edit(project, "adafocus_pretrain", steps=4, seed=9)
    run_stage(GLANCE, project)
    changed = model_digest(project.runs / "tiny" / GLANCE.folder / "model")
    shutil.rmtree(project.work)
    shutil.rmtree(project.runs)
    run_stage(GLANCE, project)
    assert model_digest(project.runs / "tiny" / GLANCE.folder / "model") == changed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_resuming_with_another_decoder_needs_permission(killed, tmp_path):
    """Killed where PyAV decodes, started again where it cannot be imported and the next rung is used (D8)."""
    project = killed
    (tmp_path / "broken" / "av").mkdir(parents=True)
    (tmp_path / "broken" / "av" / "__init__.py").write_text("raise ImportError('not on this machine')\n")
    # In front of what there is: the checkout under test need not be the installed one.
    elsewhere = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "broken"), os.environ.get("PYTHONPATH", "")])}

    refused = start(project, **elsewhere)
    _, errors = refused.communicate(timeout=300)
    assert refused.returncode == 1
    assert "'pyav'" in errors.decode()
    assert "--allow-decoder-change" in errors.decode()
    assert not project.runs.exists()

    allowed = start(project, "--allow-decoder-change", **elsewhere)
    _, errors = allowed.communicate(timeout=300)
    assert allowed.returncode == 0, errors.decode()
    output = project.runs / "tiny" / GLANCE.folder
    assert json.loads((output / "run.json").read_text())["fit"]["resumed_from"] >= 10
    assert json.loads((output / "config.json").read_text())["data"]["decoder"] == "opencv"
