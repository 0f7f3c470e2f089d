"""The catalogue of a test: small primitives instead of ours. And systems made of documents, as the stages make them."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from training.autovideo import catalogue

if TYPE_CHECKING:
    from training.autovideo.config import TrainConfig
    from training.autovideo.system import AutoVideoSystem

FOLDER = Path(__file__).parent


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Primitives of `small_primitives.py`, and no others."""
    spec = importlib.util.spec_from_file_location("small_primitives", FOLDER / "small_primitives.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "small_primitives", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(catalogue, "MODULES", ("small_primitives",))
    monkeypatch.setattr(catalogue, "GROUP", "fovea.primitives.of.no.package")
    catalogue.catalogue.cache_clear()
    yield module
    catalogue.catalogue.cache_clear()


@pytest.fixture
def example() -> dict[str, Any]:
    """The pipeline of the notes, with small primitives."""
    return {
        "schema": "pipeline/v1",
        "name": "hmdb-baseline",
        "seed": 7,
        "vars": {"frames": 8, "p": 0.25},
        "steps": [
            {"id": "data", "use": "reader/small", "with": {"media": "media/"}},
            {"id": "shards", "use": "extractor/small", "in": "data"},
            {"id": "clip", "use": "decoder/small", "in": "shards", "with": {"frames": "${frames}", "mode": "dense"}},
            {
                "id": "aug",
                "use": "combine/small_some_of",
                "in": "clip",
                "with": {"n": 2, "of": [{"use": "augment/small_flip", "with": {"p": "${p}"}}, "augment/small_flip"]},
            },
            {"id": "net", "use": "recognition/small", "in": "aug", "with": {"width": 16}},
            {"id": "eval", "use": "evaluator/small", "in": ["net", "clip"]},
        ],
        "outputs": ["net.model", "eval.metrics"],
    }


@pytest.fixture(scope="session")
def train_config() -> Callable[..., "TrainConfig"]:
    """Return the config of `autovideo_train` for a recogniser, the steps before it and the settings of its training."""

    def make(
        use: str,
        *middle: Any,
        frames: int = 4,
        size: int = 32,
        decoder: str = "decoder/segments",
        clip: dict[str, Any] | None = None,
        **net: Any,
    ) -> "TrainConfig":
        from training.autovideo.config import TrainConfig
        from training.core.config import validate

        settings = {"frames": frames, "size": size, "threads": 1, "prefetch": 1, **(clip or {})}
        steps: list[dict[str, Any]] = [
            {"id": "data", "use": "reader/dataset"},
            {"id": "clip", "use": decoder, "in": "data", "with": settings},
        ]
        for number, step in enumerate(middle):
            named = {"use": step} if isinstance(step, str) else step
            steps.append({"id": f"step{number}", "in": steps[-1]["id"], **named})
        recipe = {"steps": 3, "batch_size": 6, "log_every": 1, **net}
        steps.append({"id": "net", "use": use, "in": steps[-1]["id"], "with": recipe})
        document = {"schema": "pipeline/v1", "name": "test", "seed": 7, "steps": steps, "outputs": ["net.model"]}
        return validate(TrainConfig, {"document": document}, "test")

    return make


@pytest.fixture(scope="session")
def build_system() -> "Callable[..., AutoVideoSystem]":
    """Return the system of a config, with initial weights of its seed, as the worker of a training builds it."""

    def make(config: "TrainConfig", classes: tuple[str, ...], root: Path | None = None) -> "AutoVideoSystem":
        import torch

        from training.autovideo.system import AutoVideoSystem
        from training.core.stage import StageInputs
        from training.registry import all_stages

        torch.manual_seed(config.fit.seed)
        inputs = StageInputs(config=config, classes=classes, upstream={}, root=root)
        system = all_stages()["autovideo_train"].build(inputs)
        assert isinstance(system, AutoVideoSystem)
        return system

    return make
