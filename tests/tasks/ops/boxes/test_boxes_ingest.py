"""Boxes from annotation to shard: they lie where the pixels are, and nothing else gets in."""

import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_specs.boxes import BOXES_MEMBER, ClipBoxes
from data_specs.load import SpecError, parse_spec
from data_specs.schema import (
    ClipPolicy,
    DatasetSpec,
    Encoder,
    FolderSource,
    ListedVideo,
    Part,
    RejectReason,
    ShardPolicy,
)
from tasks.media import make_jobs
from tasks.ops.boxes import Annotation, Seen, annotate, stored_boxes
from tasks.ops.listing import manifest_bytes, read_manifest
from tasks.ops.plan import PlanError, find_duplicates, plan_shards
from tasks.ops.probe import RejectedError
from tasks.ops.sample import SampleError, context_of
from tasks.ops.shards import ShardJob, read_entries, stored_path, write_shard

TRAIN = "Data/VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"


def vid_source(root: Path, **fields: object) -> dict[str, object]:
    return {"kind": "imagenet_vid", "root": str(root), **fields}


def extent(frame: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Edges of what is bright."""
    rows, columns = np.nonzero(frame.max(1) > 200)[0], np.nonzero(frame.max(0) > 200)[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def worst(boxes: ClipBoxes, frames: NDArray[np.float64]) -> float:
    """Largest distance (px) of an edge of the only track from what the frames show."""
    (track,) = boxes.tracks
    pairs = zip(track.frames, track.boxes, strict=True)
    return max(float(np.abs(np.subtract(box, extent(frames[frame]))).max()) for frame, box in pairs)


@pytest.mark.parametrize("short_side", [48, 24])
def test_boxes_lie_on_what_they_name(vid, ingest, decoded, boxes_of, short_side: int) -> None:
    made = ingest(vid_source(vid), clip={"short_side": short_side}).good("train_00000000")
    boxes, frames = boxes_of(made), decoded(made)
    scale = short_side / 48
    assert (made.record.width, made.record.height) == (64 * scale, short_side)
    assert boxes.labelled is None
    (track,) = boxes.tracks
    assert (track.track, track.label, track.frames) == (0, 0, (0, 1, 2, 3, 4, 5))
    assert track.boxes[2] == tuple(scale * edge for edge in (20, 10, 32, 30))
    assert worst(boxes, frames) <= 1.0
    # Control: boxes that are one frame late, or two pixels to the right, are noticed.
    late = track.model_copy(update={"boxes": (*track.boxes[1:], track.boxes[0])})
    assert worst(boxes.model_copy(update={"tracks": (late,)}), frames) > 3
    right = track.model_copy(update={"boxes": tuple((a + 2, b, c + 2, d) for a, b, c, d in track.boxes)})
    assert worst(boxes.model_copy(update={"tracks": (right,)}), frames) >= 2


def test_odd_sizes_scale_each_axis(tmp_path, add_video, ingest, decoded, boxes_of) -> None:
    """The stored size is even, so the scale of width and height differ a little."""
    add_video(tmp_path, "val/v", {0: [(0, "n02084071", (30, 20, 99, 70))]}, size=(131, 97))
    made = ingest(vid_source(tmp_path), clip={"short_side": 32}).good("val/v")
    assert (made.record.width, made.record.height) == (44, 32)
    box = boxes_of(made).tracks[0].boxes[0]
    assert box == pytest.approx((30 / 131 * 44, 20 / 97 * 32, 100 / 131 * 44, 71 / 97 * 32), abs=1e-3)
    assert worst(boxes_of(made), decoded(made)) <= 1.0


def test_labels_and_manifest(vid, ingest, tmp_path) -> None:
    listed = ingest(vid_source(vid))
    rows = {row.path.rsplit("/", 1)[-1]: row for row in listed.listing.rows}
    found = {name: (row.label, row.split) for name, row in rows.items()}
    assert found == {
        "ILSVRC2015_train_00000000": ("dog", "train"),
        "ILSVRC2015_val_00000000": ("dog|car", "val"),
        "ILSVRC2015_val_00000001": ("", "val"),
    }
    assert all(len(row.boxes) == 64 for row in rows.values())
    assert "1 objects of class n00000001, which the data set does not have, left out" in "\n".join(listed.listing.notes)
    path = tmp_path / "tiny.csv"
    path.write_bytes(manifest_bytes(listed.listing.rows))
    assert path.read_text().splitlines()[0].endswith(",checksum,boxes")
    assert read_manifest(path) == listed.listing.rows
    assert listed.good("train_00000000").record.label == 0
    assert listed.good("val_00000000").record.label == (0, 1)
    assert listed.good("val_00000001").record.label is None


def test_a_frame_without_annotation_is_unlabelled(tmp_path, add_video, ingest, boxes_of) -> None:
    dog = (0, "n02084071", (4, 4, 9, 9))
    add_video(tmp_path, "val/v", {0: [dog], 1: None, 2: [], 3: [dog]})
    listed = ingest(vid_source(tmp_path))
    boxes = boxes_of(listed.good("v"))
    assert boxes.labelled == (0, 2, 3)
    assert boxes.tracks[0].frames == (0, 3)
    assert "1 frames without annotation (unlabelled) in annotated videos" in "\n".join(listed.listing.notes)


def test_listed_frames_only(vid, ingest, boxes_of, tmp_path) -> None:
    name = TRAIN.removeprefix("Data/VID/")
    (tmp_path / "frames.txt").write_text(f"{name} 1 1 6\n{name} 1 4 6\n")
    source = vid_source(vid, frames="frames.txt", subset="train")
    made = ingest(source).good("train_00000000")
    assert made.record.num_frames == 6
    boxes = boxes_of(made)
    assert boxes.labelled == boxes.tracks[0].frames == (1, 4)
    assert boxes.tracks[0].boxes == ((12.0, 10.0, 24.0, 30.0), (36.0, 10.0, 48.0, 30.0))
    one = boxes_of(ingest({**source, "frames_from": 1}).good("train_00000000"))
    assert one.labelled == (0, 3)
    everything = boxes_of(ingest({**source, "labelled": "all"}).good("train_00000000"))
    assert everything.labelled is None


@pytest.mark.parametrize("change", ["moved", "renamed", "removed", "added"])
def test_an_annotation_changed_after_listing_is_an_error(vid, ingest, write_xml, change: str) -> None:
    listed = ingest(vid_source(vid))
    assert listed.good("train_00000000")
    file = vid / "Annotations" / TRAIN.removeprefix("Data/") / "000003.xml"
    text = file.read_text()
    if change == "moved":
        file.write_text(text.replace("<xmin>28<", "<xmin>29<"))
    elif change == "renamed":
        file.write_text(text.replace("n02084071", "n02958343"))
    elif change == "removed":
        file.unlink()
    else:
        file.with_name("000009.xml").write_text(text)
    with pytest.raises(SampleError, match=r"the annotation of Data/VID/train.* changed after it was listed.*dvc repro"):
        listed.sample("train_00000000")
    file.with_name("000009.xml").unlink(missing_ok=True)
    file.write_text(text.replace("<occluded>0", "<occluded>1"))  # says nothing about boxes
    assert listed.good("train_00000000")
    assert ingest(vid_source(vid)).listing.rows == listed.listing.rows


def test_another_number_of_frames_is_a_reject(vid, ingest, tmp_path, draw) -> None:
    name = TRAIN.removeprefix("Data/VID/")
    (tmp_path / "videos.txt").write_text(f"{name} 1 0 6\n")
    source = vid_source(vid, videos="videos.txt")
    assert ingest(source).good("train_00000000")
    (vid / TRAIN / "000006.JPEG").write_bytes(draw(6))
    detail = ingest(source).reject("train_00000000", RejectReason.BOXES_MISMATCH)
    assert detail == "6 frames are annotated, the video has 7"
    assert ingest(vid_source(vid)).good("train_00000000")  # no list: the seventh frame is just not annotated
    for number in (5, 6):
        (vid / TRAIN / f"{number:06d}.JPEG").unlink()
    detail = ingest(vid_source(vid)).reject("train_00000000", RejectReason.BOXES_MISMATCH)
    assert detail == "frame 5 is annotated (the first is 0), the video has 5 frames"


def test_another_size_is_a_reject(vid, ingest) -> None:
    for file in (vid / "Annotations/VID/val/ILSVRC2015_val_00000000").glob("*.xml"):
        file.write_text(file.read_text().replace("<width>64<", "<width>65<"))
    listed = ingest(vid_source(vid))
    detail = listed.reject("val_00000000", RejectReason.BOXES_MISMATCH)
    assert detail == "the boxes are of pictures of 65x48, the video has 64x48"
    assert listed.good("train_00000000")


def test_shard_has_the_member_and_the_same_bytes_twice(vid, ingest, tmp_path) -> None:
    listed = ingest(vid_source(vid))
    made = {}
    for store in (tmp_path / "one", tmp_path / "two"):
        for shard in listed.plan.shards:
            part = listed.spec.parts[0]
            context = context_of(listed.spec, part, listed.encoder, listed.settings, ("dog", "car"))
            stored = write_shard(ShardJob(shard, context, store, tmp_path / "tmp"))
            assert stored.rejects == ()
            tar = stored_path(store, shard.digest, "tar")
            for entry in read_entries(tar.with_suffix(".idx")):
                assert set(entry.members) == {"json", "mp4", BOXES_MEMBER}
                start, size = entry.members[BOXES_MEMBER]
                ClipBoxes.model_validate_json(tar.read_bytes()[start : start + size])
            with tarfile.open(tar) as archive:
                assert sum(name.endswith(".boxes.json") for name in archive.getnames()) == stored.info.samples
        made[store.name] = {path.name: path.read_bytes() for path in store.iterdir()}
    assert made["one"] == made["two"]
    assert len(made["one"]) == 6


def test_jobs_of_the_ingest_travel_to_workers(vid, ingest) -> None:
    listed = ingest(vid_source(vid))
    jobs = make_jobs(listed.plan, listed.settings)
    made = [write_shard(pickle.loads(pickle.dumps(job))) for job in jobs]
    assert [stored.info.samples for stored in made] == [1, 2]
    before = {path.name: path.read_bytes() for path in jobs[0].store.iterdir()}
    for job in jobs:
        write_shard(replace(job, context=replace(job.context, isolate=True)))
    assert {path.name: path.read_bytes() for path in jobs[0].store.iterdir()} == before
    assert make_jobs(listed.plan, listed.settings) == []


def test_classes_are_part_of_the_checksum(vid, ingest, box_spec) -> None:
    one = {row.path: row.boxes for row in ingest(vid_source(vid)).listing.rows}
    other = {row.path: row.boxes for row in ingest(box_spec(vid_source(vid), labels=("car", "dog"))).listing.rows}
    assert one[TRAIN] != other[TRAIN]
    assert one["Data/VID/val/ILSVRC2015_val_00000001"] == other["Data/VID/val/ILSVRC2015_val_00000001"]


def test_listing_keeps_what_it_read(vid, ingest, ingest_settings) -> None:
    listed = ingest(vid_source(vid)).listing
    kept = ingest_settings.work / "annotations-tiny-part0.jsonl"
    row = next(row for row in listed.rows if row.path == TRAIN)
    lines = [line for line in kept.read_text().splitlines() if line]
    assert len(lines) == 3
    again = ingest(vid_source(vid)).listing
    assert (again.rows, again.notes) == (listed.rows, listed.notes)
    assert [line for line in kept.read_text().splitlines() if line] == lines
    # What is kept is used, until a file has another time.
    kept.write_text(kept.read_text().replace(row.boxes, "0" * 64) + '["torn')
    assert {r.path: r.boxes for r in ingest(vid_source(vid)).listing.rows}[TRAIN] == "0" * 64
    os.utime(vid / "Annotations" / TRAIN.removeprefix("Data/") / "000000.xml", ns=(1, 1))
    assert ingest(vid_source(vid)).listing.rows == listed.rows


# --- data sets without boxes stay what they were -----------------------------------------------

ROWS = [
    ListedVideo("main", "k-1", "run/a b.mp4", "run", "train", "run/a b.mp4", None, None, 10, "aa"),
    ListedVideo("main", "k-2", "run/c.mp4", "run|walk", "train", "g", 1.5, 2.25, None, ""),
    ListedVideo("main", "k-3", "d.mp4", "", "test", "d\rd", None, None, 7, "bb"),
]


def plain_spec() -> DatasetSpec:
    return DatasetSpec(
        name="tiny",
        version="1",
        licence="none",
        labels=("run", "walk"),
        parts=(Part(name="main", source=FolderSource(root="raw"), split="train"),),
        clip=ClipPolicy(representation="mp4", short_side=32, fps=None, audio="drop"),
        shards=ShardPolicy(samples_per_shard=2, seed=7),
        max_reject_share=1.0,
    )


def plan_digests(rows: list[ListedVideo]) -> list[str]:
    plan = plan_shards(plain_spec(), rows, Encoder(name="ffmpeg/1", version="7"), ("run", "walk"))
    return [shard.digest for shard in plan.shards]


def test_bytes_without_boxes_are_those_of_before() -> None:
    """These numbers were computed before rows had a field for boxes."""
    import hashlib

    manifest = hashlib.sha256(manifest_bytes(ROWS)).hexdigest()
    assert manifest == "c73ae38426fde61a2c3c9b77c196cb049c9f816920492312c6328ec854574db6"
    before = [
        "f43ed25def454fd01939aeafb306afc71d5c25718f6bf267fc4393a9df6ef307",
        "f4ebdbe8f7d04d281c111fc69844eb614734cd4966a011c45faf3f336c805ffe",
    ]
    assert plan_digests(ROWS) == before
    with_boxes = [*ROWS[:2], ROWS[2]._replace(boxes="ab")]
    assert plan_digests(with_boxes)[0] == before[0]
    assert plan_digests(with_boxes)[1] != before[1]
    assert manifest_bytes(with_boxes).splitlines()[1].endswith(b",aa,")


def test_a_row_of_the_wrong_length_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tiny.csv"
    path.write_bytes(manifest_bytes(ROWS[:1]).replace(b",aa\n", b",aa,more\n"))
    with pytest.raises(ValueError, match=r"tiny\.csv:2: 11 cells, the header has 10 columns"):
        read_manifest(path)


def test_the_same_video_with_other_boxes_is_a_contradiction() -> None:
    row = ROWS[0]._replace(boxes="one")
    assert find_duplicates([row, row._replace(key="k-9")], {"main": 0}) == {}
    assert find_duplicates([row, row._replace(key="k-9", boxes="two")], {"main": 0}) == {1: "k-1"}


# --- what a specification may not ask for ------------------------------------------------------

SPEC = """\
name: tiny
version: "1"
licence: none
labels: [dog, car]
parts:
  - {name: main, source: {kind: imagenet_vid, root: raw}, split: official}
clip: {representation: mp4, short_side: 64, fps: null, audio: drop}
shards: {samples_per_shard: 8, seed: 0}
max_reject_share: 0.1
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("representation: mp4", "representation: jpgs, num_frames: 4", r"clip\.representation: must be mp4"),
        ("fps: null", "fps: 10", r"clip\.fps: must be null: at 10 fps frames would be left out or repeated"),
        ("audio: drop", "audio: keep", r"clip\.audio: must be drop"),
        ("root: raw", "root: raw, videos: a, frames: b", r"give `videos` or `frames`, not both"),
        ("root: raw", "root: raw, frames_from: 1", r"say how to read `frames`, which is not given"),
        ("root: raw", "root: raw, file: x", r"parts\.0\.source\.file: unknown key"),
        ("imagenet_vid", "imagenet_vd", r"did you mean 'imagenet_vid'"),
        ("kind: imagenet_vid, root: raw", "kind: coco_video, root: raw, file: x", r"source\.split: val would say"),
    ],
)
def test_specifications_that_part_boxes_from_frames(old: str, new: str, message: str) -> None:
    assert parse_spec(SPEC, Path("tiny.yaml")).labels == ("dog", "car")
    with pytest.raises(SpecError, match=message):
        parse_spec(SPEC.replace(old, new), Path("tiny.yaml"))


