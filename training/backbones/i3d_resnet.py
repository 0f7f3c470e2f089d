"""I3D with ResNet-50: an image ResNet with every second bottleneck inflated in time.

After Carreira & Zisserman 2017; this form is the baseline of Wang et al. 2018, "Non-local Neural Networks".

This is MMAction2's `i3d_r50_32x2x1`: the stem halves time twice (conv 5×7×7 and max-pool 1×3×3, both of stride 2³), and
a max-pool over pairs of frames after the first stage halves it again.

Cost of a clip 3×32×224² is 33.1 GMAC. MMAction2 prints 43.5 G, which is a clip of 3×32×256² with normalisations,
activations and pools counted as well (43,564,040,192). Parameters are 28.04 M in both.
"""

import re
from collections.abc import Mapping
from typing import ClassVar, cast

from torch import Tensor, nn

from training.backbones.width import scaled_channels
from training.core.weights import Convert
from training.layers.conv3d import FoldedConv3d, FoldedMaxPool3d, Triple
from training.layers.inflate import inflate_2d

__all__ = ["INFLATED", "LAYOUTS", "I3DResNet"]

INFLATED: tuple[tuple[bool, ...], ...] = (
    (True, True, True),
    (True, False, True, False),
    (True, False, True, False, True, False),
    (False, True, False),
)
"""Per stage and block of ResNet-50, whether its first convolution covers 3 frames."""

EXPANSION = 4
MIN_FRAMES = 4
"""Frames needed without the pool after the first stage; with it twice as many."""
MIN_SIZE = 32


def _conv(in_channels: int, out_channels: int, kernel: Triple, stride: Triple, folded: bool) -> FoldedConv3d:
    conv = FoldedConv3d(in_channels, out_channels, kernel, stride, padding="symmetric", folded=folded)
    if not conv.weight.is_meta:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class InflatedBottleneck(nn.Module):
    """k_t×1×1, 1×3×3 (strided in space) and 1×1×1 convolution with a shortcut."""

    def __init__(self, in_channels: int, channels: int, *, frames: int, stride: int, folded: bool) -> None:
        super().__init__()
        out_channels, strides = channels * EXPANSION, (1, stride, stride)
        self.conv1 = _conv(in_channels, channels, (frames, 1, 1), (1, 1, 1), folded)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = _conv(channels, channels, (1, 3, 3), strides, folded)
        self.bn2 = nn.BatchNorm3d(channels)
        self.conv3 = _conv(channels, out_channels, (1, 1, 1), (1, 1, 1), folded)
        self.bn3 = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                _conv(in_channels, out_channels, (1, 1, 1), strides, folded), nn.BatchNorm3d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,4·channels,T,⌈H/stride⌉,⌈W/stride⌉)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return cast(Tensor, self.relu(self.bn3(self.conv3(x)) + shortcut))


class Stem(nn.Module):
    """Convolution 5×7×7, batch norm, ReLU, and the max-pool 1×3×3; both strides are 2 along every axis."""

    def __init__(self, in_channels: int, channels: int, *, folded: bool) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, (5, 7, 7), (2, 2, 2), folded)
        self.bn1 = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = FoldedMaxPool3d((1, 3, 3), (2, 2, 2), padding="symmetric", folded=folded)

    def forward(self, x: Tensor) -> Tensor:
        """(B,in_channels,T,H,W) → (B,channels,⌈T/4⌉,⌈H/4⌉,⌈W/4⌉)."""
        return cast(Tensor, self.maxpool(self.relu(self.bn1(self.conv1(x)))))


