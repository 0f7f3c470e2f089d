"""Truncated normal distribution and Keras' variance scaling."""

import math

import pytest
import torch

from training.layers.initial import TRUNCATED_STD, truncated_normal_, variance_scaling_


def test_truncated_normal_has_the_distribution():
    torch.manual_seed(0)
    values = truncated_normal_(torch.empty(200_000), 0.5)
    assert values.abs().max() <= 1
    assert values.mean().item() == pytest.approx(0, abs=0.005)
    assert values.std().item() == pytest.approx(0.5 * TRUNCATED_STD, rel=0.005)
    inside = (values.abs() < 0.5).float().mean().item()
    assert inside == pytest.approx(math.erf(math.sqrt(0.5)) / math.erf(math.sqrt(2)), abs=0.005)
    torch.manual_seed(0)
    reference = torch.nn.init.trunc_normal_(torch.empty(200_000), std=0.5, a=-1, b=1)
    quantiles = torch.linspace(0.01, 0.99, 50)
    assert torch.allclose(values.quantile(quantiles), reference.quantile(quantiles), atol=0.01)


def test_variance_is_one_over_fan_in():
    torch.manual_seed(0)
    weight = variance_scaling_(torch.nn.Parameter(torch.empty(256, 32, 3, 3, 1)))
    assert weight.requires_grad
    assert weight.std().item() == pytest.approx(math.sqrt(1 / 288), rel=0.01)


def test_meta_tensors_cost_nothing():
    assert variance_scaling_(torch.empty(4, 3, device="meta")).is_meta
