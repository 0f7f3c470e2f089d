"""Random numbers as a function of per-clip seeds, computed on the device.

A generator gives numbers in order of the call, so a clip's draw would change with its place in the
batch and with the number of ranks. Here number i of a clip is a hash of (seed, stream, i): the same on
every device and rank, without state and without a host synchronisation. The hash is SplitMix64's
finaliser (Steele, Lea and Flood 2014), applied to a counter.
"""

import math

import torch
from torch import Tensor

# The constants of SplitMix64 as signed 64-bit numbers; products wrap modulo 2^64.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def seeded_bits(seed_B: Tensor, shape: tuple[int, ...], *, stream: int = 0) -> Tensor:
    """Return 53 random bits per element, (B, *shape) int64 in [0, 2^53).

    Args:
        seed_B: (B,) int64.
        shape: shape per clip.
        stream: different streams of the same seeds are independent.
    """
    if seed_B.dim() != 1 or seed_B.dtype != torch.int64:
        raise ValueError(f"seeds must be (B,) int64, got {tuple(seed_B.shape)} {seed_B.dtype}")
    count = math.prod(shape)
    # The seed is hashed before the stream is added, and again before the counter: neighbouring
    # seeds must not give shifted copies of one sequence.
    start = _mix(_mix(seed_B + _GAMMA) + (stream + 1))
    counter = torch.arange(1, count + 1, device=seed_B.device, dtype=torch.int64) * _GAMMA
    return _shift_right(_mix(start[:, None] + counter), 11).view(seed_B.shape[0], *shape)


def seeded_uniform(seed_B: Tensor, shape: tuple[int, ...], *, stream: int = 0) -> Tensor:
    """Return uniform numbers in [0, 1), (B, *shape) float64."""
    return seeded_bits(seed_B, shape, stream=stream).double() * 2.0**-53


def seeded_integers(seed_B: Tensor, shape: tuple[int, ...], high: int, *, stream: int = 0) -> Tensor:
    """Return uniform integers in [0, high), (B, *shape) int64.

    Raises:
        ValueError: high is not in 1 … 2^20 (above, the rounding of the product would show).
    """
    if not 1 <= high <= 1 << 20:
        raise ValueError(f"high must be in 1…{1 << 20}, got {high}")
    # Two halves of the bits would be needed for an exact product beyond 2^63; 42 bits times 2^20 fit.
    return (_shift_right(seeded_bits(seed_B, shape, stream=stream), 11) * high) >> 42


def seeded_categorical(logits: Tensor, seed_B: Tensor, *, stream: int = 0) -> Tensor:
    """Draw one class per row of `logits` (B, *shape, K) → (B, *shape) int64, by the Gumbel-max rule."""
    if logits.dim() < 2 or logits.shape[0] != seed_B.shape[0]:
        raise ValueError(f"logits {tuple(logits.shape)} and {seed_B.shape[0]} seeds do not belong together")
    uniform = seeded_uniform(seed_B, tuple(logits.shape[1:]), stream=stream)
    gumbel = -(-(uniform.clamp_min(2.0**-60)).log()).log()
    return (logits.double() + gumbel).argmax(-1)
