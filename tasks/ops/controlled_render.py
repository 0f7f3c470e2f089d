"""Draws the videos of the controlled tasks, see `tasks.ops.controlled` for what they have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_specs.schema import SPLITS
from tasks.ops.controlled import (
    ANGLES,
    DETAIL_PITCH,
    DIRECTIONS,
    GRID,
    PERIODS,
    PLACES,
    SPEEDS,
    STATIC_PITCH,
    TASKS,
    ControlledConfig,
    Task,
    class_names,
)
from tasks.ops.synthetic import COLORS, Frames, smooth_background

_FINE = 15.0
"""Amplitude of the fine stripes of `detail`, grey levels."""
_COARSE = 2 * _FINE
"""Root mean square amplitude of each of its coarse stripes."""

Fact = int | float | str
Grey = NDArray[np.float64]


class _Scene(NamedTuple):
    """What a sprite does in one video."""

    looks: list[Grey]
    """Pictures (side,side,3) of the sprite, levels 0 to 255."""
    shown: NDArray[np.int64]
    """(T,) index into `looks`."""
    corners: NDArray[np.int64]
    """(T,2) top left corner as (y, x), modulo the frame."""
    facts: dict[str, Fact]


@dataclass(frozen=True)
class _Draw:
    """What a task has to draw with: all draws but those of the label's own are the same for every label."""

    config: ControlledConfig
    rng: np.random.Generator
    label: int

    def texture(self) -> Grey:
        """Return a random texture (side,side,1) of 4×4 patches, -1 to 1."""
        patches = self.rng.uniform(-1, 1, (4, 4))
        at = np.arange(self.config.side) * 4 // self.config.side
        picture: Grey = patches[np.ix_(at, at)][..., None]
        return picture

    def resting(self) -> NDArray[np.int64]:
        """Return the corners (T,2) of a sprite that stays at a random place inside the frame."""
        corner = self.rng.integers(0, self.config.size - self.config.side + 1, 2)
        return np.tile(corner, (self.config.num_frames, 1))


def _grey(texture: Grey, level: float = 128, contrast: float = 90) -> Grey:
    return np.repeat(level + contrast * texture, 3, axis=2)


def _tinted(texture: Grey, color: str) -> Grey:
    return np.array(COLORS[color]) * (0.8 + 0.2 * texture)


def _direction(draw: _Draw) -> _Scene:
    """Move along the four lanes of a direction on a torus of 4×4 places, an equal time on each.

    The lanes of any direction together hold every place once, so which places were visited says nothing.
    """
    config, rng = draw.config, draw.rng
    looks = [_grey(draw.texture())]
    origin = rng.integers(0, config.size, 2)
    lanes, starts = rng.permutation(GRID), rng.integers(0, GRID, GRID)
    step = np.array(DIRECTIONS[class_names("direction")[draw.label]])
    aside = np.array([0, 1]) if step[0] else np.array([1, 0])
    # Opposite directions start at the same place of each lane.
    axis = step if tuple(step) > (0, 0) else -step
    length = config.num_frames // GRID
    along = np.arange(length)
    lattice = np.concatenate(
        [lane * aside + start * axis + along[:, None] * step for lane, start in zip(lanes, starts, strict=True)]
    )
    corners = (origin + _pixels(lattice % GRID, GRID, config.size)) % config.size
    shown = np.zeros(config.num_frames, dtype=np.int64)
    return _Scene(looks, shown, corners, {"step": config.size / GRID, "frames_per_lane": length})


def _speed(draw: _Draw) -> _Scene:
    """Move on a ring of sixteen places, horizontally or vertically, either way.

    Speeds are odd and the ring has a power of two of places: each speed visits all, in another order.
    """
    config, rng = draw.config, draw.rng
    looks = [_grey(draw.texture())]
    origin = rng.integers(0, config.size, 2)
    axis, sign, start = rng.integers(0, 2), rng.choice([-1, 1]), rng.integers(0, PLACES)
    speed = SPEEDS[draw.label]
    places = (start + sign * speed * np.arange(config.num_frames)) % PLACES
    corners = np.tile(origin, (config.num_frames, 1))
    corners[:, axis] += _pixels(places, PLACES, config.size)
    shown = np.zeros(config.num_frames, dtype=np.int64)
    way = ("down" if sign > 0 else "up") if axis == 0 else ("right" if sign > 0 else "left")
    return _Scene(looks, shown, corners % config.size, {"step": speed * config.size / PLACES, "way": way})


