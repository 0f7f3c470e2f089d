"""A search space as a tree of parameters: what there is to choose, and when. Plain data; made by `build_space`.

A parameter of an alternative exists only where the alternative is chosen, that of a list's item only where the item is
in the list, and a conditional one only where its conditions hold. Choices are a flat mapping from the names of those
that exist to their values, so that engines of all kinds work on the same thing.
"""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from training.autovideo.domains import Choice, Domain, FloatRange, IntRange, parse_domain

Choices = dict[str, Any]
"""Name of a parameter → its value; slots and list items by label. Only parameters that exist are in it."""

NONE = "none"
"""Label of the alternative that leaves a step out."""

VARIABLES = "vars"
"""Stands where a step's id stands, for variables of the document."""


@dataclass(frozen=True)
class Alternative:
    """A primitive with the settings that are not searched; also an item of a list."""

    use: str | None
    """None: the step is left out."""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Picks:
    """An ordered sub-list: between `least` and `most` of some labelled items; once each, or `repeats`."""

    items: dict[str, Alternative]
    least: int
    most: int
    repeats: bool = False

    def draw(self, rng: random.Random) -> list[str]:
        """Return a list: every length is as likely as any other, and then every list of that length."""
        length = rng.randint(self.least, self.most)
        labels = list(self.items)
        return rng.choices(labels, k=length) if self.repeats else rng.sample(labels, length)

    def lists(self) -> Iterator[list[str]]:
        """Yield every list."""
        for length in range(self.least, self.most + 1):
            every: Any = itertools.product(self.items, repeat=length)
            yield from map(list, every if self.repeats else itertools.permutations(self.items, length))


@dataclass(frozen=True)
class Place:
    """Where a value goes."""

    step: str
    field: str = ""
    """Dotted; empty: the primitive itself."""
    item: str | None = None
    """Label of an item of the list `field`."""
    occurrence: int = 1
    """Where items may repeat: which of those with this label."""
    child: str = ""
    """Dotted field of the item's settings."""


@dataclass(frozen=True)
class Condition:
    """The value at a place is one of some."""

    place: Place
    values: tuple[Any, ...]
    otherwise: dict[str, Any]
    """Label of the place's step → the value that stands there where none is chosen."""


@dataclass(frozen=True)
class Parameter:
    """One thing to choose."""

    name: str
    """`<step>`, `<step>[:<alternative>].<field>[:<item>[:<occurrence>].<field of it>]` or `vars.<name>`."""
    kind: Literal["slot", "list", "value"]
    place: Place
    domain: Domain | Picks
    alternatives: tuple[str, ...] = ()
    """Labels of the place's step with which the parameter exists; empty: with any but `none`."""
    conditions: tuple[Condition, ...] = ()

    @property
    def single(self) -> bool:
        """Whether there is but one value."""
        return self.kind != "list" and num_values(self.domain) == 1


def num_values(domain: Domain | Picks) -> float:
    """Return how many values there are; infinite for a range of numbers."""
    match domain:
        case Choice():
            return len(domain.values)
        case IntRange():
            return (domain.high - domain.low) // domain.step + 1
        case FloatRange():
            return 1 if domain.low == domain.high else math.inf
    lengths = range(domain.least, domain.most + 1)
    count = len(domain.items)
    return sum(count**n if domain.repeats else math.perm(count, n) for n in lengths)


def all_values(domain: Domain | Picks) -> Iterator[Any]:
    """Yield the values of a finite domain in order."""
    match domain:
        case Choice():
            yield from domain.values
        case IntRange():
            yield from range(domain.low, domain.high + 1, domain.step)
        case FloatRange():
            yield domain.low
        case Picks():
            yield from domain.lists()


def draw_value(domain: Domain | Picks, rng: random.Random) -> Any:
    """Return a value, each as likely as any other (in the logarithm where the domain is logarithmic)."""
    match domain:
        case Choice():
            return rng.choice(domain.values)
        case IntRange(log=True):
            span = math.log(domain.low - 0.5), math.log(domain.high + 0.5)
            return min(max(round(math.exp(rng.uniform(*span))), domain.low), domain.high)
        case IntRange():
            return rng.randrange(domain.low, domain.high + 1, domain.step)
        case FloatRange(log=True):
            value = math.exp(rng.uniform(math.log(domain.low), math.log(domain.high)))
            return min(max(value, domain.low), domain.high)
        case FloatRange():
            return rng.uniform(domain.low, domain.high)
    return domain.draw(rng)


