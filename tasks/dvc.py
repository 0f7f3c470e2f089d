"""DVC as a library of four verbs: the graph, what is stale, reproduce one stage, move data.

The graph is read from DVC's repository index, which is semi-internal; when that fails, from `dvc dag --dot`.
Everything else goes through the `dvc` command, in a child that ends with us.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import yaml

from infra.environment import apply_defaults
from infra.processes import Finished, run_streamed

LOCK_ERROR = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")
"""What DVC says when another DVC process works in this repository: the one error that is worth a retry."""

LOCK_ATTEMPTS = 30
LOCK_WAIT_S = (0.5, 3.0)


DATA_STAGES = ("synthesize", "manifest", "shards")
"""Stages of the data half; every other one trains, evaluates or searches."""

ALWAYS_CHANGED = "always runs"
"""Reason of stages that list something outside DVC's view."""


class DvcError(RuntimeError):
    """A DVC command failed; the message has its last lines."""


class UnknownStageError(DvcError):
    """The request names a data set or stage that dvc.yaml does not have."""


@dataclass(frozen=True)
class Inspection:
    """What DVC knows of a repository at one moment."""

    graph: "nx.DiGraph[str]"
    """Stages by name; edges from a stage to those that read its outputs."""
    stale: Mapping[str, Sequence[str]]
    """Stale stage → reasons in plain words; clean stages are absent."""
    outputs: Mapping[str, tuple[tuple[str, str], ...]]
    """Stage → (path, checksum) of the outputs that dvc.lock records."""


def inspect(root: Path) -> Inspection:
    """Ask DVC once for everything a run is planned from."""
    return Inspection(graph(root), status(root), locked_outputs(root))


