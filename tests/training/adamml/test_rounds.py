"""What each half of a round trains, what it leaves alone, and the gradients of the usage price."""

import copy

import pytest
import torch

from training.adamml.config import JointConfig, WarmupConfig
from training.adamml.rounds import Joint, Warmup, usage_price
from training.adamml.system import Unimodal, classification_loss, is_correct
from training.core.config import ConfigError, FitConfig
from training.core.evaluate import Predictions
from training.core.optim import build_schedule

CLASSES = ("a", "b", "c")


def fit_config(steps=8, **changes):
    values = {
        "steps": steps,
        "seed": 0,
        "optim": {
            "name": "sgd",
            "lr": {"recognition": 0.05},
            "weight_decay": 1e-4,
            "schedule": "constant",
            "warmup_steps": 0,
        },
        "clip_grad_norm": None,
        "ema_decay": None,
        "precision": "fp32",
        "eval_every": 0,
        "keep": "last",
    }
    return FitConfig.model_validate(values | changes)


def joint_config(small_model, small_data, fit=None, model=None, **changes):
    values = {
        "model": model or small_model(),
        "data": small_data(),
        "price": 1.0,
        "weights": {"rgb": 1.0, "audio": 0.05},
        "wrong": 10.0,
        "penalty": "gated_square",
        "temperature": 5.0,
        "temperature_decay": 0.965,
        "round_steps": 2,
        "freeze_norms": True,
        "tolerance": 0.01,
        "policy_optim": {
            "name": "adam",
            "lr": {"policy": 0.01},
            "weight_decay": 1e-4,
            "schedule": "steps",
            "drop_at": [0.5],
            "drop": 0.1,
            "warmup_steps": 0,
        },
        "fit": fit or fit_config(),
    }
    return JointConfig.model_validate(values | changes)


@pytest.fixture
def batch(small_model, small_data, segments_of):
    return segments_of(small_model(), small_data(), train=True, videos=6)


def train_step(system, optimizers, batch, step, steps=8):
    system.train()
    system.on_step(step, steps)
    output = system(batch)
    output.loss.backward()
    for name in system.active:
        optimizers[name].step()
    for optimizer in optimizers.values():
        optimizer.zero_grad()
    return output


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_a_half_round_leaves_the_other_half_alone_to_the_bit(small_model, small_data, batch):
    torch.manual_seed(0)
    config = joint_config(small_model, small_data)
    system = Joint(config, CLASSES)
    optimizers = system.optimizers(config.fit.optim)
    assert set(optimizers) == {"recognition", "policy"}
    states = [copy.deepcopy(system.state_dict())]
    phases = []
    for step in range(4):
        train_step(system, optimizers, batch, step)
        phases.append(system.phase)
        if step % 2:
            states.append(copy.deepcopy(system.state_dict()))
    assert phases == ["recognition"] * 2 + ["policy"] * 2
    first, second = changed(states[0], states[1]), changed(states[1], states[2])
    assert any("running_mean" in key for key in first)
    assert any("running_mean" in key for key in second)
    assert {key.split(".")[1] for key in first - {"temperature"}} == {"nets", "fusion"}
    assert {key.split(".")[1] for key in second - {"temperature"}} == {"policy"}


def test_without_frozen_norms_the_other_halfs_statistics_move(small_model, small_data, batch):
    config = joint_config(small_model, small_data, freeze_norms=False)
    system = Joint(config, CLASSES)
    before = copy.deepcopy(system.state_dict())
    train_step(system, system.optimizers(config.fit.optim), batch, 0)
    moved = {key for key in changed(before, system.state_dict()) if key.startswith("net.policy.")}
    assert moved
    assert all("running" in key or "num_batches" in key for key in moved)


