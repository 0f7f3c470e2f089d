"""Upstreams `x-*` (all instances), steps in learning rates, settings of clips, and costs that depend on the video."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from infra.settings import Settings
from training.core.config import ConfigError, DataConfig, OptimConfig, TransformConfig
from training.core.data import open_loader
from training.core.dvcfile import training_entries
from training.core.evaluate import evaluate
from training.core.optim import build_optimizer, build_schedule
from training.core.stage import StageRef, check_upstream, paths_of
from training.core.system import CostRow, Prediction, System
from training.core.transforms import ClipTransform
from training.registry import all_stages


def test_all_instances_of_a_stage_are_read_by_their_names(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"adamml_grid": {"modality": ["rgb", "flow"], "price": [1]}}))
    stages = all_stages()
    paths = paths_of(stages["adamml_warmup"], StageRef("adamml_warmup", "mine"), Settings(root=tmp_path), stages)
    runs = tmp_path / "runs" / "mine" / "adamml_unimodal"
    assert paths.upstream == {
        "adamml_unimodal-rgb": runs / "rgb" / "model",
        "adamml_unimodal-flow": runs / "flow" / "model",
    }
    entry = training_entries(Path(__file__).parents[3])["adamml_warmup"]
    assert "runs/${item.data}/adamml_unimodal" in entry["deps"]
    assert {"params.yaml": ["adamml_grid"]} in entry["params"], "a list that became shorter must be noticed"
    one = training_entries(Path(__file__).parents[3])["adamml_finetune"]
    assert not any("params.yaml" in item for item in one["params"])


def test_only_stages_that_train_have_an_every(tmp_path: Path):
    stages = all_stages()
    check_upstream(stages["adamml_warmup"], "adamml_unimodal-*", stages)
    with pytest.raises(ConfigError, match="only of stages that train"):
        check_upstream(stages["adamml_warmup"], "movinet_search-*", stages)
    with pytest.raises(ConfigError, match="not a registered stage"):
        check_upstream(stages["adamml_warmup"], "adamml_unimodall-*", stages)


def optim(**changes: object) -> OptimConfig:
    values = {"name": "sgd", "lr": {"main": 1.0}, "weight_decay": 0.0, "schedule": "steps", "warmup_steps": 2}
    return OptimConfig.model_validate({**values, "drop_at": [0.5, 0.8], "drop": 0.1, **changes})


def test_rates_drop_at_shares_of_the_run():
    config = optim()
    optimizer = build_optimizer({"main": [torch.nn.Parameter(torch.zeros(2))]}, config)
    schedule = build_schedule(optimizer, config, 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drop": None}, "needs both"),
        ({"schedule": "cosine"}, "only with it"),
        ({"drop_at": [0.8, 0.5]}, "increasing shares"),
        ({"drop_at": [0.5, 1.0]}, "increasing shares"),
    ],
)
def test_drops_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        optim(**changes)


TRANSFORM = {"size": 32, "train_crop": "center", "eval_short_side": 32, "flip": False, "normalise": "symmetric"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": "dense", "train_clips": 2}, "only with it"),
        ({"sampling": "segments", "stride": 2}, "`dense` or `clips`"),
        ({"sampling": "dense", "sound": {"rate": 8000, "samples": 100}}, "only with it"),
        ({"sampling": "clips", "flow": True}, "stack of at least 2"),
        ({"sampling": "clips", "pictures": "none"}, "nothing to look at"),
        ({"sampling": "clips", "overrun": "loop"}, "`dense`, and only"),
        ({"sampling": "clips", "transform": {**TRANSFORM, "eval_crops": 3}}, "centre crop only"),
    ],
)
def test_settings_of_clips_go_with_clips(changes, said):
    values = {"num_frames": 4, "batch_size": 2, "transform": TRANSFORM, **changes}
    with pytest.raises(ValueError, match=said):
        DataConfig.model_validate(values)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"train_short_side": [40, 36], "train_crop": "random"}, "size 32"), ({"train_short_side": [36, 40]}, "`random`")],
)
def test_a_drawn_short_side_must_fit(changes, said):
    with pytest.raises(ValueError, match=said):
        TransformConfig.model_validate({**TRANSFORM, **changes})


class Dear(System):
    """Costs as much as its label says."""

    def __init__(self, classes: tuple[str, ...], data: DataConfig, varies: bool) -> None:
        super().__init__()
        self.classes, self.varies = classes, varies
        self.prepare = ClipTransform(data.transform)  # type: ignore[assignment]

    def predict(self, batch):
        scores = torch.nn.functional.one_hot(batch.label_B, len(self.classes)).float()
        return Prediction(scores, extras={"gmac": 1.0 + batch.label_B} if self.varies else {})

    def cost(self):
        return {"main": CostRow("dear", 1, 50.0, "", "video")}

    def metrics(self, predictions):
        return {"mine": float(predictions.scores.sum())}


@pytest.mark.parametrize("varies", [True, False])
def test_cost_of_an_evaluation_is_what_its_videos_cost(tiny_shards, varies):
    data = DataConfig.model_validate({"num_frames": 2, "sampling": "segments", "batch_size": 4, "transform": TRANSFORM})
    loader = open_loader(tiny_shards, data, split="val", train=False, seed=0)
    result = evaluate(Dear(loader.classes, data, varies), loader, split="val", device=torch.device("cpu"))
    loader.close()
    mean = 1 + np.mean(result.predictions.label)
    assert result.metrics["val/gmac_per_video"] == pytest.approx(mean if varies else 50)
    assert result.metrics["val/mine"] == len(result.predictions.key)
