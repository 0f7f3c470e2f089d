"""Training stages of `dvc.yaml`: made from the registered stages, and compared with them.

`dvc.yaml` is the only DAG, and its data half (synthesize, manifest, shards) is written by hand. The training
half repeats what the `Stage` records already say, so it is generated below a marker line and never edited:
`write` puts it there, `check` names every difference, in both directions.

A stage's dependencies are files, never folders (D4): a folder as dependency contains `__pycache__` and would make
its stage stale for ever. They are the family's own sources and those of `training/layers` and
`training/backbones` that these import. `training/core` is deliberately absent: a comment there must not retrain
every model. Instead `CODE_VERSION` of `training/core/stage.py` is a parameter of every stage; raising it makes the
stages of that kind stale on purpose.
"""

import ast
import functools
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from training.core.config import parse_yaml
from training.core.stage import EVERY, Kind, Stage, check_upstream, upstream_ref, upstream_stage
from training.registry import FAMILIES, all_stages, family_of

MARKER = (
    "  # --- training stages: written by `python -m training dvc --write`, checked by a test; not edited by hand ---"
)
"""Line of dvc.yaml under which everything is generated."""

SHARED_PACKAGES = ("training.layers", "training.backbones")
"""Packages that families share and whose change changes a model."""

OPS_PACKAGE = "tasks.ops"
SHARDS_ENTRY = "tasks/ops/shards.py"
"""The sources that this one imports within `tasks.ops` decide what is in a shard."""
LISTING = "tasks/ops/listing.py"
"""What the listing and its readers do shows in the manifest, which is a dependency itself."""


ASIDE = ("commands", "live")
"""Sub-packages of families that no stage uses: command lines, live readers."""

OUTPUTS: Mapping[Kind, tuple[str, ...]] = {
    "fit": ("model", "config.json", "predictions.npz"),
    "evaluate": ("config.json", "predictions.npz"),
    "search": ("config.json", "trials.json", "trials"),
    "report": ("config.json", "page.html", "report.json"),
}
"""Kind of stage → what it leaves in its run folder, beside metrics.json."""


def outputs(stage: Stage) -> tuple[str, ...]:
    """Return what a stage leaves in its run folder, beside metrics.json; trials that are scored leave no files."""
    kept = [name for name in OUTPUTS[stage.kind] if name != "trials" or stage.scorer is None]
    return (*kept, *stage.leaves)


def training_entries(root: Path) -> dict[str, dict[str, Any]]:
    """Return the `stages:` entries of dvc.yaml for every registered stage, in registration order."""
    stages = all_stages()
    wanted = {(family_of(stage.name), stage.kind == "report") for stage in stages.values()}
    sources = {key: family_sources(root, FAMILIES[key[0]], "report" if key[1] else None) for key in wanted}
    return {name: _entry(stage, stages, sources) for name, stage in stages.items()}


def _entry(stage: Stage, stages: Mapping[str, Stage], sources: Mapping[tuple[str, bool], list[str]]) -> dict[str, Any]:
    data = "${item.data}"
    suffix = "-".join(f"${{item.{key}}}" for key in stage.matrix)
    run = f"runs/{data}/{stage.name}" + (f"/{suffix}" if suffix else "")
    family = family_of(stage.name)
    upstream = [path for name in stage.upstream for path in _upstream(stage, name, stages)]
    axes = {key: f"${{{values}}}" if isinstance(values, str) else list(values) for key, values in stage.matrix.items()}
    params: list[dict[str, Any]] = [
        {f"params/{data}.yaml": [stage.name, *sorted(set(stage.shared.values()))]},
        {"training/core/stage.py": [f"CODE_VERSION.{stage.kind}"]},
    ]
    # A grid that became smaller leaves all files as they are, and who reads all of it must still notice.
    whole = [name for name in stage.upstream if stage.kind == "report" or name.endswith(EVERY)]
    grids = {values.split(".")[0] for name in whole for values in _named_axes(stages, upstream_stage(name))}
    params += [{"params.yaml": sorted(grids)}] if grids else []
    return {
        "matrix": {"data": f"${{{family}}}", **axes},
        "cmd": f"exec python -m training run {stage.name}@{data}" + (f"-{suffix}" if suffix else ""),
        "deps": [f"data/shards/{data}", *upstream, *sources[family, stage.kind == "report"]],
        "params": params,
        "outs": [f"{run}/{name}" for name in outputs(stage)],
        "metrics": [f"{run}/metrics.json"],
    }


def _named_axes(stages: Mapping[str, Stage], name: str) -> list[str]:
    return [values for values in stages[name].matrix.values() if isinstance(values, str)]


def _upstream(stage: Stage, name: str, stages: Mapping[str, Stage]) -> list[str]:
    """Return the paths of what a stage reads of an upstream, after checking that there is one of that name.

    Of a search these are its leaves: what else it writes (all its trials) changes no stage that reads them. A report
    reads every instance of a stage: its whole folder (run.json is no output and in .dvcignore).
    """
    base = upstream_stage(name)
    if stage.kind == "report":
        if base not in stages:
            raise ValueError(f"stage {stage.name!r}: upstream {name!r} is not a registered stage")
        if base != name:
            raise ValueError(f"stage {stage.name!r}: a report reads all instances of {base!r}, not {name!r}")
        return [f"runs/${{item.data}}/{base}"]
    check_upstream(stage, name, stages)
    if name.endswith(EVERY):
        return [f"runs/${{item.data}}/{base}"]
    folder = f"runs/${{item.data}}/{upstream_ref(stage, None, name).folder}"
    files = stages[base].leaves if stages[base].kind == "search" else ("model",)
    return [f"{folder}/{file}" for file in files]


