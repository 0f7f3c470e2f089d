"""Two primitives of a package outside Fovea, found through its entry point."""

from collections.abc import Mapping
from typing import Any, ClassVar

from training.autovideo.augment.augmenter import Augmenter, ChanceConfig
from training.autovideo.domains import floats
from training.autovideo.primitive import Input, Kind, Port, Primitive, primitive, setting
from training.autovideo.values import Context, Metrics, Value


class TintConfig(ChanceConfig):
    """Settings of `ExampleTint`."""

    strength: float = setting(0.2, help="Share of the tint.", ge=0, le=1, search=floats(0, 0.5))


@primitive("augment/example_tint")
class ExampleTint(Augmenter):
    """Mix red into all frames of a clip."""

    Config = TintConfig
    operation = "fovea_example_primitives:tint"
    example = "{id: tint, use: augment/example_tint, in: clip, with: {p: 0.5, strength: 0.2}}"


def tint(video_BCTHW: Any, config: TintConfig, draw: Any) -> Any:
    """Return changed clips, 0…1; where chance is needed, it comes from `draw`."""
    changed = video_BCTHW.clone()
    changed[:, 0] = changed[:, 0] * (1 - config.strength) + config.strength
    return changed


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
