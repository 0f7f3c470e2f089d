"""Fusion, decisions and inference that skips: what is not chosen is not computed, and nothing else changes."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.adamml.cost import segment_gmac
from training.adamml.model import AdaMML, rows_of

CLASSES = 5


@pytest.fixture
def net(small_model):
    torch.manual_seed(0)
    model = AdaMML(small_model("rgb", "audio"), CLASSES, stack=1).eval()
    shake(model)
    return model


def shake(model):
    """Random norms and fusion weights, and a policy that sometimes says yes and sometimes no."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    for parameter in model.policy.parameters():
        parameter.data.mul_(3)
    model.fusion.data.fill_(0.7)


@pytest.fixture
def batch(small_model, small_data, segments_of):
    return segments_of(small_model(), small_data(), videos=6, classes=CLASSES)


def available_of(batch):
    return torch.stack([batch.available["rgb"], batch.available["audio"]], dim=2)


def quantile(net, batch, share):
    """A threshold that this share of the probabilities of use lies below: the policy is untrained."""
    with torch.no_grad():
        logits = net(batch.inputs, available_of(batch)).logits_BSK2
    return torch.sigmoid(logits[..., 1] - logits[..., 0]).quantile(share).item()


def mixed(available):
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(available.shape, generator=generator) < 0.5) & available


def test_everything_used_is_the_weighted_fusion_of_segment_means(net, batch):
    with torch.no_grad():
        scores = net.segment_scores(batch.inputs)
        fused = net.fuse(scores, torch.ones(scores.shape[:3]))
        weights = net.weights()
        want = sum(weights[k] * scores[:, :, k].mean(1) for k in range(2))
    torch.testing.assert_close(fused, want)
    assert weights.sum() == 1


def test_nothing_used_gives_zero_scores_and_a_loss_of_ln_c(net, batch):
    available = available_of(batch)
    with torch.no_grad():
        total, rows = net.recognise(rows_of(batch.inputs), torch.zeros_like(available))
    assert rows == (0, 0)
    assert not total.any()
    loss = torch.nn.functional.cross_entropy(total.mean(1), batch.label_B)
    assert loss.item() == pytest.approx(math.log(CLASSES))


def test_one_decision_more_adds_its_weighted_score_over_s(net, batch):
    available = available_of(batch)
    used = mixed(available)
    used[0, 1, 0] = False
    more = used.clone()
    more[0, 1, 0] = True
    with torch.no_grad():
        scores = net.segment_scores(batch.inputs)
        difference = net.fuse(scores, more.float()) - net.fuse(scores, used.float())
        want = net.weights()[0] * scores[0, 1, 0] / 3
    torch.testing.assert_close(difference[0], want)
    assert not difference[1:].any()


@pytest.mark.parametrize("kind", ["mixed", "all", "none", "no_rgb", "no_audio", "one"])
@pytest.mark.parametrize("mean", ["segments", "used"])
def test_skipping_equals_the_masked_dense_output(small_model, batch, kind, mean):
    torch.manual_seed(0)
    net = AdaMML(small_model(mean=mean), CLASSES, stack=1).eval()
    shake(net)
    available = available_of(batch)
    used = {"mixed": mixed(available), "all": available.clone(), "none": torch.zeros_like(available)}.get(kind)
    if used is None:
        used = mixed(available)
        if kind == "one":
            used[:] = False
            used[2, 0, 1] = True
        else:
            used[..., 0 if kind == "no_rgb" else 1] = False
    from training.adamml.model import Decision

    seen: dict[str, int] = {}
    hooks = [
        each.register_forward_hook(lambda m, i, o, name=name: seen.update({name: len(i[0])}))
        for name, each in net.nets.items()
    ]
    with torch.no_grad():
        answer = net.answer(rows_of(batch.inputs), Decision(torch.zeros(*used.shape, 2), used))
        calls = dict(seen)
        dense = net.fuse(net.segment_scores(batch.inputs), used.float())
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(answer.score_BC, dense, atol=1e-5, rtol=1e-5)
    counts = {name: int(used[..., k].sum()) for k, name in enumerate(("rgb", "audio"))}
    assert answer.rows == tuple(counts.values())
    assert calls == {name: count for name, count in counts.items() if count}, "a net ran on other rows, or without any"
    if kind == "mixed":
        wrong = net.fuse(net.segment_scores(batch.inputs), (~used).float())
        assert (answer.score_BC - wrong).abs().max() > 1e-3


