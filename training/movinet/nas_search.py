"""Architecture search as an ask/tell object: candidates are scored with the supernet's weights, an engine chooses them.

Controls that must not find anything better than random draws are settings of the same search (`NasConfig.control`).
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from training.backbones.movinet_layout import MoViNetLayout
from training.core.config import Strict
from training.core.trials import Outcome, Trial
from training.movinet.evolution import Engine, Evolution, EvolutionConfig, Proposal, RandomConfig, RandomSearch
from training.movinet.latency import LatencyTable
from training.movinet.reinforce import Reinforce, ReinforceConfig
from training.movinet.space import Space
from training.movinet.target import Budget, CostModel, TargetConfig

__all__ = ["Found", "NasConfig", "NasSearch", "RewardConfig"]

LATENCY_FILE = "latency.json"


class RewardConfig(Strict):
    """Reward R of a candidate of quality Q; r is its cost / target."""

    kind: Literal["quality", "absolute", "soft", "hard_exponential"]
    """`quality`: Q; `absolute`: Q + β·|r - 1| (TuNAS); `soft`: Q·r^β; `hard_exponential`: Q·min(1, r^β)."""
    beta: float = Field(le=0)
    """β (-0.10)."""

    def reward(self, quality: float, ratio: float) -> float:
        """Return R."""
        if self.kind == "quality":
            return quality
        if self.kind == "absolute":
            return quality + self.beta * abs(ratio - 1)
        factor = float(ratio**self.beta)
        return quality * (factor if self.kind == "soft" else min(1.0, factor))


class NasConfig(Strict):
    """A search."""

    target: TargetConfig
    reward: RewardConfig
    engine: Annotated[EvolutionConfig | ReinforceConfig | RandomConfig, Field(discriminator="name")]
    candidates: int = Field(ge=1)
    """Architectures that are scored."""
    control: Literal["none", "shuffled", "untrained", "cost_only"]
    """`shuffled`: the engine hears the quality of a random candidate so far instead of a candidate's own; `untrained`:
    the supernet that scores was not trained; `cost_only`: R = -|r - 1|."""
    seed: int

    @model_validator(mode="after")
    def _enough(self) -> "NasConfig":
        if isinstance(self.engine, EvolutionConfig) and self.engine.population > self.candidates:
            raise ValueError(
                f"engine.population {self.engine.population} is more than the {self.candidates} candidates: nothing "
                "would evolve"
            )
        return self


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    trial: str | None
    """Where it was scored; None: it could not be."""
    architecture: dict[str, Any]
    """Entry of the table, for `training.backbones.movinet_layout.architecture`."""
    genotype: dict[str, Any]
    facts: dict[str, float]
    """gmac, params, state_mb, cost in the unit of the target, and its ratio to it."""
    value: float | None
    """Its own quality, whatever the engine was told."""
    reward: float | None
    """As the engine was told."""


@dataclass(frozen=True)
class _Score:
    trial: str
    value: float
    reward: float


class NasSearch:
    """Implements `training.core.trials.Search`.

    Args:
        config: engine, target, reward.
        space: what is searched.
        model: costs, at the input of the search.
        device: where a latency table is measured.
    """

    def __init__(self, config: NasConfig, space: Space, model: CostModel, device: torch.device | str = "cpu") -> None:
        self.config, self.space, self.device = config, space, torch.device(device)
        self._shuffle = random.Random(f"{config.seed}/shuffle")
        self._use(model)
        self._asked = 0
        self._told = 0
        self._failed = 0
        self._final: str | None = None
        self._open: dict[str, Proposal] = {}
        self._names: dict[MoViNetLayout, str] = {}
        self._scores: dict[MoViNetLayout, _Score] = {}
        self._qualities: list[float] = []

    def _use(self, model: CostModel) -> None:
        config = self.config
        self.model, self.budget = model, Budget(config.target, model)
        self.engine: Engine
        if isinstance(config.engine, EvolutionConfig):
            self.engine = Evolution(self.space, self.budget, config.engine, config.seed)
        elif isinstance(config.engine, ReinforceConfig):
            self.engine = Reinforce(self.space, config.engine, max(config.candidates - 1, 1), config.seed)
        else:
            self.engine = RandomSearch(self.space, self.budget, config.seed)

    def prepare(self, work: Path) -> None:
        """Measure the latency table, or load the one in `work`; needed for a latency target only.

        Raises:
            ConfigError: a table of another device, input, variant or version of torch.
        """
        if self.config.target.kind != "latency_ms" or self.model.latency is not None:
            return
        table = LatencyTable.load_or_measure(work / LATENCY_FILE, self.space, self.model, self.device)
        model = self.model
        self._use(CostModel(model.variant, model.frames, model.size, model.num_classes, table.predict))

    @property
    def total(self) -> int:
        """Number of candidates; a policy that has settled asks for fewer."""
        return self.config.candidates

    def ask(self) -> Trial | None:
        """Return the next candidate; None: no more, or not before the next `tell`."""
        if self._asked == self.config.candidates or self._final is not None:
            return None
        last = self.engine.scores_result and self._asked == self.config.candidates - 1 and self._asked > 0
        proposal = None if last else self.engine.ask()
        final = proposal is None and self.engine.scores_result and not self._open
        if final:
            result = self.engine.result()
            proposal = None if result is None else Proposal(result, self._told)
        if proposal is None:
            return None
        name = f"c{self._asked:05d}"
        layout = self.space.layout(proposal.genotype)
        cost = self.budget.cost(layout)
        facts: dict[str, float | str] = {
            **self._facts(layout, cost),
            "order": float(self._asked),
            "generation": float(proposal.generation),
        }
        if proposal.parent is not None:
            facts["parent"] = self._names[proposal.parent]
        self._names.setdefault(layout, name)
        self._open[name] = proposal
        self._asked += 1
        if final:
            self._final = name
        config = {"genotype": proposal.genotype.to_json(), "architecture": layout.entry()}
        return Trial(name=name, group="candidates", stage="", config=config, facts=facts)

    def tell(self, outcome: Outcome) -> None:
        """Receive a candidate's quality, `outcome.value`."""
        proposal = self._open.pop(outcome.trial.name)
        layout = self.space.layout(proposal.genotype)
        value = outcome.value
        self._told += 1
        if outcome.status != "finished" or value is None or not math.isfinite(value):
            self._failed += 1
            reward = None
        else:
            reward = self._reward(value, self.budget.ratio(self.budget.cost(layout)))
            self._scores.setdefault(layout, _Score(outcome.trial.name, value, reward))
        if outcome.trial.name != self._final:
            self.engine.tell(proposal.genotype, reward)

    def _reward(self, quality: float, ratio: float) -> float:
        if self.config.control == "cost_only":
            return -abs(ratio - 1)
        self._qualities.append(quality)
        if self.config.control == "shuffled":
            quality = self._shuffle.choice(self._qualities)
        return self.config.reward.reward(quality, ratio)

    def _facts(self, layout: MoViNetLayout, cost: float) -> dict[str, float]:
        return {**self.model.facts(layout), "cost": cost, "cost_ratio": self.budget.ratio(cost)}

    def found(self) -> Found | None:
        """Return the result: the best of all scored by reward, or the policy's most likely one; None: nothing yet."""
        genotype = self.engine.result()
        if genotype is None:
            return None
        layout = self.space.layout(genotype)
        score = self._scores.get(layout)
        return Found(
            trial=None if score is None else score.trial,
            architecture=layout.entry(),
            genotype=genotype.to_json(),
            facts=self._facts(layout, self.budget.cost(layout)),
            value=None if score is None else score.value,
            reward=None if score is None else score.reward,
        )

    def summary(self) -> dict[str, float]:
        """Return counts, and quality, reward and costs of what was found."""
        figures = {
            "candidates": float(self._told),
            "candidates_failed": float(self._failed),
            "architectures": float(len(self._scores)),
            "repeats": float(self.engine.repeats),
        }
        if isinstance(self.engine, Reinforce):
            figures["policy_entropy"] = self.engine.controller.mean_entropy()
        found = self.found()
        if found is not None:
            figures |= {f"found_{name}": value for name, value in found.facts.items()}
            figures |= {
                f"found_{name}": value
                for name, value in (("value", found.value), ("reward", found.reward))
                if value is not None
            }
        return figures
