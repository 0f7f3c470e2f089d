"""Metrics against scikit-learn and against hand-made cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from training.core.metrics import (
    average_precision,
    classification_metrics,
    expected_calibration_error,
    wilson_interval,
)


def probabilities(rng, samples, classes, sharpness=2.0):
    logits = rng.normal(size=(samples, classes)) * sharpness
    scores = np.exp(logits)
    return scores / scores.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [None, 4])
def test_average_precision_is_scikit_learns_also_with_ties(seed, levels):
    rng = np.random.default_rng(seed)
    scores = rng.random((60, 7))
    if levels is not None:
        scores = np.round(scores * levels) / levels
    positive = rng.random((60, 7)) < 0.3
    expected = [average_precision_score(positive[:, k], scores[:, k]) for k in range(7)]
    assert average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_absent_class_neither_shifts_nor_dilutes_the_mean():
    """Perfect scores stay perfect when class 1 of 4 does not occur."""
    label = np.array([0, 2, 3, 2, 0, 3])
    scores = np.full((6, 4), 0.05)
    scores[np.arange(6), label] = 0.85
    result = classification_metrics(scores, label, "val")
    assert result["val/map"] == 1.0
    assert result["val/mean_class_accuracy"] == 1.0
    assert result["val/classes_present"] == 3
    renumbered = np.searchsorted(np.unique(label), label)
    wrong = classification_metrics(scores, renumbered, "val")
    assert wrong["val/map"] < 0.7, "renumbering labels by rank, a known defect, would not be noticed"


def test_map_with_absent_classes_is_the_mean_over_the_present():
    rng = np.random.default_rng(0)
    scores = probabilities(rng, 80, 6)
    label = rng.choice([0, 2, 5], size=80)
    expected = np.mean([average_precision_score(label == k, scores[:, k]) for k in (0, 2, 5)])
    assert classification_metrics(scores, label, "test")["test/map"] == pytest.approx(expected)


def test_multi_label():
    rng = np.random.default_rng(1)
    scores = rng.random((50, 5))
    hot = rng.random((50, 5)) < 0.4
    hot[:, 3] = False
    hot[7] = False
    result = classification_metrics(scores, hot.astype(np.float32), "val")
    present = (0, 1, 2, 4)
    expected = np.mean([average_precision_score(hot[:, k], scores[:, k]) for k in present])
    assert result["val/map"] == pytest.approx(expected)
    assert result["val/top1"] == pytest.approx(np.mean([hot[i, scores[i].argmax()] for i in range(50)]))
    assert result["val/majority"] == pytest.approx(hot.mean(0).max())
    assert "val/nll" not in result


def test_single_label_figures_by_hand():
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    label = torch.tensor([0, 1, 1, 2])
    result = classification_metrics(scores, label, "val")
    assert result["val/top1"] == 0.75
    assert result["val/mean_class_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert result["val/nll"] == pytest.approx(-np.log([0.7, 0.6, 0.3, 0.6]).mean(), rel=1e-6)
    assert result["val/majority"] == 0.5
    assert result["val/samples"] == 4
    assert result["val/top1_low"] < 0.75 < result["val/top1_high"]
    assert "val/top5" not in result
    assert all(isinstance(value, float) for value in result.values())


def test_top5_and_constant_scores():
    rng = np.random.default_rng(2)
    scores = probabilities(rng, 200, 10)
    label = rng.integers(0, 10, 200)
    top5 = np.argsort(-scores, axis=1)[:, :5]
    result = classification_metrics(scores, label, "val")
    assert result["val/top5"] == pytest.approx((top5 == label[:, None]).any(1).mean())
    constant = classification_metrics(np.full((200, 10), 0.1), label, "val")
    assert constant["val/top1"] == pytest.approx((label == 0).mean())
    assert constant["val/top5"] == pytest.approx((label < 5).mean())


def test_calibration_error():
    assert expected_calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)
    assert expected_calibration_error(np.ones(10), np.arange(10) < 5) == pytest.approx(0.5)
    both = np.array([0.95, 0.95, 0.55, 0.55])
    assert expected_calibration_error(both, [1, 0, 1, 0]) == pytest.approx((0.45 + 0.05) / 2)


def test_wilson_interval_against_published_values():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError, match="at least one trial"):
        wilson_interval(0, 0)


def test_zero_probability_gives_a_finite_loss():
    result = classification_metrics([[1.0, 0.0], [1.0, 0.0]], [0, 1], "val")
    assert np.isfinite(result["val/nll"])
    assert result["val/nll"] > 40


@pytest.mark.parametrize(
    ("scores", "label", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "at least one sample"),
        ([[0.5, np.nan]], [0], "not finite, first in row 0"),
        ([[5.0, -5.0]], [0], "must be probabilities"),
        ([[0.9, 0.9]], [0], "sum to"),
        ([[0.5, 0.5]], [2], r"0…1, got 2…2"),
        ([[0.5, 0.5]], [-1], r"got -1"),
        ([[0.5, 0.5]], [0.0], "must be integers"),
        ([[0.5, 0.5]], [[1, 2]], "0 or 1"),
        ([[0.5, 0.5]], [0, 1], "labels must be"),
    ],
)
def test_senseless_input(scores, label, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(np.asarray(scores), np.asarray(label), "val")
