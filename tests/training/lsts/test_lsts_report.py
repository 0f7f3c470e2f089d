"""The page from planted evaluations: a red square that moves, and a blue one that rests, in six short videos."""

import copy
import hashlib
import io
import json
import re
import tarfile
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_specs.boxes import BoxTrack, ClipBoxes
from data_specs.schema import ClipRecord, Encoder, IndexEntry, ShardIndex, ShardInfo
from training.core.box_metrics import box_metrics
from training.core.box_results import BoxResults, Found, Truth
from training.core.detections import Detections
from training.core.evaluate import Predictions
from training.lsts.config import EvalConfig, MethodConfig
from training.lsts.offsets import initial_offsets
from training.lsts.report.findings import Detector, Findings, chosen
from training.lsts.report.hard_frames import compare, from_key, shot
from training.lsts.report.motion import displacements, motion_of, wasserstein
from training.lsts.report.records import RecordError, read_evaluations
from training.lsts.report.stage import LSTSReport

CLASSES = ("red", "blue", "green")
VIDEOS, FRAMES, HEIGHT, WIDTH = 6, 30, 64, 96
DEGRADED = (3, 12, 13)
OFFSETS = {"init": "gaussian", "count": 12, "sigma": 1.0, "seed": 5, "learned": True, "clamp": 8.0}
MODEL = {
    "backbone": {
        "depth": 18, "width": 0.125, "split": 1, "stride": 8, "downsample": "second", "feature_channels": 32,
        "frozen_stages": 0, "weights": None,
    },
    "alignment": {
        "offsets": OFFSETS, "embed_channels": 8, "similarity": "softmax", "border": "zero", "quality": "code",
        "low2high": "code", "memory_ratio": 1.0,
    },
    "head": {"kind": "dense", "channels": 16, "convs": 1, "centre_radius": 1.5},
    "score_threshold": 0.0, "nms": 0.5, "max_boxes": 10,
}  # fmt: skip
DATA = {
    "num_frames": 3, "sampling": "frames", "frames": {"schedule": "offline", "interval": 10}, "batch_size": 1,
    "decoder": "pyav",
    "transform": {
        "size": 32, "train_crop": "whole", "long_side": 64, "eval_short_side": 32, "flip": False,
        "normalise": "symmetric",
    },
}  # fmt: skip
LSTS = {"interval": 10, "schedule": "offline", "key": "srfu", "non_key": "dfa", "alignment": "sampled"}
METHODS = {
    "lsts": LSTS,
    "fixed": LSTS | {"offsets": OFFSETS | {"learned": False}},
    "hold": {**LSTS, "key": "plain", "non_key": "hold"},
    "oracle": LSTS | {"alignment": "truth"},
}
GMAC = {"lsts": 4.0, "fixed": 4.0, "hold": 2.0, "oracle": 4.0, "single": 10.0}


def red(frame: int) -> tuple[float, float, float, float]:
    return 4.0 + 2 * frame, 20.0, 20.0 + 2 * frame, 36.0


BLUE = (70.0, 42.0, 90.0, 60.0)


def objects() -> ClipBoxes:
    every = tuple(range(FRAMES))
    return ClipBoxes(
        tracks=(
            BoxTrack(track=0, label=0, frames=every, boxes=tuple(red(f) for f in every)),
            BoxTrack(track=1, label=1, frames=every, boxes=(BLUE,) * FRAMES),
        ),
        subsets={"degraded": DEGRADED},
    )


def found(missed: set[tuple[int, int, int]], score: float = 0.9, noise: float = 0.05) -> Found:
    """All objects but some (video, frame, label), and in each frame a wrong box with a low score."""
    rows = []
    for video in range(VIDEOS):
        for frame in range(FRAMES):
            for label, box in ((0, red(frame)), (1, BLUE)):
                if (video, frame, label) not in missed:
                    rows.append((video, frame, label, score, box))
            rows.append((video, frame, 0, noise, (40.0, 2.0, 50.0, 10.0)))
    boxes = Detections(
        np.array([row[1] for row in rows]), np.array([row[4] for row in rows], np.float32),
        np.array([row[3] for row in rows], np.float32), np.array([row[2] for row in rows]),
    )  # fmt: skip
    return Found(np.array([row[0] for row in rows]), boxes)


