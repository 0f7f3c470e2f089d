import math
from dataclasses import replace

import numpy as np
import pytest

from training.core.config import ConfigError
from training.core.gate import (
    Evidence,
    GateConfig,
    RoundTrip,
    evidence_from,
    holm,
    judge,
    load_gate_config,
    mcnemar_exact,
    paired_bootstrap,
    wilson_interval,
)

GOOD = RoundTrip(clips=4, max_difference=1e-6, same_class=True)
CLASSES = ("a", "b", "c", "d")


def evidence(
    name: str,
    correct: np.ndarray,
    *,
    digest: str = "d1",
    gmac: float | None = 1.0,
    round_trip: RoundTrip | None = GOOD,
    label: np.ndarray | None = None,
    prefix: str = "k",
) -> Evidence:
    """Evidence of a model that is right exactly where `correct` says so."""
    n = len(correct)
    label = np.arange(n) % len(CLASSES) if label is None else label
    top = np.where(correct, label, (label + 1) % len(CLASSES))
    scores = np.full((n, len(CLASSES)), 0.1, np.float32)
    scores[np.arange(n), top] = 0.7
    keys = np.array([f"{prefix}{i:05d}" for i in range(n)])
    return Evidence(name, digest, keys, label, scores, CLASSES, gmac, round_trip)


def shares(n: int, right: float) -> np.ndarray:
    """Correct on the first `right` share of each run of ten clips."""
    return (np.arange(n) // 4) % 10 < round(10 * right)


def test_mcnemar_is_the_exact_binomial_test():
    gained, lost = 9, 2
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(gained, n + 1)) / 2**n
    assert mcnemar_exact(gained, lost) == pytest.approx(2 * tail)
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == pytest.approx(1.0)


def test_wilson_interval_by_hand():
    # 8 of 10, z = 1.959964: centre (0.8 + z²/20) / (1 + z²/10).
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.49016, abs=1e-4), pytest.approx(0.94331, abs=1e-4))
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_bootstrap_agrees_with_the_normal_interval_and_is_seeded():
    rng = np.random.default_rng(3)
    difference = rng.choice([-1.0, 0.0, 1.0], size=2000, p=[0.1, 0.7, 0.2])
    low, high = paired_bootstrap(difference, alpha=0.05, resamples=5000, seed=1)
    half = 1.96 * difference.std() / math.sqrt(len(difference))
    assert low == pytest.approx(difference.mean() - half, abs=3e-3)
    assert high == pytest.approx(difference.mean() + half, abs=3e-3)
    assert paired_bootstrap(difference, alpha=0.05, resamples=5000, seed=1) == (low, high)
    assert paired_bootstrap(difference, alpha=0.05, resamples=5000, seed=2) != (low, high)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([]) == []


def test_better_challenger_passes_and_worse_is_refused():
    weak, strong = shares(400, 0.5), shares(400, 0.7)
    assert judge(evidence("new", strong), evidence("old", weak), GateConfig()).decision == "passed"
    report = judge(evidence("new", weak), evidence("old", strong), GateConfig())
    assert report.decision == "failed"
    assert "top-1 against the champion" in report.reason


def test_equal_challenger_is_refused_unless_it_is_cheaper():
    correct = shares(400, 0.6)
    assert judge(evidence("new", correct), evidence("old", correct), GateConfig()).decision == "failed"
    cheaper = judge(evidence("new", correct, gmac=0.5), evidence("old", correct), GateConfig())
    assert cheaper.decision == "passed"
    barely = judge(evidence("new", correct, gmac=0.95), evidence("old", correct), GateConfig())
    assert barely.decision == "failed"


def test_gain_within_noise_is_refused():
    old = shares(200, 0.5)
    new = old.copy()
    new[np.flatnonzero(~old)[:3]] = True  # three gained, none lost: p = 0.25
    assert judge(evidence("new", new), evidence("old", old), GateConfig()).decision == "failed"


def test_other_data_is_refused_by_digest_keys_and_labels():
    correct = shares(400, 0.5)
    better = shares(400, 0.9)
    old = evidence("old", correct)
    for new, said in (
        (evidence("new", better, digest="d2"), "d2"),
        (evidence("new", better, prefix="other"), "by one only"),
        (evidence("new", better, label=(np.arange(400) + 1) % 4), "labels differ"),
    ):
        report = judge(new, old, GateConfig())
        assert report.decision == "failed"
        assert said in report.reason


def test_fresh_predictions_of_the_champion_are_named():
    old = evidence("old", shares(400, 0.5))
    report = judge(evidence("new", shares(400, 0.9)), replace(old, reevaluated_from="d0"), GateConfig())
    assert report.decision == "passed"
    assert "champion re-evaluated: old on data d1; its registered evaluation was on d0 (shown only)" in report.text()
    # Re-evaluated or not: other data are refused.
    other = replace(old, reevaluated_from="d0", data_digest="d2")
    assert judge(evidence("new", shares(400, 0.9)), other, GateConfig()).decision == "failed"


