"""Seq-NMS: detections of a video support one another through time (LSTS notes §9).

Boxes of one class in adjacent frames are linked where they overlap by at least 0.5. The path with the largest sum of
scores is taken; its boxes get the path's mean score, and what overlaps them by at least 0.3 in their frames is dropped.
This goes on until the best sum is below 0.01; the boxes that are left keep their scores. At the end comes common NMS.

The best sum that ends in a box depends on the boxes before it alone. It is computed once for all boxes, and after a
path is taken only for those behind a box that went.
"""

import heapq
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.core.box_matching import Ints, chunks, iou, spread
from training.core.detections import Detections

__all__ = ["seq_nms"]


def seq_nms(
    detections: Detections, *, link: float = 0.5, suppress: float = 0.3, least: float = 0.01, nms: float = 0.3
) -> Detections:
    """Rescore the detections of one video along paths, and drop what overlaps with them.

    Frames are adjacent where their numbers are: a frame without detections ends all paths.

    Args:
        detections: of one video, scores ≥ 0; best before NMS, with many overlapping boxes.
        link: overlap of linked boxes in adjacent frames.
        suppress: overlap with a box of a path from which on a box of the same frame is dropped.
        least: sum of scores below which no path is taken.
        nms: overlap above which the final NMS drops the worse box.

    Returns:
        What is left, in order of frame and of falling score; without tracks.

    Raises:
        ValueError: a negative score.
    """
    if len(detections) and detections.score_N.min() < 0:
        raise ValueError(f"scores must not be negative, the smallest is {detections.score_N.min():.3g}")
    score_N = detections.score_N.astype(np.float64)
    kept_N = np.zeros(len(detections), bool)
    for label in np.unique(detections.label_N):
        own = np.flatnonzero(detections.label_N == label)
        own = own[np.argsort(detections.frame_N[own], kind="stable")]
        new_score, kept = _of_class(
            detections.frame_N[own], detections.box_N4[own], score_N[own], (link, suppress, least, nms)
        )
        score_N[own], kept_N[own] = new_score, kept
    rescored = replace(detections, score_N=score_N.astype(np.float32), track_N=None)[kept_N]
    return rescored[np.lexsort((-rescored.score_N, rescored.frame_N))]


Bounds = tuple[float, float, float, float]


def _of_class(
    frame_N: Ints, box_N4: NDArray[np.float32], score_N: NDArray[np.float64], bounds: Bounds
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return new scores, and which boxes are left, of one class; frames increase."""
    link, suppress, least, nms = bounds
    lookup = min(suppress, nms)
    after = _neighbours(frame_N, box_N4, 1, link)[0]
    before: list[list[int]] = [[] for _ in after]
    for box, others in enumerate(after):
        for other in others:
            before[other].append(box)
    beside, overlap = _neighbours(frame_N, box_N4, 0, lookup)
    score: list[float] = score_N.tolist()
    sums, origin = [0.0] * len(score), [-1] * len(score)
    alive = [True] * len(score)

    def update(box: int) -> bool:
        """Compute the best sum that ends in a box; return whether it changed."""
        best, source = 0.0, -1
        for other in before[box]:
            if alive[other] and sums[other] > best:
                best, source = sums[other], other
        changed = sums[box] != best + score[box]
        sums[box], origin[box] = best + score[box], source
        return changed

    for box in range(len(score)):
        update(box)
    queue = [(-total, box) for box, total in enumerate(sums)]
    heapq.heapify(queue)
    result = list(score)
    while queue:
        total, box = heapq.heappop(queue)
        if not alive[box] or -total != sums[box]:
            continue  # an old entry; the present sum has one of its own
        if sums[box] < least:
            break
        path = [box]
        while origin[path[-1]] >= 0:
            path.append(origin[path[-1]])
        mean = sum(score[member] for member in path) / len(path)
        gone = set(path)
        for member in path:
            near = zip(beside[member], overlap[member], strict=True)
            gone |= {other for other, value in near if value >= suppress and alive[other]}
        for member in gone:
            alive[member] = False
            result[member] = -1.0
        for member in path:
            result[member] = mean
        # In order of frame, so that each box is computed once, after all that come before it.
        stale = sorted({other for member in gone for other in after[member] if alive[other]})
        heapq.heapify(stale)
        seen: set[int] = set()
        while stale:
            other = heapq.heappop(stale)
            if other in seen:
                continue
            seen.add(other)
            if update(other):
                heapq.heappush(queue, (-sums[other], other))
                for following in after[other]:
                    if alive[following]:
                        heapq.heappush(stale, following)
    return np.array(result), _nms(np.array(result), beside, overlap, nms)


def _nms(
    score_N: NDArray[np.float64], beside: list[list[int]], overlap: list[list[float]], most: float
) -> NDArray[np.bool_]:
    """Return which boxes no better one of the same frame overlaps by more than `most`; negative scores are out."""
    kept = score_N >= 0
    for box in np.argsort(-score_N, kind="stable").tolist():
        if kept[box]:
            for other, value in zip(beside[box], overlap[box], strict=True):
                # Equal scores: the one that came first stays.
                if value > most and (score_N[other], -other) < (score_N[box], -box):
                    kept[other] = False
    return kept


def _neighbours(
    frame_N: Ints, box_N4: NDArray[np.float32], step: int, least: float
) -> tuple[list[list[int]], list[list[float]]]:
    """Return for each box the others, `step` frames later, that overlap it enough, and by how much."""
    first_N = np.searchsorted(frame_N, frame_N + step)
    count_N = np.searchsorted(frame_N, frame_N + step, side="right") - first_N
    neighbours: list[list[int]] = [[] for _ in range(len(frame_N))]
    values: list[list[float]] = [[] for _ in range(len(frame_N))]
    for chosen in chunks(len(frame_N), 1 << 13):
        one_P, other_P = spread(np.arange(chosen.start, chosen.stop), first_N[chosen], count_N[chosen])
        value_P = iou(box_N4[one_P], box_N4[other_P])
        for p in np.flatnonzero((value_P >= least) & (one_P != other_P)).tolist():
            neighbours[one_P[p]].append(int(other_P[p]))
            values[one_P[p]].append(float(value_P[p]))
    return neighbours, values
