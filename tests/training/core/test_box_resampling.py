import math

import numpy as np
import pytest

from data_specs.boxes import BoxTrack, ClipBoxes
from training.core.box_matching import match
from training.core.box_metrics import plain_precision
from training.core.box_resampling import mean_precision, percentiles, resampled_precision
from training.core.box_results import Found, Truth
from training.core.detections import Detections

CLASSES, VIDEOS, FRAMES = 3, 7, 5


def results(seed: int) -> tuple[Truth, Found]:
    """Videos of two objects each; right and wrong detections with scores that all differ."""
    rng = np.random.default_rng(seed)
    clips, rows = [], []
    for video in range(VIDEOS):
        tracks = []
        for number in range(2):
            label = int(rng.integers(CLASSES)) if video else 2
            boxes = tuple((60.0 * number, float(f), 60.0 * number + 40, f + 40.0) for f in range(FRAMES))
            tracks.append(BoxTrack(track=number, label=label, frames=tuple(range(FRAMES)), boxes=boxes))
            for frame, box in enumerate(boxes):
                for _ in range(3):
                    moved = np.array(box) + rng.normal(0, 8, 4)
                    rows.append((video, frame, int(rng.choice([label, rng.integers(CLASSES)])), rng.random(), moved))
        clips.append((ClipBoxes(tracks=tuple(tracks)), FRAMES))
    rows.sort(key=lambda row: (row[0], row[1], -row[3]))
    video, frame, label, score, box = zip(*rows, strict=True)
    boxes = Detections(
        np.array(frame), np.stack(box).astype(np.float32), np.array(score, np.float32), np.array(label, np.int64)
    )
    return Truth.of(clips), Found(np.array(video), boxes)


def repeated(truth: Truth, found: Found, chosen: list[int]) -> tuple[Truth, Found]:
    """The evaluation of the chosen videos, each as often as it is named."""

    def rows(video_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [np.flatnonzero(video_N == video) for video in chosen]
        return np.concatenate(parts), np.repeat(np.arange(len(chosen)), [len(part) for part in parts])

    objects, video = rows(truth.video_N)
    frames, place = rows(truth.labelled_M2[:, 0])
    known = Truth(
        video,
        truth.frame_N[objects],
        truth.box_N4[objects],
        truth.label_N[objects],
        truth.track_N[objects],
        np.stack([place, truth.labelled_M2[frames, 1]], axis=1),
    )
    detections, video = rows(found.video_N)
    return known, Found(video, found.boxes[detections])


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_the_same_as_evaluating_repeated_videos(seed):
    truth, found = results(seed)
    resamples = 25
    precision = resampled_precision(match(truth, found, CLASSES), np.arange(VIDEOS), resamples, seed)
    counts = np.random.default_rng(seed).multinomial(VIDEOS, np.full(VIDEOS, 1 / VIDEOS), size=resamples)
    absent = 0
    for row, count in zip(precision, counts, strict=True):
        again = repeated(truth, found, np.repeat(np.arange(VIDEOS), count).tolist())
        expected = plain_precision(match(*again, CLASSES))
        assert row == pytest.approx(expected, abs=1e-5, nan_ok=True)
        absent += int(np.isnan(expected).sum())
    # The resamples differ, and so do the figures.
    assert precision.std(axis=0).min() > 0.005 or absent


def test_resamples_lie_around_the_metric_itself():
    truth, found = results(5)
    matched = match(truth, found, CLASSES)
    whole = resampled_precision(matched, np.arange(VIDEOS), 4000, 1)
    centre = plain_precision(matched)
    assert np.nanmean(whole, axis=0) == pytest.approx(centre, abs=0.05)
    low, high = percentiles(mean_precision(whole))
    assert low < np.nanmean(centre) < high


def test_two_detectors_are_drawn_alike():
    truth, found = results(3)
    matched = match(truth, found, CLASSES)
    twice = [resampled_precision(matched, np.arange(VIDEOS), 300, 7) for _ in range(2)]
    assert np.array_equal(*twice, equal_nan=True)
    other = resampled_precision(matched, np.arange(VIDEOS), 300, 8)
    assert not np.array_equal(twice[0], other, equal_nan=True)
    # As many resamples, whatever the size of a batch.
    assert twice[0].shape == (300, CLASSES)


def test_classes_that_were_not_drawn_do_not_count():
    values = np.array([[0.5, math.nan], [0.5, 1.0], [math.nan, math.nan]])
    assert mean_precision(values)[:2].tolist() == [0.5, 0.75]
    assert math.isnan(mean_precision(values)[2])
    assert percentiles(mean_precision(values), alpha=0.9999999) == pytest.approx((0.625, 0.625))
    with pytest.raises(ValueError, match="no resample has an object"):
        percentiles(np.array([math.nan]))


def test_nothing_found_is_zero_everywhere():
    truth, _ = results(0)
    none = Found(np.empty(0, np.int64), Detections.empty())
    assert np.nanmax(resampled_precision(match(truth, none, CLASSES), np.arange(VIDEOS), 20, 0)) == 0.0
