"""Image networks whose residual branches may read something else than the block's input: a temporally shifted one.

Their blocks are those of `training.backbones.resnet` and `training.backbones.mobilenetv2`, and so are the names in the
state dict.
"""

from typing import ClassVar, cast

from torch import Tensor, nn

from training.backbones.mobilenetv2 import InvertedResidual, MobileNetV2, Padding
from training.backbones.resnet import DEPTHS, BasicBlock, Bottleneck
from training.backbones.width import scaled_channels

__all__ = ["FRAME_NETS", "FrameMobileNetV2", "FrameResNet", "build_frame_net", "run_block"]

Block = BasicBlock | Bottleneck | InvertedResidual

FRAME_NETS: tuple[str, ...] = (*(f"resnet{depth}" for depth in DEPTHS), "mobilenetv2", "mobilenetv2_tf")
"""Names for `build_frame_net`; `_tf` pads as TensorFlow does, for weights that come from there."""

MANY_BLOCKS = 23
"""From so many blocks in `layer3` on, TSM shifts every second block only (ResNet-101 and deeper)."""


def run_block(block: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
    """Run a residual block whose branch reads `branch` while its shortcut reads `x`; both (N,C,H,W).

    With `branch` the same as `x` the result is the block's own.

    Raises:
        TypeError: no block that this file knows, or an inverted residual without shortcut.
    """
    if isinstance(block, InvertedResidual) and block.adds_input:
        return x + cast(Tensor, block.conv(branch))
    if not isinstance(block, BasicBlock | Bottleneck):
        raise TypeError(f"no residual block to shift: {type(block).__name__}")
    shortcut = x if block.downsample is None else block.downsample(x)
    y = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(branch)))))
    if isinstance(block, Bottleneck):
        y = block.bn3(block.conv3(block.relu(y)))
    return cast(Tensor, block.relu(y + shortcut))


class FrameResNet(nn.Module):
    """ResNet without a head: `training.backbones.resnet.ResNet` with a width.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: multiplier of all channel counts.
        in_channels: channels of the images.
    """

    pool_before: ClassVar[str | None] = "layer2.0"
    """Block before which TSM's variant with temporal pool halves the frames."""

    def __init__(self, depth: int, *, width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        kind, counts = DEPTHS[depth]
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock if kind == "basic" else Bottleneck
        channels = scaled_channels(64, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for index, count in enumerate(counts):
            inside = scaled_channels(64 * 2**index, width)
            stage: list[nn.Module] = []
            for position in range(count):
                stage.append(block(channels, inside, 2 if index > 0 and position == 0 else 1))
                channels = inside * block.expansion
            setattr(self, f"layer{index + 1}", nn.Sequential(*stage))
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def first_conv(self) -> nn.Conv2d:
        """Convolution of the images."""
        return self.conv1

    def part_names(self) -> tuple[str, ...]:
        """Return the names of the modules that hold all parameters, from the input on."""
        return ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")

    def stem(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → (N,64,⌈H/4⌉,⌈W/4⌉)."""
        return cast(Tensor, self.maxpool(self.relu(self.bn1(self.conv1(x)))))

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Return what follows the stem, by name."""
        stages = [(f"layer{index}", getattr(self, f"layer{index}")) for index in range(1, 5)]
        return [(f"{name}.{position}", block) for name, stage in stages for position, block in enumerate(stage)]

    def shift_places(self) -> tuple[str, ...]:
        """Return the names of the blocks that TSM shifts: all, of deep nets every second one of a stage."""
        step = 2 if len(cast(nn.Sequential, self.layer3)) >= MANY_BLOCKS else 1
        return tuple(name for name, _ in self.blocks() if int(name.partition(".")[2]) % step == 0)


class FrameMobileNetV2(MobileNetV2):
    """MobileNetV2 without a head. Its widths are rounded as `training.backbones.mobilenetv2.round_channels` does."""

    pool_before: ClassVar[str | None] = None

    def __init__(self, *, width: float = 1.0, in_channels: int = 3, padding: Padding = "torch") -> None:
        super().__init__(None, width=width, in_channels=in_channels, padding=padding)

    @property
    def first_conv(self) -> nn.Conv2d:
        """Convolution of the images."""
        return cast(nn.Conv2d, cast(nn.Sequential, self.features[0])[0])

    def part_names(self) -> tuple[str, ...]:
        """Return the names of the modules that hold all parameters, from the input on."""
        return tuple(f"features.{index}" for index in range(len(self.features)))

    def stem(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → (N,32,⌈H/2⌉,⌈W/2⌉)."""
        return cast(Tensor, self.features[0](x))

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Return what follows the stem, by name; the last one is the convolution to `out_channels`."""
        return [(f"features.{index}", block) for index, block in enumerate(self.features) if index > 0]

    def shift_places(self) -> tuple[str, ...]:
        """Return the names of the blocks that TSM shifts: those with an identity shortcut."""
        return tuple(
            name
            for name, block in self.blocks()
            # The block without expansion, `conv` of 3 members, has no first 1×1 convolution to shift before.
            if isinstance(block, InvertedResidual) and block.adds_input and len(block.conv) > 3
        )


def build_frame_net(name: str, *, width: float = 1.0, in_channels: int = 3) -> FrameResNet | FrameMobileNetV2:
    """Build an image network without a head by name.

    Raises:
        ValueError: not in `FRAME_NETS`.
    """
    if name not in FRAME_NETS:
        raise ValueError(f"no frame network {name!r}; known: {', '.join(FRAME_NETS)}")
    if name.startswith("mobilenetv2"):
        padding: Padding = "tf_same" if name.endswith("_tf") else "torch"
        return FrameMobileNetV2(width=width, in_channels=in_channels, padding=padding)
    return FrameResNet(int(name.removeprefix("resnet")), width=width, in_channels=in_channels)
