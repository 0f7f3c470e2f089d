"""Figures of single-label and multi-label predictions, beyond those of `training/core/metrics.py`. Numpy only.

N samples, K classes. Scores are (N,K) probabilities, labels (N,) class indices or (N,K) of 0 and 1. Columns are never
renumbered: a class that no sample has keeps its column, and is left out of means over classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.gate_statistics import mcnemar_exact
from training.core.metrics import expected_calibration_error

Floats = NDArray[np.float64]


class FigureError(ValueError):
    """Predictions that cannot be judged; the message says which sample or class is the reason, and what to do."""


@dataclass(frozen=True)
class Scored:
    """Scores of one split, checked: at least one sample, finite scores, labels within the classes."""

    split: str
    key: tuple[str, ...]
    label: NDArray[np.int64]
    """(N,), or (N,K) of 0 and 1."""
    scores: Floats
    """(N,K)."""
    classes: tuple[str, ...]
    group: tuple[str, ...] | None = None
    """Of each sample: what must not be divided (source video, performer); None: not known."""

    def __post_init__(self) -> None:
        samples = len(self.key)
        if samples == 0:
            raise FigureError(f"split {self.split!r} has no samples: nothing can be said of it")
        if self.scores.shape != (samples, len(self.classes)):
            raise FigureError(
                f"split {self.split!r}: scores {self.scores.shape} do not fit {samples} samples of "
                f"{len(self.classes)} classes"
            )
        if len(bad := np.flatnonzero(~np.isfinite(self.scores).all(axis=1))):
            raise FigureError(
                f"split {self.split!r}: the scores of {len(bad)} of {samples} samples are not finite, first of "
                f"{self.key[bad[0]]!r}; the network diverged, or overflowed in half precision"
            )
        if len(twice := _twice(self.key)):
            raise FigureError(f"split {self.split!r}: samples occur more than once, first {twice[0]!r}")
        if self.multi_label:
            fits = self.label.shape == self.scores.shape and bool(np.isin(self.label, (0, 1)).all())
        else:
            fits = self.label.shape == (samples,)
        if not fits:
            raise FigureError(f"split {self.split!r}: labels are neither class indices nor rows of 0 and 1")
        if not self.multi_label and len(bad := np.flatnonzero((self.label < 0) | (self.label >= len(self.classes)))):
            raise FigureError(
                f"split {self.split!r}: label {self.label[bad[0]]} of {self.key[bad[0]]!r} is none of the "
                f"{len(self.classes)} classes"
            )

    @property
    def multi_label(self) -> bool:
        """Whether a sample may have several classes."""
        return self.label.ndim == 2

    @property
    def hot(self) -> NDArray[np.bool_]:
        """(N,K), which classes a sample has."""
        if self.multi_label:
            return self.label.astype(bool)
        rows = np.zeros(self.scores.shape, dtype=bool)
        rows[np.arange(len(self.key)), self.label] = True
        return rows

    @property
    def named(self) -> NDArray[np.int64]:
        """(N,), the best-scored class; of equal scores the first."""
        return np.asarray(self.scores.argmax(axis=1), dtype=np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,), whether the best-scored class is one of the sample's."""
        return np.asarray(self.hot[np.arange(len(self.key)), self.named])

    @property
    def absent(self) -> list[str]:
        """Names of the classes that no sample has."""
        return [self.classes[k] for k in np.flatnonzero(self.hot.sum(axis=0) == 0)]

    def single(self, what: str) -> "Scored":
        """Return itself.

        Raises:
            FigureError: samples have several classes.
        """
        if self.multi_label:
            raise FigureError(
                f"split {self.split!r} has several labels per sample: {what} is for one; use evaluator/map"
            )
        return self

    def probabilities(self) -> Floats:
        """Return the scores.

        Raises:
            FigureError: rows that are no probabilities.
        """
        off = np.abs(self.scores.sum(axis=1) - 1)
        low, high = float(self.scores.min()), float(self.scores.max())
        # The tolerances admit what was computed in bfloat16, as in training/core/metrics.py.
        if low < -1e-6 or high > 1 + 1e-2 or off.max() > 2e-2:
            worst = int(off.argmax())
            raise FigureError(
                f"split {self.split!r}: scores are no probabilities (from {low:.3g} to {high:.3g}; those of "
                f"{self.key[worst]!r} sum to {self.scores[worst].sum():.4g}); apply softmax first"
            )
        return self.scores


