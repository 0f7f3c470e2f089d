"""`fit`: when batches, optimizer steps, evaluations and checkpoints happen.

What a batch does belongs to the `System`, where processes run to `ray_runner`. This module knows neither
Ray nor MLflow; it gets three hooks. Counts steps, not epochs.
"""

import contextlib
import copy
import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from training.core.checkpoint import Checkpoint, CheckpointError, load_newest, save_checkpoint
from training.core.config import FitConfig
from training.core.distributed import Group
from training.core.failures import TrainingDiverged
from training.core.optim import build_schedule, clip_each, describe_groups
from training.core.system import Loader, Logger, System

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hooks:
    """How a fit touches the world."""

    wrap: Callable[[System], nn.Module] = lambda system: system
    """Wraps the system for data parallelism."""
    log: Logger = lambda step, values: None
    """Receives (step, metrics) on rank 0."""
    checkpoints: Path | None = None
    """Folder for checkpoints; None turns them off (and resuming)."""
    group: Group = field(default_factory=Group)
    """Rank, world and collectives."""


@dataclass(frozen=True)
class FitReport:
    """What a fit did."""

    steps: int
    resumed_from: int
    best: float | None
    weights: dict[str, Tensor]
    """State of the system that becomes the model: last, best or EMA weights, as the config says."""


Evaluate = Callable[[System], dict[str, float]]


class _Context:
    """What the loop lends to `System.update` (see `UpdateContext`)."""

    def __init__(
        self,
        system: nn.Module,
        optimizers: dict[str, torch.optim.Optimizer],
        config: FitConfig,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.system = system
        self._optimizers = optimizers
        self._config = config
        self._precision = precision

    def autocast(self) -> AbstractContextManager[Any]:
        return self._precision()

    def backward(self, loss: Tensor) -> None:
        (loss / self._config.accumulate).backward()  # type: ignore[no-untyped-call]

    def partial(self) -> AbstractContextManager[Any]:
        no_sync = getattr(self.system, "no_sync", None)
        return contextlib.nullcontext() if no_sync is None else no_sync()

    def step(self, name: str = "main") -> dict[str, Tensor]:
        optimizer = self._optimizers[name]
        logs: dict[str, Tensor] = {}
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if self._config.clip_grad_norm is not None:
            logs["grad_norm"] = nn.utils.clip_grad_norm_(params, self._config.clip_grad_norm).detach()
        elif self._config.clip_grad_each is not None:
            logs["grad_norm"] = clip_each(params, self._config.clip_grad_each)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return logs


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of torch's generators at one step of one rank.

    Seeding at every step makes a resumed run draw the same dropout masks as an uninterrupted one
    without storing generator states, and costs microseconds.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest(), "big")


