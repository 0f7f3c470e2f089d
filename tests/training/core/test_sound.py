"""Sound around frames: clicks at known times found where they belong, whatever the clocks of picture and sound."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from training.core import sound
from training.core.config import SoundConfig
from training.core.decode import DecodeError
from training.core.sound import presentation_times, read_sound, reproduce_sound, start_beside

RATE = 24000
CONFIG = SoundConfig(rate=RATE, samples=RATE // 2)
CLICKS = (0.7, 1.9, 3.1)
"""Seconds from the start of the sound; a window of half a second holds at most one."""
REAL_DATA = Path(os.environ.get("FOVEA_TEST_DATA", "../shared/data")).resolve()


def clicks(seconds: float = 4.0, rate: int = 48000, at: Sequence[float] = CLICKS) -> NDArray[np.int16]:
    """Return (1,S) with a pulse of a millisecond centred on each time."""
    samples = np.zeros((1, round(seconds * rate)), dtype=np.int16)
    for time in at:
        centre = time * rate
        samples[0, round(centre - rate / 2000) : round(centre + rate / 2000)] = 20000
    return samples


def write(
    path: Path,
    times: Sequence[float],
    *tracks: NDArray[np.int16],
    rate: int = 48000,
    codec: str = "aac",
    late: float = 0.0,
    lost: Sequence[tuple[float, float]] = (),
) -> Path:
    """Write a video whose frames are shown at these times, with tracks (C,S) of sound that start `late` seconds in.

    `lost` are stretches of sound, seconds, that the file does not have.
    """
    base = Fraction(1, 90000)
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "bf": "2"})
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        picture.codec_context.time_base = base
        streams = [container.add_stream(codec, rate=rate, layout={1: "mono", 2: "stereo"}[len(t)]) for t in tracks]
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * (number % 20), np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for stream, track in zip(streams, tracks, strict=True):
            for start in range(0, track.shape[1], 1024):
                if any(a <= start / rate < b for a, b in lost):
                    continue
                part = np.ascontiguousarray(track[:, start : start + 1024].T.reshape(1, -1))
                heard = av.AudioFrame.from_ndarray(part, format="s16", layout=stream.layout.name)
                heard.sample_rate, heard.time_base = rate, Fraction(1, rate)
                heard.pts = start + round(late * rate)
                container.mux(stream.encode(heard))
            container.mux(stream.encode(None))
    return path


def ffmpeg(*arguments: str) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-threads", "1", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def even(fps: float, seconds: float = 4.0) -> list[float]:
    return [n / fps for n in range(round(seconds * fps))]


def click_in(window: NDArray[np.int16], rate: int = RATE) -> float:
    """Return the time of the one click in a window, seconds from its start."""
    loud = window.astype(np.float64) ** 2
    peak = int(loud.argmax())
    near = slice(max(0, peak - rate // 200), peak + rate // 200)
    assert loud.max() > 2000**2, "there is no click"
    return float((np.arange(len(loud))[near] * loud[near]).sum() / loud[near].sum()) / rate


def check_clicks(source: Any, shown: Sequence[float], shift: float = 0.0, **told: Any) -> None:
    """Assert that the window around the frame next to each click has it where the times say, to a millisecond."""
    centres = np.array([int(np.abs(np.array(shown) - (c + shift)).argmin()) for c in CLICKS])
    windows = read_sound(source, centres, CONFIG, **told)
    assert windows is not None
    assert (windows.shape, windows.dtype) == ((3, RATE // 2), np.int16)
    for window, centre, click in zip(windows, centres, CLICKS, strict=True):
        assert click_in(window) == pytest.approx(0.25 + click + shift - shown[centre], abs=0.001)


@pytest.mark.parametrize("fps", [24, 25, 30000 / 1001, 30])
@pytest.mark.parametrize(("codec", "suffix"), [("aac", "mp4"), ("pcm_s16le", "mkv")])
def test_clicks_are_where_they_belong(tmp_path: Path, fps: float, codec: str, suffix: str) -> None:
    path = write(tmp_path / f"clip.{suffix}", even(fps), clicks(), codec=codec)
    assert np.allclose(presentation_times(path), even(fps), atol=0.0006)
    check_clicks(path, even(fps))
    check_clicks(path.read_bytes(), even(fps))


def test_the_fixed_rate_of_the_public_code_would_miss_them(tmp_path: Path) -> None:
    """The control: times of 29.97 frames per second, where there are 25."""
    path = write(tmp_path / "clip.mp4", even(25), clicks())
    with pytest.raises(AssertionError):
        check_clicks(path, even(25), times=np.arange(100) / 29.97)
    check_clicks(path, even(25), times=np.arange(100) / 25)


def test_variable_frame_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.01, 0.2, 60))
    times = np.round((times - times[0]) * 4.0 / (times[-1] - times[0]), 3).tolist()
    path = write(tmp_path / "clip.mp4", times, clicks())
    assert np.allclose(presentation_times(path), times, atol=1e-4)
    check_clicks(path, times)
    with pytest.raises(AssertionError):
        check_clicks(path, times, times=np.arange(60) / 15)


def test_sound_that_starts_later_or_earlier(tmp_path: Path) -> None:
    base = write(tmp_path / "base.mp4", even(25), clicks())
    for shift in (0.5, -0.3):
        path = tmp_path / "shifted.mp4"
        moved = ("-itsoffset", str(shift), "-i", str(base), "-i", str(base), "-map", "1:v", "-map", "0:a", "-c", "copy")
        ffmpeg(*moved, str(path))
        check_clicks(path, even(25), shift)
        with pytest.raises(AssertionError):
            check_clicks(path, even(25))
    late = write(tmp_path / "late.mkv", even(25), clicks(), codec="pcm_s16le", late=0.25)
    check_clicks(late, even(25), 0.25)


def test_picture_that_starts_later(tmp_path: Path) -> None:
    times = [t + 0.4 for t in even(30, 3.5)]
    for suffix in ("mp4", "mkv"):
        check_clicks(write(tmp_path / f"clip.{suffix}", times, clicks()), times)


def test_a_gap_is_silent_and_what_follows_stays_in_place(tmp_path: Path) -> None:
    track = clicks() + np.int16(3000)
    path = write(tmp_path / "clip.mkv", even(25), track, codec="pcm_s16le", lost=[(1.0, 1.5)])
    check_clicks(path, even(25))
    (window,) = read_sound(path, np.array([31]), CONFIG)  # from 0.99 to 1.49 s
    # What is lost begins at a packet: 1.003 s.
    assert (window[: RATE // 100] > 2900).all()
    assert not window[RATE // 50 :].any()
    whole = write(tmp_path / "whole.mkv", even(25), track, codec="pcm_s16le")
    (control,) = read_sound(whole, np.array([31]), CONFIG)
    assert (control > 2900).all()


@pytest.mark.parametrize(("rate", "channels", "codec"), [(48000, 2, "aac"), (8000, 1, "pcm_s16le"), (44100, 2, "aac")])
def test_rates_and_channels(tmp_path: Path, rate: int, channels: int, codec: str) -> None:
    suffix = "mkv" if codec.startswith("pcm") else "mp4"
    track = np.repeat(clicks(rate=rate), channels, axis=0)
    check_clicks(write(tmp_path / f"clip.{suffix}", even(25), track, rate=rate, codec=codec), even(25))


def test_stereo_is_the_mean_of_both_sides(tmp_path: Path) -> None:
    track = np.stack([np.full(96000, 8000, np.int16), np.full(96000, -2000, np.int16)])
    path = write(tmp_path / "clip.mkv", even(25, 2), track, codec="pcm_s16le")
    (window,) = read_sound(path, np.array([25]), CONFIG)
    assert np.abs(window - 3000).max() <= 1


def test_windows_stay_within_the_track(tmp_path: Path) -> None:
    ramp = np.arange(24000, dtype=np.int16)[None]  # one second at 24 kHz, no resampling
    path = write(tmp_path / "clip.mkv", even(25, 1), ramp, rate=RATE, codec="pcm_s16le")
    windows = read_sound(path, np.array([0, 12, 24]), CONFIG)
    assert windows[0].tolist() == list(range(12000))
    assert windows[1].tolist() == list(range(11520 - 6000, 11520 + 6000))
    assert windows[2].tolist() == list(range(12000, 24000))


def test_a_short_track_is_repeated(tmp_path: Path) -> None:
    ramp = np.arange(5000, dtype=np.int16)[None]
    path = write(tmp_path / "clip.mkv", even(25, 1), ramp, rate=RATE, codec="pcm_s16le")
    windows = read_sound(path, np.array([0, 24]), CONFIG)
    assert windows[0].tolist() == windows[1].tolist() == [n % 5000 for n in range(12000)]


def test_no_sound(tmp_path: Path) -> None:
    silent = write(tmp_path / "silent.mp4", even(25, 1))
    assert read_sound(silent, np.array([0]), CONFIG) is None
    empty = write(tmp_path / "empty.mkv", even(25, 1), np.zeros((1, 0), np.int16), codec="pcm_s16le")
    with av.open(str(empty)) as container:
        assert container.streams.audio, "the control: there is a track"
    assert read_sound(empty, np.array([0]), CONFIG) is None


def test_the_best_of_two_tracks_is_taken(tmp_path: Path) -> None:
    other = clicks(at=(0.2, 1.4, 2.6))
    path = write(tmp_path / "two.mkv", even(25), clicks(), other, codec="pcm_s16le")
    with av.open(str(path)) as container:
        assert len(container.streams.audio) == 2
    check_clicks(path, even(25))


def test_a_track_without_clock_and_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", even(25), clicks())
    wav = tmp_path / "clip.wav"
    ffmpeg("-i", str(path), "-c:a", "pcm_s16le", str(wav))
    check_clicks(wav.read_bytes(), even(25), times=presentation_times(path))
    # Sound that started half a second later in the video that it came from.
    check_clicks(wav, even(25), 0.5, times=presentation_times(path), start=0.5)
    with pytest.raises(DecodeError, match="no video stream"):
        read_sound(wav, np.array([0]), CONFIG)
    with pytest.raises(DecodeError, match="around frame 9 is wanted, but 5 frames have a time"):
        read_sound(wav, np.array([9]), CONFIG, times=np.arange(5) / 25)


@pytest.mark.parametrize("late", [0.0, 0.3])
@pytest.mark.parametrize("count", [24000, 24576, 24577])
def test_a_wav_begins_with_what_the_encoder_was_given(tmp_path: Path, late: float, count: int) -> None:
    """Not with the packet of silence that it puts before, which no edit list cuts off where the sound is late."""
    noise = np.random.default_rng(0).integers(-3000, 3000, count).astype("<i2")
    (tmp_path / "raw").write_bytes(noise.tobytes())
    raw = ("-f", "s16le", "-ar", "24000", "-ac", "1")
    wav, m4a = tmp_path / "a.wav", tmp_path / "a.m4a"
    ffmpeg(*raw, "-i", str(tmp_path / "raw"), str(wav))
    ffmpeg("-itsoffset", str(late), "-i", str(wav), "-c:a", "aac", str(m4a))
    assert start_beside(wav.read_bytes(), m4a) == pytest.approx(late, abs=1e-4)
    # Decoded from that file, the wav has the packet, too.
    ffmpeg("-i", str(m4a), str(wav))
    with av.open(str(m4a)) as container:
        first = next(container.decode(audio=0))
    assert start_beside(wav.read_bytes(), m4a) == pytest.approx(float(first.pts * first.time_base), abs=1e-4)
    assert start_beside(wav.read_bytes(), write(tmp_path / "silent.mp4", even(25, 1))) == 0


def test_sound_that_cannot_be_decoded_says_so(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "clip.mp4", even(25), clicks()).read_bytes())
    with av.open(str(tmp_path / "clip.mp4")) as container:
        packets = [p for p in container.demux(container.streams.audio[0]) if p.size]
        places = [(p.pos, p.size) for p in packets]
    check_clicks(bytes(content), even(25))
    for place, size in places[20:40]:
        content[place : place + size] = b"\xff" * size
    with pytest.raises(DecodeError, match="its sound cannot be decoded: "):
        read_sound(bytes(content), np.array([0]), CONFIG)
    with pytest.raises(DecodeError, match="cannot be decoded"):
        read_sound(b"not a video", np.array([0]), CONFIG)


def test_reading_is_repeated_from_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", even(25, 1), clicks(1.0))
    line = reproduce_sound(str(path), CONFIG, [3, 5])
    done = subprocess.run(
        [sys.executable, *shlex.split(line)[1:]], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("read (2, 12000), loudness ")


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_of_decoding_do_not_matter(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    track = np.random.default_rng(0).integers(-9000, 9000, (2, 90000)).astype(np.int16)
    path = write(tmp_path / "clip.mp4", even(25, 2), track, rate=44100)
    whole = read_sound(path, np.array([10, 40]), CONFIG)
    monkeypatch.setattr(sound, "CHUNK", chunk)
    assert np.array_equal(read_sound(path, np.array([10, 40]), CONFIG), whole)


@pytest.mark.parametrize(
    "name",
    [
        "single_clips/ZYc410CE4Rg_0_10000.mp4",
        "single_clips/flipping_a_pancake.mkv",
        "single_clips/example.avi",
        "single_clips/v_GGSY1Qvo990.mp4",
        "wlasl_signs/language/32156.mp4",
        "wlasl_signs/enjoy/19255.mp4",
        "robustness/edts.mp4",
        "robustness/nasa_13013.mp4",
    ],
)
def test_real_videos_sound_as_ffmpeg_says(name: str) -> None:
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    times = presentation_times(path)
    centres = np.linspace(len(times) // 4, len(times) * 3 // 4, 3).astype(int)
    windows = read_sound(path, centres, CONFIG)
    assert windows is not None
    with av.open(str(path)) as container:
        best = container.streams.best("audio").index
        # ffmpeg counts from the first time stamp of the file.
        zero = (container.start_time or 0) / 1e6
    # Silence in the place of what is missing, also before the first sample.
    track = ffmpeg(
        *("-i", str(path), "-map", f"0:{best}", "-af", "aresample=24000:async=1:first_pts=0"),
        *("-ac", "1", "-c:a", "pcm_s16le", "-f", "s16le", "-"),
    )
    samples = np.frombuffer(track, "<i2").astype(np.float64)
    for window, centre in zip(windows.astype(np.float64), centres, strict=True):
        start = round((times[centre] - zero) * RATE) - CONFIG.samples // 2
        start = max(0, min(start, len(samples) - len(window)))
        expected = samples[start : start + len(window)]
        assert np.abs(window - expected).mean() <= 0.02 * np.abs(expected).mean() + 1.0
        if np.abs(expected).mean() > 50:
            moved = samples[start + 480 : start + 480 + len(window)]  # the control: 20 ms later
            assert np.abs(window[: len(moved)] - moved).mean() > 0.2 * np.abs(expected).mean()
