"""`fovea stream` as a program, with a small stream net whose answer is about brightness."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from training.movinet.live.cli import Printer, app
from training.movinet.live.session import Answer
from training.movinet.stream import open_stream

COUNT = 20
REAL_DATA = Path(os.environ.get("FOVEA_TEST_DATA", "../shared/data")).resolve() / "room_actions_untrimmed"


@pytest.fixture
def clip(tmp_path, mp4_encoder, draw_noise) -> Path:
    """20 frames at 10 per second: dark, then bright from frame 10 on."""
    frames = np.concatenate([draw_noise(0, 10), draw_noise(200, COUNT - 10)])
    mp4_encoder(frames, tmp_path / "clip.mp4")
    return tmp_path / "clip.mp4"


def stream(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("window", [None, 2])
def test_json_lines_are_the_nets_answers_and_the_summary_is_last(stream_model, clip, window):
    settings = () if window is None else ("--window", window)
    result = stream(stream_model, clip, "--json", "--top", 2, "--chunk", 3, *settings)
    assert result.exit_code == 0, result.output
    *answers, summary = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["kind"] for answer in answers] == ["answer"] * COUNT
    scores = [dict(zip(answer["classes"], answer["scores"], strict=True)) for answer in answers]
    expected = open_stream(stream_model, window=window).push(decoded(clip))
    np.testing.assert_allclose([[row["white"], row["black"]] for row in scores], expected, atol=2e-5)
    said = [answer["classes"][0] for answer in answers]
    assert said[:10] == ["black"] * 10
    # With a window the net soon sees what is new; the mean over everything still leans to what was.
    assert said[12] == ("black" if window is None else "white")
    assert (summary["kind"], summary["ended"], summary["selected"]) == ("summary", "end of stream", COUNT)
    assert (summary["dropped"], summary["overlay"], summary["timeline"]) == (0, None, None)
    assert summary["state_bytes"] == open_stream(stream_model, window=window).state_bytes


def test_lines_for_people_come_per_change_and_per_second(stream_model, clip):
    result = stream(stream_model, clip, "--reset-every", 0.5)
    lines = result.stdout.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["0.0", "s", "black"], ["1.0", "s", "white"]]
    assert "end of stream after 1.9 s: 20 frames read, 20 seen by the network, 0 dropped" in lines[2]
    assert "3 resets" in lines[2]
    assert len(lines) == 5
    assert f"model: {stream_model}" in result.stderr


def test_overlay_is_written_and_named(stream_model, clip, tmp_path):
    target = tmp_path / "o.mp4"
    result = stream(stream_model, clip, "--overlay", target, "--max-seconds", 1.2)
    assert result.exit_code == 0, result.output
    assert f"{target}: 12 pictures at 10/s" in result.stdout
    assert len(decoded(target)) == 12


def test_cut_off_source_ends_with_answers_summary_and_error(stream_model, clip, tmp_path, labels):
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 3 // 4])
    page = tmp_path / "p.html"
    result = stream(stream_model, clip, "--json", "--overlay", tmp_path / "o.mp4", "--segments", labels, "--page", page)
    assert result.exit_code == 1
    *answers, summary = [json.loads(line) for line in result.stdout.splitlines()]
    assert summary["ended"] == "error"
    assert summary["overlay"]["pictures"] == summary["timeline"]["frames"] == len(answers) > 0
    assert "error: " in result.stderr
    assert "clip.mp4: ends after" in result.stderr
    assert (tmp_path / "o.mp4").is_file()
    assert "error, after" in page.read_text()


def test_errors_are_one_line(clip, tmp_path, make_model, stream_model):
    other = make_model(tmp_path / "other", "resnet_rs_train")
    base = make_model(tmp_path / "base", "movinet_train")
    for arguments, words in (
        ((other, clip), "is a model of stage resnet_rs_train, which sees whole clips; `fovea stream` needs one of the"),
        ((other, clip), "`fovea predict`"),
        ((base, clip), f"{base}: a base MoViNet sees whole clips and cannot stream"),
        ((stream_model, tmp_path / "no.mp4"), "no.mp4 does not exist"),
        ((stream_model, clip, "--overlay", "o.avi"), "name it so"),
        ((stream_model, clip, "--option", "framerate"), "must look like key=value"),
        ((stream_model, clip, "--page", "p.html"), "--video, --names and --page go with --segments"),
    ):
        result = stream(*arguments)
        assert (result.exit_code, words in result.stderr, result.stdout) == (1, True, ""), result.stderr
        assert "Traceback" not in result.output


@pytest.fixture
def labels(tmp_path) -> Path:
    """The clip's first half is dark, 0.2 s later its rest is bright; 1.5 to 1.7 s is something else."""
    rows = [[[0, 1.0], "night"], [[1.2, 1.5], "white"], [[1.5, 1.7], "fog"], [[1.7, 9], "white"]]
    annotations = [{"segment": segment, "label": label} for segment, label in rows]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"database": {"clip": {"annotations": annotations}}}))
    (tmp_path / "names.yaml").write_text("night: black\n")
    return path


