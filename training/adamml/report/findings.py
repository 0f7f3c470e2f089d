"""What the page says, as numbers: points, curves, paired differences and usage of every evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.adamml.arms import (
    Array,
    Curve,
    Flags,
    Point,
    all_or_none_curve,
    controls,
    mutual_information,
    random_curve,
    threshold_curve,
    with_sound,
)
from training.adamml.report.records import Evaluated
from training.core.gate import mcnemar_exact, paired_bootstrap
from training.core.metrics import wilson_interval

RESAMPLES = 2000
"""Of the intervals of differences."""

TOLERANCE = 0.005
"""How far below fusion the cheapest model that is named on top of the page may lie; a share."""

SHUFFLES = 20
"""Permutations of the classes that say how much information chance shows."""


@dataclass(frozen=True)
class Comparison:
    """A model minus something else on the same videos."""

    other: str
    difference: float
    """Of top-1, of multi-label data of mAP; a share."""
    low: float | None
    high: float | None
    """95 %, paired bootstrap over videos; None for mAP."""
    gained: float
    """Videos that only the model names right; of several draws the mean."""
    lost: float
    p: float | None
    """McNemar's exact test; of several draws the largest."""
    gmac: float
    """Of the other."""
    saving: float
    """1 − GMAC of the model by that of the other."""


@dataclass(frozen=True)
class Usage:
    """How one modality is used."""

    name: str
    rate: float
    """Share of all segments."""
    rate_there: float
    """Share of the segments that have it."""
    spread: float
    """Standard deviation of a video's usage, over videos that have the modality in every segment."""
    chance_spread: float
    """The same if every segment were chosen blindly at the same rate."""
    bits: float | None
    """Mutual information of decision and class; None for multi-label data."""
    chance_bits: float | None
    """The same with the videos' classes shuffled."""
    histogram: tuple[int, ...]
    """Videos in which it was used 0, 1, … S times, of those that have it in every segment."""
    expected: tuple[float, ...]
    """The same if every segment were chosen blindly at the same rate (binomial)."""


