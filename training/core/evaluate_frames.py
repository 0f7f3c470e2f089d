"""Evaluation of systems that find objects: every frame of every video once, one video after another."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_specs.boxes import ClipBoxes
from training.core.box_results import BoxResults, Found, Truth
from training.core.data import ClipLoader, CoverageError, check_coverage
from training.core.detections import Detections, VideoAnswer
from training.core.distributed import Group
from training.core.system import RawBatch, System, VideoFacts

if TYPE_CHECKING:
    from training.core.evaluate import Predictions

__all__ = ["class_scores", "watch", "watch_split"]

Array = NDArray[Any]


def watch(system: System, blocks: Iterable[RawBatch], device: torch.device, *, arms: bool) -> dict[str, VideoAnswer]:
    """Show a video to a system.

    Args:
        system: in eval mode.
        blocks: the video's frames in order, batches of one video on the host.
        device: where the system is.
        arms: also ask its comparison models.

    Returns:
        Answers of `main` and of each arm.

    Raises:
        CoverageError: a frame was not answered, or twice.
    """
    runners = system.video_runners(arms=arms)
    numbers: list[int] = []
    name = ""
    for block in blocks:
        assert block.number_BT is not None, "a detector needs sampling `frames`"
        numbers += block.number_BT[0].tolist()
        name = block.key[0]
        moved = block.to(device)
        for runner in runners.values():
            runner.push(moved)
    answers = {arm: runner.finish() for arm, runner in runners.items()}
    for arm, answer in answers.items():
        if sorted(answer.frames) != numbers:
            counts = np.bincount(np.array([*answer.frames, *numbers], dtype=np.int64))
            odd = [frame for frame, count in enumerate(counts) if count not in (0, 2)]
            raise CoverageError(
                f"video {name!r}: {arm} answered {len(answer.frames)} times for {len(numbers)} frames; "
                f"not once each: {odd[:10]}"
            )
    return answers


def class_scores(found: Detections, classes: int) -> Array:
    """Return the largest score of each class in a video, (K,) float32; 0 where nothing was found."""
    scores = np.zeros(classes, dtype=np.float32)
    np.maximum.at(scores, found.label_N, found.score_N)
    return scores


def watch_split(system: System, loader: ClipLoader, *, device: torch.device, group: Group) -> "Predictions":
    """Show a system all videos of a split and gather what it found; all ranks return the same.

    Raises:
        CoverageError: a video or a frame was evaluated twice or not at all.
    """
    from training.core.evaluate import Predictions

    keys: list[str] = []
    facts: list[_Facts] = []
    answers: list[dict[str, VideoAnswer]] = []
    for key, blocks in groupby(loader, key=lambda raw: raw.key[0]):
        seen: list[_Facts] = []
        answers.append(watch(system, _noted(blocks, seen), device, arms=True))
        keys.append(key)
        facts.append(seen[0])
    gathered = group.gather((keys, facts, answers))
    keys, facts, answers = ([item for part in parts for item in part] for parts in zip(*gathered, strict=True))
    check_coverage(keys, loader.expected_keys)
    order = np.argsort(np.asarray(keys))
    return _predictions(
        Predictions, np.asarray(keys)[order], [facts[i] for i in order], [answers[i] for i in order], system.classes
    )


class _Facts(NamedTuple):
    """What is known of a video, and its height and width."""

    video: VideoFacts
    size: tuple[int, int]


def _noted(blocks: Iterable[RawBatch], seen: list[_Facts]) -> Iterator[RawBatch]:
    for block in blocks:
        if block.video is not None:
            seen.append(_Facts(block.video, block.sizes[0]))
        yield block


def _predictions(
    kind: "type[Predictions]",
    keys: Array,
    facts: list[_Facts],
    answers: list[dict[str, VideoAnswer]],
    classes: tuple[str, ...],
) -> "Predictions":
    label = np.zeros((len(keys), len(classes)), dtype=np.float32)
    clips: list[tuple[ClipBoxes, int]] = []
    for row, (fact, _) in enumerate(facts):
        clip = fact.objects or ClipBoxes(tracks=(), labelled=())
        clips.append((clip, fact.num_frames))
        label[row, [track.label for track in clip.tracks]] = 1
    names = list(answers[0])
    scores = {
        name: np.stack([class_scores(answer[name].detections, len(classes)) for answer in answers]) for name in names
    }
    found = {name: _found([answer[name].detections for answer in answers]) for name in names}
    frames = np.array([len(answer["main"].frames) for answer in answers])
    return kind(
        key=keys,
        label=label,
        scores=scores["main"],
        arms={name: value for name, value in scores.items() if name != "main"},
        extras={
            "frames": frames,
            "size": np.array([size for _, size in facts], dtype=np.int64),
            **{
                "gmac" if name == "main" else f"gmac_{name}": np.array([answer[name].gmac for answer in answers])
                for name in names
            },
            "key_frames": np.array([len(answer["main"].key_frames) for answer in answers]),
        },
        classes=classes,
        boxes=BoxResults(Truth.of(clips), found),
    )


def _found(videos: list[Detections]) -> Found:
    video_N = np.repeat(np.arange(len(videos), dtype=np.int64), [len(boxes) for boxes in videos])
    columns = [
        np.concatenate([getattr(boxes, name) for boxes in videos])
        for name in ("frame_N", "box_N4", "score_N", "label_N")
    ]
    return Found(video_N, Detections(*columns))
