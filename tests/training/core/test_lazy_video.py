"""A video read piece by piece: the same to the bit as when it is read whole, and no more decoded than asked for."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_specs.flows import pack_flow
from training.core.config import DataConfig, SoundConfig, TransformConfig
from training.core.data import load_clip
from training.core.decode import LADDER, DecodeError, decode_clip, usable
from training.core.lazy_video import LazyVideo
from training.core.sample_reader import clip_of, load_pictures
from training.core.sampling import field_positions, frame_positions

TRANSFORM = TransformConfig(size=32, train_crop="center", eval_short_side=32, flip=False, normalise="imagenet")
RUNGS = [rung for rung in LADDER if usable(rung) is None]
REAL_DATA = Path(os.environ.get("FOVEA_TEST_DATA", "../shared/data")).resolve()


def config(**changes: Any) -> DataConfig:
    base: dict[str, Any] = {"num_frames": 4, "sampling": "clips", "stride": 4, "eval_clips": 3, "stack": 3}
    base |= {"sound": SoundConfig(rate=24000, samples=4800), "batch_size": 1, "transform": TRANSFORM}
    return DataConfig(**{**base, **changes})


@pytest.fixture(scope="module")
def content(clip_drawer: Callable[..., Any], mp4_encoder: Callable[..., bytes], tmp_path_factory: Any) -> bytes:
    """80 frames at 10 per second with sound, a key frame every 12."""
    noise = np.random.default_rng(0).integers(-3000, 3000, 8 * 24000).astype(np.int16)
    frames = clip_drawer(1, 1, 48, 64, 80)
    return mp4_encoder(frames, tmp_path_factory.mktemp("v") / "clip.mp4", "-g", "12", "-bf", "2", sound=noise)


@pytest.mark.parametrize("rung", RUNGS)
def test_pieces_equal_the_whole(content: bytes, rung: str) -> None:
    whole = load_clip(content, config(flow=True), decoder=rung)
    video = LazyVideo(content, config(flow=True), rung)
    assert video.num_frames == 80
    assert video.size == (48, 64)
    stacks = frame_positions(80, config(), train=False, seed=0)
    assert video.positions_VT.shape == (3, 4)
    assert stacks.reshape(3, 4, 3)[..., 0].tolist() == video.positions_VT.tolist()
    # The last clip first, its positions only, then everything.
    pieces = video.pictures(video.positions_VT[2])
    frames = whole.frames_BTHWC[0].numpy()
    assert np.array_equal(pieces, frames[24::3])
    assert np.array_equal(video.pictures(stacks), frames)
    assert whole.sound_BSN is not None
    assert np.array_equal(video.sound(), whole.sound_BSN[0].numpy())
    assert whole.flow_BTHWC is not None
    fields = whole.flow_BTHWC[0].numpy()
    assert np.array_equal(video.flow(video.positions_VT[1]), fields[8:16])
    assert np.array_equal(video.flow(video.positions_VT), fields)
    assert not np.array_equal(fields[:8], fields[8:16])


@pytest.mark.parametrize("rung", RUNGS)
def test_each_picture_alone_equals_its_place_in_the_whole(content: bytes, rung: str) -> None:
    whole = decode_clip(content, np.arange(80), rung)
    for number in range(0, 80, 7):
        assert np.array_equal(LazyVideo(content, config(), rung).pictures([number])[0], whole[number])
    scattered = [79, 3, 3, 40]
    assert np.array_equal(LazyVideo(content, config(), rung).pictures(scattered), whole[scattered])


def test_nothing_is_decoded_that_nobody_asked_for(content: bytes) -> None:
    video = LazyVideo(content, config(flow=True), "pyav")
    assert (video.decoded, video.extracted) == (0, 0)
    assert video.sound() is video.sound() is not None
    assert (video.decoded, video.extracted) == (0, 0)
    video.pictures(video.positions_VT[:, ::2])
    assert video.decoded == 6
    video.pictures(video.positions_VT[0])
    assert video.decoded == 8, "two of four were there"
    video.pictures(video.positions_VT[0])
    assert video.decoded == 8
    # Flow of the second clip: of each position three pictures, two of them were there.
    video.flow(video.positions_VT[1])
    assert (video.decoded, video.extracted) == (8 + 10, 8)
    video.flow(video.positions_VT[1, :2])
    assert (video.decoded, video.extracted) == (18, 8)
    assert video.pictures([]).shape == (0, 48, 64, 3)
    assert video.flow([]).shape == (0, 48, 64, 2)


def test_overlapping_stacks_are_extracted_once(content: bytes) -> None:
    cfg = config(flow=True, stride=1)
    video = LazyVideo(content, cfg, "pyav")
    fields = video.flow(video.positions_VT[0])
    # Positions 0 to 3, fields 0 to 4, of pictures 0 to 5.
    assert (video.decoded, video.extracted) == (6, 5)
    assert fields.shape == (8, 48, 64, 2)
    assert np.array_equal(fields[1], fields[2])


def test_stored_flow_and_sound_of_a_packed_sample(
    sample_maker: Callable[..., Any], clip_drawer: Callable[..., Any], tmp_path: Path
) -> None:
    ((record, members),) = sample_maker(tmp_path, "val", 1, 3)
    cfg = config(flow=True, stride=1, num_frames=2)
    noise = np.random.default_rng(0).integers(0, 256, (record.num_frames - 1, record.height, record.width, 2))
    members |= {"flow": pack_flow(noise.astype(np.uint8)), "json": record.model_dump_json().encode()}
    packed = clip_of(members, cfg)
    whole = load_pictures(packed, cfg, decoder="pyav")
    video = LazyVideo(packed, cfg, "pyav")
    assert whole.flow_BTHWC is not None
    assert np.array_equal(video.flow(video.positions_VT), whole.flow_BTHWC[0].numpy())
    assert video.decoded == 0
    numbers = field_positions(video.positions_VT, cfg.stack, record.num_frames)
    assert video.extracted == len(set(numbers.tolist()))
    assert whole.sound_BSN is not None
    assert np.array_equal(video.sound(), whole.sound_BSN[0].numpy())


def test_short_silent_and_wrong_ones(
    clip_drawer: Callable[..., Any], mp4_encoder: Callable[..., bytes], tmp_path: Path
) -> None:
    single = LazyVideo(mp4_encoder(clip_drawer(1, 1, 48, 64, 1), tmp_path / "a.mp4"), config(flow=True), "auto")
    assert single.positions_VT.tolist() == [[0] * 4] * 3
    assert single.flow([0, 0]).shape == (4, 48, 64, 2)
    assert single.sound() is None
    with pytest.raises(DecodeError, match="frames 1 to 1 are wanted, but it has 1"):
        single.pictures([1])
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4"):
        LazyVideo(tmp_path / "absent.mp4", config(), "pyav")
    with pytest.raises(DecodeError):
        LazyVideo(b"not a video", config(), "pyav")
    segments = DataConfig(num_frames=2, sampling="segments", batch_size=1, transform=TRANSFORM)
    with pytest.raises(ValueError, match="`segments`"):
        LazyVideo(tmp_path / "a.mp4", segments, "pyav")


@pytest.mark.parametrize("name", ["single_clips/sample_demo_9.mp4", "wlasl_signs/enjoy/19255.mp4"])
def test_real_videos(name: str) -> None:
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    cfg = config(stack=1, sound=SoundConfig(rate=24000, samples=30720))
    whole = load_clip(path, cfg, decoder="pyav")
    video = LazyVideo(path, cfg, "pyav")
    for clip in (2, 0):
        pieces = video.pictures(video.positions_VT[clip])
        assert np.array_equal(pieces, whole.frames_BTHWC[0, 4 * clip : 4 * clip + 4].numpy())
    assert video.decoded <= 8 < video.num_frames
    assert whole.sound_BSN is not None
    assert np.array_equal(video.sound(), whole.sound_BSN[0].numpy())
