"""Which configuration to train next: about twice the cost, where the measured gains promise most."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from training.resnet_rs.records import AXES, Axis, Configuration
from training.resnet_rs.resampling import Array, Estimate, Resampled
from training.resnet_rs.scaling_effects import INTERACTION, AxisGain, Cost, Fit, Segment, Value

Place = tuple[int, int, int, float]
Verdict = Literal["clear", "unclear", "no gain", "no candidate", "not estimated"]
Sections = Callable[[Place], Mapping[str, Mapping[str, Any]]]
"""Place on the axes → sections of a params file with the fields to change."""

NEAR = (1.15, 1.4)
"""A candidate's cost may miss the wanted one by this factor; the second is tried when the first leaves none."""


@dataclass(frozen=True)
class Allowed:
    """Values that a configuration may take."""

    depth: tuple[int, ...]
    width: tuple[float, ...] = ()
    """Empty: the width stays."""
    frames_step: int = 2
    size_step: int = 16
    max_frames: int | None = None
    max_size: int | None = None

    def above(self, axis: Axis, value: Value) -> list[Value]:
        """Return the allowed values above one, up to four times it."""
        if axis == "depth":
            return sorted(v for v in self.depth if v > value)
        if axis == "width":
            return sorted(v for v in self.width if v > value)
        step, top = (self.frames_step, self.max_frames) if axis == "frames" else (self.size_step, self.max_size)
        last = min(4 * int(value), 4 * int(value) if top is None else top)
        return list(range((int(value) // step + 1) * step, last + 1, step))


@dataclass(frozen=True)
class Candidate:
    """A configuration that could be trained next."""

    place: Place
    axes: tuple[Axis, ...]
    """Axes of which it has more than the base."""
    gmac: float
    ratio: float
    """Its cost by that of the base."""
    gain: Estimate
    """Predicted change of top-1."""
    beyond: tuple[Axis, ...]
    """Axes on which it lies above everything that was measured."""
    weight_R: Array = field(repr=False, compare=False)

    @property
    def per_doubling(self) -> float:
        """Predicted gain per doubling of cost, which candidates of slightly different cost are ranked by."""
        return self.gain.value / math.log2(self.ratio)


@dataclass(frozen=True)
class Next:
    """The recommendation."""

    verdict: Verdict
    text: str
    """Verdict and its grounds in sentences."""
    base: str | None
    """Configuration that the step starts from."""
    place: Place | None
    """Recommended place on the axes; the base's own where no gain is expected."""
    candidates: tuple[Candidate, ...]
    """The best ones of each set of axes, best first."""
    sections: Mapping[str, Mapping[str, Any]] | None
    """Fields for `params/<dataset>.yaml`."""

    @property
    def candidate(self) -> Candidate | None:
        """The recommended candidate, if a larger configuration is recommended."""
        return self.candidates[0] if self.candidates and self.candidates[0].place == self.place else None


def default_sections(place: Place) -> dict[str, dict[str, Any]]:
    """Return the fields of the family's sections `resnet_rs_model` and `resnet_rs_data`."""
    depth, frames, size, width = place
    return {
        "resnet_rs_model": {"depth": depth, "width": width},
        "resnet_rs_data": {"num_frames": frames, "transform": {"size": size}},
    }


def trade_off(front: Sequence[Configuration], table: Resampled) -> Configuration:
    """Return the cheapest configuration of the front that is within one standard error of its best one.

    The standard error is that of the paired difference.
    """
    best = front[-1]
    for configuration in front:
        weight_R = _mean(best, len(table.top1_R)) - _mean(configuration, len(table.top1_R))
        if best.top1 - configuration.top1 <= table.deviation(weight_R):
            return configuration
    return best


def recommend(
    front: Sequence[Configuration],
    table: Resampled,
    gains: Mapping[Axis, AxisGain],
    fit: Fit,
    cost: Cost,
    allowed: Allowed,
    *,
    factor: float = 2.0,
    budget: float | None = None,
    sections: Sections = default_sections,
) -> Next:
    """Recommend the next configuration.

    A step moves one or two axes up to allowed values so that the cost is about `factor` times that of the base
    (`trade_off`). Its predicted gain is the sum over its axes of gain per doubling · doublings; an axis that
    saturates counts with the segment next to the base; the interaction of depth and frames is added when its
    interval excludes 0. The step with the largest predicted gain per doubling wins, then the one nearest to `factor`.

    Args:
        front: configurations that no other beats in accuracy and cost, cheapest first; not empty.
        table: resampled accuracies.
        gains: of each axis.
        fit: for the interaction.
        cost: GMAC per view; the ratio to the base is used.
        allowed: values to choose from.
        factor: wanted cost ratio.
        budget: largest GMAC per view.
        sections: for the fields of the params file.
    """
    base = trade_off(front, table)
    slopes = {axis: _local_slope(gain, getattr(base, axis)) for axis, gain in gains.items() if gain.gain is not None}
    missing = [f"{axis} ({gains[axis].reason})" for axis in AXES if axis not in slopes]
    unknown = f" Nothing is known of {'; '.join(missing)}." if missing else ""
    start = f"From {base.name}, the cheapest configuration of the front within one standard error of its best: "
    if not slopes:
        text = f"No axis can be estimated, so none can be recommended.{unknown}"
        return Next("not estimated", text, base.name, None, (), None)
    candidates = _candidates(base, table, gains, slopes, fit, cost, allowed, factor, budget)
    if not candidates:
        limit = "" if budget is None else f" and at most {budget:.4g} GMAC"
        text = f"{start}no step of one or two axes to allowed values costs about {factor:g} times as much{limit}."
        return Next("no candidate", text + unknown, base.name, None, (), None)
    best = candidates[0]
    if best.gain.value <= 0:
        text = (
            f"{start}no gain is expected of a larger one; of {', '.join(slopes)} the best step, "
            f"{' and '.join(best.axes)}, is predicted {_points(best.gain)}. Stay with this configuration.{unknown}"
        )
        return Next("no gain", text, base.name, base.place, tuple(candidates), sections(base.place))
    doubts = _doubts(best, candidates, slopes, table)
    beyond = f" It lies above every measured {' and '.join(best.beyond)}: an extrapolation." if best.beyond else ""
    step = " and ".join(f"{axis} {getattr(base, axis):g} → {best.place[AXES.index(axis)]:g}" for axis in best.axes)
    promise = f"{start}{step} at {best.ratio:.2f} times the cost, predicted {_points(best.gain)}.{beyond}"
    if doubts:
        text = f"{promise} The data do not separate the axes: {'; '.join(doubts)}.{unknown}"
        return Next("unclear", text, base.name, best.place, tuple(candidates), sections(best.place))
    alone = " It is the only axis that was measured." if len(slopes) == 1 else ""
    return Next("clear", promise + alone + unknown, base.name, best.place, tuple(candidates), sections(best.place))


def _local_slope(gain: AxisGain, value: Value) -> Array:
    """Return the weights of the gain per doubling that holds for the next step from a value."""
    assert gain.weight_R is not None
    if not gain.saturates:
        return gain.weight_R

    def distance(segment: Segment) -> tuple[float, float]:
        inside = segment.start <= value < segment.end
        away = 0.0 if inside else min(abs(segment.start - value), abs(segment.end - value))
        return (away, -float(segment.start))

    return min(gain.segments, key=distance).weight_R


def _candidates(
    base: Configuration,
    table: Resampled,
    gains: Mapping[Axis, AxisGain],
    slopes: Mapping[Axis, Array],
    fit: Fit,
    cost: Cost,
    allowed: Allowed,
    factor: float,
    budget: float | None,
) -> list[Candidate]:
    """Return the best candidate of each set of axes, best first."""
    at_base = cost(*base.place)
    steps = [(place, axes, cost(*place) / at_base) for place, axes in _steps(base.place, tuple(slopes), allowed)]
    if budget is not None:
        steps = [step for step in steps if step[2] * base.gmac <= budget]
    for near in NEAR:
        close = [step for step in steps if factor / near <= step[2] <= factor * near]
        if close:
            break
    made = []
    for place, axes, ratio in close:
        weight_R, before = np.zeros(len(table.top1_R)), base.place
        for axis in axes:
            after = _moved(before, axis, place[AXES.index(axis)])
            weight_R = weight_R + math.log2(cost(*after) / cost(*before)) * slopes[axis]
            before = after
        weight_R = weight_R + _interaction(fit, base.place, place)
        beyond = tuple(axis for axis in axes if place[AXES.index(axis)] > gains[axis].values[-1])
        made.append(Candidate(place, axes, ratio * base.gmac, ratio, table.estimate(weight_R), beyond, weight_R))
    # Rounded, so that equal predictions do not differ by their last bit and the cost decides.
    made.sort(key=lambda c: (-round(c.per_doubling, 9), len(c.axes), abs(math.log2(c.ratio / factor)), c.place))
    first: dict[tuple[Axis, ...], Candidate] = {}
    for candidate in made:
        first.setdefault(candidate.axes, candidate)
    return list(first.values())


def _steps(place: Place, axes: tuple[Axis, ...], allowed: Allowed) -> Iterator[tuple[Place, tuple[Axis, ...]]]:
    above = {axis: allowed.above(axis, place[AXES.index(axis)]) for axis in axes}
    for axis in axes:
        for value in above[axis]:
            yield _moved(place, axis, value), (axis,)
    for one, two in itertools.combinations(axes, 2):
        for first, second in itertools.product(above[one], above[two]):
            yield _moved(_moved(place, one, first), two, second), (one, two)


def _moved(place: Place, axis: Axis, value: Value) -> Place:
    index = AXES.index(axis)
    moved: Any = (*place[:index], value, *place[index + 1 :])
    return moved  # type: ignore[no-any-return]


def _interaction(fit: Fit, base: Place, place: Place) -> Array | float:
    term = fit.term(INTERACTION)
    if term is None or term.estimate is None or term.weight_R is None or fit.scale is None:
        return 0.0
    if term.estimate.low <= 0 <= term.estimate.high:
        return 0.0
    before, after = (fit.scale.x("depth", p[0]) * fit.scale.x("frames", p[1]) for p in (base, place))
    return (after - before) * term.weight_R


def _doubts(
    best: Candidate, candidates: Sequence[Candidate], slopes: Mapping[Axis, Array], table: Resampled
) -> list[str]:
    """Return why the choice of axes is not certain."""
    doubts = []
    if best.gain.low <= 0:
        doubts.append("the interval of the predicted gain reaches 0")
    alone = {c.axes[0]: c.weight_R / math.log2(c.ratio) for c in candidates if len(c.axes) == 1}
    # An axis without a candidate of its own (no allowed value near the wanted cost) speaks through its slope.
    rivals = {axis: alone.get(axis, slope) for axis, slope in slopes.items() if best.axes != (axis,)}
    mine = best.weight_R / math.log2(best.ratio)
    close = [axis for axis, weight_R in rivals.items() if table.estimate(mine - weight_R).low <= 0]
    if close:
        doubts.append(f"per doubling of cost, {' and '.join(best.axes)} is not clearly better than {', '.join(close)}")
    return doubts


def _points(gain: Estimate) -> str:
    return f"{100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def _mean(configuration: Configuration, records: int) -> Array:
    weight_R = np.zeros(records)
    weight_R[list(configuration.members)] = 1 / len(configuration.members)
    return weight_R
