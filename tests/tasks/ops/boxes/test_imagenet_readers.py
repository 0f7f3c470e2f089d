"""ImageNet VID and DET: lists, XML files, the original annotation files where this machine has them."""

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data_specs.box_sources import ImagenetVidSource
from data_specs.load import class_names, load_spec
from data_specs.schema import Part, RejectReason
from tasks.ops.imagenet_xml import XmlObject, read_xml
from tasks.ops.readers import read_items
from tasks.ops.readers_base import ReadContext, ReaderError
from tasks.ops.readers_boxes import open_boxes
from tasks.ops.readers_imagenet import CLASSES

ANNOTATIONS = Path(os.environ.get("FOVEA_TEST_DATA", "../shared/data")).resolve() / "annotations"
original = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="original annotation files are not here")
DOG = "n02084071"
VID = load_spec("imagenet_vid")


def vid_source(root: Path, **fields: object) -> dict[str, object]:
    return {"kind": "imagenet_vid", "root": str(root), **fields}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "000000.xml"
    path.write_text(text)
    return path


def test_last_pixel_becomes_an_edge(tmp_path, write_xml) -> None:
    found = read_xml(write(tmp_path, write_xml([(5, DOG, (3, 4, 3, 9)), (None, "x", (0, 0, 63, 47))])))
    assert found.size == (64, 48)
    assert found.objects == (XmlObject(5, DOG, (3, 4, 4, 10)), XmlObject(None, "x", (0, 0, 64, 48)))


BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: BOMB + t.replace("<folder>x", "<folder>&b;"), r"000000\.xml:2: has a document type \(DOCTYPE\)"),
        (lambda t: t.replace("</annotation>", ""), r"000000\.xml:\d+: not valid XML"),
        (lambda t: "", r"not valid XML: no element found"),
        (lambda t: t.replace("annotation", "page"), r"the outermost element is 'page'"),
        (lambda t: t.replace("<xmin>3</xmin>", ""), r"object 1: has no xmin"),
        (lambda t: t.replace("<xmin>3<", "<xmin>three<"), r"object 1: xmin: 'three' is not a number"),
        (lambda t: t.replace("<xmin>3<", "<xmin>nan<"), r"object 1: xmin: 'nan' is not a number"),
        (lambda t: t.replace("<xmin>3<", "<xmin>1</xmin><xmin>3<"), r"annotation/object/bndbox/xmin is given twice"),
        (lambda t: t.replace("<trackid>5<", "<trackid>-5<"), r"trackid '-5' is not a number from 0 on"),
        (lambda t: t.replace("<width>64<", "<width>wide<"), r"size/width: 'wide' is not a number"),
    ],
)
def test_broken_files_are_named(tmp_path, write_xml, change, message) -> None:
    text = write_xml([(5, DOG, (3, 4, 8, 9))])
    assert read_xml(write(tmp_path, text)).objects
    with pytest.raises(ReaderError, match=message):
        read_xml(write(tmp_path, change(text)))


def test_a_doctype_in_another_encoding_is_seen(tmp_path, write_xml) -> None:
    path = tmp_path / "000000.xml"
    path.write_bytes(("<!DOCTYPE annotation>" + write_xml([])).encode("utf-16"))
    with pytest.raises(ReaderError, match="DOCTYPE"):
        read_xml(path)


def test_two_sizes_in_one_video_are_named(vid, ingest) -> None:
    file = vid / "Annotations/VID/val/ILSVRC2015_val_00000000/000001.xml"
    file.write_text(file.read_text().replace("<width>64<", "<width>65<"))
    with pytest.raises(ReaderError, match=r"000001\.xml: the picture has 65x48 pixels, in .*000000\.xml 64x48"):
        ingest(vid_source(vid))


def test_boxes_without_area_are_told(tmp_path, add_video, ingest, boxes_of) -> None:
    dog = (0, DOG, (4, 4, 9, 9))
    add_video(tmp_path, "val/v", {0: [dog, (1, DOG, (20, 9, 18, 20)), (2, DOG, (64, 3, 70, 9))]})
    listed = ingest(vid_source(tmp_path))
    assert [track.track for track in boxes_of(listed.good("v")).tracks] == [0]
    assert "2 boxes without area inside the picture, left out" in "\n".join(listed.listing.notes)


