"""Serving and drawing of models that find objects, with one that finds red and blue squares by their colour."""

import io
import json
import subprocess
import sys
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from typer.testing import CliRunner

from training.core.answers import LEAST_SCORE, FoundObject, Watched, object_lines
from training.core.checkpoint import save_model
from training.core.overlay import OverlayError
from training.core.overlay_boxes import KEY, PALETTE, Strip, draw_objects, strength, write_boxes
from training.core.prediction import predict_overlay
from training.core.round_trip import round_trip
from training.core.serving import VideoClassifier, save_pyfunc, signature
from training.registry import FAMILIES

FAMILY = '''
"""Finds red and blue squares on a dark ground; every fifth frame is a key frame."""

import numpy as np
import torch

from training.core.config import StageConfig
from training.core.detections import Detections, VideoAnswer
from training.core.stage import Stage
from training.core.system import System

MODELS = {}
EVERY = 5


class Runner:
    def __init__(self, floor):
        self.floor, self.found, self.frames = floor, [], []

    def push(self, block):
        height, width = block.sizes[0]
        pictures = block.frames_BTHWC[0, :, :height, :width].cpu().numpy().astype(int)
        for number, picture in zip(block.number_BT[0].tolist(), pictures):
            self.frames.append(number)
            for label, channel in enumerate((0, 2)):
                strong = picture[..., channel] - np.delete(picture, channel, axis=-1).max(-1)
                ys, xs = np.nonzero(strong > self.floor)
                if len(ys):
                    box = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], np.float32)
                    score = np.array([picture[ys, xs, channel].mean() / 255], np.float32)
                    self.found.append(Detections(np.array([number]), box, score, np.array([label])))

    def finish(self):
        keys = tuple(range(0, len(self.frames), EVERY))
        found = Detections.join(self.found)
        return VideoAnswer(found, tuple(self.frames), keys, 0.5 * len(self.frames), {"cuts": np.array([7])})


class Spots(System):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.register_buffer("floor", torch.tensor(40.0))

    def video_runners(self, *, arms):
        return {"main": Runner(float(self.floor))}


STAGES = (Stage(name="spots_fit", kind="fit", config=StageConfig, build=lambda inputs: Spots(inputs.classes)),)
'''

DATA = {
    "num_frames": 1,
    "sampling": "frames",
    "frames": {"schedule": "offline", "interval": 5, "block": 6},
    "batch_size": 1,
    "decoder": "pyav",
    "transform": {
        "size": 64,
        "train_crop": "whole",
        "eval_short_side": 64,
        "long_side": 96,
        "flip": False,
        "normalise": "symmetric",
    },
}
CLASSES = ("red", "blue", "green")
FRAMES, HEIGHT, WIDTH = 17, 64, 96


def red_box(frame: int) -> tuple[int, int, int, int]:
    return 4 + 4 * frame, 24, 20 + 4 * frame, 40


def picture(frame: int) -> np.ndarray:
    """A bright red square that moves to the right by 4 pixels a frame, and a dim blue one from frame 6 on."""
    canvas = np.full((HEIGHT, WIDTH, 3), 25, np.uint8)
    x0, y0, x1, y1 = red_box(frame)
    canvas[y0:y1, x0:x1] = (230, 25, 25)
    if frame >= 6:
        canvas[48:60, 8:20] = (25, 25, 120)
    return canvas


