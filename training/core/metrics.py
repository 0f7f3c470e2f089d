"""Classification metrics over all samples of a split.

`map` is the mean over classes of average precision as scikit-learn defines it (ties taken together, no
interpolation). Classes without a positive sample have no average precision and are left out of the
mean; columns are never renumbered, so an absent class does not shift the others.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["average_precision", "classification_metrics", "expected_calibration_error", "wilson_interval"]

Array = NDArray[np.float64]

ECE_BINS = 15
Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def classification_metrics(scores: ArrayLike, label: ArrayLike, split: str) -> dict[str, float]:
    """Return the metrics of one split under the names `<split>/<metric>`.

    Single-label, `label` (N,): `top1` with its 95 % Wilson interval `top1_low` and `top1_high`; `top5` (only
    with more than 5 classes); `mean_class_accuracy` over the classes present; `nll` (natural log);
    `ece` (15 equal bins of the top probability); `map`; `majority`, the accuracy of always naming the most
    frequent class; `classes_present`; `samples`.

    Multi-label, `label` (N,K) of 0 and 1: `map`; `top1` is then the share of samples whose best-scored
    class is one of theirs, and `majority` that of the most frequent class; no `nll` or `ece`.

    Args:
        scores: (N,K) probabilities.
        label: class indices or multi-hot rows, as numpy arrays or CPU tensors.
        split: prefix of the names.

    Raises:
        ValueError: no samples, shapes that do not fit, scores that are not finite probabilities, or labels
            outside 0 … K-1.
    """
    probability = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(label)
    _check(probability, truth)
    samples, classes = probability.shape
    multi_label = truth.ndim == 2
    if multi_label:
        hot = truth.astype(bool)
    else:
        hot = np.zeros((samples, classes), dtype=bool)
        hot[np.arange(samples), truth.astype(np.int64)] = True
    top = probability.argmax(axis=1)
    correct = hot[np.arange(samples), top]
    per_class = average_precision(probability, hot)
    present: NDArray[np.bool_] = np.asarray(hot.any(axis=0))
    low, high = wilson_interval(int(correct.sum()), samples)
    result: dict[str, float] = {
        "top1": float(correct.mean()),
        "top1_low": low,
        "top1_high": high,
        "map": float(np.nanmean(per_class)) if present.any() else math.nan,
        "majority": float(hot.mean(axis=0).max()),
        "classes_present": float(present.sum()),
        "samples": float(samples),
    }
    if not multi_label:
        result |= _single_label_metrics(probability, truth.astype(np.int64), correct, present)
    return {f"{split}/{name}": value for name, value in result.items()}


def _single_label_metrics(
    probability: Array, label: NDArray[np.int64], correct: NDArray[np.bool_], present: NDArray[np.bool_]
) -> dict[str, float]:
    samples, classes = probability.shape
    own = probability[np.arange(samples), label]
    hits = np.bincount(label, weights=correct, minlength=classes)
    counts = np.bincount(label, minlength=classes)
    result = {
        "mean_class_accuracy": float((hits[present] / counts[present]).mean()),
        # A probability of exactly 0 is float32 underflow in the scores: the smallest float32 stands in.
        "nll": float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean()),
        "ece": expected_calibration_error(probability.max(axis=1), correct),
    }
    if classes > 5:
        # Rank counting ties by column, as argmax does: constant scores are not right about everything.
        before = np.arange(classes)[None, :] < label[:, None]
        rank = (probability > own[:, None]).sum(axis=1) + ((probability == own[:, None]) & before).sum(axis=1)
        result["top5"] = float((rank < 5).mean())
    return result


def average_precision(scores: ArrayLike, positive: ArrayLike) -> Array:
    """Return the average precision of each column, (K,); NaN for columns without a positive sample.

    Σ (R_n - R_(n-1))·P_n over the distinct score values in descending order.

    Args:
        scores: (N,K), any scale.
        positive: (N,K) bool.
    """
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(positive, dtype=bool)
    if values.ndim != 2 or values.shape != truth.shape:
        raise ValueError(f"scores {values.shape} and positives {truth.shape} must be two equal (N,K) arrays")
    result = np.full(values.shape[1], np.nan)
    for column in range(values.shape[1]):
        total = int(truth[:, column].sum())
        if total == 0:
            continue
        order = np.argsort(-values[:, column], kind="stable")
        ranked = values[order, column]
        found = np.cumsum(truth[order, column])
        last_of_tie = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        found = found[last_of_tie]
        precision = found / (last_of_tie + 1)
        recall_steps = np.diff(found, prepend=0) / total
        result[column] = float((recall_steps * precision).sum())
    return result


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> float:
    """Return Σ over equal bins of (share of samples) · |accuracy - mean confidence|.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) bool.
        bins: number of bins; a confidence on an edge belongs to the bin below it.
    """
    level = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    index = np.clip(np.ceil(level * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=right - level, minlength=bins)
    return float(np.abs(gap).sum() / len(level))


def wilson_interval(successes: float, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion; `successes` may be a mean over seeds.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"need 0 ≤ successes ≤ trials and at least one trial, got {successes} of {trials}")
    share = successes / trials
    scale = 1 + z * z / trials
    center = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return max(center - half, 0.0), min(center + half, 1.0)


def _check(probability: Array, label: NDArray[Any]) -> None:
    if probability.ndim != 2 or 0 in probability.shape:
        raise ValueError(f"scores must be (N,K) with at least one sample and class, got {probability.shape}")
    samples, classes = probability.shape
    bad = np.flatnonzero(~np.isfinite(probability).all(axis=1))
    if len(bad):
        raise ValueError(f"scores of {len(bad)} of {samples} samples are not finite, first in row {bad[0]}")
    if probability.min() < -1e-6 or probability.max() > 1 + 1e-2:
        raise ValueError(
            f"scores must be probabilities, got values from {probability.min():.3g} to {probability.max():.3g}; "
            f"apply softmax (or sigmoid for multi-label data) first"
        )
    if label.ndim == 2:
        if label.shape != probability.shape:
            raise ValueError(f"multi-hot labels {label.shape} must have the shape of the scores {probability.shape}")
        if not np.isin(label, (0, 1)).all():
            raise ValueError("multi-hot labels must be 0 or 1")
        return
    if label.shape != (samples,):
        raise ValueError(f"labels must be ({samples},) or ({samples}, {classes}), got {label.shape}")
    if label.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {label.dtype}")
    if label.min() < 0 or label.max() >= classes:
        raise ValueError(f"labels must be in 0…{classes - 1}, got {label.min()}…{label.max()}")
    off = np.abs(probability.sum(axis=1) - 1)
    # The tolerance admits probabilities that were computed in bfloat16.
    if off.max() > 2e-2:
        raise ValueError(f"scores of row {int(off.argmax())} sum to {probability[off.argmax()].sum():.4g}, not 1")
