"""Groups and rates name each other, the schedule reaches every group and resumes."""

import math

import pytest
import torch
from torch import nn

from training.core.config import ConfigError, OptimConfig
from training.core.optim import build_optimizer, build_schedule, clip_each, describe_groups
from training.core.system import System


def config(**changes):
    values = {
        "name": "sgd",
        "lr": {"body": 0.1, "head": 1.0},
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 0,
    }
    if changes.get("name") == "rmsprop":
        values |= {"rho": 0.9, "eps": 1.0}
    return OptimConfig(**{**values, **changes})


def two_groups():
    torch.manual_seed(0)
    body, head = nn.Linear(4, 3), nn.Linear(3, 2)
    return {"body": list(body.parameters()), "head": list(head.parameters())}


def run(optimizer, schedule, parameters, steps):
    for step in range(steps):
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.sin(parameter.detach() * (index + 1) + step)
        optimizer.step()
        schedule.step()


def test_every_group_has_its_rate_and_is_described():
    optimizer = build_optimizer(two_groups(), config())
    assert [tuple(row) for row in describe_groups(optimizer)] == [("body", 0.1, 2, 15), ("head", 1.0, 2, 8)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 1e-4]


def test_group_without_rate_and_rate_without_group_are_named():
    with pytest.raises(ConfigError, match="no learning rate for group 'head'"):
        build_optimizer(two_groups(), config(lr={"body": 0.1}))
    with pytest.raises(ConfigError, match="no such group: 'haed'"):
        build_optimizer(two_groups(), config(lr={"body": 0.1, "head": 1, "haed": 1}))


def test_empty_frozen_and_shared_parameters_are_refused():
    groups = two_groups()
    with pytest.raises(ValueError, match="'head' is empty"):
        build_optimizer({**groups, "head": []}, config())
    with pytest.raises(ValueError, match="two groups, 'body' and 'head'"):
        build_optimizer({**groups, "head": groups["body"][:1]}, config())
    groups["body"][0].requires_grad_(False)
    with pytest.raises(ValueError, match="'body' holds a frozen"):
        build_optimizer(groups, config())


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
def test_senseless_rate(rate):
    with pytest.raises(ConfigError, match=r"optim\.lr\.body"):
        build_optimizer(two_groups(), config(lr={"body": rate, "head": 1.0}))


def test_cosine_is_the_formula_for_every_group():
    optimizer = build_optimizer(two_groups(), config())
    schedule = build_schedule(optimizer, config(), 10)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(10):
        expected = 0.5 * (1 + math.cos(math.pi * step / 10))
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1 * expected, 1.0 * expected])
        run(optimizer, schedule, parameters, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]


def test_warmup_rises_to_the_full_rate_then_decays():
    optimizer = build_optimizer(two_groups(), config(warmup_steps=4))
    schedule = build_schedule(optimizer, config(warmup_steps=4), 12)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[1]["lr"])
        run(optimizer, schedule, [], 1)
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[8] == pytest.approx(0.5)


def test_constant_stays():
    optimizer = build_optimizer(two_groups(), config(schedule="constant"))
    schedule = build_schedule(optimizer, config(schedule="constant"), 3)
    run(optimizer, schedule, [], 3)
    assert optimizer.param_groups[1]["lr"] == 1.0


