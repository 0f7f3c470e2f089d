import math

import pytest
import torch

from training.adafocus.policy import GridPolicy, discounted_returns, normalise_returns, policy_loss
from training.adafocus.rollout import STREAM_ACTION, STREAM_BASELINE, collect
from training.layers.patches import random_origins
from training.layers.seeded import seeded_categorical


def one_frame(net, batch, step, origin):
    """Crop frame `step` by slicing and run f_L, one video at a time."""
    side = net.config.patch
    rows = [
        net.local(batch.video_BCTHW[i : i + 1, :, step, y : y + side, x : x + side])
        for i, (y, x) in enumerate(origin.tolist())
    ]
    return torch.cat(rows)


@torch.no_grad()
def sequential_rollout(net, batch, *, keep_history=True):
    """Step-by-step reference: policy and classifier advance one frame at a time, with explicit states."""
    count, _, steps = batch.video_BCTHW.shape[:3]
    maps, vectors = [], []
    for t in range(steps):
        glance = net.look(batch.video_BCTHW[:, :, t : t + 1])
        maps.append(glance.maps_BTChw[:, 0])
        vectors.append(glance.vector_BTC[:, 0])
    state, logits = None, []
    for t in range(steps):
        output, state = net.policy(maps[t][:, None], state)
        logits.append(output.logits_BTA[:, 0])
    logits = torch.stack(logits, 1)
    action = seeded_categorical(logits, batch.seed_B, stream=STREAM_ACTION)
    other = random_origins(
        (count, steps), net.config.size, net.config.patch, seed_B=batch.seed_B, stream=STREAM_BASELINE
    )
    hidden, rewards = torch.zeros(1, count, net.config.classifier_hidden), []
    for t in range(steps):
        before = hidden if keep_history else torch.zeros_like(hidden)
        confidence = []
        for origin in (net.origins(action[:, t]), other[:, t]):
            features = torch.cat((vectors[t], one_frame(net, batch, t, origin)), -1)[:, None]
            step_logits, after = net.classifier(features, before)
            confidence.append(step_logits[:, 0].softmax(-1).gather(1, batch.label_B[:, None])[:, 0])
            if len(confidence) == 1:
                hidden = after.transpose(0, 1).contiguous()
        rewards.append(confidence[0] - confidence[1])
    return logits, action, torch.stack(rewards, 1)


@pytest.mark.parametrize("keep_history", [True, False])
def test_loop_free_rollout_equals_step_by_step(new_policy, batch, keep_history):
    system = new_policy().eval()
    net = system.net
    glance = net.look(batch.video_BCTHW)
    output, _ = net.policy(glance.maps_BTChw)
    rollout = collect(net, system.policy_config, batch, glance, output.logits_BTA)
    logits, action, reward = sequential_rollout(net, batch, keep_history=keep_history)
    torch.testing.assert_close(output.logits_BTA, logits, atol=1e-5, rtol=0)
    assert torch.equal(rollout.action_BT, action)
    error = (rollout.reward_BT - reward).abs().max().item()
    if keep_history:
        assert error < 1e-5
    else:  # negative control: without the history the rewards are other ones
        assert error > 1e-4


def test_returns_equal_the_recursion():
    reward = torch.randn(3, 7, dtype=torch.float64)
    expected, total = torch.zeros_like(reward), torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(7)):
        total = reward[:, t] + 0.7 * total
        expected[:, t] = total
    torch.testing.assert_close(discounted_returns(reward, 0.7), expected)
    assert torch.equal(discounted_returns(reward, 0.0), reward)


def test_returns_are_normalised_over_all_steps_and_videos():
    normal = normalise_returns(torch.randn(16, 8) * 3 + 5)
    assert abs(normal.mean().item()) < 1e-5
    assert abs(normal.std().item() - 1) < 1e-4


