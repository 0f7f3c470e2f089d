"""BN-Inception (Ioffe & Szegedy 2015, arXiv 1502.03167) for images, whole and in the two parts of which ECO is made.

`BNInceptionLower` ends in the first two layers of block 3c's double branch (96 channels at 28² of 224²),
`BNInceptionUpper` is the rest. Pools round their output size up, as Caffe does: 224² → 112², 56², 28², 14², 7².

Published weights expect BGR pixels from 0 to 255 less (104,117,128). Networks here get RGB from 0 to 1, normalised with
`MEAN` and `STD`, and the converters of `LAYOUTS` change the first convolution so that the result is the same: its
channels turned around, and times 255·STD. So there is one input convention, and a file cannot be run with another one's
input.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones.width import scaled_channels
from training.core.weights import Convert

__all__ = ["LAYOUTS", "MEAN", "STD", "BNInception", "BNInceptionLower", "BNInceptionUpper", "rgb_first_conv"]

PIXEL_STD = 58.0
MEAN: tuple[float, float, float] = (128 / 255, 117 / 255, 104 / 255)
"""Of RGB frames from 0 to 1: the published nets' mean."""
STD: tuple[float, float, float] = (PIXEL_STD / 255,) * 3
"""One value for all channels, as the published nets have none: inputs lie between −2.21 and 2.61."""

Pool = Literal["average", "max"]


class Branches(NamedTuple):
    """Channels of a block of stride 1."""

    single: int
    """1×1."""
    triple: tuple[int, int]
    """1×1, 3×3."""
    double: tuple[int, int]
    """1×1; each of the two 3×3."""
    pooled: int
    """1×1 after the pool."""
    pool: Pool = "average"


class Reduction(NamedTuple):
    """Channels of a block of stride 2; besides its two branches it passes on the max-pooled input."""

    triple: tuple[int, int]
    double: tuple[int, int]


BLOCKS_3: dict[str, Branches] = {
    "inception_3a": Branches(64, (64, 64), (64, 96), 32),
    "inception_3b": Branches(64, (64, 96), (64, 96), 64),
}
REDUCTION_3C = Reduction((128, 160), (64, 96))
BLOCKS_4: dict[str, Branches] = {
    "inception_4a": Branches(224, (64, 96), (96, 128), 128),
    "inception_4b": Branches(192, (96, 128), (96, 128), 128),
    "inception_4c": Branches(160, (128, 160), (128, 160), 128),
    "inception_4d": Branches(96, (128, 192), (160, 192), 128),
}
REDUCTION_4E = Reduction((128, 192), (192, 256))
BLOCKS_5: dict[str, Branches] = {
    "inception_5a": Branches(352, (192, 320), (160, 224), 128),
    "inception_5b": Branches(352, (192, 320), (192, 224), 128, "max"),
}

MIN_SIZE = 32


class ConvNorm(nn.Module):
    """Convolution with bias, batch norm, ReLU; weights start Xavier-uniform, biases at 0."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        nn.init.xavier_uniform_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) → (N,out_channels,⌈H/stride⌉,⌈W/stride⌉)."""
        return cast(Tensor, self.relu(self.bn(self.conv(x))))


def _halving_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


