"""3D-ResNets (Hara et al. 2018, arXiv 1711.09577) and their R(2+1)D form, as in the authors' code.

The stem covers 7 frames, and a max-pool of stride 2³ follows it: a net costs a quarter to a fifth of the one of the
same name in `training.backbones.video_resnet`. Names in the state dict are the authors' (`conv1`, `bn1`,
`layer1.0.conv1`, …, `fc`; in the R(2+1)D form `conv1_s`, `bn1_s`, `conv1_t`, `bn1_t`, …), so that their files load by
path.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones.video_input import check_minimum, clip_size
from training.backbones.video_resnet import midplanes_of
from training.backbones.width import scaled_channels
from training.core.weights import Convert

__all__ = ["DEPTHS", "LAYOUTS", "Form", "HaraResNet3D", "Shortcut"]

Form = Literal["r3d", "r2plus1d"]
Shortcut = Literal["A", "B"]
"""A: every second place, and zeros as the new channels. B: a strided convolution 1×1×1 with batch norm."""

DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    10: ("basic", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}
"""Depth → kind of block, blocks per stage."""

EXPANSION = 4
"""Output channels of a bottleneck over its inner ones."""


class ZeroPadShortcut(nn.Module):
    """Shortcut A: subsamples and appends channels of zeros; no parameters.

    The authors' code cuts the gradient here (it reads `.data`); this one does not.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,C+new_channels,⌈T/stride⌉,⌈H/stride⌉,⌈W/stride⌉)."""
        step = self.stride
        return F.pad(x[:, :, ::step, ::step, ::step], (0, 0, 0, 0, 0, 0, 0, self.new_channels))


class HaraBlock(nn.Module):
    """Basic block (two 3×3×3 convolutions) or bottleneck (1×1×1, strided 3×3×3, 1×1×1) with a shortcut.

    In the R(2+1)D form each 3×3×3 convolution `conv<n>` is a pair: `conv<n>_s` 1×3×3 and `conv<n>_t` 3×1×1, with batch
    norm and ReLU between them and the inner channels of `midplanes_of`, computed for each pair.
    """

    def __init__(
        self, kind: str, in_channels: int, channels: int, *, stride: int, shortcut: Shortcut, form: Form
    ) -> None:
        super().__init__()
        out_channels = channels * (EXPANSION if kind == "bottleneck" else 1)
        self.num_convs = 3 if kind == "bottleneck" else 2
        if kind == "bottleneck":
            self._add(1, in_channels, channels, kernel=1, stride=1, form=form)
            self._add(2, channels, channels, kernel=3, stride=stride, form=form)
            self._add(3, channels, out_channels, kernel=1, stride=1, form=form)
        else:
            self._add(1, in_channels, channels, kernel=3, stride=stride, form=form)
            self._add(2, channels, channels, kernel=3, stride=1, form=form)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            if shortcut == "A":
                self.downsample = ZeroPadShortcut(out_channels - in_channels, stride)
            else:
                self.downsample = nn.Sequential(
                    nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm3d(out_channels)
                )

    def _add(self, number: int, in_channels: int, out_channels: int, *, kernel: int, stride: int, form: Form) -> None:
        if form == "r3d" or kernel == 1:
            conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", nn.BatchNorm3d(out_channels))
            return
        _add_pair(self, number, in_channels, out_channels, frames=3, side=3, strides=(stride, stride))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,out_channels,⌈T/stride⌉,⌈H/stride⌉,⌈W/stride⌉)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.num_convs + 1):
            x = _convolve(self, number, x)
            if number < self.num_convs:
                x = self.relu(x)
        return cast(Tensor, self.relu(x + shortcut))


