"""REINFORCE over architectures: the controller of TuNAS (Bender et al. 2020), one categorical per choice.

Updates happen in the order of the rewards. With several samples under way a sample's log-probability is that of the
policy at its update, not at its draw.
"""

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from training.backbones.movinet_layout import MoViNetLayout
from training.core.config import Strict
from training.movinet.evolution import Proposal
from training.movinet.space import LAYER_KINDS, BlockGenes, Genotype, LayerGenes, Space

__all__ = ["Controller", "Reinforce", "ReinforceConfig"]

Array = NDArray[np.float64]

BETA2 = 0.999
EPS = 1e-8
DRAWS = 300
"""Draws in a row that may give known architectures; then the policy counts as settled."""


class ReinforceConfig(Strict):
    """Controller and its optimizer: Adam with β1 = 0, β2 = 0.999, ε = 10⁻⁸."""

    name: Literal["reinforce"]
    lr: float = Field(gt=0)
    """TuNAS: 0.0003 · batch/256 for each of ten thousands of updates; some hundreds of candidates need more."""
    schedule: Literal["constant", "tunas"]
    """`tunas`: 0 for the first `delay` of the candidates, then lr · 10^progress."""
    delay: float = Field(ge=0, lt=1)
    """Only for `tunas` (0.25)."""
    baseline: float = Field(ge=0, lt=1)
    """Momentum of the moving average of rewards (0.95); it starts at the first reward."""
    entropy: float = Field(ge=0)
    """Bonus per nat of the active choices' entropy (0)."""


@dataclass(frozen=True)
class _Choice:
    start: int
    """Of its logits."""
    count: int


class Controller:
    """Independent categorical choices: stem, project, and each block's width, depth and layers; logits start at 0.

    A layer beyond the drawn depth is not active: its choices take no part in the log-probability.
    """

    def __init__(self, space: Space, config: ReinforceConfig) -> None:
        self.space, self.config = space, config
        self._choices: dict[tuple[int | str, ...], _Choice] = {}
        total = 0
        for name, count in self._list():
            self._choices[name] = _Choice(total, count)
            total += count
        self.logits: Array = np.zeros(total)
        self._second: Array = np.zeros(total)
        self.updates = 0
        self.baseline: float | None = None

    def _list(self) -> list[tuple[tuple[int | str, ...], int]]:
        counts, config = self.space.counts, self.space.config
        found: list[tuple[tuple[int | str, ...], int]] = [(("stem",), counts["width"]), (("project",), counts["width"])]
        for block, (least, most) in enumerate(zip(config.min_layers, config.max_layers, strict=True)):
            found += [((block, "width"), counts["width"]), ((block, "depth"), most - least + 1)]
            found += [((block, layer, kind), counts[kind]) for layer in range(most) for kind in LAYER_KINDS]
        return found

    def probabilities(self, *name: int | str) -> Array:
        """Return the probabilities of a choice: `stem`, `project`, (block, `width` | `depth`), (block, layer, kind)."""
        choice = self._choices[name]
        logits = self.logits[choice.start : choice.start + choice.count]
        raised = np.exp(logits - logits.max())
        return np.asarray(raised / raised.sum())

    def draw(self, rng: random.Random) -> Genotype:
        """Draw a genotype from the policy."""

        def pick(*name: int | str) -> int:
            level, sums = rng.random(), self.probabilities(*name).cumsum()
            return min(int(np.searchsorted(sums, level, side="right")), len(sums) - 1)

        return self._build(pick)

    def most_likely(self) -> Genotype:
        """Return the largest logit of every choice, the first of equals."""
        return self._build(lambda *name: int(self.probabilities(*name).argmax()))

    def _build(self, pick: Callable[..., int]) -> Genotype:
        blocks = []
        for block, least in enumerate(self.space.config.min_layers):
            width, depth = pick(block, "width"), least + pick(block, "depth")
            layers = tuple(LayerGenes(*(pick(block, layer, kind) for kind in LAYER_KINDS)) for layer in range(depth))
            blocks.append(BlockGenes(width, layers))
        return Genotype(pick("stem"), pick("project"), tuple(blocks))

    def active(self, genotype: Genotype) -> dict[tuple[int | str, ...], int]:
        """Return the options of the active choices."""
        options: dict[tuple[int | str, ...], int] = {("stem",): genotype.stem, ("project",): genotype.project}
        for index, block in enumerate(genotype.blocks):
            options[index, "width"] = block.width
            options[index, "depth"] = len(block.layers) - self.space.config.min_layers[index]
            for number, genes in enumerate(block.layers):
                options |= {(index, number, kind): getattr(genes, kind) for kind in LAYER_KINDS}
        return options

    def log_probability(self, genotype: Genotype) -> float:
        """Return the log-probability of the active choices."""
        options = self.active(genotype)
        return math.fsum(math.log(self.probabilities(*name)[option]) for name, option in options.items())

    def gradient(self, genotype: Genotype, advantage: float) -> Array:
        """Return the gradient of -advantage · log p - entropy bonus with respect to the logits."""
        gradient = np.zeros_like(self.logits)
        for name, option in self.active(genotype).items():
            choice, probability = self._choices[name], self.probabilities(*name)
            part = gradient[choice.start : choice.start + choice.count]
            part += advantage * probability
            part[option] -= advantage
            if self.config.entropy > 0:
                logs = np.log(np.maximum(probability, np.finfo(np.float64).tiny))
                part += self.config.entropy * probability * (logs - (probability * logs).sum())
        return gradient

    def update(self, genotype: Genotype, reward: float, progress: float) -> None:
        """Learn from a reward; `progress` is the share of the search that is done, for the schedule."""
        if self.baseline is None:
            self.baseline = reward
        gradient = self.gradient(genotype, reward - self.baseline)
        self.baseline = self.config.baseline * self.baseline + (1 - self.config.baseline) * reward
        self.updates += 1
        self._second = BETA2 * self._second + (1 - BETA2) * gradient**2
        corrected = self._second / (1 - BETA2**self.updates)
        self.logits = self.logits - self.rate(progress) * gradient / (np.sqrt(corrected) + EPS)

    def rate(self, progress: float) -> float:
        """Return the learning rate."""
        if self.config.schedule == "constant":
            return self.config.lr
        return 0.0 if progress < self.config.delay else self.config.lr * 10**progress

    def state(self) -> tuple[Array, Array, int, float | None]:
        """Return all that changes."""
        return self.logits, self._second, self.updates, self.baseline

    def restore(self, state: tuple[Array, Array, int, float | None]) -> None:
        """Go back to what `state` returned."""
        self.logits, self._second, self.updates, self.baseline = state

    def mean_entropy(self) -> float:
        """Return the mean over all choices of entropy / its largest value, 1 (uniform) to 0 (settled)."""
        shares = []
        for name, choice in self._choices.items():
            if choice.count > 1:
                probability = self.probabilities(*name)
                logs = np.log(np.maximum(probability, np.finfo(np.float64).tiny))
                shares.append(float(-(probability * logs).sum() / math.log(choice.count)))
        return math.fsum(shares) / len(shares) if shares else 0.0


