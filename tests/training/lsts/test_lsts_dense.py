"""The dense head: which cells train on what, its losses and its answers, each against plain loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from training.lsts.config import LSTSConfig
from training.lsts.dense import DenseHead, DenseMaps, focal_loss
from training.lsts.head_base import Targets

STRIDE, CLASSES = 8, 3


def config(**head: Any) -> LSTSConfig:
    values: dict[str, Any] = {"kind": "dense", "channels": 16, "convs": 2, "centre_radius": 1.5}
    backbone = {
        "depth": 18, "width": 1.0, "split": 1, "stride": STRIDE, "downsample": "second", "feature_channels": 8,
        "frozen_stages": 0, "weights": None,
    }  # fmt: skip
    alignment = {
        "offsets": {"init": "grid", "radius": 1, "seed": 0, "learned": True, "clamp": 8}, "embed_channels": 4,
        "similarity": "softmax", "border": "zero", "quality": "code", "low2high": "code", "memory_ratio": 1,
    }  # fmt: skip
    return LSTSConfig.model_validate(
        {"backbone": backbone, "alignment": alignment, "head": values | head, "score_threshold": 0.4, "nms": 0.3,
         "max_boxes": 20}
    )  # fmt: skip


def case() -> tuple[DenseHead, DenseMaps, Targets, Tensor]:
    """Two images of different sizes in one padded batch; in the first a small object before a large one."""
    generator = torch.Generator().manual_seed(0)
    maps = DenseMaps(*(torch.randn(2, channels, 9, 10, generator=generator) for channels in (CLASSES, 4, 1)))
    box = torch.tensor(
        [[[4.0, 4, 68, 60], [24, 24, 44, 46], [0, 0, 0, 0]], [[10, 8, 45, 40], [0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    targets = Targets(box, torch.tensor([[2, 0, -1], [1, -1, -1]]), torch.ones(2))
    return DenseHead(config(), CLASSES), maps, targets, torch.tensor([[72.0, 80], [44, 52]])


def object_at(x: float, y: float, targets: Targets, n: int, radius: float) -> int:
    """Row of the object that a cell's centre is an example of, −1: none."""
    best, found = math.inf, -1
    for row, (x0, y0, x1, y1) in enumerate(targets.box_NG4[n].tolist()):
        inside = x0 < x < x1 and y0 < y < y1 and targets.label_NG[n, row] >= 0
        near = abs(x - (x0 + x1) / 2) < radius * STRIDE and abs(y - (y0 + y1) / 2) < radius * STRIDE
        if inside and near and (x1 - x0) * (y1 - y0) < best:
            best, found = (x1 - x0) * (y1 - y0), row
    return found


def plain_giou(a: list[float], b: list[float]) -> float:
    width, height = (max(min(a[k + 2], b[k + 2]) - max(a[k], b[k]), 0) for k in (0, 1))
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - width * height
    hull = math.prod(max(a[k + 2], b[k + 2]) - min(a[k], b[k]) for k in (0, 1))
    return width * height / union - (hull - union) / hull


def decoded(maps: DenseMaps, n: int, y: int, x: int) -> list[float]:
    side = [math.exp(v) * STRIDE for v in maps.side_N4HW[n, :, y, x].tolist()]
    centre = [(x + 0.5) * STRIDE, (y + 0.5) * STRIDE]
    return [centre[0] - side[0], centre[1] - side[1], centre[0] + side[2], centre[1] + side[3]]


@pytest.mark.parametrize("radius", [0.6, 1.5, 9.0])
def test_cells_of_objects(radius: float):
    _, maps, targets, size = case()
    head = DenseHead(config(centre_radius=radius), CLASSES)
    centre, inside = head._cells(maps, size)
    positive, match = head.assign(centre, targets)
    rows = set()
    for n in range(2):
        for k, (x, y) in enumerate(centre.tolist()):
            expected = object_at(x, y, targets, n, radius)
            rows.add(expected)
            assert (int(match[n, k]) if positive[n, k] else -1) == expected
            assert inside[n, k] == (x < size[n, 1] and y < size[n, 0])
    assert rows == {-1, 0, 1}


