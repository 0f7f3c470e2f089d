"""Layouts of the 3-D ResNet family (R3D, SlowOnly, ResNet-RS) and their cost by formula, without tensors.

Source: Du et al. 2021, "Revisiting 3D ResNets for Video Recognition" (arXiv 2109.01696), with what its text leaves open
taken from the released configurations of its authors' code.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from training.backbones.mobilenetv2 import round_channels
from training.layers.conv3d import Padding

__all__ = [
    "BLOCKS",
    "TEMPORAL",
    "BlockSpec",
    "ConvSpec",
    "ResNet3DLayout",
    "conv_macs",
    "num_parameters",
    "r3d50_layout",
    "receptive_frames",
    "rs_layout",
    "slowonly50_layout",
]

Stem = Literal["v0", "v1"]
Gating = Literal["last", "all", "none"]
GateOrder = Literal["code", "paper"]

BLOCKS: dict[int, tuple[int, int, int, int]] = {
    26: (2, 2, 2, 2),
    38: (2, 2, 6, 2),
    50: (3, 4, 6, 3),
    56: (2, 2, 12, 2),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    300: (4, 36, 54, 4),
    350: (4, 36, 72, 4),
}
"""Depth → blocks per group. 26, 38 and 56 are small nets for experiments; the others are the published ones, of which
270 and 300 have 272 and 296 layers by the usual count of 3·blocks + 2."""

TEMPORAL: dict[str, tuple[tuple[int, ...], ...]] = {
    "1133": ((1,), (1,), (3,), (3,)),
    "3333": ((3,), (3,), (3,), (3,)),
    "3311": ((3,), (3,), (1,), (1,)),
    "1111": ((1,), (1,), (1,), (1,)),
    "1313": ((1, 3), (1, 3), (1, 3), (1, 3)),
    "r3d50": ((3,), (3, 1), (3, 1), (1, 3)),
}
"""Name → temporal kernel sizes of each group's blocks, repeated to the group's length. Digits are one per group, except
for "1313", which alternates inside every group. "1133" is that of ResNet-RS and SlowOnly, "r3d50" that of R3D-50."""

CHANNELS = (64, 128, 256, 512)
EXPANSION = 4
SPATIAL_STRIDE = 32


class ConvSpec(NamedTuple):
    """A convolution of the stem, without bias; kernel and stride are (T,H,W)."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]


class BlockSpec(NamedTuple):
    """A bottleneck block: k_t×1×1 to `channels`, 1×3×3 with the spatial stride, 1×1×1 to `out_channels`."""

    in_channels: int
    channels: int
    temporal_kernel: int
    stride: int
    shortcut: Literal["identity", "pool", "conv"]
    se_channels: int
    """Channels between the two dense layers of squeeze-excitation; 0: none."""
    gated: bool
    """Whether the block has self-gating."""

    @property
    def out_channels(self) -> int:
        """Channels after the block."""
        return self.channels * EXPANSION


