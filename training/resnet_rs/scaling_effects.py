"""What the records say of each axis: gain per doubling of cost, a fitted model, comparisons at equal cost."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.gate import holm, mcnemar_exact
from training.resnet_rs.records import AXES, Axis, Configuration, Record, varying
from training.resnet_rs.resampling import Array, Estimate, Resampled

Cost = Callable[[int, int, int, float], float]
"""(depth, frames, size, width) → GMAC per view; only ratios of it are used."""

Value = int | float


# --- gain per doubling of cost ----------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two records that differ in one axis only."""

    low: int
    """Row with the smaller value of the axis."""
    high: int
    start: Value
    end: Value
    doublings: float
    """log2 of the cost ratio."""


@dataclass(frozen=True)
class Segment:
    """Gain between two neighbouring values of an axis."""

    start: Value
    end: Value
    gain: Estimate
    pairs: int
    weight_R: Array = field(repr=False, compare=False)


@dataclass(frozen=True)
class AxisGain:
    """What top-1 gains when one axis takes twice the cost."""

    axis: Axis
    values: tuple[Value, ...]
    pairs: int
    gain: Estimate | None
    """Top-1 per doubling of cost, pooled by least squares over the pairs."""
    reason: str
    """Why there is no gain."""
    segments: tuple[Segment, ...]
    bend: Estimate | None
    """Gain of the last segment minus that of the first; below 0: the axis saturates."""
    weight_R: Array | None = field(default=None, repr=False, compare=False)

    @property
    def saturates(self) -> bool:
        """Whether the last segment clearly gains less than the first."""
        return self.bend is not None and self.bend.high < 0


def axis_pairs(records: Sequence[Record], axis: Axis) -> list[Pair]:
    """Return all pairs that differ in one axis: same seed, same schedule, everything else equal."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, record in enumerate(records):
        rest = tuple(getattr(record, other) for other in AXES if other != axis)
        groups.setdefault((*rest, record.variant, record.seed), []).append(row)
    pairs = []
    for rows in groups.values():
        for first, second in itertools.combinations(rows, 2):
            low, high = sorted((first, second), key=lambda row: getattr(records[row], axis))
            start, end = getattr(records[low], axis), getattr(records[high], axis)
            if start != end:
                pairs.append(Pair(low, high, start, end, math.log2(records[high].gmac / records[low].gmac)))
    return pairs


def axis_gain(records: Sequence[Record], table: Resampled, axis: Axis) -> AxisGain:
    """Return the marginal gain of one axis, as a whole and from each of its values to the next."""
    values = tuple(sorted({getattr(record, axis) for record in records}))
    pairs = axis_pairs(records, axis)
    weight = slope_weights(pairs, len(records))
    if weight is None:
        reason = f"no two records differ in {axis} alone (same seed, steps and other settings)"
        if len(values) == 1:
            reason = f"only one value, {values[0]:g}"
        elif pairs:
            reason = "its values cost the same"
        return AxisGain(axis, values, len(pairs), None, reason, (), None)
    segments = _segments(pairs, table)
    bend = None
    if len(segments) > 1 and segments[-1].start >= segments[0].end:
        bend = table.estimate(segments[-1].weight_R - segments[0].weight_R)
    return AxisGain(axis, values, len(pairs), table.estimate(weight), "", segments, bend, weight)


def slope_weights(pairs: Sequence[Pair], records: int) -> Array | None:
    """Return weights of the records' accuracies that give Σ x·Δtop1 / Σ x², x = log2 of a pair's cost ratio."""
    total = sum(pair.doublings**2 for pair in pairs)
    if total < 1e-6:
        return None
    weight_R = np.zeros(records)
    for pair in pairs:
        weight_R[pair.high] += pair.doublings / total
        weight_R[pair.low] -= pair.doublings / total
    return weight_R


def _segments(pairs: Sequence[Pair], table: Resampled) -> tuple[Segment, ...]:
    # Neighbours: no third record of the same group lies between the two.
    linked: dict[int, set[Value]] = {}
    for pair in pairs:
        linked.setdefault(pair.low, set()).add(pair.end)
    found: dict[tuple[Value, Value], list[Pair]] = {}
    for pair in pairs:
        if pair.end == min(linked[pair.low]):
            found.setdefault((pair.start, pair.end), []).append(pair)
    segments = []
    for (start, end), members in sorted(found.items()):
        weight = slope_weights(members, len(table.top1_R))
        if weight is not None:
            segments.append(Segment(start, end, table.estimate(weight), len(members), weight))
    return tuple(segments)


# --- fitted model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class CostScale:
    """Turns a value of an axis into log2 of its cost factor, zero at the centre of the fitted records."""

    cost: Cost
    reference: tuple[int, int, int, float]
    centre: tuple[float, ...]

    @classmethod
    def of(cls, places: Sequence[tuple[int, int, int, float]], cost: Cost) -> "CostScale":
        """Take the (lower) median of each axis as the place at which cost factors are counted."""
        reference: Any = tuple(sorted(column)[(len(column) - 1) // 2] for column in zip(*places, strict=True))
        plain = cls(cost, reference, (0.0,) * len(AXES))
        centre = tuple(float(np.mean([plain.x(axis, place[i]) for place in places])) for i, axis in enumerate(AXES))
        return cls(cost, reference, centre)

    def x(self, axis: Axis, value: Value) -> float:
        """Return log2 of the cost factor of an axis at a value, minus its mean over the records."""
        index = AXES.index(axis)
        moved: Any = (*self.reference[:index], value, *self.reference[index + 1 :])
        return math.log2(self.cost(*moved) / self.cost(*self.reference)) - self.centre[index]


@dataclass(frozen=True)
class Term:
    """A coefficient of the fitted model."""

    name: str
    estimate: Estimate | None
    reason: str
    """Why it cannot be estimated."""
    weight_R: Array | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Fit:
    """top1 = a + b·depth + c·frames + d·depth·frames + s·size + w·width; each axis is log2 of its cost factor.

    Axes are counted from the centre of the records, so a is the accuracy there, b and c are the gains per doubling
    there, and d is how much a doubling of one axis adds to the gain of the other.
    """

    terms: tuple[Term, ...]
    r2: float | None
    """Of the records' accuracies; None without residual degrees of freedom or without variation."""
    freedom: int
    """Residual degrees of freedom."""
    records: int
    scale: CostScale | None = field(default=None, repr=False, compare=False)

    def term(self, name: str) -> Term | None:
        """Return a term by name."""
        return next((term for term in self.terms if term.name == name), None)