def _pixels(places: NDArray[np.int64], count: int, size: int) -> NDArray[np.int64]:
    """Return the pixel at which each of `count` equally spaced places begins."""
    pixels: NDArray[np.int64] = np.rint(places * (size / count)).astype(np.int64)
    return pixels


def _order(draw: _Draw) -> _Scene:
    """Flash in both colours, one frame each, with a random gap between."""
    config, rng = draw.config, draw.rng
    texture, corners = draw.texture(), draw.resting()
    looks = [_grey(texture), _tinted(texture, "red"), _tinted(texture, "blue")]
    gap = int(rng.integers(config.least_gap, config.num_frames - 1))
    first = int(rng.integers(0, config.num_frames - 1 - gap))
    second = first + gap + 1
    shown = np.zeros(config.num_frames, dtype=np.int64)
    shown[[first, second]] = (1, 2) if draw.label == 0 else (2, 1)
    return _Scene(looks, shown, corners, {"first": first, "second": second, "gap": gap})


def _late(draw: _Draw) -> _Scene:
    """Flash for one frame of the last quarter; before that nothing differs between the classes."""
    config, rng = draw.config, draw.rng
    texture, corners = draw.texture(), draw.resting()
    looks = [_grey(texture), _tinted(texture, "red"), _tinted(texture, "blue")]
    event = int(rng.integers(config.late_frame, config.num_frames))
    shown = np.zeros(config.num_frames, dtype=np.int64)
    shown[event] = 1 + draw.label
    return _Scene(looks, shown, corners, {"event": event})


