"""Engines that search within a window of cost: regularised evolution (Real et al. 2019), and random draws.

An engine proposes genotypes and hears their rewards; `nas_search` makes trials of them. What it proposes depends on its
seed and on the calls so far, so repeating the calls brings it back.
"""

import random
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field, model_validator

from training.backbones.movinet_layout import MoViNetLayout
from training.core.config import Strict
from training.movinet.space import DRAWS, AllRefused, Genotype, Space
from training.movinet.target import Budget

__all__ = ["Engine", "Evolution", "EvolutionConfig", "Proposal", "RandomConfig", "RandomSearch"]

TRIES = 300
"""Mutations of a parent that may miss the window, or be known, before one more mutation is put on top."""
MOST_MUTATIONS = 3


@dataclass(frozen=True)
class Proposal:
    """A genotype that an engine wants to have scored."""

    genotype: Genotype
    generation: int
    """Mutations since a random ancestor; updates of the policy for reinforcement."""
    parent: MoViNetLayout | None = None


class Engine(Protocol):
    """Chooses what is scored."""

    repeats: int
    """Proposals that had been proposed before, because nothing new was to be had."""
    scores_result: bool
    """Whether the result is scored at the end, since it need not be among the proposals."""

    def ask(self) -> Proposal | None:
        """Return the next proposal; None, which changes nothing: not before the next `tell`, or no more at all."""

    def tell(self, genotype: Genotype, reward: float | None) -> None:
        """Receive the reward of a proposal; None: it could not be scored."""

    def result(self) -> Genotype | None:
        """Return what the search has found; None: nothing yet."""


class RandomConfig(Strict):
    """Uniform draws within the window of cost."""

    name: Literal["random"]


class EvolutionConfig(Strict):
    """Regularised evolution."""

    name: Literal["evolution"]
    population: int = Field(ge=2)
    """Random members at the start, and how many of the newest are alive (64)."""
    tournament: int = Field(ge=1)
    """Members that are drawn to give a parent, the best of them (16)."""

    @model_validator(mode="after")
    def _fits(self) -> "EvolutionConfig":
        if self.tournament > self.population:
            raise ValueError(f"a tournament of {self.tournament} is larger than the population of {self.population}")
        return self


class RandomSearch:
    """Uniform draws within the window of cost, without repetition while there is anything else."""

    scores_result = False

    def __init__(self, space: Space, budget: Budget, seed: int) -> None:
        self.space, self.budget = space, budget
        self.rng = random.Random(f"{seed}/engine")
        self.repeats = 0
        self.proposed: set[MoViNetLayout] = set()
        self._best: tuple[float, Genotype] | None = None

    def ask(self) -> Proposal | None:
        """See `Engine`.

        Raises:
            ConfigError: no member of the space costs the target.
        """
        target = self.budget.target
        bounds = (self.budget.cost, target.value, target.tolerance)
        # Once nothing new was found, little is left: a shorter look is enough.
        draws = DRAWS if self.repeats == 0 else DRAWS // 10
        try:
            drawn = self.space.sample_near(self.rng, *bounds, draws=draws, refuse=self.proposed.__contains__)
        except AllRefused:
            drawn = self.space.sample_near(self.rng, *bounds)
            self.repeats += 1
        self.proposed.add(self.space.layout(drawn.genotype))
        return Proposal(drawn.genotype, 0)

    def tell(self, genotype: Genotype, reward: float | None) -> None:
        """See `Engine`."""
        if reward is not None and (self._best is None or reward > self._best[0]):
            self._best = (reward, genotype)

    def result(self) -> Genotype | None:
        """Return the best of all scored, the first told of equals."""
        return None if self._best is None else self._best[1]


@dataclass(frozen=True)
class _Living:
    genotype: Genotype
    reward: float
    generation: int


class Evolution(RandomSearch):
    """Regularised evolution: the best of a drawn tournament is mutated once; with each new member the oldest dies.

    The first members are random and can all be asked for at once. From then on any number may be under way; age counts
    from when a member was told.
    """

    def __init__(self, space: Space, budget: Budget, config: EvolutionConfig, seed: int) -> None:
        super().__init__(space, budget, seed)
        self.config = config
        self.population: deque[_Living] = deque(maxlen=config.population)
        self._founders = 0
        self._open: dict[MoViNetLayout, list[int]] = {}
        """Generations of the proposals under way."""

    def ask(self) -> Proposal | None:
        """See `Engine`; waits between the random members and the first mutation."""
        if self._founders < self.config.population:
            proposal = super().ask()
            self._founders += 1
        elif len(self.population) < self.config.population:
            return None
        else:
            proposal = self._child()
        assert proposal is not None  # neither of the two has an end
        self._open.setdefault(self.space.layout(proposal.genotype), []).append(proposal.generation)
        return proposal

    def tell(self, genotype: Genotype, reward: float | None) -> None:
        """See `Engine`; in the place of a random member that could not be scored another one is drawn."""
        super().tell(genotype, reward)
        generation = self._open[self.space.layout(genotype)].pop(0)
        if reward is not None:
            self.population.append(_Living(genotype, reward, generation))
        elif generation == 0:
            self._founders -= 1

    def _child(self) -> Proposal:
        drawn = self.rng.sample(range(len(self.population)), self.config.tournament)
        parent = max((self.population[index] for index in sorted(drawn)), key=lambda member: member.reward)
        origin = self.space.layout(parent.genotype)
        known: Genotype | None = None
        for mutations in range(1, MOST_MUTATIONS + 1):
            for _ in range(TRIES):
                genotype = parent.genotype
                for _ in range(mutations):
                    genotype = self.space.mutate(genotype, self.rng)
                layout = self.space.layout(genotype)
                if not self.budget.within(self.budget.cost(layout)):
                    continue
                if layout not in self.proposed:
                    self.proposed.add(layout)
                    return Proposal(genotype, parent.generation + 1, origin)
                known = known or genotype
        self.repeats += 1
        return Proposal(known or parent.genotype, parent.generation + 1, origin)