class Reinforce:
    """Engine: samples of the policy are scored, the result is its most likely architecture.

    Costs are not bounded: the reward has a term for them. A sample whose reward is known is not proposed again; the
    policy learns from what is known, and draws the next one.

    Args:
        space: of the architectures.
        config: controller.
        total: rewards that the search will get, for the schedule.
        seed: of the draws.
    """

    scores_result = True

    def __init__(self, space: Space, config: ReinforceConfig, total: int, seed: int) -> None:
        self.space, self.total = space, total
        self.controller = Controller(space, config)
        self.rng = random.Random(f"{seed}/engine")
        self.repeats = 0
        self.told = 0
        self._rewards: dict[MoViNetLayout, float] = {}
        self._open: Counter[MoViNetLayout] = Counter()
        """Proposals under way, and how many samples wait for each one's reward."""
        self._failed: set[MoViNetLayout] = set()

    @property
    def progress(self) -> float:
        """Share of the rewards that were told."""
        return min(self.told / self.total, 1.0)

    def ask(self) -> Proposal | None:
        """See `Engine`; None also when the policy has settled on architectures that are known or under way."""
        before = (self.controller.state(), self.rng.getstate(), self._open.copy(), self.repeats)
        for _ in range(DRAWS):
            genotype = self.controller.draw(self.rng)
            layout = self.space.layout(genotype)
            if layout in self._rewards:
                self.repeats += 1
                self.controller.update(genotype, self._rewards[layout], self.progress)
            elif layout in self._open:
                self._open[layout] += 1
            elif layout not in self._failed:
                self._open[layout] = 1
                return Proposal(genotype, self.controller.updates)
        state, draws, self._open, self.repeats = before
        self.controller.restore(state)
        self.rng.setstate(draws)
        return None

    def tell(self, genotype: Genotype, reward: float | None) -> None:
        """See `Engine`."""
        layout = self.space.layout(genotype)
        samples = self._open.pop(layout, 1)
        self.told += 1
        if reward is None:
            self._failed.add(layout)
            return
        self._rewards[layout] = reward
        for _ in range(samples):
            self.controller.update(genotype, reward, self.progress)

    def result(self) -> Genotype | None:
        """Return the most likely architecture."""
        return self.controller.most_likely() if self._rewards else None
