import io
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.jpgs import unpack_jpgs
from data_specs.schema import ClipPolicy, RejectReason
from infra.settings import Settings
from tasks.ops.clips import Clip, encode_mp4, plan_cut
from tasks.ops.encoder import ffmpeg_path
from tasks.ops.jpegs import encode_jpgs, sample_uniformly
from tasks.ops.probe import RejectedError, probe

PROGRAM = ffmpeg_path(Settings(progress=False))


def encode(path: Path, folder: Path, *span: float, **fields: object) -> Clip:
    given = {"representation": "jpgs", "num_frames": 8, "short_side": 48, "fps": None, "audio": "drop"}
    policy = ClipPolicy.model_validate(given | fields)
    info = probe(path)
    cut = plan_cut(info, policy, *(span or (None, None)))
    return encode_jpgs(path, info, cut, policy, PROGRAM, folder)


def decode(clip: Clip) -> list[np.ndarray]:
    return [cv2.imdecode(np.frombuffer(v, np.uint8), cv2.IMREAD_COLOR) for v in unpack_jpgs(clip.members["jpgs"])]


def numbers(clip: Clip) -> list[int]:
    """Frame numbers (modulo 40) of `VideoMaker.numbered`; JPEG is full range."""
    return [round((frame.mean() * 219 / 255 + 16 - 40) / 4) for frame in decode(clip)]


@given(st.integers(1, 64), st.integers(1, 5000))
def test_uniform_sampling(count, total):
    index = sample_uniformly(count, total)
    assert len(index) == count
    assert index[0] >= 0
    assert index[-1] < total
    assert list(index) == sorted(index)
    if total >= count:
        assert len(set(index)) == count
        assert index[0] == total // (2 * count)


def test_frames_are_the_chosen_ones(video_maker, tmp_path):
    clip = encode(video_maker.numbered("j50.mp4", 50), tmp_path)
    assert clip.frame_index == sample_uniformly(8, 50)
    assert numbers(clip) == [n % 40 for n in clip.frame_index]
    assert (clip.num_frames, clip.duration_s, clip.fps) == (50, 2.0, 25.0)
    assert all(frame.shape == (48, 64, 3) for frame in decode(clip))


def test_span_and_rate(video_maker, tmp_path):
    clip = encode(video_maker.numbered("j50.mp4", 50), tmp_path, 0.4, 1.2, num_frames=5)
    assert [n + 10 for n in clip.frame_index] == [12, 16, 20, 24, 28]
    assert numbers(clip) == [12, 16, 20, 24, 28]
    slow = encode(video_maker.numbered("j50.mp4", 50), tmp_path, fps=5, num_frames=5)
    assert (slow.frame_index, slow.duration_s) == ((1, 3, 5, 7, 9), 2.0)


def test_short_clips_repeat_frames(video_maker, tmp_path):
    clip = encode(video_maker.numbered("j3.mp4", 3), tmp_path)
    assert clip.frame_index == (0, 0, 0, 1, 1, 2, 2, 2)
    assert clip.num_frames == 3
    assert numbers(clip) == list(clip.frame_index)


def test_wrong_promise_of_the_container_costs_a_second_run(video_maker, tmp_path):
    # The stream says 2.4 s, the frames end after 2 s: within the tolerance for truncated videos.
    whole = video_maker.numbered("j50.mkv", 50).read_bytes()
    at = whole.index(b"DURATION") + len(b"DURATION")
    at = whole.index(b"00:00:02.000", at)
    path = tmp_path / "promise.mkv"
    path.write_bytes(whole[:at] + b"00:00:02.400" + whole[at + 12 :])
    assert probe(path).expected_frames == 60
    clip = encode(path, tmp_path)
    assert clip.frame_index == sample_uniformly(8, 50)
    assert numbers(clip) == [n % 40 for n in clip.frame_index]


@pytest.mark.parametrize("color", ["orange", "0x2040c0", "white", "black", "0x30a050"])
def test_colors_are_those_of_the_mp4(video_maker, tmp_path, color):
    path = video_maker.folder / f"{color}.mp4"
    video_maker.run("-f", "lavfi", "-i", f"color={color}:size=64x48:duration=0.2", "-pix_fmt", "yuv420p", str(path))
    shown = decode(encode(path, tmp_path, num_frames=1))[0].mean((0, 1))
    policy = ClipPolicy(representation="mp4", short_side=48, fps=None, audio="drop")
    info = probe(path)
    mp4 = encode_mp4(path, info, plan_cut(info, policy, None, None), policy, PROGRAM, tmp_path).members["mp4"]
    with av.open(io.BytesIO(mp4)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="bgr24").mean((0, 1))
    assert np.abs(shown - stored).max() < 4


def test_sound_beside_frames(video_maker, tmp_path):
    path = video_maker.sounding("jpgs_sound.mp4", "-c:a", "aac")
    clip = encode(path, tmp_path, audio="separate")
    assert set(clip.members) == {"jpgs", "m4a", "wav"}
    assert clip.has_audio
    with av.open(io.BytesIO(clip.members["m4a"])) as container:
        assert not container.streams.video
        assert container.streams.audio[0].codec_context.name == "aac"


def test_same_source_gives_same_bytes(video_maker, tmp_path):
    path = video_maker.sounding("jpgs_twice.mp4", "-c:a", "aac")
    first = encode(path, tmp_path, audio="keep").members
    assert encode(path, tmp_path, audio="keep").members == first
    assert encode(path, tmp_path, audio="keep", jpeg_quality=50).members["jpgs"] != first["jpgs"]


def test_damage_is_rejected(video_maker, tmp_path):
    content = bytearray(video_maker.pattern("jdamage.mp4", "-movflags", "+faststart", seconds=2).read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[middle : middle + 600] = b"\x00" * 600
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    with pytest.raises(RejectedError) as caught:
        encode(path, tmp_path)
    assert caught.value.reason == RejectReason.CORRUPT
