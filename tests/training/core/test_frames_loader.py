"""Loader of detectors: which frames are drawn, whole videos in blocks, boxes that stay on their objects."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_specs.boxes import BOXES_MEMBER, BoxTrack, ClipBoxes
from data_specs.schema import ClipRecord
from training.core.config import DataConfig, TransformConfig
from training.core.data import DataError, SampleError, open_loader, video_blocks
from training.core.frame_sampling import collate_objects, labelled_frames, objects_of, training_frames
from training.core.frame_transform import FrameTransform, scaled_size, stored_boxes
from training.core.system import FrameBoxes, RawBatch

SIZES = ((48, 80), (64, 40), (33 * 2, 50))


def transform(**changes: Any) -> TransformConfig:
    values = {"size": 64, "long_side": 100, "train_crop": "whole", "eval_short_side": 64, "flip": True}
    return TransformConfig(**{**values, "normalise": "unit", **changes})


def config(num_frames: int = 3, schedule: str = "offline", **changes: Any) -> DataConfig:
    frames = {"schedule": schedule, "interval": 10, "block": 8} | changes.pop("frames", {})
    values = {
        "num_frames": num_frames,
        "sampling": "frames",
        "batch_size": 4,
        "transform": transform(),
        "frames": frames,
    }
    return DataConfig.model_validate({**values, "decoder": "pyav", **changes})


def square(frame: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the box of the bright square: it moves one pixel per frame."""
    x, y = (5 + frame) % (width - 16), (3 + frame // 2) % (height - 16)
    return x, y, x + 14, y + 12


def clip_boxes(frames: int, height: int, width: int, every: int = 1) -> ClipBoxes:
    labelled = tuple(range(0, frames, every))
    boxes = tuple(tuple(map(float, square(f, height, width))) for f in labelled)
    track = BoxTrack(track=3, label=1, frames=labelled, boxes=boxes)
    return ClipBoxes(tracks=(track,), labelled=None if every == 1 else labelled, subsets={"odd": (1, 3)})


@pytest.fixture(scope="module")
def shards(
    tmp_path_factory: pytest.TempPathFactory,
    shard_writer: Callable[..., Path],
    mp4_encoder: Callable[..., bytes],
    record_maker: Callable[..., ClipRecord],
) -> Path:
    scratch = tmp_path_factory.mktemp("scratch")
    samples = []
    for number in range(6):
        height, width = SIZES[number % 3]
        frames = 11 + number
        pictures = np.full((frames, height, width, 3), 30, dtype=np.uint8)
        for f in range(frames):
            x0, y0, x1, y1 = square(f, height, width)
            pictures[f, y0:y1, x0:x1] = 220
        content = mp4_encoder(pictures, scratch / "clip.mp4", "-crf", "4")
        record = record_maker(f"clip-{number}", "train", (1,), frames, height, width)
        member = clip_boxes(frames, height, width, 1 + number % 2 * 3).model_dump_json().encode()
        samples.append((record, {"mp4": content, BOXES_MEMBER: member}))
    return shard_writer(tmp_path_factory.mktemp("data") / "boxes", {"train": samples, "val": samples[:5]}, per_shard=2)


# --- which frames -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "new", "old", "older"),
    [("offline", (-5, 4), (-10, -6), (-20, -16)), ("online", (-10, -1), (-15, -11), (-25, -21))],
)
def test_key_frames_lie_where_the_paper_has_them(schedule, new, old, older):
    """§7: offset of the new and the old key frame from the labelled one; every value occurs, and no other."""
    clip = ClipBoxes(tracks=(), labelled=(100,))
    drawn = np.array([training_frames(clip, 200, config(4, schedule), seed) for seed in range(4000)]) - 100
    assert (drawn[:, 3] == 0).all()
    for column, (least, largest) in ((2, new), (1, old), (0, older)):
        assert set(drawn[:, column].tolist()) == set(range(least, largest + 1))
        counts = np.bincount(drawn[:, column] - least)
        assert counts.min() > 0.8 * counts.mean()


