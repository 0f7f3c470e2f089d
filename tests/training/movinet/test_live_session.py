"""Runs of a small real network (the running mean of colours) over real clips."""

import itertools
import socket
import threading

import numpy as np
import pytest

from training.movinet.live.reader import LiveError, LiveReader
from training.movinet.live.session import LiveSession, resident_bytes

COUNT = 30


class MeanColour:
    """Classifies by the mean colour of all frames since the last reset; remembers what it was asked."""

    classes = ("red", "green", "blue")
    state_bytes = 28

    def __init__(self, stride: int = 1) -> None:
        self.stride = stride
        self.pushed: list[int] = []
        self.reset()

    def reset(self) -> None:
        self._sum_K, self._count = np.zeros(3), 0

    def push(self, frames_THWC: np.ndarray) -> np.ndarray:
        assert frames_THWC.dtype == np.uint8
        assert frames_THWC.flags.writeable  # torch warns about others
        self.pushed.append(len(frames_THWC))
        answers = []
        for frame in frames_THWC:
            self._sum_K, self._count = self._sum_K + frame.mean((0, 1)), self._count + 1
            answers.append(self._sum_K / self._sum_K.sum())
        return np.array(answers, np.float32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, mp4_encoder):
    """30 frames at 10 per second: ten red, ten green, ten blue."""
    frames = np.full((COUNT, 48, 64, 3), 10, np.uint8)
    for number in range(COUNT):
        frames[number, ..., number // 10] = 80 + 5 * (number % 10) + 40 * (number // 10)
    path = tmp_path_factory.mktemp("session") / "clip.mp4"
    mp4_encoder(frames, path)
    return path


def run(clip, model=None, *, reader=None, **settings):
    model = model or MeanColour()
    with LiveReader(str(clip), **(reader or {})) as source:
        session = LiveSession(model, source, **settings)
        answers = list(session.answers())
        return answers, session.summary()


def scores(answers) -> np.ndarray:
    """Return (T,3) scores in the order of the classes."""
    return np.array([[dict(zip(a.classes, a.scores, strict=True))[c] for c in MeanColour.classes] for a in answers])


def test_one_answer_per_frame_and_a_summary(clip):
    answers, summary = run(clip)
    assert [answer.frame for answer in answers] == list(range(COUNT))
    assert [answer.time_s for answer in answers] == pytest.approx([n / 10 for n in range(COUNT)])
    assert answers[0].classes[0] == answers[9].classes[0] == "red"
    assert answers[-1].classes[0] == "blue"
    for answer in answers:
        assert list(answer.scores) == sorted(answer.scores, reverse=True)
        assert answer.latency_ms >= 0
    assert (summary.decoded, summary.read, summary.selected, summary.dropped) == (COUNT, COUNT, COUNT, 0)
    assert (summary.ended, summary.resets, summary.state_bytes, summary.model_rate) == ("end of stream", 0, 28, None)
    assert summary.seconds == pytest.approx(2.9)
    assert summary.source_rate == pytest.approx(10)
    assert summary.latency_ms_p50 <= summary.latency_ms_p95
    assert not summary.slower_than_model
    if resident_bytes() is not None:
        assert summary.rss_peak_growth_bytes >= summary.rss_growth_bytes


@pytest.mark.parametrize("chunk", [3, 7, 100])
def test_answers_do_not_depend_on_the_chunk(clip, chunk):
    model = MeanColour()
    answers, _ = run(clip, model, chunk=chunk)
    expected, _ = run(clip)
    np.testing.assert_array_equal(scores(answers), scores(expected))
    assert model.pushed == [chunk] * (COUNT // chunk) + [COUNT % chunk] * bool(COUNT % chunk)


def test_frames_come_at_the_models_rate(clip):
    answers, summary = run(clip, MeanColour(stride=4))
    assert [answer.frame for answer in answers] == list(range(0, COUNT, 4))
    assert (summary.read, summary.selected) == (COUNT, 8)
    answers, summary = run(clip, MeanColour(stride=4), rate=25)
    assert [answer.frame for answer in answers] == list(range(COUNT))
    assert summary.slower_than_model


def test_top_is_limited_to_the_classes(clip):
    assert {len(answer.classes) for answer in run(clip, top=2)[0]} == {2}
    assert {len(answer.classes) for answer in run(clip, top=9)[0]} == {3}


@pytest.mark.parametrize("chunk", [1, 4])
def test_reset_every_second_makes_each_second_a_video_of_its_own(clip, chunk):
    answers, summary = run(clip, reset_every_s=1.0, chunk=chunk)
    assert summary.resets == 2
    assert [answer.classes[0] for answer in answers] == ["red"] * 10 + ["green"] * 10 + ["blue"] * 10
    kept, _ = run(clip, chunk=chunk)
    np.testing.assert_array_equal(scores(answers)[:10], scores(kept)[:10])
    assert kept[10].classes[0] == "red"  # the control: without the reset the past counts


def test_reset_on_gap(clip, tmp_path, mp4_encoder):
    path = tmp_path / "gap.mp4"
    frames = np.full((20, 48, 64, 3), 10, np.uint8)
    frames[:12, ..., 0], frames[12:, ..., 2] = 140, 120
    mp4_encoder(frames, path, "-vf", r"setpts='PTS+gte(N\,12)*5/TB'", "-fps_mode", "passthrough")
    answers, summary = run(path, reset_on_gap_s=2.0)
    assert (summary.resets, summary.gaps) == (1, 1)
    assert answers[12].time_s == pytest.approx(6.2)
    assert answers[12].classes[0] == "blue"
    answers, summary = run(path, reset_on_gap_s=6.0)
    assert (summary.resets, answers[12].classes[0]) == (0, "red")
    assert run(path)[1].resets == 0


def test_dropped_frames_are_no_gap_unless_they_are_many(clip):
    """What was dropped since the last frame that the network saw counts as time without frames."""
    for limit, resets in ((2.0, 1), (4.0, 0)):
        with LiveReader(str(clip), realtime=True, queue=2) as reader:
            session = LiveSession(MeanColour(), reader, reset_on_gap_s=limit)
            answers = session.answers()
            seen = [next(answers)]
            while reader.counts.decoded < COUNT:
                threading.Event().wait(0.01)
            seen += answers
            summary = session.summary()
        assert [answer.frame for answer in seen] == [0, 28, 29]
        assert (summary.dropped, summary.read, summary.resets) == (COUNT - 3, 3, resets)
        assert [answer.dropped for answer in seen] == [0, COUNT - 3, COUNT - 3]


def test_time_limit_and_interruption_end_in_order(clip):
    answers, summary = run(clip, max_seconds=1.5, chunk=4)
    assert [answer.frame for answer in answers] == list(range(15))
    assert summary.ended == "time limit"
    with LiveReader(str(clip)) as reader:
        session = LiveSession(MeanColour(), reader)
        answers = []
        for answer in session.answers():
            answers.append(answer)
            if len(answers) == 5:
                session.interrupt()
        assert (len(answers), session.summary().ended) == (5, "interrupted")


def test_every_read_frame_is_shown_with_the_newest_answer(clip):
    shown = []
    run(clip, MeanColour(stride=4), on_frame=lambda frame, answer, dropped: shown.append((frame.number, answer.frame)))
    assert shown == [(number, number // 4 * 4) for number in range(COUNT)]


def test_error_of_the_source_comes_after_the_answers(clip, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size * 3 // 4])
    with LiveReader(str(path)) as reader:
        session = LiveSession(MeanColour(), reader, chunk=4)
        answers = session.answers()
        assert [answer.frame for answer in itertools.islice(answers, 4)] == [0, 1, 2, 3]
        with pytest.raises(LiveError, match=r"cut\.mp4"):
            list(answers)
        summary = session.summary()
    assert summary.ended == "error"
    assert 0 < summary.selected == summary.read < COUNT


def test_size_that_changes_in_the_stream(tmp_path, mp4_encoder):
    """A sender that starts again with another picture size: the chunk before it is answered first."""
    import subprocess

    from imageio_ffmpeg import get_ffmpeg_exe

    content = b""
    for side in (64, 96):
        path = tmp_path / f"{side}.mp4"
        mp4_encoder(np.full((5, side, side, 3), 90, np.uint8), path)
        transport = path.with_suffix(".ts")
        subprocess.run(
            [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-c", "copy", "-f", "mpegts", str(transport)],
            check=True,
        )
        content += transport.read_bytes()
    server = socket.create_server(("127.0.0.1", 0))

    def send() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(content)

    thread = threading.Thread(target=send)
    thread.start()
    model = MeanColour()
    answers, _ = run(
        f"tcp://127.0.0.1:{server.getsockname()[1]}", model, reader={"queue": 20}, chunk=4, reset_on_gap_s=5.0
    )
    thread.join()
    server.close()
    assert len(answers) == 10
    assert model.pushed == [4, 1, 4, 1]


def test_wrong_settings_and_wrong_models(clip):
    class Wrong(MeanColour):
        def push(self, frames_THWC):
            return super().push(frames_THWC)[:1]

    with pytest.raises(ValueError, match=r"answered \(1, 3\) to 4 frames, expected \(4, 3\)"):
        run(clip, Wrong(), chunk=4)
    with pytest.raises(ValueError, match="at least one frame"):
        run(clip, chunk=0)
    with pytest.raises(ValueError, match="reset_every_s must be positive"):
        run(clip, reset_every_s=0.0)


def test_interruption_of_a_silent_source(clip):
    """Nothing ever comes: the run ends at once, the hanging read at its time-out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        reader = LiveReader(f"tcp://127.0.0.1:{server.getsockname()[1]}", timeout_s=1.0)
        reader.start()
        session = LiveSession(MeanColour(), reader)
        timer = threading.Timer(0.2, session.interrupt)
        timer.start()
        assert list(session.answers()) == []
        assert session.summary().ended == "interrupted"
        assert reader.close(wait_s=30)
        timer.join()
