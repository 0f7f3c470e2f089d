"""How many candidates a space has, counted without listing them."""

import math
from collections.abc import Sequence
from fractions import Fraction

from training.autovideo.search.space_tree import Choices, Parameter, Picks, Space, all_values, num_values


def size(space: Space) -> int | None:
    """Return the number of different choices; None where a range of numbers makes it infinite.

    Parameters that nothing else depends on are multiplied, those of lists counted by item; only what decides about
    others is enumerated, and only together with what it decides about.
    """
    total: float = 1
    for part in _independent_parts(space):
        total *= _Counter(space, part).count(0, {})
    return None if total == math.inf else int(total)


def _independent_parts(space: Space) -> list[list[Parameter]]:
    """Return groups of parameters, those of lists' items left out, that do not depend on one another."""
    steps: dict[str, str] = {}  # every parameter and step → a member of its group

    def root(name: str) -> str:
        while steps.setdefault(name, name) != name:
            name = steps[name]
        return name

    top = [parameter for parameter in space.parameters if parameter.place.item is None]
    for parameter in top:
        if parameter.kind == "slot" or parameter.place.step in space.by_name:
            steps[root(parameter.name)] = root(f"step {parameter.place.step}")
        for condition in parameter.conditions:
            steps[root(f"step {condition.place.step}")] = root(parameter.name)
            for other in top:
                if other.place == condition.place:
                    steps[root(other.name)] = root(parameter.name)
    groups: dict[str, list[Parameter]] = {}
    for parameter in space.parameters:
        if parameter.place.item is None:
            groups.setdefault(root(parameter.name), []).append(parameter)
        elif not any(_holds_items_of(parameter, other) for other in top):  # of a list that is not searched
            groups.setdefault(root(f"step {parameter.place.step}"), []).append(parameter)
    return list(groups.values())


def _holds_items_of(item: Parameter, parameter: Parameter) -> bool:
    same = (parameter.place.step, parameter.place.field) == (item.place.step, item.place.field)
    apart = parameter.alternatives and item.alternatives and not {*parameter.alternatives} & {*item.alternatives}
    return parameter.kind == "list" and same and not apart


class _Counter:
    """Counts the choices of one independent part."""

    def __init__(self, space: Space, part: Sequence[Parameter]) -> None:
        self._space, self._part = space, part
        asked = {condition.place for parameter in space.parameters for condition in parameter.conditions}
        self._decides = {p.name for p in part if p.kind == "slot" or (p.kind == "value" and p.place in asked)}

    def count(self, start: int, choices: Choices) -> float:
        factor: float = 1
        for number in range(start, len(self._part)):
            parameter = self._part[number]
            if not self._space.exists(parameter, choices):
                continue
            if parameter.name in self._decides:
                values = all_values(parameter.domain)
                return factor * sum(self.count(number + 1, {**choices, parameter.name: value}) for value in values)
            if isinstance(parameter.domain, Picks):
                factor *= self._lists(parameter, parameter.domain, choices)
            else:
                factor *= num_values(parameter.domain)
        return factor

    def _lists(self, parameter: Parameter, picks: Picks, choices: Choices) -> float:
        """Count lists with the settings of their items: an exponential generating function, a factor per item."""
        terms = [Fraction(1)]  # coefficient of x^n: lists of n items so far, / n!
        for label in picks.items:
            most = picks.most if picks.repeats else 1
            own, weight = [Fraction(1)], Fraction(1)
            for occurrence in range(1, most + 1):
                settings = self._item(parameter, label, occurrence, choices)
                if settings == math.inf:
                    return math.inf if picks.most else 1
                weight *= Fraction(int(settings), occurrence)
                own.append(weight)
            product = [Fraction(0)] * min(len(terms) + len(own) - 1, picks.most + 1)
            for i, left in enumerate(terms):
                for j, right in enumerate(own):
                    if i + j < len(product):
                        product[i + j] += left * right
            terms = product
        return int(sum(terms[n] * math.factorial(n) for n in range(picks.least, min(picks.most, len(terms) - 1) + 1)))

    def _item(self, parameter: Parameter, label: str, occurrence: int, choices: Choices) -> float:
        """Count the settings of one item of a list: its conditions look at nothing but the item itself."""
        here = {**choices, parameter.name: [label] * occurrence}
        own = [
            p for p in self._space.parameters
            if p.place.item == label and p.place.occurrence == occurrence and _holds_items_of(p, parameter)
        ]  # fmt: skip
        return _Counter(self._space, own).count(0, here) if own else 1
