"""Draws that are a function of the seed alone: uniform, independent, free of batch and order."""

import pytest
import torch

from training.layers.seeded import seeded_bits, seeded_categorical, seeded_integers, seeded_uniform


def splitmix_mix(value):
    mask = (1 << 64) - 1
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
    return value ^ (value >> 31)


def test_bits_are_splitmix_in_plain_integers():
    """The tensor arithmetic with signed, wrapping 64-bit numbers equals Python's unbounded integers."""
    gamma, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    for seed in (0, 1, 123456789, -5, 2**63 - 1, -(2**63)):
        start = splitmix_mix((splitmix_mix((seed + gamma) & mask) + 3 + 1) & mask)
        expected = [splitmix_mix((start + i * gamma) & mask) >> 11 for i in (1, 2, 3)]
        assert seeded_bits(torch.tensor([seed]), (3,), stream=3)[0].tolist() == expected


def test_uniform_moments_and_independence():
    values = seeded_uniform(torch.arange(20000), (4,))
    assert 0 <= values.min() < values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=0.005)
    assert values.var().item() == pytest.approx(1 / 12, abs=0.002)
    off_diagonal = torch.corrcoef(values.T) - torch.eye(4)
    assert off_diagonal.abs().max() < 0.03
    neighbours = torch.corrcoef(torch.stack((values[:-1, 0], values[1:, 0])))[0, 1]
    assert neighbours.abs() < 0.03
    streams = torch.corrcoef(torch.stack((values[:, 0], seeded_uniform(torch.arange(20000), (4,), stream=1)[:, 0])))
    assert streams[0, 1].abs() < 0.03


def test_sequences_of_neighbouring_seeds_do_not_overlap():
    bits = seeded_bits(torch.arange(500), (64,))
    assert bits.flatten().unique().numel() == 500 * 64


def test_integers_cover_the_range_evenly():
    counts = seeded_integers(torch.arange(9000), (2,), 6).flatten().bincount(minlength=6)
    assert len(counts) == 6
    assert (counts - 3000).abs().max() < 250


def test_categorical_follows_the_probabilities():
    probability = torch.tensor([0.1, 0.2, 0.7])
    drawn = seeded_categorical(probability.log().expand(20000, 1, 3), torch.arange(20000))
    share = drawn.flatten().bincount(minlength=3) / 20000
    assert torch.allclose(share, probability, atol=0.02)


def test_bad_arguments():
    with pytest.raises(ValueError, match="int64"):
        seeded_uniform(torch.zeros(3), (2,))
    with pytest.raises(ValueError, match="high"):
        seeded_integers(torch.zeros(3, dtype=torch.long), (2,), 0)
    with pytest.raises(ValueError, match="belong together"):
        seeded_categorical(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
