"""What holds for every detection head: fixed shapes, no waits, padding and weights; and each of them learns."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.layers.boxes import iou
from training.lsts.config import LSTSConfig
from training.lsts.dense import DenseHead
from training.lsts.heads import Boxes, DetectionHead, Targets, build_head
from training.lsts.rfcn import RFCNHead

STRIDE, CLASSES, CHANNELS, SIDE = 8, 2, 32, 64
KINDS: dict[str, dict[str, Any]] = {
    "rfcn": {
        "kind": "rfcn", "anchor_scales": [1.5], "anchor_ratios": [0.5, 1, 2], "proposals_before": 100,
        "proposals": 30, "bins": 3, "hard_examples": 16,
    },
    "dense": {"kind": "dense", "channels": 32, "convs": 1, "centre_radius": 1.5},
}  # fmt: skip


def config(kind: str) -> LSTSConfig:
    backbone = {
        "depth": 18, "width": 1.0, "split": 1, "stride": STRIDE, "downsample": "second", "feature_channels": CHANNELS,
        "frozen_stages": 0, "weights": None,
    }  # fmt: skip
    alignment = {
        "offsets": {"init": "grid", "radius": 1, "seed": 0, "learned": True, "clamp": 8}, "embed_channels": 4,
        "similarity": "softmax", "border": "zero", "quality": "code", "low2high": "code", "memory_ratio": 1,
    }  # fmt: skip
    return LSTSConfig.model_validate(
        {"backbone": backbone, "alignment": alignment, "head": KINDS[kind], "score_threshold": 1e-4, "nms": 0.3,
         "max_boxes": 30}
    )  # fmt: skip


@pytest.fixture(params=list(KINDS))
def head(request: pytest.FixtureRequest) -> DetectionHead:
    torch.manual_seed(0)
    return build_head(config(request.param), CLASSES)


def rough_maps(head: DetectionHead, batch: int = 3, height: int = 8, width: int = 8) -> Any:
    """Raw maps with large differences between cells."""
    like = head(torch.zeros(batch, CHANNELS, height, width))
    generator = torch.Generator().manual_seed(1)
    return type(like)(*(torch.randn(part.shape, generator=generator) for part in like))


def some_targets() -> Targets:
    box = torch.tensor(
        [[[8.0, 8, 40, 36], [30, 40, 50, 60]], [[20, 4, 40, 24], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    return Targets(box, torch.tensor([[0, 1], [1, -1], [-1, -1]]), torch.ones(3))


SIZE, SEED = torch.tensor([[64.0, 64], [40, 56], [64, 64]]), torch.tensor([1, 2, 3])


def test_the_kind_decides():
    assert isinstance(build_head(config("rfcn"), 3), RFCNHead)
    assert isinstance(build_head(config("dense"), 3), DenseHead)
    with pytest.raises(ValueError, match="got dense"):
        RFCNHead(config("dense"), 3)
    with pytest.raises(ValueError, match="got rfcn"):
        DenseHead(config("rfcn"), 3)


def test_weights_are_drawn_from_a_narrow_normal(head: DetectionHead):
    assert head.in_channels == CHANNELS
    drawn = torch.cat([p.flatten() for p in head.parameters() if p.dim() > 1])
    assert drawn.std().item() == pytest.approx(0.01, rel=0.1)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    nn.init.constant_(next(head.parameters()), 3.0)
    torch.manual_seed(0)
    head.initialise()
    assert next(head.parameters()).abs().max() < 0.1
    assert head.state_dict().keys() == before.keys()


def test_losses_wait_for_no_device(head: DetectionHead):
    """On the meta device a look at a value is an error, e.g. a boolean index or an `if` on a tensor."""
    head = head.to("meta")
    maps = head(torch.zeros(3, CHANNELS, 8, 8, device="meta"))
    targets = Targets(*(part.to("meta") for part in some_targets()))
    losses = head.losses(maps, targets, SIZE.to("meta"), SEED.to("meta"))
    assert all(value.shape == () for value in losses.values())
    losses["loss"].backward()
    with pytest.raises(RuntimeError, match="meta"):
        bool(losses["loss"] > 0)


def test_the_forward_pass_is_one_graph(head: DetectionHead):
    feature = torch.randn(2, CHANNELS, 8, 8)
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    for one, other in zip(compiled(feature), head(feature), strict=True):
        assert torch.allclose(one, other)


def test_the_total_is_the_sum_of_the_parts(head: DetectionHead):
    losses = head.losses(rough_maps(head), some_targets(), SIZE, SEED)
    assert losses["loss"].item() == pytest.approx(sum(v.item() for k, v in losses.items() if k != "loss"))
    assert min(v.item() for v in losses.values()) > 0


def test_reduced_precision_costs_no_precision_of_the_losses(head: DetectionHead):
    feature = torch.randn(3, CHANNELS, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        maps = head(feature)
        assert maps[0].dtype == torch.bfloat16
        losses, found = head.losses(maps, some_targets(), SIZE, SEED), head.detect(maps, SIZE)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert found.box_NM4.dtype == found.score_NM.dtype == torch.float32
    exact = head.losses(type(maps)(*(part.float() for part in maps)), some_targets(), SIZE, SEED)
    assert all(torch.equal(exact[name], value) for name, value in losses.items())


def test_images_count_by_weight(head: DetectionHead):
    maps, targets = rough_maps(head), some_targets()
    single = []
    for n in range(3):
        own, row = Targets(*(part[n : n + 1] for part in targets)), slice(n, n + 1)
        single.append(head.losses(type(maps)(*(part[row] for part in maps)), own, SIZE[row], SEED[row]))
    for weight in ([1.0, 1, 1], [1, 0, 1], [0, 2, 1]):
        together = head.losses(maps, targets._replace(weight_N=torch.tensor(weight)), SIZE, SEED)
        for name, value in together.items():
            expected = sum(w * one[name].item() for w, one in zip(weight, single, strict=True)) / sum(weight)
            assert value.item() == pytest.approx(expected, rel=1e-5), name


def test_batches_without_known_objects_train_nothing(head: DetectionHead):
    maps = rough_maps(head)
    maps = type(maps)(*(part.requires_grad_() for part in maps))
    losses = head.losses(maps, some_targets()._replace(weight_N=torch.zeros(3)), SIZE, SEED)
    assert all(value.item() == 0 for value in losses.values())
    losses["loss"].backward()
    assert all(part.grad is None or part.grad.eq(0).all() for part in maps)
    # Known to be empty is something else: everything is background.
    none = Targets(torch.zeros(3, 0, 4), torch.zeros(3, 0, dtype=torch.int64), torch.ones(3))
    assert head.losses(maps, none, SIZE, SEED)["loss"] > 0.01


def test_further_rows_and_padding_change_nothing(head: DetectionHead):
    maps, targets = rough_maps(head), some_targets()
    losses, found = head.losses(maps, targets, SIZE, SEED), head.detect(maps, SIZE)
    pad = nn.functional.pad
    wide = type(maps)(*(pad(part, (0, 3, 0, 2), value=5.0) for part in maps))
    more = Targets(
        pad(targets.box_NG4, (0, 0, 0, 2), value=7), pad(targets.label_NG, (0, 2), value=-1), targets.weight_N
    )
    for name, value in head.losses(wide, more, SIZE, SEED).items():
        assert value.item() == pytest.approx(losses[name].item(), rel=1e-4), name
    for one, other in zip(head.detect(wide, SIZE), found, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-3)
    # The control: what lies inside the image counts.
    assert not torch.equal(head.detect(wide, SIZE + 16).score_NM, found.score_NM)


def test_what_is_found_is_sorted_inside_and_filled_up(head: DetectionHead):
    found = head.detect(rough_maps(head), SIZE)
    assert found.box_NM4.shape == (3, 30, 4)
    assert found.valid_NM.any(1).all()
    for n in range(3):
        count = int(found.valid_NM[n].sum())
        assert found.valid_NM[n, :count].all()
        assert (found.score_NM[n].diff() <= 0).all()
        box = found.box_NM4[n, :count]
        assert (box[:, :2] >= 0).all()
        assert (box[:, 2:] <= SIZE[n].flip(0)).all()
        assert (box[:, 2:] > box[:, :2]).all()
        assert set(found.label_NM[n, :count].tolist()) <= set(range(CLASSES))
        assert found.label_NM[n, count:].eq(-1).all()
        assert found.box_NM4[n, count:].eq(0).all()
        assert found.score_NM[n, count:].eq(0).all()
        for label in range(CLASSES):
            own = box[found.label_NM[n, :count] == label]
            assert (iou(own, own).tril(-1) <= 0.3).all()


def test_nothing_is_found_where_nothing_is_likely(head: DetectionHead):
    """Also fewer candidates than rows of the answer."""
    head.config = head.config.model_copy(update={"score_threshold": 0.999, "max_boxes": 500})
    found = head.detect(rough_maps(head), SIZE)
    assert found.valid_NM.shape == (3, 500)
    assert not found.valid_NM.any()
    assert found.label_NM.eq(-1).all()


def test_images_of_a_batch_do_not_see_each_other(head: DetectionHead):
    maps = rough_maps(head)
    found = head.detect(maps, SIZE)
    for n in range(3):
        alone = head.detect(type(maps)(*(part[n : n + 1] for part in maps)), SIZE[n : n + 1])
        for one, other in zip(alone, found, strict=True):
            assert torch.allclose(one[0].float(), other[n].float(), atol=1e-4)


# --- learning ------------------------------------------------------------------------------------


def pictures(count: int) -> tuple[Tensor, Targets]:
    """Noise with one rectangle on the left, and every second time one on the right: red of class 0, blue of class 1."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, 3, SIDE, SIDE, generator=generator) * 0.1
    box, label = torch.zeros(count, 2, 4), torch.full((count, 2), -1)
    for n in range(count):
        for row in range(1 + n % 2):
            side = torch.randint(16, 31, (2,), generator=generator)
            draw = torch.rand(2, generator=generator) * (torch.tensor([SIDE // 2, SIDE]) - side)
            x0, y0 = (draw + torch.tensor([row * SIDE // 2, 0])).long().tolist()
            x1, y1 = x0 + int(side[0]), y0 + int(side[1])
            colour = int(torch.randint(0, 2, (1,), generator=generator))
            image[n, :, y0:y1, x0:x1] = -1
            image[n, 2 * colour, y0:y1, x0:x1] = 1
            box[n, row], label[n, row] = torch.tensor([x0, y0, x1, y1]), colour
    return image, Targets(box, label, torch.ones(count))


def hits(found: Boxes, targets: Targets) -> float:
    """Share of the objects for which one of the two best boxes has the class and an IoU above 0.7."""
    right = (iou(targets.box_NG4, found.box_NM4[:, :2]) > 0.7) & (
        targets.label_NG[..., None] == found.label_NM[:, None, :2]
    )
    return (right.any(-1) & (targets.label_NG >= 0)).sum().item() / (targets.label_NG >= 0).sum().item()


def trained(kind: str, image: Tensor, targets: Targets, steps: int) -> tuple[list[float], Boxes]:
    """Losses of the steps, without the centre-ness that cannot fall to 0, and what is found after."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, CHANNELS)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
    layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1), nn.ReLU()]
    net, head = nn.Sequential(*layers), build_head(config(kind), CLASSES)
    parameters = [*net.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, 6e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    size = torch.full((len(image), 2), float(SIDE))
    curve = []
    for step in range(steps):
        seed = torch.arange(len(image)) + 1000 * step
        losses = head.losses(head(net(image)), targets, size, seed)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        schedule.step()
        curve.append((losses["loss"] - losses.get("centre", torch.zeros(()))).item())
    with torch.no_grad():
        return curve, head.detect(head(net(image)), size)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Beside another test, threads of small operators wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("kind", "steps"), [("rfcn", 150), ("dense", 60)])
def test_learns_a_few_pictures(kind: str, steps: int):
    image, targets = pictures(6)
    curve, found = trained(kind, image, targets, steps)
    assert sum(curve[-5:]) < 0.6 * sum(curve[:5])
    assert hits(found, targets) > 0.7
    # The control: with the objects of other pictures the same training finds those, and not what is there.
    others = Targets(targets.box_NG4.roll(2, 0), targets.label_NG.roll(2, 0), targets.weight_N)
    _, wrong = trained(kind, image, others, steps)
    assert hits(wrong, others) > 0.7
    assert hits(wrong, targets) < 0.2
    assert hits(found, others) < 0.2
