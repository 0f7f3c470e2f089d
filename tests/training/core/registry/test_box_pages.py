"""Detectors in a real store: facts, gate, card and pages from fabricated evaluations in the documented format."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_specs.boxes import BoxTrack, ClipBoxes
from data_specs.schema import Encoder, ShardIndex, ShardInfo
from infra.settings import Settings
from training.adafocus import STAGES
from training.core.box_metrics import box_metrics
from training.core.box_results import BoxResults, Found, Truth
from training.core.detections import Detections
from training.core.gate import RoundTrip
from training.core.modelcard import Facts, card, collect_facts, cost_of
from training.core.promotion import promote
from training.core.registration import Evaluated, Registry, Version
from training.core.report import write_report
from training.core.stage import StageRef, paths_of
from training.core.tracking import start_run

CLASSES = ("cat", "dog", "<fox>")
VIDEOS, FRAMES = 120, 4
SHARD = ShardInfo(
    name="main-test-00000.tar",
    part="main",
    split="test",
    sha256="s" * 64,
    bytes=1,
    samples=VIDEOS,
    idx_sha256="i" * 64,
    plan_digest="p",
)
INDEX = ShardIndex(
    format=1,
    dataset="vid",
    spec_digest="5" * 64,
    representation="mp4",
    encoder=Encoder(name="x264", version="1"),
    classes=CLASSES,
    shards=(SHARD,),
    rejects={"corrupt": 2},
    listed={"test": VIDEOS + 2},
)


def answers(videos: np.ndarray) -> Found:
    """Detections that are right in some of the videos."""
    rows = []
    for video in range(VIDEOS):
        for frame in range(FRAMES):
            box = true_box(video, frame) if videos[video] else (300.0, 300.0, 340.0, 340.0)
            rows.append((video, frame, video % 2, 0.5 + 0.4 * ((7 * video + frame) % 11) / 11, box))
    video, frame, label, score, box = (np.array(column) for column in zip(*rows, strict=True))
    return Found(video, Detections(frame, box.astype(np.float32), score.astype(np.float32), label))


def true_box(video: int, frame: int) -> tuple[float, float, float, float]:
    speed = (0.1, 2.0, 20.0)[video % 3]
    return (speed * frame, 10.0, speed * frame + 40, 50.0)


def results(share: float) -> BoxResults:
    clips = []
    for video in range(VIDEOS):
        boxes = tuple(true_box(video, frame) for frame in range(FRAMES))
        track = BoxTrack(track=0, label=video % 2, frames=tuple(range(FRAMES)), boxes=boxes)
        clips.append((ClipBoxes(tracks=(track,), subsets={"blurred": (1, 3)}), FRAMES))
    right = (np.arange(VIDEOS) // 6) % 10 < round(10 * share)
    worse = right & (np.arange(VIDEOS) % 5 > 0)
    return BoxResults(Truth.of(clips), {"main": answers(right), "hold": answers(worse)})


@pytest.fixture(scope="module")
def settings(tmp_path_factory, empty_store) -> Settings:
    settings = Settings(root=tmp_path_factory.mktemp("project"), mlflow_tracking_uri=None)
    (settings.root / "params").mkdir()
    (settings.root / "params" / "vid.yaml").write_text("gate: {bootstrap: 300}\n")
    shutil.copy(empty_store, settings.root)
    return settings


def evaluation(settings: Settings, share: float, gmac: float, folder: Path) -> tuple[Evaluated, Facts]:
    """Write an evaluation as `fovea run` would, and collect what registering collects."""
    stage = next(stage for stage in STAGES if stage.name == "adafocus_eval")
    ref = StageRef.parse("adafocus_eval@vid")
    paths = paths_of(stage, ref, settings)
    boxes = results(share)
    metrics = box_metrics(boxes, CLASSES, "test") | {
        "test/gmac_per_frame": gmac,
        "test/gmac_per_frame_hold": gmac / 10,
        "test/gmac_per_video": gmac * FRAMES,
        "test/params": 6.7e7,
    }
    label = np.eye(len(CLASSES), dtype=np.int64)[np.arange(VIDEOS) % 2]
    scores = (0.8 * label).astype(np.float32)
    paths.run.mkdir(parents=True, exist_ok=True)
    np.savez(
        paths.predictions,
        key=np.array([f"k{i:04d}" for i in range(VIDEOS)]),
        label=label,
        scores=scores,
        classes=np.array(CLASSES),
        **{"arm/hold": scores},
        **boxes.arrays(),
    )
    paths.metrics.write_text(json.dumps(metrics))
    paths.config.write_text("{}")
    model = settings.root / "model"
    model.mkdir(exist_ok=True)
    evaluated = Evaluated(ref, stage, "adafocus", paths, ref, model, "m" * 64, INDEX, {}, metrics)
    facts = collect_facts(settings, evaluated, None, None)
    facts = facts.model_copy(update={"round_trip": RoundTrip(4, 0.0, True)})
    for path in (paths.predictions, paths.metrics, paths.config):
        shutil.copy(path, folder)
    (folder / "facts.json").write_text(facts.as_json())
    return evaluated, facts


def add(settings: Settings, share: float, gmac: float, folder: Path) -> Version:
    """Register a detector that is right in a share of the videos."""
    folder = folder / f"{share}-{gmac}" / "evaluation"
    folder.mkdir(parents=True)
    evaluated, _ = evaluation(settings, share, gmac, folder)
    run = start_run(settings, experiment="adafocus", name="register", tags={"kind": "register"}, params={})
    run.log_artifacts(folder, "evaluation")
    run.log_text("weights", "model/weights")
    run.finish()
    registry = Registry.open(settings)
    version = registry.create(evaluated.name, run, {"dataset": "vid"})
    registry.set_alias(version, "challenger")
    return version


@pytest.fixture(scope="module")
def facts(settings, tmp_path_factory) -> Facts:
    return evaluation(settings, 0.5, 60.0, tmp_path_factory.mktemp("facts"))[1]


def test_facts_have_the_average_precision_with_its_interval(facts):
    boxes = facts.boxes
    assert boxes is not None
    assert (facts.top1, facts.measure, facts.cost_unit, facts.gmac) == (None, "mAP50", "frame", 60.0)
    assert boxes.map50 == pytest.approx(facts.metrics["test/map50"])
    low, high = facts.score_interval
    assert 0.1 < low < boxes.map50 < high < 0.9
    assert (boxes.frames, boxes.objects) == (VIDEOS * FRAMES, VIDEOS * FRAMES)
    hold = boxes.arms["hold"]
    assert hold.map50 == pytest.approx(facts.metrics["test/map50_hold"])
    assert hold.difference < 0
    assert hold.interval[0] < hold.difference < hold.interval[1] < 0
    assert facts.arms["hold"].gmac == 6.0
    assert Facts.model_validate_json(facts.as_json()) == facts


def test_facts_of_classifiers_say_nothing_of_boxes(facts):
    classifier = facts.model_copy(update={"boxes": None, "top1": 0.5, "interval": (0.4, 0.6), "majority": 0.3})
    assert '"boxes"' not in classifier.as_json()
    assert '"boxes"' in facts.as_json()
    assert Facts.model_validate_json(classifier.as_json()) == classifier
    assert (classifier.measure, classifier.score, classifier.cost_unit) == ("top-1", 0.5, "video")


def test_cost_is_per_frame_for_detectors_only():
    costs = {"test/gmac_per_frame": 1.0, "test/gmac_per_video": 10.0}
    assert cost_of(costs, "test") == 10.0
    assert cost_of(costs | {"test/map50": 0.5}, "test") == 1.0
    assert cost_of({"test/map50": 0.5, "test/gmac_per_video": 10.0}, "test") == 10.0
    assert cost_of({"test/gmac_per_frame": 1.0}, "test") is None


def test_card_names_what_was_measured(facts):
    text = card(facts, None)
    low, high = facts.boxes.interval
    assert f"mAP50 on `test`: **{facts.boxes.map50:.1%}** [{low:.1%}, {high:.1%}]" in text
    assert "60 GMAC = 120 GFLOP per frame" in text
    assert "480 boxes in 480 labelled frames" in text
    assert "| model | mAP50 | GMAC |" in text
    assert "top-1" not in text.lower()


def test_detectors_are_promoted_and_shown(settings, tmp_path):
    first = add(settings, 0.4, 60.0, tmp_path)
    assert promote(settings, "vid").report.decision == "passed"
    add(settings, 0.7, 50.0, tmp_path)
    outcome = promote(settings, "vid")
    assert outcome.report.decision == "passed", outcome.report.text()
    assert outcome.champion.version == "2"
    add(settings, 0.5, 50.0, tmp_path)
    refused = promote(settings, "vid")
    assert refused.refused
    assert "mAP50 against the champion" in refused.report.reason
    assert "mAP50 on `test`" in refused.judged.description

    index = write_report(settings).read_text()
    page = (settings.reports / f"{first.name}-2.html").read_text()
    for words in (index, page):
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", words)
        assert "mAP50" in words
        assert "top-1" not in words
        assert "<fox>" not in words
    assert "GMAC per frame" in index
    assert "of detectors per frame" in index
    assert "bootstrap over videos" in index
    assert "hold" in index
    for words in ("What was found", "Precision and recall", "blurred", "480 boxes", "COCO", "By class"):
        assert words.lower() in page.lower()
    assert "hold" in page
    assert "GMAC per frame (" in page
    # Unchanged pages are not written again, though the boxes were not even read.
    before = (settings.reports / f"{first.name}-2.html").stat().st_mtime_ns
    write_report(settings)
    assert (settings.reports / f"{first.name}-2.html").stat().st_mtime_ns == before
