"""`data check`: a good data set passes; each kind of damage is found and named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_specs.load import load_spec
from data_specs.schema import read_index
from infra.settings import Settings
from tasks.ops.listing import manifest_bytes, manifest_path, read_manifest
from tasks.ops.validate import Result, check_dataset, check_listing


def failures(results: list[Result]) -> str:
    return "\n".join(f"{r.check}: {r.detail}" for r in results if r.level == "fail")


def warnings(results: list[Result]) -> str:
    return "\n".join(f"{r.check}: {r.detail}" for r in results if r.level == "warn")


def test_good_data_set(project: Settings) -> None:
    results = check_dataset("toys", project, all_bytes=True)
    assert failures(results) == ""
    text = "\n".join(f"{r.check}: {r.detail}" for r in results)
    assert "samples: 15 of 16 listed videos stored; rejected: 1 truncated" in text
    assert "leakage: 8 groups, each in one split" in text
    assert "sources: 1 of 16 sampled videos will be rejected: left/day0left_0.mp4: truncated" in warnings(results)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.unlink()  # shards may be hard links into a store
    path.write_bytes(data)


def _lose_tar(folder: Path) -> None:
    next(folder.glob("*.tar")).unlink()


def _cut_tar(folder: Path) -> None:
    path = next(folder.glob("*.tar"))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-512])


def _flip_idx(folder: Path) -> None:
    flip(next(folder.glob("*.idx")), 20)


def _other_classes(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["classes"] = ["right", "left"]
    (folder / "index.json").write_text(json.dumps(index))


def _other_format(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["format"] = 999
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_lose_tar, "is missing; run dvc pull"),
        (_cut_tar, "bytes, index.json says"),
        (_flip_idx, "is not the file that index.json lists"),
        (_other_classes, "classes of index.json are not those of the specification"),
        (_other_format, "shard format 999"),
    ],
)
def test_damaged_shards(project: Settings, damage: Callable[[Path], None], message: str) -> None:
    damage(project.shards / "toys")
    assert message in failures(check_dataset("toys", project))


def test_changed_byte_is_found_with_all_bytes(project: Settings) -> None:
    folder = project.shards / "toys"
    shard = read_index(folder).shards[0]
    entry = json.loads((folder / shard.name).with_suffix(".idx").read_text().splitlines()[0])
    flip(folder / shard.name, entry["members"]["mp4"][0] + entry["members"]["mp4"][1] // 2)
    assert "sha256 is not the one of index.json" in failures(check_dataset("toys", project, all_bytes=True))


def test_listing_newer_than_shards(project: Settings) -> None:
    path = manifest_path("toys", project)
    rows = read_manifest(path)
    other = {"train": "test", "test": "train", "val": "val"}
    path.write_bytes(manifest_bytes([row._replace(split=other[row.split]) for row in rows]))
    assert "lie in another split than listed" in failures(check_dataset("toys", project))
    left = [row for row in rows if not row.path.endswith("/day1right_5.mp4")]
    path.write_bytes(manifest_bytes(left))
    assert "are not in the listing" in failures(check_dataset("toys", project))
    path.write_bytes(manifest_bytes([*rows, rows[0]._replace(key="new-1", path="left/new.mp4", group="new")]))
    assert "1 listed videos are neither stored nor in quarantine: new-1" in failures(check_dataset("toys", project))


def test_quarantine_is_compared_with_the_index(project: Settings) -> None:
    path = project.shards / "toys" / "quarantine.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    text = failures(check_dataset("toys", project))
    assert "quarantine.csv has 0 videos, index.json counts 1" in text
    assert "1 listed videos are neither stored nor in quarantine" in text


def test_listing_checks(project: Settings) -> None:
    spec = load_spec("toys")
    rows = read_manifest(manifest_path("toys", project))
    assert failures(check_listing(spec, rows)) == ""
    moved = [rows[0]._replace(split="val" if rows[0].split != "val" else "test"), *rows[1:]]
    assert "leakage: 1 groups lie in several splits" in failures(check_listing(spec, moved))
    assert "parts not in the specification: other" in failures(check_listing(spec, [rows[0]._replace(part="other")]))
    assert "classes not in the specification: up" in failures(check_listing(spec, [rows[0]._replace(label="up")]))
    assert "no labelled sample in train" in failures(check_listing(spec, [r._replace(split="test") for r in rows]))
    missing = [row._replace(size=None, checksum="") for row in rows]
    assert "missing: 16 of 16" in failures(check_listing(spec, missing))
    assert "missing: 1 of 16" in warnings(check_listing(spec, [missing[0], *rows[1:]]))
    one, other = (next(row for row in rows if row.split == split) for split in ("train", "test"))
    same = [row._replace(checksum=one.checksum) if row is other else row for row in rows]
    assert "duplicates: 1 sets of equal files, 1 across splits" in warnings(check_listing(spec, same))
    assert failures(check_listing(spec, [])) == "listing: is empty"
    few = [row for row in rows if row.label == "left" or row.split != "test"]
    assert "balance: test has no sample of right" in warnings(check_listing(spec, few))


def test_before_listing_and_before_ingest(project: Settings) -> None:
    assert "specification: no data set 'toyz'" in failures(check_dataset("toyz", project))
    (project.shards / "toys" / "index.json").unlink()
    assert "shards: not built yet" in warnings(check_dataset("toys", project))
    manifest_path("toys", project).unlink()
    assert "run `python -m tasks manifest toys`" in failures(check_dataset("toys", project))
