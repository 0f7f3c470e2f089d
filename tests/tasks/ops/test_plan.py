import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.schema import ClipPolicy, Encoder, FolderSource, ListedVideo, Part
from tasks.ops.plan import IngestPlan, PlanError, find_duplicates, plan_shards, resolve_label

ENCODER = Encoder(name="ffmpeg", version="1")


def rows(count: int, part: str = "part0", split: str = "train", label: str = "a") -> list[ListedVideo]:
    return [
        ListedVideo(
            part,
            f"{part}-{i}" + split.removeprefix("train"),
            f"{i}.mp4",
            label,
            split,
            str(i),
            None,
            None,
            10 + i,
            f"{part}{split}{i}",
        )
        for i in range(count)
    ]


@pytest.fixture
def spec(make_spec, tmp_path):
    return make_spec(tmp_path, tmp_path, per_shard=10)


def planned(spec, videos, encoder=ENCODER) -> IngestPlan:
    return plan_shards(spec, videos, encoder, ("a", "b"))


def digests(plan: IngestPlan) -> dict[str, str]:
    return {shard.name: shard.digest for shard in plan.shards}


def test_every_video_is_in_one_shard(spec):
    videos = rows(25) + rows(7, split="test") + rows(10, "part1", "val")
    plan = planned(spec, videos)
    assert [shard.name for shard in plan.shards] == [
        "part0-train-00000.tar",
        "part0-train-00001.tar",
        "part0-train-00002.tar",
        "part0-test-00000.tar",
        "part1-val-00000.tar",
    ]
    keys = [p.video.key for shard in plan.shards for p in shard.videos]
    assert sorted(keys) == sorted(v.key for v in videos)
    assert [len(shard.videos) for shard in plan.shards] == [10, 10, 5, 7, 10]
    assert plan.listed == {"train": 25, "val": 10, "test": 7}
    assert plan.num_videos == 42
    assert keys[:25] != sorted(keys[:25])  # shuffled


@given(st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_order_of_the_listing_does_not_matter(make_spec, rand: random.Random):
    from pathlib import Path

    spec = make_spec(Path("/x"), per_shard=4)
    videos = rows(30)
    mixed = list(videos)
    rand.shuffle(mixed)
    assert digests(planned(spec, mixed)) == digests(planned(spec, videos))


def test_another_part_leaves_the_first_alone(spec):
    before = digests(planned(spec, rows(25)))
    after = digests(planned(spec, rows(25) + rows(31, "part1")))
    assert before.items() < after.items()
    assert len(after) == len(before) + 4


def test_digest_covers_what_decides_the_bytes(spec):
    videos = rows(10)
    base = digests(planned(spec, videos))["part0-train-00000.tar"]

    def changed(spec=spec, encoder=ENCODER, **fields) -> str:
        new = [videos[0]._replace(**fields), *videos[1:]]
        return digests(planned(spec, new, encoder))["part0-train-00000.tar"]

    assert changed() == base
    assert changed(checksum="other") != base
    assert changed(size=11111) != base
    assert changed(size=None) != base
    assert changed(label="b") != base
    assert changed(start_s=0.5) != base
    assert changed(encoder=Encoder(name="ffmpeg", version="2")) != base
    crf = ClipPolicy.model_validate(spec.clip.model_dump() | {"crf": 30})
    assert changed(spec=spec.model_copy(update={"clip": crf})) != base
    seeded = spec.shards.model_copy(update={"seed": 8})
    assert changed(spec=spec.model_copy(update={"shards": seeded})) != base
    assert changed(spec=spec.model_copy(update={"description": "other", "max_reject_share": 0.1})) == base


def test_labels():
    classes = {"a": 0, "b": 1, "c|d": 2}
    assert resolve_label("b", classes, "k") == 1
    assert resolve_label("", classes, "k") is None
    assert resolve_label("b|a", classes, "k") == (0, 1)
    assert resolve_label("c|d", classes, "k") == 2
    with pytest.raises(PlanError, match=r"sample 'k': label 'x' is not among the 3 classes"):
        resolve_label("x", classes, "k")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "has.dot"}, "must consist of"),
        ({"key": "part0-1"}, "listed twice"),
        ({"part": "none"}, "part 'none' is not declared"),
        ({"split": "dev"}, "split 'dev' is none of"),
        ({"label": "zebra"}, "label 'zebra'"),
    ],
)
def test_listing_that_does_not_fit(spec, change, message):
    videos = rows(3)
    with pytest.raises(PlanError, match=message):
        planned(spec, [videos[0]._replace(**change), *videos[1:]])


