"""The network: whole clips and streams, against plain formulas, and what must not change an answer."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.backbones import build_backbone
from training.backbones.movinet import COUNT, HEAD, MoViNet, StreamStep
from training.backbones.movinet_layers import Bottleneck, Skip, activate, gate_value
from training.backbones.movinet_layout import BASE, STREAM, Place, Variant, architecture
from training.layers.streaming import join, select

TINY = architecture(
    {
        "stem": 8,
        "blocks": [
            {"width": 8, "stride": 2, "layers": "1x5x5:16"},
            {"width": 16, "stride": 2, "layers": "3x3x3:24 5x3x3:32/no-gate"},
            {"width": 24, "stride": 1, "layers": "5x3x3:32 1x3x3:24"},
        ],
        "project": 32,
        "head": 40,
    }
)
VARIANTS = {
    "stream": STREAM,
    "positional": Variant(True, "2plus1d", "2plus3d", "hard_swish", "hard_sigmoid", "silu", positional=True),
    "keras-gate": Variant(True, "2plus1d", "2plus3d", "hard_swish", "hard_sigmoid_keras", "hard_swish"),
    "3d": Variant(True, "3d", "2plus3d", "silu", "sigmoid", "silu"),
    "3d-positional": Variant(True, "3d", "2plus3d", "silu", "sigmoid", "silu", positional=True),
    "squeeze-3d": Variant(True, "3d", "3d", "silu", "sigmoid", "silu"),
    "squeeze-2d": Variant(True, "2plus1d", "2d", "silu", "hard_sigmoid", "silu"),
    "no-squeeze": Variant(True, "2plus1d", "none", "hard_swish", "sigmoid", "silu"),
}


def draw(net, seed=0, alpha=0.5):
    """Give every parameter and statistic a value of its own. New nets have ReZero and positions at 0: equalities of
    streams then hold without temporal convolutions, gates or states taking part."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if name.endswith((".scale", ".position")):
            value.fill_(alpha)
        if value.dim() == 0:
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var") or (value.dim() == 1 and name.endswith("norm.weight")):
            value.copy_(noise.abs() * 0.3 + 0.7)
        elif value.dim() == 1:
            value.copy_(noise * 0.3)
        else:
            value.copy_(noise * (2 / value[0].numel()) ** 0.5)
    return net.eval().requires_grad_(False)


@functools.cache
def make(name, dtype=torch.float64, alpha=0.5, layout=TINY):
    variant = BASE if name == "base" else VARIANTS[name]
    return draw(MoViNet(layout, variant, num_classes=5), alpha=alpha).to(dtype)


def video(frames, size=(33, 36), batch=2, dtype=torch.float64, seed=3):
    shape = (batch, 3, frames, *size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(ours, expected):
    return float((ours - expected).abs().max() / expected.abs().max())


def run(net, clip, cuts, change=None, **options):
    """Stream a video in pieces; return the running answers of all frames, and the last state."""
    state = net.initial_state(clip.shape[0], tuple(clip.shape[-2:]), **options)
    answers, start = [], 0
    for count in cuts:
        logits, state = net.stream(clip[:, :, start : start + count], state, "running")
        answers.append(logits)
        start += count
        if change is not None:
            state = change(state)
    assert start == clip.shape[2]
    return torch.cat(answers, 1), state


# --- streams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=4, deadline=None)
@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=6), data=st.data())
def test_any_partition_gives_the_answers_of_the_whole(name, cuts, data):
    net = make(name)
    clip = video(sum(cuts), data.draw(st.sampled_from([(32, 32), (33, 35), (36, 47)])))
    ours, state = run(net, clip, cuts)
    whole, last = run(net, clip, [sum(cuts)])
    assert relative(ours, whole) < 1e-12
    assert relative(ours[:, -1], net(clip)) < 1e-12
    end = data.draw(st.integers(1, sum(cuts)))  # and what a clip that ends there gives
    assert relative(whole[:, end - 1], net(clip[:, :, :end])) < 1e-12
    assert list(state) == list(last)
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, last[key], rtol=1e-12, atol=1e-12)
        assert tensor.dtype == (torch.int64 if key == COUNT else torch.float64)


