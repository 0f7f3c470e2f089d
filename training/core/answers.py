"""What a served model answers about one video."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from training.core.detections import Detections, VideoAnswer
    from training.core.system import Prediction

__all__ = ["LEAST_SCORE", "FoundObject", "Result", "Watched", "choices_of", "object_lines", "watched_of"]

LEAST_SCORE = 0.3
"""Objects with a lower score are neither returned nor drawn, unless one asks for them."""


class FoundObject(NamedTuple):
    """An object in one frame."""

    frame: int
    time_s: float
    """From the first frame on."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1, edges in pixels of the video (`data_specs/boxes.py`)."""
    label: str
    score: float
    track: int | None
    """Its number in the video; None where nobody linked the frames."""
    key_frame: bool
    """Whether the whole network was run on its frame."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it; lengths to a hundredth of a pixel."""
        row = self._asdict() | {"time_s": round(self.time_s, 4), "score": round(self.score, 5)}
        return row | {"box": [round(edge, 2) for edge in self.box]}


@dataclass(frozen=True)
class Watched:
    """What a model that finds objects says of one video."""

    objects: tuple[FoundObject, ...]
    """In order of frame, and in a frame of falling score."""
    times: tuple[float, ...]
    """Seconds of each frame, from the first one on."""
    key_frames: tuple[int, ...]
    cuts: tuple[int, ...]
    """First frames of new shots, where the model looks for them."""
    gmac: float
    """Executed, over all frames."""

    @property
    def frames(self) -> int:
        """How many frames the video has."""
        return len(self.times)

    def as_dict(self) -> dict[str, Any]:
        """Return it as `fovea predict --json` prints it."""
        return {
            "objects": [found.as_dict() for found in self.objects],
            "frames": self.frames,
            "key_frames": list(self.key_frames),
            "cuts": list(self.cuts),
            "gmac": self.gmac,
        }


@dataclass(frozen=True)
class Result:
    """Answer for one video."""

    video: str
    """Path, or `bytes:<n>` for contents without a name."""
    classes: tuple[str, ...]
    """Best first."""
    scores: tuple[float, ...]
    """Of a model that finds objects the largest of each class, of all that it found."""
    error: str = ""
    choices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """What a model that chooses used of each clip of the video: name → 0 or 1 per clip, in order of time."""
    watched: Watched | None = None
    """Of a model that finds objects."""

    def as_dict(self, objects: bool = False) -> dict[str, Any]:
        """Return the row of the table that the model answers with; `choices` are not part of it.

        Args:
            objects: with the column `objects`, a JSON text.
        """
        # A detector that found nothing has scores of 0, and names nothing.
        best = bool(self.classes) and (self.watched is None or self.scores[0] > 0)
        row: dict[str, Any] = {
            "video": self.video,
            "label": self.classes[0] if best else "",
            "score": self.scores[0] if self.scores else float("nan"),
            "top_classes": list(self.classes),
            "top_scores": list(self.scores),
            "error": self.error,
        }
        if objects:
            row["objects"] = json.dumps([] if self.watched is None else self.watched.as_dict()["objects"])
        return row


def watched_of(answer: "VideoAnswer", found: "Detections", time_T: Sequence[float], classes: Sequence[str]) -> Watched:
    """Return what a detector says of a video, by names and seconds.

    Args:
        answer: of all frames.
        found: those of its objects that are returned.
        time_T: seconds of each frame of the video, from the first one on.
        classes: names of the classes.
    """
    keys = set(answer.key_frames)
    tracks = [-1] * len(found) if found.track_N is None else found.track_N.tolist()
    columns = (found.frame_N.tolist(), found.box_N4.tolist(), found.label_N.tolist(), found.score_N.tolist(), tracks)
    objects = tuple(
        FoundObject(frame, float(time_T[frame]), tuple(box), classes[label], score, number, frame in keys)
        for frame, box, label, score, track in zip(*columns, strict=True)
        for number in (None if track < 0 else track,)
    )
    cuts = tuple(int(cut) for cut in answer.extras.get("cuts", ()))
    return Watched(objects, tuple(time_T), tuple(sorted(answer.key_frames)), cuts, answer.gmac)


def object_lines(watched: Watched) -> list[str]:
    """Return a video's objects in words: a line about the video, and one per class, the most seen one first."""
    keys, count = len(watched.key_frames), watched.frames
    cost = f", {watched.gmac / count:.3g} GMAC per frame" if count else ""
    cuts = f", {_counted(len(watched.cuts), 'scene cut')}" if watched.cuts else ""
    lines = [f"{_counted(count, 'frame')}, {_counted(keys, 'key frame')}{cuts}{cost}"]
    by_label: dict[str, list[FoundObject]] = {}
    for found in watched.objects:
        by_label.setdefault(found.label, []).append(found)
    frames = {label: len({found.frame for found in group}) for label, group in by_label.items()}
    for label in sorted(by_label, key=lambda name: (-frames[name], name)):
        group = by_label[label]
        tracks = {found.track for found in group if found.track is not None}
        who = f"{_counted(len(tracks), 'object')} in " if tracks else ""
        best = max(found.score for found in group)
        lines.append(f"  {label}: {who}{_counted(frames[label], 'frame')}, score up to {best:.0%}")
    if not by_label:
        lines.append("  no objects")
    return lines


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def choices_of(prediction: "Prediction", names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return what was used of each clip of the first video, by name; nothing for a model that does not choose.

    Raises:
        ValueError: the model's names do not fit what it chose.
    """
    choices = prediction.extras.get("choices")
    if choices is None or not names:
        return {}
    if choices.ndim != 3 or choices.shape[-1] != len(names):
        raise ValueError(
            f"the system's choices have the shape {tuple(choices.shape)}; with choice_names {list(names)} they must be "
            f"(B, S, {len(names)})"
        )
    used_SR = choices[0].bool().cpu().numpy()
    return {name: tuple(int(flag) for flag in used_SR[:, r]) for r, name in enumerate(names)}
