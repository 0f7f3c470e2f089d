"""Specifications: strict reading, errors that name file and field, label files, the well-known sets."""

from pathlib import Path

import pytest

from data_specs.load import SpecError, class_names, list_specs, load_spec, spec_path
from data_specs.schema import digest

GOOD = """\
name: small
version: "1"
licence: CC0-1.0
labels: [a, b]
parts:
  - name: main
    source:
      kind: folder
      root: raw
    split: {train: 0.5, val: 0.25, test: 0.25, seed: 0}
clip:
  representation: mp4
  short_side: 64
  fps: null
  audio: drop
shards:
  samples_per_shard: 8
  seed: 0
max_reject_share: 0.1
"""


def write(folder: Path, text: str = GOOD, name: str = "small") -> Path:
    place = folder / "datasets"
    place.mkdir(exist_ok=True)
    (place / f"{name}.yaml").write_text(text, encoding="utf-8")
    return place


def test_good_spec_loads(tmp_path: Path) -> None:
    spec = load_spec("small", write(tmp_path))
    assert class_names(spec) == ("a", "b")
    assert spec.parts[0].source.kind == "folder"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("      root: raw", "      rooot: raw", r"parts\.0\.source\.rooot: unknown key; did you mean 'root'"),
        ("  short_side: 64", "  short_sid: 64", r"clip\.short_sid: unknown key; did you mean 'short_side'"),
        ("licence: CC0-1.0\n", "", r"licence: is missing"),
        ("kind: folder", "kind: foldr", r"parts\.0\.source\.kind: 'foldr' is unknown; did you mean 'folder'"),
        ("train: 0.5", "trian: 0.5", r"parts\.0\.split\.trian: unknown key; did you mean 'train'"),
        ("train: 0.5", "train: 0.6", r"parts\.0\.split: .*must be 1"),
        (
            "split: {train: 0.5, val: 0.25, test: 0.25, seed: 0}",
            "split: trane",
            r"parts\.0\.split: Input should be 'train', 'val', 'test' or 'official', got 'trane'",
        ),
        (
            "split: {train: 0.5, val: 0.25, test: 0.25, seed: 0}",
            "split: official",
            r"parts\.0\.split: 'official', but this folder source has no splits",
        ),
        ("seed: 0}", "seed: 0, group: 'regex:^p[0-9]'}", r"parts\.0\.split\.group: .* has no \(group\)"),
        ("seed: 0}", "seed: 0, group: 'regex:^(p'}", r"is not a regular expression"),
        ("seed: 0}", "seed: 0, group: 'column:who'}", r"needs a csv source"),
        ("seed: 0}", "seed: 0, group: performer}", r"is none of source, regex"),
        ("labels: [a, b]", "labels: [a, a]", r"labels:2: class name 'a' is already given as number 1"),
        ("labels: [a, b]", "labels: [a, 'b|c']", r"labels:2: class name 'b\|c'"),
        ("labels: [a, b]", "labels: [yes, no]", r"labels\.0: .*YAML reads it as bool; put it in quotes"),
        ("labels: [a, b]", "labels: smal.txt", r"labels: .*smal\.txt does not exist; did you mean 'small\.txt'"),
        ("name: small", "name: smell", r"name: is 'smell', must be 'small'"),
        ("version:", "name: again\nversion:", r"key 'name' is given twice"),
        ("labels: [a, b]", "labels: [a, b", r"not valid YAML"),
        ("representation: mp4", "representation: jpgs", r"clip: .*num_frames must be given"),
    ],
)
def test_error_names_file_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    folder = write(tmp_path, GOOD.replace(old, new))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "small.txt").write_text("a\nb\n")
    with pytest.raises(SpecError, match=message) as caught:
        load_spec("small", folder)
    assert str(folder / "small.yaml") in str(caught.value)


def test_unknown_data_set_suggests(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no data set 'smal'.*did you mean 'small'"):
        load_spec("smal", write(tmp_path))


def test_label_file_is_part_of_the_digest(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD.replace("labels: [a, b]", "labels: names.txt"))
    (tmp_path / "labels").mkdir()
    names = tmp_path / "labels" / "names.txt"
    names.write_text("a\nb c\n", encoding="utf-8")
    first = load_spec("small", folder)
    assert class_names(first) == ("a", "b c")
    names.write_text("a\nb d\n", encoding="utf-8")
    assert digest(load_spec("small", folder)) != digest(first)
    names.write_text("a\n\nb\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"names\.txt:2: class name ''"):
        load_spec("small", folder)


def test_project_comes_before_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEA_ROOT", str(tmp_path))
    packaged = spec_path("ucf101")
    assert tmp_path not in packaged.parents
    own = tmp_path / "data_specs" / "datasets"
    own.mkdir(parents=True)
    (own / "ucf101.yaml").write_text(packaged.read_text().replace("labels: ucf101.txt", "labels: [one]"))
    assert spec_path("ucf101") == own / "ucf101.yaml"
    assert class_names(load_spec("ucf101")) == ("one",)


COUNTS = {
    "demo": 12,
    "ucf101": 101,
    "hmdb51": 51,
    "kinetics400": 400,
    "kinetics600": 600,
    "mini_kinetics": 200,
    "moments": 339,
    "sthsth_v1": 174,
    "sthsth_v2": 174,
    "jester": 27,
    "activitynet": 200,
}


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_packaged_spec(name: str) -> None:
    assert name in list_specs()
    spec = load_spec(name)
    assert len(class_names(spec)) == COUNTS[name]
    assert all(count > 0 for count in spec.expected.values())
