"""Checkpoints of running fits and folders of finished models: atomic, checksummed, no pickled code.

A checkpoint is a folder `step-<n>` with `state.pt` (tensors and plain values, read with
`weights_only=True`) and `meta.json` (step, sha256, loader state, best value). A model is a folder with
`model.safetensors` and `model.json`. Both are written to a temporary sibling and renamed, so a folder that
exists under its name is complete; a checkpoint whose checksum does not match is skipped with a warning.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_specs.files import sha256_of
from training.core.config import ConfigError, DataConfig, validate
from training.core.stage import StageInputs
from training.core.system import System

log = logging.getLogger(__name__)

MODEL_FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint or model folder cannot be used; the message says which file and why."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a fit needs to go on as if it had never stopped."""

    step: int
    state: dict[str, Any]
    """Nested dicts of tensors and plain values: system, optimizers, schedules, ema, best weights."""
    loader: dict[str, Any]
    best: float | None
    """Best value of the primary metric so far."""


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename a complete folder into place, over an older one if there is one."""
    if final.exists():
        old = final.with_name(f".old-{final.name}-{os.getpid()}")
        final.rename(old)
        temporary.rename(final)
        shutil.rmtree(old)
    else:
        temporary.rename(final)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write `folder/step-<n>` atomically and remove all but the newest `keep` checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder))
    torch.save(checkpoint.state, temporary / "state.pt")
    meta = {
        "step": checkpoint.step,
        "sha256": sha256_of(temporary / "state.pt"),
        "loader": checkpoint.loader,
        "best": checkpoint.best,
    }
    _write_synced(temporary / "meta.json", json.dumps(meta))
    final = folder / f"step-{checkpoint.step:08d}"
    replace_folder(temporary, final)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    for leftover in folder.glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return final


def load_newest(folder: Path, map_location: str | torch.device = "cpu") -> Checkpoint | None:
    """Return the newest checkpoint whose checksum holds, or None.

    A damaged one (power cut while the disk wrote) is reported and the one before it is used.
    """
    for path in reversed(_steps(folder)):
        try:
            meta = json.loads((path / "meta.json").read_text())
            if sha256_of(path / "state.pt") != meta["sha256"]:
                raise CheckpointError("checksum of state.pt does not match meta.json")
            state = torch.load(path / "state.pt", map_location=map_location, weights_only=True)
        except (OSError, ValueError, KeyError, CheckpointError) as error:
            log.warning("checkpoint %s is damaged (%s); trying the one before it", path, error)
            continue
        return Checkpoint(step=meta["step"], state=state, loader=meta["loader"], best=meta["best"])
    return None


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


# --- finished models --------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedModel:
    """A finished model, ready to predict."""

    system: System
    stage: str
    dataset: str
    config: dict[str, Any]
    classes: tuple[str, ...]
    decoder: str
    """Rung of the decoder ladder that the model was trained with (D8)."""

    def data_config(self) -> DataConfig:
        """Return how clips are sampled and transformed for this model."""
        return validate(DataConfig, self.config["data"], f"data block of model of stage {self.stage}")


def save_model(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    stage: str,
    dataset: str,
    config: Mapping[str, Any],
    classes: tuple[str, ...],
    decoder: str,
) -> None:
    """Write a model folder atomically (`model.safetensors`, `model.json`)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    # One storage per tensor: safetensors refuses shared memory (views of one buffer, tied weights).
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, temporary / "model.safetensors")
    meta = {
        "format": MODEL_FORMAT,
        "stage": stage,
        "dataset": dataset,
        "config": dict(config),
        "classes": list(classes),
        "decoder": decoder,
        "sha256": sha256_of(temporary / "model.safetensors"),
    }
    _write_synced(temporary / "model.json", json.dumps(meta, indent=1, sort_keys=True))
    temporary.chmod(0o755)
    replace_folder(temporary, folder)


def read_model_info(folder: Path) -> dict[str, Any]:
    """Read and check `model.json` of a model folder.

    Raises:
        CheckpointError: not a model folder, another format, or damaged weights.
    """
    path = folder / "model.json"
    if not path.exists():
        raise CheckpointError(f"{folder} is not a model folder: {path.name} is missing")
    info: dict[str, Any] = json.loads(path.read_text())
    if info.get("format") != MODEL_FORMAT:
        raise CheckpointError(f"{path}: model format {info.get('format')!r} is not the supported {MODEL_FORMAT}")
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise CheckpointError(f"{weights} is missing; pull it (`dvc pull`) or train the stage again")
    if sha256_of(weights) != info["sha256"]:
        raise CheckpointError(f"{weights} does not match the checksum in {path}; the file is damaged or was edited")
    return info


def load_state(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a model folder, after checking it."""
    read_model_info(folder)
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors", device=device)
    return tensors


def load_model(folder: Path, device: str = "cpu") -> LoadedModel:
    """Build the system of a model folder, load its weights strictly and put it in eval mode.

    Raises:
        CheckpointError: see `read_model_info`; or the weights do not fit the system of this version.
    """
    from training.registry import all_stages

    info = read_model_info(folder)
    stages = all_stages()
    if info["stage"] not in stages:
        raise CheckpointError(f"{folder}: unknown stage {info['stage']!r}; known: {', '.join(stages)}")
    stage = stages[info["stage"]]
    try:
        config = validate(stage.config, info["config"], f"config of model {folder}")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    classes = tuple(info["classes"])
    system = stage.build(StageInputs(config=config, classes=classes, upstream={}))
    missing, unexpected = system.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{folder}: weights do not fit stage {info['stage']}: missing {sorted(missing)[:5]}, "
            f"unexpected {sorted(unexpected)[:5]}"
        )
    system.to(device).eval()
    return LoadedModel(
        system=system,
        stage=info["stage"],
        dataset=info["dataset"],
        config=info["config"],
        classes=classes,
        decoder=info["decoder"],
    )


def model_digest(folder: Path) -> str:
    """Return the identity of a model: sha256 over its files' names and checksums."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        total.update(f"{path.name}:{sha256_of(path)}\n".encode())
    return total.hexdigest()
