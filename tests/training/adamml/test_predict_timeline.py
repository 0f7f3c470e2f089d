"""A saved model that chooses: `fovea predict` says what it used, and its overlay shows it."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from imageio_ffmpeg import get_ffmpeg_exe
from typer.testing import CliRunner

from training.core.answers import Result, choices_of
from training.core.checkpoint import save_model
from training.core.config import validate
from training.core.overlay_timeline import ROWS, Band, Timeline
from training.core.prediction import predict_overlay
from training.core.registry_cli import app
from training.core.serving import VideoClassifier, signature
from training.core.stage import StageInputs
from training.core.system import Prediction
from training.registry import all_stages

PARAMS = Path(__file__).parents[2] / "params.tiny.yaml"
CLASSES = ("red", "green", "blue")


def video(path: Path, sound: bool, side: int = 64, frames: int = 24) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        tone = container.add_stream("aac", rate=16000) if sound else None
        rng = np.random.default_rng(0)
        for _ in range(frames):
            picture = rng.integers(60, 120, (side, side, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        if tone is not None:
            for start in range(0, frames * 16000 // 12, 1024):
                wave = np.sin(2 * np.pi * 440 * np.arange(start, start + 1024) / 16000).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, start
                container.mux(tone.encode(frame))
            container.mux(tone.encode())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model with random weights whose policy always listens and never looks."""
    stage = all_stages()["adamml_finetune"]
    params = yaml.safe_load(PARAMS.read_text())
    values = params["adamml_finetune"] | {"price": 1.0}
    values |= {field: params[section] for field, section in stage.shared.items()}
    values["data"] = values["data"] | {"decoder": "pyav"}
    config = validate(stage.config, values, "tiny")
    torch.manual_seed(0)
    system = stage.build(StageInputs(config, CLASSES, {}))
    heads = system.net.policy.heads
    with torch.no_grad():
        heads.weight.zero_()
        heads.bias.copy_(torch.tensor([4.0, -4.0, -4.0, 4.0]))  # (skip, use) of rgb, then of audio
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(
        folder,
        system.export_state(),
        stage=stage.name,
        dataset="tiny",
        config=config.model_dump(mode="json"),
        classes=CLASSES,
        decoder="pyav",
    )
    return folder


def test_json_says_what_was_used_and_the_served_table_does_not(model, tmp_path):
    loud, silent = video(tmp_path / "loud.mp4", sound=True), video(tmp_path / "silent.mp4", sound=False)
    run = CliRunner().invoke(app, ["predict", str(model), str(tmp_path), "--json"])
    assert run.exit_code == 0, run.output
    rows = {Path(row["video"]).name: row for row in map(json.loads, run.stdout.strip().splitlines())}
    assert rows["loud.mp4"]["choices"] == {"rgb": [0, 0, 0], "audio": [1, 1, 1]}
    assert rows["silent.mp4"]["choices"] == {"rgb": [0, 0, 0], "audio": [0, 0, 0]}  # nothing to listen to
    table = VideoClassifier(model).predict_frame([str(loud), str(silent)])
    assert list(table.columns) == signature().outputs.input_names()
    assert table["label"].tolist() == [rows["loud.mp4"]["label"], rows["silent.mp4"]["label"]]


@pytest.mark.parametrize("sound", [True, False])
def test_overlay_shows_what_was_used(model, tmp_path, sound):
    source, target = video(tmp_path / "in.mp4", sound), tmp_path / "o.mp4"
    result, written = predict_overlay(VideoClassifier(model), source, target, top=1, ffmpeg_program=get_ffmpeg_exe())
    assert result.choices["audio"] == (int(sound),) * 3
    assert (written.frames, written.sound) == (24, "copied" if sound else "none")
    with av.open(str(target)) as container:
        frame = next(iter(container.decode(video=0))).to_ndarray(format="rgb24")
    band = Band(Timeline(("rgb", "audio"), np.array([[0, 1], [1, 2], [2, 3.0]]), np.zeros((3, 2), bool)), 256, 256)
    assert frame.shape == (256 + band.height, 256, 3)
    for row, filled in ((0, False), (1, sound)):
        y0, x0, y1, x1 = band.cell(1, row)
        cell = frame[256 + y0 + 3 : 256 + y1 - 3, x0 + 4 : x1 - 4].astype(int)
        share = float((np.abs(cell - np.array(ROWS[row])).sum(-1) < 90).mean())
        assert share > 0.8 if filled else share < 0.1


def test_models_that_do_not_choose_say_nothing():
    plain = Prediction(torch.ones(1, 3) / 3)
    assert choices_of(plain, ()) == {}
    assert choices_of(plain, ("rgb",)) == {}
    chosen = Prediction(torch.ones(1, 3) / 3, extras={"choices": torch.tensor([[[1, 0], [1, 1]]])})
    assert choices_of(chosen, ("rgb", "audio")) == {"rgb": (1, 1), "audio": (0, 1)}
    assert choices_of(chosen, ()) == {}
    with pytest.raises(ValueError, match=r"shape \(1, 2, 2\); with choice_names \['rgb'\]"):
        choices_of(chosen, ("rgb",))
    assert "choices" not in Result("v", ("a",), (1.0,), choices={"rgb": (1,)}).as_dict()
