"""Which frames of a video a detector is trained on, and which objects they show (`sampling: frames`).

All of it is a function of the clip's seed, as in `training/core/sampling.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_specs.boxes import ClipBoxes
from training.core.config import DataConfig, FramesConfig
from training.core.data_sample import Sample
from training.core.sampling import Index, uniform_draws
from training.core.system import FrameBoxes

__all__ = ["FrameObjects", "collate_objects", "labelled_frames", "objects_of", "training_frames", "whole_videos"]


def labelled_frames(clip: ClipBoxes, num_frames: int, per_video: int | None) -> Index:
    """Return the frames of a video that training draws from: labelled ones with objects, spaced evenly.

    A video without any object gives its labelled frames, which show what is background.

    Args:
        clip: objects of the video.
        num_frames: its length.
        per_video: how many at most; None: all.

    Raises:
        ValueError: no frame of it is labelled.
    """
    shown = {frame for track in clip.tracks for frame in track.frames}
    known = range(num_frames) if clip.labelled is None else clip.labelled
    frames = np.array(sorted(shown) or list(known), dtype=np.int64)
    frames = frames[frames < num_frames]
    if len(frames) == 0:
        raise ValueError("none of its frames is labelled, so that nothing can be learned from it")
    if per_video is None or len(frames) <= per_video:
        return frames
    # The middle of each of `per_video` equal parts.
    return frames[(2 * np.arange(per_video, dtype=np.int64) + 1) * len(frames) // (2 * per_video)]


def training_frames(clip: ClipBoxes, num_frames: int, config: DataConfig, seed: int) -> Index:
    """Draw the frames of one training example: key frames from the oldest to the newest, then the labelled frame.

    Args:
        clip: objects of the video.
        num_frames: its length.
        config: with `frames`, which says where key frames lie (`FramesConfig`); T is its `num_frames`.
        seed: of this clip in this epoch.

    Returns:
        (T,) int64 in [0, num_frames).

    Raises:
        ValueError: see `labelled_frames`.
    """
    assert config.frames is not None
    candidates = labelled_frames(clip, num_frames, config.frames.per_video)
    draws = uniform_draws(seed, config.num_frames, b"frames")
    current = int(candidates[int(draws[-1] * len(candidates))])
    keys = [current + _key_offset(config.frames, age, float(draws[age])) for age in range(config.num_frames - 1)]
    return np.clip(np.array([*reversed(keys), current], dtype=np.int64), 0, num_frames - 1)


def _key_offset(config: FramesConfig, age: int, draw: float) -> int:
    """Return where a key frame lies, relative to the labelled frame; age 0 is the newest."""
    interval, half = config.interval, config.interval // 2
    if age == 0:
        first, count = (-half, interval) if config.schedule == "offline" else (-interval, interval)
    else:
        first = -age * interval - (0 if config.schedule == "offline" else half)
        count = max(1, half)
    return first + int(draw * count)


class FrameObjects(NamedTuple):
    """Objects of T frames, flat."""

    labelled_T: NDArray[np.bool_]
    place_N: Index
    """Which of the T frames."""
    box_N4: NDArray[np.float32]
    label_N: Index
    track_N: Index


def objects_of(clip: ClipBoxes, frames: Sequence[int] | Index) -> FrameObjects:
    """Return the objects of some frames of a video."""
    places: dict[int, list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(int(frame), []).append(place)
    known = None if clip.labelled is None else set(clip.labelled)
    rows: list[tuple[int, int, int]] = []
    boxes: list[tuple[float, ...]] = []
    for track in clip.tracks:
        for frame, box in zip(track.frames, track.boxes, strict=True):
            for place in places.get(frame, ()):
                rows.append((place, track.label, track.track))
                boxes.append(box)
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    labelled = np.array([known is None or int(frame) in known for frame in frames], dtype=bool)
    return FrameObjects(labelled, table[:, 0], np.array(boxes, np.float32).reshape(-1, 4), table[:, 1], table[:, 2])


def collate_objects(clips: Sequence[FrameObjects], *, pin: bool) -> FrameBoxes:
    """Put the objects of several videos, T frames each, into tensors."""
    frames = len(clips[0].labelled_T)
    most = max([1, *(int(np.bincount(clip.place_N, minlength=1).max()) for clip in clips if len(clip.place_N))])
    shape = (len(clips), frames, most)
    boxes = torch.zeros((*shape, 4), pin_memory=pin)
    labels = torch.full(shape, -1, dtype=torch.int64, pin_memory=pin)
    tracks = torch.full(shape, -1, dtype=torch.int64, pin_memory=pin)
    labelled = torch.zeros(shape[:2], dtype=torch.bool, pin_memory=pin)
    for row, clip in enumerate(clips):
        labelled[row] = torch.from_numpy(clip.labelled_T)
        slots = torch.from_numpy(_slots(clip.place_N))
        where = (row, torch.from_numpy(clip.place_N), slots)
        boxes[where] = torch.from_numpy(clip.box_N4)
        labels[where] = torch.from_numpy(clip.label_N)
        tracks[where] = torch.from_numpy(clip.track_N)
    return FrameBoxes(labelled_BT=labelled, box_BTN4=boxes, label_BTN=labels, track_BTN=tracks)


def _slots(place_N: Index) -> Index:
    """Return the number of each object among those of its frame."""
    order = np.argsort(place_N, kind="stable")
    ordered = place_N[order]
    first = np.searchsorted(ordered, ordered, side="left")
    slots = np.empty(len(place_N), dtype=np.int64)
    slots[order] = np.arange(len(place_N)) - first
    return slots


def whole_videos(plans: Iterable[list[Sample]], config: DataConfig) -> Iterator[list[Sample]]:
    """Turn the samples of an evaluation into their blocks of frames: every frame of every video once, in order.

    Samples that only fill up the last batch are left out.

    Raises:
        ValueError: a sample of which no record says how long it is.
    """
    assert config.frames is not None
    for plan in plans:
        for sample in plan:
            if not sample.valid:
                continue
            if sample.num_frames is None:
                raise ValueError(f"sample {sample.key!r} of {sample.origin}: no record says how many frames it has")
            for start in range(0, sample.num_frames, config.frames.block):
                yield [sample._replace(block=(start, min(sample.num_frames, start + config.frames.block)))]
