"""Augmenters of time: they move whole frames and change none (`pixels_time.py`)."""

from typing import Annotated, Literal

from training.autovideo.augment.augmenter import Augmenter, ChanceConfig, IntPair, Pair, Within
from training.autovideo.domains import choice, floats, integers
from training.autovideo.primitive import primitive, setting

_HERE = "training.autovideo.augment.pixels_time:"


@primitive("augment/temporal_reverse")
class TemporalReverse(Augmenter):
    """Plays backwards."""

    Config = ChanceConfig
    operation = _HERE + "temporal_reverse"


class TemporalJitterConfig(ChanceConfig):
    """Settings of `TemporalJitter`."""

    frames: int = setting(1, help="how far a frame may move", unit="frames", ge=1, le=64, search=integers(1, 4))


@primitive("augment/temporal_jitter")
class TemporalJitter(Augmenter):
    """Takes each frame from a little earlier or later; the order stays."""

    Config = TemporalJitterConfig
    operation = _HERE + "temporal_jitter"


class TemporalShiftConfig(ChanceConfig):
    """Settings of `TemporalShift`."""

    frames: Annotated[IntPair, Within(1, 256)] = setting(
        (1, 2), help="how far all frames move", unit="frames", search=choice((1, 1), (1, 2), (2, 4))
    )
    direction: Literal["both", "earlier", "later"] = setting(
        "both", help="whether earlier or later frames are shown; both: drawn per clip"
    )
    cyclic: bool = setting(False, help="what leaves at one end enters at the other", search=choice(False, True))


@primitive("augment/temporal_shift")
class TemporalShift(Augmenter):
    """Moves all frames along time; the frame at the end is held."""

    Config = TemporalShiftConfig
    operation = _HERE + "temporal_shift"


class TemporalSpeedConfig(ChanceConfig):
    """Settings of `TemporalSpeed`."""

    speed: Annotated[Pair, Within(0.1, 10)] = setting(
        (0.5, 2.0), help="above 1 faster", search=choice((0.8, 1.25), (0.5, 2.0), (0.25, 4.0))
    )
    loop: bool = setting(False, help="a clip that ends early starts again, instead of holding its last frame")


@primitive("augment/temporal_speed")
class TemporalSpeed(Augmenter):
    """Plays faster or slower."""

    Config = TemporalSpeedConfig
    operation = _HERE + "temporal_speed"


class FrameDropConfig(ChanceConfig):
    """Settings of `FrameDrop`."""

    share: float = setting(0.3, help="probability that a frame is lost", ge=0, le=1, search=floats(0.05, 0.6))


@primitive("augment/frame_drop")
class FrameDrop(Augmenter):
    """Loses one frame or more; the last one before is shown instead."""

    Config = FrameDropConfig
    operation = _HERE + "frame_drop"


class FrameFreezeConfig(ChanceConfig):
    """Settings of `FrameFreeze`."""

    share: Annotated[Pair, Within(0, 1)] = setting(
        (0.25, 0.6), help="how long", unit="shares of the clip", search=choice((0.1, 0.3), (0.25, 0.6))
    )


@primitive("augment/frame_freeze")
class FrameFreeze(Augmenter):
    """Holds one frame for a while, as a stuttering stream does."""

    Config = FrameFreezeConfig
    operation = _HERE + "frame_freeze"


class TemporalShuffleConfig(ChanceConfig):
    """Settings of `TemporalShuffle`."""

    segments: int = setting(4, help="pieces that are put in another order", ge=2, le=256, search=integers(2, 8))


@primitive("augment/temporal_shuffle")
class TemporalShuffle(Augmenter):
    """Exchanges pieces of the clip."""

    Config = TemporalShuffleConfig
    operation = _HERE + "temporal_shuffle"


class TemporalLoopConfig(ChanceConfig):
    """Settings of `TemporalLoop`."""

    turn: Annotated[Pair, Within(0, 1)] = setting(
        (0.4, 0.7), help="where the clip turns", unit="shares of the clip", search=choice((0.5, 0.5), (0.4, 0.7))
    )


@primitive("augment/temporal_loop")
class TemporalLoop(Augmenter):
    """Plays forwards up to a frame, then backwards from it."""

    Config = TemporalLoopConfig
    operation = _HERE + "temporal_loop"
