"""MoViNet (Kondratyuk et al. 2021): searched mobile video networks, base and stream.

The architecture is a `MoViNetLayout`, what is made of it a `Variant`. A stream's state is an argument and a result:

    state = net.initial_state(batch=1, size=(172, 172))
    for clip in clips:                      # any number of frames each
        logits, state = net.stream(clip, state)

Section numbers in this package are those of `training/movinet/README.md`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones.movinet_layout import (
    Activation,
    Gate,
    MoViNetLayout,
    Place,
    Variant,
    gate_widths,
    places,
)
from training.layers.conv3d import fold_frames
from training.layers.drop_path import DropPath
from training.layers.initial import truncated_normal_, variance_scaling_
from training.layers.streaming import (
    DepthwiseConv3d,
    SameConv2d,
    State,
    TemporalConv,
    positional_encoding,
    running_mean,
)

__all__ = ["Answers", "MoViNet", "StreamStep", "activate", "gate_value"]

Answers = Literal["last", "running", "frame"]
"""One answer after the last frame (B,K); the answer so far after each frame (B,T,K); each frame's own (B,T,K), pooled
over its places only (what earlier frames left in the buffers still counts)."""

Past = Mapping[str, Tensor] | None
Norm = Callable[[int], nn.Module]

COUNT = "count"
HEAD = "head"


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
            conv = SameConv2d(channels, channels, side, stride, groups=channels)
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
        mean_BTC = frame_means(images).unflatten(0, (batch, -1))
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
        self.conv, self.norm = SameConv2d(in_channels, out_channels, 1), norm(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """(N,C,H,W) → (N,out_channels,⌈H/stride⌉,⌈W/stride⌉)."""
        if self.stride == 2:
            # TensorFlow's "same" average of 3×3, padded places not counted, for even and odd sides.
            sides = (images.shape[2] % 2, images.shape[3] % 2)
            images = F.avg_pool2d(images, 3, 2, sides, ceil_mode=True, count_include_pad=False)
        return self.norm(self.conv(images))


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
        self.expand = ConvNorm(SameConv2d(place.in_channels, width, 1), width, norm, variant.activation)
        self.depthwise = (
            Depthwise(width, layer.kernel, place.stride, variant, norm)
            if kernels is None
            else MixedDepthwise(width, kernels, place.stride, variant, norm)
        )
        self.gate = SqueezeExcite(width, variant) if layer.gate and variant.squeeze != "none" else None
        self.project = ConvNorm(SameConv2d(width, place.out_channels, 1), place.out_channels, norm, None)
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
        branch = self.drop_path(branch.unflatten(0, (batch, -1))).flatten(0, 1)
        return branch + (images if self.skip is None else self.skip(images))


class MoViNet(nn.Module):
    """A network over videos (B,3,T,H,W) of any length and size.

    Args:
        layout: architecture.
        variant: base or stream.
        num_classes: None leaves out the two dense layers: `forward` then gives pooled features.
        dropout: before the classifier (0.2 for T0, A0, A1; 0.5 for the others).
        drop_path: rate of stochastic depth of the last layer; layer i of L has i/L of it.
        norm_eps: of batch normalisation.
        norm_momentum: weight of the newest batch (TensorFlow's momentum 0.99).
        kernels: kernel options by layer name, for a supernet.
        project_skips: layers whose skip has a convolution though it needs none, for a supernet.
    """

    def __init__(
        self,
        layout: MoViNetLayout,
        variant: Variant,
        *,
        num_classes: int | None = None,
        dropout: float = 0.2,
        drop_path: float = 0.2,
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.01,
        kernels: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        project_skips: bool = False,
    ) -> None:
        super().__init__()
        self.layout, self.variant, self.dropout = layout, variant, dropout
        norm = partial(nn.BatchNorm2d, eps=norm_eps, momentum=norm_momentum)
        self.stem = ConvNorm(SameConv2d(3, layout.stem, 3, 2), layout.stem, norm, variant.activation)
        self.places = places(layout)
        layers = []
        for number, place in enumerate(self.places, start=1):
            first = place.name.endswith(".0")
            layer = Bottleneck(
                place,
                variant,
                norm,
                drop_path * number / len(self.places),
                kernels.get(place.name) if kernels else None,
                True if project_skips and first else None,
            )
            layers.append(layer)
        self.blocks = nn.ModuleList()
        for block in layout.blocks:
            self.blocks.append(nn.ModuleList(layers[: len(block.layers)]))
            layers = layers[len(block.layers) :]
        self.project = ConvNorm(
            SameConv2d(layout.blocks[-1].width, layout.project, 1), layout.project, norm, variant.activation
        )
        self.out_channels = layout.project
        self.dense = self.classifier = None
        if num_classes is not None:
            self.dense = nn.Linear(layout.project, layout.head)
            self.classifier = nn.Linear(layout.head, num_classes)
            variance_scaling_(self.dense.weight, 2.0)
            truncated_normal_(self.classifier.weight, 0.01)
            nn.init.zeros_(self.dense.bias)
            nn.init.zeros_(self.classifier.bias)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Return the logits (B,K) of whole clips; pooled features (B,P) of a net without classes."""
        return self.answers(video_BCTHW)[0]

    def stream(
        self, video_BCTHW: Tensor, state: Mapping[str, Tensor], answers: Answers = "last"
    ) -> tuple[Tensor, State]:
        """Continue videos by some frames.

        For any partition of a video into calls the answers are those of one call (in eval mode, up to rounding).

        Args:
            video_BCTHW: the next frames, one or more, of every video of the batch.
            state: of `initial_state` or of the call before; unchanged.
            answers: which answers to return.

        Returns:
            Logits, and the state after the last frame.

        Raises:
            ValueError: a net that is not causal, or a state of another net, size or batch.
        """
        self._check(video_BCTHW, state)
        present: State = {}
        logits, count_B = self.answers(video_BCTHW, answers, state, present)
        present[COUNT] = count_B + video_BCTHW.shape[2]
        return logits, {name: present[name] for name in state}

    def answers(
        self, video_BCTHW: Tensor, answers: Answers = "last", past: Past = None, present: State | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits, and how many frames of each video came before, (B,); see `stream` for the arguments."""
        if not self.variant.causal and answers == "running":
            raise ValueError("a base net has no running answer: it sees later frames")
        batch = video_BCTHW.shape[0]
        if past is None:
            count_B = torch.zeros(batch, dtype=torch.int64, device=video_BCTHW.device)
        else:
            count_B = past[COUNT]
        images = self._features(video_BCTHW, count_B, past, present)
        pooled = frame_means(images).unflatten(0, (batch, -1))
        if self.variant.causal:
            running = running_mean(pooled, count_B, HEAD, past, present)
            pooled = {"last": running[:, -1], "running": running, "frame": pooled}[answers]
        elif answers == "last":
            pooled = pooled.mean(1)
        return self.classify(pooled), count_B

    def classify(self, pooled: Tensor) -> Tensor:
        """Map pooled features (…,P) to logits (…,K)."""
        if self.dense is None or self.classifier is None:
            return pooled
        hidden = activate(self.dense(pooled.to(self.dense.weight.dtype)), self.variant.head_activation)
        return self.classifier(F.dropout(hidden, self.dropout, self.training))

    def features_map(self, video_BCTHW: Tensor) -> Tensor:
        """Return the features before pooling, (B,P,T,h,w)."""
        count_B = torch.zeros(video_BCTHW.shape[0], dtype=torch.int64, device=video_BCTHW.device)
        images = self._features(video_BCTHW, count_B, None, None)
        return images.unflatten(0, (video_BCTHW.shape[0], -1)).transpose(1, 2)

    def initial_state(
        self,
        batch: int,
        size: tuple[int, int],
        *,
        window: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> State:
        """Return the state before the first frame.

        Args:
            batch: number of videos.
            size: height and width of the input, pixels.
            window: means are over at most this many frames; None: over all since the first one.
            device: where; None: where the weights are.
            dtype: of the convolutions' buffers. Sums are at least float32: a bfloat16 sum stops growing.

        Raises:
            ValueError: a net that is not causal, or a window without frames.
        """
        if not self.variant.causal:
            raise ValueError("only causal nets stream; this one is a base net")
        if window is not None and window < 1:
            raise ValueError(f"the window must have at least one frame, got {window}")
        device = self.stem.norm.weight.device if device is None else device
        wide = torch.promote_types(dtype, torch.float32)
        state: State = {COUNT: torch.zeros(batch, dtype=torch.int64, device=device)}

        def pool(name: str, channels: int) -> None:
            shape = (batch, channels) if window is None else (batch, window - 1, channels)
            state[name] = torch.zeros(shape, dtype=wide, device=device)

        sides = [-(-side // 2) for side in size]
        for place in self.places:
            after = [-(-side // place.stride) for side in sides]
            if place.layer.kernel[0] > 1:
                kept = after if self.variant.conv == "2plus1d" else sides
                shape = (batch, place.layer.expand, place.layer.kernel[0] - 1, *kept)
                buffer = torch.zeros(shape, dtype=dtype, device=device)
                state[f"{place.name}.conv"] = buffer.contiguous(memory_format=torch.channels_last_3d)
            if place.layer.gate and self.variant.squeeze in ("3d", "2plus3d"):
                pool(f"{place.name}.pool", place.layer.expand)
            sides = after
        pool(HEAD, self.layout.project)
        return state

    def _features(self, video_BCTHW: Tensor, count_B: Tensor, past: Past, present: State | None) -> Tensor:
        batch = video_BCTHW.shape[0]
        images = self.stem(fold_frames(video_BCTHW))
        for block in self.blocks:
            for layer in block:
                images = layer(images, batch, count_B, past, present)
        return self.project(images)

    def _check(self, video_BCTHW: Tensor, state: Mapping[str, Tensor]) -> None:
        if not self.variant.causal:
            raise ValueError("only causal nets stream; this one is a base net")
        if COUNT not in state or HEAD not in state:
            raise ValueError("this is no state of a stream; `initial_state` makes one")
        if len(state[COUNT]) != video_BCTHW.shape[0]:
            raise ValueError(f"the state is of {len(state[COUNT])} videos, the clip of {video_BCTHW.shape[0]}")


class StreamStep(nn.Module):
    """`forward(clip, state) → (logits, state)`: what is exported and compiled."""

    def __init__(self, net: MoViNet, answers: Answers = "last") -> None:
        super().__init__()
        self.net, self.answers = net, answers

    def forward(self, video_BCTHW: Tensor, state: State) -> tuple[Tensor, State]:
        """See `MoViNet.stream`."""
        return self.net.stream(video_BCTHW, state, self.answers)
