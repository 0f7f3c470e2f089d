"""Loader on the stream source: same samples as the index source, order, resume, foreign tars, S3."""

import functools
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.core.config import DataConfig, TransformConfig
from training.core.data import ClipLoader, DataError, LoaderStateError, SampleError, check_coverage, open_loader
from training.core.data_stream import open_urls

TRANSFORM = TransformConfig(size=32, train_crop="multiscale", eval_short_side=32, flip=True, normalise="imagenet")


def config(**changes: Any) -> DataConfig:
    base = DataConfig(
        num_frames=4, sampling="segments", batch_size=4, transform=TRANSFORM, source="stream", decoder="pyav"
    )
    return base.model_copy(update=changes)


def opened(shards: Path, cfg: DataConfig | None = None, **changes: Any) -> ClipLoader:
    settings: dict[str, Any] = {"split": "train", "train": True, "seed": 5} | changes
    return open_loader(shards, cfg or config(), **settings)


def take(loader: ClipLoader, count: int) -> list[Any]:
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def by_key(batches: list[Any]) -> dict[str, tuple[Any, ...]]:
    """Valid clips without padding: key → frames, label, seed."""
    clips = {}
    for batch in batches:
        for place, key in enumerate(batch.key):
            if batch.valid_B[place]:
                height, width = batch.size_B2[place].tolist()
                frames = batch.frames_BTHWC[place, :, :height, :width]
                clips[key] = (frames, int(batch.label_B[place]), int(batch.seed_B[place]))
    return clips


def equal(a: dict[str, tuple[Any, ...]], b: dict[str, tuple[Any, ...]]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k][0], b[k][0]) and a[k][1:] == b[k][1:] for k in a)


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_gives_the_same_samples_as_the_index(tiny_shards: Path, split: str) -> None:
    streamed = opened(tiny_shards, split=split, train=False)
    indexed = opened(tiny_shards, config(source="index"), split=split, train=False)
    assert equal(by_key(list(streamed)), by_key(list(indexed)))
    for fact in ("num_samples", "num_listed", "classes", "data_digest", "decoder"):
        assert getattr(streamed, fact) == getattr(indexed, fact)


def test_training_gives_the_same_clips_as_the_index(tiny_shards: Path) -> None:
    streamed = by_key(take(opened(tiny_shards), 6))
    indexed = by_key(take(opened(tiny_shards, config(source="index")), 6))
    assert len(streamed) == 24
    # Both are in epoch 0, so even the random frames of each clip are the same; only the order differs.
    assert equal(streamed, indexed)
    assert list(streamed) != list(indexed)