def test_warmup_longer_than_the_stage():
    optimizer = build_optimizer(two_groups(), config())
    with pytest.raises(ConfigError, match="warmup_steps is 5"):
        build_schedule(optimizer, config(warmup_steps=5), 5)
    with pytest.raises(ConfigError, match="steps must be"):
        build_schedule(optimizer, config(), 0)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_resume_is_bit_equal(name, tmp_path):
    """Saved as the loop saves it, with `weights_only`."""
    settings = config(name=name, warmup_steps=2)

    def build(groups):
        optimizer = build_optimizer(groups, settings)
        return optimizer, build_schedule(optimizer, settings, 10)

    straight = two_groups()
    optimizer, schedule = build(straight)
    everything = [p for group in straight.values() for p in group]
    run(optimizer, schedule, everything, 4)
    saved = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save({**saved, "parameters": everything}, tmp_path / "state.pt")
    run_on = [torch.cos(p.detach()) for p in everything]
    for parameter, gradient in zip(everything, run_on, strict=True):
        parameter.grad = gradient
    optimizer.step()
    schedule.step()

    resumed = two_groups()
    optimizer_2, schedule_2 = build(resumed)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    optimizer_2.load_state_dict(state["optimizer"])
    schedule_2.load_state_dict(state["schedule"])
    others = [p for group in resumed.values() for p in group]
    for parameter, value, gradient in zip(others, state["parameters"], run_on, strict=True):
        parameter.data.copy_(value)
        parameter.grad = gradient.clone()
    optimizer_2.step()
    schedule_2.step()
    assert all(torch.equal(a, b) for a, b in zip(everything, others, strict=True))
    assert describe_groups(optimizer) == describe_groups(optimizer_2)


@pytest.mark.parametrize(("name", "plain"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_same_steps_as_the_plain_optimizer(name, plain):
    settings = config(name=name, schedule="constant")
    ours, theirs = two_groups(), two_groups()
    optimizer = build_optimizer(ours, settings)
    options = {"momentum": 0.9} if name == "sgd" else {}
    reference = plain(
        [{"params": theirs[key], "lr": settings.lr[key]} for key in theirs], weight_decay=1e-4, fused=False, **options
    )
    for step in range(5):
        for groups in (ours, theirs):
            for parameter in (p for group in groups.values() for p in group):
                parameter.grad = torch.sin(parameter.detach() + step)
        optimizer.step()
        reference.step()
    for a, b in zip(ours.values(), theirs.values(), strict=True):
        assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a, b, strict=True))
    assert not torch.allclose(ours["head"][0], two_groups()["head"][0])


def test_only_kernels_decay_when_asked_for():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(2, 3, 1, bias=True), nn.BatchNorm3d(3), nn.Flatten(), nn.Linear(3, 2))
    groups = {"main": list(net.parameters())}
    sparse = build_optimizer(groups, config(lr={"main": 0.5}, weight_decay=0.1, decay="kernels", momentum=0.0))
    assert [(row.name, row.tensors) for row in describe_groups(sparse)] == [("main", 2), ("main/1d", 4)]
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sparse.step()
    for old, new in zip(before, net.parameters(), strict=True):
        # L2 is coupled: without a gradient a step multiplies by 1 - lr·wd.
        torch.testing.assert_close(new, old * 0.95 if new.dim() > 1 else old)
    schedule = build_schedule(sparse, config(lr={"main": 0.5}, warmup_steps=2), 10)
    assert {group["lr"] for group in sparse.param_groups} == {0.25}
    sparse.step()
    schedule.step()
    assert {group["lr"] for group in sparse.param_groups} == {0.5}
    # Control: by default everything decays.
    dense = build_optimizer(groups, config(lr={"main": 0.5}, weight_decay=0.1))
    assert [group["weight_decay"] for group in dense.param_groups] == [0.1]


class Classifier(System):
    """Convolution, norm, ReZero scalar, hidden layer and a classifier whose kernel shall not decay."""

    def __init__(self, spare: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3)
        self.alpha = nn.Parameter(torch.tensor(1.0))
        self.hidden, self.classifier = nn.Linear(3, 4), nn.Linear(4, 2)
        self.spare = spare

    def undecayed(self):
        return [self.classifier.weight] if self.spare else ()


