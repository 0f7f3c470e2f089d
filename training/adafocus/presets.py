"""Named AdaFocus models for `fovea cost` and `fovea list --models`."""

from collections.abc import Callable

from training.core.config import ConfigError, apply_overrides, validate
from training.core.system import CostRow

PAPER = {
    "size": 224,
    "num_frames": 16,
    "glance": {"name": "mobilenetv2", "weights": None, "norms": "batch"},
    "glance_size": 224,
    "local": {"name": "resnet50", "weights": None, "norms": "batch"},
    "patch": 128,
    "grid": 7,
    "policy_channels": 32,
    "policy_hidden": 1024,
    "classifier_hidden": 1024,
    "classifier_dropout": 0.8,
    "use_glance": True,
}
"""The untrimmed-video configuration of the paper (ActivityNet, FCVID, Mini-Kinetics)."""


def adafocus_v1_cost(overrides: dict[str, str]) -> CostRow:
    """Return the cost per video of AdaFocus V1 (paper size unless overridden); `classes` sets K (200).

    Raises:
        ConfigError: unknown or unusable override.
    """
    import torch

    from training.adafocus.config import AdaFocusConfig
    from training.adafocus.model import AdaFocus

    values = dict(overrides)
    text = values.pop("classes", "200")
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"classes must be a positive number, got {text!r}")
    config = validate(
        AdaFocusConfig, apply_overrides(PAPER, [f"{k}={v}" for k, v in values.items()]), "cost of adafocus_v1"
    )
    with torch.device("meta"):
        net = AdaFocus(config, int(text))
    shape = f"{config.num_frames}x3x{config.size}x{config.size}, patch {config.patch}"
    return CostRow("adafocus_v1", net.num_params(), sum(net.gmac_parts().values()), shape, "video")


MODELS: dict[str, Callable[[dict[str, str]], CostRow]] = {"adafocus_v1": adafocus_v1_cost}
