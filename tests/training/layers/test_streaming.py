"""Temporal operators against loops over the formulas, and what they carry from call to call."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.layers.streaming import (
    DepthwiseConv3d,
    FrameConv,
    TemporalConv,
    detached,
    join,
    positional_encoding,
    running_mean,
    select,
    state_bytes,
)


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_starts(size, kernel, stride):
    """First input place of each output place, as TensorFlow's "same" has them; may be negative."""
    count = math.ceil(size / stride)
    total = max((count - 1) * stride + kernel - size, 0)
    return [i * stride - total // 2 for i in range(count)]


def loop_conv3d(video, weight, stride, before):
    """Depthwise convolution (C,T,H,W) by loops; `before` frames of zeros in front."""
    channels, frames, height, width = video.shape
    kt, kh, kw = weight.shape[2:]
    rows, columns = same_starts(height, kh, stride), same_starts(width, kw, stride)
    output = np.zeros((channels, frames, len(rows), len(columns)))
    for t in range(frames):
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                for a in range(kt):
                    for b in range(kh):
                        for c in range(kw):
                            place = (t + a - before, row + b, column + c)
                            if all(0 <= p < s for p, s in zip(place, video.shape[1:], strict=True)):
                                output[:, t, y, x] += weight[:, 0, a, b, c] * video[(slice(None), *place)]
    return output


def folded(video):
    """(B,C,T,H,W) → (B·T,C,H,W)."""
    return video.transpose(1, 2).flatten(0, 1)


def unfolded(images, batch):
    return images.unflatten(0, (batch, -1)).transpose(1, 2)


# --- convolutions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 6), (7, 7), (5, 8)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1), (1, 2)])
def test_spatial_convolution_pads_as_tensorflow(size, kernel, stride):
    conv = FrameConv(3, 3, kernel, stride, groups=3).double()
    image = rand(1, 3, *size)
    expected = loop_conv3d(image.transpose(0, 1).numpy(), conv.weight.detach()[:, :, None].numpy(), stride, 0)
    torch.testing.assert_close(conv(image)[0], torch.tensor(expected)[:, 0])


def test_even_sides_and_stride_2_differ_from_symmetric_padding():
    conv = FrameConv(2, 2, 3, 2, groups=2).double()
    for side, equal in ((7, True), (6, False)):
        image = rand(1, 2, side, side)
        symmetric = torch.nn.functional.conv2d(image, conv.weight, None, 2, 1, groups=2)
        assert torch.allclose(conv(image), symmetric) == equal


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), 1), ((5, 3), 2), ((3, 5), 2), ((3, 1), 1)])
@pytest.mark.parametrize("size", [(4, 4), (5, 6)])
def test_depthwise_convolution_of_videos(causal, kernel, stride, size):
    conv = DepthwiseConv3d(2, kernel, stride, causal=causal).double()
    video = rand(2, 2, 4, *size)
    before = kernel[0] - 1 if causal else kernel[0] // 2
    output = unfolded(conv(folded(video), 2, "", None, None), 2)
    for ours, one in zip(output, video, strict=True):
        expected = loop_conv3d(one.numpy(), conv.weight.detach().numpy(), stride, before)
        torch.testing.assert_close(ours, torch.tensor(expected))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", [3, 5])