@pytest.mark.parametrize(
    ("decay", "spare", "expected"),
    [
        ("kernels", True, {"conv.weight", "hidden.weight"}),
        ("kernels", False, {"conv.weight", "hidden.weight", "classifier.weight"}),
        ("all", True, {name for name, _ in Classifier(False).named_parameters()} - {"classifier.weight"}),
        ("all", False, {name for name, _ in Classifier(False).named_parameters()}),
    ],
)
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw"])
def test_what_the_system_spares_does_not_decay(name, decay, spare, expected):
    system = Classifier(spare)
    settings = config(name=name, lr={"main": 0.5}, weight_decay=0.1, decay=decay)
    optimizer = system.optimizers(settings)["main"]
    before = {key: value.detach().clone() + 1 for key, value in system.named_parameters()}  # nothing starts at zero
    for key, parameter in system.named_parameters():
        parameter.data.copy_(before[key])
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {key for key, value in system.named_parameters() if not torch.equal(value, before[key])}
    assert moved == expected
    assert sum(row.tensors for row in describe_groups(optimizer)) == len(before)
    names = [row.name for row in describe_groups(optimizer)]
    assert names == ["main", *(["main/1d"] if decay == "kernels" else []), *(["main/undecayed"] if spare else [])]


def test_spared_parameters_are_frozen_or_in_a_group():
    groups = two_groups()
    stranger = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"undecayed parameter of shape .2, 2. is in no parameter group"):
        build_optimizer(groups, config(), [stranger])
    frozen = build_optimizer(groups, config(), [stranger.requires_grad_(False)])
    assert [row.name for row in describe_groups(frozen)] == ["body", "head"]
    # One that has a single axis is left out once, not twice.
    optimizer = build_optimizer(groups, config(decay="kernels"), groups["head"])
    assert [tuple(row) for row in describe_groups(optimizer)] == [
        ("body", 0.1, 1, 12), ("body/1d", 0.1, 1, 3), ("head/1d", 1.0, 1, 2), ("head/undecayed", 1.0, 1, 6),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_parameters_may_get_their_first_gradients_in_different_steps(name):
    early, late = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    settings = config(name=name, lr={"main": 0.1})
    optimizer = build_optimizer({"main": [early, late]}, settings, unused=True)
    early.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(late, torch.ones(2, 2))
    first = early.detach().clone()
    late.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(late, first)
    if name == "sgd":  # Control: torch's fused kernel needs them all at once.
        fused = build_optimizer({"main": [early, late]}, settings)
        late.grad = None
        fused.step()
        late.grad = torch.ones(2, 2)
        with pytest.raises(TypeError):
            fused.step()


def test_nesterov_is_torchs_own():
    for nesterov in (False, True):
        optimizer = build_optimizer(two_groups(), config(nesterov=nesterov))
        assert [group["nesterov"] for group in optimizer.param_groups] == [nesterov] * 2


def test_each_gradient_is_clipped_by_itself():
    """Keras' `clipnorm`: g·limit / max(|g|, limit), worked out by hand."""
    gradients = [torch.tensor([[3.0, 4.0]]), torch.tensor([0.3, -0.4]), torch.tensor(-2.0), torch.zeros(3)]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    without = nn.Parameter(torch.ones(2))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = clip_each(iter([*parameters, without]), 1.0)
    expected = [torch.tensor([[0.6, 0.8]]), gradients[1], torch.tensor(-1.0), gradients[3]]
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, value)
    assert without.grad is None
    assert norm.item() == pytest.approx((25 + 0.25 + 4) ** 0.5)
    assert clip_each([without], 1.0).item() == 0
    # Control: one norm for all makes the small gradients smaller, too.
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    assert nn.utils.clip_grad_norm_(parameters, 1.0).item() == pytest.approx(norm.item())
    assert parameters[1].grad.norm() < 0.1


def test_a_gradient_that_is_not_finite_stays_so():
    """The loop finds a diverged run by its loss; clipping must not hide it."""
    for value in (math.nan, math.inf):
        parameter, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        parameter.grad, other.grad = torch.tensor([value, 1.0]), torch.tensor([0.1, 0.1])
        assert not clip_each([parameter, other], 1.0).isfinite()
        assert not parameter.grad.isfinite().all()
        assert torch.equal(other.grad, torch.tensor([0.1, 0.1]))
