"""Which samples in which order, and which frames of a clip: all of it a pure function of seeds.

Nothing here keeps state, so the order and the frames do not depend on rank, threads or prefetching.
Only raw output of counter-based bit generators and hashes is used; NumPy guarantees these across its
versions, unlike the streams of `Generator` methods.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.core.config import DataConfig

__all__ = ["clip_seed", "epoch_order", "frame_positions", "nearest_stored"]

Index = NDArray[np.int64]


def epoch_order(count: int, seed: int, epoch: int) -> Index:
    """Return the permutation of `count` samples that epoch number `epoch` of a training run uses."""
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def clip_seed(seed: int, epoch: int, key: str) -> int:
    """Return the seed of one clip's draws in one epoch, 63 bit."""
    text = f"{seed}/{epoch}/{key}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def frame_positions(num_frames: int, config: DataConfig, *, train: bool, seed: int) -> Index:
    """Choose the T frames of a clip, in display order.

    `segments`: T equal parts, one frame each: random in training, the middle one in evaluation
    (TSN); a clip shorter than T gives its frames in order and repeats the last. `dense`: T frames
    `stride` apart, in training with a random start such that all fit, and with a random stride where there is
    `stride_jitter`; in evaluation one centred clip (`centre` says by which length), or V = `eval_clips` clips one
    after another, whose starts are V integers spaced evenly from 0 to length - T·stride; beyond the end the last
    frame repeats, or the video starts again. A video too short for the clip starts at its first frame, in training
    at any with `short_start: any`.

    Args:
        num_frames: length of the clip.
        seed: of this clip in this epoch (`clip_seed`); unused in evaluation.

    Returns:
        (T,) int64 in [0, num_frames), (V·T,) in evaluation; non-decreasing within a clip that does not loop.

    Raises:
        ValueError: a clip without frames.
    """
    if num_frames < 1:
        raise ValueError(f"the clip has {num_frames} frames")
    count = config.num_frames
    steps = np.arange(count, dtype=np.int64)
    if config.sampling == "dense":
        stride = _jittered(config, seed) if train else config.stride
        slack = num_frames - ((count - 1) * stride + 1)
        if train:
            choices = num_frames if slack < 0 and config.short_start == "any" else max(0, slack) + 1
            starts = np.array([int(_uniform(seed, 1)[0] * choices)])
        elif config.eval_clips == 1:
            starts = np.array([max(0, slack if config.centre == "span" else num_frames - count * stride) // 2])
        else:
            starts = np.linspace(0, max(0, num_frames - count * stride), config.eval_clips).astype(np.int64)
        positions = (starts[:, None] + steps * stride).ravel()
        return positions % num_frames if config.overrun == "loop" else np.minimum(positions, num_frames - 1)
    if num_frames < count:
        return np.minimum(steps, num_frames - 1)
    if not train:
        return (2 * steps + 1) * num_frames // (2 * count)
    edges = np.arange(count + 1, dtype=np.int64) * num_frames // count
    return edges[:-1] + (_uniform(seed, count) * np.diff(edges)).astype(np.int64)


def nearest_stored(positions: Index, frame_index: Sequence[int]) -> Index:
    """Map frame numbers of a clip to places in its list of stored frames (`jpgs`), nearest first.

    Args:
        positions: (T,) frame numbers.
        frame_index: increasing frame numbers that were stored.

    Returns:
        (T,) places in `frame_index`; of two equally near frames the earlier one.
    """
    stored = np.asarray(frame_index, dtype=np.int64)
    right = np.clip(np.searchsorted(stored, positions), 0, len(stored) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(positions - stored[left] <= np.abs(stored[right] - positions), left, right).astype(np.int64)


def _jittered(config: DataConfig, seed: int) -> int:
    """Return the stride of one training clip."""
    if config.stride_jitter == 0:
        return config.stride
    least = max(1, config.stride - config.stride_jitter)
    return least + int(_uniform(seed, 1, b"stride")[0] * (config.stride + config.stride_jitter - least))


def _uniform(seed: int, count: int, purpose: bytes = b"") -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) as a function of the seed; those of another purpose are independent."""
    bits = hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=64, person=purpose).digest()
    while len(bits) < 8 * count:
        bits += hashlib.blake2b(bits[-64:] + seed.to_bytes(8, "big"), digest_size=64).digest()
    raw = np.frombuffer(bits, dtype=">u8", count=count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
