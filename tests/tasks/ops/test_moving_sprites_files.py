"""Folders of `moving_sprites`: what the json files say is in the decoded videos, and the specification fits them."""

import csv
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from data_specs.files import sha256_of
from data_specs.schema import ClipPolicy, DatasetSpec
from infra.settings import Settings
from tasks.ops.init import InitError
from tasks.ops.moving_sprites import CLASSES, MovingSpritesConfig
from tasks.ops.moving_sprites_files import annotation, check_name, set_up, write_sprites
from tasks.ops.moving_sprites_plan import plan_video
from tasks.ops.moving_sprites_render import render_sprites

LENGTH = 20
VIDEOS = {"train": 6, "val": 2, "test": 3}


def make(**fields: object) -> MovingSpritesConfig:
    base = {f"num_{split}": count for split, count in VIDEOS.items()}
    base |= {"size": 64, "num_frames": LENGTH}
    return MovingSpritesConfig.model_validate(base | {"regime": "non_key", "motion": "horizontal_fast"} | fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sprites") / "videos"
    steps: list[tuple[int, int]] = []
    assert write_sprites(out, make(), progress=lambda done, total: steps.append((done, total))) == 11
    assert steps == [(done, 11) for done in range(1, 12)]
    return out


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def decode(path: Path) -> NDArray[np.float64]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.float64)


@pytest.mark.parametrize("name", ["train", "val", "test", "train_all"])
def test_json_has_all_frames_of_all_videos(folder: Path, name: str) -> None:
    content = load(folder / f"{name}.json")
    split = name.removesuffix("_all")
    assert content["categories"] == [{"id": at, "name": label} for at, label in enumerate(CLASSES, start=1)]
    assert [video["name"] for video in content["videos"]] == [f"{split}/{n:05d}.mp4" for n in range(VIDEOS[split])]
    for key in ("videos", "images", "annotations"):
        assert [entry["id"] for entry in content[key]] == list(range(1, len(content[key]) + 1))
    frames = [(image["video_id"], image["frame_id"]) for image in content["images"]]
    assert frames == [(video, frame) for video in range(1, VIDEOS[split] + 1) for frame in range(LENGTH)]
    assert {image["file_name"].partition("#")[0] for image in content["images"]} == {
        video["name"] for video in content["videos"]
    }
    assert {(image["width"], image["height"]) for image in content["images"]} == {(64, 64)}
    clean = [frame for frame in range(LENGTH) if frame in (4, 14)]
    for image in content["images"]:
        assert image["subsets"] == ["clean" if image["frame_id"] in clean else "degraded"]
    labelled = {image["id"] for image in content["images"] if image["is_vid_train_frame"]}
    assert len(labelled) == len(frames) // (4 if name == "train" else 1)
    assert {entry["image_id"] for entry in content["annotations"]} <= labelled
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        assert 0 <= x < x + width <= 64.001
        assert 0 <= y < y + height <= 64.001
        assert content["images"][entry["image_id"] - 1]["video_id"] == entry["video_id"]
        assert 0.1 <= entry["visible"] <= 1
        assert entry["area"] == pytest.approx(width * height, abs=0.02)
    for path in (video["name"] for video in content["videos"]):
        assert len(decode(folder / path)) == LENGTH


def test_sparse_labels_are_a_part_of_all_labels(folder: Path) -> None:
    sparse, dense = (load(folder / f"{name}.json") for name in ("train", "train_all"))
    known = {image["id"] for image in sparse["images"] if image["is_vid_train_frame"]}
    without = [{k: v for k, v in entry.items() if k != "id"} for entry in dense["annotations"]]
    assert [{k: v for k, v in entry.items() if k != "id"} for entry in sparse["annotations"]] == [
        entry for entry in without if entry["image_id"] in known
    ]
    assert len(without) > 3 * len(sparse["annotations"])
    assert sparse["videos"] == dense["videos"]


def test_boxes_are_where_the_decoded_frames_show_something(folder: Path) -> None:
    """In clean frames: inside of boxes differs far from a frame of the same video that has nothing there."""
    content = load(folder / "test.json")
    inside, outside, beside = [], [], []
    for video in content["videos"]:
        frames = decode(folder / video["name"])
        plan = plan_video(make(), "test", video["id"] - 1)
        assert np.abs(frames[[4, 14]] - render_sprites(make(), "test", video["id"] - 1)[0][[4, 14]]).mean() < 8
        masks = np.zeros((LENGTH, 64, 64), np.bool_)
        for entry in content["annotations"]:
            if entry["video_id"] == video["id"]:
                frame = content["images"][entry["image_id"] - 1]["frame_id"]
                x, y, width, height = entry["bbox"]
                masks[frame, round(y) : round(y + height), round(x) : round(x + width)] = True
        assert masks.any((1, 2)).tolist() == np.any([s.shown_T for s in plan.sprites], axis=0).tolist()
        free = ~masks[[4, 14]].any(0)
        change = np.abs(frames[4] - frames[14]).mean(2)
        one = masks[4] ^ masks[14]
        inside += [*change[one]]
        outside += [*change[free]]
        beside += [*change[np.roll(one, 32, (0, 1)) & ~masks[4] & ~masks[14]]]
    assert np.mean(inside) > 3 * np.mean(outside)
    assert np.mean(beside) < 1.5 * np.mean(outside)  # negative control: boxes moved away


