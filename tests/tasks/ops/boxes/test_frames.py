"""Folders of frames as videos: order, exactness, what is refused."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_specs.schema import ClipRecord, RejectReason
from infra.settings import Settings
from tasks.ops import acquire
from tasks.ops.acquire import SourceChangedError
from tasks.ops.frames import fetch_frames, folder_checksum, in_order, look, numbering_problem
from tasks.ops.listing import build_listing
from tasks.ops.probe import RejectedError
from tasks.ops.readers_base import ReaderError
from tasks.ops.sample import SampleError

FRAMES = Path(os.environ.get("FOVEA_TEST_DATA", "../shared/data")).resolve() / "vid_frames/ILSVRC2015_val_00007010"


def vid_source(root: Path, **fields: object) -> dict[str, object]:
    return {"kind": "imagenet_vid", "root": str(root), **fields}


@pytest.fixture
def plain(tmp_path: Path, draw: Callable[..., bytes]) -> Callable[..., Path]:
    """A VID root with one unannotated validation video of given pictures."""

    def make(pictures: dict[str, bytes]) -> Path:
        root = tmp_path / "ILSVRC"
        folder = root / "Data/VID/val/v"
        folder.mkdir(parents=True)
        (root / "Annotations/VID").mkdir(parents=True)
        for name, data in pictures.items():
            (folder / name).write_bytes(data)
        return root

    return make


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 40])
@pytest.mark.parametrize("fps", [30, 29.97])
def test_frame_i_is_picture_i(plain, draw, ingest, numbers, kind: str, count: int, fps: float) -> None:
    root = plain({f"{i:06d}.{kind}": draw(i, kind=kind) for i in range(count)})
    made = ingest(vid_source(root, fps=fps)).good("v")
    assert numbers(made) == list(range(count))
    record: ClipRecord = made.record
    assert (record.num_frames, record.fps, record.width, record.height) == (count, fps, 64, 48)
    assert record.duration_s == pytest.approx(count / fps)
    assert record.has_audio is False


def test_another_order_is_seen(plain, draw, ingest, numbers) -> None:
    """Control of the test above: pictures that changed places are noticed."""
    root = plain({f"{i:06d}.JPEG": draw([0, 2, 1][i]) for i in range(3)})
    assert numbers(ingest(vid_source(root)).good("v")) == [0, 2, 1]


def test_numbers_order_the_pictures_not_names(plain, draw, ingest, numbers) -> None:
    root = plain({f"{i}.jpg": draw(i) for i in (10, 2, 0, 1, *range(3, 10), 11)})
    made = ingest(vid_source(root)).good("v")
    assert numbers(made) == list(range(12))


@given(st.sets(st.integers(0, 10**7), min_size=1), st.randoms(use_true_random=False))
def test_order_is_by_number(found: set[int], rand) -> None:
    names = [f"img_{n}.png" for n in found] + ["notes.txt"]
    rand.shuffle(names)
    assert in_order(names) == [f"img_{n}.png" for n in sorted(found)]


@pytest.mark.parametrize(
    ("names", "first", "problem"),
    [
        (["0.jpg", "1.jpg", "2.jpg"], 0, None),
        (["1.jpg", "2.jpg"], None, None),
        (["000.jpg", "005.jpg", "010.jpg"], None, None),
        (["cover.jpg"], None, None),
        (["1.jpg", "2.jpg"], 0, "the first picture is '1.jpg', its number must be 0"),
        (["000.jpg", "005.jpg", "010.jpg"], 0, "missing between '000.jpg' and '005.jpg'"),
        (["0.jpg", "1.jpg", "3.jpg"], None, "missing between '1.jpg' and '3.jpg'"),
        (["0.jpg", "5.jpg", "10.jpg", "20.jpg"], None, "missing between '10.jpg' and '20.jpg'"),
        (["1.jpg", "01.jpg"], None, "have the same number"),
        (["a.jpg", "b1.jpg"], None, "'a.jpg' has no number"),
        (["a1.jpg", "b2.jpg"], None, "several series .* 'a' and with 'b'"),
    ],
)
def test_numbering(names: list[str], first: int | None, problem: str | None) -> None:
    found = numbering_problem(in_order(names), first)
    if problem is None:
        assert found is None
    else:
        import re

        assert found is not None
        assert re.search(problem, found)


def _gap(root: Path, draw: Callable[..., bytes]) -> None:
    (root / "000001.JPEG").unlink()


def _no_first(root: Path, draw: Callable[..., bytes]) -> None:
    (root / "000000.JPEG").unlink()


def _size(root: Path, draw: Callable[..., bytes]) -> None:
    (root / "000002.JPEG").write_bytes(draw(2, size=(48, 64)))


def _format(root: Path, draw: Callable[..., bytes]) -> None:
    (root / "000002.JPEG").write_bytes(draw(2, kind="PNG"))


def _grey(root: Path, draw: Callable[..., bytes]) -> None:
    out = io.BytesIO()
    Image.open(io.BytesIO(draw(2))).convert("L").save(out, "JPEG")
    (root / "000002.JPEG").write_bytes(out.getvalue())


def _text(root: Path, draw: Callable[..., bytes]) -> None:
    (root / "000001.JPEG").write_text("<html>")


def _cut_head(root: Path, draw: Callable[..., bytes]) -> None:
    (root / "000001.JPEG").write_bytes(draw(1)[:30])


@pytest.mark.parametrize(
    ("damage", "reason", "message"),
    [
        (_gap, RejectReason.BAD_FRAMES, "missing between '000000.JPEG' and '000002.JPEG'"),
        (_no_first, RejectReason.BAD_FRAMES, "the first picture is '000001.JPEG', its number must be 0"),
        (_size, RejectReason.BAD_FRAMES, "000002.JPEG is 48x64 JPEG, 000000.JPEG is 64x48 JPEG"),
        (_format, RejectReason.BAD_FRAMES, "000002.JPEG is 64x48 PNG, 000000.JPEG is 64x48 JPEG"),
        (_grey, RejectReason.BAD_FRAMES, "another sampling of colours"),
        (_text, RejectReason.BAD_FRAMES, "000001.JPEG: has 6 bytes"),
        (_cut_head, RejectReason.CORRUPT, "000001.JPEG: the picture cannot be read"),
    ],
)
def test_damaged_folders_are_rejects(plain, draw, ingest, damage, reason, message) -> None:
    root = plain({f"{i:06d}.JPEG": draw(i) for i in range(4)})
    assert ingest(vid_source(root)).good("v").record.num_frames == 4
    damage(root / "Data/VID/val/v", draw)
    assert message in ingest(vid_source(root)).reject("v", reason)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_half_a_picture_is_a_reject(plain, ingest, kind: str) -> None:
    """A decoder shows what there is of a JPEG and makes the rest grey."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, kind)
    whole = out.getvalue()
    root = plain({f"000000.{kind}": whole, f"000001.{kind}": whole[: len(whole) // 2]})
    detail = ingest(vid_source(root)).reject("v", RejectReason.CORRUPT)
    assert f"000001.{kind}: the picture cannot be read: it has no end" in detail


def test_a_picture_changed_after_listing_is_no_reject(plain, draw, ingest) -> None:
    root = plain({f"{i:06d}.JPEG": draw(i) for i in range(3)})
    listed = ingest(vid_source(root))
    folder = root / "Data/VID/val/v"
    first = (folder / "000001.JPEG").read_bytes()
    other = bytearray(first)
    other[-5] ^= 1
    (folder / "000001.JPEG").write_bytes(other)
    with pytest.raises(SampleError, match=r"changed after it was listed: the checksum of its pictures"):
        listed.sample("v")
    (folder / "000001.JPEG").write_bytes(first[:-1])
    with pytest.raises(SampleError, match="3 pictures have"):
        listed.sample("v")
    # Also where the pictures could not be used at all: a reject only follows from the bytes that were listed.
    (folder / "000001.JPEG").write_bytes(b"\0" * len(first))
    with pytest.raises(SampleError, match="changed after it was listed"):
        listed.sample("v")
    (folder / "000001.JPEG").write_bytes(first)
    assert listed.good("v")


def test_orientation_of_exif_is_left_out(plain, draw, ingest, decoded) -> None:
    """Boxes count the pixels as they are stored; a decoder would turn the picture."""
    turned = Image.Exif()
    turned[0x112] = 6
    pictures = {}
    for kind in ("JPEG", "PNG"):
        out = io.BytesIO()
        Image.open(io.BytesIO(draw(3, [(0, 0, 31, 23)]))).save(out, kind, exif=turned)
        pictures[kind] = out.getvalue()
        head, data = look(out.getvalue(), "x")
        assert (head.width, head.height) == (64, 48)
        plain_picture, same = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(out.getvalue()))
        assert not plain_picture.getexif()
        assert same.getexif()[0x112] == 6
        assert np.array_equal(np.asarray(plain_picture), np.asarray(same))
    with av.open(io.BytesIO(pictures["JPEG"])) as container:  # control: this is what it would do
        assert next(container.decode(video=0)).rotation != 0
    for kind, data in pictures.items():
        root = plain({f"000000.{kind}": data})
        made = ingest(vid_source(root)).good("v")
        assert (made.record.width, made.record.height) == (64, 48)
        assert decoded(made)[0, 2:20, 2:28].min() > 230
        (root / "Data/VID/val/v").rename(root / f"away{kind}")
        root.rename(root.parent / f"done{kind}")


def test_listing_is_kept_by_size_and_time(plain, draw, ingest_settings, box_spec, monkeypatch) -> None:
    root = plain({f"{i:06d}.JPEG": draw(i) for i in range(3)})
    folder = root / "Data/VID/val/v"
    (folder / "notes.txt").write_text("x")
    spec = box_spec(vid_source(root))
    listing = build_listing(spec, ingest_settings)
    row = listing.rows[0]
    sums = [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in sorted(folder.glob("*.JPEG"))]
    assert row.checksum == folder_checksum(sums)
    assert row.size == sum(p.stat().st_size for p in folder.glob("*.JPEG"))
    assert any("1 files beside pictures of frame folders left out (1 × .txt)" in note for note in listing.notes)
    kept = ingest_settings.work / "checksums-tiny.jsonl"
    lines = kept.read_text().splitlines()
    assert build_listing(spec, ingest_settings).rows == listing.rows
    assert [line for line in kept.read_text().splitlines() if line] == lines
    # What is kept is used (a poisoned entry shows), and dropped as soon as a picture has another time.
    kept.write_text(kept.read_text().replace(row.checksum, "f" * 64))
    assert build_listing(spec, ingest_settings).rows[0].checksum == "f" * 64
    os.utime(folder / "000001.JPEG", ns=(1, 1))
    assert build_listing(spec, ingest_settings).rows == listing.rows


def test_folders_are_refused_where_nobody_says_their_rate(tmp_path, draw, ingest) -> None:
    folder = tmp_path / "raw" / "clip"
    folder.mkdir(parents=True)
    (folder / "0.jpg").write_bytes(draw(0))
    (tmp_path / "list.csv").write_text("path,label\nclip,dog\n")
    with pytest.raises(ReaderError, match=r"clip is a folder; folders of frames are read by sources with `fps`"):
        ingest({"kind": "csv", "root": str(tmp_path / "raw"), "file": "list.csv"}, split="train")


def test_an_empty_folder_is_a_reject(tmp_path, draw, ingest, add_video) -> None:
    add_video(tmp_path, "val/v", {0: []})
    (tmp_path / "list.txt").write_text("val/v 1 0 1\nval/w 2 0 4\nval/x 6 0 1\n")
    (tmp_path / "Data/VID/val/w").mkdir()
    listed = ingest(vid_source(tmp_path, videos="list.txt"))
    assert "1 of 3 listed videos are not in" in listed.listing.warnings[0]
    listed.reject("val/w", RejectReason.EMPTY)
    listed.reject("val/x", RejectReason.MISSING)
    assert listed.good("val/v")


@pytest.mark.skipif(not FRAMES.is_dir(), reason="frames of ImageNet VID are not here")
def test_real_frames(tmp_path, ingest, decoded) -> None:
    root = tmp_path / "ILSVRC"
    (root / "Annotations/VID/val").mkdir(parents=True)
    (root / "Data/VID/val").mkdir(parents=True)
    (root / "Data/VID/val" / FRAMES.name).symlink_to(FRAMES)
    spec = vid_source(root)
    made = ingest(spec, clip={"short_side": 180}).good(FRAMES.name)
    assert (made.record.num_frames, made.record.width, made.record.height) == (48, 320, 180)
    stored = decoded(made)
    for number in (0, 1, 23, 46, 47):
        with Image.open(FRAMES / f"{number:06d}.JPEG") as image:
            true = np.asarray(image.resize((320, 180), Image.Resampling.BICUBIC), np.float64).mean(2)
        errors = [np.abs(stored[at] - true).mean() for at in range(48)]
        assert int(np.argmin(errors)) == number
        assert errors[number] < 3


@pytest.fixture
def s3_frames(s3_url: str, draw: Callable[..., bytes]):
    import boto3

    client = boto3.client("s3", endpoint_url=s3_url)
    client.create_bucket(Bucket="frames")
    for number in range(12):
        client.put_object(Bucket="frames", Key=f"Data/VID/val/v/{number:06d}.JPEG", Body=draw(number))
    client.put_object(Bucket="frames", Key="Data/VID/val/v/more/000099.JPEG", Body=b"below")
    yield client
    acquire._client.cache_clear()
    for item in client.list_objects_v2(Bucket="frames").get("Contents", []):
        client.delete_object(Bucket="frames", Key=item["Key"])
    client.delete_bucket(Bucket="frames")


def test_frames_of_a_bucket(s3_frames, s3_url, tmp_path, draw, write_xml, box_spec, ingest, numbers, boxes_of) -> None:
    notes = tmp_path / "notes" / "val" / "v"
    notes.mkdir(parents=True)
    (notes / "000002.xml").write_text(write_xml([(0, "n02084071", (4, 4, 9, 9))]))
    source = vid_source(Path("s3://frames"), annotations="notes") | {"root": "s3://frames"}
    settings = Settings(root=tmp_path, progress=False, RAY_ADDRESS=None, AWS_ENDPOINT_URL=s3_url)
    spec = box_spec(source)
    listed = ingest(spec, settings=settings)
    assert [row.path for row in listed.listing.rows if row.path.endswith("/v")] == ["Data/VID/val/v"]
    made = listed.good("val/v")
    assert numbers(made) == list(range(12))
    assert boxes_of(made).labelled == (2,)
    sums = [(f"{n:06d}.JPEG", hashlib.sha256(draw(n)).hexdigest()) for n in range(12)]
    assert made.record.source_sha256 == folder_checksum(sums)
    s3_frames.put_object(Bucket="frames", Key="Data/VID/val/v/000003.JPEG", Body=draw(4))
    with pytest.raises(SampleError, match="changed after it was listed"):
        listed.sample("val/v")
    with pytest.raises(ReaderError, match=r"copy Annotations/VID here and give the folder as source\.annotations"):
        ingest(box_spec({**source, "annotations": None}), settings=settings)


def test_fetch_names_what_is_gone(tmp_path) -> None:
    with pytest.raises(SourceChangedError, match="it is gone"), fetch_frames(str(tmp_path / "x"), tmp_path, 1, "", 25):
        pass


def test_look_refuses_what_is_no_picture() -> None:
    with pytest.raises(RejectedError, match=r"x: is neither JPEG nor PNG"):
        look(b"GIF89a" * 10, "x")
