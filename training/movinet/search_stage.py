"""The search as a stage: what is asked, and the worker that scores candidates with the supernet it has loaded once."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from training.core.checkpoint import load_state, read_model_info
from training.core.config import ConfigError, validate
from training.core.data import open_loader
from training.core.stage import ScoreInputs, StageInputs
from training.core.system import ClipBatch
from training.core.trials import Trial
from training.movinet.compound import scale_family
from training.movinet.config_search import NasStageConfig, SupernetStageConfig
from training.movinet.nas_search import NasSearch
from training.movinet.scoring import score_child
from training.movinet.space import Genotype, Space
from training.movinet.supernet_system import SupernetSystem
from training.movinet.target import CostModel

SUPERNET = "movinet_supernet"

FOUND, FAMILY = "found.yaml", "family.yaml"
"""Files that a search leaves: the found architecture, and that scaled to other costs."""


class SupernetSearch(NasSearch):
    """A `NasSearch` in the space of a trained supernet, which leaves what it found as entries of the table."""

    def __init__(self, inputs: StageInputs) -> None:
        config: NasStageConfig = inputs.config
        trained = supernet_config(inputs.upstream[SUPERNET], config)
        variant = trained.variant.variant()
        model = CostModel(variant, trained.data.num_frames, trained.data.transform.eval_side, len(inputs.classes))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(config.search(), Space(config.space), model, device)
        self._factors = config.family

    def files(self) -> Mapping[str, str]:
        """Return `found.yaml` and `family.yaml`.

        Raises:
            ConfigError: the found net cannot be scaled to a wanted cost.
        """
        found = self.found()
        assert found is not None  # otherwise all candidates failed, and the search with them
        entry = {
            "architecture": found.architecture,
            "trial": found.trial,
            "value": found.value,
            "reward": found.reward,
            "facts": dict(found.facts),
        }
        return {FOUND: yaml.safe_dump(entry, sort_keys=False), FAMILY: yaml.safe_dump(self._family(), sort_keys=False)}

    def _family(self) -> list[dict[str, object]]:
        found = self.found()
        if not self._factors or found is None:
            return []
        layout = self.space.layout(Genotype.from_json(found.genotype))
        model = self.model
        members = scale_family(
            layout,
            model.variant,
            model.frames,
            model.size,
            self._factors,
            self.config.seed,
            num_classes=model.num_classes,
        )
        return [
            {"factor": m.factor, "gmac": m.gmac, **m.entry(), "coefficients": asdict(m.coefficients)} for m in members
        ]


def supernet_config(folder: Path, config: NasStageConfig) -> SupernetStageConfig:
    """Return the config of a trained supernet, after checking that it is of the search's space.

    Raises:
        ConfigError: it was trained in another space.
    """
    trained = validate(SupernetStageConfig, read_model_info(folder)["config"], f"config of {folder}")
    if trained.space != config.space:
        raise ConfigError(f"{folder} was trained in another space; train it again, or search in its space")
    return trained


class SupernetScorer:
    """Implements `training.core.trials.Scorer`: inherited weights, recalibrated batch norm, one pass over clips.

    Decoded clips stay in memory, at the size of the input.

    Raises:
        ConfigError: a supernet of another space, or hardly any training clips.
    """

    def __init__(self, inputs: ScoreInputs) -> None:
        config: NasStageConfig = inputs.config
        folder = inputs.upstream[SUPERNET]
        trained = supernet_config(folder, config)
        torch.manual_seed(config.seed)
        system = SupernetSystem(trained, trained.data, inputs.classes)
        if config.control != "untrained":
            system.load_state_dict(load_state(folder))
        self._system = system.to(inputs.device).eval()
        self._frames = trained.data.num_frames
        self._device = torch.device(inputs.device)
        self._calibration = self._calibration_clips(inputs, trained, config.calibration_clips)
        self._scored = self._scored_clips(inputs, trained, config.score_clips)

    def score(self, trial: Trial) -> Mapping[str, float]:
        """Return the metrics of a candidate on the validation split."""
        genotype = Genotype.from_json(trial.config["genotype"])
        calibration, scored = self._on_device(self._calibration), self._on_device(self._scored)
        return score_child(self._system.supernet, genotype, calibration, scored, num_frames=self._frames)

    def _calibration_clips(self, inputs: ScoreInputs, trained: SupernetStageConfig, count: int) -> list[ClipBatch]:
        """Decode training clips in a training's order: the listing's would give clips of one class."""
        loader = open_loader(inputs.shards, trained.data, split="train", train=True, seed=inputs.config.seed)
        batches, clips = [], 0
        try:
            for raw in loader:  # endless
                batches.append(self._system.prepare(raw, train=False))
                clips += len(raw.key)
                if clips >= min(count, loader.num_listed):
                    break
        finally:
            loader.close()
        if clips < 2:
            raise ConfigError(f"{inputs.shards}: batch norm needs at least two training clips, there are {clips}")
        return batches

    def _scored_clips(self, inputs: ScoreInputs, trained: SupernetStageConfig, count: int | None) -> list[ClipBatch]:
        """Decode the validation clips, or as many of them, evenly spaced in the listing."""
        loader = open_loader(inputs.shards, trained.data, split="val", train=False, seed=0)
        total = loader.num_listed
        kept = set(range(total)) if count is None else {i * total // count for i in range(min(count, total))}
        batches, place = [], 0
        try:
            for raw in loader:
                batch = self._system.prepare(raw, train=False)
                rows = [row for row, valid in enumerate(raw.valid_B.tolist()) if valid and place + row in kept]
                place += len(raw.key)
                if rows:
                    batches.append(_rows(batch, rows))
        finally:
            loader.close()
        return batches

    def _on_device(self, batches: list[ClipBatch]) -> Iterator[ClipBatch]:
        for batch in batches:
            tensors = {k: v.to(self._device, non_blocking=True) for k, v in vars(batch).items() if k != "key"}
            yield ClipBatch(**tensors, key=batch.key)


def _rows(batch: ClipBatch, rows: list[int]) -> ClipBatch:
    """Return some clips of a batch."""
    index = torch.tensor(rows)
    tensors = {name: value[index] for name, value in vars(batch).items() if name != "key"}
    return ClipBatch(**tensors, key=tuple(batch.key[row] for row in rows))