def test_order_of_the_clips_does_not_matter():
    rng = np.random.default_rng(0)
    new, old = evidence("new", shares(400, 0.8)), evidence("old", shares(400, 0.5))
    order = rng.permutation(400)
    shuffled = Evidence("old", "d1", old.key[order], old.label[order], old.scores[order], CLASSES, 1.0, GOOD)
    assert judge(new, shuffled, GateConfig()).rows == judge(new, old, GateConfig()).rows


def test_budget_and_round_trip_are_hard_bounds():
    good = shares(400, 0.9)
    assert judge(evidence("new", good, gmac=2.0), None, GateConfig(max_gmac=1.0)).decision == "failed"
    assert judge(evidence("new", good, gmac=None), None, GateConfig(max_gmac=1.0)).decision == "failed"
    assert judge(evidence("new", good, gmac=0.9), None, GateConfig(max_gmac=1.0)).decision == "passed"
    for bad in (
        None,
        RoundTrip(4, 0.5, True),
        RoundTrip(4, 1e-6, False),
        RoundTrip(4, math.inf, False, "does not load"),
        RoundTrip(0, 0.0, True),
    ):
        assert judge(evidence("new", good, round_trip=bad), None, GateConfig()).decision == "failed"


def test_floors_of_a_first_champion():
    passed = judge(evidence("new", shares(200, 0.5)), None, GateConfig())
    assert passed.decision == "passed"  # majority class 25 %
    assert judge(evidence("new", shares(200, 0.2)), None, GateConfig()).decision == "failed"
    # A model that always names the majority class does not beat it.
    label = np.array([0] * 150 + [1] * 50)
    assert judge(evidence("new", label == 0, label=label), None, GateConfig()).decision == "failed"
    # One class only: there is nothing to beat.
    assert judge(evidence("new", np.ones(200, bool), label=np.zeros(200, int)), None, GateConfig()).decision == "failed"


def test_small_test_sets_are_underpowered_not_passed():
    assert judge(evidence("new", shares(99, 0.9)), None, GateConfig()).decision == "underpowered"
    assert judge(evidence("new", shares(100, 0.9)), None, GateConfig()).decision == "passed"
    # Small does not excuse being worse.
    assert judge(evidence("new", shares(60, 0.1)), None, GateConfig()).decision == "failed"
    report = judge(evidence("new", shares(60, 0.3)), evidence("old", shares(60, 0.8)), GateConfig())
    assert report.decision == "failed"


def test_class_regression_is_refused_and_small_classes_only_shown():
    n = 800
    label = np.arange(n) % 4
    old = np.where(label == 2, True, (np.arange(n) // 4) % 2 == 0)
    new = label != 2  # better everywhere, class c lost altogether
    report = judge(evidence("new", new, label=label), evidence("old", old, label=label), GateConfig())
    assert report.decision == "failed"
    assert "per-class accuracy: c −100% of 200" in report.reason
    # The same with only ten clips of that class: shown, not judged.
    keep = (label != 2) | (np.cumsum(label == 2) <= 10)
    small = judge(
        evidence("new", new[keep], label=label[keep]), evidence("old", old[keep], label=label[keep]), GateConfig()
    )
    assert small.decision == "passed"
    shown = next(row for row in small.rows if row.check == "drops in small classes")
    assert shown.passed is None
    assert "c −100% of 10" in shown.value


def test_broken_evidence_is_an_error_with_the_model_name():
    with pytest.raises(ValueError, match="new was evaluated on no clips"):
        judge(evidence("new", np.zeros(0, bool)), None, GateConfig())
    good = evidence("new", shares(100, 0.5))
    twice = Evidence("new", "d", np.repeat(good.key[:50], 2), good.label, good.scores, CLASSES, 1.0)
    with pytest.raises(ValueError, match="twice"):
        judge(twice, None, GateConfig())
    broken = np.full_like(good.scores, np.nan)
    with pytest.raises(ValueError, match="not finite"):
        judge(Evidence("new", "d", good.key, good.label, broken, CLASSES, 1.0), None, GateConfig())
    with pytest.raises(ValueError, match="lack label, classes"):
        evidence_from({"key": good.key, "scores": good.scores}, name="x", data_digest="d", gmac=1.0)


def test_config_comes_from_the_section_gate(tmp_path):
    params = tmp_path / "demo.yaml"
    assert load_gate_config(params) == GateConfig()
    params.write_text("other: {a: 1}\n")
    assert load_gate_config(params) == GateConfig()
    params.write_text("gate: {max_gmac: 2.5, margin: 0.01}\n")
    assert load_gate_config(params) == GateConfig(max_gmac=2.5, margin=0.01)
    params.write_text("gate: {max_gmacs: 2.5}\n")
    with pytest.raises(ConfigError, match="did you mean 'max_gmac'"):
        load_gate_config(params)
