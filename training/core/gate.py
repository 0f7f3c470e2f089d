"""The promotion gate: is a challenger good enough to become champion? Pure functions of predictions.

A challenger is compared with the champion clip by clip on the same evaluation data; without a champion
it has to pass floors. Three decisions exist: `passed`, `failed`, and `underpowered` (nothing speaks
against it, but the test set is too small to say more; a person may accept it). Bounds: `GateConfig`.

Models that find boxes are compared by mAP50 and GMAC per frame (`box_gate`), with the same decisions and bounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.core.gate_config import GateConfig, load_gate_config
from training.core.gate_statistics import holm, mcnemar_exact, paired_bootstrap, wilson_interval

if TYPE_CHECKING:
    from training.core.box_results import BoxResults

__all__ = [
    "ClassChange",
    "Decision",
    "Evidence",
    "Gain",
    "GateConfig",
    "GateReport",
    "RoundTrip",
    "Row",
    "class_rows",
    "evidence_from",
    "holm",
    "judge",
    "load_gate_config",
    "mcnemar_exact",
    "paired_bootstrap",
    "paired_rows",
    "wilson_interval",
]

Decision = Literal["passed", "failed", "underpowered"]


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
    """Per video (detection: per frame); None when the evaluation did not report it."""
    round_trip: RoundTrip | None = None
    reevaluated_from: str = ""
    """Data digest of the registered evaluation, where these predictions were made anew (`promote --reevaluate`)."""
    boxes: "BoxResults | None" = None
    """Of a model that finds boxes; `label` is then (N, K), 1 for the classes that occur in a video."""

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
    # What compares boxes imports torch.
    if champion is None and challenger.boxes is None:
        accuracy_rows = _floor_rows(challenger, config, small)
    elif champion is None:
        from training.core.box_gate import floor_rows

        accuracy_rows = floor_rows(challenger, config, small)
    else:
        same = _same_data_row(challenger, champion)
        rows = [same, *_reevaluated_rows(champion), *rows]
        if not same.passed:
            return _report(challenger, champion, rows, small=False)
        champion = _aligned(champion, challenger)
        if challenger.boxes is None:
            accuracy_rows = _top1_rows(challenger, champion, config, small)
            accuracy_rows += class_rows(_class_changes(challenger, champion), config)
        else:
            from training.core.box_gate import comparison_rows

            accuracy_rows = comparison_rows(challenger, champion, config, small)
    rows += accuracy_rows
    n = len(challenger.label)
    what = "clips" if challenger.boxes is None else "videos"
    rows.append(Row(f"evaluated {what}", str(n), f"≥ {config.min_samples}, else underpowered", None if small else True))
    return _report(challenger, champion, rows, small)


def _report(challenger: Evidence, champion: Evidence | None, rows: list[Row], small: bool) -> GateReport:
    failed = [row for row in rows if row.passed is False]
    decision: Decision
    if failed:
        decision, reason = "failed", "; ".join(f"{row.check}: {row.value} ({row.bound})" for row in failed)
    elif small:
        decision = "underpowered"
        what = "clips" if challenger.boxes is None else "videos"
        reason = f"only {len(challenger.label)} evaluated {what}: no check failed, but a person has to accept it"
    else:
        decision, reason = "passed", "every check passed"
    return GateReport(decision, challenger.name, champion.name if champion else None, tuple(rows), reason)


def _check_shapes(evidence: Evidence) -> None:
    n = len(evidence.label)
    if n == 0:
        raise ValueError(f"{evidence.name} was evaluated on no clips; run its evaluation again")
    if evidence.boxes is not None:
        from training.core.box_gate import check_boxes

        check_boxes(evidence)
    elif evidence.label.ndim != 1:
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
    if (challenger.boxes is None) != (champion.boxes is None):
        return Row(check, "only one of them finds boxes", "the same task", False)
    aligned = _aligned(champion, challenger)
    if not np.array_equal(challenger.label, aligned.label):
        return Row(check, "labels differ", "equal labels", False)
    if challenger.boxes is not None and aligned.boxes is not None:
        from training.core.box_gate import same_truth

        if not same_truth(challenger.boxes.truth, aligned.boxes.truth):
            return Row(check, "true boxes or labelled frames differ", "equal objects", False)
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
    boxes = None if evidence.boxes is None else evidence.boxes.reordered(order)
    key, label, scores = evidence.key[order], evidence.label[order], evidence.scores[order]
    return replace(evidence, key=key, label=label, scores=scores, boxes=boxes)


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
    check = "cost per video" if evidence.boxes is None else "cost per frame"
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


def _top1_rows(challenger: Evidence, champion: Evidence, config: GateConfig, small: bool) -> list[Row]:
    mine, theirs = challenger.correct(), champion.correct()
    gained, lost = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    p = mcnemar_exact(gained, lost)
    difference = mine.astype(np.float64) - theirs.astype(np.float64)
    mean = float(difference.mean())
    low, high = paired_bootstrap(difference, alpha=config.alpha, resamples=config.bootstrap, seed=config.seed)
    value = f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]; {gained} gained, {lost} lost, McNemar p = {p:.3g}"
    gain = Gain("top-1", value, mean, low, p)
    return paired_rows(gain, challenger, champion, config, small)


@dataclass(frozen=True)
class Gain:
    """Challenger minus champion."""

    measure: str
    """What is compared."""
    text: str
    mean: float
    low: float
    """Lower end of the interval."""
    p: float
    """Two-sided, of no difference."""


def paired_rows(gain: Gain, challenger: Evidence, champion: Evidence, config: GateConfig, small: bool) -> list[Row]:
    """Return the rows that compare with the champion: it must be better, or cheaper and not much worse.

    Where the test set is `small`, the estimate alone decides, and a person.
    """
    cheaper = (
        challenger.gmac is not None
        and champion.gmac is not None
        and challenger.gmac <= (1 - config.min_saving) * champion.gmac
    )
    better = gain.mean > config.margin and (small or (gain.p <= config.alpha and gain.low >= config.margin))
    not_worse = (gain.mean if small else gain.low) >= -config.max_loss
    bound = f"gain > {config.margin:.1%}" + ("" if small else f", p ≤ {config.alpha:g}")
    if cheaper:
        bound += f"; or, being {1 - challenger.gmac / champion.gmac:.0%} cheaper, loss ≤ {config.max_loss:.1%}"  # type: ignore[operator]
    rows = [Row(f"{gain.measure} against the champion", gain.text, bound, better or (cheaper and not_worse))]
    if challenger.gmac is not None and champion.gmac is not None:
        rows.append(Row("cost against the champion", f"{challenger.gmac / champion.gmac:.2f} ×", "shown only", None))
    return rows


@dataclass(frozen=True)
class ClassChange:
    """What became of a class."""

    name: str
    drop: float
    """Champion minus challenger."""
    count: int
    """Clips, or boxes."""
    p: float
    """One-sided, of no drop."""


def _class_changes(challenger: Evidence, champion: Evidence) -> list[ClassChange]:
    from scipy.stats import binomtest

    mine, theirs = challenger.correct(), champion.correct()
    changes = []
    for index, name in enumerate(challenger.classes):
        chosen = challenger.label == index
        count = int(chosen.sum())
        if count == 0:
            continue
        gained = int((mine & ~theirs & chosen).sum())
        lost = int((~mine & theirs & chosen).sum())
        p = float(binomtest(lost, gained + lost, 0.5, alternative="greater").pvalue) if gained + lost else 1.0
        changes.append(ClassChange(name, (lost - gained) / count, count, p))
    return changes


def class_rows(
    changes: list[ClassChange], config: GateConfig, check: str = "per-class accuracy", unit: str = "clips"
) -> list[Row]:
    """Classes that got worse. A class fails by a large drop that is also significant after Holm's correction.

    Without the correction one of 400 classes would fail by chance in every comparison.
    """
    judged = [change for change in changes if change.count >= config.min_class_samples]
    unjudged = [
        f"{change.name} −{change.drop:.0%} of {change.count}"
        for change in changes
        if change.count < config.min_class_samples and change.drop > config.max_class_drop
    ]
    bad = [
        f"{change.name} −{change.drop:.0%} of {change.count} (p = {p:.2g})"
        for change, p in zip(judged, holm([change.p for change in judged]), strict=True)
        if change.drop > config.max_class_drop and p <= config.alpha
    ]
    bound = f"no class loses more than {config.max_class_drop:.0%} (Holm p ≤ {config.alpha:g})"
    rows = [Row(check, ", ".join(bad) or f"{len(judged)} classes judged, none", bound, not bad)]
    if not judged:
        rows = [Row(check, f"no class has {config.min_class_samples} {unit}", bound, None)]
    if unjudged:
        rows.append(Row("drops in small classes", ", ".join(unjudged)[:500], "shown only", None))
    return rows


def evidence_from(arrays: Mapping[str, Any], **facts: Any) -> Evidence:
    """Build evidence from the arrays of a `predictions.npz` and the named other fields of `Evidence`.

    Boxes may lie in the arrays as they are stored, or under `boxes` as `BoxResults`.

    Raises:
        ValueError: an array is missing.
    """
    boxes = arrays.get("boxes")
    if boxes is None and any(name.startswith("boxes/") for name in arrays):
        from training.core.box_results import BoxResults  # imports torch

        boxes = BoxResults.of(arrays)
    missing = [name for name in ("key", "label", "scores", "classes") if name not in arrays]
    if missing:
        raise ValueError(f"predictions lack {', '.join(missing)}; evaluate again with this version")
    return Evidence(
        key=np.asarray(arrays["key"]).astype(np.str_),
        label=np.asarray(arrays["label"]).astype(np.int64),
        scores=np.asarray(arrays["scores"]).astype(np.float32),
        classes=tuple(str(name) for name in arrays["classes"]),
        boxes=boxes,
        **facts,
    )