def test_empty_listing(spec):
    with pytest.raises(PlanError, match="list no videos"):
        planned(spec, [])


ORDER = {"part0": 0, "part1": 1}


def video(key: str, **fields) -> ListedVideo:
    return ListedVideo("part0", key, f"{key}.mp4", "a", "train", key, None, None, 5, "same")._replace(**fields)


def duplicates(*videos: ListedVideo) -> dict[str, str]:
    found = find_duplicates(videos, ORDER)
    backwards = find_duplicates(videos[::-1], ORDER)
    named = {videos[p].key: other for p, other in found.items()}
    assert named == {videos[::-1][p].key: other for p, other in backwards.items()}
    return named


def test_leakage_is_taken_out_of_training():
    assert duplicates(video("x"), video("y", split="test")) == {"x": "y"}
    assert duplicates(video("x", split="val"), video("y", split="test"), video("z")) == {"x": "y", "z": "y"}


def test_contradicting_labels_keep_the_first_key():
    assert duplicates(video("y", label="b"), video("x")) == {"y": "x"}


def test_the_earlier_part_keeps_its_sample():
    assert duplicates(video("x"), video("y", split="test", part="part1")) == {"y": "x"}


def test_what_is_no_duplicate():
    assert duplicates(video("x"), video("y")) == {}  # same split and label
    assert duplicates(video("x"), video("y", checksum="other", split="test")) == {}
    assert duplicates(video("x", size=None, checksum=""), video("y", size=None, checksum="", split="test")) == {}
    assert duplicates(video("x", size=0), video("y", size=0, split="test")) == {}
    first, second = {"start_s": 0.0, "end_s": 5.0}, {"start_s": 5.0, "end_s": 9.0}
    assert duplicates(video("x", **first), video("y", **second, label="b")) == {}
    assert duplicates(video("x", **first), video("y", **second, split="test")) == {}


def test_overlapping_spans_leak_between_splits_only():
    first, second = {"start_s": 0.0, "end_s": 5.0}, {"start_s": 4.0, "end_s": 9.0}
    assert duplicates(video("x", **first), video("y", **second, split="test")) == {"x": "y"}
    assert duplicates(video("x", **first), video("y", **second, label="b")) == {}
    assert duplicates(video("x"), video("y", **second, split="test")) == {"x": "y"}


def test_a_later_part_never_changes_an_earlier_one(make_spec, tmp_path):
    parts = tuple(Part(name=n, source=FolderSource(root=str(tmp_path)), split="train") for n in ORDER)
    spec = make_spec(tmp_path, tmp_path, per_shard=2, parts=parts)
    old = [video("x"), video("y", split="test", checksum="other")]
    new = [video("z", part="part1", split="test"), video("w", part="part1", checksum="other", label="b")]
    before, after = digests(planned(spec, old)), digests(planned(spec, old + new))
    assert before.items() < after.items()
    marks = {p.video.key: p.duplicate_of for shard in planned(spec, old + new).shards for p in shard.videos}
    assert marks == {"x": "", "y": "", "z": "x", "w": "y"}


def test_many_videos(spec):
    videos = rows(20_000)
    plan = planned(spec, videos)
    assert len(plan.shards) == 2000
    assert len({shard.digest for shard in plan.shards}) == 2000
