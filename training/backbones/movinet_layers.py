"""Layers of MoViNet (Kondratyuk et al. 2021, arXiv 2103.11511); frames are folded into the batch.

Section numbers are those of `training/movinet/README.md`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones.movinet_layout import Activation, Gate, Place, Variant, gate_widths
from training.layers.conv3d import by_video
from training.layers.drop_path import DropPath
from training.layers.initial import variance_scaling_
from training.layers.streaming import (
    DepthwiseConv3d,
    FrameConv,
    State,
    TemporalConv,
    positional_encoding,
    running_mean,
)

__all__ = [
    "Bottleneck",
    "ConvNorm",
    "Depthwise",
    "MixedDepthwise",
    "Norm",
    "Past",
    "Skip",
    "SqueezeExcite",
    "activate",
    "frame_means",
    "gate_value",
    "option_name",
]

Past = Mapping[str, Tensor] | None
Norm = Callable[[int], nn.Module]


def activate(x: Tensor, kind: Activation) -> Tensor:
    """Apply an activation, in place where no gradient is wanted."""
    inplace = not torch.is_grad_enabled()
    return F.silu(x, inplace=inplace) if kind == "silu" else F.hardswish(x, inplace=inplace)


def gate_value(x: Tensor, kind: Gate) -> Tensor:
    """Return the gate of a pre-activation; the two hard sigmoids are not the same function."""
    if kind == "sigmoid":
        return torch.sigmoid(x)
    return F.hardsigmoid(x) if kind == "hard_sigmoid" else (0.2 * x + 0.5).clamp(0, 1)


class ConvNorm(nn.Module):
    """2-D convolution of the frames, batch normalisation, and an activation where one is named."""

    def __init__(self, conv: nn.Module, channels: int, norm: Norm, activation: Activation | None) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = conv, norm(channels), activation

    def forward(self, images: Tensor) -> Tensor:
        """(N,C,H,W) → (N,channels,⌈H/stride⌉,⌈W/stride⌉)."""
        images = self.norm(self.conv(images))
        return images if self.activation is None else activate(images, self.activation)


class Depthwise(nn.Module):
    """Depthwise part of a bottleneck: k_t×k×k at once, or 1×k×k and then k_t×1×1, each with its own normalisation."""

    def __init__(self, channels: int, kernel: tuple[int, int], stride: int, variant: Variant, norm: Norm) -> None:
        super().__init__()
        temporal, side = kernel
        self.activation = variant.activation
        self.spatial: ConvNorm | None = None
        self.temporal: nn.Module | None = None
        if temporal == 1 or variant.conv == "2plus1d":
            conv = FrameConv(channels, channels, side, stride, groups=channels)
            self.spatial = ConvNorm(conv, channels, norm, variant.activation)
        if temporal > 1:
            self.temporal = (
                TemporalConv(channels, temporal, causal=variant.causal)
                if variant.conv == "2plus1d"
                else DepthwiseConv3d(channels, kernel, stride, causal=variant.causal)
            )
            self.norm = norm(channels)

    def forward(self, images: Tensor, batch: int, key: str, past: Past, present: State | None) -> Tensor:
        """(B·T,C,H,W) → (B·T,C,⌈H/stride⌉,⌈W/stride⌉); `key` names the buffer in the states."""
        if self.spatial is not None:
            images = self.spatial(images)
        if self.temporal is not None:
            images = activate(self.norm(self.temporal(images, batch, key, past, present)), self.activation)
        return images


class MixedDepthwise(nn.Module):
    """Mean of several kernel options: how a supernet's weights are warmed up, and where it keeps the options."""

    def __init__(
        self, channels: int, kernels: Sequence[tuple[int, int]], stride: int, variant: Variant, norm: Norm
    ) -> None:
        super().__init__()
        self.options = nn.ModuleDict(
            {option_name(kernel): Depthwise(channels, kernel, stride, variant, norm) for kernel in kernels}
        )

    def forward(self, images: Tensor, batch: int, key: str, past: Past, present: State | None) -> Tensor:
        """As `Depthwise`; has no state."""
        if past is not None or present is not None:
            raise ValueError("a mixture of kernels cannot stream; choose one kernel per layer")
        outputs = [option(images, batch, key, None, None) for option in self.options.values()]
        return torch.stack(outputs).mean(0) if len(outputs) > 1 else outputs[0]


def option_name(kernel: tuple[int, int]) -> str:
    """Return the name of a kernel option."""
    return f"{kernel[0]}x{kernel[1]}x{kernel[1]}"


