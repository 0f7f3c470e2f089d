"""Random draws of clips, as hashes of their seeds.

A draw is a function of (seed of the clip, stream, number of the call): it is the same on every device and rank,
whatever else is in the batch, and after a restart. No generator is read or changed, and nothing waits for the device.
"""

import functools
import math

import torch
from torch import Tensor

from training.layers.seeded import seeded_bits, seeded_integers, seeded_uniform

__all__ = ["Draws"]

_MASK = (1 << 64) - 1
_STREAMS = (1 << 62) - 1
"""Streams are below it: they are added to signed 64-bit numbers."""

_TABLE = 1024
"""Steps of the tables of inverse distribution functions."""


def _stream(parent: int, number: int) -> int:
    """Return the number of a sub-stream: SplitMix64's finaliser of the pair."""
    value = (parent * 0x9E3779B97F4A7C15 + number + 1) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return (value ^ (value >> 31)) & _STREAMS


class Draws:
    """Draws of a batch of clips; every call gives new numbers.

    Shapes are those of one clip; results have the batch in front, and lie on the device of the seeds.
    """

    def __init__(self, seed_B: Tensor, stream: int = 0) -> None:
        """Start a stream.

        Args:
            seed_B: int64 seeds of the clips.
            stream: streams of different numbers are independent.
        """
        self.seed_B = seed_B
        self.stream = stream
        self._calls = 0

    def _next(self) -> int:
        self._calls += 1
        return _stream(self.stream, -self._calls)

    def child(self, number: int) -> "Draws":
        """Return an independent stream of the same clips; numbers are not negative. It does not count as a draw."""
        return Draws(self.seed_B, _stream(self.stream, number))

    def to(self, device: torch.device) -> "Draws":
        """Return the stream from its start, with the seeds on a device."""
        return Draws(self.seed_B.to(device, non_blocking=True), self.stream)

    def rows(self, row_N: Tensor) -> "Draws":
        """Return the stream from its start, of some clips."""
        return Draws(self.seed_B.index_select(0, row_N), self.stream)

    def frames(self, count: int) -> "Draws":
        """Return a stream in which each frame of a clip counts as a clip of its own: B·count seeds, clip by clip."""
        return Draws(seeded_bits(self.seed_B, (count,), stream=self._next()).flatten(), self.stream)

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        """Return float32 numbers between two bounds."""
        return (low + seeded_uniform(self.seed_B, shape, stream=self._next()) * (high - low)).float()

    def span(self, pair: tuple[float, float], *shape: int) -> Tensor:
        """Return float32 numbers from a setting [low, high]."""
        return self.uniform(pair[0], pair[1], *shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return int64 numbers from low to high, both included."""
        return seeded_integers(self.seed_B, shape, high - low + 1, stream=self._next()) + low

    def choice(self, count: int, *shape: int) -> Tensor:
        """Return int64 places in a list of `count`."""
        return self.integers(0, count - 1, *shape)

    def bernoulli(self, p: float | Tensor, *shape: int) -> Tensor:
        """Return bools, True with probability `p`; 0 is never, 1 is always. A tensor has to broadcast."""
        return seeded_uniform(self.seed_B, shape, stream=self._next()) < p

    def sign(self, *shape: int) -> Tensor:
        """Return −1 or 1, float32."""
        return self.bernoulli(0.5, *shape).float() * 2 - 1

    def normal(self, *shape: int) -> Tensor:
        """Return float32 standard normal numbers (Box and Muller 1958)."""
        radius = (-2 * (1 - seeded_uniform(self.seed_B, shape, stream=self._next())).log()).sqrt()
        angle = seeded_uniform(self.seed_B, shape, stream=self._next()) * (2 * math.pi)
        return (radius * angle.cos()).float()

    def exponential(self, *shape: int) -> Tensor:
        """Return float32 exponential numbers of mean 1."""
        return -(1 - seeded_uniform(self.seed_B, shape, stream=self._next())).log().float()

    def laplace(self, *shape: int) -> Tensor:
        """Return float32 numbers of the Laplace distribution of scale 1."""
        return self.exponential(*shape) * self.sign(*shape)

    def beta(self, alpha: float, *shape: int) -> Tensor:
        """Return float32 numbers of Beta(alpha, alpha), from a table of its inverse distribution function."""
        table = torch.tensor(_beta_table(alpha)).to(self.seed_B.device, non_blocking=True)
        place = seeded_uniform(self.seed_B, shape, stream=self._next()) * _TABLE
        below = place.long()
        return torch.lerp(table[below], table[below + 1], (place - below).float())

    def permutation(self, count: int) -> Tensor:
        """Return a random order of 0…count−1 per clip, (B, count) int64."""
        return seeded_uniform(self.seed_B, (count,), stream=self._next()).argsort(dim=1)


@functools.cache
def _beta_table(alpha: float) -> tuple[float, ...]:
    from scipy.special import betaincinv

    return tuple(float(betaincinv(alpha, alpha, place / _TABLE)) for place in range(_TABLE + 1))
