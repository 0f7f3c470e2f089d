"""What an augmenter is: a declared change of clips. Light: no torch; the pixels are changed by `operation`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from training.autovideo.domains import floats
from training.autovideo.primitive import Determinism, Input, Kind, Port, Primitive, PrimitiveConfig, setting
from training.autovideo.use import Use
from training.core.config import ConfigError

if TYPE_CHECKING:
    from training.autovideo.values import Clips, Context, Value

Pair = tuple[float, float]
"""A setting [low, high]: one number of it is drawn per clip, uniformly."""

IntPair = tuple[int, int]
"""The same of whole numbers, both included."""


@dataclass(frozen=True)
class Within:
    """Bounds of a pair: `Annotated[Pair, Within(0, 1)]`; low must not be above high."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} <= low <= high <= {self.high:g}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, pair: Pair) -> Pair:
        if pair[0] > pair[1]:
            raise ValueError(f"low {pair[0]:g} is above high {pair[1]:g}")
        if pair[0] < self.low or pair[1] > self.high:
            raise ValueError(f"[{pair[0]:g}, {pair[1]:g}] is not within {self.low:g}…{self.high:g}")
        return pair


class ChanceConfig(PrimitiveConfig):
    """Settings of what is done to whole clips only."""

    p: float = setting(0.5, help="probability that a clip is changed", search=floats(0.0, 1.0), ge=0, le=1)


class AugmenterConfig(ChanceConfig):
    """Settings of most augmenters."""

    per_frame: bool = setting(False, help="draw anew for each frame, instead of once per clip")


class Augmenter(Primitive):
    """Base of all augmenters: a step that adds itself to the recipe of the clips.

    What runs is a module-level function, named by `operation`, so that a recipe is plain data:

        def operation(video_BCTHW, config, draw): return changed_BCTHW

    The video is float32 in 0…1 and stays so in shape and type (the caller clamps); `draw` is the only source of
    chance, a `training.autovideo.augment.draws.Draws`. Nothing in it may wait for the device. Where `mixes` is set,
    clips of the batch are mixed, and the function gets and returns the targets, too:

        def operation(video_BCTHW, config, draw, target_BK): return changed_BCTHW, changed_BK
    """

    kind: ClassVar[Kind] = "augment"
    determinism: ClassVar[Determinism] = "seeded"
    Config: ClassVar[type[PrimitiveConfig]] = AugmenterConfig
    inputs: ClassVar[Mapping[str, Input]] = {"clips": Input(Port.CLIP)}
    outputs: ClassVar[Mapping[str, Port]] = {"clips": Port.CLIP}
    operation: ClassVar[str]
    """`package.module:function`."""
    mixes: ClassVar[bool] = False
    """Mixes clips of a batch, and their targets."""

    def produce(self, inputs: "Mapping[str, Value]", state: Any, context: "Context") -> "dict[str, Value]":
        """Add the augmenter, with every setting, to the recipe."""
        clips: Clips = inputs["clips"]  # type: ignore[assignment]
        return {"clips": clips.then(self.use())}

    def use(self) -> Use:
        """Return the step as plain data, with every default written out."""
        return Use(use=self.id, settings=self.config.model_dump(mode="json"))


class Composite(Augmenter):
    """Base of augmenters that are made of others: combiners and policies.

    The function that `operation` names gets the parts as callables, and the clips that are to be changed:

        def operation(batch, config, draw, chosen_B, parts): return batch

    (`training/autovideo/augment/composition.py`). `p` of the composite, where it has one, is already in `chosen_B`.
    """

    video_only: ClassVar[bool] = False
    """Its parts must not mix clips."""

    def __init__(self, config: PrimitiveConfig) -> None:
        super().__init__(config)
        self.parts = tuple(use.resolved(f"{self.id}: part {place}") for place, use in enumerate(self.uses(config)))
        self.check(config, self.parts)

    @classmethod
    def uses(cls, config: Any) -> tuple[Use, ...]:
        """Return the parts, in the order in which `operation` expects them."""
        return tuple(config.of)

    @classmethod
    def check(cls, config: Any, parts: tuple[Use, ...]) -> None:
        """Check the parts.

        Raises:
            ConfigError: one is no augmenter, or mixes clips where that is impossible.
        """
        for place, part in enumerate(parts):
            found = augmenter(part.use, f"{cls.id}: part {place}")
            if cls.video_only and mixes(part):
                raise ConfigError(f"{cls.id}: part {place}: {found.id} mixes clips, which has no meaning here")


def augmenter(identifier: str, where: str) -> type[Augmenter]:
    """Return an augmenter by its name.

    Raises:
        ConfigError: no such primitive, or one of another kind.
    """
    from training.autovideo.catalogue import find

    found = find(identifier, where)
    if not issubclass(found, Augmenter):
        raise ConfigError(
            f"{where}: {identifier!r} is no augmenter: it is of kind {found.kind}, its class no subclass of Augmenter"
        )
    return found


def mixes(use: Use) -> bool:
    """Return whether an augmenter, or a part of it, mixes clips of a batch, so that targets have to be given."""
    from training.autovideo.catalogue import configure

    found = augmenter(use.use, "augmenter")
    if not issubclass(found, Composite):
        return found.mixes
    return any(mixes(part) for part in found.uses(configure(use.use, use.settings, "augmenter")))
