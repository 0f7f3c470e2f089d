"""A family from one architecture: input, width and depth scaled together (Kondratyuk et al. 2021, §3.1).

The published coefficients are not known. Here a small random search divides a doubling of the cost among the axes, and
takes the division whose members come closest to their costs. It knows costs only: which division is best has to be
trained.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from training.backbones.movinet_cost import conv_macs
from training.backbones.movinet_layout import Block, MoViNetLayout, Variant
from training.core.config import ConfigError

__all__ = ["Axis", "Coefficients", "Member", "scale_family"]

Axis = Literal["size", "frames", "width", "depth"]

EXPONENTS: dict[str, int] = {"size": 2, "frames": 1, "width": 2, "depth": 1}
"""How the cost grows with an axis, about."""


@dataclass(frozen=True)
class Coefficients:
    """What each axis is multiplied by where the cost doubles."""

    size: float
    frames: float
    width: float
    depth: float


@dataclass(frozen=True)
class Member:
    """One network of a family with its input."""

    factor: float
    """Wanted cost, as a multiple of the first network's."""
    layout: MoViNetLayout
    size: int
    """Side of the input, pixels."""
    frames: int
    """Of a clip of unchanged duration."""
    gmac: float
    """Of a clip."""
    cost_ratio: float
    """Cost / wanted cost."""
    coefficients: Coefficients

    def entry(self) -> dict[str, Any]:
        """Return architecture and input as plain values."""
        return {"architecture": self.layout.entry(), "size": self.size, "frames": self.frames}


def scale_family(
    layout: MoViNetLayout,
    variant: Variant,
    frames: int,
    size: int,
    factors: Sequence[float],
    seed: int,
    *,
    tolerance: float = 0.05,
    axes: Sequence[Axis] = ("size", "frames", "width", "depth"),
    num_classes: int = 600,
    draws: int = 1000,
) -> list[Member]:
    """Scale a network to several costs with one set of coefficients.

    Args:
        layout: the network at factor 1.
        variant: base or stream.
        frames: of its clip.
        size: side of its input, pixels.
        factors: wanted costs as multiples of its own, e.g. 0.5, 2, 4.
        seed: of the draws.
        tolerance: accepted |cost / wanted cost - 1| of every member.
        axes: which may change; more frames of an unchanged duration are a higher frame rate.
        num_classes: of the classifier.
        draws: coefficients that are tried.

    Returns:
        A member per factor, in their order.

    Raises:
        ConfigError: no coefficients were found, or arguments that cannot be scaled.
    """
    unknown = [axis for axis in axes if axis not in get_args(Axis)]
    if unknown or not axes:
        raise ConfigError(f"axes must be some of {', '.join(get_args(Axis))}, got {list(axes)}")
    if not factors or min(factors) <= 0:
        raise ConfigError(f"factors must be positive and at least one, got {list(factors)}")
    rng = random.Random(seed)
    base = _gmac(layout, variant, frames, size, num_classes)
    best: tuple[float, list[Member]] | None = None
    for _ in range(draws):
        coefficients = _draw(rng, axes)
        members = []
        for factor in factors:
            scaled, side, count = _scale(layout, size, frames, coefficients, math.log2(factor))
            gmac = _gmac(scaled, variant, count, side, num_classes)
            members.append(Member(factor, scaled, side, count, gmac, gmac / (factor * base), coefficients))
        error = max(abs(member.cost_ratio - 1) for member in members)
        if best is None or error < best[0]:
            best = (error, members)
    assert best is not None or draws < 1
    if best is None or best[0] > tolerance:
        reached = "" if best is None else f"; the nearest costs are off by {best[0]:.1%}"
        raise ConfigError(
            f"no scaling over {', '.join(axes)} was found in {draws} draws whose costs are within {tolerance:.1%}"
            f"{reached}. Allow more axes, draws or tolerance"
        )
    return best[1]


def _gmac(layout: MoViNetLayout, variant: Variant, frames: int, size: int, num_classes: int) -> float:
    return conv_macs(layout, variant, frames, size, num_classes)["total"] / 1e9


def _draw(rng: random.Random, axes: Sequence[Axis]) -> Coefficients:
    """Divide one doubling of the cost among axes, uniformly over all divisions."""
    parts = {axis: rng.expovariate(1.0) for axis in axes}
    total = sum(parts.values())
    values = {axis: 2 ** (parts.get(axis, 0.0) / total / EXPONENTS[axis]) for axis in get_args(Axis)}
    return Coefficients(**values)


def _scale(
    layout: MoViNetLayout, size: int, frames: int, coefficients: Coefficients, doublings: float
) -> tuple[MoViNetLayout, int, int]:
    wide = layout.scaled(coefficients.width**doublings)
    # The dense layer after pooling is no part of the scaling: it does not grow in the published family.
    wide = replace(wide, head=layout.head)
    blocks = tuple(_deepened(block, coefficients.depth**doublings) for block in wide.blocks)
    side = max(2 * round(size * coefficients.size**doublings / 2), 2)
    return replace(wide, blocks=blocks), side, max(round(frames * coefficients.frames**doublings), 1)


def _deepened(block: Block, factor: float) -> Block:
    """Repeat layers in place, or leave some out, evenly; the first one, which has the stride, stays first."""
    now = len(block.layers)
    count = max(math.floor(now * factor + 0.5), 1)
    return replace(block, layers=tuple(block.layers[index * now // count] for index in range(count)))