def test_losses_equal_a_plain_loop():
    head, maps, targets, size = case()
    found = head.losses(maps, targets, size, torch.zeros(2, dtype=torch.int64))
    totals = dict.fromkeys(("class", "box", "centre"), 0.0)
    for n in range(2):
        focal, distance, weight, entropy, count = 0.0, 0.0, 0.0, 0.0, 0
        for y in range(9):
            for x in range(10):
                cx, cy = (x + 0.5) * STRIDE, (y + 0.5) * STRIDE
                if cx >= size[n, 1] or cy >= size[n, 0]:
                    continue  # padding
                row = object_at(cx, cy, targets, n, 1.5)
                for c in range(CLASSES):
                    p = torch.sigmoid(maps.class_NCHW[n, c, y, x]).item()
                    hit = row >= 0 and int(targets.label_NG[n, row]) == c
                    focal += -0.25 * (1 - p) ** 2 * math.log(p) if hit else -0.75 * p**2 * math.log(1 - p)
                if row < 0:
                    continue
                x0, y0, x1, y1 = box = targets.box_NG4[n, row].tolist()
                sides = (cx - x0, x1 - cx), (cy - y0, y1 - cy)
                centreness = math.sqrt(math.prod(min(pair) / max(pair) for pair in sides))
                distance += centreness * (1 - plain_giou(decoded(maps, n, y, x), box))
                weight += centreness
                logit = maps.centre_N1HW[n, 0, y, x]
                entropy += binary_cross_entropy_with_logits(logit, torch.tensor(centreness)).item()
                count += 1
        assert count > 5
        totals["class"] += focal / count / 2
        totals["box"] += distance / weight / 2
        totals["centre"] += entropy / count / 2
    for name, value in totals.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4), name
    assert found["loss"].item() == pytest.approx(sum(totals.values()), rel=1e-4)


def test_focal_loss_is_small_where_the_answer_is_clear():
    logit = torch.tensor([4.0, 4.0, 0.0])
    loss = focal_loss(logit, torch.tensor([1.0, 0, 1]))
    assert loss[0] < 1e-4 < 0.02 < loss[2] < loss[1]


def test_detections_equal_a_plain_loop():
    head, maps, _, size = case()
    found = head.detect(maps, size)
    for n in range(2):
        height, width = size[n].tolist()
        rows = []
        for y in range(9):
            for x in range(10):
                if (x + 0.5) * STRIDE >= width or (y + 0.5) * STRIDE >= height:
                    continue
                box = decoded(maps, n, y, x)
                box = [max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)]
                for c in range(CLASSES):
                    product = maps.class_NCHW[n, c, y, x].sigmoid() * maps.centre_N1HW[n, 0, y, x].sigmoid()
                    if product.sqrt() > 0.4:
                        rows.append((product.sqrt().item(), c, box))
        kept: list[tuple[float, int, list[float]]] = []
        for row in sorted(rows, key=lambda r: -r[0]):
            if all(other[1] != row[1] or plain_iou(other[2], row[2]) <= 0.3 for other in kept):
                kept.append(row)
        assert len(rows) > len(kept) > 5
        kept = kept[:20]
        count = int(found.valid_NM[n].sum())
        assert found.label_NM[n, :count].tolist() == [c for _, c, _ in kept]
        assert torch.allclose(found.score_NM[n, :count], torch.tensor([s for s, *_ in kept]), atol=1e-5)
        assert torch.allclose(found.box_NM4[n, :count], torch.tensor([b for *_, b in kept]), atol=1e-3)


def plain_iou(a: list[float], b: list[float]) -> float:
    width, height = (max(min(a[k + 2], b[k + 2]) - max(a[k], b[k]), 0) for k in (0, 1))
    return width * height / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - width * height)


def test_before_training_every_class_is_improbable():
    head = DenseHead(config(), CLASSES)
    maps = head(torch.randn(1, 8, 9, 10))
    assert maps.class_NCHW.sigmoid().mean().item() == pytest.approx(0.01, rel=0.3)
    # Without convolutions the towers are nothing, and the maps read the features.
    plain = DenseHead(config(convs=0), CLASSES)
    assert sum(p.numel() for p in plain.parameters()) == 9 * 8 * (CLASSES + 5) + CLASSES + 5
    assert plain(torch.randn(1, 8, 9, 10)).side_N4HW.shape == (1, 4, 9, 10)