def test_frames_are_clipped_to_the_video_and_an_image_is_itself_three_times():
    drawn = np.array([training_frames(clip_boxes(4, 48, 80), 4, config(3), seed) for seed in range(300)])
    assert drawn.min() == 0
    assert drawn.max() == 3
    assert (drawn[:, 0] == 0).all()
    assert (training_frames(ClipBoxes(tracks=()), 1, config(3), 7) == 0).all()


def test_labelled_frames_are_those_with_objects_spread_evenly():
    boxes = ((0.0, 0.0, 2.0, 2.0),)
    tracks = (BoxTrack(track=0, label=0, frames=tuple(range(40, 80)), boxes=boxes * 40),)
    clip = ClipBoxes(tracks=tracks, labelled=tuple(range(100)))
    assert labelled_frames(clip, 100, None).tolist() == list(range(40, 80))
    assert labelled_frames(clip, 100, 4).tolist() == [45, 55, 65, 75]
    assert labelled_frames(ClipBoxes(tracks=(), labelled=(3, 9)), 100, 15).tolist() == [3, 9]
    with pytest.raises(ValueError, match="none of its frames is labelled"):
        labelled_frames(ClipBoxes(tracks=(), labelled=()), 100, 15)


# --- geometry ---------------------------------------------------------------------------------


def centre_of_light(picture: torch.Tensor) -> tuple[float, float]:
    weight = (picture.mean(0) - 0.3).clamp_min(0)
    y, x = torch.arange(weight.shape[0]) + 0.5, torch.arange(weight.shape[1]) + 0.5
    return float((weight.sum(0) * x).sum() / weight.sum()), float((weight.sum(1) * y).sum() / weight.sum())


@pytest.mark.parametrize("train", [True, False])
def test_boxes_stay_on_their_objects_under_scaling_mirroring_and_padding(shards, train):
    loader = open_loader(shards, config(), split="train", train=train, seed=1)
    scale = FrameTransform(transform())
    seen, flipped = 0, 0
    for raw, _ in zip(loader, range(12 if train else 99), strict=False):
        batch = scale(raw, train=train)
        assert batch.boxes is not None
        for row in range(len(raw.key)):
            flipped += int(batch.flip_B[row])
            height, width = batch.sizes[row]
            assert batch.size_B2[row].tolist() == [height, width]
            assert (batch.video_BCTHW[row, :, :, height:] == 0).all()
            assert (batch.video_BCTHW[row, :, :, :, width:] == 0).all()
            for t in range(raw.number_BT.shape[1]):
                labels = batch.boxes.label_BTN[row, t]
                assert labels.tolist().count(1) == int(batch.boxes.labelled_BT[row, t])
                if labels[0] < 0:
                    assert (batch.boxes.box_BTN4[row, t] == 0).all()
                    continue
                x0, y0, x1, y1 = batch.boxes.box_BTN4[row, t, 0].tolist()
                x, y = centre_of_light(batch.video_BCTHW[row, :, t, :height, :width])
                assert (x, y) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=0.35)
                seen += 1
    assert seen > 30
    assert (flipped > 3) == train


def test_scaled_boxes_map_back_exactly():
    raw = RawBatch(
        frames_BTHWC=torch.zeros((2, 1, 60, 90, 3), dtype=torch.uint8),
        size_B2=torch.tensor([[60, 90], [50, 35]]),
        label_B=torch.zeros(2, 3),
        key=("a", "b"),
        seed_B=torch.tensor([1, 2]),
        valid_B=torch.ones(2, dtype=torch.bool),
        number_BT=torch.zeros(2, 1, dtype=torch.int64),
        boxes=FrameBoxes(
            torch.ones(2, 1, dtype=torch.bool),
            torch.tensor([[[[3.0, 4.0, 20.0, 30.0]]], [[[1.0, 2.0, 34.0, 49.0]]]]),
            torch.zeros(2, 1, 1, dtype=torch.int64),
            torch.zeros(2, 1, 1, dtype=torch.int64),
        ),
        sizes=((60, 90), (50, 35)),
    )
    flips = set()
    for seed in range(6):
        batch = FrameTransform(transform())(
            RawBatch(**{**vars(raw), "seed_B": torch.tensor([seed, seed + 50])}), train=True
        )
        assert batch.boxes is not None
        flips |= set(batch.flip_B.tolist())
        for row in range(2):
            back = stored_boxes(batch.boxes.box_BTN4[row, 0], batch, row)
            assert torch.allclose(back, raw.boxes.box_BTN4[row, 0], atol=1e-4)
    assert flips == {True, False}


