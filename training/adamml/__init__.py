"""AdaMML: choose per segment which modalities are worth their cost, and compute only those."""

from training.adamml.config import (
    EvalConfig,
    FinetuneConfig,
    JointConfig,
    Modality,
    ReportConfig,
    UnimodalConfig,
    WarmupConfig,
)
from training.adamml.evaluation import Evaluation
from training.adamml.presets import MODELS
from training.adamml.rounds import Finetune, Joint, Warmup
from training.adamml.system import Unimodal
from training.core.checkpoint import load_model
from training.core.config import ConfigError
from training.core.stage import Report, Stage, StageInputs
from training.core.system import System

__all__ = ["MODELS", "STAGES"]

_SHARED = {"model": "adamml_model", "data": "adamml_data"}
_PRICES = {"price": "adamml_grid.price"}


def _unimodal(inputs: StageInputs) -> System:
    return Unimodal(inputs.config, inputs.classes, inputs.root)


def _warmup(inputs: StageInputs) -> System:
    system = Warmup(inputs.config, inputs.classes)
    if inputs.upstream:
        names = inputs.config.model.modalities
        system.load_unimodal({name: inputs.upstream[_trained(inputs, name)] for name in names})
    if inputs.root is not None:
        system.load_policy_weights(inputs.root)
    system.freeze()
    return system


def _trained(inputs: StageInputs, modality: Modality) -> str:
    """Return the upstream that trained a modality's sub-network.

    Raises:
        ConfigError: none did.
    """
    key = f"adamml_unimodal-{modality}"
    if key not in inputs.upstream:
        raise ConfigError(
            f"model.modalities has {modality!r}, which `adamml_grid.modality` of params.yaml lacks: no net of it "
            "is trained; add it there"
        )
    return key


def _joint(inputs: StageInputs) -> System:
    system = Joint(inputs.config, inputs.classes)
    if inputs.upstream:
        system.load_upstream(inputs.upstream["adamml_warmup"])
    return system


def _finetune(inputs: StageInputs) -> System:
    system = Finetune(inputs.config, inputs.classes)
    if inputs.upstream:
        system.load_upstream(inputs.upstream["adamml_joint"])
    system.freeze()
    return system


def _evaluation(inputs: StageInputs) -> System:
    names = inputs.config.model.modalities
    unimodal = {name: load_model(inputs.upstream[_trained(inputs, name)]).system for name in names}
    return Evaluation(
        load_model(inputs.upstream["adamml_finetune"]).system,  # type: ignore[arg-type]
        unimodal,  # type: ignore[arg-type]
        inputs.config,
    )


def _report(inputs: StageInputs) -> Report:
    from training.adamml.report.stage import AdaMMLReport

    return AdaMMLReport(inputs.config, inputs.classes, inputs.results)


STAGES = (
    Stage(
        name="adamml_unimodal",
        kind="fit",
        config=UnimodalConfig,
        build=_unimodal,
        matrix={"modality": "adamml_grid.modality"},
        shared=_SHARED,
    ),
    Stage(
        name="adamml_warmup",
        kind="fit",
        config=WarmupConfig,
        build=_warmup,
        upstream=("adamml_unimodal-*",),
        shared=_SHARED,
    ),
    Stage(
        name="adamml_joint",
        kind="fit",
        config=JointConfig,
        build=_joint,
        upstream=("adamml_warmup",),
        matrix=_PRICES,
        shared=_SHARED,
        metric="val/choice",
    ),
    Stage(
        name="adamml_finetune",
        kind="fit",
        config=FinetuneConfig,
        build=_finetune,
        upstream=("adamml_joint-{price}",),
        matrix=_PRICES,
        shared=_SHARED,
    ),
    Stage(
        name="adamml_eval",
        kind="evaluate",
        config=EvalConfig,
        build=_evaluation,
        upstream=("adamml_finetune-{price}", "adamml_unimodal-*"),
        subject="adamml_finetune",
        matrix=_PRICES,
        shared=_SHARED,
        metric="test/top1",
        split="test",
    ),
    Stage(
        name="adamml_report",
        kind="report",
        config=ReportConfig,
        build=_report,
        upstream=("adamml_eval",),
        shared=_SHARED,
        metric="test/best_top1",
        split="test",
    ),
)
