import av
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from training.core.config import DataConfig
from training.core.decode import frame_times
from training.core.overlay import write_overlay
from training.core.overlay_timeline import LINES, PRESENT, ROWS, Band, Timeline, clip_times
from training.core.prediction import clip_frames

NAMES = ("rgb", "audio")
USED = np.array([[True, False], [False, True], [False, False], [True, True]])
AVAILABLE = np.array([[True, True], [True, True], [True, False], [True, True]])
FOUR = np.array([[0.0, 0.5], [0.5, 1.0], [1.0, 1.5], [1.5, 2.0]])


def pictures(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def like(pixels: np.ndarray, colour: tuple[int, int, int], within: int = 60) -> float:
    """Return the share of pixels that have about a colour."""
    return float((np.abs(pixels.astype(int) - np.array(colour)).sum(-1) < within).mean())


def inner(picture: np.ndarray, band: Band, clip: int, row: int) -> np.ndarray:
    y0, x0, y1, x1 = band.cell(clip, row)
    return picture[y0 + 3 : y1 - 3, x0 + 4 : x1 - 4]


def test_band_shows_used_skipped_and_absent():
    band = Band(Timeline(NAMES, FOUR, USED, AVAILABLE), 320, 256)
    assert band.height % 2 == 0
    still = band.at(-1.0)
    for clip in range(4):
        for row in range(2):
            seen = inner(still, band, clip, row)
            if USED[clip, row]:
                assert like(seen, ROWS[row]) > 0.95
            elif AVAILABLE[clip, row]:
                assert like(seen, ROWS[row]) == 0
                assert like(seen, LINES, 12) == 0
            else:
                assert 0.1 < like(seen, LINES, 12) < 0.4
    # The outline of a skipped cell is there, too.
    y0, x0, _, x1 = band.cell(1, 0)
    assert still[y0, x0:x1].astype(int).sum() > 2 * still[y0 + 4, x0 + 4 : x1 - 4].astype(int).sum()


def test_present_moves_through_clips_that_follow_one_another():
    timeline = Timeline(NAMES, FOUR, USED)
    assert [timeline.column(t) for t in (0.0, 0.25, 0.5, 1.75, 2.0, 9.0)] == [0.0, 0.5, 1.0, 3.5, 4.0, 4.0]
    apart = Timeline(NAMES, FOUR + np.arange(4)[:, None], USED)  # a second between any two
    assert [apart.column(t) for t in (0.25, 0.5, 1.0, 1.5, 1.75)] == [0.5, 1.0, 1.0, 1.0, 1.5]
    assert apart.present(1.0).tolist() == [False] * 4
    band = Band(timeline, 320, 256)
    places = []
    for time_s in (0.2, 0.9, 1.6):
        bright = (band.at(time_s).astype(int) - band.at(-1.0).astype(int)).sum(-1)
        columns = np.flatnonzero((band.at(time_s)[band.pad + 4 : band.pad + 12] == PRESENT).all((0, 2)))
        assert bright.any()
        assert len(columns) == 1
        places.append(int(columns[0]))
        _, x0, _, x1 = band.cell(int(time_s / 0.5), 0)
        assert x0 - 1 <= columns[0] <= x1
    assert places == sorted(places)


def test_overlapping_clips_are_passed_in_their_middle():
    starts = np.linspace(0.0, 0.9, 4)
    timeline = Timeline(NAMES, np.stack([starts, starts + 1.0], axis=1), USED)
    for clip, start in enumerate(starts):
        assert timeline.column(float(start) + 0.5) == pytest.approx(clip + 0.5)
    assert timeline.column(0.0) == 0.0
    assert timeline.column(1.9) == pytest.approx(4.0)
    assert timeline.present(0.95).tolist() == [True, True, True, True]
    assert timeline.present(0.2).tolist() == [True, False, False, False]


def test_clips_of_one_moment_have_no_line_and_unordered_ones_are_sorted():
    same = Timeline(NAMES, np.array([[0.0, 1.0]] * 4), USED)
    assert same.column(0.5) is None
    band = Band(same, 320, 256)
    assert band.at(0.5).shape == (band.height, 320, 3)
    turned = Timeline(NAMES, FOUR[::-1].copy(), USED[::-1].copy(), AVAILABLE[::-1].copy())
    assert (Band(turned, 320, 256).at(0.3) == Band(Timeline(NAMES, FOUR, USED, AVAILABLE), 320, 256).at(0.3)).all()


@pytest.mark.parametrize(("width", "height", "clips"), [(32, 3840, 10), (256, 256, 100), (1920, 1080, 10), (2, 2, 1)])
def test_any_size_and_number_of_clips_fits(width, height, clips):
    rng = np.random.default_rng(0)
    used = rng.random((clips, 3)) < 0.5
    times = np.stack([np.arange(clips), np.arange(clips) + 1.0], axis=1)
    band = Band(Timeline(("rgb", "ein langer Name mit Ü", "audio"), times, used), width, height)
    assert band.at(clips / 2).shape == (band.height, width, 3)
    assert band.left <= width / 3
    assert band.row <= 40


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time_S2": np.zeros((4, 3))}, r"time_S2 must be \(4, 2\)"),
        ({"used_SR": np.zeros((4, 3), bool)}, r"used_SR must be \(4, 2\), one column for each name"),
        ({"available_SR": np.zeros((3, 2), bool)}, "available_SR must be"),
        ({"time_S2": np.zeros((0, 2))}, "at least one clip"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, said):
    whole = {"names": NAMES, "time_S2": FOUR, "used_SR": USED, "available_SR": AVAILABLE}
    with pytest.raises(ValueError, match=said):
        Timeline(**(whole | changes))


@pytest.mark.parametrize(("side", "sound"), [(128, True), (257, False)])
def test_video_gets_a_band_and_its_picture_and_sound_stay(make_clip, tmp_path, side, sound):
    source, plain, banded = tmp_path / "in.mp4", tmp_path / "plain.mp4", tmp_path / "band.mp4"
    even = side // 2 * 2
    source.write_bytes(make_clip((20, 120, 20), 0, frames=16, side=even, sound=sound))
    timeline = Timeline(NAMES, FOUR, USED, AVAILABLE)
    first = write_overlay(source, plain, label="green 97%", ffmpeg_program=get_ffmpeg_exe())
    second = write_overlay(source, banded, label="green 97%", timeline=timeline, ffmpeg_program=get_ffmpeg_exe())
    assert first == second
    assert second.sound == ("copied" if sound else "none")
    without, within = pictures(plain), pictures(banded)
    height, width, _ = without[0].shape
    band = Band(timeline, width, height)
    assert len(within) == len(without) == 16
    for number, (old, new) in enumerate(zip(without, within, strict=True)):
        assert new.shape == (height + band.height, width, 3)
        # The last rows share blocks of the encoder with the band.
        assert np.abs(new[: height - 16].astype(int) - old[: height - 16].astype(int)).mean() < 3
        drawn = new[height:]
        time_s = number / 8
        for clip in range(4):
            if FOUR[clip, 0] <= time_s < FOUR[clip, 1]:
                continue  # the line is there
            for row in range(2):
                seen = inner(drawn, band, clip, row)
                if USED[clip, row]:
                    assert like(seen, ROWS[row], 90) > 0.8
                else:
                    assert like(seen, ROWS[row], 90) < 0.1
    with av.open(str(source)) as one, av.open(str(banded)) as two:
        if sound:
            packets = [[bytes(p) for p in c.demux(audio=0) if p.size] for c in (one, two)]
            assert packets[0] == packets[1]
            assert len(packets[0]) > 3
        assert two.streams.video[0].average_rate == one.streams.video[0].average_rate


def test_line_is_where_the_present_is_in_the_written_video(make_clip, tmp_path):
    source, target = tmp_path / "in.mp4", tmp_path / "o.mp4"
    source.write_bytes(make_clip((20, 20, 20), 0, frames=16, side=256))
    timeline = Timeline(NAMES, FOUR, np.zeros_like(USED))
    write_overlay(source, target, label="grey", timeline=timeline, ffmpeg_program=get_ffmpeg_exe())
    band = Band(timeline, 256, 256)
    for number, frame in enumerate(pictures(target)):
        brightness = frame[256 + band.pad + 2 : 256 + band.pad + 2 * band.row - 2, band.left :].mean((0, 2))
        _, x0, _, x1 = band.cell(number // 4, 0)
        assert x0 - 2 <= band.left + int(brightness.argmax()) <= x1 + 2


def data(**changes) -> DataConfig:
    transform = {
        "size": 32, "train_crop": "center", "eval_short_side": 32, "flip": False, "normalise": "symmetric",
    }  # fmt: skip
    whole = {"num_frames": 2, "sampling": "clips", "stride": 2, "eval_clips": 3, "batch_size": 1}
    return DataConfig.model_validate(whole | {"transform": transform} | changes)


def test_times_of_clips_are_those_of_the_frames_that_are_seen(make_clip, tmp_path):
    source = tmp_path / "in.mp4"
    source.write_bytes(make_clip((20, 20, 20), 0, frames=16, side=64))  # 8 per second
    times = np.array(frame_times(source))
    # Starts 0, 6 and 12; frames s and s + 2.
    expected = np.array([[0, 3], [6, 9], [12, 15]]) / 8
    for changes in ({}, {"pictures": "none", "sound": {"rate": 8000, "samples": 800}}, {"pictures": "positions"}):
        frames = clip_frames(source, data(**changes), 16, 3)
        assert clip_times(frames, times) == pytest.approx(expected)
    # A stack of three frames reaches two further; starts 0, 5 and 10.
    stacked = clip_times(clip_frames(source, data(stack=3), 16, 3), times)
    assert stacked == pytest.approx(np.array([[0, 5], [5, 10], [10, 15]]) / 8)
    dense = clip_times(clip_frames(source, data(sampling="dense"), 16, 3), times)
    assert dense == pytest.approx(expected)
    with pytest.raises(ValueError, match="the model chose for 4 clips, the loader reads 3 of each video"):
        clip_frames(source, data(), 16, 4)
