"""Collectives that are plain functions on one process and exact averages on several.

Everything that a formula normalises "over the batch" must be normalised over the global batch, or
results would depend on the number of ranks (D11).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Rank and size of the process group; the default is a single process."""

    rank: int = 0
    world: int = 1

    def mean(self, value: Tensor) -> Tensor:
        """Average a tensor over ranks (no gradient)."""
        if self.world == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.world

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's object, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, value)
        return parts

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


def mean_and_std(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased std over all elements of all ranks, as fp32 scalars (no gradient).

    Single process: the same as `value.mean()` and `value.std()`.
    """
    value = value.detach().float()
    count = torch.tensor(float(value.numel()), device=value.device)
    moments = torch.stack([count, value.sum()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(moments)
    mean = moments[1] / moments[0]
    squares = ((value - mean) ** 2).sum()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(squares)
    return mean, (squares / (moments[0] - 1).clamp(min=1)).sqrt()
