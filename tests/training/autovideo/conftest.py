"""The catalogue of a test: small primitives instead of ours."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from training.autovideo import catalogue

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
