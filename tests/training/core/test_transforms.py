"""Crop, resize, flip and normalise: exactness, draws, and that canvas padding never shows."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from training.core.config import TransformConfig
from training.core.system import RawBatch
from training.core.transforms import ANCHORS, PAIRS, SCALES, ClipTransform, crop_boxes, resample_clips, source_rectangle

SIZES = ((40, 60), (64, 48), (50, 50), (44, 90))


def transform(**changes: object) -> ClipTransform:
    base = TransformConfig(size=32, train_crop="multiscale", eval_short_side=36, flip=True, normalise="imagenet")
    return ClipTransform(base.model_copy(update=changes))


def raw_batch(sizes: tuple[tuple[int, int], ...] = SIZES, padding: int = 0, first_seed: int = 7) -> RawBatch:
    """Noise clips of 3 frames in a common canvas whose padding has the given value."""
    generator = torch.Generator().manual_seed(1)
    height, width = (max(axis) for axis in zip(*sizes, strict=True))
    frames = torch.full((len(sizes), 3, height, width, 3), padding, dtype=torch.uint8)
    for place, (h, w) in enumerate(sizes):
        frames[place, :, :h, :w] = torch.randint(0, 256, (3, h, w, 3), generator=generator, dtype=torch.uint8)
    count = len(sizes)
    return RawBatch(
        frames_BTHWC=frames,
        size_B2=torch.tensor(sizes),
        label_B=torch.arange(count),
        key=tuple(str(i) for i in range(count)),
        seed_B=torch.arange(count) * 1_000_003 + first_seed,
        valid_B=torch.ones(count, dtype=torch.bool),
    )


def many(count: int, height: int = 64, width: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    seeds = torch.arange(count) * 7919 + 13
    return torch.tensor([[height, width]]).expand(count, 2), seeds


def test_centre_crop_of_a_clip_at_evaluation_size_is_slicing() -> None:
    raw = raw_batch(((36, 61), (50, 36)))
    batch = transform()(raw, train=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for place, (y, x) in enumerate([(2, 14), (9, 2)]):
        pixels = raw.frames_BTHWC[place, :, y : y + 32, x : x + 32]
        exact = pixels.permute(3, 0, 1, 2).float()
        assert batch.box_B4[place].tolist() == [y, x, 32, 32]
        shift = 0.0
        for channel in range(3):
            expected = exact[channel] * float(1 / (255 * std.double()[channel]))
            shift = max(shift, float((batch.video_BCTHW[place, channel] - expected).std()))
        assert shift < 1e-5
        torch.testing.assert_close(
            batch.video_BCTHW[place], ((pixels / 255 - mean) / std).permute(3, 0, 1, 2), rtol=1e-5, atol=1e-5
        )
    assert not batch.flip_B.any()


def test_box_of_input_size_is_bit_equal_to_slicing() -> None:
    raw = raw_batch()
    boxes = torch.tensor([[8.0, 28, 32, 32], [0, 0, 32, 32], [18, 18, 32, 32], [12, 58, 32, 32]])
    flips = torch.tensor([False, True, False, True])
    result = resample_clips(raw.frames_BTHWC, raw.size_B2, boxes, flips, 32)
    for place, (box, flip) in enumerate(zip(boxes.int().tolist(), flips.tolist(), strict=True)):
        expected = raw.frames_BTHWC[place, :, box[0] : box[0] + 32, box[1] : box[1] + 32].permute(3, 0, 1, 2).float()
        assert torch.equal(result[place], expected.flip(-1) if flip else expected)


@pytest.mark.parametrize("side", [16, 32, 100])
def test_whole_frame_equals_torchs_antialiased_resize(side: int) -> None:
    raw = raw_batch(((64, 48),))
    box = torch.tensor([[0.0, 0, 64, 48]])
    result = resample_clips(raw.frames_BTHWC, raw.size_B2, box, torch.tensor([False]), side)
    images = raw.frames_BTHWC[0].permute(0, 3, 1, 2).float()
    expected = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(result[0].permute(1, 0, 2, 3), expected, rtol=1e-4, atol=1e-2)


def test_canvas_padding_never_leaks() -> None:
    for train in (False, True):
        for crop in ("multiscale", "random", "center"):
            dark = transform(train_crop=crop)(raw_batch(padding=0), train=train)
            bright = transform(train_crop=crop)(raw_batch(padding=255), train=train)
            assert torch.equal(dark.video_BCTHW, bright.video_BCTHW)
    # Control: a box over the edge of a clip would show what lies there, if sizes were ignored.
    raw, bright_raw = raw_batch(padding=0), raw_batch(padding=255)
    whole = torch.tensor([[64, 90]] * 4)
    box = torch.tensor([[20.0, 0, 40, 40]] * 4)
    flip = torch.zeros(4, dtype=torch.bool)
    leaky = [resample_clips(r.frames_BTHWC, whole, box, flip, 32) for r in (raw, bright_raw)]
    assert not torch.equal(*leaky)
    held = [resample_clips(r.frames_BTHWC, r.size_B2, box, flip, 32) for r in (raw, bright_raw)]
    assert torch.equal(*held)


def test_all_frames_of_a_clip_get_the_same_crop() -> None:
    raw = raw_batch()
    still = raw.frames_BTHWC[:, :1].expand_as(raw.frames_BTHWC).contiguous()
    batch = transform()(RawBatch(still, raw.size_B2, raw.label_B, raw.key, raw.seed_B, raw.valid_B), train=True)
    assert torch.equal(batch.video_BCTHW[:, :, 0], batch.video_BCTHW[:, :, 2])


def test_a_clip_is_augmented_the_same_in_any_batch() -> None:
    raw = raw_batch()
    whole = transform()(raw, train=True)
    for place in range(4):
        h, w = SIZES[place]
        part = slice(place, place + 1)
        alone = RawBatch(
            raw.frames_BTHWC[part, :, :h, :w].contiguous(),
            raw.size_B2[part],
            raw.label_B[part],
            raw.key[part],
            raw.seed_B[part],
            raw.valid_B[part],
        )
        single = transform()(alone, train=True)
        assert torch.equal(single.box_B4, whole.box_B4[part])
        assert torch.equal(single.flip_B, whole.flip_B[part])
        torch.testing.assert_close(single.video_BCTHW, whole.video_BCTHW[part], rtol=1e-5, atol=1e-5)
    other = transform()(raw_batch(first_seed=8), train=True)
    assert not torch.equal(other.box_B4, whole.box_B4)


def test_multiscale_crops_are_those_of_the_paper() -> None:
    size_B2, seeds = many(4000)
    boxes = crop_boxes(size_B2, seeds, transform().config, train=True)
    sides = [int(64 * s) for s in SCALES]
    counts = torch.zeros(len(sides), len(sides))
    anchors: set[tuple[int, int]] = set()
    for y, x, h, w in boxes.tolist():
        i, j = sides.index(int(h)), sides.index(int(w))
        counts[i, j] += 1
        free = (64 - h, 96 - w)
        places = [(a, b) for a, b in ANCHORS if int(free[0] * a / 4) == y and int(free[1] * b / 4) == x]
        assert places
        if i > 0:
            anchors.update(places)
    assert len(PAIRS) == 10
    assert len(ANCHORS) == len(set(ANCHORS)) == 13
    assert anchors == set(ANCHORS)
    for i in range(4):
        for j in range(4):
            expected = 400 if abs(i - j) <= 1 else 0
            assert abs(float(counts[i, j]) - expected) <= (100 if expected else 0)


def test_random_crops_cover_all_places_and_stay_inside() -> None:
    size_B2, seeds = many(3000, 36, 50)
    boxes = crop_boxes(size_B2, seeds, transform(train_crop="random").config, train=True)
    assert set(boxes[:, 0].tolist()) == set(range(5))
    assert set(boxes[:, 1].tolist()) == set(range(19))
    assert set(boxes[:, 2].tolist()) == {32.0}
    large = crop_boxes(size_B2 * 3, seeds, transform(train_crop="random").config, train=True)
    assert bool((large[:, :2] + large[:, 2:] <= size_B2 * 3).all())


def test_flip_is_fair_off_when_told_and_absent_in_evaluation() -> None:
    raw = raw_batch(((32, 32),) * 200)
    share = transform()(raw, train=True).flip_B.float().mean()
    assert 0.35 < share < 0.65
    assert not transform(flip=False)(raw, train=True).flip_B.any()
    assert not transform()(raw, train=False).flip_B.any()


def test_flip_mirrors_the_crop() -> None:
    raw = raw_batch()
    box = crop_boxes(raw.size_B2, raw.seed_B, transform().config, train=True)
    ones = torch.ones(4, dtype=torch.bool)
    plain = resample_clips(raw.frames_BTHWC, raw.size_B2, box, ~ones, 32)
    mirrored = resample_clips(raw.frames_BTHWC, raw.size_B2, box, ones, 32)
    torch.testing.assert_close(mirrored, plain.flip(-1), rtol=1e-5, atol=1e-3)


def test_symmetric_normalisation() -> None:
    raw = raw_batch(((32, 32),))
    frames = torch.zeros_like(raw.frames_BTHWC)
    frames[:, :, :, 16:] = 255
    batch = transform(normalise="symmetric", eval_short_side=32)(
        RawBatch(frames, raw.size_B2, raw.label_B, raw.key, raw.seed_B, raw.valid_B), train=False
    )
    assert batch.video_BCTHW.min() == -1
    assert batch.video_BCTHW.max() == pytest.approx(1)


def test_to_pixels_undoes_the_normalisation() -> None:
    raw = raw_batch(((32, 32),))
    whole = transform(eval_short_side=32)
    assert torch.equal(whole.to_pixels(whole(raw, train=False).video_BCTHW), raw.frames_BTHWC)


def test_strong_reduction_does_not_alias() -> None:
    board = (torch.arange(256)[:, None] + torch.arange(256)) % 2 * 255
    frames = board.to(torch.uint8)[None, None, :, :, None].expand(1, 3, 256, 256, 3).contiguous()
    box = torch.tensor([[0.0, 0, 256, 256]])
    result = resample_clips(frames, torch.tensor([[256, 256]]), box, torch.tensor([False]), 37)
    assert (result - 127.5).abs().max() < 8


def test_rectangle_maps_back_to_the_stored_frame() -> None:
    raw = raw_batch()
    batch = transform()(raw, train=True)
    assert batch.flip_B.any()
    for place in range(4):
        y0, x0, h, w = batch.box_B4[place].tolist()
        assert source_rectangle(batch, place, 0, 0, 32, 32) == pytest.approx((y0, x0, h, w))
    # A marked stored pixel block shows up in the input exactly where the inverse map says.
    for place in range(4):
        y, x, h, w = source_rectangle(batch, place, 8, 4, 6, 6)
        frames = torch.zeros_like(raw.frames_BTHWC)
        frames[place, :, round(y) : round(y + h), round(x) : round(x + w)] = 255
        marked = RawBatch(frames, raw.size_B2, raw.label_B, raw.key, raw.seed_B, raw.valid_B)
        shown = transform(normalise="symmetric")(marked, train=True).video_BCTHW[place, 0, 0]
        assert shown[9:13, 5:9].min() > 0.5
        shown[7:15, 3:11] = -1
        assert shown.max() < 0


def test_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_batch()
    whole = transform()(raw, train=True).video_BCTHW
    monkeypatch.setattr("training.core.transforms.CHUNK_BYTES", 1)
    torch.testing.assert_close(transform()(raw, train=True).video_BCTHW, whole, rtol=1e-5, atol=1e-5)


def test_autocast_outside_does_not_round_pixels() -> None:
    raw = raw_batch()
    plain = transform()(raw, train=True).video_BCTHW
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = transform()(raw, train=True).video_BCTHW
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_gpu_gives_the_same_without_waiting() -> None:
    raw = raw_batch()
    device = torch.device("cuda")
    for train in (True, False):
        expected = transform()(raw, train=train)
        moved = raw.to(device)
        transform()(moved, train=train)  # loads libraries, which synchronises
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = transform()(moved, train=train)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(got.box_B4.cpu(), expected.box_B4)
        assert torch.equal(got.flip_B.cpu(), expected.flip_B)
        torch.testing.assert_close(got.video_BCTHW.cpu(), expected.video_BCTHW, rtol=1e-4, atol=1e-4)


# --- scale jitter and views -------------------------------------------------------------------


def test_area_boxes_have_the_area_and_aspect_that_were_asked_for() -> None:
    size, seeds = many(4000, 120, 160)
    config = transform(train_crop="area", area=(0.08, 1.0), aspect=(0.5, 2.0)).config
    boxes = crop_boxes(size, seeds, config, train=True)
    y, x, height, width = boxes.unbind(1)
    assert (boxes == boxes.floor()).all()
    assert ((y >= 0) & (x >= 0) & (y + height <= 120) & (x + width <= 160)).all()
    share, aspect = height * width / (120 * 160), width / height
    # A side is rounded to a pixel, and boxes that do not fit are drawn again, which makes large ones rarer.
    assert share.min() > 0.075
    assert share.max() <= 1.0
    assert aspect.min() > 0.48
    assert aspect.max() < 2.1
    assert 0.3 < share.mean() < 0.54
    assert abs(float(aspect.log().median())) < 0.2
    assert torch.equal(boxes, crop_boxes(size, seeds, config, train=True))
    # Control: another range gives other boxes.
    small = transform(train_crop="area", area=(0.1, 0.2), aspect=(1.0, 1.0)).config
    other = crop_boxes(size, seeds, small, train=True)
    assert (other[:, 2] == other[:, 3]).all()
    assert ((other[:, 2] * other[:, 3] / (120 * 160)) < 0.21).all()


def test_area_box_that_never_fits_is_the_whole_frame() -> None:
    size, seeds = many(50, 20, 200)
    config = transform(train_crop="area", area=(0.9, 1.0), aspect=(0.5, 0.6)).config
    boxes = crop_boxes(size, seeds, config, train=True)
    assert boxes.tolist() == [[0, 0, 20, 200]] * 50


def test_three_crops_lie_at_start_centre_and_end_of_the_longer_side() -> None:
    wide, high, square = (36, 96), (80, 36), (36, 36)
    raw = raw_batch((wide, high, square))
    single, triple = transform()(raw, train=False), transform(eval_crops=3)(raw, train=False)
    assert triple.video_BCTHW.shape == (3, 3, 9, 32, 32)
    assert torch.equal(triple.box_B4, single.box_B4)
    views = triple.video_BCTHW.unflatten(2, (3, 3))
    torch.testing.assert_close(views[:, :, 1], single.video_BCTHW)
    expected = {0: [(2, 0), (2, 32), (2, 64)], 1: [(0, 2), (24, 2), (48, 2)], 2: [(2, 0), (2, 2), (2, 4)]}
    flips = torch.zeros(3, dtype=torch.bool)
    for place, corners in expected.items():
        for view, (y, x) in enumerate(corners):
            boxes = torch.tensor([[float(y), float(x), 32, 32]] * 3)
            pixels = resample_clips(raw.frames_BTHWC, raw.size_B2, boxes, flips, 32)[place]
            seen = transform().to_pixels(views[place : place + 1, :, view])[0].permute(3, 0, 1, 2)
            assert torch.equal(seen, pixels.to(torch.uint8)), (place, view)


def test_evaluation_may_use_a_larger_input_than_training() -> None:
    change = transform(eval_size=48, eval_short_side=48)
    raw = raw_batch(((48, 70), (48, 48)))
    assert change(raw, train=False).video_BCTHW.shape[-2:] == (48, 48)
    assert change(raw, train=True).video_BCTHW.shape[-2:] == (32, 32)
    assert change(raw, train=False).box_B4[0].tolist() == [0, 11, 48, 48]


def test_unit_normalisation_is_zero_to_one() -> None:
    raw = raw_batch(((36, 36),))
    video = transform(normalise="unit")(raw, train=False).video_BCTHW
    assert 0 <= video.min() < 0.02
    assert 0.98 < video.max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_crop": "area", "area": (0.1, 1)}, "aspect goes with train_crop"),
        ({"area": (0.1, 1), "aspect": (1, 1)}, "area goes with train_crop"),
        ({"train_crop": "area", "area": (0.5, 0.1), "aspect": (1, 1)}, "0 < least ≤ largest"),
        ({"train_crop": "area", "area": (0.5, 1.5), "aspect": (1, 1)}, "at most 1"),
        ({"eval_short_side": 30}, "eval_short_side 30 is smaller than the centre crop of 32"),
        ({"eval_size": 48}, "smaller than the centre crop of 48"),
    ],
)
def test_transforms_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    values = {"size": 32, "train_crop": "center", "eval_short_side": 36, "flip": False, "normalise": "unit"}
    with pytest.raises(ValueError, match=message):
        TransformConfig.model_validate(values | changes)


def test_short_side_before_a_random_crop_is_drawn_evenly() -> None:
    size_B2, seeds = many(6000, 256, 340)
    drawn = transform(train_crop="random", size=224, eval_short_side=256, train_short_side=(256, 320))
    boxes = crop_boxes(size_B2, seeds, drawn.config, train=True)
    assert torch.equal(boxes[:, 2], boxes[:, 3])
    sides = (256 * 224 / boxes[:, 2].double()).round().long()
    torch.testing.assert_close(256 * 224 / sides.double(), boxes[:, 2].double(), rtol=1e-6, atol=0)
    # Both ends are included; each of 65 is expected 92 times, standard deviation 9.5.
    assert set(sides.tolist()) == set(range(256, 321))
    assert (torch.bincount(sides - 256) - 6000 / 65).abs().max() < 45
    # Every place inside the clip, none outside, independent of the side.
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= size_B2).all()
    assert boxes[:, 1].max() > 340 - 224 - 20
    share = boxes[:, 1] / (size_B2[:, 1] - boxes[:, 3])
    assert torch.corrcoef(torch.stack([share.double(), sides.double()]))[0, 1].abs() < 0.05
    assert torch.equal(boxes, crop_boxes(size_B2, seeds, drawn.config, train=True))


def test_a_drawn_short_side_leaves_everything_else_alone() -> None:
    size_B2, seeds = many(200)
    plain = transform(train_crop="random").config
    fixed = transform(train_crop="random", train_short_side=(36, 36)).config
    assert torch.equal(crop_boxes(size_B2, seeds, plain, train=True), crop_boxes(size_B2, seeds, fixed, train=True))
    drawn = transform(train_crop="random", train_short_side=(32, 64)).config
    assert torch.equal(crop_boxes(size_B2, seeds, plain, train=False), crop_boxes(size_B2, seeds, drawn, train=False))
    assert not torch.equal(crop_boxes(size_B2, seeds, plain, train=True), crop_boxes(size_B2, seeds, drawn, train=True))


@pytest.mark.parametrize("train", [False, True])
def test_batches_without_frames(train: bool) -> None:
    raw = raw_batch()
    empty = replace(raw, frames_BTHWC=raw.frames_BTHWC[:, :0])
    batch = transform()(empty, train=train)
    assert batch.video_BCTHW.shape == (4, 3, 0, 32, 32)
    # Flip and crop are what they would be with frames: other modalities share them.
    full = transform()(raw, train=train)
    assert torch.equal(batch.box_B4, full.box_B4)
    assert torch.equal(batch.flip_B, full.flip_B)
    flow = raw.frames_BTHWC[..., :2]
    one_by_one = resample_clips(raw.frames_BTHWC, raw.size_B2, full.box_B4, full.flip_B, 32)[:, :2]
    assert torch.equal(resample_clips(flow, raw.size_B2, full.box_B4, full.flip_B, 32), one_by_one)
