"""`fovea lineage`: from a registered model back to code, data and the runs before it.

Every step follows a recorded identity: version → model digest → the run that made it → digests of its upstream
models → their runs; data digest → shards → manifest, with DVC's hashes. A step without a record is shown as
missing; nothing is guessed.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.settings import Settings
from training.core.modelcard import Facts, dvc_lock, read_facts
from training.core.registration import Registry, RegistryError, Version, find_model_run
from training.core.tracking import RunRecord, read_run

RUN_FACTS = (
    "git_commit",
    "git_dirty",
    "flow_run_id",
    "data_digest",
    "config_digest",
    "input_digest",
    "overridden",
    "hardware",
)


@dataclass(frozen=True)
class Node:
    """One link of the chain."""

    kind: str
    """model, version, run, data or missing."""
    title: str
    facts: dict[str, str] = field(default_factory=dict)
    children: tuple["Node", ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the node and everything below it as plain values."""
        return {
            "kind": self.kind,
            "title": self.title,
            "facts": self.facts,
            "children": [child.as_dict() for child in self.children],
        }

    def walk(self) -> list["Node"]:
        """Return this node and all below it."""
        return [self, *(node for child in self.children for node in child.walk())]


def lineage(settings: Settings, model: str) -> Node:
    """Walk back from a model.

    Args:
        settings: where store and project are.
        model: `adafocus-demo`, `…@champion`, `…/3`, or the path of a model folder.

    Raises:
        RegistryError: no such model.
    """
    folder = Path(model)
    if (folder / "model.json").is_file():
        return _of_folder(settings, folder)
    return of_version(settings, Registry.open(settings).resolve(model))


def of_version(settings: Settings, version: Version) -> Node:
    """Walk back from a registered version."""
    facts = _facts(settings, version)
    children = []
    registration = read_run(settings, version.run_id) if version.run_id else None
    if registration is None:
        children.append(_missing("registration run", f"run {version.run_id or 'of this version'} is not in the store"))
    else:
        children.append(Node("run", registration.name, _run_facts(registration)))
    evaluation_id = version.tags.get("evaluation_run_id", "")
    evaluation = read_run(settings, evaluation_id) if evaluation_id else None
    if evaluation is not None:
        children.append(Node("run", evaluation.name, _run_facts(evaluation)))
    else:
        stage = version.tags.get("evaluation", "evaluation")
        children.append(
            _missing(f"run of {stage}", f"not in this store{f' ({evaluation_id})' if evaluation_id else ''}")
        )
    digest = version.tags.get("model_digest", "")
    seen: set[str] = set()
    children.append(_of_digest(settings, digest, version.tags.get("subject", "model"), seen))
    children.append(_of_data(settings, version.tags.get("dataset", ""), version.tags.get("data_digest", ""), facts))
    shown = {
        "aliases": ", ".join(version.aliases),
        "gate": version.gate,
        "gate against": version.tags.get("gate_against", ""),
        "model digest": digest,
        "evaluated on": version.tags.get("eval_data_digest", ""),
    }
    return Node("version", str(version), _known(shown), tuple(children))


def _of_folder(settings: Settings, folder: Path) -> Node:
    from training.core.checkpoint import model_digest, read_model_info

    info = read_model_info(folder)
    digest = model_digest(folder)
    run = _of_digest(settings, digest, str(info["stage"]), set())
    found = find_model_run(settings, digest)
    data = found.tags.get("data_digest", "") if found else ""
    children = (run, _of_data(settings, str(info["dataset"]), data, None))
    return Node("model", str(folder), {"stage": str(info["stage"]), "model digest": digest}, children)


def _facts(settings: Settings, version: Version) -> Facts | None:
    with tempfile.TemporaryDirectory() as temporary:
        try:
            return read_facts(Registry.open(settings).fetch_evaluation(version, Path(temporary)))
        except (RegistryError, OSError, ValueError):
            return None


