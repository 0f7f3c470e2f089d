"""Named nets of the family for `fovea cost` and `fovea list --models`: cost of one view."""

from collections.abc import Callable, Mapping
from typing import Any

from training.backbones.resnet3d_layout import (
    ResNet3DLayout,
    conv_macs,
    num_parameters,
    r3d50_layout,
    rs_layout,
    slowonly50_layout,
)
from training.core.cost import CostError, resolve_overrides
from training.core.system import CostRow

INPUT: Mapping[str, int] = {"frames": 32, "size": 224, "classes": 400}
"""Settings of every model beside those of its layout: Kinetics-400, training size."""


def _row(model: str, base: ResNet3DLayout, defaults: Mapping[str, int], overrides: dict[str, str]) -> CostRow:
    layout_fields: dict[str, Any] = {name: getattr(base, name) for name in ResNet3DLayout.__dataclass_fields__}
    values = resolve_overrides(model, overrides, {**layout_fields, **defaults})
    frames, size, classes = (values.pop(name) for name in INPUT)
    for name, value in (("frames", frames), ("size", size), ("classes", classes)):
        if value < 1:
            raise CostError(f"{name} of model {model!r} must be positive, got {value}")
    try:
        layout = ResNet3DLayout(**values)
    except ValueError as error:
        raise CostError(f"model {model!r}: {error}") from None
    gmac = conv_macs(layout, frames, size, classes) / 1e9
    return CostRow(model, num_parameters(layout, classes), gmac, f"{frames}x3x{size}x{size}", "view")


def resnet_rs_cost(overrides: dict[str, str]) -> CostRow:
    """3D ResNet-RS-50, 32 × 224²; depth, frames, size, width, pool_t and all else of the layout can be set."""
    return _row("resnet_rs", rs_layout(50), INPUT, overrides)


def r3d50_cost(overrides: dict[str, str]) -> CostRow:
    """R3D-50, the baseline of contrastive video learning, 32 × 224²."""
    return _row("r3d50", r3d50_layout(), INPUT, overrides)


def slowonly50_cost(overrides: dict[str, str]) -> CostRow:
    """SlowOnly-50, 8 × 256²."""
    return _row("slowonly50", slowonly50_layout(), {**INPUT, "frames": 8, "size": 256}, overrides)


MODELS: dict[str, Callable[[dict[str, str]], CostRow]] = {
    "resnet_rs": resnet_rs_cost,
    "r3d50": r3d50_cost,
    "slowonly50": slowonly50_cost,
}
