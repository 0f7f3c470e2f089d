"""Space documents: which pipelines a search may try, written in YAML beside the pipeline that they vary.

    schema: space/v1
    auto: true                      # every declared search domain; or a list of step ids; or false
    slots:
      net: [recognition/tsn, {use: recognition/tsm, with: {shift_div: 8}}]
      crop: [null, transform/crop]  # null: the step may be left out
    lists:
      aug.of: {of: [augment/hflip, augment/blur, augment/noise], min: 1, max: 2}
    set:
      net.lr: {kind: float, low: 1.0e-4, high: 0.1, log: true}     # with every alternative that has it
      net:recognition/tsm.dropout: [0.0, 0.5]                      # with this one; a list is a choice
      eval.clips: {kind: choice, values: [1, 3], when: {net: recognition/tsn}}
      aug.of:augment/blur.sigma: {kind: float, low: 0.1, high: 2}  # of an item of a list
      vars.frames: [8, 16]
    limits: {gmac: 40, params: 3.0e+7}

The document's own settings are where a search begins, so `auto` varies them too. What stays: settings that a slot or
list item of the space gives with `with`, and those that the document takes from a variable (`${frames}`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data_specs.strict import Strict
from training.autovideo.domains import Domain
from training.autovideo.search.space_apply import apply
from training.autovideo.search.space_builder import SpaceBuilder
from training.autovideo.search.space_size import size
from training.autovideo.search.space_tree import Choices, Space
from training.autovideo.use import Use
from training.core.config import validate

__all__ = ["Choices", "Limits", "Space", "SpaceConfig", "Sublist", "apply", "build_space", "parse_space", "size"]


class Sublist(Strict):
    """Ordered sub-lists of some primitives."""

    of: tuple[Use, ...] = Field(min_length=1)
    min: int = Field(default=1, ge=0)
    max: int | None = Field(default=None, ge=0)
    """None: all of them."""
    repeats: bool = False
    """Whether one may be in a list more than once."""

    @model_validator(mode="after")
    def _ordered(self) -> "Sublist":
        if self.most < self.min:
            raise ValueError(f"min {self.min} is above max {self.most}")
        if not self.repeats and self.most > len(self.of):
            raise ValueError(f"max {self.most} is more than the {len(self.of)} there are; set `repeats: true` if meant")
        return self

    @property
    def most(self) -> int:
        """Length of the longest list."""
        return len(self.of) if self.max is None else self.max


class Limits(Strict):
    """Hard upper bounds; what costs more is never trained."""

    gmac: float | None = Field(default=None, gt=0)
    """Multiply-accumulates per view, in 10^9."""
    params: float | None = Field(default=None, gt=0)


class SpaceConfig(Strict):
    """A space document, version 1."""

    schema_: Literal["space/v1"] = Field(alias="schema")
    auto: bool | tuple[str, ...] = False
    slots: dict[str, Annotated[tuple[Use | None, ...], Field(min_length=1)]] = Field(default_factory=dict)
    lists: dict[str, Sublist] = Field(default_factory=dict)
    set: dict[str, Annotated[Domain, Field(discriminator="kind")]] = Field(default_factory=dict)
    limits: Limits = Limits()

    @field_validator("set", mode="before")
    @classmethod
    def _lists_are_choices(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {
            name: {"kind": "choice", "values": value} if isinstance(value, list | tuple) else value
            for name, value in values.items()
        }


def parse_space(values: Any, where: str = "space") -> SpaceConfig:
    """Return a space document from plain values.

    Raises:
        ConfigError: not a valid one; the message names the field, with what may have been meant.
    """
    return validate(SpaceConfig, values, where)


def build_space(space: SpaceConfig | Mapping[str, Any], base: Mapping[str, Any], where: str = "space") -> Space:
    """Return the tree of all that may be chosen for a pipeline.

    Args:
        space: the space document.
        base: the pipeline document that is varied, in the form of its YAML (not resolved, so that variables show).
        where: name of the space document, for messages.

    Raises:
        ConfigError: the space is not valid, or does not fit the pipeline: a step or a field that there is not, a value
            that the field would not take, a step that cannot be left out, conditions that wait for one another.
    """
    config = space if isinstance(space, SpaceConfig) else parse_space(space, where)
    builder = SpaceBuilder(base, where)
    for step, alternatives in config.slots.items():
        builder.add_slot(step, alternatives)
    for name, sublist in config.lists.items():
        builder.add_list(name, sublist.of, sublist.min, sublist.most, sublist.repeats)
    for name, domain in config.set.items():
        builder.add_domain(name, domain)
    builder.add_declared(config.auto)
    limits = {name: float(value) for name, value in config.limits.model_dump().items() if value is not None}
    return builder.build(limits)
