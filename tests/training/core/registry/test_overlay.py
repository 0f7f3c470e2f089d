import av
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from training.core.decode import frame_times
from training.core.overlay import COLOUR, OverlayError, Track, draw_label, output_size, write_overlay
from training.core.prediction import picture_size


def pictures(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def near(frame: np.ndarray) -> np.ndarray:
    """Return which pixels have about the patch's colour."""
    return np.abs(frame.astype(int) - np.array(COLOUR)).sum(-1) < 150


def coloured(frame: np.ndarray) -> tuple[float, float]:
    """Return the mean (y, x) of the pixels that have the patch's colour."""
    ys, xs = np.nonzero(near(frame))
    return float(ys.mean()), float(xs.mean())


def coloured_share(frame: np.ndarray) -> float:
    return float(near(frame).mean())


def test_box_stays_until_the_next_sampled_frame_and_sound_is_copied(make_clip, tmp_path):
    source, target = tmp_path / "-in put.mp4", tmp_path / "out" / "over.mp4"
    source.write_bytes(make_clip((20, 20, 20), 0, frames=16, side=128, sound=True))
    seen = []
    track = Track(np.array([0.0, 1.0]), np.array([[0.0, 0.0, 0.4, 0.4], [0.4, 0.6, 0.8, 1.0]]))
    written = write_overlay(
        source,
        target,
        label="grey 97%",
        track=track,
        ffmpeg_program=get_ffmpeg_exe(),
        on_frame=lambda done, total: seen.append((done, total)),
    )
    assert (written.frames, written.sound) == (16, "copied")
    assert seen[-1] == (16, 16)
    frames = pictures(target)
    assert len(frames) == 16
    places = [coloured(frame[:220]) for frame in frames]  # above the label
    for i in range(8):
        assert places[i] == pytest.approx((51, 51), abs=5)
        assert places[8 + i] == pytest.approx((154, 204), abs=5)
    with av.open(str(source)) as first, av.open(str(target)) as second:
        sounds = [[bytes(p) for p in c.demux(audio=0) if p.size] for c in (first, second)]
    assert sounds[0] == sounds[1]
    assert len(sounds[0]) > 3
    assert not list((tmp_path / "out").glob(".overlay-*"))


def test_without_patches_and_without_sound(make_clip, tmp_path):
    source = tmp_path / "in.mp4"
    source.write_bytes(make_clip((20, 20, 20), 0, frames=4, side=128))
    written = write_overlay(source, tmp_path / "o.mp4", label="grey", ffmpeg_program=get_ffmpeg_exe())
    assert (written.frames, written.sound) == (4, "none")
    frame = pictures(tmp_path / "o.mp4")[2]
    assert frame[216:].max() > 180  # the label is there
    assert frame[:160].max() < 110  # and nothing else


def test_small_video_is_enlarged_before_the_box_is_drawn(make_clip, tmp_path):
    source, target = tmp_path / "in.mp4", tmp_path / "o.mp4"
    source.write_bytes(make_clip((20, 20, 20), 0, frames=8, side=64, sound=True))
    track = Track(np.array([0.0]), np.array([[0.125, 0.25, 0.625, 0.75]]))
    written = write_overlay(source, target, label="grey 97%", track=track, ffmpeg_program=get_ffmpeg_exe())
    assert (written.frames, written.sound) == (8, "copied")
    frames = pictures(target)
    assert {frame.shape for frame in frames} == {(256, 256, 3)}
    with av.open(str(source)) as first, av.open(str(target)) as second:
        assert second.streams.video[0].average_rate == first.streams.video[0].average_rate
        video = second.streams.video[0]
        assert float(video.duration * video.time_base) == pytest.approx(1.0)
        assert len(second.streams.audio) == 1
    for frame, original in zip(frames, pictures(source), strict=True):
        # The box is where it belongs, and thin: of its 128 pixels the lines (black around them included) take 12.
        assert coloured(frame[:200]) == pytest.approx((96, 128), abs=3)
        inside = slice(32 + 8, 160 - 8), slice(64 + 8, 192 - 8)
        assert coloured_share(frame[inside]) == 0
        assert coloured_share(frame[28:164, 60:196]) > 0.02
        # What lies in it is the video, every pixel four times four.
        seen = frame[inside].reshape(28, 4, 28, 4, 3).mean((1, 3))
        assert np.abs(seen - original[10:38, 18:46]).mean() < 6


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (64, 64, (256, 256)),
        (320, 180, (640, 360)),  # twice: once is too small, and a half does not exist
        (86, 129, (258, 386)),  # three times, the odd side made even
        (256, 340, (256, 340)),
        (1920, 1080, (1920, 1080)),
        (1921, 1081, (1920, 1080)),
        (1920, 16, (3840, 32)),  # not to 30720, which no encoder takes
        (9000, 100, (9000, 100)),
        (9000, 1, (9000, 2)),
    ],
)
def test_output_size(width, height, expected):
    assert output_size(width, height) == expected
    assert output_size(height, width) == expected[::-1]


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(65, 49, (294, 390, 3)), (301, 257, (256, 300, 3)), (1, 1, (256, 256, 3))]
)
def test_odd_size_is_made_even(tmp_path, width, height, expected):
    source = tmp_path / "odd.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    write_overlay(source, tmp_path / "o.mp4", label="a", ffmpeg_program=get_ffmpeg_exe())
    assert pictures(tmp_path / "o.mp4")[0].shape == expected


