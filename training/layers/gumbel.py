"""Decisions between skipping and using: drawn with Gumbel noise, with a gradient through the relaxed choice.

The last axis of logits and noise is (skip, use). Everything is computed in fp32, whatever the run's precision: noise
and temperature blow up what half precision rounds away. Sources: Jang et al. 2017, Maddison et al. 2017; AdaMML.
"""

import math
from typing import Literal

from torch import Tensor

from training.layers.seeded import seeded_uniform

LEAST = 2.0**-60
"""Below the smallest positive number that is drawn (2^-53); keeps the noise of a drawn 0 finite."""


def gumbel_noise(seed_B: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """Draw −log(−log U), (B, *shape) float32, between −3.8 and 36.8.

    Args:
        seed_B: (B,) int64; a row's numbers depend on its own seed only.
        shape: shape per clip.
        stream: different streams of the same seeds are independent.
    """
    # In fp64: in fp32 a number near 1 rounds to 1, and the noise to infinity.
    uniform = seeded_uniform(seed_B, shape, stream=stream).clamp_min(LEAST)
    return (-(-uniform.log()).log()).float()


def straight_through(logits: Tensor, noise: Tensor | None, temperature: float | Tensor) -> Tensor:
    """Choose the larger of skip and use, and let the gradient through the softmax with temperature τ.

    With z the logits plus noise: the result is 1 where z₁ > z₀, else 0, and its gradient that of
    y₁ = softmax(z / τ)₁, so ∂/∂z₁ = y₁·(1 − y₁)/τ = −∂/∂z₀. The result itself does not depend on τ, and with Gumbel
    noise it is 1 with probability sigmoid(logit₁ − logit₀).

    Args:
        logits: (..., 2).
        noise: (..., 2) from `gumbel_noise`; None decides without.
        temperature: τ > 0. A tensor's value is not checked, since the host would have to wait for it.

    Returns:
        (...) float32, exactly 0 or 1, 1 for use.

    Raises:
        ValueError: the last axis is not 2, noise of another shape, or a number τ that is not positive.
    """
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    _check(logits)
    # Autocast leaves operators element by element alone: all below stays fp32.
    scores = logits.float()
    if noise is not None:
        if noise.shape != logits.shape:
            raise ValueError(f"noise {tuple(noise.shape)} and logits {tuple(logits.shape)} differ in shape")
        scores = scores + noise.float()
    margin = scores[..., 1] - scores[..., 0]
    soft = (margin / temperature).sigmoid()
    # The difference of equal numbers is exactly 0, so the sum is exactly 0 or 1.
    return (margin > 0).float() + (soft - soft.detach())


def decide(logits: Tensor, mode: Literal["argmax", "threshold"], threshold: float = 0.5) -> Tensor:
    """Choose without noise: bool (...), True for use.

    Args:
        logits: (..., 2).
        mode: `argmax` uses where that is the likelier; `threshold` where its probability exceeds `threshold`.
        threshold: a probability; 0.5 decides as `argmax` does.

    Raises:
        ValueError: unknown mode, the last axis is not 2, or a threshold outside (0, 1).
    """
    if mode not in ("argmax", "threshold"):
        raise ValueError(f"mode must be 'argmax' or 'threshold', got {mode!r}")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
    _check(logits)
    scores = logits.float()
    # As log-odds: near 0 and 1, probabilities in fp32 are too coarse.
    bound = math.log(threshold / (1 - threshold)) if mode == "threshold" else 0.0
    return scores[..., 1] - scores[..., 0] > bound


def _check(logits: Tensor) -> None:
    if logits.dim() < 1 or logits.shape[-1] != 2:
        raise ValueError(f"the last axis of logits must be (skip, use), got {tuple(logits.shape)}")
