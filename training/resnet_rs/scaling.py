"""The scaling study of the family: which of depth, frames, input size and width to raise, and when.

Du et al. raise depth and frames together and the input size little. That is a finding on their data, so it is
measured again on these: records of finished trainings in, estimates with intervals out. Nothing here trains or reads
files. Top-1 is a share from 0 to 1 throughout; 1 GFLOP = 2 GMAC.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.resnet_rs.records import (
    AXES,
    Axis,
    Configuration,
    Record,
    RecordError,
    checked,
    configurations,
    record_from_folder,
    varying,
)
from training.resnet_rs.resampling import Estimate, Resampled, resample
from training.resnet_rs.scaling_effects import (
    INTERACTION,
    AxisGain,
    Comparison,
    Cost,
    Fit,
    Trade,
    axis_gain,
    fit_model,
    iso_cost,
)
from training.resnet_rs.scaling_next import Allowed, Next, Sections, default_sections, recommend

__all__ = ["Allowed", "Estimate", "Record", "RecordError", "Scaling", "analyse", "record_from_folder"]

FEW_CLIPS = 100
"""Fewer clips are remarked on: percentile intervals of some tens of clips are too short."""


@dataclass(frozen=True)
class Level:
    """A cost level of the search."""

    name: str
    gmac: float
    """Mean of its trials."""
    finished: int
    stopped: int
    best: Configuration | None
    """Most accurate of its finished configurations; None: all were stopped."""


@dataclass(frozen=True)
class Scaling:
    """The whole study."""

    clips: int
    seeds: tuple[int, ...]
    finished: int
    stopped: int
    configurations: tuple[Configuration, ...]
    """Cheapest first."""
    front: tuple[Configuration, ...]
    """No other configuration is as cheap and as accurate; cheapest first."""
    gains: Mapping[Axis, AxisGain]
    fit: Fit | None
    comparisons: tuple[Comparison, ...]
    trades: tuple[Trade, ...]
    not_compared: int
    """Pairs of equal cost that differ in more than two settings."""
    tolerance: float
    levels: tuple[Level, ...]
    noise: float | None
    """Standard deviation of top-1 over seeds beyond the noise of the clips; None without repeated trainings."""
    notes: tuple[str, ...]
    """What has to be known before a number is believed."""
    next: Next
    table: Resampled | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> str:
        """Return `scaling.json`: everything but the resampled tables."""
        return json.dumps(_plain(self), indent=1, allow_nan=False) + "\n"

    def metrics(self) -> dict[str, float]:
        """Return flat metrics; what could not be estimated is absent."""
        found: dict[str, float] = {
            "val/points": float(len(self.configurations)),
            "val/trainings": float(self.finished),
            "val/stopped": float(self.stopped),
            "val/clips": float(self.clips),
            "val/seeds": float(len(self.seeds)),
        }
        if self.configurations:
            best = max(self.configurations, key=lambda c: c.top1)
            found |= {"val/best_top1": best.top1, "val/best_gmac_per_view": best.gmac}
        if self.noise is not None:
            found["val/training_noise"] = self.noise
        for axis, gain in self.gains.items():
            found |= _flat(f"val/gain_per_doubling_{axis}", gain.gain)
        if self.fit is not None:
            term = self.fit.term(INTERACTION)
            found |= _flat("val/interaction_depth_frames", term.estimate if term else None)
            if self.fit.r2 is not None:
                found["val/fit_r2"] = self.fit.r2
        for trade in self.trades:
            found |= _flat(f"val/{trade.more}_against_{trade.less}", trade.difference)
        if self.next.candidate is not None:
            found |= _flat("val/predicted_gain", self.next.candidate.gain)
            found["val/predicted_gmac_per_view"] = self.next.candidate.gmac
        return found


def analyse(
    records: Sequence[Record],
    cost: Cost,
    allowed: Allowed,
    *,
    sections: Sections = default_sections,
    factor: float = 2.0,
    budget: float | None = None,
    tolerance: float = 0.05,
    resamples: int = 2000,
    seed: int = 0,
) -> Scaling:
    """Compute the study.

    Args:
        records: of the grid and of the search; all on the same validation clips.
        cost: GMAC per view of (depth, frames, size, width), for cost factors and for the next configuration.
        allowed: values that the next configuration may take.
        sections: fields of the params file for a place on the axes.
        factor: cost ratio of the next configuration.
        budget: most GMAC per view it may have.
        tolerance: configurations are of equal cost when the dearer one costs at most this share more.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        RecordError: records that cannot be compared (see `checked`).
    """
    aligned = checked(records)
    finished = [record for record in aligned if record.status == "finished"]
    found = configurations(finished)
    clips = max(len(record.key) for record in aligned)
    seeds = tuple(sorted({record.seed for record in finished}))
    front = pareto_front(found)
    empty = {axis: AxisGain(axis, (), 0, None, "no training was finished", (), None) for axis in AXES}
    gains: Mapping[Axis, AxisGain] = empty
    fit: Fit | None = None
    table: Resampled | None = None
    comparisons: tuple[Comparison, ...] = ()
    trades: tuple[Trade, ...] = ()
    not_compared = 0
    step = Next("not estimated", "No training was finished, so nothing is recommended.", None, None, (), None)
    if finished:
        correct_RN = np.stack([record.correct for record in finished])
        table = resample(correct_RN, _by_seed(found, finished), resamples=resamples, seed=seed)
        gains = {axis: axis_gain(finished, table, axis) for axis in AXES}
        fit = fit_model(finished, table, cost)
        comparisons, trades, not_compared = iso_cost(found, correct_RN, table, tolerance)
        step = recommend(front, table, gains, fit, cost, allowed, factor=factor, budget=budget, sections=sections)
    noise = table.noise if table else None
    return Scaling(
        clips=clips,
        seeds=seeds,
        finished=len(finished),
        stopped=len(aligned) - len(finished),
        configurations=tuple(found),
        front=tuple(front),
        gains=gains,
        fit=fit,
        comparisons=comparisons,
        trades=trades,
        not_compared=not_compared,
        tolerance=tolerance,
        levels=_levels(aligned, found),
        noise=noise,
        notes=_notes(clips, aligned, found, noise),
        next=step,
        table=table,
    )


def pareto_front(found: Sequence[Configuration]) -> list[Configuration]:
    """Return the configurations that no other beats in both accuracy and cost, cheapest first."""
    front: list[Configuration] = []
    for configuration in sorted(found, key=lambda c: (c.gmac, -c.top1)):
        if not front or configuration.top1 > front[-1].top1:
            front.append(configuration)
    return front


def _by_seed(found: Sequence[Configuration], finished: Sequence[Record]) -> list[list[int]]:
    """Return one row per seed of each configuration: a training that was entered twice has no noise of its own."""
    return [list({finished[row].seed: row for row in configuration.members}.values()) for configuration in found]


def _levels(records: Sequence[Record], found: Sequence[Configuration]) -> tuple[Level, ...]:
    levels = []
    for name in dict.fromkeys(record.level for record in records if record.source == "search"):
        trials = [record for record in records if record.source == "search" and record.level == name]
        stopped = sum(trial.status == "stopped" for trial in trials)
        done = {(trial.place, trial.variant) for trial in trials if trial.status == "finished"}
        best = max((c for c in found if (c.place, c.variant) in done), key=lambda c: c.top1, default=None)
        cost = float(np.mean([trial.gmac for trial in trials]))
        levels.append(Level(name, cost, len(trials) - stopped, stopped, best))
    return tuple(sorted(levels, key=lambda level: level.gmac))


def _notes(
    clips: int, records: Sequence[Record], found: Sequence[Configuration], noise: float | None
) -> tuple[str, ...]:
    notes = []
    if not found:
        return ("No training was finished, so nothing is estimated; the stopped trials are only shown.",)
    if len(found) == 1:
        notes.append("There is one configuration only: no gain, no model and no comparison can be estimated.")
    if clips < FEW_CLIPS:
        notes.append(
            f"Only {clips} clips: one clip is {100 / clips:.3g} points, and bootstrap intervals of so few clips are "
            f"too short; that no interval reaches 0 is then no proof."
        )
    if noise is None:
        notes.append(
            "Every configuration was trained with one seed: the intervals hold for these trained networks, and what "
            "another seed would change is not in them."
        )
    else:
        repeated = sum(configuration.seeds > 1 for configuration in found)
        notes.append(
            f"Another seed changes top-1 by {100 * noise:.1f} points (standard deviation beyond the noise of the "
            f"clips, pooled over {repeated} configurations with several seeds); it is in all bootstrap intervals."
        )
    several = varying([configuration.variant for configuration in found])
    if several:
        notes.append(
            f"The records differ in {', '.join(several)} as well: pairs are formed only where these are equal, and the "
            f"fitted model has an intercept for each combination."
        )
    stopped = sum(record.status == "stopped" for record in records)
    if stopped:
        notes.append(f"{stopped} trials were stopped early: they are shown hollow and enter no estimate.")
    return tuple(notes)


def _flat(name: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Fields without a repr are the tables and weights behind the numbers.
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value) if item.repr}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value
