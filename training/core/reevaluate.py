"""The champion on the challenger's data: what `fovea promote --reevaluate` does before the gate compares.

Models are compared clip by clip on one evaluation set. When the data have grown since the champion was registered,
its stored model predicts the new set as the evaluation stage would. The fresh predictions belong to this comparison:
they are stored in the challenger's run, and what was registered with the champion stays as it is.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data_specs.schema import ShardIndex, read_index
from training.core.checkpoint import load_model
from training.core.evaluate import evaluate_shards
from training.core.gate import Evidence, evidence_from
from training.core.modelcard import Facts, cost_of
from training.core.registration import Registry, RegistryError, Version
from training.core.serving import model_folder
from training.core.tracking import attach_run

ARTIFACTS = "gate/champion_reevaluated"
"""Folder in the challenger's run: `predictions.npz`, `metrics.json`, and `champion.json`, which says whose they are."""


def evaluate_again(
    registry: Registry, champion: Version, registered: Evidence, challenger: Version, facts: Facts
) -> Evidence:
    """Evaluate a champion's stored model on the shards that its challenger was evaluated on.

    The model runs alone, with the settings and classes saved in its folder. That it then predicts what the
    evaluation stage did is what the round trip showed when it was registered.

    Args:
        registry: where both are registered.
        champion: the version to evaluate.
        registered: the evaluation that the champion was registered with.
        challenger: the version whose run gets the fresh predictions.
        facts: the challenger's, which name the data.

    Raises:
        RegistryError: the present shards are not those of the challenger's evaluation, or their classes
            are not the champion's.
        FileNotFoundError: there are no shards.
        CheckpointError: the champion's model cannot be loaded by this version of the code.
        DataError, DecodeError, SampleError, CoverageError: see `evaluate_shards`.
    """
    settings = registry.settings
    shards = settings.shards.absolute() / facts.dataset
    index = read_index(shards)
    _check_data(challenger, facts, index)
    with tempfile.TemporaryDirectory() as temporary:
        model = load_model(model_folder(registry.fetch_model(champion, Path(temporary) / "download")))
        _check_classes(champion, model.classes, index)
        samples = sum(shard.samples for shard in index.of_split(facts.split))
        print(f"evaluating {champion} again, on {samples} clips of {shards} ({facts.split})", file=sys.stderr)
        # The rung that made the pixels of its training, whatever the config said then (D8).
        data = model.data_config().model_copy(update={"decoder": model.decoder})
        evaluation = evaluate_shards(model.system, shards, data, split=facts.split, settings=settings)
        result = Path(temporary) / "result"
        evaluation.save(result)
        source = {
            "champion": str(champion),
            "model_digest": champion.tags.get("model_digest", ""),
            "split": facts.split,
            "eval_data_digest": facts.eval_data_digest,
            "registered_eval_data_digest": registered.data_digest,
        }
        (result / "champion.json").write_text(json.dumps(source, indent=1) + "\n")
        attach_run(settings.tracking_uri, challenger.run_id).log_artifacts(result, ARTIFACTS)
    return evidence_from(
        vars(evaluation.predictions),
        name=str(champion),
        data_digest=facts.eval_data_digest,
        gmac=cost_of(evaluation.metrics, facts.split),
        round_trip=registered.round_trip,
        reevaluated_from=registered.data_digest,
    )


def _check_data(challenger: Version, facts: Facts, index: ShardIndex) -> None:
    present = index.data_digest(facts.split)
    if present != facts.eval_data_digest:
        raise RegistryError(
            f"the champion cannot be evaluated on the data of {challenger}: that was evaluated on data "
            f"{facts.eval_data_digest[:12]} (split {facts.split!r}), the shards of {facts.dataset!r} on this disk are "
            f"{present[:12]}; evaluate and register the challenger on these, or `dvc pull` the ones it was evaluated on"
        )


def _check_classes(champion: Version, classes: tuple[str, ...], index: ShardIndex) -> None:
    if classes == index.classes:
        return
    gone = [name for name in classes if name not in index.classes]
    new = [name for name in index.classes if name not in classes]
    parts = [f"{_some(gone)} only in the model"] * bool(gone) + [f"{_some(new)} only in the shards"] * bool(new)
    raise RegistryError(
        f"{champion} cannot be evaluated on the shards of {index.dataset!r}, their classes differ: "
        + ("; ".join(parts) or f"the model's order is {_some(classes)}, the shards' {_some(index.classes)}")
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
