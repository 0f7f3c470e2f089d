"""Search at constant cost: what is trained, and that nothing else ever is."""

from typing import Any

import pytest
import torch

from training.core.config import ConfigError, apply_overrides, validate
from training.core.cost import count_macs
from training.core.trials import Outcome
from training.resnet_rs.config import SearchConfig
from training.resnet_rs.search import ScalingSearch, cost_gmac, trial_config
from training.resnet_rs.system import ResNetRS


def config(values: dict[str, Any], *overrides: str) -> SearchConfig:
    return validate(SearchConfig, apply_overrides(values, list(overrides)), "search")


def asked(search: ScalingSearch) -> list[Any]:
    trials = []
    while (trial := search.ask()) is not None:
        trials.append(trial)
    return trials


WIDE = (
    "space.depth=[26, 38]", "space.frames=[4, 8, 12, 16, 24]", "space.size=[32, 48, 64, 80, 96]",
    "levels=[0.01, 0.03]", "tolerance=0.05", "trials_per_level=3",
)  # fmt: skip


def test_every_trial_costs_its_level(search_values: dict[str, Any]) -> None:
    search = ScalingSearch(config(search_values, *WIDE), num_classes=3)
    trials = asked(search)
    assert search.total == len(trials) == sum(map(len, search.plan.chosen.values()))
    assert {trial.group for trial in trials} == {"0.01 GMAC", "0.03 GMAC"}
    assert len({trial.name for trial in trials}) == len(trials)
    for trial in trials:
        level = float(trial.facts["level"])
        assert abs(float(trial.facts["gmac"]) / level - 1) <= 0.05
        # Not only by the formula: the net that would be trained is built and counted.
        net = trial.config["model"]
        shape = (1, 3, trial.config["data"]["num_frames"], *[trial.config["data"]["transform"]["size"]] * 2)
        system = ResNetRS(
            search.config.model.model_copy(update={k: net[k] for k in ("depth", "width", "pool_t")}),
            search.config.data,
            ("a", "b", "c"),
        )
        assert count_macs(system.net, torch.empty(shape, device="meta")) / 1e9 == pytest.approx(trial.facts["gmac"])
    assert asked(search) == []


def test_candidates_of_no_level_are_refused_before_any_training(search_values: dict[str, Any]) -> None:
    settings = config(search_values, *WIDE)
    plan = ScalingSearch(settings, 3).plan
    combinations = 2 * 5 * 5 * len(settings.space.pool_t)
    assert plan.refused == combinations - sum(plan.affordable.values())
    assert plan.refused > combinations / 2
    dear = [c for chosen in plan.chosen.values() for c in chosen if cost_gmac(settings, c, 3) > 0.03 * 1.05]
    assert dear == []
    # Control: with a level at their cost the dear ones are trained.
    more = ScalingSearch(config(search_values, *WIDE[:3], "levels=[0.1]", "tolerance=0.3"), 3).plan
    assert any(cost_gmac(settings, c, 3) > 0.03 * 1.05 for chosen in more.chosen.values() for c in chosen)


def test_a_level_without_candidates_is_an_error_that_names_the_nearest(search_values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"costs 5 GMAC ± 5%; the nearest are d\d+-t\d+-s\d+"):
        ScalingSearch(config(search_values, *WIDE[:3], "levels=[0.01, 5]", "tolerance=0.05"), 3)


def test_the_draw_depends_on_its_seed_only(search_values: dict[str, Any]) -> None:
    first, again = (ScalingSearch(config(search_values, *WIDE), 3).plan for _ in range(2))
    assert first == again
    draws = {ScalingSearch(config(search_values, *WIDE, f"seed={seed}"), 3).plan.chosen[0.01] for seed in range(6)}
    assert len(draws) > 1
    assert all(len(draw) == len(set(draw)) for draw in draws)


def test_levels_take_turns(search_values: dict[str, Any]) -> None:
    trials = asked(ScalingSearch(config(search_values, *WIDE), 3))
    assert trials[0].group != trials[1].group


def test_a_trial_is_the_recipe_with_another_net(search_values: dict[str, Any]) -> None:
    settings = config(search_values, *WIDE)
    search = ScalingSearch(settings, 3)
    candidate = search.plan.chosen[0.03][0]
    trained = trial_config(settings, candidate)
    assert trained.fit == settings.fit
    assert trained.data.num_frames == candidate.frames
    assert trained.data.transform.size == candidate.size
    assert (trained.model.depth, trained.model.pool_t) == (candidate.depth, candidate.pool_t)
    assert search.trial(0.03, candidate).stage == "resnet_rs_train"


def test_summary_has_the_best_of_each_level(search_values: dict[str, Any]) -> None:
    search = ScalingSearch(config(search_values, *WIDE), 3)
    for number, trial in enumerate(asked(search)):
        status = "stopped" if number == 5 else "finished"
        search.tell(Outcome(trial, status, 6, 0.1 * number + 0.5 * (number == 5), {}, []))
    summary = search.summary()
    assert summary["search/refused"] > 0
    assert summary["search/best_0.01_gmac"] == pytest.approx(0.4)
    assert summary["search/best_0.03_gmac"] == pytest.approx(0.3)  # the stopped one does not count
