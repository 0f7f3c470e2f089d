"""Metrics of detection over all labelled frames of a split: average precision by class, motion and set of frames.

Three protocols that must not be mixed in one table:

* `map50`: overlap of at least 0.5, area below the precision envelope over every recall that is reached (as MEGA);
* `map50_lenient`: the same with the threshold of ImageNet VID's own evaluator, which forgives 10 pixels of small
  objects (as FGFA, DFF, LSTS);
* `coco_map50` and `coco_map`: COCO's, precision at 101 recalls, the latter the mean over thresholds .5, .55 … .95 (as
  mmtracking); without COCO's limit to 100 detections per frame and class.

Each is the mean over the classes that have objects. Suffixes as in `box_matching`; T detections that are right.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.box_matching import Floats, Ints, Matched, greedy, match
from training.core.box_motion import GROUPS, ignore_weights, motion_groups, motion_iou
from training.core.box_results import BoxResults

__all__ = [
    "MAIN",
    "RECALLS",
    "Table",
    "View",
    "box_metrics",
    "class_table",
    "envelope",
    "every_recall",
    "plain_precision",
    "precision_at",
    "views",
]

MAIN = "main"
"""Name of the evaluated model among the detectors of `BoxResults.found`."""
RECALLS = np.linspace(0.0, 1.0, 101)
THRESHOLDS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class View:
    """The detections of one column, as right and wrong ones."""

    column: str
    lenient: bool
    right_N: NDArray[np.bool_]
    wrong_N: NDArray[Any]
    """Weight as wrong, bool or float32; a detection that is neither has 0."""
    positives_K: Ints
    """Objects of each class."""

    def envelope(self, matched: Matched, label: int) -> Floats:
        """Return the enveloped precision at the right detections of a class; see `envelope`."""
        own = slice(matched.ranked.first_K[label], matched.ranked.first_K[label + 1])
        return envelope(self.right_N[own], self.wrong_N[own])


@dataclass(frozen=True)
class Table:
    """Average precision of one detector: a column for all objects, each motion group and each set of frames."""

    columns: tuple[str, ...]
    """`all`, `slow`, `medium`, `fast`, names of sets of frames."""
    plain_SK: Floats
    """By column and class; not-a-number where a class has no objects."""
    lenient_SK: Floats
    objects_SK: Ints

    def mean(self, column: str, lenient: bool = False) -> float | None:
        """Return the mean over the classes that have objects; None where none has."""
        values_K = (self.lenient_SK if lenient else self.plain_SK)[self.columns.index(column)]
        known_K = values_K[~np.isnan(values_K)]
        return float(known_K.mean()) if len(known_K) else None


def box_metrics(results: BoxResults, classes: tuple[str, ...], split: str) -> dict[str, float]:
    """Return the metrics of one split under the names `<split>/<metric>`.

    `map50`, `map50_lenient`; `map50_slow`, `map50_medium`, `map50_fast` by motion (`box_motion`) and `map50_<set>` for
    each named set of frames, all with `_lenient`, too; `coco_map50`, `coco_map`; `objects` (boxes, also by motion and
    by set), `frames_labelled`. Of the other detectors the same without COCO's, with their name at the end. A motion
    group or a set without objects has no average precision and is left out.

    Args:
        results: with the detector `main`.
        classes: names of the K classes.
        split: prefix of the names.

    Raises:
        ValueError: no objects, no detector `main`, a name of a set or detector that would hide another metric,
            or broken arrays (see `box_matching.match`).
    """
    truth = results.truth
    if MAIN not in results.found:
        raise ValueError(f"no detections of {MAIN!r}; there are some of: {', '.join(results.found) or 'nobody'}")
    if not len(truth.video_N):
        raise ValueError(
            f"split {split!r} has no objects in {len(truth.labelled_M2)} labelled frames: nothing to measure"
        )
    values: dict[str, float] = {"frames_labelled": float(len(truth.labelled_M2))}
    for name, found in results.found.items():
        matched = match(truth, found, len(classes))
        table = class_table(results, matched)
        own = _headline(table)
        if name == MAIN:
            own |= _coco(matched)
            counts = {c: float(table.objects_SK[s].sum()) for s, c in enumerate(table.columns)}
            own |= {"objects" if c == "all" else f"objects_{c}": count for c, count in counts.items()}
        suffix = "" if name == MAIN else f"_{name}"
        for key, value in own.items():
            if key + suffix in values:
                raise ValueError(f"two metrics would be named {key + suffix!r}: rename a set of frames or a detector")
            values[key + suffix] = value
    return {f"{split}/{name}": value for name, value in values.items()}


def views(results: BoxResults, matched: Matched) -> Iterator[View]:
    """Yield what is averaged: all objects, each motion group and each set of frames, plain and lenient.

    Raises:
        ValueError: a set of frames has the name of another column.
    """
    objects, ranked, labelled_M2 = matched.objects, matched.ranked, results.truth.labelled_M2
    members = {name: _members(labelled_M2, pairs) for name, pairs in results.truth.subsets.items()}
    if taken := {"all", "lenient", *GROUPS} & set(members):
        raise ValueError(f"a set of frames cannot be named {sorted(taken)[0]!r}: a metric has that name")
    group_M = motion_groups(motion_iou(objects))
    weight_GN = ignore_weights(objects, ranked, group_M)
    for lenient, matched_N in ((False, matched.plain_N), (True, matched.lenient_N)):
        found_N = matched_N >= 0
        yield View("all", lenient, found_N, ~found_N, _positives(matched, np.ones(len(objects), bool)))
        for g, name in enumerate(GROUPS):
            right_N = found_N.copy()
            right_N[found_N] = group_M[matched_N[found_N]] == g
            wrong_N = np.where(found_N, np.float32(0), weight_GN[g])
            yield View(name, lenient, right_N, wrong_N, _positives(matched, group_M == g))
        for name, member_F in members.items():
            here_N = member_F[ranked.frame_N]
            positives_K = _positives(matched, member_F[objects.frame_M])
            yield View(name, lenient, found_N & here_N, ~found_N & here_N, positives_K)


def class_table(results: BoxResults, matched: Matched) -> Table:
    """Return the average precision of a detector for each class, motion group and set of frames.

    Raises:
        ValueError: a set of frames has the name of another column.
    """
    columns: list[str] = []
    counts: list[Ints] = []
    areas: dict[bool, list[Floats]] = {False: [], True: []}
    for view in views(results, matched):
        if not view.lenient:
            columns.append(view.column)
            counts.append(view.positives_K)
        areas[view.lenient].append(_areas(matched, view))
    return Table(tuple(columns), np.stack(areas[False]), np.stack(areas[True]), np.stack(counts))


def plain_precision(matched: Matched) -> Floats:
    """Return the average precision of each class at overlap 0.5, (K,); not-a-number without objects."""
    return _areas(matched, _all_of(matched, matched.plain_N))


def envelope(right_N: NDArray[np.bool_], wrong_N: NDArray[Any]) -> Floats:
    """Return the largest precision at the recall of each right detection or a higher one, (T,).

    Args:
        right_N: which detections are right, best score first.
        wrong_N: weight as wrong of each detection, bool or float; those that are neither have 0.
    """
    hits = np.flatnonzero(right_N)
    wrong_T = np.cumsum(wrong_N, dtype=np.float64)[hits]
    right_T = np.arange(1, len(hits) + 1)
    return np.asarray(np.maximum.accumulate((right_T / (right_T + wrong_T))[::-1])[::-1])


def every_recall(envelope_T: Floats, positives: int) -> float:
    """Return the area below the envelope: each right detection adds 1 / positives of recall."""
    return float(envelope_T.sum() / positives)


def at_recalls(envelope_T: Floats, positives: int) -> float:
    """Return the mean precision at 101 recalls; 0 where a recall is not reached (COCO)."""
    return float(precision_at(RECALLS, envelope_T, positives).mean())


def precision_at(recall_R: Floats, envelope_T: Floats, positives: int) -> Floats:
    """Return the enveloped precision at some recalls, (R,); 0 where a recall is not reached."""
    place_R = np.searchsorted(np.arange(1, len(envelope_T) + 1) / positives, recall_R)
    return np.append(envelope_T, 0.0)[place_R]


def _headline(table: Table) -> dict[str, float]:
    result: dict[str, float] = {}
    for column in table.columns:
        stem = "map50" if column == "all" else f"map50_{column}"
        means = {stem: table.mean(column), f"{stem}_lenient": table.mean(column, lenient=True)}
        result |= {name: value for name, value in means.items() if value is not None}
    return result


def _coco(matched: Matched) -> dict[str, float]:
    means = []
    for threshold in THRESHOLDS:
        matched_N = greedy(matched.pairs, matched.objects, len(matched.ranked), float(threshold))
        means.append(float(np.nanmean(_areas(matched, _all_of(matched, matched_N), at_recalls))))
    return {"coco_map50": means[0], "coco_map": float(np.mean(means))}


def _areas(matched: Matched, view: View, area: Callable[[Floats, int], float] = every_recall) -> Floats:
    result_K = np.full(len(view.positives_K), np.nan)
    for k in np.flatnonzero(view.positives_K):
        result_K[k] = area(view.envelope(matched, int(k)), int(view.positives_K[k]))
    return result_K


def _all_of(matched: Matched, matched_N: Ints) -> View:
    found_N = matched_N >= 0
    return View("all", False, found_N, ~found_N, _positives(matched, np.ones(len(matched.objects), bool)))


def _positives(matched: Matched, chosen_M: NDArray[np.bool_]) -> Ints:
    """Return how many of some objects each class has, (K,)."""
    return np.bincount(matched.objects.label_M[chosen_M], minlength=len(matched.ranked.first_K) - 1)


def _members(labelled_M2: NDArray[Any], pairs: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which labelled frames are in a set, (F,)."""
    wanted = set(map(tuple, pairs.tolist()))
    return np.fromiter((pair in wanted for pair in map(tuple, labelled_M2.tolist())), bool, len(labelled_M2))
