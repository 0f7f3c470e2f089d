"""`evaluate`: any system on any split, each sample exactly once, metrics and per-sample predictions from one pass."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infra.settings import Settings
from training.core.box_metrics import box_metrics
from training.core.box_results import BoxResults
from training.core.config import DataConfig
from training.core.cost import latency_ms
from training.core.data import ClipLoader, check_coverage, open_loader
from training.core.distributed import Group
from training.core.evaluate_frames import watch_split
from training.core.loop import precision_context
from training.core.metrics import classification_metrics
from training.core.system import RawBatch, System

Array = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """Per-sample results, in order of key."""

    key: Array
    """(N,) str."""
    label: Array
    """(N,) int, or (N,K) multi-hot."""
    scores: Array
    """(N,K) float32 of the main model."""
    arms: Mapping[str, Array]
    """Name → (N,K) scores of the paired comparison models."""
    extras: Mapping[str, Array]
    classes: tuple[str, ...]
    boxes: BoxResults | None = None
    """Of a system that finds objects; `label` and `scores` then say which classes occur in a video, and the largest
    score of a class in it."""
    tables: Mapping[str, Array] = field(default_factory=dict)
    """What the model learned, and pages show (`System.tables`)."""

    def save(self, path: Path) -> None:
        """Write `predictions.npz` atomically; the bytes depend on the content only."""
        arrays = {
            "key": self.key,
            "label": self.label,
            "scores": self.scores,
            "classes": np.asarray(self.classes),
            **{f"arm/{name}": value for name, value in self.arms.items()},
            **{f"extra/{name}": value for name, value in self.extras.items()},
            **{f"table/{name}": value for name, value in self.tables.items()},
            **({} if self.boxes is None else self.boxes.arrays()),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=".npz")
        os.close(handle)
        np.savez_compressed(name, **arrays)  # type: ignore[arg-type]
        Path(name).chmod(0o644)
        os.replace(name, path)

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read `predictions.npz`."""
        with np.load(path) as file:
            arrays = dict(file)
        return cls(
            key=arrays["key"],
            label=arrays["label"],
            scores=arrays["scores"],
            arms={n.removeprefix("arm/"): v for n, v in arrays.items() if n.startswith("arm/")},
            extras={n.removeprefix("extra/"): v for n, v in arrays.items() if n.startswith("extra/")},
            classes=tuple(str(c) for c in arrays["classes"]),
            boxes=BoxResults.of(arrays),
            tables={n.removeprefix("table/"): v for n, v in arrays.items() if n.startswith("table/")},
        )


@dataclass(frozen=True)
class Evaluation:
    """Metrics (`<split>/<name>`) and what they were computed from."""

    metrics: dict[str, float]
    predictions: Predictions

    def save(self, folder: Path) -> None:
        """Write `predictions.npz` and `metrics.json` into a folder, which is made where it is missing."""
        self.predictions.save(folder / "predictions.npz")
        (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=1, sort_keys=True) + "\n")


