"""The shift against a loop over frames, memory formats, and the stream against the whole clip."""

import pytest
import torch

from training.layers.temporal_shift import shift_step, shifted_channels, temporal_shift


def by_loop(x, frames, div, causal):
    """Frame by frame and channel by channel, as the paper describes it."""
    clips = x.reshape(-1, frames, *x.shape[1:])
    result = torch.zeros_like(clips)
    fold = clips.shape[2] // div
    for clip in range(len(clips)):
        for t in range(frames):
            for channel in range(clips.shape[2]):
                source = t
                if causal:
                    source = t - 1 if channel < fold else t
                elif channel < fold:
                    source = t + 1  # what is later moves back
                elif channel < 2 * fold:
                    source = t - 1
                if 0 <= source < frames:
                    result[clip, t, channel] = clips[clip, source, channel]
    return result.reshape(x.shape)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("frames", "channels", "div"), [(4, 16, 8), (1, 8, 8), (3, 19, 8), (2, 9, 4), (6, 8, 2)])
def test_shift_is_the_loop(frames, channels, div, causal):
    torch.manual_seed(0)
    x = torch.randn(2 * frames, channels, 3, 2)
    shifted = temporal_shift(x, frames, div, causal=causal)
    assert torch.equal(shifted, by_loop(x, frames, div, causal))
    assert not torch.equal(shifted, x)
    if frames > 1:
        assert not torch.equal(shifted, by_loop(x, frames, div, not causal))
        # Clips do not leak into one another: one clip of all frames is something else.
        assert not torch.equal(shifted, by_loop(x, 2 * frames, div, causal))


@pytest.mark.parametrize("causal", [False, True])
def test_memory_format_stays(causal):
    x = torch.randn(6, 16, 5, 4)
    last = temporal_shift(x.to(memory_format=torch.channels_last), 3, causal=causal)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    first = temporal_shift(x, 3, causal=causal)
    assert first.is_contiguous()
    assert torch.equal(first, last)


def test_input_stays_and_gradients_move_with_the_channels():
    x = torch.randn(4, 8, 1, 1, requires_grad=True)
    before = x.detach().clone()
    shifted = temporal_shift(x, 4)
    shifted[1].sum().backward()
    assert torch.equal(x.detach(), before)
    # Frame 1 reads channel 0 of frame 2, channel 1 of frame 0 and the rest of itself.
    expected = torch.zeros(4, 8)
    expected[2, 0] = expected[0, 1] = 1
    expected[1, 2:] = 1
    assert torch.equal(x.grad[:, :, 0, 0], expected)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_stream_is_the_causal_shift(memory):
    torch.manual_seed(0)
    video = torch.randn(2, 5, 17, 3, 3)
    images = video.flatten(0, 1).contiguous(memory_format=memory)
    whole = temporal_shift(images, 5, causal=True).reshape(2, 5, 17, 3, 3)
    both = temporal_shift(images, 5).reshape(2, 5, 17, 3, 3)
    past, differs = None, False
    for t in range(5):
        frame, past = shift_step(video[:, t].contiguous(memory_format=memory), past)
        assert past.shape == (2, 2, 3, 3)
        assert torch.equal(frame, whole[:, t])
        differs |= not torch.equal(frame, both[:, t])
    assert differs


def test_a_state_does_not_hold_the_frame():
    frame = torch.randn(1, 64, 4, 4, requires_grad=True)
    _, past = shift_step(frame, None)
    assert past.untyped_storage().nbytes() == 8 * 16 * 4
    assert not past.requires_grad


def test_refusals():
    with pytest.raises(ValueError, match="5 frames are no whole number of clips of 2"):
        temporal_shift(torch.zeros(5, 8, 1, 1), 2)
    with pytest.raises(ValueError, match="none of 7 channels"):
        temporal_shift(torch.zeros(4, 7, 1, 1), 2)
    with pytest.raises(ValueError, match="div ≥ 2"):
        shifted_channels(8, 1)
    with pytest.raises(ValueError, match="another net, input size or batch"):
        shift_step(torch.zeros(2, 8, 3, 3), torch.zeros(1, 1, 3, 3))


def test_exports():
    class Net(torch.nn.Module):
        def forward(self, x):
            return temporal_shift(x, 4)

    x = torch.randn(8, 16, 3, 3)
    program = torch.export.export(Net(), (x,))
    assert torch.equal(program.module()(x), temporal_shift(x, 4))
    # Nothing is written in place, which is what exporters trip over.
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("cat" in name for name in called)
    assert not [name for name in called if "copy_" in name or "index_put" in name or "slice_scatter" in name]