class InceptionBlock(nn.Module):
    """Branches 1×1; 3×3; two of 3×3; pool and 1×1."""

    def __init__(self, in_channels: int, branches: Branches, width: float) -> None:
        super().__init__()
        (narrow3, wide3), (narrow9, wide9) = branches.triple, branches.double
        single, narrow3, wide3, narrow9, wide9, pooled = (
            scaled_channels(count, width)
            for count in (branches.single, narrow3, wide3, narrow9, wide9, branches.pooled)
        )
        self.conv1x1 = ConvNorm(in_channels, single, 1)
        self.conv3x3_reduce = ConvNorm(in_channels, narrow3, 1)
        self.conv3x3 = ConvNorm(narrow3, wide3, 3)
        self.double_3x3_reduce = ConvNorm(in_channels, narrow9, 1)
        self.double_3x3_1 = ConvNorm(narrow9, wide9, 3)
        self.double_3x3_2 = ConvNorm(wide9, wide9, 3)
        self.pool: nn.Module = (
            nn.MaxPool2d(3, stride=1, padding=1)
            if branches.pool == "max"
            else nn.AvgPool2d(3, stride=1, padding=1)  # places beyond the edge count as 0, as in Caffe
        )
        self.pool_proj = ConvNorm(in_channels, pooled, 1)
        self.out_channels = single + wide3 + wide9 + pooled

    def forward(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → (N,out_channels,H,W)."""
        double = self.double_3x3_2(self.double_3x3_1(self.double_3x3_reduce(x)))
        return torch.cat(
            [self.conv1x1(x), self.conv3x3(self.conv3x3_reduce(x)), double, self.pool_proj(self.pool(x))], dim=1
        )


class DoubleStart(nn.Module):
    """The first two layers of a reduction's double branch: 1×1 and 3×3."""

    def __init__(self, in_channels: int, reduction: Reduction, width: float) -> None:
        super().__init__()
        narrow, self.out_channels = (scaled_channels(count, width) for count in reduction.double)
        self.double_3x3_reduce = ConvNorm(in_channels, narrow, 1)
        self.double_3x3_1 = ConvNorm(narrow, self.out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → (N,out_channels,H,W)."""
        return cast(Tensor, self.double_3x3_1(self.double_3x3_reduce(x)))


class ReductionEnd(nn.Module):
    """What a reduction has besides `DoubleStart`: the branch of one 3×3, the second 3×3 of the double one, the pool."""

    def __init__(self, in_channels: int, reduction: Reduction, width: float) -> None:
        super().__init__()
        narrow, wide = (scaled_channels(count, width) for count in reduction.triple)
        double = scaled_channels(reduction.double[1], width)
        self.conv3x3_reduce = ConvNorm(in_channels, narrow, 1)
        self.conv3x3 = ConvNorm(narrow, wide, 3, 2)
        self.double_3x3_2 = ConvNorm(double, double, 3, 2)
        self.pool = _halving_pool()
        self.out_channels = wide + double + in_channels

    def forward(self, x: Tensor, double: Tensor) -> Tensor:
        """(N,in_channels,H,W) and the result of `DoubleStart` → (N,out_channels,⌈H/2⌉,⌈W/2⌉)."""
        height, width = x.shape[-2:]
        # Of an odd size n the convolutions make (n+1)/2 places and the pool (n-1)/2, so that the published net refuses
        # it. The input is the result of ReLUs and pools, so the zeros added here change no maximum.
        pooled = self.pool(F.pad(x, (0, width % 2, 0, height % 2)))
        return torch.cat([self.conv3x3(self.conv3x3_reduce(x)), self.double_3x3_2(double), pooled], dim=1)


class BNInceptionLower(nn.Module):
    """Everything up to block 3b, and the start of block 3c's double branch.

    Args:
        in_channels: channels of the images.
        width: multiplies all channel counts.
    """

    def __init__(self, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        narrow, wide = scaled_channels(64, width), scaled_channels(192, width)
        self.conv1_7x7_s2 = ConvNorm(in_channels, narrow, 7, 2)
        self.pool1 = _halving_pool()
        self.conv2_3x3_reduce = ConvNorm(narrow, narrow, 1)
        self.conv2_3x3 = ConvNorm(narrow, wide, 3)
        self.pool2 = _halving_pool()
        self.inception_3a = InceptionBlock(wide, BLOCKS_3["inception_3a"], width)
        self.inception_3b = InceptionBlock(self.inception_3a.out_channels, BLOCKS_3["inception_3b"], width)
        self.inception_3c = DoubleStart(self.inception_3b.out_channels, REDUCTION_3C, width)
        self.block_channels = self.inception_3b.out_channels
        self.out_channels = self.inception_3c.out_channels

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(N,in_channels,H,W) → block 3b's result (N,320,H/8,W/8) and the double branch's (N,96,H/8,W/8)."""
        x = self.pool1(self.conv1_7x7_s2(images_NCHW))
        x = self.pool2(self.conv2_3x3(self.conv2_3x3_reduce(x)))
        x = self.inception_3b(self.inception_3a(x))
        return x, self.inception_3c(x)

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return what holds the parameters, from input to output."""
        names = ("conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3", "inception_3a", "inception_3b", "inception_3c")
        return [(name, getattr(self, name)) for name in names]


class BNInceptionUpper(nn.Module):
    """The end of block 3c, and blocks 4a to 5b.

    Args:
        lower: the part whose result this one gets.
        width: multiplies all channel counts.
    """

    def __init__(self, lower: BNInceptionLower, width: float = 1.0) -> None:
        super().__init__()
        self.inception_3c = ReductionEnd(lower.block_channels, REDUCTION_3C, width)
        channels = self.inception_3c.out_channels
        for name, branches in BLOCKS_4.items():
            channels = self._add(name, channels, branches, width)
        self.inception_4e_start = DoubleStart(channels, REDUCTION_4E, width)
        self.inception_4e = ReductionEnd(channels, REDUCTION_4E, width)
        channels = self.inception_4e.out_channels
        for name, branches in BLOCKS_5.items():
            channels = self._add(name, channels, branches, width)
        self.out_channels = channels

    def _add(self, name: str, in_channels: int, branches: Branches, width: float) -> int:
        block = InceptionBlock(in_channels, branches, width)
        setattr(self, name, block)
        return block.out_channels

    def forward(self, x: Tensor, double: Tensor) -> Tensor:
        """Both results of `BNInceptionLower` → (N,1024,H/32,W/32)."""
        x = self.inception_3c(x, double)
        for name in BLOCKS_4:
            x = getattr(self, name)(x)
        x = self.inception_4e(x, self.inception_4e_start(x))
        for name in BLOCKS_5:
            x = getattr(self, name)(x)
        return x

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return what holds the parameters, from input to output."""
        names = ("inception_3c", *BLOCKS_4, "inception_4e_start", "inception_4e", *BLOCKS_5)
        return [(name, getattr(self, name)) for name in names]


class BNInception(nn.Module):
    """BN-Inception over images or the frames of videos.

    Args:
        num_classes: classes of the head `fc`; None leaves the head out.
        dropout: rate before `fc`.
        width: multiplies all channel counts; 1 is the published net.
        in_channels: 3 for RGB; stacked flow has 2 per frame.

    Raises:
        ValueError: a width that is not positive.
    """

    heads: ClassVar[tuple[str, ...]] = ("fc.*",)

    def __init__(
        self, *, num_classes: int | None = None, dropout: float = 0.8, width: float = 1.0, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.lower = BNInceptionLower(in_channels, width)
        self.upper = BNInceptionUpper(self.lower, width)
        self.out_channels = self.upper.out_channels
        self.dropout = nn.Dropout(dropout)
        self.fc = None if num_classes is None else nn.Linear(self.out_channels, num_classes)
        if self.fc is not None:
            nn.init.normal_(self.fc.weight, std=0.001)
            nn.init.zeros_(self.fc.bias)

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return what holds the parameters, from input to classifier."""
        head: list[tuple[str, nn.Module]] = [] if self.fc is None else [("fc", self.fc)]
        lower = [(f"lower.{name}", part) for name, part in self.lower.parts()]
        return [*lower, *((f"upper.{name}", part) for name, part in self.upper.parts()), *head]

    def check_input(self, frames: int, height: int, width: int) -> None:
        """Check an image's size; any number of frames will do.

        Raises:
            ValueError: too few pixels.
        """
        if min(height, width) < MIN_SIZE:
            raise ValueError(f"BN-Inception needs at least {MIN_SIZE}×{MIN_SIZE} pixels, got {height}×{width}")

    def features_map(self, images_NCHW: Tensor) -> Tensor:
        """(N,in_channels,H,W) → (N,out_channels,H/32,W/32)."""
        return cast(Tensor, self.upper(*self.lower(images_NCHW)))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """(N,in_channels,H,W) → pooled (N,out_channels), or logits (N,num_classes) with a head.

        Raises:
            ValueError: see `check_input`.
        """
        self.check_input(1, *images_NCHW.shape[2:])
        pooled = self.features_map(images_NCHW).mean(dim=(2, 3))
        return pooled if self.fc is None else cast(Tensor, self.fc(self.dropout(pooled)))


# --- published weights ------------------------------------------------------------------------


def rgb_first_conv(weight: Tensor) -> Tensor:
    """Change a first kernel for BGR pixels from 0 to 255 into one for RGB normalised with `MEAN` and `STD`.

    With the reference's input r = 255·v − mean in BGR and ours x = (v − MEAN)/STD in RGB, r is 255·STD·x with its
    channels turned around, for all v, and padding is 0 in both.

    Args:
        weight: (out,3,k,k).

    Raises:
        ValueError: not three channels.
    """
    if weight.dim() != 4 or weight.shape[1] != 3:
        raise ValueError(f"the first convolution must take 3 channels, BGR, but has the shape {tuple(weight.shape)}")
    return weight.flip(1) * PIXEL_STD


def public_name(name: str) -> str:
    """Return a tensor's published name: `lower.inception_3a.conv3x3.bn.bias` is `inception_3a_3x3_bn.bias`."""
    path, _, leaf = name.rpartition(".")
    path = path.removeprefix("lower.").removeprefix("upper.").replace("_4e_start.", "_4e.")
    layer, _, kind = path.rpartition(".")
    layer = layer.replace(".conv1x1", ".1x1").replace(".conv3x3", ".3x3").replace(".", "_")
    return f"{layer}{'_bn' if kind == 'bn' else ''}.{leaf}"


def translate_images(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Translate the published names of BN-Inception's layers to those of `network.lower` and `network.upper`.

    Norms of old files have tensors of (1,C), which become (C). The first convolution is changed by `rgb_first_conv`.

    Raises:
        ValueError: see `rgb_first_conv`.
    """
    names = {public_name(name): name for name in network.state_dict() if name.startswith(("lower.", "upper."))}
    result: dict[str, Tensor] = {}
    for old, value in state.items():
        if old.partition(".")[0].endswith("_bn") and value.dim() == 2 and value.shape[0] == 1:
            value = value.squeeze(0)
        if old == "conv1_7x7_s2.weight":
            value = rgb_first_conv(value)
        result[names.get(old, old)] = value
    return result


def from_yjxiong(state: Mapping[str, Tensor], network: BNInception) -> dict[str, Tensor]:
    """Translate yjxiong's BN-Inception (`conv1_7x7_s2.weight`, `inception_3a_1x1_bn.bias`, head `fc`)."""
    return translate_images(state, network)


def from_cadene(state: Mapping[str, Tensor], network: BNInception) -> dict[str, Tensor]:
    """Translate Cadene's BN-Inception: yjxiong's names, head `last_linear`."""
    head = {name: name.replace("last_linear.", "fc.", 1) for name in state if name.startswith("last_linear.")}
    return translate_images({head.get(name, name): value for name, value in state.items()}, network)


LAYOUTS: dict[str, Convert] = {"yjxiong": from_yjxiong, "cadene": from_cadene}
"""Layout of a published file → what translates it, for `load_weights(net, file, convert=…, ignore=net.heads)`."""
