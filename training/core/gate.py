"""The promotion gate: is a challenger good enough to become champion? Pure functions of predictions.

A challenger is compared with the champion clip by clip on the same evaluation data; without a champion
it has to pass floors. Three decisions exist: `passed`, `failed`, and `underpowered` (nothing speaks
against it, but the test set is too small to say more; a person may accept it). Bounds: `GateConfig`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data_specs.schema import Strict
from training.core.config import ConfigError, parse_yaml, validate

Decision = Literal["passed", "failed", "underpowered"]


class GateConfig(Strict):
    """Bounds of the gate: section `gate` of `params/<dataset>.yaml`; every field has a documented default.

    None of them changes a reported number, only who becomes champion.
    """

    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level of every test and of the confidence intervals (1 - alpha)."""
    margin: float = Field(default=0.0, ge=0, lt=1)
    """Least gain in top-1 (0 to 1): the interval of the difference must lie above it."""
    min_saving: float = Field(default=0.1, ge=0, lt=1)
    """A challenger that costs at least this share less may be promoted for its cost …"""
    max_loss: float = Field(default=0.01, ge=0, lt=1)
    """… if the interval of the difference lies above minus this much top-1."""
    max_gmac: float | None = Field(default=None, gt=0)
    """Budget, GMAC per video; None: no budget."""
    max_class_drop: float = Field(default=0.1, ge=0, le=1)
    """Largest loss of accuracy in one class …"""
    min_class_samples: int = Field(default=20, ge=1)
    """… judged only in classes with at least this many clips; smaller ones are shown, not judged."""
    min_samples: int = Field(default=100, ge=1)
    """With fewer evaluated clips nothing is promoted without a person's `--accept`."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of the paired bootstrap."""
    seed: int = 0
    """Of the bootstrap."""
    round_trip_clips: int = Field(default=4, ge=1)
    """Clips that the saved model must predict again, in a process without this repository."""
    round_trip_tolerance: float = Field(default=1e-3, gt=0)
    """Largest difference of a score in the round trip."""


def load_gate_config(params: Path) -> GateConfig:
    """Read the section `gate` of a params file; defaults where the section or the file is absent.

    Raises:
        ConfigError: an unknown field or a bad value.
    """
    content = parse_yaml(params.read_text()) if params.exists() else None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{params} must be a mapping of sections")
    return validate(GateConfig, (content or {}).get("gate") or {}, f"section gate of {params}")


@dataclass(frozen=True)
class RoundTrip:
    """Outcome of predicting again with the saved model."""

    clips: int
    max_difference: float
    """Largest absolute difference of a score."""
    same_class: bool
    """Whether every clip got the same top class."""
    error: str = ""


@dataclass(frozen=True)
class Evidence:
    """What is known of one model version."""

    name: str
    """`adafocus-demo/3`."""
    data_digest: str
    """Of the shards of the evaluated split."""
    key: NDArray[np.str_]
    label: NDArray[np.int64]
    scores: NDArray[np.float32]
    """(N, K)."""
    classes: tuple[str, ...]
    gmac: float | None
    """Per video; None when the evaluation did not report it."""
    round_trip: RoundTrip | None = None
    reevaluated_from: str = ""
    """Data digest of the registered evaluation, where these predictions were made anew (`promote --reevaluate`)."""

    def correct(self) -> NDArray[np.bool_]:
        """Return per clip whether the top class is the label."""
        return np.asarray(self.scores.argmax(axis=1) == self.label)


@dataclass(frozen=True)
class Row:
    """One check of the gate."""

    check: str
    value: str
    bound: str
    passed: bool | None
    """None: shown, not judged."""


@dataclass(frozen=True)
class GateReport:
    """Decision and its grounds."""

    decision: Decision
    challenger: str
    champion: str | None
    rows: tuple[Row, ...]
    reason: str

    def table(self) -> dict[str, list[str]]:
        """Return the rows as columns."""
        mark = {True: "yes", False: "no", None: "–"}
        return {
            "check": [row.check for row in self.rows],
            "value": [row.value for row in self.rows],
            "bound": [row.bound for row in self.rows],
            "pass": [mark[row.passed] for row in self.rows],
        }

    def text(self) -> str:
        """Return decision and rows as plain text."""
        lines = [f"{self.decision}: {self.challenger} against {self.champion or 'no champion'}"]
        rows = zip(*self.table().values(), strict=True)
        return "\n".join(lines + [f"  [{mark:>3}] {check}: {value} ({bound})" for check, value, bound, mark in rows])


