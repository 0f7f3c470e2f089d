"""Straight-through decisions: hard forward, relaxed gradient, frequencies, extremes."""

import math

import pytest
import torch

from training.layers.gumbel import decide, gumbel_noise, straight_through
from training.layers.seeded import seeded_uniform

TEMPERATURES = (0.1, 0.5, 1.0, 2.45, 5.0, 50.0)


def case(count=2000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=generator), gumbel_noise(torch.arange(count), (2,), 0)


def gradient(logits, noise, temperature):
    logits = logits.clone().requires_grad_()
    result = straight_through(logits, noise, temperature)
    return result.detach(), torch.autograd.grad(result.sum(), logits)[0]


# --- the hard sample and its gradient (spec, test 6) --------------------------------------------


def test_the_decision_does_not_depend_on_the_temperature():
    logits, noise = case()
    results = [straight_through(logits, noise, temperature) for temperature in TEMPERATURES]
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(results[0], (logits + noise).argmax(-1).float())
    assert sorted(results[0].unique().tolist()) == [0, 1]
    assert results[0].dtype == torch.float32


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_is_that_of_the_softmax(temperature):
    logits, noise = case()
    _, ours = gradient(logits, noise, temperature)
    relaxed = logits.double().requires_grad_()
    soft = ((relaxed + noise) / temperature).softmax(-1)[:, 1]
    expected = torch.autograd.grad(soft.sum(), relaxed)[0]
    assert torch.allclose(ours.double(), expected, rtol=1e-4, atol=1e-6)
    y = soft.detach()
    assert torch.allclose(expected[:, 1], y * (1 - y) / temperature)
    assert torch.equal(ours[:, 0], -ours[:, 1])


@pytest.mark.parametrize(
    ("temperature", "mean"), [(0.1, 0.1809), (1.0, 0.1416), (2.45, 0.0863), (5.0, 0.0476), (50.0, 0.0050)]
)
def test_mean_gradient_of_unit_normal_logits(temperature, mean):
    """By numerical integration: normal of variance 2 plus logistic. The larger τ, the weaker the gradient."""
    _, ours = gradient(*case(400_000), temperature)
    assert ours[:, 1].abs().mean().item() == pytest.approx(mean, rel=0.02)


def test_a_tensor_is_a_temperature_too():
    logits, noise = case()
    plain, with_tensor = gradient(logits, noise, 2.45), gradient(logits, noise, torch.tensor(2.45))
    assert all(torch.allclose(a, b) for a, b in zip(plain, with_tensor, strict=True))


# --- frequencies (spec, test 7) -----------------------------------------------------------------


def test_use_rate_is_the_sigmoid_of_the_margin():
    noise = gumbel_noise(torch.arange(400_000), (2,), 3)
    logits = torch.tensor([0.35, -0.35])
    rate = straight_through(logits.expand_as(noise), noise, 5.0).mean()
    assert rate.item() == pytest.approx(1 / (1 + math.exp(0.7)), abs=0.003)
    swapped = straight_through(logits.flip(0).expand_as(noise), noise, 5.0).mean()
    assert swapped.item() == pytest.approx(1 / (1 + math.exp(-0.7)), abs=0.003)


def test_noise_is_gumbel_and_belongs_to_its_clip():
    noise = gumbel_noise(torch.arange(100_000), (2,), 0)
    assert noise.dtype == torch.float32
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    assert torch.corrcoef(noise.T)[0, 1].abs() < 0.02
    assert torch.equal(gumbel_noise(torch.tensor([7, 3]), (2,), 0), noise[[7, 3]])
    assert not torch.equal(gumbel_noise(torch.arange(10), (2,), 1), noise[:10])


def test_noise_is_finite_at_both_ends_of_the_draw():
    """Smallest and largest number that can be drawn, through the same formula as the noise."""
    largest = 1 - 2.0**-53
    for uniform in (2.0**-60, largest):
        assert math.isfinite(-math.log(-math.log(uniform)))
    assert torch.tensor(largest).float() == 1  # in fp32 the noise would be infinite
    drawn = seeded_uniform(torch.arange(100_000), (4,))
    assert drawn.max() <= largest
    assert gumbel_noise(torch.arange(100_000), (4,), 0).isfinite().all()


# --- precision and bad input --------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 5.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_give_finite_results(dtype, temperature):
    most = torch.finfo(dtype).max
    values = torch.tensor([-most, -100.0, 0.0, 100.0, most], dtype=dtype)
    logits = torch.cartesian_prod(values, values)
    noise = gumbel_noise(torch.arange(len(logits)), (2,), 0)
    for given in (None, noise):
        result, slope = gradient(logits, given, temperature)
        assert result.dtype == torch.float32
        assert set(result.tolist()) == {0, 1}
        assert slope.isfinite().all()
    assert torch.equal(gradient(logits, None, temperature)[0], (logits[:, 1] > logits[:, 0]).float())


def test_autocast_changes_nothing():
    logits, noise = case()
    expected = gradient(logits, noise, 2.45)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradient(logits, noise, 2.45)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_compiles_into_one_graph():
    compiled = torch.compile(straight_through, fullgraph=True, backend="eager")
    logits, noise = case(16)
    assert torch.equal(compiled(logits, noise, torch.tensor(5.0)), straight_through(logits, noise, 5.0))


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        straight_through(torch.zeros(3, 2), None, temperature)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"\(skip, use\)"):
        straight_through(torch.zeros(2, 3), None, 1.0)
    with pytest.raises(ValueError, match="differ in shape"):
        straight_through(torch.zeros(4, 2), torch.zeros(1, 2), 1.0)


# --- decisions without noise --------------------------------------------------------------------


def test_argmax_and_threshold():
    logits = torch.tensor([[0.0, 1e-7], [0.0, 0.0], [0.0, -1e-7], [0.0, 2.0], [0.0, 3.0]])
    assert decide(logits, "argmax").tolist() == [True, False, False, True, True]
    assert torch.equal(decide(logits, "threshold", 0.5), decide(logits, "argmax"))
    assert decide(logits, "threshold", 0.9).tolist() == [False, False, False, False, True]
    assert decide(logits, "threshold", 1e-9).tolist() == [True] * 5
    assert torch.equal(decide(logits, "argmax").float(), straight_through(logits, None, 1.0))
    assert torch.equal(decide(logits, "argmax", 0.9), decide(logits, "argmax"))


def test_bad_decisions():
    with pytest.raises(ValueError, match="mode must be"):
        decide(torch.zeros(3, 2), "sample")
    for threshold in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            decide(torch.zeros(3, 2), "threshold", threshold)
