import json

import numpy as np
import pytest

from training.core.config import ConfigError
from training.core.modelcard import read_facts
from training.core.registration import Registry, RegistryError, evaluations, find_model_run, register
from training.core.stage import StageRef
from training.core.tracking import read_run

# Whichever test comes first waits for the session's project to be trained, evaluated and registered.
pytestmark = pytest.mark.timeout(300)


def test_version_carries_its_evaluation_and_says_where_it_comes_from(registered, tmp_path):
    registry = Registry.open(registered.settings)
    (version,) = registry.versions("adafocus-demo")
    assert version.aliases == ("challenger",)
    assert version.gate == "not gated"
    folder = registry.fetch_evaluation(version, tmp_path)
    facts = read_facts(folder)
    with np.load(folder / "predictions.npz") as stored:
        assert stored["scores"].shape == (120, 4)
    assert (facts.evaluated, facts.in_shards, facts.listed) == (120, 120, 122)
    assert facts.rejects == {"corrupt": 2}
    assert facts.top1 == 1.0
    assert facts.majority == 0.25
    assert facts.gmac == facts.metrics["test/gmac_per_video"]
    assert facts.arms["random"].gmac is not None
    assert facts.hardware == "test machine"
    assert facts.flow_run_id == "flow-1"
    # Lineage: by the digest of the model, not by what a file says.
    training = find_model_run(registered.settings, facts.model_digest)
    assert training is not None
    assert facts.training_run_id == training.run_id == version.tags["training_run_id"]
    assert read_run(registered.settings, facts.evaluation_run_id).name == "adafocus_eval@demo"


def test_stored_model_gave_the_same_predictions_elsewhere(registered, tmp_path):
    registry = Registry.open(registered.settings)
    (version,) = registry.versions("adafocus-demo")
    result = read_facts(registry.fetch_evaluation(version, tmp_path)).round_trip
    assert result.error == ""
    assert result.clips == 4
    assert result.same_class
    assert result.max_difference < 1e-5


def test_registering_again_changes_nothing(registered):
    version = register(registered.settings, StageRef.parse("adafocus_eval@demo"))
    assert version.version == "1"
    assert len(Registry.open(registered.settings).versions("adafocus-demo")) == 1


def test_evaluations_with_outputs_are_found(registered):
    assert evaluations(registered.settings, "demo") == [("adafocus", StageRef("adafocus_eval", "demo"))]
    assert evaluations(registered.settings, "other") == []


@pytest.mark.parametrize(
    ("stage", "error", "said"),
    [
        ("adafocus_finetune@demo", ConfigError, "not an evaluation"),
        ("adafocus_evil@demo", ConfigError, "unknown stage"),
        ("adafocus_eval@other", FileNotFoundError, "metrics.json is missing"),
    ],
)
def test_what_cannot_be_registered_is_refused(registered, stage, error, said):
    with pytest.raises(error, match=said):
        register(registered.settings, StageRef.parse(stage))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "registered: adafocus-demo"),
        ("adafocus-demo/7", "no version 7"),
        ("adafocus-demo@champion", "has no alias 'champion'"),
        ("adafocus-demo", "has no alias 'champion'"),
    ],
)
def test_unknown_names_say_what_there_is(registered, name, said):
    with pytest.raises(RegistryError, match=said):
        Registry.open(registered.settings).resolve(name)


def test_every_way_to_name_a_version(registered):
    registry = Registry.open(registered.settings)
    for name in ("adafocus-demo/1", "models:/adafocus-demo/1", "adafocus-demo@challenger"):
        assert str(registry.resolve(name)) == "adafocus-demo/1"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_models_through_register_and_promote(three_models):
    """Weak, strong, worse: the whole way with real files, the alias ends at the strong one."""
    weak, strong, worse = three_models.versions
    first, better, refused = three_models.outcomes
    assert [version.version for version in (weak, strong, worse)] == ["1", "2", "3"]
    assert first.champion.version == "1"
    assert better.champion.version == "2"
    assert better.report.champion == "adafocus-demo/1"
    assert refused.refused
    assert refused.judged.version == worse.version
    assert refused.judged.gate == "failed"
    assert three_models.champion.version == "2"
    # Registering what is already there does not move the alias back, whatever a person did with it.
    assert three_models.again.version == worse.version
    assert three_models.challenger.version == "1"


def test_killed_between_version_and_alias_is_completed_by_the_next_call(registered):
    registry = Registry.open(registered.settings)
    version = registry.version("adafocus-demo", "1")
    registry.drop_alias("adafocus-demo", "challenger")
    registry._mlflow.delete_model_version_tag(version.name, version.version, "announced")
    assert register(registered.settings, StageRef.parse("adafocus_eval@demo")).aliases == ("challenger",)
    # Negative control: complete, then taken away by a person: it stays away.
    registry.drop_alias("adafocus-demo", "challenger")
    assert register(registered.settings, StageRef.parse("adafocus_eval@demo")).aliases == ()
    registry.set_alias(version, "challenger")


def test_run_json_is_only_a_hint(registered):
    """A run id in run.json that belongs to another run is not believed."""
    path = registered.settings.runs / "demo" / "adafocus_eval" / "run.json"
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"run_id": "f" * 32}))
    try:
        from training.core.registration import _evaluation_run, read_evaluated
        from training.registry import all_stages

        ref = StageRef.parse("adafocus_eval@demo")
        evaluated = read_evaluated(registered.settings, ref, all_stages()[ref.stage], "adafocus")
        run = _evaluation_run(registered.settings, evaluated)
    finally:
        path.write_text(kept)
    assert run.run_id == json.loads(kept)["run_id"]
