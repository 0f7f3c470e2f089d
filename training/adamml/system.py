"""Losses, updates, predictions and cost of the AdaMML stages.

Suffixes: B videos, S segments, K modalities, C classes.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from training.adamml.config import AdaMMLConfig, Modality, UnimodalConfig
from training.adamml.cost import segment_gmac
from training.adamml.inputs import SegmentBatch, SegmentTransform
from training.adamml.lazy import predict_lazily
from training.adamml.model import AdaMML, Answer, Mode
from training.adamml.networks import SegmentNet, channels_of
from training.core.checkpoint import load_state
from training.core.config import DataConfig
from training.core.cost import count_params
from training.core.evaluate import Predictions
from training.core.frozen import PartlyFrozen
from training.core.system import ClipBatch, CostRow, Prediction, RawBatch, StepOutput
from training.core.weights import load_weights
from training.layers.gumbel import gumbel_noise, straight_through

if TYPE_CHECKING:
    from training.core.lazy_video import LazyVideo

log = logging.getLogger(__name__)

# Stream of the draws in training; other uses of the clips' seeds have other numbers.
STREAM_TRAIN_DECISION = 31


def classification_loss(logits_BC: Tensor, label: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Mean cross entropy; several labels of a video share its probability equally.

    Args:
        logits_BC: fp32.
        label: int64 (B,), or multi-hot (B,C).
        weight_B: videos that count; None: all.
    """
    target = label if label.dim() == 1 else label / label.sum(1, keepdim=True).clamp_min(1)
    if weight_B is None:
        return F.cross_entropy(logits_BC, target)
    losses = F.cross_entropy(logits_BC, target, reduction="none")
    return (losses * weight_B).sum() / weight_B.sum().clamp_min(1)


def is_correct(logits_BC: Tensor, label: Tensor) -> Tensor:
    """Return (B,) float, 1 where the best class is the label, or one of the labels."""
    best_B = logits_BC.argmax(-1)
    if label.dim() == 1:
        return (best_B == label).float()
    return label.gather(1, best_B[:, None])[:, 0].float()


