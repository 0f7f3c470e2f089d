"""Readers: what each makes of a data set on disk, and AutoVideo's own layout from its tables to shards."""

import csv
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import data_specs
from data_specs.schema import DatasetSpec, IndexEntry, SplitPolicy, read_index
from infra.settings import Settings
from training.autovideo.catalogue import configure, find
from training.autovideo.document import Document
from training.autovideo.pipeline import Pipeline
from training.autovideo.shard_sets import open_shards
from training.autovideo.values import Context, Manifest, Shards
from training.core.config import ConfigError

REAL_DATA = Path(os.environ.get("FOVEA_TEST_DATA", "../shared/data")).resolve()
LABEL_FILES = Path(data_specs.__file__).parent / "labels"
CLIP = {"representation": "mp4", "short_side": 32, "fps": None, "audio": "drop"}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., DatasetSpec]:
    """Return a function that runs a reader and gives the specification that the ingest would get."""
    context = Context(
        step="data",
        seed=0,
        work=tmp_path / "work",
        settings=Settings(root=tmp_path),
        project=Settings(root=tmp_path),
        data=Settings(root=tmp_path / "place"),
        document=Document.from_dict(
            {
                "schema": "pipeline/v1",
                "name": "x",
                "seed": 0,
                "steps": [{"id": "data", "use": "reader/dataset"}],
                "outputs": ["data.shards"],
            }
        ),
    )

    def call(identifier: str, **settings: Any) -> DatasetSpec:
        config = configure(identifier, {name: str(v) if isinstance(v, Path) else v for name, v in settings.items()}, "")
        manifest = find(identifier)(config).produce({}, None, context)["manifest"]
        assert isinstance(manifest, Manifest)
        values = {"clip": CLIP, "shards": {"samples_per_shard": 4, "seed": 0}, "max_reject_share": 0.1}
        return DatasetSpec.model_validate({"name": manifest.dataset, **manifest.spec, **values})

    return call


Read = Callable[..., DatasetSpec]


def table(path: Path, header: Sequence[str], *rows: Sequence[object], delimiter: str = ",", bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_a_folder_per_class(read: Read, tmp_path: Path) -> None:
    root = touched(tmp_path / "v", "9/a.mp4", "10/b.mp4", "-1/c.mp4", ".hidden/d.mp4", "loose.mp4")
    split = {"train": 0.5, "val": 0.25, "test": 0.25, "seed": 4, "by": "regex:^(a)"}
    spec = read("reader/folder", root=root, split=split, licence="CC-BY", name="mine")
    assert spec.name == "mine"
    assert spec.licence == "CC-BY"
    assert spec.labels == ("-1", "9", "10"), "numbers by value, hidden folders and loose files left out"
    (part,) = spec.parts
    assert part.source.kind == "folder"
    assert part.source.root == str(root)
    assert part.split.model_dump() == {  # type: ignore[union-attr]
        "train": 0.5, "val": 0.25, "test": 0.25, "seed": 4, "group": "regex:^(a)"
    }  # fmt: skip
    touched(root, "cat/x.mp4")
    mixed = read("reader/folder", root=root)
    assert mixed.labels == ("-1", "10", "9", "cat"), "words: by the alphabet"
    assert mixed.name.startswith("folder_")
    assert mixed.name != read("reader/folder", root=root, licence="other").name


def test_a_folder_per_split_and_class(read: Read, tmp_path: Path) -> None:
    root = touched(tmp_path / "v", "train/walk/a.mp4", "train/run/b.mp4", "val/run/c.mp4", "test/jump/d.mp4")
    spec = read("reader/folder", root=root, splits_in_path=True, split="official")
    assert spec.labels == ("jump", "run", "walk")
    assert spec.parts[0].split == "official"
    assert spec.parts[0].source.splits_in_path  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="official goes with splits_in_path"):
        read("reader/folder", root=root, split="official")


