"""Real shards made of tiny encoded videos, laid out as `data_specs.schema` says.

Clips are 32 to 64 pixels of noise over a coloured background (colour = class) with the frame number
written into the picture as eight bright or dark blocks, so tests can read back which frames were decoded.
Two of three have sound: a tone (pitch = class) in noise.
"""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_specs.boxes import BOXES_MEMBER, BoxTrack, ClipBoxes
from data_specs.jpgs import pack_jpgs
from data_specs.schema import (
    SHARD_FORMAT,
    ClipRecord,
    Encoder,
    IndexEntry,
    ShardIndex,
    ShardInfo,
    digest,
)
from infra.settings import Settings
from tasks.ops.controlled import ControlledConfig, class_names
from tasks.ops.controlled_files import write_task

CLASSES = ("blue", "green", "red")
SPLIT_SIZES = {"train": 24, "val": 10, "test": 11}
SIZES = ((32, 48), (48, 64), (64, 48), (40, 40))
"""Height and width of clip number i modulo 4."""


def draw_clip(number: int, label: int, height: int, width: int, num_frames: int) -> NDArray[np.uint8]:
    """Return (T,H,W,3): class colour, noise, and the frame number in blocks along the top."""
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 40, (num_frames, height, width, 3)).astype(np.uint8)
    frames[..., 2 - label] += 120
    block = width // 8
    for frame in range(num_frames):
        for bit in range(8):
            frames[frame, :8, bit * block : (bit + 1) * block] = 230 if frame >> bit & 1 else 20
    return frames


SOUND_RATE = 24000


def draw_sound(number: int, label: int, seconds: float) -> NDArray[np.int16] | None:
    """Return (S,) at 24 kHz: the tone of the class, in noise; None for the first three of each nine clips."""
    if number // 3 % 3 == 0:
        return None
    time = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    noise = np.random.default_rng(number).normal(0, 400, len(time))
    return np.asarray(6000 * np.sin(2 * np.pi * 500 * 2**label * time) + noise).astype(np.int16)


def read_frame_number(frame: NDArray[np.uint8]) -> int:
    """Return the number that `draw_clip` wrote into a frame (H,W,3)."""
    block = frame.shape[1] // 8
    return sum(int(frame[2:6, bit * block + 1 : (bit + 1) * block - 1].mean() > 125) << bit for bit in range(8))


def encode_mp4(
    frames: NDArray[np.uint8], path: Path, *options: str, fps: int = 10, sound: NDArray[np.int16] | None = None
) -> bytes:
    """Encode (T,H,W,3) as H.264 with the wheel's ffmpeg, and mono sound at 24 kHz as AAC."""
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-threads", "1"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    if sound is not None:
        heard = path.with_suffix(".pcm")
        heard.write_bytes(sound.astype("<i2").tobytes())
        command += ["-f", "s16le", "-ar", str(SOUND_RATE), "-ac", "1", "-i", str(heard), "-c:a", "aac", "-b:a", "64k"]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "18", "-pix_fmt", "yuv420p"]
    command += ["-movflags", "+faststart", *options, str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True, timeout=60)
    return path.read_bytes()


def write_shard(folder: Path, name: str, samples: list[tuple[ClipRecord, dict[str, bytes]]], split: str) -> ShardInfo:
    """Write one tar with webdataset's writer and its `.idx`; return its line of the index."""
    import webdataset as wds

    path = folder / f"{name}.tar"
    with wds.TarWriter(str(path), mtime=0) as writer:
        for record, members in samples:
            writer.write({"__key__": record.key, "json": record.model_dump_json().encode(), **members})
    places: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            places.setdefault(key, {})[extension] = (member.offset_data, member.size)
    lines = [
        IndexEntry(
            key=record.key, label=record.label, num_frames=record.num_frames, members=places[record.key]
        ).model_dump_json()
        for record, _ in samples
    ]
    idx = "".join(line + "\n" for line in lines).encode()
    path.with_suffix(".idx").write_bytes(idx)
    content = path.read_bytes()
    return ShardInfo(
        name=path.name,
        part="main",
        split=split,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        samples=len(samples),
        idx_sha256=hashlib.sha256(idx).hexdigest(),
        plan_digest=digest(name),
    )


