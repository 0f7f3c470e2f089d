"""Clips of which an ingest stores some frames: the loader takes those that lie where the clip's own length says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data_specs.files import sha256_of
from data_specs.schema import ClipPolicy, ClipRecord, DatasetSpec, FolderSource, ListedVideo, Part, ShardPolicy
from infra.settings import Settings
from tasks.media import all_stored, encode, store_folder
from tasks.ops.encoder import encoder_of
from tasks.ops.jpegs import sample_uniformly
from tasks.ops.plan import plan_shards
from tasks.ops.shards import assemble, verify_shards
from tasks.ops.validate import check_shards
from training.core.config import DataConfig, TransformConfig
from training.core.data import open_loader
from training.core.sample_reader import clip_of, load_pictures, read_samples
from training.core.sampling import frame_positions, nearest_stored

LENGTHS = {"long": 50, "short": 5, "just": 8}
STORED = 8
TRANSFORM = TransformConfig(size=32, train_crop="center", eval_short_side=32, flip=False, normalise="imagenet")


def config(**changes: Any) -> DataConfig:
    base = {"num_frames": 4, "sampling": "segments", "batch_size": 1, "transform": TRANSFORM, "decoder": "pyav"}
    return DataConfig(**{**base, **changes})


@pytest.fixture(scope="module")
def made(
    clip_drawer: Callable[..., Any], mp4_encoder: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory
) -> tuple[DatasetSpec, Path]:
    """An ingest of three videos with eight frames of each, and its shard folder."""
    root = tmp_path_factory.mktemp("jpgs")
    rows = []
    (root / "raw").mkdir()
    for name, frames in LENGTHS.items():
        path = root / "raw" / f"{name}.mp4"
        mp4_encoder(clip_drawer(1, 1, 48, 64, frames), path)
        size, checksum = path.stat().st_size, sha256_of(path)
        rows.append(ListedVideo("main", name, path.name, "a", "val", name, None, None, size, checksum))
    clip = ClipPolicy(
        representation="jpgs", short_side=48, fps=None, audio="drop", num_frames=STORED, min_frames=5, jpeg_quality=95
    )
    part = Part(name="main", source=FolderSource(root=str(root / "raw")), split="val")
    spec = DatasetSpec(
        name="tiny",
        version="1",
        licence="none",
        labels=("a",),
        parts=(part,),
        clip=clip,
        shards=ShardPolicy(samples_per_shard=5, seed=0),
        max_reject_share=0.0,
    )
    settings = Settings(root=root, progress=False, RAY_ADDRESS=None)
    plan = plan_shards(spec, rows, encoder_of(settings, "jpgs"), ("a",))
    encode(plan, settings, 0, lambda _: None)
    folder = root / "shards"
    assemble(plan, all_stored(plan, settings), store_folder(settings), folder)
    return spec, folder


def frames_read(folder: Path, cfg: DataConfig, frame_number: Callable[..., int]) -> dict[str, list[int]]:
    """Numbers that are written into the frames which an evaluation gets."""
    loader = open_loader(folder, cfg, split="val", train=False, seed=0)
    try:
        return {raw.key[0]: [frame_number(frame) for frame in raw.frames_BTHWC[0].numpy()] for raw in loader}
    finally:
        loader.close()


def wanted(length: int, cfg: DataConfig) -> list[int]:
    stored = np.array(sample_uniformly(STORED, length))
    return [int(stored[abs(stored - p).argmin()]) for p in frame_positions(length, cfg, train=False, seed=0)]


CONFIGS = {
    "segments": config(),
    "all": config(num_frames=8),
    "dense": config(sampling="dense", stride=12),
    "clips": config(sampling="clips", stride=6, eval_clips=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_evaluated_frames_are_spread_over_the_clip(
    made: tuple[DatasetSpec, Path], frame_number: Callable[..., int], name: str
) -> None:
    spec, folder = made
    cfg = CONFIGS[name]
    read = frames_read(folder, cfg, frame_number)
    assert read == {key: wanted(length, cfg) for key, length in LENGTHS.items()}
    if name == "segments":
        assert read["long"] == [3, 15, 28, 40]
    if name == "all":
        assert read["long"] == list(sample_uniformly(8, 50))
    # The same frames are served.
    for key, sample in read_samples(folder, LENGTHS).items():
        raw = load_pictures(clip_of(sample, cfg), cfg, decoder="pyav")
        assert [frame_number(frame) for frame in raw.frames_BTHWC[0].numpy()] == read[key]
    assert verify_shards(folder) == {}
    assert [
        r.detail for r in check_shards(spec, [], folder, 10, False) if r.level == "fail" and r.check != "samples"
    ] == []


def test_records_count_the_clip(made: tuple[DatasetSpec, Path]) -> None:
    for key, sample in read_samples(made[1], LENGTHS).items():
        record = ClipRecord.model_validate_json(sample["json"])
        assert f'"num_frames":{LENGTHS[key]},' in sample["json"].decode()
        assert (record.num_frames, record.frame_index) == (LENGTHS[key], sample_uniformly(STORED, LENGTHS[key]))
        assert round(record.duration_s * record.fps) == record.num_frames


def test_shards_that_count_the_stored_frames_are_read_alike(
    made: tuple[DatasetSpec, Path], shard_writer: Callable[..., Path], frame_number: Callable[..., int], tmp_path: Path
) -> None:
    """As the ingest wrote them at first, with 8 for the length of every clip."""
    samples = []
    for sample in read_samples(made[1], LENGTHS).values():
        record = ClipRecord.model_validate_json(sample["json"])
        first = ClipRecord.model_construct(**{**record.model_dump(), "num_frames": STORED})
        assert '"num_frames":8,' in first.model_dump_json()
        assert ClipRecord.model_validate_json(first.model_dump_json()) == record
        samples.append((first, {"jpgs": sample["jpgs"]}))
    folder = shard_writer(tmp_path / "shards", {"val": samples}, representation="jpgs", classes=("a",))
    for source in ("index", "stream"):
        cfg = config(source=source)
        assert frames_read(folder, cfg, frame_number) == {key: wanted(n, cfg) for key, n in LENGTHS.items()}
    # The control, and what was wrong: taken at their word they gave two frames from the start of 50.
    stored = sample_uniformly(STORED, 50)
    naive = frame_positions(STORED, config(num_frames=8), train=False, seed=0)
    assert nearest_stored(naive, stored).tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_a_record_that_contradicts_itself_is_refused(made: tuple[DatasetSpec, Path]) -> None:
    sample = read_samples(made[1], ["long"])["long"]
    record = ClipRecord.model_validate_json(sample["json"]).model_dump()
    with pytest.raises(ValidationError, match=r"frame_index has frame 46 of a clip of 46 frames .* run the ingest"):
        ClipRecord.model_validate({**record, "num_frames": 46})
    with pytest.raises(ValidationError, match="frame 46 of a clip of 20 frames"):
        ClipRecord.model_validate({**record, "num_frames": STORED, "duration_s": 2.0})
    assert ClipRecord.model_validate({**record, "num_frames": 47}).num_frames == 47
