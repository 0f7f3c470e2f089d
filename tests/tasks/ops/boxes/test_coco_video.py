"""Json files in the layout of COCO-video: frame folders and video files, frame numbers, what is refused."""

import copy
import io
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_specs.schema import RejectReason
from tasks.ops.readers_base import ReaderError
from tasks.ops.sample import SampleError

Data = dict[str, Any]


def boxes_at(frame: int) -> list[int]:
    """x, y, width, height of the car in a frame."""
    return [4 + 8 * frame, 10, 12, 20]


def make_data(frames: int = 4, first: int = 0) -> Data:
    """One video of a car that moves, with a person (a class that the data set lacks) in its first frame."""
    images = [
        {"id": 10 + i, "file_name": f"a/{i:05d}.jpg", "video_id": 1, "frame_id": i + first, "width": 64, "height": 48}
        for i in range(frames)
    ]
    boxes = [
        {
            "id": i,
            "image_id": 10 + i,
            "video_id": 1,
            "category_id": 7,
            "instance_id": 3,
            "bbox": boxes_at(i),
            "iscrowd": 0,
        }
        for i in range(frames)
    ]
    boxes.append({"id": 99, "image_id": 10, "category_id": 8, "instance_id": 4, "bbox": [0, 0, 5, 5]})
    return {
        "videos": [{"id": 1, "name": "a"}],
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 7, "name": "car"}, {"id": 8, "name": "person"}],
    }


@pytest.fixture
def coco(tmp_path: Path, draw: Callable[..., bytes]) -> Callable[..., Data]:
    """Write a json file and its frames; gives the source."""

    def make(data: Data, frames: int = 4, **fields: object) -> Data:
        folder = tmp_path / "raw" / "a"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(frames):
            x, y, w, h = boxes_at(i)
            (folder / f"{i:05d}.jpg").write_bytes(draw(i, [(x, y, x + w - 1, y + h - 1)]))
        (tmp_path / "boxes.json").write_text(json.dumps(data))
        source = {
            "kind": "coco_video",
            "root": str(tmp_path / "raw"),
            "file": "boxes.json",
            "split": "train",
            "fps": 10,
        }
        return source | fields

    return make


def edges(frame: int) -> tuple[float, ...]:
    x, y, w, h = boxes_at(frame)
    return (x, y, x + w, y + h)


def test_frame_folders(coco, ingest, boxes_of, decoded) -> None:
    listed = ingest(coco(make_data()))
    (row,) = listed.listing.rows
    assert (row.path, row.label, row.split) == ("a", "car", "train")
    assert "1 boxes of class 'person', which the data set does not have, left out" in "\n".join(listed.listing.notes)
    made = listed.good("a")
    boxes = boxes_of(made)
    assert boxes.labelled is None
    (track,) = boxes.tracks
    assert (track.track, track.label, track.frames) == (3, 1, (0, 1, 2, 3))
    assert track.boxes == tuple(edges(i) for i in range(4))
    for frame, (x0, y0, x1, y1) in enumerate(track.boxes):
        bright = decoded(made)[frame] > 200
        assert bright[int(y0) : int(y1), int(x0) : int(x1)].mean() > 0.95
        assert bright.sum() < 1.1 * (x1 - x0) * (y1 - y0)


def test_order_of_the_file_does_not_matter(coco, ingest) -> None:
    data = make_data()
    one = ingest(coco(data)).listing.rows
    for name in ("images", "annotations", "categories"):
        data[name].reverse()
    assert ingest(coco(data)).listing.rows == one


@pytest.mark.parametrize("first", [0, 1])
def test_frame_ids_count_from_where_the_source_says(coco, ingest, boxes_of, first: int) -> None:
    boxes = boxes_of(ingest(coco(make_data(first=first), frames_from=first)).good("a"))
    assert boxes.tracks[0].boxes == tuple(edges(i) for i in range(4))
    with pytest.raises(ReaderError, match=rf"source\.frames_from: {first}|below source\.frames_from: 1"):
        ingest(coco(make_data(first=first), frames_from=1 - first))


def test_frames_of_the_folder_that_are_not_listed_are_unlabelled(coco, ingest, boxes_of) -> None:
    data = make_data()
    data["images"] = [data["images"][i] for i in (0, 2)]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in (10, 12)]
    made = ingest(coco(data)).good("a")
    assert made.record.num_frames == 4
    assert boxes_of(made).labelled == (0, 2)
    assert boxes_of(made).tracks[0].frames == (0, 2)


def test_only_training_frames(coco, ingest, boxes_of) -> None:
    data = make_data()
    for image in data["images"]:
        image["is_vid_train_frame"] = image["frame_id"] in (1, 2)
    listed = ingest(coco(data, labelled="train"))
    assert boxes_of(listed.good("a")).labelled == (1, 2)
    assert "2 boxes in frames without is_vid_train_frame, left out" in "\n".join(listed.listing.notes)
    assert boxes_of(ingest(coco(data)).good("a")).labelled is None
    with pytest.raises(ReaderError, match="no image has is_vid_train_frame, which"):
        ingest(coco(make_data(), labelled="train"))