def command(*arguments: str) -> list[str]:
    """Return the command line of DVC in this interpreter's environment."""
    return [sys.executable, "-m", "dvc", *arguments]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a DVC child: stages say `python`, which must be this interpreter."""
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    apply_defaults(env)
    env.update(extra or {})
    return env


def _ask(root: Path, *arguments: str) -> str:
    """Run a quick DVC query, again while another DVC holds the lock, and return its standard output."""
    for attempt in range(LOCK_ATTEMPTS):
        result = subprocess.run(
            command(*arguments), cwd=root, env=environment(), capture_output=True, text=True, check=False
        )
        if result.returncode == 0:
            return result.stdout
        if not LOCK_ERROR.search(result.stderr) or attempt == LOCK_ATTEMPTS - 1:
            break
        time.sleep(random.uniform(*LOCK_WAIT_S))
    raise DvcError(f"`dvc {' '.join(arguments)}` failed in {root}:\n{result.stderr.strip() or result.stdout.strip()}")


def graph(root: Path) -> "nx.DiGraph[str]":
    """Return the stages of the repository by name, with edges from a stage to those that read its outputs."""
    try:
        edges, nodes = _graph_of_index(root)
    except Exception:
        # Whatever a new DVC moved: the public command says the same, a second later.
        edges, nodes = _graph_of_dot(_ask(root, "dag", "--dot"))
    result: nx.DiGraph[str] = nx.DiGraph()
    result.add_nodes_from(nodes)
    result.add_edges_from(edges)
    return result


def _graph_of_index(root: Path) -> tuple[list[tuple[str, str]], list[str]]:
    from dvc.repo import Repo

    def name(stage: Any) -> str:
        """Name as seen from the root (DVC's own `addressing` is relative to the current folder)."""
        file = os.path.relpath(stage.path, root)
        return str(stage.name) if file == "dvc.yaml" else ":".join(filter(None, (file, getattr(stage, "name", None))))

    with Repo(str(root)) as repo:
        found: Any = repo.index.graph
        # DVC's edges point from a stage to what it depends on.
        return [(name(before), name(after)) for after, before in found.edges], [name(stage) for stage in found.nodes]


def _graph_of_dot(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    edges = [(match[1], match[2]) for match in re.finditer(r'"([^"]+)"\s*->\s*"([^"]+)"', text)]
    return edges, sorted(set(re.findall(r'"([^"]+)"', text)))


def status(root: Path) -> dict[str, list[str]]:
    """Return what DVC holds for stale: stage → reasons, each in plain words. Clean stages are absent."""
    found: dict[str, list[Any]] = json.loads(_ask(root, "status", "--json") or "{}")
    return {stage: [reason for entry in entries for reason in _reasons(entry)] for stage, entries in found.items()}


def _reasons(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [ALWAYS_CHANGED if entry == "always changed" else entry.replace("changed command", "command changed")]
    reasons = []
    for what, changes in entry.items():
        kind = {"changed deps": "input", "changed outs": "output"}.get(what, what)
        for path, change in changes.items():
            if isinstance(change, dict):  # parameters: {"lr": "modified"}
                reasons += [f"{path}: {key} {word}" for key, word in change.items()]
            else:
                reasons.append(f"{kind} {path} {change}")
    return reasons


def dataset_of(stage: str) -> str | None:
    """Return the data set of a stage instance (`adafocus_pretrain@demo-glance` → `demo`), None when it has none."""
    _, at, instance = stage.partition("@")
    return instance.split("-")[0] if at else None


def select(graph: "nx.DiGraph[str]", root: Path, dataset: str, targets: Sequence[str] = ()) -> "nx.DiGraph[str]":
    """Return the part of the graph that has to be current for the targets.

    Args:
        graph: All stages.
        root: Project root, for the data set's params file.
        dataset: Data set whose stages are meant.
        targets: Stage instances, or bare stage names that mean all their instances on the data set. Empty means the
            data stages and every other stage that `params/<dataset>.yaml` has a section for.

    Raises:
        UnknownStageError: no such data set or target; the message lists what there is.
    """
    own = sorted(name for name in graph if dataset_of(name) == dataset)
    if not own:
        known = sorted({found for name in graph if (found := dataset_of(name))})
        raise UnknownStageError(
            f"no stage of dvc.yaml runs on data set {dataset!r}; known: {', '.join(known) or 'none'}. "
            "A new one needs a line under `datasets:` in params.yaml"
        )
    wanted = []
    for target in targets:
        matches = [target] if target in graph else [name for name in own if name.split("@")[0] == target]
        if not matches:
            raise UnknownStageError(f"unknown target {target!r}; stages of {dataset}: {', '.join(own)}")
        wanted += matches
    if not targets:
        path = root / "params" / f"{dataset}.yaml"
        sections = set(yaml.safe_load(path.read_text()) or {}) if path.exists() else set()
        wanted = [name for name in own if name.split("@")[0] in sections.union(DATA_STAGES)]
    needed = set(wanted).union(*(nx.ancestors(graph, name) for name in wanted))
    result: nx.DiGraph[str] = graph.subgraph(needed).copy()
    return result


def is_training(stage: str) -> bool:
    """Return whether a stage belongs to the training half."""
    return stage.split("@")[0] not in DATA_STAGES


def locked_outputs(root: Path) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the outputs that dvc.lock records: stage → (path, checksum) pairs."""
    path = root / "dvc.lock"
    if not path.exists():
        return {}
    content = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    return {
        name: tuple((out["path"], str(out.get("md5") or out.get("etag"))) for out in entry.get("outs", []))
        for name, entry in (content.get("stages") or {}).items()
    }


def repro(root: Path, stage: str, env: Mapping[str, str] | None = None) -> Finished:
    """Reproduce one stage (not its upstream), passing its output through; again while DVC's lock is held.

    Raises:
        DvcError: the stage failed; with the last lines of its output.
    """
    for attempt in range(LOCK_ATTEMPTS):
        finished = run_streamed(command("repro", "--single-item", stage), root, environment(env))
        if finished.returncode == 0:
            return finished
        if not LOCK_ERROR.search(finished.tail) or attempt == LOCK_ATTEMPTS - 1:
            break
        time.sleep(random.uniform(*LOCK_WAIT_S))
    raise DvcError(f"stage {stage} failed with status {finished.returncode}:\n{finished.last_lines()}")


def push(root: Path, targets: Sequence[str] = (), remote: str | None = None) -> None:
    """Send what the cache holds to the remote; raises DvcError with DVC's words."""
    _transfer(root, "push", targets, remote)


def pull(root: Path, targets: Sequence[str] = (), remote: str | None = None) -> None:
    """Fetch from the remote and check out; raises DvcError with DVC's words."""
    _transfer(root, "pull", targets, remote)


def _transfer(root: Path, verb: str, targets: Sequence[str], remote: str | None) -> None:
    arguments = [verb, *(["--remote", remote] if remote else []), *targets]
    finished = run_streamed(command(*arguments), root, environment())
    if finished.returncode:
        raise DvcError(f"`dvc {' '.join(arguments)}` failed:\n{finished.last_lines()}")
