"""R3D, MC3 and R(2+1)D (Tran et al. 2018, arXiv 1711.11248) as torchvision has them.

The stem has strides 1×2×2 and no pool follows, so a net costs four to five times what the form of the same name in
`training.backbones.hara_resnet3d` does. Names in the state dict are torchvision's (`stem.0`, `layer1.0.conv1.0`, …,
`fc`), so that its files load by path.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from training.backbones.video_input import check_minimum, clip_size
from training.backbones.width import scaled_channels
from training.core.weights import Convert

__all__ = ["LAYOUTS", "MODELS", "Midplanes", "VideoResNet", "midplanes_of"]

Kind = Literal["3d", "2d", "2plus1d"]
"""Convolution of a block: 3×3×3, 1×3×3, or 1×3×3 and then 3×1×1."""

Midplanes = Literal["block", "conv"]
"""Rule for the channels between the two halves of a (2+1)-D convolution, see `VideoResNet`."""

_ALL_3D: tuple[Kind, ...] = ("3d", "3d", "3d", "3d")
_MIXED: tuple[Kind, ...] = ("3d", "2d", "2d", "2d")
_FACTORISED: tuple[Kind, ...] = ("2plus1d", "2plus1d", "2plus1d", "2plus1d")

MODELS: dict[str, tuple[tuple[Kind, ...], tuple[int, ...]]] = {
    "r3d_18": (_ALL_3D, (2, 2, 2, 2)),
    "r3d_34": (_ALL_3D, (3, 4, 6, 3)),
    "mc3_18": (_MIXED, (2, 2, 2, 2)),
    "r2plus1d_18": (_FACTORISED, (2, 2, 2, 2)),
    "r2plus1d_34": (_FACTORISED, (3, 4, 6, 3)),
}
"""Name → convolution and number of blocks of each stage. torchvision publishes the nets of 18 layers; those of 34 are
the paper's, built by the same rules."""

STEM_MIDPLANES = 45
"""Channels inside the factorised stem; the formula of `midplanes_of` would give 83."""


def midplanes_of(in_channels: int, out_channels: int, frames: int = 3, side: int = 3) -> int:
    """Return the channels between 1×d×d and t×1×1 with which a pair has the parameters of a t×d×d convolution.

    M = ⌊t·d²·in·out / (d²·in + t·out)⌋, section 3.5 of the paper.
    """
    area = side * side
    return frames * area * in_channels * out_channels // (area * in_channels + frames * out_channels)


def _conv(kind: Kind, in_channels: int, out_channels: int, midplanes: int, stride: int, eps: float) -> nn.Module:
    if kind == "3d":
        return nn.Conv3d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    if kind == "2d":
        return nn.Conv3d(in_channels, out_channels, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False)
    return nn.Sequential(
        nn.Conv3d(in_channels, midplanes, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(midplanes, eps=eps),
        nn.ReLU(inplace=True),
        nn.Conv3d(midplanes, out_channels, (3, 1, 1), (stride, 1, 1), padding=(1, 0, 0), bias=False),
    )


class VideoBasicBlock(nn.Module):
    """Two convolutions of one kind with an identity or projected shortcut."""

    def __init__(
        self, kind: Kind, in_channels: int, out_channels: int, stride: int, rule: Midplanes, eps: float
    ) -> None:
        super().__init__()
        first = midplanes_of(in_channels, out_channels)
        second = first if rule == "block" else midplanes_of(out_channels, out_channels)
        self.conv1 = nn.Sequential(
            _conv(kind, in_channels, out_channels, first, stride, eps),
            nn.BatchNorm3d(out_channels, eps=eps),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(
            _conv(kind, out_channels, out_channels, second, 1, eps), nn.BatchNorm3d(out_channels, eps=eps)
        )
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            strides = (1 if kind == "2d" else stride, stride, stride)
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, strides, bias=False), nn.BatchNorm3d(out_channels, eps=eps)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,out_channels,⌈T/s⌉,⌈H/stride⌉,⌈W/stride⌉); s is the stride, or 1 in blocks of kind `2d`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu(self.conv2(self.conv1(x)) + shortcut))