VIDEO = "train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("videos", f"{VIDEO} 1 0\n", r"list\.txt:1: .* is not `<folder> <number of its first frame"),
        ("videos", f"{VIDEO} 1 0 6\nval/x 8 0 1\n", r"list\.txt:2: its first frame has number 8, must be 7"),
        ("videos", f"{VIDEO} 1 2 4\n", r"list\.txt:1: 4 frames from frame 2; videos are read whole"),
        ("videos", f"{VIDEO} 1 0 6\n{VIDEO} 7 0 6\n", r"list\.txt:2: .* is already listed in line 1"),
        ("videos", f"{VIDEO} 1 0 5\n", r"000005\.xml: no frame of the video has this number.*the list says 5 frames"),
        ("frames", f"{VIDEO} 1 x 6\n", r"list\.txt:1: .* is not `<folder> <number> <frame> <number of frames>`"),
        ("frames", f"{VIDEO} 1 6 6\n", r"frame 6 is not among 6 frames counted from 0; source\.frames_from: 1"),
        ("frames", f"{VIDEO} 1 2 6\n{VIDEO} 1 2 6\n", r"list\.txt:2: frame 2 of .* is listed twice"),
        ("frames", f"{VIDEO} 1 2 6\n{VIDEO} 1 3 7\n", r"list\.txt:2: .* has 7 frames here, 6 in line 1"),
    ],
)
def test_lists_that_contradict_are_named(vid, ingest, tmp_path, field, text, message) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ReaderError, match=message):
        ingest(vid_source(vid, **{field: "list.txt"}))


def test_lists_count_from_where_they_say(vid, ingest, tmp_path) -> None:
    (tmp_path / "list.txt").write_text(f"{VIDEO} 1 0 6\n")
    with pytest.raises(ReaderError, match=r"frame 0 is not among 6 frames counted from 1; source\.frames_from: 0"):
        ingest(vid_source(vid, frames="list.txt", frames_from=1))


def test_subset_and_missing_folders(vid, ingest) -> None:
    rows = ingest(vid_source(vid, subset="val")).listing.rows
    assert {row.split for row in rows} == {"val"}
    assert len(rows) == 2
    with pytest.raises(ReaderError, match=r"Data/VID/test does not exist; the layout is"):
        ingest(vid_source(vid, subset="test"))
    (vid / "Annotations/VID").rename(vid / "Annotations/elsewhere")
    with pytest.raises(ReaderError, match=r"Annotations/VID does not exist"):
        ingest(vid_source(vid))
    moved = ingest(vid_source(vid, annotations=str(vid / "Annotations/elsewhere")))
    assert len(moved.listing.rows) == 3


def test_folders_that_are_no_split_need_one(vid, ingest) -> None:
    (vid / "Data/VID/val").rename(vid / "Data/VID/more")
    (vid / "Annotations/VID/val").rename(vid / "Annotations/VID/more")
    with pytest.raises(ReaderError, match=r"'Data/VID/more/.* does not lie below train, val or test; say its split"):
        ingest(vid_source(vid))
    assert {row.split for row in ingest(vid_source(vid), split="train").listing.rows} == {"train"}


def test_names_of_classes_are_read_as_well(vid, ingest) -> None:
    before = {row.path: row.boxes for row in ingest(vid_source(vid)).listing.rows}
    for file in (vid / "Annotations").rglob("*.xml"):
        file.write_text(file.read_text().replace(DOG, "dog"))
    assert {row.path: row.boxes for row in ingest(vid_source(vid)).listing.rows} == before


# --- DET ---------------------------------------------------------------------------------------


@pytest.fixture
def det(tmp_path: Path, draw: Callable[..., bytes], write_xml: Callable[..., str]) -> Path:
    root = tmp_path / "ILSVRC"
    content = {
        "train/a/one": [(None, DOG, (4, 4, 9, 9)), (None, "n09", (1, 1, 3, 3)), (None, DOG, (20, 4, 29, 19))],
        "train/a/two": [(None, "n09", (1, 1, 3, 3))],
        "train/b/three": [(None, "n02958343", (8, 8, 31, 31))],
        "train/b/four": None,
    }
    for name, objects in content.items():
        picture, notes = root / f"Data/DET/{name}.JPEG", root / f"Annotations/DET/{name}.xml"
        for path in (picture, notes):
            path.parent.mkdir(parents=True, exist_ok=True)
        boxes = [box for _, cls, box in objects or () if cls != "n09"]
        picture.write_bytes(draw(7, boxes, kind="PNG" if name.endswith("three") else "JPEG"))  # by content, not name
        if objects is not None:
            notes.write_text(write_xml(objects))
    return root


def test_pictures_are_clips_of_one_frame(det, ingest, boxes_of, decoded) -> None:
    listed = ingest({"kind": "imagenet_det", "root": str(det)})
    assert {row.path: row.label for row in listed.listing.rows} == {
        "Data/DET/train/a/one.JPEG": "dog",
        "Data/DET/train/b/three.JPEG": "car",
    }
    told = "\n".join(listed.listing.notes)
    assert "1 pictures without an object of the data set's classes, left out" in told
    assert "1 pictures without annotation, left out" in told
    assert "1 objects of other classes in pictures that are taken, left out" in told
    one = listed.good("one.JPEG")
    assert (one.record.num_frames, one.record.split) == (1, "train")
    boxes = boxes_of(one)
    assert boxes.labelled is None
    assert [(t.track, t.label, t.frames, t.boxes[0]) for t in boxes.tracks] == [
        (0, 0, (0,), (4.0, 4.0, 10.0, 10.0)),
        (1, 0, (0,), (20.0, 4.0, 30.0, 20.0)),
    ]
    three = listed.good("three.JPEG")
    assert boxes_of(three).tracks[0].boxes == ((8.0, 8.0, 32.0, 32.0),)
    assert decoded(three)[0, 10:30, 10:30].min() > 230


def test_list_of_pictures(det, ingest, tmp_path) -> None:
    (tmp_path / "list.txt").write_text("train/b/three 1\ntrain/a/one 1\ntrain/b/three 1\ntrain/a/gone 1\n")
    (det / "Annotations/DET/train/a/gone.xml").write_text((det / "Annotations/DET/train/a/one.xml").read_text())
    listed = ingest({"kind": "imagenet_det", "root": str(det), "images": "list.txt"})
    assert len(listed.listing.rows) == 3
    assert "1 lines repeat a picture, which is taken once" in "\n".join(listed.listing.notes)
    listed.reject("gone.JPEG", RejectReason.MISSING)
    (tmp_path / "list.txt").write_text("train/b/three\n")
    with pytest.raises(ReaderError, match=r"list\.txt:1: 'train/b/three' is not `<picture without extension>"):
        ingest({"kind": "imagenet_det", "root": str(det), "images": "list.txt"})
    (tmp_path / "list.txt").write_text("train/a/two 1\n")
    with pytest.raises(ReaderError, match="no video with annotations of this data set's classes was found"):
        ingest({"kind": "imagenet_det", "root": str(det), "images": "list.txt"})


