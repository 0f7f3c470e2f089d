"""Loader on the index source: contents, order, position, evaluation, errors, threads."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_specs.schema import read_index
from training.core.config import DataConfig, TransformConfig
from training.core.data import (
    ClipLoader,
    CoverageError,
    DataError,
    DecodeError,
    LoaderStateError,
    SampleError,
    check_coverage,
    load_clip,
    open_loader,
)

TRANSFORM = TransformConfig(size=32, train_crop="multiscale", eval_short_side=32, flip=True, normalise="imagenet")


def config(**changes: Any) -> DataConfig:
    base = DataConfig(
        num_frames=4, sampling="segments", batch_size=8, transform=TRANSFORM, decoder="pyav", threads=2, prefetch=2
    )
    return base.model_copy(update=changes)


def opened(shards: Path, cfg: DataConfig | None = None, **changes: Any) -> ClipLoader:
    settings: dict[str, Any] = {"split": "train", "train": True, "seed": 5} | changes
    return open_loader(shards, cfg or config(), **settings)


def take(loader: ClipLoader, count: int) -> list[Any]:
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def same(a: Any, b: Any) -> bool:
    return a.key == b.key and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("frames_BTHWC", "size_B2", "label_B", "seed_B", "valid_B")
    )


def test_batch_shows_the_clips_of_its_keys(tiny_shards: Path, frame_number: Callable[..., int]) -> None:
    loader = opened(tiny_shards, split="val", train=False)
    classes = loader.classes
    seen = 0
    for batch in loader:
        for place, key in enumerate(batch.key):
            number = int(key.split("-")[1])
            height, width = batch.size_B2[place].tolist()
            assert (height, width) == ((32, 48), (48, 64), (64, 48), (40, 40))[number % 4]
            clip = batch.frames_BTHWC[place, :, :height, :width].numpy()
            # Colour tells the class, blocks tell the frame: the middle of four equal parts.
            channel = int(clip[:, 10:].reshape(-1, 3).mean(0).argmax())
            assert classes[int(batch.label_B[place])] == ("red", "green", "blue")[channel]
            count = 10 + number % 4
            assert [frame_number(frame) for frame in clip] == [(2 * i + 1) * count // 8 for i in range(4)]
            # Outside the clip the canvas is zero.
            assert not batch.frames_BTHWC[place, :, height:].any()
            assert not batch.frames_BTHWC[place, :, :, width:].any()
            seen += int(batch.valid_B[place])
    assert seen == 10
    loader.close()


def test_facts_of_a_loader(tiny_shards: Path) -> None:
    loader = opened(tiny_shards, split="val", train=False)
    index = read_index(tiny_shards)
    assert loader.num_samples == 10
    assert loader.num_listed == 11
    assert loader.num_batches == 2
    assert loader.decoder == "pyav"
    assert loader.classes == index.classes
    assert loader.data_digest == index.data_digest("val")
    assert opened(tiny_shards).num_batches is None


def test_each_epoch_holds_each_sample_once_and_epochs_differ(tiny_shards: Path) -> None:
    loader = opened(tiny_shards, config(batch_size=6))
    keys = [key for batch in take(loader, 8) for key in batch.key]
    first, second = keys[:24], keys[24:]
    assert sorted(first) == sorted(second) == sorted(loader.expected_keys)
    assert first != second
    assert first != sorted(first)
    other = [key for batch in take(opened(tiny_shards, config(batch_size=6), seed=6), 4) for key in batch.key]
    assert other != first
    loader.close()


def test_batches_run_across_epochs(tiny_shards: Path) -> None:
    loader = opened(tiny_shards, config(batch_size=9))
    keys = [key for batch in take(loader, 8) for key in batch.key]
    assert len(keys) == 72
    for epoch in range(3):
        assert len(set(keys[24 * epoch : 24 * (epoch + 1)])) == 24
    loader.close()


@pytest.mark.parametrize("world", [2, 4])
def test_global_order_is_the_same_on_any_number_of_ranks(tiny_shards: Path, world: int) -> None:
    single = take(opened(tiny_shards), 7)
    ranks = [take(opened(tiny_shards, rank=rank, world=world), 7) for rank in range(world)]
    for step, whole in enumerate(single):
        parts = [ranks[rank][step] for rank in range(world)]
        assert sum((part.key for part in parts), ()) == whole.key
        assert torch.equal(torch.cat([part.seed_B for part in parts]), whole.seed_B)
        for rank, part in enumerate(parts):
            share = 8 // world
            height, width = part.frames_BTHWC.shape[2:4]
            assert torch.equal(part.frames_BTHWC, whole.frames_BTHWC[rank * share :][:share, :, :height, :width])


def test_resume_at_any_step_equals_uninterrupted(tiny_shards: Path) -> None:
    whole = take(opened(tiny_shards, config(batch_size=10)), 9)
    rng = np.random.default_rng(0)
    for stop in (0, *rng.integers(1, 8, 3).tolist()):
        loader = opened(tiny_shards, config(batch_size=10))
        batches = iter(loader)
        for _ in range(stop):
            next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
        loader.close()
        resumed = opened(tiny_shards, config(batch_size=10))
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        for expected, got in zip(whole[stop:], take(resumed, 9 - stop), strict=True):
            assert same(expected, got)
        resumed.close()


def test_state_counts_batches_handed_out_not_those_prefetched(tiny_shards: Path) -> None:
    loader = opened(tiny_shards, config(prefetch=3))
    batches = iter(loader)
    assert loader.state_dict()["position"] == 0
    next(batches)
    assert loader.state_dict()["position"] == 8
    second = next(batches)
    state = loader.state_dict()
    assert (state["position"], state["epoch"]) == (16, 0)
    third = next(batches)
    assert third.key[0] == state["key"] != second.key[0]
    assert state["shard"].endswith(".tar")
    assert state["offset"] % 512 == 0
    loader.close()


def test_state_survives_a_change_of_rank_count(tiny_shards: Path) -> None:
    whole = take(opened(tiny_shards), 6)
    loader = opened(tiny_shards, rank=1, world=2)
    take(loader, 3)
    state = loader.state_dict()
    for world in (1, 4):
        ranks = []
        for rank in range(world):
            resumed = opened(tiny_shards, rank=rank, world=world)
            resumed.load_state_dict(state)
            ranks.append(take(resumed, 3))
            resumed.close()
        for step in range(3):
            assert sum((ranks[rank][step].key for rank in range(world)), ()) == whole[3 + step].key


def test_states_are_equal_on_all_ranks(tiny_shards: Path) -> None:
    states = []
    for rank in range(2):
        loader = opened(tiny_shards, rank=rank, world=2)
        take(loader, 2)
        states.append(loader.state_dict())
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 6),
        ("data_digest", "0" * 64),
        ("split", "val"),
        ("source", "stream"),
        ("format", 0),
        ("decoder", "opencv"),
    ],
)
def test_foreign_states_are_refused_by_name(tiny_shards: Path, field: str, value: Any) -> None:
    loader = opened(tiny_shards)
    state = loader.state_dict()
    loader.load_state_dict(dict(state))
    with pytest.raises(LoaderStateError, match=field):
        loader.load_state_dict(state | {field: value})
    with pytest.raises(LoaderStateError, match=f"lacks the fields {field}"):
        loader.load_state_dict({name: v for name, v in state.items() if name != field})


def test_decoder_change_needs_permission(tiny_shards: Path) -> None:
    state = opened(tiny_shards, config(decoder="opencv")).state_dict()
    loader = opened(tiny_shards)
    with pytest.raises(LoaderStateError, match="--allow-decoder-change"):
        loader.load_state_dict(state)
    allowed = opened(tiny_shards, allow_decoder_change=True)
    allowed.load_state_dict(state)
    assert allowed.state_dict() == state | {"decoder": allowed.decoder}


def test_state_whose_sample_is_another_one_is_refused(tiny_shards: Path) -> None:
    loader = opened(tiny_shards)
    with pytest.raises(LoaderStateError, match="order of samples"):
        loader.load_state_dict(loader.state_dict() | {"position": 8})


def test_evaluation_has_no_position(tiny_shards: Path) -> None:
    loader = opened(tiny_shards, split="val", train=False)
    with pytest.raises(LoaderStateError, match="always starts"):
        loader.load_state_dict(loader.state_dict())


@pytest.mark.parametrize(("split", "world"), [("val", 1), ("val", 2), ("test", 4), ("test", 8)])
def test_evaluation_takes_each_sample_once_and_pads(tiny_shards: Path, split: str, world: int) -> None:
    keys: list[str] = []
    lengths = set()
    for rank in range(world):
        loader = opened(tiny_shards, split=split, train=False, rank=rank, world=world)
        for _ in range(2):  # a second pass starts again
            batches = list(loader)
        lengths.add(len(batches))
        assert loader.num_batches == len(batches)
        assert all(len(batch.key) == 8 // world for batch in batches)
        keys += [key for batch in batches for key, ok in zip(batch.key, batch.valid_B.tolist(), strict=True) if ok]
        expected = loader.expected_keys
        loader.close()
    assert lengths == {2}
    check_coverage(keys, expected)


def test_coverage_check_lists_what_is_wrong() -> None:
    check_coverage(["b", "a"], ["a", "b"])
    with pytest.raises(CoverageError, match=r"1 missing \(c\)"):
        check_coverage(["a", "b"], ["a", "b", "c"])
    with pytest.raises(CoverageError, match=r"1 evaluated more than once \(a\)"):
        check_coverage(["a", "b", "a"], ["a", "b"])
    with pytest.raises(CoverageError, match=r"1 not in the split \(z\)"):
        check_coverage(["a", "z"], ["a"])


def test_seeds_depend_on_seed_epoch_and_sample_only(tiny_shards: Path) -> None:
    by_key: dict[str, list[int]] = {}
    for batch in take(opened(tiny_shards), 6):
        for key, seed in zip(batch.key, batch.seed_B.tolist(), strict=True):
            by_key.setdefault(key, []).append(seed)
    assert all(len(set(seeds)) == 2 for seeds in by_key.values())
    for batch in take(opened(tiny_shards, config(batch_size=3, threads=1, prefetch=1)), 16):
        for key, seed in zip(batch.key, batch.seed_B.tolist(), strict=True):
            assert seed in by_key[key]
    assert all(0 <= seed < 2**63 for seeds in by_key.values() for seed in seeds)


def test_multi_label_sets_give_multi_hot(tmp_path: Path, shard_writer: Any, sample_maker: Any) -> None:
    samples = sample_maker(tmp_path, "train", 3, 0)
    samples[1] = (samples[1][0].model_copy(update={"label": (0, 2)}), samples[1][1])
    folder = shard_writer(tmp_path / "multi", {"train": samples})
    loader = opened(folder, config(batch_size=3))
    batch = take(loader, 1)[0]
    rows = dict(zip(batch.key, batch.label_B.tolist(), strict=True))
    assert rows == {"clip-000": [1, 0, 0], "clip-001": [1, 0, 1], "clip-002": [0, 0, 1]}
    assert batch.label_B.dtype == torch.float32
    loader.close()


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
def test_jpgs_give_the_nearest_stored_frames(jpgs_shards: Path, decoder: Any, frame_number: Callable[..., int]) -> None:
    loader = opened(jpgs_shards, config(batch_size=6, decoder=decoder))
    batch = take(loader, 1)[0]
    for place in range(6):
        height, width = batch.size_B2[place].tolist()
        numbers = [frame_number(f) for f in batch.frames_BTHWC[place, :, :height, :width].numpy()]
        assert all(number % 2 == 0 for number in numbers)
        assert all(4 * part - 1 <= number < 4 * part + 5 for part, number in enumerate(numbers))
    loader.close()


def test_a_broken_sample_stops_the_loader_with_a_usable_message(
    tmp_path: Path, shard_writer: Any, sample_maker: Any
) -> None:
    samples = sample_maker(tmp_path, "train", 4, 0)
    broken = bytearray(samples[2][1]["mp4"])
    broken[len(broken) // 3 :] = bytes(len(broken) - len(broken) // 3)
    samples[2] = (samples[2][0], {"mp4": bytes(broken)})
    folder = shard_writer(tmp_path / "broken", {"train": samples})
    loader = opened(folder, config(batch_size=4))
    with pytest.raises(SampleError, match="clip-002") as info:
        take(loader, 1)
    message = str(info.value)
    assert "main-train-00000.tar" in message
    assert "pyav" in message
    assert "python -m training.core.decode" in message
    loader.close()


def test_errors_come_with_their_own_batch(tmp_path: Path, shard_writer: Any, sample_maker: Any) -> None:
    samples = sample_maker(tmp_path, "val", 6, 0)
    samples[4] = (samples[4][0], {"mp4": b"not a video"})
    folder = shard_writer(tmp_path / "broken", {"val": samples})
    batches = iter(opened(folder, config(batch_size=2, prefetch=3), split="val", train=False))
    assert [next(batches).key for _ in range(2)] == [("clip-000", "clip-001"), ("clip-002", "clip-003")]
    with pytest.raises(SampleError, match="clip-004"):
        next(batches)


def test_a_record_of_another_size_is_refused(tmp_path: Path, shard_writer: Any, sample_maker: Any) -> None:
    samples = sample_maker(tmp_path, "train", 1, 0)
    samples[0] = (samples[0][0].model_copy(update={"width": 50}), samples[0][1])
    folder = shard_writer(tmp_path / "wrong", {"train": samples})
    with pytest.raises(SampleError, match=r"32×48.*expected 32×50"):
        take(opened(folder, config(batch_size=1)), 1)


def test_damaged_folders_are_refused(tmp_path: Path, shard_writer: Any, sample_maker: Any) -> None:
    samples = {"train": sample_maker(tmp_path, "train", 3, 0)}
    folder = shard_writer(tmp_path / "set", samples)
    opened(folder)
    with pytest.raises(DataError, match=r"no shards of split 'val' .*train"):
        opened(folder, split="val")
    idx, tar = folder / "main-train-00000.idx", folder / "main-train-00000.tar"
    content = idx.read_bytes()
    idx.write_bytes(content.replace(b"clip-001", b"clip-009"))
    with pytest.raises(DataError, match=r"00000\.idx.*sha256"):
        opened(folder)
    idx.write_bytes(content)
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"00000\.tar has \d+ bytes"):
        opened(folder)
    tar.unlink()
    with pytest.raises(DataError, match=r"is missing.*dvc pull"):
        opened(folder)
    (folder / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        opened(folder)


def test_unlabelled_samples_are_refused(tmp_path: Path, shard_writer: Any, sample_maker: Any) -> None:
    samples = sample_maker(tmp_path, "train", 2, 0)
    samples[1] = (samples[1][0].model_copy(update={"label": None}), samples[1][1])
    folder = shard_writer(tmp_path / "none", {"train": samples})
    with pytest.raises(DataError, match=r"clip-001.*no class label"):
        opened(folder)


def test_batch_size_must_fit_the_ranks(tiny_shards: Path) -> None:
    with pytest.raises(DataError, match="batch_size 8 cannot be divided between 3 ranks"):
        opened(tiny_shards, world=3)
    with pytest.raises(DataError, match="rank 2 is not one of 2"):
        opened(tiny_shards, rank=2, world=2)


def test_memory_of_a_batch_is_reused_only_after_it_was_let_go(tiny_shards: Path) -> None:
    batches = iter(opened(tiny_shards, config(prefetch=1)))
    held = [next(batches) for _ in range(8)]
    copies = [batch.frames_BTHWC.clone() for batch in held]
    view = held[0].frames_BTHWC[3, 1:]
    kept = view.clone()
    del held[0]
    for _ in range(12):
        next(batches)
    assert torch.equal(view, kept)
    assert all(torch.equal(b.frames_BTHWC, c) for b, c in zip(held, copies[1:], strict=True))
    assert len({batch.frames_BTHWC.data_ptr() for batch in held}) == 7
    # Nothing is held: the memory of the first batches serves all later ones.
    batches = iter(opened(tiny_shards, config(prefetch=1, batch_size=24)))
    places = [next(batches).frames_BTHWC.data_ptr() for _ in range(12)]
    assert set(places[4:]) <= set(places[:4])


def test_close_ends_the_threads(tiny_shards: Path) -> None:
    before = set(threading.enumerate())
    loader = opened(tiny_shards)
    take(loader, 2)
    started = [thread for thread in threading.enumerate() if thread not in before]
    assert len(started) == 2
    assert all(thread.is_alive() for thread in started)
    loader.close()
    loader.close()
    assert not any(thread.is_alive() for thread in started)
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


def test_a_new_iterator_ends_the_old_one(tiny_shards: Path) -> None:
    whole = take(opened(tiny_shards), 3)
    loader = opened(tiny_shards)
    old = iter(loader)
    next(old)
    new = iter(loader)
    assert next(new).key == whole[1].key
    with pytest.raises(StopIteration):
        next(old)
    assert next(new).key == whole[2].key
    loader.close()


def test_load_clip_equals_the_stored_sample(tiny_shards: Path, tmp_path: Path) -> None:
    loader = opened(tiny_shards, config(batch_size=1), split="val", train=False, seed=0)
    batch = next(iter(loader))
    content = loader._source._index.read(0)  # type: ignore[attr-defined]
    path = tmp_path / "a clip.mp4"
    path.write_bytes(content)
    for source in (content, path):
        clip = load_clip(source, config(), decoder="pyav", key=batch.key[0])
        assert torch.equal(clip.frames_BTHWC, batch.frames_BTHWC)
        assert torch.equal(clip.seed_B, batch.seed_B)
        assert clip.label_B.tolist() == [-1]
    loader.close()


def test_load_clip_names_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("not a video")
    with pytest.raises(DecodeError, match=r"notes\.mp4"):
        load_clip(path, config(), decoder="pyav")
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4"):
        load_clip(tmp_path / "absent.mp4", config(), decoder="pyav")
    with pytest.raises(DecodeError, match="11 bytes"):
        load_clip(b"not a video", config(), decoder="pyav")


@pytest.mark.parametrize("keep", [False, True])
def test_memory_is_flat_over_epochs(
    keep: bool, tmp_path: Path, shard_writer: Any, sample_maker: Any, mp4_encoder: Any
) -> None:
    # Two frames to decode, 32 in the batch: many bytes for little work.
    content = mp4_encoder(np.zeros((2, 256, 320, 3), dtype=np.uint8), tmp_path / "clip.mp4")
    size = {"height": 256, "width": 320, "num_frames": 2}
    samples = [(r.model_copy(update=size), {"mp4": content}) for r, _ in sample_maker(tmp_path, "train", 8, 0)]
    loader = opened(shard_writer(tmp_path / "big", {"train": samples}), config(batch_size=4, num_frames=32))
    batches = iter(loader)
    epochs, kept = [], []
    for _ in range(9):
        for _ in range(2):
            batch = next(batches)
            if keep:
                kept.append(batch)
        epochs.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    loader.close()
    # A batch is 31 MB. Which of the prefetched ones exist at a moment varies; one that keeps every
    # batch (the control) adds 310 MB over the last five epochs.
    assert (max(epochs[4:]) - max(epochs[1:4]) > 120e6) == keep
