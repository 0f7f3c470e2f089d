"""When a parameter exists: the `when` of its domain made into conditions on other places, and an order that follows.

A key of `when` is a step's id (its value a primitive, or null where the step is left out), `<step>.<field>`,
`vars.<name>`, or a field of the same config. Settings of a list's item look only at fields of the item itself.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from training.autovideo.catalogue import find
from training.autovideo.domains import Domain, FloatRange
from training.autovideo.search.space_apply import get
from training.autovideo.search.space_checks import field_default, require_field
from training.autovideo.search.space_parts import Parts, hint
from training.autovideo.search.space_tree import VARIABLES, Choices, Condition, Parameter, Place
from training.core.config import ConfigError


def conditions(parts: Parts, parameter: Parameter, domain: Domain, where: str) -> tuple[Condition, ...]:
    """Return the conditions of a parameter.

    Raises:
        ConfigError: one looks at a step or field that there is not, or for a primitive that a step never is.
    """
    what = f"{where}: {parameter.name}: when"
    return tuple(
        _condition(parts, parameter, key, value if isinstance(value, tuple) else (value,), what)
        for key, value in domain.when.items()
    )


def _condition(parts: Parts, parameter: Parameter, key: str, values: tuple[Any, ...], where: str) -> Condition:
    place = parameter.place
    if place.item is not None:
        item = parts.list_items(place.step, parameter.alternatives[0], place.field)[place.item][0]
        assert item.use is not None
        require_field(item.use, key, f"{where} (of a list's item: only its own fields)")
        default = get(item.settings, key, field_default(item.use, key))
        spot = replace(place, child=key)
        return Condition(spot, values, dict.fromkeys(parts.alternatives[place.step], default))
    own = [use for label in parameter.alternatives if (use := parts.alternatives[place.step][label].use)]
    is_field = any(key.split(".")[0] in find(use).Config.model_fields for use in own)
    if key in parts.steps:
        if is_field:
            raise ConfigError(f"{where}: {key!r} is both a step and a field of {own[0]}; write {place.step}.{key}")
        known = [text for label, one in parts.alternatives[key].items() for text in (label, one.use)]
        if unknown := [value for value in values if value not in known]:
            raise ConfigError(f"{where}: step {key!r} is never {unknown[0]!r}{hint(str(unknown[0]), map(str, known))}")
        return Condition(Place(key), values, {})
    if key.startswith(f"{VARIABLES}."):
        name = parts.place(key, where)[0].field
        return Condition(Place(VARIABLES, name), values, {"": parts.variables[name]})
    step, _, field = key.partition(".") if key.split(".")[0] in parts.steps and "." in key else (place.step, "", key)
    if step == place.step and not own:
        raise ConfigError(f"{where}: {key!r} is no step of the pipeline{hint(key, parts.steps)}")
    having = parts.labels_with(Place(step, field), None, where)
    otherwise = {}
    for label in having:
        one = parts.alternatives[step][label]
        assert one.use is not None
        otherwise[label] = parts.variable(get(one.settings, field, field_default(one.use, field)))
    return Condition(Place(step, field), values, otherwise)


def in_order(values: Sequence[Parameter], where: str) -> list[Parameter]:
    """Return the parameters with each after those that its conditions look at.

    Raises:
        ConfigError: they wait for one another, or look at a range of numbers.
    """
    places: dict[Place, list[Parameter]] = {}
    for parameter in values:
        places.setdefault(parameter.place, []).append(parameter)
    ordered: dict[str, Parameter] = {}

    def add(parameter: Parameter, waiting: Choices) -> None:
        if parameter.name in waiting:
            raise ConfigError(f"{where}: conditions wait for one another: {' → '.join([*waiting, parameter.name])}")
        for condition in parameter.conditions:
            for other in places.get(condition.place, ()):
                if isinstance(other.domain, FloatRange):
                    raise ConfigError(
                        f"{where}: {parameter.name} depends on {other.name}, a range of numbers; a condition needs a "
                        "choice or integers"
                    )
                add(other, {**waiting, parameter.name: None})
        ordered.setdefault(parameter.name, parameter)

    for parameter in values:
        add(parameter, {})
    return list(ordered.values())