class _SegmentSystem(PartlyFrozen):
    """Shared: the device transform of the modalities that a stage sees."""

    def __init__(
        self, model: AdaMMLConfig, data: DataConfig, inputs: tuple[Modality, ...], classes: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.classes = classes
        self.data = data
        self._parts: tuple[str, ...] | None = None
        """Networks that this system has; None: all."""
        self.transform = SegmentTransform(model, data, inputs)
        self._model = model
        self._gmac: dict[str, float] | None = None

    @override
    def prepare(self, raw: RawBatch, *, train: bool) -> SegmentBatch:
        return self.transform(raw, train=train)

    def segment_gmac(self) -> dict[str, float]:
        """Return GMAC per segment of each modality's sub-network, and of the `policy`."""
        if self._gmac is None:  # counting takes a second for large nets
            data = self.data
            samples = None if data.sound is None else data.sound.samples
            config, classes = self._model, len(self.classes)
            self._gmac = segment_gmac(config, data.stack, classes, samples, config.constants, self._parts)
        return self._gmac

    @property
    def shape(self) -> str:
        """Input of a video, for cost rows."""
        side = self.data.transform.eval_side
        return f"{self.data.eval_clips} segments of {self.data.num_frames}x{side}x{side}"


class Unimodal(_SegmentSystem):
    """Stage 1: one sub-network; a video's logits are the mean over its segments."""

    def __init__(self, config: UnimodalConfig, classes: tuple[str, ...], root: Path | None) -> None:
        super().__init__(config.model, config.data, (config.modality,), classes)
        self.modality = config.modality
        self._parts = (config.modality,)
        settings = config.model.nets[config.modality]
        channels = channels_of(config.modality, config.data.stack)
        self.net = SegmentNet(settings, channels, len(classes), config.model.dropout)
        if root is not None and settings.weights is not None:
            log.info("%s net: %s", config.modality, self.net.load(settings.weights, root))

    def logits(self, batch: SegmentBatch) -> Tensor:
        """Return mean segment logits (B,C), fp32."""
        value = batch.inputs[self.modality]
        logits_BC: Tensor = self.net(value.flatten(0, 1)).unflatten(0, value.shape[:2]).mean(1)
        return logits_BC

    @override
    def forward(self, batch: SegmentBatch) -> StepOutput:  # type: ignore[override]
        logits = self.logits(batch)
        # Silence has no class: what a video does not have teaches nothing.
        there = batch.available[self.modality][:, 0].float()
        loss = classification_loss(logits, batch.label_B, there)
        accuracy = (is_correct(logits, batch.label_B) * there).sum() / there.sum().clamp_min(1)
        return StepOutput(loss, {"accuracy": accuracy.detach()})

    @override
    def predict(self, batch: SegmentBatch) -> Prediction:  # type: ignore[override]
        return Prediction(self.logits(batch).softmax(-1))

    @override
    def networks(self) -> Iterable[nn.Module]:
        return (self.net,)

    @override
    def cost(self) -> dict[str, CostRow]:
        gmac = self.data.eval_clips * self.segment_gmac()[self.modality]
        return {"main": CostRow(f"adamml_{self.modality}", count_params(self), gmac, self.shape, "video")}


class AdaMMLSystem(_SegmentSystem):
    """Base of stages 2 to 4: all networks, inference that skips, figures of cost."""

    mode: Mode = "argmax"
    threshold: float = 0.5
    temperature: Tensor
    """τ of the round that this model comes from; it changes no decision."""

    def __init__(
        self, model: AdaMMLConfig, data: DataConfig, classes: tuple[str, ...], temperature: float = 1.0
    ) -> None:
        super().__init__(model, data, model.inputs, classes)
        self.net = AdaMML(model, len(classes), data.stack)
        self.choice_names = model.modalities
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def load_upstream(self, folder: Path) -> None:
        """Load everything from the previous stage's model, strictly."""
        load_weights(self, load_state(folder))

    @override
    def networks(self) -> Iterable[nn.Module]:
        return (*self.net.recognition, *self.net.policy.extractors.values())

    def recognition_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the sub-networks and the fusion weights."""
        return [*self.net.nets.parameters(), *([self.net.fusion] if self.net.fusion.numel() else [])]

    def available(self, batch: SegmentBatch) -> Tensor:
        """Return (B,S,K) bool: what each video has, in the order of the decisions."""
        return torch.stack([batch.available[name] for name in self._model.modalities], dim=2)

    # --- training ---

    def sampled(self, batch: SegmentBatch) -> Tensor:
        """Return decisions (B,S,K) as numbers, drawn from the policy without a graph."""
        with torch.no_grad():
            return self._drawn(batch)

    def _drawn(self, batch: SegmentBatch) -> Tensor:
        logits, _ = self.net.policy.unroll(self.net.joint(batch.inputs), None)
        noise = gumbel_noise(batch.seed_B, tuple(logits.shape[1:]), stream=STREAM_TRAIN_DECISION)
        return straight_through(logits, noise, self.temperature) * self.available(batch)

    def recognition_loss(self, batch: SegmentBatch, used_BSK: Tensor) -> StepOutput:
        """Return the cross entropy under given decisions; every sub-network runs on every segment."""
        score = self.net.fuse(self.net.segment_scores(batch.inputs), used_BSK)
        logs = {"accuracy": is_correct(score, batch.label_B).mean().detach()} | self.usage(used_BSK)
        return StepOutput(classification_loss(score, batch.label_B), logs)

    def usage(self, used_BSK: Tensor) -> dict[str, Tensor]:
        """Return the share of segments on which each modality is used, as logs."""
        rates = used_BSK.detach().float().mean((0, 1))
        return {f"usage_{name}": rate for name, rate in zip(self._model.modalities, rates.unbind(), strict=True)}

    # --- inference ---

    def answer(self, batch: SegmentBatch) -> Answer:
        """Decide, run what was chosen, fuse."""
        available = self.available(batch)
        answer: Answer = self.net(batch.inputs, available, self.mode, threshold=self.threshold, seed_B=batch.seed_B)
        return answer

    @override
    def predict(self, batch: SegmentBatch) -> Prediction:  # type: ignore[override]
        return self.prediction(self.answer(batch), self.available(batch))

    def prediction(self, answer: Answer, available_BSK: Tensor) -> Prediction:
        """Return an answer with what it used and what that cost."""
        margin = answer.logits_BSK2[..., 1] - answer.logits_BSK2[..., 0]
        extras = {
            "choices": answer.used_BSK,
            "available": available_BSK,
            "use_logits": margin,
            "gmac": self.executed_gmac(answer.used_BSK),
        }
        return Prediction(answer.score_BC.softmax(-1), extras=extras)

    @override
    def predict_all(self, batch: SegmentBatch) -> Prediction:  # type: ignore[override]
        """Decide, and run everything once: also for what all modalities together say, on the same scores."""
        available = self.available(batch)
        logits, _ = self.net.policy.unroll(self.net.joint(batch.inputs), None)
        decision = self.net.decision(
            logits,
            available,
            self.mode,
            threshold=self.threshold,
            seed_B=batch.seed_B,
        )
        scores = self.net.segment_scores(batch.inputs)
        answer = Answer(self.net.fuse(scores, decision.used_BSK.float()), decision.used_BSK, logits, ())
        main = self.prediction(answer, available)
        fusion = self.net.fuse(scores, available.float()).softmax(-1)
        return Prediction(main.scores_BK, {"fusion": fusion}, main.extras)

    @override
    def predict_lazily(self, video: "LazyVideo", device: torch.device) -> tuple[Prediction, ClipBatch] | None:
        return predict_lazily(self, video, device)

    # --- cost ---

    def executed_gmac(self, used_BSK: Tensor) -> Tensor:
        """Return GMAC (B,) of videos with these decisions, the policy on every segment included."""
        each = self.segment_gmac()
        price_K = torch.tensor([each[name] for name in self._model.modalities]).to(used_BSK.device, non_blocking=True)
        return (used_BSK * price_K).sum((1, 2)) + used_BSK.shape[1] * each["policy"]

    @override
    def cost(self) -> dict[str, CostRow]:
        each, segments = self.segment_gmac(), self.data.eval_clips
        everything = segments * sum(each[name] for name in self._model.modalities)
        policy = count_params(self.net.policy)
        parts = {f"gmac_{name}": value for name, value in each.items()}
        # What a video costs at most; evaluation replaces it by what was executed.
        most = everything + segments * each["policy"]
        total = count_params(self)
        return {
            "main": CostRow("adamml", total, most, self.shape, "video", parts),
            "fusion": CostRow("adamml_fusion", total - policy, everything, self.shape, "video"),
        }

    @override
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        choices = predictions.extras["choices"]
        rates = choices.mean((0, 1))
        figures = {f"usage_{name}": float(rate) for name, rate in zip(self._model.modalities, rates, strict=True)}
        fusion = self.cost()["fusion"].gmac
        return figures | {"saving": 1 - float(predictions.extras["gmac"].mean()) / fusion}