INTERACTION = "depth × frames"


def fit_model(records: Sequence[Record], table: Resampled, cost: Cost) -> Fit:
    """Fit the model by least squares over all finished records; terms that the records do not determine are named.

    Records of another variant (pooling, temporal layout, squeeze-excitation, steps) get an intercept of their own.
    """
    scale = CostScale.of([record.place for record in records], cost)
    variants = list(dict.fromkeys(record.variant for record in records))
    columns: dict[str, Array] = {}
    several = varying(variants)
    for variant in variants:
        name = " ".join(["intercept", *(f"{setting}={getattr(variant, setting)}" for setting in several)])
        columns[name] = np.array([float(record.variant == variant) for record in records])
    absent: list[Term] = []
    for axis in AXES:
        x_R = np.array([scale.x(axis, getattr(record, axis)) for record in records])
        if np.ptp(x_R) > 1e-9:
            columns[axis] = x_R
        else:
            values = sorted({getattr(record, axis) for record in records})
            absent.append(Term(axis, None, f"only one value, {values[0]:g}" if len(values) == 1 else "no cost"))
    if crosses_depth_and_frames(records):
        columns[INTERACTION] = columns["depth"] * columns["frames"]
    else:
        absent.append(Term(INTERACTION, None, "no two depths were both trained with the same two frame counts"))
    matrix_RK = np.stack(list(columns.values()), axis=1)
    solver_KR = np.linalg.pinv(matrix_RK, rcond=1e-9)
    _, singular, right = np.linalg.svd(matrix_RK)
    rank = int((singular > 1e-9 * singular[0]).sum())
    null_JK = right[rank:]
    terms = []
    names = list(columns)
    for k, name in enumerate(names):
        if np.abs(null_JK[:, k]).max(initial=0) < 1e-6:
            terms.append(Term(name, table.estimate(solver_KR[k]), "", solver_KR[k]))
        else:
            directions = null_JK[np.abs(null_JK[:, k]) > 1e-6]
            others = [names[j] for j in range(len(names)) if j != k and np.abs(directions[:, j]).max() > 1e-6]
            terms.append(Term(name, None, f"cannot be told apart from {', '.join(others)}"))
    residual_R = table.top1_R - matrix_RK @ (solver_KR @ table.top1_R)
    spread = float(((table.top1_R - table.top1_R.mean()) ** 2).sum())
    freedom = len(records) - rank
    r2 = 1 - float((residual_R**2).sum()) / spread if freedom > 0 and spread > 1e-12 else None
    order = ["intercept", *AXES, INTERACTION]
    key = {name: i for i, name in enumerate(order)}
    return Fit(tuple(sorted(terms + absent, key=lambda t: key.get(t.name, 0))), r2, freedom, len(records), scale)