def encode(frames: list[np.ndarray], times: list[float] | None = None, container: str = "mp4") -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv444p", {"crf": "1"}
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, content in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(content, format="rgb24")
            time = number / 10 if times is None else times[number]
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "squares.mp4"
    path.write_bytes(encode([picture(i) for i in range(FRAMES)]))
    return path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model folder whose family is registered in this process."""
    (tmp_path / "family").mkdir()
    (tmp_path / "family" / "spots_family.py").write_text(FAMILY)
    monkeypatch.setitem(FAMILIES, "spots", "spots_family")
    monkeypatch.syspath_prepend(tmp_path / "family")
    state = {"floor": torch.tensor(40.0)}
    config = {"data": DATA}
    save_model(
        tmp_path / "model", state, stage="spots_fit", dataset="squares", config=config, classes=CLASSES, decoder="pyav"
    )
    yield tmp_path / "model"
    sys.modules.pop("spots_family", None)


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def near(pixels: np.ndarray, colour: tuple[int, int, int], tolerance: int = 90) -> np.ndarray:
    return np.abs(pixels.astype(int) - np.array(colour)).sum(-1) < tolerance


# --- answers -------------------------------------------------------------------------------------


def test_objects_of_a_video(model, video):
    result = VideoClassifier(model).classify(video)
    assert result.error == ""
    watched = result.watched
    assert watched.frames == FRAMES
    assert watched.key_frames == (0, 5, 10, 15)
    assert watched.cuts == (7,)
    assert watched.gmac == pytest.approx(0.5 * FRAMES)
    red = [found for found in watched.objects if found.label == "red"]
    assert [found.frame for found in red] == list(range(FRAMES))
    for found in red:
        assert found.box == pytest.approx(red_box(found.frame), abs=1)
        assert found.time_s == pytest.approx(found.frame / 10)
        assert found.key_frame == (found.frame % 5 == 0)
        assert found.score > 0.85
        assert found.track == 0
    blue = [found for found in watched.objects if found.label == "blue"]
    assert [found.frame for found in blue] == list(range(6, FRAMES))
    assert {found.track for found in blue} == {1}
    assert result.classes == ("red", "blue", "green")
    assert result.scores[2] == 0


def test_what_has_too_low_a_score_is_left_out_but_counts_for_the_class(model, video):
    every = VideoClassifier(model).classify(video, least_score=0.0)
    sure = VideoClassifier(model).classify(video, least_score=0.6)
    assert {found.label for found in every.watched.objects} == {"red", "blue"}
    assert {found.label for found in sure.watched.objects} == {"red"}
    assert every.scores == sure.scores
    assert 0.3 < every.scores[1] < 0.6


def test_table_has_objects_as_json(model, video, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(encode([np.full((HEIGHT, WIDTH, 3), 25, np.uint8)] * 3))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing" * 100)
    table = VideoClassifier(model).predict_frame([video, video.read_bytes(), empty, broken])
    assert list(table.columns) == ["video", "label", "score", "top_classes", "top_scores", "error", "objects"]
    first, second, none, failed = (json.loads(text) for text in table["objects"])
    assert first == second
    assert first[0] == {
        "frame": 0, "time_s": 0.0, "box": [4.0, 24.0, 20.0, 40.0], "label": "red", "score": first[0]["score"],
        "track": 0, "key_frame": True,
    }  # fmt: skip
    assert none == failed == []
    assert table["label"].tolist() == ["red", "red", "", ""]
    assert table["score"][2] == 0
    assert table["error"].tolist()[:3] == ["", "", ""]
    assert "broken.mp4" in table["error"][3]


def test_signature_of_other_models_is_unchanged():
    plain, boxes = signature(), signature(finds_objects=True)
    assert plain.outputs.input_names() == ["video", "label", "score", "top_classes", "top_scores", "error"]
    assert [param.name for param in plain.params.params] == ["top"]
    assert boxes.outputs.input_names() == [*plain.outputs.input_names(), "objects"]
    assert [(param.name, param.default) for param in boxes.params.params] == [("top", 5), ("least_score", LEAST_SCORE)]
    assert boxes.inputs == plain.inputs


def test_summary_in_words(model, video):
    lines = object_lines(VideoClassifier(model).classify(video).watched)
    assert lines[0] == "17 frames, 4 key frames, 1 scene cut, 0.5 GMAC per frame"
    assert lines[1].startswith("  red: ")
    assert "1 object in 17 frames, score up to 9" in lines[1]
    assert lines[2].startswith("  blue: ")
    assert "1 object in 11 frames" in lines[2]
    assert object_lines(Watched((), (0.0,), (0,), (), 1.0)) == [
        "1 frame, 1 key frame, 1 GMAC per frame",
        "  no objects",
    ]
    pair = [FoundObject(f, f / 10, (0, 0, 9, 9), "dog", 0.5, t, False) for f, t in ((0, 3), (0, 4), (1, 3))]
    counted = object_lines(Watched(tuple(pair), (0.0, 0.1), (0,), (), 1.0))
    assert counted[1] == "  dog: 2 objects in 2 frames, score up to 50%"


def test_command_prints_words_json_and_an_overlay(model, video, tmp_path):
    from training.core.registry_cli import app

    run = CliRunner().invoke(app, ["predict", str(model), str(video)])
    assert run.exit_code == 0, run.output
    assert f"{video}: 17 frames, 4 key frames" in run.stdout
    assert "\n  red: " in run.stdout
    run = CliRunner().invoke(app, ["predict", str(model), str(video), "--json", "--least-score", "0.6"])
    row = json.loads(run.stdout)
    assert {found["label"] for found in row["objects"]} == {"red"}
    assert (row["frames"], row["key_frames"], row["cuts"]) == (17, [0, 5, 10, 15], [7])
    target = tmp_path / "over.mp4"
    run = CliRunner().invoke(app, ["predict", str(model), str(video), "--overlay", str(target)])
    assert run.exit_code == 0, run.output
    assert len(pictures(target)) == FRAMES
    run = CliRunner().invoke(app, ["predict", str(model), str(tmp_path / "gone.mp4")])
    assert run.exit_code == 1


@pytest.mark.slow
def test_saved_model_answers_elsewhere_and_the_round_trip_notices_another(model, video, tmp_path):
    saved = tmp_path / "saved"
    save_pyfunc(model, saved, {})
    # The family is not one of the project's: the saved code gets it by hand.
    registry = saved / "code" / "training" / "registry.py"
    registry.write_text(
        registry.read_text().replace('    "adafocus"', '    "spots": "spots_family",\n    "adafocus"', 1)
    )
    (saved / "code" / "spots_family.py").write_text(FAMILY)
    clips = {"a": video.read_bytes(), "b": encode([np.full((HEIGHT, WIDTH, 3), 25, np.uint8)] * 3)}
    classifier = VideoClassifier(model)
    expected = {key: classifier.scores(clip) for key, clip in clips.items()}
    assert expected["b"].max() == 0
    good = round_trip(saved, clips, expected, CLASSES)
    assert (good.error, good.same_class) == ("", True)
    assert good.max_difference < 1e-6
    other = round_trip(saved, clips, {**expected, "a": expected["a"][[1, 0, 2]]}, CLASSES)
    assert not other.same_class
    assert other.max_difference > 0.1


# --- drawing -------------------------------------------------------------------------------------


@pytest.fixture
def drawn(model, video, tmp_path) -> list[np.ndarray]:
    target = tmp_path / "out" / "over.mp4"
    seen = []
    result, written = predict_overlay(
        VideoClassifier(model), video, target, top=3, ffmpeg_program=get_ffmpeg_exe(),
        on_frame=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert (written.frames, written.sound) == (FRAMES, "none")
    assert seen[-1] == (FRAMES, FRAMES)
    assert result.watched is not None
    assert [path.name for path in target.parent.iterdir()] == ["over.mp4"]
    return pictures(target)


def test_boxes_are_drawn_in_their_own_frame(drawn):
    """Enlarged four times: the box's left line is at the square's left edge, and nowhere 8 pixels beside it."""
    assert len(drawn) == FRAMES
    assert drawn[0].shape[1] == 4 * WIDTH
    assert drawn[0].shape[0] > 4 * HEIGHT
    for number, frame in enumerate(drawn):
        x0, y0, x1, y1 = (4 * edge for edge in red_box(number))
        middle = frame[y0 + 12 : y1 - 12]
        edges = middle[:, [x0, x1 - 1]]
        assert not near(edges, (230, 25, 25), 60).any()
        ground = middle[:, [max(x0 - 8, 4), min(x1 + 8, 4 * WIDTH - 5)]]
        assert near(ground, (25, 25, 25)).all()
        # One frame earlier or later it would lie 16 pixels beside.
        assert near(middle[:, x0 + 8 : x1 - 8], (230, 25, 25)).all()


def test_only_key_frames_are_marked(drawn):
    marked = [number for number, frame in enumerate(drawn) if near(frame[:2, : 4 * WIDTH], KEY).mean() > 0.9]
    assert marked == [0, 5, 10, 15]
    for number, frame in enumerate(drawn):
        assert (near(frame[60:200, :2], KEY).mean() > 0.9) == (number in marked)


def test_strip_shows_keys_cuts_and_the_present(drawn, model, video):
    watched = VideoClassifier(model).classify(video).watched
    strip = Strip(watched, 4 * WIDTH, 4 * HEIGHT)
    for frame in (3, 12):
        below = drawn[frame][4 * HEIGHT :]
        assert below.shape == (strip.height, 4 * WIDTH, 3)
        for row, there in ((0, {0, 5, 10, 15}), (1, {7})):
            for number in set(range(FRAMES)) - {frame}:
                y0, x0, y1, x1 = strip.cell(number, row)
                lit = below[y0 + 2 : y1 - 2, x0 + 3 : x1 - 3].astype(int).sum(-1).mean() > 250
                assert lit == (number in there), (row, number)
        _, x0, _, x1 = strip.cell(frame, 0)
        assert below[2:-2, (x0 + x1) // 2].mean() > 150


def test_faint_where_the_score_is_low_and_one_colour_per_track():
    assert strength(0.3, 0.3) == pytest.approx(0.45)
    assert strength(0.9, 0.3) == strength(0.8, 0.3) == 1
    assert strength(0.5, 0.3) < strength(0.6, 0.3)
    picture_ = np.zeros((120, 200, 3), np.uint8)
    low, high = (
        FoundObject(0, 0.0, (x, 40, x + 40, 80), "dog", score, track, False)
        for x, score, track in ((10, 0.35, 1), (110, 0.95, 2))
    )
    draw_objects(picture_, [low, high], ("dog",), factor=1, least_score=0.3)
    assert near(picture_[60, 110], PALETTE[2], 6)
    assert picture_[60, 10].max() < 0.6 * max(PALETTE[1])
    ratio = picture_[60, 10] / np.array(PALETTE[1])
    assert ratio == pytest.approx(ratio[0], abs=0.02)
    again = np.zeros_like(picture_)
    draw_objects(again, [high._replace(box=(20, 40, 60, 80), frame=9)], ("dog",), factor=1, least_score=0.3)
    assert near(again[60, 20], PALETTE[2], 6)
    assert len(set(PALETTE)) == len(PALETTE)
    assert KEY not in PALETTE


@pytest.mark.parametrize(
    ("box", "name"), [((-30, -20, 300, 200), "over"), ((0, 0, 1, 1), "dot"), ((95, 60, 96, 64), "x")]
)
def test_boxes_at_and_beyond_the_edges(box, name):
    canvas = np.zeros((64, 96, 3), np.uint8)
    draw_objects(canvas, [FoundObject(0, 0, box, name, 0.9, 0, False)], (name,), factor=1, least_score=0.3)
    assert near(canvas, PALETTE[0]).any()


def test_varying_rate_is_kept_and_each_picture_has_its_own_boxes(model, tmp_path):
    times = [0.0, 0.1, 0.2, 0.9, 1.0, 1.05, 2.0, 2.1]
    source, target = tmp_path / "vfr.mkv", tmp_path / "over.mp4"
    source.write_bytes(encode([picture(i) for i in range(len(times))], times, "matroska"))
    assert times_of(source) == pytest.approx(times, abs=2e-3)
    predict_overlay(VideoClassifier(model), source, target, top=1, ffmpeg_program=get_ffmpeg_exe())
    assert times_of(target) == pytest.approx(times, abs=2e-3)
    for number, frame in enumerate(pictures(target)):
        x0, y0, x1, y1 = (4 * edge for edge in red_box(number))
        middle = frame[y0 + 12 : y1 - 12]
        assert near(middle[:, x0 + 8 : x1 - 8], (230, 25, 25)).all()
        assert not near(middle[:, [x0, x1 - 1]], (230, 25, 25), 60).any()


def test_what_cannot_be_written_leaves_no_file(video, tmp_path):
    watched = Watched((), (0.0, 0.1, 0.2), (0,), (), 1.0)
    three = [picture(i) for i in range(3)]
    for target, given, words in (
        (tmp_path / "o.avi", three, "name it so"),
        (tmp_path / "o.mp4", three[:2], "2 pictures for 3 frames"),
    ):
        with pytest.raises(OverlayError, match=words):
            write_boxes(
                video, target, pictures=given, watched=watched, least_score=0.3, ffmpeg_program=get_ffmpeg_exe()
            )
    assert list(tmp_path.iterdir()) == []
    write_boxes(
        video, tmp_path / "o.mp4", pictures=three, watched=watched, least_score=0.3, ffmpeg_program=get_ffmpeg_exe()
    )
    assert len(pictures(tmp_path / "o.mp4")) == 3


def test_sound_is_kept(model, video, tmp_path):
    source = tmp_path / "loud.mp4"
    tone = tmp_path / "tone.wav"
    rate = 16000
    with wave.open(str(tone), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((8000 * np.sin(np.arange(rate) / 6)).astype(np.int16).tobytes())
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-i", str(video), "-i", str(tone), "-c:v", "copy", str(source)]
    subprocess.run(command, check=True)
    _, written = predict_overlay(
        VideoClassifier(model), source, tmp_path / "o.mp4", top=1, ffmpeg_program=get_ffmpeg_exe()
    )
    assert written.sound == "copied"
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert len(container.streams.audio) == 1
