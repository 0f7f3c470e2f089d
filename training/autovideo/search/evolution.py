"""Ageing evolution over pipelines: primitives swapped, lists edited, values jittered, parts of parents exchanged."""

import math
import random
from typing import Any

from training.autovideo.domains import Choice, FloatRange, IntRange
from training.autovideo.search.history import History, Seen
from training.autovideo.search.pareto import ranks
from training.autovideo.search.space_tree import Choices, Parameter, Picks, Space, canonical, draw_value

_JITTER = 0.15
"""Standard deviation of a jittered number, as a share of its range (of the logarithm where that is its scale)."""


class Evolution:
    """See `EvolutionConfig`. The fittest have the best metric; with `minimise`, the foremost Pareto front."""

    redraws = True

    def __init__(
        self, space: Space, seed: int, population: int, tournament: int, crossover: float, minimise: tuple[str, ...]
    ) -> None:
        self._space, self._seed = space, seed
        self._population, self._tournament, self._crossover = population, tournament, crossover
        self._minimise = minimise

    def propose(self, history: History, number: int) -> Choices | None:
        """Return a random candidate while the population fills, then a child of what is in it."""
        rng = random.Random(f"{self._seed}/evolution/{number}")
        alive = [seen for seen in history.finished() if math.isfinite(seen.value or 0.0)][-self._population :]
        trained = sum(seen.status not in ("refused", "invalid") for seen in history.seen)
        if trained < self._population or not alive:
            return self._space.sample(rng)
        order = {id(seen): place for place, seen in enumerate(self._ranked(alive))}

        def parent() -> Choices:
            drawn = rng.sample(alive, min(self._tournament, len(alive)))
            return min(drawn, key=lambda seen: order[id(seen)]).choices

        child = parent()
        if rng.random() < self._crossover:
            child = cross(self._space, child, parent(), rng)
        return mutate(self._space, child, rng)

    def _ranked(self, alive: list[Seen]) -> list[Seen]:
        """Return the best first; of equals the younger."""
        points = [(s.value or 0.0, *(-s.costs.get(name, math.inf) for name in self._minimise)) for s in alive]
        fronts = ranks(points) if self._minimise else [0] * len(alive)
        places = sorted(range(len(alive)), key=lambda n: (fronts[n], -points[n][0], -n))
        return [alive[n] for n in places]


def mutate(space: Space, choices: Choices, rng: random.Random) -> Choices:
    """Return choices with one to three things changed, each drawn among all that can change."""
    child = choices
    for _ in range(rng.choice((1, 1, 2, 3))):
        can = [space.by_name[name] for name in child if not space.by_name[name].single]
        if not can:
            return child
        parameter = rng.choice(can)
        child = space.complete({**child, parameter.name: other_value(parameter, child[parameter.name], rng)}, rng)
    return child


def other_value(parameter: Parameter, value: Any, rng: random.Random) -> Any:
    """Return another value of a parameter's domain: of a number a near one, of a list one edit away."""
    domain = parameter.domain
    match domain:
        case Choice():
            others = [other for other in domain.values if canonical(other) != canonical(value)]
            return rng.choice(others) if others else value
        case Picks():
            return _edited(domain, list(value), rng)
        case FloatRange():
            return _near(value, domain.low, domain.high, domain.log, rng)
        case IntRange():
            near = _near(value, domain.low, domain.high, domain.log, rng)
            moved = domain.low + round((near - domain.low) / domain.step) * domain.step
            if moved == value:  # at least one step
                moved += rng.choice((-domain.step, domain.step))
            if not domain.low <= moved <= domain.high:
                moved = 2 * value - moved
            return moved if domain.low <= moved <= domain.high else draw_value(domain, rng)


def _near(value: float, low: float, high: float, log: bool, rng: random.Random) -> float:
    if log:
        return min(max(math.exp(_near(math.log(value), math.log(low), math.log(high), False, rng)), low), high)
    moved = rng.gauss(value, _JITTER * (high - low))
    if not low <= moved <= high:  # thrown back from the bound, not heaped up at it
        moved = 2 * (low if moved < low else high) - moved
    return min(max(moved, low), high)


def _edited(picks: Picks, value: list[str], rng: random.Random) -> list[str]:
    free = [label for label in picks.items if picks.repeats or label not in value]
    edits = []
    if len(value) < picks.most and free:
        edits.append("add")
    if len(value) > picks.least:
        edits.append("drop")
    if value and [label for label in free if len(picks.items) > 1 or label not in value]:
        edits.append("exchange")
    if len(set(value)) > 1:
        edits.append("move")
    if not edits:
        return value
    edit, edited = rng.choice(edits), list(value)
    if edit == "add":
        edited.insert(rng.randint(0, len(value)), rng.choice(free))
    elif edit == "drop":
        edited.pop(rng.randrange(len(value)))
    elif edit == "exchange":
        edited[rng.randrange(len(value))] = rng.choice(free)
    else:
        one, other = rng.sample(range(len(value)), 2)
        edited[one], edited[other] = value[other], value[one]
    return edited


def cross(space: Space, one: Choices, other: Choices, rng: random.Random) -> Choices:
    """Return a child of two parents: step by step all of one of them, lists joined of a head and a tail."""
    steps = {parameter.place.step: rng.random() < 0.5 for parameter in space.parameters}
    mixed: Choices = {}
    for parameter in space.parameters:
        first, second = (other, one) if steps[parameter.place.step] else (one, other)
        name = parameter.name
        if parameter.kind == "list" and name in first and name in second:
            assert isinstance(parameter.domain, Picks)
            mixed[name] = _joined(parameter.domain, first[name], second[name], rng)
        elif name in first:
            mixed[name] = first[name]
        elif name in second and parameter.place.item is not None:
            mixed[name] = second[name]  # settings of an item that came over; of others `complete` drops them
    return space.complete(mixed, rng)


def _joined(picks: Picks, first: list[str], second: list[str], rng: random.Random) -> list[str]:
    head = first[: rng.randint(0, len(first))]
    tail = [label for label in second[rng.randint(0, len(second)) :] if picks.repeats or label not in head]
    joined = [*head, *tail][: picks.most]
    return joined if len(joined) >= picks.least else list(first)
