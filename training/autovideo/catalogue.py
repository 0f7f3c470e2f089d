"""Where primitives are found: our own modules, and those that installed packages name as entry points.

    [project.entry-points."fovea.primitives"]
    my_primitives = "my_package.primitives"      # a module, or one class: "my_package.primitives:MyAugmenter"

Nothing is registered at import: the catalogue reads a fixed list of modules and the entry points when it is first
asked.
"""

import difflib
import functools
import importlib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from training.autovideo.primitive import Primitive, PrimitiveConfig
from training.core.config import ConfigError, validate

GROUP = "fovea.primitives"

MODULES = (
    "training.autovideo.readers",
    "training.autovideo.packing",
    "training.autovideo.clips",
    "training.autovideo.augment.colour",
    "training.autovideo.augment.geometry",
    "training.autovideo.augment.filter",
    "training.autovideo.augment.noise",
    "training.autovideo.augment.weather",
    "training.autovideo.augment.time",
    "training.autovideo.augment.mix",
    "training.autovideo.augment.combiners",
    "training.autovideo.recognisers",
    "training.autovideo.systems",
    "training.autovideo.evaluation.extractors",
    "training.autovideo.evaluation.evaluators",
    "training.autovideo.evaluation.ensemblers",
    "training.autovideo.exporters",
)
"""Our own; none of them imports torch."""


def in_module(module: ModuleType) -> Iterator[type[Primitive]]:
    """Yield the primitives that a module defines, in the order of its source."""
    for value in vars(module).values():
        ours = isinstance(value, type) and issubclass(value, Primitive) and value.__module__ == module.__name__
        if ours and "id" in vars(value):
            yield value


@functools.cache
def catalogue() -> dict[str, type[Primitive]]:
    """Return every primitive by its name.

    Raises:
        ConfigError: two of the same name, or an entry point that cannot be loaded or is something else.
    """
    found: dict[str, type[Primitive]] = {}
    for name in MODULES:
        for item in in_module(importlib.import_module(name)):
            _add(found, item, name)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        for item in _foreign(point):
            _add(found, item, f"entry point {point.name!r} ({point.value})")
    return found


def _add(found: dict[str, type[Primitive]], item: type[Primitive], origin: str) -> None:
    if item.id in found and found[item.id] is not item:
        raise ConfigError(
            f"two primitives are called {item.id!r}: {found[item.id].__module__}.{found[item.id].__qualname__}, and "
            f"{item.__module__}.{item.__qualname__} of {origin}; rename one, or uninstall the package"
        )
    found[item.id] = item


def _foreign(point: EntryPoint) -> list[type[Primitive]]:
    what = f"entry point {point.name!r} = {point.value!r} of group {GROUP}"
    try:
        loaded = point.load()
    except Exception as error:  # whatever a foreign package raises at import
        raise ConfigError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error
    items = list(in_module(loaded)) if isinstance(loaded, ModuleType) else [loaded]
    if not items or not all(isinstance(item, type) and issubclass(item, Primitive) for item in items):
        raise ConfigError(f"{what} is neither a primitive nor a module with primitives")
    if nameless := [item.__qualname__ for item in items if "id" not in vars(item)]:
        raise ConfigError(f"{what}: {nameless} have no name; put @primitive above the class")
    return items


def find(identifier: str, where: str = "") -> type[Primitive]:
    """Return a primitive by its name.

    Raises:
        ConfigError: there is none; the message has the nearest names.
    """
    known = catalogue()
    if identifier in known:
        return known[identifier]
    close = difflib.get_close_matches(identifier, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    raise ConfigError(
        f"{where + ': ' if where else ''}no primitive is called {identifier!r}{hint} (`fovea primitives list`)"
    )


def configure(identifier: str, values: object, where: str) -> PrimitiveConfig:
    """Return the validated config of a primitive.

    Raises:
        ConfigError: no such primitive, or values that are not valid; `where` stands before the field.
    """
    return validate(find(identifier, where).Config, values, f"{where} ({identifier})")
