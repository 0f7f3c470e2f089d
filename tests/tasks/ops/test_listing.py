"""Listing of sources: deterministic bytes, cached checksums, stable keys, errors."""

import hashlib
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.schema import KEY_PATTERN, DatasetSpec, ListedVideo
from infra.settings import Settings
from tasks.ops.listing import (
    build_listing,
    make_key,
    manifest_bytes,
    manifest_path,
    part_root,
    read_manifest,
    write_manifest,
)
from tasks.ops.readers_base import ReaderError

POLICY = {"train": 0.5, "val": 0.25, "test": 0.25, "seed": 0}


def make_spec(*parts: dict[str, Any], labels: tuple[str, ...] = ("run", "jump")) -> DatasetSpec:
    return DatasetSpec.model_validate(
        {
            "name": "small",
            "version": "1",
            "licence": "CC0-1.0",
            "labels": labels,
            "parts": parts,
            "clip": {"representation": "mp4", "short_side": 64, "fps": None, "audio": "drop"},
            "shards": {"samples_per_shard": 4, "seed": 0},
            "max_reject_share": 0.1,
        }
    )


def folder_part(name: str = "main", root: str = "raw", split: Any = POLICY) -> dict[str, Any]:
    return {"name": name, "source": {"kind": "folder", "root": root}, "split": split}


def videos(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"bytes of {name}".encode())


ODD = [
    "run/-a.mp4",
    "run/a b.c.mp4",
    "jump/日本.mp4",
    "jump/é.mp4",
    'jump/q"uo,te.mp4',
    "run/line\nbreak.mp4",
    "run/.b.mp4",
]


def test_manifest_round_trip_with_odd_names(tmp_path: Path) -> None:
    videos(tmp_path / "raw", ODD)
    settings = Settings(root=tmp_path, progress=False)
    spec = make_spec(folder_part())
    path = write_manifest(spec, settings)
    assert path == manifest_path("small", settings)
    rows = read_manifest(path)
    assert {r.path for r in rows} == set(ODD) - {"run/.b.mp4"}
    assert all(re.match(KEY_PATTERN, r.key) for r in rows)
    for row in rows:
        data = (tmp_path / "raw" / row.path).read_bytes()
        assert (row.size, row.checksum) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest_bytes(rows) == path.read_bytes()
    assert path.with_suffix(".labels.txt").read_text().splitlines() == list(spec.labels)


def test_same_sources_same_bytes_wherever_they_are(tmp_path: Path) -> None:
    names = [f"{label}/{n}.mp4" for label in ("run", "jump") for n in range(20)]
    texts = []
    for place in ("one", "two"):
        random.Random(place).shuffle(names)
        videos(tmp_path / place / "raw", names)
        texts.append(write_manifest(make_spec(folder_part()), Settings(root=tmp_path / place)).read_bytes())
    assert texts[0] == texts[1]
    videos(tmp_path / "two" / "raw", ["run/new.mp4"])
    assert write_manifest(make_spec(folder_part()), Settings(root=tmp_path / "two")).read_bytes() != texts[0]


def test_checksums_are_kept_and_renewed(tmp_path: Path) -> None:
    videos(tmp_path / "raw", ["run/a.mp4", "run/b.mp4", "jump/c.mp4"])
    settings, spec = Settings(root=tmp_path), make_spec(folder_part())
    first = build_listing(spec, settings).rows
    cache = tmp_path / ".work" / "checksums-small.jsonl"
    # A cached checksum is believed while size and time of change are the same (negative control: forge one) …
    cache.write_text(cache.read_text().replace(first[0].checksum, "f" * 64) + '["torn')
    assert build_listing(spec, settings).rows[0].checksum == "f" * 64
    # … and not when they differ.
    path = tmp_path / "raw" / first[0].path
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(1, 1))
    renewed = build_listing(spec, settings).rows[0]
    assert renewed.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert build_listing(spec, settings).rows[0] == renewed