@dataclass(frozen=True)
class Findings:
    """One evaluation, analysed."""

    evaluated: Evaluated

    @cached_property
    def model(self) -> Point:
        """The evaluated model."""
        return self.evaluated.segments.own(self.evaluated.name)

    @cached_property
    def fusion(self) -> Point:
        """Everything that is available, without a policy."""
        segments = self.evaluated.segments
        cost = float(segments.gmac(segments.everything(), policy=False).mean())
        return segments.point("fusion", [segments.arms["fusion"]], [cost])

    @cached_property
    def alone(self) -> tuple[Point, ...]:
        """Each modality's own net on all segments that have it."""
        segments, points = self.evaluated.segments, []
        for k, name in enumerate(segments.names):
            only_NSK = segments.everything()
            only_NSK[:, :, [j for j in range(len(segments.names)) if j != k]] = False
            cost = float(segments.gmac(only_NSK, policy=False).mean())
            points.append(segments.point(name, [segments.arms[name]], [cost]))
        return tuple(points)

    @cached_property
    def controls(self) -> tuple[Point, Point, Point]:
        """Random at the same rates, all-or-none at the same cost, oracle."""
        return controls(self.evaluated.segments, self.evaluated.draws)

    @cached_property
    def threshold(self) -> Curve:
        """Other thresholds."""
        return threshold_curve(self.evaluated.segments)

    @cached_property
    def random(self) -> Curve:
        """Random choices along the threshold curve."""
        return random_curve(self.evaluated.segments, self.evaluated.draws)

    @cached_property
    def blocks(self) -> Curve:
        """All or none."""
        return all_or_none_curve(self.evaluated.segments, self.evaluated.draws)

    @property
    def saving(self) -> float:
        """1 − executed GMAC by that of fusion."""
        return 1 - self.model.gmac / self.fusion.gmac

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Against fusion, random, all-or-none and each modality by itself."""
        segments, draws = self.evaluated.segments, range(self.evaluated.draws)
        rates, share = segments.rates(segments.choices_NSK), segments.equal_cost_share()
        random = [segments.scores(segments.at_random(rates, seed)) for seed in draws]
        blocks = [segments.scores(segments.all_or_none(share, seed)) for seed in draws]
        rows = [
            self._compare("fusion, everything", [segments.arms["fusion"]], self.fusion.gmac),
            self._compare("random, same rates", random, self.controls[0].gmac),
            self._compare("all or none, same cost", blocks, self.controls[1].gmac),
        ]
        rows += [self._compare(f"{p.name} alone", [segments.arms[p.name]], p.gmac) for p in self.alone]
        return tuple(rows)

    def _compare(self, other: str, scores: Sequence[Array], gmac: float) -> Comparison:
        segments = self.evaluated.segments
        saving = 1 - self.model.gmac / gmac if gmac else 0.0
        if segments.multi_label:
            mean = float(np.mean([segments.accuracy(each) for each in scores]))
            return Comparison(other, self.model.top1 - mean, None, None, 0, 0, None, gmac, saving)
        mine_N = segments.correct(segments.scores_NC)
        theirs = [segments.correct(each) for each in scores]
        gained = [int((mine_N & ~each).sum()) for each in theirs]
        lost = [int((each & ~mine_N).sum()) for each in theirs]
        difference_N = mine_N.astype(np.float64) - np.mean(theirs, axis=0)
        low, high = paired_bootstrap(difference_N, alpha=0.05, resamples=RESAMPLES, seed=0)
        p = max(mcnemar_exact(won, gone) for won, gone in zip(gained, lost, strict=True))
        mean_gained, mean_lost = float(np.mean(gained)), float(np.mean(lost))
        return Comparison(other, float(difference_N.mean()), low, high, mean_gained, mean_lost, p, gmac, saving)

    @cached_property
    def usage(self) -> tuple[Usage, ...]:
        """Of each modality."""
        return tuple(self._usage(k) for k in range(len(self.evaluated.segments.names)))

    def _usage(self, k: int) -> Usage:
        segments = self.evaluated.segments
        used_NS, there_NS = segments.choices_NSK[:, :, k], segments.available_NSK[:, :, k]
        bits, chance = None, None
        if not segments.multi_label:
            bits = mutual_information(used_NS, segments.label)
            rng = np.random.default_rng(0)
            shuffled = [mutual_information(used_NS, rng.permutation(segments.label)) for _ in range(SHUFFLES)]
            chance = float(np.mean(shuffled))
        # A video without sound never uses it; that is no merit of the policy.
        whole_N = there_NS.all(axis=1) if there_NS.all(axis=1).any() else np.ones(len(there_NS), bool)
        times_N = used_NS[whole_N].sum(axis=1)
        rate = float(used_NS[whole_N].mean())
        count = used_NS.shape[1]
        return Usage(
            name=segments.names[k],
            rate=float(used_NS.mean()),
            rate_there=float(used_NS.sum() / max(int(there_NS.sum()), 1)),
            spread=float(used_NS[whole_N].mean(axis=1).std()),
            chance_spread=float(np.sqrt(rate * (1 - rate) / count)),
            bits=bits,
            chance_bits=chance,
            histogram=tuple(int(value) for value in np.bincount(times_N, minlength=count + 1)),
            expected=tuple(float(value) for value in binomial(count, rate) * int(whole_N.sum())),
        )

    @cached_property
    def by_class(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Usage of each class (C,K), not-a-number without videos, and its number of videos (C,)."""
        segments = self.evaluated.segments
        classes = segments.scores_NC.shape[1]
        member_NC = segments.label > 0 if segments.multi_label else segments.label[:, None] == np.arange(classes)
        count_C = member_NC.sum(axis=0)
        total_CK = member_NC.astype(np.float64).T @ segments.usage()
        return np.where(count_C[:, None] > 0, total_CK / np.maximum(count_C, 1)[:, None], np.nan), count_C

    @cached_property
    def subsets(self) -> tuple[tuple[str, int, Point, float], ...]:
        """Videos with and without sound: name, number, accuracy of the model, and that of fusion."""
        return tuple(self._subset(name, rows_N) for name, rows_N in with_sound(self.evaluated.segments).items())

    def _subset(self, name: str, rows_N: Flags) -> tuple[str, int, Point, float]:
        segments = self.evaluated.segments
        right_N, fused_N = segments.correct(segments.scores_NC), segments.correct(segments.arms["fusion"])
        count = int(rows_N.sum())
        low, high = wilson_interval(int(right_N[rows_N].sum()), count)
        point = Point(name, float(right_N[rows_N].mean()), float(segments.gmac_N[rows_N].mean()), low, high)
        return name.replace("_", " "), count, point, float(fused_N[rows_N].mean())


def binomial(trials: int, rate: float) -> NDArray[np.float64]:
    """Return the probabilities of 0 … `trials` successes."""
    result = np.array([1.0])
    for _ in range(trials):
        result = np.convolve(result, [1 - rate, rate])
    return result


def chosen(found: Sequence[Findings], tolerance: float = TOLERANCE) -> Findings:
    """Return the cheapest model at most `tolerance` below the most accurate fusion, or else the most accurate one."""
    bound = max(each.fusion.top1 for each in found) - tolerance
    near = [each for each in found if each.model.top1 >= bound - 1e-12]
    if near:
        return min(near, key=lambda each: each.model.gmac)
    return max(found, key=lambda each: (each.model.top1, -each.model.gmac))


def majority(found: Findings) -> float:
    """Return the accuracy of always naming the most frequent class."""
    segments = found.evaluated.segments
    if segments.multi_label:
        return float(np.nanmean(np.where((segments.label > 0).any(axis=0), (segments.label > 0).mean(axis=0), np.nan)))
    return float(np.bincount(segments.label).max() / len(segments.label))