def test_ratio_is_one_in_a_single_pass_and_not_in_the_second(new_policy, new_batch):
    from training.core.loop import _Context, precision_context

    batch = new_batch(8)
    system = new_policy(passes=2)
    system.train()
    optimizers = system.optimizers(system.policy_config.fit.optim)
    context = _Context(system, optimizers, system.policy_config.fit, precision_context("fp32", torch.device("cpu")))
    logs = system.update(batch, context)  # logs are those of the second pass
    assert logs["ratio_error"].item() > 1e-5
    single = new_policy(passes=1)
    single.train()
    assert single(batch).logs["ratio_error"].item() < 1e-5
    assert single(batch).logs["clip_share"].item() == 0


def test_clipping_acts_only_outside_the_range():
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    from training.adafocus.policy import PolicyOutput

    output = PolicyOutput(logits, torch.zeros(1, 2))
    action = torch.zeros(1, 2, dtype=torch.long)
    old = torch.full((1, 2), math.log(0.25) - 1.0)  # ratio e > 1.2
    terms = policy_loss(output, action, old, torch.ones(1, 2), clip=0.2, entropy_weight=0.0, value_weight=0.0)
    assert terms.clip_share.item() == 1
    terms.loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_untrained_policy_is_nearly_uniform(new_policy, new_batch):
    batch = new_batch(64)
    system = new_policy(model={"grid": 7})
    logs = system(batch).logs
    assert logs["entropy"].item() == pytest.approx(math.log(49), abs=0.05)
    glance = system.look(batch)
    output, _ = system.net.policy(glance.maps_BTChw)
    reward = collect(system.net, system.policy_config, batch, glance, output.logits_BTA.detach()).reward_BT
    error = reward.std() / math.sqrt(reward.numel())
    assert abs(reward.mean()) < 4 * error


def test_states_do_not_depend_on_actions(new_policy, batch, new_batch):
    system = new_policy().eval()
    glance = system.look(batch)
    first, _ = system.net.policy(glance.maps_BTChw)
    second, _ = system.net.policy(glance.maps_BTChw)
    assert torch.equal(first.logits_BTA, second.logits_BTA)
    # Other draws, same table; and other frames, another table.
    drawn = [seeded_categorical(first.logits_BTA.detach(), batch.seed_B + k, stream=1) for k in (0, 1)]
    assert not torch.equal(*drawn)
    other, _ = system.net.policy(system.look(new_batch(seed=9)).maps_BTChw)
    assert not torch.equal(first.logits_BTA, other.logits_BTA)


@pytest.mark.parametrize("reward", ["random", "confidence", "previous", "padding"])
def test_every_reward_gives_finite_gradients(new_policy, batch, reward):
    system = new_policy(reward=reward)
    system.train()
    system(batch).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in system.net.policy.parameters())


def test_previous_reward_telescopes_to_the_last_confidence(new_policy, batch):
    system = new_policy(reward="previous")
    glance = system.look(batch)
    output, _ = system.net.policy(glance.maps_BTChw)
    rollout = collect(system.net, system.policy_config, batch, glance, output.logits_BTA.detach())
    torch.testing.assert_close(rollout.reward_BT.sum(1), rollout.confidence_BT[:, -1])


def test_more_baseline_draws_keep_the_first(new_policy, batch):
    """The reward with two draws is the mean of two baselines, of which one draw uses the first."""
    one, two = new_policy(baseline_draws=1), new_policy(baseline_draws=2)
    rewards = []
    for system in (one, two):
        glance = system.look(batch)
        output, _ = system.net.policy(glance.maps_BTChw)
        rewards.append(collect(system.net, system.policy_config, batch, glance, output.logits_BTA.detach()).reward_BT)
    assert not torch.equal(*rewards)
    assert (rewards[0] - rewards[1]).abs().max() < 1


def test_policy_parameters_of_the_paper():
    policy = GridPolicy(1280, 49, 32, 1024, 49)
    assert sum(p.numel() for p in policy.parameters()) == pytest.approx(8.00e6, rel=2e-3)