def precision_context(
    precision: Literal["fp32", "bf16"], device: torch.device
) -> Callable[[], AbstractContextManager[Any]]:
    """Return a factory of autocast contexts; bf16 only where the device has it."""
    if precision == "fp32":
        return contextlib.nullcontext
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        log.warning("precision bf16 asked for, but %s has no bf16; training in fp32", torch.cuda.get_device_name())
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def fit(
    system: System,
    loader: Loader,
    config: FitConfig,
    *,
    device: torch.device,
    evaluate: Evaluate | None = None,
    metric: str = "val/top1",
    mode: Literal["max", "min"] = "max",
    hooks: Hooks | None = None,
) -> FitReport:
    """Train a system for `config.steps` optimizer steps, from its newest checkpoint if there is one.

    Args:
        system: on any device; moved to `device`.
        loader: endless batches of this rank, `batch_size / accumulate / world` clips each.
        evaluate: runs the validation split on a system and returns metrics (the same on all ranks).
        metric: key of the primary metric, for `keep: best`.
        mode: whether the primary metric is better when larger.

    Raises:
        TrainingDiverged: NaN or infinite loss.
        CheckpointError: a checkpoint of another system or loader.
    """
    hooks = hooks or Hooks()
    group = hooks.group
    system.to(device)
    _channels_last(system)
    optimizers = system.optimizers(config.optim)
    settings = system.optim_configs(config.optim)
    schedules = {
        name: build_schedule(opt, settings.get(name, config.optim), config.steps) for name, opt in optimizers.items()
    }
    ema = MovingAverage(system, config.ema_decay, warmup=config.ema_warmup) if config.ema_decay is not None else None
    best: float | None = None
    best_weights: dict[str, Tensor] | None = None
    start = 0
    checkpoint = load_newest(hooks.checkpoints) if hooks.checkpoints is not None else None
    if checkpoint is not None:
        try:
            _restore(checkpoint, system, optimizers, schedules, ema)
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"checkpoint in {hooks.checkpoints} does not fit this stage: {error}") from error
        loader.load_state_dict(checkpoint.loader)
        start, best, best_weights = checkpoint.step, checkpoint.best, checkpoint.state["best_weights"]
        log.info("resumed at step %d of %d", start, config.steps)
    elif group.rank == 0:
        for row in (row for opt in optimizers.values() for row in describe_groups(opt)):
            log.info("parameter group %s", row)

    if config.compile:
        for network in system.networks():
            network.compile()
    wrapped = hooks.wrap(system)
    context = _Context(wrapped, optimizers, config, precision_context(config.precision, device))
    batches = iter(loader)
    window = _Window(device)
    sign = 1 if mode == "max" else -1
    step = start
    while step < config.steps:
        system.train()
        torch.manual_seed(step_seed(config.seed, step, group.rank))
        system.on_step(step, config.steps)
        logs = _one_step(system, context, batches, config, device, window)
        _advance(schedules, alternating=system.active is not None)
        if ema is not None:
            ema.update(system)
        step += 1
        window.add(logs)
        due = _Due(step, config)
        if due.log or due.checkpoint or due.evaluation:
            # The only host sync of the loop; before any checkpoint, so a diverged state is never saved.
            values = window.read(group)
            if not values.pop("finite"):
                raise TrainingDiverged(
                    f"loss became NaN or infinite between step {step - window.last_count} and {step}; "
                    "lower the learning rate or set clip_grad_norm or clip_grad_each"
                )
            rates = {f"lr/{g.get('name', name)}": g["lr"] for name, o in optimizers.items() for g in o.param_groups}
            hooks.log(step, {**{f"train/{k}": v for k, v in values.items()}, **rates})
        if due.evaluation and evaluate is not None:
            chosen = ema.module if ema is not None else system
            metrics = evaluate(chosen)
            hooks.log(step, metrics)
            value = metrics[metric]
            if best is None or sign * value > sign * best:
                best = value
                if config.keep == "best":
                    best_weights = _copy_state(chosen)
        if due.checkpoint and hooks.checkpoints is not None and group.rank == 0:
            state = _state(system, optimizers, schedules, ema, best_weights)
            save_checkpoint(hooks.checkpoints, Checkpoint(step, state, loader.state_dict(), best))
    group.barrier()
    final = ema.module if ema is not None else system
    weights = best_weights if config.keep == "best" and best_weights is not None else _copy_state(final)
    return FitReport(steps=step, resumed_from=start, best=best, weights=weights)


def _one_step(
    system: System,
    context: _Context,
    batches: Iterator[Any],
    config: FitConfig,
    device: torch.device,
    window: "_Window",
) -> dict[str, Tensor]:
    logs: dict[str, Tensor] = {}
    for micro in range(config.accumulate):
        started = time.perf_counter()
        raw = next(batches)
        window.data_s += time.perf_counter() - started
        window.clips += len(raw.key)
        batch = system.prepare(raw.to(device), train=True)
        last = micro == config.accumulate - 1
        with contextlib.nullcontext() if last else context.partial():
            part = system.update(batch, context)
        for name, value in part.items():
            logs[name] = logs.get(name, 0) + value.float() / config.accumulate
    if not system.owns_step:
        for name in context._optimizers if system.active is None else system.active:
            logs.update(context.step(name))
    return logs


def _advance(schedules: Mapping[str, torch.optim.lr_scheduler.LRScheduler], *, alternating: bool) -> None:
    """Move every schedule on by a step: also that of an optimizer that is not in turn and has made no step yet."""
    with warnings.catch_warnings() if alternating else contextlib.nullcontext():
        if alternating:
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        for schedule in schedules.values():
            schedule.step()


