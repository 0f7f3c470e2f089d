"""Two primitives of a package outside Fovea, found through its entry point."""

from collections.abc import Mapping
from typing import Any, ClassVar

from training.autovideo.domains import floats
from training.autovideo.primitive import Input, Kind, Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.use import Use
from training.autovideo.values import Context, Metrics, Value


class TintConfig(PrimitiveConfig):
    """Settings of `ExampleTint`."""

    p: float = setting(0.5, help="Probability per clip.", ge=0, le=1, search=floats(0, 1))
    strength: float = setting(0.2, help="Share of the tint.", ge=0, le=1)


@primitive("augment/example_tint")
class ExampleTint(Primitive):
    """Mix one colour into all frames of a clip."""

    kind: ClassVar[Kind] = "augment"
    Config = TintConfig
    inputs: ClassVar[Mapping[str, Input]] = {"clips": Input(Port.CLIP)}
    outputs: ClassVar[Mapping[str, Port]] = {"clips": Port.CLIP}
    example = "{id: tint, use: augment/example_tint, in: clip, with: {p: 0.5, strength: 0.2}}"

    def produce(self, inputs: Mapping[str, Value], state: Any, context: Context) -> dict[str, Value]:
        """Add this augmenter to the recipe of the clips."""
        clips: Any = inputs["clips"]
        return {"clips": clips.then(Use(use=self.id, settings=self.config.model_dump()))}


@primitive("evaluator/example_count")
class ExampleCount(Primitive):
    """Count the figures of another evaluator."""

    kind: ClassVar[Kind] = "evaluator"
    inputs: ClassVar[Mapping[str, Input]] = {"metrics": Input(Port.METRICS)}
    outputs: ClassVar[Mapping[str, Port]] = {"metrics": Port.METRICS}

    def produce(self, inputs: Mapping[str, Value], state: Any, context: Context) -> dict[str, Value]:
        """Return one figure, how many there are."""
        metrics: Any = inputs["metrics"]
        return {"metrics": Metrics({"count": float(len(metrics.values))})}
