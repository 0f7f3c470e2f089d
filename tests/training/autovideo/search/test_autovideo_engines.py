"""Engines: functions of the history, better than chance on a conditional objective, and no better when it is noise."""

import copy
import math
import random
import statistics
from collections import Counter

import pytest

from training.autovideo.search.budget import Budget
from training.autovideo.search.engines import EvolutionConfig, GridConfig, RandomConfig, TpeConfig, make_engine
from training.autovideo.search.evolution import cross, mutate, other_value
from training.autovideo.search.history import History, Seen
from training.autovideo.search.pareto import dominates, front, ranks
from training.autovideo.search.pipeline_search import PipelineSearch
from training.autovideo.search.space import build_space, size
from training.autovideo.search.space_tree import in_domain
from training.core.config import ConfigError
from training.core.trials import Outcome

ENGINES = {"random": RandomConfig(), "tpe": TpeConfig(startup=6), "evolution": EvolutionConfig(population=6)}


def filled(toy, count: int, seed: int = 0) -> tuple[object, History]:
    """A history with candidates of every fate."""
    space, history, rng = toy.space(), History(), random.Random(seed)
    for n in range(count):
        choices = space.sample(rng)
        costs = {"gmac": rng.random()}
        if n % 7 == 5:
            history.add(Seen(choices, "refused", costs=costs, excess=0.5))
        elif n % 7 == 6:
            history.add(Seen(choices, "invalid"))
        else:
            number = history.add(Seen(choices, "running", costs=costs))
            status = ("finished", "finished", "stopped", "failed", "finished")[n % 7]
            value = None if status == "failed" else toy.value_of(space, choices)
            if n < count - 3:  # the last are under way
                history.end(number, Seen({}, status, value, costs, steps=3))
    return space, history


@pytest.mark.parametrize("minimise", [(), ("gmac",), ("gmac", "params")])
@pytest.mark.parametrize("name", ENGINES)
def test_proposals_follow_from_history_and_number_alone(toy, name, minimise):
    space, history = filled(toy, 30)
    one, other = (make_engine(ENGINES[name], space, 3, minimise) for _ in range(2))
    first = [one.propose(history, n) for n in range(4)]
    assert [other.propose(history, n) for n in reversed(range(4))] == first[::-1]
    assert all(space.has(choices) for choices in first)
    assert make_engine(ENGINES[name], space, 4, minimise).propose(history, 0) != first[0]
    if name != "random":  # which looks at nothing
        shorter = filled(toy, 15)[1]
        assert [one.propose(shorter, n) for n in range(4)] != first


def test_grid_has_every_candidate_once(toy):
    values = {"schema": "space/v1", "slots": {"net": ["toy/small", "toy/deep"]},
              "set": {"net:toy/deep.depth": [1, 2, 3], "clip.frames": [4, 8]}}  # fmt: skip
    space = build_space(values, toy.base())
    engine = make_engine(GridConfig(), space, 0)
    rows = [engine.propose(History(), n) for n in range(9)]
    assert rows[8] is None
    assert rows[:8] == list(space.grid())
    assert engine.propose(History(), 2) == rows[2]
    with pytest.raises(ConfigError, match=r"this one has ranges of numbers \(flip:toy/flip\.p, "):
        make_engine(GridConfig(), toy.space(), 0)
    ranges = {"clip.frames": (1, 64), "vars.batch": (1, 5000)}
    domains = {name: {"kind": "int", "low": low, "high": high} for name, (low, high) in ranges.items()}
    large = build_space({**values, "set": domains}, toy.base())
    assert size(large) == 640_000
    with pytest.raises(ConfigError, match="has 640000 candidates"):
        make_engine(GridConfig(), large, 0)


# --- evolution -----------------------------------------------------------------------------------