@pytest.mark.parametrize("as_json", [True, False])
def test_segments_give_metrics_and_a_page(stream_model, clip, labels, tmp_path, monkeypatch, as_json):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    extra = ("--json",) if as_json else ()
    arguments = (stream_model, clip, "--segments", labels, "--names", tmp_path / "names.yaml", "--window", 1)
    result = stream(*arguments, *extra)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["clip.timeline.html", "clip.timeline.json"]
    content = json.loads(Path("clip.timeline.json").read_text())
    # 10 dark frames; 12 to 14 and 17 to 19 are labelled as bright.
    metrics = {"frames": 20, "labelled_frames": 16, "frame_top1": 1, "frame_mean_class": 1, "majority_top1": 10 / 16}
    assert content["metrics"] == metrics
    truths = [row["truth"] for row in content["answers"]]
    assert truths == ["black"] * 10 + [None] * 2 + ["white"] * 3 + [None] * 2 + ["white"] * 3
    page = Path("clip.timeline.html").read_text()
    for words in (
        "<h1>Timeline of clip.mp4</h1>",
        "100.0 %",
        str(stream_model),
        "not counted: fog",
        "1 frames at most",
    ):
        assert words in page
    if as_json:
        summary = json.loads(result.stdout.splitlines()[-1])
        assert summary["timeline"] == {"page": "clip.timeline.html", **metrics}
    else:
        assert result.stdout.splitlines()[-1] == (
            "clip.timeline.html: 100.0% of 16 labelled frames right, mean over classes 100.0%; "
            "the commonest class would get 62.5%"
        )


def test_accuracy_falls_where_labels_and_answers_part(stream_model, clip, labels, tmp_path):
    """The control: with the classes exchanged nothing is right; and a run that ends early has nothing to judge."""
    (tmp_path / "names.yaml").write_text("night: white\nwhite: black\n")
    arguments = (stream_model, clip, "--segments", labels, "--names", tmp_path / "names.yaml", "--window", 1, "--json")
    page = ("--page", tmp_path / "p.html")
    summary = json.loads(stream(*arguments, *page).stdout.splitlines()[-1])
    assert (summary["timeline"]["frame_top1"], summary["timeline"]["labelled_frames"]) == (0, 16)
    labels.write_text(labels.read_text().replace("[0, 1.0]", "[0.9, 1.0]"))
    result = stream(*arguments[:-1], *page, "--max-seconds", 0.5)
    assert "none of 5 answers lies in a segment whose label is a class" in result.stdout.splitlines()[-1]
    assert "None of the 5 answers" in (tmp_path / "p.html").read_text()


def test_errors_of_segments_come_before_the_first_answer(stream_model, clip, labels, tmp_path):
    names, page = tmp_path / "names.yaml", tmp_path / "p.html"
    (tmp_path / "strange.yaml").write_text("night: grey\n")
    (tmp_path / "bad.json").write_text(labels.read_text().replace("[1.2, 1.5]", "[1.2, 1.1]"))
    for arguments, words in (
        (("--segments", tmp_path / "no.json"), "no.json cannot be read"),
        (
            ("--segments", tmp_path / "bad.json"),
            "bad.json: database.clip.annotations[1].segment (white) must end after",
        ),
        (("--segments", labels, "--video", "other"), "labels.json: `database` has no video 'other', but clip"),
        (("--segments", labels, "--names", tmp_path / "strange.yaml"), "night: grey is no class of the model"),
        (("--segments", labels, "--names", labels), "must be two texts"),
        (("--segments", labels, "--names", names, "--page", tmp_path / "labels.html"), "would replace"),
        (("--segments", labels, "--names", names, "--page", tmp_path / "p.txt"), "ends in .html"),
    ):
        # The last --page of a command is the one that counts.
        result = stream(stream_model, clip, "--json", "--page", page, *arguments)
        assert (result.exit_code, words in result.stderr, result.stdout) == (1, True, ""), result.stderr
        assert "Traceback" not in result.output
    assert not page.exists()


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA.exists(), reason="the untrimmed videos are not here")
def test_a_real_untrimmed_video(tmp_path, make_model):
    classes = ("falling", "lying_down", "lying_on_floor", "sitting_down", "standing_up", "walking")
    (tmp_path / "names.yaml").write_text(
        "{walk: walking, sitdown: sitting_down, lying: lying_down, standup: standing_up, falled: lying_on_floor}"
    )
    (source,) = REAL_DATA.glob("*.mp4")
    labels, page = REAL_DATA / "labels_activitynet_style.json", tmp_path / "p.html"
    result = stream(
        make_model(tmp_path / "m", classes=classes), source, "--segments", labels, "--names", tmp_path / "names.yaml",
        "--page", page, "--json", "--chunk", 8,
    )  # fmt: skip
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["timeline"]["frames"] == summary["selected"] == summary["read"] > 1000
    assert 0.7 < summary["timeline"]["labelled_frames"] / summary["timeline"]["frames"] < 0.8
    assert page.read_text().count('class="truth"') == len(json.loads(page.with_suffix(".json").read_text())["segments"])


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
        [sys.executable, "-m", "infra.cli", "stream", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        **settings,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interruption_ends_in_order_and_leaves_a_playable_overlay(tmp_path, mp4_encoder, stream_model, number):
    """Ctrl-C reaches the whole process group of the terminal, ffmpeg too if it were in it."""
    mp4_encoder(np.full((1200, 64, 64, 3), 120, np.uint8), tmp_path / "long.mp4")
    target = tmp_path / "o.mp4"
    segment = {"segment": [0, 60], "label": "white"}
    (tmp_path / "labels.json").write_text(json.dumps({"database": {"long": {"annotations": [segment]}}}))
    arguments = (stream_model, tmp_path / "long.mp4", "--json", "--realtime", "--overlay", target)
    arguments += ("--segments", tmp_path / "labels.json", "--page", tmp_path / "p.html")
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
    content = json.loads((tmp_path / "p.json").read_text())
    assert len(content["answers"]) == summary["timeline"]["labelled_frames"] == summary["selected"] >= 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.json", "long.mp4", "o.mp4", "p.html", "p.json"]
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(tmp_path, mp4_encoder, stream_model):
    mp4_encoder(np.full((1200, 64, 64, 3), 120, np.uint8), tmp_path / "long.mp4")
    with child(stream_model, tmp_path / "long.mp4", "--json") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
