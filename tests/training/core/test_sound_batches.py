"""Batches with sound and optical flow: the right stretch beside the right frames, from shards and from any file."""

import io
import shlex
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_specs.flows import extract, pack_flow, quantise, unpack_flow
from data_specs.jpgs import pack_jpgs
from data_specs.schema import ClipRecord
from training.core.config import DataConfig, SoundConfig, TransformConfig
from training.core.data import ClipLoader, DecodeError, SampleError, load_clip, open_loader
from training.core.decode import decode_clip
from training.core.sample_reader import clip_of, evaluated_clips, load_pictures, read_samples
from training.core.sampling import centre_frames, clip_positions, clip_seed, field_positions, frame_positions
from training.core.sound import read_sound
from training.core.system import RawBatch

TRANSFORM = TransformConfig(size=32, train_crop="center", eval_short_side=32, flip=False, normalise="imagenet")
SOUND = SoundConfig(rate=24000, samples=4800)
Samples = list[tuple[ClipRecord, dict[str, bytes]]]
FIELDS = ("frames_BTHWC", "size_B2", "label_B", "seed_B", "valid_B", "sound_BSN", "has_sound_B", "flow_BTHWC")


def config(**changes: Any) -> DataConfig:
    base: dict[str, Any] = {"num_frames": 2, "sampling": "clips", "stride": 2, "train_clips": 3, "eval_clips": 4}
    base |= {"stack": 3, "sound": SOUND, "batch_size": 5, "transform": TRANSFORM, "decoder": "pyav"}
    return DataConfig(**{**base, **changes})


def opened(shards: Path, cfg: DataConfig, *, split: str = "val", train: bool = False, seed: int = 5) -> ClipLoader:
    return open_loader(shards, cfg, split=split, train=train, seed=seed)


def rows(shards: Path, cfg: DataConfig, count: int = 24, **more: Any) -> dict[str, dict[str, Any]]:
    """Return key → field → what the batches have of it, pictures without the canvas around them."""
    loader = opened(shards, cfg, **more)
    found: dict[str, dict[str, Any]] = {}
    for batch in loader:
        for place, key in enumerate(batch.key):
            if batch.valid_B[place]:
                found[key] = row(batch, place)
        if len(found) >= count:
            break
    loader.close()
    return found


def row(batch: RawBatch, place: int = 0) -> dict[str, Any]:
    height, width = batch.size_B2[place].tolist()
    values = {name: getattr(batch, name) for name in FIELDS}
    result = {name: value[place] for name, value in values.items() if value is not None}
    for name in ("frames_BTHWC", "flow_BTHWC"):
        if name in result:
            assert not result[name][:, height:].any()
            assert not result[name][:, :, width:].any()
            result[name] = result[name][:, :height, :width].clone()
    return result


def same(a: dict[str, Any], b: dict[str, Any], *without: str) -> bool:
    names = a.keys() - set(without)
    return names == b.keys() - set(without) and all(torch.equal(a[name], b[name]) for name in names)


def pitch(window: NDArray[np.int16], rate: int = 24000) -> float:
    spectrum = np.abs(np.fft.rfft(window.astype(np.float64)))
    return float(spectrum.argmax() * rate / len(window))


