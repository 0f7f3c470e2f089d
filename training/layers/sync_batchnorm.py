"""Batch normalisation over the global batch, on CPU as on GPU.

`torch.nn.SyncBatchNorm` refuses CPU tensors, so runs with several CPU workers could not be compared with
one-worker runs (D11). Statistics are summed over ranks with an all-reduce that gradients pass through.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


def _forward(self: _BatchNorm, x: Tensor) -> Tensor:
    if not (self.training and dist.is_available() and dist.is_initialized()):
        return _BatchNorm.forward(self, x)
    axes = [0, *range(2, x.dim())]
    wide = x.float()
    count = torch.tensor([wide.numel() / wide.shape[1]], device=x.device)
    sums = torch.cat([wide.sum(axes), (wide * wide).sum(axes), count])
    sums = all_reduce(sums)  # type: ignore[no-untyped-call]
    channels = x.shape[1]
    total = sums[-1]
    mean = sums[:channels] / total
    var = sums[channels:-1] / total - mean * mean
    with torch.no_grad():
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None  # tracked together with the running statistics
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((var * total / (total - 1)).to(self.running_var.dtype), momentum)
    shape = [1, channels] + [1] * (x.dim() - 2)
    normal: Tensor = (wide - mean.view(shape)) * torch.rsqrt(var.view(shape) + self.eps)
    if self.affine:
        normal = normal * self.weight.view(shape) + self.bias.view(shape)
    return normal.to(x.dtype)


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Make every batch norm of a module synchronise in training mode, in place; keys and weights stay as they are."""
    for child in module.modules():
        if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
            child.forward = _forward.__get__(child)  # type: ignore[method-assign]
    return module