def test_a_plan_refuses_them_too(vid, ingest) -> None:
    listed = ingest(vid_source(vid), clip={"fps": 10})
    with pytest.raises(PlanError, match=r"has boxes, so clip\.fps of data set 'tiny' must be null"):
        _ = listed.plan
    listed = ingest(vid_source(vid))
    listed.listing.rows[0] = listed.listing.rows[0]._replace(start_s=1.0)
    with pytest.raises(PlanError, match="has boxes and a start or end"):
        _ = listed.plan


# --- single functions --------------------------------------------------------------------------


def test_boxes_are_cut_at_the_border_and_empty_ones_told() -> None:
    seen = [
        Seen(0, 1, 0, (-3.0, 5.0, 10.0, 60.0)),
        Seen(0, 2, 0, (70.0, 0.0, 80.0, 10.0)),
        Seen(0, 3, 0, (5.0, 5.0, 5.0, 9.0)),
        Seen(0, 4, 1, (9.0, 9.0, 3.0, 12.0)),
    ]
    made, notes = annotate(seen, [0], 1, (64, 48))
    assert [(track.track, track.boxes) for track in made.tracks] == [(1, ((0.0, 5.0, 10.0, 48.0),))]
    assert notes == {"boxes without area inside the picture, left out": 3}


def test_tracks_with_two_boxes_or_two_classes_are_divided() -> None:
    box = (1.0, 1.0, 5.0, 5.0)
    seen = [Seen(0, 4, 0, box), Seen(1, 4, 0, box), Seen(1, 4, 0, (2.0, 2.0, 6.0, 6.0)), Seen(2, 4, 1, box)]
    made, notes = annotate(seen, [0, 1, 2], 3, None)
    assert [(t.track, t.label, t.frames) for t in made.tracks] == [(4, 0, (0, 1)), (5, 1, (2,)), (6, 0, (1,))]
    assert notes == {
        "tracks that change their class, cut there": 1,
        "boxes whose track has another box in the same frame, each a track of its own": 1,
    }
    loose, _ = annotate([Seen(0, None, 1, box), Seen(0, None, 0, box)], [0], 1, None)
    assert [(t.track, t.label) for t in loose.tracks] == [(0, 0), (1, 1)]