def test_temperature_is_a_function_of_the_round(small_model, small_data):
    config = joint_config(small_model, small_data, fit=fit_config(80))
    system = Joint(config, CLASSES)
    seen = []
    for step in (0, 3, 4, 40, 76, 79):
        system.on_step(step, 80)
        seen.append(system.temperature.item())
    want = [5.0, 5.0, 5 * 0.965, 5 * 0.965**10, 5 * 0.965**19, 5 * 0.965**19]
    assert seen == pytest.approx(want)
    assert pytest.approx(2.45198, abs=1e-5) == 5 * 0.965**20


def test_each_optimizer_has_its_own_schedule(small_model, small_data):
    config = joint_config(small_model, small_data)
    system = Joint(config, CLASSES)
    optimizers, settings = system.optimizers(config.fit.optim), system.optim_configs(config.fit.optim)
    schedules = {name: build_schedule(optimizers[name], settings[name], 8) for name in optimizers}
    rates = []
    for _ in range(8):
        rates.append(tuple(optimizers[name].param_groups[0]["lr"] for name in ("recognition", "policy")))
        for name, schedule in schedules.items():
            optimizers[name].step()
            schedule.step()
    assert [rate for rate, _ in rates] == [0.05] * 8
    assert [rate for _, rate in rates] == pytest.approx([0.01] * 4 + [0.001] * 4)


def policy_gradients(system, batch, wrong):
    system.config = system.config.model_copy(update={"wrong": wrong})
    system.train()
    system.on_step(2, 8)
    system.zero_grad()
    output = system(batch)
    output.loss.backward()
    return output.loss.item(), {key: p.grad.clone() for key, p in system.net.policy.named_parameters()}


def test_the_price_of_an_error_is_seen_in_the_loss_and_not_in_the_gradient(small_model, small_data, batch):
    torch.manual_seed(0)
    system = Joint(joint_config(small_model, small_data), CLASSES)
    loss_0, without = policy_gradients(system, batch, 0.0)
    loss_10, with_10 = policy_gradients(system, batch, 10.0)
    assert loss_10 > loss_0
    assert all(torch.equal(without[key], with_10[key]) for key in without)
    assert all(parameter.grad is None for parameter in system.net.nets.parameters())
    system.price_K.mul_(3)
    _, dearer = policy_gradients(system, batch, 0.0)
    assert any(not torch.equal(without[key], dearer[key]) for key in without)


def test_gradient_of_the_price_of_usage():
    used = torch.tensor([[[1.0, 0], [1, 0], [0, 1]], [[1, 1], [0, 1], [1, 1]]], requires_grad=True)
    price = torch.tensor([1.0, 0.05])
    correct = torch.tensor([1.0, 0.0])
    loss = usage_price(used, correct, price, "gated_square")
    loss.backward()
    share = used.detach()[0].mean(0)
    assert loss.item() == pytest.approx((price * share**2).sum().item() / 2)
    want = (2 * price * share / 3 / 2).expand(3, 2)
    torch.testing.assert_close(used.grad[0], want)
    assert not used.grad[1].any()
    used.grad = None
    usage_price(used, correct, price, "mean").backward()
    torch.testing.assert_close(used.grad, (price / 3 / 2).expand(2, 3, 2))


def test_fusion_weights_sum_to_one_after_any_step(small_model, small_data, batch):
    config = joint_config(small_model, small_data)
    system = Joint(config, CLASSES)
    optimizers = system.optimizers(config.fit.optim)
    start = system.net.weights().detach().clone()
    for step in range(2):
        train_step(system, optimizers, batch, step)
        assert system.net.weights().sum().item() == pytest.approx(1, abs=1e-6)
    assert not torch.equal(system.net.weights(), start)


def test_in_warm_up_the_policy_draws_about_half_and_learns_nothing(small_model, small_data, batch):
    torch.manual_seed(0)
    config = WarmupConfig(model=small_model(), data=small_data(), temperature=5.0, fit=fit_config())
    system = Warmup(config, CLASSES)
    system.freeze()
    system.train()
    before = copy.deepcopy(system.state_dict())
    optimizers = system.optimizers(config.fit.optim)
    output = system(batch)
    output.loss.backward()
    optimizers["main"].step()
    assert 0.2 < output.logs["usage_rgb"] < 0.8
    moved = changed(before, system.state_dict())
    assert moved
    assert not any(key.startswith("net.policy.") for key in moved)


