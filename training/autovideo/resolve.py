"""Configs with every default written out, also of the primitives inside them, and the keys of cached results."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from data_specs.schema import digest
from training.autovideo.catalogue import configure, find
from training.autovideo.plain import join
from training.autovideo.primitive import Determinism, Primitive, PrimitiveConfig
from training.autovideo.use import Use

if TYPE_CHECKING:
    from training.autovideo.document import Bound

_STRENGTH: tuple[Determinism, ...] = ("pure", "seeded", "impure")


def resolve(identifier: str, values: Mapping[str, Any], where: str) -> PrimitiveConfig:
    """Return the config of a primitive in which every `Use` is resolved, too.

    Raises:
        ConfigError: no such primitive, or settings that are not valid; with `where` and the path of the inner
            primitive.
    """
    config = configure(identifier, values, where)
    return cast(PrimitiveConfig, _walk(config, f"{where}: "))


def _walk(value: Any, path: str) -> Any:
    if isinstance(value, Use):
        config = _walk(configure(value.use, value.settings, path), path)
        return Use(use=value.use, settings=config.model_dump(mode="json"))
    if isinstance(value, BaseModel):
        update = {name: _walk(getattr(value, name), join(path, name)) for name in type(value).model_fields}
        return value.model_copy(update=update)
    if isinstance(value, Mapping):
        return {key: _walk(item, join(path, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_walk(item, f"{path}[{number}]") for number, item in enumerate(value))
    return value


def uses(value: Any) -> Iterator[Use]:
    """Yield the primitives inside a config, from the outside in."""
    if isinstance(value, Use):
        yield value
        yield from uses(configure(value.use, value.settings, value.use))
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from uses(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from uses(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from uses(item)


def children(config: PrimitiveConfig) -> list[type[Primitive]]:
    """Return the primitives inside a config, at any depth."""
    return [find(item.use) for item in uses(config)]


def determinism(primitives: Sequence[type[Primitive]]) -> Determinism:
    """Return the weakest of several: impure before seeded before pure."""
    return max((item.determinism for item in primitives), key=_STRENGTH.index)


def step_key(
    bound: "Bound", input_digests: Mapping[str, str | Sequence[str]], seed: int, code_version: str
) -> str | None:
    """Return the key under which a step's result is kept: hash(code version, resolved config, inputs, seed).

    Args:
        bound: the step.
        input_digests: input → digest of its value, several in the order of the document for an input that takes
            several.
        seed: of the pipeline; it counts for seeded steps only.
        code_version: whatever else changes results.

    Returns:
        None for impure steps, whose results are never reused.

    Raises:
        ValueError: digests for other inputs than those of the step.
    """
    names = set(bound.step.inputs) if isinstance(bound.step.inputs, dict) else set()
    if set(input_digests) != names:
        raise ValueError(f"step {bound.step.id} has the inputs {sorted(names)}, got digests of {sorted(input_digests)}")
    if bound.determinism == "impure":
        return None
    inputs: dict[str, Any] = {
        name: item if isinstance(item, str) else list(item) for name, item in input_digests.items()
    }
    parts: dict[str, object] = {
        "code": code_version,
        "use": bound.primitive.id,
        "versions": dict(bound.versions),
        "config": bound.config.model_dump(mode="json"),
        "inputs": inputs,
    }
    if bound.determinism == "seeded":
        parts["seed"] = seed
    return digest(parts)
