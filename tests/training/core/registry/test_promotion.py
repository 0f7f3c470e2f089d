"""Promotion against a real store; the versions carry fabricated evaluations in the documented format."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from infra.settings import Settings
from training.core.gate import RoundTrip
from training.core.modelcard import Facts
from training.core.promotion import promote
from training.core.registration import Registry, RegistryError, Version
from training.core.tracking import download_artifacts, list_artifacts, start_run

CLASSES = ("a", "b", "c", "d")
GOOD = RoundTrip(4, 0.0, True)


@pytest.fixture(scope="module")
def settings(tmp_path_factory, empty_store) -> Settings:
    settings = Settings(root=tmp_path_factory.mktemp("project"), mlflow_tracking_uri=None)
    (settings.root / "params").mkdir()
    shutil.copy(empty_store, settings.root)
    return settings


@pytest.fixture
def dataset(request) -> str:
    """A data set per test, so that tests share the store but no model."""
    return "d" + "".join(c if c.isalnum() else "_" for c in request.node.name.lower())


def add(
    settings: Settings,
    dataset: str,
    right: float,
    *,
    clips: int = 400,
    digest: str = "d1",
    gmac: float = 1.0,
    alias: str | None = "challenger",
    round_trip: RoundTrip = GOOD,
    evaluation: bool = True,
) -> Version:
    """Register a version whose evaluation was right for a share of the clips."""
    label = np.arange(clips) % 4
    correct = (np.arange(clips) // 4) % 10 < round(10 * right)
    scores = np.full((clips, 4), 0.1, np.float32)
    scores[np.arange(clips), np.where(correct, label, (label + 1) % 4)] = 0.7
    name = f"adafocus-{dataset}"
    facts = Facts(
        name=name,
        subject=f"adafocus_finetune@{dataset}",
        evaluation=f"adafocus_eval@{dataset}",
        dataset=dataset,
        split="test",
        model_digest="m" * 64,
        model_bytes=1000,
        data_digest="all",
        eval_data_digest=digest,
        spec_digest="spec",
        encoder="x264 1",
        representation="mp4",
        classes=4,
        evaluated=clips,
        in_shards=clips,
        listed=clips + 3,
        rejects={"corrupt": 3},
        dvc={},
        metrics={"test/top1": right, "test/gmac_per_video": gmac},
        top1=right,
        interval=(right - 0.05, right + 0.05),
        majority=0.25,
        gmac=gmac,
        params=1e6,
        arms={},
        hardware="",
        versions={},
        git_commit="",
        git_dirty="",
        flow_run_id="",
        training_run_id="",
        evaluation_run_id="",
        registered="",
        round_trip=round_trip,
    )
    run = start_run(settings, experiment="adafocus", name=f"register {name}", tags={"kind": "register"}, params={})
    folder = settings.root / "fabricated" / run.run_id / "evaluation"
    folder.mkdir(parents=True)
    np.savez(
        folder / "predictions.npz",
        key=np.array([f"k{i:04d}" for i in range(clips)]),
        label=label,
        scores=scores,
        classes=np.array(CLASSES),
    )
    (folder / "facts.json").write_text(facts.model_dump_json())
    if evaluation:
        run.log_artifacts(folder, "evaluation")
    run.log_text("weights", "model/weights")
    run.finish()
    registry = Registry.open(settings)
    version = registry.create(name, run, {"dataset": dataset})
    if alias:
        registry.set_alias(version, alias)
    return version


def champion(settings: Settings, dataset: str) -> str | None:
    version = Registry.open(settings).by_alias(f"adafocus-{dataset}", "champion")
    return version.version if version else None


def test_first_champion_then_better_then_worse(settings, dataset):
    add(settings, dataset, 0.5)
    first = promote(settings, dataset)
    assert first.report.decision == "passed"
    assert champion(settings, dataset) == "1"
    assert Registry.open(settings).by_alias(f"adafocus-{dataset}", "challenger") is None
    add(settings, dataset, 0.8)
    assert promote(settings, dataset).champion.version == "2"
    worse = add(settings, dataset, 0.3)
    outcome = promote(settings, dataset)
    assert outcome.refused
    assert champion(settings, dataset) == "2"
    registry = Registry.open(settings)
    assert registry.by_alias(f"adafocus-{dataset}", "challenger").version == worse.version
    assert registry.version(worse.name, worse.version).gate == "failed"
    assert registry.version(worse.name, "2").gate == "passed"


def test_promoting_again_changes_nothing(settings, dataset):
    add(settings, dataset, 0.5)
    promote(settings, dataset)
    again = promote(settings, dataset)
    assert (again.judged, again.report, again.champion.version) == (None, None, "1")
    assert "no challenger" in again.text
    add(settings, dataset, 0.2)
    first = promote(settings, dataset)
    registry = Registry.open(settings)
    registry.describe(first.judged, "a person's words")
    again = promote(settings, dataset)
    assert again.report.text() == first.report.text()
    assert again.judged.description == "a person's words"  # the same result is not written twice
    params = settings.root / "params" / f"{dataset}.yaml"
    params.write_text("gate: {max_gmac: 0.5}\n")
    promote(settings, dataset)
    assert "## Gate" in registry.version(first.name, "2").description


def test_other_evaluation_data_is_refused(settings, dataset):
    add(settings, dataset, 0.4)
    promote(settings, dataset)
    add(settings, dataset, 0.9, digest="d2")
    outcome = promote(settings, dataset)
    assert outcome.refused
    assert "same evaluation data" in outcome.report.reason
    assert "--reevaluate" in outcome.report.reason
    assert champion(settings, dataset) == "1"
    # Evaluating the champion again needs shards, and there are none here.
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        promote(settings, dataset, reevaluate=True)
    # The same predictions on the same data pass.
    add(settings, dataset, 0.9)
    # ... and there is nothing to evaluate again, whether it was allowed or not.
    outcome = promote(settings, dataset, reevaluate=True)
    assert outcome.champion.version == "3"
    assert "champion re-evaluated" not in outcome.report.text()


def test_budget_of_the_params_file(settings, dataset):
    params = settings.root / "params" / f"{dataset}.yaml"
    params.write_text("gate: {max_gmac: 0.5}\n")
    add(settings, dataset, 0.9, gmac=0.6)
    assert promote(settings, dataset).refused
    assert champion(settings, dataset) is None
    params.write_text("gate: {max_gmac: 0.7}\n")
    assert not promote(settings, dataset).refused
    assert champion(settings, dataset) == "1"


def test_model_that_does_not_load_elsewhere_is_refused(settings, dataset):
    add(settings, dataset, 0.9, round_trip=RoundTrip(4, float("inf"), False, "No module named 'x'"))
    outcome = promote(settings, dataset)
    assert outcome.refused
    assert "No module named 'x'" in outcome.report.reason


def test_small_test_set_needs_a_person(settings, dataset):
    add(settings, dataset, 0.9, clips=60)
    outcome = promote(settings, dataset)
    assert outcome.report.decision == "underpowered"
    assert outcome.refused
    assert "--accept" in outcome.text
    accepted = promote(settings, dataset, accept=True)
    assert accepted.champion.version == "1"
    assert accepted.champion.gate == "accepted"
    # Accepting is no way round a failed check.
    add(settings, dataset, 0.1, clips=60)
    assert promote(settings, dataset, accept=True).refused
    assert champion(settings, dataset) == "1"


def test_aliases_set_by_hand_are_honoured(settings, dataset):
    add(settings, dataset, 0.5, alias="champion")  # a person made it champion: served, shown as not gated
    outcome = promote(settings, dataset)
    assert outcome.report is None
    assert "not gated" in outcome.text
    add(settings, dataset, 0.2)
    better = add(settings, dataset, 0.8, alias=None)
    Registry.open(settings).set_alias(better, "challenger")  # moved by hand, from version 2 to 3
    outcome = promote(settings, dataset)
    assert outcome.judged.version == "3"
    assert outcome.champion.version == "3"


def test_result_is_written_down(settings, dataset):
    add(settings, dataset, 0.5)
    outcome = promote(settings, dataset)
    version = outcome.judged
    assert version.tags["gate"] == "passed"
    assert version.tags["gate_against"] == "none"
    assert sorted(list_artifacts(settings, version.run_id, "gate")) == [
        "gate/config.json",
        "gate/report.json",
        "gate/report.txt",
        "gate/table.json",
    ]
    path = download_artifacts(settings, version.run_id, "gate/table.json", Path(settings.root) / "down" / dataset)
    table = json.loads(path.read_text())
    assert table["columns"] == ["check", "value", "bound", "pass"]
    assert len(table["data"]) == len(outcome.report.rows)
    assert "evaluated on 400 of 403 listed" in version.description
    assert "| beats the majority class |" in version.description
    assert "git not recorded" in version.description


def test_nothing_to_judge_and_versions_without_evaluation(settings, dataset):
    with pytest.raises(RegistryError, match=f"no registered model 'adafocus-{dataset}'"):
        promote(settings, dataset)
    add(settings, dataset, 0.5, alias=None)
    assert "neither challenger nor champion" in promote(settings, dataset).text
    add(settings, dataset, 0.5, evaluation=False)
    with pytest.raises(RegistryError, match="has no evaluation beside it"):
        promote(settings, dataset)
    assert champion(settings, dataset) is None
