import numpy as np
import pytest

from training.core.box_matching import iou
from training.core.detections import Detections
from training.core.linking import link
from training.core.seq_nms import seq_nms


def detections(rows: list[tuple]) -> Detections:
    """Detections from rows (frame, label, score, box), in order of frame."""
    rows = sorted(rows, key=lambda row: (row[0], -row[2]))
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    frame, label = np.array(columns[0], np.int64), np.array(columns[1], np.int64)
    boxes = np.array(columns[3], np.float32).reshape(-1, 4)
    return Detections(frame, boxes, np.array(columns[2], np.float32), label)


def crowd(seed: int, frames: int = 5, boxes: int = 6, classes: int = 2, least: float = 0.0) -> Detections:
    rng = np.random.default_rng(seed)
    rows = []
    for frame in range(frames):
        if frame == 3 and seed % 3 == 0:
            continue  # a frame without detections
        for _ in range(rng.integers(1, boxes + 1)):
            corner = rng.uniform(0, 25, 2) + frame
            box = tuple(np.concatenate([corner, corner + rng.uniform(20, 40, 2)]).tolist())
            rows.append((frame, int(rng.integers(classes)), float(rng.uniform(least, 1) ** 3), box))
    return detections(rows)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float(iou(one[None], other[None])[0])


# --- Seq-NMS -----------------------------------------------------------------------------------


def slow_seq_nms(found: Detections, most_boxes: float = 0.5, suppress: float = 0.3, least: float = 0.01) -> set[tuple]:
    """Try every path, take the best, begin again; NMS by loops. Returns (frame, label, place, score)."""
    score = found.score_N.astype(np.float64).tolist()
    new, alive = list(score), set(range(len(score)))
    dropped: set[int] = set()

    def follows(a: int, b: int) -> bool:
        same = found.label_N[a] == found.label_N[b] and found.frame_N[b] == found.frame_N[a] + 1
        return bool(same) and overlap(found.box_N4[a], found.box_N4[b]) >= most_boxes

    while alive:
        paths = [[box] for box in alive]
        best: list[int] = []
        while paths:
            best = max([best, *paths], key=lambda path: sum(score[b] for b in path))
            paths = [[*path, box] for path in paths for box in alive if follows(path[-1], box)]
        if sum(score[b] for b in best) < least:
            break
        for box in best:
            new[box] = sum(score[b] for b in best) / len(best)
        alive -= set(best)
        for box in best:
            near = {
                other
                for other in alive
                if (found.frame_N[other], found.label_N[other]) == (found.frame_N[box], found.label_N[box])
                and overlap(found.box_N4[other], found.box_N4[box]) >= suppress
            }
            alive -= near
            dropped |= near
    left: list[int] = []
    for box in sorted(set(range(len(score))) - dropped, key=lambda b: -new[b]):
        rivals = [b for b in left if (found.frame_N[b], found.label_N[b]) == (found.frame_N[box], found.label_N[box])]
        if all(overlap(found.box_N4[b], found.box_N4[box]) <= 0.3 for b in rivals):
            left.append(box)
    return {(int(found.frame_N[b]), int(found.label_N[b]), *rounded(found.box_N4[b], new[b])) for b in left}


def rounded(box: np.ndarray, score: float) -> tuple:
    return (*np.round(box.astype(float), 3).tolist(), round(float(score), 5))


def as_set(found: Detections) -> set[tuple]:
    rows = zip(found.frame_N, found.label_N, found.box_N4, found.score_N, strict=True)
    return {(int(frame), int(label), *rounded(box, score)) for frame, label, box, score in rows}


@pytest.mark.parametrize("seed", range(30))
def test_paths_agree_with_trying_all_of_them(seed):
    found = crowd(seed)
    result = seq_nms(found)
    assert as_set(result) == slow_seq_nms(found)
    assert len(result) == len(as_set(result))
    # With another threshold the reference says something else, at least in most cases.
    if len(found) > 12:
        assert as_set(seq_nms(found, suppress=0.9, nms=0.9)) != slow_seq_nms(found)


BOX = (10.0, 10.0, 50.0, 50.0)


def test_a_weak_box_between_strong_ones_is_lifted():
    scores = (0.9, 0.1, 0.8)
    result = seq_nms(detections([(f, 0, s, BOX) for f, s in enumerate(scores)]))
    assert result.score_N == pytest.approx([0.6] * 3)
    # Not over a frame without a box, nor between classes, nor where the boxes do not overlap enough.
    apart = seq_nms(detections([(2 * f, 0, s, BOX) for f, s in enumerate(scores)]))
    assert apart.score_N == pytest.approx(scores)
    other = seq_nms(detections([(f, f, s, BOX) for f, s in enumerate(scores)]))
    assert other.score_N == pytest.approx(scores)
    jumping = seq_nms(detections([(f, 0, s, (10 + 25.0 * f, 10, 50 + 25.0 * f, 50)) for f, s in enumerate(scores)]))
    assert jumping.score_N == pytest.approx(scores)


