"""Architectures of MoViNet as one table; what they cost is in `movinet_cost`.

Source: Kondratyuk et al. 2021, "MoViNets: Mobile Video Networks for Efficient Video Recognition" (arXiv 2103.11511);
the numbers are those of the released checkpoints, which for A2 to A5 are larger than the paper's.

A layer is written `k_t×k×k:expansion`, e.g. `5x3x3:184`; without gate `5x3x3:184/no-gate`. The spatial stride of a
block belongs to its first layer. There is no temporal stride: each frame that goes in comes out.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from training.backbones.mobilenetv2 import round_channels

__all__ = [
    "ARCHITECTURES",
    "BASE",
    "STREAM",
    "VARIANTS",
    "Block",
    "Layer",
    "MoViNetLayout",
    "Place",
    "Variant",
    "architecture",
    "gate_widths",
    "places",
    "plain_round",
    "stream_variant",
]

ConvType = Literal["3d", "2plus1d"]
Squeeze = Literal["none", "2d", "3d", "2plus3d"]
Activation = Literal["silu", "hard_swish"]
Gate = Literal["sigmoid", "hard_sigmoid", "hard_sigmoid_keras"]

LAYER = re.compile(r"(\d+)[x×](\d+)[x×](\d+):(\d+)(/no-gate)?")
SE_RATIO = 0.25
"""Hidden channels of a gate for each of its input channels' bottleneck; of both halves where the input is doubled."""


@dataclass(frozen=True)
class Layer:
    """An inverted bottleneck."""

    kernel: tuple[int, int]
    """k_t and k, of the depthwise convolution k_t×k×k."""
    expand: int
    """Channels between expansion and projection."""
    gate: bool = True
    """Whether it has squeeze-excitation."""

    @classmethod
    def parse(cls, text: str) -> "Layer":
        """Read `k_t×k×k:expansion`, with `/no-gate` after it where there is no squeeze-excitation.

        Raises:
            ValueError: another form, an even kernel or a kernel that is not square.
        """
        match = LAYER.fullmatch(text)
        if match is None:
            raise ValueError(f"layer {text!r} must look like 5x3x3:184, or 5x3x3:184/no-gate")
        temporal, height, width, expand = (int(part) for part in match.groups()[:4])
        if height != width or temporal % 2 == 0 or height % 2 == 0:
            raise ValueError(f"layer {text!r}: kernel sizes are odd, and height and width are equal")
        if expand < 1:
            raise ValueError(f"layer {text!r}: the expansion must be positive")
        return cls((temporal, height), expand, match[5] is None)

    def __str__(self) -> str:
        temporal, side = self.kernel
        return f"{temporal}x{side}x{side}:{self.expand}{'' if self.gate else '/no-gate'}"


@dataclass(frozen=True)
class Block:
    """Layers of one width."""

    width: int
    stride: int
    """Spatial stride of the first layer, 1 or 2."""
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class MoViNetLayout:
    """One architecture; what the variants (base, stream) make of it is `Variant`."""

    stem: int
    """Channels of the stem, a dense 1×3×3 convolution of stride 2."""
    blocks: tuple[Block, ...]
    project: int
    """Channels before pooling."""
    head: int
    """Units of the dense layer before the classifier."""

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> "MoViNetLayout":
        """Read an entry of the table: stem, blocks (width, stride, layers as one text), project, head.

        Raises:
            ValueError: a field is missing, unknown or out of bounds; the message names it.
        """
        _only(entry, {"stem", "blocks", "project", "head"}, "architecture")
        blocks = []
        for number, block in enumerate(entry["blocks"], start=2):
            _only(block, {"width", "stride", "layers"}, f"block {number}")
            if block["stride"] not in (1, 2):
                raise ValueError(f"block {number}: stride must be 1 or 2, got {block['stride']}")
            layers = tuple(Layer.parse(text) for text in str(block["layers"]).split())
            if not layers:
                raise ValueError(f"block {number} has no layers")
            blocks.append(Block(_positive(block, "width"), block["stride"], layers))
        if not blocks:
            raise ValueError("the architecture has no blocks")
        stem, project, head = (_positive(entry, name) for name in ("stem", "project", "head"))
        return cls(stem, tuple(blocks), project, head)

    def entry(self) -> dict[str, Any]:
        """Return the layout as an entry of the table: what `parse` reads."""
        blocks = [
            {"width": block.width, "stride": block.stride, "layers": " ".join(map(str, block.layers))}
            for block in self.blocks
        ]
        return {"stem": self.stem, "blocks": blocks, "project": self.project, "head": self.head}

    def scaled(self, width: float) -> "MoViNetLayout":
        """Return the layout with all widths multiplied and rounded to multiples of 8; kernels and depths stay."""
        if width == 1:
            return self
        blocks = tuple(
            Block(
                plain_round(block.width * width),
                block.stride,
                tuple(replace(layer, expand=plain_round(layer.expand * width)) for layer in block.layers),
            )
            for block in self.blocks
        )
        return MoViNetLayout(
            plain_round(self.stem * width), blocks, plain_round(self.project * width), plain_round(self.head * width)
        )

    @property
    def num_layers(self) -> int:
        """Bottleneck layers of all blocks."""
        return sum(len(block.layers) for block in self.blocks)

    @property
    def receptive_frames(self) -> int:
        """Frames that the convolutions see."""
        return 1 + sum(layer.kernel[0] - 1 for block in self.blocks for layer in block.layers)


