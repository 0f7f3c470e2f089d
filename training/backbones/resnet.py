"""ResNet for images (He et al. 2016) with the stride in the 3×3 convolution ("v1.5").

Names and shapes of the state dict are those of torchvision's models, so its weight files load by path.
"""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""Depth → kind of block, blocks per stage."""


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with an identity or projected shortcut."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """Normalisation before the addition."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) → (N,width,H/stride,W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        result: Tensor = self.relu(x + shortcut)
        return result


class Bottleneck(nn.Module):
    """1×1, 3×3 (strided) and 1×1 convolution; 4·width output channels."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv1x1(width, width * self.expansion)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width * self.expansion, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """Normalisation before the addition."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) → (N,4·width,H/stride,W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        result: Tensor = self.relu(x + shortcut)
        return result


class ResNet(nn.Module):
    """Residual network over single images.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_classes: classes of the head `fc`; None leaves the head out.
        zero_init_residual: start each block as the identity (last normalisation's scale 0).
        in_channels: channels of the images.

    Raises:
        ValueError: unknown depth.
    """

    temporal_pools: ClassVar[tuple[int, ...]] = (2, 3, 4)
    """After how many of `parts` a pool over time belongs, where the images are frames: after `layer1` to `layer3`."""

    def __init__(
        self,
        depth: int = 50,
        num_classes: int | None = None,
        *,
        zero_init_residual: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"no ResNet of depth {depth}; known: {', '.join(map(str, DEPTHS))}")
        kind, blocks = DEPTHS[depth]
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock if kind == "basic" else Bottleneck
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for index, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
            stage: list[nn.Module] = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                stage.append(block(channels, width, stride))
                channels = width * block.expansion
            setattr(self, f"layer{index + 1}", nn.Sequential(*stage))
        self.out_channels = channels
        self.fc = None if num_classes is None else nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_(module.last_norm.weight)

    def stem(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → (N,64,⌈H/4⌉,⌈W/4⌉)."""
        pooled: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return pooled

    def parts(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Return what `features_map` is the composition of: the stem and the four stages."""
        return (self.stem, *(getattr(self, f"layer{index}") for index in range(1, 5)))

    def features(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → (N,out_channels,⌈H/32⌉,⌈W/32⌉)."""
        for part in self.parts():
            x = part(x)
        return x

    def features_map(self, x: Tensor) -> Tensor:
        """Same as `features`: the name shared by all backbones."""
        return self.features(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → pooled (N,out_channels), or logits (N,num_classes) with a head."""
        pooled = self.features(x).mean(dim=(2, 3))
        if self.fc is None:
            return pooled
        logits: Tensor = self.fc(pooled)
        return logits
