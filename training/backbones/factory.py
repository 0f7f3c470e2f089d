"""Backbones by name.

All share `.out_channels`, `.features_map(x) -> (N,C,h,w)` and `.forward(x) -> (N,C)` (logits when built with
`num_classes`).
"""

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from training.backbones.mobilenetv2 import MobileNetV2
from training.backbones.resnet import DEPTHS, ResNet
from training.backbones.tiny import TinyConvNet

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in DEPTHS},
    "mobilenetv2": MobileNetV2,
    "tiny_glance": partial(TinyConvNet, channels=(16, 32, 64), blocks=0),
    "tiny_local": partial(TinyConvNet, channels=(16, 32, 64), blocks=1),
}
"""Name → constructor."""


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
