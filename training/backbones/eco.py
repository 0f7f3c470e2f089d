"""ECO Lite and Full (Zolfaghari et al. 2018, "ECO: Efficient Convolutional Network for Online Video Understanding").

N frames, one of each N-th of a video, go one by one through the lower part of BN-Inception; their maps of 96 channels
are stacked to a volume, which a 3-D residual net reads. Full adds the upper part of BN-Inception on every frame, and
averages its results.

Input is RGB from 0 to 1, normalised with `MEAN` and `STD`. Published weights expect other input (BGR from 0 to 255 less
a mean), for which their converters change the first convolution: see `training.backbones.bninception`.
"""

import re
from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from training.backbones.bninception import (
    MEAN,
    STD,
    BNInceptionLower,
    BNInceptionUpper,
    translate_images,
)
from training.backbones.width import scaled_channels
from training.core.weights import Convert
from training.layers.conv3d import by_video, fold_frames, unfold_frames

__all__ = ["LAYOUTS", "MEAN", "PARTIAL", "STD", "ECOFull", "ECOLite"]

FRAME_MULTIPLE = 4
"""The volume's net halves time twice."""
MIN_SIZE = 32


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv3d:
    conv = nn.Conv3d(in_channels, out_channels, 3, stride, padding=1)
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class ResidualStage(nn.Module):
    """Two residual units of 3³ convolutions; the sums are passed on without a norm, which comes before the next use.

    The first stage has stride 1, and its first unit is a single convolution without a shortcut; the others start with
    stride 2 along every axis, and a strided 3³ convolution as shortcut.
    """

    def __init__(self, in_channels: int, channels: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        if not first:
            self.a_1 = _conv(in_channels, channels, 2)
            self.a_1_bn = nn.BatchNorm3d(channels)
            self.a_down = _conv(in_channels, channels, 2)
        self.a_2 = _conv(in_channels if first else channels, channels)
        self.a_bn = nn.BatchNorm3d(channels)
        self.b_1 = _conv(channels, channels)
        self.b_1_bn = nn.BatchNorm3d(channels)
        self.b_2 = _conv(channels, channels)
        self.b_bn = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B,in_channels,T,H,W) → (B,channels,⌈T/stride⌉,⌈H/stride⌉,⌈W/stride⌉)."""
        total = self.a_2(x) if self.first else self.a_2(self.relu(self.a_1_bn(self.a_1(x)))) + self.a_down(x)
        branch = self.relu(self.a_bn(total))
        total = total + self.b_2(self.relu(self.b_1_bn(self.b_1(branch))))
        return cast(Tensor, self.relu(self.b_bn(total)))


class VolumeNet(nn.Module):
    """The 3-D part: stages 3 to 5 of a residual net of 18 layers.

    Args:
        in_channels: channels of the stacked maps.
        width: multiplies all channel counts.
    """

    def __init__(self, in_channels: int, width: float = 1.0) -> None:
        super().__init__()
        c3, c4, self.out_channels = (scaled_channels(channels, width) for channels in (128, 256, 512))
        self.res3 = ResidualStage(in_channels, c3, first=True)
        self.res4 = ResidualStage(c3, c4, first=False)
        self.res5 = ResidualStage(c4, self.out_channels, first=False)

    def forward(self, volume_BCTHW: Tensor) -> Tensor:
        """(B,in_channels,N,H,W) → (B,out_channels,N/4,⌈H/4⌉,⌈W/4⌉)."""
        return cast(Tensor, self.res5(self.res4(self.res3(volume_BCTHW))))

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return what holds the parameters, from input to output."""
        return [("res3", self.res3), ("res4", self.res4), ("res5", self.res5)]