@torch.inference_mode()
def evaluate(
    system: System,
    loader: ClipLoader,
    *,
    split: str,
    device: torch.device,
    precision: str = "fp32",
    group: Group | None = None,
) -> Evaluation:
    """Run a split through `System.predict_all` and compute the metric contract.

    All ranks return the same result. With sampling `frames`, whole videos go through `System.video_runners` instead.

    Raises:
        CoverageError: a sample was evaluated twice or not at all; the message lists keys.
    """
    group = group or Group()
    was_training = system.training
    system.to(device).eval()
    context = precision_context("bf16" if precision == "bf16" else "fp32", device)
    if getattr(loader, "whole_videos", False):  # loaders of clips need not know of it
        with context():
            predictions = watch_split(system, loader, device=device, group=group)
        predictions = replace(predictions, tables=system.tables())
        system.train(was_training)
        return Evaluation(metrics=_metrics(system, predictions, split, loader), predictions=predictions)
    rows: dict[str, list[Array]] = {}
    keys: list[str] = []
    for raw in loader:
        batch = system.prepare(raw.to(device), train=False)
        with context():
            prediction = system.predict_all(batch)
        valid = raw.valid_B.numpy()
        keys += [key for key, ok in zip(raw.key, valid, strict=True) if ok]
        columns = {
            "label": raw.label_B,
            "scores": prediction.scores_BK.float(),
            **{f"arm/{name}": value.float() for name, value in prediction.arms.items()},
            **{f"extra/{name}": value for name, value in prediction.extras.items()},
        }
        for name, value in columns.items():
            rows.setdefault(name, []).append(value.cpu().numpy()[valid])
    system.train(was_training)

    parts = group.gather((keys, {name: np.concatenate(value) for name, value in rows.items()} if keys else {}))
    keys = [key for part_keys, _ in parts for key in part_keys]
    check_coverage(keys, loader.expected_keys)
    full = [columns for part_keys, columns in parts if part_keys]
    order = np.argsort(np.asarray(keys))
    merged = {name: np.concatenate([columns[name] for columns in full])[order] for name in full[0]}
    predictions = Predictions(
        key=np.asarray(keys)[order],
        label=merged["label"],
        scores=merged["scores"],
        arms={n.removeprefix("arm/"): v for n, v in merged.items() if n.startswith("arm/")},
        extras={n.removeprefix("extra/"): v for n, v in merged.items() if n.startswith("extra/")},
        classes=system.classes,
        tables=system.tables(),
    )
    return Evaluation(metrics=_metrics(system, predictions, split, loader), predictions=predictions)


@torch.inference_mode()
def measure_latency(system: System, clip: RawBatch) -> dict[str, float]:
    """Time one clip from uint8 frames on the device to scores: crop, normalise, predict; decoding not counted.

    Args:
        system: any system, on the device to measure; in eval mode meanwhile.
        clip: a batch of one.

    Returns:
        See `training.core.cost.latency_ms`.
    """
    was_training = system.training
    system.eval()
    clip = clip.to(next(system.parameters()).device)
    times = latency_ms(lambda: system.predict(system.prepare(clip, train=False)))
    system.train(was_training)
    return times


def evaluate_shards(system: System, shards: Path, config: DataConfig, *, split: str, settings: Settings) -> Evaluation:
    """Evaluate a system on one split of a shard folder, in this process and on the device of the settings.

    Raises:
        DataError: incomplete or damaged folder, or one without this split.
        DecodeError: the decoder of the config cannot be used on this machine.
        SampleError: a sample cannot be decoded.
        CoverageError: see `evaluate`.
    """
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_num_threads(settings.train_cpus_per_worker)
    loader = open_loader(shards, config, split=split, train=False, seed=0)
    try:
        return evaluate(system, loader, split=split, device=device)
    finally:
        loader.close()


def _metrics(system: System, predictions: Predictions, split: str, loader: ClipLoader) -> dict[str, float]:
    metrics: dict[str, float] = {}
    if predictions.boxes is None:
        metrics |= classification_metrics(predictions.scores, predictions.label, split)
        for name, scores in predictions.arms.items():
            arm = classification_metrics(scores, predictions.label, split)
            metrics |= {f"{key}_{name}": value for key, value in arm.items() if key.endswith(("/top1", "/map", "/nll"))}
    else:
        metrics |= box_metrics(predictions.boxes, predictions.classes, split)
    for name, row in system.cost().items():
        suffix = "" if name == "main" else f"_{name}"
        metrics[f"{split}/gmac_per_{row.per}{suffix}"] = row.gmac
        metrics[f"{split}/params{suffix}"] = float(row.params)
        metrics |= {f"{split}/{key}{suffix}": value for key, value in row.measured.items()}
    if predictions.boxes is not None:
        # Executed, over all frames: how many of a video are key frames depends on its length.
        frames = float(predictions.extras["frames"].sum())
        for name in predictions.boxes.found:
            suffix = "" if name == "main" else f"_{name}"
            metrics[f"{split}/gmac_per_frame{suffix}"] = float(predictions.extras[f"gmac{suffix}"].sum()) / frames
    elif "gmac" in predictions.extras:
        metrics[f"{split}/gmac_per_video"] = float(predictions.extras["gmac"].mean())
    metrics |= {f"{split}/{key}": value for key, value in system.metrics(predictions).items()}
    metrics[f"{split}/num_evaluated"] = float(len(predictions.key))
    metrics[f"{split}/num_listed"] = float(loader.num_listed)
    return metrics
