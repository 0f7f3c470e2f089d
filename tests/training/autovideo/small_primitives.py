"""Primitives that do nothing, for tests of documents, graphs and commands: one of each form of ports and settings."""
# ruff: noqa: RUF012 -- declarations, which nobody changes

from collections.abc import Mapping
from typing import Any, Literal

from training.autovideo.domains import choice, floats, integers
from training.autovideo.primitive import Input, Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.use import Use


class ReaderConfig(PrimitiveConfig):
    media: str = setting("media", help="Folder of the videos.")
    classes: tuple[str, ...] = setting((), help="Names of classes; empty: those of the files.")


@primitive("reader/small", version=3)
class Reader(Primitive):
    """Read a list of videos."""

    kind = "reader"
    Config = ReaderConfig
    outputs = {"manifest": Port.MANIFEST}


@primitive("extractor/small")
class Extractor(Primitive):
    """Pack videos into shards.

    It takes one data set.
    """

    kind = "extractor"
    inputs = {"manifest": Input(Port.MANIFEST)}
    outputs = {"shards": Port.SHARDS}


class DecoderConfig(PrimitiveConfig):
    frames: int = setting(8, help="Frames per clip.", unit="frames", search=integers(4, 16, step=4), ge=1, le=64)
    mode: Literal["tsn", "dense"] = setting("tsn", help="How frames are drawn.", search=choice("tsn", "dense"))
    scale: float = setting(1.0, help="Scale of the frames.", gt=0)
    note: str = setting("", help="Free text.")


@primitive("decoder/small")
class Decoder(Primitive):
    """Draw clips."""

    kind = "decoder"
    Config = DecoderConfig
    inputs = {"shards": Input(Port.SHARDS)}
    outputs = {"clips": Port.CLIP}
    example = "{id: clip, use: decoder/small, in: shards, with: {frames: 8}}"

    def cost(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        return {"frames": self.config.frames}


class FlipConfig(PrimitiveConfig):
    p: float = setting(0.5, help="Probability.", ge=0, le=1, search=floats(0, 1))


@primitive("augment/small_flip")
class Flip(Primitive):
    """Flip clips."""

    kind = "augment"
    determinism = "seeded"
    Config = FlipConfig
    inputs = {"clips": Input(Port.CLIP)}
    outputs = {"clips": Port.CLIP}


@primitive("augment/small_clock")
class Clock(Primitive):
    """Draw the time of day into clips."""

    kind = "augment"
    determinism = "impure"
    inputs = {"clips": Input(Port.CLIP)}
    outputs = {"clips": Port.CLIP}


class SomeOfConfig(PrimitiveConfig):
    n: int = setting(1, help="How many.", ge=1)
    of: tuple[Use, ...] = setting(help="Of these.", min_length=1)
    named: dict[str, Use] = setting({}, help="More of them, by name.")


@primitive("combine/small_some_of")
class SomeOf(Primitive):
    """Use some of several augmenters."""

    kind = "combine"
    Config = SomeOfConfig
    inputs = {"clips": Input(Port.CLIP)}
    outputs = {"clips": Port.CLIP}


class NetConfig(PrimitiveConfig):
    width: int = setting(help="Channels.", ge=1, search=choice(8, 16))
    epochs: int = setting(1, help="Passes over the data.", ge=1)
    lr: dict[str, float] = setting({"head": 0.1}, help="Learning rate by group.")


@primitive("recognition/small", version=2)
class Net(Primitive):
    """Train a net."""

    kind = "learner"
    determinism = "seeded"
    Config = NetConfig
    inputs = {"clips": Input(Port.CLIP)}
    outputs = {"model": Port.MODEL, "figures": Port.METRICS}

    def cost(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        return {"macs": 1e9 * self.config.width, "bytes": float(len(inputs["clips"].data))}


@primitive("evaluator/small")
class Evaluator(Primitive):
    """Score a model."""

    kind = "evaluator"
    inputs = {"model": Input(Port.MODEL), "clips": Input(Port.CLIP)}
    outputs = {"metrics": Port.METRICS, "predictions": Port.PREDICTIONS}


@primitive("evaluator/small_compare")
class Compare(Primitive):
    """Compare two models, with the figures of others if there are any."""

    kind = "evaluator"
    inputs = {"first": Input(Port.PREDICTIONS), "second": Input(Port.PREDICTIONS),
              "extra": Input(Port.METRICS, optional=True)}  # fmt: skip
    outputs = {"metrics": Port.METRICS}


@primitive("ensembler/small")
class Mean(Primitive):
    """Average predictions."""

    kind = "ensembler"
    inputs = {"predictions": Input(Port.PREDICTIONS, several=True)}
    outputs = {"predictions": Port.PREDICTIONS}


@primitive("ensembler/small_rest")
class Rest(Primitive):
    """Average predictions against a base."""

    kind = "ensembler"
    inputs = {"base": Input(Port.PREDICTIONS), "others": Input(Port.PREDICTIONS, optional=True, several=True)}
    outputs = {"predictions": Port.PREDICTIONS}


@primitive("exporter/small_loose")
class Loose(Primitive):
    """Write what there is."""

    kind = "exporter"
    determinism = "impure"
    inputs = {"a": Input(Port.CLIP, optional=True), "b": Input(Port.CLIP, optional=True),
              "c": Input(Port.CLIP, optional=True), "model": Input(Port.MODEL, optional=True)}  # fmt: skip
    outputs = {"report": Port.REPORT}


@primitive("transform/small_split")
class Split(Primitive):
    """Divide clips into two halves."""

    kind = "transform"
    inputs = {"clips": Input(Port.CLIP)}
    outputs = {"left": Port.CLIP, "right": Port.CLIP}


@primitive("exporter/small_broken_cost")
class BrokenCost(Primitive):
    """Fail when asked what it costs."""

    kind = "exporter"
    inputs = {"model": Input(Port.MODEL)}

    def cost(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        raise TypeError("no idea")
