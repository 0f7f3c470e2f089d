"""One modality's network: a 2-D backbone on the frames of a segment, with pools over time between its stages.

Shape suffixes: N segments, T frames, C channels, K classes, D feature width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from training.adamml.config import Modality, NetConfig
from training.backbones import VIDEO_BACKBONES, ImageBackbone, build_backbone
from training.core.config import WeightsFile
from training.core.weights import WeightReport, load_published
from training.layers.norms import eval_norms
from training.layers.temporal_pool import pool_frames


def channels_of(modality: Modality, stack: int) -> int:
    """Return the channels of a modality's frames.

    Args:
        modality: `flow` has x and y of each field, `rgbdiff` the three colours of each difference.
        stack: frames that a stack is made of, one more than it has fields.

    Raises:
        ValueError: unknown modality, or a stack without fields for one that consists of them.
    """
    if modality in ("rgb", "audio"):
        return 3 if modality == "rgb" else 1
    if modality not in ("flow", "rgbdiff"):
        raise ValueError(f"unknown modality {modality!r}; known: rgb, flow, rgbdiff, audio")
    if stack < 2:
        raise ValueError(f"a stack of {stack} frames has no field for {modality}; at least 2 are needed")
    return (2 if modality == "flow" else 3) * (stack - 1)


class SegmentNet(nn.Module):
    """Backbone, frame by frame, then mean over space, dropout and linear layer (§3).

    Where the backbone's `temporal_pools` are, a max-pool over time (kernel 3, stride 2) halves the frames, 8 → 4 → 2
    → 1 in a ResNet. Those that remain at the end are averaged after the linear layer.

    Args:
        net: backbone by name, with its options.
        channels: of a frame.
        num_classes: K; None leaves the head out.
        dropout: before the linear layer.

    Raises:
        ValueError: unknown backbone or option, or one that takes videos, or an option that is set here.
    """

    def __init__(self, net: NetConfig, channels: int, num_classes: int | None, dropout: float) -> None:
        super().__init__()
        if net.name in VIDEO_BACKBONES:
            raise ValueError(f"a segment's frames need a backbone for images; {net.name!r} takes videos")
        if taken := sorted({"in_channels", "num_classes"} & set(net.options)):
            raise ValueError(f"options of {net.name!r} must not have {', '.join(taken)}: the modality decides it")
        self.channels = channels
        self.backbone = cast(ImageBackbone, build_backbone(net.name, **net.options, in_channels=channels))
        self.out_channels = self.backbone.out_channels
        self.head = (
            None
            if num_classes is None
            else nn.Sequential(nn.Dropout(dropout), nn.Linear(self.out_channels, num_classes))
        )
        self._fixed_norms = net.norms == "fixed"

    @override
    def train(self, mode: bool = True) -> "SegmentNet":
        super().train(mode)
        if self._fixed_norms:
            eval_norms(self.backbone)
        return self

    def forward(self, x_NTCHW: Tensor) -> Tensor:
        """(N,T,C,H,W) → logits (N,K), fp32, or features (N,D)."""
        segments, frames = x_NTCHW.shape[:2]
        x = fold_frames(x_NTCHW)
        for number, part in enumerate(self.backbone.parts(), start=1):
            x = part(x)
            if number in self.backbone.temporal_pools:
                x = pool_frames(x, frames)
                frames = (frames + 1) // 2
        result = x.mean((2, 3))
        if self.head is not None:
            result = self.head(result).float()
        by_frame: Tensor = result.unflatten(0, (segments, frames))  # type: ignore[no-untyped-call]
        return by_frame.mean(1)

    def frames_left(self, frames: int) -> int:
        """Return how many of a segment's frames remain after all pools."""
        for _ in self.backbone.temporal_pools:
            frames = (frames + 1) // 2
        return frames

    def load(self, weights: WeightsFile, root: Path) -> WeightReport:
        """Load published weights of the backbone; the file's classifier is ignored.

        A first convolution over other than 3 channels starts from the mean of the file's over its 3, repeated.

        Args:
            weights: state dict in torchvision's layout.
            root: folder that a relative path starts from.

        Raises:
            WeightError: see `load_published`.
        """
        return load_published(self.backbone, weights, root, convert=_inflated, ignore=("fc.*", "classifier.*"))


def fold_frames(x_NTCHW: Tensor) -> Tensor:
    """Return the frames as images (N·T,C,H,W) in channels_last memory; a view if that is their memory already."""
    images = x_NTCHW.flatten(0, 1)
    if images.shape[1] == 1:
        # With one channel both layouts are the same memory, and only the strides tell convolutions which is meant.
        return images[:, 0].contiguous()[..., None].permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def _inflated(state: Mapping[str, Tensor], backbone: Any) -> Mapping[str, Tensor]:
    """Give the weight of the first convolution the channels of the backbone's."""
    name, conv = next((name, child) for name, child in backbone.named_modules() if isinstance(child, nn.Conv2d))
    key, channels = f"{name}.weight", conv.in_channels
    stem = state.get(key)
    if channels == 3 or stem is None or stem.dim() != 4 or stem.shape[1] != 3:
        return state
    return {**state, key: stem.mean(1, keepdim=True).repeat(1, channels, 1, 1)}
