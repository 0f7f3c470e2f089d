"""`promote --reevaluate` with real models, two versions of real shards, and a real store."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from training.core.evaluate import Predictions
from training.core.promotion import promote
from training.core.registration import Registry, RegistryError, register
from training.core.registry_cli import app
from training.core.tracking import download_artifacts

# Whichever test comes first waits for four models to be trained, evaluated and registered.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NAME, OLD, NEW = "adafocus-demo", "1", "4"


@dataclass(frozen=True)
class Grown:
    """A data set whose test clips were replaced between two registrations."""

    project: Any
    expected: Path
    """Folder of the evaluation stage's results for version 1 on the new clips."""
    old_digest: str
    new_digest: str

    @property
    def fresh(self) -> Path:
        """Where the store has what the re-evaluation made."""
        run = Registry.open(self.project.settings).version(NAME, NEW).run_id
        return self.project.root / "mlruns" / "adafocus" / run / "artifacts" / "gate" / "champion_reevaluated"

    def champion(self) -> str:
        return Registry.open(self.project.settings).by_alias(NAME, "champion").version


@pytest.fixture(scope="module")
def trained(three_models) -> Grown:
    """Version 1 (half of the clips wrong) registered with the old clips, version 4 (all right) with the new ones."""
    project = three_models.project
    old_digest = project.index.data_digest("test")
    assert project.train(swapped=2) == three_models.versions[0].tags["model_digest"]
    project.write_shards(1)
    project.evaluate()  # what the stage itself says of version 1 on the new clips; never registered
    expected = project.root / "expected"
    shutil.copytree(project.settings.runs / "demo" / "adafocus_eval", expected)
    project.train()
    project.evaluate()
    version = register(project.settings, three_models.ref)
    assert version.version == NEW
    return Grown(project, expected, old_digest, project.index.data_digest("test"))


@pytest.fixture
def grown(trained: Grown) -> Grown:
    """The same before every test: version 1 is champion, version 4 challenger, the new clips are on disk."""
    registry = Registry.open(trained.project.settings)
    registry.set_alias(registry.version(NAME, OLD), "champion")
    registry.set_alias(registry.version(NAME, NEW), "challenger")
    trained.project.write_shards(1)
    return trained


@pytest.fixture
def fovea(grown, monkeypatch):
    """Run a command in the project."""
    monkeypatch.setenv("FOVEA_ROOT", str(grown.project.root))
    monkeypatch.setenv("FOVEA_DEVICE", "cpu")
    monkeypatch.delenv("FOVEA_MLFLOW_TRACKING_URI", raising=False)
    return lambda *words: CliRunner().invoke(app, list(words))


def snapshot(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_mtime_ns) for path in folder.glob("*"))


def test_champion_is_evaluated_as_the_stage_does_it(grown, tmp_path):
    settings = grown.project.settings
    registry = Registry.open(settings)
    own = registry.fetch_evaluation(registry.version(NAME, OLD), tmp_path / "before")
    outcome = promote(settings, "demo", reevaluate=True)
    assert outcome.report.decision == "passed"
    assert grown.champion() == NEW

    fresh = download_artifacts(settings, outcome.judged.run_id, "gate/champion_reevaluated", tmp_path)
    made, expected = (Predictions.load(folder / "predictions.npz") for folder in (fresh, grown.expected))
    assert made.key.tolist() == expected.key.tolist()
    assert made.classes == expected.classes
    np.testing.assert_array_equal(made.label, expected.label)
    np.testing.assert_allclose(made.scores, expected.scores, atol=1e-6)
    metrics, stage_metrics = (json.loads((f / "metrics.json").read_text()) for f in (fresh, grown.expected))
    assert metrics["test/top1"] == 0.5
    assert metrics == pytest.approx({name: stage_metrics[name] for name in metrics}, abs=1e-6)
    # Control: on the old clips it said something else, and that is still what its own run holds.
    before = Predictions.load(own / "predictions.npz")
    assert np.abs(before.scores - made.scores).max() > 1e-4
    kept = registry.fetch_evaluation(registry.version(NAME, OLD), tmp_path / "after")
    for path in own.iterdir():
        assert (kept / path.name).read_bytes() == path.read_bytes()


def test_report_and_card_say_so(grown, tmp_path):
    settings = grown.project.settings
    outcome = promote(settings, "demo", reevaluate=True)
    said = f"{NAME}/{OLD} on data {grown.new_digest[:12]}; its registered evaluation was on {grown.old_digest[:12]}"
    assert f"champion re-evaluated: {said}" in outcome.report.text()
    assert f"| champion re-evaluated | {said} |" in outcome.judged.description
    for name in ("gate/report.txt", "gate/report.json", "gate/table.json", "model_card.md"):
        assert said in download_artifacts(settings, outcome.judged.run_id, name, tmp_path / "down").read_text()
    source = json.loads((grown.fresh / "champion.json").read_text())
    assert source["champion"] == f"{NAME}/{OLD}"
    assert (source["eval_data_digest"], source["registered_eval_data_digest"]) == (grown.new_digest, grown.old_digest)


def test_without_the_flag_it_is_refused_and_the_flag_is_named(grown, fovea):
    before = snapshot(grown.fresh)
    result = fovea("promote", "demo")
    assert result.exit_code == 0, result.output
    assert f"[ no] same evaluation data: {grown.new_digest[:12]} and {grown.old_digest[:12]}" in result.stdout
    assert "`fovea promote --reevaluate`" in result.stdout
    assert grown.champion() == OLD
    assert snapshot(grown.fresh) == before
    # With it the same command promotes.
    result = fovea("promote", "demo", "--reevaluate")
    assert result.exit_code == 0, result.output
    assert f"evaluating {NAME}/{OLD} again, on 120 clips" in result.stderr
    assert grown.champion() == NEW
    assert snapshot(grown.fresh) != before


def test_shards_that_are_not_the_challengers_are_refused(grown, fovea):
    grown.project.write_shards(2)
    present = grown.project.index.data_digest("test")
    before = snapshot(grown.fresh)
    with pytest.raises(RegistryError) as caught:
        promote(grown.project.settings, "demo", reevaluate=True)
    assert grown.new_digest[:12] in str(caught.value)
    assert present[:12] in str(caught.value)
    assert grown.champion() == OLD
    assert snapshot(grown.fresh) == before
    result = fovea("promote", "demo", "--reevaluate")
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines() == [f"error: {caught.value}"]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("red", "green", "blue", "violet"), "differ: grey only in the model; violet only in the shards"),
        (("red", "blue", "green", "grey"), "order is red, green, blue, grey, the shards' red, blue, green, grey"),
    ],
)
def test_other_classes_are_refused_by_name(grown, classes, said):
    """The list alone was changed: the clips, and with them the digest, are the same."""
    path = grown.project.settings.shards / "demo" / "index.json"
    path.write_text(grown.project.index.model_copy(update={"classes": classes}).model_dump_json())
    with pytest.raises(RegistryError, match=said):
        promote(grown.project.settings, "demo", reevaluate=True)
    assert grown.champion() == OLD


def test_damaged_shards_are_one_line(grown, fovea):
    tar = grown.project.settings.shards / "demo" / "main-test-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    result = fovea("promote", "demo", "--reevaluate")
    assert result.exit_code == 1
    assert "main-test-00000.tar has" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output
    assert grown.champion() == OLD
