"""Order of samples and choice of frames."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.core.config import DataConfig, TransformConfig
from training.core.sampling import (
    centre_frames,
    clip_positions,
    clip_seed,
    epoch_order,
    field_positions,
    frame_positions,
    nearest_stored,
)

TRANSFORM = TransformConfig(size=32, train_crop="center", eval_short_side=32, flip=False, normalise="imagenet")


def config(**changes: Any) -> DataConfig:
    return DataConfig(num_frames=4, sampling="segments", batch_size=1, transform=TRANSFORM).model_copy(update=changes)


def positions(num_frames: int, *, train: bool = False, seed: int = 0, **changes: Any) -> list[int]:
    return frame_positions(num_frames, config(**changes), train=train, seed=seed).tolist()


def test_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    orders = {(seed, epoch): epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert epoch_order(50, 0, 1).tolist() == orders[0, 1]


def test_order_is_fixed_for_ever() -> None:
    # Checkpoints of earlier versions continue only if these never change.
    assert epoch_order(8, 3, 2).tolist() == [2, 3, 6, 4, 1, 7, 5, 0]
    assert clip_seed(3, 2, "clip") == 1045403892706202189


def test_clip_seeds_are_63_bit_and_distinct() -> None:
    seeds = {clip_seed(seed, epoch, f"k{key}") for seed in range(3) for epoch in range(3) for key in range(100)}
    assert len(seeds) == 900
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert max(seeds) > 1 << 61
    assert clip_seed(1, 23, "k") != clip_seed(12, 3, "k")


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        (1, [0, 0, 0, 0]),
        (3, [0, 1, 2, 2]),
        (4, [0, 1, 2, 3]),
        (5, [0, 1, 3, 4]),
        (8, [1, 3, 5, 7]),
        (100, [12, 37, 62, 87]),
    ],
)
def test_evaluation_takes_the_middle_of_each_part(num_frames: int, expected: list[int]) -> None:
    assert positions(num_frames) == expected
    assert positions(num_frames, seed=99) == expected


def test_training_takes_a_random_frame_of_each_part() -> None:
    seen: list[set[int]] = [set() for _ in range(4)]
    for seed in range(300):
        for part, position in enumerate(positions(10, train=True, seed=seed)):
            seen[part].add(position)
    assert seen == [{0, 1}, {2, 3, 4}, {5, 6}, {7, 8, 9}]
    assert positions(10, train=True, seed=5) == positions(10, train=True, seed=5)


def test_training_positions_are_uniform() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        counts[positions(20, train=True, seed=clip_seed(0, 0, str(seed)))] += 1
    # Each of the 20 frames is expected 400 times, standard deviation 18.
    assert np.abs(counts - 400).max() < 90


def test_many_frames_of_one_clip_are_drawn_independently() -> None:
    drawn = frame_positions(64 * 64, config(num_frames=64), train=True, seed=1)
    assert len(set((drawn % 64).tolist())) > 30


def test_short_clips_repeat_the_last_frame_in_training_too() -> None:
    assert positions(3, train=True, seed=4) == [0, 1, 2, 2]


def test_dense_sampling() -> None:
    dense = {"sampling": "dense", "stride": 3}
    assert positions(20, **dense) == [5, 8, 11, 14]
    starts = {positions(20, train=True, seed=seed, **dense)[0] for seed in range(200)}
    assert starts == set(range(11))
    assert positions(10, **dense) == [0, 3, 6, 9]
    assert positions(8, **dense) == positions(8, train=True, seed=3, **dense) == [0, 3, 6, 7]


def test_a_clip_without_frames_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        positions(0)


def test_nearest_stored_frame() -> None:
    places = nearest_stored(np.array([0, 4, 5, 6, 11, 40]), (2, 6, 10))
    assert places.tolist() == [0, 0, 1, 1, 2, 2]
    assert nearest_stored(np.array([3, 9]), (5,)).tolist() == [0, 0]


@pytest.mark.parametrize("num_frames", [100, 101, 64, 40, 8, 1])
def test_views_are_spaced_evenly_over_the_video(num_frames: int) -> None:
    # Eight frames every second one, ten clips: the starts of 30-view testing (§3.1 of the 3D ResNet-RS notes).
    dense = config(sampling="dense", num_frames=8, stride=2)
    views = dense.model_copy(update={"eval_clips": 10})
    clips = frame_positions(num_frames, views, train=False, seed=0).reshape(10, 8)
    starts = np.linspace(0, max(0, num_frames - 16), 10).astype(int)
    assert (clips[:, 0] == starts).all()
    assert (clips == np.minimum(starts[:, None] + 2 * np.arange(8), num_frames - 1)).all()
    one = frame_positions(num_frames, dense, train=False, seed=0)
    assert len(one) == 8
    assert one[0] == max(0, num_frames - 15) // 2
    assert len(frame_positions(num_frames, views, train=True, seed=0)) == 8


def test_short_videos_loop_or_repeat_their_last_frame() -> None:
    repeat = config(sampling="dense", num_frames=8, stride=2)
    loop = repeat.model_copy(update={"overrun": "loop"})
    assert frame_positions(5, loop, train=False, seed=0).tolist() == [0, 2, 4, 1, 3, 0, 2, 4]
    assert frame_positions(5, repeat, train=False, seed=0).tolist() == [0, 2, 4, 4, 4, 4, 4, 4]
    assert (frame_positions(30, loop, train=False, seed=0) == frame_positions(30, repeat, train=False, seed=0)).all()


def test_settings_of_dense_clips_are_refused_with_segments() -> None:
    for wrong in ({"eval_clips": 2}, {"stride": 2}, {"overrun": "loop"}, {"stride_jitter": 1}, {"centre": "period"}):
        with pytest.raises(ValueError, match="go with sampling `dense`"):
            DataConfig(num_frames=4, sampling="segments", batch_size=1, transform=TRANSFORM, **wrong)


def test_jittered_stride_excludes_its_upper_bound() -> None:
    def strides(stride: int, jitter: int, num_frames: int = 100) -> list[int]:
        drawn = []
        for seed in range(400):
            clip = positions(
                num_frames, train=True, seed=clip_seed(0, 0, str(seed)),
                sampling="dense", stride=stride, stride_jitter=jitter,
            )  # fmt: skip
            (step,) = set(np.diff(clip).tolist())
            drawn.append(step)
        return drawn

    assert set(strides(2, 0)) == {2}
    assert set(strides(2, 1)) == {1, 2}
    assert set(strides(5, 2)) == {3, 4, 5, 6}
    assert set(strides(2, 4)) == {1, 2, 3, 4, 5}
    assert set(strides(1, 1)) == {1}
    # Uniform: each of four is expected 100 times, standard deviation 9.
    assert max(abs(strides(5, 2).count(step) - 100) for step in (3, 4, 5, 6)) < 45
    # Evaluation keeps the stride.
    assert positions(100, sampling="dense", stride=5, stride_jitter=2) == positions(100, sampling="dense", stride=5)


def test_start_is_drawn_for_the_jittered_stride_and_apart_from_it() -> None:
    seen: dict[int, set[int]] = {}
    for seed in range(3000):
        clip = positions(20, train=True, seed=clip_seed(0, 0, str(seed)), sampling="dense", stride=4, stride_jitter=2)
        seen.setdefault(clip[1] - clip[0], set()).add(clip[0])
    # 20 frames, the last one 3 strides after the first: each start that fits, whatever the stride.
    assert seen == {step: set(range(20 - 3 * step)) for step in (2, 3, 4, 5)}


def test_dense_training_clips_are_fixed_for_ever() -> None:
    """Positions without the options, as they were before there were any."""
    dense = {"sampling": "dense", "stride": 3, "train": True}
    starts = [positions(50, seed=clip_seed(1, 2, str(key)), **dense)[0] for key in range(8)]
    assert starts == [22, 13, 3, 21, 27, 22, 4, 29]
    assert starts != [positions(50, seed=clip_seed(1, 3, str(key)), **dense)[0] for key in range(8)]


@pytest.mark.parametrize(("num_frames", "span", "period"), [(20, 5, 4), (21, 5, 4), (13, 1, 0), (12, 1, 0), (9, 0, 0)])
def test_centre_of_the_span_or_of_the_period(num_frames: int, span: int, period: int) -> None:
    """Four frames with stride 3: 10 frames from first to last, 12 with the stride after the last."""
    dense = {"sampling": "dense", "stride": 3, "overrun": "loop"}
    assert positions(num_frames, **dense)[0] == span
    assert positions(num_frames, **dense, centre="period")[0] == period
    # Training does not depend on it.
    for seed in range(20):
        draws = [positions(num_frames, train=True, seed=seed, **dense, centre=kind) for kind in ("span", "period")]
        assert draws[0] == draws[1]


def test_short_videos_start_anywhere_when_asked_for() -> None:
    loop = {"sampling": "dense", "stride": 3, "overrun": "loop"}

    def clips(num_frames: int, **changes: Any) -> set[tuple[int, ...]]:
        return {tuple(positions(num_frames, train=True, seed=seed, **loop, **changes)) for seed in range(300)}

    # The clip needs 10 frames. Of five, the list 0 1 2 3 4 0 1 2 3 4 … is read from each of its first five places.
    assert clips(5) == {(0, 3, 1, 4)}
    assert clips(5, short_start="any") == {(0, 3, 1, 4), (1, 4, 2, 0), (2, 0, 3, 1), (3, 1, 4, 2), (4, 2, 0, 3)}
    # One frame too short, and just long enough.
    assert {clip[0] for clip in clips(9, short_start="any")} == set(range(9))
    assert clips(10, short_start="any") == clips(10) == {(0, 3, 6, 9)}
    assert positions(5, **loop, short_start="any") == [0, 3, 1, 4]


def test_options_that_contradict_one_another_are_refused() -> None:
    def dense(**changes: Any) -> DataConfig:
        return DataConfig(num_frames=4, sampling="dense", batch_size=1, transform=TRANSFORM, **changes)

    with pytest.raises(ValueError, match="short_start goes with overrun"):
        dense(short_start="any")
    with pytest.raises(ValueError, match="centre is for one clip"):
        dense(centre="period", eval_clips=2)
    assert dense(short_start="any", overrun="loop", centre="period", stride_jitter=3).stride_jitter == 3


# --- clips ------------------------------------------------------------------------------------


def clips(**changes: Any) -> DataConfig:
    """T = 8, stride 4, window 32: the paper's."""
    base = {"num_frames": 8, "stride": 4, "sampling": "clips", "train_clips": 5, "eval_clips": 10, "stack": 6}
    return DataConfig(**{**base, "batch_size": 1, "transform": TRANSFORM, **changes})


