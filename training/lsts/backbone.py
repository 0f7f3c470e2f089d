"""ResNet for detection, cut in two (§2): a low-level network that sees every frame, and the rest for key frames.

Names and shapes of the state dict are those of torchvision's models, beside `feat`, the last convolution.
"""

from collections.abc import Iterator
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from training.backbones.resnet import DEPTHS, BasicBlock, Bottleneck
from training.core.config import ConfigError
from training.core.weights import WeightReport, load_published
from training.lsts.config import BackboneConfig
from training.lsts.fusion import new_conv

STEM = 64
"""Channels of the first convolution and width of the first stage's blocks, at width 1."""

FEATURE_DILATION = 6


def _strided(block: BasicBlock | Bottleneck, stride: int, dilation: int, downsample: str) -> None:
    """Set strides and dilations of a block's convolutions; the shortcut has its stride already."""
    convs = [block.conv1, block.conv2]
    if isinstance(block, Bottleneck):
        convs.append(block.conv3)
    first = isinstance(block, BasicBlock) or downsample == "first"
    for index, conv in enumerate(convs):
        side = stride if index == (0 if first else 1) else 1
        conv.stride = (side, side)
        if conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = (dilation, dilation)


def _sum(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """Return a block's result before its ReLU."""
    shortcut = x if block.downsample is None else block.downsample(x)
    x = block.relu(block.bn1(block.conv1(x)))
    x = block.bn2(block.conv2(x))
    if isinstance(block, Bottleneck):
        x = block.bn3(block.conv3(block.relu(x)))
    return x + shortcut


class SplitResNet(nn.Module):
    """Residual network with a dilated last stage, in two parts.

    Args:
        config: depth, width, where it is cut, what is frozen.

    Raises:
        ConfigError: a cut that stage 4 does not have, or one before it where the parts' maps then differ in size.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        kind, counts = DEPTHS[config.depth]
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock if kind == "basic" else Bottleneck
        if config.split > counts[2]:
            raise ConfigError(
                f"backbone.split is {config.split}, but stage 4 of a ResNet-{config.depth} has {counts[2]} blocks"
            )
        if config.split == 0 and config.stride == 16:
            raise ConfigError("backbone.split 0 ends before stage 4, whose first block has a stride; it needs stride 8")
        widths = [_scaled(STEM * 2**stage, config.width) for stage in range(4)]
        strides, dilations = ((1, 2, 2, 1), (1, 1, 1, 2)) if config.stride == 16 else ((1, 2, 1, 1), (1, 1, 2, 4))
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels, ends = widths[0], [widths[0]]
        for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
            blocks: list[BasicBlock | Bottleneck] = []
            for position in range(count):
                stride = strides[stage] if position == 0 else 1
                blocks.append(block(channels, width, stride))
                _strided(blocks[-1], stride, dilations[stage], config.downsample)
                channels = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            ends.append(channels)
        self.low_channels = ends[3] if config.split else ends[2]
        """Channels of the low-level network's result."""
        self.channels = config.feature_channels
        """Channels of the features."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.feat = new_conv(channels, config.feature_channels, 3, dilation=FEATURE_DILATION)
        for module in self.frozen():
            module.requires_grad_(False)

    # --- the two parts ----------------------------------------------------------------------------

    def _blocks(self) -> tuple[list[BasicBlock | Bottleneck], list[BasicBlock | Bottleneck]]:
        """Return the blocks of both parts."""
        stages = [list(getattr(self, f"layer{stage}")) for stage in range(1, 5)]
        cut = self.config.split
        return [*stages[0], *stages[1], *stages[2][:cut]], [*stages[2][cut:], *stages[3]]

    def low_parts(self) -> list[nn.Module]:
        """Return the modules of the low-level network; all others belong to the high-level one."""
        return [self.conv1, self.bn1, *self._blocks()[0]]

    def low(self, image_N3HW: Tensor) -> Tensor:
        """Images → low-level features (N,low_channels,⌈H/stride⌉,⌈W/stride⌉): the last block's sum before its ReLU."""
        x = F.relu(self.bn1(self.conv1(image_N3HW)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        blocks = self._blocks()[0]
        for block in blocks[:-1]:
            x = block(x)
        return _sum(blocks[-1], x)

    def high(self, low_NCHW: Tensor) -> Tensor:
        """Low-level features → features (N,channels,H,W) of the same size."""
        x = F.relu(low_NCHW)
        for block in self._blocks()[1]:
            x = block(x)
        return F.relu(self.feat(x), inplace=True)

    @override
    def forward(self, image_N3HW: Tensor) -> Tensor:
        """Images → features: both parts."""
        return self.high(self.low(image_N3HW))

    def feature_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the cells of images of this size, H and W."""
        stride = self.config.stride
        return -(-height // stride), -(-width // stride)

    # --- training ---------------------------------------------------------------------------------

    def frozen(self) -> Iterator[nn.Module]:
        """Yield what `config.frozen_stages` names; the stem is the first stage."""
        if self.config.frozen_stages:
            yield self.conv1
            yield self.bn1
        for stage in range(1, self.config.frozen_stages):
            yield getattr(self, f"layer{stage}")

    def load(self, root: Path) -> WeightReport | None:
        """Load `config.weights`, those of the classifier in torchvision's layout; `feat` keeps its own.

        Args:
            root: folder that a relative path starts from.

        Returns:
            What fitted, or None where no weights are named; the names of its head are in `ignored`.

        Raises:
            WeightError: see `load_published`.
        """
        if self.config.weights is None:
            return None
        return load_published(self, self.config.weights, root, ignore=("fc.*", "feat.*"))


def _scaled(channels: int, width: float) -> int:
    """Return a share of a number of channels: a multiple of 8, at least 8."""
    return max(round(channels * width / 8), 1) * 8
