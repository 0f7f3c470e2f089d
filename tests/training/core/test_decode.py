"""The decoder ladder: exact frames on every rung, agreement between rungs, errors."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from data_specs.jpgs import pack_jpgs
from training.core.decode import (
    LADDER,
    DecodeError,
    count_frames,
    count_packets,
    decode_clip,
    decode_jpegs,
    reproduce_line,
    resolve_decoder,
    usable,
)

RUNGS = [
    pytest.param(name, marks=pytest.mark.skipif(usable(name) is not None, reason=f"{name} is not usable here"))
    for name in LADDER
]
ENCODINGS = {
    "gop 12": ("-g", "12", "-preset", "veryfast"),
    "one gop": ("-g", "250", "-preset", "medium"),
    "fastdecode": ("-g", "12", "-preset", "veryfast", "-tune", "fastdecode"),
    "pyramid": ("-g", "30", "-preset", "slow", "-bf", "7", "-b_strategy", "2"),
    "open gop": ("-g", "15", "-preset", "veryfast", "-x264-params", "open-gop=1:keyint=15"),
    "no b": ("-g", "12", "-preset", "veryfast", "-bf", "0"),
    "bt709": ("-preset", "veryfast", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
    "full range": ("-preset", "veryfast", "-color_range", "pc"),
}
NUM_FRAMES = 90


@pytest.fixture(scope="module")
def clips(
    tmp_path_factory: pytest.TempPathFactory,
    clip_drawer: Callable[..., NDArray[np.uint8]],
    mp4_encoder: Callable[..., bytes],
) -> dict[str, bytes]:
    """A moving picture with its frame number in blocks, in several encodings."""
    folder = tmp_path_factory.mktemp("clips")
    frames = clip_drawer(0, 1, 64, 82, NUM_FRAMES)
    for number in range(NUM_FRAMES):
        frames[number, 20:40, number % 60 : number % 60 + 20, 0] = 220
    return {name: mp4_encoder(frames, folder / "clip.mp4", *options) for name, options in ENCODINGS.items()}


def reference(content: bytes) -> NDArray[np.uint8]:
    """All frames by the ffmpeg program."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        "pipe:",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    done = subprocess.run(command, input=content, capture_output=True, check=True, timeout=60)
    return np.frombuffer(done.stdout, dtype=np.uint8).reshape(-1, 64, 82, 3)