# --- sound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
def test_each_clip_has_the_sound_of_its_class(tiny_shards: Path, train: bool) -> None:
    found = rows(tiny_shards, config(), split="train", train=train)
    assert len(found) == 24
    for key, values in found.items():
        number = int(key.split("-")[1])
        assert values["sound_BSN"].shape == (3 if train else 4, 4800)
        assert values["sound_BSN"].dtype == torch.int16
        assert bool(values["has_sound_B"]) == (number // 3 % 3 > 0)
        if values["has_sound_B"]:
            for window in values["sound_BSN"].numpy():
                assert pitch(window) == pytest.approx(500 * 2 ** int(values["label_B"]), abs=10)
        else:
            assert not values["sound_BSN"].any()


@pytest.mark.parametrize("train", [False, True])
def test_sound_is_centred_on_the_clips_whose_pictures_are_shown(
    tiny_shards: Path, frame_number: Callable[..., int], train: bool
) -> None:
    found = rows(tiny_shards, config(), split="train", train=train)
    samples = read_samples(tiny_shards, found, "train")
    for key, values in found.items():
        record = ClipRecord.model_validate_json(samples[key]["json"])
        positions = clip_positions(record.num_frames, config(), train=train, seed=int(values["seed_B"]))
        shown = [frame_number(frame.numpy()) for frame in values["frames_BTHWC"]]
        assert shown == frame_positions(record.num_frames, config(), train=train, seed=int(values["seed_B"])).tolist()
        assert shown[:: config().stack] == positions.ravel().tolist()
        sound = read_sound(samples[key]["mp4"], centre_frames(positions), SOUND)
        assert (sound is not None) == bool(values["has_sound_B"])
        if sound is not None:
            assert np.array_equal(values["sound_BSN"].numpy(), sound)
            moved = read_sound(samples[key]["mp4"], centre_frames(positions) - 1, SOUND)
            assert not np.array_equal(moved, sound), "the control: one frame earlier"


def test_other_settings_have_neither_sound_nor_flow(tiny_shards: Path) -> None:
    cfg = DataConfig(num_frames=2, sampling="segments", batch_size=5, transform=TRANSFORM, decoder="pyav")
    batch = next(iter(opened(tiny_shards, cfg)))
    assert batch.sound_BSN is batch.has_sound_B is batch.flow_BTHWC is None
    batch = next(iter(opened(tiny_shards, config(sound=None))))
    assert batch.sound_BSN is batch.has_sound_B is None


def test_threads_and_prefetching_do_not_matter(tiny_shards: Path) -> None:
    one = rows(tiny_shards, config(threads=1, prefetch=1), split="train", train=True)
    four = rows(tiny_shards, config(threads=4, prefetch=4), split="train", train=True)
    assert all(same(one[key], four[key]) for key in one)
    other = rows(tiny_shards, config(), split="train", train=True, seed=6)
    assert not all(same(one[key], other[key], "seed_B") for key in one)


@pytest.mark.parametrize(("split", "train"), [("val", False), ("train", True)])
def test_stream_gives_the_same_as_the_index(with_flow: Path, split: str, train: bool) -> None:
    cfg = config(flow=True, batch_size=3)
    indexed = rows(with_flow, cfg, split=split, train=train, count=6)
    streamed = rows(with_flow, cfg.model_copy(update={"source": "stream"}), split=split, train=train, count=6)
    assert indexed.keys() == streamed.keys()
    assert len(indexed) == 6
    assert {bool(values["has_sound_B"]) for values in indexed.values()} == {False, True}
    assert all(same(indexed[key], streamed[key]) for key in indexed)


def test_pictures_of_positions_are_the_first_of_each_stack(tiny_shards: Path) -> None:
    stacks = rows(tiny_shards, config())
    first = rows(tiny_shards, config(pictures="positions"))
    for key, values in first.items():
        assert torch.equal(values["frames_BTHWC"], stacks[key]["frames_BTHWC"][::3])
        assert torch.equal(values["sound_BSN"], stacks[key]["sound_BSN"])


def test_pictures_that_nobody_sees_are_not_decoded(tiny_shards: Path, shard_writer: Callable, tmp_path: Path) -> None:
    """Sound is read from clips whose pictures are destroyed; with pictures these are refused."""
    whole = read_samples(tiny_shards, [f"clip-{n:03d}" for n in (24, 30, 31, 32)], "val")
    samples = [(ClipRecord.model_validate_json(m["json"]), {"mp4": _blinded(m["mp4"])}) for m in whole.values()]
    blind = shard_writer(tmp_path / "blind", {"val": samples})
    listens = config(pictures="none", stack=1, batch_size=4)
    batch = next(iter(opened(blind, listens)))
    expected = rows(tiny_shards, listens)
    assert batch.frames_BTHWC.shape == (4, 0, *batch.frames_BTHWC.shape[2:])
    for place, key in enumerate(batch.key):
        assert same(row(batch, place), expected[key])
    with pytest.raises(SampleError, match="clip-024"):
        next(iter(opened(blind, config(batch_size=4))))


def _blinded(content: bytes) -> bytes:
    """Overwrite the picture's packets, but not their sizes and times."""
    blind = bytearray(content)
    with av.open(io.BytesIO(content)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                blind[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    return bytes(blind)


def test_foreign_tars_have_sound_too(tiny_shards: Path, tar_bytes: Callable[..., bytes], tmp_path: Path) -> None:
    keys = [f"clip-{n:03d}" for n in (24, 27, 30, 33)]
    samples = read_samples(tiny_shards, keys, "val")
    files = {}
    for key, members in samples.items():
        files |= {f"{key}.mp4": members["mp4"], f"{key}.cls": b"1"}
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "0.tar").write_bytes(tar_bytes(files))
    (tmp_path / "labels.txt").write_text("a\nb\n")
    expected = rows(tiny_shards, config())
    for changes in ({}, {"pictures": "none", "stack": 1}):
        foreign = rows(tmp_path, config(source="stream", batch_size=4, **changes))
        expected = rows(tiny_shards, config(**changes))
        assert foreign.keys() == set(keys)
        assert all(same(values, expected[key], "label_B") for key, values in foreign.items())


# --- sound in another member ------------------------------------------------------------------


def wav_of(samples: NDArray[np.int16], rate: int = 24000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def ramp(seconds: float) -> NDArray[np.int16]:
    return np.arange(round(24000 * seconds), dtype=np.int16)


def test_a_wav_is_taken_before_the_sound_of_the_video(
    sample_maker: Callable[..., Samples], shard_writer: Callable[..., Path], tmp_path: Path
) -> None:
    samples = sample_maker(tmp_path, "val", 6, 0)
    with_wav = [(record, {**members, "wav": wav_of(ramp(1.2))}) for record, members in samples]
    shards = shard_writer(tmp_path / "shards", {"val": with_wav})
    cfg = config(batch_size=3)
    found = rows(shards, cfg)
    for record, _ in samples:
        positions = clip_positions(record.num_frames, cfg, train=False, seed=0)
        # 10 frames per second: frame n is shown at sample 2400·n.
        starts = np.clip(centre_frames(positions) * 2400 - 2400, 0, 28800 - 4800)
        assert found[record.key]["sound_BSN"][:, 0].tolist() == starts.tolist()
        assert found[record.key]["has_sound_B"]
    assert not all(record.has_audio for record, _ in samples)
    streamed = rows(shards, cfg.model_copy(update={"source": "stream"}))
    assert all(same(found[key], streamed[key]) for key in found)


def test_a_wav_starts_when_the_sound_of_its_video_does(
    tiny_shards: Path, shard_writer: Callable[..., Path], tmp_path: Path
) -> None:
    import imageio_ffmpeg

    members = read_samples(tiny_shards, ["clip-030"], "val")["clip-030"]
    record = ClipRecord.model_validate_json(members["json"])
    (tmp_path / "clip.mp4").write_bytes(members["mp4"])
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(tmp_path / "clip.mp4"), "-itsoffset", "0.3"]
    command += ["-i", str(tmp_path / "clip.mp4"), "-map", "0:v", "-map", "1:a", "-c", "copy", str(tmp_path / "l.mp4")]
    subprocess.run(command, check=True, timeout=60)
    late = {"mp4": (tmp_path / "l.mp4").read_bytes(), "wav": wav_of(ramp(1.2))}
    shards = shard_writer(tmp_path / "shards", {"val": [(record, late)]})
    found = rows(shards, config(batch_size=1))[record.key]
    positions = clip_positions(record.num_frames, config(), train=False, seed=0)
    starts = np.clip(centre_frames(positions) * 2400 - 7200 - 2400, 0, 28800 - 4800)
    assert np.abs(found["sound_BSN"][:, 0].numpy() - starts).max() <= 1


def jpgs_samples(draw: Callable[..., NDArray[np.uint8]], count: int = 3) -> Samples:
    """Every second frame of 16 at 10 fps."""
    import simplejpeg

    samples = []
    for number in range(count):
        stored = tuple(range(0, 16, 2))
        frames = draw(number, number % 3, 32, 48, 16)
        files = [simplejpeg.encode_jpeg(np.ascontiguousarray(frames[i])) for i in stored]
        record = ClipRecord(
            **{"key": f"clip-{number}", "source": "a", "part": "main", "split": "val", "group": "a", "label": 0},
            **{"num_frames": 16, "fps": 10.0, "width": 48, "height": 32, "duration_s": 1.6, "has_audio": True},
            frame_index=stored,
        )
        samples.append((record, {"jpgs": pack_jpgs(files)}))
    return samples


def m4a_of(samples: NDArray[np.int16], path: Path, late: float = 0.0) -> bytes:
    import imageio_ffmpeg

    (path / "a.wav").write_bytes(wav_of(samples))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-itsoffset", str(late), "-i", str(path / "a.wav")]
    subprocess.run([*command, "-c:a", "aac", "-f", "mp4", str(path / "a.m4a")], check=True, timeout=60)
    return (path / "a.m4a").read_bytes()


def test_pictures_with_sound_beside_them(
    clip_drawer: Callable[..., Any], shard_writer: Callable[..., Path], tmp_path: Path
) -> None:
    tone = (8000 * np.sin(np.arange(38400) * 2 * np.pi * (500 + np.arange(38400) / 38.4) / 24000)).astype(np.int16)
    first, second, third = jpgs_samples(clip_drawer)
    samples = [
        (first[0], {**first[1], "m4a": m4a_of(tone, tmp_path)}),
        (second[0], {**second[1], "m4a": m4a_of(ramp(1.3), tmp_path, 0.3), "wav": wav_of(ramp(1.3))}),
        third,
    ]
    shards = shard_writer(tmp_path / "shards", {"val": samples}, representation="jpgs")
    cfg = config(batch_size=3, stack=1)
    found = rows(shards, cfg)
    assert [bool(values["has_sound_B"]) for values in found.values()] == [True, True, False]
    # Positions 0 and 2, 4 and 6, 8 and 10, 12 and 14: each is stored itself; centred on 1, 5, 9 and 13.
    assert clip_positions(16, cfg, train=False, seed=0)[:, 0].tolist() == [0, 4, 8, 12]
    for window, centre in zip(found["clip-0"]["sound_BSN"].numpy(), (1, 5, 9, 13), strict=True):
        start = min(max(0, centre * 2400 - 2400), 38400 - 4800)
        error = window.astype(float) - tone[start : start + 4800]
        assert np.abs(error).mean() < 200
        moved = tone[(start + 240) % 30000 :][:4800]  # the control: 10 ms off
        assert np.abs(window.astype(float) - moved).mean() > 2000
    late = np.clip(np.array([1, 5, 9, 13]) * 2400 - 7200 - 2400, 0, 31200 - 4800)
    assert np.abs(found["clip-1"]["sound_BSN"][:, 0].numpy() - late).max() <= 1
    for key, members in read_samples(shards, found, "val").items():
        again = row(load_pictures(clip_of(members, cfg), cfg, decoder="pyav", key=key))
        assert same(again, found[key], "label_B", "seed_B")
    listens = cfg.model_copy(update={"pictures": "none"})
    silent = rows(shards, listens)
    for key, members in read_samples(shards, found, "val").items():
        again = row(load_pictures(clip_of(members, listens), listens, decoder="pyav", key=key))
        assert same(again, silent[key], "label_B", "seed_B")
        assert torch.equal(silent[key]["sound_BSN"], found[key]["sound_BSN"])


# --- broken sound -----------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["mp4", "wav"])
def test_broken_sound_names_sample_shard_and_command(
    tiny_shards: Path, shard_writer: Callable[..., Path], tmp_path: Path, broken: str
) -> None:
    members = dict(read_samples(tiny_shards, ["clip-030"], "val")["clip-030"])
    record = ClipRecord.model_validate_json(members.pop("json"))
    if broken == "wav":
        members["wav"] = b"RIFFnothing of the kind"
    else:
        content = bytearray(members["mp4"])
        with av.open(io.BytesIO(members["mp4"])) as container:
            for packet in [p for p in container.demux(container.streams.audio[0]) if p.size][5:]:
                content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
        members["mp4"] = bytes(content)
    shards = shard_writer(tmp_path / "shards", {"val": [(record, members)]})
    with pytest.raises(SampleError, match="its sound cannot be decoded") as caught:
        next(iter(opened(shards, config(batch_size=1))))
    message = str(caught.value)
    assert "sample 'clip-030'" in message
    assert "main-val-00000.tar" in message
    command = message.partition("repeat with: ")[2]
    assert f"clip-030.{broken}" in command
    repeated = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], capture_output=True, text=True, timeout=60, check=False
    )
    assert repeated.returncode != 0
    assert "its sound cannot be decoded" in repeated.stderr
    # The pictures alone are sound.
    assert len(next(iter(opened(shards, config(batch_size=1, sound=None)))).key) == 1


