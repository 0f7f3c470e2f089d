"""Extractors: what is made of data or of a model, once, for the steps downstream."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from training.autovideo.evaluation.evaluators import EvaluatorConfig, predictions_of
from training.autovideo.primitive import Input, Port, Primitive, primitive

if TYPE_CHECKING:
    from training.autovideo.values import Context, Value


@primitive("extractor/predictions", version=1)
class ExtractPredictions(Primitive):
    """Scores of a model for each video of some splits.

    Made once, they can be judged by several evaluators and combined by ensemblers. Without `clips` the model sees the
    shards that it was trained on, as it was evaluated in training.
    """

    kind = "extractor"
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input(Port.MODEL), "clips": Input(Port.CLIP, optional=True)}
    outputs: ClassVar[Mapping[str, Port]] = {"predictions": Port.PREDICTIONS}
    Config = EvaluatorConfig
    example = "{id: scores, use: extractor/predictions, in: [net, clip], with: {splits: [val, test]}}"

    def produce(self, inputs: "Mapping[str, Value]", state: Any, context: "Context") -> "dict[str, Value]":
        """Return `predictions`."""
        (value,), _ = predictions_of(inputs, self.config, context)
        return {"predictions": value}
