"""Stochastic depth: per sample, unbiased, off in evaluation."""

import pytest
import torch

from training.layers.drop_path import DropPath


def test_samples_are_dropped_as_a_whole_and_rescaled():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.rand(4000, 2, 3) + 1
    ratio = (drop(x) / x).flatten(1)
    assert torch.allclose(ratio.amin(1), ratio.amax(1))
    kept = ratio[:, 0] > 0
    assert torch.allclose(ratio[kept], torch.tensor(4 / 3))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert ratio.mean().item() == pytest.approx(1, abs=0.04)
    assert drop.factors(x).shape == (4000,)


def test_off_in_evaluation_and_at_rate_zero():
    x = torch.rand(8, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.9).eval().factors(x) is None
    assert DropPath(0.0)(x) is x
    assert DropPath(0.9)(x) is not x


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rates(rate):
    with pytest.raises(ValueError, match="below 1"):
        DropPath(rate)
