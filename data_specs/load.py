"""Reads data set specifications: `data_specs/datasets/<name>.yaml` and the label files beside them.

A project's own folder comes first, then the specifications that the package brings. Every problem is a
`SpecError` that names the file and the field and, where a name is nearly right, the right one.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from data_specs.box_sources import BoxSource, CocoVideoSource, ImagenetDetSource, ImagenetVidSource
from data_specs.schema import (
    ClipPolicy,
    CsvSource,
    DatasetSpec,
    FolderSource,
    Hmdb51Source,
    KineticsSource,
    Part,
    ShardPolicy,
    SplitPolicy,
    Ucf101Source,
)
from infra.settings import Settings

LABEL_SEPARATOR = "|"
"""Joins the class names of a multi-label sample in a manifest, so no class name may contain it."""

_PACKAGE_FOLDER = Path(__file__).parent / "datasets"

_MODELS: dict[str, type[BaseModel]] = {
    "parts": Part,
    "clip": ClipPolicy,
    "shards": ShardPolicy,
    "split": SplitPolicy,
    "folder": FolderSource,
    "csv": CsvSource,
    "kinetics": KineticsSource,
    "ucf101": Ucf101Source,
    "hmdb51": Hmdb51Source,
    "imagenet_vid": ImagenetVidSource,
    "imagenet_det": ImagenetDetSource,
    "coco_video": CocoVideoSource,
}
"""The model that a step of pydantic's error location leads into."""

_KINDS = tuple(name for name in _MODELS if name not in ("parts", "clip", "shards", "split"))


class SpecError(ValueError):
    """A specification or label file that cannot be used; the message names file, field and remedy."""


class _StrictLoader(yaml.SafeLoader):
    """Safe loader that refuses a key given twice (PyYAML would keep the last one without a word)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _folders(folder: Path | None) -> list[Path]:
    """Return the folders searched, first one first."""
    if folder is not None:
        return [folder]
    own = Settings().root / "data_specs" / "datasets"
    return [own] if own.resolve() == _PACKAGE_FOLDER.resolve() else [own, _PACKAGE_FOLDER]


def list_specs(folder: Path | None = None) -> list[str]:
    """Return the names of all data sets with a specification, sorted."""
    return sorted({path.stem for place in _folders(folder) for path in place.glob("*.yaml")})


def spec_path(name: str, folder: Path | None = None) -> Path:
    """Return the file of a specification.

    Raises:
        SpecError: there is none of that name.
    """
    places = _folders(folder)
    for place in places:
        path = place / f"{name}.yaml"
        if path.is_file():
            return path
    known = list_specs(folder)
    raise SpecError(
        f"no data set {name!r}: {places[0] / (name + '.yaml')} does not exist{did_you_mean(name, known)} "
        f"(known: {', '.join(known) or 'none'}; `fovea data init <folder>` writes a new one)"
    )


def load_spec(name: str, folder: Path | None = None) -> DatasetSpec:
    """Read and check the specification of one data set.

    Args:
        name: Data set, which is also the name of the file without `.yaml`.
        folder: Folder of specifications; by default the project's, then the package's.

    Returns:
        The specification; `labels` always holds the class names themselves, also where the file names a
        label file, so that the digest of the specification covers them.

    Raises:
        SpecError: the file is missing or not valid; the message names file and field.
    """
    path = spec_path(name, folder)
    spec = parse_spec(path.read_text(encoding="utf-8"), path)
    if spec.name != name:
        raise SpecError(f"{path}: name: is {spec.name!r}, must be {name!r} as the file is called")
    return spec


def parse_spec(text: str, path: Path) -> DatasetSpec:
    """Check the text of a specification; `path` says where it stands (for messages and label files)."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise SpecError(f"{path}: must be a mapping of fields, is {type(data).__name__}")
    try:
        spec = DatasetSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError("\n".join(f"{path}: {line}" for line in _explain(error, data))) from error
    spec = spec.model_copy(update={"labels": _read_labels(spec.labels, path)})
    _check_parts(spec, path)
    return spec


def class_names(spec: DatasetSpec) -> tuple[str, ...]:
    """Return the class names in index order."""
    if isinstance(spec.labels, str):
        return _read_labels(spec.labels, spec_path(spec.name))
    return spec.labels


