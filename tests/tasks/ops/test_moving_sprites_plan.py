"""Task `moving_sprites` as it is planned: motion, boxes, bad frames, and that nothing depends on the class."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.ops.controlled import checked_config
from tasks.ops.moving_sprites import CLASSES, MOTION_IOU, MovingSpritesConfig, key_frames
from tasks.ops.moving_sprites_plan import Sprite, VideoPlan, plan_video

Array = NDArray[np.float64]


def make(**fields: object) -> MovingSpritesConfig:
    base = {"num_train": 6, "num_val": 6, "num_test": 6, "size": 96, "num_frames": 40}
    return MovingSpritesConfig.model_validate(base | fields)


def plans(config: MovingSpritesConfig, count: int, split: str = "train") -> list[VideoPlan]:
    return [plan_video(config, split, number) for number in range(count)]


def same(one: VideoPlan, other: VideoPlan, but: tuple[str, ...] = ()) -> bool:
    """Whether two plans are equal, but for some fields of their objects."""
    return (
        len(one.sprites) == len(other.sprites)
        and all(
            np.array_equal(getattr(a, field.name), getattr(b, field.name))
            for a, b in zip(one.sprites, other.sprites, strict=True)
            for field in fields(Sprite)
            if field.name not in but
        )
        and one.degraded == other.degraded
        and np.array_equal(one.labelled_T, other.labelled_T)
        and np.array_equal(one.camera_T2, other.camera_T2)
    )


def test_the_same_arguments_give_the_same_plan() -> None:
    config = make(regime="random", camera=1.0)
    first = plan_video(config, "train", 9)
    assert same(first, plan_video(config, "train", 9))
    for other in (
        plan_video(config, "train", 10),
        plan_video(config, "val", 9),
        plan_video(make(regime="random", camera=1.0, seed=1), "train", 9),
    ):
        assert not same(first, other)


# --- motion ------------------------------------------------------------------------------------------------


ENOUGH = 10
"""Of an object that is just coming or going where the video begins or ends, only near frames are there."""


def motion_iou(sprite: Sprite, least: int = 1) -> list[float]:
    """Mean IoU of each box with those of the same instance in frames within 10; of boxes that have so many of them."""
    means = []
    box_T4, shown_T, rounds_T = sprite.box_T4, sprite.shown_T, sprite.round_T
    for t in np.flatnonzero(shown_T):
        found = []
        for other in range(max(0, t - 10), min(len(box_T4), t + 11)):
            if other == t or not shown_T[other] or rounds_T[other] != rounds_T[t]:
                continue
            low, high = np.maximum(box_T4[t, :2], box_T4[other, :2]), np.minimum(box_T4[t, 2:], box_T4[other, 2:])
            shared = np.prod((high - low).clip(0))
            areas = [np.prod(box_T4[at, 2:] - box_T4[at, :2]) for at in (t, other)]
            found.append(shared / (sum(areas) - shared))
        if len(found) >= least:
            means.append(float(np.mean(found)))
    return means


@pytest.mark.parametrize("size", [64, 192])
@pytest.mark.parametrize(("motion", "kind"), [("isotropic_slow", "slow"), ("horizontal_fast", "fast")])
def test_motion_iou_is_that_of_the_setting(motion: str, kind: str, size: int) -> None:
    low, high = MOTION_IOU[kind]
    values: list[float] = []
    for plan in plans(make(motion=motion, size=size), 12):
        for sprite in plan.sprites:
            assert sprite.kind == kind
            values += motion_iou(sprite, ENOUGH)
    assert len(values) > 400
    assert low <= min(values) <= max(values) <= high


def test_mixed_motion_has_all_three_kinds() -> None:
    values: dict[str, list[float]] = {kind: [] for kind in MOTION_IOU}
    for plan in plans(make(motion="mixed", size=192, num_frames=30), 24):
        for sprite in plan.sprites:
            values[sprite.kind] += motion_iou(sprite, ENOUGH)
    for kind, (low, high) in MOTION_IOU.items():
        assert np.mean([low <= value <= high for value in values[kind]]) > 0.99, kind
        others = [value for other in MOTION_IOU if other != kind for value in values[other]]
        assert np.mean([low <= value <= high for value in others]) < 0.02  # negative control


@pytest.mark.parametrize("motion", ["isotropic_slow", "horizontal_fast", "mixed"])
@pytest.mark.parametrize("cell", [8, 16])
def test_velocity_is_the_displacement(motion: str, cell: int) -> None:
    for plan in plans(make(motion=motion, cell=cell, size=192), 12):
        for sprite in plan.sprites:
            moved = np.diff(sprite.centre_T2, axis=0)[np.diff(sprite.round_T) == 0]
            mean = ((sprite.velocity_T2[1:] + sprite.velocity_T2[:-1]) / 2)[np.diff(sprite.round_T) == 0]
            assert np.abs(moved - mean).max() < 0.01
            whole = (np.abs(sprite.inside_T - 1) < 1e-9)[:, None]
            middle = (sprite.box_T4[:, :2] + sprite.box_T4[:, 2:]) / 2
            assert np.allclose(middle[whole[:, 0]], sprite.centre_T2[whole[:, 0]])
            if sprite.kind == "fast":
                per_five = 5 * np.abs(moved) / cell
                assert 2 - 1e-9 <= per_five[:, 0].min() <= per_five[:, 0].max() <= 4 + 1e-9
                assert per_five[:, 1].max() <= 0.2 + 1e-9


def test_directions_of_slow_objects_are_even_and_of_fast_ones_left_or_right() -> None:
    def angles(motion: str) -> Array:
        sprites = [
            sprite for plan in plans(make(motion=motion, num_frames=2, label_every=1), 120) for sprite in plan.sprites
        ]
        assert len(sprites) > 200
        return np.array([np.arctan2(*sprite.velocity_T2[0, ::-1]) for sprite in sprites])

    slow, fast = angles("isotropic_slow"), angles("horizontal_fast")
    for way in (1, 2):  # nothing along one way, and nothing along one axis
        assert abs(np.exp(1j * way * slow).mean()) < 0.2
    assert abs(np.exp(2j * fast).mean()) > 0.9
    assert abs(np.exp(1j * fast).mean()) < 0.2


def test_the_camera_moves_only_the_background() -> None:
    still, moving = (plans(make(camera=camera), 6) for camera in (0.0, 2.0))
    for one, other in zip(still, moving, strict=True):
        assert not one.camera_T2.any()
        steps = np.hypot(*np.diff(other.camera_T2, axis=0).T)
        assert 0 < steps.max() <= 2 * 8 / 5
        assert other.camera_T2.min() == 0
        assert all(np.array_equal(a.box_T4, b.box_T4) for a, b in zip(one.sprites, other.sprites, strict=True))


# --- what is in the picture --------------------------------------------------------------------------------


def test_what_is_hardly_visible_is_not_shown() -> None:
    """Both reasons occur, and both borders are respected."""
    reasons: Counter[str] = Counter()
    config = make(motion="mixed", objects=(4, 4), object_size=(0.25, 0.4))
    for plan in plans(config, 25):
        for place, sprite in enumerate(plan.sprites):
            sides = np.array([sprite.width, sprite.height])
            box = np.concatenate([sprite.centre_T2 - sides / 2, sprite.centre_T2 + sides / 2], axis=1).clip(0, 96)
            inside = np.prod((box[:, 2:] - box[:, :2]).clip(0), axis=1) / sides.prod()
            for t in range(config.num_frames):
                covered = np.zeros((480, 480), np.bool_)
                x0, y0, x1, y1 = np.rint(5 * box[t]).astype(int)
                for front in plan.sprites[place + 1 :]:
                    if front.shown_T[t]:
                        a0, b0, a1, b1 = np.rint(5 * front.box_T4[t]).astype(int)
                        covered[b0:b1, a0:a1] = True
                hidden = float(covered[y0:y1, x0:x1].mean()) if x1 > x0 and y1 > y0 else 0.0
                if inside[t] < 0.25:
                    assert not sprite.shown_T[t]
                    reasons["outside"] += 1
                elif hidden > 0.65:
                    assert not sprite.shown_T[t]
                    reasons["hidden"] += 1
                elif hidden < 0.55:
                    assert sprite.shown_T[t]
                    assert np.allclose(sprite.box_T4[t], box[t])
                    reasons["partly"] += hidden > 0.05
                    reasons["shown"] += 1
    assert min(reasons[name] for name in ("outside", "hidden", "partly", "shown")) > 20


# --- degraded frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 2, 3, 5, 10, 20])
def test_key_frames_of_all_lengths(interval: int) -> None:
    for length in range(1, 36):
        offline, online = (key_frames(length, interval, which) for which in ("offline", "online"))  # type: ignore[arg-type]
        blocks = -(-length // interval)
        assert len(offline) == len(online) == blocks
        assert online == tuple(interval * block for block in range(blocks))
        first = (interval - 1) // 2
        assert offline[:-1] == tuple(first + interval * block for block in range(blocks - 1))
        assert offline[-1] == min(first + interval * (blocks - 1), length - 1)
        assert len(set(offline)) == blocks
    assert key_frames(60, 10, "offline") == (4, 14, 24, 34, 44, 54)
    assert key_frames(31, 10, "offline") == (4, 14, 24, 30)  # a last block of one frame


@pytest.mark.parametrize("schedule", ["offline", "online"])
def test_key_frames_are_clean_and_no_others(schedule: str) -> None:
    for length in range(2, 36):
        config = make(num_frames=length, regime="non_key", schedule=schedule, label_every=1)
        clean = tuple(t for t, bad in enumerate(plan_video(config, "test", length).degraded) if bad is None)
        assert clean == key_frames(length, 10, schedule) == config.key_frames  # type: ignore[arg-type]


def test_random_frames_are_degraded_by_halves() -> None:
    flags = np.array([[bad is not None for bad in plan.degraded] for plan in plans(make(regime="random"), 60)])
    assert abs(flags.mean() - 0.5) < 0.04  # four standard errors
    assert np.abs(flags.mean(0) - 0.5).max() < 0.3  # key frames as others
    together = [np.mean(flags[:, :-1] == flags[:, 1:]), np.mean(flags[:-1] == flags[1:])]
    assert np.abs(np.array(together) - 0.5).max() < 0.05
    assert all(bad is None for plan in plans(make(), 6) for bad in plan.degraded)


def test_degradations_are_within_their_ranges() -> None:
    limits = {"blur": (7.0, 21.0), "defocus": (1.5, 4.0), "bars": (0.3, 0.7), "rough": (20.0, 50.0)}
    for size in (96, 192):
        found = [
            bad for plan in plans(make(regime="random", size=size), 30) for bad in plan.degraded if bad is not None
        ]
        counts = Counter(sum(value > 0 for value in bad) for bad in found)
        assert set(counts) == {2, 3}
        for name, (low, high) in limits.items():
            scale = 1.0 if name == "bars" else size / 192
            values = np.array([getattr(bad, name) for bad in found if getattr(bad, name)])
            assert 0.5 < len(values) / len(found) < 0.75  # 2.5 of 4
            assert low * scale <= values.min() < (0.9 * low + 0.1 * high) * scale
            assert (0.1 * low + 0.9 * high) * scale < values.max() <= high * scale


def test_frames_have_numbers_of_their_own() -> None:
    """A frame's degradation is the same in a longer video and in another regime, and in no other frame."""
    short, long = (plan_video(make(num_frames=n, regime="random"), "val", 3).degraded for n in (20, 40))
    assert short == long[:20]
    always = plan_video(make(regime="non_key", interval=40), "val", 3).degraded
    both = [(a, b) for a, b in zip(long, always, strict=True) if a is not None and b is not None]
    assert len(both) > 10
    assert all(a == b for a, b in both)
    assert len({bad for bad in always if bad is not None}) == 39


