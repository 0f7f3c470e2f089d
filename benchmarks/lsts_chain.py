"""All stages of LSTS on packed data, without Ray and MLflow: what the benchmarks and the proof in the tests share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_gpu import run_stage, values_of
from data_specs.schema import read_index
from infra.settings import Settings
from training.core.config import apply_overrides, validate
from training.core.evaluate import Evaluation, evaluate_shards
from training.core.stage import StageInputs
from training.registry import all_stages


@dataclass
class Chain:
    """One data set, one work folder; instances are trained when they are asked for first."""

    shards: Path
    params: dict[str, Any]
    """Sections of a params file."""
    work: Path
    device: str
    cpus: int = 8
    """Threads of torch in training."""
    overrides: list[str] = field(default_factory=list)
    """`<stage>.<field>=<value>`, or `<field>=<value>` for all stages that have the field."""

    def model(self, stage: str, seed: int, **items: Any) -> Path:
        """Return the model folder of an instance of a stage."""
        name = "-".join((stage, *map(str, items.values()), str(seed)))
        folder = self.work / name
        if not folder.exists():
            upstream = {} if stage == "lsts_single" else {"lsts_single": self.model("lsts_single", seed)}
            values = self._values(stage) | items
            values = apply_overrides(values, [f"fit.seed={seed}"])
            classes = list(read_index(self.shards).classes)
            run_stage(stage, values, name, self.shards, classes, folder, upstream, self.cpus)
        return folder / "result" / "model"

    def evaluation(self, method: str, seed: int, **changes: Any) -> Evaluation:
        """Evaluate a method on the test split; `changes` are fields of the stage's config."""
        stage = all_stages()["lsts_eval"]
        config = validate(stage.config, self._values("lsts_eval") | {"method": method} | changes, f"lsts_eval {method}")
        given = {"lsts_train": self.model("lsts_train", seed, method=method)}
        given["lsts_single"] = self.model("lsts_single", seed)
        system = stage.build(StageInputs(config, tuple(read_index(self.shards).classes), given))
        settings = Settings(device=self.device, train_cpus_per_worker=torch.get_num_threads())
        return evaluate_shards(system, self.shards, config.data, split="test", settings=settings)

    def _values(self, stage: str) -> dict[str, Any]:
        own = [item.removeprefix(f"{stage}.") for item in self.overrides if item.startswith(f"{stage}.")]
        general = [item for item in self.overrides if not item.startswith("lsts_")]
        return values_of(stage, self.params, [*general, *own])
