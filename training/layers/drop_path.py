"""Stochastic depth (Huang et al. 2016)."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch per sample while training; kept branches are scaled by 1/(1 − rate).

    Args:
        rate: probability of dropping.

    Raises:
        ValueError: a rate outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be at least 0 and below 1, got {rate}")
        self.rate = rate

    def extra_repr(self) -> str:
        """Say what `repr` shows."""
        return f"rate={self.rate:g}"

    def factors(self, x: Tensor) -> Tensor | None:
        """Return the samples' factors (B,), each 0 or 1/(1 − rate) in float32; None if nothing is dropped."""
        if not self.training or self.rate == 0:
            return None
        keep = 1 - self.rate
        return (torch.rand(x.shape[0], device=x.device) < keep) / keep

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (B, …) → the same."""
        factors = self.factors(x)
        if factors is None:
            return x
        return x * factors.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