@dataclass(frozen=True, kw_only=True)
class ResNet3DLayout:
    """Complete description of one network of the family, without its head.

    Raises:
        ValueError: a field without meaning; the message names field, value and what is possible.
    """

    depth: int
    """Key of `BLOCKS`."""
    width: float = 1.0
    """Factor of the channels 64, 128, 256, 512 of the groups and 32, 64 of the stem, each then rounded to a multiple of
    8, never to less than 90 % of the exact value (`round_channels`). 0.25 is the mini width of experiments."""
    stem: Stem
    """"v0": one k×7×7 convolution; "v1": k×3×3, 1×3×3, 1×3×3 (ResNet-D)."""
    stem_temporal_kernel: int = 5
    stem_temporal_stride: int = 2
    pool_t: int
    """Temporal stride of the stem's max-pool: 1 (1×3×3 window) or 2 (3×3×3 window). With 2 a net costs about half."""
    temporal: str
    """Key of `TEMPORAL`."""
    se_ratio: float
    """Hidden channels of squeeze-excitation over its input's, rounded down, at least 1; 0: no squeeze-excitation."""
    gating: Gating
    """Blocks with self-gating: the last of each group, all, none."""
    gate_order: GateOrder
    """"code": self-gating before squeeze-excitation, as in the released code; "paper": after it, as in the text."""
    padding: Padding
    """"same": TensorFlow's; "symmetric": PyTorch's."""
    drop_path: float
    """Stochastic depth; group g of 1 to 4 drops with the rate drop_path·(g+1)/5."""
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    """Weight of the newest batch, as in PyTorch. The released RS recipe's momentum of 0 is 1.0 here: it needs averaged
    buffers (EMA) to be of use."""

    def __post_init__(self) -> None:
        for field, known in (
            ("depth", tuple(BLOCKS)),
            ("stem", get_args(Stem)),
            ("pool_t", (1, 2)),
            ("temporal", tuple(TEMPORAL)),
            ("gating", get_args(Gating)),
            ("gate_order", get_args(GateOrder)),
            ("padding", get_args(Padding)),
        ):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"{field} must be one of {', '.join(map(str, known))}, got {value!r}")
        if self.stem_temporal_kernel < 1 or self.stem_temporal_kernel % 2 == 0:
            raise ValueError(f"stem_temporal_kernel must be odd and positive, got {self.stem_temporal_kernel}")
        if not 1 <= self.stem_temporal_stride <= self.stem_temporal_kernel:
            raise ValueError(
                f"stem_temporal_stride must be from 1 to stem_temporal_kernel ({self.stem_temporal_kernel}), or frames "
                f"would go unseen; got {self.stem_temporal_stride}"
            )
        for field, low, high in (("width", 0, math.inf), ("norm_eps", 0, math.inf)):
            if not low < getattr(self, field) < high:
                raise ValueError(f"{field} must be positive and finite, got {getattr(self, field)}")
        if not 0 <= self.se_ratio <= 1:
            raise ValueError(f"se_ratio must be from 0 (none) to 1, got {self.se_ratio}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {self.drop_path}")
        if not 0 <= self.norm_momentum <= 1:
            raise ValueError(
                f"norm_momentum (weight of the newest batch) must be from 0 to 1, got {self.norm_momentum}"
            )

    @property
    def blocks(self) -> tuple[int, int, int, int]:
        """Blocks per group."""
        return BLOCKS[self.depth]

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels inside the blocks of each group; a group's output has four times as many."""
        return tuple(round_channels(channels * self.width) for channels in CHANNELS)

    @property
    def out_channels(self) -> int:
        """Channels of the last group's output."""
        return self.channels[-1] * EXPANSION

    @property
    def temporal_stride(self) -> int:
        """Input frames per frame of the feature map."""
        return self.stem_temporal_stride * self.pool_t

    @property
    def spatial_stride(self) -> int:
        """Input pixels per pixel of the feature map, along each side."""
        return SPATIAL_STRIDE

    @property
    def temporal_kernels(self) -> tuple[tuple[int, ...], ...]:
        """Temporal kernel size of every block, per group."""
        return tuple(
            tuple(pattern[index % len(pattern)] for index in range(count))
            for pattern, count in zip(TEMPORAL[self.temporal], self.blocks, strict=True)
        )

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth rate of each group."""
        return tuple(self.drop_path * (group + 1) / 5 for group in range(1, 5))

    @property
    def stem_convs(self) -> tuple[ConvSpec, ...]:
        """The stem's convolutions, each followed by batch norm and ReLU; after them comes the max-pool."""
        kernel, stride = self.stem_temporal_kernel, (self.stem_temporal_stride, 2, 2)
        outer = round_channels(CHANNELS[0] * self.width)
        if self.stem == "v0":
            return (ConvSpec(3, outer, (kernel, 7, 7), stride),)
        inner = round_channels(CHANNELS[0] // 2 * self.width)
        return (
            ConvSpec(3, inner, (kernel, 3, 3), stride),
            ConvSpec(inner, inner, (1, 3, 3), (1, 1, 1)),
            ConvSpec(inner, outer, (1, 3, 3), (1, 1, 1)),
        )

    def groups(self) -> Iterator[list[BlockSpec]]:
        """Yield the blocks of each group."""
        channels_in = self.stem_convs[-1].out_channels
        for group, (channels, kernels) in enumerate(zip(self.channels, self.temporal_kernels, strict=True)):
            channels_out = channels * EXPANSION
            se_channels = max(1, int(channels_out * self.se_ratio)) if self.se_ratio else 0
            specs = []
            for index, kernel in enumerate(kernels):
                stride = 2 if group > 0 and index == 0 else 1
                shortcut: Literal["identity", "pool", "conv"] = "conv"
                if channels_in == channels_out:
                    shortcut = "identity" if stride == 1 else "pool"
                gated = self.gating == "all" or (self.gating == "last" and index == len(kernels) - 1)
                specs.append(BlockSpec(channels_in, channels, kernel, stride, shortcut, se_channels, gated))
                channels_in = channels_out
            yield specs


# --- the published networks -------------------------------------------------------------------


def rs_layout(depth: int = 50, **changes: Any) -> ResNet3DLayout:
    """3-D ResNet-RS as in the released Kinetics configuration, with fields changed by name.

    The temporal stride of the pool is 1 there. The cost that was published for RS-200 fits `pool_t=2`.
    """
    layout = ResNet3DLayout(
        depth=depth,
        stem="v1",
        pool_t=1,
        temporal="1133",
        se_ratio=0.25,
        gating="last",
        gate_order="code",
        padding="same",
        drop_path=0.1,
    )
    return replace(layout, **changes)


def r3d50_layout(**changes: Any) -> ResNet3DLayout:
    """R3D-50, the baseline: other temporal kernels, stem v0, self-gating but no squeeze-excitation."""
    base = rs_layout(stem="v0", pool_t=2, temporal="r3d50", se_ratio=0.0, drop_path=0.0)
    return replace(base, **changes)


def slowonly50_layout(**changes: Any) -> ResNet3DLayout:
    """SlowOnly-50 (Feichtenhofer et al. 2019): no temporal stride, no gates; padding of its public weights."""
    base = rs_layout(
        stem="v0",
        stem_temporal_kernel=1,
        stem_temporal_stride=1,
        se_ratio=0.0,
        gating="none",
        padding="symmetric",
        drop_path=0.0,
    )
    return replace(base, **changes)


# --- cost -------------------------------------------------------------------------------------


def conv_macs(layout: ResNet3DLayout, frames: int, size: int | tuple[int, int], num_classes: int | None = None) -> int:
    """Multiply-accumulates of one clip, equal to what `training.core.cost.count_macs` counts.

    Counted are convolutions and dense layers (squeeze-excitation, self-gating, head). Padding does not matter: with odd
    kernels both kinds give ⌈n/stride⌉ outputs.

    Args:
        layout: the network.
        frames: input frames.
        size: side of the input, or (height, width), in pixels.
        num_classes: classes of the head; None: no head.

    Raises:
        ValueError: no frame or no pixel.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(frames, height, width) < 1:
        raise ValueError(f"a clip has at least 1 frame of 1×1 pixels, got {frames} of {height}×{width}")
    total = 0
    for conv in layout.stem_convs:
        frames, height, width = (-(-n // s) for n, s in zip((frames, height, width), conv.stride, strict=True))
        total += frames * height * width * conv.in_channels * conv.out_channels * math.prod(conv.kernel)
    frames, height, width = -(-frames // layout.pool_t), -(-height // 2), -(-width // 2)
    for specs in layout.groups():
        for block in specs:
            inside, outside = block.channels, block.out_channels
            total += frames * height * width * block.in_channels * inside * block.temporal_kernel
            height, width = -(-height // block.stride), -(-width // block.stride)
            per_place = inside * inside * 9 + inside * outside
            if block.shortcut == "conv":
                per_place += block.in_channels * outside
            total += frames * height * width * per_place
            total += 2 * outside * block.se_channels + outside * outside * block.gated
    return total + layout.out_channels * (num_classes or 0)


def num_parameters(layout: ResNet3DLayout, num_classes: int | None = None) -> int:
    """Number of parameters (batch norm's statistics are none).

    Args:
        layout: the network.
        num_classes: classes of the head; None: no head.
    """

    def conv_norm(in_channels: int, out_channels: int, taps: int) -> int:
        return in_channels * out_channels * taps + 2 * out_channels

    total = sum(conv_norm(conv.in_channels, conv.out_channels, math.prod(conv.kernel)) for conv in layout.stem_convs)
    for specs in layout.groups():
        for block in specs:
            inside, outside = block.channels, block.out_channels
            total += conv_norm(block.in_channels, inside, block.temporal_kernel)
            total += conv_norm(inside, inside, 9) + conv_norm(inside, outside, 1)
            if block.shortcut == "conv":
                total += conv_norm(block.in_channels, outside, 1)
            if block.se_channels:
                total += 2 * outside * block.se_channels + block.se_channels + outside
            if block.gated:
                total += outside * outside + outside
    return total + (0 if num_classes is None else (layout.out_channels + 1) * num_classes)


def receptive_frames(layout: ResNet3DLayout) -> int:
    """Input frames that one frame of the feature map depends on through convolutions and pooling.

    The gates pool over the whole clip and are left out: with them every output depends on every frame.
    """
    frames = layout.stem_temporal_kernel
    step = layout.stem_temporal_stride
    if layout.pool_t == 2:
        frames += 2 * step
        step *= 2
    return frames + step * sum(kernel - 1 for group in layout.temporal_kernels for kernel in group)