def test_the_cheapest_round_that_is_accurate_enough_is_chosen(small_model, small_data):
    system = Joint(joint_config(small_model, small_data, tolerance=0.25), CLASSES)
    everything = system.cost()["fusion"].gmac

    def choice(right, right_fusion, saving):
        def scores(count):
            rows = torch.zeros(4, 3)
            rows[torch.arange(4), torch.tensor([0] * count + [1] * (4 - count))] = 1
            return rows.numpy()

        predictions = Predictions(
            key=None,
            label=torch.zeros(4, dtype=torch.int64).numpy(),
            scores=scores(right),
            arms={"fusion": scores(right_fusion)},
            extras={
                "choices": torch.ones(4, 3, 2).numpy(),
                "gmac": torch.full((4,), (1 - saving) * everything).numpy(),
            },
            classes=CLASSES,
        )
        return system.metrics(predictions)["choice"]

    good, cheap, bad, worse = choice(4, 4, 0.1), choice(3, 4, 0.5), choice(2, 4, 0.9), choice(1, 4, 0.9)
    assert cheap > good > bad > worse
    assert choice(3, 4, -0.05) > choice(2, 4, 0.99)


def test_settings_that_do_not_fit_are_named(small_model, small_data):
    for changes, message in (
        ({"round_steps": 3}, "multiple of 2"),
        ({"weights": {"rgb": 1.0}}, "one λ for each"),
        ({"fit": fit_config(eval_every=2)}, "within a round"),
    ):
        with pytest.raises(ValueError, match=message):
            joint_config(small_model, small_data, **changes)
    config = joint_config(small_model, small_data)
    wrong = config.fit.optim.model_copy(update={"lr": {"policy": 0.1}})
    with pytest.raises(ConfigError, match="named once"):
        Joint(config, CLASSES).optimizers(wrong)


def test_silent_videos_teach_the_sound_net_nothing(small_model, small_data, segments_of):
    from training.adamml.config import UnimodalConfig

    fit = fit_config(optim=fit_config().optim.model_copy(update={"lr": {"main": 0.1}}))
    config = UnimodalConfig(model=small_model(), data=small_data(), modality="audio", fit=fit)
    assert config.data.train_clips == 1
    assert config.data.pictures == "none"
    assert UnimodalConfig.model_validate(config.model_dump()) == config, "a saved config must load again"
    torch.manual_seed(0)
    system = Unimodal(config, CLASSES, None).train()
    batch = segments_of(small_model(), small_data(train_clips=1), train=True, videos=4)

    def gradient(label_of_the_silent):
        labels = batch.label_B.clone()
        labels[-1] = label_of_the_silent
        system.zero_grad()
        system(type(batch)(**(vars(batch) | {"label_B": labels}))).loss.backward()
        return system.net.head[-1].weight.grad.clone()

    assert torch.equal(gradient(0), gradient(1))
    heard = batch.label_B.clone()
    heard[0] = (heard[0] + 1) % 3
    before = gradient(0)
    system.zero_grad()
    system(type(batch)(**(vars(batch) | {"label_B": heard}))).loss.backward()
    assert not torch.equal(before, system.net.head[-1].weight.grad)


def test_several_labels_share_the_loss():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    hot = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    log = logits.log_softmax(-1)
    want = -((log[0, 0] + log[0, 2]) / 2 + log[1, 1] + log[2, 3]) / 3
    torch.testing.assert_close(classification_loss(logits, hot), want)
    torch.testing.assert_close(is_correct(torch.eye(4)[[2, 1, 0]], hot), torch.tensor([1.0, 1, 0]))
