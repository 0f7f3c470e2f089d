"""What a video of `moving_sprites` shows: objects, their paths and boxes, bad frames. Nothing is drawn here."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_specs.schema import SPLITS
from tasks.ops.moving_sprites import (
    ASPECT,
    CLASSES,
    DEGRADED_SHARE,
    FAST_CELLS,
    FAST_FRAMES,
    LEAST_INSIDE,
    MOST_HIDDEN,
    MovingSpritesConfig,
)

__all__ = ["Degradation", "Sprite", "VideoPlan", "plan_video", "stream"]

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Kind = Literal["slow", "medium", "fast"]

_STREAM = 2000
"""Sets this task's random numbers apart from those of the other controlled tasks."""

_SHAPE, _PATH, _LABEL, _LABELLED, _FRAME = range(5)
LOOK, BACKGROUND, NOISE, ROUGH = range(5, 9)
"""Streams of random numbers of a video; those with small names are of the drawing."""

_SPEED = {"slow": (0.001, 0.005), "medium": (0.0125, 0.019)}
"""Pixels per frame and pixel of the object's shorter side."""
_CIRCLE = (0.1, 0.25)
"""Radius of the path of slow and medium objects, sides of the frame."""
_OUTSIDE = 0.2
"""Share of an object's width or height that such a path may take out of the frame."""
_SWAY_CELLS = 0.2
"""Most vertical motion of a fast object, cells per 5 frames."""
_SWAY_FRAMES = (30.0, 60.0)
"""Frames of a whole up and down."""
_TRIES = 6
"""Paths among which the one that meets the other objects least is taken."""
_SAMPLES = 24
"""Points along each axis at which it is looked whether an object is hidden."""

_KINDS = ("blur", "defocus", "bars", "rough")


class Degradation(NamedTuple):
    """What is wrong with a frame; lengths in pixels of this frame, 0 for what it does not have."""

    blur: float
    """Length of the motion blur."""
    defocus: float
    """Standard deviation of the Gaussian blur."""
    bars: float
    """Share of each object that bars cover."""
    rough: float
    """Standard deviation of the added noise, grey levels."""


@dataclass(frozen=True)
class Sprite:
    """One object in all T frames, whether it is shown or not."""

    label: int
    kind: Kind
    width: float
    height: float
    """Pixels."""
    centre_T2: Array
    """x, y, pixels."""
    velocity_T2: Array
    """Pixels per frame."""
    round_T: Numbers
    """How often a fast object has left the frame and come back."""
    shown_T: Flags
    box_T4: Array
    """x0, y0, x1, y1, edges clipped to the frame; only of frames that show it."""
    inside_T: Array
    """Share of the box that lies inside the frame."""
    hidden_T: Array
    """Share of that part which objects in front cover."""


@dataclass(frozen=True)
class VideoPlan:
    """One video."""

    sprites: tuple[Sprite, ...]
    """Later ones are in front."""
    degraded: tuple[Degradation | None, ...]
    """Per frame."""
    labelled_T: Flags
    """Frames whose objects the annotation tells."""
    camera_T2: Array
    """x, y, pixels: place of the frame over the background."""


