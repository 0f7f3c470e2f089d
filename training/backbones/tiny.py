"""Small convolutional nets for the CPU demo: a few million MACs on frames of 16 to 64 pixels."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones.resnet import BasicBlock


class ConvStage(nn.Sequential):
    """3×3 convolution, batch norm, ReLU; then `blocks` residual blocks at that resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, blocks: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            *(BasicBlock(out_channels, out_channels) for _ in range(blocks)),
        )


class TinyConvNet(nn.Module):
    """Stages of 3×3 convolutions, each after the first at half the resolution of the one before.

    Args:
        channels: output channels per stage.
        blocks: residual blocks after each stage's convolution (0: plain convolutions).
        num_classes: classes of the head `fc`; None leaves the head out.
        input_size: side to which inputs are averaged down first (pixels); None takes them as they are.
            A glance net that must not see fine texture gets its coarse view here.
        stem_stride: stride of the first stage.
        in_channels: channels of the images.

    Raises:
        ValueError: no stage, or an input smaller than `input_size`.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (16, 32, 64),
        *,
        blocks: int = 0,
        num_classes: int | None = None,
        input_size: int | None = None,
        stem_stride: int = 1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels must name at least one stage")
        self.input_size = input_size
        stages: list[nn.Module] = []
        previous = in_channels
        for index, width in enumerate(channels):
            stages.append(ConvStage(previous, width, stem_stride if index == 0 else 2, blocks))
            previous = width
        self.stages = nn.Sequential(*stages)
        self.temporal_pools = tuple(range(1, len(stages)))
        """After how many of `parts` a pool over time belongs, where the images are frames: between the stages."""
        self.out_channels = previous
        self.fc = None if num_classes is None else nn.Linear(previous, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def parts(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Return what `features_map` is the composition of: the stages, the first one with the averaging before it."""
        return (self._first, *list(self.stages)[1:])

    def _first(self, x: Tensor) -> Tensor:
        first: Tensor = self.stages[0](self._reduced(x))
        return first

    def _reduced(self, x: Tensor) -> Tensor:
        """Average down to `input_size`."""
        if self.input_size is not None and tuple(x.shape[-2:]) != (self.input_size, self.input_size):
            if min(x.shape[-2:]) < self.input_size:
                raise ValueError(f"input of {tuple(x.shape[-2:])} px is smaller than input_size {self.input_size}")
            # Area averaging: no aliasing, so fine texture really is gone.
            x = F.adaptive_avg_pool2d(x, self.input_size)
        return x

    def features_map(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → (N,out_channels,h,w)."""
        features: Tensor = self.stages(self._reduced(x))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(N,in_channels,H,W) → pooled (N,out_channels), or logits (N,num_classes) with a head."""
        pooled = self.features_map(x).mean(dim=(2, 3))
        if self.fc is None:
            return pooled
        logits: Tensor = self.fc(pooled)
        return logits
