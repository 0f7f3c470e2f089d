"""A set of 2 videos, 2 segments, 2 modalities and 3 classes whose every figure was computed by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from training.adamml.arms import (
    Segments,
    SegmentsError,
    all_or_none_curve,
    controls,
    figures,
    mutual_information,
    random_curve,
    threshold_curve,
    with_sound,
)
from training.core.evaluate import Predictions

COST = {"rgb": 10.0, "audio": 1.0}
POLICY = 0.5


def softmax(*values: float) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def predictions() -> Predictions:
    """Video a (class 0): its picture is right in segment 1, its sound misleads. Video b (class 1): silent, no sound.

    The policy uses the picture of a's second segment only, and both pictures of b.
    """
    scores = np.zeros((2, 2, 2, 3))
    scores[0, 0, 0] = [0, 0, 1]  # a, segment 0, rgb: wrong
    scores[0, 1, 0] = [4, 0, 0]  # right
    scores[0, 0, 1] = [0, 2, 0]  # audio: wrong
    scores[0, 1, 1] = [0, 3, 0]
    scores[1, 0, 0] = [0, 2, 0]  # b: right
    scores[1, 1, 0] = [1, 0, 0]
    scores[1, :, 1] = [[9, 0, 0], [9, 0, 0]]  # what the silence would say; it is not available
    return Predictions(
        key=np.array(["a", "b"]),
        label=np.array([0, 1]),
        scores=np.array([softmax(2, 0, 0), softmax(0.5, 1, 0)], dtype=np.float32),
        arms={
            "rgb": np.array([[0.6, 0.2, 0.2], [0.6, 0.3, 0.1]], np.float32),
            "audio": np.array([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1]], np.float32),
        },
        extras={
            "choices": np.array([[[0, 0], [1, 0]], [[1, 0], [1, 0]]], dtype=bool),
            "available": np.array([[[1, 1], [1, 1]], [[1, 0], [1, 0]]], dtype=bool),
            "use_logits": np.array([[[-1, -3], [2, -0.5]], [[0.5, 5], [1, -5]]], np.float32),
            "segment_scores": scores.astype(np.float16),
            "weights": np.array([[0.75, 0.25]] * 2, np.float32),
            "gmac": np.array([11.0, 21.0], np.float32),
        },
        classes=("x", "y", "z"),
    )


@pytest.fixture
def two() -> Segments:
    return Segments.of(predictions(), COST, policy_gmac=POLICY, mean="segments", least_one=False)


def test_scores_of_the_models_choice_are_the_models(two):
    assert two.scores(two.choices_NSK) == pytest.approx(two.scores_NC, abs=1e-6)
    assert two.gmac(two.choices_NSK, policy=True) == pytest.approx(two.gmac_N)
    assert two.gmac(two.choices_NSK, policy=False) == pytest.approx([10, 20])


def test_everything(two):
    # a: (4, 5, 1) / 2, wrong; b: (1, 2, 0) / 2, right; its sound is not there and is not counted.
    assert two.scores(two.everything())[0] == pytest.approx(softmax(2, 2.5, 0.5), abs=1e-6)
    assert two.top1(two.everything()) == 0.5
    assert two.gmac(two.everything(), policy=False).tolist() == [22, 20]


def test_nothing_is_uniform_and_names_the_first_class(two):
    nothing = np.zeros_like(two.choices_NSK)
    assert two.scores(nothing) == pytest.approx(np.full((2, 3), 1 / 3))
    assert two.top1(nothing) == 0.5
    assert two.gmac(nothing, policy=True).tolist() == [1, 1]


def test_mean_over_what_was_used(two):
    used = replace(two, mean="used")
    # a: (4, 0, 0) / 0.75; b: (1, 2, 0) / 1.5
    assert used.scores(two.choices_NSK)[0] == pytest.approx(softmax(16 / 3, 0, 0), abs=1e-5)
    assert used.scores(two.choices_NSK)[1] == pytest.approx(softmax(2 / 3, 4 / 3, 0), abs=1e-5)
    assert used.scores(two.choices_NSK)[0] != pytest.approx(two.scores_NC[0], abs=1e-2)
    assert used.scores(np.zeros_like(two.choices_NSK)) == pytest.approx(np.full((2, 3), 1 / 3))


def test_threshold_is_of_the_probability_and_never_uses_what_is_missing(two):
    assert two.by_threshold(0.5).tolist() == [[[0, 0], [1, 0]], [[1, 0], [1, 0]]]
    # sigmoid(-0.5) = 0.378, sigmoid(-1) = 0.269
    assert two.by_threshold(0.3).tolist() == [[[0, 0], [1, 1]], [[1, 0], [1, 0]]]
    assert two.by_threshold(0.2).tolist() == [[[1, 0], [1, 1]], [[1, 0], [1, 0]]]
    assert two.by_threshold(0.7).tolist() == [[[0, 0], [1, 0]], [[0, 0], [1, 0]]]
    assert (two.by_threshold(0) == two.everything()).all()
    assert not two.by_threshold(1).any()
    with pytest.raises(SegmentsError, match="a threshold is a probability"):
        two.by_threshold(1.5)


def test_least_one_takes_the_surest_that_is_there(two):
    kept = replace(two, least_one=True)
    # b's sound has the largest log-odds of all, and is not there.
    assert kept.by_threshold(0.95).tolist() == [[[0, 0], [1, 0]], [[0, 0], [1, 0]]]
    assert not two.by_threshold(0.95).any()
    some = kept.at_random(np.zeros(2), seed=3)
    assert some.sum(axis=(1, 2)).tolist() == [1, 1]
    assert not (some & ~two.available_NSK).any()


def test_given_flags_are_used_where_available(two):
    assert two.given(np.ones((2, 2, 2))).tolist() == two.available_NSK.tolist()
    with pytest.raises(SegmentsError, match=r"flags of shape \(2, 2\)"):
        two.given(np.ones((2, 2)))


def test_oracle_prefers_the_cheapest_that_is_right_alone(two):
    oracle = two.oracle(two.label)
    # Of a only the picture of segment 1 is right; of b that of segment 0.
    assert oracle.tolist() == [[[0, 0], [1, 0]], [[1, 0], [0, 0]]]
    assert two.top1(oracle) == 1.0
    # Negative control: with labels that only the sound of a names, it takes the first sound, and everything for b.
    other = two.oracle(np.array([1, 2]))
    assert other.tolist() == [[[0, 1], [0, 0]], [[1, 0], [1, 0]]]


def test_all_or_none_uses_whole_segments_and_the_share_is_exact_in_the_mean():
    many = crowd(videos=2000)
    used = many.all_or_none(0.3, seed=1)
    whole = used.all(axis=2)
    assert (whole == used.any(axis=2)).all()
    assert set(whole.sum(axis=1)) == {1, 2}  # 0.3 · 4 = 1.2
    assert whole.mean() == pytest.approx(0.3, abs=0.01)
    assert whole.mean(axis=0) == pytest.approx([0.3] * 4, abs=0.04)
    assert many.all_or_none(1, seed=1).all()
    assert not many.all_or_none(0, seed=1).any()
    assert (used != many.all_or_none(0.3, seed=2)).any()


def test_random_choices_have_the_rates_that_were_asked_for():
    many = crowd(videos=2000)
    many.available_NSK[::2, :, 1] = False
    used = many.at_random(np.array([0.25, 0.8]), seed=0)
    assert many.rates(used) == pytest.approx([0.25, 0.8], abs=0.02)
    assert used[:, :, 1].mean() == pytest.approx(0.4, abs=0.02)  # half of the videos have none
    assert (used == many.at_random(np.array([0.25, 0.8]), seed=0)).all()


def test_figures_by_hand(two):
    found = figures(two, draws=3)
    assert found["usage_rgb"] == 0.75
    assert found["usage_spread_rgb"] == 0.25
    assert found["usage_audio"] == found["usage_spread_audio"] == 0
    assert found["saving"] == pytest.approx(1 - 16 / 21)
    assert found["top1_over_fusion"] == 0.5
    assert found["top1_over_rgb"] == 0.5
    assert found["top1_over_audio"] == 0.5
    assert (found["top1_oracle"], found["gmac_per_video_oracle"]) == (1.0, 10.0)
    assert (found["top1_with_sound"], found["top1_without_sound"]) == (1.0, 1.0)
    assert (found["samples_with_sound"], found["samples_without_sound"]) == (1, 1)
    assert found["top1_at_0.5"] == 1.0
    assert found["gmac_at_0.5"] == 16
    # p > 0.2 adds to a its first picture and its second sound: (4, 3, 1) / 2, still right.
    assert (found["top1_at_0.2"], found["gmac_at_0.2"]) == (1.0, (1 + 21 + 1 + 20) / 2)
    # Decision on: P(class 0) = 1/3, P(class 1) = 2/3; in all H = 1 bit.
    assert found["mutual_information_rgb"] == pytest.approx(1 - 0.75 * 0.918296 - 0.25 * 0.0, abs=1e-5)
    assert found["mutual_information_audio"] == 0
    assert found["top1_random_std"] >= 0
    assert found["top1_over_random"] == pytest.approx(1.0 - found["top1_random"])
    assert all(isinstance(value, float) for value in found.values())


def test_mutual_information_of_blind_and_of_telling_decisions():
    label = np.repeat([0, 1], 50)
    telling = np.repeat([[True, True], [False, False]], 50, axis=0)
    assert mutual_information(telling, label) == pytest.approx(1.0)
    assert mutual_information(np.ones((100, 2), bool), label) == 0
    alternating = np.tile([[True, False], [False, True]], (50, 1))
    assert mutual_information(alternating, label) == pytest.approx(0, abs=1e-12)


def test_curves_are_sorted_by_cost_and_count_the_policy_only_where_there_is_one(two):
    learned = threshold_curve(two, (0.5, 0.2, 0.7))
    assert [point.gmac for point in learned.points] == [11, 16, 21.5]
    assert learned.points[1].top1 == 1.0
    assert learned.points[1].low == pytest.approx(0.342, abs=1e-3)  # Wilson of 2 of 2
    blind = random_curve(two, draws=4, thresholds=(0.01,))
    assert blind.points[0].draws == 4
    assert blind.points[0].gmac <= 21
    blocks = all_or_none_curve(two, draws=2, shares=(1.0,))
    assert (blocks.points[0].gmac, blocks.points[0].top1, blocks.points[0].deviation) == (21, 0.5, 0)


def test_learned_choice_beats_random_only_where_it_knows_something():
    """Control: the same decisions, shuffled among videos and segments, are no better than random ones."""
    many = crowd(videos=1500)
    informed = figures(many, draws=3)
    assert informed["top1_over_random"] > 0.15
    assert informed["saving"] > 0.3
    flat = many.choices_NSK.reshape(-1, 2)
    shuffled = np.random.default_rng(5).permutation(flat).reshape(many.choices_NSK.shape)
    blind = figures(replace(many, choices_NSK=shuffled, scores_NC=many.scores(shuffled)), draws=3)
    assert abs(blind["top1_over_random"]) < 0.04


def test_all_or_none_spends_what_the_model_spends():
    many = crowd(videos=1500)
    _, blocks, _ = controls(many, draws=2)
    assert blocks.gmac == pytest.approx(many.gmac_N.mean(), rel=0.02)


def test_multi_label_has_map():
    whole = predictions()
    hot = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    segments = Segments.of(replace(whole, label=hot), COST, policy_gmac=POLICY, mean="segments", least_one=False)
    found = figures(segments, draws=2)
    assert not [name for name in found if name.startswith("top1")]
    assert {"map_random", "map_all_or_none", "map_oracle", "map_over_fusion", "map_at_0.5"} <= set(found)
    assert "mutual_information_rgb" not in found
    # Columns 0 and 1 rank their video first; z is tied between uniform tails of 0.106 (a) and 0.186 (b): b before a.
    assert found["map_at_0.5"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert segments.own().low is None


def test_sound_everywhere_or_nowhere_makes_no_subsets(two):
    assert set(with_sound(two)) == {"with_sound", "without_sound"}
    assert with_sound(replace(two, available_NSK=np.ones_like(two.available_NSK))) == {}
    assert "top1_with_sound" not in figures(replace(two, available_NSK=np.ones_like(two.available_NSK)), draws=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_logits": None}, "lack extra/use_logits; evaluate the model again"),
        ({"weights": np.ones((2, 3))}, r"extra/weights has the shape \(2, 3\)"),
        ({"segment_scores": np.ones((2, 2, 2, 4), np.float16)}, "extra/segment_scores has the shape"),
        ({"available": np.zeros((2, 2, 2), bool)}, "extra/choices uses modalities where"),
    ],
)
def test_foreign_predictions_are_refused(change, said):
    whole = predictions()
    extras = {name: value for name, value in (dict(whole.extras) | change).items() if value is not None}
    with pytest.raises(SegmentsError, match=said):
        Segments.of(replace(whole, extras=extras), COST, policy_gmac=POLICY, mean="segments", least_one=False)
    with pytest.raises(SegmentsError, match="extra/choices has the shape"):
        Segments.of(whole, {"rgb": 1.0}, policy_gmac=POLICY, mean="segments", least_one=False)


def crowd(videos: int, segments: int = 4, classes: int = 3) -> Segments:
    """Return many videos in which one segment each is informative, in one modality, and the policy knows which."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, videos)
    scores = rng.normal(0, 0.5, (videos, segments, 2, classes))
    telling = np.zeros((videos, segments, 2), bool)
    telling[np.arange(videos), rng.integers(0, segments, videos), rng.integers(0, 2, videos)] = True
    for where in np.argwhere(telling):
        scores[(*where, label[where[0]])] += 4
    logits = np.where(telling, 2.0, -2.0)
    whole = Predictions(
        key=np.array([f"{i:05d}" for i in range(videos)]),
        label=label,
        scores=np.full((videos, classes), 1 / classes, np.float32),
        arms={},
        extras={
            "choices": telling,
            "available": np.ones_like(telling),
            "use_logits": logits.astype(np.float32),
            "segment_scores": scores.astype(np.float16),
            "weights": np.full((videos, 2), 0.5, np.float32),
            "gmac": telling.sum(axis=1) @ np.array([10.0, 1.0]) + segments * POLICY,
        },
        classes=tuple("abc"[:classes]),
    )
    found = Segments.of(whole, COST, policy_gmac=POLICY, mean="segments", least_one=False)
    return replace(found, scores_NC=found.scores(telling))


def test_sampled_choices_follow_the_probabilities_and_what_is_there(two):
    sure = replace(two, use_logits_NSK=np.where(two.use_logits_NSK > 0, 900.0, -900.0))
    np.testing.assert_array_equal(sure.sampled(0), sure.by_threshold(0.5))
    even = replace(two, use_logits_NSK=np.zeros_like(two.use_logits_NSK))
    drawn = np.mean([even.sampled(seed) for seed in range(400)], axis=0)
    np.testing.assert_allclose(drawn, 0.5 * two.available_NSK, atol=0.1)
    assert not (even.sampled(3) & ~two.available_NSK).any()
