"""What the page says, as numbers: every detector of every evaluation, and what separates it from single frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.core.box_matching import Matched, match
from training.core.box_metrics import MAIN, RECALLS, Table, class_table, plain_precision, precision_at, views
from training.core.box_resampling import mean_precision, percentiles, resampled_precision
from training.lsts.report.records import SINGLE, Evaluated

__all__ = ["HALF", "RESAMPLES", "Detector", "Difference", "Findings", "chosen"]

Floats = NDArray[np.float64]

RESAMPLES = 1000
"""Of the intervals, videos drawn with replacement."""

HALF = 0.5
"""Share of the single-frame detector's cost that the method on top of the page may have at most (§13.4)."""


@dataclass(frozen=True)
class Difference:
    """A detector's mAP50 minus that of another on the same videos; 95 % over the same draws of videos."""

    value: float
    low: float
    high: float


class Detector:
    """One detector of an evaluation.

    Args:
        evaluated: the evaluation.
        name: its name there.
        resamples: draws of videos.
    """

    def __init__(self, evaluated: Evaluated, name: str = MAIN, resamples: int = RESAMPLES) -> None:
        self.evaluated = evaluated
        self.name = name
        results, count = evaluated.boxes, len(evaluated.predictions.classes)
        self.matched: Matched = match(results.truth, results.found[name], count)
        self.class_K: Floats = plain_precision(self.matched)
        """Average precision of each class; not-a-number without objects."""
        videos = np.unique(results.truth.labelled_M2[:, 0])
        self.mean_B: Floats = mean_precision(resampled_precision(self.matched, videos, resamples, 0))

    @property
    def mean(self) -> float:
        """mAP50."""
        return float(np.nanmean(self.class_K))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of mAP50 over draws of videos."""
        return percentiles(self.mean_B)

    @property
    def gmac(self) -> float:
        """Executed per frame."""
        return self.evaluated.cost(self.name)

    @property
    def params(self) -> float | None:
        """Parameters of its networks."""
        return self.evaluated.metric("params", self.name)

    @cached_property
    def table(self) -> Table:
        """Average precision by motion and by set of frames."""
        return class_table(self.evaluated.boxes, self.matched)

    @cached_property
    def curves_KR(self) -> Floats:
        """Precision of each class at each of `RECALLS`; not-a-number without objects."""
        view = next(iter(views(self.evaluated.boxes, self.matched)))
        curves_KR = np.full((len(view.positives_K), len(RECALLS)), np.nan)
        for k in np.flatnonzero(view.positives_K):
            curves_KR[k] = precision_at(RECALLS, view.envelope(self.matched, int(k)), int(view.positives_K[k]))
        return curves_KR

    def minus(self, other: "Detector") -> Difference:
        """Return its mAP50 minus that of another detector of the same videos."""
        low, high = percentiles(self.mean_B - other.mean_B)
        return Difference(self.mean - other.mean, low, high)

    @cached_property
    def sure(self) -> float:
        """Score from which on its detections are shown: where F1 over all classes is largest.

        Scores of different detectors mean different things; here each is at its own best.
        """
        ranked = self.matched.ranked
        order = np.argsort(-ranked.score_N, kind="stable")
        right_N = np.cumsum(self.matched.plain_N[order] >= 0)
        if not len(order) or not right_N[-1]:
            return 1.0
        harmonic_N = 2 * right_N / (np.arange(1, len(order) + 1) + len(self.matched.objects))
        return float(ranked.score_N[order][int(harmonic_N.argmax())])


class Findings:
    """One evaluation, analysed.

    Args:
        evaluated: the evaluation.
        single: the single-frame detector, where another evaluation of the same one has it already.
        resamples: draws of videos.
    """

    def __init__(self, evaluated: Evaluated, single: Detector | None = None, resamples: int = RESAMPLES) -> None:
        self.evaluated = evaluated
        self.main = Detector(evaluated, MAIN, resamples)
        names = set(evaluated.boxes.found)
        if SINGLE in names and not (single is not None and _same(single, evaluated)):
            single = Detector(evaluated, SINGLE, resamples)
        self.single = single if SINGLE in names else None
        variants = [name for name in evaluated.config.variants if name in names]
        self.variants = tuple(Detector(evaluated, name, resamples) for name in variants)

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.evaluated.name

    @property
    def ratio(self) -> float | None:
        """Its cost per frame by that of the single-frame detector."""
        return None if self.single is None else self.main.gmac / self.single.gmac

    @property
    def oracle(self) -> bool:
        """Whether the method is told where the objects are."""
        return self.evaluated.method.alignment == "truth"

    @cached_property
    def gain(self) -> Difference | None:
        """mAP50 minus that of the single-frame detector."""
        return None if self.single is None else self.main.minus(self.single)


def chosen(found: Sequence[Findings]) -> Findings:
    """Return what the page names on top: the most accurate method at half of the single-frame detector's cost or less.

    Where there is none, the most accurate one. Oracles are not eligible, unless there is nothing else.
    """
    eligible = [each for each in found if not each.oracle] or list(found)
    cheap = [each for each in eligible if each.ratio is not None and each.ratio <= HALF]
    return max(cheap or eligible, key=lambda each: each.main.mean)


def _same(single: Detector, evaluated: Evaluated) -> bool:
    """Return whether an evaluation's single-frame detector found the same as one that is known."""
    one, two = single.evaluated.boxes.found[SINGLE], evaluated.boxes.found[SINGLE]
    return np.array_equal(one.video_N, two.video_N) and all(
        np.array_equal(getattr(one.boxes, column), getattr(two.boxes, column))
        for column in ("frame_N", "box_N4", "score_N", "label_N")
    )
