import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from data_specs.schema import RejectReason
from tasks.ops.probe import RejectedError, missing_end, probe


def reason_of(path: Path) -> RejectReason:
    with pytest.raises(RejectedError) as caught:
        probe(path)
    assert caught.value.detail
    return caught.value.reason


def test_facts_of_an_ordinary_video(video_maker):
    info = probe(video_maker.sounding("plain.mp4", "-c:a", "aac", seconds=2))
    assert (info.codec, info.width, info.height, info.rate, info.frames) == ("h264", 96, 64, 25, 50)
    assert info.duration_s == pytest.approx(2.0)
    assert (info.audio_codec, info.audio_rate, info.rotation, info.full_range) == ("aac", 16000, 0, False)
    assert info.expected_frames == 50


def test_no_sound_is_no_sound(video_maker):
    assert probe(video_maker.pattern("silent.mp4")).audio_stream is None


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_turns_the_size(video_maker, degrees):
    plain = video_maker.pattern("upright.mp4")
    turned = video_maker.folder / f"turned{degrees}.mp4"
    video_maker.run("-display_rotation", str(-degrees), "-i", str(plain), "-c", "copy", str(turned))
    info = probe(turned)
    assert info.rotation == degrees
    assert (info.width, info.height) == ((96, 64) if degrees == 180 else (64, 96))
    assert (info.coded_width, info.coded_height) == (96, 64)


def test_wide_pixels_widen_the_picture(video_maker):
    info = probe(video_maker.pattern("wide.mp4", "-vf", "setsar=2"))
    assert (info.width, info.height) == (192, 64)
    narrow = probe(video_maker.pattern("narrow.mp4", "-vf", "setsar=1/2"))
    assert (narrow.width, narrow.height) == (96, 128)


def test_unknown_duration_is_measured(video_maker):
    # A live WebM has neither duration nor size in its head.
    path = video_maker.pattern("live.webm", "-c:v", "libvpx-vp9", "-live", "1", "-deadline", "realtime", seconds=2)
    info = probe(path)
    assert info.duration_s == pytest.approx(2.0, abs=0.05)
    assert info.rate == Fraction(25)


def test_fractional_rate_stays_exact(video_maker):
    assert probe(video_maker.pattern("ntsc.mp4", rate="30000/1001")).rate == Fraction(30000, 1001)


def test_names_are_never_options_or_protocols(video_maker, tmp_path, monkeypatch):
    content = video_maker.pattern("plain_name.mp4").read_bytes()
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mp4", "-version", "concat:a|b.mp4", "a b'c\".mp4", "100%d.mp4", "ünï.mp4"):
        Path(name).write_bytes(content)
        assert probe(Path(name)).frames == 25


def test_empty(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    assert reason_of(path) == RejectReason.EMPTY


def test_text_is_not_a_video(tmp_path):
    path = tmp_path / "page.mp4"
    path.write_text("<html>404</html>\n" * 100)
    assert reason_of(path) == RejectReason.NOT_A_VIDEO


def test_sound_alone_has_no_video_stream(video_maker):
    path = video_maker.folder / "tone.m4a"
    video_maker.run("-f", "lavfi", "-i", "sine=duration=1", str(path))
    assert reason_of(path) == RejectReason.NO_VIDEO_STREAM


def test_a_cover_picture_is_no_video_stream(video_maker):
    cover, path = video_maker.folder / "cover.png", video_maker.folder / "covered.m4a"
    video_maker.run("-f", "lavfi", "-i", "testsrc2=size=64x64:duration=0.04", "-frames:v", "1", str(cover))
    tone = ("-f", "lavfi", "-i", "sine=duration=1")
    options = ("-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic")
    video_maker.run(*tone, "-i", str(cover), *options, str(path))
    assert reason_of(path) == RejectReason.NO_VIDEO_STREAM


@pytest.mark.parametrize("index_first", [True, False])
def test_cut_file_is_truncated(video_maker, tmp_path, index_first):
    options = ("-movflags", "+faststart") if index_first else ()
    whole = video_maker.pattern(f"whole{index_first}.mp4", *options, seconds=3)
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert reason_of(path) == RejectReason.TRUNCATED
    assert missing_end(whole) is None


def test_unknown_codec_is_unsupported(video_maker, tmp_path):
    path = tmp_path / "alien.mp4"
    content = video_maker.pattern("known.mp4").read_bytes()
    assert content.count(b"avc1") >= 1
    path.write_bytes(content.replace(b"avc1", b"zz99"))
    assert reason_of(path) == RejectReason.UNSUPPORTED_CODEC


def test_too_small(video_maker):
    assert reason_of(video_maker.pattern("dot.mkv", "-c:v", "ffv1", size="8x8")) == RejectReason.TOO_SMALL


def test_no_frame_decodes(video_maker, tmp_path):
    content = bytearray(video_maker.pattern("fine.mp4", "-movflags", "+faststart").read_bytes())
    start = content.index(b"mdat") + 4
    content[start:] = b"\xff" * (len(content) - start)
    path = tmp_path / "noise.mp4"
    path.write_bytes(content)
    assert reason_of(path) == RejectReason.CORRUPT


def test_command_line(video_maker, tmp_path):
    def run(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tasks.ops.probe", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good = run(video_maker.pattern("shown.mp4"))
    assert good.returncode == 0
    assert "h264" in good.stdout
    (tmp_path / "empty.mp4").touch()
    bad = run(tmp_path / "empty.mp4")
    assert bad.returncode == 1
    assert "empty" in bad.stderr
