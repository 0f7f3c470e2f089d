"""Boxes against plain Python: overlaps, codes, clipping and greedy suppression, also in the form with "+1"."""

import math
from itertools import pairwise

import pytest
import torch

from training.layers import boxes
from training.layers.boxes import (
    areas,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    generalised_iou,
    iou,
    nms,
    nms_keep,
    nms_picks,
)


def random_boxes(*shape: int, seed: int = 0, side: float = 40.0, whole: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator) * 100
    box = torch.cat((low, low + 1 + torch.rand(*shape, 2, generator=generator) * side), -1)
    return box.round() if whole else box


def legacy_overlap(first: list[float], second: list[float]) -> float:
    """IoU of boxes that name the first and the last pixel."""
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    own = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (first, second)]
    return width * height / (sum(own) - width * height)


def legacy_nms(box: list[list[float]], score: list[float], threshold: float) -> list[int]:
    """Greedy suppression of boxes that name the first and the last pixel."""
    kept: list[int] = []
    for index in sorted(range(len(box)), key=lambda i: -score[i]):
        if score[index] > -math.inf and all(legacy_overlap(box[index], box[k]) <= threshold for k in kept):
            kept.append(index)
    return kept


def legacy(box: torch.Tensor) -> torch.Tensor:
    return box - torch.tensor([0, 0, 1, 1])


# --- overlaps ------------------------------------------------------------------------------------


def test_overlaps_equal_the_legacy_form():
    first, second = random_boxes(2, 7, side=90, whole=True), random_boxes(2, 5, seed=1, side=90, whole=True)
    expected = [
        [[legacy_overlap(a, b) for b in legacy(second[n]).tolist()] for a in legacy(first[n]).tolist()] for n in (0, 1)
    ]
    assert torch.allclose(iou(first, second), torch.tensor(expected))
    assert torch.tensor(expected).max() > 0.3
    assert torch.equal(areas(torch.tensor([[1.0, 2, 4, 7]])), torch.tensor([15.0]))


def test_boxes_without_area_overlap_nothing():
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert iou(point, point).item() == 0
    assert iou(point, torch.tensor([[0.0, 0, 9, 9]])).item() == 0


def test_generalised_overlap():
    box = torch.tensor([0.0, 0, 2, 2])
    assert generalised_iou(box, box).item() == 1
    # Side by side, a gap of 2 between them: no overlap, and 4 of the hull's 12 uncovered.
    assert generalised_iou(box, torch.tensor([4.0, 0, 6, 2])).item() == pytest.approx(-4 / 12)
    # One inside the other: the hull is the larger box, so it is the plain overlap.
    assert generalised_iou(box, torch.tensor([0.0, 0, 1, 2])).item() == pytest.approx(0.5)
    far = box.clone().requires_grad_()
    generalised_iou(far, torch.tensor([4.0, 0, 6, 2])).backward()
    assert far.grad is not None
    assert far.grad[2] > 0  # growing towards the other is better, though they do not touch


# --- codes ---------------------------------------------------------------------------------------


def test_codes_equal_the_legacy_form_and_are_undone():
    box, anchor = random_boxes(50), random_boxes(50, seed=1)
    code = encode_boxes(box, anchor, (0.1, 0.2))
    for b, a, c in zip(legacy(box).tolist(), legacy(anchor).tolist(), code.tolist(), strict=True):
        (bw, bh), (aw, ah) = ([x[2] - x[0] + 1, x[3] - x[1] + 1] for x in (b, a))
        shift = [(b[k] + 0.5 * (s - 1) - a[k] - 0.5 * (t - 1)) / t for k, s, t in ((0, bw, aw), (1, bh, ah))]
        expected = [shift[0] / 0.1, shift[1] / 0.1, math.log(bw / aw) / 0.2, math.log(bh / ah) / 0.2]
        assert c == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert torch.allclose(decode_boxes(code, anchor, (0.1, 0.2)), box, atol=1e-3)
    assert not torch.allclose(decode_boxes(code, anchor, (0.1, 0.1)), box, atol=1)


def test_codes_stay_finite():
    point, anchor = torch.zeros(1, 4), torch.tensor([[0.0, 0, 8, 8]])
    assert encode_boxes(point, anchor, (1, 1)).isfinite().all()
    assert encode_boxes(anchor, point, (1, 1)).isfinite().all()
    wild = decode_boxes(torch.tensor([[0.0, 0, 1e4, 1e4]]), anchor, (1, 1))
    assert (wild[0, 2] - wild[0, 0]).item() == pytest.approx(8 * 1000 / 16)


def test_clipping_is_per_image_and_can_be_the_legacy_one():
    box = torch.tensor([[[-5.0, 3, 20, 30], [40, 40, 50, 50]]]).repeat(2, 1, 1)
    size = torch.tensor([[10.0, 16], [60, 60]])
    assert clip_boxes(box, size).tolist() == [
        [[0, 3, 16, 10], [16, 10, 16, 10]],
        [[0, 3, 20, 30], [40, 40, 50, 50]],
    ]
    random = random_boxes(1, 200) - 30
    first, last = legacy(random).split(2, -1)
    limit = torch.tensor([[30.0, 50]])
    inside = [edge.clamp_min(0).minimum(limit.flip(-1) - 1) for edge in (first, last)]
    expected = torch.cat(inside, -1) + torch.tensor([0, 0, 1, 1])
    assert torch.allclose(clip_boxes(random, limit, least=1), expected, atol=1e-5)


