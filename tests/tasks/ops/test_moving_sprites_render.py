"""Task `moving_sprites` as it is drawn: boxes fit to the pixel, and what tells the classes apart and what does not."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tasks.ops.moving_sprites import CLASSES, MovingSpritesConfig
from tasks.ops.moving_sprites_plan import Degradation, Sprite, VideoPlan, plan_video
from tasks.ops.moving_sprites_render import BAR_DRAWS, cover_with_bars, draw_video, patches, render_sprites

Array = NDArray[np.float64]


def make(**fields: object) -> MovingSpritesConfig:
    base = {"num_train": 6, "num_val": 6, "num_test": 6, "size": 64, "num_frames": 12, "noise": 0.0}
    return MovingSpritesConfig.model_validate(base | fields)


def drawn(config: MovingSpritesConfig, plan: VideoPlan, number: int = 0) -> Array:
    """Frames (T,H,W,3), signed so that differences can be taken."""
    return draw_video(config, "train", number, plan).astype(np.float64)


def changed(config: MovingSpritesConfig, plan: VideoPlan, number: int = 0) -> Array:
    """How far each pixel (T,H,W) is from the background alone, grey levels."""
    bare = replace(plan, sprites=())
    return np.abs(drawn(config, plan, number) - drawn(config, bare, number)).max(3)


def alone(sprite: Sprite, plan: VideoPlan) -> VideoPlan:
    """The video with one of its objects, which nothing hides, so that it is shown wherever enough of it is inside."""
    return replace(plan, sprites=(replace(sprite, shown_T=sprite.inside_T >= 0.25),))


def edges(mask: NDArray[np.bool_]) -> Array:
    """x0, y0, x1, y1 around the pixels that are set."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)


# --- boxes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("motion", ["isotropic_slow", "horizontal_fast"])
@pytest.mark.parametrize("size", [64, 128, 192])
def test_boxes_are_around_what_has_changed(size: int, motion: str) -> None:
    """All classes, sizes, places between pixels and clipped ones: less than a pixel off on each side."""
    config = make(size=size, motion=motion, num_frames=8)
    worst, clipped, boxes, moved = 0.0, 0, 0, 0.0
    for number in range(8):
        plan = plan_video(config, "train", number)
        for sprite in plan.sprites:
            for label in (number % 6, (number + 3) % 6):
                only = alone(replace(sprite, label=label), plan)
                pixels = changed(config, only, number)
                for t in np.flatnonzero(only.sprites[0].shown_T):
                    box = sprite.box_T4[t]
                    found = edges(pixels[t] > 2)
                    # What sticks out would be seen; what has its corner cut off by the border may reach less far.
                    outwards = np.array([box[0] - found[0], box[1] - found[1], found[2] - box[2], found[3] - box[3]])
                    assert outwards.max() < 1
                    boxes += 1
                    if sprite.inside_T[t] < 1 - 1e-9:
                        clipped += 1
                    else:
                        worst = max(worst, float(np.abs(found - box).max()))
                        moved = max(moved, float(np.abs(found - box - 1.5).max()))
                for t in np.flatnonzero(~only.sprites[0].shown_T):
                    assert not pixels[t].any()
    assert boxes > 50
    assert clipped > 5
    assert worst < 1
    assert moved > 1.5  # negative control: a box one and a half pixels off would have been noticed


def test_outlines_fill_their_boxes_to_all_sides() -> None:
    """With a high resolution to a hundredth of the side; so a box says nothing of the class."""
    still = np.zeros((1, 2))
    for label in range(len(CLASSES)):
        sprite = Sprite(
            label, "slow", 400.0, 320.0, still + 300.5, still, np.zeros(1, np.int64), np.ones(1, np.bool_),
            np.zeros((1, 4)), np.ones(1), np.zeros(1),
        )  # fmt: skip
        corner, opacity, texture = patches(sprite, np.array([0]))
        found = edges(opacity[0] > 0.5) + np.tile(corner[0], 2)
        assert np.abs(found - [100.5, 140.5, 500.5, 460.5]).max() < 4
        assert (texture.min(), texture.max()) == (0, 1)
        assert np.abs(texture - texture[:, :, ::-1]).mean() < 0.1  # its own mirror image, but for half a pixel
        assert np.abs(opacity - opacity[:, :, ::-1]).mean() < 0.02