def canonical(value: Any) -> str:
    """Return the text by which values are compared: 1, 1.0 and true are three of them."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def among(value: Any, values: Any) -> bool:
    """Return whether a value is one of some."""
    return canonical(value) in {canonical(other) for other in values}


def in_domain(value: Any, domain: Domain | Picks) -> bool:
    """Return whether a value belongs to a domain."""
    match domain:
        case Choice():
            return among(value, domain.values)
        case IntRange():
            whole = isinstance(value, int) and not isinstance(value, bool)
            return whole and domain.low <= value <= domain.high and (value - domain.low) % domain.step == 0
        case FloatRange():
            return isinstance(value, int | float) and not isinstance(value, bool) and domain.low <= value <= domain.high
    known = isinstance(value, list | tuple) and all(label in domain.items for label in value)
    return known and domain.least <= len(value) <= domain.most and (domain.repeats or len(set(value)) == len(value))


@dataclass(frozen=True)
class Space:
    """All that a search may choose; see `training.autovideo.search.space` for where it comes from."""

    parameters: tuple[Parameter, ...]
    """In an order in which each comes after all that it depends on."""
    alternatives: dict[str, dict[str, Alternative]]
    """Step → label → alternative; of a step without a slot the only one."""
    fixed: dict[str, tuple[str, ...]]
    """`<step>:<alternative>.<field>` → labels of the items that the document has there, where the list stays."""
    limits: dict[str, float]
    """`gmac`, `params` → hard upper bounds."""

    @cached_property
    def by_name(self) -> dict[str, Parameter]:
        """Parameters by name."""
        return {parameter.name: parameter for parameter in self.parameters}

    @cached_property
    def _at(self) -> dict[Place, tuple[Parameter, ...]]:
        found: dict[Place, tuple[Parameter, ...]] = {}
        for parameter in self.parameters:
            found[parameter.place] = (*found.get(parameter.place, ()), parameter)
        return found

    def label(self, step: str, choices: Choices) -> str:
        """Return the label of a step's alternative."""
        if step == VARIABLES:
            return ""
        return str(choices[step]) if step in self.by_name else next(iter(self.alternatives[step]))

    def items(self, place: Place, choices: Choices) -> list[str]:
        """Return the labels of the items of the list at a place's step and field; empty where there is no list."""
        for parameter in self._at.get(Place(place.step, place.field), ()):
            if parameter.kind == "list" and parameter.name in choices:
                return list(choices[parameter.name])
        return list(self.fixed.get(f"{place.step}:{self.label(place.step, choices)}.{place.field}", ()))

    def exists(self, parameter: Parameter, choices: Choices) -> bool:
        """Return whether a parameter exists, given the choices of all parameters before it."""
        place = parameter.place
        if parameter.kind != "slot":
            label = self.label(place.step, choices)
            if label == NONE or (parameter.alternatives and label not in parameter.alternatives):
                return False
            if place.item is not None and self.items(place, choices).count(place.item) < place.occurrence:
                return False
        return all(self._holds(condition, choices) for condition in parameter.conditions)

    def _holds(self, condition: Condition, choices: Choices) -> bool:
        place = condition.place
        label = self.label(place.step, choices)
        if label == NONE:
            return place.field == "" and among(None, condition.values)
        if place.field == "":
            return among(self.alternatives[place.step][label].use, condition.values) or among(label, condition.values)
        for parameter in self._at.get(place, ()):
            if parameter.name in choices:
                return among(choices[parameter.name], condition.values)
        return label in condition.otherwise and among(condition.otherwise[label], condition.values)

    def walk(self, choose: Callable[[Parameter], Any]) -> Choices:
        """Return complete choices: `choose` is asked for the value of each parameter that exists, in order."""
        choices: Choices = {}
        for parameter in self.parameters:
            if self.exists(parameter, choices):
                choices[parameter.name] = choose(parameter)
        return choices

    def sample(self, rng: random.Random) -> Choices:
        """Return choices drawn at random, parameter by parameter."""
        return self.walk(lambda parameter: draw_value(parameter.domain, rng))

    def complete(self, some: Mapping[str, Any], rng: random.Random) -> Choices:
        """Return choices with as much of `some` as can be: what does not exist is left out, what lacks is drawn."""

        def choose(parameter: Parameter) -> Any:
            if parameter.name in some and in_domain(some[parameter.name], parameter.domain):
                return some[parameter.name]
            return draw_value(parameter.domain, rng)

        return self.walk(choose)

    def has(self, choices: Mapping[str, Any]) -> bool:
        """Return whether the choices are complete, without more than there is, and each value is of its domain."""
        missing = False

        def choose(parameter: Parameter) -> Any:
            nonlocal missing
            if parameter.name in choices and in_domain(choices[parameter.name], parameter.domain):
                return choices[parameter.name]
            missing = True
            return draw_value(parameter.domain, random.Random(0))

        return self.walk(choose).keys() == choices.keys() and not missing

    def grid(self) -> Iterator[Choices]:
        """Yield all choices of a finite space, the last parameters changing fastest.

        Raises:
            ValueError: a parameter that exists has a range of numbers.
        """
        yield from self._grid(0, {})

    def _grid(self, start: int, choices: Choices) -> Iterator[Choices]:
        for number in range(start, len(self.parameters)):
            parameter = self.parameters[number]
            if self.exists(parameter, choices):
                if isinstance(parameter.domain, FloatRange) and not parameter.single:
                    raise ValueError(f"{parameter.name} has no end of values")
                for value in all_values(parameter.domain):
                    yield from self._grid(number + 1, {**choices, parameter.name: value})
                return
        yield choices

    def encode(self, choices: Mapping[str, Any]) -> dict[str, float | str | None]:
        """Return choices as flat columns, the same for all candidates: None where a parameter does not exist.

        A list is its length and, under `<name>:<item>`, the place of each item counted from 1, 0 without it. True and
        false are 1 and 0; values that are no scalars are JSON.
        """
        row: dict[str, float | str | None] = {}
        for parameter in self.parameters:
            value: Any = choices.get(parameter.name)
            here = parameter.name in choices
            if isinstance(parameter.domain, Picks):
                row[parameter.name] = float(len(choices[parameter.name])) if here else None
                for item in parameter.domain.items:
                    column = f"{parameter.name}:{item}"
                    row[column] = float(list(value).index(item) + 1 if item in value else 0) if here else None
            elif not here:
                row[parameter.name] = None
            elif isinstance(value, int | float):
                row[parameter.name] = float(value)
            else:
                row[parameter.name] = value if isinstance(value, str) else canonical(value)
        return row

    def columns(self) -> list[str]:
        """Return the names of the columns of `encode`."""
        return list(self.encode({}))

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as plain values; `from_dict` takes them."""
        return {
            "schema": "space_tree/v1",
            "parameters": [
                {**asdict(item), "domain": _plain_domain(item.domain)} for item in self.parameters
            ],
            "alternatives": {
                step: {label: asdict(one) for label, one in labelled.items()}
                for step, labelled in self.alternatives.items()
            },
            "fixed": {name: list(labels) for name, labels in self.fixed.items()},
            "limits": dict(self.limits),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Space":
        """Return the tree of `to_dict`, also after a way through JSON."""
        return cls(
            tuple(_parameter(item) for item in values["parameters"]),
            {
                step: {label: Alternative(**one) for label, one in labelled.items()}
                for step, labelled in values["alternatives"].items()
            },
            {name: tuple(labels) for name, labels in values["fixed"].items()},
            dict(values["limits"]),
        )


def _plain_domain(domain: Domain | Picks) -> dict[str, Any]:
    return {"kind": "picks", **asdict(domain)} if isinstance(domain, Picks) else domain.model_dump(mode="json")


def _parameter(values: Mapping[str, Any]) -> Parameter:
    domain = dict(values["domain"])
    if domain["kind"] == "picks":
        del domain["kind"]
        domain["items"] = {label: Alternative(**one) for label, one in domain["items"].items()}
    conditions = tuple(
        Condition(Place(**item["place"]), tuple(item["values"]), item["otherwise"]) for item in values["conditions"]
    )
    return Parameter(
        values["name"],
        values["kind"],
        Place(**values["place"]),
        Picks(**domain) if "least" in domain else parse_domain(domain),
        tuple(values["alternatives"]),
        conditions,
    )
