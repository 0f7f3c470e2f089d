"""Settings of a tiny training, and simulated trainings with known gains per doubling of cost."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from training.core.config import parse_yaml
from training.resnet_rs.records import Record


def cost(depth: int, frames: int, size: int, width: float) -> float:
    """GMAC: proportional to depth and frames, and to the square of size and width."""
    return 0.1 * depth / 25 * frames / 8 * (size / 64) ** 2 * (width / 0.25) ** 2


def simulate(
    places: list[tuple[int, int, int, float]],
    gains: dict[str, float] | None = None,
    *,
    base: float = 0.5,
    interaction: float = 0.0,
    frames_end: float = math.inf,
    seeds: int = 1,
    noise: float = 0.0,
    clips: int = 300,
    seed: int = 0,
    **changed: object,
) -> list[Record]:
    """Return records whose expected top-1 is `base` at 25-8-64-0.25 and grows by `gains` per doubling of cost.

    Clips differ in difficulty, the same for all records. `frames_end`: doublings after which more frames gain nothing;
    `noise`: standard deviation of the expected top-1 over trainings; `changed`: other fields of the records.
    """
    generator, normal = np.random.default_rng(seed), NormalDist()
    ease = generator.normal(size=clips)
    key = np.array([f"clip{i:05d}" for i in range(clips)])
    label = generator.integers(0, 10, clips)
    records = []
    for (depth, frames, size, width), run in itertools.product(places, range(seeds)):
        x = {
            "depth": math.log2(depth / 25),
            "frames": min(math.log2(frames / 8), frames_end),
            "size": 2 * math.log2(size / 64),
            "width": 2 * math.log2(width / 0.25),
        }
        share = base + sum(gain * x[axis] for axis, gain in (gains or {}).items()) + noise * generator.normal()
        share += interaction * x["depth"] * x["frames"]
        latent = 0.7 * ease + math.sqrt(1 - 0.7**2) * generator.normal(size=clips)
        fields: dict[str, object] = {
            "name": f"{depth}-{frames}-{size}-{width:g}-{run}",
            "source": "grid",
            "level": "",
            "pool_t": 1,
            "temporal": "1133",
            "se_ratio": 0.25,
            "gmac": cost(depth, frames, size, width),
            "params": 1000 * depth,
            "steps": 1000,
            "status": "finished",
            "correct": latent < normal.inv_cdf(min(0.999, max(0.001, share))),
        }
        records.append(
            Record(
                **(fields | changed),  # type: ignore[arg-type]
                depth=depth,
                frames=frames,
                size=size,
                width=width,
                seed=run,
                key=key,
                label=label,
            )
        )
    return records


@pytest.fixture(name="simulate")
def _simulate() -> Callable[..., list[Record]]:
    return simulate


@pytest.fixture(name="cost")
def _cost() -> Callable[..., float]:
    return cost


@pytest.fixture
def grid() -> list[tuple[int, int, int, float]]:
    """Two depths, three frame counts, three sizes."""
    return list(itertools.product((25, 50), (4, 8, 16), (48, 64, 96), (0.25,)))


# --- settings ---------------------------------------------------------------------------------

SECTIONS = {"data": "resnet_rs_data", "model": "resnet_rs_model", "fit": "resnet_rs_fit"}


@pytest.fixture
def values() -> dict[str, Any]:
    """Values of a training of the family, as in tests/params.tiny.yaml."""
    tiny = parse_yaml((Path(__file__).parents[2] / "params.tiny.yaml").read_text())
    return {field: tiny[section] for field, section in SECTIONS.items()}


@pytest.fixture
def search_values(values: dict[str, Any]) -> dict[str, Any]:
    """Values of its search."""
    tiny = parse_yaml((Path(__file__).parents[2] / "params.tiny.yaml").read_text())
    return {**values, **tiny["resnet_rs_search"]}
