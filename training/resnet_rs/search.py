"""Scaling at constant cost: which candidates of the space are trained, at which level (§10)."""

import itertools
import random
from dataclasses import asdict, dataclass

from training.backbones.resnet3d_layout import conv_macs, num_parameters
from training.core.config import ConfigError
from training.core.trials import Outcome, Trial
from training.resnet_rs.config import SearchConfig, TrainConfig, at_point


@dataclass(frozen=True)
class Candidate:
    """A net with its input."""

    depth: int
    frames: int
    size: int
    width: float
    pool_t: int
    temporal: str
    se_ratio: float

    @property
    def name(self) -> str:
        """File-safe and unique in a space."""
        return (
            f"d{self.depth}-t{self.frames}-s{self.size}-w{self.width:g}-p{self.pool_t}-k{self.temporal}"
            f"-se{self.se_ratio:g}"
        )


@dataclass(frozen=True)
class Plan:
    """What the search will train, decided before anything is trained."""

    chosen: dict[float, tuple[Candidate, ...]]
    """Level → candidates, in the order in which they are trained."""
    affordable: dict[float, int]
    """Level → candidates whose cost is that of the level."""
    refused: int
    """Candidates of the space whose cost is that of no level: they are never trained."""


class ScalingSearch:
    """Ask/tell object of the stage: the planned candidates, one level's after the other's in turn."""

    def __init__(self, config: SearchConfig, num_classes: int) -> None:
        self.config = config
        self.num_classes = num_classes
        self.plan = plan(config, num_classes)
        # Levels in turn, so that an interrupted search has seen something of each.
        rows = itertools.zip_longest(*([(level, c) for c in chosen] for level, chosen in self.plan.chosen.items()))
        self._queue = [item for row in rows for item in row if item is not None]
        self._next = 0
        self._best: dict[float, float] = {}

    @property
    def total(self) -> int:
        """Number of trials."""
        return len(self._queue)

    def ask(self) -> Trial | None:
        """Return the next candidate as a trial, or None when all were handed out."""
        if self._next == len(self._queue):
            return None
        level, candidate = self._queue[self._next]
        self._next += 1
        return self.trial(level, candidate)

    def trial(self, level: float, candidate: Candidate) -> Trial:
        """Return the training of a candidate: the recipe of `resnet_rs_train` with net and input changed."""
        config = trial_config(self.config, candidate)
        facts: dict[str, float | str] = {
            **asdict(candidate),
            "level": level,
            "gmac": cost_gmac(self.config, candidate, self.num_classes),
            "params": float(num_parameters(config.model.layout(), self.num_classes)),
            "seed": config.fit.seed,
        }
        return Trial(candidate.name, f"{level:g} GMAC", "resnet_rs_train", config.model_dump(mode="json"), facts)

    def tell(self, outcome: Outcome) -> None:
        """Remember the best value of each level."""
        if outcome.status == "finished" and outcome.value is not None:
            level = float(outcome.trial.facts["level"])
            self._best[level] = max(outcome.value, self._best.get(level, outcome.value))

    def summary(self) -> dict[str, float]:
        """Return counts of candidates and the best value per level."""
        figures = {"search/candidates": float(sum(self.plan.affordable.values()) + self.plan.refused)}
        figures["search/refused"] = float(self.plan.refused)
        for level, value in sorted(self._best.items()):
            figures[f"search/best_{level:g}_gmac"] = value
        return figures


def trial_config(config: SearchConfig, candidate: Candidate) -> TrainConfig:
    """Return the stage config that trains a candidate."""
    values = {name: getattr(config, name).model_dump() for name in ("data", "model", "fit")}
    changed = at_point({**values, **asdict(candidate), "seed": config.fit.seed})
    return TrainConfig.model_validate({name: changed[name] for name in values})


def cost_gmac(config: SearchConfig, candidate: Candidate, num_classes: int) -> float:
    """Return the cost of one view at the size it is evaluated at, GMAC, by formula (§4.4)."""
    layout = config.model.model_copy(update=_net(candidate)).layout()
    return conv_macs(layout, candidate.frames, candidate.size, num_classes) / 1e9


def _net(candidate: Candidate) -> dict[str, object]:
    return {key: getattr(candidate, key) for key in ("depth", "width", "pool_t", "temporal", "se_ratio")}


def plan(config: SearchConfig, num_classes: int) -> Plan:
    """Choose the candidates of every level, without training anything.

    A candidate belongs to the level whose cost is nearest in proportion, if that is within the tolerance. Of a level
    with more candidates than `trials_per_level`, that many are drawn without replacement.

    Raises:
        ConfigError: a level without any candidate; the message names the nearest costs.
    """
    space = config.space
    axes = (space.depth, space.frames, space.size, space.width, space.pool_t, space.temporal, space.se_ratio)
    costs = {c: cost_gmac(config, c, num_classes) for c in (Candidate(*values) for values in itertools.product(*axes))}
    at: dict[float, list[Candidate]] = {level: [] for level in config.levels}
    refused = 0
    for candidate, gmac in costs.items():
        level = min(config.levels, key=lambda level: abs(gmac / level - 1))
        if abs(gmac / level - 1) <= config.tolerance:
            at[level].append(candidate)
        else:
            refused += 1
    for level, found in at.items():
        if not found:
            nearest = sorted(costs.items(), key=lambda item: abs(item[1] / level - 1))[:3]
            shown = ", ".join(f"{candidate.name} ({gmac:.4g})" for candidate, gmac in nearest)
            raise ConfigError(
                f"no candidate of the search space costs {level:g} GMAC ± {config.tolerance:.0%}; the nearest are "
                f"{shown}. Change resnet_rs_search.levels or widen the space"
            )
    chosen = {}
    for level, found in at.items():
        draw = random.Random(f"{config.seed}/{level:g}")
        ranked = sorted(found, key=lambda candidate: candidate.name)
        chosen[level] = tuple(draw.sample(ranked, min(config.trials_per_level, len(ranked))))
    return Plan(chosen, {level: len(found) for level, found in at.items()}, refused)