class SqueezeExcite(nn.Module):
    """Squeeze-excitation per frame: over the frame's mean, the (cumulative) mean over frames, or both (§5.3)."""

    def __init__(self, expand: int, variant: Variant) -> None:
        super().__init__()
        inner, hidden = gate_widths(expand, variant.squeeze)
        self.variant = variant
        self.reduce, self.expand = nn.Linear(inner, hidden), nn.Linear(hidden, expand)
        for layer in (self.reduce, self.expand):
            variance_scaling_(layer.weight, 2.0)
            nn.init.zeros_(layer.bias)
        # At 0 the positional encoding starts without effect.
        self.position = nn.Parameter(torch.zeros(())) if variant.positional else None

    def forward(
        self, images: Tensor, batch: int, count_B: Tensor, key: str, past: Past, present: State | None
    ) -> Tensor:
        """Multiply the frames (B·T,C,H,W) with their gates; `count_B` frames of each video came before."""
        mean_BTC = by_video(frame_means(images), batch)
        squeeze, causal = self.variant.squeeze, self.variant.causal
        seen = mean_BTC
        if squeeze != "2d":
            over_time = (
                running_mean(mean_BTC, count_B, key, past, present) if causal else mean_BTC.mean(1, keepdim=True)
            )
            seen = over_time
            if squeeze == "2plus3d":
                seen = torch.cat([over_time.expand_as(mean_BTC), mean_BTC], dim=-1)
        if self.position is not None:
            time_BT = count_B[:, None] + torch.arange(mean_BTC.shape[1], device=images.device)
            seen = seen + self.position * positional_encoding(time_BT, seen.shape[-1]).to(seen.dtype)
        hidden = activate(self.reduce(seen.to(self.reduce.weight.dtype)), self.variant.activation)
        gate_BTC = gate_value(self.expand(hidden), self.variant.gate)
        gate_BTC = gate_BTC.expand(-1, mean_BTC.shape[1], -1).to(images.dtype)
        return images * gate_BTC.flatten(0, 1)[:, :, None, None]


def frame_means(images: Tensor) -> Tensor:
    """Return the mean over places (N,C), at least float32."""
    return images.mean((2, 3), dtype=torch.promote_types(images.dtype, torch.float32))


class Skip(nn.Module):
    """Skip connection where stride or channels change: average pooling, then a 1×1 convolution with normalisation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.stride = stride
        self.conv, self.norm = FrameConv(in_channels, out_channels, 1), norm(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """(N,C,H,W) → (N,out_channels,⌈H/stride⌉,⌈W/stride⌉)."""
        if self.stride == 2:
            # TensorFlow's "same" average of 3×3, padded places not counted, for even and odd sides.
            sides = (images.shape[2] % 2, images.shape[3] % 2)
            images = F.avg_pool2d(images, 3, 2, sides, ceil_mode=True, count_include_pad=False)
        normal: Tensor = self.norm(self.conv(images))
        return normal


class Bottleneck(nn.Module):
    """Inverted bottleneck with ReZero (§5.2): expand, depthwise, gate, project, times α (initially 0), plus skip.

    Args:
        place: the layer and its surroundings.
        variant: base or stream.
        norm: makes a batch norm.
        drop_rate: of stochastic depth.
        kernels: several kernel options instead of the layer's own (supernet).
        project_skip: whether the skip has a convolution; None: where it must.
    """

    def __init__(
        self,
        place: Place,
        variant: Variant,
        norm: Norm,
        drop_rate: float,
        kernels: Sequence[tuple[int, int]] | None = None,
        project_skip: bool | None = None,
    ) -> None:
        super().__init__()
        width, layer = place.layer.expand, place.layer
        self.name = place.name
        self.expand = ConvNorm(FrameConv(place.in_channels, width, 1), width, norm, variant.activation)
        self.depthwise = (
            Depthwise(width, layer.kernel, place.stride, variant, norm)
            if kernels is None
            else MixedDepthwise(width, kernels, place.stride, variant, norm)
        )
        self.gate = SqueezeExcite(width, variant) if layer.gate and variant.squeeze != "none" else None
        self.project = ConvNorm(FrameConv(width, place.out_channels, 1), place.out_channels, norm, None)
        self.scale = nn.Parameter(torch.zeros(()))
        self.drop_path = DropPath(drop_rate)
        projects = place.projects_skip if project_skip is None else project_skip
        self.skip = Skip(place.in_channels, place.out_channels, place.stride, norm) if projects else None

    def forward(self, images: Tensor, batch: int, count_B: Tensor, past: Past, present: State | None) -> Tensor:
        """(B·T,C,H,W) → (B·T,out,⌈H/stride⌉,⌈W/stride⌉)."""
        branch = self.depthwise(self.expand(images), batch, f"{self.name}.conv", past, present)
        if self.gate is not None:
            branch = self.gate(branch, batch, count_B, f"{self.name}.pool", past, present)
        branch = self.project(branch) * self.scale
        branch = self.drop_path(by_video(branch, batch)).flatten(0, 1)
        skip: Tensor = images if self.skip is None else self.skip(images)
        return torch.add(skip, branch)
