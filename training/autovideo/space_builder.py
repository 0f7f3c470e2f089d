"""Makes the tree of a space, and checks it against the pipeline and against what its primitives declare."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from training.autovideo.catalogue import find
from training.autovideo.domains import Domain, FloatRange
from training.autovideo.primitive import Port
from training.autovideo.space_apply import get, input_of
from training.autovideo.space_checks import check_domain, check_settings, field_default, require_field
from training.autovideo.space_tree import (
    NONE,
    VARIABLES,
    Alternative,
    Choices,
    Condition,
    Parameter,
    Picks,
    Place,
    Space,
    all_values,
)
from training.autovideo.use import Use
from training.core.config import ConfigError

_NAME = re.compile(
    r"(?P<step>[^.:]+)(:(?P<alternative>[^.:]+))?\.(?P<field>[^:]+)(:(?P<item>[^.:]+)(:(?P<n>\d+))?\.(?P<child>.+))?"
)


class SpaceBuilder:
    """Collects slots, then lists, then domains; `build` puts them in order and checks the whole."""

    def __init__(self, base: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._base = base
        self._steps: dict[str, Mapping[str, Any]] = {str(step["id"]): step for step in base.get("steps", ())}
        self._variables: dict[str, Any] = dict(base.get(VARIABLES) or {})
        self._alternatives = {
            step_id: {str(step["use"]): Alternative(str(step["use"]), dict(step.get("with") or {}))}
            for step_id, step in self._steps.items()
        }
        self._kept: dict[tuple[str, str], set[str]] = {}
        """(step, label) → fields that the space gives itself, which `auto` leaves alone."""
        self._slots: list[Parameter] = []
        self._lists: list[Parameter] = []
        self._values: list[tuple[Parameter, Domain]] = []
        self._fixed: dict[str, tuple[str, ...]] | None = None
        self._items: dict[tuple[str, str, str], dict[str, tuple[Alternative, int]]] = {}
        """(step, label, field) → label of an item → the item, and how often it may be there."""
        for step_id, labelled in self._alternatives.items():
            for label in labelled:
                find(label, f"step {step_id!r}")

    def add_slot(self, step_id: str, alternatives: Sequence[Use | None]) -> None:
        """Let a step be one of some primitives, or be left out (None)."""
        where = f"{self._where}: slots.{step_id}"
        step = self._step(step_id, where)
        own = next(iter(self._alternatives[step_id].values()))
        labelled: dict[str, Alternative] = {}
        for use in alternatives:
            if use is None:
                if NONE in labelled:
                    raise ConfigError(f"{where}: null is there twice")
                labelled[NONE] = Alternative(None)
                continue
            find(use.use, where)
            # The document's own primitive keeps the document's settings; any other begins with its defaults.
            kept = own.settings if use.use == own.use else {}
            label = _free(use.use, labelled)
            labelled[label] = Alternative(use.use, {**kept, **use.settings})
            self._kept[step_id, label] = set(use.settings)
        if NONE in labelled:
            self._check_optional(step_id, step, [str(step["use"]), *(a.use for a in labelled.values() if a.use)], where)
        if list(labelled) == [NONE]:
            raise ConfigError(f"{where}: null is its only alternative; take the step out of the pipeline instead")
        self._alternatives[step_id] = labelled
        domain = _choice(tuple(labelled))
        self._slots.append(Parameter(step_id, "slot", Place(step_id), domain))

    def add_list(self, name: str, of: Sequence[Use], least: int, most: int, repeats: bool) -> None:
        """Let a list of primitives in a step's settings be an ordered sub-list of some."""
        where = f"{self._where}: lists.{name}"
        place, alternative = self._place(name, where)
        if place.step == VARIABLES or place.item is not None:
            raise ConfigError(f"{where}: write <step>.<field>, the field being a list of primitives")
        items: dict[str, Alternative] = {}
        for use in of:
            find(use.use, where)
            items[_free(use.use, items)] = Alternative(use.use, dict(use.settings))
        labels = self._labels_with(place, alternative, where)
        picks = Picks(items, least, most, repeats)
        for other in self._lists:
            if other.place == place and set(other.alternatives) & set(labels):
                raise ConfigError(f"{where}: the same list as {other.name}")
        for label in labels:
            for length in {least, most}:
                chosen = [list(items.values())[n % len(items)] for n in range(length)]
                value = [{"use": item.use, "with": item.settings} for item in chosen]
                self._check(place.step, label, place.field, value, where, own_items=True)
        for label, item in items.items():
            assert item.use is not None
            check_settings(item.use, item.settings, f"{where}.of ({label})", self._variables, loose=True)
        self._lists.append(Parameter(name, "list", place, picks, labels))

    def add_domain(self, name: str, domain: Domain) -> None:
        """Let a setting, or a variable, be of a domain."""
        where = f"{self._where}: set.{name}"
        place, alternative = self._place(name, where)
        if place.step == VARIABLES:
            self._check_variable(place.field, domain, where)
            self._add(name, place, domain, ())
            return
        labels = self._labels_with(place, alternative, where)
        if place.item is None:
            if required := domain.when.get(place.step):
                asked = required if isinstance(required, tuple) else (required,)
                self._refuse_without_field(place, asked, labels, where)
            if any(p.place == place and set(p.alternatives) & set(labels) for p in self._lists):
                raise ConfigError(f"{where}: {place.field} is a list of the space's `lists`")
            for label in labels:
                for value in _ends(domain):
                    self._check(place.step, label, place.field, value, where)
            self._add(name, place, domain, labels)
            return
        found = {label: self._list_items(place.step, label, place.field) for label in labels}
        labels = tuple(label for label, items in found.items() if place.item in items)
        if not labels:
            known = [item for items in found.values() for item in items]
            raise ConfigError(
                f"{where}: {place.step}.{place.field} has no item {place.item!r}{_hint(place.item, known)}"
            )
        item, most = found[labels[0]][place.item]
        assert item.use is not None
        require_field(item.use, place.child, where)
        for value in _ends(domain):
            check_domain(item.use, item.settings, place.child, value, where, self._variables)
        explicit = re.search(r":\d+\.", name) is not None
        for n in [place.occurrence] if explicit else range(1, most + 1):
            spot = replace(place, occurrence=n)
            self._add(_name(spot, alternative), spot, domain, labels)

    def add_declared(self, auto: bool | Sequence[str]) -> None:
        """Add the search domains that the primitives of all steps, or of some, declare and nothing else has set."""
        chosen = list(self._steps) if auto is True else list(auto or ())
        for step_id in chosen:
            self._step(step_id, f"{self._where}: auto")
            slot = any(slot.name == step_id for slot in self._slots)
            for label, alternative in self._alternatives[step_id].items():
                if alternative.use is None:
                    continue
                named = label if slot else None
                lists = self._item_lists(step_id, label)
                for field, domain in find(alternative.use).domains().items():
                    kept = field in self._kept.get((step_id, label), ()) or field in {
                        name.split(".")[0] for name in lists
                    }
                    self._declare(
                        Place(step_id, field), named, label, domain, kept or _from_variable(alternative.settings, field)
                    )
                for field in lists:
                    fixed = not any(p.place == Place(step_id, field) and label in p.alternatives for p in self._lists)
                    for item_label, (item, most) in self._list_items(step_id, label, field).items():
                        assert item.use is not None
                        for child, domain in find(item.use).domains().items():
                            kept = _from_variable(item.settings, child) or (not fixed and child in item.settings)
                            for n in range(1, most + 1):
                                self._declare(Place(step_id, field, item_label, n, child), named, label, domain, kept)

    def build(self, limits: dict[str, float]) -> Space:
        """Return the tree.

        Raises:
            ConfigError: settings that a primitive would not take, or conditions that cannot be followed.
        """
        values = [
            replace(parameter, conditions=self._conditions(parameter, domain)) for parameter, domain in self._values
        ]
        self._check_alternatives(values)
        fixed = {
            f"{step_id}:{label}.{field}": labels
            for step_id, labelled in self._alternatives.items()
            for label in labelled
            for field, labels in self._fixed_lists(step_id, label).items()
        }
        ordered = _in_order(values, self._where)
        return Space((*self._slots, *self._lists, *ordered), self._alternatives, fixed, limits)

    # --- names -----------------------------------------------------------------------------------

    def _step(self, step_id: str, where: str) -> Mapping[str, Any]:
        if step_id not in self._steps:
            raise ConfigError(f"{where}: the pipeline has no step {step_id!r}{_hint(step_id, self._steps)}")
        return self._steps[step_id]

    def _place(self, name: str, where: str) -> tuple[Place, str | None]:
        found = _NAME.fullmatch(name)
        if found is None:
            raise ConfigError(
                f"{where}: write <step>.<field>, <step>:<alternative>.<field>, <step>.<field>:<item>.<its field> or "
                "vars.<name>"
            )
        step, field, item = found["step"], found["field"], found["item"]
        if step == VARIABLES:
            if field not in self._variables:
                raise ConfigError(f"{where}: the pipeline has no variable {field!r}{_hint(field, self._variables)}")
            return Place(VARIABLES, field), None
        self._step(step, where)
        alternative = found["alternative"]
        if alternative is not None and alternative not in self._alternatives[step]:
            known = self._alternatives[step]
            raise ConfigError(f"{where}: step {step!r} has no alternative {alternative!r}{_hint(alternative, known)}")
        return Place(step, field, item, int(found["n"] or 1), found["child"] or ""), alternative

    def _labels_with(self, place: Place, alternative: str | None, where: str) -> tuple[str, ...]:
        """Return the alternatives of a step that have a field.

        Raises:
            ConfigError: none has it.
        """
        labelled = self._alternatives[place.step]
        asked = [alternative] if alternative is not None else [label for label, one in labelled.items() if one.use]
        top = place.field.split(".")[0]
        having = [label for label in asked if (use := labelled[label].use) and top in find(use).Config.model_fields]
        if not having:
            use = labelled[asked[0]].use
            if use is None:
                raise ConfigError(f"{where}: the step is left out there, so it has no settings")
            require_field(use, place.field, where)
        return tuple(having)

    def _refuse_without_field(self, place: Place, asked: Iterable[Any], having: Sequence[str], where: str) -> None:
        for label, one in self._alternatives[place.step].items():
            if one.use is not None and (one.use in asked or label in asked) and label not in having:
                require_field(one.use, place.field, where)

    # --- domains ---------------------------------------------------------------------------------

    def _add(self, name: str, place: Place, domain: Domain, labels: tuple[str, ...]) -> None:
        for other, _ in self._values:
            if other.place == place and (not labels or set(other.alternatives) & set(labels)):
                raise ConfigError(f"{self._where}: set.{name} is the same setting as set.{other.name}")
        plain = domain.model_copy(update={"when": {}})
        self._values.append((Parameter(name, "value", place, plain, labels), domain))

    def _declare(self, place: Place, named: str | None, label: str, domain: Domain, kept: bool) -> None:
        for other, _ in self._values:
            inner = other.place.field.startswith(f"{place.field}.") and place.item is None
            if (other.place == place or (inner and other.place.step == place.step)) and label in other.alternatives:
                return
        if not kept:
            self._add(_name(place, named), place, domain, (label,))

    def _conditions(self, parameter: Parameter, domain: Domain) -> tuple[Condition, ...]:
        where = f"{self._where}: {parameter.name}: when"
        return tuple(
            self._condition(parameter, key, value if isinstance(value, tuple) else (value,), where)
            for key, value in domain.when.items()
        )

    def _condition(self, parameter: Parameter, key: str, values: tuple[Any, ...], where: str) -> Condition:
        place = parameter.place
        if place.item is not None:
            item = self._list_items(place.step, parameter.alternatives[0], place.field)[place.item][0]
            assert item.use is not None
            require_field(item.use, key, where)
            default = get(item.settings, key, field_default(item.use, key))
            spot = replace(place, child=key)
            return Condition(spot, values, dict.fromkeys(self._alternatives[place.step], default))
        own = [use for label in parameter.alternatives if (use := self._alternatives[place.step][label].use)]
        is_field = any(key.split(".")[0] in find(use).Config.model_fields for use in own)
        if key in self._steps:
            if is_field:
                raise ConfigError(f"{where}: {key!r} is both a step and a field of {own[0]}; write {place.step}.{key}")
            known = [text for label, one in self._alternatives[key].items() for text in (label, one.use)]
            if unknown := [value for value in values if value not in known]:
                raise ConfigError(
                    f"{where}: step {key!r} is never {unknown[0]!r}{_hint(str(unknown[0]), map(str, known))}"
                )
            return Condition(Place(key), values, {})
        if key.startswith(f"{VARIABLES}."):
            name = self._place(key, where)[0].field
            return Condition(Place(VARIABLES, name), values, {"": self._variables[name]})
        step, _, field = (
            key.partition(".") if key.split(".")[0] in self._steps and "." in key else (place.step, "", key)
        )
        if step == place.step and not own:
            raise ConfigError(f"{where}: {key!r} is no step of the pipeline{_hint(key, self._steps)}")
        having = self._labels_with(Place(step, field), None, where)
        otherwise = {}
        for label in having:
            one = self._alternatives[step][label]
            assert one.use is not None
            otherwise[label] = self._variable(get(one.settings, field, field_default(one.use, field)))
        return Condition(Place(step, field), values, otherwise)

    def _variable(self, value: Any) -> Any:
        found = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
        return self._variables.get(found[1]) if found else value

    # --- lists of primitives -----------------------------------------------------------------------

    def _fixed_lists(self, step_id: str, label: str) -> dict[str, tuple[str, ...]]:
        """Return field → labels of the items of lists of primitives that the document has and the space leaves."""
        searched = {p.place.field for p in self._lists if p.place.step == step_id and label in p.alternatives}
        return {
            field: tuple(Use.model_validate(item).use for item in value)
            for field, value in self._alternatives[step_id][label].settings.items()
            if field not in searched and _is_list_of_uses(value)
        }

    def _item_lists(self, step_id: str, label: str) -> list[str]:
        searched = [p.place.field for p in self._lists if p.place.step == step_id and label in p.alternatives]
        return [*searched, *self._fixed_lists(step_id, label)]

    def _list_items(self, step_id: str, label: str, field: str) -> dict[str, tuple[Alternative, int]]:
        """Return label → item, and how often it may be in the list."""
        for parameter in self._lists:
            if parameter.place == Place(step_id, field) and label in parameter.alternatives:
                assert isinstance(parameter.domain, Picks)
                most = parameter.domain.most if parameter.domain.repeats else min(1, parameter.domain.most)
                return {name: (item, most) for name, item in parameter.domain.items.items()}
        found: dict[str, tuple[Alternative, int]] = {}
        if field in self._fixed_lists(step_id, label):
            for value in self._alternatives[step_id][label].settings[field]:
                use = Use.model_validate(value)
                first = found.get(use.use, (Alternative(use.use, dict(use.settings)), 0))
                found[use.use] = (first[0], first[1] + 1)
        return found

    # --- checks ----------------------------------------------------------------------------------

    def _check(self, step_id: str, label: str, field: str, value: Any, where: str, *, own_items: bool = False) -> None:
        one = self._alternatives[step_id][label]
        assert one.use is not None
        check_domain(one.use, one.settings, field, value, where, self._variables, shallow=own_items)

    def _check_optional(self, step_id: str, step: Mapping[str, Any], uses: Iterable[str], where: str) -> None:
        for use in uses:
            item = find(use, where)
            ports = [port.port for port in item.inputs.values()], list(item.outputs.values())
            if ports != ([Port.CLIP], [Port.CLIP]) or next(iter(item.inputs.values())).several:
                have = f"{[str(p) for p in ports[0]]} → {[str(p) for p in ports[1]]}"
                raise ConfigError(
                    f"{where}: only a step with one Clip input and one Clip output can be left out (null); {use} has "
                    f"{have}"
                )
        if input_of(step) is None:
            raise ConfigError(f"{where}: a step that can be left out (null) takes exactly one edge, `in: <step>`")
        if any(str(output).split(".")[0] == step_id for output in self._base.get("outputs", ())):
            raise ConfigError(f"{where}: {step_id!r} is an output of the pipeline and cannot be left out (null)")

    def _check_variable(self, name: str, domain: Domain, where: str) -> None:
        for step_id, labelled in self._alternatives.items():
            for label, one in labelled.items():
                for field, value in one.settings.items():
                    if one.use is not None and f"${{{name}}}" in str(value):
                        for try_value in _ends(domain):
                            variables = {**self._variables, name: try_value}
                            what = f"{where} (in {step_id}:{label})"
                            check_domain(one.use, one.settings, field, value, what, variables)

    def _check_alternatives(self, values: Sequence[Parameter]) -> None:
        for step_id, labelled in self._alternatives.items():
            for label, one in labelled.items():
                if one.use is None or not any(slot.name == step_id for slot in self._slots):
                    continue
                given = {
                    p.place.field.split(".")[0]
                    for p in (*self._lists, *values)
                    if p.place.step == step_id and (label in p.alternatives)
                }
                check_settings(
                    one.use, one.settings, f"{self._where}: slots.{step_id}", self._variables, searched=given
                )


