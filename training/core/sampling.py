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

__all__ = [
    "Index",
    "centre_frames",
    "clip_positions",
    "clip_seed",
    "epoch_order",
    "field_positions",
    "frame_positions",
    "nearest_stored",
    "stack_positions",
    "uniform_draws",
]

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
    at any with `short_start: any`. `clips`: the pictures at `clip_positions`, one clip after another: of each
    position the whole stack (`pictures: stacks`), its first frame (`positions`), or nothing.

    Args:
        num_frames: length of the clip.
        seed: of this clip in this epoch (`clip_seed`); unused in evaluation.

    Returns:
        (T,) int64 in [0, num_frames), (V·T,) in evaluation, (V·T·stack,), (V·T,) or (0,) for `clips`; non-decreasing
        within a clip that does not loop.

    Raises:
        ValueError: a clip without frames.
    """
    if num_frames < 1:
        raise ValueError(f"the clip has {num_frames} frames")
    if config.sampling == "clips":
        positions_VT = clip_positions(num_frames, config, train=train, seed=seed)
        if config.pictures == "none":
            return np.empty(0, dtype=np.int64)
        return stack_positions(positions_VT, config.stack if config.pictures == "stacks" else 1, num_frames)
    count = config.num_frames
    steps = np.arange(count, dtype=np.int64)
    if config.sampling == "dense":
        stride = _jittered(config, seed) if train else config.stride
        slack = num_frames - ((count - 1) * stride + 1)
        if train:
            choices = num_frames if slack < 0 and config.short_start == "any" else max(0, slack) + 1
            starts = np.array([int(uniform_draws(seed, 1)[0] * choices)])
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
    return edges[:-1] + (uniform_draws(seed, count) * np.diff(edges)).astype(np.int64)


def clip_positions(num_frames: int, config: DataConfig, *, train: bool, seed: int) -> Index:
    """Choose the positions of V clips of a video, T each, `stride` apart (AdaMML and its public code).

    Of L frames M = max(1, L − stack + 1) have a whole stack after them, and a clip's window is W = T·stride. In
    training, clip i of several starts at random within [i·w, (i+1)·w − 1], w = ⌊(M − W)/V⌋, so that the clips are in
    order; where that leaves no room, and for a single clip, each start is drawn from [0, M − W − 1], or is 0 in a
    video that is no longer than the window. In evaluation the V starts are spaced evenly from 0 to the last one whose
    window fits. Beyond M the video starts again.

    Args:
        num_frames: L.
        seed: of this clip in this epoch (`clip_seed`); unused in evaluation.

    Returns:
        (V,T) int64 in [0, M).

    Raises:
        ValueError: a clip without frames.
    """
    if num_frames < 1:
        raise ValueError(f"the clip has {num_frames} frames")
    clips = config.train_clips if train else config.eval_clips
    valid = max(1, num_frames - config.stack + 1)
    window = config.num_frames * config.stride
    if not train:
        starts = np.linspace(0, max(1, valid - window + 1) - 1, clips).astype(np.int64)
    else:
        share = (valid - window) // clips
        draws = uniform_draws(seed, clips, b"clips")
        if clips > 1 and share > 0:
            starts = np.arange(clips, dtype=np.int64) * share + (draws * share).astype(np.int64)
        else:
            starts = (draws * max(0, valid - window)).astype(np.int64)
    return np.asarray((starts[:, None] + np.arange(config.num_frames) * config.stride) % valid, dtype=np.int64)


def stack_positions(positions: Index, stack: int, num_frames: int) -> Index:
    """Return the frames p … p + stack − 1 of each position p, flat; beyond the end the last frame repeats."""
    frames = positions.reshape(-1, 1) + np.arange(stack, dtype=np.int64)
    return np.asarray(np.minimum(frames, num_frames - 1).ravel(), dtype=np.int64)


def field_positions(positions: Index, stack: int, num_frames: int) -> Index:
    """Return the fields of optical flow p … p + stack − 2 of each position p, flat.

    Field t leads from frame t to t + 1, so a video has one less than frames; beyond the end the last one repeats.
    """
    return stack_positions(positions, stack - 1, max(1, num_frames - 1))


def centre_frames(positions_VT: Index) -> Index:
    """Return the frame on which the sound of each clip is centred, (V,): the integer mean of the middle two of T."""
    middle = positions_VT.shape[1] // 2
    return np.asarray((positions_VT[:, max(0, middle - 1)] + positions_VT[:, middle]) // 2, dtype=np.int64)


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
    return least + int(uniform_draws(seed, 1, b"stride")[0] * (config.stride + config.stride_jitter - least))


def uniform_draws(seed: int, count: int, purpose: bytes = b"") -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) as a function of the seed; those of another purpose are independent."""
    bits = hashlib.blake2b(seed.to_bytes(8, "big"), digest_size=64, person=purpose).digest()
    while len(bits) < 8 * count:
        bits += hashlib.blake2b(bits[-64:] + seed.to_bytes(8, "big"), digest_size=64).digest()
    raw = np.frombuffer(bits, dtype=">u8", count=count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