def test_what_moves_in_the_picture_moves_by_the_velocity() -> None:
    """Centre of what has changed, from frame to frame, where the whole object is inside."""
    for motion in ("isotropic_slow", "horizontal_fast"):
        config = make(motion=motion, size=128, num_frames=8)
        steps = []
        for number in range(8):
            plan = plan_video(config, "train", number)
            only = alone(plan.sprites[0], plan)
            sprite = only.sprites[0]
            (corner, opacity, _) = patches(sprite, np.arange(8))
            weight = opacity.sum((1, 2))
            sums = [opacity.sum(axis) @ np.arange(opacity.shape[3 - axis]) for axis in (1, 2)]
            place = corner + np.stack(sums, axis=1) / weight[:, None]
            found, told = np.diff(place, axis=0), sprite.velocity_T2[:-1] / 2 + sprite.velocity_T2[1:] / 2
            staying = np.diff(sprite.round_T) == 0
            steps += [*np.abs(found - told)[staying].max(1)]
        assert max(steps) < 0.08


# --- degraded frames ---------------------------------------------------------------------------------------


def test_clean_frames_do_not_know_the_regime() -> None:
    """Key frames of `non_key` and the clean half of `random` are those of `clean`, to the bit; the others are not."""
    clean, _ = render_sprites(make(noise=4.0), "val", 5)
    for fields in (
        {"regime": "non_key", "interval": 5},
        {"regime": "non_key", "schedule": "online"},
        {"regime": "random"},
    ):
        config = make(noise=4.0, **fields)
        frames, plan = render_sprites(config, "val", 5)
        bad = np.array([degradation is not None for degradation in plan.degraded])
        assert 0 < bad.sum() < 12
        same = (frames == clean).reshape(12, -1).all(1)
        assert (same == ~bad).all()


def one_kind(config: MovingSpritesConfig, plan: VideoPlan, number: int = 0, **amounts: float) -> Array:
    bad = Degradation(**{"blur": 0.0, "defocus": 0.0, "bars": 0.0, "rough": 0.0} | amounts)
    return drawn(config, replace(plan, degraded=(bad,) * config.num_frames), number)


def test_blur_is_along_the_velocity() -> None:
    """A moving object gets longer by the blur's length, and no higher; as much of it is there."""
    config = make(motion="horizontal_fast", size=128, num_frames=4, objects=(1, 1))
    seen = 0
    for number in range(8):
        plan = plan_video(config, "train", number)
        bare = drawn(config, replace(plan, sprites=()), number)
        blurred = np.abs(one_kind(config, plan, number, blur=12.0) - bare).max(3)
        for t, sprite in ((t, plan.sprites[0]) for t in range(4)):
            x0, y0, x1, y1 = sprite.box_T4[t]
            if not sprite.shown_T[t] or x0 < 10 or x1 > 118 or y0 < 3 or y1 > 125:
                continue
            low_x, low_y, high_x, high_y = edges(blurred[t] > 1)
            assert 8 < (high_x - low_x) - (x1 - x0) < 15
            assert abs((high_y - low_y) - (y1 - y0)) < 4
            assert abs((low_x + high_x) / 2 - (x0 + x1) / 2) < 1.5
            seen += 1
    assert seen > 4