def crosses_depth_and_frames(records: Sequence[Record]) -> bool:
    """Return whether two depths were both trained with the same two frame counts, all else equal."""
    depths: dict[tuple[object, ...], dict[int, set[int]]] = {}
    for record in records:
        cell = depths.setdefault((record.size, record.width, record.variant), {})
        cell.setdefault(record.depth, set()).add(record.frames)
    return any(len(one & two) > 1 for cell in depths.values() for one, two in itertools.combinations(cell.values(), 2))


# --- equal cost -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two configurations of about equal cost."""

    first: str
    second: str
    more: tuple[str, ...]
    """Axes of which the first has more."""
    less: tuple[str, ...]
    other: tuple[str, ...]
    """Settings besides the axes that differ."""
    gmac_first: float
    gmac_second: float
    difference: Estimate
    """Top-1 of the first minus that of the second."""
    gained: int
    """Clips that the first names right in more of its seeds."""
    lost: int
    p: float
    """Exact McNemar test; with several seeds each clip counts once, for the side that is right more often."""
    p_holm: float
    """Holm's correction over all comparisons."""


@dataclass(frozen=True)
class Trade:
    """Mean over the comparisons that trade one axis for another."""

    more: Axis
    less: Axis
    difference: Estimate
    pairs: int


def iso_cost(
    found: Sequence[Configuration], correct_RN: NDArray[np.bool_], table: Resampled, tolerance: float
) -> tuple[tuple[Comparison, ...], tuple[Trade, ...], int]:
    """Compare configurations whose costs agree within a tolerance and that differ in at most two settings.

    Args:
        found: configurations, any order; those trained for different numbers of steps are not compared.
        correct_RN: of the finished records.
        table: their resampled accuracies.
        tolerance: 0.05: the dearer one costs at most 5 % more.

    Returns:
        Comparisons, smallest p first; means per traded pair of axes; number of pairs left out because they differ in
        more than two settings (such a difference cannot be ascribed to an axis).
    """
    raw: list[tuple[Comparison, Array]] = []
    skipped = 0
    for pair in itertools.combinations(found, 2):
        if max(c.gmac for c in pair) > (1 + tolerance) * min(c.gmac for c in pair):
            continue
        if pair[0].variant.steps != pair[1].variant.steps:
            continue
        differing = [axis for axis in AXES if getattr(pair[0], axis) != getattr(pair[1], axis)]
        other = [name for name in ("pool_t", "temporal", "se_ratio") if _variants_differ(pair, name)]
        if len(differing) + len(other) > 2:
            skipped += 1
            continue
        # The side with more frames (or else more depth …) comes first, so that the signs of a trade agree.
        lead = next((axis for axis in ("frames", "depth", "width", "size") if axis in differing), None)
        first, second = sorted(pair, key=lambda c: getattr(c, lead), reverse=True) if lead else pair
        share_N = correct_RN[list(first.members)].mean(0) - correct_RN[list(second.members)].mean(0)
        gained, lost = int((share_N > 1e-9).sum()), int((share_N < -1e-9).sum())
        weight_R = _mean_weight(first, len(correct_RN)) - _mean_weight(second, len(correct_RN))
        comparison = Comparison(
            first=first.name,
            second=second.name,
            more=tuple(axis for axis in differing if getattr(first, axis) > getattr(second, axis)),
            less=tuple(axis for axis in differing if getattr(first, axis) < getattr(second, axis)),
            other=tuple(other),
            gmac_first=first.gmac,
            gmac_second=second.gmac,
            difference=table.estimate(weight_R),
            gained=gained,
            lost=lost,
            p=mcnemar_exact(gained, lost),
            p_holm=1.0,
        )
        raw.append((comparison, weight_R))
    adjusted = holm([comparison.p for comparison, _ in raw])
    done = [Comparison(**(vars(c) | {"p_holm": p})) for (c, _), p in zip(raw, adjusted, strict=True)]
    trades = _trades(raw, table)
    return tuple(sorted(done, key=lambda c: (c.p, -abs(c.difference.value), c.first))), trades, skipped


def _trades(raw: Sequence[tuple[Comparison, Array]], table: Resampled) -> tuple[Trade, ...]:
    groups: dict[tuple[Any, Any], list[Array]] = {}
    for comparison, weight_R in raw:
        if len(comparison.more) == len(comparison.less) == 1 and not comparison.other:
            groups.setdefault((comparison.more[0], comparison.less[0]), []).append(weight_R)
    return tuple(
        Trade(more, less, table.estimate(np.mean(weights, axis=0)), len(weights))
        for (more, less), weights in sorted(groups.items())
    )


def _variants_differ(pair: tuple[Configuration, Configuration], name: str) -> bool:
    one, two = (getattr(configuration.variant, name) for configuration in pair)
    return bool(one != two)


def _mean_weight(configuration: Configuration, records: int) -> Array:
    weight_R = np.zeros(records)
    weight_R[list(configuration.members)] = 1 / len(configuration.members)
    return weight_R
