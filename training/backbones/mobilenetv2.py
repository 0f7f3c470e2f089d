"""MobileNetV2 (Sandler et al. 2018).

Names and shapes of the state dict are those of torchvision's model, so its weight files load by path.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor, nn

from training.layers.same_conv import SameConv2d

Padding = Literal["torch", "tf_same"]

BLOCKS: tuple[tuple[int, int, int, int], ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, output channels, repetitions, stride of the first."""


def _conv_norm(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, padding: Padding
) -> nn.Sequential:
    kind = SameConv2d if padding == "tf_same" and kernel > 1 else nn.Conv2d
    conv = kind(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expansion (1×1), depth-wise 3×3, linear projection (1×1); added to its input where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, padding: Padding) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.adds_input = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv_norm(in_channels, hidden, 1, padding=padding))
        layers += [
            _conv_norm(hidden, hidden, 3, stride=stride, groups=hidden, padding=padding),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) → (N,out_channels,H/stride,W/stride)."""
        residual: Tensor = self.conv(x)
        return x + residual if self.adds_input else residual


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, never down by more than 10 %."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _first_block(channels: int) -> int:
    """Return the place in `features` of the first block of the stage that has so many channels at width 1."""
    stages = [stage_channels for _, stage_channels, _, _ in BLOCKS]
    return 1 + sum(repetitions for _, _, repetitions, _ in BLOCKS[: stages.index(channels)])


class MobileNetV2(nn.Module):
    """MobileNetV2 over single images.

    Args:
        num_classes: classes of the head; None leaves the head out.
        width: multiplier of all channel counts.
        dropout: before the head.
        padding: `torch` (symmetric, torchvision's weights) or `tf_same` (weights from TensorFlow and Keras).
        in_channels: channels of the images.
    """

    temporal_pools: ClassVar[tuple[int, ...]] = (1, 2)
    """After how many of `parts` a pool over time belongs, where the images are frames: before the stages of 64 and of
    160 channels."""

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        width: float = 1.0,
        dropout: float = 0.2,
        padding: Padding = "torch",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if padding not in ("torch", "tf_same"):
            raise ValueError(f"padding must be 'torch' or 'tf_same', got {padding!r}")
        channels = round_channels(32 * width)
        layers: list[nn.Module] = [_conv_norm(in_channels, channels, 3, stride=2, padding=padding)]
        for expansion, base, repetitions, first_stride in BLOCKS:
            out_channels = round_channels(base * width)
            for position in range(repetitions):
                stride = first_stride if position == 0 else 1
                layers.append(InvertedResidual(channels, out_channels, stride, expansion, padding))
                channels = out_channels
        self.out_channels = round_channels(1280 * max(1.0, width))
        layers.append(_conv_norm(channels, self.out_channels, 1, padding=padding))
        self.features = nn.Sequential(*layers)
        self.classifier = (
            None
            if num_classes is None
            else nn.Sequential(nn.Dropout(dropout), nn.Linear(self.out_channels, num_classes))
        )
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def parts(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Return what `features_map` is the composition of: cut before the stages of 64 and of 160 channels."""
        cuts = (0, *(_first_block(channels) for channels in (64, 160)), len(self.features))
        return tuple(partial(self._run, first, last) for first, last in pairwise(cuts))

    def _run(self, first: int, last: int, x: Tensor) -> Tensor:
        for index in range(first, last):
            x = self.features[index](x)
        return x

    def features_map(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → (N,out_channels,⌈H/32⌉,⌈W/32⌉)."""
        features: Tensor = self.features(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → pooled (N,out_channels), or logits (N,num_classes) with a head."""
        pooled = self.features_map(x).mean(dim=(2, 3))
        if self.classifier is None:
            return pooled
        logits: Tensor = self.classifier(pooled)
        return logits
