"""Oracles of the controlled tasks: they know what to look for, and see only pixels."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.ops.controlled import ANGLES, DETAIL_PITCH, DIRECTIONS, PERIODS, SPEEDS, STATIC_PITCH, Task
from tasks.ops.controlled_render import frequency_of, grating

Array = NDArray[np.float64]


def displacements(frames: Array) -> Array:
    """(T-1,2) shift of what moves, on the torus, from one frame to the next."""
    moving = np.fft.fft2(frames.mean(3) - frames.mean((0, 3)))
    likeness = np.fft.ifft2(moving[1:] * moving[:-1].conj()).real
    size = frames.shape[1]
    peaks = np.array([np.unravel_index(np.argmax(plane), plane.shape) for plane in likeness])
    shifts: Array = (peaks + size // 2) % size - size // 2
    return shifts.astype(np.float64)


def red_over_blue(frames: Array) -> Array:
    red_minus_blue: Array = (frames[..., 0] - frames[..., 2]).mean((1, 2))
    return red_minus_blue


def told_by_direction(frames: Array) -> int:
    signs = np.sign(displacements(frames)).astype(int).tolist()
    return max(range(8), key=lambda label: signs.count(list(tuple(DIRECTIONS.values())[label])))


def told_by_speed(frames: Array) -> int:
    step = np.median(np.abs(displacements(frames)).max(1))
    return int(np.argmin(np.abs(step - np.array(SPEEDS) * frames.shape[1] / 16)))


def told_by_order(frames: Array) -> int:
    tint = red_over_blue(frames)
    return int(tint.argmax() > tint.argmin())


def told_by_flicker(frames: Array) -> int:
    """Class whose period is the only distance between onsets, or between ends; -1 for none."""
    level = frames.mean((1, 2, 3))
    changes = np.diff((level > (level.min() + level.max()) / 2).astype(int))
    for sign in (1, -1):
        distances = set(np.diff(np.flatnonzero(changes == sign)).tolist())
        if len(distances) == 1 and distances <= set(PERIODS):
            return PERIODS.index(distances.pop())
    return -1


def told_by_late(frames: Array) -> int:
    tint = red_over_blue(frames) - np.median(red_over_blue(frames))
    return int(tint[np.abs(tint).argmax()] < 0)


def powers(picture: Array, pitch: float) -> Array:
    """(4,) amplitude of each angle's stripes in a grey picture (H,W)."""
    size = len(picture)
    shown = (picture - picture.mean()) * np.outer(np.hanning(size), np.hanning(size))
    waves = [
        grating(size, frequency_of(angle, pitch), 0) + 1j * grating(size, frequency_of(angle, pitch), np.pi / 2)
        for angle in ANGLES
    ]
    return np.array([abs((shown * wave).sum()) for wave in waves])


def told_by_static(frames: Array) -> int:
    return int(powers(frames[0, ..., 1], STATIC_PITCH).argmax())


def told_by_detail(frames: Array) -> int:
    return int(powers(frames[0, ..., 1], DETAIL_PITCH).argmax())


ORACLES: dict[Task, Callable[[Array], int]] = {
    "direction": told_by_direction,
    "speed": told_by_speed,
    "order": told_by_order,
    "flicker": told_by_flicker,
    "late": told_by_late,
    "static": told_by_static,
    "detail": told_by_detail,
}


@pytest.fixture(scope="session")
def told() -> Callable[[Task, Array], int]:
    """Class that a task's oracle sees in frames (T,H,W,3), levels 0 to 255; -1 for none."""
    return lambda task, frames: ORACLES[task](frames)


@pytest.fixture(scope="session")
def stripe_powers() -> Callable[[Array, float], Array]:
    """Amplitude (4,) of the stripes of each angle and a given pitch in a grey picture (H,W)."""
    return powers


@pytest.fixture(scope="session")
def shifts() -> Callable[[Array], Array]:
    """Displacement (T-1,2) in pixels, y and x, of what moves in frames (T,H,W,3)."""
    return displacements
