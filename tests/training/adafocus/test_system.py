import hashlib

import pytest
import torch

from training.adafocus import STAGES
from training.adafocus.config import AdaFocusConfig, PretrainConfig
from training.adafocus.model import AdaFocus
from training.adafocus.system import STREAM_EVAL_PATCH, FrameClassifier, Warmup, steps_loss
from training.core.config import ConfigError
from training.core.cost import cost_of
from training.core.weights import WeightError, load_weights


@pytest.mark.parametrize(("patch", "gmac"), [(96, 17.18), (128, 26.52), (160, 38.53), (192, 53.21)])
def test_cost_per_video_of_the_paper(patch, gmac):
    row = cost_of("adafocus_v1", {"patch": str(patch)})
    assert row.gmac == pytest.approx(gmac, abs=0.005)
    assert row.per == "video"
    assert row.as_dict()["gflop"] == pytest.approx(2 * row.gmac)


def test_cost_of_unusable_settings_is_refused():
    with pytest.raises(ConfigError, match="patch"):
        cost_of("adafocus_v1", {"patch": "256"})
    with pytest.raises(ValueError, match="pach"):
        cost_of("adafocus_v1", {"pach": "96"})


def test_offline_equals_online(model_config, batch):
    torch.manual_seed(0)
    net = AdaFocus(model_config, 3).eval()
    with torch.no_grad():
        logits, origins = net(batch.video_BCTHW)
        state = None
        for t in range(model_config.num_frames):
            step_logits, origin, state = net.step(batch.video_BCTHW[:, :, t], state)
            torch.testing.assert_close(step_logits, logits[:, t], atol=1e-4, rtol=0)
            assert torch.equal(origin, origins[:, t])
        forgetful, _, _ = net.step(batch.video_BCTHW[:, :, -1], None)
    assert (forgetful - logits[:, -1]).abs().max() > 1e-4  # negative control: a lost state changes the result


def test_patch_is_a_slice_of_the_same_frames_that_the_glance_saw(model_config, batch):
    net = AdaFocus(model_config, 3).eval()
    origins = torch.tensor([[[3, 7]]]).expand(5, 4, 2)
    with torch.no_grad():
        features = net.patch_features(batch.video_BCTHW, origins)
        side = model_config.patch
        sliced = batch.video_BCTHW[2:3, :, 1, 3 : 3 + side, 7 : 7 + side]
        torch.testing.assert_close(features[2, 1], net.local(sliced)[0], atol=1e-5, rtol=1e-5)


