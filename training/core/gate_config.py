"""Bounds of the promotion gate: section `gate` of `params/<dataset>.yaml`."""

from pathlib import Path

from pydantic import Field

from data_specs.schema import Strict
from training.core.config import ConfigError, parse_yaml, validate


class GateConfig(Strict):
    """Bounds of the gate: section `gate` of `params/<dataset>.yaml`; every field has a documented default.

    None of them changes a reported number, only who becomes champion. For detection, read mAP50 for top-1, a class's
    average precision for its accuracy, and video for clip.
    """

    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level of every test and of the confidence intervals (1 - alpha)."""
    margin: float = Field(default=0.0, ge=0, lt=1)
    """Least gain in top-1 (0 to 1): the interval of the difference must lie above it."""
    min_saving: float = Field(default=0.1, ge=0, lt=1)
    """A challenger that costs at least this share less may be promoted for its cost …"""
    max_loss: float = Field(default=0.01, ge=0, lt=1)
    """… if the interval of the difference lies above minus this much top-1."""
    max_gmac: float | None = Field(default=None, gt=0)
    """Budget, GMAC per video (detection: per frame); None: no budget."""
    max_class_drop: float = Field(default=0.1, ge=0, le=1)
    """Largest loss of accuracy in one class …"""
    min_class_samples: int = Field(default=20, ge=1)
    """… judged only in classes with at least this many clips (detection: boxes); smaller ones are shown, not judged."""
    min_samples: int = Field(default=100, ge=1)
    """With fewer evaluated clips nothing is promoted without a person's `--accept`."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of the paired bootstrap."""
    seed: int = 0
    """Of the bootstrap."""
    round_trip_clips: int = Field(default=4, ge=1)
    """Clips that the saved model must predict again, in a process without this repository."""
    round_trip_tolerance: float = Field(default=1e-3, gt=0)
    """Largest difference of a score in the round trip."""


def load_gate_config(params: Path) -> GateConfig:
    """Read the section `gate` of a params file; defaults where the section or the file is absent.

    Raises:
        ConfigError: an unknown field or a bad value.
    """
    content = parse_yaml(params.read_text()) if params.exists() else None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{params} must be a mapping of sections")
    return validate(GateConfig, (content or {}).get("gate") or {}, f"section gate of {params}")