@pytest.mark.parametrize("name", VARIANTS)
def test_partitions_in_single_precision(name):
    net, clip = make(name, torch.float32), video(13, dtype=torch.float32)
    whole = net(clip)
    for cuts in ([1] * 13, [5, 8], [2, 3, 1, 4, 3], [12, 1]):
        assert relative(run(net, clip, cuts)[0][:, -1], whole) < 1e-5


@pytest.mark.parametrize("window", [1, 3, 50])
def test_partitions_with_a_window(window):
    net, clip = make("stream"), video(11)
    whole, _ = run(net, clip, [11], window=window)
    for cuts in ([1] * 11, [4, 1, 6]):
        assert relative(run(net, clip, cuts, window=window)[0], whole) < 1e-12
    unlimited, _ = run(net, clip, [11])
    assert relative(whole[:, :window], unlimited[:, :window]) < 1e-12
    assert (relative(whole, unlimited) < 1e-12) == (window == 50)


def test_released_architecture_in_pieces():
    net, clip = make("positional", torch.float64, 0.5, architecture("a0").scaled(0.125)), video(6, (40, 48), 1)
    assert relative(run(net, clip, [1, 3, 2])[0][:, -1], net(clip)) < 1e-12


@pytest.mark.parametrize("name", VARIANTS)
def test_later_frames_change_no_earlier_answer(name):
    net, clip = make(name, torch.float32), video(9, dtype=torch.float32)
    other = torch.cat([clip[:, :, :6], video(3, dtype=torch.float32, seed=9)], dim=2)
    first, second = (run(net, one, [9])[0] for one in (clip, other))
    assert torch.equal(first[:, :6], second[:, :6])
    assert not torch.equal(first[:, 6], second[:, 6])


def test_later_frames_change_the_base_nets_first_frames():
    net, clip = make("base"), video(9)
    other = torch.cat([clip[:, :, :6], video(3, seed=9)], dim=2)
    assert not torch.equal(net.answers(clip, "frame")[0][:, 5], net.answers(other, "frame")[0][:, 5])


def forget(ending):
    return lambda state: {
        name: torch.zeros_like(tensor) if name.endswith(ending) else tensor for name, tensor in state.items()
    }


@pytest.mark.parametrize(("name", "ending", "alone"), [
    ("stream", ".conv", False), ("3d", ".conv", False), ("no-squeeze", ".conv", False),
    ("stream", "blocks.1.0.conv", False), ("3d", "blocks.2.0.conv", False),
    ("stream", ".pool", False), ("3d", "blocks.2.1.pool", False), ("squeeze-3d", "blocks.0.0.pool", False),
    ("positional", COUNT, True), ("stream", COUNT, True), ("stream", HEAD, True),
])  # fmt: skip
def test_forgetting_a_part_of_the_state_is_seen(name, ending, alone):
    net, clip = make(name), video(7)
    whole = net(clip)
    for cuts in ([1] * 7, [3, 4]):
        right, wrong = (run(net, clip, cuts, change)[0][:, -1] for change in (None, forget(ending)))
        assert relative(right, whole) < 1e-12
        assert relative(wrong, whole) > 1e-6
    # With ReZero at 0, as in new nets, nothing of a layer's state could be missed: such a test shows nothing.
    idle = make(name, torch.float64, 0.0)
    wrong = run(idle, clip, [3, 4], forget(ending))[0][:, -1]
    assert (relative(wrong, idle(clip)) > 1e-6) == alone