# --- statistics -------------------------------------------------------------------------------


def mcnemar_exact(gained: int, lost: int) -> float:
    """Return the two-sided exact McNemar p-value of `gained` and `lost` discordant pairs."""
    total = gained + lost
    # Twice the smaller tail of Binomial(n, 1/2), in exact integers; scipy.stats alone takes 2 s to import.
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**total) if total else 1.0


def wilson_interval(correct: int, total: int, alpha: float = 0.05) -> tuple[float, float]:
    """Return Wilson's confidence interval of a proportion."""
    from scipy.stats import norm

    if total == 0:
        return (0.0, 1.0)
    z = float(norm.ppf(1 - alpha / 2))
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return (max(0.0, centre - half), min(1.0, centre + half))


def paired_bootstrap(
    difference: NDArray[np.float64], *, alpha: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the percentile interval of the mean of paired differences, resampling clips.

    Args:
        difference: (N,) challenger minus champion per clip (−1, 0, 1 for top-1).
        alpha: 1 − confidence.
        resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    values, counts = np.unique(difference, return_counts=True)
    # Resampling N clips of few distinct differences is a multinomial draw: exact, and without (resamples, N) memory.
    draws = np.random.default_rng(seed).multinomial(len(difference), counts / len(difference), size=resamples)
    means = draws @ values / len(difference)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return (float(low), float(high))


def holm(p_values: list[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the given order."""
    order = np.argsort(p_values)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = running
    return adjusted


# --- checks -----------------------------------------------------------------------------------


def judge(challenger: Evidence, champion: Evidence | None, config: GateConfig) -> GateReport:
    """Judge a challenger against the champion, or against the floors when there is none.

    Raises:
        ValueError: the evidence itself is broken (no clips, shapes that do not fit).
    """
    for evidence in (challenger, champion):
        if evidence is not None:
            _check_shapes(evidence)
    rows = [_round_trip_row(challenger, config), _budget_row(challenger, config)]
    small = len(challenger.label) < config.min_samples
    if champion is None:
        accuracy_rows = _floor_rows(challenger, config, small)
    else:
        same = _same_data_row(challenger, champion)
        rows = [same, *_reevaluated_rows(champion), *rows]
        if not same.passed:
            return _report(challenger, champion, rows, small=False)
        champion = _aligned(champion, challenger)
        accuracy_rows = _paired_rows(challenger, champion, config, small) + _class_rows(challenger, champion, config)
    rows += accuracy_rows
    n = len(challenger.label)
    rows.append(Row("evaluated clips", str(n), f"≥ {config.min_samples}, else underpowered", None if small else True))
    return _report(challenger, champion, rows, small)


def _report(challenger: Evidence, champion: Evidence | None, rows: list[Row], small: bool) -> GateReport:
    failed = [row for row in rows if row.passed is False]
    decision: Decision
    if failed:
        decision, reason = "failed", "; ".join(f"{row.check}: {row.value} ({row.bound})" for row in failed)
    elif small:
        decision = "underpowered"
        reason = f"only {len(challenger.label)} evaluated clips: no check failed, but a person has to accept it"
    else:
        decision, reason = "passed", "every check passed"
    return GateReport(decision, challenger.name, champion.name if champion else None, tuple(rows), reason)


def _check_shapes(evidence: Evidence) -> None:
    n = len(evidence.label)
    if n == 0:
        raise ValueError(f"{evidence.name} was evaluated on no clips; run its evaluation again")
    if evidence.label.ndim != 1:
        raise ValueError(f"{evidence.name}: the gate compares top-1; labels of shape {evidence.label.shape} have none")
    if evidence.scores.shape != (n, len(evidence.classes)) or len(evidence.key) != n:
        raise ValueError(
            f"{evidence.name}: predictions do not fit: {len(evidence.key)} keys, {n} labels, "
            f"scores {evidence.scores.shape}, {len(evidence.classes)} classes"
        )
    if len(set(evidence.key.tolist())) != n:
        raise ValueError(f"{evidence.name}: a clip occurs twice in the predictions")
    if not np.isfinite(evidence.scores).all():
        raise ValueError(f"{evidence.name}: scores are not finite")


def _same_data_row(challenger: Evidence, champion: Evidence) -> Row:
    check = "same evaluation data"
    if challenger.data_digest != champion.data_digest:
        value = f"{challenger.data_digest[:12]} and {champion.data_digest[:12]}"
        bound = "equal digests; `fovea promote --reevaluate` evaluates the champion on the challenger's data first"
        return Row(check, value, bound, False)
    if challenger.classes != champion.classes:
        return Row(check, "class lists differ", "equal classes", False)
    if set(challenger.key.tolist()) != set(champion.key.tolist()):
        odd = len(set(challenger.key.tolist()) ^ set(champion.key.tolist()))
        return Row(check, f"{odd} clips evaluated by one only", "equal clips", False)
    if not np.array_equal(challenger.label, _aligned(champion, challenger).label):
        return Row(check, "labels differ", "equal labels", False)
    return Row(check, f"{challenger.data_digest[:12]}, {len(challenger.label)} clips", "equal digests", True)


def _reevaluated_rows(champion: Evidence) -> list[Row]:
    if not champion.reevaluated_from:
        return []
    now, before = champion.data_digest[:12], champion.reevaluated_from[:12]
    value = f"{champion.name} on data {now}; its registered evaluation was on {before}"
    return [Row("champion re-evaluated", value, "shown only", None)]


def _aligned(evidence: Evidence, reference: Evidence) -> Evidence:
    """Return evidence with its clips in the order of another's."""
    position = {key: i for i, key in enumerate(evidence.key.tolist())}
    order = np.array([position[key] for key in reference.key.tolist()])
    return replace(evidence, key=evidence.key[order], label=evidence.label[order], scores=evidence.scores[order])


def _round_trip_row(evidence: Evidence, config: GateConfig) -> Row:
    check = "round trip of the saved model"
    bound = f"same class, scores within {config.round_trip_tolerance:g}"
    result = evidence.round_trip
    if result is None:
        return Row(check, "not done", bound, False)
    if result.error:
        return Row(check, result.error[:300], bound, False)
    ok = result.clips > 0 and result.same_class and result.max_difference <= config.round_trip_tolerance
    return Row(check, f"{result.clips} clips, largest difference {result.max_difference:.2g}", bound, ok)


def _budget_row(evidence: Evidence, config: GateConfig) -> Row:
    check = "cost per video"
    if evidence.gmac is None:
        judged = None if config.max_gmac is None else False
        return Row(check, "not reported", "no budget" if judged is None else f"≤ {config.max_gmac:g} GMAC", judged)
    value = f"{evidence.gmac:.4g} GMAC ({2 * evidence.gmac:.4g} GFLOP)"
    if config.max_gmac is None:
        return Row(check, value, "no budget", None)
    return Row(check, value, f"≤ {config.max_gmac:g} GMAC", evidence.gmac <= config.max_gmac)


def _floor_rows(evidence: Evidence, config: GateConfig, small: bool) -> list[Row]:
    """Without a champion: better than always naming the most frequent class, by an exact binomial test."""
    from scipy.stats import binomtest

    n = len(evidence.label)
    correct = int(evidence.correct().sum())
    majority = int(np.bincount(evidence.label, minlength=len(evidence.classes)).max())
    p = float(binomtest(correct, n, majority / n, alternative="greater").pvalue) if majority < n else 1.0
    # With too few clips the test has no power: the estimate alone decides, and a person.
    passed = correct > majority and (small or p <= config.alpha)
    value = f"top-1 {correct / n:.1%} against {majority / n:.1%}, p = {p:.3g}"
    bound = "above the majority class" + ("" if small else f", p ≤ {config.alpha:g}")
    return [Row("beats the majority class", value, bound, passed)]


def _paired_rows(challenger: Evidence, champion: Evidence, config: GateConfig, small: bool) -> list[Row]:
    mine, theirs = challenger.correct(), champion.correct()
    gained, lost = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    p = mcnemar_exact(gained, lost)
    difference = mine.astype(np.float64) - theirs.astype(np.float64)
    mean = float(difference.mean())
    low, high = paired_bootstrap(difference, alpha=config.alpha, resamples=config.bootstrap, seed=config.seed)
    value = f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]; {gained} gained, {lost} lost, McNemar p = {p:.3g}"
    cheaper = (
        challenger.gmac is not None
        and champion.gmac is not None
        and challenger.gmac <= (1 - config.min_saving) * champion.gmac
    )
    better = mean > config.margin and (small or (p <= config.alpha and low >= config.margin))
    not_worse = (mean if small else low) >= -config.max_loss
    bound = f"gain > {config.margin:.1%}" + ("" if small else f", p ≤ {config.alpha:g}")
    if cheaper:
        bound += f"; or, being {1 - challenger.gmac / champion.gmac:.0%} cheaper, loss ≤ {config.max_loss:.1%}"  # type: ignore[operator]
    rows = [Row("top-1 against the champion", value, bound, better or (cheaper and not_worse))]
    if challenger.gmac is not None and champion.gmac is not None:
        rows.append(Row("cost against the champion", f"{challenger.gmac / champion.gmac:.2f} ×", "shown only", None))
    return rows


def _class_rows(challenger: Evidence, champion: Evidence, config: GateConfig) -> list[Row]:
    """Classes that got worse. A class fails by a large drop that is also significant after Holm's correction.

    Without the correction one of 400 classes would fail by chance in every comparison.
    """
    from scipy.stats import binomtest

    mine, theirs = challenger.correct(), champion.correct()
    judged: list[tuple[str, float, int, float]] = []
    unjudged: list[str] = []
    for index, name in enumerate(challenger.classes):
        chosen = challenger.label == index
        count = int(chosen.sum())
        if count == 0:
            continue
        gained = int((mine & ~theirs & chosen).sum())
        lost = int((~mine & theirs & chosen).sum())
        drop = (lost - gained) / count
        if count < config.min_class_samples:
            if drop > config.max_class_drop:
                unjudged.append(f"{name} −{drop:.0%} of {count}")
            continue
        p = float(binomtest(lost, gained + lost, 0.5, alternative="greater").pvalue) if gained + lost else 1.0
        judged.append((name, drop, count, p))
    adjusted = holm([p for *_, p in judged])
    bad = [
        f"{name} −{drop:.0%} of {count} (p = {p:.2g})"
        for (name, drop, count, _), p in zip(judged, adjusted, strict=True)
        if drop > config.max_class_drop and p <= config.alpha
    ]
    bound = f"no class loses more than {config.max_class_drop:.0%} (Holm p ≤ {config.alpha:g})"
    rows = [Row("per-class accuracy", ", ".join(bad) or f"{len(judged)} classes judged, none", bound, not bad)]
    if not judged:
        rows = [Row("per-class accuracy", f"no class has {config.min_class_samples} clips", bound, None)]
    if unjudged:
        rows.append(Row("drops in small classes", ", ".join(unjudged)[:500], "shown only", None))
    return rows


def evidence_from(arrays: Mapping[str, NDArray[np.generic]], **facts: object) -> Evidence:
    """Build evidence from the arrays of a `predictions.npz` and the named other fields of `Evidence`.

    Raises:
        ValueError: an array is missing.
    """
    missing = [name for name in ("key", "label", "scores", "classes") if name not in arrays]
    if missing:
        raise ValueError(f"predictions lack {', '.join(missing)}; evaluate again with this version")
    return Evidence(
        key=np.asarray(arrays["key"]).astype(np.str_),
        label=np.asarray(arrays["label"]).astype(np.int64),
        scores=np.asarray(arrays["scores"]).astype(np.float32),
        classes=tuple(str(name) for name in arrays["classes"]),
        **facts,  # type: ignore[arg-type]
    )
