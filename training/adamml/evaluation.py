"""The evaluated model: it skips for real, and stands beside fusion and single modalities on the same videos."""

from collections.abc import Iterable, Mapping

from torch import nn
from typing_extensions import override

from training.adamml.arms import figures
from training.adamml.config import EvalConfig, Modality
from training.adamml.inputs import SegmentBatch
from training.adamml.segments import Segments
from training.adamml.system import AdaMMLSystem, Unimodal
from training.core.evaluate import Predictions
from training.core.system import CostRow, Prediction, RawBatch, System


class Evaluation(System):
    """The fine-tuned model and the unimodal nets in one pass over the split.

    The model's own answer comes from `predict`, which runs only what the policy chose. All sub-networks then run on
    all segments once more, for what the answer is compared with.
    """

    def __init__(self, model: AdaMMLSystem, unimodal: Mapping[Modality, Unimodal], config: EvalConfig) -> None:
        super().__init__()
        self.classes = model.classes
        self.config = config
        self.model = model
        self.unimodal = nn.ModuleDict({name: unimodal[name] for name in config.model.modalities})
        self.choice_names = model.choice_names
        model.mode, model.threshold = config.decide, config.threshold

    @override
    def prepare(self, raw: RawBatch, *, train: bool) -> SegmentBatch:
        return self.model.prepare(raw, train=train)

    @override
    def predict(self, batch: SegmentBatch) -> Prediction:  # type: ignore[override]
        return self.model.predict(batch)

    @override
    def predict_all(self, batch: SegmentBatch) -> Prediction:  # type: ignore[override]
        main = self.model.predict(batch)
        net = self.model.net
        scores, available = net.segment_scores(batch.inputs), self.model.available(batch)
        arms = {"fusion": net.fuse(scores, available.float()).softmax(-1)}
        arms |= {name: system.predict(batch).scores_BK for name, system in self.unimodal.items()}  # type: ignore[operator]
        weights = net.weights()
        extras = {
            "segment_scores": (scores * weights[:, None]).half(),
            "weights": weights.expand(len(batch.key), -1),
        }
        return Prediction(main.scores_BK, arms, {**main.extras, **extras})

    @override
    def cost(self) -> dict[str, CostRow]:
        single = {name: system.cost()["main"] for name, system in self.unimodal.items()}  # type: ignore[operator]
        return {**self.model.cost(), **single}

    @override
    def networks(self) -> Iterable[nn.Module]:
        return self.model.networks()

    @override
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return figures(self.segments(predictions), self.config.draws)

    def segments(self, predictions: Predictions) -> Segments:
        """Return the evaluation segment by segment, for policies that were not run."""
        each, config = self.model.segment_gmac(), self.config.model
        prices: dict[str, float] = {name: each[name] for name in config.modalities}
        return Segments.of(
            predictions, prices, policy_gmac=each["policy"], mean=config.mean, least_one=config.least_one
        )