def write_set(
    folder: Path,
    splits: dict[str, list[tuple[ClipRecord, dict[str, bytes]]]],
    *,
    representation: Any = "mp4",
    per_shard: int = 6,
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    """Write a whole data set: shards, labels.txt, index.json."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for split, samples in splits.items():
        for start in range(0, len(samples), per_shard):
            name = f"main-{split}-{start // per_shard:05d}"
            shards.append(write_shard(folder, name, samples[start : start + per_shard], split))
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in classes))
    index = ShardIndex(
        format=SHARD_FORMAT,
        dataset="tiny",
        spec_digest=digest("tiny"),
        representation=representation,
        encoder=Encoder(name="ffmpeg", version="wheel"),
        classes=classes,
        shards=tuple(shards),
        rejects={"corrupt": 1},
        # One listed video of each split was rejected.
        listed={split: len(samples) + 1 for split, samples in splits.items()},
    )
    (folder / "index.json").write_text(json.dumps(index.model_dump(mode="json"), indent=1))
    return folder


def make_samples(scratch: Path, split: str, count: int, first: int) -> list[tuple[ClipRecord, dict[str, bytes]]]:
    """Draw and encode the clips of one split; classes in turn, 10 to 13 frames."""
    samples = []
    for number in range(first, first + count):
        height, width = SIZES[number % len(SIZES)]
        label, num_frames = number % len(CLASSES), 10 + number % 4
        frames = draw_clip(number, label, height, width, num_frames)
        options = ("-g", "4", "-bf", "2") if number % 2 else ("-bf", "2", "-preset", "veryfast")
        sound = draw_sound(number, label, num_frames / 10)
        content = encode_mp4(frames, scratch / "clip.mp4", *options, sound=sound)
        key = f"clip-{number:03d}"
        record = make_record(key, split, label, num_frames, height, width, has_audio=sound is not None)
        objects = draw_objects(number, label, height, width, num_frames)
        samples.append((record, {"mp4": content, BOXES_MEMBER: objects.model_dump_json().encode()}))
    return samples


def draw_objects(number: int, label: int, height: int, width: int, num_frames: int) -> ClipBoxes:
    """Return the coloured area below the blocks of `draw_clip` as one object, labelled in every third frame."""
    box = (0.0, 8.0, float(width), float(height))
    frames = tuple(range(number % 3, num_frames, 3))
    return ClipBoxes(
        tracks=(BoxTrack(track=0, label=label, frames=frames, boxes=(box,) * len(frames)),), labelled=frames
    )


def make_record(
    key: str,
    split: str,
    label: Any,
    num_frames: int,
    height: int,
    width: int,
    *,
    has_audio: bool = False,
    **more: Any,
) -> ClipRecord:
    """Return the record of a drawn clip."""
    return ClipRecord(
        key=key,
        source=f"{key}.mp4",
        part="main",
        split=split,
        group=key,
        label=label,
        num_frames=num_frames,
        fps=10.0,
        width=width,
        height=height,
        duration_s=num_frames / 10,
        has_audio=has_audio,
        **more,
    )


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shard folder with splits train (24), val (10), test (11); 3 classes; do not write into it."""
    scratch = tmp_path_factory.mktemp("scratch")
    first, splits = 0, {}
    for split, count in SPLIT_SIZES.items():
        splits[split] = make_samples(scratch, split, count, first)
        first += count
    return write_set(tmp_path_factory.mktemp("data") / "shards" / "tiny", splits)


def write_controlled_set(folder: Path, config: ControlledConfig) -> Path:
    """Make the videos of a controlled task and pack them."""
    write_task(folder / "videos", config)
    classes = class_names(config.task)
    splits: dict[str, list[tuple[ClipRecord, dict[str, bytes]]]] = {}
    for path in sorted((folder / "videos").rglob("*.mp4")):
        split, name = path.parts[-3:-1]
        record = ClipRecord(
            key=f"{split}-{name}-{path.stem}",
            source=path.name,
            part="main",
            split=split,
            group=path.stem,
            label=classes.index(name),
            num_frames=config.num_frames,
            fps=float(config.fps),
            width=config.size,
            height=config.size,
            duration_s=config.num_frames / config.fps,
            has_audio=False,
        )
        splits.setdefault(split, []).append((record, {"mp4": path.read_bytes()}))
    return write_set(folder / "shards", splits, per_shard=200, classes=classes)


@pytest.fixture(scope="session")
def controlled_shards() -> Callable[[Path, ControlledConfig], Path]:
    """`write_controlled_set`."""
    return write_controlled_set


@pytest.fixture(scope="session")
def jpgs_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shard folder of `jpgs` samples: every second frame of a clip of 16 is stored; 6 train clips."""
    import simplejpeg

    samples = []
    for number in range(6):
        height, width = SIZES[number % len(SIZES)]
        frames = draw_clip(number, number % 3, height, width, 16)
        stored = tuple(range(0, 16, 2))
        files = [simplejpeg.encode_jpeg(np.ascontiguousarray(frames[i]), quality=95) for i in stored]
        record = make_record(f"clip-{number:03d}", "train", number % 3, 16, height, width, frame_index=stored)
        samples.append((record, {"jpgs": pack_jpgs(files)}))
    return write_set(tmp_path_factory.mktemp("data") / "jpgs", {"train": samples}, representation="jpgs", per_shard=3)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store, to be copied into a project's root: making one takes seconds.

    Experiments name their own folder for artifacts, so it does not matter where the store was made.
    """
    from training.core.tracking import ensure_store

    root = tmp_path_factory.mktemp("store")
    ensure_store(Settings(root=root, mlflow_tracking_uri=None))
    return root / "mlflow.db"


@pytest.fixture(scope="session")
def shard_writer() -> Callable[..., Path]:
    """`write_set`, for tests that need shards of their own."""
    return write_set


@pytest.fixture(scope="session")
def sample_maker() -> Callable[..., list[tuple[ClipRecord, dict[str, bytes]]]]:
    """`make_samples`."""
    return make_samples


@pytest.fixture(scope="session")
def record_maker() -> Callable[..., ClipRecord]:
    """`make_record`."""
    return make_record


@pytest.fixture(scope="session")
def clip_drawer() -> Callable[..., NDArray[np.uint8]]:
    """`draw_clip`."""
    return draw_clip


@pytest.fixture(scope="session")
def mp4_encoder() -> Callable[..., bytes]:
    """`encode_mp4`."""
    return encode_mp4


@pytest.fixture(scope="session")
def frame_number() -> Callable[[NDArray[np.uint8]], int]:
    """`read_frame_number`."""
    return read_frame_number


@pytest.fixture(scope="session")
def tar_bytes() -> Callable[[dict[str, bytes]], bytes]:
    """Return a function that makes a plain tar of named files, as a foreign tool would."""

    def make(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    return make
