"""Combiners and policies: augmenters made of others (`composition.py`).

Choices are made per clip, as functions of its seed. A part's own `p` still holds: with `{use: augment/hflip, with:
{p: 0.5}}` inside `combine/one_of`, half of the clips that draw the flip are flipped.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from training.autovideo.augment.augmenter import ChanceConfig, Composite, IntPair, Pair, Within
from training.autovideo.domains import choice, floats, integers
from training.autovideo.primitive import Kind, PrimitiveConfig, primitive, setting
from training.autovideo.use import Use
from training.core.config import ConfigError

_HERE = "training.autovideo.augment.composition:"

_PARTS = (
    {"use": "augment/hflip", "with": {"p": 1.0}},
    {"use": "augment/color_jitter", "with": {"p": 1.0}},
    {"use": "augment/gaussian_blur", "with": {"p": 1.0}},
)
"""What combiners combine where nothing is said."""


def _list(default: tuple[dict[str, Any], ...] = _PARTS, least: int = 1) -> Any:
    return setting(default, help="augmenters, each as {use: …, with: {…}}", min_length=least, validate_default=True)


class Combiner(Composite):
    """Base of combiners."""

    kind: ClassVar[Kind] = "combine"


class SequentialConfig(PrimitiveConfig):
    """Settings of `Sequential`."""

    of: tuple[Use, ...] = _list()
    random_order: bool = setting(False, help="in an order drawn per clip", search=choice(False, True))


@primitive("combine/sequential")
class Sequential(Combiner):
    """Applies all parts, one after the other."""

    Config = SequentialConfig
    operation = _HERE + "sequential"


class SomeOfConfig(PrimitiveConfig):
    """Settings of `SomeOf`."""

    n: int = setting(2, help="parts that are applied", ge=0, search=integers(1, 3))
    of: tuple[Use, ...] = _list()
    random_order: bool = setting(False, help="in an order drawn per clip", search=choice(False, True))


@primitive("combine/some_of")
class SomeOf(Combiner):
    """Applies `n` different parts, drawn per clip."""

    Config = SomeOfConfig
    operation = _HERE + "some_of"

    @classmethod
    def check(cls, config: Any, parts: tuple[Use, ...]) -> None:
        """Check the parts and `n`."""
        super().check(config, parts)
        if config.n > len(parts):
            raise ConfigError(f"{cls.id}: n: {config.n} of {len(parts)} parts; give more parts, or a smaller n")


class OneOfConfig(PrimitiveConfig):
    """Settings of `OneOf`."""

    of: tuple[Use, ...] = _list()


@primitive("combine/one_of")
class OneOf(Combiner):
    """Applies one part, drawn per clip."""

    Config = OneOfConfig
    operation = _HERE + "one_of"


class SometimesConfig(PrimitiveConfig):
    """Settings of `Sometimes`."""

    chance: float = setting(0.5, help="probability of `then`", ge=0, le=1, search=floats(0.0, 1.0))
    then: tuple[Use, ...] = _list()
    otherwise: tuple[Use, ...] = _list(default=(), least=0)


@primitive("combine/sometimes")
class Sometimes(Combiner):
    """Applies one list, or else another, as drawn per clip."""

    Config = SometimesConfig
    operation = _HERE + "sometimes"

    @classmethod
    def uses(cls, config: Any) -> tuple[Use, ...]:
        """Return the parts of both lists."""
        return (*config.then, *config.otherwise)


class WithChannelsConfig(PrimitiveConfig):
    """Settings of `WithChannels`."""

    channels: tuple[Literal["red", "green", "blue"], ...] = setting(
        ("red",),
        help="channels that are changed",
        min_length=1,
        search=choice(("red",), ("green",), ("blue",), ("red", "green"), ("red", "blue"), ("green", "blue")),
    )
    of: tuple[Use, ...] = _list()


@primitive("combine/with_channels")
class WithChannels(Combiner):
    """Applies all parts, and keeps the change of some colour channels only."""

    Config = WithChannelsConfig
    operation = _HERE + "with_channels"
    video_only: ClassVar[bool] = True


class BlendConfig(PrimitiveConfig):
    """Settings of `Blend`."""

    mask: Literal["uniform", "pixels", "checkerboard", "grid", "horizontal", "vertical", "noise"] = setting(
        "noise",
        help="where the changed clip shows",
        search=choice("uniform", "pixels", "checkerboard", "grid", "horizontal", "vertical", "noise"),
    )
    alpha: Annotated[Pair, Within(0, 1)] = setting((0.0, 1.0), help="weight of the changed clip, least and largest")
    cells: int = setting(5, help="of checkerboard and grid, along each axis", ge=1, le=64, search=integers(2, 12))
    of: tuple[Use, ...] = _list()


@primitive("combine/blend")
class Blend(Combiner):
    """Applies all parts, and lays the result over the clip through a mask."""

    Config = BlendConfig
    operation = _HERE + "blend"
    video_only: ClassVar[bool] = True


def _both(use: str, field: str, value: Callable[[float], Any], share: float, **fixed: Any) -> tuple[Use, Use]:
    """Return an operation with the positive and with the negative magnitude."""

    def one(sign: int) -> Use:
        magnitude = value(sign * share)
        return Use(use=f"augment/{use}", settings={"p": 1.0, field: (magnitude, magnitude), **fixed})

    return one(1), one(-1)


def _fixed(use: str, **settings: Any) -> tuple[Use, Use]:
    part = Use(use=f"augment/{use}", settings={"p": 1.0, **settings})
    return part, part


def _operations(share: float, *, corrupting: bool) -> tuple[Use, ...]:
    """Return the operations of the policies at a share of their full strength, in pairs.

    Full strengths are those of RandAugment (Cubuk et al. 2020); `corrupting` adds what resembles the corruptions of
    ImageNet-C, which AugMix leaves out.
    """
    grey = {"fill": (0.5, 0.5)}
    bits = max(1, round(8 - 6 * share))
    threshold = 1 - share
    found = [
        _both("rotate", "degrees", lambda s: 30 * s, share, **grey),
        _both("shear_x", "degrees", lambda s: 16.7 * s, share, **grey),
        _both("shear_y", "degrees", lambda s: 16.7 * s, share, **grey),
        _both("translate_x", "share", lambda s: 0.45 * s, share, **grey),
        _both("translate_y", "share", lambda s: 0.45 * s, share, **grey),
        _fixed("autocontrast", cutoff=(0.0, 0.0)),
        _fixed("equalize", alpha=(1.0, 1.0)),
        _fixed("posterize", bits=(bits, bits)),
        _fixed("solarize", threshold=(threshold, threshold)),
    ]
    if corrupting:
        found += [
            _both("brightness", "add", lambda s: 0.4 * s, share),
            _both("contrast", "factor", lambda s: 1 + 0.9 * s, share),
            _both("saturation", "factor", lambda s: 1 + 0.9 * s, share),
            _both("sharpness", "factor", lambda s: 1 + 0.9 * s, share),
            _fixed("color_temperature"),
        ]
    return tuple(use for pair in found for use in pair)


class RandAugmentConfig(ChanceConfig):
    """Settings of `RandAugment`."""

    p: float = setting(1.0, help="probability that a clip is changed", search=floats(0.0, 1.0), ge=0, le=1)
    n: int = setting(2, help="operations per clip", ge=1, le=8, search=integers(1, 4))
    magnitude: float = setting(9.0, help="strength, 30 is the full one", gt=0, le=30, search=floats(3.0, 20.0))


@primitive("augment/randaugment")
class RandAugment(Composite):
    """Applies `n` operations of one strength, drawn per clip (RandAugment)."""

    Config = RandAugmentConfig
    operation = _HERE + "randaugment"

    @classmethod
    def uses(cls, config: Any) -> tuple[Use, ...]:
        """Return the operations at the strength that was set."""
        return _operations(config.magnitude / 30, corrupting=True)


class TrivialAugmentConfig(ChanceConfig):
    """Settings of `TrivialAugment`."""

    p: float = setting(1.0, help="probability that a clip is changed", search=floats(0.0, 1.0), ge=0, le=1)


@primitive("augment/trivialaugment")
class TrivialAugment(Composite):
    """Applies one operation of a strength drawn per clip (TrivialAugment, the wide ranges)."""

    Config = TrivialAugmentConfig
    operation = _HERE + "trivialaugment"

    @classmethod
    def uses(cls, config: Any) -> tuple[Use, ...]:
        """Return the operations with their full ranges."""
        grey = {"fill": (0.5, 0.5)}
        ranges: tuple[tuple[str, dict[str, Any]], ...] = (
            ("rotate", {"degrees": (-135.0, 135.0), **grey}),
            ("shear_x", {"degrees": (-44.0, 44.0), **grey}),
            ("shear_y", {"degrees": (-44.0, 44.0), **grey}),
            ("translate_x", {"share": (-0.45, 0.45), **grey}),
            ("translate_y", {"share": (-0.45, 0.45), **grey}),
            ("autocontrast", {"cutoff": (0.0, 0.0)}),
            ("equalize", {"alpha": (1.0, 1.0)}),
            ("posterize", {"bits": (2, 8)}),
            ("solarize", {"threshold": (0.0, 1.0)}),
            ("multiply", {"factor": (0.01, 1.99)}),
            ("contrast", {"factor": (0.01, 1.99)}),
            ("saturation", {"factor": (0.01, 1.99)}),
            ("sharpness", {"factor": (0.01, 1.99)}),
        )
        return tuple(Use(use=f"augment/{name}", settings={"p": 1.0, **values}) for name, values in ranges)


class AugMixConfig(ChanceConfig):
    """Settings of `AugMix`."""

    p: float = setting(1.0, help="probability that a clip is changed", search=floats(0.0, 1.0), ge=0, le=1)
    severity: float = setting(3.0, help="strength, 10 is the full one", gt=0, le=10, search=floats(1.0, 8.0))
    width: int = setting(3, help="chains that are mixed", ge=1, le=8, search=integers(2, 4))
    depth: Annotated[IntPair, Within(1, 8)] = setting(
        (1, 3), help="operations of a chain", search=choice((1, 1), (1, 3), (2, 3))
    )


@primitive("augment/augmix")
class AugMix(Composite):
    """Mixes chains of operations with one another and with the clip (AugMix; without its consistency loss)."""

    Config = AugMixConfig
    operation = _HERE + "augmix"
    video_only: ClassVar[bool] = True

    @classmethod
    def uses(cls, config: Any) -> tuple[Use, ...]:
        """Return the operations at the strength that was set."""
        return _operations(config.severity / 10, corrupting=False)
