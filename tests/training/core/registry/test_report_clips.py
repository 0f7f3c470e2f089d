"""Film strips of models that see clips of a video, hear it only, or see its motion."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from infra.settings import Settings
from training.core.config import DataConfig, SoundConfig, TransformConfig
from training.core.decode import DecodeError
from training.core.registration import register
from training.core.report import write_report
from training.core.report_clips import input_frames, pictures_of, strips
from training.core.run import run_stage
from training.core.sample_reader import clip_of, load_pictures, read_samples
from training.core.sampling import clip_positions
from training.core.stage import StageRef
from training.registry import all_stages

TESTS = Path(__file__).resolve().parents[3]
BLOCKS: dict[str, dict[str, Any]] = {
    "looks": {"pictures": "positions"},
    "listens": {"pictures": "none", "sound": SoundConfig(rate=24000, samples=4800)},
    "differences": {"stack": 3},
    "flow": {"stack": 3, "pictures": "none", "flow": True},
}


def config(**changes: Any) -> DataConfig:
    transform = TransformConfig(size=32, train_crop="center", eval_short_side=32, flip=False, normalise="imagenet")
    base = {"num_frames": 2, "sampling": "clips", "stride": 2, "eval_clips": 3, "batch_size": 1, "transform": transform}
    return DataConfig(**{**base, **changes})


@pytest.mark.parametrize("name", BLOCKS)
def test_first_frame_of_each_clip_is_shown(tiny_shards, frame_number, name):
    cfg = config(**BLOCKS[name])
    # Square ones of 13 frames: the crop leaves the blocks that say the number.
    samples = read_samples(tiny_shards, ["clip-027", "clip-031"], "val")
    places = clip_positions(13, cfg, train=False, seed=0)[:, 0].tolist()
    assert len(set(places)) == 3
    for sample in samples.values():
        frames = input_frames(clip_of(sample, pictures_of(cfg)), cfg, "pyav")
        assert frames.shape == (3, 32, 32, 3)
        assert [frame_number(frame) for frame in frames] == places
    arrays = {
        "key": np.array(list(samples)),
        "label": np.array([0, 0]),
        "scores": np.array([[0.7, 0.2, 0.1]] * 2),
        "classes": np.array(["blue", "green", "red"]),
    }
    made = strips([0, 1], samples, arrays, cfg, "pyav", 8)
    assert [strip.alt for strip in made] == ["frames of clip-027", "frames of clip-031"]
    assert all(strip.image.startswith("data:image/jpeg;base64,") for strip in made)


def test_without_a_block_of_its_own_there_is_nothing_to_show(tiny_shards):
    """The control: what such a network reads has no pictures."""
    sample = read_samples(tiny_shards, ["clip-024"], "val")["clip-024"]
    listens = config(**BLOCKS["listens"])
    assert load_pictures(clip_of(sample, listens), listens, decoder="pyav").frames_BTHWC.shape[1] == 0
    other = config().model_copy(update={"sampling": "segments", "eval_clips": 1})
    assert pictures_of(other) is other
    with pytest.raises(DecodeError):
        input_frames(b"no video", listens, "pyav")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("modalities", [("rgb", "audio"), ("audio",)], ids="+".join)
def test_pages_of_models_that_choose_and_that_listen(tiny_shards, tmp_path, modalities):
    """From training to the page: a video of which segments were used, and one that is only heard."""
    params = yaml.safe_load((TESTS / "params.tiny.yaml").read_text())
    lists = yaml.safe_load((TESTS / "params.yaml").read_text())
    model = params["adamml_model"]
    model["modalities"] = list(modalities)
    for field in ("nets", "policy_nets"):
        model[field] = {name: model[field][name] for name in modalities}
    params["adamml_joint"]["weights"] = dict.fromkeys(modalities, 1.0)
    lists["adamml_grid"]["modality"] = list(modalities)
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "tiny.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(lists))
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "data" / "manifests").mkdir(parents=True)
    (tmp_path / "data" / "manifests" / "tiny.csv").write_text("part,key\n" + "main,a\n" * 48)
    shutil.copytree(tiny_shards, tmp_path / "data" / "shards" / "tiny")
    settings = Settings(root=tmp_path, train_workers=0, train_cpus_per_worker=1, progress=False, device="cpu")
    names = [name for name in all_stages() if name.startswith("adamml_") and name != "adamml_report"]
    refs = [ref for name in names for ref in all_stages()[name].instances("tiny", tmp_path)]
    for ref in refs:
        run_stage(StageRef.parse(str(ref)), settings)
    register(settings, refs[-1])
    write_report(settings)
    (page,) = settings.reports.glob("adamml-tiny-*.html")
    text = page.read_text()
    assert "frames of clip-" in text
    assert len(re.findall("data:image/jpeg;base64", text)) >= 1
    assert "adamml_eval" in text
