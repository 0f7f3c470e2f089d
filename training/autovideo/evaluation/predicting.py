"""Scores of a model on splits of its data, kept by what they depend on, so that several evaluators share one pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_specs.schema import digest
from training.autovideo.values import Clips, Context, Model, Predictions
from training.core.config import ConfigError, DataConfig, validate


def predict(
    model: Model,
    clips: Clips | None,
    splits: Sequence[str],
    views: Any,
    context: Context,
) -> Predictions:
    """Return a model's scores.

    Args:
        model: any model of any system.
        clips: of other shards than those of the training, or None. How frames are sampled is the model's own business.
        splits: of the data.
        views: None, or something with `clips` and `crops`: views per video, where they differ from those served.
        context: whose workspace keeps the files.

    Raises:
        ConfigError: no shards, or a split that they do not have.
    """
    from training.core.checkpoint import load_model
    from training.core.evaluate import evaluate_shards

    shards = clips.shards if clips is not None and clips.shards is not None else model.shards
    if shards is None:
        raise ConfigError(f"step {context.step!r}: no shards to predict on")
    if shards.classes != model_classes(model.folder):
        raise ConfigError(f"step {context.step!r}: the model's classes are not those of {shards.dataset}")
    if missing := [split for split in splits if split not in shards.fingerprints]:
        raise ConfigError(
            f"step {context.step!r}: {shards.dataset} has no split {missing[0]!r}; it has {sorted(shards.fingerprints)}"
        )
    loaded = load_model(model.folder)
    data = _data(loaded.data_config(), views)
    system = loaded.system
    if views is not None and data != loaded.data_config():
        system = _with_data(loaded, data)
    gmac = system.cost()["main"].gmac
    files: dict[str, Path] = {}
    for split in splits:
        key = digest(
            {"model": model.digest, "shards": shards.fingerprints[split], "data": data.model_dump(mode="json")}
        )
        files[split] = context.settings.root / "predictions" / f"{split}-{key[:16]}.npz"
        if not files[split].exists():
            at_once = data.model_copy(update={"decoder": loaded.decoder})
            evaluation = evaluate_shards(system, shards.folder, at_once, split=split, settings=context.settings)
            evaluation.predictions.save(files[split])
    identity = digest({split: path.name for split, path in files.items()})
    return Predictions(files, shards.classes, {s: shards.fingerprints[s] for s in splits}, identity, gmac)


def model_classes(folder: Path) -> tuple[str, ...]:
    """Return the class names that a model folder has."""
    from training.core.checkpoint import read_model_info

    return tuple(read_model_info(folder)["classes"])


def _data(config: DataConfig, views: Any) -> DataConfig:
    if views is None:
        return config
    values = config.model_dump()
    values["eval_clips"] = views.clips
    values["transform"] = {**values["transform"], "eval_crops": views.crops}
    return validate(DataConfig, values, "views")


def _with_data(loaded: Any, data: DataConfig) -> Any:
    """Build the same system for another data block, and give it the same weights."""
    from training.core.stage import StageInputs
    from training.registry import all_stages

    stage = all_stages()[loaded.stage]
    config = validate(stage.config, {**loaded.config, "data": data.model_dump(mode="json")}, "views")
    system = stage.build(StageInputs(config=config, classes=loaded.classes, upstream={}))
    system.load_state_dict(loaded.system.state_dict())
    return system.eval()
