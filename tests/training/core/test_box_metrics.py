import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_specs.boxes import BoxTrack, ClipBoxes
from training.core.box_matching import iou, lenient_threshold, match
from training.core.box_metrics import box_metrics, class_table, envelope, every_recall
from training.core.box_motion import ignore_weights, motion_groups, motion_iou
from training.core.box_results import BoxResults, Found, Truth
from training.core.detections import Detections

CLASSES = ("cat", "dog", "fox")


def found(rows: list[tuple]) -> Found:
    """Detections from rows (video, frame, label, score, box)."""
    rows = sorted(rows, key=lambda row: (row[0], row[1], -row[3]))
    columns = list(zip(*rows, strict=True)) or [(), (), (), (), ()]
    video, frame, label = (np.array(columns[i], np.int64) for i in range(3))
    box = np.array(columns[4], np.float32).reshape(-1, 4)
    return Found(video, Detections(frame, box, np.array(columns[3], np.float32), label))


def truth(*clips: ClipBoxes, frames: int = 3) -> Truth:
    return Truth.of([(clip, frames) for clip in clips])


def still(number: int, label: int, box: tuple, frames: tuple = (0, 1, 2)) -> BoxTrack:
    return BoxTrack(track=number, label=label, frames=frames, boxes=(box,) * len(frames))


def metrics(known: Truth, rows: list[tuple], **arms: list[tuple]) -> dict[str, float]:
    detectors = {"main": found(rows)} | {name: found(arm) for name, arm in arms.items()}
    values = box_metrics(BoxResults(known, detectors), CLASSES, "test")
    return {name.removeprefix("test/"): value for name, value in values.items()}