def test_frame_numbers_count_for_the_positions_alone():
    """A still picture, and sums that say so: every mean is the same at every age."""
    images = torch.rand(1, 16, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in ("stream", "positional"):
        gate = make(name).blocks[0][0].gate
        outputs = [
            gate(images, 1, torch.tensor([age]), "k", {"k": age * images.mean((2, 3))}, None) for age in (0, 1, 37)
        ]
        for output in outputs[1:]:
            assert (relative(output, outputs[0]) > 1e-6) == (name == "positional")
    assert relative(make("positional")(video(7)), make("stream")(video(7))) > 1e-6  # the same weights otherwise


def test_streams_of_different_ages_in_one_batch():
    net, size = make("positional"), (32, 34)
    clips = [video(10, size, 1, seed=seed) for seed in range(3)]
    alone = [run(net, clip, [1] * 10)[0][0] for clip in clips]
    new = functools.partial(net.initial_state, 1, size)
    running, state, seen = [0], new(), [0, 0, 0]
    for frame in range(16):
        if frame in (3, 5):  # a second and a third stream join
            running.append(len(running))
            state = join(state, new())
        batch = torch.cat([clips[i][:, :, seen[i] : seen[i] + 1] for i in running])
        logits, state = net.stream(batch, state)
        for row, i in enumerate(running):
            assert relative(logits[row], alone[i][seen[i]]) < 1e-12
            seen[i] += 1
        staying = [row for row, i in enumerate(running) if seen[i] < 10]
        running = [running[row] for row in staying]
        state = select(state, torch.tensor(staying, dtype=torch.int64))
        if not running:
            break
    assert seen == [10, 10, 10]
    assert frame == 14


@pytest.mark.parametrize("name", ["stream", "3d-positional"])
def test_a_state_goes_through_a_file(tmp_path, name):
    net, clip = make(name), video(8)
    before, state = run(net, clip[:, :, :3], [3])
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "state")
    restored = safetensors.torch.load_file(tmp_path / "state")
    logits, _ = net.stream(clip[:, :, 3:], restored, "running")
    assert relative(torch.cat([before, logits], 1), run(net, clip, [8])[0]) < 1e-12


def test_the_given_state_is_not_changed():
    net, clip = make("stream"), video(4)
    state = net.initial_state(2, (33, 36))
    net.stream(clip, state)
    assert not any(tensor.any() for tensor in state.values())


def test_wrong_states_are_named():
    net, clip = make("stream"), video(2, (32, 32))
    state = net.initial_state(2, (32, 32))
    with pytest.raises(ValueError, match="state is of 3 videos, the clip of 2"):
        net.stream(clip, net.initial_state(3, (32, 32)))
    with pytest.raises(ValueError, match=r"state's blocks\.1\.0\.conv has the shape .* needs .*input size"):
        net.stream(clip, net.initial_state(2, (48, 32)))
    with pytest.raises(ValueError, match="no state of a stream"):
        net.stream(clip, {})
    with pytest.raises(ValueError, match=r"state has no blocks\.0\.0\.pool"):
        net.stream(clip, make("squeeze-2d").initial_state(2, (32, 32)))
    with pytest.raises(ValueError, match=r"has blocks\.0\.0\.pool.*which this net lacks"):
        make("squeeze-2d").stream(clip, state)
    with pytest.raises(ValueError, match="another net"):
        make("3d").stream(clip, state)
    wide = make("stream", torch.float64, 0.5, TINY.scaled(2))
    with pytest.raises(ValueError, match="another net"):
        net.stream(clip, wide.initial_state(2, (32, 32)))
    with pytest.raises(ValueError, match="states of different inputs"):
        join(state, net.initial_state(1, (48, 32)))
    with pytest.raises(ValueError, match="window must have"):
        net.initial_state(2, (32, 32), window=0)
    base = make("base")
    for call in (lambda: base.initial_state(1, (32, 32)), lambda: base.stream(clip, state)):
        with pytest.raises(ValueError, match="only causal nets stream"):
            call()
    with pytest.raises(ValueError, match="no running answer"):
        base.answers(clip, "running")


def test_states_of_half_precision_keep_wide_sums():
    net = make("stream", torch.float32)
    state = net.initial_state(1, (32, 32), dtype=torch.bfloat16)
    clip = video(1, (32, 32), 1, torch.float32)
    for _ in range(3):
        _, state = net.stream(clip, state)
        kinds = {name: tensor.dtype for name, tensor in state.items()}
        assert {kind for name, kind in kinds.items() if name.endswith(".conv")} == {torch.bfloat16}
        assert {kind for name, kind in kinds.items() if name.endswith((".pool", HEAD))} == {torch.float32}
        assert kinds[COUNT] == torch.int64