def test_temporal_convolution(causal, kernel):
    conv = TemporalConv(3, kernel, causal=causal).double()
    video = rand(2, 3, 6, 3, 4)
    before = kernel - 1 if causal else kernel // 2
    output = unfolded(conv(folded(video), 2, "", None, None), 2)
    weight = conv.weight.detach()[..., None, None].numpy()
    for ours, one in zip(output, video, strict=True):
        torch.testing.assert_close(ours, torch.tensor(loop_conv3d(one.numpy(), weight, 1, before)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sum_of_shifted_frames_is_the_convolution(dtype):
    conv = TemporalConv(4, 5, causal=True).to(dtype)
    frames_BTHWC = rand(2, 7, 3, 3, 4).to(dtype)
    images = frames_BTHWC.permute(0, 1, 4, 2, 3).flatten(0, 1)
    padded = torch.nn.functional.pad(frames_BTHWC, (0, 0, 0, 0, 0, 0, 4, 0))
    torch.testing.assert_close(conv(images, 2, "", None, None), conv.as_conv(padded))


def operators():
    yield pytest.param(lambda: TemporalConv(3, 3, causal=True), 1, id="temporal-3")
    yield pytest.param(lambda: TemporalConv(3, 5, causal=True), 1, id="temporal-5")
    yield pytest.param(lambda: DepthwiseConv3d(3, (5, 3), 2, causal=True), 2, id="depthwise-5x3x3")


@pytest.mark.parametrize(("make", "stride"), operators())
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_convolutions_may_be_cut_anywhere(make, stride, cuts):
    torch.manual_seed(0)
    conv = make().double()
    video = rand(2, 3, sum(cuts), 5, 6)
    taps = conv.weight.shape[2]
    state = {"k": torch.zeros(2, 3, taps - 1, 5, 6, dtype=torch.float64)}
    outputs, start = [], 0
    for count in cuts:
        present = {}
        clip = video[:, :, start : start + count]
        outputs.append(unfolded(conv(folded(clip), 2, "k", state, present), 2))
        assert present["k"].shape == state["k"].shape
        assert present["k"].dtype == torch.float64
        state, start = present, start + count
    whole = unfolded(conv(folded(video), 2, "k", None, None), 2)
    torch.testing.assert_close(torch.cat(outputs, 2), whole, rtol=1e-12, atol=1e-12)
    padded = torch.nn.functional.pad(video, (0, 0, 0, 0, taps - 1, 0))
    torch.testing.assert_close(state["k"], padded[:, :, -(taps - 1) :], rtol=0, atol=0)


@pytest.mark.parametrize(("make", "stride"), operators())
def test_state_is_memory_of_its_own_and_keeps_its_dtype(make, stride):
    conv = make()
    taps = conv.weight.shape[2]
    past = {"k": torch.zeros(1, 3, taps - 1, 4, 4, dtype=torch.bfloat16)}
    present = {}
    conv(rand(50, 3, 4, 4).float(), 1, "k", past, present)
    assert present["k"].dtype == torch.bfloat16
    assert present["k"].untyped_storage().nbytes() == past["k"].untyped_storage().nbytes()
    assert not present["k"].requires_grad
    assert not past["k"].any()


@pytest.mark.parametrize(("make", "stride"), operators())
def test_states_of_other_nets_and_sizes_are_refused(make, stride):
    conv = make().double()
    frames = rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="no k: it is of another net"):
        conv(frames, 1, "k", {"other": frames}, None)
    for shape in ((1, 3, 2, 4, 5), (2, 3, conv.weight.shape[2] - 1, 4, 4), (1, 4, conv.weight.shape[2] - 1, 4, 4)):
        with pytest.raises(ValueError, match="another net, input size or batch"):
            conv(frames, 1, "k", {"k": torch.zeros(shape, dtype=torch.float64)}, None)


# --- means and positions ----------------------------------------------------------------------------


def test_running_mean_of_all_frames():
    mean = rand(2, 6, 3)
    ours = running_mean(mean, torch.zeros(2, dtype=torch.int64), "", None, None)
    for t in range(6):
        torch.testing.assert_close(ours[:, t], mean[:, : t + 1].mean(1))


@pytest.mark.parametrize("window", [1, 2, 4, 20])
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_running_mean_of_a_window(window, cuts):
    frames = sum(cuts)
    mean = rand(2, frames, 3)
    state, count, start = {"m": torch.zeros(2, window - 1, 3, dtype=torch.float64)}, torch.zeros(2).long(), 0
    parts = []
    for length in cuts:
        present = {}
        parts.append(running_mean(mean[:, start : start + length], count, "m", state, present))
        assert present["m"].shape == state["m"].shape
        state, start, count = present, start + length, count + length
    ours = torch.cat(parts, 1)
    for t in range(frames):
        torch.testing.assert_close(ours[:, t], mean[:, max(t + 1 - window, 0) : t + 1].mean(1))


def test_streams_of_different_ages_have_means_of_their_own():
    mean = rand(2, 1, 3)
    state = {"m": torch.stack([torch.zeros(3), torch.full((3,), 8.0)]).double()}
    ours = running_mean(mean, torch.tensor([0, 4]), "m", state, None)
    torch.testing.assert_close(ours[0, 0], mean[0, 0])
    torch.testing.assert_close(ours[1, 0], (mean[1, 0] + 8) / 5)


def test_sums_of_bfloat16_frames_go_on_growing():
    half = torch.full((1, 1, 1), 0.5, dtype=torch.bfloat16)
    state, naive = {"m": torch.zeros(1, 1)}, torch.zeros(1, 1, dtype=torch.bfloat16)
    for frame in range(2500):
        present = {}
        mean = running_mean(half, torch.tensor([frame]), "m", state, present)
        state, naive = present, naive + half[:, 0]
    assert state["m"].dtype == mean.dtype == torch.float32
    assert state["m"].item() == 1250
    assert mean.item() == 0.5
    assert naive.item() == 128  # what a bfloat16 sum gives


def test_mean_of_another_net_is_refused():
    with pytest.raises(ValueError, match="another net"):
        running_mean(rand(1, 2, 3), torch.zeros(1).long(), "m", {}, None)
    with pytest.raises(ValueError, match="another net, input size or batch"):
        running_mean(rand(1, 2, 3), torch.zeros(1).long(), "m", {"m": torch.zeros(1, 4)}, None)


@pytest.mark.parametrize("channels", [8, 48, 7])
def test_positional_encoding_is_the_formula(channels):
    times = [0, 1, 5, 1000, 10**8]
    ours = positional_encoding(torch.tensor([times]), channels)[0]
    for row, t in zip(ours, times, strict=True):
        angles = [t / 10000 ** (2 * (i // 2) / channels) for i in range(channels)]
        expected = [math.sin(a) for a in angles[0::2]] + [math.cos(a) for a in angles[1::2]]
        # A hundred million frames: the angle itself has 1e-8 of rounding.
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-12 if t < 10**6 else 1e-6)


# --- states of several streams ----------------------------------------------------------------------


def test_select_and_join():
    state = {"a": torch.arange(3.0), "b": torch.arange(6.0).view(3, 2)}
    two = select(state, torch.tensor([2, 0]))
    assert two["a"].tolist() == [2, 0]
    both = join(two, state)
    assert both["a"].tolist() == [2, 0, 0, 1, 2]
    assert both["b"].shape == (5, 2)
    assert state_bytes(state) == 9 * 4
    with pytest.raises(ValueError, match=r"different nets.*b"):
        join(state, {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"b has shapes \(2,\) and \(3,\)"):
        join(state, {"a": torch.zeros(1), "b": torch.zeros(1, 3)})


def test_detached_has_no_history():
    weight = torch.ones(2, requires_grad=True)
    state = {"a": weight * 2}
    assert state["a"].grad_fn is not None
    assert detached(state)["a"].grad_fn is None