def _only(entry: Mapping[str, Any], known: set[str], where: str) -> None:
    if set(entry) != known:
        missing, unknown = sorted(known - set(entry)), sorted(set(entry) - known)
        raise ValueError(
            f"{where} lacks {', '.join(missing) or 'nothing'} and has unknown {', '.join(unknown) or 'none'}"
        )


def _positive(entry: Mapping[str, Any], name: str) -> int:
    if not isinstance(entry[name], int) or entry[name] < 1:
        raise ValueError(f"{name} must be a positive whole number, got {entry[name]!r}")
    return int(entry[name])


def plain_round(value: float) -> int:
    """Round to a multiple of 8, at least 8: the rounding of the search space, without the guard of layers."""
    return max(8, 8 * math.floor((value + 4) / 8))


@dataclass(frozen=True)
class Variant:
    """What is made of an architecture: base or stream, and how its layers compute."""

    causal: bool
    """Temporal operators see no later frame."""
    conv: ConvType
    """`2plus1d`: kernels k_t×k×k as 1×k×k and k_t×1×1, each with normalisation and activation."""
    squeeze: Squeeze
    """Input of the gates: `2d` the frame's mean, `3d` that over frames (cumulative where causal), `2plus3d` both."""
    activation: Activation
    gate: Gate
    """`hard_sigmoid` is clip(x/6 + .5), `hard_sigmoid_keras` clip(.2x + .5): the released stream checkpoints of
    Kinetics-600 seem to be trained with the latter."""
    head_activation: Activation
    """Between the two dense layers."""
    positional: bool = False
    """Positional encoding before the gates, for squeeze `2plus3d` (stream A3, A4, A5)."""

    def __post_init__(self) -> None:
        for name, kinds in (
            ("conv", ConvType), ("squeeze", Squeeze), ("activation", Activation), ("gate", Gate),
            ("head_activation", Activation),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kinds))}, got {getattr(self, name)!r}")
        if self.positional and (self.squeeze != "2plus3d" or not self.causal):
            raise ValueError("positional encoding belongs to causal nets with squeeze 2plus3d")


BASE = Variant(False, "3d", "3d", "silu", "sigmoid", "silu")
STREAM = Variant(True, "2plus1d", "2plus3d", "hard_swish", "hard_sigmoid", "silu")

VARIANTS: dict[str, Variant] = {
    "base": BASE,
    "base_2plus1d": replace(BASE, conv="2plus1d"),
    "causal": replace(STREAM, conv="3d"),
    "stream": STREAM,
    "stream_positional": replace(STREAM, positional=True),
}
"""Name → variant. Published streams are `stream` for A0 to A2 and `stream_positional` for A3 to A5."""


def stream_variant(name: str) -> str:
    """Return the variant of an architecture's published stream net."""
    return "stream_positional" if name in ("a3", "a4", "a5") else "stream"


