"""The gate's checks of models that find boxes: mAP50 at its cost per frame, compared video by video.

Frames of a video resemble one another, so that videos are the independent cases: they are resampled, and `min_samples`
of the gate counts them. A thousand frames of three videos are three cases.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.box_matching import Ints, Matched, match
from training.core.box_metrics import MAIN, plain_precision
from training.core.box_resampling import mean_precision, percentiles, resampled_precision
from training.core.box_results import BoxResults, Truth
from training.core.gate import ClassChange, Evidence, Gain, GateConfig, Row, class_rows, paired_rows

__all__ = ["Measured", "check_boxes", "comparison_rows", "floor_rows", "measure", "same_truth"]


class Measured:
    """mAP50 of one detector, and of it in resamples of the videos."""

    def __init__(
        self, results: BoxResults, classes: int, detector: str = MAIN, *, resamples: int = 2000, seed: int = 0
    ) -> None:
        """Match and resample.

        Args:
            results: with the detector.
            classes: K.
            detector: name in `BoxResults.found`.
            resamples: B.
            seed: detectors of the same truth and seed can be compared resample by resample.

        Raises:
            ValueError: see `box_matching.match`.
        """
        matched: Matched = match(results.truth, results.found[detector], classes)
        videos = np.unique(results.truth.labelled_M2[:, 0])
        self.class_K = plain_precision(matched)
        """Average precision of each class; not-a-number without objects."""
        self.class_BK = resampled_precision(matched, videos, resamples, seed)
        self.mean = float(np.nanmean(self.class_K))
        self.mean_B = mean_precision(self.class_BK)

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Return the percentile interval of the mean."""
        return percentiles(self.mean_B, alpha)


def check_boxes(evidence: Evidence) -> None:
    """Check that an evaluation of boxes can be judged.

    Raises:
        ValueError: labels that are not multi-hot, no objects, no detections of the model itself, or boxes of videos
            that were not evaluated.
    """
    boxes, n = evidence.boxes, len(evidence.key)
    assert boxes is not None  # the caller looked
    if evidence.label.shape != (len(evidence.label), len(evidence.classes)):
        raise ValueError(
            f"{evidence.name} finds boxes: its labels must be (videos, {len(evidence.classes)} classes), "
            f"not {evidence.label.shape}"
        )
    if MAIN not in boxes.found:
        raise ValueError(f"{evidence.name}: its predictions have boxes of {', '.join(boxes.found)} but not of {MAIN!r}")
    if not len(boxes.truth.video_N):
        raise ValueError(f"{evidence.name} was evaluated on frames without a single object; nothing can be compared")
    last = max(int(boxes.truth.labelled_M2[:, 0].max()), *(int(f.video_N.max(initial=0)) for f in boxes.found.values()))
    if last >= n:
        raise ValueError(f"{evidence.name}: boxes name video {last}, {n} videos were evaluated; evaluate again")


def same_truth(one: Truth, other: Truth) -> bool:
    """Return whether objects, their numbers and the labelled frames are the same, in whatever order."""

    def table(truth: Truth) -> tuple[Ints, NDArray[Any]]:
        columns = (truth.video_N, truth.frame_N, truth.label_N, truth.track_N)
        order = np.lexsort((*truth.box_N4.T, *reversed(columns)))
        return np.stack(columns, axis=1)[order], truth.box_N4[order]

    mine, theirs = table(one), table(other)
    return (
        np.array_equal(one.labelled_M2, other.labelled_M2)
        and np.array_equal(mine[0], theirs[0])
        and np.array_equal(mine[1], theirs[1])
    )


def measure(evidence: Evidence, config: GateConfig) -> Measured:
    """Match and resample what a model found."""
    assert evidence.boxes is not None
    return Measured(evidence.boxes, len(evidence.classes), resamples=config.bootstrap, seed=config.seed)


def floor_rows(evidence: Evidence, config: GateConfig, small: bool) -> list[Row]:
    """Without a champion: better than finding nothing; with enough videos, also by the lower end of the interval."""
    own = measure(evidence, config)
    low, high = own.interval(config.alpha)
    bound = "above 0" + ("" if small else f", also the lower end of the {1 - config.alpha:.0%} interval")
    value = f"mAP50 {own.mean:.1%} [{low:.1%}, {high:.1%}]"
    return [Row("finds objects", value, bound, (own.mean if small else low) > 0), _counts_row(evidence)]


def comparison_rows(challenger: Evidence, champion: Evidence, config: GateConfig, small: bool) -> list[Row]:
    """The difference in mAP50 over resamples of the videos, the same ones for both, and the classes that got worse.

    Args:
        challenger: the new model.
        champion: the present one, its videos in the same order.
        config: bounds; `margin` and `max_loss` of mAP50, `max_class_drop` of a class's average precision.
        small: whether the estimate alone has to decide, and a person.
    """
    mine, theirs = measure(challenger, config), measure(champion, config)
    difference = mine.mean - theirs.mean
    difference_B = mine.mean_B - theirs.mean_B
    difference_B = difference_B[~np.isnan(difference_B)]
    low, high = percentiles(difference_B, config.alpha)
    p = min(1.0, 2 * min(_share(difference_B <= 0), _share(difference_B >= 0)))
    text = (
        f"{difference:+.1%} [{low:+.1%}, {high:+.1%}]; {mine.mean:.1%} and {theirs.mean:.1%}, "
        f"bootstrap over videos p = {p:.3g}"
    )
    rows = paired_rows(Gain("mAP50", text, difference, low, p), challenger, champion, config, small)
    changes = _changes(challenger, mine, theirs)
    return [*rows, *class_rows(changes, config, "per-class average precision", "boxes"), _counts_row(challenger)]


def _changes(challenger: Evidence, mine: Measured, theirs: Measured) -> list[ClassChange]:
    assert challenger.boxes is not None
    truth = challenger.boxes.truth
    changes = []
    for k in np.flatnonzero(~np.isnan(mine.class_K)):
        own = truth.label_N == k
        gain_B = mine.class_BK[:, k] - theirs.class_BK[:, k]
        gain_B = gain_B[~np.isnan(gain_B)]
        # Resampling one or two videos says nothing, however alike the resamples: no test of v videos has p < 2^-v.
        p = max(_share(gain_B >= 0), 0.5 ** len(np.unique(truth.video_N[own])))
        drop = float(theirs.class_K[k] - mine.class_K[k])
        changes.append(ClassChange(challenger.classes[k], drop, int(own.sum()), p))
    return changes


def _share(hits_B: NDArray[Any]) -> float:
    """Return how often something happened, the observed case counted as one: never 0."""
    return float((1 + hits_B.sum()) / (1 + len(hits_B)))


def _counts_row(evidence: Evidence) -> Row:
    assert evidence.boxes is not None
    truth = evidence.boxes.truth
    value = f"{len(truth.video_N)} boxes in {len(truth.labelled_M2)} labelled frames"
    return Row("evaluated objects", value, "shown only", None)