def stream(config: MovingSpritesConfig, split: str, number: int, *path: int) -> np.random.Generator:
    """Return random numbers of one video for one purpose.

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    return np.random.default_rng([config.seed, _STREAM, SPLITS.index(split), number, *path])


def plan_video(
    config: MovingSpritesConfig, split: str, number: int, labels: tuple[int, ...] | None = None
) -> VideoPlan:
    """Draw what a video shows; the same arguments give the same.

    Args:
        config: The set it belongs to.
        split: train, val or test.
        number: Of the video in its split.
        labels: Instead of the objects' own classes, one for each of the most objects that a video can have. Nothing
            else changes.

    Raises:
        ValueError: unknown split.
    """
    shape, path = (stream(config, split, number, which) for which in (_SHAPE, _PATH))
    count = int(shape.integers(config.objects[0], config.objects[1] + 1))
    drafts: list[Sprite] = []
    for place in range(count):
        label = _label(config, split, number, place) if labels is None else labels[place]
        side = config.size * shape.uniform(*config.object_size)
        stretch = np.sqrt(np.exp(shape.uniform(*np.log(ASPECT))))
        kind: Kind = ("slow", "medium", "fast")[int(shape.integers(3))]
        if config.motion != "mixed":
            kind = "slow" if config.motion == "isotropic_slow" else "fast"
        tries = [
            _moving(config, path, label, kind, float(side * stretch), float(side / stretch)) for _ in range(_TRIES)
        ]
        drafts.append(min(tries, key=lambda one: sum(_meeting(one, other) for other in drafts)))
    keys = set(config.key_frames)
    labelled = np.ones(config.num_frames, np.bool_)
    if split == "train":
        first = stream(config, split, number, _LABELLED).integers(config.label_every)
        labelled = (np.arange(config.num_frames) - first) % config.label_every == 0
    return VideoPlan(
        _shown(config, drafts),
        tuple(
            None if frame in keys else _degradation(config, split, number, frame) for frame in range(config.num_frames)
        ),
        labelled,
        _camera(config, path),
    )


def _label(config: MovingSpritesConfig, split: str, number: int, place: int) -> int:
    """Return the class of an object: of six videos in a row, their objects with the same number have all six."""
    turn, here = divmod(number, len(CLASSES))
    return int(stream(config, split, turn, _LABEL, place).permutation(len(CLASSES))[here])


# --- motion ------------------------------------------------------------------------------------------------


def _moving(
    config: MovingSpritesConfig, rng: np.random.Generator, label: int, kind: Kind, width: float, height: float
) -> Sprite:
    """Draw a path; as many numbers whatever the kind."""
    draws = rng.random(7)
    time = np.arange(config.num_frames, dtype=np.float64)
    none = np.zeros(config.num_frames)
    if kind == "fast":
        centre, velocity, rounds = _across(config, draws, time, width, height)
    else:
        centre, velocity = _around(config, draws, time, kind, width, height)
        rounds = np.zeros(config.num_frames, np.int64)
    half = np.array([width, height]) / 2
    box = np.concatenate([centre - half, centre + half], axis=1).clip(0, config.size)
    inside = np.prod((box[:, 2:] - box[:, :2]).clip(0), axis=1) / (width * height)
    return Sprite(label, kind, width, height, centre, velocity, rounds, inside >= LEAST_INSIDE, box, inside, none)


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _across(
    config: MovingSpritesConfig, draws: Array, time: Array, width: float, height: float
) -> tuple[Array, Array, Numbers]:
    """Return centre, velocity and round of an object that crosses the frame, leaves it wholly and comes back."""
    unit = config.cell / FAST_FRAMES
    speed = _between(*FAST_CELLS, draws[0]) * unit * (1 if draws[1] < 0.5 else -1)
    lap = config.size + width
    rounds, along = np.divmod(draws[2] * lap + speed * time, lap)
    pace = 2 * np.pi / _between(*_SWAY_FRAMES, draws[3])
    sway = _SWAY_CELLS * unit * draws[4]
    phase = 2 * np.pi * draws[5]
    margin = (0.5 - _OUTSIDE) * height
    lane = _between(margin, config.size - margin, draws[6])
    centre = np.stack([along - width / 2, lane + sway / pace * np.sin(pace * time + phase)], axis=1)
    velocity = np.stack([np.full_like(time, speed), sway * np.cos(pace * time + phase)], axis=1)
    return centre, velocity, rounds.astype(np.int64)


def _around(
    config: MovingSpritesConfig, draws: Array, time: Array, kind: Kind, width: float, height: float
) -> tuple[Array, Array]:
    """Return centre and velocity of an object on a circle, at constant speed."""
    speed = _between(*_SPEED[kind], draws[0]) * min(width, height)
    radius = _between(*_CIRCLE, draws[1]) * config.size
    turn = speed / radius * (1 if draws[2] < 0.5 else -1)
    angle = 2 * np.pi * draws[3] + turn * time
    out = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    room = radius + (0.5 - _OUTSIDE) * np.array([width, height])
    middle = room + (config.size - 2 * room) * draws[4:6]
    return middle + radius * out, turn * radius * np.stack([-out[:, 1], out[:, 0]], axis=1)


def _camera(config: MovingSpritesConfig, rng: np.random.Generator) -> Array:
    """Return the place of the frame over the background (T,2): on a circle, from 0."""
    speed, size, start, way = rng.random(4)
    radius = _between(*_CIRCLE, size) * config.size
    turn = config.camera * config.cell / FAST_FRAMES * speed / radius * (1 if way < 0.5 else -1)
    angle = 2 * np.pi * start + turn * np.arange(config.num_frames)
    place = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    moved: Array = place - place.min(axis=0)
    return moved


# --- what is seen ------------------------------------------------------------------------------------------


def _meeting(one: Sprite, other: Sprite) -> float:
    """Return the area that two objects' boxes share, summed over the frames."""
    low = np.maximum(one.box_T4[:, :2], other.box_T4[:, :2])
    high = np.minimum(one.box_T4[:, 2:], other.box_T4[:, 2:])
    return float(np.prod((high - low).clip(0), axis=1).sum())


def _shown(config: MovingSpritesConfig, drafts: list[Sprite]) -> tuple[Sprite, ...]:
    """Leave out what is hidden by objects in front that are shown themselves."""
    done: list[Sprite] = []
    steps = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    for draft in reversed(drafts):
        low, high = draft.box_T4[:, None, :2], draft.box_T4[:, None, 2:]
        points_TN2 = low + (high - low) * steps[:, None]
        covered_TYX = np.zeros((config.num_frames, _SAMPLES, _SAMPLES), np.bool_)
        for front in done:
            within = (points_TN2 >= front.box_T4[:, None, :2]) & (points_TN2 < front.box_T4[:, None, 2:])
            within &= front.shown_T[:, None, None]
            covered_TYX |= within[:, :, None, 1] & within[:, None, :, 0]
        hidden = covered_TYX.mean((1, 2))
        shown = draft.shown_T & (hidden <= MOST_HIDDEN)
        done.append(replace(draft, shown_T=shown, hidden_T=hidden))
    return tuple(reversed(done))


def _degradation(config: MovingSpritesConfig, split: str, number: int, frame: int) -> Degradation | None:
    """Draw what is wrong with a frame; from numbers of its own, so that one frame's do not move another's."""
    if config.regime == "clean":
        return None
    rng = stream(config, split, number, _FRAME, frame)
    if rng.random() >= DEGRADED_SHARE and config.regime == "random":
        return None
    count = int(rng.integers(config.kinds[0], config.kinds[1] + 1))
    chosen = rng.permutation(len(_KINDS))[:count]
    ranges = (config.blur, config.defocus, config.bars, config.rough)
    factors = (config.scale, config.scale, 1.0, min(config.scale, 1.0))
    draws = rng.random(len(_KINDS))
    return Degradation(
        *(
            factor * _between(*span, float(draw)) if which in chosen else 0.0
            for which, (factor, span, draw) in enumerate(zip(factors, ranges, draws, strict=True))
        )
    )
