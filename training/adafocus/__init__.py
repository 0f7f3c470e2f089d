"""AdaFocus V1: look at every frame cheaply, learn where to look closely, classify from both."""

from training.adafocus.config import (
    EvalConfig,
    FinetuneConfig,
    PolicyConfig,
    PretrainConfig,
    WarmupConfig,
)
from training.adafocus.presets import MODELS
from training.adafocus.system import Evaluation, Finetune, FrameClassifier, PatchPolicy, Warmup
from training.core.checkpoint import load_model
from training.core.stage import Stage, StageInputs
from training.core.system import System

__all__ = ["MODELS", "STAGES"]

_SHARED = {"model": "adafocus_model", "data": "adafocus_data"}


def _pretrain(inputs: StageInputs) -> System:
    return FrameClassifier(inputs.config, inputs.classes, inputs.root)


def _warmup(inputs: StageInputs) -> System:
    system = Warmup(inputs.config.model, inputs.config.data, inputs.classes)
    if inputs.upstream:
        system.load_pretrained(inputs.upstream["adafocus_pretrain-glance"], inputs.upstream["adafocus_pretrain-local"])
    system.freeze()
    return system


def _policy(inputs: StageInputs) -> System:
    system = PatchPolicy(inputs.config, inputs.classes)
    if inputs.upstream:
        system.load_upstream(inputs.upstream["adafocus_warmup"])
    system.freeze()
    return system


def _finetune(inputs: StageInputs) -> System:
    system = Finetune(inputs.config, inputs.classes)
    if inputs.upstream:
        system.load_upstream(inputs.upstream["adafocus_policy"])
    system.freeze()
    return system


def _evaluation(inputs: StageInputs) -> System:
    loaded = {name: load_model(path).system for name, path in inputs.upstream.items()}
    return Evaluation(
        loaded["adafocus_finetune"],  # type: ignore[arg-type]
        loaded["adafocus_pretrain-local"],  # type: ignore[arg-type]
        loaded["adafocus_pretrain-glance"],  # type: ignore[arg-type]
        inputs.config.data,
    )


STAGES = (
    Stage(
        name="adafocus_pretrain",
        kind="fit",
        config=PretrainConfig,
        build=_pretrain,
        matrix={"net": ("glance", "local")},
        shared=_SHARED,
    ),
    Stage(
        name="adafocus_warmup",
        kind="fit",
        config=WarmupConfig,
        build=_warmup,
        upstream=("adafocus_pretrain-glance", "adafocus_pretrain-local"),
        shared=_SHARED,
    ),
    Stage(
        name="adafocus_policy",
        kind="fit",
        config=PolicyConfig,
        build=_policy,
        upstream=("adafocus_warmup",),
        shared=_SHARED,
    ),
    Stage(
        name="adafocus_finetune",
        kind="fit",
        config=FinetuneConfig,
        build=_finetune,
        upstream=("adafocus_policy",),
        shared=_SHARED,
    ),
    Stage(
        name="adafocus_eval",
        kind="evaluate",
        config=EvalConfig,
        build=_evaluation,
        upstream=("adafocus_finetune", "adafocus_pretrain-local", "adafocus_pretrain-glance"),
        subject="adafocus_finetune",
        shared=_SHARED,
        metric="test/top1",
        split="test",
    ),
)
