"""Plain values (null, booleans, numbers, text, lists, mappings) and their YAML.

A document is data: it has no tags, no anchors and no key twice. What is written out is read back equal.
"""

import difflib
import math
import re
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from training.core.config import ConfigError

WIDTH = 110
"""Longest mapping or list that is written on one line, characters."""

_BREAKS = re.compile("[\n\r\x85\u2028\u2029\ufeff]")

_READER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Reader(_READER):  # type: ignore[misc]
    """Refuses what a mapping would silently drop: a key that stands there twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: dict[Hashable, Any] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "merge keys (`<<`) are not read", key_node.start_mark
                )
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    first = f"; the first is in line {seen[key].start_mark.line + 1}"
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice in one mapping{first}", key_node.start_mark
                    )
                seen[key] = key_node
        return super().construct_mapping(node, deep=deep)


def read_yaml(text: str, where: str) -> Any:
    """Return what a YAML text says.

    Raises:
        ConfigError: no YAML, a key twice, an anchor, alias, merge key or tag; the message has the line.
    """
    try:
        for event in yaml.parse(text, Loader=_READER):
            if isinstance(event, yaml.events.AliasEvent) or getattr(event, "anchor", None):
                place = f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"
                raise ConfigError(f"{where}: {place}: anchors and aliases are not read; use `vars` and `${{name}}`")
        return yaml.load(text, Loader=_Reader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f": line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError(f"{where}{place}: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None


def read_yaml_file(path: Path) -> Any:
    """Return what a YAML file says.

    Raises:
        ConfigError: the file is missing or is not UTF-8, and as `read_yaml`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    return read_yaml(text, str(path))


def plain(value: Any, where: str) -> Any:
    """Return a deep copy with lists for tuples.

    Raises:
        ConfigError: something else than plain values in it, or a number that is not finite; `where` and the path to it.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {value!r} is not a finite number")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} is not text; put it in quotes")
        return {str(key): plain(item, join(where, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    kind = type(value).__name__
    raise ConfigError(f"{where}: {value!r:.60} is a {kind}; a document has plain values only (as text: in quotes)")


def join(path: str, key: str) -> str:
    """Return the path of a key below another path; a path that ends in a colon and a space starts anew."""
    return f"{path}{key}" if not path or path.endswith(": ") else f"{path}.{key}"


def hint(word: str, known: Collection[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


class _Writer(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def represent_text(self, value: str) -> Any:
        """Put what YAML would take for the end of a line in double quotes, where it is escaped."""
        return self.represent_scalar("tag:yaml.org,2002:str", value, style='"' if _BREAKS.search(value) else None)


_Writer.add_representer(str, _Writer.represent_text)


def write_yaml(value: Mapping[str, Any], blocks: Collection[str] = ()) -> str:
    """Return YAML in the order of the keys: what is short on one line, longer things as blocks.

    Args:
        value: plain values.
        blocks: top-level keys that are always written as blocks.
    """
    text: list[str] = []
    dumper = _Writer(_Lines(text), width=1 << 30, allow_unicode=True, sort_keys=False)
    root: Any = dumper.represent_data(value)
    for key, node in root.value:
        if _measure(node) > WIDTH or key.value in blocks:
            _block(node)
    root.flow_style = False
    dumper.open()
    dumper.serialize(root)
    dumper.close()
    return "".join(text)


class _Lines:
    def __init__(self, parts: list[str]) -> None:
        self.write = parts.append


def _measure(node: Any) -> int:
    """Set the style of everything below a node and return its length on one line."""
    if isinstance(node, yaml.ScalarNode):
        return len(node.value) + 2
    if isinstance(node, yaml.MappingNode):
        length = 2 + sum(_measure(key) + _measure(item) + 2 for key, item in node.value)
    else:
        length = 2 + sum(_measure(item) + 2 for item in node.value)
    node.flow_style = length <= WIDTH
    return length


def _block(node: Any) -> None:
    if isinstance(node, yaml.CollectionNode) and node.value:
        node.flow_style = False


def one_line(value: Any) -> str:
    """Return a plain value as YAML on one line."""
    text = yaml.dump(value, Dumper=_Writer, default_flow_style=True, width=1 << 30, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def merged(old: Any, new: Any) -> Any:
    """Return old settings with new ones over them, mapping by mapping."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{name: merged(old.get(name), value) for name, value in new.items()}}
    return new
