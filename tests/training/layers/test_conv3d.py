"""Padding as TensorFlow and PyTorch do it; every folded form equals the plain 3-D operator."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from training.layers.conv3d import FoldedConv3d, FoldedMaxPool3d, fold_frames, pad_amounts, unfold_frames

CHANNELS_LAST = torch.channels_last_3d


def relative(ours, expected):
    """Largest difference over the largest value."""
    return float((ours - expected).abs().max() / expected.abs().max())


def same_pads(size, kernel, stride):
    """As TensorFlow's documentation has it, written another way than ours."""
    total = max(kernel - stride, 0) if size % stride == 0 else max(kernel - size % stride, 0)
    return total // 2, total - total // 2


# --- padding ----------------------------------------------------------------------------------


@given(st.integers(1, 40), st.sampled_from((1, 3, 5, 7)), st.sampled_from((1, 2, 3)))
def test_same_padding_is_tensorflows(size, kernel, stride):
    assert pad_amounts(size, kernel, stride, "same") == same_pads(size, kernel, stride)
    assert pad_amounts(size, kernel, stride, "symmetric") == (kernel // 2, kernel // 2)
    for padding in ("same", "symmetric"):
        padded = size + sum(pad_amounts(size, kernel, stride, padding))
        assert (padded - kernel) // stride + 1 == -(-size // stride)


def test_known_amounts():
    """The cases of the family's stems (stride 2, even sizes)."""
    assert pad_amounts(224, 3, 2, "same") == (0, 1)
    assert pad_amounts(224, 7, 2, "same") == (2, 3)
    assert pad_amounts(32, 5, 2, "same") == (1, 2)
    assert pad_amounts(225, 3, 2, "same") == (1, 1)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("size", [8, 9])
def test_first_tap_sees_another_place_than_with_symmetric_padding(folded, size):
    """A 1×3×3 kernel of stride 2 that is 1 at its first place: even sizes start at 0, odd ones one place before."""
    x = torch.arange(1.0, 1 + size * size).view(1, 1, 1, size, size)
    for padding, first in (("same", 0 if size == 8 else -1), ("symmetric", -1)):
        conv = FoldedConv3d(1, 1, (1, 3, 3), (1, 2, 2), padding=padding, folded=folded)
        with torch.no_grad():
            conv.weight.zero_()[..., 0, 0] = 1
            expected = F.pad(x, (-first, 2, -first, 2))[..., ::2, ::2][..., : -(-size // 2), : -(-size // 2)]
            assert torch.equal(conv(x), expected)


def convolution(x, conv):
    """The plain form, with the padding done beforehand."""
    pads = [
        same_pads(n, k, s) if conv.padding_kind == "same" else (k // 2, k // 2)
        for n, k, s in zip(x.shape[2:], conv.kernel_size, conv.stride, strict=True)
    ]
    return F.conv3d(F.pad(x, (*pads[2], *pads[1], *pads[0])), conv.weight, None, conv.stride)


# --- forms of the convolution -----------------------------------------------------------------

CASES = [
    # kernel, stride, input channels, output channels
    ((1, 1, 1), (1, 1, 1), 6, 4),
    ((1, 1, 1), (1, 2, 2), 4, 8),
    ((1, 1, 1), (2, 2, 2), 4, 8),
    ((1, 3, 3), (1, 1, 1), 5, 5),
    ((1, 3, 3), (1, 2, 2), 5, 7),
    ((1, 7, 7), (1, 2, 2), 3, 8),
    ((3, 1, 1), (1, 1, 1), 12, 4),
    ((3, 3, 3), (1, 1, 1), 6, 6),
    ((5, 1, 1), (1, 1, 1), 8, 3),
    ((3, 1, 1), (1, 1, 1), 3, 8),
    ((3, 1, 1), (2, 1, 1), 8, 4),
    ((5, 3, 3), (2, 2, 2), 3, 8),
    ((5, 7, 7), (2, 2, 2), 3, 8),
    ((5, 3, 3), (1, 2, 2), 3, 8),
]


@pytest.mark.parametrize("shape", [(2, 8, 10, 12), (1, 7, 9, 14), (3, 1, 5, 5), (2, 2, 1, 3)])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize(("kernel", "stride", "inputs", "outputs"), CASES)
def test_folded_equals_plain(kernel, stride, inputs, outputs, padding, shape):
    torch.manual_seed(0)
    folded = FoldedConv3d(inputs, outputs, kernel, stride, padding=padding)
    plain = FoldedConv3d(inputs, outputs, kernel, stride, padding=padding, folded=False)
    plain.load_state_dict(folded.state_dict())
    x = torch.randn(shape[0], inputs, *shape[1:])
    with torch.no_grad():
        expected = convolution(x, plain)
        assert relative(plain(x), expected) <= 1e-6
        for ours in (folded(x), folded(x.contiguous(memory_format=CHANNELS_LAST))):
            assert ours.shape == (shape[0], outputs, *(-(-n // s) for n, s in zip(shape[1:], stride, strict=True)))
            assert relative(ours, expected) <= 1e-6


@pytest.mark.parametrize("form", ["_per_frame", "_shifted_sum", "_windows"])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_gradients_of_every_form(form, padding):
    """Also of the form that only CUDA takes by itself."""
    torch.manual_seed(0)
    kernel, stride, inputs, outputs = {
        "_per_frame": ((1, 3, 3), (1, 2, 2), 5, 4),
        "_shifted_sum": ((3, 1, 1), (1, 1, 1), 6, 4),
        "_windows": ((5, 3, 3), (2, 2, 2), 3, 4),
    }[form]
    conv = FoldedConv3d(inputs, outputs, kernel, stride, padding=padding)
    x = torch.randn(2, inputs, 6, 8, 7)
    results = []
    for run in (getattr(conv, form), lambda video: convolution(video, conv)):
        conv.zero_grad()
        video = x.clone().requires_grad_()
        output = run(video)
        torch.manual_seed(1)
        output.backward(torch.randn(output.shape))
        results.append((output.detach(), video.grad, conv.weight.grad.clone()))
    for ours, expected in zip(*results, strict=True):
        assert relative(ours, expected) <= 1e-6
    assert relative(results[0][2], results[1][2].roll(1, 0)) > 0.1  # The comparison can fail.


@pytest.mark.parametrize(("kernel", "stride", "inputs", "outputs"), CASES)
def test_folded_keeps_channels_last_memory(kernel, stride, inputs, outputs):
    x = torch.randn(2, inputs, 6, 8, 8)
    assert FoldedConv3d(inputs, outputs, kernel, stride)(x).is_contiguous(memory_format=CHANNELS_LAST)
    plain = FoldedConv3d(inputs, outputs, kernel, stride, folded=False)(x)
    assert plain.is_contiguous()


def test_folding_is_a_view():
    x = torch.randn(2, 5, 3, 4, 6).contiguous(memory_format=CHANNELS_LAST)
    images = fold_frames(x)
    assert images.shape == (6, 5, 4, 6)
    assert images.data_ptr() == x.data_ptr()
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(unfold_frames(images, 2, 3), x)
    assert unfold_frames(images, 2, 3).data_ptr() == x.data_ptr()
    assert torch.equal(fold_frames(x.contiguous()), images)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match=r"must be odd, got \(2, 1, 1\)"):
        FoldedConv3d(3, 4, (2, 1, 1))


# --- max-pooling ------------------------------------------------------------------------------

POOLS = [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((1, 1, 1), (1, 2, 2))]


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(POOLS),
    st.sampled_from(("same", "symmetric")),
    st.booleans(),
    st.tuples(*[st.integers(1, 9)] * 3),
)
def test_pooling_pads_with_minus_infinity(pool, padding, folded, shape):
    kernel, stride = pool
    torch.manual_seed(0)
    x = torch.randn(2, 3, *shape) - 5
    pads = [
        same_pads(n, k, s) if padding == "same" else (k // 2, k // 2)
        for n, k, s in zip(shape, kernel, stride, strict=True)
    ]
    padded = F.pad(x, (*pads[2], *pads[1], *pads[0]), value=-torch.inf)
    ours = FoldedMaxPool3d(kernel, stride, padding=padding, folded=folded)(x)
    assert torch.equal(ours, F.max_pool3d(padded, kernel, stride))


def test_negative_inputs_stay_negative():
    x = torch.full((1, 2, 4, 6, 6), -3.0)
    for folded in (True, False):
        assert torch.equal(FoldedMaxPool3d((3, 3, 3), (2, 2, 2), folded=folded)(x), torch.full((1, 2, 2, 3, 3), -3.0))
    zeros = F.max_pool3d(F.pad(x, (0, 1, 0, 1, 0, 1)), 3, 2)
    assert zeros.max() == 0


def test_gradients_of_pooling_with_ties():
    """Equal frames: both forms send the gradient to the same place."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 1, 8, 8).repeat(1, 1, 4, 1, 1).relu()
    for kernel, stride in POOLS:
        grads = []
        for folded in (True, False):
            video = x.clone().requires_grad_()
            output = FoldedMaxPool3d(kernel, stride, folded=folded)(video)
            output.backward(torch.arange(1.0, 1 + output.numel()).view(output.shape))
            grads.append(video.grad)
        assert torch.equal(*grads)
