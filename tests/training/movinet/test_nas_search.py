import json
import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from training.backbones.movinet_layout import STREAM, MoViNetLayout, architecture
from training.core.config import ConfigError, validate
from training.core.trials import Outcome, Trial
from training.movinet.latency import LatencyTable
from training.movinet.nas_search import NasConfig, NasSearch, RewardConfig
from training.movinet.space import Space
from training.movinet.target import CostModel

MODEL = CostModel(STREAM, 4, 32, 5)
TARGET = {"kind": "params", "value": 15000.0, "tolerance": 0.15}
ENGINES = {
    "evolution": {"name": "evolution", "population": 12, "tournament": 4},
    "reinforce": {
        "name": "reinforce", "lr": 0.1, "schedule": "constant", "delay": 0.0, "baseline": 0.95, "entropy": 0.0,
    },
    "random": {"name": "random"},
}  # fmt: skip


def quality(layout: MoViNetLayout) -> float:
    """A quality that many choices add to: layers with gate, and kernels 3×3×3."""
    layers = [layer for block in layout.blocks for layer in block.layers]
    good = sum(layer.gate + (layer.kernel == (3, 3)) for layer in layers)
    return good / 8


def make(space: Space, name: str, **changes) -> NasSearch:
    values = {
        "target": TARGET, "reward": {"kind": "absolute", "beta": -0.1}, "engine": ENGINES[name],
        "candidates": 40, "control": "none", "seed": 0, **changes,
    }  # fmt: skip
    return NasSearch(validate(NasConfig, values, "search"), space, MODEL)


def outcome(trial: Trial, value: float | None) -> Outcome:
    return Outcome(trial, "failed" if value is None else "finished", 0, value, {}, [])


def score(trial: Trial) -> float:
    return quality(architecture(trial.config["architecture"]))


def play(
    search: NasSearch, in_flight: int = 1, value: Callable[[Trial], float | None] = score, seed: int = 0
) -> list[tuple[str, object]]:
    """Run a search with several candidates under way that end in drawn order; return its calls."""
    rng, calls, running = random.Random(seed), [], []
    while True:
        while len(running) < in_flight and (trial := search.ask()) is not None:
            calls.append(("ask", trial))
            running.append(trial)
        if not running:
            return calls
        trial = running.pop(rng.randrange(len(running)))
        done = outcome(trial, value(trial))
        calls.append(("tell", done))
        search.tell(done)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("in_flight", [1, 5])
