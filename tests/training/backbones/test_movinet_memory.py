"""Memory of streams: the bytes of all tensors alive at once, counted at every operator."""

import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.backbones.movinet import MoViNet
from training.backbones.movinet_layout import BASE, STREAM, Variant, architecture
from training.layers import streaming

SMALL = architecture(
    {
        "stem": 8,
        "blocks": [
            {"width": 8, "stride": 2, "layers": "5x3x3:16"},
            {"width": 16, "stride": 2, "layers": "3x3x3:24 5x3x3:24"},
        ],
        "project": 16,
        "head": 16,
    }
)


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators make while it is on, until nothing refers to them any more.

    Parameters and inputs, which were there before, do not count.
    """

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self.live and id(storage) not in before:
                    self.live[id(storage)] = (weakref.ref(storage, partial(self._gone, id(storage))), storage.nbytes())
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
        return output

    def _gone(self, key, reference):
        self.now -= self.live.pop(key)[1]


@pytest.fixture
def views(monkeypatch):
    """What a stream would keep that only slices its buffers."""

    def view(frames, axis, count, like):
        return frames.narrow(axis, frames.shape[axis] - count, count)

    monkeypatch.setattr(streaming, "_last", view)


def build(layout, variant):
    torch.manual_seed(0)
    net = MoViNet(layout, variant, num_classes=5)
    for block in net.blocks:
        for layer in block:
            nn.init.constant_(layer.scale, 0.5)
    return net.eval().requires_grad_(False)


def peak_of_stream(net, side, clips, frames=2, keep=None):
    """Return the peak over some sub-clips, and what is alive after them."""
    video = torch.rand(1, 3, frames, side, side)
    with torch.no_grad(), LiveBytes() as memory:
        state = net.initial_state(1, (side, side))
        for _ in range(clips):
            logits, state = net.stream(video, state)
            if keep is not None:
                keep.append(logits)
    return memory.peak, memory.now


def test_the_counter_counts():
    """What it measures of known tensors: two of 4000 bytes at once, a view for nothing, freed ones not."""
    given = torch.zeros(500)
    with LiveBytes() as memory:
        first = torch.zeros(1000)
        view = first[10:20]
        second = first + 1
        assert (memory.now, memory.peak) == (8000, 8000)
        del first
        assert memory.now == 8000  # the view keeps it
        del view
        assert memory.now == 4000
        second.add_(1)
        given.add_(1)
        assert memory.now == 4000
        del second
    assert (memory.now, memory.peak) == (0, 8000)


@pytest.mark.parametrize("variant", [STREAM, Variant(True, "3d", "2plus3d", "silu", "sigmoid", "silu")])
def test_memory_does_not_grow_with_the_video(variant):
    net = build(SMALL, variant)
    few, many = (peak_of_stream(net, 32, clips) for clips in (3, 30))
    assert few == many
    # What stays is the state, and the last logits.
    state = net.initial_state(1, (32, 32))
    assert few[1] == streaming.state_bytes(state) + 5 * 4
    kept = []
    assert peak_of_stream(net, 32, 20, keep=kept)[1] == few[1] + 19 * 5 * 4  # the counter sees what piles up


@pytest.mark.slow
def test_memory_does_not_grow_over_400_clips():
    net = build(SMALL, STREAM)
    assert peak_of_stream(net, 32, 3) == peak_of_stream(net, 32, 400)


def test_views_would_need_more(request):
    net = build(SMALL, STREAM)
    own, left = peak_of_stream(net, 32, 3, frames=8)
    request.getfixturevalue("views")
    pinned, more = peak_of_stream(net, 32, 3, frames=8)
    assert pinned > 1.05 * own
    assert more > 1.5 * left


def test_whole_clips_need_memory_for_every_frame():
    net = build(SMALL, BASE)
    peaks = []
    for frames in (8, 16, 32):
        with torch.no_grad(), LiveBytes() as memory:
            net(torch.rand(1, 3, frames, 32, 32))
        peaks.append(memory.peak)
    assert peaks[2] / peaks[1] == pytest.approx(2, abs=0.1)
    assert peaks[2] > 2 * peak_of_stream(build(SMALL, STREAM), 32, 16)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "megabytes"), [(1, 6.3), (2, 7.2), (4, 11.7), (8, 20.7), (16, 38.7)])
def test_memory_of_a0_is_about_as_measured_elsewhere(frames, megabytes):
    """172² in single precision, one video; eager, with buffers of their own."""
    peak, _ = peak_of_stream(build(architecture("a0"), STREAM), 172, 3, frames)
    print(f"A0 stream, {frames} frames per call: {peak / 1e6:.2f} MB")
    assert peak / 1e6 == pytest.approx(megabytes, rel=0.2)


@pytest.mark.slow
def test_memory_of_a0_on_a_whole_clip():
    net = build(architecture("a0"), BASE)
    with torch.no_grad(), LiveBytes() as memory:
        net(torch.rand(1, 3, 50, 172, 172))
    print(f"A0 base, 50 frames: {memory.peak / 1e6:.1f} MB")
    assert memory.peak / 1e6 == pytest.approx(112, rel=0.2)
