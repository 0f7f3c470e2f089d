"""RMSProp against Keras' formula written out in NumPy."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from training.core.config import OptimConfig
from training.core.optim import build_optimizer, build_schedule, clip_each
from training.core.rmsprop import RMSProp

RATES = [0.5, 0.5, 0.02, 0.0, 1.8, 0.3]
"""Learning rate of each step."""
SHAPES = [(3, 4), (5,), ()]


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def gradient(step, shape):
    return np.random.default_rng([step, len(shape)]).normal(scale=2.0, size=shape)


def keras(weights, rates, *, rho, eps, momentum, weight_decay, initial):
    """Return the weights after one step per rate; everything element by element, as in Keras' documentation."""
    results = []
    for weight in weights:
        shape = weight.shape
        w, v, m = weight.copy(), np.full(shape, float(initial)), np.zeros(shape)
        for step, rate in enumerate(rates):
            g = gradient(step, shape) + weight_decay * w
            v = rho * v + (1 - rho) * g * g
            m = momentum * m + rate * g / np.sqrt(v + eps)
            w = w - m
        results.append(w)
    return results


def trained(optimizer, values, rates=RATES):
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for value in values:
            value.grad = torch.tensor(gradient(step, tuple(value.shape)), dtype=value.dtype)
        optimizer.step()
    return [value.detach().double().numpy().copy() for value in values]


