"""Does a memory that is sampled where it learned to be help in frames that show little? Measured, by encoded videos.

Videos of the task `moving_sprites` whose frames are degraded but for the key frames, with objects that move to the
side: rendered, encoded, listed with their boxes, packed into shards, and gone through all stages. Steps are fixed,
seeds are two; larger videos and nets: `benchmarks/lsts_claims.py` and the table in `training/lsts/README.md`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks.lsts_chain import Chain
from benchmarks.sprites import make_sprites
from tasks.ops.moving_sprites import MovingSpritesConfig
from training.core.checkpoint import load_model
from training.lsts.system import LSTSSystem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TASK = {
    "size": 64,
    "num_frames": 20,
    "num_train": 160,
    "num_val": 12,
    "num_test": 40,
    "motion": "horizontal_fast",
    "regime": "non_key",
    "noise": 2,
    "object_size": (0.32, 0.45),
    "objects": (1, 2),
    "label_every": 2,
}
SEEDS = (0, 1)
OVERRIDES = [
    "data.transform.size=64",
    "data.transform.eval_short_side=64",
    "data.transform.long_side=96",
    "data.threads=1",
    "data.batch_size=16",
    "lsts_single.fit.steps=700",
    "lsts_train.fit.steps=300",
    "lsts_train.fit.optim.lr.offsets=0.15",
]


class SharedChain(Chain):
    """The seeds are those of the second stage: one detector serves all."""

    def model(self, stage: str, seed: int, **items: Any) -> Path:
        return super().model(stage, 0 if stage == "lsts_single" else seed, **items)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, float]]:
    """(method, seed) → figures on the test split."""
    root = tmp_path_factory.mktemp("claims")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shards = make_sprites(root / "project", MovingSpritesConfig(**TASK), crf=20)
    params = yaml.safe_load(Path("params/templates/lsts.yaml").read_text())
    chain = SharedChain(shards, params, root / "work", "cpu", 1, ["data.decoder=auto", *OVERRIDES])
    (root / "work").mkdir()
    figures = {}
    for seed in SEEDS:
        for method in ("lsts", "fixed"):
            metrics = chain.evaluation(method, seed, single=method == "lsts" and seed == 0).metrics
            figures[method, seed] = {name.removeprefix("test/"): value for name, value in metrics.items()}
            system = load_model(chain.model("lsts_train", seed, method=method)).system
            assert isinstance(system, LSTSSystem)
            figures[method, seed]["table"] = system.model.offsets.table.tolist()
    torch.set_num_threads(threads)
    shown = ("map50", "map50_degraded", "map50_clean", "map50_single", "map50_degraded_single", "gmac_per_frame")
    for key, values in figures.items():
        print(key, json.dumps({name: round(values[name], 4) for name in shown if name in values}))
    return figures


def test_the_memory_helps_in_degraded_frames_at_little_cost(results) -> None:
    single = results["lsts", 0]
    assert single["gmac_per_frame_single"] > 0
    for seed in SEEDS:
        figures = results["lsts", seed]
        assert figures["gmac_per_frame"] <= 0.6 * single["gmac_per_frame_single"]
        assert figures["map50_degraded"] >= single["map50_degraded_single"] + 0.03


def test_learned_locations_beat_fixed_ones_under_motion_to_the_side(results) -> None:
    gains = [results["lsts", seed]["map50"] - results["fixed", seed]["map50"] for seed in SEEDS]
    assert np.mean(gains) >= 0.02
    assert min(gains) > 0


def test_locations_move_along_the_motion_and_not_across_it(results) -> None:
    for seed in SEEDS:
        before = np.abs(results["fixed", seed]["table"]).mean(0)
        after = np.abs(results["lsts", seed]["table"]).mean(0)
        assert after[0] >= 2 * before[0]
        assert after[1] <= before[1]
