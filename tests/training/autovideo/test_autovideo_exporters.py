"""Exported networks compute the same, say how to feed them, and what cannot be exported is refused."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from infra.settings import Settings
from training.autovideo import catalogue as catalogue_module
from training.autovideo.evaluation.extractors import ExtractPredictions
from training.autovideo.exporters import ExportConfig, Onnx, OnnxConfig, TorchExport
from training.autovideo.exporting import ExportError, check_equal, examples, network_of, score_rule
from training.autovideo.primitive import Port
from training.autovideo.values import Context, Model, Report
from training.core.checkpoint import load_model, model_digest, save_model
from training.core.config import ConfigError, validate
from training.core.stage import StageInputs
from training.registry import all_stages

PARAMS = Path(__file__).parents[2] / "params.tiny.yaml"
CLASSES = ("jump", "7", "wave arms")


def make_model(folder: Path, stage_name: str, fields: dict[str, object] | None = None, **data: object) -> Model:
    """Write a model folder with random weights."""
    stage, values = all_stages()[stage_name], yaml.safe_load(PARAMS.read_text())
    section = {**values.get(stage_name, {}), **{name: values[shared] for name, shared in stage.shared.items()}}
    section |= {"data": {**section["data"], **data}, **(fields or {})}
    config = validate(stage.config, section, stage_name)
    torch.manual_seed(0)
    system = stage.build(StageInputs(config=config, classes=CLASSES, upstream={}))
    save_model(
        folder, system.export_state(), stage=stage_name, dataset="tiny", config=config.model_dump(mode="json"),
        classes=CLASSES, decoder="pyav",
    )  # fmt: skip
    return Model(folder, stage_name, model_digest(folder), None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("models") / "net", "resnet_rs_train", eval_clips=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A net that torch.export is quick with."""
    return make_model(tmp_path_factory.mktemp("models") / "small", "movinet_train", eval_clips=2)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context.alone("file", 0, tmp_path / "work", Settings(root=tmp_path))


def export(model: Model, context: Context, **settings: object) -> Path:
    step = TorchExport(ExportConfig(**settings))  # type: ignore[arg-type]
    report = step.produce({"model": model}, None, context)["report"]
    assert isinstance(report, Report)
    return report.folder


def test_the_file_answers_as_the_model_does(small, context):
    """Read as a stranger would: network, preprocessing and labels from the files alone."""
    folder = export(small, context)
    assert {path.name for path in folder.iterdir()} == {
        "network.pt2", "preprocessing.json", "labels.json", "export.json",
    }  # fmt: skip
    assert json.loads((folder / "labels.json").read_text()) == list(CLASSES)
    facts = json.loads((folder / "export.json").read_text())
    assert facts["sha256"] == hashlib.sha256((folder / "network.pt2").read_bytes()).hexdigest()
    assert facts["largest_difference"] <= 1e-4
    before = json.loads((folder / "preprocessing.json").read_text())
    assert before["view"] == {"frames": 4, "height": 32, "width": 32}
    assert (before["short_side"], before["mean"], before["clips_per_video"]) == (36, [0.0, 0.0, 0.0], 2)
    assert before["scores"].startswith("softmax of each view's logits")
    network = torch.export.load(folder / "network.pt2").module()
    loaded = load_model(small.folder)
    own, _ = network_of(loaded, "")
    for batch in (1, 3):
        video = torch.randn(batch, 3, 4, 32, 32)
        with torch.inference_mode():
            assert torch.allclose(network(video), own(video), atol=1e-5)
            assert not torch.allclose(network(video), own(video + 1), atol=1e-5)
    assert not list(context.work.glob(".tmp-*"))


@pytest.mark.slow
def test_a_fixed_batch_takes_no_other(small, context):
    network = torch.export.load(export(small, context, batch=1) / "network.pt2").module()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 3)
        with pytest.raises(AssertionError):
            network(torch.zeros(2, 3, 4, 32, 32))


def test_a_file_that_computes_something_else_is_refused(small):
    network, shape = network_of(load_model(small.folder), "")
    inputs = examples(shape, None)
    assert check_equal(network, network, inputs, 1e-4) == 0.0
    with pytest.raises(ExportError, match="differ by"):
        check_equal(lambda video: network(video) * 1.01, network, inputs, 1e-4)
    with pytest.raises(ExportError, match="differ by nan"):
        check_equal(lambda video: network(video) * torch.nan, network, inputs, 1e-4)
    with pytest.raises(ExportError, match="returns"):
        check_equal(lambda video: network(video)[:, :2], network, inputs, 1e-4)


def test_the_rule_of_the_scores_is_seen_and_not_assumed(model):
    loaded = load_model(model.folder)
    assert score_rule(loaded, "step").startswith("softmax of each view's logits, then the mean")
    loaded.system.get_submodule("net").fc.bias.data += 0.5  # still the same network on both sides
    assert score_rule(loaded, "step").startswith("softmax")
    loaded.system.view_scores = lambda batch: torch.full((1, 2, 3), 1 / 3)  # type: ignore[assignment,operator]
    with pytest.raises(ConfigError, match="in a way of its own"):
        score_rule(loaded, "step")


def test_systems_that_are_no_single_network_are_refused(tmp_path, context):
    with pytest.raises(ConfigError, match=r"step file: a model of stage adafocus_pretrain has 0 networks"):
        export(make_model(tmp_path / "glance", "adafocus_pretrain", {"net": "glance"}), context)
    assert not (context.work / "export").exists()
    assert not list(context.work.glob(".tmp-*"))


@pytest.mark.skipif(find_spec("onnx") is not None, reason="the packages are installed")
def test_onnx_says_what_to_install(model, context):
    with pytest.raises(ConfigError, match=r"pip install .*onnx.*exporter/torch_export needs nothing more"):
        Onnx(OnnxConfig()).produce({"model": model}, None, context)


def test_ports(monkeypatch):
    monkeypatch.setattr(
        catalogue_module, "MODULES", ("training.autovideo.exporters", "training.autovideo.evaluation.extractors")
    )
    catalogue_module.catalogue.cache_clear()
    try:
        found = catalogue_module.catalogue()
        for name in ("exporter/torch_export", "exporter/onnx"):
            assert found[name].kind == "exporter"
            assert found[name].outputs == {"report": Port.REPORT}
        assert found["extractor/predictions"] is ExtractPredictions
        assert ExtractPredictions.inputs["clips"].optional
        assert not ExtractPredictions.inputs["model"].optional
    finally:
        catalogue_module.catalogue.cache_clear()