def _read_labels(labels: tuple[str, ...] | str, path: Path) -> tuple[str, ...]:
    """Return checked class names; a label file lies in `labels/` beside the specification's folder."""
    where = f"{path}: labels"
    if isinstance(labels, str):
        places = [path.parent.parent / "labels" / labels, _PACKAGE_FOLDER.parent / "labels" / labels]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            near = did_you_mean(labels, (p.name for place in places for p in place.parent.glob("*.txt")))
            raise SpecError(f"{where}: {places[0]} does not exist{near}")
        where = str(found)
        labels = tuple(found.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    first: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if not label or label != label.strip() or LABEL_SEPARATOR in label or not label.isprintable():
            raise SpecError(
                f"{where}:{number}: class name {label!r} is empty, has spaces around it, a {LABEL_SEPARATOR!r} "
                "or an unprintable character"
            )
        if label in first:
            raise SpecError(f"{where}:{number}: class name {label!r} is already given as number {first[label]}")
        first[label] = number
    if not first:
        raise SpecError(f"{where}: no class names")
    return labels


def _check_parts(spec: DatasetSpec, path: Path) -> None:
    """Check what single fields cannot say."""
    names: set[str] = set()
    for number, part in enumerate(spec.parts):
        if part.name in names:
            raise SpecError(f"{path}: parts.{number}.name: {part.name!r} is given twice")
        names.add(part.name)
        field = f"{path}: parts.{number}"
        source = part.source
        has_splits = True
        if isinstance(source, FolderSource):
            has_splits = source.splits_in_path
        elif isinstance(source, CsvSource | CocoVideoSource):
            has_splits = source.split is not None
        if isinstance(source, BoxSource):
            _check_box_clip(spec.clip, source.kind, path)
        if part.split == "official" and not has_splits:
            need = {"folder": "splits_in_path: true", "csv": "split: <column>"}.get(source.kind, "split: val")
            raise SpecError(
                f"{field}.split: 'official', but this {source.kind} source has no splits of its own "
                f"(source.{need} would say where they are)"
            )
        if isinstance(part.split, SplitPolicy):
            rule, _, argument = part.split.group.partition(":")
            if rule not in ("source", "regex", "column") or (rule == "source") != (not argument):
                raise SpecError(
                    f"{field}.split.group: {part.split.group!r} is none of source, regex:<pattern>, column:<name>"
                )
            if rule == "column" and not isinstance(source, CsvSource):
                raise SpecError(f"{field}.split.group: column:… needs a csv source, this one is {source.kind}")
            if rule == "column" and isinstance(source, CsvSource) and source.group not in (None, argument):
                raise SpecError(
                    f"{field}.split.group: column:{argument} contradicts source.group: {source.group}; give one"
                )
            if rule == "regex":
                _check_pattern(argument, f"{field}.split.group")


def _check_box_clip(clip: ClipPolicy, kind: str, path: Path) -> None:
    """Check that clips keep the frames that boxes are numbered by."""
    wrong = clip_against_boxes(clip)
    if wrong is not None:
        field, why = wrong
        raise SpecError(f"{path}: clip.{field}: {why}; boxes of a {kind} source belong to the frames of the source")


def clip_against_boxes(clip: ClipPolicy) -> tuple[str, str] | None:
    """Return the field of a clip policy that would part boxes from their frames, and why; None when all is well."""
    if clip.representation != "mp4":
        return "representation", f"must be mp4: {clip.representation} keeps only some of the frames"
    if clip.fps is not None:
        return (
            "fps",
            f"must be null: at {clip.fps:g} fps frames would be left out or repeated",
        )
    if clip.audio != "drop":
        return "audio", f"must be drop: with {clip.audio!r} frames may be added where the sound begins earlier"
    return None


def _check_pattern(pattern: str, field: str) -> None:
    """Check that a pattern compiles and has a group to take."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise SpecError(f"{field}: {pattern!r} is not a regular expression: {error}") from error
    if groups < 1:
        raise SpecError(f"{field}: {pattern!r} has no (group); what is in parentheses becomes the group's name")


def _explain(error: ValidationError, data: dict[str, Any]) -> list[str]:
    """Turn pydantic's errors into one line each: `field: problem`."""
    lines = []
    for item in error.errors():
        location = item["loc"]
        value = _value_at(data, location)
        # Of a union's members, only the one that was meant is worth a message.
        branch = str(location[-1]) if location else ""
        if "SplitPolicy" in branch and not isinstance(value, dict):
            continue
        if item["type"] == "too_short" and value:
            continue  # counts only what was valid; that is told already
        if branch.startswith("literal[") and isinstance(value, dict):
            continue
        field = ".".join(str(step) for step in location if not _is_branch(step)) or "(whole file)"
        if item["type"] == "extra_forbidden":
            known = _model_of(location[:-1]).model_fields
            lines.append(
                f"{field}: unknown key{did_you_mean(str(location[-1]), known)} (known: {', '.join(sorted(known))})"
            )
        elif item["type"] == "missing":
            lines.append(f"{field}: is missing")
        elif item["type"] == "union_tag_invalid":
            tag = str(item["ctx"]["tag"])
            lines.append(f"{field}.kind: {tag!r} is unknown{did_you_mean(tag, _MODELS)}: {item['msg']}")
        else:
            hint = ""
            if isinstance(value, bool | int | float) and "string" in item["msg"]:
                hint = f" (YAML reads it as {type(value).__name__}; put it in quotes)"
            lines.append(f"{field}: {item['msg']}, got {value!r}{hint}")
    return list(dict.fromkeys(lines)) or [str(error)]


def _is_branch(step: int | str) -> bool:
    """Tell whether a step of an error's location is pydantic's name of a union member, not a field."""
    return isinstance(step, str) and (
        step in _KINDS or step in ("str", "int", "float") or step.startswith(("literal[", "tuple[", "function-"))
    )


def _value_at(data: Any, location: Sequence[int | str]) -> Any:
    """Return what the file has at a location (union members are no steps of it)."""
    for step in location:
        in_list = isinstance(data, list) and isinstance(step, int) and step < len(data)
        if in_list or (isinstance(data, dict) and step in data):
            data = data[step]
        elif not _is_branch(step):
            return None
    return data


def _model_of(location: Sequence[int | str]) -> type[BaseModel]:
    """Return the model whose fields are allowed at a location."""
    for step in reversed(location):
        if isinstance(step, str) and step in _MODELS:
            return _MODELS[step]
    return DatasetSpec
