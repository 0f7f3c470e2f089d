"""Detections of a video as tracks: an object keeps its number from frame to frame. For overlays, not for scores.

Deterministic and without a motion model: in each frame the tracks of a class and its detections are paired by falling
overlap with the track's last box.
"""

from dataclasses import replace

import numpy as np

from training.core.box_matching import iou
from training.core.detections import Detections

__all__ = ["link"]


def link(detections: Detections, *, least_iou: float = 0.3, least_score: float = 0.0, gap: int = 2) -> Detections:
    """Number the objects of one video.

    Of equal overlaps the older track wins, then the earlier detection. Numbers follow the order of first appearance.

    Args:
        detections: of one video, in order of frame.
        least_iou: overlap with a track's last box from which on a detection continues it.
        least_score: detections below it get no number (−1) and continue nothing.
        gap: a track ends after so many frames without a box.

    Returns:
        The same detections in the same order, with `track_N`.

    Raises:
        ValueError: frames out of order.
    """
    frame_N, label_N = detections.frame_N, detections.label_N
    if (np.diff(frame_N) < 0).any():
        raise ValueError("detections of a video must be in order of frame to be linked")
    track_N = np.full(len(detections), -1, np.int64)
    last: dict[int, int] = {}  # track → its last detection
    count = 0
    frames, starts = np.unique(frame_N, return_index=True)
    bounds = np.append(starts, len(frame_N))
    for frame, start, end in zip(frames, bounds[:-1], bounds[1:], strict=True):
        last = {track: row for track, row in last.items() if frame - frame_N[row] <= gap + 1}
        rows = np.arange(start, end)[detections.score_N[start:end] >= least_score]
        tracks = np.array(list(last), np.int64)
        if len(rows) and len(tracks):
            ends = np.array([last[track] for track in tracks.tolist()])
            pair_t, pair_r = (index.ravel() for index in np.indices((len(tracks), len(rows))))
            overlap = iou(detections.box_N4[ends[pair_t]], detections.box_N4[rows[pair_r]])
            fits = np.flatnonzero((overlap >= least_iou) & (label_N[ends[pair_t]] == label_N[rows[pair_r]]))
            free_t, free_r = np.ones(len(tracks), bool), np.ones(len(rows), bool)
            for pair in fits[np.lexsort((pair_r[fits], tracks[pair_t[fits]], -overlap[fits]))]:
                t, r = pair_t[pair], pair_r[pair]
                if free_t[t] and free_r[r]:
                    free_t[t] = free_r[r] = False
                    track_N[rows[r]] = tracks[t]
        for row in rows.tolist():
            if track_N[row] < 0:
                track_N[row] = count
                count += 1
            last[int(track_N[row])] = row
    return replace(detections, track_N=track_N)
