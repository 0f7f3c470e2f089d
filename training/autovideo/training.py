"""Trains a learner of a pipeline by a registered stage, in a workspace that looks like a project.

The workspace has params.yaml, params/<dataset>.yaml and a link to the shards, so `run_stage` does what it does for
every system: locks, checkpoints, resuming after a kill, MLflow, model folder.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.settings import Settings
from training.autovideo.document import Document
from training.autovideo.plan import STAGE, learners, stage_values
from training.autovideo.recognisers import Recogniser
from training.autovideo.shard_sets import num_samples
from training.autovideo.values import Clips, Context, Model, Shards, Value
from training.core.checkpoint import model_digest
from training.core.config import ConfigError
from training.core.pages import write_text
from training.core.run import run_stage
from training.core.stage import StageRef, paths_of


def train(recogniser: Recogniser, inputs: Mapping[str, Value], context: Context) -> Model:
    """Train the recogniser of one step.

    Returns:
        The model folder, in `runs/` of the workspace.
    """
    clips = inputs["clips"]
    assert isinstance(clips, Clips)
    if clips.shards is None:
        raise ConfigError(f"step {context.step!r}: its clips come from no shards")
    shards = clips.shards
    assert context.document is not None, "a learner is trained in the run of a pipeline"
    document = counted(context.document, num_samples(shards.folder, "train"))
    written = absolute_weights(document.to_dict(), context.project.root)
    link_shards(context, shards)
    names = learners(document)
    write_params(
        context.settings.root,
        shards.dataset,
        lists={"autovideo": [shards.dataset], "autovideo_grid": {"pipeline": names}},
        sections={
            "autovideo_train": {},
            "autovideo_eval": {},
            "autovideo_pipelines": {name: written for name in names},
        },
    )
    return run(StageRef(STAGE, shards.dataset, (context.step,)), shards, context)


def run(ref: StageRef, shards: Shards, context: Context) -> Model:
    """Run a stage of the workspace that trains, and return its model."""
    from training.registry import all_stages

    folder = run_stage(ref, context.settings) / "model"
    stages = all_stages()
    assert folder == paths_of(stages[ref.stage], ref, context.settings, stages).model
    return model_of(folder, shards)


def model_of(folder: Path, shards: Shards | None) -> Model:
    """Return a model folder as a value, with what a video costs."""
    from training.core.checkpoint import load_model

    loaded = load_model(folder)
    return Model(folder, loaded.stage, model_digest(folder), shards, loaded.system.cost()["main"].gmac)


def counted(document: Document, num_train: int) -> Document:
    """Return a document whose learners count steps: epochs mean something only beside a number of videos."""
    names = learners(document)
    values = document.to_dict()
    for step in values["steps"]:
        if step["id"] in names:
            fit = stage_values(document, step["id"], num_train=num_train)["fit"]
            settings = {key: value for key, value in step.get("with", {}).items() if key != "epochs"}
            step["with"] = {**settings, "steps": fit["steps"]}
    return Document.from_dict(values)


def absolute_weights(value: Any, root: Path) -> Any:
    """Return plain values in which files of weights, `{path, sha256}`, have absolute paths.

    Documents name them from the project's root, and stages of a workspace would look below the workspace.
    """
    if isinstance(value, Mapping):
        if set(value) == {"path", "sha256"}:
            return {**value, "path": str(root.absolute() / value["path"])}
        return {key: absolute_weights(item, root) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [absolute_weights(item, root) for item in value]
    return value


def link_shards(context: Context, shards: Shards) -> None:
    """Let the workspace's data folder have the shards, without a copy."""
    link(context.settings, shards)


def link(settings: Settings, shards: Shards) -> None:
    """Let a workspace's data folder have the shards, without a copy."""
    place = settings.shards / shards.dataset
    if place.is_symlink() and place.resolve() == shards.folder.resolve():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    temporary.symlink_to(shards.folder.resolve(), target_is_directory=True)
    os.replace(temporary, place)


def write_params(root: Path, dataset: str, *, lists: Mapping[str, Any], sections: Mapping[str, Any]) -> None:
    """Write a workspace's params.yaml and params/<dataset>.yaml, keeping what other stages have there."""
    merge_yaml(root / "params.yaml", {"datasets": [], **lists})
    merge_yaml(root / "params" / f"{dataset}.yaml", sections)
    marker = root / "dvc.yaml"
    if not marker.exists():
        marker.write_text("stages: {}\n")


def merge_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Set keys of a YAML file at its top level, atomically; the file is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = yaml.safe_load(path.read_text()) if path.exists() else None
    write_text(path, yaml.safe_dump({**(old or {}), **values}, sort_keys=False, allow_unicode=True))
