"""3-D ResNets for video: R3D, SlowOnly and ResNet-RS (Du et al. 2021, arXiv 2109.01696).

Names in the state dict are those of `training.backbones.resnet` where it has the like: `stem.conv1`, `stem.bn1`,
`layer1.0.conv1`, `layer1.0.downsample.0`, …; besides these `layer1.0.se.reduce`, `.se.expand`, `.gating.dense`, and the
head `fc`. They depend neither on `folded` nor on `gate_order`.
"""

import re
from typing import cast

import torch
from torch import Tensor, nn

from training.backbones.resnet3d_layout import BlockSpec, ResNet3DLayout
from training.layers.conv3d import FoldedConv3d, FoldedMaxPool3d
from training.layers.drop_path import DropPath
from training.layers.squeeze_excitation import SelfGating, SqueezeExcitation, chained_gate, global_mean

__all__ = ["ResNet3D", "from_pytorchvideo"]


def _norm(channels: int, layout: ResNet3DLayout) -> nn.BatchNorm3d:
    # In channels-last memory this reads what 2-D batch norm over the folded frames would, at the same speed.
    return nn.BatchNorm3d(channels, eps=layout.norm_eps, momentum=layout.norm_momentum)


class Stem3d(nn.Module):
    """Convolutions with batch norm and ReLU, then the max-pool."""

    def __init__(self, layout: ResNet3DLayout, *, folded: bool) -> None:
        super().__init__()
        self.num_convs = len(layout.stem_convs)
        for number, spec in enumerate(layout.stem_convs, start=1):
            conv = FoldedConv3d(*spec, padding=layout.padding, folded=folded)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", _norm(spec.out_channels, layout))
        self.relu = nn.ReLU(inplace=True)
        window = 1 if layout.pool_t == 1 else 3
        self.maxpool = FoldedMaxPool3d((window, 3, 3), (layout.pool_t, 2, 2), padding=layout.padding, folded=folded)

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,T,H,W) → (B,C,T/temporal stride,H/4,W/4)."""
        for number in range(1, self.num_convs + 1):
            x = self.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        return cast(Tensor, self.maxpool(x))


class Bottleneck3d(nn.Module):
    """k_t×1×1, 1×3×3 (strided) and 1×1×1 convolution, gates, stochastic depth, shortcut.

    The gates' product, the factor of stochastic depth and the addition of the shortcut are one operation, and both
    gates come from one reduction of the branch (`chained_gate`).
    """

    def __init__(self, spec: BlockSpec, layout: ResNet3DLayout, *, drop_path: float, folded: bool) -> None:
        super().__init__()
        inside, outside = spec.channels, spec.out_channels

        def conv(in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1) -> FoldedConv3d:
            return FoldedConv3d(
                in_channels, out_channels, kernel, (1, stride, stride), padding=layout.padding, folded=folded
            )

        self.conv1 = conv(spec.in_channels, inside, (spec.temporal_kernel, 1, 1))
        self.bn1 = _norm(inside, layout)
        self.conv2 = conv(inside, inside, (1, 3, 3), spec.stride)
        self.bn2 = _norm(inside, layout)
        self.conv3 = conv(inside, outside, (1, 1, 1))
        self.bn3 = _norm(outside, layout)
        self.gating = SelfGating(outside) if spec.gated else None
        self.se = SqueezeExcitation(outside, spec.se_channels) if spec.se_channels else None
        self.gate_order = layout.gate_order
        self.drop_path = DropPath(drop_path)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if spec.shortcut == "conv":
            self.downsample = nn.Sequential(
                conv(spec.in_channels, outside, (1, 1, 1), spec.stride), _norm(outside, layout)
            )
        elif spec.shortcut == "pool":
            self.downsample = FoldedMaxPool3d(
                (1, 1, 1), (1, spec.stride, spec.stride), padding=layout.padding, folded=folded
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,4·channels,T,⌈H/stride⌉,⌈W/stride⌉)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        factor = self._factor(branch)
        if factor is None:
            return cast(Tensor, self.relu(branch + shortcut))
        # In the branch's precision, or the sum would be of the factor's.
        factor = factor.to(branch.dtype)[:, :, None, None, None]
        return cast(Tensor, self.relu(torch.addcmul(shortcut, branch, factor)))

    def _factor(self, branch_BCTHW: Tensor) -> Tensor | None:
        """Return the factor of the branch from gates and stochastic depth, (B,C) or (B,1); None: it stays as it is."""
        gates = [gate for gate in (self.gating, self.se) if gate is not None]
        if self.gate_order == "paper":
            gates.reverse()
        factor = chained_gate(global_mean(branch_BCTHW), gates) if gates else None
        kept = self.drop_path.factors(branch_BCTHW)
        if kept is None:
            return factor
        return kept[:, None] if factor is None else factor * kept[:, None]


class ResNet3D(nn.Module):
    """Residual network over videos.

    Args:
        layout: everything but the head; see `rs_layout`, `r3d50_layout` and `slowonly50_layout`.
        num_classes: classes of the head; None leaves the head out. The head is the global mean, `dropout` and the dense
            layer `fc`.
        dropout: rate before `fc`.
        folded: compute with 2-D operators over the frames and channels-last memory (`training.layers.conv3d`); False:
            with 3-D operators in whatever memory format the input has. Results and state dicts are the same.

    Raises:
        ValueError: see `ResNet3DLayout`.
    """

    def __init__(
        self,
        layout: ResNet3DLayout,
        *,
        num_classes: int | None = None,
        dropout: float = 0.5,
        folded: bool = True,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.out_channels = layout.out_channels
        self.stem = Stem3d(layout, folded=folded)
        for number, (specs, rate) in enumerate(zip(layout.groups(), layout.drop_path_rates, strict=True), start=1):
            blocks = (Bottleneck3d(spec, layout, drop_path=rate, folded=folded) for spec in specs)
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = None if num_classes is None else nn.Linear(self.out_channels, num_classes)
        if self.fc is not None:
            nn.init.uniform_(self.fc.weight, -0.05, 0.05)
            nn.init.zeros_(self.fc.bias)

    def features_map(self, x: Tensor) -> Tensor:
        """(N,3,T,H,W) → (N,out_channels,⌈T/temporal stride⌉,⌈H/32⌉,⌈W/32⌉).

        Raises:
            ValueError: not a batch of RGB videos.
        """
        if x.dim() != 5 or x.shape[1] != 3:
            raise ValueError(f"a 3-D ResNet takes videos (N,3,T,H,W), got {tuple(x.shape)}")
        x = self.stem(x)
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N,3,T,H,W) → pooled (N,out_channels) in at least float32, or logits (N,num_classes) with a head."""
        pooled = global_mean(self.features_map(x))
        if self.fc is None:
            return pooled
        logits: Tensor = self.fc(self.dropout(pooled.to(self.fc.weight.dtype)))
        return logits


