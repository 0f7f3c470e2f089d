"""A folder of tiny videos, a pipeline over it that has run once in a project of its own, and the command line."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.environment import DEFAULTS
from infra.settings import Settings
from training.autovideo.pipeline import Pipeline, PipelineRun
from training.autovideo.values import Shards

CLASSES = ("blue", "green", "red")
RECIPE = {
    "backbone": "resnet18",
    "width": 0.125,
    "steps": 4,
    "batch_size": 6,
    "lr": 0.01,
    "checkpoint_every": 2,
    "log_every": 1,
}
"""Of a recogniser, as small as it gets."""
CLIP = {"frames": 2, "size": 32, "short_side": 32}
ROOT = Path(__file__).parents[4]


def settings_of(root: Path) -> Settings:
    return Settings(root=root, train_workers=0, train_cpus_per_worker=1, progress=False, device="cpu")


@pytest.fixture(scope="session")
def videos(
    tmp_path_factory: pytest.TempPathFactory, clip_drawer: Callable[..., Any], mp4_encoder: Callable[..., bytes]
) -> Path:
    """`<class>/<group>_<number>.mp4`: 30 videos of 3 classes in 10 groups; do not write into it."""
    root = tmp_path_factory.mktemp("data") / "videos"
    for number in range(30):
        path = root / CLASSES[number % 3] / f"g{number // 3}_{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        mp4_encoder(clip_drawer(number, number % 3, 32, 40, 8), path)
    return root


@pytest.fixture(scope="session")
def recipe() -> dict[str, Any]:
    """Settings of a small recogniser."""
    return dict(RECIPE)


def document_of(root: Path) -> dict[str, Any]:
    split = {"train": 0.6, "val": 0.2, "test": 0.2, "by": "regex:^(g[0-9]+)"}
    return {
        "schema": "pipeline/v1",
        "name": "whole",
        "seed": 3,
        "vars": {"size": CLIP["size"]},
        "steps": [
            {"id": "data", "use": "reader/folder", "with": {"root": str(root), "split": split}},
            {"id": "shards", "use": "extractor/webdataset", "in": "data", "with": {"short_side": 32}},
            {"id": "clip", "use": "decoder/segments", "in": "shards", "with": {**CLIP, "size": "${size}"}},
            {"id": "crop", "use": "transform/random_crop", "in": "clip"},
            {"id": "aug", "use": "augment/hflip", "in": "crop"},
            {"id": "net", "use": "recognition/tsn", "in": "aug", "with": dict(RECIPE)},
            {"id": "eval", "use": "evaluator/topk", "in": ["net", "clip"], "with": {"splits": ["val", "test"]}},
            {"id": "confusion", "use": "evaluator/confusion", "in": ["net", "clip"], "with": {"splits": ["test"]}},
        ],
        "outputs": ["net.model", "eval.metrics", "confusion.page"],
    }


@pytest.fixture
def document(videos: Path) -> dict[str, Any]:
    """The whole pipeline, from a folder of videos to figures, as plain values; the test's own copy."""
    return document_of(videos)


@pytest.fixture(scope="session")
def new_project(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Callable[[], Settings]:
    """Return a function that makes an empty project."""

    def make() -> Settings:
        root = tmp_path_factory.mktemp("project")
        (root / "params").mkdir()
        (root / "dvc.yaml").write_text("stages: {}\n")
        shutil.copy(empty_store, root)
        return settings_of(root)

    return make


@pytest.fixture(scope="session")
def project(new_project: Callable[[], Settings]) -> Settings:
    """A project that tests share: each test names its own pipelines."""
    return new_project()


@pytest.fixture(scope="session")
def ran(project: Settings, videos: Path) -> PipelineRun:
    """The whole pipeline has run once in the project; the ingest, too."""
    run = Pipeline.from_dict(document_of(videos)).run(settings=project)
    shards = run.value("shards")
    assert isinstance(shards, Shards)
    # Other pipelines read the same shards by name.
    place = project.shards / "tiny"
    place.parent.mkdir(parents=True)
    place.symlink_to(shards.folder, target_is_directory=True)
    return run


@pytest.fixture
def short(ran: PipelineRun) -> Callable[..., dict[str, Any]]:
    """Return a function that gives a pipeline without an ingest: `tiny`, clips, a learner, top-1."""

    def make(name: str, **settings: Any) -> dict[str, Any]:
        return {
            "schema": "pipeline/v1",
            "name": name,
            "seed": 3,
            "steps": [
                {"id": "data", "use": "reader/dataset", "with": {"name": "tiny"}},
                {"id": "clip", "use": "decoder/segments", "in": "data", "with": dict(CLIP)},
                {"id": "net", "use": "recognition/tsn", "in": "clip", "with": {**RECIPE, "steps": 2, **settings}},
                {"id": "eval", "use": "evaluator/topk", "in": ["net", "clip"], "with": {"splits": ["val"]}},
            ],
            "outputs": ["net.model", "eval.metrics"],
        }

    return make


def changed(document: Mapping[str, Any], step: str, **settings: Any) -> dict[str, Any]:
    values = copy.deepcopy(dict(document))
    (found,) = [item for item in values["steps"] if item["id"] == step]
    found["with"] = {**found.get("with", {}), **settings}
    return values


@pytest.fixture(scope="session")
def change() -> Callable[..., dict[str, Any]]:
    """`changed`: a copy of a document in which a step has other settings."""
    return changed


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """For commands: nothing of the caller's own settings, one thread, no Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FOVEA_", "RAY_"))}
    return {
        **DEFAULTS,
        **kept,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "FOVEA_TRAIN_CPUS_PER_WORKER": "1",
        "FOVEA_PROGRESS": "false",
        "FOVEA_DEVICE": "cpu",
    }


@pytest.fixture(scope="session")
def fovea(environment: dict[str, str]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Return a function that runs `fovea …` in a folder as a process of its own."""

    def call(folder: Path, *arguments: object, status: int | None = 0) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "infra.cli", *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert status is None or done.returncode == status, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done

    return call


@pytest.fixture(scope="session")
def last_json() -> Callable[[str], Any]:
    """Return a function that reads the last line of an output."""
    return lambda text: json.loads(text.strip().splitlines()[-1])
