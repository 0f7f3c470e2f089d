"""The policy: sizes, recurrence in chunks, causality, independence of batch-mates."""

from itertools import pairwise

import pytest
import torch

from training.adamml.config import AdaMMLConfig
from training.adamml.policy import JointPolicy, PolicyState
from training.adamml.presets import paper_config
from training.core.cost import count_params

S = 6


def config_of(modalities=("rgb", "audio"), proxy="none", **changes):
    """Tiny networks; 4 frames of 16 pixels, of which the policy sees 2 of 8 pixels."""
    net = {"name": "tiny_glance", "options": {"channels": (4, 6)}, "weights": None, "norms": "batch"}
    values = paper_config(modalities, proxy=proxy)
    sizes = {"size": 16, "num_frames": 4, "policy_frames": 2, "policy_size": 8, "joint": 12, "hidden": 7}
    nets = {key: dict.fromkeys(values[key], net) for key in ("nets", "policy_nets")}
    return AdaMMLConfig(**{**values, **sizes, **nets, **changes})


def policy_of(*args, **changes):
    torch.manual_seed(0)
    return JointPolicy(config_of(*args, **changes), 3).eval()


def inputs_of(batch=3, segments=S, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"rgb": (2, 3, 8, 8), "rgbdiff": (2, 6, 8, 8), "flow": (2, 4, 8, 8), "audio": (1, 1, 8, 8)}
    return {name: torch.randn(batch, segments, *shape, generator=generator) for name, shape in shapes.items()}


# --- sizes (§4) ---------------------------------------------------------------------------------


def paper_policy(*modalities, proxy="none", **changes):
    with torch.device("meta"):
        return JointPolicy(AdaMMLConfig(**paper_config(modalities, proxy=proxy, **changes)), 6)


def test_parameters_with_two_modalities():
    policy = paper_policy("rgb", "audio")
    parts = (policy.extractors["rgb"], policy.extractors["audio"], policy.joint, policy.lstm, policy.heads)
    assert [count_params(part) for part in parts] == [2_223_872, 2_223_296, 9_441_280, 2_365_440, 1_028]
    assert count_params(policy) == 16_254_916


def test_parameters_with_three_modalities_and_a_proxy():
    policy = paper_policy("rgb", "flow", "audio", proxy="rgbdiff")
    assert list(policy.extractors) == ["rgb", "rgbdiff", "audio"]
    assert count_params(policy.extractors["rgbdiff"]) == 2_227_328
    assert count_params(policy.joint) == 12_062_720
    assert count_params(policy.lstm) == 2_367_488
    assert count_params(paper_policy("rgb", "flow").extractors["flow"]) == 2_225_888


def test_parameters_of_the_ablations():
    assert count_params(paper_policy("rgb", "audio", shared_decision=True).heads) == 514
    assert count_params(paper_policy("rgb", "audio", feed_back=False).lstm) == 2_365_440 - 4 * 256 * 4
    without = paper_policy("rgb", "audio", recurrent=False, feed_back=False)
    assert without.lstm is None
    assert count_params(without.heads) == 2 * 2 * 2049


# --- logits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"feed_back": False}, {"recurrent": False, "feed_back": False}, {"shared_decision": True}],
    ids=["full", "no feed-back", "no LSTM", "shared"],
)
class TestVariants:
    """What holds with and without recurrence, feed-back and decisions of their own."""

    def test_any_partition_equals_one_call(self, changes):
        policy = policy_of(**changes).double()
        joint = torch.randn(3, S, 12, dtype=torch.float64)
        with torch.no_grad():
            whole, last = policy.unroll(joint, None)
            for cuts in range(1 << (S - 1)):
                bounds = [0, *(i + 1 for i in range(S - 1) if cuts >> i & 1), S]
                state, pieces = None, []
                for start, end in pairwise(bounds):
                    logits, state = policy.unroll(joint[:, start:end], state)
                    pieces.append(logits)
                assert (torch.cat(pieces, 1) - whole).abs().max() < 1e-12
                assert all((a - b).abs().max() < 1e-12 for a, b in zip(state, last, strict=True) if a.numel())
        assert whole.shape == (3, S, 2, 2)
        assert torch.equal(last.logits_BK2, whole[:, -1])

    def test_later_segments_change_no_earlier_decision(self, changes):
        policy = policy_of(**changes)
        inputs, others = inputs_of(), inputs_of(seed=1)
        with torch.no_grad():
            before = policy(inputs)
            for segment in range(S):
                changed = {
                    name: torch.cat((x[:, :segment], others[name][:, segment:]), 1) for name, x in inputs.items()
                }
                after = policy(changed)
                assert torch.equal(after[:, :segment], before[:, :segment])
                assert not torch.allclose(after[:, segment], before[:, segment])

    def test_decisions_do_not_depend_on_batch_mates(self, changes):
        policy = policy_of(**changes)
        inputs, others = inputs_of(), inputs_of(seed=1)
        with torch.no_grad():
            alone = policy({name: x[1:2] for name, x in inputs.items()})
            among = policy({name: torch.cat((others[name], x[1:2])) for name, x in inputs.items()})
            assert torch.allclose(among[-1:], alone, atol=1e-6)
            assert torch.allclose(policy(inputs)[1:2], alone, atol=1e-6)
            assert not torch.allclose(among[:1], alone, atol=1e-3)

    def test_earlier_segments_matter_to_a_recurrent_policy_only(self, changes):
        policy = policy_of(**changes)
        inputs, others = inputs_of(), inputs_of(seed=1)
        changed = {name: torch.cat((others[name][:, :1], x[:, 1:]), 1) for name, x in inputs.items()}
        with torch.no_grad():
            same = torch.equal(policy(changed)[:, -1], policy(inputs)[:, -1])
        assert same == (not policy.config.recurrent)