def test_a_net_of_half_precision_counts_beyond_2000_frames():
    net = make("stream", torch.bfloat16)
    state = net.initial_state(1, (32, 32))
    assert {t.dtype for n, t in state.items() if n.endswith(".conv")} == {torch.bfloat16}
    clip = video(1, (32, 32), 1, torch.bfloat16)
    for _ in range(6):  # a still picture: after the convolutions' five frames all means stay
        steady, state = net.stream(clip.expand(-1, -1, 4, -1, -1), state)
    head = state[HEAD] / state[COUNT]
    state = {name: t * 100 if name.endswith((".pool", HEAD)) or name == COUNT else t for name, t in state.items()}
    start = state[COUNT].item()
    for _ in range(20):
        logits, state = net.stream(clip, state)
    assert start == 2400
    assert state[COUNT].item() == 2420
    # The first five frames differ from the steady picture, a hundred times over: hence only about equal.
    torch.testing.assert_close(state[HEAD] / 2420, head, rtol=0.02, atol=0.02)
    assert relative(logits.float(), steady.float()) < 0.1


def test_training_a_stream_piece_by_piece():
    """No gradient crosses a buffer, and each piece has one."""
    net = MoViNet(TINY, STREAM, num_classes=5, dropout=0, drop_path=0)
    draw(net).train().requires_grad_(True)
    state = net.initial_state(2, (32, 32))
    for clip in video(8, (32, 32), dtype=torch.float32).split(4, dim=2):
        logits, state = net.stream(clip, state)
        assert all(not tensor.requires_grad for tensor in state.values())
        logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@pytest.mark.slow
def test_export_keeps_the_state_outside():
    net = make("positional", torch.float32)
    clip = video(4, (32, 32), dtype=torch.float32)
    state = net.initial_state(2, (32, 32))
    frames = torch.export.Dim("frames", min=2, max=64)
    shapes = {"video_BCTHW": {2: frames}, "state": dict.fromkeys(state)}
    step = torch.export.export(StreamStep(net), (clip, state), dynamic_shapes=shapes).module()
    ours, expected = state, state
    for count in (4, 2, 7, 3):
        piece = video(count, (32, 32), dtype=torch.float32, seed=count)
        (logits, ours), (right, expected) = step(piece, ours), net.stream(piece, expected)
        torch.testing.assert_close(logits, right, rtol=1e-5, atol=1e-5)
        for key in expected:
            torch.testing.assert_close(ours[key], expected[key], rtol=1e-5, atol=1e-5)


# --- answers ----------------------------------------------------------------------------------------


def test_answers_per_frame_and_features():
    net, clip = make("stream"), video(5)
    features = net.features_map(clip)
    assert features.shape == (2, 32, 5, 5, 5)
    pooled = features.mean((3, 4)).transpose(1, 2)
    last, running, frame = (net.answers(clip, kind)[0] for kind in ("last", "running", "frame"))
    assert relative(last, net.classify(pooled.mean(1))) < 1e-12
    assert relative(last, running[:, -1]) < 1e-12
    assert relative(running[:, 2], net.classify(pooled[:, :3].mean(1))) < 1e-12
    assert relative(frame, net.classify(pooled)) < 1e-12
    base = make("base")
    assert relative(base(clip), base.classify(base.features_map(clip).mean((2, 3, 4)))) < 1e-12


def test_without_classes_features_are_returned():
    net = draw(MoViNet(TINY, BASE)).double()
    clip = video(3)
    assert relative(net(clip), net.features_map(clip).mean((2, 3, 4))) < 1e-12


# --- layers -----------------------------------------------------------------------------------------


