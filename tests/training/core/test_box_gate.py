from dataclasses import replace

import numpy as np
import pytest

from data_specs.boxes import BoxTrack, ClipBoxes
from training.core.box_results import BoxResults, Found, Truth
from training.core.detections import Detections
from training.core.gate import Evidence, GateConfig, RoundTrip, evidence_from, judge

GOOD = RoundTrip(clips=4, max_difference=1e-6, same_class=True)
CLASSES = ("cat", "dog", "fox")
FRAMES = 4
QUICK = GateConfig(bootstrap=400)


def evidence(
    name: str,
    right: np.ndarray,
    *,
    digest: str = "d1",
    gmac: float | None = 1.0,
    round_trip: RoundTrip | None = GOOD,
    shift: float = 0.0,
    hidden: str = "",
) -> Evidence:
    """Evidence of a detector: in each video one object per frame, found where `right` (V, FRAMES) says so.

    Args:
        shift: of all true boxes, pixels.
        hidden: a class that the model never finds.
    """
    videos = len(right)
    clips, rows = [], []
    for video in range(videos):
        label = video % len(CLASSES)
        boxes = tuple((shift + 3 * f, 10.0, shift + 3 * f + 40, 50.0) for f in range(FRAMES))
        track = BoxTrack(track=0, label=label, frames=tuple(range(FRAMES)), boxes=boxes)
        clips.append((ClipBoxes(tracks=(track,)), FRAMES))
        for frame, box in enumerate(boxes):
            score = 0.5 + 0.4 * ((7 * video + frame) % 11) / 11
            found = right[video, frame] and CLASSES[label] != hidden
            rows.append((video, frame, label, score, box if found else (300.0, 300.0, 340.0, 340.0)))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    boxes = Detections(columns[1], columns[4].astype(np.float32), columns[3].astype(np.float32), columns[2])
    label = np.eye(len(CLASSES), dtype=np.int64)[np.arange(videos) % len(CLASSES)]
    scores = np.where(label, 0.9, 0.0).astype(np.float32)
    keys = np.array([f"k{i:04d}" for i in range(videos)])
    results = BoxResults(Truth.of(clips), {"main": Found(columns[0], boxes)})
    return Evidence(name, digest, keys, label, scores, CLASSES, gmac, round_trip, boxes=results)


