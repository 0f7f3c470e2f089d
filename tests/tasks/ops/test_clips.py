import io
import os
import stat
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.schema import ClipPolicy, RejectReason
from infra.settings import Settings
from tasks.ops.clips import Clip, encode_mp4, gop_length, plan_cut, target_size
from tasks.ops.encoder import EncoderError, encoder_of, ffmpeg_path, read_log
from tasks.ops.probe import RejectedError, probe

PROGRAM = ffmpeg_path(Settings(progress=False))


def policy(**fields: object) -> ClipPolicy:
    given = {"representation": "mp4", "short_side": 32, "fps": None, "audio": "drop", "preset": "ultrafast"}
    return ClipPolicy.model_validate(given | fields)


def encode(
    path: Path,
    folder: Path,
    start_s: float | None = None,
    end_s: float | None = None,
    program: str = PROGRAM,
    **fields: object,
) -> Clip:
    info, chosen = probe(path), policy(**fields)
    cut = plan_cut(info, chosen, start_s, end_s)
    own = folder / f"clip{len(os.listdir(folder))}"
    own.mkdir()
    return encode_mp4(path, info, cut, chosen, program, own)


def reason_of(path: Path, folder: Path, *arguments: float, **fields: object) -> RejectReason:
    with pytest.raises(RejectedError) as caught:
        encode(path, folder, *arguments, **fields)
    return caught.value.reason


def opened(content: bytes) -> av.container.InputContainer:
    return av.open(io.BytesIO(content))


@given(st.integers(16, 5000), st.integers(16, 5000), st.integers(16, 600))
def test_target_size_is_even_and_never_larger(width, height, short_side):
    w, h = target_size(width, height, short_side)
    assert w % 2 == h % 2 == 0
    assert 2 <= w <= width
    assert 2 <= h <= height
    if min(width, height) >= short_side:
        assert abs(min(w, h) - short_side) <= 1
        assert abs(w / h - width / height) <= 2 * (width / height) * (1 / w + 1 / h)
    else:
        assert (w, h) == (width - width % 2, height - height % 2)


def test_clip_is_what_it_says(video_maker, tmp_path):
    clip = encode(video_maker.sounding("av.mp4", size="320x180", seconds=2), tmp_path, short_side=90)
    assert (clip.width, clip.height, clip.num_frames, clip.fps, clip.duration_s) == (160, 90, 50, 25.0, 2.0)
    assert not clip.has_audio
    assert set(clip.members) == {"mp4"}
    with opened(clip.members["mp4"]) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert sum(1 for _ in container.decode(video=0)) == 50
        assert not container.streams.audio


def test_same_source_gives_same_bytes(video_maker, tmp_path):
    path = video_maker.sounding("twice.mkv", "-c:a", "pcm_s16le", seconds=2)
    first = encode(path, tmp_path, audio="separate").members
    assert set(first) == {"mp4", "wav"}
    assert encode(path, tmp_path, audio="separate").members == first
    assert encode(path, tmp_path, audio="separate", crf=30).members["mp4"] != first["mp4"]
    for content in first.values():
        assert b"Lavf" not in content


def test_constant_rate_when_asked(video_maker, tmp_path):
    clip = encode(video_maker.pattern("r25.mp4", seconds=2), tmp_path, fps=10)
    assert (clip.num_frames, clip.fps) == (20, 10.0)


def test_variable_rate_becomes_constant(video_maker, tmp_path):
    # Every third frame of the first second is missing.
    path = video_maker.pattern(
        "vfr.mkv", "-vf", r"select=not(eq(mod(n\,3)\,2)*lt(t\,1))", "-fps_mode", "vfr", seconds=3
    )
    clip = encode(path, tmp_path, fps=25)
    assert clip.num_frames == pytest.approx(75, abs=1)
    with opened(clip.members["mp4"]) as container:
        stamps = [frame.time for frame in container.decode(video=0)]
    assert np.allclose(np.diff(stamps), 1 / 25, atol=1e-3)


def test_aac_is_copied_when_nothing_is_cut(video_maker, tmp_path):
    path = video_maker.sounding("aac.mp4", "-c:a", "aac", seconds=2)

    def packets(content: bytes) -> list[bytes]:
        with opened(content) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    source = packets(path.read_bytes())
    assert packets(encode(path, tmp_path, audio="keep").members["mp4"]) == source
    cut = encode(path, tmp_path, 0.5, 1.5, audio="keep")
    assert cut.has_audio
    assert packets(cut.members["mp4"])[0] not in source
    assert 0.9 < len(packets(cut.members["mp4"])) * 1024 / 16000 < 1.2


