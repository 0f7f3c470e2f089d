"""What stages 2 to 4 train: recognition under a policy, policy and recognition in turns, recognition again.

Suffixes: B videos, S segments, K modalities.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from training.adamml.config import FinetuneConfig, JointConfig, Modality, WarmupConfig
from training.adamml.inputs import SegmentBatch
from training.adamml.networks import SegmentNet
from training.adamml.system import AdaMMLSystem, classification_loss, is_correct
from training.core.checkpoint import load_state
from training.core.config import OptimConfig
from training.core.evaluate import Predictions
from training.core.metrics import classification_metrics
from training.core.system import StepOutput
from training.core.weights import load_weights

log = logging.getLogger(__name__)

Phase = Literal["recognition", "policy"]


def usage_price(
    used_BSK: Tensor, correct_B: Tensor, price_K: Tensor, penalty: Literal["gated_square", "mean"]
) -> Tensor:
    """Return what decisions cost in the loss, a scalar.

    With ū the share of a video's segments that use a modality: `gated_square` is the mean over videos of
    1(correct)·Σ_k λ_k·ū_k², so what is classified wrongly pays nothing; `mean` is that of Σ_k λ_k·ū_k.

    Args:
        used_BSK: decisions as numbers; gradients reach them.
        correct_B: 1 where the video is classified correctly, else 0.
        price_K: λ.
        penalty: which form.
    """
    share_BK = used_BSK.mean(1)
    if penalty == "gated_square":
        return (correct_B * (price_K * share_BK.square()).sum(1)).mean()
    return (price_K * share_BK).sum(1).mean()


class RecognitionStage(AdaMMLSystem):
    """Stages 2 and 4: sub-networks and fusion weights learn under decisions of a policy that is not trained."""

    @override
    def frozen(self) -> Iterable[nn.Module]:
        return (self.net.policy,)

    @override
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"recognition": self.recognition_parameters()}

    @override
    def forward(self, batch: SegmentBatch) -> StepOutput:  # type: ignore[override]
        return self.recognition_loss(batch, self.sampled(batch))


class Warmup(RecognitionStage):
    """Stage 2: recognition under the decisions of an untrained policy, about half of them "use"."""

    def __init__(self, config: WarmupConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config.model, config.data, classes, config.temperature)

    def load_unimodal(self, folders: Mapping[Modality, Path]) -> None:
        """Take the sub-networks from stage 1, heads included."""
        for name, folder in folders.items():
            state = {k.removeprefix("net."): v for k, v in load_state(folder).items() if k.startswith("net.")}
            load_weights(self.net.nets[name], state)

    def load_policy_weights(self, root: Path) -> None:
        """Start the policy's extractors from published weights, where the config names some."""
        for name, settings in self._model.policy_nets.items():
            if settings.weights is not None:
                extractor = self.net.policy.extractors[name]
                assert isinstance(extractor, SegmentNet)  # by JointPolicy
                log.info("policy's %s net: %s", name, extractor.load(settings.weights, root))


class Joint(AdaMMLSystem):
    """Stage 3: recognition and policy in turns. Groups `recognition` and `policy`, an optimizer each."""

    unused_parameters = True
    price_K: Tensor
    """λ of each modality, the factor of all included."""

    def __init__(self, config: JointConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config.model, config.data, classes, config.temperature)
        self.config = config
        self.phase: Phase | None = None
        """What is trained now; None, before the first step: both at once, on the sum of their losses."""
        prices = [config.price * config.weights[name] for name in config.model.modalities]
        self.register_buffer("price_K", torch.tensor(prices), persistent=False)

    @override
    def on_step(self, step: int, steps: int) -> None:
        half, _ = divmod(step, self.config.round_steps)
        self.phase = "policy" if half % 2 else "recognition"
        self.active = (self.phase,)
        self.temperature.fill_(self.config.temperature * self.config.temperature_decay ** (half // 2))
        self.train(self.training)

    @override
    def train(self, mode: bool = True) -> "Joint":
        super().train(mode)
        if mode and self.config.freeze_norms and self.phase is not None:
            (self.net.policy if self.phase == "recognition" else self.net.nets).eval()
        return self

    @override
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"recognition": self.recognition_parameters(), "policy": list(self.net.policy.parameters())}

    @override
    def optim_configs(self, config: OptimConfig) -> dict[str, OptimConfig]:
        return {"recognition": config, "policy": self.config.policy_optim}

    @override
    def forward(self, batch: SegmentBatch) -> StepOutput:  # type: ignore[override]
        if self.phase == "recognition":
            return self.recognition_loss(batch, self.sampled(batch))
        if self.phase == "policy":
            return self.policy_loss(batch)
        recognition, policy = self.recognition_loss(batch, self.sampled(batch)), self.policy_loss(batch)
        return StepOutput(recognition.loss + policy.loss, {**recognition.logs, **policy.logs})

    def policy_loss(self, batch: SegmentBatch) -> StepOutput:
        """Return cross entropy plus the price of what was used; the gradient reaches the policy alone.

        It needs the values of the sub-networks' scores, not their graphs: they run without one.
        """
        with torch.no_grad():
            scores = self.net.segment_scores(batch.inputs)
            weights = self.net.weights()
        used = self._drawn(batch)
        score = self.net.fuse(scores, used, weights)
        correct_B = is_correct(score.detach(), batch.label_B)
        penalty = usage_price(used, correct_B, self.price_K, self.config.penalty)
        error = classification_loss(score, batch.label_B)
        loss = error + penalty + self.config.wrong * (1 - correct_B).mean()
        logs = {"cross_entropy": error.detach(), "penalty": penalty.detach(), "temperature": self.temperature.clone()}
        logs |= {"accuracy_policy": correct_B.mean()} | self.usage(used)
        return StepOutput(loss, logs)

    @override
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        figures = super().metrics(predictions)
        own, fusion = (_accuracy(scores, predictions) for scores in (predictions.scores, predictions.arms["fusion"]))
        # Any round that is accurate enough is better than any that is not; among them the cheapest is best.
        good = own >= fusion - self.config.tolerance
        return figures | {"choice": 2 + figures["saving"] if good else own}


class Finetune(RecognitionStage):
    """Stage 4: recognition alone, under the chosen round's policy."""

    def __init__(self, config: FinetuneConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config.model, config.data, classes)


def _accuracy(scores_NC: NDArray[Any], predictions: Predictions) -> float:
    """Return top-1, or mAP of a multi-label data set."""
    figures = classification_metrics(scores_NC, predictions.label, "val")
    return figures["val/top1" if predictions.label.ndim == 1 else "val/map"]