def shares(videos: int, right: float) -> np.ndarray:
    """Right in the first of each run of ten videos, in all frames of them."""
    return np.repeat((((np.arange(videos) // 3) % 10) < round(10 * right))[:, None], FRAMES, axis=1)


def test_better_detector_passes_and_worse_is_refused():
    weak, strong = shares(150, 0.5), shares(150, 0.8)
    report = judge(evidence("new", strong), evidence("old", weak), QUICK)
    assert report.decision == "passed"
    assert "mAP50 against the champion" in report.text()
    assert "600 boxes in 600 labelled frames" in report.text()
    report = judge(evidence("new", weak), evidence("old", strong), QUICK)
    assert report.decision == "failed"
    assert "mAP50 against the champion" in report.reason


def test_equal_detector_is_refused_unless_it_is_cheaper():
    right = shares(150, 0.6)
    assert judge(evidence("new", right), evidence("old", right), QUICK).decision == "failed"
    assert judge(evidence("new", right, gmac=0.5), evidence("old", right), QUICK).decision == "passed"
    assert judge(evidence("new", right, gmac=0.95), evidence("old", right), QUICK).decision == "failed"
    worse = judge(evidence("new", shares(150, 0.5), gmac=0.5), evidence("old", right), QUICK)
    assert worse.decision == "failed"
    assert "cost per frame" in worse.text()


def test_gain_in_many_frames_of_one_video_is_noise():
    old = shares(150, 0.5)
    new = old.copy()
    new[np.flatnonzero(~old[:, 0])[:1]] = True
    report = judge(evidence("new", new), evidence("old", old), QUICK)
    assert report.decision == "failed"
    # As many frames spread over as many videos as there are classes of it pass.
    new = old.copy()
    new[np.flatnonzero(~old[:, 0])[:30]] = True
    assert judge(evidence("new", new), evidence("old", old), QUICK).decision == "passed"


def test_first_champion_has_to_find_something():
    report = judge(evidence("new", shares(120, 0.3)), None, QUICK)
    assert report.decision == "passed"
    assert "finds objects: mAP50" in report.text()
    nothing = judge(evidence("new", shares(120, 0.0)), None, QUICK)
    assert nothing.decision == "failed"
    assert "finds objects: mAP50 0.0%" in nothing.reason
    # Something in one video only: some resamples have nothing.
    once = np.zeros((120, FRAMES), bool)
    once[5] = True
    assert judge(evidence("new", once), None, QUICK).decision == "failed"


def test_few_videos_are_underpowered_however_many_frames():
    assert judge(evidence("new", shares(99, 0.9)), None, QUICK).decision == "underpowered"
    assert judge(evidence("new", shares(100, 0.9)), None, QUICK).decision == "passed"
    assert judge(evidence("new", shares(60, 0.0)), None, QUICK).decision == "failed"
    worse = judge(evidence("new", shares(60, 0.3)), evidence("old", shares(60, 0.9)), QUICK)
    assert worse.decision == "failed"


def test_budget_and_round_trip_are_hard_bounds():
    good = shares(120, 0.9)
    budget = QUICK.model_copy(update={"max_gmac": 1.0})
    assert judge(evidence("new", good, gmac=2.0), None, budget).decision == "failed"
    assert judge(evidence("new", good, gmac=0.9), None, budget).decision == "passed"
    assert judge(evidence("new", good, round_trip=None), None, QUICK).decision == "failed"


def test_a_class_that_is_lost_is_refused_unless_it_is_small():
    old, new = shares(150, 0.5), np.ones((150, FRAMES), bool)
    report = judge(evidence("new", new, hidden="fox"), evidence("old", old), QUICK)
    assert report.decision == "failed"
    assert "per-class average precision: fox" in report.reason
    assert judge(evidence("new", new), evidence("old", old), QUICK).decision == "passed"
    many = QUICK.model_copy(update={"min_class_samples": 1000})
    report = judge(evidence("new", new, hidden="fox"), evidence("old", old), many)
    assert "no class has 1000 boxes" in report.text()
    assert next(row for row in report.rows if row.check == "drops in small classes").passed is None


def test_a_class_of_two_videos_is_never_significant():
    # Six videos: two of each class; a loss of 100 % in eight boxes of two videos is shown as not significant.
    old, new = np.ones((6, FRAMES), bool), np.ones((6, FRAMES), bool)
    config = QUICK.model_copy(update={"min_class_samples": 1, "min_samples": 1})
    report = judge(evidence("new", new, hidden="fox"), evidence("old", old), config)
    row = next(row for row in report.rows if row.check == "per-class average precision")
    assert row.passed is True


def test_other_data_are_refused():
    right = shares(120, 0.5)
    old = evidence("old", right)
    for new, said in (
        (evidence("new", right, digest="d2"), "d2"),
        (evidence("new", right, shift=1.0), "true boxes or labelled frames differ"),
        (replace(evidence("new", right), label=np.roll(old.label, 1, axis=1)), "labels differ"),
        (evidence("new", shares(100, 0.5)), "by one only"),
    ):
        report = judge(new, old, QUICK)
        assert report.decision == "failed"
        assert said in report.reason
    single = replace(old, boxes=None, label=old.label.argmax(axis=1))
    assert "only one of them finds boxes" in judge(evidence("new", right), single, QUICK).reason


def test_order_of_the_videos_does_not_matter():
    new, old = evidence("new", shares(120, 0.8)), evidence("old", shares(120, 0.5))
    order = np.random.default_rng(0).permutation(120)
    shuffled = replace(
        old,
        key=old.key[order],
        label=old.label[order],
        scores=old.scores[order],
        boxes=old.boxes.reordered(order),
    )
    assert judge(new, shuffled, QUICK).rows == judge(new, old, QUICK).rows
    # Without moving the boxes along, the truth differs.
    wrong = replace(shuffled, boxes=old.boxes)
    assert judge(new, wrong, QUICK).decision == "failed"


def test_boxes_come_out_of_predictions():
    known = evidence("new", shares(12, 0.5))
    arrays = {"key": known.key, "label": known.label, "scores": known.scores, "classes": np.array(CLASSES)}
    facts = {"name": "new", "data_digest": "d1", "gmac": 1.0, "round_trip": GOOD}
    stored = evidence_from(arrays | known.boxes.arrays(), **facts)
    assert judge(stored, None, QUICK) == judge(known, None, QUICK)
    assert evidence_from(arrays | {"boxes": known.boxes}, **facts).boxes is known.boxes
    assert evidence_from(arrays | {"boxes": None}, **facts).boxes is None
    with pytest.raises(ValueError, match="compares top-1"):
        judge(evidence_from(arrays, **facts), None, QUICK)


def test_broken_evidence_is_named():
    good = evidence("new", shares(12, 0.5))
    with pytest.raises(ValueError, match=r"labels must be \(videos, 3 classes\)"):
        judge(replace(good, label=good.label.argmax(axis=1)), None, QUICK)
    hold = BoxResults(good.boxes.truth, {"hold": good.boxes.found["main"]})
    with pytest.raises(ValueError, match="boxes of hold but not of 'main'"):
        judge(replace(good, boxes=hold), None, QUICK)
    with pytest.raises(ValueError, match="boxes name video 11, 10 videos"):
        judge(replace(good, key=good.key[:10], label=good.label[:10], scores=good.scores[:10]), None, QUICK)
    empty = BoxResults(Truth.of([(ClipBoxes(tracks=()), 4)] * 12), {"main": good.boxes.found["main"]})
    with pytest.raises(ValueError, match="without a single object"):
        judge(replace(good, boxes=empty), None, QUICK)