@given(st.permutations([Seen(f, t, t % 2, (t + 1.0, f + 1.0, t + 9.0, f + 9.0)) for f in range(3) for t in range(3)]))
def test_order_of_objects_does_not_matter(seen: list[Seen]) -> None:
    made, _ = annotate(seen, [2, 1, 0], 3, (32, 32))
    expected, _ = annotate(sorted(seen), [0, 1, 2], 3, (32, 32))
    assert made == expected
    assert made.sha256 == expected.sha256


@given(
    box=st.tuples(*[st.floats(0, 1)] * 4),
    source=st.tuples(st.integers(16, 4000), st.integers(16, 4000)),
    share=st.floats(0.05, 1),
)
def test_scaled_boxes_are_boxes_inside(box, source, share) -> None:
    (x0, x1), (y0, y1) = sorted(box[::2]), sorted(box[1::2])
    edges = (x0 * source[0], y0 * source[1], x1 * source[0], y1 * source[1])
    made, _ = annotate([Seen(0, 0, 0, edges)], [0], 1, source)
    stored = (max(16, round(source[0] * share)), max(16, round(source[1] * share)))
    for track in stored_boxes(made, 1, source, stored).tracks:
        a, b, c, d = track.boxes[0]
        assert 0 <= a < c <= stored[0]
        assert 0 <= b < d <= stored[1]
        want = (x0 * stored[0], y0 * stored[1], x1 * stored[0], y1 * stored[1])
        assert np.abs(np.subtract((a, b, c, d), want)).max() < 0.01


def test_a_box_outside_of_the_picture_is_a_reject() -> None:
    made, _ = annotate([Seen(0, 0, 0, (70.0, 0.0, 80.0, 10.0))], [0], 1, None)
    with pytest.raises(RejectedError, match="lies outside of a picture of 64x48"):
        stored_boxes(made, 1, (64, 48), (64, 48))


def test_checksum_sees_every_field() -> None:
    made, _ = annotate([Seen(0, 0, 0, (1.0, 1.0, 5.0, 5.0))], [0], 1, (8, 8))
    changes: list[dict[str, object]] = [
        {"num_frames": 2}, {"width": 9}, {"height": 9}, {"labelled": (0, 1)}, {"tracks": ()},
        {"subsets": {"dark": (0,)}},
    ]  # fmt: skip
    sums = {made.sha256, *(made.model_copy(update=change).sha256 for change in changes)}
    assert len(sums) == 7
    assert set(Annotation.model_fields) == {next(iter(change)) for change in changes}
