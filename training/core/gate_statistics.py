"""Statistics of the gate: tests of paired answers, intervals, and many tests at once."""

import math

import numpy as np
from numpy.typing import NDArray


def mcnemar_exact(gained: int, lost: int) -> float:
    """Return the two-sided exact McNemar p-value of `gained` and `lost` discordant pairs."""
    total = gained + lost
    # Twice the smaller tail of Binomial(n, 1/2), in exact integers; scipy.stats alone takes 2 s to import.
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**total) if total else 1.0


def wilson_interval(correct: int, total: int, alpha: float = 0.05) -> tuple[float, float]:
    """Return Wilson's confidence interval of a proportion."""
    from scipy.stats import norm

    if total == 0:
        return (0.0, 1.0)
    z = float(norm.ppf(1 - alpha / 2))
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return (max(0.0, centre - half), min(1.0, centre + half))


def paired_bootstrap(
    difference: NDArray[np.float64], *, alpha: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the percentile interval of the mean of paired differences, resampling clips.

    Args:
        difference: (N,) challenger minus champion per clip (−1, 0, 1 for top-1).
        alpha: 1 − confidence.
        resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    values, counts = np.unique(difference, return_counts=True)
    # Resampling N clips of few distinct differences is a multinomial draw: exact, and without (resamples, N) memory.
    draws = np.random.default_rng(seed).multinomial(len(difference), counts / len(difference), size=resamples)
    means = draws @ values / len(difference)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return (float(low), float(high))


def holm(p_values: list[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the given order."""
    order = np.argsort(p_values)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = running
    return adjusted