def test_sound_that_mp4_does_not_take_is_encoded_again(tmp_path):
    source = tmp_path / "pcm.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        tone = container.add_stream("pcm_s16be", rate=8000)
        tone.layout = "mono"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = 8000, 0
        container.mux(tone.encode(sound))
        container.mux(tone.encode())
    written = write_overlay(source, tmp_path / "o.mp4", label="a", ffmpeg_program=get_ffmpeg_exe())
    assert written.sound in ("copied", "re-encoded")
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert len(container.streams.audio) == 1


def test_what_cannot_be_drawn_on_is_an_error_and_leaves_no_file(make_clip, tmp_path):
    broken, good = tmp_path / "broken.mp4", tmp_path / "good.mp4"
    broken.write_bytes(b"nothing" * 100)
    good.write_bytes(make_clip((20, 20, 20), 0, frames=2))
    with pytest.raises(OverlayError, match=r"broken\.mp4: cannot be opened"):
        write_overlay(broken, tmp_path / "o.mp4", label="", ffmpeg_program=get_ffmpeg_exe())
    with pytest.raises(OverlayError, match="name it so"):
        write_overlay(good, tmp_path / "o.avi", label="", ffmpeg_program=get_ffmpeg_exe())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mp4", "good.mp4"]


def test_labels_fit_small_pictures_and_foreign_letters():
    frame = np.full((40, 40, 3), 255, np.uint8)
    draw_label(frame, "ein ziemlich langer Name mit Übermut 100%")
    assert frame[:20].min() == 255


def test_times_and_size(make_clip, tmp_path):
    source = tmp_path / "in.mp4"
    source.write_bytes(make_clip((20, 20, 20), 0, frames=8, side=64))
    assert frame_times(source) == pytest.approx([i / 8 for i in range(8)])
    assert picture_size(source) == (64, 64)


def test_of_several_video_streams_the_loaders_one_is_drawn_on(tmp_path):
    """A small first stream and a larger second one: FFmpeg's best, which the loader decodes, is the larger."""
    source = tmp_path / "two.mkv"
    with av.open(str(source), "w") as container:
        streams = []
        for side in (32, 96):
            stream = container.add_stream("libx264", rate=5)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            streams.append(stream)
        for stream, count in zip(streams, (2, 5), strict=True):
            for _ in range(count):
                picture = np.full((stream.height, stream.width, 3), 90, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    written = write_overlay(source, tmp_path / "o.mp4", label="a", ffmpeg_program=get_ffmpeg_exe())
    assert pictures(tmp_path / "o.mp4")[0].shape == (288, 288, 3)
    assert written.frames == 5
    assert len(frame_times(source)) == 5
    assert picture_size(source) == (96, 96)
