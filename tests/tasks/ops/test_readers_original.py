"""Readers on the original annotation files of the public sets, where this machine has them."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_specs.load import class_names, load_spec
from data_specs.schema import Part
from tasks.ops.listing import make_key
from tasks.ops.readers import read_items
from tasks.ops.readers_base import RawItem, ReadContext

ANNOTATIONS = Path(os.environ.get("FOVEA_TEST_DATA", "../shared/data")).resolve() / "annotations"
pytestmark = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason="original annotation files are not here")
TSN = "temporal-segment-networks/data"


def read(name: str, source: dict[str, Any]) -> list[RawItem]:
    part = Part.model_validate({"name": "main", "source": {"root": ".", **source}, "split": "official"})
    items = list(read_items(part, ReadContext(ANNOTATIONS, class_names(load_spec(name)), list)))
    assert len({make_key("main", i.path, i.start_s, i.end_s) for i in items}) == len(items)
    return items


def test_ucf101() -> None:
    items = read("ucf101", {"kind": "ucf101", "lists": f"{TSN}/ucf101_splits"})
    splits = {s: [i for i in items if i.split == s] for s in ("train", "test")}
    assert len(splits["train"]) == 9537
    assert len(splits["test"]) == 3783
    assert load_spec("ucf101").expected == {s: len(v) for s, v in splits.items()}
    assert not {i.group for i in splits["train"]} & {i.group for i in splits["test"]}
    assert len({i.group for i in items}) == 101 * 25


def test_hmdb51() -> None:
    items = read("hmdb51", {"kind": "hmdb51", "lists": f"{TSN}/hmdb51_splits"})
    assert Counter(i.split for i in items) == {"train": 3570, "test": 1530}
    assert set(Counter((i.split, i.label) for i in items).values()) == {70, 30}


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("kinetics400", "ActivityNet/Crawler/Kinetics/data/kinetics-400_val.csv", 19906),
        ("mini_kinetics", "Mini-Kinetics-200/val_k200.csv", 5000),
    ],
)
def test_kinetics(name: str, file: str, count: int) -> None:
    items = read(name, {"kind": "kinetics", "file": file})
    assert len(items) == count == load_spec(name).expected["val"]
    assert {i.label for i in items} == set(class_names(load_spec(name)))
    assert {i.split for i in items} == {"val"}


def test_jester() -> None:
    spec = load_spec("jester")
    file = "CVND---Gesture-Recognition/20bn-jester-v1/annotations/jester-v1-train-quick-testing.csv"
    source = spec.parts[0].source.model_copy(update={"file": file})
    items = list(
        read_items(
            spec.parts[0].model_copy(update={"source": source}), ReadContext(ANNOTATIONS, class_names(spec), list)
        )
    )
    assert (items[0].path, items[0].label, len(items)) == ("34870.mp4", "Drumming Fingers", 8)
