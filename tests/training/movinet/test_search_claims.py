"""What the search is for, in small: it picks temporal kernels where time decides, and not where it does not.

Real encoded videos of two controlled tasks through shards and loader; one supernet each, then searches with a fixed
budget, five seeds, against the same searches with shuffled rewards.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.ops.controlled import ControlledConfig
from training.backbones.movinet_layout import VARIANTS
from training.core.checkpoint import save_model
from training.core.config import validate
from training.core.data import open_loader
from training.core.loop import fit
from training.core.stage import ScoreInputs, StageInputs
from training.core.trials import Outcome, Trial
from training.movinet.config_search import NasStageConfig, SupernetStageConfig
from training.movinet.search_stage import SUPERNET, SupernetScorer, SupernetSearch
from training.movinet.space import Space, SpaceConfig
from training.movinet.supernet_system import SupernetSystem
from training.movinet.target import CostModel

FRAMES, CANDIDATES, SEEDS = 16, 30, 5


@dataclass(frozen=True)
class Scale:
    """How much is trained and looked at for a task."""

    num_train: int
    num_val: int
    steps: int
    calibration_clips: int
    score_clips: int


SCALES = {
    # After 120 steps it depends on the clips that score: found 1.0 against 0.6 by chance, or 0.8 against 0.6.
    "speed": Scale(num_train=240, num_val=120, steps=160, calibration_clips=32, score_clips=60),
    # Every member asked about is right for every clip after 40 steps already.
    "static": Scale(num_train=120, num_val=30, steps=60, calibration_clips=16, score_clips=30),
}

SPACE: dict[str, Any] = {
    "stem": 8, "widths": [16, 32], "strides": [2, 2], "project": 32, "head": 32, "multipliers": [1.0],
    "kernels": ["1x3x3", "3x3x3"], "expansions": [2.0, 3.0], "expansion_of": "reference", "gates": [True],
    "min_layers": [2, 2], "max_layers": [2, 2],
}  # fmt: skip
DATA: dict[str, Any] = {
    "num_frames": FRAMES, "sampling": "dense", "stride": 1, "batch_size": 16, "decoder": "pyav",
    "transform": {"size": 32, "train_crop": "center", "eval_short_side": 32, "flip": False, "normalise": "symmetric"},
}  # fmt: skip
FIT: dict[str, Any] = {
    "seed": 0, "clip_grad_norm": 5.0, "ema_decay": None, "precision": "fp32", "eval_every": 0,
    "keep": "last",
    "optim": {
        "name": "adamw", "lr": {"main": 0.01}, "weight_decay": 0.01, "decay": "kernels", "schedule": "cosine",
        "warmup_steps": 10,
    },
}  # fmt: skip


def train_supernet(shards: Path, folder: Path, steps: int) -> tuple[Path, tuple[str, ...]]:
    """Train a supernet and save it as its stage does."""
    values = {
        "space": SPACE, "variant": "base_2plus1d", "dropout": 0.0, "drop_path": 0.0, "norm_eps": 1e-3,
        "norm_momentum": 0.1, "label_smoothing": 0.0, "warmup": 0.0, "sandwich": False, "near": None, "data": DATA,
        "fit": FIT | {"steps": steps},
    }  # fmt: skip
    config = validate(SupernetStageConfig, values, "supernet")
    torch.manual_seed(config.fit.seed)
    loader = open_loader(shards, config.data, split="train", train=True, seed=config.fit.seed)
    system = SupernetSystem(config, config.data, loader.classes)
    try:
        report = fit(system, loader, config.fit, device=torch.device("cpu"))
    finally:
        loader.close()
    save_model(
        folder, report.weights, stage=SUPERNET, dataset="claims", config=config.model_dump(mode="json"),
        classes=system.classes, decoder="pyav",
    )  # fmt: skip
    return folder, system.classes


def search_config(control: str, seed: int, gmac: float, scale: Scale) -> NasStageConfig:
    values = {
        "engine": "evolution", "control": control, "seed": seed, "space": SPACE, "data": DATA, "stopping": None,
        "target": {"kind": "gmac", "value": gmac, "tolerance": 0.5}, "reward": {"kind": "quality", "beta": 0.0},
        "candidates": CANDIDATES, "family": [],
        "calibration_clips": scale.calibration_clips, "score_clips": scale.score_clips,
        "engines": {
            "evolution": {"population": 10, "tournament": 4}, "random": {},
            "reinforce": {"lr": 0.1, "schedule": "constant", "delay": 0.0, "baseline": 0.95, "entropy": 0.0},
        },
    }  # fmt: skip
    return validate(NasStageConfig, values, "search")


class Remembered:
    """Scores each architecture once, for all searches: the same supernet and the same clips give the same score."""

    def __init__(self, supernet: Path, shards: Path, classes: tuple[str, ...], scale: Scale) -> None:
        config = search_config("none", 0, 1.0, scale)
        inputs = ScoreInputs(config, classes, {SUPERNET: supernet}, shards, shards, "cpu", False)
        self.scale = scale
        self._scorer = SupernetScorer(inputs)
        self._known: dict[str, dict[str, float]] = {}

    def score(self, trial: Trial) -> dict[str, float]:
        name = str(trial.config["architecture"])
        if name not in self._known:
            self._known[name] = dict(self._scorer.score(trial))
        return self._known[name]


def temporal_shares(supernet: Path, scorer: Remembered, classes: tuple[str, ...], control: str) -> tuple[float, float]:
    """Run the searches; return the share of temporal layers in what was found, and in the last candidates."""
    space = Space(SpaceConfig(**SPACE))
    model = CostModel(VARIANTS["base_2plus1d"], FRAMES, 32, len(classes))
    costs = sorted(model.of(space.layout(space.sample(random.Random(seed))), "gmac") for seed in range(100))
    found, last = [], []
    for seed in range(SEEDS):
        config = search_config(control, seed, costs[50], scorer.scale)  # the window holds nearly all members
        search = SupernetSearch(StageInputs(config, classes, {SUPERNET: supernet}))
        asked = []
        while (trial := search.ask()) is not None:
            asked.append(trial.config["architecture"])
            metrics = scorer.score(trial)
            search.tell(Outcome(trial, "finished", 0, metrics["val/top1"], metrics, []))
        assert len(asked) == CANDIDATES
        result = search.found()
        assert result is not None
        found.append(result.architecture)
        last += asked[-CANDIDATES // 4 :]
    return temporal_share(found), temporal_share(last)


def temporal_share(architectures: list[dict[str, Any]]) -> float:
    layers = [layer for net in architectures for block in net["blocks"] for layer in block["layers"].split()]
    return sum(layer.startswith("3x") for layer in layers) / len(layers)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["speed", "static"])
def test_temporal_kernels_are_found_where_time_decides(
    task: Any, controlled_shards: Callable[..., Path], tmp_path: Path
) -> None:
    torch.set_num_threads(1)  # beside another test, two threads would wait for each other
    scale = SCALES[task]
    videos = ControlledConfig(
        task=task, num_train=scale.num_train, num_val=scale.num_val, num_test=8, size=64, num_frames=FRAMES, fps=8,
        noise=4.0,
    )  # fmt: skip
    shards = controlled_shards(tmp_path, videos)
    supernet, classes = train_supernet(shards, tmp_path / "model", scale.steps)
    scorer = Remembered(supernet, shards, classes, scale)
    found, last = temporal_shares(supernet, scorer, classes, "none")
    found_by_chance, last_by_chance = temporal_shares(supernet, scorer, classes, "shuffled")
    if task == "speed":
        assert last > last_by_chance + 0.2, (found, last, found_by_chance, last_by_chance)
        assert found > found_by_chance + 0.2, (found, last, found_by_chance, last_by_chance)
    else:
        assert abs(last - last_by_chance) < 0.1, (found, last, found_by_chance, last_by_chance)
        assert abs(found - found_by_chance) < 0.2, (found, last, found_by_chance, last_by_chance)