def close(a, b, tolerance=1e-12):
    return all(np.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("eps", [1.0, 1e-3])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("initial", ["zeros", "ones"])
def test_steps_are_keras_formula_while_the_rate_changes(eps, momentum, weight_decay, initial):
    settings = {"rho": 0.9, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
    start = [value.detach().numpy() for value in parameters()]
    expected = keras(start, RATES, **settings, initial=initial == "ones")
    values = parameters()
    result = trained(RMSProp(values, lr=1.0, **settings, square_avg_init=initial), values)
    assert close(result, expected)
    # In float32, as it is trained.
    values = parameters(torch.float32)
    assert close(trained(RMSProp(values, lr=1.0, **settings, square_avg_init=initial), values), expected, 1e-4)
    # Control: each setting is seen in the result.
    for wrong in ({"eps": 0.5}, {"rho": 0.8}, {"momentum": 0.5}, {"weight_decay": 0.2}):
        assert not close(result, keras(start, RATES, **{**settings, **wrong}, initial=initial == "ones"), 1e-4)
    assert not close(result, keras(start, RATES, **settings, initial=initial != "ones"), 1e-4)


def test_rate_of_the_past_stays_in_the_buffer():
    """A rate of 0 stops new gradients and not the momentum; torch's RMSprop would stand still."""
    values = parameters()
    optimizer = RMSProp(values, lr=1.0, rho=0.9, eps=1.0, momentum=0.5)
    one = trained(optimizer, values, [1.0])
    two = trained(optimizer, values, [0.0])
    start = [value.detach().numpy() for value in parameters()]
    for first, second, begin in zip(one, two, start, strict=True):
        np.testing.assert_allclose(second - first, 0.5 * (first - begin))


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_torchs_rmsprop_is_another_one(momentum):
    ours, theirs = parameters(), parameters()
    a = trained(RMSProp(ours, lr=1.0, rho=0.9, eps=1.0, momentum=momentum), ours)
    b = trained(torch.optim.RMSprop(theirs, lr=1.0, alpha=0.9, eps=1.0, momentum=momentum), theirs)
    assert not close(a, b, 1e-2)
    # With a constant rate and no ε to speak of they agree: nothing else differs.
    ours, theirs = parameters(), parameters()
    a = trained(RMSProp(ours, lr=1.0, rho=0.9, eps=1e-30, momentum=momentum), ours, [0.1] * 4)
    b = trained(torch.optim.RMSprop(theirs, lr=1.0, alpha=0.9, eps=1e-30, momentum=momentum), theirs, [0.1] * 4)
    assert close(a, b)


def test_parameters_without_gradient_stay():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = RMSProp([used, unused], lr=0.1, rho=0.9, eps=1.0, momentum=0.9, weight_decay=0.1)
    used.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    assert unused not in optimizer.state
    assert (used < 1).all()


def test_built_from_the_config_with_rates_and_schedule_by_group():
    config = OptimConfig(
        name="rmsprop", lr={"body": 0.1, "head": 1.8}, momentum=0.8, rho=0.9, eps=1.0, square_avg_init="ones",
        weight_decay=3e-5, decay="kernels", schedule="cosine", warmup_steps=2,
    )  # fmt: skip
    body, head = nn.Linear(3, 3), nn.Linear(3, 2)
    optimizer = build_optimizer({"body": list(body.parameters()), "head": list(head.parameters())}, config)
    assert isinstance(optimizer, RMSProp)
    build_schedule(optimizer, config, 10)
    facts = [(g["name"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert facts == [("body", 0.05, 3e-5), ("body/1d", 0.05, 0.0), ("head", 0.9, 3e-5), ("head/1d", 0.9, 0.0)]
    for group in optimizer.param_groups:
        assert [group[key] for key in ("rho", "eps", "momentum", "square_avg_init")] == [0.9, 1.0, 0.8, "ones"]


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("rmsprop", {"eps": 1.0}, "rho goes with"),
        ("rmsprop", {"rho": 0.9}, "eps goes with"),
        ("rmsprop", {"rho": 0.9, "eps": 1.0, "nesterov": True}, "nesterov goes with"),
        ("rmsprop", {"rho": 1.0, "eps": 1.0}, "less than 1"),
        ("rmsprop", {"rho": 0.9, "eps": 0.0}, "greater than 0"),
        ("sgd", {"rho": 0.9}, "rho goes with"),
        ("adam", {"eps": 1e-8}, "eps goes with"),
        ("adamw", {"square_avg_init": "ones"}, "square_avg_init goes with"),
        ("adam", {"nesterov": True}, "nesterov goes with"),
    ],
)
def test_settings_of_another_optimizer_are_refused(name, settings, match):
    common = {"lr": {"main": 0.1}, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}
    with pytest.raises(ValidationError, match=match):
        OptimConfig(name=name, **common, **settings)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rho": 1.0}, "rho and momentum"),
        ({"momentum": -0.1}, "rho and momentum"),
        ({"eps": 0.0}, "eps > 0"),
        ({"lr": -1.0}, "lr and weight_decay"),
        ({"square_avg_init": "twos"}, "zeros or ones"),
    ],
)
def test_senseless_settings(change, match):
    with pytest.raises(ValueError, match=match):
        RMSProp([nn.Parameter(torch.ones(1))], **{"lr": 0.1, "rho": 0.9, "eps": 1.0, **change})


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="bfloat16"):
        RMSProp([nn.Parameter(torch.ones(1, dtype=torch.bfloat16))], lr=0.1, rho=0.9, eps=1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_gpu_gives_the_same_without_waiting():
    """Clipping of each gradient and a step; the device is never waited for."""
    results = []
    for device in ("cpu", "cuda"):
        values = [nn.Parameter(value.detach().to(device)) for value in parameters(torch.float32)]
        optimizer = RMSProp(values, lr=0.5, rho=0.9, eps=1.0, momentum=0.9, weight_decay=0.1)
        norms = []
        for step in range(3):
            for value in values:
                value.grad = torch.tensor(gradient(step, tuple(value.shape)), dtype=value.dtype, device=device)
            if step > 0 and device == "cuda":  # the first one loads libraries, which synchronises
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            try:
                norms.append(clip_each(values, 1.0))
                optimizer.step()
            finally:
                if device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        results.append([tensor.detach().cpu() for tensor in [*values, *norms]])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