def test_other_sound_is_encoded_and_separated(video_maker, tmp_path):
    clip = encode(video_maker.sounding("opus.webm", "-c:v", "libvpx"), tmp_path, audio="separate")
    with opened(clip.members["mp4"]) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
    with opened(clip.members["wav"]) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.codec_context.sample_rate) == ("pcm_s16le", 48000)
        assert container.duration / av.time_base == pytest.approx(1.0, abs=0.05)


def test_late_picture_stays_beside_its_sound(video_maker, tmp_path):
    plain = video_maker.sounding("together.mp4", "-c:a", "aac", seconds=2)
    late = video_maker.folder / "late.mkv"
    both = ("-i", str(plain), "-itsoffset", "0.4", "-i", str(plain))
    video_maker.run(*both, "-map", "1:v", "-map", "0:a", "-c", "copy", str(late))
    assert encode(late, tmp_path, audio="keep").num_frames == 60  # 10 frames of padding
    assert encode(late, tmp_path, audio="drop").num_frames == 50


def test_one_process_even_for_separate_members(video_maker, tmp_path):
    calls = tmp_path / "calls"
    wrapper = tmp_path / "ffmpeg.sh"
    wrapper.write_text(f'#!/bin/sh\necho call >> {calls}\nexec {PROGRAM} "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    path = video_maker.sounding("once.mp4")
    assert set(encode(path, tmp_path, audio="separate", program=str(wrapper)).members) == {"mp4", "wav"}
    assert calls.read_text() == "call\n"


@pytest.mark.parametrize("container", ["n.mp4", "n.mkv", "n.avi", "n.webm"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.4, 1.2), (1.0, 2.0), (0.52, 0.56)])
def test_span_is_cut_to_the_frame(video_maker, frame_numbers, tmp_path, container, start, end):
    path = video_maker.numbered(container, 50)
    clip = encode(path, tmp_path, start, end, crf=10)
    assert frame_numbers(clip.members["mp4"]) == [n % 40 for n in range(round(start * 25), round(end * 25))]
    assert clip.num_frames == round((end - start) * 25)


def test_span_of_rounded_time_stamps(video_maker, frame_numbers, tmp_path):
    # 29.97 fps in Matroska: time stamps are rounded to milliseconds.
    path = video_maker.numbered("ntsc.mkv", 60, rate="30000/1001")
    for first in (1, 7, 29, 31):
        start = first * 1001 / 30000
        clip = encode(path, tmp_path, start, start + 10 * 1001 / 30000, crf=10)
        assert frame_numbers(clip.members["mp4"]) == [n % 40 for n in range(first, first + 10)]


def test_whole_video_keeps_every_frame(video_maker, frame_numbers, tmp_path):
    path = video_maker.numbered("all.mp4", 50)
    assert frame_numbers(encode(path, tmp_path, crf=10).members["mp4"]) == [n % 40 for n in range(50)]


@pytest.mark.parametrize(("start", "end"), [(1.0, 1.0), (1.5, 1.0), (-1.0, 1.0), (5.0, 6.0), (0.5, 9.0)])
def test_bad_span(video_maker, tmp_path, start, end):
    assert reason_of(video_maker.pattern("spanned.mp4", seconds=2), tmp_path, start, end) == RejectReason.BAD_SPAN


def test_span_may_end_a_little_late(video_maker, tmp_path):
    assert encode(video_maker.pattern("spanned.mp4", seconds=2), tmp_path, 1.0, 2.6).num_frames == 25


def test_length_limits(video_maker, tmp_path):
    path = video_maker.pattern("spanned.mp4", seconds=2)
    assert reason_of(path, tmp_path, min_duration_s=2.5) == RejectReason.TOO_SHORT
    assert reason_of(path, tmp_path, max_duration_s=1.5) == RejectReason.TOO_LONG
    assert reason_of(video_maker.pattern("one.mp4", seconds=0.04), tmp_path, fps=5) == RejectReason.TOO_SHORT


def keyframes(content: bytes) -> list[int]:
    with opened(content) as container:
        return [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]


def test_groups_of_pictures(video_maker, tmp_path):
    short, long = video_maker.numbered("g100.mp4", 100), video_maker.numbered("g130.mp4", 130)
    assert keyframes(encode(short, tmp_path).members["mp4"]) == [0]
    assert keyframes(encode(long, tmp_path).members["mp4"])[:3] == [0, 12, 24]
    assert keyframes(encode(short, tmp_path, gop=5).members["mp4"])[:3] == [0, 5, 10]
    assert (gop_length(policy(), 120), gop_length(policy(), 121)) == (120, 12)