def _twice(keys: Sequence[str]) -> list[str]:
    names, counts = np.unique(np.asarray(keys), return_counts=True)
    return [str(name) for name in names[counts > 1]]


# --- ranks and confusions -----------------------------------------------------------------------


def topk_accuracy(scored: Scored, k: int) -> float:
    """Return the share of samples with one of their classes among the k best-scored.

    Equal scores rank by column, as argmax does: constant scores are not right about everything.

    Raises:
        FigureError: k is not below the number of classes, where the share is 1 whatever the scores are.
    """
    if not 1 <= k < len(scored.classes):
        raise FigureError(f"top-{k} of {len(scored.classes)} classes says nothing: k must be from 1 to one less")
    best = np.argsort(-scored.scores, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(scored.hot, best, axis=1).any(axis=1).mean())


def confusion_matrix(scored: Scored) -> NDArray[np.int64]:
    """Return counts (K,K): rows true class, columns best-scored class.

    Raises:
        FigureError: samples have several classes.
    """
    label = scored.single("a confusion matrix").label
    matrix = np.zeros((len(scored.classes),) * 2, np.int64)
    np.add.at(matrix, (label, scored.named), 1)
    return matrix


@dataclass(frozen=True)
class ClassFigures:
    """How one class fares."""

    name: str
    support: int
    """Samples of it."""
    named: int
    """Samples that were called so."""
    recall: float | None
    """None where no sample is of this class."""
    precision: float | None
    """None where no sample was called so."""
    f1: float | None
    """None where the class neither occurs nor was named."""


def per_class(matrix_KK: NDArray[np.int64], classes: Sequence[str]) -> list[ClassFigures]:
    """Return recall, precision and F1 of each class from a confusion matrix."""
    rows = []
    for i, name in enumerate(classes):
        right, support, named = int(matrix_KK[i, i]), int(matrix_KK[i].sum()), int(matrix_KK[:, i].sum())
        rows.append(
            ClassFigures(
                name=name,
                support=support,
                named=named,
                recall=right / support if support else None,
                precision=right / named if named else None,
                f1=2 * right / (support + named) if support + named else None,
            )
        )
    return rows


# --- calibration --------------------------------------------------------------------------------


def equal_width_bins(confidence_N: Floats, bins: int) -> NDArray[np.int64]:
    """Return the bin of each confidence, (N,): bins of the same width; one on an edge belongs to the bin below."""
    return np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)


