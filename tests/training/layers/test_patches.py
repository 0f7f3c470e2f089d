"""Crops equal slices, lattice and borders, gradients, draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.layers.patches import (
    center_origins,
    crop_patches,
    lattice,
    origins_from_actions,
    origins_from_fractions,
    random_origins,
)


def crops_by_slicing(frames, origin, patch):
    return torch.stack(
        [frame[:, y : y + patch, x : x + patch] for frame, (y, x) in zip(frames, origin.tolist(), strict=True)]
    )


def test_lattice_is_row_major_with_both_borders():
    grid = lattice(7)
    assert grid.shape == (49, 2)
    assert grid[0].tolist() == [0, 0]
    assert grid[6].tolist() == [0, 1]
    assert grid[42].tolist() == [1, 0]
    assert grid[48].tolist() == [1, 1]
    assert grid[8].tolist() == pytest.approx([1 / 6, 1 / 6])


@given(n=st.integers(2, 12), size=st.integers(1, 512), data=st.data())
@settings(max_examples=200, deadline=None)
def test_origins_are_the_exact_floor_of_the_fraction(n, size, data):
    patch = data.draw(st.integers(1, size))
    actions = torch.arange(n * n)
    origin = origins_from_actions(actions, n, size, patch)
    assert origin.dtype == torch.int64
    expected = [[(k // n) * (size - patch) // (n - 1), (k % n) * (size - patch) // (n - 1)] for k in range(n * n)]
    assert origin.tolist() == expected
    assert origin[-1].tolist() == [size - patch, size - patch]
    assert origin[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("dtype", "n", "size"), [(torch.bfloat16, 7, 121), (torch.float64, 7, 30), (torch.float32, 13, 132)]
)
def test_rounded_fractions_would_miss_lattice_points(dtype, n, size):
    """The reason for integer arithmetic."""
    exact = origins_from_actions(torch.arange(n * n), n, size, 24)
    naive = (lattice(n).to(dtype) * (size - 24)).floor().long()
    assert (exact != naive).any()


def test_fractions_and_actions_agree_on_the_seven_grid():
    for size in range(32, 257):
        assert torch.equal(
            origins_from_fractions(lattice(7), size, 24), origins_from_actions(torch.arange(49), 7, size, 24)
        )


def test_shape_of_actions_is_kept():
    assert origins_from_actions(torch.zeros(3, 4, dtype=torch.int32), 7, 224, 96).shape == (3, 4, 2)


def test_bad_actions_and_sizes_are_refused():
    with pytest.raises(ValueError, match="integers"):
        origins_from_actions(torch.rand(3), 7, 224, 96)
    with pytest.raises(ValueError, match="does not fit"):
        origins_from_actions(torch.zeros(3, dtype=torch.long), 7, 64, 65)
    with pytest.raises(ValueError, match="at least 2 points"):
        lattice(1)


def test_fractions_are_clamped_to_the_borders():
    fraction = torch.tensor([[0.0, 1.0], [-0.5, 1.5], [0.5, 0.49]])
    assert origins_from_fractions(fraction, 100, 20).tolist() == [[0, 80], [0, 80], [40, 39]]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(5, 3, 40, 40), (5, 3, 40, 57), (1, 1, 24, 30)])
def test_crops_equal_slices(channels_last, dtype, shape):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    frames = torch.randint(0, 255, shape).to(dtype).contiguous(memory_format=memory_format)
    origin = torch.stack(
        (torch.randint(0, shape[2] - 23, (shape[0],)), torch.randint(0, shape[3] - 23, (shape[0],))), dim=1
    )
    crops = crop_patches(frames, origin, 24)
    assert torch.equal(crops, crops_by_slicing(frames, origin, 24))
    assert crops.is_contiguous(memory_format=memory_format)
    assert crops.dtype == dtype


def test_crops_of_a_strided_view():
    frames = torch.randn(4, 3, 20, 20)[:, :, ::2, 1::2]
    origin = torch.tensor([[0, 0], [3, 4], [6, 6], [2, 5]])
    assert torch.equal(crop_patches(frames, origin, 4), crops_by_slicing(frames, origin, 4))


def test_crops_at_the_four_corners():
    frames = torch.arange(4 * 36.0).view(4, 1, 6, 6)
    origin = torch.tensor([[0, 0], [0, 3], [3, 0], [3, 3]])
    assert torch.equal(crop_patches(frames, origin, 3), crops_by_slicing(frames, origin, 3))


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradient_is_that_of_slicing(channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    data = torch.randn(4, 3, 12, 12, dtype=torch.float64).contiguous(memory_format=memory_format)
    origin = torch.tensor([[0, 0], [5, 2], [7, 7], [1, 6]])
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    ours, theirs = data.clone().requires_grad_(), data.clone().requires_grad_()
    crops = crop_patches(ours, origin, 5)
    assert torch.equal(crops, crop_patches(data, origin, 5)), "path with gradients differs from the one without"
    (crops * weight).sum().backward()
    (crops_by_slicing(theirs, origin, 5) * weight).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    assert ours.grad.count_nonzero() == 4 * 3 * 25


@pytest.mark.parametrize("origin", [[[-1, 0], [0, 0]], [[0, 0], [0, 5]], [[5, 0], [0, 0]]])
def test_origin_outside_the_frame_is_refused(origin):
    """A flat gather would wrap into the next row without a word."""
    frames = torch.randn(2, 3, 8, 8)
    assert crop_patches(frames, torch.tensor([[4, 4], [0, 4]]), 4).shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match="outside the frame"):
        crop_patches(frames, torch.tensor(origin), 4)


def test_arguments_that_do_not_belong_together():
    frames = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="need frames"):
        crop_patches(frames, torch.zeros(3, 2, dtype=torch.long), 4)
    with pytest.raises(ValueError, match="does not fit"):
        crop_patches(frames, torch.zeros(2, 2, dtype=torch.long), 9)
    with pytest.raises(ValueError, match="integers"):
        crop_patches(frames, torch.zeros(2, 2), 4)


def test_meta_tensors_pass():
    crops = crop_patches(torch.empty(2, 3, 8, 8, device="meta"), torch.empty(2, 2, dtype=torch.long, device="meta"), 4)
    assert crops.shape == (2, 3, 4, 4)


def test_random_origins_reach_both_borders_uniformly():
    origin = random_origins((4000, 2), 12, 8, generator=torch.Generator().manual_seed(0))
    assert origin.shape == (4000, 2, 2)
    counts = origin.flatten().bincount(minlength=5)
    assert len(counts) == 5
    # 16,000 draws over 5 values: standard deviation 51.
    assert (counts - 3200).abs().max() < 250


def test_seeded_origins_do_not_depend_on_the_batch():
    seed = torch.arange(6) * 7919
    whole = random_origins((6, 3), 64, 24, seed_B=seed, stream=1)
    parts = torch.cat([random_origins((2, 3), 64, 24, seed_B=part, stream=1) for part in seed.split(2)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, random_origins((6, 3), 64, 24, seed_B=seed, stream=2))
    assert not torch.equal(whole, random_origins((6, 3), 64, 24, seed_B=seed + 1, stream=1))


def test_random_origins_refuses_contradictions():
    seed = torch.arange(4)
    with pytest.raises(ValueError, match="not both"):
        random_origins((4,), 64, 24, seed_B=seed, generator=torch.Generator())
    with pytest.raises(ValueError, match="batch of seed_B"):
        random_origins((5,), 64, 24, seed_B=seed)
    with pytest.raises(ValueError, match="does not fit"):
        random_origins((4,), 24, 64)


def test_center_origin():
    assert center_origins((2,), 64, 24).tolist() == [[20, 20], [20, 20]]
