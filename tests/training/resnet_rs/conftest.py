from pathlib import Path
from typing import Any

import pytest
import yaml

SECTIONS = {"data": "resnet_rs_data", "model": "resnet_rs_model", "fit": "resnet_rs_fit"}


@pytest.fixture
def values() -> dict[str, Any]:
    """Values of a training of the family, as in tests/params.tiny.yaml."""
    tiny = yaml.safe_load((Path(__file__).parents[2] / "params.tiny.yaml").read_text())
    return {field: tiny[section] for field, section in SECTIONS.items()}


@pytest.fixture
def search_values(values: dict[str, Any]) -> dict[str, Any]:
    """Values of its search."""
    tiny = yaml.safe_load((Path(__file__).parents[2] / "params.tiny.yaml").read_text())
    return {**values, **tiny["resnet_rs_search"]}
