import random

import numpy as np
import pytest

from training.movinet.reinforce import Controller, ReinforceConfig


def make(space, **changes) -> Controller:
    values = {"name": "reinforce", "lr": 0.05, "schedule": "constant", "delay": 0.25, "baseline": 0.95, "entropy": 0.0}
    return Controller(space, ReinforceConfig.model_validate(values | changes))


def test_policy_starts_uniform(small_space):
    controller, rng = make(small_space), random.Random(0)
    drawn = [controller.draw(rng) for _ in range(600)]
    shares = np.bincount([g.blocks[0].layers[0].kernel for g in drawn], minlength=3) / 600
    np.testing.assert_allclose(shares, 1 / 3, atol=0.08)
    assert np.mean([len(g.blocks[1].layers) for g in drawn]) == pytest.approx(1.5, abs=0.08)
    assert controller.mean_entropy() == pytest.approx(1)


def test_gradient_is_that_of_the_log_probability(small_space):
    controller, rng = make(small_space, entropy=0.3), random.Random(0)
    controller.logits = np.random.default_rng(0).normal(size=controller.logits.size)
    genotype = controller.draw(rng)
    gradient = controller.gradient(genotype, 0.7)

    def loss() -> float:
        entropies = []
        for name in controller.active(genotype):
            probability = controller.probabilities(*name)
            entropies.append(-(probability * np.log(probability)).sum())
        return -0.7 * controller.log_probability(genotype) - 0.3 * sum(entropies)

    for index in range(controller.logits.size):
        kept = controller.logits[index]
        ends = []
        for step in (1e-5, -1e-5):
            controller.logits[index] = kept + step
            ends.append(loss())
        controller.logits[index] = kept
        assert gradient[index] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


def test_layers_beyond_the_depth_learn_nothing(small_space):
    controller = make(small_space)
    shallow = small_space.smallest_genotype()
    controller.update(shallow, 0.0, 0.0)
    controller.update(shallow, 1.0, 0.0)
    np.testing.assert_array_equal(controller.probabilities(0, 1, "kernel"), np.full(3, 1 / 3))
    assert controller.probabilities(0, 0, "kernel")[shallow.blocks[0].layers[0].kernel] > 1 / 3
    assert controller.probabilities(0, "depth")[0] > 1 / 2


@pytest.mark.parametrize("rewarded", [0, 1, 2])
def test_logits_move_to_the_rewarded_choice(small_space, rewarded):
    controller, rng = make(small_space), random.Random(0)
    for _ in range(200):
        genotype = controller.draw(rng)
        controller.update(genotype, float(genotype.blocks[0].layers[0].kernel == rewarded), 0.0)
    assert controller.probabilities(0, 0, "kernel").argmax() == rewarded
    assert controller.probabilities(0, 0, "kernel")[rewarded] > 0.9
    assert controller.most_likely().blocks[0].layers[0].kernel == rewarded
    # Control: choices without influence stay undecided by comparison.
    assert controller.probabilities(1, 0, "kernel").max() < 0.9


def test_constant_reward_teaches_nothing(small_space):
    controller, rng = make(small_space), random.Random(0)
    for _ in range(50):
        controller.update(controller.draw(rng), 0.7, 0.0)
    np.testing.assert_allclose(controller.logits, 0, atol=1e-3)


def test_tunas_schedule_waits_and_then_grows_tenfold(small_space):
    controller = make(small_space, schedule="tunas", lr=0.1)
    assert controller.rate(0.24) == 0
    assert controller.rate(0.25) == pytest.approx(0.1 * 10**0.25)
    assert controller.rate(1.0) == pytest.approx(1.0)
    controller.update(small_space.smallest_genotype(), 0.0, 0.1)
    controller.update(small_space.smallest_genotype(), 1.0, 0.1)
    assert not controller.logits.any()