@pytest.mark.parametrize("decoder", RUNGS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_frames_are_exactly_those_of_ffmpeg(
    clips: dict[str, bytes], encoding: str, decoder: str, frame_number: Callable[..., int]
) -> None:
    expected = reference(clips[encoding])
    assert len(expected) == NUM_FRAMES
    rng = np.random.default_rng(1)
    for wanted in (
        rng.integers(0, NUM_FRAMES, 8),
        np.array([0, 1, 2, 3]),
        np.array([89, 40, 40, 5]),
        np.array([47]),
        np.arange(NUM_FRAMES),
    ):
        got = decode_clip(clips[encoding], wanted, decoder)
        assert [frame_number(frame) for frame in got] == wanted.tolist()
        assert np.array_equal(got, expected[wanted])


def test_the_number_in_the_picture_can_tell_frames_apart(
    clips: dict[str, bytes], frame_number: Callable[..., int]
) -> None:
    got = decode_clip(clips["gop 12"], np.array([7, 8]), "pyav")
    assert frame_number(got[0]) != frame_number(got[1])
    assert not np.array_equal(got[0], got[1])


@pytest.mark.parametrize("decoder", RUNGS)
def test_from_a_path_and_into_an_array(clips: dict[str, bytes], decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "-a clip.mp4"
    path.write_bytes(clips["gop 12"])
    wanted = np.array([3, 60])
    canvas = np.full((2, 70, 90, 3), 7, dtype=np.uint8)
    result = decode_clip(path, wanted, decoder, canvas[:, :64, :82])
    assert np.shares_memory(result, canvas)
    assert np.array_equal(canvas[:, :64, :82], decode_clip(clips["gop 12"], wanted, decoder))
    assert (canvas[:, 64:] == 7).all()
    assert (canvas[:, :, 82:] == 7).all()


@pytest.mark.parametrize("decoder", RUNGS)
def test_wrong_size_too_few_frames_and_rubbish_are_errors(clips: dict[str, bytes], decoder: str) -> None:
    content = clips["gop 12"]
    with pytest.raises(DecodeError, match=r"64×82.*expected 64×80"):
        decode_clip(content, np.array([0]), decoder, np.zeros((1, 64, 80, 3), dtype=np.uint8))
    with pytest.raises(DecodeError):
        decode_clip(content, np.array([5, NUM_FRAMES]), decoder)
    with pytest.raises(DecodeError):
        decode_clip(b"rubbish" * 100, np.array([0]), decoder)
    with pytest.raises(DecodeError):
        decode_clip(content[: len(content) // 2], np.array([NUM_FRAMES - 1]), decoder)
    with pytest.raises(DecodeError, match="not negative"):
        decode_clip(content, np.array([-1]), decoder)


def test_counting(clips: dict[str, bytes]) -> None:
    for content in clips.values():
        assert count_packets(content) == count_frames(content) == NUM_FRAMES
    for count in (count_packets, count_frames):
        with pytest.raises(DecodeError, match="not a readable video"):
            count(b"rubbish")


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2), (270, 3)])
@pytest.mark.parametrize("decoder", RUNGS)
def test_rotation_of_phone_videos_is_applied(
    clips: dict[str, bytes], tmp_path: Path, decoder: str, angle: int, turns: int
) -> None:
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    plain.write_bytes(clips["gop 12"])
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    command = [ffmpeg, "-v", "error", "-display_rotation", str(angle), "-i", str(plain), "-c", "copy", str(turned)]
    subprocess.run(command, check=True, timeout=60)
    upright = decode_clip(plain, np.array([4]), decoder)
    got = decode_clip(turned, np.array([4]), decoder)
    assert np.array_equal(got[0], np.rot90(upright[0], turns))


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_jpegs(decoder: str, clip_drawer: Callable[..., NDArray[np.uint8]], frame_number: Callable[..., int]) -> None:
    import simplejpeg

    frames = clip_drawer(0, 0, 48, 64, 6)
    member = pack_jpgs([simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=95) for frame in frames])
    out = np.zeros((4, 48, 64, 3), dtype=np.uint8)
    got = decode_jpegs(member, np.array([5, 0, 5, 2]), decoder, out)
    assert got is out
    assert [frame_number(frame) for frame in got] == [5, 0, 5, 2]
    assert np.array_equal(got, decode_jpegs(member, np.array([5, 0, 5, 2]), "pyav"))
    with pytest.raises(DecodeError, match="only 6 are stored"):
        decode_jpegs(member, np.array([6]), decoder)
    with pytest.raises(DecodeError, match="broken jpgs"):
        decode_jpegs(member[:-1], np.array([0]), decoder)
    with pytest.raises(DecodeError, match=r"48×64.*expected 40×64"):
        decode_jpegs(member, np.array([0]), decoder, np.zeros((1, 40, 64, 3), dtype=np.uint8))
    broken = pack_jpgs([b"\xff\xd8 not more"])
    with pytest.raises(DecodeError):
        decode_jpegs(broken, np.array([0]), decoder)


def test_auto_takes_the_first_rung_that_works() -> None:
    working = [name for name in LADDER if usable(name) is None]
    assert resolve_decoder("auto") == working[0]
    assert "pyav" in working
    assert [resolve_decoder(name) for name in working] == working


def test_a_rung_that_does_not_work_is_refused_with_the_reason() -> None:
    for name in ("gstreamer", *(name for name in LADDER if usable(name) is not None)):
        with pytest.raises(DecodeError, match=name):
            resolve_decoder(name)


def test_the_printed_command_repeats_a_decode(
    clips: dict[str, bytes], tmp_path: Path, tar_bytes: Callable[..., bytes]
) -> None:
    tar = tmp_path / "shard.tar"
    tar.write_bytes(tar_bytes({"a.mp4": clips["gop 12"], "b.mp4": b"rubbish"}))
    program, *arguments = reproduce_line(str(tar), "pyav", [1, 30], "a.mp4").split()
    assert program == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=True)
    assert "(2, 64, 82, 3)" in done.stdout
    arguments[-1] = "b.mp4"
    failed = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)
    assert failed.returncode != 0
    assert "DecodeError" in failed.stderr
