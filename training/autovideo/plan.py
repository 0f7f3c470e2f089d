"""From a document to the config of the stage that trains its net.

The steps between shards and learner say how clips come about, the learner's settings say how it is trained. Together
they are the config of `autovideo_train`: what the trainer, the registry and a served model know of the pipeline.
"""

import copy
import math
from typing import TYPE_CHECKING, Any

from training.autovideo.clips import ClipPrimitive, Decoder
from training.autovideo.recognisers import Recogniser, RecogniserConfig
from training.autovideo.use import Use
from training.autovideo.values import Clips
from training.core.config import ConfigError

if TYPE_CHECKING:
    from training.autovideo.document import Checked, Document

STAGE = "autovideo_train"


def learners(document: "Document") -> list[str]:
    """Return the ids of the steps that train a recogniser."""
    return [name for name, step in document.checked().steps.items() if issubclass(step.primitive, Recogniser)]


def clips_of(checked: "Checked", step: str) -> Clips:
    """Return the recipe of the clips that a step makes, without shards.

    Raises:
        ConfigError: the step makes no clips, or something that cannot be repeated from its settings alone.
    """
    item = checked.steps[step].make()
    if isinstance(item, Decoder):
        return item.clips(None)
    inputs = checked.graph.inputs(step)
    if "clips" not in inputs:
        raise ConfigError(f"step {step!r} ({item.id}) makes no clips that a stage could repeat")
    (edge,) = inputs["clips"]
    before = clips_of(checked, edge.source)
    if isinstance(item, ClipPrimitive):
        return item.change(before)
    if item.kind in ("augment", "combine"):
        return before.then(Use(use=item.id, settings=item.config.model_dump(mode="json")))
    raise ConfigError(
        f"step {step!r} ({item.id}) is between shards and learner, and is neither transform nor augmenter"
    )


def stage_values(document: "Document", step: str | None = None, *, num_train: int | None = None) -> dict[str, Any]:
    """Return the values of `autovideo_train` for one learner of a document.

    Args:
        document: the pipeline.
        step: the learner; None: the only one.
        num_train: training videos, where the recipe counts epochs.

    Raises:
        ConfigError: no learner or several; epochs without the number of videos; clips that cannot be repeated.
    """
    checked = document.checked()
    step = step or only_learner(document)
    item = checked.steps[step].make()
    if not isinstance(item, Recogniser):
        raise ConfigError(f"step {step!r} ({item.id}) trains no recogniser")
    (edge,) = checked.graph.inputs(step)["clips"]
    clips = clips_of(checked, edge.source)
    settings: RecogniserConfig = item.config
    seed = settings.seed if settings.seed is not None else document.seed
    data = copy.deepcopy(dict(clips.data))
    data["batch_size"] = settings.batch_size
    data["transform"].setdefault("normalise", item.normalise)
    return {
        "data": data,
        "augment": [use.model_dump(mode="json") for use in clips.augment],
        "learner": {"use": item.id, "with": settings.model_dump(mode="json")},
        "fit": _fit(settings, seed, _steps(settings, num_train, step)),
    }


def only_learner(document: "Document") -> str:
    """Return the one recogniser of a document.

    Raises:
        ConfigError: there is none, or there are several.
    """
    found = learners(document)
    if len(found) != 1:
        raise ConfigError(
            f"pipeline {document.name!r} has {len(found)} recognisers ({', '.join(found) or 'none'}); one is needed "
            "here"
        )
    return found[0]


def _steps(settings: RecogniserConfig, num_train: int | None, step: str) -> int:
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None
    if num_train is None:
        raise ConfigError(
            f"step {step!r}: the number of training videos is not known here, so `epochs` cannot be counted: write "
            "`steps`"
        )
    return max(1, math.ceil(settings.epochs * num_train / settings.batch_size))


def _fit(settings: RecogniserConfig, seed: int, steps: int) -> dict[str, Any]:
    rates = {"main": settings.lr}
    if settings.policy == "tsn":
        # Weights as they are, biases twice as fast; what does not decay is in `System.undecayed` (§6 of the README).
        rates = {name: settings.lr * factor for name, factor in TSN_RATES.items()}
    return {
        "steps": steps,
        "seed": seed,
        "optim": {
            "name": settings.optimiser,
            "lr": rates,
            "momentum": settings.momentum,
            "nesterov": settings.nesterov,
            "weight_decay": settings.weight_decay,
            "decay": settings.decay,
            "schedule": settings.schedule,
            "drop_at": list(settings.drop_at),
            "drop": settings.drop,
            "warmup_steps": min(settings.warmup_steps, steps - 1),
        },
        "accumulate": settings.accumulate,
        "clip_grad_norm": settings.clip_grad_norm,
        "ema_decay": settings.ema_decay,
        "ema_warmup": settings.ema_decay is not None,
        "precision": settings.precision,
        "compile": settings.compile,
        "eval_every": settings.eval_every,
        "keep": settings.keep,
        "checkpoint_every": settings.checkpoint_every,
        "log_every": settings.log_every,
    }


TSN_RATES = {"first_conv_weight": 1.0, "first_conv_bias": 2.0, "normal_weight": 1.0, "normal_bias": 2.0, "norm": 1.0}
"""Parameter groups of TSN (§6 of the README) → factor of the learning rate."""