# --- optical flow -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_flow(
    sample_maker: Callable[..., Samples], shard_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Six train and val clips with a `flow` member of noise."""
    folder = tmp_path_factory.mktemp("flow")
    splits = {split: sample_maker(folder, split, 6, first) for split, first in (("train", 0), ("val", 6))}
    for samples in splits.values():
        for number, (record, members) in enumerate(samples):
            rng = np.random.default_rng(number)
            blocks = rng.integers(0, 256, (record.num_frames - 1, record.height // 8, record.width // 8, 2))
            members["flow"] = pack_flow(blocks.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2))
    return shard_writer(folder / "shards", splits, per_shard=3)


@pytest.mark.parametrize("train", [False, True])
def test_stored_flow_is_that_of_the_stacks(with_flow: Path, train: bool) -> None:
    cfg = config(flow=True, batch_size=3)
    split = "train" if train else "val"
    found = rows(with_flow, cfg, split=split, train=train, count=6)
    for key, members in read_samples(with_flow, found, split).items():
        record = ClipRecord.model_validate_json(members["json"])
        seed = int(found[key]["seed_B"])
        positions = clip_positions(record.num_frames, cfg, train=train, seed=seed)
        numbers = field_positions(positions, cfg.stack, record.num_frames)
        assert len(numbers) == (3 if train else 4) * 2 * 2
        expected = unpack_flow(members["flow"], numbers.tolist())
        assert np.array_equal(found[key]["flow_BTHWC"].numpy(), expected)
        other = unpack_flow(members["flow"], ((numbers + 1) % (record.num_frames - 1)).tolist())
        assert not np.array_equal(found[key]["flow_BTHWC"].numpy(), other)


def test_flow_alone(with_flow: Path) -> None:
    both = rows(with_flow, config(flow=True, batch_size=3))
    alone = rows(with_flow, config(flow=True, batch_size=3, pictures="none", sound=None))
    for key, values in alone.items():
        assert values["frames_BTHWC"].shape[0] == 0
        assert torch.equal(values["flow_BTHWC"], both[key]["flow_BTHWC"])
        assert torch.equal(values["size_B2"], both[key]["size_B2"])


def test_missing_flow_says_what_to_do(tiny_shards: Path) -> None:
    with pytest.raises(SampleError, match=r"sample 'clip-024' of .*main-val-00000\.tar .*`clip\.flow: dis`"):
        next(iter(opened(tiny_shards, config(flow=True))))


def test_broken_flow_names_the_member(
    tiny_shards: Path, shard_writer: Callable[..., Path], tmp_path: Path, mp4_encoder: Callable[..., bytes]
) -> None:
    members = read_samples(tiny_shards, ["clip-030"], "val")["clip-030"]
    record = ClipRecord.model_validate_json(members["json"])
    short = pack_flow(np.zeros((2, record.height, record.width, 2), np.uint8))
    shards = shard_writer(tmp_path / "s", {"val": [(record, {"mp4": members["mp4"], "flow": short})]})
    with pytest.raises(
        SampleError, match=r"(?s)stored flow cannot be decoded.*repeat with: .*clip-030\.flow"
    ) as caught:
        next(iter(opened(shards, config(flow=True, batch_size=1))))
    command = str(caught.value).partition("repeat with: ")[2]
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], capture_output=True, timeout=60, check=False)
    assert done.returncode != 0


def test_videos_shorter_than_a_stack(
    clip_drawer: Callable[..., Any], mp4_encoder: Callable[..., bytes], tmp_path: Path
) -> None:
    cfg = config(flow=True, stack=6)
    for count in (1, 2, 4):
        content = mp4_encoder(clip_drawer(1, 1, 48, 64, count), tmp_path / "clip.mp4")
        clip = load_clip(content, cfg, decoder="pyav")
        assert clip.frames_BTHWC.shape == (1, 4 * 2 * 6, 48, 64, 3)
        assert clip.flow_BTHWC is not None
        assert clip.flow_BTHWC.shape == (1, 4 * 2 * 5, 48, 64, 2)
        if count == 1:
            assert (clip.flow_BTHWC == int(quantise(np.zeros(1, np.float32))[0])).all()


# --- any file, and the bytes of samples -------------------------------------------------------


def test_any_file_is_read_as_in_evaluation(tiny_shards: Path, tmp_path: Path) -> None:
    found = rows(tiny_shards, config(), seed=0)
    for key, members in read_samples(tiny_shards, found, "val").items():
        (tmp_path / "clip.mp4").write_bytes(members["mp4"])
        for source in (members["mp4"], tmp_path / "clip.mp4"):
            batch = load_pictures(source, config(), decoder="pyav", key=key)
            assert same(row(batch), found[key], "label_B")
            assert batch.label_B.tolist() == [-1]
            assert batch.seed_B.tolist() == [clip_seed(0, 0, key)]
        # Nothing but sound in it: the file is handed around as it is.
        assert clip_of(members, config()) is members["mp4"]


def test_flow_of_any_file_is_extracted(tiny_shards: Path) -> None:
    members = read_samples(tiny_shards, ["clip-030"], "val")["clip-030"]
    count = ClipRecord.model_validate_json(members["json"]).num_frames
    frames = decode_clip(members["mp4"], np.arange(count), "pyav")
    fields = quantise(extract("dis", frames))
    for changes in ({}, {"pictures": "positions"}, {"pictures": "none"}):
        cfg = config(flow=True, **changes)
        numbers = field_positions(clip_positions(count, cfg, train=False, seed=0), cfg.stack, count)
        batch = load_clip(members["mp4"], cfg, decoder="pyav")
        assert batch.flow_BTHWC is not None
        assert np.array_equal(batch.flow_BTHWC[0].numpy(), fields[numbers])
        assert batch.frames_BTHWC.shape[1] == cfg.eval_frames
    assert not np.array_equal(fields[numbers], fields[np.roll(numbers, 1)])


def test_samples_with_members_beside_the_clip_travel_whole(
    with_flow: Path, sample_maker: Callable[..., Samples], shard_writer: Callable[..., Path], tmp_path: Path
) -> None:
    samples = [(r, {**m, "wav": wav_of(ramp(1.2))}) for r, m in sample_maker(tmp_path, "val", 2, 3)]
    with_wav = shard_writer(tmp_path / "wav", {"val": samples})
    for shards, cfg in ((with_flow, config(flow=True, batch_size=2)), (with_wav, config(batch_size=2))):
        found = rows(shards, cfg, seed=0)
        for key, members in read_samples(shards, found, "val").items():
            content = clip_of(members, cfg)
            assert content == clip_of(members, cfg)
            path = tmp_path / "round.mp4"
            path.write_bytes(content)
            for source in (content, path):
                assert same(row(load_pictures(source, cfg, decoder="pyav", key=key)), found[key], "label_B")
            # The control: the video alone has another sound, or other flow.
            alone = row(load_pictures(members["mp4"], cfg, decoder="pyav", key=key))
            assert not same(alone, found[key], "label_B")
    damaged = clip_of(next(iter(read_samples(with_wav, ["clip-003"]).values())), config())[:3000]
    with pytest.raises(DecodeError, match="packed sample"):
        load_pictures(damaged, config(), decoder="pyav")


def test_evaluated_clips_carry_their_sound(with_flow: Path, tmp_path: Path) -> None:
    cfg = config(flow=True, batch_size=3)
    found = rows(with_flow, cfg, seed=0)
    keys = list(found)
    np.savez(tmp_path / "p.npz", key=keys, scores=np.zeros((6, 3), np.float32), classes=["a", "b", "c"])
    clips, _, _ = evaluated_clips(with_flow, tmp_path / "p.npz", "val", 6, cfg)
    for key, content in clips.items():
        assert same(row(load_pictures(content, cfg, decoder="pyav", key=key)), found[key], "label_B")


def test_packed_pictures_have_no_sound_and_no_flow(clip_drawer: Callable[..., Any]) -> None:
    (_, members), *_ = jpgs_samples(clip_drawer)
    cfg = config(stack=1)
    batch = load_pictures(members["jpgs"], cfg, decoder="pyav")
    assert batch.has_sound_B is not None
    assert batch.has_sound_B.tolist() == [False]
    assert batch.sound_BSN is not None
    assert batch.sound_BSN.shape == (1, 4, 4800)
    assert not batch.sound_BSN.any()
    with pytest.raises(DecodeError, match="no optical flow"):
        load_pictures(members["jpgs"], config(flow=True), decoder="pyav")