def family_sources(root: Path, package: str, kind: Kind | None = None) -> list[str]:
    """Return the files whose change makes a family's stages stale, relative to the root and sorted.

    Those in the family's own folder and its sub-packages. Of these `report` counts for report stages only, and those of
    `ASIDE` for none: they train nothing.
    """
    folder = root / package.replace(".", "/")
    left_out = {*ASIDE} if kind == "report" else {*ASIDE, "report"}
    own = sorted(
        path
        for path in (*folder.glob("*.py"), *folder.glob("*/*.py"))
        if not path.name.startswith("__main__") and path.parent.name not in left_out
    )
    shared = import_closure(root, own, SHARED_PACKAGES)
    return sorted({path.relative_to(root).as_posix() for path in own} | shared)


def import_closure(root: Path, files: Iterable[Path], packages: tuple[str, ...], without: str = "") -> set[str]:
    """Return files of `packages` that `files` import, also indirectly, as paths relative to the root.

    Read from the source text (also imports inside functions), so nothing is imported to find out.

    Args:
        root: Project root.
        files: Where to start; not part of the result unless imported.
        packages: Dotted names of packages to stay in.
        without: A file that is left out together with what only it imports.
    """
    found: set[str] = set()
    todo = list(files)
    while todo:
        for path in _imported_files(root, todo.pop(), packages):
            relative = path.relative_to(root).as_posix()
            if relative not in found and relative != without:
                found.add(relative)
                todo.append(path)
    return found


def _imported_files(root: Path, path: Path, packages: tuple[str, ...]) -> list[Path]:
    """Return the files of `packages` that a file imports directly."""
    found = []
    for names in _imported_names(path.read_text(), str(path)):
        files = [file for name in names if (file := _file_of(root, name, packages))]
        found += files[:1]
    return sorted(set(found))


@functools.cache
def _imported_names(text: str, filename: str) -> tuple[tuple[str, ...], ...]:
    """Return what a source imports, each as the names that it may have; families share most of their files."""
    found: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(text, filename=filename)):
        if isinstance(node, ast.Import):
            found += [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from a import b`: b is a module, or else a name that a defines.
            found += [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
    return tuple(found)


def _file_of(root: Path, module: str, packages: tuple[str, ...]) -> Path | None:
    if not f"{module}.".startswith(tuple(f"{package}." for package in packages)):
        return None
    base = root / module.replace(".", "/")
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return path if path.is_file() else None


def render(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the entries as the generated part of dvc.yaml, marker included."""
    lines = [MARKER]
    for name, entry in entries.items():
        text = yaml.safe_dump({name: entry}, sort_keys=False, width=120)
        lines += [f"  {line}".rstrip() for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def write(root: Path) -> bool:
    """Replace the generated part of `<root>/dvc.yaml`; return whether anything changed.

    Raises:
        ValueError: the marker line is missing.
    """
    path = root / "dvc.yaml"
    text = path.read_text()
    head, marker, _ = text.partition(MARKER)
    if not marker:
        raise ValueError(f"{path} lacks the line {MARKER.strip()!r}; put it after the data stages")
    new = head + render(training_entries(root))
    if new == text:
        return False
    with tempfile.NamedTemporaryFile("w", dir=root, prefix=".dvc.yaml.", delete=False) as file:
        file.write(new)
    Path(file.name).chmod(path.stat().st_mode)
    os.replace(file.name, path)
    return True


def check(root: Path) -> list[str]:
    """Return what differs between `<root>/dvc.yaml` and the registered stages; empty when nothing does."""
    path = root / "dvc.yaml"
    listed: dict[str, Any] = (parse_yaml(path.read_text()) or {}).get("stages", {})
    expected = training_entries(root)
    problems = []
    for name, entry in expected.items():
        if name not in listed:
            problems.append(
                f"stage {name!r} is registered but not in {path.name}; run `python -m training dvc --write`"
            )
            continue
        for key in sorted(set(entry) | set(listed[name])):
            have, want = listed[name].get(key), entry.get(key)
            if have != want:
                problems.append(f"{path.name}: stages.{name}.{key} {_difference(have, want)}")
    for name, entry in listed.items():
        if "python -m training run" in str(entry.get("cmd", "")) and name not in expected:
            problems.append(f"{path.name}: stage {name!r} is not registered by any family")
    problems += _check_shards(root, listed.get("shards", {}))
    return problems


def _difference(have: Any, want: Any) -> str:
    """Return what differs: of lists only the entries that one side lacks."""
    if isinstance(have, list) and isinstance(want, list):
        lacks, extra = [x for x in want if x not in have], [x for x in have if x not in want]
        parts = [f"{verb} {', '.join(map(str, items))}" for verb, items in (("lacks", lacks), ("has", extra)) if items]
        return f"{'; it '.join(parts) or 'has another order'}, unlike the registered stage"
    return f"is {have!r}, the registered stage says {want!r}"


def _check_shards(root: Path, entry: Mapping[str, Any]) -> list[str]:
    """Compare the listed sources of the `shards` stage with what its entry module imports."""
    start = root / SHARDS_ENTRY
    if not entry or not start.exists():
        return []
    want = import_closure(root, [start], (OPS_PACKAGE,), without=LISTING) | {SHARDS_ENTRY}
    have = {dep for dep in entry.get("deps", []) if dep.startswith("tasks/")}
    lacks = [f"dvc.yaml: stages.shards.deps lacks {path}, which {SHARDS_ENTRY} imports" for path in sorted(want - have)]
    extra = [f"dvc.yaml: stages.shards.deps has {path}, unused by {SHARDS_ENTRY}" for path in sorted(have - want)]
    return lacks + extra
