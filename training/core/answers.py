"""What a served model answers about one video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.core.system import Prediction


@dataclass(frozen=True)
class Result:
    """Answer for one video."""

    video: str
    """Path, or `bytes:<n>` for contents without a name."""
    classes: tuple[str, ...]
    """Best first."""
    scores: tuple[float, ...]
    error: str = ""
    choices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """What a model that chooses used of each clip of the video: name → 0 or 1 per clip, in order of time."""

    def as_dict(self) -> dict[str, Any]:
        """Return the row of the table that the model answers with; `choices` are not part of it."""
        best = bool(self.classes)
        return {
            "video": self.video,
            "label": self.classes[0] if best else "",
            "score": self.scores[0] if best else float("nan"),
            "top_classes": list(self.classes),
            "top_scores": list(self.scores),
            "error": self.error,
        }


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