def starts(num_frames: int, *, train: bool, seed: int = 0, **changes: Any) -> list[int]:
    cfg = clips(**changes)
    return clip_positions(num_frames, cfg, train=train, seed=seed)[:, 0].tolist()


def test_clips_of_an_evaluation_are_evenly_spaced() -> None:
    # M = 105 - 5 = 100, last start 100 - 32 = 68.
    assert starts(105, train=False) == [0, 7, 15, 22, 30, 37, 45, 52, 60, 68]
    assert starts(105, train=False, seed=7) == starts(105, train=False)
    assert starts(105, train=False, eval_clips=1) == [0]
    # The window of 32 just fits, and does not: all start at the first frame.
    assert starts(37, train=False) == starts(20, train=False) == [0] * 10
    assert starts(38, train=False, eval_clips=2) == [0, 1]


def test_positions_of_a_clip_are_a_stride_apart() -> None:
    positions = clip_positions(105, clips(), train=False, seed=0)
    assert positions.shape == (10, 8)
    assert positions.dtype == np.int64
    assert positions[1].tolist() == [7, 11, 15, 19, 23, 27, 31, 35]


def test_short_videos_wrap() -> None:
    # M = 10: positions 0, 4, 8, 12 mod 10, …
    assert clip_positions(15, clips(), train=False, seed=0)[3].tolist() == [0, 4, 8, 2, 6, 0, 4, 8]
    # Shorter than a stack: only the first frame has a position, and stacks repeat the last.
    assert not clip_positions(4, clips(), train=True, seed=3).any()
    assert frame_positions(4, clips(), train=False, seed=0)[:6].tolist() == [0, 1, 2, 3, 3, 3]


