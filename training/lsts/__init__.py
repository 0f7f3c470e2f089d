"""LSTS: video object detection; the whole network runs on key frames, the others look back where they learned to."""

from training.core.checkpoint import load_model, load_state
from training.core.stage import Report, Stage, StageInputs
from training.core.system import System
from training.lsts.config import EvalConfig, ReportConfig, SingleConfig, TrainConfig
from training.lsts.presets import MODELS
from training.lsts.system import SINGLE, Evaluation, LSTSSystem, load_weights

__all__ = ["MODELS", "STAGES"]

_SHARED = {"model": "lsts_model", "data": "lsts_data"}
_METHODS = {"method": "lsts_grid.method"}


def _single(inputs: StageInputs) -> System:
    config = inputs.config
    system = LSTSSystem(config.model, SINGLE, config.data, config.batch_norm, inputs.classes)
    if inputs.root is not None:
        load_weights(system, inputs.root)
    system.freeze()
    return system


def _train(inputs: StageInputs) -> System:
    config = inputs.config
    system = LSTSSystem(config.model, config.chosen, config.data, config.batch_norm, inputs.classes)
    if inputs.upstream:
        prefix = "model."
        state = load_state(inputs.upstream["lsts_single"])
        system.model.load_detector({name.removeprefix(prefix): value for name, value in state.items()})
    system.train_backbone = config.train_backbone
    system.freeze()
    return system


def _evaluation(inputs: StageInputs) -> System:
    trained = load_model(inputs.upstream["lsts_train"]).system
    single = load_model(inputs.upstream["lsts_single"]).system if inputs.config.single else None
    return Evaluation(inputs.config, trained, single, inputs.classes)  # type: ignore[arg-type]


def _report(inputs: StageInputs) -> Report:
    from training.lsts.report.stage import LSTSReport

    return LSTSReport(inputs.config, inputs.classes, inputs.results, inputs.shards)


STAGES = (
    Stage(
        name="lsts_single",
        kind="fit",
        config=SingleConfig,
        build=_single,
        shared=_SHARED,
        metric="val/map50",
    ),
    Stage(
        name="lsts_train",
        kind="fit",
        config=TrainConfig,
        build=_train,
        upstream=("lsts_single",),
        matrix=_METHODS,
        shared=_SHARED | {"methods": "lsts_methods"},
        metric="val/map50",
    ),
    Stage(
        name="lsts_eval",
        kind="evaluate",
        config=EvalConfig,
        build=_evaluation,
        upstream=("lsts_train-{method}", "lsts_single"),
        subject="lsts_train",
        matrix=_METHODS,
        shared=_SHARED | {"methods": "lsts_methods"},
        metric="test/map50",
        split="test",
    ),
    Stage(
        name="lsts_report",
        kind="report",
        config=ReportConfig,
        build=_report,
        upstream=("lsts_eval",),
        shared=_SHARED,
        metric="test/best_map50",
        split="test",
    ),
)