def test_scale_is_bounded_by_both_sides():
    assert scaled_size(720, 1280, 600, 1000) == (563, 1000)
    assert scaled_size(480, 640, 600, 1000) == (600, 800)
    assert scaled_size(640, 480, 600, 1000) == (800, 600)


def test_resampling_of_equal_size_is_the_picture_itself():
    pixels = torch.randint(0, 256, (1, 2, 64, 90, 3), dtype=torch.uint8)
    raw = RawBatch(
        frames_BTHWC=pixels,
        size_B2=torch.tensor([[64, 90]]),
        label_B=torch.zeros(1),
        key=("a",),
        seed_B=torch.zeros(1, dtype=torch.int64),
        valid_B=torch.ones(1, dtype=torch.bool),
        number_BT=torch.zeros(1, 2, dtype=torch.int64),
        sizes=((64, 90),),
    )
    scale = FrameTransform(transform())
    assert torch.equal(scale.to_pixels(scale(raw, train=False).video_BCTHW), pixels)


# --- whole videos -----------------------------------------------------------------------------


def test_evaluation_shows_every_frame_of_every_video_once_in_order(shards):
    loader = open_loader(shards, config(), split="val", train=False, seed=0)
    frames: dict[str, list[int]] = {}
    for raw in loader:
        assert len(raw.key) == 1
        assert raw.video is not None
        assert raw.frames_BTHWC.shape[1] <= 8
        frames.setdefault(raw.key[0], []).extend(raw.number_BT[0].tolist())
        assert raw.video.num_frames == 11 + int(raw.key[0][-1])
        assert raw.video.objects is not None
        assert raw.video.objects.subsets == {"odd": (1, 3)}
    assert frames == {f"clip-{n}": list(range(11 + n)) for n in range(5)}
    assert list(frames) == list(loader.expected_keys)


@pytest.mark.parametrize("source", ["index", "stream"])
def test_ranks_share_whole_videos(shards, source):
    seen: Counter[tuple[str, int]] = Counter()
    videos = []
    for rank in range(2):
        cfg = config(source=source, batch_size=2)
        loader = open_loader(shards, cfg, split="train", train=False, seed=0, rank=rank, world=2)
        own = [(raw.key[0], frame) for raw in loader for frame in raw.number_BT[0].tolist()]
        videos.append({key for key, _ in own})
        seen.update(own)
    assert not videos[0] & videos[1]
    assert set(seen.values()) == {1}
    assert len(seen) == sum(11 + n for n in range(6))


def test_a_file_gives_the_same_frames_as_its_sample(shards, tmp_path):
    from training.core.sample_reader import read_samples

    content = read_samples(shards, ["clip-2"], "val")["clip-2"]["mp4"]
    (tmp_path / "clip.mp4").write_bytes(content)
    blocks = list(video_blocks(tmp_path / "clip.mp4", config(), decoder="pyav"))
    own = [raw for raw in open_loader(shards, config(), split="val", train=False, seed=0) if raw.key == ("clip-2",)]
    assert len(blocks) == len(own) == 2
    for a, b in zip(blocks, own, strict=True):
        assert torch.equal(a.frames_BTHWC, b.frames_BTHWC)
        assert torch.equal(a.number_BT, b.number_BT)
        assert a.boxes is None
    with pytest.raises(FileNotFoundError, match="gone"):
        list(video_blocks(tmp_path / "gone.mp4", config(), decoder="pyav"))