class ECOLite(nn.Module):
    """The lower part of BN-Inception on each frame, then a 3-D residual net.

    Convolutions and the head start Xavier-uniform, norms at 1 and 0, biases at 0, as the published code does.

    Args:
        num_classes: classes of the head `fc`.
        dropout: rate before `fc`, of the volume's features.
        width: multiplies all channel counts; 1 is the published net.

    Raises:
        ValueError: a width that is not positive.
    """

    heads: ClassVar[tuple[str, ...]] = ("fc.*",)

    def __init__(self, *, num_classes: int, dropout: float = 0.3, width: float = 1.0) -> None:
        super().__init__()
        self.lower = BNInceptionLower(width=width)
        self.upper = self._upper(width)
        self.volume = VolumeNet(self.lower.out_channels, width)
        self.out_channels = self.volume.out_channels + (0 if self.upper is None else self.upper.out_channels)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.out_channels, num_classes)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def _upper(self, width: float) -> BNInceptionUpper | None:
        return None

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return what holds the parameters, from input to classifier."""
        parts = [(f"lower.{name}", part) for name, part in self.lower.parts()]
        if self.upper is not None:
            parts += [(f"upper.{name}", part) for name, part in self.upper.parts()]
        return [*parts, *((f"volume.{name}", part) for name, part in self.volume.parts()), ("fc", self.fc)]

    def check_input(self, frames: int, height: int, width: int) -> None:
        """Check a clip's size.

        Raises:
            ValueError: frames that are no multiple of 4, or too few pixels.
        """
        if frames < 1 or frames % FRAME_MULTIPLE or min(height, width) < MIN_SIZE:
            raise ValueError(
                f"ECO needs a multiple of {FRAME_MULTIPLE} frames of at least {MIN_SIZE}×{MIN_SIZE} pixels, "
                f"got {frames} of {height}×{width}"
            )

    def frame_maps(self, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,N,H,W) → what `lower` makes of each frame: (B·N,320,H/8,W/8) and (B·N,96,H/8,W/8)."""
        return cast(tuple[Tensor, Tensor], self.lower(fold_frames(video_BCTHW)))

    def volume_features(self, maps_NCHW: Tensor, batch: int) -> Tensor:
        """(B·N,96,H,W) → the volume's features after dropout, (B,512)."""
        volume_BCTHW = unfold_frames(maps_NCHW, batch, maps_NCHW.shape[0] // batch)
        return cast(Tensor, self.dropout(self.volume(volume_BCTHW).mean(dim=(2, 3, 4))))

    def pooled(self, video_BCTHW: Tensor) -> Tensor:
        """(B,3,N,H,W) → what the head gets, (B,out_channels)."""
        return self.volume_features(self.frame_maps(video_BCTHW)[1], video_BCTHW.shape[0])

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """(B,3,N,H,W) → logits (B,num_classes).

        Raises:
            ValueError: see `check_input`.
        """
        self.check_input(*video_BCTHW.shape[2:])
        return cast(Tensor, self.fc(self.pooled(video_BCTHW)))


class ECOFull(ECOLite):
    """ECO Lite beside the upper part of BN-Inception: 1024 features averaged over frames, 512 of the volume.

    Args:
        num_classes: see `ECOLite`.
        dropout: see `ECOLite`.
        frame_dropout: rate for the frames' features, after averaging.
        width: see `ECOLite`.

    Raises:
        ValueError: a width that is not positive.
    """

    def __init__(
        self, *, num_classes: int, dropout: float = 0.3, frame_dropout: float = 0.5, width: float = 1.0
    ) -> None:
        super().__init__(num_classes=num_classes, dropout=dropout, width=width)
        self.frame_dropout = nn.Dropout(frame_dropout)

    def _upper(self, width: float) -> BNInceptionUpper:
        return BNInceptionUpper(self.lower, width)

    def pooled(self, video_BCTHW: Tensor) -> Tensor:
        """(B,3,N,H,W) → what the head gets, (B,out_channels): the frames' features, then the volume's."""
        assert self.upper is not None
        batch = video_BCTHW.shape[0]
        block, double = self.frame_maps(video_BCTHW)
        frames = by_video(self.upper(block, double).mean(dim=(2, 3)), batch).mean(dim=1)
        return torch.cat([self.frame_dropout(frames), self.volume_features(double, batch)], dim=1)


# --- published weights ------------------------------------------------------------------------

_UPPER_LAYER = re.compile(r"inception_(3c_(3x3|double_3x3_2)|4[a-e]_|5[ab]_)\w*\.\w+")
_VOLUME_LAYER = re.compile(r"(res[345])([ab]_\w+\.\w+)")
_NOT_IN_ECO = ("conv1", "res2", "res3a_1", "res3a_down", "fc8.", "fc_final.", "new_fc.")
"""Starts of the layers by which C3D-ResNet18 comes to the maps that ECO gets from images, and of its head."""


def _volume_name(name: str) -> str:
    """`res4a_1_bn.bias` → `volume.res4.a_1_bn.bias`; other names as they are."""
    match = _VOLUME_LAYER.fullmatch(name)
    return name if match is None else f"volume.{match[1]}.{match[2]}"


def from_eco_pytorch(state: Mapping[str, Tensor], network: ECOLite) -> dict[str, Tensor]:
    """Translate a checkpoint of ECO-pytorch, Lite or Full (`base_model.res3a_2.weight`, `new_fc.bias`).

    The first convolution is changed for our input, see `training.backbones.bninception.rgb_first_conv`.
    """
    names: dict[str, Tensor] = {}
    for old, value in state.items():
        name = old.removeprefix("base_model.")
        for head in ("new_fc.", "fc_final."):
            if name.startswith(head):
                name = f"fc.{name.removeprefix(head)}"
        names[_volume_name(name)] = value
    return translate_images(names, network)


def from_bninception(state: Mapping[str, Tensor], network: ECOLite) -> dict[str, Tensor]:
    """Take the 2-D part from a file of BN-Inception (yjxiong's or Cadene's names), as ECO starts its training.

    What ECO Lite does not have, and the file's head, are left out. Load with `ignore=(*PARTIAL["bninception"],
    *network.heads)`.
    """
    has_upper = any(name.startswith("upper.") for name in network.state_dict())
    return {
        name: value
        for name, value in translate_images(state, network).items()
        if not name.startswith(("fc.", "last_linear.")) and (has_upper or not _UPPER_LAYER.fullmatch(name))
    }


def from_c3d_resnet18(state: Mapping[str, Tensor], network: ECOLite) -> dict[str, Tensor]:
    """Take the 3-D part from ECO-pytorch's C3D-ResNet18 (`base_model.res3a_2.weight`), as ECO starts its training.

    There `res3a_2` gets the 128 channels of `res3a_1`, in ECO the frames' maps, which have 96. So only the first 96
    input channels of its kernel are kept, as in the published code (three of four groups). Which ones is arbitrary,
    since the channels of an image net mean something else; what counts is the kernel's scale and all layers after it.
    The layers before `res3a_2` and the head are left out. Load with `ignore=(*PARTIAL["c3d_resnet18"],
    *network.heads)`.

    Raises:
        ValueError: less channels than the network's maps have.
    """
    wanted = network.lower.out_channels
    result: dict[str, Tensor] = {}
    for old, value in state.items():
        name = old.removeprefix("base_model.")
        if name.startswith(_NOT_IN_ECO):
            continue
        if name == "res3a_2.weight":
            if value.shape[1] < wanted:
                raise ValueError(f"{old} has {value.shape[1]} input channels, the network's maps have {wanted}")
            value = value[:, :wanted]
        result[_volume_name(name)] = value
    return result


LAYOUTS: dict[str, Convert] = {
    "eco_pytorch": from_eco_pytorch,
    "bninception": from_bninception,
    "c3d_resnet18": from_c3d_resnet18,
}
"""Layout of a published file → what translates it, for `load_weights(net, file, convert=…, ignore=net.heads)`."""

PARTIAL: dict[str, tuple[str, ...]] = {
    "bninception": ("volume.*",),
    "c3d_resnet18": ("lower.*", "upper.*"),
}
"""Layout of files that hold a part of the network → patterns of what they lack, to be ignored besides `heads`."""
