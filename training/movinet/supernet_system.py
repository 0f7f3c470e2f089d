"""Training of a supernet: every step, and every process, a member of the search space drawn anew."""

import random
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from training.core.config import DataConfig, Strict
from training.core.cost import count_macs, count_params
from training.core.system import ClipBatch, CostRow, Prediction, RawBatch, StepOutput, System, UpdateContext
from training.core.transforms import ClipTransform
from training.core.views import view_scores
from training.movinet.config import VariantConfig
from training.movinet.space import Genotype, Space, SpaceConfig
from training.movinet.supernet import Choice, Supernet, warmed
from training.movinet.target import Budget, CostModel, TargetConfig

__all__ = ["SupernetConfig", "SupernetSystem"]


class SupernetConfig(Strict):
    """A supernet and how it is trained."""

    space: SpaceConfig
    variant: VariantConfig
    dropout: float = Field(ge=0, lt=1)
    drop_path: float = Field(ge=0, lt=1)
    norm_eps: float = Field(gt=0)
    norm_momentum: float = Field(gt=0, le=1)
    """Weight of the newest batch."""
    label_smoothing: float = Field(ge=0, lt=1)
    warmup: float = Field(ge=0, lt=1)
    """Share of the steps in which choices are replaced by means of options and largest widths, with a probability that
    falls from 1 to 0 (0.25)."""
    sandwich: bool
    """Train the largest and the smallest member in every step too, at three times the cost (Yu et al. 2019)."""
    near: TargetConfig | None
    """Draw members of about this cost only; None: all. A latency is no such cost."""


class SupernetSystem(System):
    """Trains members that share their weights; predicts with the largest one.

    Its scores are a lower bound: batch norm statistics are a mixture over members (`scoring.recalibrate`).

    Args:
        config: supernet and training.
        data: clips.
        classes: names in index order.
        root: not used; a supernet starts from scratch.
    """

    def __init__(
        self, config: SupernetConfig, data: DataConfig, classes: tuple[str, ...], root: Path | None = None
    ) -> None:
        super().__init__()
        self.classes = classes
        self.config = config
        self.space = Space(config.space)
        variant = config.variant.variant()
        self.supernet = Supernet(
            self.space,
            variant,
            len(classes),
            dropout=config.dropout,
            drop_path=config.drop_path,
            norm_eps=config.norm_eps,
            norm_momentum=config.norm_momentum,
        )
        self._transform = ClipTransform(data.transform)
        self._num_frames = data.num_frames
        self._views = data.eval_views
        self._side = data.transform.eval_side
        self._largest = self.space.largest_genotype()
        self._smallest = self.space.smallest_genotype()
        self._budget: Budget | None = None
        if config.near is not None:
            self._budget = Budget(config.near, CostModel(variant, data.num_frames, self._side, len(classes)))
            # An error about what cannot be reached should come before the first step.
            self.draw(random.Random(0))
        self.warmed_share = 1.0
        """Share of the warm-up that is over; a system outside of a training loop is warm."""

    @override
    def on_step(self, step: int, steps: int) -> None:
        self.warmed_share = 1.0 if self.config.warmup == 0 else step / (self.config.warmup * steps)

    def draw(self, rng: random.Random) -> Genotype:
        """Draw a member, near the target where there is one.

        Raises:
            ConfigError: no member costs that.
        """
        if self._budget is None:
            return self.space.sample(rng)
        target = self._budget.target
        return self.space.sample_near(rng, self._budget.cost, target.value, target.tolerance).genotype

    @override
    def prepare(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        return self._transform(raw, train=train)

    @override
    def forward(self, batch: ClipBatch) -> StepOutput:
        # The CPU's generator, which the loop seeds from (seed, step, rank): no wait for the device.
        rng = random.Random(int(torch.randint(2**62, ()).item()))
        chosen: list[Genotype | Choice] = [warmed(self.space, self.draw(rng), self.warmed_share, rng)]
        if self.config.sandwich:
            chosen += [self._largest, self._smallest]
        losses = []
        correct = torch.zeros((), device=batch.label_B.device)
        for choice in chosen:
            logits = self.supernet(batch.video_BCTHW, choice).float()
            losses.append(F.cross_entropy(logits, batch.label_B, label_smoothing=self.config.label_smoothing))
            correct += (logits.argmax(-1) == batch.label_B).float().mean().detach() / len(chosen)
        return StepOutput(torch.stack(losses).mean(), {"accuracy": correct})

    @override
    def update(self, batch: ClipBatch, ctx: UpdateContext) -> dict[str, Tensor]:
        logs = super().update(batch, ctx)
        # Every process ran other members; without this each would evaluate another net.
        self.supernet.mean_statistics()
        return logs

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        def largest(video_BCTHW: Tensor) -> Tensor:
            logits: Tensor = self.supernet(video_BCTHW, self._largest)
            return logits

        return Prediction(view_scores(largest, batch.video_BCTHW, self._num_frames).mean(1))

    @override
    def networks(self) -> Iterable[nn.Module]:
        # Nothing to compile: every step has another graph.
        return ()

    @override
    def undecayed(self) -> Iterable[nn.Parameter]:
        assert self.supernet.net.classifier is not None  # it has classes
        weight = self.supernet.net.classifier.weight
        return [weight] if isinstance(weight, nn.Parameter) else []

    @override
    def cost(self) -> dict[str, CostRow]:
        largest = self.supernet.skeleton(self._largest)
        view = torch.empty(1, 3, self._num_frames, self._side, self._side, device="meta")
        gmac = self._views * count_macs(largest, view) / 1e9
        shape = f"{self._views} × {self._num_frames}x3x{self._side}x{self._side}"
        return {"main": CostRow("movinet_supernet_largest", count_params(largest), gmac, shape, "video")}
