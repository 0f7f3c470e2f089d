"""Accuracies and differences with their intervals, over the clips of one split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.core.gate import mcnemar_exact, paired_bootstrap
from training.core.metrics import wilson_interval
from training.movinet.report.records import Net

FEW = 10
"""Clips on which two nets differ; below, a bootstrap interval is too narrow and only the exact test counts."""
MOST_CLASSES = 12


@dataclass(frozen=True)
class Share:
    """A proportion with its 95 % Wilson interval."""

    count: float
    """May be a mean."""
    total: int
    low: float
    high: float

    @classmethod
    def of(cls, count: float, total: int) -> "Share":
        """Count something."""
        return cls(count, total, *wilson_interval(count, total))

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self.count / self.total


@dataclass(frozen=True)
class Comparison:
    """Accuracy of one side minus that of another on the same clips."""

    first: str
    second: str
    value: float
    low: float
    high: float
    """95 %, paired bootstrap over clips."""
    gained: int
    """Clips that only the first names right; of several nets those that more of them name right."""
    lost: int
    p: float
    """Of one net against another McNemar's exact test, of means over several nets a z test of the clips' differences.
    Won and lost clips of a mean against one net are not balanced when both are equally good, so no test of signs."""
    cost_ratio: float
    """GMAC of the first by those of the second."""
    unequal: tuple[str, ...] = ()
    """Conditions besides the architecture that differ."""

    @property
    def few(self) -> bool:
        """Whether the interval rests on too few clips."""
        return self.gained + self.lost < FEW

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not clear`: interval and test have to agree."""
        if self.p > 0.05 or self.low <= 0 <= self.high:
            return "not clear"
        return "better" if self.value > 0 else "worse"


def accuracy(nets: Sequence[Net]) -> Share:
    """Return the mean accuracy of nets on N clips; the interval is that of N clips, without the chance of training."""
    clips = len(nets[0].key)
    return Share.of(float(np.mean([net.top1 for net in nets])) * clips, clips)


def compare(
    first: Sequence[Net], second: Sequence[Net], names: tuple[str, str], *, resamples: int, seed: int
) -> Comparison:
    """Compare the mean accuracies of two groups of nets that were evaluated on the same clips.

    Args:
        first: one or more nets.
        second: one or more nets.
        names: of the two sides.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    difference_N = _right(first) - _right(second)
    low, high = paired_bootstrap(difference_N, alpha=0.05, resamples=resamples, seed=seed)
    gained, lost = int((difference_N > 1e-12).sum()), int((difference_N < -1e-12).sum())
    unequal = tuple(
        name
        for name, value in first[0].conditions.items()
        if any(net.conditions[name] != value for net in (*first, *second))
    )
    return Comparison(
        first=names[0],
        second=names[1],
        value=float(difference_N.mean()),
        low=low,
        high=high,
        gained=gained,
        lost=lost,
        p=mcnemar_exact(gained, lost) if len(first) == len(second) == 1 else _z_test(difference_N),
        cost_ratio=float(np.mean([net.gmac for net in first]) / np.mean([net.gmac for net in second])),
        unequal=unequal,
    )


def _z_test(difference_N: NDArray[np.float64]) -> float:
    clips = len(difference_N)
    error = float(difference_N.std(ddof=1)) / math.sqrt(clips) if clips > 1 else 0.0
    if error == 0:
        return 1.0
    return math.erfc(abs(float(difference_N.mean())) / error / math.sqrt(2))


def _right(nets: Sequence[Net]) -> NDArray[np.float64]:
    return np.asarray(np.mean([net.correct for net in nets], axis=0), dtype=np.float64)


@dataclass(frozen=True)
class ClassRow:
    """Recall of one class by two nets."""

    name: str
    clips: int
    first: float
    second: float


def by_class(first: Net, second: Net, classes: Sequence[str]) -> list[ClassRow]:
    """Return the classes whose recall differs most, largest difference first; classes without clips are left out."""
    rows = []
    for index in np.unique(first.label):
        of_class = first.label == index
        rows.append(
            ClassRow(
                name=classes[int(index)],
                clips=int(of_class.sum()),
                first=float(first.correct[of_class].mean()),
                second=float(second.correct[of_class].mean()),
            )
        )
    rows.sort(key=lambda row: (-abs(row.first - row.second), row.name))
    return [row for row in rows if row.first != row.second][:MOST_CLASSES]