def test_mutations_reach_everything_and_leave_candidates_whole(toy):
    space, rng = toy.space(), random.Random(0)
    start = space.sample(rng)
    changed: Counter[str] = Counter()
    for _ in range(400):
        child = mutate(space, start, rng)
        assert space.has(child)
        changed.update(name for name in start if child.get(name) != start[name])
    assert set(changed) == set(start)  # every parameter there is can change

    def edits(*labels: str) -> set[tuple[str, ...]]:
        of = [f"toy/{label}" for label in labels]
        return {tuple(x[4:] for x in other_value(space.by_name["aug.of"], of, rng)) for _ in range(200)}

    added = {("noise", "blur"), ("blur", "noise"), ("noise", "flip"), ("flip", "noise")}
    assert edits("noise") == added | {("blur",), ("flip",)}  # or exchanged
    assert edits("noise", "blur") == {
        ("noise",), ("blur",), ("blur", "noise"), ("flip", "blur"), ("noise", "flip")
    }  # fmt: skip  # dropped, moved, exchanged


def test_numbers_move_a_little_and_stay_inside(toy):
    space, rng = toy.space(), random.Random(0)
    for name in (
        "net:toy/small.lr",
        "aug.of:toy/noise.level",
        "aug.of:toy/blur.size",
        "flip:toy/flip.p",
        "clip.frames",
    ):
        parameter = space.by_name[name]
        value = {"net:toy/small.lr": 1e-4, "aug.of:toy/noise.level": 3, "aug.of:toy/blur.size": 9,
                 "flip:toy/flip.p": 1.0, "clip.frames": 8}[name]  # fmt: skip
        others = [other_value(parameter, value, rng) for _ in range(200)]
        assert all(in_domain(other, parameter.domain) for other in others), name
        assert all(other != value for other in others), name
    rates = [math.log10(other_value(space.by_name["net:toy/small.lr"], 0.01, rng)) for _ in range(300)]
    assert abs(statistics.mean(rates) + 2) < 0.15  # in decades, of four that there are
    assert 0.4 < statistics.stdev(rates) < 0.8


def test_children_are_made_of_their_parents(toy):
    space, rng = toy.space(), random.Random(1)
    of = {"aug.of": ["toy/noise", "toy/blur"], "aug.of:toy/noise.level": 4, "aug.of:toy/blur.shape": "box"}
    one = space.complete({"net": "toy/small", "net:toy/small.lr": 0.5, **of}, rng)
    other = space.complete({"net": "toy/deep", "net:toy/deep.lr": 1e-3, "aug.of": ["toy/flip"]}, rng)
    children = [cross(space, one, other, rng) for _ in range(200)]
    assert all(space.has(child) for child in children)
    for child in children:
        # A slot comes with the settings of its alternative, an item of a list with its own.
        source = one if child["net"] == "toy/small" else other
        assert {k: v for k, v in child.items() if k.startswith("net")} == {
            k: v for k, v in source.items() if k.startswith("net")
        }  # fmt: skip
        for name in ("aug.of:toy/noise.level", "aug.of:toy/blur.shape"):
            assert name not in child or child[name] == one[name]
    lists = {tuple(child["aug.of"]) for child in children}
    assert {("toy/noise", "toy/flip"), ("toy/noise", "toy/blur"), ("toy/flip",)} <= lists
    assert {child["net"] for child in children} == {"toy/small", "toy/deep"}


def test_parents_are_the_youngest(toy):
    """Ageing: a candidate that is better than all leaves the population in the end."""
    space = toy.space()
    engine = make_engine(EvolutionConfig(population=4, tournament=4, crossover=0.0), space, 0)
    history, rng = History(), random.Random(0)
    best = space.complete({"net": "toy/deep", "clip.frames": 16, "vars.batch": 4}, rng)
    rest = [space.complete({"net": "toy/small", "clip.frames": 4, "vars.batch": 8}, rng) for _ in range(4)]

    def near(children, parent) -> float:
        return statistics.mean(sum(c.get(k) == v for k, v in parent.items()) / len(parent) for c in children)

    for n, choices in enumerate([best, *rest[:3]]):
        history.end(history.add(Seen(choices, "running")), Seen({}, "finished", 1.0 - 0.1 * n))
    children = [engine.propose(history, n) for n in range(30)]
    assert near(children, best) > 0.6 > near(children, rest[0])
    history.end(history.add(Seen(rest[3], "running")), Seen({}, "finished", 0.1))
    children = [engine.propose(history, n) for n in range(30)]
    assert near(children, rest[0]) > 0.6 > near(children, best)
    # In the population are finished ones only.
    history.end(history.add(Seen(best, "running")), Seen({}, "failed"))
    history.add(Seen(best, "refused"))
    assert [engine.propose(history, n) for n in range(30)] == children