def test_folders_that_are_no_data_set(read: Read, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"root: .*nowhere does not exist"):
        read("reader/folder", root=tmp_path / "nowhere")
    empty = touched(tmp_path / "empty", "loose.mp4")
    with pytest.raises(ConfigError, match="has no folders, one per class"):
        read("reader/folder", root=empty)
    with pytest.raises(ConfigError, match="must be 1"):
        read("reader/folder", root=touched(tmp_path / "v", "a/a.mp4"), split={"train": 0.9, "val": 0.2, "test": 0.2})


def test_one_table_and_several(read: Read, tmp_path: Path) -> None:
    media = touched(tmp_path / "media", "a.mp4", "b.mp4")
    header = ("file", "what", "from", "to", "who")
    train = table(tmp_path / "train.csv", header, ("a.mp4", "wave|clap", 0, 1, "p1"), ("b.mp4", "bow", 0, 2, "p2"))
    columns = {"path": "file", "label": "what", "start": "from", "end": "to", "group": "who"}
    alone = read("reader/csv", train=train, media=media, **columns)
    assert alone.labels == ("bow", "clap", "wave")
    (part,) = alone.parts
    assert part.source.model_dump(include={"path", "label", "start", "end", "group", "file", "root"}) == {
        **columns, "file": str(train), "root": str(media)
    }  # fmt: skip
    assert part.split.model_dump()["test"] == pytest.approx(0.15)  # type: ignore[union-attr]
    # A table for test: the share of test goes to the other two.
    test = table(tmp_path / "test.tsv", header, ("b.mp4", "nod", 0, 2, "p2"), delimiter="\t")
    two = read("reader/csv", train=train, test=test, media=media, **columns)
    assert two.labels == ("bow", "clap", "nod", "wave")
    assert [part.name for part in two.parts] == ["train", "test"]
    shares = two.parts[0].split.model_dump()  # type: ignore[union-attr]
    assert (shares["train"], shares["val"], shares["test"]) == pytest.approx((0.7 / 0.85, 0.15 / 0.85, 0.0))
    assert two.parts[1].split == "test"
    three = read("reader/csv", train=train, val=train, test=test, media=media, **columns)
    assert [part.split for part in three.parts] == ["train", "val", "test"]


def test_tables_in_other_forms(read: Read, tmp_path: Path) -> None:
    media = touched(tmp_path / "media", "a.mp4")
    rows = (("a.mp4", " wave "), ("b.mp4", "bow, deep"))
    for number, (delimiter, bom) in enumerate(((",", True), (";", False), ("\t", False))):
        path = table(tmp_path / f"{number}.csv", ("path", "label"), *rows, delimiter=delimiter, bom=bom)
        assert read("reader/csv", train=path, media=media).labels == ("bow, deep", "wave")
    bare = table(tmp_path / "bare.csv", ("a.mp4", "7"), ("b.mp4", "11"))
    assert read("reader/csv", train=bare, media=media, path="0", label="1").labels == ("7", "11")
    names = tmp_path / "names.txt"
    names.write_text("wave\nbow, deep\n")
    path = table(tmp_path / "c.csv", ("path", "label"), *rows)
    assert read("reader/csv", train=path, media=media, names=names).labels == ("wave", "bow, deep")


def test_what_a_table_lacks_is_named(read: Read, tmp_path: Path) -> None:
    media = touched(tmp_path / "media", "a.mp4")
    path = table(tmp_path / "t.csv", ("path", "class"), ("a.mp4", "wave"))
    with pytest.raises(ConfigError, match=r"t\.csv has no column 'label'; it has path, class"):
        read("reader/csv", train=path, media=media)
    with pytest.raises(ConfigError, match=r"test: .*gone\.csv does not exist"):
        read("reader/csv", train=path, test=tmp_path / "gone.csv", media=media, label="class")
    with pytest.raises(ConfigError, match=r"media: .*gone does not exist"):
        read("reader/csv", train=path, media=tmp_path / "gone", label="class")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.csv is empty"):
        read("reader/csv", train=tmp_path / "empty.csv", media=media)