# --- training order ---------------------------------------------------------------------------


def test_repeats_show_a_part_more_often_with_other_draws(shards):
    cfg = config(frames={"repeats": {"main": 3}}, batch_size=6)
    loader = open_loader(shards, cfg, split="train", train=True, seed=3)
    batches = [raw for raw, _ in zip(loader, range(3), strict=False)]
    counts = Counter(key for raw in batches for key in raw.key)
    assert set(counts.values()) == {3}
    draws = {
        (key, tuple(numbers)) for raw in batches for key, numbers in zip(raw.key, raw.number_BT.tolist(), strict=True)
    }
    assert len(draws) > 12
    state = loader.state_dict()
    following = next(iter(loader))
    again = open_loader(shards, cfg, split="train", train=True, seed=3)
    again.load_state_dict(state)
    other = next(iter(again))
    assert other.key == following.key
    assert torch.equal(other.number_BT, following.number_BT)
    with pytest.raises(DataError, match="'det'"):
        open_loader(shards, config(frames={"repeats": {"det": 2}}), split="train", train=True, seed=3)
    with pytest.raises(DataError, match="source `index`"):
        open_loader(shards, cfg.model_copy(update={"source": "stream"}), split="train", train=True, seed=3)


def test_a_sample_without_boxes_is_refused_in_training_and_evaluated_without_truth(
    tmp_path, shards, shard_writer, mp4_encoder, record_maker
):
    """The negative control of everything above: boxes come from the member and from nowhere else."""
    content = mp4_encoder(np.zeros((5, 32, 32, 3), dtype=np.uint8), tmp_path / "clip.mp4")
    samples = [(record_maker(f"clip-{n}", "train", 0, 5, 32, 32), {"mp4": content}) for n in range(4)]
    folder = shard_writer(tmp_path / "plain", {"train": samples, "val": samples})
    raw = next(iter(open_loader(folder, config(), split="val", train=False, seed=0)))
    assert raw.boxes is None
    assert raw.video is not None
    assert raw.video.objects is None
    with pytest.raises(SampleError, match=r"no member `boxes\.json`"):
        next(iter(open_loader(folder, config(), split="train", train=True, seed=0)))


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="frames goes with sampling"):
        config(sampling="segments")
    with pytest.raises(ValueError, match="whole frames"):
        config(transform=TransformConfig(size=32, train_crop="random", eval_short_side=32, flip=True, normalise="unit"))
    with pytest.raises(ValueError, match="long_side"):
        transform(long_side=40)
    with pytest.raises(ValueError, match="no crops"):
        transform(eval_short_side=80)


def test_collation_keeps_every_object():
    rng = np.random.default_rng(0)
    tracks = []
    for number in range(7):
        frames = tuple(sorted(rng.choice(20, 9, replace=False).tolist()))
        corner = rng.uniform(0, 20, (9, 2))
        boxes = tuple((x, y, x + 5, y + 4) for x, y in corner.tolist())
        tracks.append(BoxTrack(track=number, label=number % 3, frames=frames, boxes=boxes))
    clip = ClipBoxes(tracks=tuple(tracks))
    frames = [4, 9, 9, 15]
    joined = collate_objects([objects_of(clip, frames), objects_of(ClipBoxes(tracks=()), frames)], pin=False)
    for place, frame in enumerate(frames):
        expected = {t.track: t.boxes[t.frames.index(frame)] for t in tracks if frame in t.frames}
        row = joined.track_BTN[0, place]
        assert sorted(row[row >= 0].tolist()) == sorted(expected)
        for slot in torch.nonzero(row >= 0)[:, 0].tolist():
            assert joined.box_BTN4[0, place, slot].tolist() == pytest.approx(expected[int(row[slot])], abs=1e-5)
            assert int(joined.label_BTN[0, place, slot]) == int(row[slot]) % 3
    assert (joined.label_BTN[1] == -1).all()