class I3DResNet(nn.Module):
    """Inflated ResNet-50 over RGB videos.

    Names in the state dict are torchvision's of ResNet-50, with `stem.` before `conv1` and `bn1`. Convolutions start
    with He's normal draw (fan-out), norms at 1 and 0, the head with deviation 0.01, as MMAction2 does.

    Args:
        num_classes: classes of the head `fc`.
        dropout: rate before `fc`.
        width: multiplies all channel counts; 1 is the published net.
        in_channels: 3 for RGB, 2 for optical flow.
        temporal_pool: whether to max-pool over pairs of frames after the first stage, as published. Without, cost at
            3×32×224² is 49.6 GMAC; the same weights fit.
        folded: compute with 2-D operators over frames where that is the same (`training.layers.conv3d`).

    Raises:
        ValueError: a width that is not positive.
    """

    heads: ClassVar[tuple[str, ...]] = ("fc.*",)

    def __init__(
        self,
        *,
        num_classes: int,
        dropout: float = 0.5,
        width: float = 1.0,
        in_channels: int = 3,
        temporal_pool: bool = True,
        folded: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        channels = scaled_channels(64, width)
        self.stem = Stem(in_channels, channels, folded=folded)
        for number, inflated in enumerate(INFLATED, start=1):
            inside = scaled_channels(32 * 2**number, width)
            blocks: list[nn.Module] = []
            for position, wide in enumerate(inflated):
                stride = 2 if number > 1 and position == 0 else 1
                blocks.append(
                    InflatedBottleneck(channels, inside, frames=3 if wide else 1, stride=stride, folded=folded)
                )
                channels = inside * EXPANSION
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.pool2 = nn.MaxPool3d((2, 1, 1), (2, 1, 1)) if temporal_pool else None
        self.out_channels = channels
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return what holds the parameters, from input to classifier."""
        return [(name, getattr(self, name)) for name in ("stem", "layer1", "layer2", "layer3", "layer4", "fc")]

    def check_input(self, frames: int, height: int, width: int) -> None:
        """Check a clip's size.

        Raises:
            ValueError: too few frames or pixels, with what is needed.
        """
        least = MIN_FRAMES if self.pool2 is None else 2 * MIN_FRAMES
        if frames < least or min(height, width) < MIN_SIZE:
            raise ValueError(
                f"I3D-ResNet needs at least {least} frames of {MIN_SIZE}×{MIN_SIZE} pixels, "
                f"got {frames} of {height}×{width}"
            )

    def features_map(self, video_BCTHW: Tensor) -> Tensor:
        """(B,in_channels,T,H,W) → (B,out_channels,⌈T/4⌉,⌈H/32⌉,⌈W/32⌉)."""
        x = self.stem(video_BCTHW)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
            if number == 1 and self.pool2 is not None:
                x = self.pool2(x)
        return cast(Tensor, x)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """(B,in_channels,T,H,W) → logits (B,num_classes).

        Raises:
            ValueError: see `check_input`.
        """
        self.check_input(*video_BCTHW.shape[2:])
        pooled = self.features_map(video_BCTHW).mean(dim=(2, 3, 4))
        return cast(Tensor, self.fc(self.dropout(pooled)))


# --- published weights ------------------------------------------------------------------------

_MMACTION2_CONV = re.compile(r"(layer[1-4]\.\d+\.)(conv|downsample)([123]?)\.(conv|bn)\.(\w+)")


def from_mmaction2(state: Mapping[str, Tensor], network: I3DResNet) -> dict[str, Tensor]:
    """Translate MMAction2's `i3d_r50` (names like `backbone.layer1.0.conv1.bn.weight`, `cls_head.fc_cls.weight`)."""

    def name(old: str) -> str:
        new = old.removeprefix("backbone.")
        if new.startswith("cls_head.fc_cls."):
            return "fc." + new.removeprefix("cls_head.fc_cls.")
        for part, ours in (("conv1.conv.", "stem.conv1."), ("conv1.bn.", "stem.bn1.")):
            if new.startswith(part):
                return ours + new.removeprefix(part)
        match = _MMACTION2_CONV.fullmatch(new)
        if match is None:
            return old
        block, kind, number, layer, leaf = match.groups()
        if kind == "downsample":
            return f"{block}downsample.{0 if layer == 'conv' else 1}.{leaf}"
        return f"{block}{layer}{number}.{leaf}"

    return {name(old): value for old, value in state.items()}


def from_image_resnet(state: Mapping[str, Tensor], network: I3DResNet) -> dict[str, Tensor]:
    """Inflate torchvision's ResNet-50; its `fc` is one of other classes, so load with `ignore=network.heads`."""
    sizes = {name: value.shape for name, value in network.state_dict().items()}
    result: dict[str, Tensor] = {}
    for old, value in state.items():
        name = f"stem.{old}" if old.startswith(("conv1.", "bn1.")) else old
        size = sizes.get(name)
        inflates = size is not None and len(size) == 5 and value.dim() == 4
        result[name] = inflate_2d(value, size[2]) if inflates and size is not None else value
    return result


LAYOUTS: dict[str, Convert] = {"mmaction2": from_mmaction2, "torchvision_resnet50": from_image_resnet}
"""Layout of a published file → what translates it, for `load_weights(net, file, convert=…, ignore=net.heads)`."""