def equal_mass_bins(confidence_N: Floats, bins: int) -> NDArray[np.int64]:
    """Return the bin of each confidence, (N,): bins of about as many samples; equal confidences share one.

    The result does not depend on the order of the samples.
    """
    rank = np.searchsorted(np.sort(confidence_N), confidence_N, side="left")
    return np.asarray(rank * bins // len(confidence_N), dtype=np.int64)


def reliability(confidence_N: Floats, correct_N: NDArray[np.bool_], bin_N: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return a row per bin that has samples: least and largest confidence, count, mean confidence and accuracy."""
    rows = []
    for number in np.unique(bin_N):
        inside = bin_N == number
        level = confidence_N[inside]
        rows.append(
            {
                "bin": int(number),
                "low": float(level.min()),
                "high": float(level.max()),
                "count": int(inside.sum()),
                "confidence": float(level.mean()),
                "accuracy": float(correct_N[inside].mean()),
            }
        )
    return rows


def calibration_error(rows: Sequence[dict[str, Any]]) -> float:
    """Return Σ over bins of (share of samples) · |accuracy − mean confidence| (Naeini et al. 2015, eq. 3)."""
    total = sum(row["count"] for row in rows)
    return float(sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / total)


def calibration(scored: Scored, bins: int) -> tuple[dict[str, float], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return figures of calibration, and the rows of both kinds of bins.

    `ece` (bins of equal width of the top probability), `ece_mass` (bins of equal mass), `brier` (Σ over classes of
    (p − y)², mean over samples, from 0 to 2: Brier 1950; for two classes twice what scikit-learn says) and `nll`
    (natural log; a probability of 0 counts as the smallest float32, as in `training/core/metrics.py`).

    Raises:
        FigureError: several labels per sample, or scores that are no probabilities.
    """
    chance = scored.single("calibration").probabilities()
    top, correct = chance.max(axis=1), scored.correct
    width = reliability(top, correct, equal_width_bins(top, bins))
    mass = reliability(top, correct, equal_mass_bins(top, bins))
    own = np.maximum(chance[np.arange(len(chance)), scored.label], np.finfo(np.float32).tiny)
    figures = {
        "ece": expected_calibration_error(top, correct, bins),
        "ece_mass": calibration_error(mass),
        "brier": float(((chance - scored.hot) ** 2).sum(axis=1).mean()),
        "nll": float(-np.log(own).mean()),
    }
    return figures, width, mass


# --- pairs and intervals ------------------------------------------------------------------------


def mcnemar(first_N: NDArray[np.bool_], second_N: NDArray[np.bool_]) -> dict[str, float]:
    """Compare two runs that answered the same samples.

    Args:
        first_N: whether the first run was right.
        second_N: whether the second one was.

    Returns:
        `gained` (only the second is right), `lost` (only the first), `both_right`, `both_wrong`, `difference` (second
        minus first top-1), `p_exact` (two-sided binomial) and `p_mid` (the same less half the chance of what was seen:
        Fagerland, Lydersen, Laake 2013; the exact test is too careful where few samples differ).
    """
    gained, lost = int((second_N & ~first_N).sum()), int((first_N & ~second_N).sum())
    exact, total = mcnemar_exact(gained, lost), gained + lost
    seen = comb(total, gained) / 2**total
    # Where both counts are equal the exact p is 1, and half of what was seen comes off, as in the paper.
    middle = 1 - seen / 2 if gained == lost else exact - seen
    return {
        "gained": float(gained),
        "lost": float(lost),
        "both_right": float((first_N & second_N).sum()),
        "both_wrong": float((~first_N & ~second_N).sum()),
        "difference": float(second_N.mean() - first_N.mean()),
        "p_exact": exact,
        "p_mid": middle if total else 1.0,
    }


def bootstrap_accuracy(
    correct_N: NDArray[np.bool_], group: Sequence[str] | None, *, resamples: int, alpha: float, seed: int
) -> tuple[float, float]:
    """Return the percentile interval of an accuracy.

    Args:
        correct_N: whether each sample is right.
        group: of each sample: whole groups are drawn, since clips of one video are right or wrong together; None:
            samples are drawn.
        resamples: number of bootstrap samples.
        alpha: 1 − confidence.
        seed: of the drawing.

    Raises:
        FigureError: one group only, of which no interval follows.
    """
    draw = np.random.default_rng(seed)
    if group is None:
        # Of zeros and ones a resample's sum is binomial: exact, and without (resamples, N) memory.
        shares = draw.binomial(len(correct_N), correct_N.mean(), size=resamples) / len(correct_N)
    else:
        _, number = np.unique(np.asarray(group), return_inverse=True)
        size = np.bincount(number)
        if len(size) < 2:
            raise FigureError("all samples are of one group: drawing groups gives no interval; draw samples instead")
        right = np.bincount(number, weights=correct_N)
        shares = np.empty(resamples)
        chunk = max(1, 4_000_000 // len(size))
        for start in range(0, resamples, chunk):
            rows = draw.integers(len(size), size=(min(chunk, resamples - start), len(size)))
            shares[start : start + len(rows)] = right[rows].sum(axis=1) / size[rows].sum(axis=1)
    low, high = np.quantile(shares, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)