# --- published weights ------------------------------------------------------------------------

_PYTORCHVIDEO_PARTS = {
    "branch1_conv": "downsample.0",
    "branch1_norm": "downsample.1",
    "branch2.conv_a": "conv1",
    "branch2.norm_a": "bn1",
    "branch2.conv_b": "conv2",
    "branch2.norm_b": "bn2",
    "branch2.conv_c": "conv3",
    "branch2.norm_c": "bn3",
}
_PYTORCHVIDEO_BLOCK = re.compile(r"blocks\.([1-4])\.res_blocks\.(\d+)\.(branch1_\w+|branch2\.\w+)\.(\w+)")
_PYTORCHVIDEO_ENDS = {"blocks.0.conv.": "stem.conv1.", "blocks.0.norm.": "stem.bn1.", "blocks.5.proj.": "fc."}


def from_pytorchvideo(name: str) -> str:
    """Translate a name of PyTorchVideo's `slow_r50`, for `load_weights(net, file, rename=from_pytorchvideo)`.

    The network is `ResNet3D(slowonly50_layout(), num_classes=400)`; for another number of classes, or without a head,
    add `ignore=("fc.*",)`. PyTorchVideo averages 7×7 windows before its head: on 224-pixel frames that is the global
    mean used here, on larger ones it gives the inner places more weight. Names that are not of that layout come back as
    they are, and loading refuses them.
    """
    for old, new in _PYTORCHVIDEO_ENDS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    match = _PYTORCHVIDEO_BLOCK.fullmatch(name)
    if match is None or match[3] not in _PYTORCHVIDEO_PARTS:
        return name
    return f"layer{match[1]}.{match[2]}.{_PYTORCHVIDEO_PARTS[match[3]]}.{match[4]}"
