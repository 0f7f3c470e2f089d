"""Two-level bootstrap of accuracies: clips, and the chance of training.

Every statistic of the report is a weighted sum of the records' accuracies, so one table of resampled accuracies
serves all of them, and statistics of one table are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

COVERAGE = (0.025, 0.975)
"""Quantiles of the reported 95 % intervals."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """Accuracies of R records and B resamples of them."""

    top1_R: Array
    draws_BR: Array
    noise: float | None
    """Standard deviation of a record's accuracy over seeds, beyond what the finite number of clips explains; None:
    no configuration has two seeds, and the chance of training is in no interval."""

    def estimate(self, weight_R: Array) -> Estimate:
        """Return Σ weight · accuracy with its percentile interval."""
        low, high = np.quantile(self.draws_BR @ weight_R, COVERAGE)
        # Rounded: an interval that ends at 0 must not end a last bit above it.
        return Estimate(*(round(float(value), 12) + 0.0 for value in (self.top1_R @ weight_R, low, high)))

    def deviation(self, weight_R: Array) -> float:
        """Return the standard error of Σ weight · accuracy."""
        return float((self.draws_BR @ weight_R).std())


def resample(correct_RN: NDArray[np.bool_], groups: Sequence[Sequence[int]], *, resamples: int, seed: int) -> Resampled:
    """Resample the accuracies of R records on the same N clips.

    Clips: drawn with replacement, the same for all records. Training: to each record's accuracy a deviation is added
    that was drawn with replacement from the deviations of all seeds from the means of their configurations. These
    are enlarged by √(S/(S-1)), since a mean of S seeds follows them, and then reduced to the variance that is not
    explained by the seeds naming different clips right by chance, which the first level contains already. Pooling
    over configurations is what makes two or three seeds enough; it takes the noise as equal for all of them.

    Args:
        correct_RN: whether a record names a clip right.
        groups: rows of the records that differ in the seed only.
        resamples: B.
        seed: of the resampling.
    """
    records, clips = correct_RN.shape
    generator = np.random.default_rng(seed)
    right_NR = correct_RN.T.astype(np.float64)
    draws_BR = np.empty((resamples, records))
    step = max(1, 2_000_000 // clips)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, clips, size=(count, clips)) + clips * np.arange(count)[:, None]
        times_BN = np.bincount(drawn.ravel(), minlength=count * clips).reshape(count, clips)
        draws_BR[start : start + count] = times_BN.astype(np.float64) @ right_NR / clips
    top1_R = correct_RN.mean(axis=1)
    residuals, noise = _training_noise(correct_RN, groups)
    if noise:
        draws_BR += generator.choice(residuals, size=draws_BR.shape)
    return Resampled(top1_R, draws_BR, noise)


def _training_noise(correct_RN: NDArray[np.bool_], groups: Sequence[Sequence[int]]) -> tuple[Array, float | None]:
    """Return the deviations to draw from, and their standard deviation (None without repeated configurations)."""
    repeated = [list(rows) for rows in groups if len(rows) > 1]
    if not repeated:
        return np.zeros(0), None
    deviations: list[Array] = []
    total = explained = 0.0
    freedom = 0
    for rows in repeated:
        seeds = len(rows)
        share = correct_RN[rows].mean(axis=1)
        total += (seeds - 1) * float(share.var(ddof=1))
        explained += (seeds - 1) * float(correct_RN[rows].var(axis=0, ddof=1).mean()) / correct_RN.shape[1]
        freedom += seeds - 1
        deviations.append((share - share.mean()) * np.sqrt(seeds / (seeds - 1)))
    pooled = np.concatenate(deviations)
    variance = max(0.0, (total - explained) / freedom)
    spread = float(np.sqrt((pooled**2).mean()))
    if variance == 0 or spread == 0:
        return np.zeros(1), 0.0
    return pooled * np.sqrt(variance) / spread, float(np.sqrt(variance))
