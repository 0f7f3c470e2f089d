"""What the benchmarks of systems on one GPU share: batches, timing without waits, and stages without Ray and MLflow."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from training.core.config import FitConfig, OptimConfig, apply_overrides, validate
from training.core.loop import MovingAverage, _channels_last, _Context, precision_context
from training.core.ray_runner import FitJob, source_digest, train_worker
from training.core.system import RawBatch, System
from training.registry import all_stages


def fit_config(*, compiled: bool, **optim: Any) -> FitConfig:
    """Return a recipe in bf16 with a constant rate; `optim` are fields of `OptimConfig`."""
    values: dict[str, Any] = {"schedule": "constant", "warmup_steps": 0, **optim}
    return FitConfig(
        steps=100, seed=0, optim=OptimConfig(**values), clip_grad_norm=5.0, ema_decay=0.9999, precision="bf16",
        compile=compiled, eval_every=0, keep="last",
    )  # fmt: skip


def raw_batch(batch: int, frames: int, side: int, device: torch.device, classes: int) -> RawBatch:
    """Clips of noise over a brightness that is the class, as decoded frames."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, classes, (batch,), generator=generator)
    pixels = torch.randint(0, 60, (batch, frames, side, side, 3), generator=generator, dtype=torch.uint8)
    pixels += (label % 190).to(torch.uint8)[:, None, None, None, None]
    return RawBatch(
        pixels, torch.full((batch, 2), side), label, tuple(map(str, range(batch))), torch.arange(batch),
        torch.ones(batch, dtype=torch.bool),
    ).to(device)  # fmt: skip


class Trainer:
    """The step that `training.core.loop` makes: prepare, update, optimizer, moving average."""

    def __init__(self, system: System, config: FitConfig, raw: RawBatch) -> None:
        device = raw.frames_BTHWC.device
        self.system, self.raw, self.count = system.to(device), raw, 0
        _channels_last(system)
        optimizers = system.optimizers(config.optim)
        self._names = tuple(optimizers)
        self._average = MovingAverage(system, 0.9999)
        if config.compile:
            for network in system.networks():
                network.compile()
        self._context = _Context(system, optimizers, config, precision_context("bf16", device))
        system.train()

    def step(self) -> torch.Tensor:
        """Make a step; return its loss."""
        self.system.on_step(self.count, 100)
        batch = self.system.prepare(self.raw, train=True)
        logs = self.system.update(batch, self._context)
        for name in self._names if self.system.active is None else self.system.active:
            self._context.step(name)
        self._average.update(self.system)
        self.count += 1
        return logs["loss"]


def timed(call: Callable[[], torch.Tensor], repeats: int) -> tuple[float, torch.Tensor]:
    """Return seconds per call and the last result; a call that waits for the device is an error."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(repeats):
            result = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats, result


def values_of(stage: str, params: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a stage's values from a params file; overrides of fields that it does not have are left out."""
    values = dict(params[stage]) | {f: params[s] for f, s in all_stages()[stage].shared.items()}
    return apply_overrides(values, [item for item in overrides if item.split(".")[0] in values])


def run_stage(
    stage: str,
    values: dict[str, Any],
    name: str,
    shards: Path,
    classes: list[str],
    work: Path,
    upstream: dict[str, Path] | None = None,
    cpus: int = 8,
) -> None:
    """Train one stage in this process and print how it went."""
    work.mkdir()
    validate(all_stages()[stage].config, values, name)
    losses: list[tuple[int, dict[str, float]]] = []
    paths = {key: str(path) for key, path in (upstream or {}).items()}
    job = FitJob(
        stage=stage, dataset="bench", name=name, config=values, classes=classes, root=str(Path.cwd()),
        shards=str(shards.absolute()), upstream=paths, work=str(work), tracking=None, source_digest=source_digest(),
        cpus=cpus, allow_decoder_change=False,
    )  # fmt: skip
    started = time.perf_counter()
    train_worker(asdict(job), lambda step, metrics: losses.append((step, metrics)))
    if (work / "fatal.txt").exists():
        raise RuntimeError((work / "fatal.txt").read_text())
    metric = all_stages()[stage].metric
    shown = ", ".join(
        f"step {step}: {metrics[metric]:.3f}" + (f" (nll {metrics['val/nll']:.2f})" if "val/nll" in metrics else "")
        for step, metrics in losses
    )
    print(f"{name:<44} {metric}: {shown}; {time.perf_counter() - started:.1f} s", flush=True)