# --- the well-known set and the original files -------------------------------------------------


def test_the_well_known_set() -> None:
    assert class_names(VID) == tuple(CLASSES.values())
    assert len(CLASSES) == 30
    assert [part.name for part in VID.parts] == ["vid", "det", "val"]
    assert VID.expected == {"train": 3862 + 53639, "val": 555}


@original
def test_classes_are_those_of_the_original_list() -> None:
    lines = (ANNOTATIONS / "vid_30_classes.csv").read_text().split()[1:]
    assert [tuple(line.split(",")[1:]) for line in lines] == list(CLASSES.items())


@original
def test_original_list_of_validation_videos(tmp_path) -> None:
    name = "Flow-Guided-Feature-Aggregation/data/ILSVRC2015/ImageSets/VID_val_videos.txt"
    source = vid_source(ANNOTATIONS, annotations="vid_xml", videos=name)
    part = Part.model_validate({"name": "main", "source": source, "split": "official"})
    context = ReadContext(ANNOTATIONS, class_names(VID), list, root=str(ANNOTATIONS), cache=tmp_path / "kept.jsonl")
    found = list(read_items(part, context))
    assert len(found) == VID.expected["val"]
    assert Counter(item.split for item in found) == {"val": 555}
    reader = open_boxes(ImagenetVidSource.model_validate(source), str(ANNOTATIONS), ANNOTATIONS, class_names(VID))
    counts = [reader.read(item.path)[0].num_frames for item in found]  # type: ignore[union-attr]
    assert sum(filter(None, counts)) == 176_126
    (annotated,) = [item for item in found if item.label]
    assert (annotated.path, annotated.label) == ("Data/VID/val/ILSVRC2015_val_00030000", "giant_panda")
    (made, _) = reader.read(annotated.path)
    assert made is not None
    assert (made.width, made.height, made.labelled) == (1280, 720, (0,))
    assert [(t.track, t.boxes[0]) for t in made.tracks] == [
        (0, (449.0, 304.0, 856.0, 683.0)),
        (1, (172.0, 307.0, 932.0, 591.0)),
    ]
    assert any(re.search(r"554 videos without annotation", note) for note in context.notes)


@original
def test_original_annotation_of_a_training_frame() -> None:
    source = ImagenetVidSource(root=".", annotations="vid_xml")
    reader = open_boxes(source, ".", ANNOTATIONS, class_names(VID))
    path = "Data/VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00005009"
    made, notes = reader.read(path)
    assert made is not None
    assert made.labelled == (8,)
    assert made.tracks[0].boxes == ((675.0, 115.0, 977.0, 452.0),)
    assert made.label(class_names(VID)) == "dog"
    assert notes == {"frames without annotation (unlabelled) in annotated videos": 8}
