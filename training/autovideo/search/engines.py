"""Engines propose candidates: at random, by grid, by a tree of Parzen estimators, by evolution.

An engine keeps nothing: what it proposes is a function of its settings, of the history and of the number of the
proposal. A search that was killed is brought back by repeating its history, and a proposal that came to nothing leaves
no trace.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

from pydantic import Field

from data_specs.strict import Strict
from training.autovideo.domains import FloatRange
from training.autovideo.search.evolution import Evolution
from training.autovideo.search.history import History
from training.autovideo.search.space_size import size
from training.autovideo.search.space_tree import Choices, Space
from training.autovideo.search.tpe import Tpe
from training.core.config import ConfigError

__all__ = ["Engine", "EngineConfig", "EvolutionConfig", "GridConfig", "RandomConfig", "TpeConfig", "make_engine"]

LARGEST_GRID = 100_000


class Engine(Protocol):
    """Proposes candidates."""

    @property
    def redraws(self) -> bool:
        """Whether another number gives another candidate, so that asking again is worth while."""

    def propose(self, history: History, number: int) -> Choices | None:
        """Return a candidate; None: there is none any more.

        Args:
            history: what was asked for and what became of it.
            number: of the proposal, counted from 0 through the whole search, those that came to nothing included.
        """


class RandomConfig(Strict):
    """Every candidate on its own."""

    name: Literal["random"] = "random"


class GridConfig(Strict):
    """Every candidate of a finite space, one after the other."""

    name: Literal["grid"] = "grid"


class TpeConfig(Strict):
    """Tree of Parzen estimators (Bergstra et al., 2011), as Optuna has it: multivariate, grouped by condition."""

    name: Literal["tpe"] = "tpe"
    startup: int = Field(default=10, ge=1)
    """Candidates drawn at random before the first estimate."""
    candidates: int = Field(default=24, ge=1)
    """Draws among which the expected improvement chooses."""


class EvolutionConfig(Strict):
    """Ageing evolution (Real et al., 2019) over pipelines, with crossover."""

    name: Literal["evolution"] = "evolution"
    population: int = Field(default=16, ge=2)
    """The youngest so many are parents; as many are drawn at random first."""
    tournament: int = Field(default=5, ge=1)
    """Of so many drawn members the best is the parent."""
    crossover: float = Field(default=0.3, ge=0, le=1)
    """Share of children with two parents."""


EngineConfig = Annotated[RandomConfig | GridConfig | TpeConfig | EvolutionConfig, Field(discriminator="name")]


class RandomEngine:
    """See `RandomConfig`."""

    redraws = True

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def propose(self, history: History, number: int) -> Choices | None:
        """Return a candidate that depends on the number alone."""
        return self._space.sample(random.Random(f"{self._seed}/random/{number}"))


class GridEngine:
    """See `GridConfig`.

    Raises:
        ConfigError: the space is infinite or has more than 100 000 candidates.
    """

    redraws = False

    def __init__(self, space: Space) -> None:
        count = size(space)
        if count is None or count > LARGEST_GRID:
            ranges = [p.name for p in space.parameters if isinstance(p.domain, FloatRange) and not p.single]
            why = f"has ranges of numbers ({', '.join(ranges)})" if count is None else f"has {count} candidates"
            raise ConfigError(f"a grid takes a finite space of at most {LARGEST_GRID} candidates, this one {why}")
        self._rows = space.grid()
        self._known: list[Choices] = []

    def propose(self, history: History, number: int) -> Choices | None:
        """Return the candidate with this number."""
        missing = number + 1 - len(self._known)
        self._known += itertools.islice(self._rows, max(missing, 0))
        return self._known[number] if number < len(self._known) else None


def make_engine(
    config: RandomConfig | GridConfig | TpeConfig | EvolutionConfig,
    space: Space,
    seed: int,
    minimise: Sequence[str] = (),
) -> Engine:
    """Return an engine.

    Args:
        config: which, and its settings.
        space: where it searches.
        seed: of everything that is drawn.
        minimise: costs (`gmac`, …) that are objectives besides the metric; random and grid have no use for them.

    Raises:
        ConfigError: a grid over a space that is infinite or too large.
    """
    match config:
        case RandomConfig():
            return RandomEngine(space, seed)
        case GridConfig():
            return GridEngine(space)
        case TpeConfig():
            return Tpe(space, seed, config.startup, config.candidates, tuple(minimise))
        case EvolutionConfig():
            return Evolution(space, seed, config.population, config.tournament, config.crossover, tuple(minimise))
