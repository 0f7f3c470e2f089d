"""Optimizers and learning-rate schedules from configuration.

A group whose learning rate is silently zero, or a schedule that reaches only some of the groups, trains a
model that looks normal and learns nothing. So groups and rates must name each other exactly, the schedule
multiplies every group, and `describe_groups` is printed when a run starts.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from training.core.config import ConfigError, OptimConfig
from training.core.rmsprop import RMSProp


class GroupSummary(NamedTuple):
    """One parameter group of an optimizer."""

    name: str
    lr: float
    """Current learning rate."""
    tensors: int
    parameters: int


def build_optimizer(
    groups: dict[str, list[nn.Parameter]],
    config: OptimConfig,
    undecayed: Iterable[nn.Parameter] = (),
    *,
    unused: bool = False,
) -> torch.optim.Optimizer:
    """Build the optimizer; each group's dict carries its `name` and its own base rate `initial_lr`.

    Args:
        groups: trainable parameters by group name.
        config: its `lr` names the same groups.
        undecayed: parameters without weight decay, beside those that `config.decay` leaves out (`System.undecayed`);
            frozen ones are passed over.
        unused: whether a step may leave parameters without gradients (`System.unused_parameters`).

    Raises:
        ConfigError: groups and `config.lr` do not name each other, or a rate is not a number ≥ 0.
        ValueError: a group without parameters, with a frozen one, a parameter in two places, or an undecayed
            parameter that is trained and in no group.
    """
    without_rate = sorted(set(groups) - set(config.lr))
    without_group = sorted(set(config.lr) - set(groups))
    if without_rate or without_group:
        problems = []
        if without_rate:
            problems.append(f"no learning rate for group {', '.join(map(repr, without_rate))}")
        if without_group:
            problems.append(f"no such group: {', '.join(map(repr, without_group))}")
        raise ConfigError(f"optim.lr: {'; '.join(problems)} (the system's groups: {', '.join(groups)})")
    owner: dict[int, str] = {}
    for name, parameters in groups.items():
        rate = config.lr[name]
        if not math.isfinite(rate) or rate < 0:
            raise ConfigError(f"optim.lr.{name} must be a number ≥ 0, got {rate}")
        if not parameters:
            raise ValueError(f"parameter group {name!r} is empty: its learning rate would train nothing")
        for parameter in parameters:
            if not parameter.requires_grad:
                raise ValueError(
                    f"parameter group {name!r} holds a frozen parameter of shape {tuple(parameter.shape)}; "
                    f"leave frozen parameters out of parameter_groups"
                )
            if id(parameter) in owner:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} is in two groups, "
                    f"{owner[id(parameter)]!r} and {name!r}"
                )
            owner[id(parameter)] = name
    exempt = {id(parameter): parameter for parameter in undecayed if parameter.requires_grad}
    for key, parameter in exempt.items():
        if key not in owner:
            raise ValueError(f"an undecayed parameter of shape {tuple(parameter.shape)} is in no parameter group")
    described: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        # Biases and the scales of normalisation are the parameters with one axis.
        flat = [p for p in parameters if config.decay == "kernels" and p.dim() <= 1]
        taken = {id(p) for p in flat}
        spared = [p for p in parameters if id(p) in exempt and id(p) not in taken]
        decayed = [p for p in parameters if id(p) not in exempt and id(p) not in taken]
        for suffix, members in (("", decayed), ("/1d", flat), ("/undecayed", spared)):
            if members:
                part: dict[str, Any] = {"params": members, "lr": config.lr[name], "name": f"{name}{suffix}"}
                described.append(part if not suffix else {**part, "weight_decay": 0.0})
    everything = [parameter for parameters in groups.values() for parameter in parameters]
    options: dict[str, Any] = {"weight_decay": config.weight_decay}
    if config.name == "rmsprop":
        assert config.rho is not None  # both by the config's validator
        assert config.eps is not None
        return RMSProp(
            described,
            lr=0.0,  # each group has its own
            rho=config.rho,
            eps=config.eps,
            momentum=config.momentum,
            square_avg_init=config.square_avg_init,
            **options,
        )
    # One kernel for all tensors; elsewhere torch chooses between foreach and a loop itself. The kernel of SGD fails
    # when parameters get their first gradients, and so their momentum, in different steps.
    if not unused and all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in everything):
        options["fused"] = True
    if config.name == "sgd":
        return torch.optim.SGD(described, momentum=config.momentum, nesterov=config.nesterov, **options)
    if config.name == "adam":
        return torch.optim.Adam(described, **options)
    return torch.optim.AdamW(described, **options)


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale each parameter's gradient, in place, to a norm of at most `limit` by itself (Keras' `clipnorm`).

    Nothing waits for the device. A weight decay that the optimizer adds is not part of what is clipped.

    Args:
        parameters: on one device; those without a gradient are passed over.
        limit: largest norm of one gradient.

    Returns:
        Norm of all gradients together before clipping, a scalar on the device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch.stack(torch._foreach_norm(gradients))
    torch._foreach_mul_(gradients, (limit / norms.clamp(min=limit)).unbind())
    total: Tensor = torch.linalg.vector_norm(norms)
    return total


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig, steps: int) -> LambdaLR:
    """Build the schedule over `steps` optimizer steps; call its `step()` after each of them.

    Warm-up: step s of W trains with lr · (s+1)/W. Then, with S = steps - W and s counted from the end of the
    warm-up, `cosine` is ½·lr·(1 + cos(π·s/S)), reaching 0 after the last step; `constant` stays at lr; `steps` is lr
    times `drop` for each share of `drop_at` of all steps, warm-up included, that is done.
    The state dict holds numbers only and resumes exactly.

    Raises:
        ConfigError: steps below 1, or a warm-up that leaves no step after it.
    """
    warmup = config.warmup_steps
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    if warmup >= steps and warmup > 0:
        raise ConfigError(f"optim.warmup_steps is {warmup}, but the stage has only {steps} steps")
    return LambdaLR(optimizer, _factor(config, warmup, steps))


def _factor(config: OptimConfig, warmup: int, steps: int) -> Callable[[int], float]:
    drops = [round(share * steps) for share in config.drop_at]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "steps":
            assert config.drop is not None  # by the config's validator
            return float(config.drop ** sum(step >= drop for drop in drops))
        done = min((step - warmup) / (steps - warmup), 1.0)
        return 0.5 * (1.0 + math.cos(math.pi * done))

    return factor


def describe_groups(optimizer: torch.optim.Optimizer) -> list[GroupSummary]:
    """Return name, rate and size of each group, to be printed when a run starts."""
    return [
        GroupSummary(
            name=str(group.get("name", index)),
            lr=float(group["lr"]),
            tensors=len(group["params"]),
            parameters=sum(parameter.numel() for parameter in group["params"]),
        )
        for index, group in enumerate(optimizer.param_groups)
    ]
