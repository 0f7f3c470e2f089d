"""3D ResNet-RS: plain 3D ResNets, a modern recipe, and the question what to scale when."""

from training.core.checkpoint import load_state, read_model_info
from training.core.config import DataConfig, validate
from training.core.stage import Report, Stage, StageInputs
from training.core.system import System
from training.core.trials import Search
from training.resnet_rs.config import (
    EvalConfig,
    GridConfig,
    NetConfig,
    ScalingConfig,
    SearchConfig,
    TrainConfig,
    ViewsConfig,
)
from training.resnet_rs.presets import MODELS
from training.resnet_rs.scaling_stage import ScalingReport
from training.resnet_rs.search import ScalingSearch
from training.resnet_rs.system import ResNetRS

__all__ = ["MODELS", "STAGES"]

_SHARED = {"model": "resnet_rs_model", "data": "resnet_rs_data"}
_RECIPE = {**_SHARED, "fit": "resnet_rs_fit"}


def _train(inputs: StageInputs) -> System:
    return ResNetRS(inputs.config.model, inputs.config.data, inputs.classes, inputs.root)


def _search(inputs: StageInputs) -> Search:
    return ScalingSearch(inputs.config, len(inputs.classes))


def _scaling(inputs: StageInputs) -> Report:
    return ScalingReport(inputs.config, inputs.classes, inputs.results)


def _trained(inputs: StageInputs, data: DataConfig) -> System:
    folder = inputs.upstream["resnet_rs_train"]
    model = validate(NetConfig, read_model_info(folder)["config"]["model"], f"net of {folder}")
    system = ResNetRS(model, data, inputs.classes)
    system.load_state_dict(load_state(folder))
    return system


def _evaluation(inputs: StageInputs) -> System:
    return _trained(inputs, inputs.config.data)


STAGES = (
    Stage(
        name="resnet_rs_grid",
        kind="fit",
        config=GridConfig,
        build=_train,
        matrix={axis: f"resnet_rs_grid.{axis}" for axis in ("depth", "frames", "size", "width", "seed")},
        shared=_RECIPE,
    ),
    Stage(
        name="resnet_rs_search",
        kind="search",
        config=SearchConfig,
        build=_search,
        shared=_RECIPE,
    ),
    Stage(
        name="resnet_rs_scaling",
        kind="report",
        config=ScalingConfig,
        build=_scaling,
        upstream=("resnet_rs_grid", "resnet_rs_search"),
        shared=_SHARED,
        metric="val/best_top1",
    ),
    Stage(
        name="resnet_rs_train",
        kind="fit",
        config=TrainConfig,
        build=_train,
        shared=_RECIPE,
    ),
    Stage(
        name="resnet_rs_eval",
        kind="evaluate",
        config=EvalConfig,
        build=_evaluation,
        upstream=("resnet_rs_train",),
        subject="resnet_rs_train",
        shared=_SHARED,
        metric="test/top1",
        split="test",
    ),
    Stage(
        name="resnet_rs_views",
        kind="evaluate",
        config=ViewsConfig,
        build=_evaluation,
        upstream=("resnet_rs_train",),
        shared=_SHARED,
        metric="test/top1",
        split="test",
    ),
)