SINGLE_MISSES = {(3, 13, 0), (3, 13, 1), (1, 7, 0), (2, 20, 1), (2, 21, 1), (4, 0, 0), (3, 14, 1)}
MISSES = {"lsts": {(5, 2, 0), (5, 2, 1), (4, 0, 0)}, "fixed": {(v, f, 0) for v in range(6) for f in (3, 4)},
          "hold": {(v, f, 0) for v in range(6) for f in range(0, 30, 2)}, "oracle": set()}  # fmt: skip


def predictions(name: str, single: bool = True, misses: Any = None, tracks: bool = True) -> Predictions:
    detectors = {"main": found(MISSES[name] if misses is None else misses)}
    if name == "lsts":
        detectors["hold"] = found(MISSES["hold"])
    if single:
        detectors["single"] = found(SINGLE_MISSES, score=0.6)
    truth = Truth.of([(objects(), FRAMES)] * VIDEOS)
    if not tracks:
        truth = replace(truth, track_N=np.full_like(truth.track_N, -1))
    tables = {}
    if name in ("lsts", "fixed"):
        initial = initial_offsets(MethodConfig.model_validate({**LSTS, "offsets": OFFSETS}).offsets).numpy()
        learned = initial * np.array([2.5, 0.4], np.float32) if name == "lsts" else initial
        tables = {"offsets": learned, "offsets_initial": initial}
    return Predictions(
        key=np.array([f"clip-{i}" for i in range(VIDEOS)]),
        label=np.tile(np.array([1, 1, 0], np.float32), (VIDEOS, 1)),
        scores=np.tile(np.array([0.9, 0.9, 0], np.float32), (VIDEOS, 1)),
        arms={},
        extras={
            "frames": np.full(VIDEOS, FRAMES),
            "size": np.tile([HEIGHT, WIDTH], (VIDEOS, 1)),
            "gmac": np.full(VIDEOS, GMAC[name] * FRAMES),
        },
        classes=CLASSES,
        boxes=BoxResults(truth, detectors),
        tables=tables,
    )


def write_run(root: Path, name: str, given: Predictions | None = None, **config: Any) -> Path:
    folder = root / "squares" / "lsts_eval" / name
    folder.mkdir(parents=True)
    given = given or predictions(name)
    given.save(folder / "predictions.npz")
    metrics = box_metrics(given.boxes, CLASSES, "test")
    for detector in given.boxes.found:
        suffix = "" if detector == "main" else f"_{detector}"
        metrics |= {
            f"test/gmac_per_frame{suffix}": GMAC.get(name if detector == "main" else detector, 1.0),
            f"test/params{suffix}": 6.7e7,
        }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    variants = {"hold": METHODS["hold"]} if "hold" in given.boxes.found else {}
    values = {
        "model": MODEL, "data": DATA, "method": name, "methods": METHODS, "seq_nms": False, "single": True,
        "variants": variants, **config,
    }  # fmt: skip
    resolved = EvalConfig.model_validate(values).model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps(resolved))
    return folder


