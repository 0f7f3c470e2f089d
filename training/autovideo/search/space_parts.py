"""The pipeline that a space varies, and the names by which its parts are called."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from training.autovideo.catalogue import find
from training.autovideo.search.space_checks import require_field
from training.autovideo.search.space_tree import VARIABLES, Alternative, Parameter, Picks, Place
from training.autovideo.use import Use
from training.core.config import ConfigError

_NAME = re.compile(
    r"(?P<step>[^.:]+)(:(?P<alternative>[^.:]+))?\.(?P<field>[^:]+)(:(?P<item>[^.:]+)(:(?P<n>\d+))?\.(?P<child>.+))?"
)


class Parts:
    """Steps with their alternatives, variables, lists.

    Raises:
        ConfigError: the pipeline uses a primitive that there is not.
    """

    def __init__(self, base: Mapping[str, Any]) -> None:
        self.steps: dict[str, Mapping[str, Any]] = {str(step["id"]): step for step in base.get("steps", ())}
        self.variables: dict[str, Any] = dict(base.get(VARIABLES) or {})
        self.alternatives = {
            step_id: {str(step["use"]): Alternative(str(step["use"]), dict(step.get("with") or {}))}
            for step_id, step in self.steps.items()
        }
        self.lists: list[Parameter] = []
        """Those that are searched."""
        for step_id, labelled in self.alternatives.items():
            for label in labelled:
                find(label, f"step {step_id!r}")

    def step(self, step_id: str, where: str) -> Mapping[str, Any]:
        """Return a step.

        Raises:
            ConfigError: there is none.
        """
        if step_id not in self.steps:
            raise ConfigError(f"{where}: the pipeline has no step {step_id!r}{hint(step_id, self.steps)}")
        return self.steps[step_id]

    def place(self, name: str, where: str) -> tuple[Place, str | None]:
        """Return the place that a name of a space document means, and its alternative where the name has one.

        Raises:
            ConfigError: another form, or a step, variable or alternative that there is not.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise ConfigError(
                f"{where}: write <step>.<field>, <step>:<alternative>.<field>, <step>.<field>:<item>.<its field> or "
                "vars.<name>"
            )
        step, field, item = found["step"], found["field"], found["item"]
        if step == VARIABLES:
            if field not in self.variables:
                raise ConfigError(f"{where}: the pipeline has no variable {field!r}{hint(field, self.variables)}")
            return Place(VARIABLES, field), None
        self.step(step, where)
        alternative = found["alternative"]
        if alternative is not None and alternative not in self.alternatives[step]:
            known = self.alternatives[step]
            raise ConfigError(f"{where}: step {step!r} has no alternative {alternative!r}{hint(alternative, known)}")
        return Place(step, field, item, int(found["n"] or 1), found["child"] or ""), alternative

    def labels_with(self, place: Place, alternative: str | None, where: str) -> tuple[str, ...]:
        """Return the alternatives of a step that have a field.

        Raises:
            ConfigError: none has it.
        """
        labelled = self.alternatives[place.step]
        asked = [alternative] if alternative is not None else [label for label, one in labelled.items() if one.use]
        top = place.field.split(".")[0]
        having = [label for label in asked if (use := labelled[label].use) and top in find(use).Config.model_fields]
        if not having:
            use = labelled[asked[0]].use
            if use is None:
                raise ConfigError(f"{where}: the step is left out there, so it has no settings")
            require_field(use, place.field, where)
        return tuple(having)

    def fixed_lists(self, step_id: str, label: str) -> dict[str, tuple[str, ...]]:
        """Return field → labels of the items of lists of primitives that the document has and the space leaves."""
        searched = {p.place.field for p in self.lists if p.place.step == step_id and label in p.alternatives}
        return {
            field: tuple(Use.model_validate(item).use for item in value)
            for field, value in self.alternatives[step_id][label].settings.items()
            if field not in searched and _is_list_of_uses(value)
        }

    def item_lists(self, step_id: str, label: str) -> list[str]:
        """Return the fields that are lists of primitives, searched or not."""
        searched = [p.place.field for p in self.lists if p.place.step == step_id and label in p.alternatives]
        return [*searched, *self.fixed_lists(step_id, label)]

    def list_items(self, step_id: str, label: str, field: str) -> dict[str, tuple[Alternative, int]]:
        """Return label → item, and how often it may be in the list."""
        for parameter in self.lists:
            if parameter.place == Place(step_id, field) and label in parameter.alternatives:
                assert isinstance(parameter.domain, Picks)
                most = parameter.domain.most if parameter.domain.repeats else min(1, parameter.domain.most)
                return {name: (item, most) for name, item in parameter.domain.items.items()}
        found: dict[str, tuple[Alternative, int]] = {}
        if field in self.fixed_lists(step_id, label):
            for value in self.alternatives[step_id][label].settings[field]:
                use = Use.model_validate(value)
                first = found.get(use.use, (Alternative(use.use, dict(use.settings)), 0))
                found[use.use] = (first[0], first[1] + 1)
        return found

    def variable(self, value: Any) -> Any:
        """Return the value of a variable where a setting is nothing but one, else the setting."""
        found = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
        return self.variables.get(found[1]) if found else value


def hint(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about a name that there is not: the nearest, or all that there are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(set(known)))}" if known else ""


def _is_list_of_uses(value: Any) -> bool:
    def is_use(item: Any) -> bool:
        return isinstance(item, Mapping) and "use" in item

    return isinstance(value, list | tuple) and len(value) > 0 and all(map(is_use, value))
