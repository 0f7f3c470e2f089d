"""Which detection found which object: greedy matching, frame by frame and class by class, in order of score.

Boxes are edges: no "+1" (`data_specs/boxes.py`). Suffixes: M objects, N detections, P pairs, F labelled frames,
K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.box_results import Found, Truth

__all__ = [
    "Matched",
    "Objects",
    "Pairs",
    "Ranked",
    "chunks",
    "greedy",
    "iou",
    "lenient_threshold",
    "match",
    "pairs_of",
    "spread",
]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PLAIN = 0.5
TOLERANCE = 10.0
"""Pixels by which a box of the lenient rule may be too wide and too high."""
CHUNK = 1 << 20
"""Detections looked at together: bounds memory, changes nothing."""


@dataclass(frozen=True)
class Objects:
    """Objects of the labelled frames, in order of frame, then of class."""

    frame_M: Ints
    """Place of the frame in `Truth.labelled_M2`."""
    video_M: Ints
    number_M: Ints
    """Frame number of the stored clip."""
    label_M: Ints
    track_M: Ints
    group_M: Ints
    """Number of its frame and class: equal for objects that the same detections may find."""
    box_M4: Floats
    first_F: Ints
    """(F+1,), where the objects of each frame begin."""

    def __len__(self) -> int:
        return len(self.frame_M)


@dataclass(frozen=True)
class Ranked:
    """Detections of the labelled frames, in order of class, then of falling score; equal scores as they came."""

    frame_N: Ints
    video_N: Ints
    label_N: Ints
    score_N: NDArray[np.float32]
    box_N4: NDArray[np.float32]
    first_K: Ints
    """(K+1,), where the detections of each class begin."""

    def __len__(self) -> int:
        return len(self.frame_N)


@dataclass(frozen=True)
class Pairs:
    """Detections and objects of the same frame and class that overlap enough to be asked about."""

    detection_P: Ints
    object_P: Ints
    iou_P: Floats


@dataclass(frozen=True)
class Matched:
    """What `match` found out about one detector."""

    objects: Objects
    ranked: Ranked
    pairs: Pairs
    """Those that reach the plain or the lenient threshold."""
    plain_N: Ints
    """Object that each detection found at IoU 0.5, −1: none."""
    lenient_N: Ints
    """The same at the lenient threshold of each object."""


def iou(one_N4: Array, other_N4: Array) -> Floats:
    """Return the overlap of each box with the one beside it: intersection over union of areas, (N,)."""
    one, other = np.asarray(one_N4, np.float64).T, np.asarray(other_N4, np.float64).T
    wide = np.minimum(one[2], other[2]) - np.maximum(one[0], other[0])
    high = np.minimum(one[3], other[3]) - np.maximum(one[1], other[1])
    shared = np.maximum(wide, 0.0) * np.maximum(high, 0.0)
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    # Boxes without an area overlap with nothing.
    return np.asarray(np.divide(shared, areas - shared, out=np.zeros_like(shared), where=shared > 0))


def lenient_threshold(box_M4: Array) -> Floats:
    """Return min(0.5, w·h / ((w+10)·(h+10))) of each object, (M,): the rule of ImageNet VID (LSTS notes §9)."""
    box = np.asarray(box_M4, np.float64)
    wide, high = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    return np.asarray(np.minimum(PLAIN, wide * high / ((wide + TOLERANCE) * (high + TOLERANCE))))


def match(truth: Truth, found: Found, classes: int) -> Matched:
    """Match the detections of one detector with the objects. What lies in frames that are not labelled never counts.

    Args:
        truth: objects, and the frames that are labelled.
        found: detections, in any order.
        classes: K.

    Raises:
        ValueError: an object in a frame that is not labelled, an unknown class, or a box or score that is no number.
    """
    objects = _objects(truth, classes)
    ranked = _ranked(truth, found, classes)
    lenient_M = lenient_threshold(objects.box_M4)
    pairs = pairs_of(objects, ranked, lenient_M)
    plain_N, lenient_N = (greedy(pairs, objects, len(ranked), least) for least in (PLAIN, lenient_M))
    return Matched(objects, ranked, pairs, plain_N, lenient_N)


def pairs_of(objects: Objects, ranked: Ranked, least_M: Floats) -> Pairs:
    """Return the pairs of equal frame and class whose overlap reaches the object's own threshold `least_M`."""
    classes = len(ranked.first_K) - 1
    key_M = objects.frame_M * classes + objects.label_M
    groups, start_G, count_G = np.unique(key_M, return_index=True, return_counts=True)
    parts: list[tuple[Ints, Ints, Floats]] = []
    for chosen in chunks(len(ranked)) if len(groups) else ():
        key_N = ranked.frame_N[chosen] * classes + ranked.label_N[chosen]
        place_N = np.minimum(np.searchsorted(groups, key_N), len(groups) - 1)
        inside = np.flatnonzero(groups[place_N] == key_N)
        place_N = place_N[inside]
        detection_P, object_P = spread(inside + chosen.start, start_G[place_N], count_G[place_N])
        iou_P = iou(ranked.box_N4[detection_P], objects.box_M4[object_P])
        kept = iou_P >= least_M[object_P]
        parts.append((detection_P[kept], object_P[kept], iou_P[kept]))
    if not parts:
        none = np.empty(0, np.int64)
        return Pairs(none, none, np.empty(0))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def greedy(pairs: Pairs, objects: Objects, detections: int, least: float | Floats) -> Ints:
    """Give each detection, best score first, the free object that it overlaps most; each object once.

    Of equal overlaps the first object wins. Frames and classes are independent of one another, so the first detections
    of all of them choose together, then the second ones, and so on.

    Args:
        pairs: from `pairs_of`; detections of a frame and class have rising numbers with falling score.
        objects: those of the pairs.
        detections: N.
        least: overlap from which on an object may be found, one for all or (M,).

    Returns:
        (N,) object of each detection, −1: none.
    """
    allowed_P = pairs.iou_P >= (least if isinstance(least, float) else least[pairs.object_P])
    detection_P, object_P, iou_P = pairs.detection_P[allowed_P], pairs.object_P[allowed_P], pairs.iou_P[allowed_P]
    matched_N = np.full(detections, -1, np.int64)
    if not len(detection_P):
        return matched_N
    turn_P = _turns(detection_P, objects.group_M[object_P])
    order = np.lexsort((object_P, -iou_P, detection_P, turn_P))
    detection_P, object_P, turn_P = detection_P[order], object_P[order], turn_P[order]
    free_M = np.ones(len(objects), bool)
    bounds = np.searchsorted(turn_P, np.arange(turn_P[-1] + 2))
    for start, end in pairwise(bounds):
        free = free_M[object_P[start:end]]
        detection, wanted = detection_P[start:end][free], object_P[start:end][free]
        best = _begins(detection)
        matched_N[detection[best]] = wanted[best]
        free_M[wanted[best]] = False
    return matched_N


