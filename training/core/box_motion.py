"""Objects by how fast they move, and how detections count when only some of the objects do (LSTS notes §9).

The motion of an object in a frame is the mean overlap of its box with its own boxes in the frames within ±10: above 0.9
it is slow, below 0.7 fast. An instance without another box within reach counts as 0, fast, as in FGFA's evaluator.

When one group is evaluated, objects of the others are *ignored*: they are no positives, and a detection that found one
counts neither as right nor as wrong. A detection that found nothing is wrong with a weight:

* no object in its frame: the share of all instances, of all frames and classes, that are in the group;
* its largest overlap with an object of the group is larger than that with an ignored one: 1;
* the other way round: 0;
* both are equal, which also is so where it overlaps with neither: the share of ignored objects in the frame.

Objects of *every* class, found or not, take part in these overlaps, and where a frame has objects of one kind only,
that kind has the larger overlap even at 0: so does FGFA's evaluator, from which the rules come. Its ranges share their
ends (0.7 is both fast and medium); ours do not, so that the three groups add up to all.
"""

import numpy as np
from numpy.typing import NDArray

from training.core.box_matching import Floats, Ints, Objects, Ranked, chunks, iou, spread

__all__ = ["GROUPS", "REACH", "ignore_weights", "motion_groups", "motion_iou"]

GROUPS = ("slow", "medium", "fast")
REACH = 10
"""Frames."""
SLOW, FAST = 0.9, 0.7


def motion_iou(objects: Objects) -> Floats:
    """Return the mean overlap of each object with itself in the labelled frames within ±10, (M,); 0 without any."""
    order = np.lexsort((objects.number_M, objects.track_M, objects.video_M))
    video, track, number = objects.video_M[order], objects.track_M[order], objects.number_M[order]
    box_M4 = objects.box_M4[order]
    total_M, count_M = np.zeros(len(objects)), np.zeros(len(objects), np.int64)
    # Frame numbers of an object differ, so that at most ten of its boxes follow within reach.
    for step in range(1, min(REACH, len(objects) - 1) + 1):
        here = np.flatnonzero(
            (video[step:] == video[:-step])
            & (track[step:] == track[:-step])
            & (number[step:] - number[:-step] <= REACH)
        )
        overlap = iou(box_M4[here], box_M4[here + step])
        for end in (here, here + step):
            total_M[end] += overlap
            count_M[end] += 1
    result_M = np.empty(len(objects))
    result_M[order] = total_M / np.maximum(count_M, 1)
    return result_M


def motion_groups(motion_M: Floats) -> Ints:
    """Return the place in `GROUPS` of each object, (M,)."""
    return np.where(motion_M > SLOW, 0, np.where(motion_M < FAST, 2, 1))


def ignore_weights(objects: Objects, ranked: Ranked, group_M: Ints) -> NDArray[np.float32]:
    """Return the weight as wrong of each detection, were it to find nothing, when one group is evaluated.

    Args:
        objects: of all groups.
        ranked: detections.
        group_M: place in `GROUPS` of each object.

    Returns:
        (G,N), a row per group of `GROUPS`.
    """
    groups = len(GROUPS)
    weight_GN = np.empty((groups, len(ranked)), np.float32)
    frames = len(objects.first_F) - 1
    size_F = np.diff(objects.first_F)
    inside_GF = np.stack([np.bincount(objects.frame_M[group_M == g], minlength=frames) for g in range(groups)])
    share_G = np.bincount(group_M, minlength=groups) / max(len(objects), 1)
    ignored_GF = 1 - inside_GF / np.maximum(size_F, 1)
    for chosen in chunks(len(ranked)):
        frame = ranked.frame_N[chosen]
        weight_GN[:, chosen] = share_G[:, None]
        filled = np.flatnonzero(size_F[frame])
        frame = frame[filled]
        detection_P, object_P = spread(filled + chosen.start, objects.first_F[frame], size_F[frame])
        if not len(detection_P):
            continue
        overlap_P = iou(ranked.box_N4[detection_P], objects.box_M4[object_P])
        starts = np.cumsum(size_F[frame]) - size_F[frame]
        best_GN = np.stack(
            [np.maximum.reduceat(np.where(group_M[object_P] == g, overlap_P, -1.0), starts) for g in range(groups)]
        )
        for g in range(groups):
            mine, ignored = best_GN[g], np.delete(best_GN, g, axis=0).max(axis=0)
            weight_GN[g, filled + chosen.start] = np.where(
                mine > ignored, 1.0, np.where(mine < ignored, 0.0, ignored_GF[g, frame])
            )
    return weight_GN