def _table(stem: int, project: int, blocks: str, head: int = 2048) -> dict[str, Any]:
    """Return an entry; each line of `blocks` is `width stride: layers`, with `*n` after a layer that repeats."""
    rows = []
    for line in blocks.strip().splitlines():
        front, _, layers = line.partition(": ")
        width, stride = (int(part) for part in front.split())
        repeated = []
        for text in layers.split():
            layer, _, times = text.partition("*")
            repeated += [layer] * int(times or 1)
        rows.append({"width": width, "stride": stride, "layers": " ".join(repeated)})
    return {"stem": stem, "blocks": rows, "project": project, "head": head}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "t0": _table(8, 240, head=1024, blocks="""
8 2: 1x5x5:16
32 2: 3x3x3:72 1x5x5:72
56 2: 5x3x3:112 1x5x5:112 3x3x3:112
56 1: 5x3x3:184 1x5x5:184 3x3x3:184*2
104 2: 5x3x3:344 1x5x5:344*2 3x3x3:344
"""),
    "a0": _table(8, 480, """
8 2: 1x5x5:24
32 2: 3x3x3:80*3
56 2: 5x3x3:184 3x3x3:112 3x3x3:184
56 1: 5x3x3:184 3x3x3:184*3
104 2: 5x3x3:384 1x5x5:280*2 1x5x5:344
"""),
    "a1": _table(16, 600, """
16 2: 1x5x5:40 3x3x3:40
40 2: 3x3x3:96 3x3x3:120 3x3x3:96*2
64 2: 5x3x3:216 3x3x3:128 3x3x3:216 3x3x3:168 3x3x3:216
64 1: 5x3x3:216 3x3x3:216*2 3x3x3:128 1x5x5:128 3x3x3:216
136 2: 5x3x3:456 1x5x5:360*3 1x5x5:456 3x3x3:456 1x3x3:544
"""),
    "a2": _table(16, 640, """
16 2: 1x5x5:40 3x3x3:40 3x3x3:64
40 2: 3x3x3:96 3x3x3:120 3x3x3:96*2 3x3x3:120
72 2: 5x3x3:240 3x3x3:160 3x3x3:240 3x3x3:192 3x3x3:240
72 1: 5x3x3:240 3x3x3:240*3 1x5x5:144 3x3x3:240
144 2: 5x3x3:480 1x5x5:384*2 1x5x5:480*2 3x3x3:480 1x3x3:576
"""),
    "a3": _table(16, 744, """
16 2: 1x5x5:40 3x3x3:40 3x3x3:64 3x3x3:40
48 2: 3x3x3:112 3x3x3:144 3x3x3:112 1x5x5:112 3x3x3:144*2
80 2: 5x3x3:240 3x3x3:152 3x3x3:240 3x3x3:192 3x3x3:240
88 1: 5x3x3:264 3x3x3:264*3 1x5x5:160 3x3x3:264*3
168 2: 5x3x3:560 1x5x5:448*2 1x5x5:560*2 3x3x3:560 1x5x5:448*2 3x3x3:560 1x3x3:672
"""),
    "a4": _table(24, 856, """
24 2: 1x5x5:64 3x3x3:64 3x3x3:96 3x3x3:64 3x3x3:96 3x3x3:64
56 2: 3x3x3:168*2 3x3x3:136*2 3x3x3:168*3 1x5x5:136 3x3x3:136
96 2: 5x3x3:320 3x3x3:160 3x3x3:320 3x3x3:192 3x3x3:320 3x3x3:160 3x3x3:320 3x3x3:256 3x3x3:320
96 1: 5x3x3:320 3x3x3:320*3 1x5x5:192 3x3x3:320*2 3x3x3:192 3x3x3:320*2
192 2: 5x3x3:640 1x5x5:512*2 1x5x5:640*2 3x3x3:640 1x5x5:512*2 1x5x5:640 1x5x5:768 1x5x5:640 3x3x3:640 3x3x3:768
"""),
    "a5": _table(24, 992, """
24 2: 1x5x5:64*2 3x3x3:96 3x3x3:64 3x3x3:96 3x3x3:64
64 2: 5x3x3:192 3x3x3:152*3 3x3x3:192*3 3x3x3:152*2 3x3x3:192*2
112 2: 5x3x3:376 3x3x3:224 3x3x3:376*2 3x3x3:296 3x3x3:376 3x3x3:224 3x3x3:376*2 3x3x3:296 3x3x3:376*3
120 1: 5x3x3:376 3x3x3:376*3 1x5x5:224 3x3x3:376*2 3x3x3:224 3x3x3:376*3
224 2: 5x3x3:744 3x3x3:744 1x5x5:600*2 1x5x5:744*2 3x3x3:744 1x5x5:896 1x5x5:600*2 1x5x5:896 1x5x5:744 3x3x3:744 \
1x5x5:896 1x5x5:600*2 1x5x5:744 3x3x3:744
"""),
}  # fmt: skip
"""Name → entry. T0 exists in the authors' code only."""


def architecture(value: str | Mapping[str, Any]) -> MoViNetLayout:
    """Return the layout of a name of `ARCHITECTURES` or of an entry.

    Raises:
        ValueError: unknown name, or no valid entry.
    """
    if isinstance(value, str):
        if value not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {value!r}; known: {', '.join(ARCHITECTURES)}, or an entry")
        value = ARCHITECTURES[value]
    return MoViNetLayout.parse(value)


# --- what every layer looks like in a variant -------------------------------------------------------


def gate_widths(expand: int, squeeze: Squeeze) -> tuple[int, int]:
    """Return the input and hidden channels of a gate (§5.3 of the released code: rounded with the guard)."""
    if squeeze == "2plus3d":
        return 2 * expand, round_channels(2 * SE_RATIO * expand)
    return expand, round_channels(SE_RATIO * expand)


@dataclass(frozen=True)
class Place:
    """A layer with what surrounds it."""

    name: str
    """`blocks.<i>.<j>`, as in the network's parameters."""
    layer: Layer
    in_channels: int
    out_channels: int
    stride: int

    @property
    def projects_skip(self) -> bool:
        """Whether the skip has a convolution, because stride or channels change."""
        return self.stride != 1 or self.in_channels != self.out_channels


def places(layout: MoViNetLayout) -> list[Place]:
    """Return all bottleneck layers, in order."""
    found = []
    channels = layout.stem
    for i, block in enumerate(layout.blocks):
        for j, layer in enumerate(block.layers):
            stride = block.stride if j == 0 else 1
            found.append(Place(f"blocks.{i}.{j}", layer, channels, block.width, stride))
            channels = block.width
    return found