def spread(item_N: Ints, start_N: Ints, count_N: Ints) -> tuple[Ints, Ints]:
    """Return each item as often as its count says, and beside it the numbers from its start on."""
    item_P = np.repeat(item_N, count_N)
    within = np.arange(len(item_P)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
    return item_P, np.repeat(start_N, count_N) + within


def chunks(count: int, size: int = CHUNK) -> Iterator[slice]:
    """Return slices that cover `count` items."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _begins(values: Ints) -> NDArray[np.bool_]:
    """Return which values differ from the one before."""
    result = np.ones(len(values), bool)
    result[1:] = values[1:] != values[:-1]
    return result


def _turns(detection_P: Ints, group_P: Ints) -> Ints:
    """Return of each pair, as the how manieth of its frame and class the detection chooses."""
    detections, first, place_P = np.unique(detection_P, return_index=True, return_inverse=True)
    group_N = group_P[first]
    order = np.argsort(group_N, kind="stable")
    starts = np.flatnonzero(_begins(group_N[order]))
    counts = np.diff(np.append(starts, len(detections)))
    turn_N = np.empty(len(detections), np.int64)
    turn_N[order] = np.arange(len(detections)) - np.repeat(starts, counts)
    return turn_N[place_P]


def _objects(truth: Truth, classes: int) -> Objects:
    place = _Places(truth.labelled_M2)
    frame_M = place.of(truth.video_N, truth.frame_N)
    if (frame_M < 0).any():
        row = int(np.flatnonzero(frame_M < 0)[0])
        raise ValueError(
            f"video {int(truth.video_N[row])} has an object in frame {int(truth.frame_N[row])}, which is not labelled: "
            f"its boxes and its labelled frames do not belong together"
        )
    _check("objects", truth.label_N, truth.box_N4, classes)
    order = np.lexsort((truth.label_N, frame_M))
    frame_M, label_M = frame_M[order], truth.label_N[order].astype(np.int64)
    return Objects(
        frame_M=frame_M,
        video_M=truth.video_N[order].astype(np.int64),
        number_M=truth.frame_N[order].astype(np.int64),
        label_M=label_M,
        track_M=truth.track_N[order].astype(np.int64),
        group_M=np.cumsum(_begins(frame_M * classes + label_M)) - 1,
        box_M4=truth.box_N4[order].astype(np.float64),
        first_F=np.searchsorted(frame_M, np.arange(len(truth.labelled_M2) + 1)),
    )


def _ranked(truth: Truth, found: Found, classes: int) -> Ranked:
    boxes = found.boxes
    frame_N = _Places(truth.labelled_M2).of(found.video_N, boxes.frame_N)
    known = np.flatnonzero(frame_N >= 0)
    label_N, score_N = boxes.label_N[known], boxes.score_N[known].astype(np.float32)
    _check("detections", label_N, boxes.box_N4[known], classes)
    if not np.isfinite(score_N).all():
        raise ValueError(f"{int((~np.isfinite(score_N)).sum())} detections have a score that is not finite")
    by_score = np.argsort(-score_N, kind="stable")
    # Stable sorts of short integers take linear time.
    short = np.int16 if classes <= np.iinfo(np.int16).max else np.int64
    order = by_score[np.argsort(label_N.astype(short)[by_score], kind="stable")]
    chosen = known[order]
    return Ranked(
        frame_N=frame_N[chosen],
        video_N=found.video_N[chosen],
        label_N=label_N[order].astype(np.int64),
        score_N=score_N[order],
        box_N4=boxes.box_N4[chosen].astype(np.float32),
        first_K=np.concatenate([[0], np.cumsum(np.bincount(label_N, minlength=classes))]),
    )


def _check(what: str, label_N: Array, box_N4: Array, classes: int) -> None:
    if len(label_N) and (label_N.min() < 0 or label_N.max() >= classes):
        raise ValueError(
            f"{what} have labels {int(label_N.min())} to {int(label_N.max())}; classes are 0 to {classes - 1}"
        )
    if not np.isfinite(box_N4).all():
        raise ValueError(f"{what}: {int((~np.isfinite(box_N4)).any(axis=1).sum())} boxes are not finite")


class _Places:
    """Looks up where a frame of a video is among the labelled ones."""

    def __init__(self, labelled_M2: Array) -> None:
        videos = int(labelled_M2[:, 0].max()) + 1 if len(labelled_M2) else 0
        self._frames_V = np.zeros(videos, np.int64)
        np.maximum.at(self._frames_V, labelled_M2[:, 0], labelled_M2[:, 1] + 1)
        self._first_V = np.cumsum(self._frames_V) - self._frames_V
        self._place = np.full(int(self._frames_V.sum()), -1, np.int64)
        at = self._first_V[labelled_M2[:, 0]] + labelled_M2[:, 1]
        self._place[at] = np.arange(len(labelled_M2))
        if len(np.unique(at)) < len(at):
            raise ValueError("a labelled frame is named twice")

    def of(self, video_N: Array, frame_N: Array) -> Ints:
        """Return the place of each frame, −1 where it is not labelled."""
        result = np.full(len(video_N), -1, np.int64)
        inside = np.flatnonzero(video_N < len(self._frames_V))
        inside = inside[frame_N[inside] < self._frames_V[video_N[inside]]]
        result[inside] = self._place[self._first_V[video_N[inside]] + frame_N[inside]]
        return result