def _flicker(draw: _Draw) -> _Scene:
    """Brighten (or darken, a coin says which) every `period` frames, with half of all frames bright.

    An odd period cannot be half bright, so the run in each period is drawn from the two nearest lengths until the
    total is right. With the coin, each frame by itself is bright in half of the videos of every class.
    """
    config, rng = draw.config, draw.rng
    texture, corners = draw.texture(), draw.resting()
    inverted = int(rng.integers(0, 2))
    looks = [_grey(texture, 78, 40), _grey(texture, 178, 40)]
    period = PERIODS[draw.label]
    while True:
        phase = int(rng.integers(0, period))
        cycle, within = np.divmod(np.arange(config.num_frames) + phase, period)
        runs = rng.integers(period // 2, (period + 1) // 2, cycle[-1] + 1, endpoint=True)
        shown = (within < runs[cycle]).astype(np.int64)
        if 2 * shown.sum() == config.num_frames:
            break
    facts: dict[str, Fact] = {"period": period, "phase": phase, "onset_of": ("bright", "dark")[inverted]}
    return _Scene(looks, shown ^ inverted, corners, facts)


def grating(side: int, frequency: NDArray[np.float64], phase: float) -> Grey:
    """Return stripes (side,side) of amplitude 1.

    Args:
        side: Pixels.
        frequency: (x, y), cycles per pixel.
        phase: Radians.
    """
    y, x = np.mgrid[0:side, 0:side]
    stripes: Grey = np.cos(2 * np.pi * (frequency[0] * x + frequency[1] * y) + phase)
    return stripes


def frequency_of(angle: float, pitch: float) -> NDArray[np.float64]:
    """Return (x, y) in cycles per pixel of stripes with an angle in degrees and a pitch in pixels."""
    turn = np.deg2rad(angle)
    return np.array([np.cos(turn), np.sin(turn)]) / pitch


def folded(frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the frequency below half the sampling limit that looks the same when every second pixel is kept."""
    return frequency - np.round(2 * frequency) / 2


def _left_by_mean(frequency: NDArray[np.float64]) -> float:
    """Return the share of a grating's amplitude that means over 2×2 pixels leave."""
    return float(np.prod(np.cos(np.pi * frequency)))


def _static(draw: _Draw) -> _Scene:
    """Show coarse stripes, the same in all frames."""
    config, rng = draw.config, draw.rng
    corners = draw.resting()
    phase = float(rng.uniform(0, 2 * np.pi))
    stripes = grating(config.side, frequency_of(ANGLES[draw.label], STATIC_PITCH), phase)
    shown = np.zeros(config.num_frames, dtype=np.int64)
    facts: dict[str, Fact] = {"angle": ANGLES[draw.label], "pitch": STATIC_PITCH}
    return _Scene([_grey(stripes[..., None], contrast=60)], shown, corners, facts)


def _detail(draw: _Draw) -> _Scene:
    """Show fine stripes among coarse ones, the same in all frames.

    Fine stripes alone would not need resolution: at half size a pitch of 3 pixels folds to another, fainter grating
    that still tells the angle. So the sprite also has, whatever its class, coarse stripes at the four frequencies that
    the four fine ones fold to, with random amplitude (Rayleigh) and phase. At half size the class's share is lost in
    them; its own coarse stripes are weaker by the power that the fine ones add there. At full size the fine stripes
    are apart from all of them.
    """
    config, rng = draw.config, draw.rng
    corners = draw.resting()
    phase = float(rng.uniform(0, 2 * np.pi))
    strengths = rng.normal(0, 1, (len(ANGLES), 2))
    own = frequency_of(ANGLES[draw.label], DETAIL_PITCH)
    stripes = _FINE * grating(config.side, own, phase)
    for index, (angle, (even, odd)) in enumerate(zip(ANGLES, strengths, strict=True)):
        fine = frequency_of(angle, DETAIL_PITCH)
        coarse = folded(fine)
        added = _FINE * _left_by_mean(fine) / _left_by_mean(coarse) if index == draw.label else 0.0
        amplitude = np.sqrt((_COARSE**2 - added**2) / 2)
        waves = even * grating(config.side, coarse, 0) + odd * grating(config.side, coarse, np.pi / 2)
        stripes += amplitude * waves
    shown = np.zeros(config.num_frames, dtype=np.int64)
    facts: dict[str, Fact] = {"angle": ANGLES[draw.label], "pitch": DETAIL_PITCH}
    return _Scene([_grey(stripes[..., None], contrast=1)], shown, corners, facts)


_SCENES: dict[Task, Callable[[_Draw], _Scene]] = {
    "direction": _direction,
    "speed": _speed,
    "order": _order,
    "flicker": _flicker,
    "late": _late,
    "static": _static,
    "detail": _detail,
}


def render(
    config: ControlledConfig, split: str, number: int, label: int | None = None
) -> tuple[Frames, int, dict[str, Fact]]:
    """Render one video; the same arguments give the same frames.

    Args:
        config: The set it belongs to.
        split: train, val or test.
        number: Of the video in its split; classes take turns.
        label: Instead of the number's own: the video that this class would have shown in its place, with the same
            background, texture, place, timing and noise.

    Returns:
        Frames (T,H,W,3), class index, and what is known about the video: `y` and `x` of the sprite's top left corner
        (pixels, numbers for all frames where it moves), its `side`, and what the task adds.

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    key = [config.seed, TASKS.index(config.task), SPLITS.index(split), number]
    rng, noise = (np.random.default_rng([*key, stream]) for stream in range(2))
    label = number % len(class_names(config.task)) if label is None else label
    size, side = config.size, config.side
    base = smooth_background(rng, size)
    scene = _SCENES[config.task](_Draw(config, rng, label))
    looks = [look.astype(np.float32) for look in scene.looks]
    frames = np.empty((config.num_frames, size, size, 3), dtype=np.uint8)
    span = np.arange(side)
    for t, (y, x) in enumerate(scene.corners):
        frame = base.copy()
        frame[np.ix_((y + span) % size, (x + span) % size)] = looks[scene.shown[t]]
        if config.noise:
            frame += config.noise * noise.standard_normal((size, size, 1), dtype=np.float32)
        frames[t] = np.rint(frame).clip(0, 255).astype(np.uint8)
    moves = len(np.unique(scene.corners, axis=0)) > 1
    places = [" ".join(map(str, column)) if moves else int(column[0]) for column in scene.corners.T]
    return frames, label, {"y": places[0], "x": places[1], "side": side, **scene.facts}