def test_named_sets_of_frames(coco, ingest, boxes_of) -> None:
    data = make_data()
    plain = ingest(coco(data)).listing.rows
    for image in data["images"]:
        image["subsets"] = ["dark", "blurred"] if image["frame_id"] == 2 else ["dark"] if image["frame_id"] else []
    listed = ingest(coco(data))
    assert boxes_of(listed.good("a")).subsets == {"blurred": (2,), "dark": (1, 2, 3)}
    # Part of what the shard is planned from; without any, the sum is that of the time before there were sets.
    assert listed.listing.rows[0].boxes != plain[0].boxes
    data["images"][1]["subsets"] = "dark"
    with pytest.raises(ReaderError, match=r"images\[1\]: subsets is 'dark', must be a list"):
        ingest(coco(data))


def test_crowds_are_left_out_and_told(coco, ingest, boxes_of) -> None:
    data = make_data()
    data["annotations"][2]["iscrowd"] = 1
    listed = ingest(coco(data))
    assert boxes_of(listed.good("a")).tracks[0].frames == (0, 1, 3)
    assert "1 boxes around crowds (iscrowd), left out" in "\n".join(listed.listing.notes)


def test_boxes_without_instances_are_tracks_of_one_frame(coco, ingest, boxes_of) -> None:
    data = make_data()
    for item in data["annotations"]:
        del item["instance_id"]
    assert [t.frames for t in boxes_of(ingest(coco(data)).good("a")).tracks] == [(0,), (1,), (2,), (3,)]


def set_in(*steps: object) -> Callable[[Data], None]:
    """A change of one value of a file."""

    def change(data: Any) -> None:
        *way, last, value = steps
        for step in way:
            data = data[step]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("images"), r"has no list `images`; the layout is that of CocoVID"),
        (set_in("images", 1, "frame_id", 0), r"images\[1\]: frame_id 0 of video 1 is given twice"),
        (set_in("images", 1, "frame_id", "1"), r"images\[1\]: frame_id is '1'"),
        (set_in("images", 1, "video_id", 5), r"images\[1\]: video_id 5 is not among `videos`"),
        (set_in("images", 1, "id", 10), r"images\[1\]: id 10 is given twice"),
        (set_in("images", 1, "width", 65), r"video 1: its images have different sizes"),
        (set_in("images", 1, "file_name", "b/00001.jpg"), r"video 1: its images are in several folders: a, b"),
        (
            set_in("images", 1, "file_name", "a/00002.jpg"),
            r"'a/00002\.jpg' has frame_id 1, but is picture 2 of",
        ),
        (set_in("images", 1, "file_name", "a/x.jpg"), r"'a/x\.jpg' has frame_id 1, but is not in the folder 'a'"),
        (set_in("annotations", 1, "image_id", 77), r"annotations\[1\]: image_id 77 is not in the file"),
        (set_in("annotations", 1, "category_id", 77), r"annotations\[1\]: category_id 77 is not in the file"),
        (set_in("annotations", 1, "video_id", 2), r"annotations\[1\]: video_id 2, its image is of video 1"),
        (set_in("annotations", 1, "instance_id", "x"), r"annotations\[1\]: instance_id is 'x'"),
        (set_in("annotations", 1, "bbox", [1, 2, 3]), r"annotations\[1\]: bbox is \[1, 2, 3\], must be four numbers"),
        (set_in("annotations", 1, "bbox", [1, 2, 3, float("nan")]), r"must be four numbers"),
        (lambda d: d["videos"].append({"id": 1}), r"videos\[1\]: id 1 is given twice"),
    ],
)
def test_broken_files_are_named(coco, ingest, change, message) -> None:
    data = make_data()
    change(data)
    with pytest.raises(ReaderError, match=message):
        ingest(coco(data))


def test_text_that_is_no_json(coco, ingest, tmp_path) -> None:
    source = coco(make_data())
    (tmp_path / "boxes.json").write_text("{")
    with pytest.raises(ReaderError, match=r"boxes\.json: not valid JSON"):
        ingest(source)


def test_a_file_changed_after_listing_is_an_error(coco, ingest) -> None:
    listed = ingest(coco(make_data()))
    changed = make_data()
    changed["annotations"][1]["bbox"][0] += 1
    coco(changed)
    with pytest.raises(SampleError, match="the annotation of a changed after it was listed"):
        listed.sample("a")
    changed = make_data()
    changed["images"] = [{**image, "file_name": image["file_name"].replace("a/", "b/")} for image in changed["images"]]
    coco(changed)
    with pytest.raises(SampleError, match="has no video 'a' any more"):
        listed.sample("a")
    coco(make_data() | {"info": "says nothing about boxes"})
    assert listed.good("a")


