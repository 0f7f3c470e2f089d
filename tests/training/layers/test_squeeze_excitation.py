"""Gates from one reduction equal the gates applied after one another."""

import pytest
import torch

from training.layers.squeeze_excitation import SelfGating, SqueezeExcitation, chained_gate, global_mean


def gate_map(x, gate):
    """Plain form: reduce, then multiply."""
    return x * gate(x.mean((2, 3, 4)))[:, :, None, None, None]


@pytest.fixture
def gates():
    torch.manual_seed(0)
    gates = [SelfGating(16).double(), SqueezeExcitation(16, 4).double()]
    for gate in gates:
        for parameter in gate.parameters():
            torch.nn.init.normal_(parameter)
    return gates


def test_one_reduction_equals_two(gates):
    x = torch.randn(3, 16, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    self_gating, se = gates
    for order in ((self_gating, se), (se, self_gating), (se,)):
        expected = x
        for gate in order:
            expected = gate_map(expected, gate)
        ours = x * chained_gate(global_mean(x), order)[:, :, None, None, None]
        assert torch.allclose(ours, expected, rtol=1e-12, atol=0)
        parameters = [x, *order[0].parameters()]
        wanted = torch.autograd.grad(expected.square().sum(), parameters)
        for ours_grad, grad in zip(torch.autograd.grad(ours.square().sum(), parameters), wanted, strict=True):
            assert torch.allclose(ours_grad, grad, rtol=1e-9, atol=1e-12)


def test_order_matters_and_the_second_gate_sees_the_first(gates):
    self_gating, se = gates
    mean = torch.randn(3, 16, dtype=torch.float64)
    code, paper = chained_gate(mean, (self_gating, se)), chained_gate(mean, (se, self_gating))
    assert not torch.allclose(code, paper, rtol=1e-3)
    assert not torch.allclose(code, self_gating(mean) * se(mean), rtol=1e-3)
    with pytest.raises(ValueError, match="at least one gate"):
        chained_gate(mean, ())


def test_definitions():
    torch.manual_seed(0)
    mean = torch.randn(2, 8)
    se, gating = SqueezeExcitation(8, 2), SelfGating(8)
    hidden = (mean @ se.reduce.weight.T + se.reduce.bias).clamp(min=0)
    assert torch.allclose(se(mean), 1 / (1 + (-(hidden @ se.expand.weight.T + se.expand.bias)).exp()), atol=1e-6)
    assert torch.allclose(gating(mean), 1 / (1 + (-(mean @ gating.dense.weight.T)).exp()), atol=1e-6)
    assert gating.dense.weight.abs().max() <= 0.02
    assert not any(layer.bias.any() for layer in (se.reduce, se.expand, gating.dense))


def test_mean_is_taken_in_float32():
    """In bfloat16 itself, 4096 equal numbers plus one would lose the one."""
    x = torch.full((1, 1, 4, 32, 32), 0.5, dtype=torch.bfloat16)
    x[0, 0, 0, 0, 0] = 4.5
    assert global_mean(x).dtype == torch.float32
    assert global_mean(x).item() == 0.5 + 4 / 4096
    assert x.mean().item() == 0.5
    assert global_mean(x.double()).dtype == torch.float64
    # Networks that are bfloat16 altogether work too.
    assert SqueezeExcitation(1, 1).bfloat16()(global_mean(x)).dtype == torch.bfloat16
