"""`python -m tasks` as a process: light start, exit codes, messages without traceback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_specs.load import load_spec
from infra.settings import Settings
from tasks.ops.listing import read_manifest, write_manifest

ROOT = Path(__file__).parents[2]


def run(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"FOVEA_ROOT": str(root), "FOVEA_PROGRESS": "false"}
    return subprocess.run(
        [sys.executable, "-m", "tasks", *arguments], cwd=root, env=env, capture_output=True, text=True, timeout=80
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data_specs" / "datasets"
    folder.mkdir(parents=True)
    (folder / "plain.yaml").write_text(
        "name: plain\nversion: '1'\nlicence: CC0-1.0\nlabels: [a]\n"
        "parts: [{name: main, source: {kind: folder, root: raw}, split: train}]\n"
        "clip: {representation: mp4, short_side: 32, fps: null, audio: drop}\n"
        "shards: {samples_per_shard: 4, seed: 0}\nmax_reject_share: 0\n"
    )
    (tmp_path / "raw" / "a").mkdir(parents=True)
    (tmp_path / "raw" / "a" / "x.mp4").write_bytes(b"bytes")
    return tmp_path


def test_manifest(root: Path) -> None:
    done = run(root, "manifest", "plain")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path == root / "data" / "manifests" / "plain.csv"
    assert [row.path for row in read_manifest(path)] == ["a/x.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("manifest", "plane"), "error: no data set 'plane'"),
        (("data", "retry", "plain"), "error: say what to retry"),
        (("data", "retry", "plain", "--reason", "corupt"), "did you mean 'corrupt'"),
        (("data", "init", "nowhere"), "nowhere does not exist"),
        (("data", "init", "raw", "--where", "x"), "must be column=value"),
        (("data", "synth", "raw", "raw"), "error: no task 'raw'"),
        (("data", "synth", "late", "raw"), "raw exists; give another folder, or --force"),
        (("data", "synth", "late", "raw", "--force"), "raw has no task.json"),
        (("data", "synth", "speed", "new", "--frames", "8"), "error: num_frames 8 does not fit task 'speed'"),
        (("data", "synth", "late", "new", "--segments", "3"), "error: segments: no setting of task 'late'"),
        (("data", "synth", "sound_or_picture", "new", "--frames", "40"), "num_frames: no setting of task 'sound_or_"),
        (("data", "synth", "sound_or_picture", "new", "--fps", "8"), "segment_frames 8 at fps 8 are 1.00 s"),
        (
            ("data", "synth", "moving_sprites", "new", "--segments", "2"),
            "segments: no setting of task 'moving_sprites'",
        ),
        (("data", "synth", "moving_sprites", "new", "--interval", "5"), "interval and schedule are settings of regime"),
        (("data", "synth", "moving_sprites", "plain"), "plain.yaml exists; give another folder, or --force"),
    ],
)
def test_errors_are_messages(root: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(root, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_check_has_an_exit_code(root: Path) -> None:
    assert run(root, "data", "check", "plain").returncode == 1  # not listed yet
    write_manifest(load_spec("plain", root / "data_specs" / "datasets"), Settings(root=root))
    done = run(root, "data", "check", "plain")
    assert done.returncode == 0, done.stdout
    assert "not_a_video" in done.stdout


def test_list(root: Path) -> None:
    lines = run(root, "data", "list").stdout.splitlines()
    assert any(line.split()[:4] == ["plain", "1", "classes", "specified"] for line in lines)
    assert any(line.startswith("ucf101") for line in lines)


def test_listing_starts_light(root: Path) -> None:
    code = (
        "import sys; sys.argv = ['tasks', 'manifest', 'plain']\nfrom tasks.__main__ import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "print(sorted({'torch', 'ray', 'prefect', 'av', 'boto3', 'numpy', 'mlflow'} & set(sys.modules)))"
    )
    env = os.environ | {"FOVEA_ROOT": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, timeout=80)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_controlled_task_becomes_a_data_set(root: Path) -> None:
    numbers = ("--size", "32", "--frames", "16", "--train", "8", "--val", "4", "--test", "4", "--seed", "3")
    done = run(root, "data", "synth", "speed", "data/raw/pace", *numbers)
    assert done.returncode == 0, done.stderr
    assert "16 videos of 4 classes in data/raw/pace" in done.stdout
    shutil.copytree(ROOT / "params" / "templates", root / "params" / "templates")
    shutil.copy(ROOT / "params.yaml", root)
    done = run(root, "data", "init", "data/raw/pace", "--system", "resnet_rs", "--yes")
    assert done.returncode == 0, done.stderr
    done = run(root, "data", "add-system", "pace", "adafocus")
    assert done.returncode == 0, done.stderr
    lists = yaml.safe_load((root / "params.yaml").read_text())
    assert [lists[name][-1] for name in ("datasets", "resnet_rs", "adafocus")] == ["pace"] * 3
    sections = yaml.safe_load((root / "params" / "pace.yaml").read_text())
    assert {"resnet_rs_fit", "resnet_rs_search", "adafocus_policy"} <= set(sections)
    spec = load_spec("pace", root / "data_specs" / "datasets")
    assert spec.labels == ("speed_1", "speed_3", "speed_5", "speed_7")
    assert spec.parts[0].split == "official"
    assert (spec.clip.short_side, spec.clip.fps) == (32, None)
    rows = read_manifest(write_manifest(spec, Settings(root=root)))
    splits = [(row.split, row.label) for row in rows]
    assert {split: sum(s == split for s, _ in splits) for split in ("train", "val", "test")} == {
        "train": 8,
        "val": 4,
        "test": 4,
    }
    assert len(set(splits)) == 12  # every class in every split
    assert all(row.path.startswith(f"{row.split}/{row.label}/") for row in rows)


def test_videos_with_sound_become_a_data_set(root: Path) -> None:
    numbers = ("--size", "32", "--segments", "2", "--train", "12", "--val", "12", "--test", "12", "--silent", "0.3")
    done = run(root, "data", "synth", "sound_or_picture", "data/raw/either", *numbers)
    assert done.returncode == 0, done.stderr
    assert "36 videos of 12 classes in data/raw/either" in done.stdout
    shutil.copytree(ROOT / "params" / "templates", root / "params" / "templates")
    shutil.copy(ROOT / "params.yaml", root)
    done = run(root, "data", "init", "data/raw/either", "--yes")
    assert done.returncode == 0, done.stderr
    spec = load_spec("either", root / "data_specs" / "datasets")
    assert (len(spec.labels), spec.parts[0].split, spec.clip.audio, spec.clip.fps) == (12, "official", "keep", None)
    rows = read_manifest(write_manifest(spec, Settings(root=root)))
    assert sorted((row.split, row.label) for row in rows) == sorted(
        (split, label) for split in ("train", "val", "test") for label in spec.labels
    )


def test_videos_with_boxes_become_a_data_set(root: Path) -> None:
    shutil.copy(ROOT / "params.yaml", root)
    numbers = ("--size", "64", "--frames", "8", "--train", "2", "--val", "1", "--test", "1", "--objects", "2", "2")
    settings = ("--regime", "non_key", "--interval", "4", "--blur", "3", "9", "--label-every", "2")
    done = run(root, "data", "synth", "moving_sprites", "data/raw/sprites", *numbers, *settings)
    assert done.returncode == 0, done.stderr
    assert "4 videos of 6 classes in data/raw/sprites" in done.stdout
    assert "fovea data add-system sprites lsts" in done.stdout
    checked = run(root, "data", "check", "sprites")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    config = json.loads((root / "data" / "raw" / "sprites" / "task.json").read_text())["config"]
    told = {"size": 64, "num_frames": 8, "objects": [2, 2], "interval": 4, "blur": [3.0, 9.0], "label_every": 2}
    assert config | told == config
    assert yaml.safe_load((root / "params.yaml").read_text())["datasets"][-1] == "sprites"
    values = yaml.safe_load((root / "data_specs" / "datasets" / "sprites.yaml").read_text())
    assert (values["name"], len(values["parts"]), values["clip"]["short_side"]) == ("sprites", 3, 64)
    again = run(root, "data", "synth", "moving_sprites", "data/raw/sprites", *numbers, *settings)
    assert again.returncode == 1
    assert "sprites.yaml exists; give another folder, or --force" in again.stderr
    done = run(root, "data", "synth", "moving_sprites", "data/raw/sprites", *numbers, "--force")
    assert done.returncode == 0, done.stderr
    assert json.loads((root / "data" / "raw" / "sprites" / "task.json").read_text())["config"]["regime"] == "clean"


def test_boxes_of_sprites_are_listed(root: Path) -> None:
    numbers = ("--size", "64", "--frames", "8", "--train", "2", "--val", "1", "--test", "1")
    assert run(root, "data", "synth", "moving_sprites", "data/raw/sprites", *numbers).returncode == 0
    spec = load_spec("sprites", root / "data_specs" / "datasets")
    rows = read_manifest(write_manifest(spec, Settings(root=root)))
    assert sorted((row.split, row.path) for row in rows) == [
        ("test", "test/00000.mp4"),
        ("train", "train/00000.mp4"),
        ("train", "train/00001.mp4"),
        ("val", "val/00000.mp4"),
    ]
    assert all(row.size and row.checksum for row in rows)