def test_later_part_leaves_the_first_alone(tmp_path: Path) -> None:
    names = [f"{label}/{n}.mp4" for label in ("run", "jump") for n in range(12)]
    videos(tmp_path / "raw", names)
    videos(tmp_path / "more", names)
    settings = Settings(root=tmp_path)
    alone = build_listing(make_spec(folder_part()), settings).rows
    both = build_listing(make_spec(folder_part(), folder_part("later", "more")), settings).rows
    assert both[: len(alone)] == alone
    later = both[len(alone) :]
    assert {r.part for r in later} == {"later"}
    # Equal names under another root are other videos: other keys, other groups.
    assert not {r.key for r in later} & {r.key for r in alone}
    assert not {r.group for r in later} & {r.group for r in alone}


def test_group_of_an_earlier_part_keeps_its_split(tmp_path: Path) -> None:
    rows = ["path,label,who"] + [f"{n}.mp4,{'run' if n % 2 else 'jump'},p{n // 4}" for n in range(40)]
    videos(tmp_path / "raw", [f"{n}.mp4" for n in range(40)])
    (tmp_path / "a.csv").write_text("\n".join(rows[:21]) + "\n")
    (tmp_path / "b.csv").write_text("\n".join([rows[0], *rows[17:]]) + "\n")
    source = {"kind": "csv", "root": "raw", "group": "who"}
    parts = [{"name": n, "source": {**source, "file": f"{n}.csv"}, "split": POLICY} for n in "ab"]
    listed = build_listing(make_spec(*parts), Settings(root=tmp_path)).rows
    splits: dict[str, set[str]] = {}
    for row in listed:
        splits.setdefault(row.group, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    shared = {r.group for r in listed if r.part == "a"} & {r.group for r in listed if r.part == "b"}
    assert shared


def test_missing_files_are_listed_and_told(tmp_path: Path) -> None:
    videos(tmp_path / "raw", ["a.mp4"])
    (tmp_path / "list.csv").write_text("path,label,s,e\na.mp4,run,0,1\na.mp4,jump,1,2.5\ngone.mp4,jump,,\n")
    source = {"kind": "csv", "root": "raw", "file": "list.csv", "start": "s", "end": "e"}
    spec = make_spec({"name": "main", "source": source, "split": "train"})
    listing = build_listing(spec, Settings(root=tmp_path))
    assert "1 of 3 listed videos are not in" in listing.warnings[0]
    by_span = {(r.path, r.start_s): r for r in listing.rows}
    assert (by_span["gone.mp4", None].size, by_span["gone.mp4", None].checksum) == (None, "")
    assert by_span["a.mp4", 0.0].group == by_span["a.mp4", 1.0].group
    assert by_span["a.mp4", 0.0].key != by_span["a.mp4", 1.0].key
    assert read_manifest(write_manifest(spec, Settings(root=tmp_path))) == listing.rows


def test_errors(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"raw does not exist \(source\.root of part 'main'"):
        build_listing(make_spec(folder_part()), settings)
    videos(tmp_path / "raw", ["a.mp4"])
    source = {"kind": "csv", "root": "raw", "file": "list.csv"}
    spec = make_spec({"name": "main", "source": source, "split": "train"})
    (tmp_path / "list.csv").write_text("path,label\na.mp4,run\na.mp4,jump\n")
    with pytest.raises(ReaderError, match=r"list\.csv:3: 'a\.mp4' .* already listed at .*list\.csv:2"):
        build_listing(spec, settings)
    (tmp_path / "list.csv").write_text("path,label\na.mp4,\n")
    with pytest.raises(ReaderError, match=r"list\.csv:2: 'a\.mp4' has no class; only videos of split test"):
        build_listing(spec, settings)
    test_only = make_spec({"name": "main", "source": source, "split": "test"})
    assert build_listing(test_only, settings).rows[0].label == ""


def test_name_that_is_not_text(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "run"
    folder.mkdir(parents=True)
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mp4")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes only text as names")
    with pytest.raises(ReaderError, match="not valid UTF-8"):
        build_listing(make_spec(folder_part(split="train")), Settings(root=tmp_path))


def test_part_root(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path)
    roots = {"raw": str(tmp_path / "raw"), "/abs/x": "/abs/x", "s3://bucket/pre/": "s3://bucket/pre"}
    for root, expected in roots.items():
        assert part_root(make_spec(folder_part(root=root)).parts[0], settings) == expected
    with pytest.raises(ValueError, match="not supported"):
        part_root(make_spec(folder_part(root="ftp://x")).parts[0], settings)


@given(part=st.sampled_from(["main", "later"]), path=st.text(min_size=1), start=st.none() | st.floats(0, 9))
def test_keys_are_valid_for_any_name(part: str, path: str, start: float | None) -> None:
    if any(0xD800 <= ord(c) < 0xE000 for c in path):
        return
    key = make_key(part, path, start, None)
    assert re.match(KEY_PATTERN, key)
    assert key == make_key(part, path, start, None)
    assert key != make_key(part, path + "x", start, None)


def test_known_key() -> None:
    """Keys are part of every shard: this one may not change."""
    assert make_key("main", "run/Ab c.mp4", None, None) == "ab_c-18b7890987fd"


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@given(rows=st.lists(st.tuples(text, text, st.none() | st.floats(0, 1e6)), max_size=8))
def test_any_text_survives_the_manifest(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    listed = [
        ListedVideo("main", f"k-{n}", path, label, "train", path, start, None, None, "")
        for n, (path, label, start) in enumerate(rows)
    ]
    path = tmp_path_factory.mktemp("m") / "x.csv"
    path.write_bytes(manifest_bytes(listed))
    assert read_manifest(path) == listed


def test_foreign_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(FileNotFoundError, match=r"run `python -m tasks manifest x`"):
        read_manifest(path)
    row = ListedVideo("main", "k", "a.mp4", "run", "train", "a.mp4", None, None, 1, "aa")
    for bad, message in (
        (row._replace(split="dev"), r"x\.csv:2: split 'dev'"),
        (row._replace(key="a.b"), r"key 'a\.b' is not valid"),
    ):
        path.write_bytes(manifest_bytes([bad]))
        with pytest.raises(ValueError, match=message):
            read_manifest(path)
    path.write_bytes(manifest_bytes([row, row]))
    with pytest.raises(ValueError, match=r"x\.csv:3: .*occurs twice"):
        read_manifest(path)
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match=r"x\.csv:1: columns are"):
        read_manifest(path)


@pytest.fixture(scope="module")
def s3_settings(s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings for the S3 server, whose bucket `listed` holds three objects."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3_url)
        client = boto3.client("s3", endpoint_url=s3_url)
        client.create_bucket(Bucket="listed")
        for name in ("set/run/a b.mp4", "set/jump/é.mp4", "other/run/c.mp4"):
            client.put_object(Bucket="listed", Key=name, Body=name.encode())
        yield Settings(root=tmp_path_factory.mktemp("s3"), progress=False)


def test_remote_folder_and_urls(s3_settings: Settings) -> None:
    rows = build_listing(make_spec(folder_part(root="s3://listed/set", split="train")), s3_settings).rows
    assert {(r.path, r.label) for r in rows} == {("run/a b.mp4", "run"), ("jump/é.mp4", "jump")}
    for row in rows:
        body = f"set/{row.path}".encode()
        assert (row.size, row.checksum) == (len(body), hashlib.md5(body).hexdigest())
    table = s3_settings.root / "list.csv"
    table.write_text("path,label\ns3://listed/other/run/c.mp4,run\ns3://listed/other/gone.mp4,run\nrun/a b.mp4,run\n")
    source = {"kind": "csv", "root": "s3://listed/set", "file": "list.csv"}
    rows = build_listing(make_spec({"name": "main", "source": source, "split": "train"}), s3_settings).rows
    sizes = {r.path: r.size for r in rows}
    assert sizes["s3://listed/other/gone.mp4"] is None
    assert (sizes["s3://listed/other/run/c.mp4"], sizes["run/a b.mp4"]) == (15, 15)
