"""Records of finished trainings, as the scaling statistics read them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.core.metrics import wilson_interval

Axis = Literal["depth", "frames", "size", "width"]
AXES: tuple[Axis, ...] = ("depth", "frames", "size", "width")
"""What the scaling rule moves (Du et al.: depth and frames together, size slowly)."""


class RecordError(ValueError):
    """Records that cannot be compared."""


@dataclass(frozen=True)
class Variant:
    """What is not scaled but has to be equal for a comparison along an axis."""

    pool_t: int
    temporal: str
    se_ratio: float
    steps: int
    """Of training: accuracies after different schedules say nothing about an axis."""


@dataclass(frozen=True, eq=False)
class Record:
    """One training with its predictions on the validation clips."""

    name: str
    """`26-8-64-0.25-0`."""
    source: Literal["grid", "search"]
    level: str
    """Cost level of a search trial, "" for grid points."""
    depth: int
    frames: int
    size: int
    """Side of the input, pixels."""
    width: float
    """Factor of the channel numbers."""
    pool_t: int
    temporal: str
    se_ratio: float
    seed: int
    gmac: float
    """10⁹ multiply-accumulates of one view."""
    params: int
    key: NDArray[Any]
    """(N,) str: validation clips."""
    label: NDArray[np.int64]
    """(N,)."""
    correct: NDArray[np.bool_]
    """(N,): whether the top class is the label."""
    steps: int
    """Training steps done."""
    status: Literal["finished", "stopped"]
    """Stopped early by the search: shown hollow, never fitted."""
    last_top1: float | None = None
    """Last value of a stopped trial that left no predictions (N = 0)."""

    @property
    def place(self) -> tuple[int, int, int, float]:
        """Values on the axes."""
        return (self.depth, self.frames, self.size, self.width)

    @property
    def variant(self) -> Variant:
        """Settings besides the axes and the seed."""
        return Variant(self.pool_t, self.temporal, self.se_ratio, self.steps)

    @property
    def top1(self) -> float | None:
        """Share of clips named right; None when nothing is known."""
        return float(self.correct.mean()) if len(self.correct) else self.last_top1


@dataclass(frozen=True)
class Configuration:
    """Finished records that differ in the seed only."""

    name: str
    depth: int
    frames: int
    size: int
    width: float
    variant: Variant
    gmac: float
    params: int
    members: tuple[int, ...]
    """Rows of the finished records."""
    seeds: int
    top1: float
    """Mean over the records."""
    low: float
    high: float
    """95 % Wilson interval of the mean for N clips; the spread of the seeds is not in it."""
    seed_low: float
    seed_high: float
    """Least and largest accuracy of a record."""
    levels: tuple[str, ...]
    """Cost levels of search trials among the records."""
    searched: bool
    """Whether all records are search trials."""

    @property
    def place(self) -> tuple[int, int, int, float]:
        """Values on the axes."""
        return (self.depth, self.frames, self.size, self.width)


def checked(records: Sequence[Record]) -> list[Record]:
    """Return the records with their clips in one order.

    Raises:
        RecordError: no records, two of one name, a cost that is no cost, arrays that do not fit, or clips or labels
            that differ between records. The message names the records and a clip.
    """
    if not records:
        raise RecordError("no records: a scaling report needs at least one training; run the grid or the search first")
    names = [(record.source, record.level, record.name) for record in records]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RecordError(f"record {twice[2]} ({' '.join(filter(None, twice[:2]))}) is given twice; keep one")
    for record in records:
        _check(record)
    reference = next((record for record in records if len(record.key)), None)
    if reference is None:
        return list(records)
    order = np.argsort(reference.key)
    keys, labels = np.asarray(reference.key)[order], np.asarray(reference.label)[order]
    aligned = []
    for record in records:
        if len(record.key) == 0:
            aligned.append(record)
            continue
        own = np.argsort(record.key)
        if not np.array_equal(np.asarray(record.key)[own], keys):
            odd = sorted(set(record.key.tolist()) ^ set(reference.key.tolist()))
            raise RecordError(
                f"records {reference.name} and {record.name} were evaluated on different clips: {len(odd)} belong to "
                f"one only, such as {odd[0]!r}; evaluate both on the same shards"
            )
        if not np.array_equal(np.asarray(record.label)[own], labels):
            wrong = keys[np.flatnonzero(np.asarray(record.label)[own] != labels)[0]]
            raise RecordError(
                f"records {reference.name} and {record.name} have different labels for clip {str(wrong)!r}; "
                f"evaluate both on the same shards"
            )
        aligned.append(replace(record, key=keys, label=labels, correct=np.asarray(record.correct, dtype=bool)[own]))
    return aligned


def _check(record: Record) -> None:
    if not (math.isfinite(record.gmac) and record.gmac > 0):
        raise RecordError(f"record {record.name}: gmac must be a positive number, got {record.gmac}")
    count = len(record.key)
    if record.label.shape != (count,) or record.correct.shape != (count,):
        raise RecordError(
            f"record {record.name}: {count} keys, labels {record.label.shape} and correct {record.correct.shape} do "
            f"not fit; all three must be (N,)"
        )
    if count == 0 and record.status == "finished":
        raise RecordError(f"record {record.name} is finished but has no evaluated clips; run its evaluation again")
    if len(set(record.key.tolist())) != count:
        raise RecordError(f"record {record.name}: a clip occurs twice in its predictions")


def configurations(finished: Sequence[Record]) -> list[Configuration]:
    """Group aligned, finished records by everything but the seed, cheapest configuration first.

    Raises:
        RecordError: records of one configuration whose costs differ by more than 1 %.
    """
    groups: dict[tuple[tuple[int, int, int, float], Variant], list[int]] = {}
    for row, record in enumerate(finished):
        groups.setdefault((record.place, record.variant), []).append(row)
    several = varying([variant for _, variant in groups])
    made = []
    for (place, variant), rows in groups.items():
        members = [finished[row] for row in rows]
        costs = [member.gmac for member in members]
        if max(costs) > 1.01 * min(costs):
            raise RecordError(
                f"{members[0].name} and its like are one configuration, but cost {min(costs):.4g} to {max(costs):.4g} "
                f"GMAC; one of them was counted differently"
            )
        shares = [float(member.correct.mean()) for member in members]
        clips, mean = len(members[0].key), float(np.mean(shares))
        # The clips are the same for all seeds, so N of them and not N·seeds carry the interval.
        low, high = wilson_interval(mean * clips, clips)
        depth, frames, size, width = place
        made.append(
            Configuration(
                name=place_name(place, variant, several),
                depth=depth,
                frames=frames,
                size=size,
                width=width,
                variant=variant,
                gmac=float(np.mean(costs)),
                params=members[0].params,
                members=tuple(rows),
                seeds=len({member.seed for member in members}),
                top1=mean,
                low=low,
                high=high,
                seed_low=min(shares),
                seed_high=max(shares),
                levels=tuple(sorted({member.level for member in members if member.level})),
                searched=all(member.source == "search" for member in members),
            )
        )
    return sorted(made, key=lambda item: (item.gmac, item.name))


def varying(variants: Sequence[Variant]) -> tuple[str, ...]:
    """Return the settings besides the axes that take more than one value."""
    fields = ("pool_t", "temporal", "se_ratio", "steps")
    return tuple(field for field in fields if len({getattr(variant, field) for variant in variants}) > 1)


def place_name(place: tuple[int, int, int, float], variant: Variant, several: Sequence[str]) -> str:
    """Return `depth-frames-size-width`, and the other settings that are not the same everywhere."""
    depth, frames, size, width = place
    rest = "".join(f" {field}={getattr(variant, field)}" for field in several)
    return f"{depth}-{frames}-{size}-{width:g}{rest}"


def record_from_folder(folder: Path, **settings: Any) -> Record:
    """Read a record from an evaluated run folder.

    Args:
        folder: holds `metrics.json` (`val/gmac_per_view`, `val/params`) and `predictions.npz`.
        settings: the fields of `Record` that these files do not say: name, source, axes, seed, steps, status …

    Raises:
        RecordError: a metric is missing, or labels are not one class per clip.
    """
    import json

    metrics = json.loads((folder / "metrics.json").read_text())
    missing = [name for name in ("val/gmac_per_view", "val/params") if name not in metrics]
    if missing:
        raise RecordError(f"{folder / 'metrics.json'} lacks {', '.join(missing)}; evaluate again with this version")
    key, label, correct = evaluated_clips(folder / "predictions.npz")
    return Record(
        gmac=float(metrics["val/gmac_per_view"]),
        params=int(metrics["val/params"]),
        key=key,
        label=label,
        correct=correct,
        **settings,
    )


def evaluated_clips(path: Path) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.bool_]]:
    """Return keys, labels and whether the top class is the label, of a `predictions.npz`.

    Raises:
        RecordError: labels are not one class per clip.
    """
    from training.core.evaluate import Predictions

    predictions = Predictions.load(path)
    if predictions.label.ndim != 1:
        raise RecordError(f"{path}: labels of shape {predictions.label.shape} have no top-1")
    correct = np.asarray(predictions.scores.argmax(axis=1) == predictions.label)
    return predictions.key, predictions.label, correct
