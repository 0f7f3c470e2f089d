"""Where the alignment looks, and where the objects are: offsets before and after training, true displacements."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.core.box_results import Truth
from training.core.config import TransformConfig
from training.core.frame_transform import scaled_size
from training.lsts.config import MethodConfig
from training.lsts.report.records import Evaluated
from training.lsts.schedule import blocks_of

__all__ = ["Motion", "displacements", "motion_of", "wasserstein"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Motion:
    """What one method learned of the data's motion. Cells, x and y."""

    initial_K2: Floats
    learned_K2: Floats
    true_P2: Floats
    """Of each object in each aligned pair of frames: its place in the memory's frame minus that in the other."""

    def distance(self, table_K2: Floats) -> tuple[float, float] | None:
        """Return the distance of a table's distribution from that of the displacements, by axis; None without any."""
        if not len(self.true_P2):
            return None
        x, y = (wasserstein(table_K2[:, axis], self.true_P2[:, axis]) for axis in (0, 1))
        return x, y


def motion_of(evaluated: Evaluated) -> Motion | None:
    """Return offsets and displacements of an evaluation; None for a method without offsets."""
    tables = evaluated.predictions.tables
    if "offsets" not in tables or "offsets_initial" not in tables:
        return None
    config = evaluated.config
    true_P2 = displacements(
        evaluated.boxes.truth,
        evaluated.extra("frames"),
        evaluated.extra("size"),
        evaluated.method,
        config.data.transform,
        config.model.backbone.stride,
    )
    return Motion(tables["offsets_initial"].astype(np.float64), tables["offsets"].astype(np.float64), true_P2)


def displacements(
    truth: Truth,
    frames_V: NDArray[np.int64],
    size_V2: NDArray[np.int64],
    method: MethodConfig,
    transform: TransformConfig,
    stride: int,
) -> Floats:
    """Return where objects were in the memory's frame relative to the frame that is aligned with it, cells, (P,2).

    Pairs are those that a method aligns in a video without cuts: frames with their key frame, and key frames with the
    one before. Objects without a track, and those that one of both frames does not show, do not count.

    Args:
        truth: objects.
        frames_V: number of frames of each video.
        size_V2: height and width of each video, pixels.
        method: its schedule.
        transform: how frames are scaled.
        stride: pixels of the input per cell.
    """
    assert transform.long_side is not None
    steps = []
    known = truth.track_N >= 0
    video_N, frame_N, track_N = truth.video_N[known], truth.frame_N[known], truth.track_N[known]
    centre_N2 = (truth.box_N4[known, :2].astype(np.float64) + truth.box_N4[known, 2:]) / 2
    bounds = np.searchsorted(video_N, np.arange(len(frames_V) + 1))
    for video, count in enumerate(frames_V.tolist()):
        rows = np.arange(bounds[video], bounds[video + 1])
        other_F = _memories(count, method)
        wanted = other_F[frame_N[rows]]
        rows, wanted = rows[wanted >= 0], wanted[wanted >= 0]
        place = {(f, t): row for row, (f, t) in enumerate(zip(
            frame_N[bounds[video] : bounds[video + 1]].tolist(), track_N[bounds[video] : bounds[video + 1]].tolist(),
            strict=True,
        ))}  # fmt: skip
        pairs = [
            (row, bounds[video] + place[f, t])
            for row, f, t in zip(rows.tolist(), wanted.tolist(), track_N[rows].tolist(), strict=True)
            if (f, t) in place
        ]
        if not pairs:
            continue
        here, there = np.array(pairs).T
        height, width = size_V2[video].tolist()
        high, wide = scaled_size(height, width, transform.eval_side, transform.long_side)
        scale = np.array([wide / width, high / height]) / stride
        steps.append((centre_N2[there] - centre_N2[here]) * scale)
    return np.concatenate(steps) if steps else np.empty((0, 2))


def _memories(count: int, method: MethodConfig) -> NDArray[np.int64]:
    """Return, for each frame of a video, the frame whose memory it is aligned with; −1: none."""
    other_F = np.full(count, -1, np.int64)
    before = -1
    for block in blocks_of(count, method.interval, method.schedule):
        if method.non_key == "dfa":
            other_F[block.others] = block.key
        if method.key == "srfu" and not block.first:
            other_F[block.key] = before
        before = block.key
    return other_F


def wasserstein(one_N: Floats, two_N: Floats) -> float:
    """Return the 1-D distance of two samples: the mean difference of their quantiles."""
    one, two = np.sort(one_N), np.sort(two_N)
    every = np.concatenate([one, two])
    every.sort()
    share_one = np.searchsorted(one, every[:-1], side="right") / len(one)
    share_two = np.searchsorted(two, every[:-1], side="right") / len(two)
    return float((np.abs(share_one - share_two) * np.diff(every)).sum())
