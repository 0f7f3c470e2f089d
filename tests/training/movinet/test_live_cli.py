"""`fovea stream` as a program. The network is a small one of the tests; everything else is real."""

import io
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from training.core.checkpoint import save_model
from training.movinet.live import Answer
from training.movinet.live_cli import Printer, app

COUNT = 20

NETWORK = '''
import sys, types
import numpy as np

class Brightness:
    """Two classes: the share of white, and the rest, of the last frame."""
    classes, stride, state_bytes = ("white", "black"), 1, 0
    def reset(self): pass
    def push(self, frames_THWC):
        white_T = frames_THWC.mean((1, 2, 3)) / 255
        return np.stack([white_T, 1 - white_T], 1).astype(np.float32)

def open_stream(folder, device, window):
    assert (folder / "model.json").is_file() and device == "cpu"
    return Brightness()

module = types.ModuleType("training.movinet.stream")
module.open_stream = open_stream
'''

CHILD = f"{NETWORK}\nsys.modules[module.__name__] = module\nfrom infra.cli import main\nmain()\n"


@pytest.fixture
def network(monkeypatch) -> None:
    """Put the tests' network where the family's is."""
    scope: dict[str, types.ModuleType] = {}
    exec(NETWORK, scope)
    monkeypatch.setitem(sys.modules, "training.movinet.stream", scope["module"])


def model_folder(path: Path, stage: str = "movinet_train") -> Path:
    weights = {"w": torch.zeros(1)}
    save_model(path, weights, stage=stage, dataset="tiny", config={}, classes=("white", "black"), decoder="pyav")
    return path


@pytest.fixture
def clip(tmp_path, mp4_encoder) -> Path:
    """20 frames at 10 per second: dark, then bright from frame 10 on."""
    frames = np.random.default_rng(0).integers(0, 40, (COUNT, 64, 64, 3)).astype(np.uint8)
    frames[10:] += 200
    mp4_encoder(frames, tmp_path / "clip.mp4")
    return tmp_path / "clip.mp4"


def stream(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_json_lines_and_the_summary_last(network, clip, tmp_path):
    result = stream(model_folder(tmp_path / "m"), clip, "--json", "--top", 1, "--chunk", 3)
    assert result.exit_code == 0, result.output
    *answers, summary = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["kind"] for answer in answers] == ["answer"] * COUNT
    assert [answer["classes"] for answer in answers] == [["black"]] * 10 + [["white"]] * 10
    assert (summary["kind"], summary["ended"], summary["selected"]) == ("summary", "end of stream", COUNT)
    assert (summary["dropped"], summary["overlay"]) == (0, None)


def test_lines_for_people_come_per_change_and_per_second(network, clip, tmp_path):
    result = stream(model_folder(tmp_path / "m"), clip, "--reset-every", 0.5)
    lines = result.stdout.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["0.0", "s", "black"], ["1.0", "s", "white"]]
    assert "end of stream after 1.9 s: 20 frames read, 20 seen by the network, 0 dropped" in lines[2]
    assert "3 resets" in lines[2]
    assert len(lines) == 5
    assert "model:" in result.stderr


def test_overlay_is_written_and_named(network, clip, tmp_path):
    target = tmp_path / "o.mp4"
    result = stream(model_folder(tmp_path / "m"), clip, "--overlay", target, "--max-seconds", 1.2)
    assert result.exit_code == 0, result.output
    assert f"{target}: 12 pictures at 10/s" in result.stdout
    with av.open(str(target)) as container:
        assert len(list(container.decode(video=0))) == 12


def test_cut_off_source_ends_with_answers_summary_and_error(network, clip, tmp_path):
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 3 // 4])
    result = stream(model_folder(tmp_path / "m"), clip, "--json", "--overlay", tmp_path / "o.mp4")
    assert result.exit_code == 1
    *answers, summary = [json.loads(line) for line in result.stdout.splitlines()]
    assert summary["ended"] == "error"
    assert summary["overlay"]["pictures"] == len(answers) > 0
    assert "error: " in result.stderr
    assert "clip.mp4: ends after" in result.stderr
    assert (tmp_path / "o.mp4").is_file()


def test_errors_are_one_line(clip, tmp_path, monkeypatch):
    other = model_folder(tmp_path / "other", stage="adafocus_finetune")
    result = stream(other, clip)
    assert result.exit_code == 1
    assert "is a model of stage adafocus_finetune, which sees whole clips" in result.stderr
    assert "`fovea predict`" in result.stderr
    for arguments, words in (
        ((other, tmp_path / "no.mp4"), "no.mp4 does not exist"),
        ((other, clip, "--overlay", "o.avi"), "name it so"),
        ((other, clip, "--option", "framerate"), "must look like key=value"),
    ):
        result = stream(*arguments)
        assert (result.exit_code, words in result.stderr) == (1, True), result.stderr
        assert "Traceback" not in result.output
    # A version without the family's streaming module says so.
    monkeypatch.setitem(sys.modules, "training.movinet.stream", None)
    result = stream(model_folder(tmp_path / "m"), clip)
    assert "no streaming networks" in result.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_that_is_renewed():
    out = Terminal()
    printer = Printer(out, as_json=False)
    for number in range(5):
        printer.answer(Answer(number / 10, number, ("waving",), (0.9,), 0, 1.0, 1.0))
    assert out.getvalue().count("\r") == 5
    assert "\n" not in out.getvalue()
    assert max(len(line) for line in out.getvalue().split("\r")) <= 80 + len("\x1b[K")


def child(*arguments: object, **settings) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, "stream", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        **settings,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interruption_ends_in_order_and_leaves_a_playable_overlay(tmp_path, mp4_encoder, number):
    """Ctrl-C reaches the whole process group of the terminal, ffmpeg too if it were in it."""
    mp4_encoder(np.full((1200, 64, 64, 3), 120, np.uint8), tmp_path / "long.mp4")
    target = tmp_path / "o.mp4"
    arguments = (model_folder(tmp_path / "m"), tmp_path / "long.mp4", "--json", "--realtime", "--overlay", target)
    with child(*arguments, start_new_session=True) as process:
        assert process.stdout is not None
        first = [json.loads(process.stdout.readline()) for _ in range(5)]
        assert [answer["kind"] for answer in first] == ["answer"] * 5
        os.killpg(process.pid, number)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    summary = json.loads(rest.splitlines()[-1])
    assert (summary["kind"], summary["ended"]) == ("summary", "interrupted")
    assert summary["read"] < 1200
    with av.open(str(target)) as container:
        assert len(list(container.decode(video=0))) == summary["overlay"]["pictures"] >= 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.mp4", "m", "o.mp4"]
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(tmp_path, mp4_encoder):
    mp4_encoder(np.full((1200, 64, 64, 3), 120, np.uint8), tmp_path / "long.mp4")
    with child(model_folder(tmp_path / "m"), tmp_path / "long.mp4", "--json") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
