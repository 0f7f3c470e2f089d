"""Backbones by name.

All share `.out_channels`, `.features_map(x) -> (N,C,h,w)` and `.forward(x) -> (N,C)` (logits when built with
`num_classes`). Those of `VIDEO_BACKBONES` take videos (N,3,T,H,W) instead of images, and their map is (N,C,t,h,w).
The others have an option `in_channels`, and `.parts()`, whose composition is `features_map`, with `.temporal_pools`:
after how many parts a pool over time belongs, where the images are frames of clips.
"""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

from torch import nn

from training.backbones.mobilenetv2 import MobileNetV2
from training.backbones.movinet import MoViNet
from training.backbones.movinet_layout import ARCHITECTURES, VARIANTS, architecture, stream_variant
from training.backbones.resnet import DEPTHS, ResNet
from training.backbones.resnet3d import ResNet3D
from training.backbones.resnet3d_layout import BLOCKS, ResNet3DLayout, r3d50_layout, rs_layout, slowonly50_layout
from training.backbones.tiny import TinyConvNet


def _resnet3d(layout: ResNet3DLayout) -> Callable[..., nn.Module]:
    """Return a constructor whose options are those of `ResNet3D` and the fields of its layout."""

    def build(*, num_classes: int | None = None, dropout: float = 0.5, folded: bool = True, **changes: Any) -> ResNet3D:
        return ResNet3D(replace(layout, **changes), num_classes=num_classes, dropout=dropout, folded=folded)

    return _with_fields(build, layout)


def _movinet(name: str, variant: str) -> Callable[..., nn.Module]:
    """Return a constructor whose options are those of `MoViNet`, the fields of its variant, and a width."""
    base = VARIANTS[variant]

    def build(
        *,
        num_classes: int | None = None,
        width: float = 1.0,
        dropout: float = 0.2,
        drop_path: float = 0.2,
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.01,
        **changes: Any,
    ) -> MoViNet:
        return MoViNet(
            architecture(name).scaled(width),
            replace(base, **changes),
            num_classes=num_classes,
            dropout=dropout,
            drop_path=drop_path,
            norm_eps=norm_eps,
            norm_momentum=norm_momentum,
        )

    return _with_fields(build, base)


def _with_fields(build: Callable[..., nn.Module], defaults: Any) -> Callable[..., nn.Module]:
    """Let a constructor's signature name the fields of a dataclass in the place of `**changes`."""
    own = [parameter for parameter in inspect.signature(build).parameters.values() if parameter.name != "changes"]
    more = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=getattr(defaults, field.name))
        for field in fields(defaults)
    ]
    build.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    return build


VIDEO_BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet3d_rs{depth}": _resnet3d(rs_layout(depth)) for depth in BLOCKS},
    "r3d50": _resnet3d(r3d50_layout()),
    "slowonly50": _resnet3d(slowonly50_layout()),
    **{f"movinet_{name}": _movinet(name, "base") for name in ARCHITECTURES},
    **{f"movinet_{name}_stream": _movinet(name, stream_variant(name)) for name in ARCHITECTURES},
}
"""Name → constructor of the networks over videos; part of `BACKBONES`."""

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in DEPTHS},
    "mobilenetv2": MobileNetV2,
    "tiny_glance": partial(TinyConvNet, channels=(16, 32, 64), blocks=0),
    "tiny_local": partial(TinyConvNet, channels=(16, 32, 64), blocks=1),
    **VIDEO_BACKBONES,
}
"""Name → constructor."""

ImageBackbone = ResNet | MobileNetV2 | TinyConvNet
"""What the names that are not in `VIDEO_BACKBONES` build, for those who need `parts` or `temporal_pools`."""


def build_backbone(name: str, **options: Any) -> nn.Module:
    """Build a backbone by name.

    Args:
        name: key of `BACKBONES`.
        **options: of the class, e.g. `num_classes`, `width`, `padding`, `channels`, `blocks`.

    Raises:
        ValueError: unknown name or option; the message lists what there is.
    """
    if name not in BACKBONES:
        close = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown backbone {name!r} (known: {', '.join(BACKBONES)}){hint}")
    known = inspect.signature(BACKBONES[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"backbone {name!r} has no option {', '.join(unknown)}; it has: {', '.join(known)}")
    return BACKBONES[name](**options)