def test_the_long_path_wins_over_the_best_box():
    lone = (25.0, 10.0, 65.0, 50.0)  # overlaps BOX by 0.45: dropped by it, linked to nothing
    rows = [(f, 0, 0.4, BOX) for f in range(4)] + [(1, 0, 0.9, lone)]
    result = seq_nms(detections(rows))
    assert len(result) == 4
    assert result.score_N == pytest.approx([0.4] * 4)
    # Common NMS would have kept the best box of that frame.
    alone = seq_nms(detections([row for row in rows if row[0] == 1]))
    assert [tuple(box) for box in alone.box_N4.tolist()] == [lone]


def test_what_is_below_the_least_sum_keeps_its_score_and_meets_common_nms():
    rows = [(0, 0, 0.004, BOX), (1, 0, 0.003, BOX), (1, 0, 0.002, (11.0, 10.0, 51.0, 50.0))]
    result = seq_nms(detections(rows))
    assert result.score_N == pytest.approx([0.004, 0.003])
    assert seq_nms(detections(rows), least=0.0).score_N == pytest.approx([0.0035] * 2)


def test_order_and_nothing_at_all():
    found = crowd(4, frames=6, boxes=8)
    result = seq_nms(found)
    assert np.array_equal(np.lexsort((-result.score_N, result.frame_N)), np.arange(len(result)))
    assert result.track_N is None
    assert len(seq_nms(Detections.empty())) == 0
    with pytest.raises(ValueError, match="must not be negative"):
        seq_nms(detections([(0, 0, -0.5, BOX)]))


# --- linking -----------------------------------------------------------------------------------


def slow_link(found: Detections, least: float, gap: int, score: float) -> list[int]:
    """Pairs frame by frame by loops: the best overlap first."""
    tracks: dict[int, int] = {}
    result = [-1] * len(found)
    for frame in sorted(set(found.frame_N.tolist())):
        rows = [i for i in range(len(found)) if found.frame_N[i] == frame and found.score_N[i] >= score]
        open_ = {t: i for t, i in tracks.items() if frame - found.frame_N[i] - 1 <= gap}
        free = list(rows)
        while True:
            pairs = [
                (-overlap(found.box_N4[i], found.box_N4[r]), t, r)
                for t, i in open_.items()
                for r in free
                if found.label_N[i] == found.label_N[r] and overlap(found.box_N4[i], found.box_N4[r]) >= least
            ]
            if not pairs:
                break
            _, t, r = min(pairs)
            result[r] = t
            free.remove(r)
            del open_[t]
            tracks[t] = r
        for r in free:
            result[r] = max([-1, *tracks, *result]) + 1
            tracks[result[r]] = r
    return result


@pytest.mark.parametrize("seed", range(12))
def test_links_agree_with_plain_loops(seed):
    found = crowd(seed, frames=7)
    for least, gap, score in ((0.3, 0, 0.0), (0.5, 2, 0.1)):
        linked = link(found, least_iou=least, gap=gap, least_score=score)
        assert linked.track_N.tolist() == slow_link(found, least, gap, score)
        assert np.array_equal(linked.box_N4, found.box_N4)
    assert link(found, least_iou=0.3).track_N.tolist() != link(found, least_iou=0.95).track_N.tolist()


def test_a_moving_object_keeps_its_number_and_a_jump_ends_it():
    moving = [(f, 0, 0.9, (10.0 + 4 * f, 10.0, 50.0 + 4 * f, 50.0)) for f in range(6)]
    assert link(detections(moving)).track_N.tolist() == [0] * 6
    jump = [*moving[:3], (3, 0, 0.9, (300.0, 10.0, 340.0, 50.0))]
    assert link(detections(jump)).track_N.tolist() == [0, 0, 0, 1]
    renamed = [(f, int(f > 2), s, b) for f, _, s, b in moving]
    assert link(detections(renamed)).track_N.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_gap_is_bridged_up_to_its_length():
    rows = [(0, 0, 0.9, BOX), (3, 0, 0.9, BOX)]
    assert link(detections(rows), gap=2).track_N.tolist() == [0, 0]
    assert link(detections(rows), gap=1).track_N.tolist() == [0, 1]


def test_weak_detections_have_no_number():
    rows = [(0, 0, 0.9, BOX), (1, 0, 0.05, BOX), (2, 0, 0.9, BOX)]
    assert link(detections(rows), least_score=0.1).track_N.tolist() == [0, -1, 0]
    assert link(detections(rows)).track_N.tolist() == [0, 0, 0]
    assert link(Detections.empty()).track_N.tolist() == []
    wrong = detections(rows)[np.array([2, 0, 1])]
    with pytest.raises(ValueError, match="in order of frame"):
        link(wrong)