def test_training_starts_fill_their_shares_evenly() -> None:
    # M = 100, w = (100 - 32) // 5 = 13.
    seen = np.array([starts(105, train=True, seed=clip_seed(0, 0, str(s))) for s in range(2000)])
    for clip in range(5):
        assert set(seen[:, clip].tolist()) == set(range(13 * clip, 13 * clip + 13))
    # Expected 154 each, standard deviation 12: draws of the clips are independent and even.
    assert np.abs(np.bincount(seen.ravel(), minlength=65) - 2000 / 13).max() < 65
    assert abs(np.corrcoef(seen[:, 0], seen[:, 1])[0, 1]) < 0.1


def test_without_room_for_shares_every_start_is_free() -> None:
    # M = 35, w = 0: each from [0, 2], in no order.
    seen = np.array([starts(40, train=True, seed=s) for s in range(300)])
    assert all(set(seen[:, clip].tolist()) == {0, 1, 2} for clip in range(5))
    assert (np.diff(seen, axis=1) < 0).any()
    # One clip is free in the whole video, up to M - W - 1.
    single = {starts(105, train=True, seed=s, train_clips=1)[0] for s in range(2000)}
    assert (min(single), max(single)) == (0, 67)
    assert starts(37, train=True, seed=5) == [0] * 5