def test_too_few_frames_are_a_reject(coco, ingest, tmp_path) -> None:
    source = coco(make_data())
    listed = ingest(source)
    assert listed.good("a")
    coco(make_data(), frames=5)
    assert "4 frames are annotated, the video has 5" in ingest(source).reject("a", RejectReason.BOXES_MISMATCH)


# --- video files -------------------------------------------------------------------------------


def as_files(data: Data) -> Data:
    data = copy.deepcopy(data)
    data["videos"][0]["name"] = "clip.mp4"
    return data


def video(path: Path, draw: Callable[..., bytes], times: list[int], **stream_fields: object) -> None:
    """Write a video whose frame i shows picture i at a time of 1/100 s."""
    from PIL import Image

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for name, value in stream_fields.items():
            setattr(stream, name, value)
        for number, at in enumerate(times):
            x, y, w, h = boxes_at(number)
            pixels = np.asarray(Image.open(io.BytesIO(draw(number, [(x, y, x + w - 1, y + h - 1)]))))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture
def clip_source(coco, tmp_path, draw) -> Callable[..., Data]:
    def make(data: Data, times: list[int], **stream_fields: object) -> Data:
        source = coco(data, fps=None)
        video(tmp_path / "raw" / "clip.mp4", draw, times, **stream_fields)
        return source

    return make


@pytest.mark.parametrize("times", [[0, 4, 8, 12], [0, 4, 30, 31], [0, 40, 41, 80], [3, 7, 11, 90]])
def test_each_frame_of_a_file_counts_whatever_its_time(clip_source, ingest, boxes_of, numbers, times) -> None:
    """Brought to a constant rate by time, these would lose and repeat frames."""
    made = ingest(clip_source(as_files(make_data()), times)).good("clip.mp4")
    assert numbers(made) == [0, 1, 2, 3]
    assert boxes_of(made).tracks[0].boxes == tuple(edges(i) for i in range(4))


def test_without_boxes_such_a_file_is_brought_to_its_rate(clip_source, ingest, numbers, tmp_path) -> None:
    """Control of the test above."""
    clip_source(as_files(make_data()), [0, 40, 41, 80])
    (tmp_path / "list.csv").write_text("path,label\nclip.mp4,dog\n")
    source = {"kind": "csv", "root": str(tmp_path / "raw"), "file": "list.csv"}
    assert numbers(ingest(source, split="train").good("clip.mp4")) != [0, 1, 2, 3]


def test_another_number_of_frames_in_a_file_is_a_reject(clip_source, ingest) -> None:
    source = clip_source(as_files(make_data()), [0, 4, 8])
    detail = ingest(source).reject("clip.mp4", RejectReason.BOXES_MISMATCH)
    assert detail == "4 frames are annotated, the video has 3"


def test_sparse_frame_ids_of_a_file(clip_source, ingest, boxes_of) -> None:
    data = as_files(make_data())
    data["images"] = [data["images"][i] for i in (1, 3)]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in (11, 13)]
    assert boxes_of(ingest(clip_source(data, [0, 4, 8, 12])).good("clip.mp4")).labelled == (1, 3)
    detail = ingest(clip_source(data, [0, 4, 8])).reject("clip.mp4", RejectReason.BOXES_MISMATCH)
    assert detail == "frame 3 is annotated (the first is 0), the video has 3 frames"
    data["videos"][0]["length"] = 3
    with pytest.raises(ReaderError, match="has frame_id 3, but only 3 frames counted from 0"):
        ingest(clip_source(data, [0, 4, 8]))


def test_frame_ids_of_a_file_that_count_from_one_are_noticed(clip_source, ingest) -> None:
    data = as_files(make_data(first=1))
    with pytest.raises(ReaderError, match=r"its frame_ids are 1 to 4, .* is 0; set source\.frames_from: 1"):
        ingest(clip_source(data, [0, 4, 8, 12]))


def test_pixels_that_are_not_square_are_a_reject(clip_source, ingest) -> None:
    source = clip_source(as_files(make_data()), [0, 4, 8, 12], sample_aspect_ratio=Fraction(4, 3))
    detail = ingest(source).reject("clip.mp4", RejectReason.BOXES_MISMATCH)
    assert "stretched, its pixels are not square (64x48 becomes 85x48)" in detail


def test_turned_videos_are_a_reject(clip_source, ingest, video_maker, tmp_path) -> None:
    source = clip_source(as_files(make_data()), [0, 4, 8, 12])
    assert ingest(source).good("clip.mp4")
    path = tmp_path / "raw" / "clip.mp4"
    path.rename(tmp_path / "plain.mp4")
    video_maker.run("-display_rotation", "90", "-i", str(tmp_path / "plain.mp4"), "-c", "copy", str(path))
    detail = ingest(source).reject("clip.mp4", RejectReason.BOXES_MISMATCH)
    assert "shown turned by" in detail
    assert "(64x48 becomes 48x64)" in detail
