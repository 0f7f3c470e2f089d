"""The search as a stage: the supernet it needs, what workers score, and what it leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from training.backbones.movinet_layout import architecture
from training.core.checkpoint import save_model
from training.core.config import ConfigError, validate
from training.core.stage import ScoreInputs, StageInputs
from training.core.trials import Outcome
from training.movinet.config_search import FoundConfig, NasStageConfig, SupernetStageConfig
from training.movinet.search_stage import FAMILY, FOUND, SUPERNET, SupernetScorer, SupernetSearch
from training.movinet.supernet_system import SupernetSystem

PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.tiny.yaml").read_text())
CLASSES = ("one", "two", "three")


def data() -> dict[str, Any]:
    return PARAMS["movinet_data"] | {"decoder": "pyav"}


def search_config(**changes: Any) -> NasStageConfig:
    values = PARAMS["movinet_search"] | {"space": PARAMS["movinet_space"], "data": data()}
    return validate(
        NasStageConfig, values | {"engine": "evolution", "control": "none", "seed": "0"} | changes, "search"
    )


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet with scales that are not 0, so that its members differ."""
    values = PARAMS["movinet_supernet"] | {"space": PARAMS["movinet_space"], "data": data()}
    config = validate(SupernetStageConfig, values, "supernet")
    torch.manual_seed(0)
    system = SupernetSystem(config, config.data, CLASSES)
    for name, parameter in system.named_parameters():
        if name.endswith(".scale"):
            parameter.data.fill_(0.5)
    folder = tmp_path_factory.mktemp("supernet") / "model"
    save_model(
        folder, system.state_dict(), stage=SUPERNET, dataset="tiny", config=config.model_dump(mode="json"),
        classes=CLASSES, decoder="pyav",
    )  # fmt: skip
    return folder


def search_of(supernet: Path, **changes: Any) -> SupernetSearch:
    return SupernetSearch(StageInputs(search_config(**changes), CLASSES, {SUPERNET: supernet}))


def scorer_of(supernet: Path, shards: Path, **changes: Any) -> SupernetScorer:
    config = search_config(**changes)
    return SupernetScorer(ScoreInputs(config, CLASSES, {SUPERNET: supernet}, shards, shards, "cpu", False))


def run(search: SupernetSearch, scorer: SupernetScorer) -> None:
    while (trial := search.ask()) is not None:
        metrics = dict(scorer.score(trial))
        search.tell(Outcome(trial, "finished", 0, metrics["val/top1"], metrics, []))


def test_candidates_are_scored_alike_whatever_came_before(supernet: Path, tiny_shards: Path) -> None:
    search, scorer = search_of(supernet), scorer_of(supernet, tiny_shards)
    trials = [trial for trial in (search.ask() for _ in range(3)) if trial is not None]
    first = [dict(scorer.score(trial)) for trial in trials]
    again = [dict(scorer_of(supernet, tiny_shards).score(trial)) for trial in reversed(trials)]
    assert first == list(reversed(again))
    assert len({metrics["val/nll"] for metrics in first}) == len(first)


def test_the_untrained_control_does_not_see_the_weights(supernet: Path, tiny_shards: Path) -> None:
    trial = search_of(supernet).ask()
    assert trial is not None
    trained = dict(scorer_of(supernet, tiny_shards).score(trial))
    untrained = dict(scorer_of(supernet, tiny_shards, control="untrained").score(trial))
    assert untrained["val/nll"] != trained["val/nll"]
    assert dict(scorer_of(supernet, tiny_shards, control="untrained").score(trial)) == untrained


def test_clips_are_of_all_classes(supernet: Path, tiny_shards: Path) -> None:
    """In the order of the listing the first clips would be of one class, and the statistics with them."""
    scorer = scorer_of(supernet, tiny_shards, score_clips=5, calibration_clips=18)
    for batches in (scorer._calibration, scorer._scored):
        assert len({int(label) for batch in batches for label in batch.label_B}) == 3
    keys = [key for batch in scorer._scored for key in batch.key]
    assert len(keys) == len(set(keys)) == 5
    everything = scorer_of(supernet, tiny_shards)._scored
    assert sum(len(batch.key) for batch in everything) == 10


def test_fewer_clips_score_differently(supernet: Path, tiny_shards: Path) -> None:
    trial = search_of(supernet).ask()
    assert trial is not None
    everything = scorer_of(supernet, tiny_shards).score(trial)
    some = scorer_of(supernet, tiny_shards, score_clips=1).score(trial)
    assert some["val/nll"] != everything["val/nll"]


def test_what_is_found_is_an_entry_that_trains_as_a_stage(supernet: Path, tiny_shards: Path) -> None:
    search = search_of(supernet)
    run(search, scorer_of(supernet, tiny_shards))
    files = search.files()
    assert set(files) == {FOUND, FAMILY}
    found = yaml.safe_load(files[FOUND])
    layout = architecture(found["architecture"])
    values = {
        **PARAMS["movinet_found"], "model": PARAMS["movinet_model"], "data": data(), "fit": PARAMS["movinet_fit"],
        "engine": "evolution", "control": "none", "seed": "0", "found": found,
    }  # fmt: skip
    config = validate(FoundConfig, values, "found")
    assert config.model.layout() == layout
    assert validate(FoundConfig, config.model_dump(mode="json"), "as a saved model has it") == config
    assert abs(found["facts"]["cost_ratio"] - 1) <= PARAMS["movinet_search"]["target"]["tolerance"]
    (double,) = yaml.safe_load(files[FAMILY])
    assert double["gmac"] == pytest.approx(2 * found["facts"]["gmac"], rel=0.06)
    assert architecture(double["architecture"]) != layout or double["frames"] != 4


def test_no_family_where_none_is_wanted(supernet: Path, tiny_shards: Path) -> None:
    search = search_of(supernet, family=[])
    run(search, scorer_of(supernet, tiny_shards))
    assert yaml.safe_load(search.files()[FAMILY]) == []


def test_a_supernet_of_another_space_is_refused(supernet: Path) -> None:
    other = PARAMS["movinet_space"] | {"expansions": [1.5]}
    with pytest.raises(ConfigError, match="another space"):
        search_of(supernet, space=other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "annealing"}, "engine"),
        ({"control": "placebo"}, "control"),
        ({"calibration_clips": 1}, "calibration_clips"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search_config(**change)
