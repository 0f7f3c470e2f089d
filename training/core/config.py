"""Configuration of stages: strict, frozen, read from `params/<dataset>.yaml`.

Rule for defaults: a field whose change would change a reported number has no default; plumbing may
have one. Shared blocks are Python types, not YAML inheritance.
"""

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from data_specs.schema import Strict

__all__ = [
    "ConfigError",
    "DataConfig",
    "FitConfig",
    "OptimConfig",
    "StageConfig",
    "Strict",
    "TransformConfig",
    "WeightsFile",
    "apply_overrides",
    "load_section",
    "validate",
]


class ConfigError(ValueError):
    """A setting is missing, unknown or out of bounds; the message names file, section and field."""


class TransformConfig(Strict):
    """Clip-consistent crop, flip and normalisation, done once per clip on the device."""

    size: int = Field(ge=8)
    """Side of the square network input, pixels."""
    train_crop: Literal["multiscale", "random", "center"]
    """`multiscale`: sides from {1, .875, .75, .66} of the short side, 13 anchors (AdaFocus §1.5)."""
    eval_short_side: int = Field(ge=8)
    """Short side before the centre crop of `size` at evaluation, pixels (256 for 224)."""
    flip: bool
    """Horizontal flip with p = 0.5 in training; off where direction is the label."""
    normalise: Literal["imagenet", "symmetric"]
    """`imagenet`: mean and std of ImageNet; `symmetric`: to [-1, 1]."""


class DataConfig(Strict):
    """What a loader hands to a system."""

    num_frames: int = Field(ge=1)
    """Frames per clip, T."""
    sampling: Literal["segments", "dense"]
    """`segments`: T equal parts, one random frame each in training, the middle one in evaluation;
    `dense`: T frames `stride` apart, random start in training, centred in evaluation."""
    stride: int = Field(default=1, ge=1)
    """Only for `dense`."""
    batch_size: int = Field(ge=1)
    """Clips per step over all workers."""
    transform: TransformConfig
    source: Literal["index", "stream"] = "index"
    """D7: `index` reads by offset (local, exact resume); `stream` is a webdataset pipeline (remote tars)."""
    decoder: Literal["auto", "torchcodec", "pyav", "opencv"] = "auto"
    """Rung of the ladder (D8); `auto` is resolved once and the result stored in config and checkpoint."""
    threads: int = Field(default=2, ge=1)
    prefetch: int = Field(default=2, ge=1)
    """Batches decoded ahead."""


class OptimConfig(Strict):
    """Optimizer, parameter groups and learning-rate schedule."""

    name: Literal["sgd", "adam", "adamw"]
    lr: dict[str, float]
    """Learning rate by parameter-group name; each system names its groups. Rate at global batch size."""
    momentum: float = 0.9
    """Only for sgd."""
    weight_decay: float = Field(ge=0)
    schedule: Literal["cosine", "constant"]
    warmup_steps: int = Field(ge=0)


class FitConfig(Strict):
    """How long and how to train; the loop counts steps, not epochs."""

    steps: int = Field(ge=1)
    seed: int
    optim: OptimConfig
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""
    clip_grad_norm: float | None
    ema_decay: float | None
    """Decay of the exponential moving average of weights and buffers; None turns it off."""
    precision: Literal["fp32", "bf16"]
    """bf16 autocast where the device has it; fp32 otherwise, with a log line."""
    eval_every: int = Field(ge=0)
    """Steps between evaluations on `val`; 0 evaluates only at the end."""
    keep: Literal["last", "best"]
    """Which weights become the model: the last, or the best on `val` by the stage's primary metric."""
    checkpoint_every: int = Field(default=50, ge=1)
    log_every: int = Field(default=10, ge=1)


class WeightsFile(Strict):
    """Published weights that a net starts from.

    The checksum stands in the params file beside the path, so another file under the same name makes the stage
    stale, and a wrong one is refused.
    """

    path: str
    """State dict in the backbone's public key layout; relative to the project root, or absolute."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class StageConfig(Strict):
    """Base of every stage's config."""

    data: DataConfig


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def validate(model: type[ConfigT], values: object, where: str) -> ConfigT:
    """Validate `values` and turn pydantic's errors into one `ConfigError` that names each field.

    Raises:
        ConfigError: with `where`, the dotted field, what is wrong and close matches for unknown keys.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            field = ".".join(str(part) for part in item["loc"])
            hint = ""
            if item["type"] == "extra_forbidden":
                close = difflib.get_close_matches(str(item["loc"][-1]), _known_fields(model), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
            lines.append(f"  {field}: {item['msg']} (got {item.get('input')!r:.80}){hint}")
        raise ConfigError(f"{where} is not valid:\n" + "\n".join(lines)) from None


def _known_fields(model: type[BaseModel]) -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(name)
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names += _known_fields(annotation)
    return names


def load_section(path: Path, section: str) -> dict[str, Any]:
    """Return one stage's section of a params file.

    Raises:
        ConfigError: file or section missing.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist; `fovea data init` writes one for a new data set")
    content = yaml.safe_load(path.read_text()) or {}
    if section not in content:
        close = difflib.get_close_matches(section, content, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{path} has no section {section!r} (it has: {', '.join(content)}){hint}")
    values = content[section]
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: section {section!r} must be a mapping, got {type(values).__name__}")
    return values


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy with dotted `key=value` overrides applied; values are parsed as YAML.

    Raises:
        ConfigError: an override without `=`, or a path through something that is not a mapping.
    """
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(values))
    for item in overrides:
        dotted, sep, text = item.partition("=")
        if not sep:
            raise ConfigError(f"override {item!r} must look like key=value")
        *parents, leaf = dotted.split(".")
        node = result
        for name in parents:
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                raise ConfigError(f"override {item!r}: {name!r} is not a mapping")
            node = child
        node[leaf] = yaml.safe_load(text)
    return result
