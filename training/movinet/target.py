"""What a searched network may cost, and what one costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from training.backbones.movinet_cost import conv_macs, num_parameters, state_elements
from training.backbones.movinet_layout import MoViNetLayout, Variant
from training.core.config import ConfigError, Strict

__all__ = ["Budget", "CostModel", "TargetConfig"]

BYTES = 4
"""Of an element of a stream's state, float32."""


class TargetConfig(Strict):
    """Wanted cost of a network."""

    kind: Literal["gmac", "state_mb", "params", "latency_ms"]
    """Multiply-accumulates of one clip (10⁹), a stream's state (10⁶ bytes, float32), parameters with the classifier,
    or time of one clip on the device of the search (sum of measured parts)."""
    value: float = Field(gt=0)
    tolerance: float = Field(gt=0, lt=1)
    """Accepted |cost / value - 1|."""


@dataclass(frozen=True)
class CostModel:
    """Costs of layouts at one input, by formula.

    Args:
        variant: base or stream.
        frames: of a clip.
        size: side of the input, pixels.
        num_classes: of the classifier.
        latency: predicts milliseconds of a clip; None: unknown.
    """

    variant: Variant
    frames: int
    size: int
    num_classes: int
    latency: Callable[[MoViNetLayout], float] | None = None

    def of(self, layout: MoViNetLayout, kind: str) -> float:
        """Return one cost of a layout; kinds as `TargetConfig.kind`.

        Raises:
            ConfigError: the state of a net that is not causal, or a latency without table.
        """
        if kind == "gmac":
            return conv_macs(layout, self.variant, self.frames, self.size, self.num_classes)["total"] / 1e9
        if kind == "params":
            return float(num_parameters(layout, self.variant, self.num_classes))
        if kind == "state_mb":
            if not self.variant.causal:
                raise ConfigError("target.kind is state_mb, but a base net has no state; search a stream net")
            return state_elements(layout, self.variant, self.size)["total"] * BYTES / 1e6
        if self.latency is None:
            raise ConfigError("target.kind is latency_ms, and no latency table was measured or loaded")
        return self.latency(layout)

    def facts(self, layout: MoViNetLayout) -> dict[str, float]:
        """Return all costs that are known: gmac, params, and where there are such, state_mb and latency_ms."""
        kinds = ["gmac", "params"]
        kinds += ["state_mb"] if self.variant.causal else []
        kinds += ["latency_ms"] if self.latency is not None else []
        return {kind: self.of(layout, kind) for kind in kinds}


@dataclass(frozen=True)
class Budget:
    """A target with what measures it."""

    target: TargetConfig
    model: CostModel

    def cost(self, layout: MoViNetLayout) -> float:
        """Return the cost in the unit of the target."""
        return self.model.of(layout, self.target.kind)

    def ratio(self, cost: float) -> float:
        """Return cost / target."""
        return cost / self.target.value

    def within(self, cost: float) -> bool:
        """Whether a cost is within the tolerance."""
        return math.isfinite(cost) and abs(self.ratio(cost) - 1) <= self.target.tolerance
