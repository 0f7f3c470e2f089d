"""Batch-norm statistics of imported networks whose norms were folded into the convolutions."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def calibrate_norms(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Give each batch norm the statistics of its real input, without changing what the network computes.

    A folded norm only adds a bias: mean 0, variance 1. In train mode the batch's own mean and variance take
    over and the network's function jumps. Here mean and variance are measured over `batches` in eval mode and
    scale and shift are solved for, so that eval mode stays the same and train mode starts close to it.

    Args:
        network: changed in place; its mode is restored.
        batches: inputs of the network, float and normalised.

    Returns:
        Number of norms calibrated.

    Raises:
        ValueError: no batches, or a norm without scale and shift or without running statistics.
    """
    norms = {name: m for name, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for name, norm in norms.items():
        if not norm.affine or norm.running_mean is None:
            raise ValueError(f"norm {name!r} has no scale and shift, or no running statistics")
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def collect(name: str, x: Tensor) -> None:
        values = x.detach().double().transpose(0, 1).flatten(1)
        before = sums.get(name, (0.0, 0.0, 0))
        sums[name] = (before[0] + values.sum(1), before[1] + values.square().sum(1), before[2] + values.shape[1])

    hooks = [
        norm.register_forward_pre_hook(lambda _module, args, name=name: collect(name, args[0]))
        for name, norm in norms.items()
    ]
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        with torch.no_grad():
            for batch in batches:
                network(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if not sums:
        raise ValueError("no batches to calibrate with")
    for name, (total, squares, count) in sums.items():
        _set_statistics(norms[name], total / count, (squares / count - (total / count).square()).clamp_min(0))
    return len(sums)


@torch.no_grad()
def _set_statistics(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - scale * norm.running_mean.double()
    # scale·x + shift, written as weight·(x - mean)/sqrt(variance + eps) + bias with the new statistics.
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.bias.copy_(shift + scale * mean)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
