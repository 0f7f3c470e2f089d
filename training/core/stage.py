"""Stage: a frozen record of one step of a family, its instances and its derived paths.

An instance is a stage on a data set, with its matrix items: `adafocus_pretrain@demo-glance` is stage
`adafocus_pretrain`, data set `demo`, item net = glance. DVC, Prefect, the command line and MLflow all use
that name. Paths are derived, never configured:

    params.yaml                        data sets of each family, and axes of planned grids: what DVC's matrices run over
    params/<dataset>.yaml              section = stage name
    data/shards/<dataset>/             input of every stage
    runs/<dataset>/<stage>[/<item>-…]/ model/ metrics.json config.json predictions.npz (and run.json, untracked)
                                       and, of any stage, the files of `Stage.leaves`

All instances of a stage lie in one folder, so that a stage which reads all of them depends on one path.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from infra.settings import Settings
from training.core.config import ConfigError, StageConfig, parse_yaml

if TYPE_CHECKING:
    from training.core.trials import Scorer

Kind = Literal["fit", "evaluate", "search", "report"]

CODE_VERSION: Mapping[Kind, int] = {"fit": 1, "evaluate": 1, "search": 1, "report": 1}
"""Raised when a change of `training/core` changes results: makes the stages of that kind stale (D4)."""


LEAF = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
PLACEHOLDER = re.compile(r"\{(?P<axis>\w+)\}")
EVERY = "-*"
"""End of an upstream that means all instances of a stage."""


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
    """Stages whose model, or of a search whose `leaves`, this one reads: a stage name, with `-<item>` for one item of
    a matrix. An item `{axis}` is the instance's own item of that axis: `x_search-{engine}-{seed}` is the instance of
    `x_search` with the same engine and seed. A report reads the results of all instances of the stages named here,
    and no model. `x-*` means all instances of `x`, each with its own name as key (`x-<item>`)."""
    matrix: Mapping[str, tuple[str, ...] | str] = field(default_factory=dict)
    """Field of the config → values; an instance per combination. A string names a list of params.yaml
    (`resnet_rs_grid.depth`): the axis of a planned grid, which users set without touching code."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Field of the config → section of the params file that several stages share (architecture, data)."""
    metric: str = "val/top1"
    """Primary metric, one of the keys of metrics.json."""
    mode: Literal["max", "min"] = "max"
    subject: str | None = None
    """For evaluate stages: the upstream whose model is evaluated (and may be registered), by its `upstream_key`."""
    split: Literal["val", "test"] = "val"
    """Split that the final evaluation of this stage uses."""
    scorer: Callable[["ScoreInputs"], "Scorer"] | None = None
    """For search stages whose trials are not trained: makes what scores them, once per worker process."""
    leaves: tuple[str, ...] = ()
    """Names of further output files in the run folder: those of a search's `files()`. What stages downstream of a
    search depend on."""
    found: Mapping[str, str] = field(default_factory=dict)
    """Field of the config → `<upstream key>/<leaf>`: a YAML file of an upstream search, whose content the field gets.
    So what was found is part of the config that a model carries with it, and the model is built without the search."""

    def __post_init__(self) -> None:
        if self.scorer is not None and self.kind != "search":
            raise ValueError(
                f"stage {self.name!r}: only a search has a scorer, and this is a stage of kind {self.kind!r}"
            )
        if bad := [leaf for leaf in self.leaves if not LEAF.fullmatch(leaf)]:
            raise ValueError(f"stage {self.name!r}: leaves {bad} are no plain file names")
        keys = [upstream_key(name) for name in self.upstream]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"stage {self.name!r}: upstreams {twice} are named twice")

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
    node: Any = parse_yaml(path.read_text()) if path.exists() else None
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
    """`upstream_key` → its model folder, of a search its run folder; empty for a report."""
    results: Mapping[str, tuple[Path, ...]]
    """For a report: upstream stage → run folders of its instances, those of an earlier grid left out."""
    leaves: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """`upstream_key` of each search upstream → the files that this stage may read of it."""

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
        stages: all registered stages, which say what an upstream is; None looks them up, and a report needs them.

    Raises:
        ConfigError: an upstream that does not fit the instance or the upstream stage; see `check_upstream`.
    """
    root = settings.root.absolute()
    runs = settings.runs.absolute() / ref.dataset
    upstream: dict[str, Path] = {}
    leaves: dict[str, tuple[Path, ...]] = {}
    results: dict[str, tuple[Path, ...]] = {}
    for name in stage.upstream:
        if stage.kind == "report":
            assert stages is not None, "a report's paths need the registered stages"
            results[name] = tuple(runs / item.folder for item in stages[name].instances(ref.dataset, root))
            continue
        stages = stages or _registered()
        if name.endswith(EVERY):
            every = stages[upstream_stage(name)].instances(ref.dataset, root)
            upstream |= {item.slug: runs / item.folder / "model" for item in every}
            continue
        key, folder = upstream_key(name), runs / upstream_ref(stage, ref, name).folder
        base = stages.get(upstream_stage(name))
        if base is not None and base.kind == "search":
            check_upstream(stage, name, stages)
            upstream[key] = folder
            leaves[key] = tuple(folder / leaf for leaf in base.leaves)
        else:
            upstream[key] = folder / "model"
    return StagePaths(
        params=root / "params" / f"{ref.dataset}.yaml",
        shards=settings.shards.absolute() / ref.dataset,
        run=runs / ref.folder,
        upstream=upstream,
        results=results,
        leaves=leaves,
    )


def _registered() -> Mapping[str, Stage]:
    from training.registry import all_stages

    return all_stages()


def upstream_stage(name: str) -> str:
    """Return the stage of an entry of `Stage.upstream`."""
    return name.split("-")[0]


def upstream_key(name: str) -> str:
    """Return under which key `StageInputs.upstream` has an entry of `Stage.upstream`.

    The entry as it is written; the stage name alone where it has placeholders.
    """
    return upstream_stage(name) if PLACEHOLDER.search(name) else name


def upstream_ref(stage: Stage, ref: StageRef | None, name: str) -> StageRef:
    """Return the instance that an entry of `Stage.upstream` means.

    Args:
        stage: whose upstream it is.
        ref: the instance whose upstream it is; None: any, with `${item.<axis>}` (DVC's notation) for its items.
        name: the entry.

    Raises:
        ConfigError: a placeholder that is no axis of the stage, or an instance of another matrix.
    """
    base, *parts = name.split("-")
    items = []
    for part in parts:
        match = PLACEHOLDER.fullmatch(part)
        if match is None:
            items.append(part)
            continue
        axes = list(stage.matrix)
        if match["axis"] not in axes:
            raise ConfigError(
                f"stage {stage.name!r}: upstream {name!r} names the axis {match['axis']!r}, its matrix has {axes}"
            )
        if ref is None:
            items.append(f"${{item.{match['axis']}}}")
        elif len(ref.items) == len(axes):
            items.append(ref.items[axes.index(match["axis"])])
        else:
            raise ConfigError(f"{ref} is not an instance of {stage.name}, whose matrix has {axes}")
    return StageRef(base, ref.dataset if ref is not None else "${item.data}", tuple(items))


def check_upstream(stage: Stage, name: str, stages: Mapping[str, Stage]) -> None:
    """Check that an entry of `Stage.upstream`, of a stage that is no report, names instances that exist.

    Raises:
        ConfigError: no such stage; items that are not in its matrix; a placeholder whose axis has other values than the
            upstream's; a search that leaves no files.
    """
    base, *items = name.split("-")
    if base not in stages:
        raise ConfigError(f"stage {stage.name!r}: upstream {name!r} is not a registered stage")
    if name.endswith(EVERY):
        if stages[base].kind != "fit":
            raise ConfigError(f"stage {stage.name!r}: upstream {name!r}: only of stages that train is there a `-*`")
        return
    if stages[base].kind == "search" and not stages[base].leaves:
        raise ConfigError(f"stage {stage.name!r}: upstream {base!r} is a search without Stage.leaves: nothing to read")
    matrix = stages[base].matrix
    if len(items) != len(matrix):
        raise ConfigError(
            f"stage {stage.name!r}: upstream {name!r} must have one item, or {{axis}}, for each of {list(matrix)}"
        )
    for item, (axis, values) in zip(items, matrix.items(), strict=True):
        match = PLACEHOLDER.fullmatch(item)
        if match is None:
            if isinstance(values, str) or item not in values:
                known = f"the list {values!r} of params.yaml" if isinstance(values, str) else f"{', '.join(values)}"
                raise ConfigError(
                    f"stage {stage.name!r}: upstream {name!r}: {item!r} must be one of {known}"
                    + (", which users change: write {axis}" if isinstance(values, str) else "")
                )
            continue
        own = stage.matrix.get(match["axis"])
        if own is None:
            upstream_ref(stage, None, name)  # says so
        same = own == values if isinstance(own, str) or isinstance(values, str) else set(own or ()) <= set(values)
        if not same:
            raise ConfigError(
                f"stage {stage.name!r}: upstream {name!r}: its axis {match['axis']!r} runs over {own!r}, "
                f"{base}'s axis {axis!r} over {values!r}; both must name the same list"
            )


@dataclass(frozen=True)
class StageInputs:
    """What `Stage.build` gets."""

    config: Any
    classes: tuple[str, ...]
    upstream: Mapping[str, Path]
    """`upstream_key` → model folder, of a search its run folder, in which its `leaves` may be read. Empty when a saved
    model is loaded: its weights then come from its own files."""
    root: Path | None = None
    """Folder that paths of published weights in the config are relative to; None when saved weights follow."""
    results: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """For a report: upstream stage → run folders of its instances."""
    shards: Path | None = None
    """For a report, whose pages may show pictures, and for a search: folder of the data set's shards."""


@dataclass(frozen=True)
class ScoreInputs:
    """What `Stage.scorer` gets, in the process that scores."""

    config: Any
    """Of the search stage, validated."""
    classes: tuple[str, ...]
    upstream: Mapping[str, Path]
    """As in `StageInputs`."""
    root: Path
    """Project root."""
    shards: Path
    """Folder of the data set's shards, for `open_loader`."""
    device: str
    """Where to score: `cpu` or `cuda`."""
    allow_decoder_change: bool
    """Whether clips may be decoded by another rung of the ladder than the upstream model was trained with."""