def test_ten_bit_alpha_and_full_range_become_plain(video_maker, tmp_path):
    ten = video_maker.pattern("ten.mkv", "-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none")
    gif = video_maker.pattern("moving.gif")
    # White in full range is 255; stored in limited range it must be 235 for a decoder to show 255 again.
    full = video_maker.folder / "full.mp4"
    white = ("-f", "lavfi", "-i", "color=white:size=64x48:duration=1", "-vf", "scale=out_range=pc,format=yuvj420p")
    video_maker.run(*white, str(full))
    assert probe(full).full_range
    for path in (ten, gif, full):
        with opened(encode(path, tmp_path).members["mp4"]) as container:
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
            frame = next(container.decode(video=0))
    assert abs(float(np.asarray(frame.planes[0]).max()) - 235) <= 2


def test_rotated_video_is_stored_upright(video_maker, frame_numbers, tmp_path):
    source = video_maker.folder / "left_white.mp4"
    picture = "color=black:size=96x64:duration=0.4,drawbox=w=48:h=64:c=white:t=fill"
    video_maker.run("-f", "lavfi", "-i", picture, "-pix_fmt", "yuv420p", str(source))
    turned = video_maker.folder / "left_white_turned.mp4"
    video_maker.run("-display_rotation", "-90", "-i", str(source), "-c", "copy", str(turned))
    clip = encode(turned, tmp_path)
    assert clip.height > clip.width
    with opened(clip.members["mp4"]) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert frame.rotation == 0
        gray = frame.to_ndarray(format="gray")
    assert gray[:16].mean() > 200  # turned clockwise: left became top
    assert gray[-16:].mean() < 50


def test_damage_inside_is_corrupt(video_maker, tmp_path):
    content = bytearray(video_maker.pattern("sound.mp4", "-movflags", "+faststart", seconds=2).read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[middle : middle + 600] = b"\x00" * 600
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    assert reason_of(path, tmp_path / "out") == RejectReason.CORRUPT


def test_cut_matroska_is_truncated(video_maker, tmp_path):
    whole = video_maker.pattern("long.mkv", "-g", "10", seconds=4).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "out").mkdir()
    assert reason_of(path, tmp_path / "out") == RejectReason.TRUNCATED


def script(folder: Path, text: str) -> str:
    path = folder / "program.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_hanging_program_times_out(video_maker, tmp_path):
    program = script(tmp_path, "exec sleep 60")
    path = video_maker.pattern("spanned.mp4", seconds=2)
    assert reason_of(path, tmp_path, program=program, timeout_s=0.3) == RejectReason.TIMEOUT


@pytest.mark.parametrize("text", ["kill -9 $$", "echo 'x: No space left on device' >&2; exit 228"])
def test_trouble_of_the_machine_is_no_reject(video_maker, tmp_path, text):
    with pytest.raises(EncoderError, match=r"SIGKILL|No space left"):
        encode(video_maker.pattern("spanned.mp4", seconds=2), tmp_path, program=script(tmp_path, text))


def test_encoder_identity(tmp_path, monkeypatch):
    version = encoder_of(Settings(), "mp4").version
    assert version
    assert encoder_of(Settings(), "jpgs").version != version
    other = script(tmp_path, 'echo "ffmpeg version 4.2.1-own Copyright"')
    assert encoder_of(Settings(ffmpeg=other), "mp4").version == "4.2.1-own"
    with pytest.raises(EncoderError, match="does not run"):
        encoder_of(Settings(ffmpeg=str(tmp_path / "none")), "mp4")
    (tmp_path / "sub").mkdir()
    with pytest.raises(EncoderError, match="is no ffmpeg"):
        encoder_of(Settings(ffmpeg=script(tmp_path / "sub", "echo hello")), "mp4")


def test_log_is_read_without_addresses():
    text = (
        "[h264 @ 0x55aa12345678] [error] Invalid NAL unit size (-1 > 551).\n"
        "[vist#0:0/h264 @ 0x55aa12345678] [warning] corrupt decoded frame\n"
        "[in#0 @ 0x1234567]   [verbose] Input stream #0:0 (video): 50 packets read (45 bytes); 49 frames decoded; "
        "1 decode errors; \n"
        "[in#0 @ 0x1234567]   [verbose] Input stream #0:1 (audio): 7 packets read (45 bytes); \n"
        "[out#0/mp4 @ 0x1234567] [verbose]   Output stream #0:0 (video): 50 frames encoded; 50 packets muxed\n"
    )
    log = read_log(0, b"", text)
    assert log.errors == ("Invalid NAL unit size (-1 > 551).",)
    assert (log.streams[0].packets, log.streams[0].frames, log.streams[0].errors) == (50, 49, 1)
    assert log.streams[1].packets == 7
    assert log.outputs == {0: 50}
    assert log.corrupt_frames == 1


def test_rate_of_the_source_is_exact(video_maker, tmp_path):
    clip = encode(video_maker.pattern("ntsc.mp4", rate="30000/1001"), tmp_path)
    with opened(clip.members["mp4"]) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
