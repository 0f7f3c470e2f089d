"""Configuration of the stages that search an architecture. Section numbers are those of README.md."""

from typing import Any, Literal

from pydantic import Field, model_validator

from training.backbones.movinet_layout import architecture
from training.core.config import FitConfig, StageConfig, Strict
from training.core.trials import SearchConfig as BaseSearchConfig
from training.movinet.config import TrainConfig
from training.movinet.evolution import EvolutionConfig, RandomConfig
from training.movinet.nas_search import NasConfig, RewardConfig
from training.movinet.reinforce import ReinforceConfig
from training.movinet.space import SpaceConfig
from training.movinet.supernet_system import SupernetConfig
from training.movinet.target import TargetConfig


class SupernetStageConfig(SupernetConfig, StageConfig):
    """Training of the supernet (§3, §15)."""

    fit: FitConfig

    @model_validator(mode="after")
    def _dense_clips(self) -> "SupernetStageConfig":
        if self.data.sampling != "dense":
            raise ValueError(f"data.sampling must be `dense`: nets see neighbouring frames, not {self.data.sampling}")
        return self


class Engines(Strict):
    """Settings of each engine; an instance of the search uses the one of its name."""

    evolution: EvolutionConfig
    reinforce: ReinforceConfig
    random: RandomConfig

    @model_validator(mode="before")
    @classmethod
    def _name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: {**value, "name": key} if isinstance(value, dict) else value for key, value in values.items()}


class NasStageConfig(BaseSearchConfig):
    """A search with the weights of the supernet (§15)."""

    engine: Literal["evolution", "reinforce", "random"]
    control: Literal["none", "shuffled", "untrained", "cost_only"]
    """Negative controls: see `training.movinet.nas_search.NasConfig`."""
    seed: int
    space: SpaceConfig
    """Must be the supernet's."""
    target: TargetConfig
    reward: RewardConfig
    candidates: int = Field(ge=1)
    """Architectures that are scored."""
    engines: Engines
    calibration_clips: int = Field(ge=2)
    """Training clips that give each candidate its batch norm statistics (2,000 to 4,000 at scale)."""
    score_clips: int | None = Field(ge=1)
    """Clips of the validation split that score a candidate; null: all. The test split is never looked at."""
    family: tuple[float, ...]
    """Costs, as multiples of what is found, to which it is scaled (§2.3) in `family.yaml`; [] for none."""

    def search(self) -> NasConfig:
        """Return what the search object needs to know."""
        values = {name: getattr(self, name) for name in ("target", "reward", "candidates", "control", "seed")}
        return NasConfig(**values, engine=getattr(self.engines, self.engine))


class FoundEntry(Strict):
    """Content of a search's `found.yaml`."""

    architecture: dict[str, Any]
    trial: str | None
    value: float | None
    """Quality with inherited weights."""
    reward: float | None
    facts: dict[str, float]


class FoundConfig(TrainConfig):
    """A found architecture, trained like any other: it takes the place of `model.architecture`, at width 1."""

    engine: str
    control: str
    seed: int
    """Instance of the search; the training's own seed is `fit.seed`."""
    found: FoundEntry

    @model_validator(mode="before")
    @classmethod
    def _apply(cls, values: Any) -> Any:
        try:
            entry = values["found"]["architecture"]
            architecture(entry)
            return {**values, "model": {**values["model"], "architecture": entry, "width": 1.0}}
        except (KeyError, TypeError):
            return values  # validation names what is missing


class ReportConfig(StageConfig):
    """The page about searches and nets."""

    bootstrap: int = Field(ge=100)
    """Resamples of its confidence intervals."""
    seed: int
    """Of the resampling."""