# --- suppression ---------------------------------------------------------------------------------


def picks(way: str, *arguments: object, **options: object) -> list[list[int]]:
    """Kept indices of each image, by one of the two ways."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "one by one":
            patch.setattr(boxes, "_by_blocks", boxes._one_by_one)
        elif way == "small blocks":
            patch.setattr(boxes, "BLOCK", 8)
        index, valid = nms_picks(*arguments, **options)  # type: ignore[arg-type]
    assert torch.equal(valid, valid.sort(-1, descending=True)[0])  # what is invalid comes last
    assert index[~valid].eq(0).all()
    return [row[ok].tolist() for row, ok in zip(index, valid, strict=True)]


WAYS = ("blocks", "small blocks", "one by one")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_picks_equal_the_legacy_loop(way: str, threshold: float):
    """With "+1" in the loop: `nms(boxes)` there is `nms(boxes + (0, 0, 1, 1))` here."""
    box = random_boxes(3, 120, whole=True, side=60)
    score = torch.rand(3, 120, generator=torch.Generator().manual_seed(2)).mul(20).round()  # many ties
    score[1, 7:90] = -torch.inf  # rows that are no boxes
    score[2] = -torch.inf
    expected = [legacy_nms(legacy(b).tolist(), s.tolist(), threshold) for b, s in zip(box, score, strict=True)]
    assert len(expected[0]) < 120
    assert picks(way, box, score, threshold, 120) == expected
    assert picks(way, box, score, threshold, 9) == [kept[:9] for kept in expected]
    for n in range(3):
        assert nms(box[n], score[n], threshold).tolist() == expected[n]
        over = iou(box[n], box[n]) > threshold
        assert nms_keep(over, score[n]).nonzero().flatten().tolist() == sorted(expected[n])


@pytest.mark.parametrize("way", WAYS)
def test_a_long_chain_of_suppressions(way: str):
    """Each box overlaps its neighbours only: every second one is kept, and each decision hangs on the one before."""
    x = torch.arange(30.0) * 4
    box = torch.stack((x, torch.zeros(30), x + 10, torch.ones(30)), -1)[None]
    score = torch.arange(30.0, 0, -1)[None]
    assert picks(way, box, score, 0.3, 30) == [list(range(0, 30, 2))]
    assert picks(way, box, score, 0.5, 30) == [list(range(30))]


@pytest.mark.parametrize("way", WAYS)
def test_the_threshold_itself_is_kept(way: str):
    box = torch.tensor([[[0.0, 0, 2, 1], [0, 0, 1, 1]]])  # overlap 1/2
    score = torch.tensor([[2.0, 1]])
    assert picks(way, box, score, 0.5, 2) == [[0, 1]]
    assert picks(way, box, score, 0.4999, 2) == [[0]]


@pytest.mark.parametrize("way", WAYS)
def test_groups_do_not_suppress_one_another(way: str):
    box, score = random_boxes(2, 60, side=80), torch.rand(2, 60, generator=torch.Generator().manual_seed(1))
    group = torch.arange(60).remainder(3).expand(2, -1)
    found = picks(way, box, score, 0.3, 60, group_BN=group)
    for n in range(2):
        single = [nms(box[n, g::3], score[n, g::3], 0.3) * 3 + g for g in range(3)]
        assert sorted(found[n]) == sorted(torch.cat(single).tolist())
        assert all(score[n, a] >= score[n, b] for a, b in pairwise(found[n]))
    assert found != picks(way, box, score, 0.3, 60)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_in_nothing_out(way: str):
    assert picks(way, torch.zeros(2, 0, 4), torch.zeros(2, 0), 0.5, 3) == [[], []]
    assert picks(way, torch.zeros(2, 4, 4), torch.full((2, 4), torch.nan), 0.5, 3) == [[], []]
    # Boxes without area are boxes; none overlaps another.
    assert picks(way, torch.zeros(1, 4, 4), torch.zeros(1, 4), 0.5, 9) == [[0, 1, 2, 3]]
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)


def test_classes_share_overlaps():
    box = random_boxes(2, 40, side=80)
    score = torch.rand(2, 5, 40, generator=torch.Generator().manual_seed(1))
    score[:, :, 30:] = -torch.inf
    keep = nms_keep((iou(box, box) > 0.3)[:, None], score)
    for n in range(2):
        for c in range(5):
            assert keep[n, c].nonzero().flatten().tolist() == sorted(nms(box[n], score[n, c], 0.3).tolist())


def test_picks_wait_for_no_device():
    """On the meta device a look at a value is an error."""
    box, score = torch.zeros(2, 50, 4, device="meta"), torch.zeros(2, 50, device="meta")
    index, valid = nms_picks(box, score, 0.7, 10, group_BN=torch.zeros(2, 50, dtype=torch.int64, device="meta"))
    assert index.shape == valid.shape == (2, 10)
    with pytest.raises(RuntimeError, match="Meta tensors"):
        nms_picks(box, score, 0.7, 10, may_wait=True)