def test_pictures_of_clips() -> None:
    positions = clip_positions(105, clips(), train=False, seed=0)
    stacks = frame_positions(105, clips(), train=False, seed=0)
    assert stacks.shape == (10 * 8 * 6,)
    assert stacks.reshape(10, 8, 6)[3, 2].tolist() == [30 + k for k in range(6)]
    assert frame_positions(105, clips(pictures="positions"), train=False, seed=0).tolist() == positions.ravel().tolist()
    listens = clips(pictures="none", stack=1, sound={"rate": 8000, "samples": 100})
    assert frame_positions(105, listens, train=False, seed=0).shape == (0,)
    for train in (False, True):
        cfg = clips()
        expected = cfg.train_frames if train else cfg.eval_frames
        assert len(frame_positions(105, cfg, train=train, seed=1)) == expected


def test_fields_of_optical_flow() -> None:
    positions = clip_positions(105, clips(), train=False, seed=0)
    fields = field_positions(positions, 6, 105).reshape(10, 8, 5)
    assert fields[0, 0].tolist() == [0, 1, 2, 3, 4]
    # 105 frames have the fields 0 to 103.
    last = clip_positions(105, clips(stride=1), train=False, seed=0)
    assert field_positions(last, 6, 105).max() == last.max() + 4 <= 103
    assert field_positions(np.array([[0]]), 6, 3).tolist() == [0, 1, 1, 1, 1]


def test_centre_of_a_clip() -> None:
    positions = clip_positions(105, clips(), train=False, seed=0)
    # Frames 12 and 16 of the first, 19 and 23 of the second.
    assert centre_frames(positions)[:2].tolist() == [14, 21]
    assert centre_frames(np.array([[3], [9]])).tolist() == [3, 9]
    assert centre_frames(np.array([[1, 5, 9]])).tolist() == [3]
    # A wrapped clip: the frames that are shown count.
    assert centre_frames(np.array([[0, 4, 8, 2]])).tolist() == [6]


@settings(deadline=None, max_examples=150)
@given(
    length=st.integers(1, 4000),
    seed=st.integers(0, 2**63 - 1),
    train_clips=st.integers(1, 8),
    stack=st.integers(1, 7),
    frames=st.integers(1, 9),
    stride=st.integers(1, 9),
)
def test_clips_of_any_video(length: int, seed: int, train_clips: int, stack: int, frames: int, stride: int) -> None:
    cfg = clips(train_clips=train_clips, stack=stack, num_frames=frames, stride=stride)
    window, valid = frames * stride, max(1, length - stack + 1)
    for train in (True, False):
        positions = clip_positions(length, cfg, train=train, seed=seed)
        assert positions.shape == (train_clips if train else 10, frames)
        assert positions.min() >= 0
        assert positions.max() < valid
        assert ((positions - positions[:, :1] - np.arange(frames) * stride) % valid == 0).all()
        pictures = frame_positions(length, cfg, train=train, seed=seed)
        assert 0 <= pictures.min() <= pictures.max() < length
        if length >= stack:
            # Nothing was clamped.
            assert (np.diff(pictures.reshape(-1, stack), axis=1) == 1).all()
    drawn = clip_positions(length, cfg, train=True, seed=seed)
    assert (drawn == clip_positions(length, cfg, train=True, seed=seed)).all()
    even = clip_positions(length, cfg, train=False, seed=seed)
    assert (even == clip_positions(length, cfg, train=False, seed=seed ^ 1)).all()
    share = (valid - window) // train_clips
    if train_clips > 1 and share > 0:
        assert (drawn[:, 0] // share == np.arange(train_clips)).all()
        # No clip wraps.
        assert (np.diff(drawn, axis=1) == stride).all()
    if valid - window > 1000 and train_clips > 3:
        assert (drawn != clip_positions(length, cfg, train=True, seed=seed ^ 12345)).any()
        assert drawn.tolist() != even[:train_clips].tolist()


def test_a_video_without_frames_has_no_clips() -> None:
    for call in (clip_positions, frame_positions):
        with pytest.raises(ValueError, match="the clip has 0 frames"):
            call(0, clips(), train=True, seed=0)
