"""Tests that every stage of every family passes the moment it is listed in `training/registry.py`.

The chain of all stages runs once on tiny shards, in this process; then each stage's model is looked at. A
family without a section in tests/params.tiny.yaml fails here.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from infra.settings import Settings
from training.core.checkpoint import load_model
from training.core.config import ConfigError
from training.core.cost import count_params
from training.core.data import open_loader
from training.core.run import resolve, run_stage
from training.core.stage import StageRef
from training.core.tracking import client
from training.registry import FAMILIES, all_stages, load_family

pytestmark = pytest.mark.timeout(300)  # the first test pays for the whole chain

PARAMS = Path(__file__).parents[1] / "params.tiny.yaml"
GOLDEN = Path(__file__).parents[1] / "golden"
STAGES = all_stages()
INSTANCES = [str(ref) for stage in STAGES.values() for ref in stage.instances("tiny", PARAMS.parent)]
KINDS = {name: STAGES[StageRef.parse(name).stage].kind for name in INSTANCES}
FITS = [name for name in INSTANCES if KINDS[name] == "fit"]
EVALUATIONS = [name for name in INSTANCES if KINDS[name] == "evaluate"]


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, empty_store: Path) -> Settings:
    """A project in which every stage has run on the tiny data set."""
    root = tmp_path_factory.mktemp("chain")
    (root / "params").mkdir()
    shutil.copy(PARAMS, root / "params" / "tiny.yaml")
    shutil.copy(PARAMS.parent / "params.yaml", root / "params.yaml")
    (root / "dvc.yaml").write_text("stages: {}\n")
    shutil.copytree(tiny_shards, root / "data" / "shards" / "tiny")
    shutil.copy(empty_store, root)
    # One thread: the nets are too small to be worth two, and two slow each other down beside other work.
    settings = Settings(root=root, train_workers=0, train_cpus_per_worker=1, progress=False, device="cpu")
    for name in INSTANCES:
        run_stage(StageRef.parse(name), settings)
    return settings


@pytest.fixture
def batch(chain: Settings, request: pytest.FixtureRequest):
    resolved = resolve(StageRef.parse(request.node.callspec.params["name"]), chain)
    loader = open_loader(resolved.paths.shards, resolved.config.data, split="train", train=True, seed=0)
    raw = next(iter(loader))
    loader.close()
    return raw


def system_of(chain: Settings, name: str):
    return load_model(resolve(StageRef.parse(name), chain).paths.model).system


def test_sections_are_the_stages_and_their_shared_blocks():
    sections = set(yaml.safe_load(PARAMS.read_text()))
    assert sections == set(STAGES) | {name for stage in STAGES.values() for name in stage.shared.values()}


@pytest.mark.parametrize("name", INSTANCES)
def test_unknown_key_is_refused(chain, name):
    with pytest.raises(ConfigError, match="surely_not_a_key"):
        resolve(StageRef.parse(name), chain, ["surely_not_a_key=1"])


@pytest.mark.parametrize("name", INSTANCES)
def test_metrics_are_numbers_and_have_the_primary_one(chain, name):
    resolved = resolve(StageRef.parse(name), chain)
    metrics = json.loads(resolved.paths.metrics.read_text())
    assert resolved.stage.metric in metrics or KINDS[name] == "search"
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize("name", [*FITS, *EVALUATIONS])
def test_metrics_of_models_keep_the_contract(chain, name):
    resolved = resolve(StageRef.parse(name), chain)
    metrics = json.loads(resolved.paths.metrics.read_text())
    split = resolved.stage.split
    assert metrics[f"{split}/num_evaluated"] == {"val": 10, "test": 11}[split]
    assert {key.split("/")[0] for key in metrics} <= {split, "train"}
    assert any("gmac_per_" in key for key in metrics)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_report_latency(chain, name):
    resolved = resolve(StageRef.parse(name), chain)
    metrics = json.loads(resolved.paths.metrics.read_text())
    split = resolved.stage.split
    assert 0 < metrics[f"{split}/latency_ms_p50"] <= metrics[f"{split}/latency_ms_p95"]


@pytest.mark.parametrize("name", FITS)
def test_loss_follows_the_golden_curve(chain, name):
    """`training/core` is no dependency of DVC's stages, so this is what notices that a change of it moves results.

    When a change is meant to: raise CODE_VERSION in training/core/stage.py (models of the old code become stale),
    and write the curves anew with `FOVEA_WRITE_GOLDEN=1 pytest tests/training/test_every_stage.py -k golden`.
    """
    run_id = json.loads((resolve(StageRef.parse(name), chain).paths.run / "run.json").read_text())["run_id"]
    history = client(chain.tracking_uri).get_metric_history(run_id, "train/loss")
    curve = [point.value for point in sorted(history, key=lambda point: point.step)]
    path = GOLDEN / f"{name.replace('@tiny', '')}.json"
    if os.environ.get("FOVEA_WRITE_GOLDEN"):
        path.write_text(json.dumps([float(f"{value:.7g}") for value in curve]) + "\n")
    assert path.exists(), f"{path} is missing: FOVEA_WRITE_GOLDEN=1 writes it"
    # Kernels of other processors round differently; a changed rule moves these curves by per cents.
    assert curve == pytest.approx(json.loads(path.read_text()), rel=1e-3, abs=1e-5), "see this test's docstring"
    assert len(set(curve)) > 3


@pytest.mark.parametrize("name", FITS)
def test_trained_parameters_get_gradients_and_frozen_ones_do_not(chain, name, batch):
    system = system_of(chain, name)
    freeze = getattr(system, "freeze", None)
    if freeze is not None:
        freeze()
    system.train()
    system(system.prepare(batch, train=True)).loss.backward()
    grouped = {id(p) for group in system.parameter_groups().values() for p in group}
    for key, parameter in system.named_parameters():
        if id(parameter) in grouped:
            assert parameter.requires_grad, key
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
        else:
            assert parameter.grad is None, key


@pytest.mark.parametrize("name", FITS)
def test_updates_on_one_batch_improve_the_objective(chain, name, batch):
    system = system_of(chain, name)
    config = resolve(StageRef.parse(name), chain).config
    optimizers = system.optimizers(config.fit.optim)
    log, direction = system.objective
    seen = []
    for step in range(20 if log == "loss" else 80):
        system.train()
        torch.manual_seed(0)  # the same dropout masks: only the weights change
        output = system(system.prepare(batch, train=True))
        seen.append((output.loss if log == "loss" else output.logs[log]).item())
        output.loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        assert torch.isfinite(output.loss), step
    gain = sum(seen[-5:]) / 5 - seen[0]
    assert gain < 0 if direction == "min" else gain > 0


@pytest.mark.parametrize("name", FITS)
def test_prediction_of_a_clip_does_not_depend_on_its_batch(chain, name, batch):
    system = system_of(chain, name).eval()
    clips = system.prepare(batch, train=False)
    with torch.inference_mode():
        together = system.predict(clips).scores_BK
        for index in (0, len(batch.key) - 1):
            torch.testing.assert_close(
                system.predict(clips.row(index)).scores_BK[0], together[index], atol=1e-5, rtol=1e-5
            )
    assert together.shape == (len(batch.key), 3)
    if batch.number_BT is not None:  # of objects: a video may show several classes
        assert ((together >= 0) & (together <= 1)).all()
    else:
        torch.testing.assert_close(together.sum(-1), torch.ones(len(batch.key)))


@pytest.mark.parametrize("name", FITS)
def test_saved_model_predicts_what_the_stage_evaluated(chain, name):
    from training.core.evaluate import Predictions, evaluate

    resolved = resolve(StageRef.parse(name), chain)
    system = system_of(chain, name)
    split = resolved.stage.split
    loader = open_loader(resolved.paths.shards, resolved.config.data, split=split, train=False, seed=3)
    result = evaluate(system, loader, split=split, device=torch.device("cpu"))
    loader.close()
    stored = Predictions.load(resolved.paths.predictions)
    torch.testing.assert_close(torch.from_numpy(result.predictions.scores), torch.from_numpy(stored.scores))


@pytest.mark.parametrize("name", FITS)
def test_cost_and_parameters_are_positive(chain, name):
    system = system_of(chain, name)
    assert count_params(system) > 0
    for row in system.cost().values():
        assert row.gmac > 0
        assert row.gflop == 2 * row.gmac
        assert row.params > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_a_family_have_a_cost(family):
    for build in load_family(family).MODELS.values():
        row = build({})
        assert row.gmac > 0
        assert row.per in ("view", "video", "frame", "segment")
