"""Stage: a frozen record of one step of a family, its instances and its derived paths.

An instance is a stage on a data set, with its matrix items: `adafocus_pretrain@demo-glance` is stage
`adafocus_pretrain`, data set `demo`, item net = glance. DVC, Prefect, the command line and MLflow all use
that name. Paths are derived, never configured:

    params.yaml                        data sets of each family, and axes of planned grids: what DVC's matrices run over
    params/<dataset>.yaml              section = stage name
    data/shards/<dataset>/             input of every stage
    runs/<dataset>/<stage>[/<item>-…]/ model/ metrics.json config.json predictions.npz (and run.json, untracked)

All instances of a stage lie in one folder, so that a stage which reads all of them depends on one path.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from infra.settings import Settings
from training.core.config import ConfigError, StageConfig

Kind = Literal["fit", "evaluate", "search", "report"]

CODE_VERSION: Mapping[Kind, int] = {"fit": 1, "evaluate": 1, "search": 1, "report": 1}
"""Raised when a change of `training/core` changes results: makes the stages of that kind stale (D4)."""


@dataclass(frozen=True)
class Stage:
    """One step of a family."""

    name: str
    """`<family>_<step>`."""
    kind: Kind
    config: type[StageConfig]
    build: Callable[["StageInputs"], Any]
    """Makes what the stage runs: a `System` (fit, evaluate), a `Search` (search) or a `Report` (report)."""
    upstream: tuple[str, ...] = ()
    """Stages whose model this one reads: a stage name, with `-<item>` for one item of a matrix. A report reads the
    results of all instances of the stages named here, and no model."""
    matrix: Mapping[str, tuple[str, ...] | str] = field(default_factory=dict)
    """Field of the config → values; an instance per combination. A string names a list of params.yaml
    (`resnet_rs_grid.depth`): the axis of a planned grid, which users set without touching code."""
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

    def instances(self, dataset: str, root: Path) -> list["StageRef"]:
        """Return all instances on a data set, in matrix order.

        Args:
            dataset: name of the data set.
            root: project root; its params.yaml has the axes of planned grids.

        Raises:
            ConfigError: params.yaml lacks an axis, or has something else than a list there.
        """
        items: list[tuple[str, ...]] = [()]
        for values in self.matrix.values():
            axis = read_axis(root, values) if isinstance(values, str) else values
            items = [(*item, value) for item in items for value in axis]
        return [StageRef(self.name, dataset, item) for item in items]


def read_axis(root: Path, name: str) -> tuple[str, ...]:
    """Return a list of params.yaml by its dotted name, each value as DVC writes it into names.

    Raises:
        ConfigError: no such list.
    """
    path = root / "params.yaml"
    node: Any = yaml.safe_load(path.read_text()) if path.exists() else None
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, list):
        raise ConfigError(f"{path} has no list {name!r}; write one, e.g. `{name.split('.')[-1]}: [1, 2]`")
    return tuple(str(value) for value in node)


class Report(Protocol):
    """What a report stage builds."""

    def write(self, folder: Path) -> dict[str, float]:
        """Write `page.html` and further files into a folder; return the figures for metrics.json."""
        ...


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
        """Run folder below `runs/<dataset>/`: `<stage>`, or `<stage>/<item>-<item>`."""
        return "/".join(part for part in (self.stage, "-".join(self.items)) if part)

    @property
    def slug(self) -> str:
        """`<stage>[-<item>…]`, one path component."""
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
    """Upstream as named in `Stage.upstream` → its model folder; empty for a report."""
    results: Mapping[str, tuple[Path, ...]]
    """For a report: upstream stage → run folders of its instances, those of an earlier grid left out."""

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


def paths_of(stage: Stage, ref: StageRef, settings: Settings, stages: Mapping[str, Stage] | None = None) -> StagePaths:
    """Derive the paths of an instance.

    Args:
        stage: the stage.
        ref: the instance.
        settings: where the project is.
        stages: all registered stages; needed for a report, which reads all instances of its upstream.
    """
    root = settings.root.absolute()
    runs = settings.runs.absolute() / ref.dataset
    upstream: dict[str, Path] = {}
    results: dict[str, tuple[Path, ...]] = {}
    for name in stage.upstream:
        if stage.kind == "report":
            assert stages is not None, "a report's paths need the registered stages"
            results[name] = tuple(runs / item.folder for item in stages[name].instances(ref.dataset, root))
        else:
            upstream[name] = runs / upstream_folder(name) / "model"
    return StagePaths(
        params=root / "params" / f"{ref.dataset}.yaml",
        shards=settings.shards.absolute() / ref.dataset,
        run=runs / ref.folder,
        upstream=upstream,
        results=results,
    )


def upstream_folder(name: str) -> str:
    """Return the run folder of an upstream as `Stage.upstream` names it."""
    stage, *items = name.split("-")
    return StageRef(stage, "", tuple(items)).folder


@dataclass(frozen=True)
class StageInputs:
    """What `Stage.build` gets."""

    config: Any
    classes: tuple[str, ...]
    upstream: Mapping[str, Path]
    """Empty when a saved model is loaded: its weights then come from its own files."""
    root: Path | None = None
    """Folder that paths of published weights in the config are relative to; None when saved weights follow."""
    results: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """For a report: upstream stage → run folders of its instances."""
