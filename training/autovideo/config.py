"""Configuration of the AutoVideo stages: what is set is a pipeline (`document.py`), and their own fields follow."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, TypeAdapter, field_validator, model_validator

from training.autovideo.document import Document
from training.autovideo.plain import merged
from training.autovideo.plan import learners, stage_values
from training.autovideo.recognisers import Recogniser, RecogniserConfig
from training.autovideo.search.budget import Budget
from training.autovideo.search.engines import EngineConfig
from training.autovideo.use import Use
from training.core.config import ConfigError, FitConfig, StageConfig
from training.core.trials import SearchConfig as BaseSearchConfig


def compiled(values: Any) -> Any:
    """Return a stage's values with the fields that its document decides.

    `pipelines` and `pipeline` (its name) are replaced by the `document` that they name. Fields that are given beside it
    (by `--set fit.steps=…`) win.

    Raises:
        ValueError: no such pipeline; pydantic adds the field.
        ConfigError: a document that is not valid.
    """
    if not isinstance(values, Mapping):
        return values
    result = dict(values)
    if "pipelines" in result:
        named, name = result.pop("pipelines"), result.get("pipeline")
        if not isinstance(named, Mapping) or name not in named:
            known = ", ".join(map(str, named)) if isinstance(named, Mapping) else "none"
            raise ValueError(f"no pipeline is called {name!r} in the section autovideo_pipelines; it has: {known}")
        result["document"] = named[name]
    if "document" not in result or "learner" in result:
        return result
    document = Document.from_dict(result["document"], "pipeline")
    # A document with several learners is trained learner by learner, under the names of their steps.
    step = result.get("pipeline")
    made = stage_values(document, step if step in learners(document) else None)
    for name, given in result.items():
        made[name] = merged(made.get(name), given) if name in made else given
    return made


class NetConfig(StageConfig):
    """A recogniser with its clips."""

    document: dict[str, Any]
    """The pipeline that all of this follows from, as it was written."""
    pipeline: str = ""
    """Its name among those of the params file."""
    augment: tuple[Use, ...]
    """Augmenters, in order, with all settings."""
    learner: Use
    """The recogniser with all settings."""

    @model_validator(mode="before")
    @classmethod
    def _compile(cls, values: Any) -> Any:
        try:
            return compiled(values)
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("augment", "learner")
    @classmethod
    def _known(cls, value: Any) -> Any:
        try:
            if isinstance(value, Use):
                return value.resolved("learner")
            return tuple(use.resolved(f"augment[{place}]") for place, use in enumerate(value))
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _trains(self) -> "NetConfig":
        self.recogniser()
        return self

    def recogniser(self) -> Recogniser:
        """Return the learner.

        Raises:
            ValueError: it is something else than a recogniser.
        """
        from training.autovideo.catalogue import configure, find

        kind = find(self.learner.use)
        if not issubclass(kind, Recogniser):
            raise ValueError(f"learner {self.learner.use!r} is no recogniser, but of kind {kind.kind}")
        return kind(configure(self.learner.use, self.learner.settings, "learner"))

    @property
    def settings(self) -> RecogniserConfig:
        """Settings of the learner."""
        config: RecogniserConfig = self.recogniser().config
        return config


class TrainConfig(NetConfig):
    """One pipeline, trained."""

    fit: FitConfig


class EvalConfig(NetConfig):
    """Evaluation of a trained pipeline as it is served."""

    fit: FitConfig | None = None
    """Of the pipeline; nothing is trained here."""


class SearchConfig(NetConfig, BaseSearchConfig):
    """A search over whole pipelines, beginning with the one that `base` names."""

    fit: FitConfig
    """Of the base pipeline."""
    engine: str
    """random, tpe, evolution or grid."""
    seed: int
    """Of what the engine draws; that of the trainings is the pipeline's."""
    space: dict[str, Any]
    """What may be tried (`space.py`)."""
    budget: Budget
    """No trial starts when it is used up."""
    objectives: tuple[str, ...] = Field(min_length=1)
    """`metric` first, the accuracy on val; further ones (gmac, params) are made small: tpe searches for the front."""
    engines: dict[str, dict[str, Any]]
    """Settings of each engine, by name (`engines.py`)."""

    @model_validator(mode="after")
    def _known_engine(self) -> "SearchConfig":
        self.engine_config()
        return self

    def engine_config(self) -> EngineConfig:
        """Return the engine with its settings.

        Raises:
            ValueError: no such engine or setting.
        """
        adapter: TypeAdapter[EngineConfig] = TypeAdapter(EngineConfig)
        return adapter.validate_python({"name": self.engine, **self.engines.get(self.engine, {})})


class FoundConfig(TrainConfig):
    """The pipeline that a search found, trained once more with `steps` times its steps."""

    engine: str
    seed: int
    longer: float = Field(gt=0)
    """Factor of the steps of the trials."""

    @model_validator(mode="before")
    @classmethod
    def _lengthen(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "learner" in values or "document" not in values:
            return values
        try:
            result = compiled(values)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        steps = max(1, round(result["fit"]["steps"] * float(values.get("longer", 1))))
        return {**result, "fit": {**result["fit"], "steps": steps}}


class FoundEvalConfig(EvalConfig):
    """Evaluation of the pipeline that a search found, trained once more."""

    engine: str
    seed: int


class ReportConfig(EvalConfig):
    """The page of the searches and pipelines on a data set; its pipeline is the one that searches begin with."""

    bootstrap: int = Field(ge=100)
    """Resamples of confidence intervals."""
    seed: int
    """Of the resampling."""
