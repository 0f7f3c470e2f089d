"""Named LSTS models for `fovea cost` and `fovea list --models`."""

from collections.abc import Callable
from typing import Any

from training.core.config import ConfigError, apply_overrides, validate
from training.core.system import CostRow

LAYOUT: dict[str, Any] = {
    "interval": 10,
    "classes": 30,
    "height": 600,
    "width": 1000,
    "backbone": {
        "depth": 101,
        "width": 1.0,
        "split": 4,
        "stride": 16,
        "downsample": "first",
        "feature_channels": 1024,
        "frozen_stages": 2,
        "weights": None,
    },
    "alignment": {
        "offsets": {"init": "gaussian", "count": 40, "sigma": 1.0, "seed": 0, "learned": True, "clamp": 8.0},
        "embed_channels": 256,
        "similarity": "softmax",
        "border": "zero",
        "quality": "code",
        "low2high": "code",
        "memory_ratio": 1.0,
    },
    "head": {
        "kind": "rfcn",
        "anchor_scales": [8.0, 16.0, 32.0],
        "anchor_ratios": [0.5, 1.0, 2.0],
        "proposals_before": 6000,
        "proposals": 300,
        "bins": 7,
        "hard_examples": 128,
    },
    "score_threshold": 1e-4,
    "nms": 0.3,
    "max_boxes": 300,
}
"""The network of the paper on ImageNet VID, and how often it is run; the settings of the cost command."""


def lsts_cost(overrides: dict[str, str]) -> CostRow:
    """LSTS on ResNet-101, per frame at 600 × 1000; backbone.depth, alignment.quality, interval, head, … can be set.

    `gmac` is the average of a key frame and `interval` − 1 others as the published figures count; `measured` has the
    parts, the frame types, and `executed_gmac`, the same average as this code runs.

    Raises:
        ConfigError: unknown or unusable setting.
    """
    import torch

    from training.lsts.config import LSTSConfig, MethodConfig
    from training.lsts.cost import frame_costs, part_costs, published_cost, total_params
    from training.lsts.heads import build_head
    from training.lsts.model import LSTS

    if strange := sorted({key.split(".")[0] for key in overrides} - set(LAYOUT)):
        raise ConfigError(f"model 'lsts_r101' has no setting {', '.join(strange)} (it has: {', '.join(LAYOUT)})")
    values = apply_overrides(LAYOUT, [f"{key}={value}" for key, value in overrides.items()])
    sizes = {key: values.pop(key) for key in ("interval", "classes", "height", "width")}
    for key, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} of model 'lsts_r101' must be a positive number, got {value!r}")
    interval, classes, height, width = sizes.values()
    config = validate(LSTSConfig, values, "cost of lsts_r101")
    method = validate(
        MethodConfig,
        {
            "interval": interval,
            "schedule": "offline",
            "key": "srfu",
            "non_key": "hold" if interval == 1 else "dfa",
            "alignment": "sampled",
        },
        "cost of lsts_r101",
    )
    with torch.device("meta"):
        head = build_head(config, classes)
        model = LSTS(config, method, classes)
    parts = part_costs(config.backbone, config.alignment, head, height, width)
    published = published_cost(parts)
    executed = frame_costs(model, height, width)
    average = published.average(interval)
    single_params, params = total_params(parts)
    return CostRow(
        model="lsts_r101",
        params=params,
        gmac=average,
        input=f"3x{height}x{width}, interval {interval}",
        per="frame",
        measured={
            **{f"{name}_gmac": part.macs / 1e9 for name, part in parts.items()},
            "single_gmac": published.single,
            "key_gmac": published.key,
            "other_gmac": published.other,
            "ratio": average / published.single,
            "executed_gmac": (executed.key + executed.prepare + (interval - 1) * executed.other) / interval,
            "single_params": single_params,
        },
    )


MODELS: dict[str, Callable[[dict[str, str]], CostRow]] = {"lsts_r101": lsts_cost}
