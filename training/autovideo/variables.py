"""`${name}` in documents: the value of one of its `vars`, and nothing else.

A text that is `${name}` and no more becomes the value with its type; inside a longer text it becomes text. `$${` is a
literal `${`. There are no expressions, no environment and no defaults.
"""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

from training.autovideo.plain import hint, join

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|\$\{")

Say = Callable[[str], None]
"""Takes one problem."""


def escape(value: Any) -> Any:
    """Return plain values in which a literal `${` survives being read as a document once more."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, Mapping):
        return {key: escape(item) for key, item in value.items()}
    return [escape(item) for item in value] if isinstance(value, list | tuple) else value


def names_in(value: Any) -> set[str]:
    """Return the variables that plain values refer to."""
    if isinstance(value, str):
        return {match["name"] for match in _TOKEN.finditer(value) if match["name"]}
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return set().union(*(names_in(item) for item in items))


def substitute(value: Any, variables: Mapping[str, Any], path: str, say: Say) -> Any:
    """Return plain values with variables replaced; what is wrong is said with the path before it."""
    if isinstance(value, str):
        return _text(value, variables, path, say)
    if isinstance(value, Mapping):
        for key in value:
            if "${" in key:
                say(f"{path}: the key {key!r} has a variable; only values may")
        return {key: substitute(item, variables, join(path, key), say) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [substitute(item, variables, f"{path}[{number}]", say) for number, item in enumerate(value)]
    return value


def _text(text: str, variables: Mapping[str, Any], path: str, say: Say) -> Any:
    parts: list[str] = []
    end = 0
    for match in _TOKEN.finditer(text):
        parts.append(text[end : match.start()])
        end = match.end()
        name = match["name"]
        if match.group() == "$${":
            parts.append("${")
        elif name is None:
            rest = text[match.start() : match.start() + 40]
            say(f"{path}: {rest!r} is not `${{name}}` of a variable: no expressions (`$${{` is a literal `${{`)")
        elif name not in variables:
            known = f"; vars has: {', '.join(variables)}" if variables else "; there are no vars"
            say(f"{path}: `${{{name}}}` is not in vars{hint(name, variables) or known}")
        elif match.group() == text:
            return copy.deepcopy(variables[name])
        elif isinstance(variables[name], list | dict | None):
            kind = "null" if variables[name] is None else "a list or a mapping"
            say(f"{path}: `${{{name}}}` is {kind} and cannot stand inside a text")
        else:
            item = variables[name]
            parts.append(("true" if item else "false") if isinstance(item, bool) else str(item))
    return "".join([*parts, text[end:]])


def solve(variables: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Return variables with the references among them replaced.

    Those in a circle are said, and left out of the result.
    """
    solved: dict[str, Any] = {}
    for name in variables:
        if not NAME.fullmatch(name):
            say(f"vars: {name!r} is no name of a variable: letters, digits and _, no digit first")
    for name in _order(variables, say):
        solved[name] = substitute(variables[name], {**solved, **_later(variables, solved)}, f"vars.{name}", say)
    return {name: solved[name] for name in variables if name in solved}


def _later(variables: Mapping[str, Any], solved: Mapping[str, Any]) -> dict[str, str]:
    """Stand-ins of variables in a circle, which are reported once and not again by each that needs them."""
    return {name: "" for name in variables if name not in solved}


def _order(variables: Mapping[str, Any], say: Say) -> list[str]:
    done: list[str] = []
    told: set[str] = set()

    def visit(name: str, chain: tuple[str, ...]) -> None:
        if name in done or name in told or name not in variables:
            return
        if name in chain:
            circle = chain[chain.index(name) :]
            told.update(circle)
            say(f"vars: {' -> '.join([*circle, name])} refer to one another in a circle")
            return
        for other in sorted(names_in(variables[name])):
            visit(other, (*chain, name))
        if name not in told:
            done.append(name)

    for name in variables:
        visit(name, ())
    return done
