"""Boxes of all videos of an evaluation, found and true: flat arrays, kept in `predictions.npz` under `boxes/…`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data_specs.boxes import ClipBoxes
from training.core.detections import Detections

__all__ = ["BoxResults", "Found", "Truth"]

Array = NDArray[Any]
PREFIX = "boxes/"


@dataclass(frozen=True)
class Found:
    """What one detector found."""

    video_N: Array
    """int64, place of the video in `Predictions.key`, increasing."""
    boxes: Detections
    """In order of video, then of frame, then of falling score."""


@dataclass(frozen=True)
class Truth:
    """What is known: objects, and which frames are known at all."""

    video_N: Array
    """int64, of each box: place of its video in `Predictions.key`, increasing."""
    frame_N: Array
    """int64, increasing within a video."""
    box_N4: Array
    """float32, pixels of the stored clip."""
    label_N: Array
    track_N: Array
    labelled_M2: Array
    """int64 (video, frame) of each frame whose objects are known, in order; the only ones that count."""
    subsets: Mapping[str, Array] = field(default_factory=dict)
    """Name → (video, frame) of the frames of a named set, those that are labelled."""

    @classmethod
    def of(cls, clips: "list[tuple[ClipBoxes, int]]") -> Self:
        """Gather the truth of videos.

        Args:
            clips: objects and number of frames of each video, in the order of `Predictions.key`.
        """
        rows: list[tuple[int, int, int, int, int]] = []
        boxes: list[tuple[float, ...]] = []
        labelled: list[tuple[int, int]] = []
        subsets: dict[str, list[tuple[int, int]]] = {}
        for video, (clip, frames) in enumerate(clips):
            known = range(frames) if clip.labelled is None else [f for f in clip.labelled if f < frames]
            labelled += [(video, frame) for frame in known]
            for name, members in clip.subsets.items():
                subsets.setdefault(name, []).extend((video, frame) for frame in sorted(set(members) & set(known)))
            for track in clip.tracks:
                for frame, box in zip(track.frames, track.boxes, strict=True):
                    rows.append((video, frame, track.label, track.track, len(boxes)))
                    boxes.append(box)
        rows.sort()
        table = np.array(rows, dtype=np.int64).reshape(-1, 5)
        edges = np.array(boxes, dtype=np.float32).reshape(-1, 4)[table[:, 4]]
        pairs = {name: np.array(sorted(members), np.int64).reshape(-1, 2) for name, members in subsets.items()}
        known_M2 = np.array(labelled, dtype=np.int64).reshape(-1, 2)
        return cls(table[:, 0], table[:, 1], edges, table[:, 2], table[:, 3], known_M2, pairs)


@dataclass(frozen=True)
class BoxResults:
    """Found and true boxes of an evaluation."""

    truth: Truth
    found: Mapping[str, Found]
    """Detector → what it found; `main`, and paired comparison models."""

    def reordered(self, order: Array) -> "BoxResults":
        """Return the same with the videos in another order.

        Args:
            order: (V,) present place of the video that comes first, second, …
        """
        place_V = np.empty(len(order), np.int64)
        place_V[order] = np.arange(len(order))

        def moved(pairs: Array) -> Array:
            pairs = np.stack([place_V[pairs[:, 0]], pairs[:, 1]], axis=1)
            return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]

        truth = self.truth
        rows = np.argsort(place_V[truth.video_N], kind="stable")
        known = Truth(
            place_V[truth.video_N[rows]],
            truth.frame_N[rows],
            truth.box_N4[rows],
            truth.label_N[rows],
            truth.track_N[rows],
            moved(truth.labelled_M2),
            {name: moved(pairs) for name, pairs in truth.subsets.items()},
        )
        found = {}
        for name, one in self.found.items():
            video_N = place_V[one.video_N]
            rows = np.argsort(video_N, kind="stable")
            found[name] = Found(video_N[rows], one.boxes[rows])
        return BoxResults(known, found)

    def arrays(self) -> dict[str, Array]:
        """Return what `predictions.npz` keeps."""
        truth = self.truth
        result = {
            f"{PREFIX}truth/{name}": getattr(truth, name)
            for name in ("video_N", "frame_N", "box_N4", "label_N", "track_N", "labelled_M2")
        }
        result |= {f"{PREFIX}subset/{name}": pairs for name, pairs in truth.subsets.items()}
        for name, found in self.found.items():
            result[f"{PREFIX}found/{name}/video_N"] = found.video_N
            for column in ("frame_N", "box_N4", "score_N", "label_N", "track_N"):
                if (values := getattr(found.boxes, column)) is not None:
                    result[f"{PREFIX}found/{name}/{column}"] = values
        return result

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> "BoxResults | None":
        """Return what lies in the arrays of `predictions.npz`; None for a model that finds no boxes."""
        own = {name.removeprefix(PREFIX): value for name, value in arrays.items() if name.startswith(PREFIX)}
        if not own:
            return None
        columns = {name.removeprefix("truth/"): value for name, value in own.items() if name.startswith("truth/")}
        subsets = {name.removeprefix("subset/"): value for name, value in own.items() if name.startswith("subset/")}
        found: dict[str, dict[str, Array]] = {}
        for name, value in own.items():
            if name.startswith("found/"):
                _, detector, column = name.split("/")
                found.setdefault(detector, {})[column] = value
        detectors = {name: Found(values.pop("video_N"), Detections(**values)) for name, values in found.items()}
        return cls(Truth(**columns, subsets=subsets), detectors)
