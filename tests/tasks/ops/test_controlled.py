"""Controlled tasks: the class is told by what the task says, and by nothing else."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tasks.ops.controlled import (
    ANGLES,
    DETAIL_PITCH,
    TASKS,
    ControlledConfig,
    Task,
    checked_config,
    class_names,
)
from tasks.ops.controlled_render import folded, frequency_of, grating, render

ORDERED: tuple[Task, ...] = ("direction", "speed", "order", "flicker")
"""Tasks that need the order of the frames."""

Array = NDArray[np.float64]
Oracle = Callable[[Task, Array], int]


def make(task: Task, **fields: object) -> ControlledConfig:
    """The smallest configuration of a task, with fields replaced."""
    base = {"task": task, "num_train": 8, "num_val": 8, "num_test": 8, "num_frames": 16}
    size = 48 if task in ("static", "detail") else 32
    return ControlledConfig.model_validate(base | {"size": size} | fields)


def halved(frames: Array) -> Array:
    """Means over 2×2 pixels of frames (T,H,W,3)."""
    count, height, width, _ = frames.shape
    smaller: Array = frames.reshape(count, height // 2, 2, width // 2, 2, 3).mean((2, 4))
    return smaller


# --- what every task promises ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_same_arguments_give_the_same_video(task: Task) -> None:
    config = make(task)
    frames, label, facts = render(config, "train", 3)
    assert frames.shape == (16, config.size, config.size, 3)
    assert frames.dtype == np.uint8
    again = render(config, "train", 3)
    assert np.array_equal(frames, again[0])
    assert (label, facts) == again[1:]
    others = [
        render(config, "train", 3 + len(class_names(task))),
        render(config, "val", 3),
        render(make(task, seed=1), "train", 3),
    ]
    assert [other[1] for other in others] == [label] * 3
    assert not any(np.array_equal(frames, other[0]) for other in others)


@pytest.mark.parametrize("task", TASKS)
def test_classes_take_turns(task: Task) -> None:
    classes = len(class_names(task))
    assert len(set(class_names(task))) == classes >= 2
    labels = [render(make(task), "test", number)[1] for number in range(2 * classes)]
    assert labels == [*range(classes), *range(classes)]


@pytest.mark.parametrize("task", TASKS)
def test_the_oracle_sees_the_class(task: Task, told: Oracle) -> None:
    config = make(task)
    for number in range(16):
        frames, label, _ = render(config, "train", number)
        assert told(task, frames.astype(np.float64)) == label, number


# --- order of the frames, and nothing else ----------------------------------------------------------------


def pictures(task: Task, number: int, **fields: object) -> list[list[bytes]]:
    """The frames that each class would have shown as video `number`, without noise."""
    config = make(task, noise=0, **fields)
    labels = range(len(class_names(task)))
    return [[frame.tobytes() for frame in render(config, "train", number, label)[0]] for label in labels]


@pytest.mark.parametrize("fields", [{}, {"size": 50, "num_frames": 32, "seed": 5}], ids=["small", "odd places"])
@pytest.mark.parametrize("task", ORDERED)
def test_classes_differ_in_the_order_of_the_same_frames(task: Task, fields: dict[str, object]) -> None:
    """Then nothing that ignores the order can tell them: one random frame, means over time, sets of frames."""
    for number in range(6):
        clips = pictures(task, number, **fields)
        assert all(sorted(clip) == sorted(clips[0]) for clip in clips)
        assert len({tuple(clip) for clip in clips}) == len(clips)


@pytest.mark.parametrize("task", ["late", "static", "detail"])
def test_other_tasks_do_not(task: Task) -> None:
    """Negative control of the test above."""
    clips = pictures(task, 0)
    assert len({tuple(sorted(clip)) for clip in clips}) == len(clips)


def test_late_shows_nothing_before_the_last_quarter() -> None:
    config = make("late", num_frames=32)
    for number in range(6):
        red, blue = (render(config, "train", number, label)[0] for label in range(2))
        assert np.array_equal(red[:24], blue[:24])
        assert (red[24:] != blue[24:]).any((1, 2, 3)).sum() == 1


@pytest.mark.parametrize("task", ["static", "detail"])
def test_static_classes_differ_in_the_sprite_only(task: Task) -> None:
    config = make(task)
    for number in range(4):
        clips = [render(config, "train", number, label) for label in range(4)]
        y, x, side = (int(clips[0][2][name]) for name in ("y", "x", "side"))
        for frames, _, facts in clips[1:]:
            assert (facts["y"], facts["x"]) == (y, x)
            different = (frames != clips[0][0]).any((0, 3))
            assert different[y : y + side, x : x + side].mean() > 0.9
            different[y : y + side, x : x + side] = False
            assert not different.any()


def test_order_keeps_its_gap() -> None:
    gaps = [int(render(make("order", min_gap=6), "train", n)[2]["gap"]) for n in range(40)]
    assert min(gaps) >= 6
    assert len(set(gaps)) > 4
    assert min(int(render(make("order"), "train", n)[2]["gap"]) for n in range(40)) < 6


def test_every_second_frame_hides_opposite_directions() -> None:
    config = make("direction", num_frames=32)
    for number in range(4):
        clips = [render(config, "train", number, label)[0] for label in range(8)]
        for one, opposite in zip(clips[:4], clips[4:], strict=True):
            assert np.array_equal(one[::2], opposite[::2])
            assert not np.array_equal(one, opposite)
        assert len({clip[::2].tobytes() for clip in clips}) == 4


def test_every_second_frame_hides_half_of_the_speeds(shifts: Callable[[Array], Array]) -> None:
    steps: dict[int, set[float]] = {}
    for number in range(24):
        frames, label, _ = render(make("speed", num_frames=32), "train", number)
        moved = shifts(frames[::2].astype(np.float64))
        steps.setdefault(label, set()).add(float(np.median(np.abs(moved).max(1))))
    assert steps == {0: {4.0}, 1: {12.0}, 2: {12.0}, 3: {4.0}}


# --- classifiers, for what the exact comparison could miss -------------------------------------------------


def accuracy(features: list[Array], labels: list[int]) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    return float(cross_val_score(model, np.array(features), labels, cv=4).mean())


def look(picture: Array) -> Array:
    """What a picture (H,W,3) shows: colours on a coarse grid, spectrum, brightest place."""
    size = len(picture)
    grid = np.arange(8 + 1) * size // 8
    coarse = np.add.reduceat(np.add.reduceat(picture, grid[:-1], 0), grid[:-1], 1)
    spectrum = np.log1p(np.abs(np.fft.rfft2(picture.mean(2) - picture.mean())))
    return np.concatenate([coarse.ravel(), spectrum.ravel(), picture.reshape(-1, 3).std(0)])


def chance_limit(task: Task, count: int) -> float:
    """Four standard errors above chance."""
    chance = 1 / len(class_names(task))
    return chance + 4 * float(np.sqrt(chance * (1 - chance) / count))


@pytest.mark.parametrize("task", [*ORDERED, "static"])
def test_classifier_on_single_frames_and_on_means(task: Task) -> None:
    """`static` is the positive control: the same classifier on the same features finds its class."""
    config = make(task, size=48) if task == "static" else make(task)
    count, rng = 320, np.random.default_rng(0)
    single, mean, labels = [], [], []
    for number in range(count):
        frames, label, _ = render(config, "train", number)
        single.append(look(frames[rng.integers(0, len(frames))].astype(np.float64)))
        mean.append(look(frames.mean(0)))
        labels.append(label)
    for features in (single, mean):
        found = accuracy(features, labels)
        if task == "static":
            assert found > 0.9
        else:
            assert found < chance_limit(task, count), found


@pytest.mark.parametrize("task", ["direction", "speed", "flicker"])
def test_where_and_how_the_sprite_starts_is_no_hint(task: Task) -> None:
    """These three hide the class even from one who knows which frame it is."""
    config = make(task)
    count, features, labels = 320, [], []
    for number in range(count):
        frames, label, facts = render(config, "train", number)
        place = [float(str(facts[name]).split()[0]) for name in ("y", "x")]
        features.append(np.array([*place, *np.square(place), *np.sin(np.array(place) / 5), frames[0].mean()]))
        labels.append(label)
    assert accuracy(features, labels) < chance_limit(task, count)


# --- resolution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", ANGLES)
def test_means_fold_fine_stripes_to_coarse_ones(angle: float) -> None:
    """Why `detail` needs its coarse stripes: half the amplitude of fine ones comes through, in another guise."""
    fine = frequency_of(angle, DETAIL_PITCH)
    small, guise = (
        grating(96, f, 0.3).reshape(48, 2, 48, 2).mean((1, 3)) for f in (fine, folded(fine))
    )  # fmt: skip
    spectra = [np.abs(np.fft.rfft2(picture)) for picture in (small, guise)]
    assert spectra[0].argmax() == spectra[1].argmax()
    assert 0.4 < np.abs(small).max() < 0.6
    assert np.hypot(*folded(fine)) < 0.25


def test_detail_needs_full_size() -> None:
    """Spectrum in, class out: at full size, not at half; what has coarse stripes alone can do with half."""
    for task, at_half in (("detail", False), ("static", True)):
        config = make(task, num_frames=2)
        full, half, labels = [], [], []
        for number in range(320):
            frames, label, _ = render(config, "train", number)
            labels.append(label)
            for features, clip in ((full, frames.astype(np.float64)), (half, halved(frames.astype(np.float64)))):
                grey = clip[0].mean(2)
                features.append(np.log1p(np.abs(np.fft.rfft2(grey - grey.mean()))).ravel())
        assert accuracy(full, labels) > 0.9
        found = accuracy(half, labels)
        assert found > 0.9 if at_half else found < 0.37, (task, found)


@pytest.mark.parametrize("size", [48, 64, 112, 160])
def test_detail_keeps_its_pitch_at_any_size(size: int, told: Oracle) -> None:
    config = make("detail", size=size, num_frames=2)
    clips = [render(config, "val", number) for number in range(8)]
    assert [told("detail", frames.astype(np.float64)) for frames, _, _ in clips] == [label for _, label, _ in clips]


# --- configurations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "directon"}, r"no task 'directon'; did you mean 'direction'\? \(known: direction, speed, "),
        ({"task": "direction", "num_frames": 24}, "num_frames 24 does not fit task 'direction': .* multiple of 16"),
        ({"task": "speed", "num_frames": 8}, "multiple of 16"),
        ({"task": "flicker", "num_frames": 8}, "at least 10, two of the longest periods"),
        ({"task": "flicker", "num_frames": 31}, "even"),
        ({"task": "late", "num_frames": 3}, "num_frames 3 is too few for task 'late': 4 at least"),
        ({"task": "order", "num_frames": 2}, "two flashes and min_gap 1 need 3"),
        ({"task": "order", "min_gap": 31}, "two flashes and min_gap 31 need 33"),
        ({"task": "late", "min_gap": 2}, "min_gap is a setting of task 'order', not of 'late'"),
        ({"task": "detail", "size": 46}, "size 46 is too small for task 'detail': 48 at least"),
        ({"task": "late", "size": 30}, "size: Input should be greater than or equal to 32"),
        ({"task": "late", "size": 65}, "size: Input should be a multiple of 2"),
        ({"task": "direction", "num_val": 7}, "num_val 7 is less than the 8 classes of task 'direction'"),
        ({"task": "late", "sise": 64}, "sise: Extra inputs are not permitted"),
        ({"task": "late", "seed": -1}, "seed: "),
        ({"task": "late", "noise": 41}, "noise: "),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, object], message: str) -> None:
    base = {"num_train": 8, "num_val": 8, "num_test": 8}
    with pytest.raises(ValueError, match=message):
        checked_config(base | values)


def test_limits_are_allowed(told: Oracle) -> None:
    """Negative control of the test above; and they can be drawn."""
    for task, fields in (
        ("flicker", {"num_frames": 10}),
        ("late", {"num_frames": 4, "size": 32}),
        ("order", {"num_frames": 3}),
        ("order", {"num_frames": 32, "min_gap": 30}),
        ("detail", {"size": 48, "num_frames": 2}),
    ):
        config = checked_config({"task": task, "num_train": 8, "num_val": 8, "num_test": 8, **fields})
        for number in range(8):
            frames, label, _ = render(config, "train", number)
            if task != "flicker":  # ten frames may show one onset only
                assert told(config.task, frames.astype(np.float64)) == label


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split 'dev' is none of train, val, test"):
        render(make("late"), "dev", 0)