def test_search_scores_as_many_candidates_as_it_may(small_space, engine, in_flight):
    search = make(small_space, engine)
    trials = [call[1] for call in play(search, in_flight) if call[0] == "ask"]
    assert [trial.name for trial in trials] == [f"c{i:05d}" for i in range(len(trials))]
    assert len(trials) == search.total == 40
    assert search.ask() is None
    for trial in trials:
        json.dumps(trial.config)
        assert {"gmac", "params", "state_mb", "cost", "cost_ratio", "order", "generation"} <= set(trial.facts)
        assert trial.facts["params"] == trial.facts["cost"]
    if engine != "reinforce":
        assert all(abs(trial.facts["cost"] / 15000 - 1) <= 0.15 for trial in trials)
        # Nothing is scored twice.
        assert len({json.dumps(trial.config["architecture"]) for trial in trials}) == 40
    else:
        assert len({json.dumps(trial.config["architecture"]) for trial in trials[:-1]}) == 39
    found, summary = search.found(), search.summary()
    assert found.value == quality(architecture(found.architecture))
    assert found.trial in {trial.name for trial in trials}
    assert summary["candidates"] == 40
    assert summary["found_value"] == found.value
    assert all(math.isfinite(value) for value in summary.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_replay_after_any_number_of_calls_goes_on_alike(small_space, engine):
    def value(trial):
        return None if trial.facts["order"] % 7 == 3 else score(trial)

    calls = play(make(small_space, engine, candidates=30), 4, value)
    for cut in range(0, len(calls), 5):
        search = make(small_space, engine, candidates=30)
        for kind, what in calls[:cut]:
            if kind == "ask":
                assert search.ask() == what
            else:
                search.tell(what)
        if calls[cut][0] == "ask":
            assert search.ask() == calls[cut][1]
    other = play(make(small_space, engine, candidates=30, seed=1), 4, value)
    assert [c[1] for c in other if c[0] == "ask"] != [c[1] for c in calls if c[0] == "ask"]


@pytest.mark.parametrize("engine", ["evolution", "reinforce"])
def test_refused_ask_changes_nothing(small_space, engine):
    eager, patient = make(small_space, engine), make(small_space, engine)
    asked = []
    for _ in range(12):
        asked.append(eager.ask())
        assert patient.ask() == asked[-1]
    if engine == "evolution":
        assert all(eager.ask() is None for _ in range(5))
    for trial in asked:
        eager.tell(outcome(trial, score(trial)))
        patient.tell(outcome(trial, score(trial)))
    assert eager.ask() == patient.ask() is not None


def finals(space: Space, engine: str, **changes) -> float:
    """Return the mean true quality of what is found, over 5 seeds."""
    values = []
    for seed in range(5):
        search = make(space, engine, candidates=50, seed=seed, **changes)
        play(search)
        values.append(quality(architecture(search.found().architecture)))
    return float(np.mean(values))


@pytest.fixture(scope="module")
def wide_space(small_space) -> Space:
    more = {"kernels": ("1x3x3", "1x5x5", "1x7x7", "5x1x1", "3x3x3", "5x3x3"), "max_layers": (4, 4)}
    return Space(small_space.config.model_copy(update=more))


def test_evolution_finds_better_than_random_and_shuffled_rewards_do_not(wide_space):
    rng = random.Random(0)
    bounds = (lambda layout: MODEL.of(layout, "params"), TARGET["value"], TARGET["tolerance"])
    typical = [quality(wide_space.layout(wide_space.sample_near(rng, *bounds).genotype)) for _ in range(300)]
    found = {name: finals(wide_space, name) for name in ("evolution", "random")}
    assert found["evolution"] > found["random"] + 0.05 > np.mean(typical) + 0.05
    # Controls: what they find is a draw like any other.
    spread = 3 * np.std(typical) / math.sqrt(5)
    for control in ("shuffled", "cost_only"):
        assert abs(finals(wide_space, "evolution", control=control) - np.mean(typical)) < spread


def test_reinforcement_finds_better_than_random_and_shuffled_rewards_do_not(small_space):
    def mean_final(**changes):
        found = []
        for seed in range(2):
            search = make(small_space, "reinforce", candidates=150, seed=seed, **changes)
            play(search)
            found.append(quality(architecture(search.found().architecture)))
        return np.mean(found)

    rng = random.Random(0)
    typical = [quality(small_space.layout(small_space.sample(rng))) for _ in range(300)]
    trained = mean_final()
    assert trained > np.mean(typical) + 2 * np.std(typical)
    assert trained > mean_final(control="cost_only") + np.std(typical)


def test_cost_only_reward_leads_to_the_target(small_space):
    search = make(small_space, "reinforce", candidates=150, control="cost_only", reward={"kind": "quality", "beta": 0})
    play(search, value=lambda trial: 0.5)
    assert abs(search.found().facts["cost_ratio"] - 1) < 0.25


@pytest.mark.parametrize(
    ("kind", "above", "below"),
    [
        ("quality", 0.5, 0.5),
        ("absolute", 0.5 - 0.1 * 1, 0.5 - 0.1 * 0.5),
        ("soft", 0.5 * 2**-0.1, 0.5 * 0.5**-0.1),
        ("hard_exponential", 0.5 * 2**-0.1, 0.5),
    ],
)
def test_rewards(kind, above, below):
    reward = RewardConfig(kind=kind, beta=-0.1)
    assert reward.reward(0.5, 2.0) == pytest.approx(above)
    assert reward.reward(0.5, 0.5) == pytest.approx(below)
    assert reward.reward(0.5, 1.0) == 0.5


def test_candidates_that_fail_are_counted_and_replaced(small_space):
    search = make(small_space, "evolution")
    play(search, 3, lambda trial: None if trial.facts["order"] < 6 else score(trial))
    assert search.summary()["candidates_failed"] == 6
    assert len(search.engine.population) == 12
    broken = make(small_space, "random", candidates=3)
    play(broken, value=lambda trial: math.nan)
    assert broken.found() is None
    assert broken.summary()["candidates_failed"] == 3


def test_space_with_fewer_members_than_candidates_is_scored_again(small_space):
    few = {"multipliers": (1.0,), "expansions": (2.0,), "gates": (True,), "max_layers": (1, 1)}
    space = Space(small_space.config.model_copy(update=few))
    target = {"kind": "params", "value": MODEL.of(space.largest(), "params"), "tolerance": 0.3}
    for engine in ("evolution", "random"):
        search = make(space, engine, target=target, candidates=13)
        play(search)
        assert search.summary()["architectures"] <= 9
        assert search.summary()["repeats"] >= 2
    settled = make(space, "reinforce", target=target, candidates=13)
    trials = [call for call in play(settled) if call[0] == "ask"]
    assert len(trials) <= 10  # nine members, and the result
    assert settled.found().value is not None


def test_latency_target_needs_its_table_and_replays_with_it(small_space, tmp_path):
    table = LatencyTable(STREAM, 4, 32, 5, "none", "none", {})
    target = {"kind": "latency_ms", "value": 1.0, "tolerance": 0.5}
    search = make(small_space, "random", target=target)
    with pytest.raises(ConfigError, match="no latency table"):
        search.ask()
    table.save(tmp_path / "latency.json")
    with pytest.raises(ConfigError, match="device is none"):
        search.prepare(tmp_path)
    make(small_space, "random").prepare(tmp_path / "untouched")
    assert not (tmp_path / "untouched").exists()


def test_unreachable_target_and_impossible_settings_are_refused(small_space):
    with pytest.raises(ConfigError, match="Change the target"):
        make(small_space, "random", target={**TARGET, "value": 1e9}).ask()
    with pytest.raises(ConfigError, match="nothing would evolve"):
        make(small_space, "evolution", candidates=5)
    with pytest.raises(ConfigError, match="larger than the population"):
        make(small_space, "evolution", engine={"name": "evolution", "population": 4, "tournament": 5})
