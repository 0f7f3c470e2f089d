"""Reading and pairing the files of `Predictions` values; nothing of torch is imported before a file is read."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.autovideo.evaluation.figures import FigureError, Scored
from training.autovideo.values import Predictions, Shards

if TYPE_CHECKING:
    from training.core.evaluate import Predictions as PredictionArrays


def read_arrays(value: Predictions, split: str, where: str) -> "PredictionArrays":
    """Read the file of one split, and check that it is what the value says.

    Raises:
        FigureError: no such split, a missing or foreign file, other classes than the value's, or boxes.
    """
    from training.core.evaluate import Predictions as PredictionArrays

    if split not in value.files:
        have = ", ".join(sorted(value.files)) or "none"
        raise FigureError(f"{where}: the predictions have no split {split!r} (they have: {have})")
    try:
        arrays = PredictionArrays.load(value.files[split])
    except (OSError, KeyError, ValueError) as error:
        raise FigureError(f"{where}: {value.files[split]} cannot be read: {type(error).__name__}: {error}") from error
    if arrays.boxes is not None:
        raise FigureError(f"{where}: {value.files[split]} has boxes; detections have figures of their own")
    if arrays.classes != tuple(value.classes):
        raise FigureError(f"{where}: {value.files[split]} has other classes than its step says: {arrays.classes}")
    return arrays


def read_scored(value: Predictions, split: str, where: str, shards: Shards | None = None) -> Scored:
    """Return the checked scores of one split.

    Groups come from the file (`extras["group"]`), else from the records of the shards.

    Raises:
        FigureError: see `read_arrays` and `Scored`.
    """
    arrays = read_arrays(value, split, where)
    key = tuple(str(name) for name in arrays.key)
    group: tuple[str, ...] | None = None
    if "group" in arrays.extras:
        group = tuple(str(name) for name in arrays.extras["group"])
    elif shards is not None:
        known = groups_of(shards, split)
        if unknown := [name for name in key if name not in known]:
            raise FigureError(f"{where}: {unknown[0]!r} is not in split {split!r} of {shards.folder}")
        group = tuple(known[name] for name in key)
    label = np.asarray(arrays.label).astype(np.int64)
    try:
        return Scored(split, key, label, np.asarray(arrays.scores, dtype=np.float64), arrays.classes, group)
    except FigureError as error:
        raise FigureError(f"{where}: {error}") from None


def groups_of(shards: Shards, split: str) -> dict[str, str]:
    """Return the group of each sample of a split by its key."""
    from training.core.data_index import SplitIndex

    index = SplitIndex(shards.folder, split, needs_label=False)
    return {key: index.record(number).group for number, key in enumerate(index.keys)}


def paired(values: Sequence[Predictions], split: str, where: str) -> "list[PredictionArrays]":
    """Return the arrays of several runs in one order of samples, that of the first run's sorted keys.

    Raises:
        FigureError: other samples, labels, classes or data; the message names one difference.
    """
    runs = [read_arrays(value, split, where) for value in values]
    marks = {value.fingerprints[split] for value in values if split in value.fingerprints}
    if len(marks) > 1:
        raise FigureError(
            f"{where}: the runs predicted different data of split {split!r} (fingerprints "
            f"{', '.join(sorted(mark[:10] for mark in marks))}); predict the same shards with each"
        )
    ordered = [_rows(run, np.argsort(run.key)) for run in runs]
    first = ordered[0]
    for number, run in enumerate(ordered[1:], start=2):
        if run.classes != first.classes:
            raise FigureError(f"{where}: run {number} has other classes than the first: {_first_of(first, run)}")
        if len(run.key) != len(first.key) or (run.key != first.key).any():
            one, two = set(first.key.tolist()), set(run.key.tolist())
            odd = min(one ^ two, default="a key that occurs twice")
            raise FigureError(
                f"{where}: run {number} has other samples of split {split!r} than the first: {len(two - one)} more, "
                f"{len(one - two)} fewer, such as {odd!r}"
            )
        if run.label.shape != first.label.shape or (run.label != first.label).any():
            raise FigureError(f"{where}: run {number} has other labels of split {split!r} than the first")
    return ordered


def _first_of(first: "PredictionArrays", other: "PredictionArrays") -> str:
    pairs = zip(first.classes, other.classes, strict=False)
    odd = next(((a, b) for a, b in pairs if a != b), None)
    return f"{odd[0]!r} and {odd[1]!r}" if odd else f"{len(first.classes)} and {len(other.classes)} of them"


def _rows(run: "PredictionArrays", order: "np.typing.NDArray[np.int64]") -> "PredictionArrays":
    from dataclasses import replace

    def picked(columns: Mapping[str, "np.typing.NDArray[np.generic]"]) -> dict[str, "np.typing.NDArray[np.generic]"]:
        return {name: column[order] for name, column in columns.items()}

    return replace(
        run, key=run.key[order], label=run.label[order], scores=run.scores[order], arms=picked(run.arms),
        extras=picked(run.extras),
    )  # fmt: skip
