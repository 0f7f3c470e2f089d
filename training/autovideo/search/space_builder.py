"""Makes the tree of a space, and checks it against the pipeline and against what its primitives declare."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from training.autovideo.catalogue import find
from training.autovideo.domains import Domain, FloatRange
from training.autovideo.primitive import Port
from training.autovideo.search.space_apply import input_of
from training.autovideo.search.space_checks import check_domain, check_settings, require_field
from training.autovideo.search.space_conditions import conditions, in_order
from training.autovideo.search.space_parts import Parts, hint
from training.autovideo.search.space_tree import (
    NONE,
    VARIABLES,
    Alternative,
    Parameter,
    Picks,
    Place,
    Space,
    all_values,
)
from training.autovideo.use import Use
from training.core.config import ConfigError


class SpaceBuilder:
    """Collects slots, then lists, then domains; `build` puts them in order and checks the whole."""

    def __init__(self, base: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._base = base
        self._parts = Parts(base)
        self._kept: dict[tuple[str, str], set[str]] = {}
        """(step, label) → fields that the space gives itself, which `auto` leaves alone."""
        self._slots: list[Parameter] = []
        self._values: list[tuple[Parameter, Domain]] = []

    def add_slot(self, step_id: str, alternatives: Sequence[Use | None]) -> None:
        """Let a step be one of some primitives, or be left out (None)."""
        where = f"{self._where}: slots.{step_id}"
        step = self._parts.step(step_id, where)
        own = next(iter(self._parts.alternatives[step_id].values()))
        labelled: dict[str, Alternative] = {}
        for use in alternatives:
            if use is None:
                if NONE in labelled:
                    raise ConfigError(f"{where}: null is there twice")
                labelled[NONE] = Alternative(None)
                continue
            fields = find(use.use, where).Config.model_fields
            # What the document sets of the step goes on wherever the alternative has a setting of that name: the recipe
            # of a training is not written again for every net.
            kept = {name: value for name, value in own.settings.items() if name in fields}
            label = _free(use.use, labelled)
            labelled[label] = Alternative(use.use, {**kept, **use.settings})
            self._kept[step_id, label] = set(use.settings)
        if NONE in labelled:
            self._check_optional(step_id, step, [str(step["use"]), *(a.use for a in labelled.values() if a.use)], where)
        if list(labelled) == [NONE]:
            raise ConfigError(f"{where}: null is its only alternative; take the step out of the pipeline instead")
        self._parts.alternatives[step_id] = labelled
        domain = _choice(tuple(labelled))
        self._slots.append(Parameter(step_id, "slot", Place(step_id), domain))

    def add_list(self, name: str, of: Sequence[Use], least: int, most: int, repeats: bool) -> None:
        """Let a list of primitives in a step's settings be an ordered sub-list of some."""
        where = f"{self._where}: lists.{name}"
        place, alternative = self._parts.place(name, where)
        if place.step == VARIABLES or place.item is not None:
            raise ConfigError(f"{where}: write <step>.<field>, the field being a list of primitives")
        items: dict[str, Alternative] = {}
        for use in of:
            find(use.use, where)
            items[_free(use.use, items)] = Alternative(use.use, dict(use.settings))
        labels = self._parts.labels_with(place, alternative, where)
        picks = Picks(items, least, most, repeats)
        for other in self._parts.lists:
            if other.place == place and set(other.alternatives) & set(labels):
                raise ConfigError(f"{where}: the same list as {other.name}")
        for label in labels:
            for length in {least, most}:
                chosen = [list(items.values())[n % len(items)] for n in range(length)]
                value = [{"use": item.use, "with": item.settings} for item in chosen]
                self._check(place.step, label, place.field, value, where, own_items=True)
        for label, item in items.items():
            assert item.use is not None
            check_settings(item.use, item.settings, f"{where}.of ({label})", self._parts.variables, loose=True)
        self._parts.lists.append(Parameter(name, "list", place, picks, labels))

    def add_domain(self, name: str, domain: Domain) -> None:
        """Let a setting, or a variable, be of a domain."""
        where = f"{self._where}: set.{name}"
        place, alternative = self._parts.place(name, where)
        if place.step == VARIABLES:
            self._check_variable(place.field, domain, where)
            self._add(name, place, domain, ())
            return
        labels = self._parts.labels_with(place, alternative, where)
        if place.item is None:
            if required := domain.when.get(place.step):
                asked = required if isinstance(required, tuple) else (required,)
                self._refuse_without_field(place, asked, labels, where)
            if any(p.place == place and set(p.alternatives) & set(labels) for p in self._parts.lists):
                raise ConfigError(f"{where}: {place.field} is a list of the space's `lists`")
            for label in labels:
                for value in _ends(domain):
                    self._check(place.step, label, place.field, value, where)
            self._add(name, place, domain, labels)
            return
        found = {label: self._parts.list_items(place.step, label, place.field) for label in labels}
        labels = tuple(label for label, items in found.items() if place.item in items)
        if not labels:
            known = [item for items in found.values() for item in items]
            raise ConfigError(
                f"{where}: {place.step}.{place.field} has no item {place.item!r}{hint(place.item, known)}"
            )
        item, most = found[labels[0]][place.item]
        assert item.use is not None
        require_field(item.use, place.child, where)
        for value in _ends(domain):
            check_domain(item.use, item.settings, place.child, value, where, self._parts.variables)
        explicit = re.search(r":\d+\.", name) is not None
        for n in [place.occurrence] if explicit else range(1, most + 1):
            spot = replace(place, occurrence=n)
            self._add(_name(spot, alternative), spot, domain, labels)

    def add_declared(self, auto: bool | Sequence[str]) -> None:
        """Add the search domains that the primitives of all steps, or of some, declare and nothing else has set."""
        chosen = list(self._parts.steps) if auto is True else list(auto or ())
        for step_id in chosen:
            self._parts.step(step_id, f"{self._where}: auto")
            slot = any(slot.name == step_id for slot in self._slots)
            for label, alternative in self._parts.alternatives[step_id].items():
                if alternative.use is None:
                    continue
                named = label if slot else None
                lists = self._parts.item_lists(step_id, label)
                for field, domain in find(alternative.use).domains().items():
                    kept = field in self._kept.get((step_id, label), ()) or field in {
                        name.split(".")[0] for name in lists
                    }
                    self._declare(
                        Place(step_id, field), named, label, domain, kept or _from_variable(alternative.settings, field)
                    )
                for field in lists:
                    fixed = not any(
                        p.place == Place(step_id, field) and label in p.alternatives for p in self._parts.lists
                    )
                    for item_label, (item, most) in self._parts.list_items(step_id, label, field).items():
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
            replace(parameter, conditions=conditions(self._parts, parameter, domain, self._where))
            for parameter, domain in self._values
        ]
        self._check_alternatives(values)
        fixed = {
            f"{step_id}:{label}.{field}": labels
            for step_id, labelled in self._parts.alternatives.items()
            for label in labelled
            for field, labels in self._parts.fixed_lists(step_id, label).items()
        }
        ordered = in_order(values, self._where)
        return Space((*self._slots, *self._parts.lists, *ordered), self._parts.alternatives, fixed, limits)

    def _refuse_without_field(self, place: Place, asked: Iterable[Any], having: Sequence[str], where: str) -> None:
        for label, one in self._parts.alternatives[place.step].items():
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

    # --- checks ----------------------------------------------------------------------------------

    def _check(self, step_id: str, label: str, field: str, value: Any, where: str, *, own_items: bool = False) -> None:
        one = self._parts.alternatives[step_id][label]
        assert one.use is not None
        check_domain(one.use, one.settings, field, value, where, self._parts.variables, shallow=own_items)

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
        for step_id, labelled in self._parts.alternatives.items():
            for label, one in labelled.items():
                for field, value in one.settings.items():
                    if one.use is not None and f"${{{name}}}" in str(value):
                        for try_value in _ends(domain):
                            variables = {**self._parts.variables, name: try_value}
                            what = f"{where} (in {step_id}:{label})"
                            check_domain(one.use, one.settings, field, value, what, variables)

    def _check_alternatives(self, values: Sequence[Parameter]) -> None:
        for step_id, labelled in self._parts.alternatives.items():
            for label, one in labelled.items():
                if one.use is None or not any(slot.name == step_id for slot in self._slots):
                    continue
                given = {
                    p.place.field.split(".")[0]
                    for p in (*self._parts.lists, *values)
                    if p.place.step == step_id and (label in p.alternatives)
                }
                check_settings(
                    one.use, one.settings, f"{self._where}: slots.{step_id}", self._parts.variables, searched=given
                )


def _choice(values: tuple[Any, ...]) -> Domain:
    from training.autovideo.domains import choice

    return choice(*values)


def _free(label: str, taken: Mapping[str, Any]) -> str:
    number = 1
    while (name := label if number == 1 else f"{label}-{number}") in taken:
        number += 1
    return name


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
