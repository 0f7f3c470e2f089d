"""The R-FCN head against plain loops in the form of the legacy code, whose boxes name first and last pixels."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from training.lsts.anchors import assign_anchors, base_anchors, grid_anchors, sample_anchors
from training.lsts.config import LSTSConfig
from training.lsts.head_base import Targets
from training.lsts.rfcn import RFCNHead, RFCNMaps

STRIDE, BINS, CLASSES = 8, 3, 4


def config(*, channels: int = 8, stride: int = STRIDE, **head: Any) -> LSTSConfig:
    values: dict[str, Any] = {
        "kind": "rfcn", "anchor_scales": [1, 2, 4], "anchor_ratios": [0.5, 1, 2], "proposals_before": 150,
        "proposals": 50, "bins": BINS, "hard_examples": 12,
    }  # fmt: skip
    backbone = {
        "depth": 18, "width": 1.0, "split": 1, "stride": stride, "downsample": "second", "feature_channels": channels,
        "frozen_stages": 0, "weights": None,
    }  # fmt: skip
    alignment = {
        "offsets": {"init": "grid", "radius": 1, "seed": 0, "learned": True, "clamp": 8}, "embed_channels": 4,
        "similarity": "softmax", "border": "zero", "quality": "code", "low2high": "code", "memory_ratio": 1,
    }  # fmt: skip
    return LSTSConfig.model_validate(
        {"backbone": backbone, "alignment": alignment, "head": values | head, "score_threshold": 0.05, "nms": 0.3,
         "max_boxes": 25}
    )  # fmt: skip


# --- the legacy form, one image, boxes x1, y1, x2, y2 of first and last pixels -------------------


def legacy_anchor_rows(scales: list[float], ratios: list[float], base: int) -> list[list[float]]:
    """Windows around a (0, 0, base−1, base−1) reference, ratios first, then scales."""
    centre, rows = 0.5 * (base - 1), []
    for ratio in ratios:
        width = float(np.round(np.sqrt(base * base / ratio)))
        height = float(np.round(width * ratio))
        for scale in scales:
            half = [0.5 * (side * scale - 1) for side in (width, height)]
            rows.append([centre - half[0], centre - half[1], centre + half[0], centre + half[1]])
    return rows


def legacy_iou(a: list[float], b: list[float]) -> float:
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) + 1 for k in (0, 1))
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (sum((x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)) - width * height)


def legacy_encode(box: list[float], anchor: list[float], std: tuple[float, ...]) -> list[float]:
    code = []
    for k in (0, 1):
        width, own = anchor[k + 2] - anchor[k] + 1, box[k + 2] - box[k] + 1
        code.append((box[k] + 0.5 * (own - 1) - anchor[k] - 0.5 * (width - 1)) / width / std[k])
    code += [math.log((box[k + 2] - box[k] + 1) / (anchor[k + 2] - anchor[k] + 1)) / std[k + 2] for k in (0, 1)]
    return code


def legacy_decode(code: list[float], anchor: list[float], std: tuple[float, ...], size: tuple[int, int]) -> list[float]:
    """Decoded, then clipped to the pixels of an image of (height, width)."""
    result = [0.0] * 4
    for k in (0, 1):
        width = anchor[k + 2] - anchor[k] + 1
        centre = code[k] * std[k] * width + anchor[k] + 0.5 * (width - 1)
        own = math.exp(code[k + 2] * std[k + 2]) * width
        for place, edge in ((k, centre - 0.5 * (own - 1)), (k + 2, centre + 0.5 * (own - 1))):
            result[place] = max(min(edge, size[1 - k] - 1), 0)
    return result


def legacy_nms(box: list[list[float]], order: list[int], threshold: float) -> list[int]:
    kept: list[int] = []
    for index in order:
        if all(legacy_iou(box[index], box[k]) <= threshold for k in kept):
            kept.append(index)
    return kept


def legacy_score(maps: Tensor, box: list[float]) -> Tensor:
    """Mean over the bins of position-sensitive pooling of one region, (C·bins²,H,W) → (C,)."""
    height, width = maps.shape[1:]
    low = [math.floor(v + 0.5) / STRIDE for v in box[:2]]
    high = [(math.floor(v + 0.5) + 1) / STRIDE for v in box[2:]]
    side = [max(h - v, 0.1) / BINS for h, v in zip(high, low, strict=True)]
    total = torch.zeros(maps.shape[0] // BINS**2)
    for row in range(BINS):
        for column in range(BINS):
            top, bottom = (min(max(v, 0), height) for v in bounds(row, side[1], low[1]))
            left, right = (min(max(v, 0), width) for v in bounds(column, side[0], low[0]))
            if bottom > top and right > left:
                planes = maps[row * BINS + column :: BINS**2]
                total += planes[:, top:bottom, left:right].mean((1, 2))
    return total / BINS**2


def bounds(number: int, side: float, low: float) -> tuple[int, int]:
    # Rounded to a billionth, so that no binary fraction adds a cell.
    return math.floor(round(number * side + low, 9)), math.ceil(round((number + 1) * side + low, 9))


# --- a batch -------------------------------------------------------------------------------------


def case(seed: int = 0) -> tuple[RFCNHead, RFCNMaps, Targets, Tensor]:
    """Two images of different sizes in one padded batch, with strong random maps."""
    generator = torch.Generator().manual_seed(seed)
    head = RFCNHead(config(), CLASSES)
    shapes = [(18, 11, 13), (36, 11, 13), ((1 + CLASSES) * BINS**2, 11, 13), (8 * BINS**2, 11, 13)]
    maps = RFCNMaps(*(torch.randn(2, *shape, generator=generator) * 2 for shape in shapes))
    box = torch.tensor(
        [[[10.0, 12, 42, 47], [50, 30, 66, 46], [0, 0, 0, 0]], [[3, 5, 37, 20], [0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    targets = Targets(box, torch.tensor([[2, 0, -1], [3, -1, -1]]), torch.ones(2))
    size = torch.tensor([[88.0, 104], [61, 77]])
    # Anchors on objects are among the best, and stay near them: some regions are examples of objects.
    label, _ = assign_anchors(grid_anchors(head.base_A4, 11, 13, STRIDE), targets, size)
    maps.proposal_class[:, 9:] += 6 * (label == 1).view(2, 11, 13, 9).permute(0, 3, 1, 2)
    return head, maps._replace(proposal_box=maps.proposal_box / 2), targets, size


def rows_of(box: Tensor) -> list[list[float]]:
    """As boxes of first and last pixels."""
    return (box - torch.tensor([0, 0, 1, 1])).tolist()


def by_anchor(maps: Tensor, anchors: int, values: int, *, value_first: bool) -> Tensor:
    """(C,H,W) of one image → (H·W·A,values)."""
    order = (values, anchors) if value_first else (anchors, values)
    parts = maps.reshape(*order, *maps.shape[1:])
    return torch.einsum("vahw->hwav" if value_first else "avhw->hwav", parts).reshape(-1, values)


# --- anchors -------------------------------------------------------------------------------------


def test_anchors_have_the_legacy_rounding():
    found = base_anchors((8, 16, 32), (0.5, 1, 2), 16)
    assert rows_of(found) == legacy_anchor_rows([8, 16, 32], [0.5, 1, 2], 16)
    assert rows_of(found)[0] == [-84, -40, 99, 55]  # 184 × 96: 23 × 12 where 16²/0.5 has the root 22.6
    plain = torch.tensor([16 * 8 / 0.5**0.5, 16 * 8 * 0.5**0.5])
    assert not torch.allclose(found[0, 2:] - found[0, :2], plain, atol=2)
    # With another stride the sizes stay and the centre is the cell's.
    assert torch.equal(base_anchors((8, 16, 32), (0.5, 1, 2), 8), found - 4)


def test_grid_of_anchors():
    base = base_anchors((1, 2), (1,), 16)
    grid = grid_anchors(base, 3, 5, 16).view(3, 5, 2, 4)
    assert torch.equal(grid[0, 0], base)
    assert torch.equal(grid[2, 3], base + torch.tensor([48, 32, 48, 32]))


def legacy_labels(anchors: list[list[float]], objects: list[list[float]], size: tuple[int, int]) -> list[int]:
    """1, 0 or −1 per anchor."""
    inside = [a[0] >= 0 and a[1] >= 0 and a[2] < size[1] and a[3] < size[0] for a in anchors]
    overlap = [[legacy_iou(a, o) if ok else -1.0 for o in objects] for a, ok in zip(anchors, inside, strict=True)]
    label = [0 if ok and max(row, default=0) < 0.3 else -1 for ok, row in zip(inside, overlap, strict=True)]
    for column in range(len(objects)):
        best = max(row[column] for row in overlap)
        for index, row in enumerate(overlap):
            if row[column] == best > 0:
                label[index] = 1
    return [1 if max(row, default=0) >= 0.7 else value for row, value in zip(overlap, label, strict=True)]


def test_examples_among_anchors_equal_the_legacy_loop():
    head, _, targets, size = case()
    anchors = grid_anchors(head.base_A4, 11, 13, STRIDE)
    label, match = assign_anchors(anchors, targets, size)
    for n in range(2):
        objects = rows_of(targets.box_NG4[n][targets.label_NG[n] >= 0])
        expected = legacy_labels(rows_of(anchors), objects, (int(size[n, 0]), int(size[n, 1])))
        assert label[n].tolist() == expected
        assert {1, 0, -1} == set(expected)
        for index in (label[n] == 1).nonzero().flatten().tolist():
            overlap = [legacy_iou(rows_of(anchors)[index], o) for o in objects]
            assert overlap[match[n, index]] == max(overlap)
    nothing, _ = assign_anchors(anchors, targets._replace(label_NG=torch.full((2, 3), -1)), size)
    assert (nothing == 1).sum() == 0
    assert ((nothing == 0) | (label < 0)).all()


def test_draw_of_anchors():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(-1, 2, (3, 20, 20, 3), generator=generator)
    label[1][label[1] == 1] = -1
    label[1, 4, 4, 0] = 1
    label[2, :, :] = -1
    label[2, 0, 0] = torch.tensor([0, 1, -1])
    seed = torch.tensor([5, 6, 7])
    fg, fg_counts, bg, bg_counts = sample_anchors(label, seed)
    assert fg_counts.sum(1).tolist() == [128, 1, 1]
    assert bg_counts.sum(1).tolist() == [128, 255, 1]
    for n in range(3):
        flat = label[n].flatten()
        assert (flat[fg[n][fg_counts[n]]] == 1).all()
        assert (flat[bg[n][bg_counts[n]]] == 0).all()
        assert len(set(fg[n][fg_counts[n]].tolist())) == fg_counts[n].sum()
    # A function of the seed, whatever the batch and the padding; another seed draws others.
    wide = F.pad(label[:1], (0, 0, 0, 7, 0, 4), value=-1)
    again, counts, *_ = sample_anchors(wide, seed[:1])
    places = {(i // 81, i % 81) for i in again[0][counts[0]].tolist()}
    assert places == {(i // 60, i % 60) for i in fg[0][fg_counts[0]].tolist()}
    other, *_ = sample_anchors(label[:1], seed[1:2])
    assert set(other[0].tolist()) != set(fg[0].tolist())


# --- proposals and losses ------------------------------------------------------------------------


def legacy_proposals(head: RFCNHead, maps: RFCNMaps, n: int, size: tuple[int, int]) -> list[list[float]]:
    """The image alone, unpadded: the map has ⌈size / stride⌉ cells."""
    height, width = (-(-side // STRIDE) for side in size)
    logit = by_anchor(maps.proposal_class[n, :, :height, :width], 9, 2, value_first=True)
    code = by_anchor(maps.proposal_box[n, :, :height, :width], 9, 4, value_first=False).tolist()
    anchors = rows_of(grid_anchors(head.base_A4, height, width, STRIDE))
    std = (0.1, 0.1, 0.4, 0.4)
    box = [legacy_decode(c, a, std, size) for c, a in zip(code, anchors, strict=True)]
    score = logit.softmax(1)[:, 1].tolist()
    order = sorted(range(len(box)), key=lambda i: -score[i])[: head.head.proposals_before]
    return [box[i] for i in legacy_nms(box, order, 0.7)[: head.head.proposals]]


def sizes_of(size: Tensor) -> list[tuple[int, int]]:
    return [(int(h), int(w)) for h, w in size.tolist()]


def test_proposals_equal_the_legacy_loop():
    head, maps, _, size = case()
    box, valid = head.propose(maps, size)
    assert valid.shape == (2, 50)
    for n, own in enumerate(sizes_of(size)):
        expected = torch.tensor(legacy_proposals(head, maps, n, own)) + torch.tensor([0, 0, 1, 1])
        assert torch.allclose(box[n][valid[n]], expected, atol=1e-3)
        assert (box[n][valid[n]][:, 2:] <= size[n].flip(0)).all()


def test_few_anchors_leave_rows_empty():
    head = RFCNHead(config(anchor_scales=[4], anchor_ratios=[1]), CLASSES)
    maps = head(torch.zeros(1, 8, 2, 2))
    box, valid = head.propose(maps, torch.tensor([[16.0, 16]]))
    assert 1 <= valid.sum() < 50
    assert box[~valid].eq(0).all()


def test_losses_equal_the_legacy_loop():
    head, maps, targets, size = case()
    seed = torch.tensor([3, 4])
    found = head.losses(maps, targets, size, seed)
    totals = dict.fromkeys(("proposal_class", "proposal_box", "class", "box"), 0.0)
    anchors = grid_anchors(head.base_A4, 11, 13, STRIDE)
    label, _ = assign_anchors(anchors, targets, size)
    sample = sample_anchors(label.view(2, 11, 13, 9), seed)
    for n, own in enumerate(sizes_of(size)):
        rows = [r for r, c in zip(targets.box_NG4[n], targets.label_NG[n], strict=True) if c >= 0]
        objects, classes = rows_of(torch.stack(rows)), targets.label_NG[n].tolist()
        # Proposals' part, of the anchors drawn.
        logit = by_anchor(maps.proposal_class[n], 9, 2, value_first=True)
        code = by_anchor(maps.proposal_box[n], 9, 4, value_first=False)
        fg, bg = (sample[k][n][sample[k + 1][n]].tolist() for k in (0, 2))
        assert 0 < len(fg) < 128
        assert len(fg) + len(bg) <= 256
        entropy = [-logit[i].log_softmax(0)[1].item() for i in fg] + [-logit[i].log_softmax(0)[0].item() for i in bg]
        totals["proposal_class"] += sum(entropy) / len(entropy)
        for i in fg:
            anchor = rows_of(anchors[i : i + 1])[0]
            best = max(objects, key=lambda o, anchor=anchor: legacy_iou(anchor, o))  # type: ignore[misc]
            goal = torch.tensor(legacy_encode(best, anchor, (0.1, 0.1, 0.4, 0.4)))
            totals["proposal_box"] += F.smooth_l1_loss(code[i], goal, reduction="sum").item() / 256
        # Regions: all proposals and the objects; the hardest train.
        losses = []
        for region in legacy_proposals(head, maps, n, own) + objects:
            overlap = [legacy_iou(region, o) for o in objects]
            place = overlap.index(max(overlap))
            positive = overlap[place] >= 0.5
            score = legacy_score(maps.region_class[n], region)
            entropy_loss = -score.log_softmax(0)[classes[place] + 1 if positive else 0].item()
            box_loss = 0.0
            if positive:
                goal = torch.tensor(legacy_encode(objects[place], region, (0.1, 0.1, 0.2, 0.2)))
                code_here = legacy_score(maps.region_box[n], region)[4:]
                box_loss = F.smooth_l1_loss(code_here, goal, reduction="sum").item()
            losses.append((entropy_loss, box_loss))
        assert sum(box > 0 for _, box in losses) > len(objects)
        hardest = sorted(losses, key=lambda pair: -sum(pair))[:12]
        totals["class"] += sum(c for c, _ in hardest) / 12
        totals["box"] += sum(b for _, b in hardest) / 12
    for name, value in totals.items():
        assert found[name].item() == pytest.approx(value / 2, rel=1e-4), name
    assert found["loss"].item() == pytest.approx(sum(totals.values()) / 2, rel=1e-4)


def test_detections_equal_the_legacy_loop():
    head, maps, _, size = case()
    found = head.detect(maps, size)
    assert found.valid_NM.shape == (2, 25)
    for n, own in enumerate(sizes_of(size)):
        regions = legacy_proposals(head, maps, n, own)
        scores = torch.stack([legacy_score(maps.region_class[n], r).softmax(0) for r in regions])
        codes = [legacy_score(maps.region_box[n], r)[4:].tolist() for r in regions]
        box = [legacy_decode(c, r, (0.1, 0.1, 0.2, 0.2), own) for c, r in zip(codes, regions, strict=True)]
        expected = []
        for c in range(CLASSES):
            score = scores[:, c + 1].tolist()
            order = [i for i in sorted(range(len(box)), key=lambda i, s=score: -s[i]) if score[i] > 0.05]  # type: ignore[misc]
            expected += [(score[i], c, box[i]) for i in legacy_nms(box, order, 0.3)]
        expected = sorted(expected, key=lambda row: -row[0])[:25]
        count = int(found.valid_NM[n].sum())
        assert count == len(expected) > 5
        assert found.label_NM[n, :count].tolist() == [c for _, c, _ in expected]
        assert torch.allclose(found.score_NM[n, :count], torch.tensor([s for s, *_ in expected]), atol=1e-5)
        boxes = torch.tensor([b for *_, b in expected]) + torch.tensor([0, 0, 1, 1])
        assert torch.allclose(found.box_NM4[n, :count], boxes, atol=1e-3)


def test_gradients_reach_every_convolution_but_the_unused_codes():
    head, maps, targets, size = case()
    maps = RFCNMaps(*(part.requires_grad_() for part in maps))
    head.losses(maps, targets, size, torch.tensor([3, 4]))["loss"].backward()
    for part in maps:
        assert part.grad is not None
        assert part.grad.abs().sum() > 0
    assert maps.region_box.grad is not None
    assert maps.region_box.grad[:, : 4 * BINS**2].abs().sum() == 0


# --- size ----------------------------------------------------------------------------------------


def test_published_size_and_cost():
    published = config(
        channels=1024, stride=16, anchor_scales=[8, 16, 32], proposals_before=6000, proposals=300, bins=7,
        hard_examples=128,
    )  # fmt: skip
    with torch.device("meta"):
        head = RFCNHead(published, 30)
    assert sum(p.numel() for p in head.parameters()) == 512 * (54 + 1911) + 54 + 1911
    first, second = (head.proposal_class, head.proposal_box), (head.region_class, head.region_box)
    assert sum(p.numel() for part in (first, second) for m in part for p in m.parameters()) / 1e6 == pytest.approx(
        1.01, abs=0.005
    )
    for layers, gmac in ((first, 0.07), (second, 2.34)):
        with FlopCounterMode(display=False) as counter:
            for layer in layers:
                layer(torch.zeros(1, 512, 38, 63, device="meta"))
        assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.005)
    shapes = [part.shape for part in head(torch.zeros(1, 1024, 38, 63, device="meta"))]
    assert [s[1] for s in shapes] == [18, 36, 1519, 392]
