"""The small catalogue of `search_toy.py` stands in for the real one in the tests of this folder."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from training.autovideo import catalogue


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[ModuleType]:
    """`search_toy.py`, its primitives being the only ones that there are."""
    name = "search_toy"
    with pytest.MonkeyPatch.context() as patch:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        patch.setattr(catalogue, "MODULES", (name,))
        catalogue.catalogue.cache_clear()
        yield module
    catalogue.catalogue.cache_clear()