def test_the_lstm_sees_the_raw_logits_of_the_step_before():
    """Written out: joint feature, then for each modality skip and use; zeros at the start."""
    policy = policy_of().double()
    joint = torch.randn(2, 3, 12, dtype=torch.float64)
    with torch.no_grad():
        logits, state = policy.unroll(joint, None)
        hidden = cell = torch.zeros(2, 7, dtype=torch.float64)
        previous = torch.zeros(2, 4, dtype=torch.float64)
        for step in range(3):
            hidden, cell = policy.lstm(torch.cat((joint[:, step], previous), 1), (hidden, cell))
            previous = policy.heads(hidden)
            for modality in range(2):
                skip_and_use = previous[:, 2 * modality : 2 * modality + 2]
                assert torch.allclose(logits[:, step, modality], skip_and_use)
        assert torch.allclose(state.hidden_BH, hidden)
        assert torch.allclose(state.cell_BH, cell)
        fed = state._replace(logits_BK2=state.logits_BK2 + 1)
        more = torch.randn(2, 1, 12, dtype=torch.float64)
        assert not torch.allclose(policy.unroll(more, fed)[0], policy.unroll(more, state)[0])


def test_a_shared_decision_is_one_for_all():
    with torch.no_grad():
        logits = policy_of(shared_decision=True)(inputs_of())
        assert torch.equal(logits[:, :, 0], logits[:, :, 1])
        apart = policy_of()(inputs_of())
    assert not torch.allclose(apart[:, :, 0], apart[:, :, 1])


def test_the_joint_feature_is_made_of_all_that_the_policy_sees():
    policy = policy_of(("rgb", "flow", "audio"), "rgbdiff")
    inputs = {name: x.flatten(0, 1) for name, x in inputs_of().items()}
    others = {name: x.flatten(0, 1) for name, x in inputs_of(seed=1).items()}
    with torch.no_grad():
        before = policy.features(inputs)
        assert before.shape == (3 * S, 12)
        for name in inputs:
            same = torch.equal(policy.features({**inputs, name: others[name]}), before)
            assert same == (name == "flow"), name
    for call in (policy.features, policy):
        with pytest.raises(ValueError, match=r"no input rgbdiff; it got rgb, audio"):
            call({name: inputs[name] for name in ("rgb", "audio")})


def test_logits_and_state_are_fp32_under_autocast():
    policy = policy_of()
    joint = torch.randn(2, S, 12)
    with torch.no_grad():
        expected, _ = policy.unroll(joint.bfloat16().float(), None)
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = policy.unroll(joint.bfloat16(), None)
            assert policy(inputs_of()).dtype == torch.float32
    assert {x.dtype for x in (logits, *state)} == {torch.float32}
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("recurrent", [True, False])
def test_every_parameter_gets_a_gradient(recurrent):
    policy = policy_of(recurrent=recurrent, feed_back=recurrent).train()
    policy(inputs_of()).square().mean().backward()
    assert [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_state_starts_at_zero():
    policy = policy_of()
    joint = torch.randn(2, 1, 12)
    zero = PolicyState(torch.zeros(2, 7), torch.zeros(2, 7), torch.zeros(2, 2, 2))
    with torch.no_grad():
        assert torch.equal(policy.unroll(joint, None)[0], policy.unroll(joint, zero)[0])


def test_compiles_into_one_graph():
    policy = policy_of()
    with torch.no_grad():
        compiled = torch.compile(policy, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(inputs_of(2, 2)), policy(inputs_of(2, 2)), atol=1e-6)
