"""Values of a pipeline as JSON, so that a finished step is known again; what a value names must still be there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.autovideo.use import Use
from training.autovideo.values import Clips, Manifest, Metrics, Model, Predictions, Report, Shards, Value
from training.core.pages import write_text

KINDS: Mapping[str, type[Any]] = {
    kind.port.value: kind for kind in (Manifest, Shards, Clips, Model, Predictions, Metrics, Report)
}


def value_digest(value: Value) -> str:
    """Return the identity of a value."""
    return value.digest


def as_plain(value: Value) -> dict[str, Any]:
    """Return a value as JSON has it."""
    fields: dict[str, Any] = {}
    for name, item in vars(value).items():
        if isinstance(item, Path):
            fields[name] = str(item)
        elif isinstance(item, Shards):
            fields[name] = as_plain(item)
        elif name == "files":
            fields[name] = {split: str(path) for split, path in item.items()}
        elif name == "augment":
            fields[name] = [use.model_dump(mode="json") for use in item]
        else:
            fields[name] = item
    return {"port": value.port.value, **fields}


def of_plain(values: Mapping[str, Any]) -> Value:
    """Return the value that `as_plain` described."""
    fields = dict(values)
    kind = KINDS[fields.pop("port")]
    if fields.get("shards") is not None:
        fields["shards"] = of_plain(fields["shards"])
    for name in ("folder",):
        if name in fields:
            fields[name] = Path(fields[name])
    if "files" in fields:
        fields["files"] = {split: Path(path) for split, path in fields["files"].items()}
    if "classes" in fields:
        fields["classes"] = tuple(fields["classes"])
    if "augment" in fields:
        fields["augment"] = tuple(Use.model_validate(use) for use in fields["augment"])
    value: Value = kind(**fields)
    return value


def is_there(value: Value) -> bool:
    """Whether the files that a value names exist, and a model is the one that it was."""
    if isinstance(value, Shards):
        return (value.folder / "index.json").is_file()
    if isinstance(value, Clips):
        return value.shards is None or is_there(value.shards)
    if isinstance(value, Predictions):
        return all(path.is_file() for path in value.files.values())
    if isinstance(value, Report):
        return value.folder.is_dir()
    if isinstance(value, Model):
        from training.core.checkpoint import model_digest

        return value.folder.is_dir() and model_digest(value.folder) == value.digest
    return True


def write_values(path: Path, values: Mapping[str, Value]) -> None:
    """Write a step's outputs, atomically, last of all that the step writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: as_plain(value) for name, value in values.items()}, indent=1)
    write_text(path, text + "\n")


def read_values(path: Path) -> dict[str, Value] | None:
    """Return a step's outputs, or None where it has not finished, or what they name is gone or another."""
    if not path.is_file():
        return None
    values = {name: of_plain(item) for name, item in json.loads(path.read_text()).items()}
    return values if all(is_there(value) for value in values.values()) else None