@pytest.mark.parametrize("share", [0.3, 0.55, 0.7])
def test_bars_cover_the_share_asked_for(share: float) -> None:
    """At any place and with any number of bars."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        x0, y0, width, height = rng.integers([20, 20, 16, 16], [60, 60, 40, 40]).tolist()
        frame = np.zeros((120, 120, 3), np.float32)
        draws = rng.random(BAR_DRAWS)
        cover_with_bars(frame, np.array([x0, y0, x0 + width, y0 + height], np.float64), share, draws)
        covered = frame[..., 0] / frame[..., 0].max()
        assert abs(covered[y0 : y0 + height, x0 : x0 + width].mean() - share) < 0.01
        outside = covered.sum() - covered[y0 : y0 + height, x0 : x0 + width].sum()
        assert outside > 0  # they do not show where the box ends


def test_bars_are_also_where_no_object_is() -> None:
    config = make(size=192, objects=(1, 1), motion="isotropic_slow", num_frames=6)
    beside = 0
    for number in range(6):
        plan = plan_video(config, "train", number)
        hidden = np.abs(drawn(config, plan, number) - one_kind(config, plan, number, bars=0.5)).max(3) > 2
        for t in range(6):
            x0, y0, x1, y1 = np.rint(plan.sprites[0].box_T4[t]).astype(int)
            assert hidden[t, y0:y1, x0:x1].mean() > 0.3
            away = hidden[t].copy()
            away[max(y0 - 30, 0) : y1 + 30, max(x0 - 30, 0) : x1 + 30] = False
            beside += bool(away.any())
    assert 12 < beside < 36


def test_defocus_and_noise_do_what_they_say() -> None:
    config = make(size=128, num_frames=4)
    plan = plan_video(config, "train", 1)
    frames = drawn(config, plan, 1)
    spread = one_kind(config, plan, 1, rough=12.0) - frames
    inside = (frames.min(3) > 40) & (frames.max(3) < 215)
    assert abs(spread[inside].std() - 12) < 0.5
    assert abs(spread[inside].mean()) < 0.3
    sharpness = [np.abs(np.diff(one_kind(config, plan, 1, defocus=sigma), axis=2)).mean() for sigma in (0.2, 1.5, 4.0)]
    assert sharpness[0] > 1.2 * sharpness[1]
    assert sharpness[1] > 1.2 * sharpness[2]


# --- the same for every class ------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_frames() -> None:
    config = make(regime="random", noise=4.0, camera=1.0)
    first, _ = render_sprites(config, "train", 3)
    assert (first.shape, first.dtype) == ((12, 64, 64, 3), np.uint8)
    assert np.array_equal(first, render_sprites(config, "train", 3)[0])
    for other in (
        render_sprites(config, "train", 4),
        render_sprites(config, "test", 3),
        render_sprites(make(regime="random", noise=4.0, camera=1.0, seed=1), "train", 3),
    ):
        assert not np.array_equal(first, other[0])


def test_another_class_changes_only_its_object() -> None:
    config = make(regime="random", size=96, kinds=(1, 1), blur=(0.0, 0.0), defocus=(0.1, 0.1), noise=4.0)
    for number in range(6):
        plans = [plan_video(config, "train", number, labels=(label,) * 4) for label in range(6)]
        frames = np.array([drawn(config, plan, number) for plan in plans])
        outside = np.ones(frames.shape[1:4], np.bool_)
        for sprite in plans[0].sprites:
            for t in np.flatnonzero(sprite.shown_T):
                x0, y0, x1, y1 = sprite.box_T4[t]
                outside[t, int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = False
        differs = (frames != frames[0]).any((0, 4))
        assert differs.any()
        assert not (differs & outside).any()


def accuracy(features: list[Array], labels: list[int]) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return float(cross_val_score(model, np.array(features), labels, cv=4).mean())


def test_classes_can_be_told_by_texture_and_by_outline_alone() -> None:
    """Chance is a sixth: mean colour, box, motion and place are worth nothing; energies of the texture are."""
    config = make(size=128, num_frames=2, label_every=1, motion="mixed", noise=4.0)
    plain: list[Array] = []
    texture: list[Array] = []
    outline: list[Array] = []
    labels: list[int] = []
    for number in range(240):
        plan = plan_video(config, "train", number)
        sprite = plan.sprites[-1]  # in front of all others
        if not sprite.shown_T[0] or sprite.inside_T[0] < 0.999:
            continue
        frame = drawn(config, plan, number)[0]
        x0, y0, x1, y1 = np.rint(sprite.box_T4[0]).astype(int)
        cut = frame[y0:y1, x0:x1]
        rows = np.linspace(0, cut.shape[0] - 1, 24).astype(int)
        columns = np.linspace(0, cut.shape[1] - 1, 24).astype(int)
        small = cut[np.ix_(rows, columns)].mean(2)
        middle = small[6:18, 6:18]
        plain.append(
            np.array([*cut[cut.shape[0] // 3 : -cut.shape[0] // 3].mean((0, 1)), *sprite.box_T4[0],
                      sprite.width * sprite.height, *sprite.velocity_T2[0], *np.abs(sprite.velocity_T2[0])])
        )  # fmt: skip
        texture.append(np.abs(np.fft.rfft2(middle - middle.mean())).ravel() / (middle.std() + 1))
        around = np.abs(small - 115) > 50
        outline.append((around | around[:, ::-1]).astype(np.float64).ravel())
        labels.append(sprite.label)
    assert len(labels) > 120
    assert accuracy(texture, labels) > 0.95
    assert accuracy(outline, labels) > 0.8
    assert accuracy(plain, labels) < 0.27
    shuffled = list(np.random.default_rng(0).permutation(labels))
    assert accuracy(texture, shuffled) < 0.27  # negative control
