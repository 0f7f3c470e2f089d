"""The written video: its frames, its rate, and that it is whole however the run ends."""

import av
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from training.core.overlay import COLOUR, OverlayError
from training.movinet.live.overlay import LiveOverlay, draw_answer
from training.movinet.live.reader import LiveReader
from training.movinet.live.session import Answer

ANSWER = Answer(0.0, 0, ("waving", "walking", "standing"), (0.9, 0.07, 0.03), 0, 1.0, 1.0)


def grey(count: int) -> np.ndarray:
    """Return frames whose grey says their number: 40 + 8·n."""
    return np.stack([np.full((64, 64, 3), 40 + 8 * n, np.uint8) for n in range(count)])


def probe(path) -> tuple[list[int], list[float], tuple[int, int]]:
    """Return the frame numbers that the pictures show (right centre, clear of bars and label), times and size."""
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.video[0]))
        pictures = [frame.to_ndarray(format="rgb24") for frame in frames]
        numbers = [round((float(p[110:150, -60:-10].mean()) - 40) / 8) for p in pictures]
        return numbers, [round(frame.time, 3) for frame in frames], pictures[0].shape[:2]


def write(source, target, program=None, after=lambda number: None) -> LiveOverlay:
    with LiveReader(str(source)) as reader, LiveOverlay(target, program or get_ffmpeg_exe()) as overlay:
        for frame in reader:
            overlay.write(frame, ANSWER, 0, reader.rate)
            after(frame.number)
            assert not target.exists()  # only when it is complete
    return overlay


def test_constant_rate_keeps_frames_and_rate(tmp_path, mp4_encoder):
    mp4_encoder(grey(20), tmp_path / "in.mp4")
    overlay = write(tmp_path / "in.mp4", tmp_path / "out" / "live.mp4")
    expected = list(range(20)), [n / 10 for n in range(20)], (256, 256)
    assert probe(tmp_path / "out" / "live.mp4") == expected
    with av.open(str(tmp_path / "out" / "live.mp4")) as container:
        assert (container.streams.video[0].average_rate, container.streams.video[0].frames) == (10, 20)
    assert (overlay.written, overlay.merged) == (20, 0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["live.mp4"]


def test_variable_rate_puts_each_frame_at_its_time(tmp_path, mp4_encoder):
    choice = r"select='not(mod(n\,3))+not(mod(n\,5))'"
    mp4_encoder(grey(20), tmp_path / "in.mp4", "-vf", choice, "-fps_mode", "vfr")
    write(tmp_path / "in.mp4", tmp_path / "o.mp4")
    kept = [n for n in range(20) if n % 3 == 0 or n % 5 == 0]
    assert probe(tmp_path / "o.mp4")[:2] == (kept, [n / 10 for n in kept])


def test_a_gap_stays_and_costs_no_pictures(tmp_path, mp4_encoder):
    mp4_encoder(grey(6), tmp_path / "in.mp4", "-vf", r"setpts='PTS+gte(N\,3)*1000/TB'", "-fps_mode", "passthrough")
    overlay = write(tmp_path / "in.mp4", tmp_path / "o.mp4")
    numbers, times, _ = probe(tmp_path / "o.mp4")
    assert (numbers, overlay.written) == ([0, 1, 2, 3, 4, 5], 6)
    assert times == pytest.approx([0, 0.1, 0.2, 1000.3, 1000.4, 1000.5])


def test_frames_faster_than_the_file_are_counted(tmp_path, mp4_encoder):
    mp4_encoder(grey(20), tmp_path / "in.mp4")
    with LiveReader(str(tmp_path / "in.mp4")) as reader, LiveOverlay(tmp_path / "o.mp4", get_ffmpeg_exe()) as overlay:
        for frame in reader:
            overlay.write(frame, ANSWER, 0, 5.0)
    numbers, times, _ = probe(tmp_path / "o.mp4")
    assert len(numbers) == overlay.written
    assert times == pytest.approx([n / 5 for n in range(len(times))])
    assert overlay.written + overlay.merged == 20
    assert overlay.merged > 8


def test_the_first_frame_that_was_read_starts_the_file(tmp_path, mp4_encoder):
    """Its frames before were dropped: the file does not begin with nothing."""
    mp4_encoder(grey(20), tmp_path / "in.mp4")
    with LiveReader(str(tmp_path / "in.mp4")) as reader, LiveOverlay(tmp_path / "o.mp4", get_ffmpeg_exe()) as overlay:
        for frame in reader:
            if frame.number >= 12:
                overlay.write(frame, ANSWER, 12, 10.0)
    assert probe(tmp_path / "o.mp4")[:2] == (list(range(12, 20)), [n / 10 for n in range(8)])


def test_answer_is_drawn_and_the_models_frame_is_not_touched(tmp_path, mp4_encoder):
    mp4_encoder(np.full((3, 256, 256, 3), 40, np.uint8), tmp_path / "in.mp4")
    with LiveReader(str(tmp_path / "in.mp4")) as reader, LiveOverlay(tmp_path / "o.mp4", get_ffmpeg_exe()) as overlay:
        for frame in reader:
            overlay.write(frame, ANSWER, 2, reader.rate)
            assert int(frame.pixels.max()) < 60
    with av.open(str(tmp_path / "o.mp4")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture[230:].max() > 180  # the label
    assert picture[60:200, 100:].max() < 60
    bars = np.abs(picture.astype(int) - COLOUR).sum(-1) < 120
    lengths = [int(bars[top : top + 10].sum()) for top in (5, 22, 39)]
    assert lengths[0] > 3 * lengths[1] > 0
    bare = np.full((256, 256, 3), 40, np.uint8)
    draw_answer(bare, 1.0, None, 0)
    assert bare[:200].max() == 40  # no bars before the first answer
    assert bare[230:].max() > 180


def test_failure_of_the_run_leaves_a_playable_file(tmp_path, mp4_encoder):
    mp4_encoder(grey(12), tmp_path / "in.mp4")

    def stop(number: int) -> None:
        if number == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "in.mp4", tmp_path / "o.mp4", after=stop)
    assert probe(tmp_path / "o.mp4")[0] == list(range(7))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "o.mp4"]


def test_other_picture_size_is_fitted_to_the_first(tmp_path, mp4_encoder):
    with LiveOverlay(tmp_path / "o.mp4", get_ffmpeg_exe()) as overlay:
        shift = 0.0
        for side in (64, 320):
            mp4_encoder(np.full((4, side, side, 3), 80, np.uint8), tmp_path / "in.mp4")
            with LiveReader(str(tmp_path / "in.mp4")) as reader:
                for frame in reader:
                    frame.time_s += shift
                    overlay.write(frame, ANSWER, 0, 10.0)
            shift = 0.4
    assert probe(tmp_path / "o.mp4") == ([5] * 8, [n / 10 for n in range(8)], (256, 256))


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path, mp4_encoder):
    with pytest.raises(OverlayError, match="name it so"):
        LiveOverlay(tmp_path / "o.avi", get_ffmpeg_exe())
    with LiveOverlay(tmp_path / "empty.mp4", get_ffmpeg_exe()):
        pass
    assert list(tmp_path.iterdir()) == []
    mp4_encoder(grey(12), tmp_path / "in.mp4")
    failing = tmp_path / "ffmpeg"
    failing.write_text("#!/bin/sh\necho disk full >&2\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(OverlayError, match=r"o\.mp4: ffmpeg could not write it: disk full"):
        write(tmp_path / "in.mp4", tmp_path / "o.mp4", program=str(failing))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ffmpeg", "in.mp4"]
