"""What the sweep is for, in small: at equal cost more frames win where time decides, more pixels where detail does.

Real encoded videos of the controlled tasks, through shards and loader; two seeds each, a fixed number of steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.ops.controlled import ControlledConfig
from training.core.data import open_loader
from training.core.evaluate import evaluate
from training.core.loop import fit
from training.resnet_rs.config import TrainConfig, at_point
from training.resnet_rs.system import ResNetRS

FRAMES, PIXELS = (16, 32), (4, 64)
"""(frames, size) of equal cost."""

STEPS = {"flicker": 80, "detail": 150}


def config(values: dict[str, Any], task: str, frames: int, size: int, seed: int) -> TrainConfig:
    data = values["data"] | {
        "stride": 2, "batch_size": 16, "decoder": "pyav",
        "transform": {
            "size": 64, "train_crop": "center", "eval_short_side": 64, "flip": False, "normalise": "symmetric"
        },
    }  # fmt: skip
    model = values["model"] | {"width": 0.25, "drop_path": 0.0, "label_smoothing": 0.0}
    optim = {
        "name": "adamw", "lr": {"main": 0.01}, "weight_decay": 0.01, "schedule": "cosine", "warmup_steps": 10,
        "decay": "kernels",
    }  # fmt: skip
    recipe = {
        "steps": STEPS[task], "seed": seed, "optim": optim, "clip_grad_norm": 5.0, "ema_decay": None,
        "precision": "fp32", "eval_every": 0, "keep": "last",
    }  # fmt: skip
    point = {"depth": 26, "width": 0.25, "frames": frames, "size": size, "seed": seed}
    changed = at_point({"data": data, "model": model, "fit": recipe, **point})
    return TrainConfig.model_validate({name: changed[name] for name in ("data", "model", "fit")})


def accuracy(shards: Path, given: TrainConfig) -> tuple[float, float]:
    """Train and return top-1 on the validation clips and the cost."""
    torch.manual_seed(given.fit.seed)
    loader = open_loader(shards, given.data, split="train", train=True, seed=given.fit.seed)
    system = ResNetRS(given.model, given.data, loader.classes)
    device = torch.device("cpu")
    try:
        report = fit(system, loader, given.fit, device=device)
    finally:
        loader.close()
    system.load_state_dict(report.weights)
    val = open_loader(shards, given.data, split="val", train=False, seed=0)
    try:
        metrics = evaluate(system, val, split="val", device=device).metrics
    finally:
        val.close()
    return metrics["val/top1"], metrics["val/gmac_per_video"]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "winner", "loser"), [("flicker", FRAMES, PIXELS), ("detail", PIXELS, FRAMES)])
def test_what_wins_at_equal_cost_depends_on_the_task(
    task: Any,
    winner: tuple[int, int],
    loser: tuple[int, int],
    values: dict[str, Any],
    controlled_shards: Callable[..., Path],
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)  # beside another test, two threads would wait for each other
    videos = ControlledConfig(
        task=task, num_train=320, num_val=120, num_test=8, size=64, num_frames=32, fps=8, noise=4.0
    )
    shards = controlled_shards(tmp_path, videos)
    for seed in (0, 1):
        better, cost = accuracy(shards, config(values, task, *winner, seed))
        worse, same = accuracy(shards, config(values, task, *loser, seed))
        assert same == pytest.approx(cost, rel=0.05)
        assert better > 0.7, "the task was not learned: the comparison would say nothing"
        assert better > worse + 0.1, (seed, better, worse)
