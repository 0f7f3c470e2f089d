"""Stage: a frozen record of one step of a family, its instances and its derived paths.

An instance is a stage on a data set, with its matrix items: `adafocus_pretrain@demo-glance` is stage
`adafocus_pretrain`, data set `demo`, item net = glance. DVC, Prefect, the command line and MLflow all use
that name. Paths are derived, never configured:

    params/<dataset>.yaml              section = stage name
    data/shards/<dataset>/             input of every stage
    runs/<dataset>/<stage>[-<item>…]/  model/ metrics.json config.json predictions.npz (and run.json, untracked)
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from infra.settings import Settings
from training.core.config import ConfigError, StageConfig

Kind = Literal["fit", "evaluate", "search", "export"]

CODE_VERSION: Mapping[Kind, int] = {"fit": 1, "evaluate": 1, "search": 1, "export": 1}
"""Raised when a change of `training/core` changes results: makes the stages of that kind stale (D4)."""


@dataclass(frozen=True)
class Stage:
    """One step of a family."""

    name: str
    """`<family>_<step>`."""
    kind: Kind
    config: type[StageConfig]
    build: Callable[["StageInputs"], Any]
    """Makes the system from config, classes and upstream models; of a search stage its `Search`."""
    upstream: tuple[str, ...] = ()
    """Stages whose model this one reads: a stage name, with `-<item>` for one item of a matrix."""
    matrix: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Field of the config → values; an instance per combination."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Field of the config → section of the params file that several stages share (architecture, data)."""
    metric: str = "val/top1"
    """Primary metric, one of the keys of metrics.json."""
    mode: Literal["max", "min"] = "max"
    subject: str | None = None
    """For evaluate stages: the upstream whose model is evaluated (and may be registered)."""
    split: Literal["val", "test"] = "val"
    """Split that the final evaluation of this stage uses."""

    @property
    def family(self) -> str:
        """Name of the family's package is found by the registry; this is the name's first part."""
        return self.name.rsplit("_", 1)[0]

    def instances(self, dataset: str) -> list["StageRef"]:
        """Return all instances on a data set, in matrix order."""
        items: list[dict[str, str]] = [{}]
        for key, values in self.matrix.items():
            items = [{**item, key: value} for item in items for value in values]
        return [StageRef(self.name, dataset, tuple(item.values())) for item in items]


@dataclass(frozen=True)
class StageRef:
    """Name of a stage instance."""

    stage: str
    dataset: str
    items: tuple[str, ...] = ()

    _PATTERN = re.compile(r"^(?P<stage>[a-z0-9_]+)@(?P<dataset>[a-z][a-z0-9_]*)(?P<items>(-[A-Za-z0-9_.]+)*)$")

    @classmethod
    def parse(cls, text: str) -> "StageRef":
        """Parse `stage@dataset[-item…]`.

        Raises:
            ConfigError: the text has another form.
        """
        match = cls._PATTERN.match(text)
        if match is None:
            raise ConfigError(f"{text!r} is not a stage instance; write <stage>@<dataset>[-<item>], see `fovea list`")
        items = tuple(item for item in match["items"].split("-") if item)
        return cls(match["stage"], match["dataset"], items)

    @property
    def folder(self) -> str:
        """Name of the run folder below `runs/<dataset>/`."""
        return "-".join((self.stage, *self.items))

    def __str__(self) -> str:
        return f"{self.stage}@{'-'.join((self.dataset, *self.items))}"


@dataclass(frozen=True)
class StagePaths:
    """Where an instance reads and writes; absolute, since Ray workers start elsewhere."""

    params: Path
    shards: Path
    run: Path
    upstream: Mapping[str, Path]
    """Upstream as named in `Stage.upstream` → its model folder."""

    @property
    def model(self) -> Path:
        """Folder of the model that this stage makes."""
        return self.run / "model"

    @property
    def metrics(self) -> Path:
        """Flat dict of figures, the same that MLflow gets."""
        return self.run / "metrics.json"

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.run / "config.json"

    @property
    def predictions(self) -> Path:
        """Per-sample predictions of the final evaluation."""
        return self.run / "predictions.npz"

    @property
    def info(self) -> Path:
        """Times, versions, MLflow run id; not a DVC output since it changes each time."""
        return self.run / "run.json"


def paths_of(stage: Stage, ref: StageRef, settings: Settings) -> StagePaths:
    """Derive the paths of an instance."""
    runs = settings.runs.absolute() / ref.dataset
    return StagePaths(
        params=settings.root.absolute() / "params" / f"{ref.dataset}.yaml",
        shards=settings.shards.absolute() / ref.dataset,
        run=runs / ref.folder,
        upstream={name: runs / name / "model" for name in stage.upstream},
    )


@dataclass(frozen=True)
class StageInputs:
    """What `Stage.build` gets."""

    config: Any
    classes: tuple[str, ...]
    upstream: Mapping[str, Path]
    """Empty when a saved model is loaded: its weights then come from its own files."""
    root: Path | None = None
    """Folder that paths of published weights in the config are relative to; None when saved weights follow."""