def _of_digest(settings: Settings, digest: str, name: str, seen: set[str]) -> Node:
    """Return the run that made a model of this digest, with the runs that made its upstream models."""
    if not digest:
        return _missing(f"run of {name}", "no digest was recorded for this model")
    run = find_model_run(settings, digest)
    if run is None:
        return _missing(
            f"run of {name}",
            f"no finished run of this store made a model with digest {digest[:16]} (trained elsewhere and pulled, "
            "or the store is another one)",
        )
    if digest in seen:
        return Node("run", run.name, {"run": run.run_id, "note": "shown above"})
    seen.add(digest)
    upstream: dict[str, str] = json.loads(run.tags.get("upstream_model_digests", "{}"))
    children = tuple(_of_digest(settings, of, stage, seen) for stage, of in upstream.items())
    return Node("run", run.name, _run_facts(run) | {"model digest": digest}, children)


def _run_facts(run: RunRecord) -> dict[str, str]:
    facts = {"run": run.run_id, "experiment": run.experiment, "status": run.status}
    facts |= {key.replace("_", " "): run.tags[key] for key in RUN_FACTS if run.tags.get(key)}
    facts |= {f"dvc {path}": md5 for path, md5 in json.loads(run.tags.get("dvc_deps", "{}")).items()}
    return facts


def _of_data(settings: Settings, dataset: str, digest: str, facts: Facts | None) -> Node:
    """Return the shards and the manifest, and whether what lies on disk now is the same version."""
    from data_specs.schema import read_index

    if not dataset:
        return _missing("data", "no data set was recorded")
    shown = {"data digest": digest}
    folder = settings.shards / dataset
    if facts is not None:
        shown |= {"specification": facts.spec_digest, "encoder": facts.encoder}
        shown["evaluated"] = f"{facts.evaluated} of {facts.listed} listed"
        shown["rejects"] = ", ".join(f"{reason} {count}" for reason, count in facts.rejects.items())
    recorded = {path: md5 for path, md5 in (facts.dvc if facts else {}).items() if path.startswith("data/")}
    shown |= {f"dvc {path}": md5 for path, md5 in recorded.items()}
    children = []
    if not (folder / "index.json").exists():
        children.append(_missing(f"data/shards/{dataset}", "not on this disk; `dvc pull` fetches it"))
    else:
        now = read_index(folder).data_digest()
        state = "these shards" if now == digest else f"another version ({now[:16]})"
        if not digest:
            state = f"digest {now[:16]}; the model's was not recorded"
        children.append(Node("data", f"data/shards/{dataset}", {"on disk now": state}))
    children.append(_manifest(settings, dataset, recorded))
    return Node("data", dataset, _known(shown), tuple(children))


def _manifest(settings: Settings, dataset: str, recorded: dict[str, str]) -> Node:
    path = f"data/manifests/{dataset}.csv"
    lock = dvc_lock(settings.root)
    stages = [lock.get(f"manifest@{dataset}", {}), lock.get(f"shards@{dataset}", {})]
    entries = [item for stage in stages for item in (*stage.get("outs", []), *stage.get("deps", []))]
    md5 = next((item["md5"] for item in entries if item.get("path") == path and item.get("md5")), "")
    file = settings.root / path
    if not md5 and not file.exists():
        return _missing(path, "neither on this disk nor in dvc.lock")
    facts = {"dvc.lock": md5, "when the model was registered": recorded.get(path, "")}
    if file.exists():
        with file.open() as lines:
            facts["listed videos"] = str(max(0, sum(1 for _ in lines) - 1))
    return Node("data", path, _known(facts))


def _missing(title: str, why: str) -> Node:
    return Node("missing", title, {"missing": why})


def _known(facts: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in facts.items() if value}


def as_tree(node: Node) -> Any:
    """Return a rich tree of the chain."""
    from rich.markup import escape
    from rich.tree import Tree

    def label(item: Node) -> str:
        style = "red" if item.kind == "missing" else "bold"
        lines = [f"[{style}]{escape(item.title)}[/{style}]"]
        lines += [f"[dim]{escape(key)}:[/dim] {escape(value)}" for key, value in item.facts.items()]
        return "\n".join(lines)

    def grow(tree: Tree, item: Node) -> Tree:
        for child in item.children:
            grow(tree.add(label(child)), child)
        return tree

    return grow(Tree(label(node)), node)