def test_executed_macs_are_what_the_decisions_say(small_model, small_data, net, batch):
    """Cost honesty: counted around one real inference, by torch's own counter."""
    each = segment_gmac(net.config, 1, CLASSES, small_data().sound.samples, "measured")
    counted = {}
    middle = quantile(net, batch, 0.5)
    segments = 3 * len(batch.key)
    for threshold in (1e-9, quantile(net, batch, 0.3), middle, 1 - 1e-9):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            answer = net(batch.inputs, available_of(batch), "threshold", threshold=threshold)
        want = segments * each["policy"] + sum(n * each[k] for n, k in zip(answer.rows, ("rgb", "audio"), strict=True))
        assert counter.get_total_flops() / 2 == pytest.approx(want * 1e9, rel=1e-12)
        counted[threshold] = counter.get_total_flops()
    assert counted[1e-9] > counted[middle] > counted[1 - 1e-9] == pytest.approx(2e9 * segments * each["policy"])


def test_what_a_video_lacks_is_never_used(net, batch):
    with torch.no_grad():
        answer = net(batch.inputs, available_of(batch), "threshold", threshold=1e-9)
    assert not answer.used_BSK[-1, :, 1].any()
    assert answer.used_BSK[:-1].all()
    assert answer.used_BSK[-1, :, 0].all()
    assert answer.rows == (18, 15)
    sampled = net(batch.inputs, available_of(batch), "sample", seed_B=batch.seed_B)
    assert not sampled.used_BSK[-1, :, 1].any()


def test_sampled_decisions_follow_the_probabilities_and_the_seeds(net, batch):
    logits = torch.tensor([0.0, 0.8]).expand(2000, 3, 2, 2)
    available = torch.ones(2000, 3, 2, dtype=torch.bool)
    seeds = torch.arange(2000)
    used = net.decision(logits, available, "sample", seed_B=seeds).used_BSK
    assert used.float().mean().item() == pytest.approx(torch.sigmoid(torch.tensor(0.8)).item(), abs=0.02)
    assert torch.equal(used, net.decision(logits, available, "sample", seed_B=seeds).used_BSK)
    assert not torch.equal(used, net.decision(logits, available, "sample", seed_B=seeds, stream=1).used_BSK)
    assert torch.equal(used[7:8], net.decision(logits[7:8], available[7:8], "sample", seed_B=seeds[7:8]).used_BSK)


def test_the_surest_modality_is_used_where_all_would_be_skipped(small_model, batch):
    torch.manual_seed(0)
    net = AdaMML(small_model(least_one=True), CLASSES, stack=1).eval()
    logits = torch.zeros(6, 3, 2, 2)
    logits[..., 0] = 5
    logits[:, 1, 1, 0] = 4  # the least unlikely one, but the last video has no sound
    logits[-1, 2, 0, 0] = 4.5
    used = net.decision(logits, available_of(batch), "argmax").used_BSK
    assert used.sum((1, 2)).tolist() == [1] * 6
    assert used[:-1, 1, 1].all()
    assert used[-1, 2, 0]
    logits[0, 0, 0] = torch.tensor([0.0, 1.0])
    again = net.decision(logits, available_of(batch), "argmax").used_BSK
    assert again[0].sum() == 1
    assert again[0, 0, 0]
    with pytest.raises(ValueError, match="online"):
        net.step(batch.inputs, available_of(batch))


def test_scores_divided_by_what_was_used_do_not_shrink_with_skipping(small_model, batch):
    torch.manual_seed(0)
    net = AdaMML(small_model(mean="used"), CLASSES, stack=1).eval()
    scores = torch.ones(1, 3, 2, CLASSES)
    few, all_ = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    few[0, 0, 0] = 1
    torch.testing.assert_close(net.fuse(scores, few), net.fuse(scores, all_))
    assert torch.isfinite(net.fuse(scores, torch.zeros(1, 3, 2))).all()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1), (1, 2), (3,)])
def test_online_equals_offline(net, batch, sizes):
    available = available_of(batch)
    with torch.no_grad():
        middle = quantile(net, batch, 0.5)
        whole = net(batch.inputs, available, "threshold", threshold=middle)
        state, start, used = None, 0, []
        for size in sizes:
            part = {name: value[:, start : start + size] for name, value in batch.inputs.items()}
            answer, state = net.step(part, available[:, start : start + size], state, "threshold", threshold=middle)
            used.append(answer.used_BSK)
            start += size
    torch.testing.assert_close(answer.score_BC, whole.score_BC, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.cat(used, 1), whole.used_BSK)
    assert 0 < whole.used_BSK.sum() < whole.used_BSK.numel()


def test_later_segments_and_batch_mates_change_no_decision(net, batch):
    available = available_of(batch)
    other = {name: value.clone() for name, value in batch.inputs.items()}
    for value in other.values():
        value[:, 2] += torch.randn(value[:, 2].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = net(batch.inputs, available), net(other, available)
        alone = net(batch.row(1).inputs, available[1:2])
    torch.testing.assert_close(first.logits_BSK2[:, :2], second.logits_BSK2[:, :2], atol=1e-6, rtol=1e-6)
    assert (first.logits_BSK2[:, 2] - second.logits_BSK2[:, 2]).abs().max() > 1e-3
    torch.testing.assert_close(alone.logits_BSK2[0], first.logits_BSK2[1], atol=1e-5, rtol=1e-5)