def _choice(values: tuple[Any, ...]) -> Domain:
    from training.autovideo.domains import choice

    return choice(*values)


def _free(label: str, taken: Mapping[str, Any]) -> str:
    number = 1
    while (name := label if number == 1 else f"{label}-{number}") in taken:
        number += 1
    return name


def _hint(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(set(known)))}" if known else ""


def _name(place: Place, alternative: str | None) -> str:
    name = f"{place.step}{f':{alternative}' if alternative else ''}.{place.field}"
    if place.item is None:
        return name
    return f"{name}:{place.item}{f':{place.occurrence}' if place.occurrence > 1 else ''}.{place.child}"


def _ends(domain: Domain) -> list[Any]:
    return (
        [domain.low, domain.high]
        if isinstance(domain, FloatRange) or domain.kind == "int"
        else list(all_values(domain))
    )


def _from_variable(settings: Mapping[str, Any], field: str) -> bool:
    return "${" in str(settings.get(field, ""))


def _is_list_of_uses(value: Any) -> bool:
    def is_use(item: Any) -> bool:
        return isinstance(item, Mapping) and "use" in item

    return isinstance(value, list | tuple) and len(value) > 0 and all(map(is_use, value))


def _in_order(values: Sequence[Parameter], where: str) -> list[Parameter]:
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