@dataclass(frozen=True)
class _Due:
    step: int
    config: FitConfig

    @property
    def _last(self) -> bool:
        return self.step == self.config.steps

    @property
    def log(self) -> bool:
        return self._last or self.step % self.config.log_every == 0

    @property
    def evaluation(self) -> bool:
        return self._last or (self.config.eval_every > 0 and self.step % self.config.eval_every == 0)

    @property
    def checkpoint(self) -> bool:
        return self._last or self.step % self.config.checkpoint_every == 0


class _Window:
    """Sums of logs since the last read, kept on the device so that steps never wait for the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self.data_s = 0.0
        self.clips = 0
        self._started = time.perf_counter()

    def add(self, logs: dict[str, Tensor]) -> None:
        self._count += 1
        for name, value in logs.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self._device)) + value.detach().float()

    def read(self, group: Group) -> dict[str, float]:
        """Return means over steps and ranks, throughput over all ranks, and whether the loss was finite."""
        self.last_count = self._count
        names = list(self._sums)
        stacked = torch.stack([self._sums[name] for name in names]) / max(self._count, 1)
        means = group.mean(stacked).tolist()
        elapsed = time.perf_counter() - self._started
        values = dict(zip(names, means, strict=True))
        values["finite"] = float(torch.isfinite(torch.tensor(values["loss"])).item())
        values["clips_per_s"] = self.clips * group.world / max(elapsed, 1e-9)
        values["data_wait_share"] = self.data_s / max(elapsed, 1e-9)
        self._reset()
        return values


def _channels_last(system: System) -> None:
    """Put the weights of 2-D and 3-D convolutions into channels-last memory, which their fast kernels want."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in system.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])


class MovingAverage:
    """Exponential moving average of a system's weights and buffers: batch norm statistics are averaged, not copied.

    Starts as a copy of the system after the first step. `torch.optim.swa_utils.AveragedModel` computes the same, but
    its counter makes every step wait for the device.
    """

    def __init__(self, system: System, decay: float, *, warmup: bool = False) -> None:
        self.module = copy.deepcopy(system)
        self.module.requires_grad_(False)
        self.decay = decay
        self.warmup = warmup
        self.steps = 0

    @torch.no_grad()
    def update(self, system: System) -> None:
        """Move towards the system's present weights by 1 - decay."""
        share = 1.0
        if self.steps > 0:
            share = 1 - (min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warmup else self.decay)
        floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        for mean, value in zip(_tensors(self.module), _tensors(system), strict=True):
            if mean.is_floating_point() and share < 1:
                floats[0].append(mean)
                floats[1].append(value)
            else:
                mean.copy_(value)
        if floats[0]:
            torch._foreach_lerp_(*floats, share)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return averages and step count."""
        return {"steps": self.steps, "module": self.module.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.module.load_state_dict(state["module"])
        self.steps = int(state["steps"])


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _copy_state(system: System) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in system.export_state().items()}


def _state(
    system: System,
    optimizers: dict[str, torch.optim.Optimizer],
    schedules: Mapping[str, torch.optim.lr_scheduler.LRScheduler],
    ema: MovingAverage | None,
    best_weights: dict[str, Tensor] | None,
) -> dict[str, Any]:
    return {
        "system": system.state_dict(),
        "optimizers": {name: opt.state_dict() for name, opt in optimizers.items()},
        "schedules": {name: copy.deepcopy(s.state_dict()) for name, s in schedules.items()},
        "ema": ema.state_dict() if ema is not None else None,
        "best_weights": best_weights,
    }


def _restore(
    checkpoint: Checkpoint,
    system: System,
    optimizers: dict[str, torch.optim.Optimizer],
    schedules: Mapping[str, torch.optim.lr_scheduler.LRScheduler],
    ema: MovingAverage | None,
) -> None:
    state = checkpoint.state
    system.load_state_dict(state["system"])
    for name, opt in optimizers.items():
        opt.load_state_dict(state["optimizers"][name])
    for name, schedule in schedules.items():
        schedule.load_state_dict(state["schedules"][name])
    if ema is not None:
        ema.load_state_dict(state["ema"])
