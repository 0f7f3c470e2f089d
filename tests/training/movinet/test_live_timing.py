"""Times and choice of frames, against brute force."""

from fractions import Fraction

import numpy as np
import pytest

from training.movinet.live.timing import WRAP, FrameSelector, Timeline, nearest_frames

MPEG = Fraction(1, 90_000)


def brute_force(times, rate):
    """Nearest frame of each tick, the earlier one where two are equally near to a millisecond; each once."""
    padded = np.append(times, 2 * times[-1] - times[-2])  # one more frame, which is not counted
    ticks = np.arange(int(padded[-1] * rate) + 2) / rate
    far = np.abs(padded[None] - ticks[ticks <= padded[-1], None])
    return sorted(set(np.argmax(far <= far.min(1, keepdims=True) + 2e-3, axis=1).tolist()) - {len(times)})


@pytest.mark.parametrize("fps", [8, 10, 12.5, 24, 25, 30000 / 1001, 30, 60])
@pytest.mark.parametrize("rate", [1, 5, 7.5, 10, 12, 25, 30])
def test_the_nearest_frame_of_each_tick_is_chosen(fps, rate):
    times = [n / fps for n in range(97)]
    assert nearest_frames(times, rate) == brute_force(times, rate)


@pytest.mark.parametrize("seed", range(20))
def test_irregular_times(seed):
    rng = np.random.default_rng(seed)
    times = np.concatenate([[0.0], np.cumsum(rng.choice([0.013, 0.04, 0.05, 0.3, 2.0], 60))]).round(6)
    assert nearest_frames(list(times), 8.3) == brute_force(times, 8.3)


def test_ticks_on_frames_are_every_nth_frame_whatever_the_rounding():
    for digits in (3, 9):  # Matroska's milliseconds, and nearly exact
        times = [round(n / 30, digits) for n in range(300)]
        assert nearest_frames(times, 10) == list(range(0, 300, 3))
        assert nearest_frames(times, 30) == list(range(300))


def test_frames_on_ticks_are_chosen_at_once_and_others_one_frame_late():
    selector = FrameSelector(5.0)
    assert [selector.add(n / 25, n) for n in range(11)] == [[0], [], [], [], [], [5], [], [], [], [], [10]]
    selector = FrameSelector(1.0)
    assert [selector.add(time, time) for time in (0.0, 0.9, 1.3)] == [[0.0], [], [0.9]]


def test_slow_source_gives_each_frame_once_and_no_rate_all_frames():
    times = [0.0, 0.2, 0.39, 0.6, 0.83]
    assert nearest_frames(times, 25) == [0, 1, 2, 3, 4]
    assert nearest_frames([0.0, 0.001, 0.002], None) == [0, 1, 2]
    assert nearest_frames([], 25) == []
    with pytest.raises(ValueError, match="must be positive"):
        FrameSelector(0.0)


def test_long_gap_costs_nothing():
    assert nearest_frames([0.0, 1e7, 1e7 + 0.1], 1000) == [0, 1, 2]


def places(timeline, stamps):
    return [timeline.place(pts) for pts in stamps]


def test_time_starts_at_the_first_frame():
    timeline = Timeline()
    timeline.open(MPEG, 0.04)
    assert places(timeline, [126_000, 129_600, 140_400]) == [(0.0, False), (0.04, False), (0.16, False)]


def test_every_wrap_is_undone_and_other_clocks_do_not_wrap():
    timeline = Timeline()
    timeline.open(MPEG, 0.04)
    stamps = [(WRAP - 3600 + k * (WRAP // 4)) % WRAP for k in range(13)]  # three times around
    seen = places(timeline, stamps)
    assert [time for time, _ in seen] == pytest.approx([k * (WRAP // 4) / 90_000 for k in range(13)])
    assert not any(back for _, back in seen)
    timeline = Timeline()
    timeline.open(Fraction(1, 12_800), 0.04)
    assert places(timeline, [WRAP - 512, 0, 512]) == [(0.0, False), (0.04, True), (0.08, False)]


def test_step_back_and_missing_timestamps():
    timeline = Timeline()
    timeline.open(Fraction(1, 100), 0.04)
    assert places(timeline, [500, 508, 100, 104, 104]) == [
        (0.0, False), (0.08, False), (0.12, True), (pytest.approx(0.16), False), (pytest.approx(0.16), False)
    ]  # fmt: skip
    timeline = Timeline()
    timeline.open(Fraction(1, 100), 0.5)
    assert places(timeline, [None, None, None]) == [(0.0, False), (0.5, False), (1.0, False)]


def test_a_new_connection_continues_after_the_time_away():
    timeline = Timeline()
    timeline.open(Fraction(1, 100), 0.04)
    timeline.place(0)
    timeline.place(100)
    timeline.open(Fraction(1, 1000), 0.04, away_s=3.0)
    assert places(timeline, [77_000, 77_500]) == [(4.0, False), (4.5, False)]
    timeline.open(Fraction(1, 1000), 0.04)
    assert timeline.place(5) == (pytest.approx(4.54), False)