# --- labels ------------------------------------------------------------------------------------------------


def test_training_videos_are_labelled_sparsely() -> None:
    firsts = Counter(int(plan.labelled_T.argmax()) for plan in plans(make(label_every=4), 60))
    assert set(firsts) == {0, 1, 2, 3}
    for plan in plans(make(label_every=4), 6):
        assert set(np.diff(np.flatnonzero(plan.labelled_T))) == {4}
    for split in ("val", "test"):
        assert all(plan.labelled_T.all() for plan in plans(make(label_every=4), 3, split))
    assert all(plan.labelled_T.all() for plan in plans(make(label_every=1), 3))


def test_classes_are_balanced() -> None:
    found = plans(make(num_frames=2, label_every=1), 60)
    by_place: list[Counter[int]] = [Counter() for _ in range(4)]
    for plan in found:
        for place, sprite in enumerate(plan.sprites):
            by_place[place][sprite.label] += 1
    assert by_place[0] == dict.fromkeys(range(6), 10)
    for six in range(0, 60, 6):
        assert {plan.sprites[0].label for plan in found[six : six + 6]} == set(range(6))
    total = sum(by_place, Counter[int]())
    assert max(total.values()) < 1.35 * min(total.values())
    # Objects of one video know nothing of one another.
    pairs = [
        plan.sprites[0].label == plan.sprites[1].label
        for plan in plans(make(num_frames=2, label_every=1), 300)
        if len(plan.sprites) > 1
    ]
    assert abs(np.mean(pairs) - 1 / 6) < 4 * np.sqrt(5 / 36 / len(pairs))