def test_sets_with_lists_of_their_own(read: Read, tmp_path: Path) -> None:
    root, lists = touched(tmp_path / "v", "x/a.avi"), touched(tmp_path / "lists", "classInd.txt")
    for name, count in (("ucf101", 101), ("hmdb51", 51)):
        spec = read(f"reader/{name}", root=root, lists=lists, split_number=3, labels=f"{name}.txt")
        assert spec.labels == f"{name}.txt"
        (part,) = spec.parts
        assert part.source.kind == name
        assert part.source.split_number == 3  # type: ignore[union-attr]
        assert part.split == "official"
        assert len((LABEL_FILES / str(spec.labels)).read_text().splitlines()) == count
        with pytest.raises(ConfigError, match=r"lists: .* does not exist"):
            read(f"reader/{name}", root=root, lists=tmp_path / "no", labels=f"{name}.txt")


def test_kinetics(read: Read, tmp_path: Path) -> None:
    root = touched(tmp_path / "v", "a.mp4")
    header = ("label", "youtube_id", "time_start", "time_end", "split")
    train = table(tmp_path / "train.csv", header, ("abseiling", "abc", 1, 11, "train"))
    spec = read("reader/kinetics", root=root, train=train, val=train, trimmed=False, labels="kinetics400.txt")
    assert [(part.name, part.split) for part in spec.parts] == [("train", "train"), ("val", "val")]
    assert all(part.source.kind == "kinetics" and not part.source.trimmed for part in spec.parts)
    with pytest.raises(ConfigError, match=r"val: .*no\.csv does not exist"):
        read("reader/kinetics", root=root, train=train, val=tmp_path / "no.csv", labels="kinetics400.txt")


# --- AutoVideo's own layout -------------------------------------------------------------------

D3M = ("d3mIndex", "video", "label")
LABELS = (0, 2, 10)
"""With gaps, and in another order as words."""


@pytest.fixture
def d3m(videos: Path, tmp_path: Path) -> Path:
    """train.csv, test.csv and media/ as AutoVideo's own sets have them."""
    root = tmp_path / "d3m"
    rows = []
    for label, name in zip(LABELS, ("blue", "green", "red"), strict=True):
        for path in sorted((videos / name).glob("*.mp4"))[:6]:
            (root / "media").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / "media")
            rows.append((path.name, label))
    rows.sort()
    train, test = rows[:14], rows[14:]
    table(root / "train.csv", D3M, *((number, *row) for number, row in enumerate(train)))
    table(root / "test.csv", D3M, *((number, *row) for number, row in enumerate(test)))
    return root


def test_the_three_columns(read: Read, d3m: Path, tmp_path: Path) -> None:
    spec = read("reader/d3m", root=d3m)
    assert spec.labels == ("0", "2", "10")
    assert [(part.name, part.source.file) for part in spec.parts] == [  # type: ignore[union-attr]
        ("train", str(d3m / "train.csv")), ("test", str(d3m / "test.csv"))
    ]  # fmt: skip
    assert spec.parts[0].split.model_dump()["val"] == pytest.approx(0.1)  # type: ignore[union-attr]
    assert spec.parts[1].split == "test"
    # Excel's byte order mark is no part of the first name.
    text = (d3m / "train.csv").read_text()
    (d3m / "train.csv").write_text(text, encoding="utf-8-sig")
    assert read("reader/d3m", root=d3m).labels == ("0", "2", "10")
    (d3m / "test.csv").unlink()
    assert [part.name for part in read("reader/d3m", root=d3m).parts] == ["train"]
    (d3m / "train.csv").unlink()
    with pytest.raises(ConfigError, match=r"train: .*train\.csv does not exist"):
        read("reader/d3m", root=d3m)


