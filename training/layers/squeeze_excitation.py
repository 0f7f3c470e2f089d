"""Gates per channel from the global mean of a feature map: squeeze-excitation and self-gating.

A gate is a factor per sample and channel, so gating commutes with the mean over places: mean(g·x) = g·mean(x). Several
gates after one another therefore need one reduction of the feature map, not one each, and one multiplication with the
product of the gates.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.layers.initial import truncated_normal_, variance_scaling_


def global_mean(x_BCX: Tensor) -> Tensor:
    """Mean over all axes but the first two, (B,C); at least in float32."""
    axes = tuple(range(2, x_BCX.dim()))
    return x_BCX.mean(axes, dtype=torch.promote_types(x_BCX.dtype, torch.float32))


def chained_gate(mean_BC: Tensor, gates: Iterable[nn.Module]) -> Tensor:
    """Return the factor (B,C) that equals applying the gates after one another, each to the last one's output.

    Args:
        mean_BC: global mean of the feature map before the first gate.
        gates: modules that map a mean (B,C) to a gate (B,C).

    Raises:
        ValueError: no gate.
    """
    total: Tensor | None = None
    for gate in gates:
        factor = gate(mean_BC if total is None else mean_BC * total)
        total = factor if total is None else total * factor
    if total is None:
        raise ValueError("there must be at least one gate")
    return total


class SqueezeExcitation(nn.Module):
    """Gate of two dense layers (Hu et al. 2018): sigmoid(expand(ReLU(reduce(mean))))."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)
        for layer in (self.reduce, self.expand):
            variance_scaling_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, mean_BC: Tensor) -> Tensor:
        """Map a global mean (B,C) to the gate (B,C)."""
        # In a network of half precision the mean is still float32.
        hidden = F.relu(self.reduce(mean_BC.to(self.reduce.weight.dtype)))
        return torch.sigmoid(self.expand(hidden))


class SelfGating(nn.Module):
    """Gate of one dense layer (S3D-G, Xie et al. 2018): sigmoid(dense(mean))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(channels, channels)
        truncated_normal_(self.dense.weight, 0.01)
        nn.init.zeros_(self.dense.bias)

    def forward(self, mean_BC: Tensor) -> Tensor:
        """Map a global mean (B,C) to the gate (B,C)."""
        return torch.sigmoid(self.dense(mean_BC.to(self.dense.weight.dtype)))
