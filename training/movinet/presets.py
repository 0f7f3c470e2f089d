"""Named nets of the family for `fovea cost` and `fovea list --models`, at the published evaluation inputs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from training.backbones.movinet_cost import conv_macs, num_parameters, state_elements
from training.backbones.movinet_layout import ARCHITECTURES, VARIANTS, architecture, stream_variant
from training.core.cost import CostError, resolve_overrides
from training.core.system import CostRow

INPUTS: dict[str, tuple[int, int]] = {
    "t0": (25, 160),
    "a0": (50, 172),
    "a1": (50, 172),
    "a2": (50, 224),
    "a3": (120, 256),
    "a4": (80, 290),
    "a5": (120, 320),
}
"""Architecture → frames of a clip of 10 s, and side in pixels."""


def _cost(name: str, variant: str, overrides: dict[str, str]) -> CostRow:
    model = f"movinet_{name}" + ("_stream" if variant.startswith("stream") else "")
    frames, size = INPUTS[name]
    made = VARIANTS[variant]
    fields = {"conv": made.conv, "squeeze": made.squeeze, "causal": made.causal, "positional": made.positional}
    defaults: dict[str, Any] = {"frames": frames, "size": size, "classes": 600, "width": 1.0, **fields}
    values = resolve_overrides(model, overrides, defaults)
    for key in ("frames", "size", "classes", "width"):
        if values[key] <= 0:
            raise CostError(f"{key} of model {model!r} must be positive, got {values[key]}")
    try:
        changed = replace(made, **{key: values[key] for key in fields})
    except ValueError as error:
        raise CostError(f"model {model!r}: {error}") from None
    layout = architecture(name).scaled(values["width"])
    macs = conv_macs(layout, changed, values["frames"], values["size"], values["classes"])["total"]
    measured = {}
    if changed.causal:
        measured["state_bytes"] = 4.0 * state_elements(layout, changed, values["size"])["total"]
    shape = f"{values['frames']}x3x{values['size']}x{values['size']}"
    return CostRow(model, num_parameters(layout, changed, values["classes"]), macs / 1e9, shape, "view", measured)


def _builder(name: str, variant: str) -> Callable[[dict[str, str]], CostRow]:
    build = partial(_cost, name, variant)
    frames, size = INPUTS[name]
    kind = "stream (2+1)D" if variant.startswith("stream") else "base 3D"
    build.__doc__ = f"MoViNet-{name.upper()}, {kind}, {frames} × {size}²; frames, size, width, conv, … can be set."
    return build


MODELS: dict[str, Callable[[dict[str, str]], CostRow]] = {
    **{f"movinet_{name}": _builder(name, "base") for name in ARCHITECTURES},
    **{f"movinet_{name}_stream": _builder(name, stream_variant(name)) for name in ARCHITECTURES},
}