def test_names_for_the_numbers(read: Read, d3m: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {number}" for number in range(11)) + "\n")
    spec = read("reader/d3m", root=d3m, names=names)
    assert spec.labels == ("class 0", "class 2", "class 10")
    for part, original in zip(spec.parts, ("train.csv", "test.csv"), strict=True):
        with Path(part.source.file).open(newline="") as file:  # type: ignore[union-attr]
            written = list(csv.reader(file))
        with (d3m / original).open(newline="") as file:
            given = list(csv.reader(file))
        assert written[0] == given[0] == list(D3M)
        assert [row[:2] for row in written] == [row[:2] for row in given]
        assert [row[2] for row in written[1:]] == [f"class {row[2]}" for row in given[1:]]
    names.write_text("only one\n")
    with pytest.raises(ConfigError, match=r"names: .*names\.txt has 1 lines, and no name for label '2'"):
        read("reader/d3m", root=d3m, names=names)


def test_another_header_is_refused(read: Read, d3m: Path) -> None:
    text = (d3m / "test.csv").read_text()
    (d3m / "test.csv").write_text(text.replace("d3mIndex,video,label", "index,video,label"))
    with pytest.raises(ConfigError, match=r"test\.csv: the header must be d3mIndex,video,label, it is index,video"):
        read("reader/d3m", root=d3m)
    (d3m / "test.csv").write_text(text.replace("d3mIndex,video,label", "d3mIndex,video,class"))
    with pytest.raises(ConfigError, match=r"test\.csv has no column 'label'"):
        read("reader/d3m", root=d3m)


def d3m_pipeline(root: Path, **extract: Any) -> Pipeline:
    return Pipeline.from_dict(
        {
            "schema": "pipeline/v1",
            "name": "d3m",
            "seed": 0,
            "steps": [
                {"id": "data", "use": "reader/d3m", "with": {"root": str(root), "split": {"train": 0.7, "val": 0.3}}},
                {"id": "shards", "use": "extractor/webdataset", "in": "data", "with": {"short_side": 32, **extract}},
            ],
            "outputs": ["shards.shards"],
        }
    )


def shards_of(pipeline: Pipeline, settings: Settings) -> Shards:
    value = pipeline.run(settings=settings).value("shards")
    assert isinstance(value, Shards)
    return value


@pytest.mark.timeout(300)
def test_autovideos_layout_becomes_shards_unchanged(d3m: Path, new_project: Callable[[], Settings]) -> None:
    settings = new_project()
    before = {path: path.read_bytes() for path in sorted(d3m.rglob("*")) if path.is_file()}
    pipeline = d3m_pipeline(d3m)
    first = shards_of(pipeline, settings)
    assert {path: path.read_bytes() for path in sorted(d3m.rglob("*")) if path.is_file()} == before
    assert first.classes == ("0", "2", "10")
    assert (first.folder / "labels.txt").read_text().split() == ["0", "2", "10"]
    index = read_index(first.folder)
    assert index.listed["test"] == 4
    assert index.listed["train"] + index.listed["val"] == 14
    with (d3m / "test.csv").open(newline="") as file:
        expected = sorted(LABELS.index(int(row["label"])) for row in csv.DictReader(file))
    entries = [
        IndexEntry.model_validate_json(line)
        for path in first.folder.glob("*-test-*.idx")
        for line in path.read_text().splitlines()
    ]
    assert sorted(entry.label for entry in entries) == expected  # type: ignore[type-var]
    # Nothing changed: no new shards, and no ingest is started at all.
    made = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    second = shards_of(pipeline, settings)
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == made


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_changed_video_is_noticed(d3m: Path, new_project: Callable[[], Settings]) -> None:
    settings, pipeline = new_project(), d3m_pipeline(d3m)
    first = shards_of(pipeline, settings)
    # A video that is another now is noticed, though no word of the document changed.
    media = sorted((d3m / "media").iterdir())
    with (d3m / "test.csv").open(newline="") as file:
        changed = next(csv.DictReader(file))["video"]
    donor = next(path for path in media if path.name not in (d3m / "test.csv").read_text())
    content = donor.read_bytes()
    (d3m / "media" / changed).write_bytes(content + b"\0\0\0\x08free")  # other bytes than any other video
    third = shards_of(pipeline, settings)
    assert third.fingerprints["test"] != first.fingerprints["test"]
    assert third.fingerprints["train"] == first.fingerprints["train"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_settings_of_the_extractor_and_lost_shards_are_noticed(d3m: Path, new_project: Callable[[], Settings]) -> None:
    settings = new_project()
    values = d3m_pipeline(d3m, samples_per_shard=3).to_dict()
    first = shards_of(Pipeline.from_dict(values), settings)
    order = (first.folder / "index.json").read_text()
    values["steps"][1]["with"]["seed"] = 5  # of the order of the samples
    second = shards_of(Pipeline.from_dict(values), settings)
    assert (second.folder / "index.json").read_text() != order
    lost = sorted(second.folder.glob("*.tar"))[0]
    content = lost.read_bytes()
    lost.unlink()
    third = shards_of(Pipeline.from_dict(values), settings)
    assert (third.folder / lost.name).read_bytes() == content
    assert third == second


@pytest.mark.timeout(300)
def test_what_the_ingest_says_is_said(d3m: Path, new_project: Callable[[], Settings]) -> None:
    values = d3m_pipeline(d3m).to_dict()
    rows = (d3m / "train.csv").read_text().splitlines()
    (d3m / "train.csv").write_text("\n".join([*rows, "99,../outside.mp4,2"]) + "\n")
    with pytest.raises(ConfigError, match=r"step 'shards'(?s:.*)train\.csv:16(?s:.*)outside\.mp4"):
        Pipeline.from_dict(values).run(settings=new_project())


def test_equal_splits_are_refused(
    tmp_path: Path, shard_writer: Callable[..., Path], sample_maker: Callable[..., Any]
) -> None:
    (tmp_path / "scratch").mkdir()
    train = sample_maker(tmp_path / "scratch", "train", 3, 0)
    val = sample_maker(tmp_path / "scratch", "val", 3, 3)
    good = shard_writer(tmp_path / "good", {"train": train, "val": val})
    assert set(open_shards(good, "good").fingerprints) == {"train", "val"}  # the control
    same = shard_writer(tmp_path / "same", {"train": train, "val": val, "test": val})
    prints = read_index(same)
    assert prints.data_digest("val") != prints.data_digest("test"), "fingerprints alone would not notice it"
    with pytest.raises(ConfigError, match="the splits test and val are the same videos"):
        open_shards(same, "same")
    other = sample_maker(tmp_path / "scratch", "test", 3, 6)
    assert open_shards(shard_writer(tmp_path / "other", {"train": train, "val": val, "test": other}), "other")


def test_a_policy_must_add_up() -> None:
    """Control of the readers' own splits: the specification refuses what they would write."""
    with pytest.raises(ValidationError, match="must be 1"):
        SplitPolicy(train=0.9, val=0.9, test=0.0, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not (REAL_DATA / "weizmann4").is_dir(), reason="needs the real videos of ../shared/data")
def test_real_videos_in_a_folder(new_project: Callable[[], Settings]) -> None:
    values = {
        "schema": "pipeline/v1",
        "name": "real",
        "seed": 0,
        "steps": [
            {"id": "data", "use": "reader/folder", "with": {
                "root": str(REAL_DATA / "weizmann4"),
                "split": {"train": 0.6, "val": 0.2, "test": 0.2, "by": "regex:^(p[0-9]+)"}}},
            {"id": "shards", "use": "extractor/webdataset", "in": "data", "with": {"short_side": 64}},
        ],
        "outputs": ["shards.shards"],
    }  # fmt: skip
    shards = shards_of(Pipeline.from_dict(values), new_project())
    assert shards.classes == tuple(sorted(path.name for path in (REAL_DATA / "weizmann4").iterdir() if path.is_dir()))
    people = {}
    for split in ("train", "val", "test"):
        lines = "".join(path.read_text() for path in shards.folder.glob(f"*-{split}-*.idx"))
        people[split] = set(re.findall(r'"key":"(p[0-9]+)', lines))
    assert all(people.values())
    assert not people["train"] & people["test"], "no person is in two splits"
    assert not people["train"] & people["val"]
