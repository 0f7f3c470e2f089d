"""Named recognisers for `fovea cost` and `fovea list --models`: the published nets at the published input sizes."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.core.system import CostRow

NETS: Mapping[str, tuple[str, dict[str, Any], int, int]] = {
    "tsn_r50": ("recognition/tsn", {"backbone": "resnet50"}, 3, 224),
    "tsm_r50": ("recognition/tsm", {"backbone": "resnet50"}, 8, 224),
    "i3d": ("recognition/i3d", {}, 64, 224),
    "i3d_r50": ("recognition/i3d_resnet", {}, 32, 224),
    "eco_lite": ("recognition/eco_lite", {}, 16, 224),
    "eco_full": ("recognition/eco_full", {}, 16, 224),
    "c3d": ("recognition/c3d", {}, 16, 112),
    "r2plus1d_18.tv": ("recognition/r2plus1d", {"depth": 18, "form": "tv"}, 16, 112),
    "r2plus1d_34.tv": ("recognition/r2plus1d", {"depth": 34, "form": "tv"}, 32, 112),
    "r2plus1d_34.paper": ("recognition/r2plus1d", {"depth": 34, "form": "paper"}, 32, 112),
    "r2plus1d_18.hara": ("recognition/r2plus1d", {"depth": 18, "form": "hara"}, 16, 112),
    "r3d_18.tv": ("recognition/r3d", {"depth": 18, "form": "tv"}, 16, 112),
    "r3d_34.tv": ("recognition/r3d", {"depth": 34, "form": "tv"}, 32, 112),
    **{
        f"r3d_{depth}.hara": ("recognition/r3d", {"depth": depth, "form": "hara"}, 16, 112)
        for depth in (18, 34, 50, 101, 152, 200)
    },
}
"""Name → primitive, settings, frames and side of the clip. Where two networks bear one name, ours carries the form."""


def net_cost(name: str, overrides: dict[str, str]) -> "CostRow":
    """Return the cost of one clip and one crop of a published net.

    Args:
        name: key of `NETS`.
        overrides: frames, size, classes, width, or any setting of the network; those of its training change no cost.

    Raises:
        CostError: unknown setting, or no class.
        ConfigError: a net that does not exist, or that cannot take such a clip.
    """
    from training.autovideo.catalogue import configure, find
    from training.autovideo.recognisers import Recogniser, RecogniserConfig
    from training.autovideo.system import network_cost
    from training.core.cost import CostError, resolve_overrides
    from training.core.system import CostRow

    identifier, settings, frames, size = NETS[name]
    primitive = find(identifier)
    assert issubclass(primitive, Recogniser)
    own = {
        key: settings.get(key, field.get_default())
        for key, field in primitive.Config.model_fields.items()
        if isinstance(settings.get(key, field.get_default()), int | float | str)
        and (key == "width" or key not in RecogniserConfig.model_fields)
    }
    values = resolve_overrides(name, overrides, {"frames": frames, "size": size, "classes": 400, **own})
    frames, size, classes = (int(values.pop(key)) for key in ("frames", "size", "classes"))
    if classes < 1:
        raise CostError(f"classes of model {name!r} must be at least 1, got {classes}")
    config = configure(identifier, {**values, "steps": 1}, name)
    gmac, params = network_cost(primitive(config), classes, frames, size)
    return CostRow(name, params, gmac, f"{frames}x3x{size}x{size}", "view")


def _builder(name: str) -> Callable[[dict[str, str]], "CostRow"]:
    def cost(overrides: dict[str, str]) -> "CostRow":
        return net_cost(name, overrides)

    identifier, settings, frames, size = NETS[name]
    shown = ", ".join(str(value) for value in settings.values())
    cost.__doc__ = f"{identifier}{f' ({shown})' if shown else ''}, {frames} frames of {size} × {size}; 400 classes."
    return cost


MODELS: dict[str, Callable[[dict[str, str]], "CostRow"]] = {name: _builder(name) for name in NETS}