def random_results(seed: int, videos: int = 3, frames: int = 12, crowd: int = 3, sparse: bool = False) -> BoxResults:
    """Tracks that drift at three speeds, and detections of them with noise, doubles and wrong ones."""
    rng = np.random.default_rng(seed)
    clips, rows = [], []
    for video in range(videos):
        tracks = []
        labelled = tuple(sorted(rng.choice(frames, frames // 2, replace=False).tolist())) if sparse else None
        for number in range(rng.integers(1, crowd + 1)):
            label = int(rng.integers(len(CLASSES)))
            corner, side = rng.uniform(0, 100, 2), rng.uniform(6, 60, 2)
            speed = rng.choice([0.05, 1.0, 6.0]) * rng.normal(size=2)
            span = range(int(rng.integers(0, frames // 2)), frames)
            kept = [f for f in span if labelled is None or f in labelled]
            boxes = [tuple(np.concatenate([corner + speed * f, corner + speed * f + side]).tolist()) for f in kept]
            if kept:
                tracks.append(BoxTrack(track=number, label=label, frames=tuple(kept), boxes=tuple(boxes)))
        half = tuple(range(0, frames, 2))
        clips.append((ClipBoxes(tracks=tuple(tracks), labelled=labelled, subsets={"even": half}), frames))
        for frame in range(frames):
            near = [(t, t.boxes[t.frames.index(frame)]) for t in tracks if frame in t.frames]
            for track, box in near * 2:
                label = track.label if rng.random() < 0.8 else int(rng.integers(len(CLASSES)))
                moved = np.array(box) + rng.normal(0, rng.choice([1.0, 4.0, 12.0]), 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                rows.append((video, frame, label, float(rng.random()), tuple(moved.tolist())))
            for _ in range(rng.integers(0, 3)):
                corner = rng.uniform(0, 100, 2)
                box = tuple(np.concatenate([corner, corner + rng.uniform(5, 50, 2)]).tolist())
                rows.append((video, frame, int(rng.integers(len(CLASSES))), float(rng.random()), box))
    return BoxResults(Truth.of(clips), {"main": found(rows)})


# --- slow references: plain loops ---------------------------------------------------------------


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    return wide * high / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high)


def slow_average_precision(results: BoxResults, label: int, *, lenient: bool, motion: int | None) -> float | None:
    """Average precision of a class by loops over frames and the definition of the area; None without objects."""
    known, detections = results.truth, results.found["main"]
    motion_M = slow_motion(known)
    kind_M = [0 if m > 0.9 else 2 if m < 0.7 else 1 for m in motion_M]
    ignored_M = np.array([motion is not None and kind != motion for kind in kind_M])
    share = sum(not i for i in ignored_M) / len(ignored_M)
    judged = []  # score, right, weight as wrong
    for video, frame in known.labelled_M2.tolist():
        objects = [i for i in range(len(known.video_N)) if (known.video_N[i], known.frame_N[i]) == (video, frame)]
        mine = [
            i
            for i in range(len(detections.video_N))
            if (detections.video_N[i], detections.boxes.frame_N[i]) == (video, frame)
            and detections.boxes.label_N[i] == label
        ]
        taken: set[int] = set()
        for d in sorted(mine, key=lambda i: -detections.boxes.score_N[i]):
            box, score = detections.boxes.box_N4[d], float(detections.boxes.score_N[d])
            best, chosen = -1.0, None
            for o in objects:
                w, h = (known.box_N4[o][2:].astype(float) - known.box_N4[o][:2]).tolist()
                least = min(0.5, w * h / ((w + 10) * (h + 10))) if lenient else 0.5
                value = overlap(box, known.box_N4[o])
                if known.label_N[o] == label and o not in taken and value >= least and value > best:
                    best, chosen = value, o
            if chosen is not None:
                taken.add(chosen)
                judged.append((score, not ignored_M[chosen], 0.0))
                continue
            inside = max((overlap(box, known.box_N4[o]) for o in objects if not ignored_M[o]), default=-1.0)
            outside = max((overlap(box, known.box_N4[o]) for o in objects if ignored_M[o]), default=-1.0)
            if not objects:
                weight = share if motion is not None else 1.0
            elif inside != outside:
                weight = float(inside > outside)
            else:
                weight = sum(ignored_M[o] for o in objects) / len(objects)
            judged.append((score, False, weight))
    positives = sum(int(known.label_N[o]) == label and not ignored_M[o] for o in range(len(known.video_N)))
    if positives == 0:
        return None
    judged.sort(key=lambda row: -row[0])
    recall, precision, right, wrong = [0.0], [0.0], 0.0, 0.0
    for _, good, weight in judged:
        right, wrong = right + good, wrong + weight
        recall.append(right / positives)
        precision.append(right / (right + wrong) if right + wrong else 0.0)
    return sum((recall[i] - recall[i - 1]) * max(precision[i:]) for i in range(1, len(recall)))


def slow_motion(known: Truth) -> list[float]:
    result = []
    for i in range(len(known.video_N)):
        others = [
            overlap(known.box_N4[i], known.box_N4[j])
            for j in range(len(known.video_N))
            if j != i
            and (known.video_N[i], known.track_N[i]) == (known.video_N[j], known.track_N[j])
            and abs(int(known.frame_N[i]) - int(known.frame_N[j])) <= 10
        ]
        result.append(sum(others) / len(others) if others else 0.0)
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sparse", [False, True])
def test_matching_and_ignore_rules_agree_with_plain_loops(seed, sparse):
    results = random_results(seed, frames=14, sparse=sparse)
    table = class_table(results, match(results.truth, results.found["main"], len(CLASSES)))
    compared = 0
    for lenient, values in ((False, table.plain_SK), (True, table.lenient_SK)):
        for column, motion in ((0, None), (1, 0), (2, 1), (3, 2)):
            for label in range(len(CLASSES)):
                expected = slow_average_precision(results, label, lenient=lenient, motion=motion)
                if expected is None:
                    assert math.isnan(values[column, label])
                else:
                    assert values[column, label] == pytest.approx(expected, abs=1e-6)
                    compared += 1
    assert compared > 8


def coco_values(results: BoxResults) -> tuple[float, float]:
    known, detections = results.truth, results.found["main"]
    images = {pair: number + 1 for number, pair in enumerate(map(tuple, known.labelled_M2.tolist()))}

    def wide(box: np.ndarray) -> list[float]:
        x0, y0, x1, y1 = box.astype(np.float64).tolist()
        return [x0, y0, x1 - x0, y1 - y0]

    objects = [
        {
            "id": i + 1,
            "image_id": images[(int(known.video_N[i]), int(known.frame_N[i]))],
            "category_id": int(known.label_N[i]) + 1,
            "bbox": wide(known.box_N4[i]),
            "area": 1000.0,
            "iscrowd": 0,
        }
        for i in range(len(known.video_N))
    ]
    boxes = detections.boxes
    answers = [
        {
            "image_id": images[(int(detections.video_N[i]), int(boxes.frame_N[i]))],
            "category_id": int(boxes.label_N[i]) + 1,
            "bbox": wide(boxes.box_N4[i]),
            "score": float(boxes.score_N[i]),
        }
        for i in range(len(boxes))
        if (int(detections.video_N[i]), int(boxes.frame_N[i])) in images
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in images.values()],
            "annotations": objects,
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)],
        }
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(answers), "bbox")
        run.params.maxDets = [1000, 1000, 1000]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, 2]  # threshold, recall, class
    return float(precision[0][precision[0] > -1].mean()), float(precision[precision > -1].mean())


@pytest.mark.parametrize("seed", range(6))
def test_coco_figures_equal_pycocotools(seed):
    results = random_results(seed, videos=4, frames=15, crowd=5, sparse=seed % 2 == 1)
    values = box_metrics(results, CLASSES, "val")
    at_half, overall = coco_values(results)
    assert values["val/coco_map50"] == pytest.approx(at_half, abs=1e-9)
    assert values["val/coco_map"] == pytest.approx(overall, abs=1e-9)
    # The protocols differ: equality above is no accident of easy data.
    assert 0.05 < overall < at_half < 0.95
    assert values["val/map50"] != pytest.approx(at_half, abs=1e-4)


# --- by hand -----------------------------------------------------------------------------------

CAT, DOG = (10.0, 10.0, 50.0, 50.0), (60.0, 10.0, 100.0, 50.0)
TWO = ClipBoxes(tracks=(still(0, 0, CAT), still(1, 1, DOG)))
RIGHT = [(0, f, k, 0.9 - 0.1 * f, box) for f in range(3) for k, box in ((0, CAT), (1, DOG))]


def test_all_found_is_one_and_nothing_found_is_zero():
    values = metrics(truth(TWO), RIGHT)
    for name in ("map50", "map50_lenient", "map50_slow", "map50_slow_lenient", "coco_map50", "coco_map"):
        assert values[name] == pytest.approx(1.0)
    assert (values["objects"], values["frames_labelled"], values["objects_slow"]) == (6, 3, 6)
    assert "map50_fast" not in values  # nothing moves: there is nothing to measure
    assert metrics(truth(TWO), [])["map50"] == 0.0
    # Right places under the wrong name are wrong.
    swapped = [(v, f, 1 - k, s, b) for v, f, k, s, b in RIGHT]
    assert metrics(truth(TWO), swapped)["map50"] == 0.0


def test_a_second_box_on_an_object_is_wrong():
    known = truth(ClipBoxes(tracks=(still(0, 0, CAT, (0, 1)),)), frames=2)
    rows = [(0, 0, 0, 0.9, CAT), (0, 0, 0, 0.8, CAT), (0, 1, 0, 0.7, CAT)]
    # Recall 1/2 at precision 1, recall 1 at 2/3.
    assert metrics(known, rows)["map50"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    # As the worst of all it does no harm.
    assert metrics(known, [(0, 0, 0, 0.6, CAT) if row[3] == 0.8 else row for row in rows])["map50"] == 1.0


def test_the_better_score_takes_the_object_even_with_the_worse_box():
    known = truth(ClipBoxes(tracks=(still(0, 0, CAT, (0,)),)), frames=1)
    shifted = (15.0, 10.0, 55.0, 50.0)
    rows = [(0, 0, 0, 0.9, shifted), (0, 0, 0, 0.8, CAT)]
    matched = match(known, found(rows), 1)
    assert matched.plain_N.tolist() == [0, -1]
    # Given the choice between two free objects, the detection takes the one that it overlaps more.
    both = ClipBoxes(tracks=(still(0, 0, CAT, (0,)), still(1, 0, shifted, (0,))))
    matched = match(truth(both, frames=1), found(rows), 1)
    assert [tuple(matched.objects.box_M4[i]) for i in matched.plain_N] == [shifted, CAT]


def test_equal_scores_stay_in_their_order():
    known = truth(ClipBoxes(tracks=(still(0, 0, CAT, (0,)),)), frames=1)
    rows = [(0, 0, 0, 0.5, DOG), (0, 0, 0, 0.5, CAT)]
    assert metrics(known, rows)["map50"] == pytest.approx(0.5)
    assert metrics(known, rows[::-1])["map50"] == 1.0


def test_small_objects_are_found_leniently():
    small = (20.0, 20.0, 30.0, 30.0)
    assert lenient_threshold(np.array([small, (0, 0, 1000, 1000)])) == pytest.approx([100 / 400, 0.5])
    known = truth(ClipBoxes(tracks=(still(0, 0, small, (0,)),)), frames=1)
    for wide, plain, lenient in ((26.0, 1, 1), (39.9, 1, 1), (40.1, 0, 1), (59.9, 0, 1), (60.1, 0, 0)):
        box = (20.0, 20.0, max(wide, 30.0), 30.0) if wide >= 30 else (20.0, 20.0, wide, 30.0)
        values = metrics(known, [(0, 0, 0, 0.9, box)])
        assert (values["map50"], values["map50_lenient"]) == (plain, lenient), wide


def test_frames_that_are_not_labelled_never_count():
    clip = ClipBoxes(tracks=(still(0, 0, CAT, (0, 2)),), labelled=(0, 2))
    rows = [(0, 0, 0, 0.9, CAT), (0, 2, 0, 0.8, CAT)]
    noise = [(0, 1, 0, 0.95, DOG), (0, 7, 0, 0.99, DOG), (5, 0, 0, 0.97, DOG)]
    assert metrics(truth(clip), rows + noise)["map50"] == 1.0
    # The same boxes in a labelled frame do harm.
    assert metrics(truth(clip), [*rows, (0, 2, 0, 0.95, DOG)])["map50"] < 1.0
    # Labelled and empty is not the same as unknown.
    assert metrics(truth(clip.model_copy(update={"labelled": None})), rows + noise)["map50"] < 1.0


def test_a_class_without_objects_is_left_out():
    rows = [*RIGHT, (0, 0, 2, 0.99, CAT)]
    assert metrics(truth(TWO), rows)["map50"] == 1.0
    results = BoxResults(truth(TWO), {"main": found(rows)})
    table = class_table(results, match(results.truth, results.found["main"], 3))
    assert math.isnan(table.plain_SK[0, 2])
    # A class with objects and without detections counts as 0.
    assert metrics(truth(TWO), [row for row in RIGHT if row[2] == 0])["map50"] == pytest.approx(0.5)


def test_motion_of_a_box_that_moves_by_hand():
    # 10 pixels wide, 1 pixel per frame: overlap d frames away is (10 − d) / (10 + d).
    clip = BoxTrack(track=0, label=0, frames=tuple(range(4)), boxes=tuple((f, 0, f + 10, 10) for f in range(4)))
    objects = match(truth(ClipBoxes(tracks=(clip,)), frames=4), found([]), 1).objects
    near = {d: (10 - d) / (10 + d) for d in (1, 2, 3)}
    assert motion_iou(objects)[0] == pytest.approx((near[1] + near[2] + near[3]) / 3)
    assert motion_iou(objects)[1] == pytest.approx((2 * near[1] + near[2]) / 3)
    assert motion_groups(np.array([0.91, 0.9, 0.7, 0.69, 0.0])).tolist() == [0, 1, 1, 2, 2]
    # Eleven frames away is out of reach, and an instance alone counts as fast.
    far = BoxTrack(track=0, label=0, frames=(0, 11), boxes=((0, 0, 10, 10), (0, 0, 10, 10)))
    objects = match(truth(ClipBoxes(tracks=(far,), labelled=(0, 11)), frames=12), found([]), 1).objects
    assert motion_iou(objects).tolist() == [0.0, 0.0]
    near_enough = far.model_copy(update={"frames": (0, 10)})
    objects = match(truth(ClipBoxes(tracks=(near_enough,), labelled=(0, 10)), frames=12), found([]), 1).objects
    assert motion_iou(objects).tolist() == [1.0, 1.0]


def test_the_same_number_in_two_videos_is_two_objects():
    clips = [ClipBoxes(tracks=(still(0, 0, box, (0,)),)) for box in (CAT, DOG)]
    objects = match(truth(*clips, frames=1), found([]), 1).objects
    assert motion_iou(objects).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
def test_motion_groups_add_up(seed):
    results = random_results(seed, videos=5)
    values = box_metrics(results, CLASSES, "test")
    parts = [values[f"test/objects_{name}"] for name in ("slow", "medium", "fast")]
    assert sum(parts) == values["test/objects"] == len(results.truth.video_N)
    assert min(parts) > 0


def test_weights_of_wrong_detections_by_hand():
    # Frame 0: a slow and a fast object; frame 1: the slow one alone; frame 2: empty; frame 3: the fast one alone.
    slow, fast = (0.0, 0.0, 100.0, 100.0), [(200.0, 0.0, 220.0, 20.0), (300.0, 300.0, 320.0, 320.0)]
    clip = ClipBoxes(
        tracks=(
            still(0, 0, slow, (0, 1)),
            BoxTrack(track=1, label=0, frames=(0, 3), boxes=tuple(fast)),
        )
    )
    known = truth(clip, frames=4)
    rows = [
        (0, 0, 0, 0.9, (0.0, 0.0, 100.0, 20.0)),  # nearest the slow one
        (0, 0, 0, 0.8, (215.0, 0.0, 260.0, 20.0)),  # nearest the fast one
        (0, 0, 0, 0.7, (500.0, 500.0, 520.0, 520.0)),  # nearest neither, both are there
        (0, 1, 0, 0.6, (500.0, 500.0, 520.0, 520.0)),  # nearest neither, the slow one is there
        (0, 2, 0, 0.5, (500.0, 500.0, 520.0, 520.0)),  # nothing is there
        (0, 0, 1, 0.4, (0.0, 0.0, 100.0, 20.0)),  # another class: the objects still decide
    ]
    matched = match(known, found(rows), 2)
    assert (matched.plain_N == -1).all()
    group_M = motion_groups(motion_iou(matched.objects))
    assert sorted(group_M.tolist()) == [0, 0, 2, 2]
    weight_GN = ignore_weights(matched.objects, matched.ranked, group_M)
    assert weight_GN[0].tolist() == [1.0, 0.0, 0.5, 1.0, 0.5, 1.0]
    assert weight_GN[2].tolist() == [0.0, 1.0, 0.5, 0.0, 0.5, 0.0]
    assert weight_GN[1].tolist() == [0.0] * 6  # no object is medium: all that are there are ignored


def test_sets_of_frames_are_their_own_evaluation():
    clip = TWO.model_copy(update={"subsets": {"hard": (1, 2), "none": ()}})
    rows = [row for row in RIGHT if row[1] == 0 or row[2] == 0]
    values = metrics(truth(clip), rows)
    assert values["map50_hard"] == pytest.approx(0.5)
    assert values["map50_hard_lenient"] == pytest.approx(0.5)
    assert values["map50"] == pytest.approx((1 + 1 / 3) / 2)
    assert values["objects_hard"] == 4
    assert "map50_none" not in values
    with pytest.raises(ValueError, match="cannot be named 'slow'"):
        metrics(truth(clip.model_copy(update={"subsets": {"slow": (1,)}})), rows)
    with pytest.raises(ValueError, match="two metrics would be named 'map50_hard'"):
        metrics(truth(clip), rows, hard=rows)


def test_other_detectors_have_their_name_at_the_end():
    values = metrics(truth(TWO), RIGHT, hold=[row for row in RIGHT if row[2] == 0])
    assert (values["map50"], values["map50_hold"], values["map50_slow_hold"]) == (1.0, 0.5, 0.5)
    assert values["map50_lenient_hold"] == 0.5
    assert "coco_map_hold" not in values


def test_broken_results_are_named():
    with pytest.raises(ValueError, match="no detections of 'main'"):
        box_metrics(BoxResults(truth(TWO), {"hold": found(RIGHT)}), CLASSES, "test")
    with pytest.raises(ValueError, match="no objects in 3 labelled frames"):
        metrics(truth(ClipBoxes(tracks=())), RIGHT)
    with pytest.raises(ValueError, match="labels 0 to 7; classes are 0 to 2"):
        metrics(truth(TWO), [*RIGHT, (0, 0, 7, 0.5, CAT)])
    with pytest.raises(ValueError, match="boxes are not finite"):
        metrics(truth(TWO), [*RIGHT, (0, 0, 1, 0.5, (0, 0, math.nan, 1))])
    with pytest.raises(ValueError, match="score that is not finite"):
        metrics(truth(TWO), [*RIGHT, (0, 0, 1, math.nan, CAT)])
    with pytest.raises(ValueError, match="video 0 has an object in frame 2, which is not labelled"):
        metrics(truth(TWO, frames=2), RIGHT)


def test_area_below_the_envelope_by_hand():
    # right, wrong, right, wrong, wrong, right of 4 objects: precision 1, 2/3, 1/2.
    right = np.array([1, 0, 1, 0, 0, 1], bool)
    assert envelope(right, ~right) == pytest.approx([1, 2 / 3, 1 / 2])
    assert every_recall(envelope(right, ~right), 4) == pytest.approx((1 + 2 / 3 + 1 / 2) / 4)
    # A later, higher precision fills the dent before it.
    dent = np.array([0, 1, 1, 1], bool)
    assert envelope(dent, ~dent) == pytest.approx([3 / 4] * 3)


def test_overlap_of_edges():
    one = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [5, 5, 5, 5]], np.float32)
    other = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [1, 0, 2, 1], [5, 5, 5, 5]], np.float32)
    assert iou(one, other) == pytest.approx([1 / 7, 1.0, 0.0, 0.0])