def loop_pool(image):
    """Average over 3×3 places with stride 2 and TensorFlow's padding; places outside do not count."""
    height, width = image.shape
    rows, columns = (-(-side // 2) for side in (height, width))
    output = np.zeros((rows, columns))
    for y, x in itertools.product(range(rows), range(columns)):
        # An odd side is padded by one place on both ends, an even one only at the end.
        top, left = 2 * y - height % 2, 2 * x - width % 2
        inside = [
            image[row, column]
            for row in range(top, top + 3)
            for column in range(left, left + 3)
            if 0 <= row < height and 0 <= column < width
        ]
        output[y, x] = np.mean(inside)
    return output


@pytest.mark.parametrize("size", [(6, 6), (7, 7), (6, 9), (11, 4), (2, 3), (1, 1)])
def test_skip_pools_as_tensorflow(size):
    skip = Skip(1, 1, 2, lambda channels: nn.Identity()).double()
    nn.init.ones_(skip.conv.weight)
    image = video(1, size, 1)[:, :1, 0]
    np.testing.assert_allclose(skip(image)[0, 0].detach().numpy(), loop_pool(image[0, 0].numpy()), rtol=1e-12)


def test_hard_sigmoids_differ():
    x = torch.tensor([-4.0, -3, -2.75, -2.5, 0, 1, 2.5, 2.75, 3, 4])
    ours = gate_value(x, "hard_sigmoid")
    keras = gate_value(x, "hard_sigmoid_keras")
    torch.testing.assert_close(ours, torch.tensor([0, 0, 1 / 24, 1 / 12, 0.5, 2 / 3, 11 / 12, 23 / 24, 1, 1]))
    torch.testing.assert_close(keras, torch.tensor([0, 0, 0, 0, 0.5, 0.7, 1, 1, 1, 1]))
    torch.testing.assert_close(gate_value(x, "sigmoid"), 1 / (1 + (-x).exp()))
    torch.testing.assert_close(activate(x.clone(), "hard_swish"), x * (x + 3).clamp(0, 6) / 6)
    torch.testing.assert_close(activate(x.clone(), "silu"), x * torch.sigmoid(x))
    clip = video(3)
    assert relative(make("stream")(clip), make("keras-gate")(clip)) > 1e-6


@pytest.mark.parametrize("squeeze", ["2d", "3d", "2plus3d"])
@pytest.mark.parametrize("causal", [True, False])
def test_gates_are_the_formula(squeeze, causal):
    net = draw(MoViNet(TINY, Variant(causal, "3d", squeeze, "silu", "sigmoid", "silu"))).double()
    gate = net.blocks[0][0].gate
    frames = (
        video(4, (5, 6))[:, :1].expand(-1, 16, -1, -1, -1) * torch.linspace(-1, 1, 16).double()[:, None, None, None]
    )
    output = gate(frames.transpose(1, 2).flatten(0, 1), 2, torch.zeros(2).long(), "", None, None)
    for b, t in itertools.product(range(2), range(4)):
        space = frames[b, :, t].mean((1, 2))
        time = frames[b, :, : t + 1 if causal else None].mean((1, 2, 3))
        z = {"2d": space, "3d": time, "2plus3d": torch.cat([time, space])}[squeeze]
        hidden = gate.reduce.weight @ z + gate.reduce.bias
        hidden = hidden * torch.sigmoid(hidden)
        value = torch.sigmoid(gate.expand.weight @ hidden + gate.expand.bias)
        torch.testing.assert_close(output[4 * b + t], frames[b, :, t] * value[:, None, None])


def test_positions_enter_the_gates():
    net = make("positional")
    gate = net.blocks[0][0].gate
    z = torch.zeros(1, 16, 2, 2, dtype=torch.float64)
    output = gate(z + 1, 1, torch.tensor([37]), "", None, None)
    angle = [37 / 10000 ** (2 * (i // 2) / 32) for i in range(32)]
    encoding = torch.tensor(np.concatenate([np.sin(angle[0::2]), np.cos(angle[1::2])]))
    # 37 frames came before, and the state is as if they had been 0: the mean over 38 frames is 1/38.
    seen = torch.cat([torch.full((16,), 1 / 38), torch.ones(16)]).double() + gate.position * encoding
    hidden = nn.functional.hardswish(gate.reduce.weight @ seen + gate.reduce.bias)
    value = nn.functional.hardsigmoid(gate.expand.weight @ hidden + gate.expand.bias)
    torch.testing.assert_close(output[0, :, 0, 0], value)


def test_new_layers_are_their_skips():
    """ReZero: at first only the skip counts, and only α has a gradient."""
    torch.manual_seed(0)
    place = Place("blocks.0.0", TINY.blocks[1].layers[1], 16, 16, 1)
    layer = Bottleneck(place, STREAM, nn.BatchNorm2d, 0.0)
    images = torch.rand(4, 16, 5, 5)
    output = layer(images, 2, torch.zeros(2).long(), None, None)
    assert torch.equal(output, images)
    (output**2).sum().backward()
    grads = {name: float(p.grad.abs().sum()) for name, p in layer.named_parameters() if p.grad is not None}
    assert [name for name, grad in grads.items() if grad > 0] == ["scale"]


def test_kernels_of_one_frame_have_one_half():
    net = make("stream")
    for layer in itertools.chain(*net.blocks):
        one = layer.depthwise.temporal is None
        assert layer.depthwise.spatial is not None
        assert one == (layer.name in ("blocks.0.0", "blocks.2.1"))
        assert one == (not hasattr(layer.depthwise, "norm"))
    # And they are the same layer in both forms.
    flat, full = (
        draw(MoViNet(architecture("t0").scaled(0.125), Variant(True, conv, "2d", "silu", "sigmoid", "silu")))
        for conv in ("2plus1d", "3d")
    )
    assert set(flat.blocks[0].state_dict()) == set(full.blocks[0].state_dict())


def test_stochastic_depth_grows_with_depth():
    with torch.device("meta"):
        net = MoViNet(architecture("a0"), STREAM, drop_path=0.2)
    rates = [layer.drop_path.rate for layer in itertools.chain(*net.blocks)]
    assert rates == pytest.approx([0.2 * i / 15 for i in range(1, 16)])


def test_stochastic_depth_drops_whole_videos():
    net = draw(MoViNet(TINY, STREAM, drop_path=0.9))
    layer = net.blocks[1][1].train()
    layer.expand.eval(), layer.depthwise.eval(), layer.project.eval()
    torch.manual_seed(1)
    images = torch.rand(8 * 3, 16, 4, 4)
    count = torch.zeros(8).long()
    change = (layer(images, 8, count, None, None) - images).unflatten(0, (8, 3)).abs().sum((2, 3, 4))
    dropped = change == 0
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert 0 < dropped[:, 0].sum() < 8


def test_initial_weights():
    torch.manual_seed(0)
    net = MoViNet(architecture("a0"), STREAM, num_classes=600)
    for name, parameter in net.named_parameters():
        if name.endswith((".scale", ".position", "bias")):
            assert not parameter.any(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 2000:
            expected = 0.01 * 0.8796 if name == "classifier.weight" else (2 / parameter[0].numel()) ** 0.5
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_supernet_options():
    kernels = {"blocks.1.0": [(3, 3), (1, 5)]}
    net = draw(MoViNet(TINY, BASE, kernels=kernels, project_skips=True)).double()
    layer = net.blocks[1][0]
    images = torch.rand(6, 24, 8, 8).double()
    parts = [option(images, 2, "", None, None) for option in layer.depthwise.options.values()]
    assert list(layer.depthwise.options) == ["3x3x3", "1x5x5"]
    torch.testing.assert_close(layer.depthwise(images, 2, "", None, None), (parts[0] + parts[1]) / 2)
    assert all(block[0].skip is not None for block in net.blocks)
    stream = draw(MoViNet(TINY, STREAM, kernels=kernels))
    with pytest.raises(ValueError, match="mixture of kernels cannot stream"):
        stream.stream(video(1, (32, 32), 1).float(), stream.initial_state(1, (32, 32)))


def test_by_name_for_other_systems():
    with torch.device("meta"):
        net = build_backbone("movinet_a0_stream", num_classes=7, width=0.5, gate="hard_sigmoid_keras")
        assert net.layout == architecture("a0").scaled(0.5)
        assert net.variant == replace(STREAM, gate="hard_sigmoid_keras")
        assert build_backbone("movinet_a3_stream").variant.positional
        assert not build_backbone("movinet_a3").variant.causal
    with pytest.raises(ValueError, match=r"has no option depth; it has: num_classes, .*causal"):
        build_backbone("movinet_a0", depth=50)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 8, 32, 32), (2, 3, 0, 32, 32)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"takes videos \(N,3,T,H,W\) of one frame or more, got \(2, "):
        MoViNet(architecture("a0").scaled(0.25), BASE, num_classes=3)(torch.zeros(shape))
