"""Comparison policies, curves and figures of an evaluation, from the recorded scores of every segment. No torch.

Shape suffixes: N videos, S segments, K modalities, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.adamml.segments import Point, Segments, SegmentsError

__all__ = [
    "Curve",
    "Point",
    "Segments",
    "SegmentsError",
    "all_or_none_curve",
    "controls",
    "figures",
    "mutual_information",
    "random_curve",
    "threshold_curve",
    "with_sound",
]

Array = NDArray[Any]
Flags = NDArray[np.bool_]

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Probabilities of use above which the points of a threshold curve use a modality."""

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of fully used segments of an all-or-none curve."""


@dataclass(frozen=True)
class Curve:
    """Points of one kind of policy, cheapest first."""

    name: str
    points: tuple[Point, ...]


def threshold_curve(segments: Segments, thresholds: Sequence[float] = THRESHOLDS) -> Curve:
    """Return the model with other thresholds of the probability of use; its policy is charged."""
    points = [segments.of_choices(f"p > {p:g}", [segments.by_threshold(p)], policy=True) for p in thresholds]
    return Curve("threshold", _cheapest_first(points))


def random_curve(segments: Segments, draws: int, thresholds: Sequence[float] = THRESHOLDS) -> Curve:
    """Return random choices at the rates of each point of the threshold curve; no policy is charged."""
    points = []
    for p in thresholds:
        rates = segments.rates(segments.by_threshold(p))
        choices = [segments.at_random(rates, seed) for seed in range(draws)]
        points.append(segments.of_choices(f"random at the rates of p > {p:g}", choices, policy=False))
    return Curve("random", _cheapest_first(points))


def all_or_none_curve(segments: Segments, draws: int, shares: Sequence[float] = SHARES) -> Curve:
    """Return random segments with everything, the others with nothing; no policy is charged."""
    points = []
    for share in shares:
        choices = [segments.all_or_none(share, seed) for seed in range(draws)]
        points.append(segments.of_choices(f"everything in {share:.0%} of the segments", choices, policy=False))
    return Curve("all or none", _cheapest_first(points))


def mutual_information(used_NS: Flags, label: Array) -> float:
    """Return the mutual information between a decision of a segment and the video's class, bits.

    Of the observed frequencies: 0 for a policy that does the same for every class, but chance alone makes it positive
    by about (C − 1) / (2·N·S·ln 2).
    """
    classes = int(label.max()) + 1
    on_C = np.bincount(label, weights=used_NS.sum(axis=1), minlength=classes)
    all_C = np.bincount(label, minlength=classes) * used_NS.shape[1]
    joint = np.stack([on_C, all_C - on_C]) / used_NS.size
    expected = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return max(0.0, float((joint[seen] * np.log2(joint[seen] / expected[seen])).sum()))


def figures(segments: Segments, draws: int) -> dict[str, float]:
    """Return further metrics of an evaluation, without the split's name.

    With `top1` for accuracy (`map` on multi-label data): of each modality `usage_…` (share of segments),
    `usage_spread_…` (standard deviation of a video's usage) and `mutual_information_…` (bits, single-label only);
    `saving` (1 − executed by fusion GMAC); accuracy and `gmac_per_video` of `sampled` (decisions drawn from the
    policy's probabilities instead of the likelier one), `random` (at the model's rates),
    `all_or_none` (at the model's executed cost) and `oracle`; `top1_over_…` these, fusion and each modality by itself;
    `top1_at_<p>` and `gmac_at_<p>` of the threshold curve; with sound in some videos only `top1_with_sound`,
    `top1_without_sound`, `samples_with_sound`, `samples_without_sound`.

    Args:
        segments: the evaluation.
        draws: of each random policy.
    """
    if draws < 1:
        raise SegmentsError(f"draws must be at least 1, got {draws}")
    measure = segments.measure
    model = segments.own()
    usage_NK = segments.usage()
    result: dict[str, float] = {}
    for k, name in enumerate(segments.names):
        result[f"usage_{name}"] = float(usage_NK[:, k].mean())
        result[f"usage_spread_{name}"] = float(usage_NK[:, k].std())
        if not segments.multi_label:
            used_NS = segments.choices_NSK[:, :, k]
            result[f"mutual_information_{name}"] = mutual_information(used_NS, segments.label)
    full = float(segments.gmac(segments.everything(), policy=False).mean())
    result["saving"] = 1 - model.gmac / full if full else 0.0

    drawn = [segments.sampled(seed) for seed in range(draws)]
    for point in (segments.of_choices("sampled", drawn, policy=True), *controls(segments, draws)):
        result[f"{measure}_{point.name}"] = point.top1
        result[f"gmac_per_video_{point.name}"] = point.gmac
        if point.draws > 1:
            result[f"{measure}_{point.name}_std"] = point.deviation
        if point.name != "oracle":
            result[f"{measure}_over_{point.name}"] = model.top1 - point.top1
    arms = {"fusion": segments.scores(segments.everything())} | dict(segments.arms)
    result |= {f"{measure}_over_{name}": model.top1 - segments.accuracy(scores) for name, scores in arms.items()}
    for p in THRESHOLDS:
        used_NSK = segments.by_threshold(p)
        result[f"{measure}_at_{p:.1f}"] = segments.top1(used_NSK)
        result[f"gmac_at_{p:.1f}"] = float(segments.gmac(used_NSK, policy=True).mean())
    for name, rows_N in with_sound(segments).items():
        result[f"samples_{name}"] = float(rows_N.sum())
        if not segments.multi_label:
            result[f"{measure}_{name}"] = float(segments.correct(segments.scores_NC)[rows_N].mean())
    return result


def controls(segments: Segments, draws: int) -> tuple[Point, Point, Point]:
    """Return `random` at the model's rates, `all_or_none` at its executed cost, and `oracle`; no policy is charged."""
    rates = segments.rates(segments.choices_NSK)
    share = segments.equal_cost_share()
    random = [segments.at_random(rates, seed) for seed in range(draws)]
    blocks = [segments.all_or_none(share, seed) for seed in range(draws)]
    return (
        segments.of_choices("random", random, policy=False),
        segments.of_choices("all_or_none", blocks, policy=False),
        segments.of_choices("oracle", [segments.oracle(segments.label)], policy=False),
    )


def with_sound(segments: Segments) -> dict[str, Flags]:
    """Return which videos (N,) are `with_sound` and `without_sound`; nothing where all are alike."""
    if "audio" not in segments.names:
        return {}
    heard_N = np.asarray(segments.available_NSK[:, :, segments.names.index("audio")].any(axis=1))
    if heard_N.all() or not heard_N.any():
        return {}
    return {"with_sound": heard_N, "without_sound": ~heard_N}


def _cheapest_first(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda point: point.gmac))
