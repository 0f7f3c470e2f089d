"""Would a primitive take this setting? Asked of its config, one setting at a time."""

import copy
import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from training.autovideo.catalogue import find
from training.autovideo.search.space_apply import put
from training.core.config import ConfigError, validate


def require_field(use: str, field: str, where: str) -> None:
    """Check that a primitive has a field.

    Raises:
        ConfigError: it has not; with the nearest one.
    """
    import difflib

    top, known = field.split(".")[0], find(use, where).Config.model_fields
    if top not in known:
        close = difflib.get_close_matches(top, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known) or 'no settings'}"
        raise ConfigError(f"{where}: {use} has no setting {top!r}; {hint}")


def field_default(use: str, field: str) -> Any:
    """Return the default at a dotted path of a primitive's config as a plain value; None where there is none."""
    top, *inner = field.split(".")
    value: Any = find(use).Config.model_fields[top].get_default(call_default_factory=True)
    for part in inner:
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def check_domain(
    use: str,
    settings: Mapping[str, Any],
    field: str,
    value: Any,
    where: str,
    variables: Mapping[str, Any],
    *,
    shallow: bool = False,
) -> None:
    """Check that a primitive takes a value for a setting.

    Complaints about other settings, or about settings together, are no concern of this check: a candidate may be
    refused for them when it is compiled.

    Args:
        use: name of the primitive.
        settings: its other settings.
        field: dotted.
        value: to try.
        where: for the message.
        variables: of the document.
        shallow: only complaints about the field as a whole count, not about what is inside.

    Raises:
        ConfigError: it does not.
    """
    filled = copy.deepcopy(dict(settings))
    put(filled, field, value)
    path = tuple(field.split("."))
    for location, message in _complaints(use, substitute(filled, variables)):
        same = location == path[: len(location)] if shallow else location[: len(path)] == path[: len(location)]
        if location and same:
            raise ConfigError(f"{where}: {use} does not take {field} = {value!r:.80}: {'.'.join(location)}: {message}")


def check_settings(
    use: str,
    settings: Mapping[str, Any],
    where: str,
    variables: Mapping[str, Any],
    *,
    searched: Collection[str] = (),
    loose: bool = False,
) -> None:
    """Check settings that stay as they are.

    Args:
        use: name of the primitive.
        settings: of it.
        where: for the message.
        variables: of the document.
        searched: fields that get another value in each candidate: complaints about them do not count.
        loose: missing fields do not count either; something else gives them.

    Raises:
        ConfigError: the primitive does not take them.
    """
    filled = substitute(dict(settings), variables)
    for location, _ in _complaints(use, filled):
        if (not location and searched) or (location and location[0] in searched):
            continue
        if loose and location and location[0] not in filled:
            continue
        validate(find(use).Config, filled, f"{where} ({use})")


def _complaints(use: str, settings: Any) -> list[tuple[tuple[str, ...], str]]:
    try:
        find(use).Config.model_validate(settings)
    except ValidationError as error:
        return [(tuple(str(part) for part in item["loc"]), item["msg"]) for item in error.errors()]
    return []


def substitute(value: Any, variables: Mapping[str, Any]) -> Any:
    """Return a value with `${name}` replaced by variables; names that there are not stay."""
    if isinstance(value, Mapping):
        return {name: substitute(item, variables) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [substitute(item, variables) for item in value]
    if not isinstance(value, str):
        return value
    if (whole := re.fullmatch(r"\$\{(\w+)\}", value)) and whole[1] in variables:
        return variables[whole[1]]
    return re.sub(r"\$\{(\w+)\}", lambda found: str(variables.get(found[1], found[0])), value)