def test_nothing_else_depends_on_the_class() -> None:
    config = make(regime="random", objects=(4, 4), camera=0.5)
    for number in range(6):
        own = plan_video(config, "train", number)
        for label in range(6):
            other = plan_video(config, "train", number, labels=(label,) * 4)
            assert [sprite.label for sprite in other.sprites] == [label] * 4
            assert same(own, other, but=("label",))
            assert not same(own, other)


def test_classes_have_no_statistics_of_their_own() -> None:
    """Means by class of what is drawn differ no more than chance lets them: an analysis of variance per quantity."""
    rows, labels = [], []
    for plan in plans(make(num_frames=4, regime="random"), 360):
        for place, sprite in enumerate(plan.sprites):
            degraded = sum(bad is not None for bad in plan.degraded)
            rows.append(
                [
                    *(sprite.width, sprite.height, *sprite.centre_T2[0], *sprite.velocity_T2[0]),
                    *(np.hypot(*sprite.velocity_T2[0]), sprite.shown_T.mean(), sprite.inside_T.mean()),
                    *(sprite.hidden_T.mean(), place, len(plan.sprites), degraded, plan.labelled_T.argmax()),
                ]
            )
            labels.append(sprite.label)

    def ratio(by: NDArray[np.int64]) -> Array:
        """Variance between classes over that within, about 1 without a connection."""
        groups = [table[by == label] for label in range(6)]
        between = sum(len(g) * (g.mean(0) - table.mean(0)) ** 2 for g in groups) / 5
        within = sum(((g - g.mean(0)) ** 2).sum(0) for g in groups) / (len(table) - 6)
        return np.asarray(between / within)

    table, by = np.array(rows, np.float64), np.array(labels)
    assert len(by) > 800
    assert ratio(by).max() < 4.5  # one in 2000 for each of the 14
    assert ratio(6 * np.argsort(np.argsort(table[:, 0])) // len(by)).max() > 100  # negative control: by width


# --- configurations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "moving_sprite"}, "no task 'moving_sprite'; did you mean 'moving_sprites'"),
        ({"segments": 3}, "segments: no setting of task 'moving_sprites', which has num_frames, objects, "),
        ({"task": "late", "regime": "clean"}, "regime: no setting of task 'late', which has num_frames, min_gap"),
        ({"task": "sound_or_picture", "cell": 8}, "cell: no setting of task 'sound_or_picture', which has segments, "),
        ({"size": 62}, "size: Input should be greater than or equal to 64"),
        ({"size": 65}, "size: Input should be a multiple of 2"),
        ({"motion": "fast"}, "motion: Input should be 'isotropic_slow', 'horizontal_fast' or 'mixed'"),
        ({"objects": (3, 2)}, "objects 3 to 2 must be a range within 1 to 8"),
        ({"objects": (0, 2)}, "objects 0 to 2 must be a range within 1 to 8"),
        ({"object_size": (0.2, 0.6)}, "object_size 0.2 to 0.6 must be a range within 0.1 to 0.5"),
        ({"interval": 5}, "interval and schedule are settings of regime 'non_key', not of 'clean'"),
        ({"regime": "random", "schedule": "online"}, "are settings of regime 'non_key', not of 'random'"),
        ({"blur": (7.0, 9.0), "bars": (0.1, 0.2)}, "blur, bars: no frame of regime 'clean' is degraded"),
        ({"regime": "random", "kinds": (2, 5)}, "kinds 2 to 5 must be a range within 1 to 4"),
        ({"label_every": 61}, "label_every 61 is more than the 60 frames of a video"),
        ({"size": 512}, r"objects up to 195 px wide are not fast at 2 cells of 8 px per 5 frames"),
        ({"cell": 12}, "cell: Input should be 8 or 16"),
        ({"sped": 12}, "sped: Extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, object], message: str) -> None:
    base = {"task": "moving_sprites", "num_train": 1, "num_val": 1, "num_test": 1}
    with pytest.raises(ValueError, match=message):
        checked_config(base | values)


def test_limits_are_allowed() -> None:
    """Negative control of the test above."""
    base = {"task": "moving_sprites", "num_train": 1, "num_val": 1, "num_test": 1}
    for values in (
        {"size": 64, "num_frames": 2, "label_every": 2},
        {"size": 512, "motion": "isotropic_slow"},
        {"objects": (8, 8), "object_size": (0.5, 0.5), "cell": 16},
        {"regime": "non_key", "interval": 1, "schedule": "online", "kinds": (4, 4)},
        {"regime": "random", "blur": (0.0, 0.0), "kinds": (1, 1), "camera": 4.0},
    ):
        config = checked_config(base | values)
        assert isinstance(config, MovingSpritesConfig)
        assert config.classes == CLASSES
        plan = plan_video(config, "train", 0)
        assert len(plan.degraded) == config.num_frames
        # As it stands in task.json.
        assert MovingSpritesConfig.model_validate(config.model_dump(mode="json")) == config


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split 'dev' is none of train, val, test"):
        plan_video(make(), "dev", 0)