def gradients(system, batch):
    system.train()
    system(batch).loss.backward()
    return {name for name, p in system.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def parts_of(names):
    return {name.split(".")[1] if name.startswith("net.") else name.split(".")[0] for name in names}


def test_gradients_of_stage_one(model_config, batch, new_policy):
    config = new_policy().policy_config
    system = Warmup(config.model, config.data, ("one", "two", "three"))
    system.freeze()
    assert parts_of(gradients(system, batch)) == {"local", "classifier"}


def test_gradients_of_stage_two(new_policy, batch):
    assert parts_of(gradients(new_policy(), batch)) == {"policy"}


@pytest.mark.parametrize("train", ["classifier", "local_and_classifier"])
def test_gradients_of_stage_three(new_finetune, batch, train):
    fit = {
        "steps": 1,
        "seed": 0,
        "optim": {
            "name": "sgd",
            "lr": {"classifier": 0.1},
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup_steps": 0,
        },
        "clip_grad_norm": None,
        "ema_decay": None,
        "precision": "fp32",
        "eval_every": 0,
        "keep": "last",
    }
    system = new_finetune(train=train, fit=fit)
    expected = {"classifier", "others"} | ({"local"} if train == "local_and_classifier" else set())
    assert parts_of(gradients(system, batch)) == expected
    names = set(system.parameter_groups())
    assert names == ({"classifier", "local"} if train == "local_and_classifier" else {"classifier"})


def test_frozen_batch_norms_do_not_move(new_policy, batch):
    system = new_policy()
    before = {k: v.clone() for k, v in system.state_dict().items() if "running" in k}
    system.train()
    system(batch)
    after = system.state_dict()
    assert before
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_arms_start_equal_and_learn_apart(new_finetune, batch):
    """An arm's gradient is that of its own loss, whatever other arms are there: equal budgets."""
    full, alone = new_finetune(), new_finetune(arms=("policy",))
    alone.net.load_state_dict(full.net.state_dict())
    for arm in full.others.values():
        arm.classifier.load_state_dict(full.net.classifier.state_dict())
    for system in (full, alone):
        system.train()
        for module in system.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        system(batch).loss.backward()
    for (name, a), (_, b) in zip(full.net.named_parameters(), alone.net.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_random_arm_is_a_function_of_the_clip_and_not_of_its_batch(new_finetune, batch, new_batch):
    system = new_finetune().eval()
    glance = system.look(batch)
    together = system.arm_origins("random", batch, glance, STREAM_EVAL_PATCH)
    assert torch.equal(together, system.arm_origins("random", batch, glance, STREAM_EVAL_PATCH))
    assert not torch.equal(together, system.arm_origins("random", batch, glance, STREAM_EVAL_PATCH + 1))
    for arm in ("random", "center", "gaussian", "policy"):
        origins = system.arm_origins(arm, batch, glance, STREAM_EVAL_PATCH)
        assert origins.min() >= 0
        assert origins.max() <= system.net.config.size - system.net.config.patch


def test_loss_is_the_mean_over_steps_and_clips():
    logits, label = torch.randn(3, 4, 5), torch.tensor([0, 1, 2])
    expected = torch.stack([torch.nn.functional.cross_entropy(logits[:, t], label) for t in range(4)]).mean()
    torch.testing.assert_close(steps_loss(logits, label), expected)


def test_upstream_of_another_architecture_is_refused(model_config):
    other = AdaFocusConfig(**{**model_config.model_dump(), "classifier_hidden": 8})
    net, source = AdaFocus(model_config, 3), AdaFocus(other, 3)
    with pytest.raises(WeightError, match=r"classifier\.gru"):
        load_weights(net, dict(source.state_dict()))


def test_every_optimizer_group_has_its_rate(new_finetune):
    system = new_finetune()
    config = system_config_optim()
    rates = {group["name"]: group["lr"] for group in system.optimizers(config)["main"].param_groups}
    assert rates == {"local": 0.01, "classifier": 0.02}
    trained = sum(p.numel() for p in system.parameters() if p.requires_grad)
    grouped = sum(p.numel() for g in system.optimizers(config)["main"].param_groups for p in g["params"])
    assert grouped == trained  # the public code's stage I trained 9,408 of 24 M weights (spec pitfall A1)


def system_config_optim():
    from training.core.config import OptimConfig

    return OptimConfig(
        name="sgd",
        lr={"local": 0.01, "classifier": 0.02},
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
    )


def test_stage_names():
    assert [stage.name for stage in STAGES] == [
        "adafocus_pretrain",
        "adafocus_warmup",
        "adafocus_policy",
        "adafocus_finetune",
        "adafocus_eval",
    ]


@pytest.mark.parametrize("norms", ["batch", "fixed"])
def test_fixed_norms_keep_their_statistics_and_still_learn(new_finetune, batch, norms, tiny):
    model = tiny["adafocus_model"]
    system = new_finetune(model={**model, "local": {**model["local"], "norms": norms}})
    before = {name: value.clone() for name, value in system.state_dict().items()}
    optimizer = system.optimizers(system_config_optim())["main"]
    system.train()
    system(batch).loss.backward()
    optimizer.step()
    after = system.state_dict()
    for prefix in ("net.local", "others.random.local"):
        statistics = [name for name in before if name.startswith(prefix) and name.endswith("running_mean")]
        assert statistics
        for name in statistics:
            assert torch.equal(before[name], after[name]) == (norms == "fixed"), name
            scale = name.replace("running_mean", "weight")
            assert not torch.equal(before[scale], after[scale]), scale
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("net.glance"))


def test_published_weights_start_a_net_and_another_file_is_refused(tmp_path, tiny):
    def new(weights, root=tmp_path):
        model = {**tiny["adafocus_model"], "glance": {**tiny["adafocus_model"]["glance"], "weights": weights}}
        config = PretrainConfig(net="glance", data=tiny["adafocus_data"], model=model, **tiny["adafocus_pretrain"])
        return FrameClassifier(config, ("a", "b"), root)

    torch.manual_seed(5)
    source = new(None)
    path = tmp_path / "weights" / "net.pth"
    path.parent.mkdir()
    torch.save({"state_dict": {**source.backbone.state_dict(), "fc.weight": torch.ones(2, 2)}}, path)
    named = {"path": "weights/net.pth", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    torch.manual_seed(6)
    started = new(named)
    torch.manual_seed(6)
    saved_weights_follow = new(named, root=None)
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(started.backbone.state_dict()[name], value), name
    assert not torch.equal(
        next(saved_weights_follow.backbone.parameters()), next(source.backbone.parameters())
    )  # negative control
    with pytest.raises(WeightError, match=named["sha256"]):
        new({**named, "sha256": "0" * 64})
    with pytest.raises(WeightError, match="no such weight file"):
        new({**named, "path": "weights/other.pth"})
