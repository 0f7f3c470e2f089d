"""Pooling of folded frames equals the plain 3-D operator, in values, gradients and memory layout."""

import pytest
import torch
from torch import nn

from training.layers.temporal_pool import pool_frames

CHANNELS_LAST = torch.channels_last


def plain(x, frames):
    """The 3-D operator, with all its transposes."""
    pool = nn.MaxPool3d((3, 1, 1), (2, 1, 1), (1, 0, 0))
    video = x.unflatten(0, (-1, frames)).transpose(1, 2)
    return pool(video).transpose(1, 2).flatten(0, 1)


def with_gradient(function, x, frames):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x, frames)
    weight = torch.arange(y.numel(), dtype=y.dtype).view(y.shape)
    return y, torch.autograd.grad((y * weight).sum(), x)[0]


@pytest.mark.parametrize("memory", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8])
def test_equals_max_pool_3d(frames, memory):
    generator = torch.Generator().manual_seed(frames)
    x = torch.randn(3 * frames, 5, 4, 6, generator=generator).contiguous(memory_format=memory)
    ours, expected = with_gradient(pool_frames, x, frames), with_gradient(plain, x, frames)
    assert ours[0].shape == (3 * ((frames + 1) // 2), 5, 4, 6)
    assert ours[0].is_contiguous(memory_format=memory)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert torch.equal(pool_frames(x, frames), expected[0])  # without a gradient it takes another way


@pytest.mark.parametrize("frames", [2, 5, 8])
def test_equal_frames_give_the_gradient_to_the_first(frames):
    """After a ReLU most ties are zeros; in a still clip everything is one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (2 * frames, 3, 4, 4), generator=generator).relu().float()
    ours, expected = with_gradient(pool_frames, x, frames), with_gradient(plain, x, frames)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    a, b = x.unflatten(0, (2, frames))[:, :2].clone().requires_grad_().unbind(1)
    shared = torch.autograd.grad(torch.maximum(a, b).sum(), a)[0]
    assert (shared == 0.5).any()  # what `maximum` would do


def test_beyond_the_ends_lies_minus_infinity():
    x = torch.full((4, 1, 1, 1), -5.0)
    assert pool_frames(x, 4).flatten().tolist() == [-5, -5]


def test_not_a_number_stays_visible():
    x = torch.zeros(8, 1, 1, 1)
    x[3] = torch.nan
    for wanted in (False, True):
        y = pool_frames(x.clone().requires_grad_(wanted), 8).flatten()
        assert y.isnan().tolist() == plain(x, 8).flatten().isnan().tolist() == [False, True, True, False]


def test_clips_do_not_mix_and_none_is_allowed():
    x = torch.zeros(8, 1, 1, 1)
    x[4] = 1
    assert pool_frames(x, 4).flatten().tolist() == [0, 0, 1, 0]
    assert pool_frames(torch.empty(0, 3, 2, 2), 4).shape == (0, 3, 2, 2)


def test_a_single_frame_is_returned_as_it_is():
    x = torch.randn(3, 2, 4, 4)
    assert pool_frames(x, 1) is x


@pytest.mark.parametrize("frames", [0, 3])
def test_a_part_of_a_clip_is_refused(frames):
    with pytest.raises(ValueError, match="no whole number of clips"):
        pool_frames(torch.zeros(4, 1, 1, 1), frames)


@pytest.mark.parametrize(
    ("backend", "wanted"),
    [("eager", False), ("eager", True), pytest.param("inductor", False, marks=pytest.mark.slow)],
)
def test_compiles_into_one_graph(backend, wanted):
    compiled = torch.compile(pool_frames, fullgraph=True, backend=backend)
    x = torch.randn(8, 3, 4, 4).contiguous(memory_format=CHANNELS_LAST)
    y = compiled(x.clone(memory_format=torch.preserve_format).requires_grad_(wanted), 4)
    assert torch.equal(y, pool_frames(x, 4))
    assert y.is_contiguous(memory_format=CHANNELS_LAST)