def test_displacements_are_those_of_the_centres(folder: Path) -> None:
    """An instance is one pass through the frame: always the same speed, class and size."""
    content = load(folder / "val.json")
    instances: dict[int, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        instances.setdefault(entry["instance_id"], []).append(entry)
    assert sorted(instances) == list(range(1, len(instances) + 1))
    objects = sum(len(plan_video(make(), "val", number).sprites) for number in range(2))
    assert len(instances) > objects  # some come back
    for entries in instances.values():
        assert len({(entry["video_id"], entry["category_id"]) for entry in entries}) == 1
        frames = [content["images"][entry["image_id"] - 1]["frame_id"] for entry in entries]
        assert frames == sorted(set(frames))
        if len(frames) > 1:
            speed = np.diff([entry["centre"][0] for entry in entries]) / np.diff(frames)
            assert np.ptp(speed) < 0.001
            assert 2 * 8 / 5 <= abs(speed[0]) + 0.001 <= 4 * 8 / 5 + 0.002


def test_truth_says_which_frames(folder: Path) -> None:
    with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [
        f"{split}/{number:05d}.mp4" for split, count in VIDEOS.items() for number in range(count)
    ]
    clean = "".join("01"[frame not in (4, 14)] for frame in range(LENGTH))
    assert {row["degraded"] for row in rows} == {clean}
    images = load(folder / "train.json")["images"]
    for number, row in enumerate(rows[:6]):
        mine = images[number * LENGTH : (number + 1) * LENGTH]
        assert row["labelled"] == "".join("01"[image["is_vid_train_frame"]] for image in mine)
    about = load(folder / "task.json")
    assert MovingSpritesConfig.model_validate(about["config"]) == make()
    assert about["key_frames"] == [4, 14]


def test_the_same_configuration_gives_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    write_sprites(tmp_path / "again", make())

    def sums(where: Path) -> dict[str, str]:
        return {str(path.relative_to(where)): sha256_of(path) for path in where.rglob("*") if path.is_file()}

    assert sums(folder) == sums(tmp_path / "again")
    assert len(set(sums(folder).values())) == 11 + 6


def test_objects_that_never_show_make_no_entry() -> None:
    """Negative control of the counts: a plan without objects has images and no annotations."""
    plan = plan_video(make(), "val", 0)
    content = annotation(make(), [("a.mp4", type(plan)((), plan.degraded, plan.labelled_T, plan.camera_T2))])
    assert (len(content["images"]), content["annotations"]) == (LENGTH, [])


# --- the data set ------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Settings:
    (tmp_path / "params.yaml").write_text("datasets:\n  - demo\nlsts: []\n")
    return Settings(root=tmp_path)


def test_the_specification_keeps_the_pixels(project: Settings) -> None:
    folder = project.root / "data" / "raw" / "fast-sprites"
    name = check_name(folder, project, force=False)
    assert name == "fast_sprites"
    written = set_up(name, folder, make(), project)
    spec_file = project.root / "data_specs" / "datasets" / "fast_sprites.yaml"
    assert written == [spec_file, project.root / "params" / "fast_sprites.yaml", project.root / "params.yaml"]
    assert yaml.safe_load((project.root / "params.yaml").read_text()) == {
        "datasets": ["demo", "fast_sprites"],
        "lsts": [],
    }
    values = yaml.safe_load(spec_file.read_text(encoding="utf-8"))
    clip = ClipPolicy.model_validate(values["clip"])
    assert (clip.representation, clip.short_side, clip.fps, clip.audio, clip.crf) == ("mp4", 64, None, "drop", 12)
    assert [part["split"] for part in values["parts"]] == ["train", "val", "test"]
    for part in values["parts"]:
        source = part["source"]
        assert source.pop("labelled", "all") == ("train" if part["split"] == "train" else "all")
        assert source == {
            "kind": "coco_video",
            "root": "data/raw/fast-sprites",
            "file": f"data/raw/fast-sprites/{part['split']}.json",
        }
        part["source"] = {"kind": "folder", "root": source["root"]}
    assert DatasetSpec.model_validate(values).labels == CLASSES


def test_names_that_are_taken_or_wrong_are_refused(project: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / "sprites"
    set_up(check_name(folder, project, force=False), folder, make(), project)
    with pytest.raises(FileExistsError, match=r"sprites\.yaml exists; give another folder, or --force"):
        check_name(folder, project, force=False)
    before = (project.root / "params.yaml").read_text()
    assert set_up(check_name(folder, project, force=True), folder, make(size=96), project) == [
        project.root / "data_specs" / "datasets" / "sprites.yaml"
    ]
    assert (project.root / "params.yaml").read_text() == before
    with pytest.raises(ValueError, match="its name becomes that of the data set and must start with a letter"):
        check_name(tmp_path / "7", project, force=False)
    (project.root / "params.yaml").write_text("lsts: []\n")
    with pytest.raises(InitError, match="has no list `datasets`"):
        check_name(tmp_path / "other", project, force=False)


def test_only_such_folders_are_replaced(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileExistsError, match="videos exists; give another folder, or --force"):
        write_sprites(folder, make())
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match=r"has no task\.json"):
        write_sprites(tmp_path / "mine", make(), force=True)
    assert list((tmp_path / "mine").iterdir()) == []
    assert len(list(tmp_path.iterdir())) == 1
