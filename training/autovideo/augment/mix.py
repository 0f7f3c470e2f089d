"""Augmenters that mix clips of a batch and their targets (`pixels_mix.py`)."""

from typing import ClassVar, Literal

from training.autovideo.augment.augmenter import Augmenter, ChanceConfig
from training.autovideo.domains import choice, floats
from training.autovideo.primitive import primitive, setting

_HERE = "training.autovideo.augment.pixels_mix:"


class MixConfig(ChanceConfig):
    """Settings of what mixes clips."""

    alpha: float = setting(
        0.8,
        help="of Beta(alpha, alpha), from which the weight is drawn; large: always halves",
        gt=0,
        le=100,
        search=floats(0.1, 2.0, log=True),
    )


@primitive("augment/mixup")
class Mixup(Augmenter):
    """Averages two clips (MixUp)."""

    Config = MixConfig
    operation = _HERE + "mixup"
    mixes: ClassVar[bool] = True


@primitive("augment/cutmix")
class Cutmix(Augmenter):
    """Pastes a rectangle of another clip (CutMix)."""

    Config = MixConfig
    operation = _HERE + "cutmix"
    mixes: ClassVar[bool] = True


class VideomixConfig(MixConfig):
    """Settings of `Videomix`."""

    mode: Literal["spatial", "temporal", "spatiotemporal"] = setting(
        "spatiotemporal", help="what is pasted", search=choice("spatial", "temporal", "spatiotemporal")
    )


@primitive("augment/videomix")
class Videomix(Augmenter):
    """Pastes a cuboid of another clip (VideoMix)."""

    Config = VideomixConfig
    operation = _HERE + "videomix"
    mixes: ClassVar[bool] = True


@primitive("augment/fademix")
class Fademix(Augmenter):
    """Fades between two clips along time."""

    Config = MixConfig
    operation = _HERE + "fademix"
    mixes: ClassVar[bool] = True
