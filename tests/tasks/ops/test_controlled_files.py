"""Folders of controlled tasks: the videos still show their class, and a folder is whole or not there."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from data_specs.files import sha256_of
from tasks.ops.controlled import DETAIL_PITCH, ControlledConfig, Task, class_names
from tasks.ops.controlled_files import write_task
from tasks.ops.controlled_render import render

Array = NDArray[np.float64]
Folders = Callable[[Task], Path]
Oracle = Callable[[Task, Array], int]


def make(task: Task, **fields: object) -> ControlledConfig:
    base = {"task": task, "num_train": 8, "num_val": 4, "num_test": 4, "num_frames": 16}
    return ControlledConfig.model_validate(base | {"size": 48 if task == "detail" else 32} | fields)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a task, made once."""
    base = tmp_path_factory.mktemp("controlled")

    def folder(task: Task) -> Path:
        if not (base / task).exists():
            assert write_task(base / task, make(task)) == 16
        return base / task

    return folder


def decoded(path: Path, form: str = "rgb24") -> Array:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format=form) for frame in container.decode(video=0)]).astype(np.float64)


@pytest.mark.parametrize("task", ["flicker", "order", "detail"])
def test_the_encoder_keeps_the_class(task: Task, folder_of: Folders, told: Oracle) -> None:
    """From the files alone; with the frames in another order, or the pixels at half size, it is lost."""
    names, rng = class_names(task), np.random.default_rng(0)
    right = wrong = 0
    videos = sorted(folder_of(task).glob("*/*/*.mp4"))
    for path in videos:
        frames = decoded(path)
        label = names.index(path.parent.name)
        right += told(task, frames) == label
        if task == "detail":
            small = frames.reshape(len(frames), 24, 2, 24, 2, 3).mean((2, 4))
            spoilt = small.repeat(2, axis=1).repeat(2, axis=2)
        else:
            spoilt = frames[rng.permutation(len(frames))]
        wrong += told(task, spoilt) != label
    assert right == len(videos) == 16
    assert wrong >= 4


def test_the_encoder_keeps_fine_stripes(folder_of: Folders, stripe_powers: Callable[[Array, float], Array]) -> None:
    """Luma holds a pitch of three pixels: at least 85 % of its amplitude is there in every video."""
    folder = folder_of("detail")
    for number in range(8):
        frames, label, _ = render(make("detail"), "train", number)
        path = folder / "train" / class_names("detail")[label] / f"{number:05d}.mp4"
        # Studio range: 219 levels stand for 255.
        luma = decoded(path, "yuv420p")[:, :48, :48] * 255 / 219
        before, after = (stripe_powers(grey.mean(0), DETAIL_PITCH)[label] for grey in (frames[..., 1], luma))
        assert 0.85 < after / before < 1.15


def test_files_tell_the_truth(folder_of: Folders) -> None:
    folder = folder_of("order")
    about = json.loads((folder / "task.json").read_text())
    assert ControlledConfig.model_validate(about["config"]) == make("order")
    assert about["classes"] == ["red_blue", "blue_red"]
    with (folder / about["truth"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {str(p.relative_to(folder)) for p in folder.glob("*/*/*.mp4")}
    assert [row["path"].split("/")[0] for row in rows] == ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    for row in rows:
        frames = decoded(folder / row["path"])
        assert row["path"].split("/")[1] == row["class"]
        y, x, side = (int(row[name]) for name in ("y", "x", "side"))
        sprite = frames[:, y : y + side, x : x + side]
        tint = (sprite[..., 0] - sprite[..., 2]).mean((1, 2))
        assert sorted([int(tint.argmax()), int(tint.argmin())]) == [int(row["first"]), int(row["second"])]
        assert int(row["second"]) - int(row["first"]) - 1 == int(row["gap"])


def test_the_same_configuration_gives_the_same_bytes(folder_of: Folders, tmp_path: Path) -> None:
    write_task(tmp_path / "again", make("order"))
    write_task(tmp_path / "other", make("order", seed=1))

    def sums(folder: Path) -> dict[str, str]:
        return {str(p.relative_to(folder)): sha256_of(p) for p in folder.rglob("*") if p.is_file()}

    once = sums(folder_of("order"))
    assert sums(tmp_path / "again") == once
    assert not set(sums(tmp_path / "other").values()) & set(once.values())


def test_what_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    out, config = tmp_path / "late", make("late", num_train=2, num_val=2, num_test=2)
    write_task(out, config)
    before = (out / "task.json").read_text()
    with pytest.raises(FileExistsError, match="late exists; give another folder, or --force to replace it"):
        write_task(out, make("order", num_train=2, num_val=2, num_test=2))
    assert (out / "task.json").read_text() == before
    assert write_task(out, make("order", num_train=2, num_val=2, num_test=2), force=True) == 6
    assert {p.name for p in out.glob("train/*")} == {"red_blue", "blue_red"}
    assert [p.name for p in tmp_path.iterdir()] == ["late"]


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "mine.mp4").write_bytes(b"x")
    with pytest.raises(FileExistsError, match=r"videos has no task\.json, so it is no controlled task"):
        write_task(tmp_path / "videos", make("late"), force=True)
    assert (tmp_path / "videos" / "mine.mp4").exists()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        write_task(tmp_path / "late", make("late"), progress=stop)
    assert seen == [(1, 16), (2, 16), (3, 16)]
    assert list(tmp_path.iterdir()) == []