def _add_pair(
    owner: nn.Module,
    number: int,
    in_channels: int,
    out_channels: int,
    *,
    frames: int,
    side: int,
    strides: tuple[int, int],
) -> None:
    """Give a module the pair of a t×d×d convolution; `strides` are those of time and space."""
    inside = midplanes_of(in_channels, out_channels, frames, side)
    in_time, in_space = strides
    half = side // 2
    spatial = nn.Conv3d(
        in_channels, inside, (1, side, side), (1, in_space, in_space), padding=(0, half, half), bias=False
    )
    temporal = nn.Conv3d(inside, out_channels, (frames, 1, 1), (in_time, 1, 1), padding=(frames // 2, 0, 0), bias=False)
    setattr(owner, f"conv{number}_s", spatial)
    setattr(owner, f"bn{number}_s", nn.BatchNorm3d(inside))
    setattr(owner, f"conv{number}_t", temporal)
    setattr(owner, f"bn{number}_t", nn.BatchNorm3d(out_channels))


def _convolve(owner: nn.Module, number: int, x: Tensor) -> Tensor:
    """Apply a module's convolution or pair, and the norm after it."""
    if hasattr(owner, f"conv{number}"):
        return cast(Tensor, getattr(owner, f"bn{number}")(getattr(owner, f"conv{number}")(x)))
    inside = getattr(owner, f"bn{number}_s")(getattr(owner, f"conv{number}_s")(x))
    return cast(
        Tensor, getattr(owner, f"bn{number}_t")(getattr(owner, f"conv{number}_t")(F.relu(inside, inplace=True)))
    )


class HaraResNet3D(nn.Module):
    """3-D ResNet over clips, 16×112×112 as published.

    Convolutions start from the normal distribution of He et al. (fan-out), `fc` as torch's linear layers, as in the
    authors' code.

    Args:
        depth: 10, 18, 34, 50, 101, 152 or 200.
        form: `r3d`, or `r2plus1d` with every convolution of more than one place factorised, also the stem's.
        num_classes: classes of the head `fc`.
        dropout: rate before `fc`; the authors have none.
        width: multiplier of all channel counts.
        shortcut: of blocks that change the size. The authors' first files (2018) have A for depths 18 and 34.
        stem_frames: extent of the stem in time, odd.
        stem_stride: stride of the stem in time; the authors' first code had 2 for clips of 32 frames and more.
        pool: max-pool of stride 2³ after the stem; False is `no_max_pool` of the authors' code.
        in_channels: channels of the clips.

    Raises:
        ValueError: unknown depth, form or shortcut, or an even `stem_frames`.
    """

    heads: ClassVar[tuple[str, ...]] = ("fc.*",)

    def __init__(
        self,
        depth: int = 18,
        *,
        form: Form = "r3d",
        num_classes: int = 400,
        dropout: float = 0.0,
        width: float = 1.0,
        shortcut: Shortcut = "B",
        stem_frames: int = 7,
        stem_stride: int = 1,
        pool: bool = True,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"no 3-D ResNet of depth {depth}; known: {', '.join(map(str, DEPTHS))}")
        if form not in ("r3d", "r2plus1d"):
            raise ValueError(f"form must be 'r3d' or 'r2plus1d', got {form!r}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be 'A' or 'B', got {shortcut!r}")
        if stem_frames < 1 or stem_frames % 2 == 0:
            raise ValueError(f"stem_frames must be odd, got {stem_frames}")
        self.depth, self.form, self.in_channels = depth, form, in_channels
        kind, counts = DEPTHS[depth]
        channels = scaled_channels(64, width)
        if form == "r3d":
            kernel, half = (stem_frames, 7, 7), stem_frames // 2
            strides = (stem_stride, 2, 2)
            self.conv1 = nn.Conv3d(in_channels, channels, kernel, strides, padding=(half, 3, 3), bias=False)
            self.bn1 = nn.BatchNorm3d(channels)
        else:
            _add_pair(self, 1, in_channels, channels, frames=stem_frames, side=7, strides=(stem_stride, 2))
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1) if pool else None
        for index, count in enumerate(counts):
            inside = scaled_channels(64 * 2**index, width)
            blocks = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(HaraBlock(kind, channels, inside, stride=stride, shortcut=shortcut, form=form))
                channels = inside * (EXPANSION if kind == "bottleneck" else 1)
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return the modules from the input to the classifier, which together hold every parameter once."""
        stem = ("conv1", "bn1") if self.form == "r3d" else ("conv1_s", "bn1_s", "conv1_t", "bn1_t")
        return [(name, getattr(self, name)) for name in (*stem, "layer1", "layer2", "layer3", "layer4", "fc")]

    def check_input(self, frames: int, height: int, width: int) -> None:
        """Refuse pictures smaller than the strides; a clip may be shorter, one place of time is then left.

        Raises:
            ValueError: no frame, or sides below 32 pixels (16 without the pool).
        """
        side = 16 if self.maxpool is None else 32
        check_minimum(f"3-D ResNet-{self.depth}", (frames, height, width), (1, side, side))

    def features_map(self, video_BCTHW: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,512 or 2048,⌈T/16⌉,⌈H/32⌉,⌈W/32⌉) as published.

        Raises:
            ValueError: see `check_input`.
        """
        self.check_input(*clip_size(video_BCTHW, self.in_channels))
        x = F.relu(_convolve(self, 1, video_BCTHW), inplace=True)
        if self.maxpool is not None:
            x = self.maxpool(x)
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
        return x

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """(B,C,T,H,W) → logits (B,num_classes)."""
        return cast(Tensor, self.fc(self.dropout(self.features_map(video_BCTHW).mean(dim=(2, 3, 4)))))


def _hara(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    result = {name.removeprefix("module."): value for name, value in state.items()}
    if len(result) != len(state):
        raise ValueError("the file has some tensors twice, with and without 'module.' before their names")
    return result


LAYOUTS: dict[str, Convert] = {"hara": _hara}
"""Layout of a weight file → converter for `load_weights`. `hara`: names are ours already, after a `module.`."""