def _stem(factorised: bool, in_channels: int, out_channels: int, width: float, eps: float) -> nn.Sequential:
    if not factorised:
        return nn.Sequential(
            nn.Conv3d(in_channels, out_channels, (3, 7, 7), (1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(out_channels, eps=eps),
            nn.ReLU(inplace=True),
        )
    # 45 is no multiple of 8 and must stay at the published width.
    inside = STEM_MIDPLANES if width == 1 else scaled_channels(STEM_MIDPLANES, width)
    return nn.Sequential(
        nn.Conv3d(in_channels, inside, (1, 7, 7), (1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(inside, eps=eps),
        nn.ReLU(inplace=True),
        nn.Conv3d(inside, out_channels, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(out_channels, eps=eps),
        nn.ReLU(inplace=True),
    )


class VideoResNet(nn.Module):
    """R3D, MC3 or R(2+1)D over clips, 16×112×112 as published.

    Convolutions start from the normal distribution of He et al. (fan-out), `fc` from one of deviation 0.01 with bias 0,
    as in torchvision.

    Args:
        model: key of `MODELS`.
        num_classes: classes of the head `fc`.
        dropout: rate before `fc`; torchvision has none.
        width: multiplier of all channel counts.
        midplanes: `block`, as torchvision: both factorised convolutions of a block have the inner channels that follow
            from the block's input and output. `conv`, as the paper and its Caffe2 code: each has those that follow from
            its own. The first blocks of stages 2 to 4 differ: 31.5 and 33.4 M parameters at depth 18 (the paper's 33.3
            is without batch norms). Without meaning where nothing is factorised.
        in_channels: channels of the clips.
        norm_eps: of all batch norms; weights converted from Caffe2 (IG-65M) were made with 1e-3.

    Raises:
        ValueError: unknown model or rule.
    """

    heads: ClassVar[tuple[str, ...]] = ("fc.*",)

    def __init__(
        self,
        model: str = "r2plus1d_18",
        *,
        num_classes: int = 400,
        dropout: float = 0.0,
        width: float = 1.0,
        midplanes: Midplanes = "block",
        in_channels: int = 3,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if model not in MODELS:
            raise ValueError(f"no video ResNet {model!r}; known: {', '.join(MODELS)}")
        if midplanes not in ("block", "conv"):
            raise ValueError(f"midplanes must be 'block' or 'conv', got {midplanes!r}")
        self.model, self.in_channels = model, in_channels
        kinds, counts = MODELS[model]
        channels = scaled_channels(64, width)
        self.stem = _stem(kinds[0] == "2plus1d", in_channels, channels, width, norm_eps)
        for index, (kind, count) in enumerate(zip(kinds, counts, strict=True)):
            out_channels = scaled_channels(64 * 2**index, width)
            blocks = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(VideoBasicBlock(kind, channels, out_channels, stride, midplanes, norm_eps))
                channels = out_channels
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return the modules from the input to the classifier, which together hold every parameter once."""
        return [(name, getattr(self, name)) for name in ("stem", "layer1", "layer2", "layer3", "layer4", "fc")]

    def check_input(self, frames: int, height: int, width: int) -> None:
        """Refuse pictures smaller than the strides; a clip may be shorter, one place of time is then left.

        Raises:
            ValueError: no frame, or sides below 16 pixels.
        """
        check_minimum(self.model, (frames, height, width), (1, 16, 16))

    def features_map(self, video_BCTHW: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,512,⌈T/8⌉,⌈H/16⌉,⌈W/16⌉); MC3 keeps all T frames.

        Raises:
            ValueError: see `check_input`.
        """
        self.check_input(*clip_size(video_BCTHW, self.in_channels))
        x: Tensor = self.stem(video_BCTHW)
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
        return x

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """(B,C,T,H,W) → logits (B,num_classes)."""
        return cast(Tensor, self.fc(self.dropout(self.features_map(video_BCTHW).mean(dim=(2, 3, 4)))))


def _torchvision(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    return state


LAYOUTS: dict[str, Convert] = {"torchvision": _torchvision}
"""Layout of a weight file → converter for `load_weights`. `torchvision`: names and shapes are ours already; IG-65M's
converted nets of 34 layers have them too, with `midplanes="conv"`."""