def encode(video: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = WIDTH, HEIGHT, "yuv444p", {"crf": "2"}
        for number in range(FRAMES):
            canvas = np.full((HEIGHT, WIDTH, 3), 30 + 20 * video, np.uint8)
            for (x0, y0, x1, y1), colour in ((red(number), (220, 30, 30)), (BLUE, (30, 30, 220))):
                canvas[int(y0) : int(y1), int(x0) : int(x1)] = colour
            canvas[:6, :FRAMES] = 0
            canvas[:6, number] = 255  # names the frame
            file.mux(stream.encode(av.VideoFrame.from_ndarray(canvas, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    buffer, entries = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for video in range(VIDEOS):
            key = f"clip-{video}"
            record = ClipRecord(
                key=key, source=f"{key}.mp4", part="main", split="test", group=key, label=0, num_frames=FRAMES, fps=10,
                width=WIDTH, height=HEIGHT, duration_s=3.0, has_audio=False,
            )  # fmt: skip
            members = {}
            contents = {"mp4": encode(video), "json": record.model_dump_json().encode()}
            for extension, content in contents.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                members[extension] = (tar.offset - -(-len(content) // 512) * 512, len(content))
            entries.append(IndexEntry(key=key, label=0, num_frames=FRAMES, members=members))
    content = buffer.getvalue()
    idx = "".join(entry.model_dump_json() + "\n" for entry in entries).encode()
    (folder / "main-test-00000.tar").write_bytes(content)
    (folder / "main-test-00000.idx").write_bytes(idx)
    shard = ShardInfo(
        name="main-test-00000.tar", part="main", split="test", sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content), samples=VIDEOS, idx_sha256=hashlib.sha256(idx).hexdigest(), plan_digest="p",
    )  # fmt: skip
    index = ShardIndex(
        format=1, dataset="squares", spec_digest="5" * 64, representation="mp4",
        encoder=Encoder(name="x264", version="1"),
        classes=CLASSES, shards=(shard,), rejects={}, listed={"test": VIDEOS},
    )  # fmt: skip
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "index.json").write_text(index.model_dump_json(indent=1))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, ...]]:
    root = tmp_path_factory.mktemp("runs")
    return {"lsts_eval": tuple(write_run(root, name) for name in METHODS)}


def report(results, shards_=None, classes=CLASSES) -> LSTSReport:
    return LSTSReport(None, classes, results, shards_, resamples=40)


@pytest.fixture(scope="module")
def written(runs, shards, tmp_path_factory) -> tuple[str, dict[str, float], dict]:
    folder = tmp_path_factory.mktemp("page")
    figures = report(runs, shards).write(folder)
    return (folder / "page.html").read_text(), figures, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def best(runs) -> Findings:
    return Findings(read_evaluations(runs, CLASSES)[0], resamples=40)


# --- the page ------------------------------------------------------------------------------------


def test_page_is_whole_and_static(written):
    text, _, _ = written
    assert "<title>LSTS: squares</title>" in text
    assert "<script" not in text
    assert not [link for link in re.findall(r'(?:src|href)="([^"]*)"|url\(', text) if not link.startswith("data:")]
    assert "6 videos, 180 labelled frames, 360 boxes" in text
    parts = (
        "Accuracy against executed cost", "Against single frames", "All methods", "By motion and set of frames",
        "Hard frames", "The other way round", "Where the alignment looks", "Precision and recall of each class",
    )  # fmt: skip
    for part in parts:
        assert part in text
    assert ">degraded<" in text
    assert "nan" not in re.sub(r"<style.*?</style>|base64,[^\"]*", "", text, flags=re.DOTALL).lower().split()
    assert ">inf" not in text


def test_every_chart_is_well_formed_and_inside_its_frame(written):
    charts = re.findall(r'<svg class="(?:chart|shot)"(?:(?!</?svg).|<svg.*?</svg>)*</svg>', written[0], re.DOTALL)
    assert len(charts) > 15
    for chart in charts:
        root = ElementTree.fromstring(chart)
        width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
        for circle in root.iter("circle"):
            assert 0 <= float(circle.attrib["cx"]) <= width
            assert 0 <= float(circle.attrib["cy"]) <= height


def test_figures_are_of_the_best_method_that_is_cheap(written, runs):
    _, figures, summary = written
    rows = {row["name"]: row for row in summary["methods"]}
    # The oracle is better, and hold is cheaper.
    assert summary["chosen"] == "lsts"
    assert figures["test/best_map50"] == figures["test/map50_lsts"]
    metrics = json.loads((runs["lsts_eval"][0] / "metrics.json").read_text())
    assert figures["test/best_map50"] == pytest.approx(metrics["test/map50"])
    assert figures["test/map50_oracle"] > figures["test/map50_lsts"] > figures["test/map50_fixed"]
    assert figures["test/best_gmac_ratio"] == pytest.approx(0.4)
    assert figures["test/best_gain"] == pytest.approx(metrics["test/map50"] - metrics["test/map50_single"])
    assert rows["lsts"]["gain"]["low"] <= figures["test/best_gain"] <= rows["lsts"]["gain"]["high"]
    assert rows["oracle"]["oracle"]
    assert {one["name"] for one in rows["lsts"]["detectors"]} == {"main", "single", "hold"}


def test_expensive_methods_are_on_top_only_where_there_is_no_cheap_one(runs, tmp_path):
    cheap = read_evaluations(runs, CLASSES)
    for each in cheap:
        each.metrics["test/gmac_per_frame"] = 9.0
    assert chosen([Findings(each, resamples=5) for each in cheap[:3]]).name == "lsts"
    cheap[2].metrics["test/gmac_per_frame"] = 2.0
    assert chosen([Findings(each, resamples=5) for each in cheap[:3]]).name == "hold"
    assert chosen([Findings(cheap[3], resamples=5)]).name == "oracle"


# --- hard frames ---------------------------------------------------------------------------------


def test_the_planted_frame_is_the_hardest(best):
    comparison = compare(best.main, best.single, 8)
    first = comparison.frames[0]
    assert (first.video, first.frame, first.gained, first.lost) == (3, 13, 2, 0)
    # One of each video before a second one; (4, 0) is missed by both, (2, 21) and (3, 14) are close to their like.
    assert {(each.video, each.frame) for each in comparison.frames} == {(3, 13), (1, 7), (2, 20)}
    # (3,13) twice, (1,7), (2,20), (2,21), (3,14); the other way round (5,2) twice.
    assert (comparison.objects_more, comparison.objects_less) == (6, 2)
    assert (comparison.frames_more, comparison.frames_less) == (5, 1)
    back = compare(best.single, best.main, 8)
    assert [(each.video, each.frame) for each in back.frames] == [(5, 2)]
    assert [(each.video, each.frame) for each in compare(best.main, best.single, 1).frames] == [(3, 13)]


def test_each_detector_is_asked_at_its_own_threshold(best):
    """The single-frame detector's scores are lower throughout, which alone makes nothing missed."""
    assert best.main.sure == pytest.approx(0.9)
    assert best.single.sure == pytest.approx(0.6)


def test_frames_are_shown_as_they_are_stored(written, best):
    text, _, _ = written
    section = text[text.index("Hard frames") : text.index("The other way round")]
    pairs = re.findall(r'<figure class="pair">.*?</figure>', section, re.DOTALL)
    assert len(pairs) == 3
    assert "clip-3, frame 13, 1 frame before its key frame, degraded" in pairs[0]
    single, method = re.findall(r'<svg class="shot".*?</svg>', pairs[0], re.DOTALL)
    assert single.count('class="true missed"') == 2
    assert "red: missed" in single
    assert method.count('class="true"') == 2
    assert "missed" not in method
    assert method.count('<rect class="right"') == 2
    assert 'class="wrong"' not in method  # below the threshold
    import base64

    import cv2

    content = base64.b64decode(re.search(r"base64,([^\"]*)", single)[1])
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert int(picture[:6, :FRAMES].mean((0, 2)).argmax()) == 13  # the frame names itself
    assert picture[30:60, 2].mean() == pytest.approx(30 + 20 * 3, abs=6)  # and the video


def test_equal_detectors_have_no_hard_frames(tmp_path, shards):
    same = predictions("lsts", misses=SINGLE_MISSES)
    same = replace(
        same, boxes=BoxResults(same.boxes.truth, {name: same.boxes.found["main"] for name in ("main", "single")})
    )
    figures = report({"lsts_eval": (write_run(tmp_path, "lsts", same),)}, shards).write(tmp_path)
    text = (tmp_path / "page.html").read_text()
    assert figures["test/best_gain"] == 0
    assert "There is no frame in which lsts finds more objects" in text
    assert '<figure class="pair">' not in text
    assert "not clear" in text


def test_without_the_single_frame_detector(tmp_path, shards):
    folder = write_run(tmp_path, "lsts", predictions("lsts", single=False))
    figures = report({"lsts_eval": (folder,)}, shards).write(tmp_path)
    text = (tmp_path / "page.html").read_text()
    assert "there is nothing to compare with" in text
    assert "test/best_gain" not in figures
    assert figures["test/best_map50"] > 0.9


def test_without_shards_the_page_has_no_pictures(runs, tmp_path):
    report(runs).write(tmp_path)
    text = (tmp_path / "page.html").read_text()
    assert "no pictures" in text
    assert "base64" not in text


def test_names_are_escaped(best):
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame = compare(best.main, best.single, 1).frames[0]
    text = shot(picture, best.main, frame, ("<b>", "&c", "d"))
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    ElementTree.fromstring(text)


def test_distance_to_the_key_frame_in_words(best):
    frame = compare(best.main, best.single, 1).frames[0]
    words = [from_key(frame._replace(frame=n) if hasattr(frame, "_replace") else replace(frame, frame=n), best.main)
             for n in (14, 16, 10)]  # fmt: skip
    assert words == ["a key frame", "2 frames after its key frame", "4 frames before its key frame"]


# --- motion --------------------------------------------------------------------------------------


def test_displacements_are_those_of_the_objects(best):
    """2 pixels a frame, halved by the transform, 8 pixels per cell: an eighth of a cell per frame."""
    motion = motion_of(best.evaluated)
    # Key frames 4, 14, 24: nine others each, and two key frames with one before; two objects; six videos.
    assert motion.true_P2.shape == ((27 + 2) * 2 * VIDEOS, 2)
    assert np.abs(motion.true_P2[:, 1]).max() < 1e-6
    moving = motion.true_P2[np.abs(motion.true_P2[:, 0]) > 1e-6, 0]
    steps, counts = np.unique((8 * moving).round(3), return_counts=True)
    # Before the key frame the object is further to the right in the memory, after it to the left.
    assert steps.tolist() == [-10, -5, -4, -3, -2, -1, 1, 2, 3, 4]
    assert counts.tolist() == [2 * VIDEOS] + [3 * VIDEOS] * 9
    assert motion.learned_K2[:, 0] == pytest.approx(2.5 * motion.initial_K2[:, 0], rel=1e-5)


def test_methods_without_memory_have_no_displacements(best):
    evaluated = best.evaluated
    arguments = (evaluated.boxes.truth, evaluated.extra("frames"), evaluated.extra("size"))
    transform = evaluated.config.data.transform
    hold = MethodConfig.model_validate(METHODS["hold"])
    assert len(displacements(*arguments, hold, transform, 8)) == 0
    online = MethodConfig.model_validate(LSTS | {"schedule": "online"})
    found_ = displacements(*arguments, online, transform, 8)
    assert (found_[:, 0] <= 1e-6).all()  # the memory is always older
    untracked = replace(evaluated.boxes.truth, track_N=np.full_like(evaluated.boxes.truth.track_N, -1))
    assert len(displacements(untracked, *arguments[1:], online, transform, 8)) == 0


def test_page_says_where_displacements_are_unknown_or_nothing_was_learned(tmp_path):
    folder = write_run(tmp_path, "fixed", predictions("fixed", tracks=False))
    report({"lsts_eval": (folder,)}).write(tmp_path)
    text = (tmp_path / "page.html").read_text()
    assert "displacements are not known" in text
    assert "they were not trained" in text
    assert "true displacements of the objects" not in text
    folder = write_run(tmp_path / "b", "hold")
    report({"lsts_eval": (folder,)}).write(tmp_path)
    assert "No method has offsets." in (tmp_path / "page.html").read_text()


def test_wasserstein_distance():
    from scipy.stats import wasserstein_distance

    rng = np.random.default_rng(0)
    one, two = rng.normal(size=40), rng.normal(1, 2, size=317)
    assert wasserstein(one, two) == pytest.approx(wasserstein_distance(one, two))
    assert wasserstein(one, one) == 0
    assert wasserstein(one, one + 3) == pytest.approx(3)


def test_system_leaves_its_offsets(system_of, method_of):
    import torch

    system = system_of()
    tables = system.tables()
    assert tables["offsets"].shape == (6, 2)
    assert np.array_equal(tables["offsets"], tables["offsets_initial"])
    with torch.no_grad():
        system.model.offsets.table.add_(0.5)
    moved = system.tables()
    assert moved["offsets"] - moved["offsets_initial"] == pytest.approx(0.5)
    assert np.array_equal(moved["offsets_initial"], tables["offsets_initial"])
    assert system_of(method_of(key="plain", non_key="hold")).tables() == {}


# --- errors --------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_named(runs, tmp_path):
    with pytest.raises(RecordError, match="there is no instance of lsts_eval"):
        read_evaluations({"lsts_eval": ()}, CLASSES)
    with pytest.raises(RecordError, match=r"\['x_eval'\]"):
        read_evaluations({"x_eval": ()}, CLASSES)
    with pytest.raises(RecordError, match="other classes"):
        read_evaluations(runs, ("red", "blue"))
    folder = write_run(tmp_path, "lsts")
    (folder / "predictions.npz").rename(folder / "away")
    with pytest.raises(RecordError, match=r"predictions\.npz is missing"):
        read_evaluations({"lsts_eval": (folder,)}, CLASSES)
    (folder / "away").rename(folder / "predictions.npz")
    (folder / "config.json").write_text("{}")
    with pytest.raises(RecordError, match="no evaluation of LSTS"):
        read_evaluations({"lsts_eval": (folder,)}, CLASSES)


def test_evaluations_of_other_videos_are_refused(tmp_path):
    one = write_run(tmp_path, "lsts")
    other = predictions("fixed")
    keys = copy.copy(other.key)
    keys[2] = "clip-9"
    two = write_run(tmp_path, "fixed", replace(other, key=keys))
    with pytest.raises(RecordError, match="'clip-2'"):
        read_evaluations({"lsts_eval": (one, two)}, CLASSES)
    truth = replace(other.boxes.truth, box_N4=other.boxes.truth.box_N4 + 1)
    third = write_run(tmp_path / "c", "fixed", replace(other, boxes=BoxResults(truth, other.boxes.found)))
    with pytest.raises(RecordError, match="different true boxes"):
        read_evaluations({"lsts_eval": (one, third)}, CLASSES)


def test_missing_cost_is_named(tmp_path):
    folder = write_run(tmp_path, "lsts")
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["test/gmac_per_frame"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(RecordError, match="no cost per frame of 'main'"):
        report({"lsts_eval": (folder,)}).write(tmp_path)


def test_a_detector_that_found_nothing_can_be_shown(best, tmp_path):
    empty = Found(np.empty(0, np.int64), Detections.empty())
    given = predictions("lsts")
    given = replace(given, boxes=BoxResults(given.boxes.truth, {**given.boxes.found, "single": empty}))
    folder = write_run(tmp_path, "lsts", given)
    evaluated = read_evaluations({"lsts_eval": (folder,)}, CLASSES)[0]
    nothing = Detector(evaluated, "single", 5)
    assert nothing.sure == 1
    assert nothing.mean == 0
    assert compare(Detector(evaluated, "main", 5), nothing, 2).objects_more == 360 - 3
