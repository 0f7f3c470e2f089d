"""C3D (Tran et al. 2015, arXiv 1412.0767): eight convolutions 3×3×3 and three dense layers.

Names in the state dict are those of the PyTorch conversion of the Sports-1M weights: `conv1`, `conv2`, `conv3a`, …,
`conv5b`, `fc6`, `fc7`, `fc8`; with batch norm also `bn1`, …, `bn5b`.
"""

from collections.abc import Mapping
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones.video_input import check_minimum, clip_size
from training.backbones.width import scaled_channels
from training.core.weights import Convert

__all__ = ["C3D", "CONVS", "LAYOUTS"]

CONVS: dict[str, int] = {
    "1": 64,
    "2": 128,
    "3a": 256,
    "3b": 256,
    "4a": 512,
    "4b": 512,
    "5a": 512,
    "5b": 512,
}
"""Name after `conv` → output channels."""

HIDDEN = 4096
"""Channels of `fc6` and `fc7`."""

PLACES = (1, 4, 4)
"""What is left of 16×112×112 after the last pool: frames, rows, columns."""

CLIP = (16, 112, 112)


class C3D(nn.Module):
    """C3D over clips of 16×112×112.

    Pools: 1×2×2 after `conv1`, then 2×2×2, the last with one place of padding in space. Convolutions start from the
    normal distribution of He et al. (fan-out), dense layers from one of deviation 0.005 with bias 0, as MMAction2
    trains it; Caffe's original has deviation 0.01 for convolutions, from which a deep net without norms hardly starts.

    Args:
        num_classes: classes of the head `fc8`.
        dropout: rate after `fc6` and `fc7`.
        width: multiplier of all channel counts.
        adaptive: average the last map down to 1×4×4, so that other sizes fit; at 16×112×112 this changes nothing, and
            weights are the same.
        batch_norm: put batch norms after the convolutions, which then have no bias; the paper has none.
        in_channels: channels of the clips.
    """

    heads: ClassVar[tuple[str, ...]] = ("fc8.*",)

    def __init__(
        self,
        *,
        num_classes: int = 400,
        dropout: float = 0.5,
        width: float = 1.0,
        adaptive: bool = False,
        batch_norm: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.in_channels, self.adaptive, self.batch_norm = in_channels, adaptive, batch_norm
        channels = in_channels
        for name, base in CONVS.items():
            out_channels = scaled_channels(base, width)
            setattr(self, f"conv{name}", nn.Conv3d(channels, out_channels, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                setattr(self, f"bn{name}", nn.BatchNorm3d(out_channels))
            channels = out_channels
        hidden = scaled_channels(HIDDEN, width)
        self.fc6 = nn.Linear(channels * PLACES[0] * PLACES[1] * PLACES[2], hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.005)
                nn.init.zeros_(module.bias)

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return the modules from the input to the classifier, which together hold every parameter once."""
        names = []
        for name in CONVS:
            names += [f"conv{name}", f"bn{name}"] if self.batch_norm else [f"conv{name}"]
        return [(name, getattr(self, name)) for name in (*names, "fc6", "fc7", "fc8")]

    def check_input(self, frames: int, height: int, width: int) -> None:
        """Refuse clips that do not fit `fc6`.

        Raises:
            ValueError: not 16×112×112; with `adaptive`, fewer than 16 frames or sides below 16 pixels.
        """
        size = (frames, height, width)
        if self.adaptive:
            check_minimum("adaptive C3D", size, (16, 16, 16))
        elif size != CLIP:
            raise ValueError(
                f"C3D needs exactly 16 frames of 112×112 pixels, got {frames} of {height}×{width}; "
                f"adaptive=True takes other sizes"
            )

    def features_map(self, video_BCTHW: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,512,1,4,4).

        Raises:
            ValueError: see `check_input`.
        """
        self.check_input(*clip_size(video_BCTHW, self.in_channels))
        x = video_BCTHW
        for name in CONVS:
            x = getattr(self, f"conv{name}")(x)
            if self.batch_norm:
                x = getattr(self, f"bn{name}")(x)
            x = F.relu(x, inplace=True)
            if name == "1":
                x = F.max_pool3d(x, (1, 2, 2))
            elif name == "5b":
                x = F.max_pool3d(x, 2, padding=(0, 1, 1))
            elif name in ("2", "3b", "4b"):
                x = F.max_pool3d(x, 2)
        return F.adaptive_avg_pool3d(x, PLACES) if self.adaptive else x

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """(B,C,T,H,W) → logits (B,num_classes)."""
        x = self.features_map(video_BCTHW).flatten(1)
        x = self.dropout(F.relu(self.fc6(x), inplace=True))
        x = self.dropout(F.relu(self.fc7(x), inplace=True))
        return cast(Tensor, self.fc8(x))


# --- published weights ------------------------------------------------------------------------

_SEQUENTIAL = {
    **{f"features.{place}": f"conv{name}" for place, name in zip((0, 3, 6, 8, 11, 13, 16, 18), CONVS, strict=True)},
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "classifier.6": "fc8",
}
_MMACTION2 = {
    **{f"conv{name if len(name) == 2 else name + 'a'}.conv": f"conv{name}" for name in CONVS},
    **{f"conv{name if len(name) == 2 else name + 'a'}.bn": f"bn{name}" for name in CONVS},
    "cls_head.fc_cls": "fc8",
}


def _renamed(state: Mapping[str, Tensor], owners: Mapping[str, str], prefix: str = "") -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        owner = owner.removeprefix(prefix)
        new = f"{owners.get(owner, owner)}.{leaf}"
        if new in result:
            raise ValueError(f"two tensors of the file would both become {new!r}, one is {name!r}")
        result[new] = value
    return result


def _sports1m(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    return state


def _sequential(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    return _renamed(state, _SEQUENTIAL)


def _mmaction2(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    return _renamed(state, _MMACTION2, "backbone.")


LAYOUTS: dict[str, Convert] = {"sports1m": _sports1m, "sequential": _sequential, "mmaction2": _mmaction2}
"""Layout of a weight file → converter for `load_weights`.

`sports1m`: the common PyTorch conversion, whose names are ours. `sequential`: the same weights as numbered places of
`features` and `classifier`. `mmaction2`: `backbone.conv1a.conv` and so on, with or without the prefix, and
`cls_head.fc_cls`.
"""
