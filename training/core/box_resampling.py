"""How sure a mean average precision is: it is computed again with videos drawn with replacement.

Frames of a video resemble one another, so videos are what is drawn. Drawing a video twice puts its detections and
objects twice into the list: nothing is matched again, counts get weights. Precision matters only at right detections,
so what is kept is the number of wrong ones before each, by video; a product with the drawn weights gives them for all
resamples.

Suffixes as in `box_matching`; V videos, B resamples, T right detections of a class.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.core.box_matching import Floats, Ints, Matched

__all__ = ["mean_precision", "percentiles", "resampled_precision"]

BATCH = 100
"""Resamples at once: bounds memory; part of what a seed means."""


@dataclass(frozen=True)
class _Steps:
    """A class as the resampling sees it."""

    video_T: Ints
    """Place of the video of each right detection, best score first."""
    wrong_VT: NDArray[np.float32]
    """Wrong detections with a better score, by video; only of videos that have some."""
    involved_V: NDArray[np.bool_]
    """Which videos these are."""
    positives_V: NDArray[np.float32]


def resampled_precision(matched: Matched, videos: Ints, resamples: int, seed: int) -> Floats:
    """Return the average precision at overlap 0.5 of each class in each resample, (B,K).

    Not-a-number where no object of a class was drawn. Equal `videos`, `resamples` and `seed` draw the same videos, so
    that two detectors can be compared resample by resample.

    Args:
        matched: a detector.
        videos: numbers of the V videos to draw from, increasing: all that have labelled frames.
        resamples: B.
        seed: of the drawing.
    """
    classes = [_steps(matched, videos, k) for k in range(len(matched.ranked.first_K) - 1)]
    rows = []
    for weight_BV in _draws(len(videos), resamples, seed):
        rows.append(np.stack([_precision(steps, weight_BV) for steps in classes], axis=1))
    return np.concatenate(rows)


def mean_precision(precision_BK: Floats) -> Floats:
    """Return the mean over the classes that have objects in each resample, (B,); not-a-number where none has."""
    known_BK = ~np.isnan(precision_BK)
    count_B = known_BK.sum(axis=1)
    total_B = np.where(known_BK, precision_BK, 0.0).sum(axis=1)
    return np.where(count_B > 0, total_B / np.maximum(count_B, 1), np.nan)


def percentiles(values_B: Floats, alpha: float = 0.05) -> tuple[float, float]:
    """Return the percentile interval of what was resampled; resamples without any object do not count.

    Raises:
        ValueError: no resample had an object.
    """
    known = values_B[~np.isnan(values_B)]
    if not len(known):
        raise ValueError("no resample has an object: there is nothing to be sure of")
    low, high = np.quantile(known, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def _draws(videos: int, resamples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield how often each video was drawn, (B,V), some resamples at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, BATCH):
        count = min(BATCH, resamples - start)
        yield rng.multinomial(videos, np.full(videos, 1 / videos), size=count).astype(np.float32)


def _steps(matched: Matched, videos: Ints, label: int) -> _Steps:
    objects, ranked = matched.objects, matched.ranked
    own = slice(ranked.first_K[label], ranked.first_K[label + 1])
    right_N = matched.plain_N[own] >= 0
    place_N = np.searchsorted(videos, ranked.video_N[own])
    step_N = np.cumsum(right_N)
    total = int(step_N[-1]) if len(step_N) else 0
    # What comes after the last right detection never lowers a precision that counts.
    wrong = np.flatnonzero(~right_N & (step_N < total))
    involved_V = np.zeros(len(videos), bool)
    involved_V[place_N[wrong]] = True
    row_N, rows = (np.cumsum(involved_V) - 1)[place_N[wrong]], int(involved_V.sum())
    counts = np.bincount(row_N * total + step_N[wrong], minlength=rows * total)
    # Whole numbers below 2^24 are exact.
    wrong_VT = counts.reshape(rows, total).astype(np.float32)
    np.cumsum(wrong_VT, axis=1, out=wrong_VT)
    mine = objects.label_M == label
    positives_V = np.bincount(np.searchsorted(videos, objects.video_M[mine]), minlength=len(videos))
    return _Steps(
        video_T=place_N[right_N],
        wrong_VT=wrong_VT,
        involved_V=involved_V,
        positives_V=positives_V.astype(np.float32),
    )


def _precision(steps: _Steps, weight_BV: NDArray[np.float32]) -> Floats:
    positives_B = weight_BV @ steps.positives_V
    drawn_BT = weight_BV[:, steps.video_T]
    right_BT = np.cumsum(drawn_BT, axis=1)
    ratio_BT = weight_BV[:, steps.involved_V] @ steps.wrong_VT
    ratio_BT += right_BT
    # At a right detection that was not drawn the ratio is at most that of the one before, so the envelope ignores it.
    np.divide(right_BT, ratio_BT, out=ratio_BT, where=ratio_BT > 0)
    highest_BT = ratio_BT[:, ::-1]
    np.maximum.accumulate(highest_BT, axis=1, out=highest_BT)
    area_B = np.einsum("bt,bt->b", drawn_BT, ratio_BT, dtype=np.float64)
    return np.where(positives_B > 0, area_B / np.maximum(positives_B, 1), np.nan)
