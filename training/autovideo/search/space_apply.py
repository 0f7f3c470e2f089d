"""Choices made into a document: the same pipeline with other primitives, lists and settings."""

import copy
from collections.abc import Mapping
from typing import Any

from training.autovideo.search.space_tree import NONE, VARIABLES, Alternative, Choices, Parameter, Picks, Space


def apply(space: Space, base: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    """Return the candidate document of some choices.

    Args:
        space: made for this document.
        base: the pipeline that is varied, in the form of its YAML; it is not changed.
        choices: complete, as `Space.walk` makes them.

    Returns:
        A document that shares nothing with `base`. Steps that are left out are gone, and whatever took what they gave
        takes what they took.
    """
    document: dict[str, Any] = copy.deepcopy(dict(base))
    steps = {step["id"]: step for step in document["steps"]}
    for parameter in space.parameters:
        if parameter.kind == "slot":
            _set_primitive(steps[parameter.place.step], space.alternatives[parameter.place.step], choices)
    for parameter in space.parameters:
        if parameter.kind != "slot" and parameter.name in choices:
            _set_value(space, document, steps, parameter, choices)
    _leave_out(document, [p.place.step for p in space.parameters if p.kind == "slot" and choices[p.name] == NONE])
    return document


def _set_primitive(step: dict[str, Any], alternatives: dict[str, Alternative], choices: Choices) -> None:
    chosen = alternatives[choices[step["id"]]]
    if chosen.use is not None:
        step["use"] = chosen.use
        step["with"] = copy.deepcopy(chosen.settings)


def _set_value(
    space: Space, document: dict[str, Any], steps: dict[str, Any], parameter: Parameter, choices: Choices
) -> None:
    place, value = parameter.place, copy.deepcopy(choices[parameter.name])
    if place.step == VARIABLES:
        document.setdefault("vars", {})[place.field] = value
        return
    settings = steps[place.step].setdefault("with", {})
    if isinstance(parameter.domain, Picks):
        items = [parameter.domain.items[label] for label in value]
        put(settings, place.field, [{"use": item.use, "with": copy.deepcopy(item.settings)} for item in items])
    elif place.item is None:
        put(settings, place.field, value)
    else:
        items = get(settings, place.field)
        places = [number for number, label in enumerate(space.items(place, choices)) if label == place.item]
        number = places[place.occurrence - 1]
        if isinstance(items[number], str):
            items[number] = {"use": items[number]}
        put(items[number].setdefault("with", {}), place.child, value)


def get(settings: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """Return the value at a dotted path of nested mappings."""
    value: Any = settings
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def put(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path of nested mappings, in place."""
    *parents, last = path.split(".")
    for part in parents:
        if not isinstance(settings.get(part), dict):
            settings[part] = {}
        settings = settings[part]
    settings[last] = value


def _leave_out(document: dict[str, Any], gone: list[str]) -> None:
    for step_id in gone:
        step = next(step for step in document["steps"] if step["id"] == step_id)
        source = input_of(step)
        document["steps"] = [other for other in document["steps"] if other["id"] != step_id]
        for other in document["steps"]:
            if "in" in other:
                other["in"] = _rewired(other["in"], step_id, source)


def input_of(step: Mapping[str, Any]) -> str | None:
    """Return the only edge into a step, `<step>[.<output>]`; None where there is none or more than one."""
    source: Any = step.get("in")
    if isinstance(source, Mapping):
        source = list(source.values())
    while isinstance(source, list) and len(source) == 1:
        source = source[0]
    return source if isinstance(source, str) else None


def _rewired(edges: Any, gone: str, source: str | None) -> Any:
    if isinstance(edges, Mapping):
        return {name: _rewired(edge, gone, source) for name, edge in edges.items()}
    if isinstance(edges, list):
        return [_rewired(edge, gone, source) for edge in edges]
    return source if isinstance(edges, str) and edges.split(".")[0] == gone else edges