@pytest.mark.parametrize(("split", "world"), [("val", 1), ("val", 2), ("test", 2), ("train", 4)])
def test_evaluation_is_exactly_once_and_equally_long(tiny_shards: Path, split: str, world: int) -> None:
    keys: list[str] = []
    lengths = set()
    for rank in range(world):
        loader = opened(tiny_shards, split=split, train=False, rank=rank, world=world)
        for _ in range(2):
            batches = list(loader)
        lengths.add(len(batches))
        assert loader.num_batches == len(batches)
        assert all(len(batch.key) == 4 // world for batch in batches)
        keys += [k for batch in batches for k, ok in zip(batch.key, batch.valid_B.tolist(), strict=True) if ok]
    assert len(lengths) == 1
    check_coverage(keys, loader.expected_keys)


def test_each_epoch_holds_each_sample_once(tiny_shards: Path) -> None:
    ranks = [[k for b in take(opened(tiny_shards, rank=r, world=2), 12) for k in b.key] for r in range(2)]
    assert all(len(keys) == 24 for keys in ranks)
    # Four shards of six: each rank has twelve samples per epoch.
    first = ranks[0][:12] + ranks[1][:12]
    second = ranks[0][12:] + ranks[1][12:]
    assert len(set(first)) == len(set(second)) == 24
    assert first != second


def test_order_depends_on_the_seed_and_mixes_shards(tiny_shards: Path) -> None:
    def order(seed: int) -> list[str]:
        return [key for batch in take(opened(tiny_shards, seed=seed), 6) for key in batch.key]

    assert order(1) == order(1) != order(2)
    shard = [int(key.split("-")[1]) // 6 for key in order(1)]
    assert sum(a != b for a, b in itertools.pairwise(shard)) > 8


@pytest.mark.parametrize("world", [1, 2])
def test_resume_equals_uninterrupted(tiny_shards: Path, world: int) -> None:
    for rank in range(world):
        whole = take(opened(tiny_shards, rank=rank, world=world), 11)
        for stop in (1, *np.random.default_rng(rank).integers(2, 11, 2).tolist()):
            loader = opened(tiny_shards, rank=0, world=world)
            take(loader, stop)
            state = json.loads(json.dumps(loader.state_dict()))  # rank 0's state serves all ranks
            loader.close()
            resumed = opened(tiny_shards, rank=rank, world=world)
            resumed.load_state_dict(state)
            for expected, got in zip(whole[stop:], take(resumed, 11 - stop), strict=True):
                assert got.key == expected.key
                assert torch.equal(got.frames_BTHWC, expected.frames_BTHWC)
                assert torch.equal(got.seed_B, expected.seed_B)
            resumed.close()


def test_state_names_the_next_sample(tiny_shards: Path) -> None:
    loader = opened(tiny_shards)
    batches = iter(loader)
    for _ in range(8):
        next(batches)
        state = loader.state_dict()
    assert state["epoch"] == 1
    assert next(batches).key[0] == state["key"]


def test_another_rank_count_is_refused(tiny_shards: Path) -> None:
    state = opened(tiny_shards, rank=1, world=2).state_dict()
    with pytest.raises(LoaderStateError, match="world = 2"):
        opened(tiny_shards).load_state_dict(state)
    opened(tiny_shards, rank=0, world=2).load_state_dict(state)


def test_fewer_shards_than_ranks_is_an_error(tiny_shards: Path) -> None:
    with pytest.raises(DataError, match="2 shards cannot be dealt out to 4 ranks"):
        opened(tiny_shards, split="val", train=False, world=4)


def test_a_tar_that_is_not_the_listed_one_is_an_error(tiny_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(tiny_shards, folder)
    loader = opened(folder, split="val", train=False)
    first, second = folder / "main-val-00000.tar", folder / "main-val-00001.tar"
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match=r"main-val-00000\.tar.*'clip-030' came where 'clip-024'"):
        list(loader)
    first.write_bytes((tiny_shards / first.name).read_bytes()[: first.stat().st_size // 2])
    with pytest.raises(DataError, match=r"main-val-0000"):
        list(loader)


# --- foreign tars -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_bytes(
    tmp_path_factory: pytest.TempPathFactory, clip_drawer: Callable[..., Any], mp4_encoder: Callable[..., bytes]
) -> Callable[[int], bytes]:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"

    @functools.cache
    def make(number: int) -> bytes:
        return mp4_encoder(clip_drawer(number, number % 3, 40, 48 + 8 * (number % 2), 9 + number), path)

    return make


@pytest.fixture
def foreign(tmp_path: Path, clip_bytes: Callable[[int], bytes], tar_bytes: Callable[..., bytes]) -> Path:
    """Two tars that know nothing of our schema: one with `cls`, one with a JSON of its own."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "labels.txt").write_text("blue\ngreen\nred\n")
    files: dict[str, bytes] = {}
    for number in range(3):
        files |= {f"x/{number}.mp4": clip_bytes(number), f"x/{number}.cls": str(number % 3).encode()}
    (folder / "train-000.tar").write_bytes(tar_bytes(files))
    files = {}
    for number in range(3, 5):
        label = {"label": ("blue", "green", "red")[number % 3], "caption": "…", "fps": 10}
        files |= {f"{number}.json": json.dumps(label).encode(), f"{number}.mp4": clip_bytes(number)}
    (folder / "train-001.tar").write_bytes(tar_bytes(files))
    return folder


def test_foreign_tars_can_be_evaluated_and_trained_on(foreign: Path, frame_number: Callable[..., int]) -> None:
    loader = opened(foreign, train=False)
    clips = by_key(list(loader))
    assert loader.num_samples == loader.num_listed == 5
    assert sorted(clips) == ["3", "4", "x/0", "x/1", "x/2"]
    for key, (frames, label, _) in clips.items():
        number = int(key[-1])
        assert label == number % 3
        count = 9 + number
        assert [frame_number(frame) for frame in frames.numpy()] == [(2 * i + 1) * count // 8 for i in range(4)]
    keys = [key for batch in take(opened(foreign, config(batch_size=5)), 3) for key in batch.key]
    assert all(len(set(keys[5 * epoch : 5 * epoch + 5])) == 5 for epoch in range(3))


def test_contents_of_foreign_tars_make_their_digest(foreign: Path, tar_bytes: Any, clip_bytes: Any) -> None:
    before = opened(foreign).data_digest
    assert before == opened(foreign).data_digest
    files = {"3.cls": b"0", "3.mp4": clip_bytes(7)}
    (foreign / "train-001.tar").write_bytes(tar_bytes(files))
    assert opened(foreign).data_digest != before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.mp4": b"x"}, "'a' has no usable label"),
        ({"a.mp4": b"x", "a.cls": b"seven"}, "'a' has no usable label"),
        ({"a.mp4": b"x", "a.json": b'{"label": "violet"}'}, "'a' has no usable label.*violet"),
        ({"a.mp4": b"x", "a.cls": b"3"}, "label 3, but there are 3 classes"),
    ],
)
def test_foreign_samples_without_usable_label_are_named(
    foreign: Path, tar_bytes: Any, files: dict[str, bytes], message: str
) -> None:
    (foreign / "train-001.tar").write_bytes(tar_bytes(files))
    with pytest.raises(DataError, match=message):
        opened(foreign)


def test_foreign_clips_that_are_missing_or_broken_are_named(foreign: Path, tar_bytes: Any) -> None:
    (foreign / "train-001.tar").write_bytes(tar_bytes({"a.cls": b"1", "a.wav": b"x"}))
    with pytest.raises(DataError, match=r"'a' has no clip \(members: cls, wav\)"):
        list(opened(foreign, train=False))
    (foreign / "train-001.tar").write_bytes(tar_bytes({"a.cls": b"1", "a.mp4": b"x"}))
    with pytest.raises(SampleError, match=r"'a' of .*train-001\.tar"):
        list(opened(foreign, train=False))


def test_a_folder_without_index_and_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither index\.json nor labels\.txt"):
        opened(tmp_path)
    (tmp_path / "labels.txt").write_text("a\n")
    with pytest.raises(DataError, match="no shards of split 'train'"):
        opened(tmp_path)


# --- S3 ---------------------------------------------------------------------------------------


@pytest.fixture
def s3_bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket on the local S3 server."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    bucket = boto3.resource("s3").Bucket("clips")
    bucket.create()
    return bucket


@pytest.mark.slow
def test_tars_on_s3(tiny_shards: Path, s3_bucket: Any) -> None:
    names = ["main-val-00000.tar", "main-val-00001.tar"]
    for name in names:
        s3_bucket.upload_file(str(tiny_shards / name), name)
    loader = open_urls(
        [f"s3://clips/{name}" for name in names],
        config(),
        classes=("blue", "green", "red"),
        split="val",
        train=False,
        seed=5,
    )
    local = opened(tiny_shards, split="val", train=False)
    assert equal(by_key(list(loader)), by_key(list(local)))
    with pytest.raises(DataError, match=r"s3://clips/absent\.tar cannot be read"):
        open_urls(["s3://clips/absent.tar"], config(), classes=("blue",), split="val", train=False, seed=5)