# --- Pareto fronts -------------------------------------------------------------------------------


def test_front_against_brute_force():
    rng = random.Random(0)
    for _ in range(200):
        points = [tuple(rng.randint(0, 4) for _ in range(rng.choice((2, 3)))) for _ in range(12)]
        points = [point[: len(points[0])] for point in points if len(point) >= len(points[0])]
        expected = []
        for n, point in enumerate(points):
            beaten = False
            for other in points:
                worse_nowhere = all(o - p >= 0 for o, p in zip(other, point, strict=True))
                beaten |= worse_nowhere and sum(other) > sum(point)
            if not beaten:
                expected.append(n)
        assert front(points) == expected
        peeled, left, number = ranks(points), list(range(len(points))), 0
        while left:
            now = [left[n] for n in front([points[n] for n in left])]
            assert [n for n in left if peeled[n] == number] == now
            left, number = [n for n in left if n not in now], number + 1
    assert front([(1, 1), (1, 1), (0, 2), (0, 1)]) == [0, 1, 2]  # of equals all
    assert front([]) == []
    assert not dominates((1, 1), (1, 1))


# --- are they any good? ---------------------------------------------------------------------------


def best_of(toy, engine, seed: int, trials: int, *, shuffled: bool = False) -> float:
    """The best true value among some trials; with `shuffled`, the engine is told values of others."""
    space, rng = toy.space(), random.Random(f"{seed}/shuffle")
    search = PipelineSearch(space, toy.base(), toy.compile_document, engine, seed, Budget(trials=trials))
    found: list[float] = []
    while (trial := search.ask()) is not None:
        found.append(toy.score(search.entries()[-1].document))
        search.tell(Outcome(trial, "finished", 6, rng.choice(found) if shuffled else found[-1], {}, []))
    assert len(found) == trials
    return max(found)


def gains(toy, engine, seeds: range, trials: int) -> tuple[list[float], list[float]]:
    """How much better the engine is than random draws of the same number: when told the truth, and when not."""
    chance = [best_of(toy, RandomConfig(), seed, trials) for seed in seeds]
    true, shuffled = (
        [best_of(toy, engine, seed, trials, shuffled=told) - other for seed, other in zip(seeds, chance, strict=True)]
        for told in (False, True)
    )
    return true, shuffled


def z_score(values: list[float]) -> float:
    return statistics.mean(values) / (statistics.stdev(values) / math.sqrt(len(values)))


def check_gains(true: list[float], shuffled: list[float]) -> None:
    assert z_score(true) > 3
    assert z_score(shuffled) < 2
    assert z_score([t - s for t, s in zip(true, shuffled, strict=True)]) > 2.5


def test_evolution_beats_random_draws_and_only_when_it_is_told_the_truth(toy):
    check_gains(*gains(toy, EvolutionConfig(), range(20), 60))


def test_tpe_beats_random_draws(toy):
    gained = [best_of(toy, TpeConfig(), n, 30) - best_of(toy, RandomConfig(), n, 30) for n in range(4)]
    assert sum(gain > 0 for gain in gained) >= 3
    assert statistics.mean(gained) > 0.03


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tpe_beats_random_draws_only_when_it_is_told_the_truth(toy):
    check_gains(*gains(toy, TpeConfig(), range(20), 60))


def test_tpe_keeps_away_from_what_is_refused(toy):
    """Candidates outside the limits are told as such: later proposals are within them more often than random ones."""
    space = build_space({**copy.deepcopy(toy.SPACE), "limits": {"gmac": 4}}, toy.base())

    def refused(engine) -> int:
        search = PipelineSearch(space, toy.base(), toy.compile_document, engine, 1, Budget(trials=25))
        while (trial := search.ask()) is not None:
            search.tell(Outcome(trial, "finished", 6, 0.5, {}, []))
        return sum(item.reason == "limits" for item in search.refused())

    assert refused(TpeConfig()) < refused(RandomConfig())
