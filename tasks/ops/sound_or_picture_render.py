"""Draws and sounds the videos of the task `sound_or_picture`, see `tasks.ops.sound_or_picture` for what they are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_specs.schema import SPLITS
from tasks.ops.sound_or_picture import (
    CHORDS,
    CLASSES,
    CLASSES_PER_GROUP,
    GROUPS,
    HUE_DEG,
    HUM_HZ,
    SAMPLE_RATE,
    SoundOrPictureConfig,
)
from tasks.ops.synthetic import Frames, smooth_background

_STREAM = 1000
"""Sets this task's random numbers apart from those of the tasks in `tasks.ops.controlled`, which count from 0."""

_TINT = 0.10
"""Share of the background's level by which hue moves a colour channel."""
_HUE_JITTER_DEG = 25.0

_RADIUS = 0.17
"""Of a glyph, in sides of the frame, before its scale of 0.85 to 1.15."""
_DRIFT = 0.01
"""Most that a glyph moves per frame along each axis, in sides of the frame."""
_MOST_DRIFT = 0.12
"""And most in a segment."""
_BRIGHT, _DIM = 240.0, 165.0
"""Grey levels of a glyph's texture; the background ends at about 160."""

_NOISE, _HUM, _TONE = 0.03, 0.03, 0.04
"""Standard deviation of the noise, amplitudes of hum and of a tone; full scale is 1."""
_RAMP_S = 0.15
"""Fade of a chord at both ends of its segment: more than two blocks of AAC (85 ms), over which it smears."""

Grey = NDArray[np.float32]
Flags = NDArray[np.bool_]
Sound = NDArray[np.int16]
Fact = int | float | str


class Rendered(NamedTuple):
    """One video."""

    frames_THWC: Frames
    sound_N: Sound | None
    """At `SAMPLE_RATE`, one channel; None for a silent video."""
    label: int
    facts: dict[str, Fact]
    """`group`; `picture_informative`, `sound_informative`, `picture_distractor` and `sound_distractor` as strings of 0
    and 1, a digit per segment; `silent` as 0 or 1."""


class _Plan(NamedTuple):
    """What a video shows and sounds like; index -1 is nothing."""

    glyphs: NDArray[np.int64]
    """(segments,) class index of the glyph."""
    chords: NDArray[np.int64]
    """(segments,) class index of the chord."""
    facts: dict[str, Fact]
    silent: bool


# --- glyphs ------------------------------------------------------------------------------------------------

_Drawing = Callable[[Grey, Grey], Any]
"""Of coordinates u (to the right) and v (down), about -1 to 1 within a glyph."""


def _plus(u: Grey, v: Grey) -> Any:
    across, along = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(across - 0.3, along - 1), np.maximum(along - 0.3, across - 1))


_SHAPES: dict[str, _Drawing] = {
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.7) - 0.28,
    "plus": _plus,
    "triangle": lambda u, v: np.maximum(v - 0.8, 0.88 * np.abs(u) - 0.47 * (v + 1)),
    "cross": lambda u, v: _plus(0.71 * (u + v), 0.71 * (u - v)),
    "disc": lambda u, v: np.hypot(u, v) - 0.85,
    "frame": lambda u, v: np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.67) - 0.23,
    "hourglass": lambda u, v: np.maximum(np.abs(v) - 0.95, 0.75 * np.abs(u) - 0.66 * np.abs(v) - 0.08),
    "chevron": lambda u, v: np.maximum(0.72 * np.abs(v - np.abs(u) + 0.4) - 0.3, np.abs(u) - 0.95),
}
"""Distance to the outline, negative inside."""

_TEXTURES: dict[str, _Drawing] = {
    "rows": lambda u, v: np.sin(9 * v),
    "columns": lambda u, v: np.cos(9 * u),
    "checks": lambda u, v: 2 * np.cos(7 * u) * np.cos(7 * v),
    "circles": lambda u, v: np.cos(11 * np.hypot(u, v)),
}
"""Bright where positive."""

_GLYPHS = {
    "picture_0": ("ring", "rows"),
    "picture_1": ("plus", "checks"),
    "picture_2": ("triangle", "columns"),
    "picture_3": ("cross", "circles"),
    "both_0": ("disc", "columns"),
    "both_1": ("frame", "checks"),
    "both_2": ("hourglass", "rows"),
    "both_3": ("chevron", "circles"),
}
"""Class → (shape, texture), all their own mirror images."""


def glyph(name: str, size: int, centres: NDArray[np.float64], radius: float) -> tuple[Grey, Grey]:
    """Draw the glyph of a class.

    Args:
        name: Class of group `picture` or `both`.
        size: Side of the frame, pixels.
        centres: (T,2) centre as (y, x), pixels.
        radius: Pixels.

    Returns:
        Its grey levels and its opacity (0 to 1, one pixel of transition), both (T,H,W).
    """
    shape, texture = (table[part] for table, part in zip((_SHAPES, _TEXTURES), _GLYPHS[name], strict=True))
    at = np.arange(size, dtype=np.float64)
    v, u = (((at - centres[:, axis, None]) / radius).astype(np.float32) for axis in range(2))
    across, down = u[:, None, :], v[:, :, None]
    opacity: Grey = (0.5 - radius * shape(across, down)).clip(0, 1).astype(np.float32)
    wave = texture(across, down).clip(-0.5, 0.5) + 0.5
    level: Grey = np.broadcast_to(_DIM + (_BRIGHT - _DIM) * wave, opacity.shape).astype(np.float32)
    return level, opacity


# --- what a video shows ------------------------------------------------------------------------------------


def _at_least_one(flags: Flags, spare: int) -> Flags:
    """Return flags of which one is set: the spare one, where none is."""
    return flags if flags.any() else np.arange(len(flags)) == spare


def _digits(flags: Flags) -> str:
    return "".join("01"[int(flag)] for flag in flags)


def _plan(config: SoundOrPictureConfig, rng: np.random.Generator, label: int, silent: float) -> _Plan:
    """Draw what is shown in which segment: the same numbers whatever the label."""
    count = config.segments
    informative = rng.random((2, count)) < config.informative
    spares = rng.integers(0, count, 2)
    distracted = rng.random((2, count)) < config.distractors
    misleading = rng.integers(0, CLASSES_PER_GROUP, (2, count))

    group = GROUPS[label // CLASSES_PER_GROUP]
    # Three halves: of the three groups, one has no silent videos.
    mute = group != "sound" and silent < 1.5 * config.silent
    none = np.zeros(count, dtype=np.bool_)
    seen = _at_least_one(informative[0], spares[0]) if group != "sound" else none
    heard = _at_least_one(informative[1], spares[1]) if group != "picture" and not mute else none
    false_sight = distracted[0] if group == "sound" else none
    false_sound = distracted[1] if group == "picture" and not mute else none

    first = {name: CLASSES_PER_GROUP * number for number, name in enumerate(GROUPS)}
    glyphs = np.where(seen, label, np.where(false_sight, first["picture"] + misleading[0], -1))
    chords = np.where(heard, label, np.where(false_sound, first["sound"] + misleading[1], -1))
    facts: dict[str, Fact] = {
        "group": group,
        "picture_informative": _digits(seen),
        "sound_informative": _digits(heard),
        "picture_distractor": _digits(false_sight),
        "sound_distractor": _digits(false_sound),
        "silent": int(mute),
    }
    return _Plan(glyphs, chords, facts, mute)


def _picture(config: SoundOrPictureConfig, rng: np.random.Generator, plan: _Plan) -> Frames:
    """Draw the frames (T,H,W,3) of a planned video."""
    size, count, length = config.size, config.segments, config.segment_frames
    base = smooth_background(rng, size)
    hues = HUE_DEG[str(plan.facts["group"])] + rng.uniform(-_HUE_JITTER_DEG, _HUE_JITTER_DEG, count)
    radii = _RADIUS * size * rng.uniform(0.85, 1.15, count)
    places = rng.random((count, 2))
    drifts = rng.uniform(-1, 1, (count, 2)) * min(_DRIFT, _MOST_DRIFT / length) * size
    noise = rng.standard_normal((config.num_frames, size, size), dtype=np.float32) * np.float32(config.noise)

    frames = np.empty((config.num_frames, size, size, 3), dtype=np.uint8)
    steps = np.arange(length)[:, None] - (length - 1) / 2
    for segment in range(count):
        tint = 1 + _TINT * np.cos(np.deg2rad(hues[segment] - np.array([0.0, 120.0, 240.0])))
        here = slice(segment * length, (segment + 1) * length)
        picture = noise[here, ..., None] + base * tint.astype(np.float32)
        if plan.glyphs[segment] >= 0:
            radius = float(radii[segment])
            margin = radius + np.abs(drifts[segment]) * (length - 1) / 2 + 1
            centres = margin + places[segment] * (size - 1 - 2 * margin) + steps * drifts[segment]
            level, opacity = glyph(CLASSES[plan.glyphs[segment]], size, centres, radius)
            level = level + noise[here]
            picture += opacity[..., None] * (level[..., None] - picture)
        frames[here] = np.rint(picture).clip(0, 255).astype(np.uint8)
    return frames


def _sound(config: SoundOrPictureConfig, rng: np.random.Generator, plan: _Plan) -> Sound:
    """Make the sound (N,) of a planned video."""
    count = config.segments
    total = config.first_sample(count)
    detuned, hum_level, hum_phase = rng.uniform(-0.02, 0.02), rng.uniform(0.8, 1.2), rng.uniform(0, 2 * np.pi)
    phases = rng.uniform(0, 2 * np.pi, (count, 3))
    levels = rng.uniform(0.8, 1.2, (count, 3))
    swells, swell_phases = rng.uniform(0.7, 2.0, count), rng.uniform(0, 2 * np.pi, count)
    wave = rng.standard_normal(total, dtype=np.float32) * np.float32(_NOISE)

    # 64 bits for the angles, which grow large.
    time = np.arange(total) / SAMPLE_RATE
    hum = HUM_HZ[str(plan.facts["group"])] * (1 + detuned)
    wave += (_HUM * hum_level * np.sin(2 * np.pi * hum * time + hum_phase)).astype(np.float32)
    for segment in np.flatnonzero(plan.chords >= 0):
        first, end = (config.first_sample(int(segment) + more) for more in range(2))
        own = np.arange(end - first) / SAMPLE_RATE
        ramp = np.minimum(own, own[::-1]) / _RAMP_S
        fade = np.sin(np.pi / 2 * ramp.clip(0, 1)) ** 2
        fade *= 0.8 + 0.2 * np.cos(2 * np.pi * swells[segment] * own + swell_phases[segment])
        tones = np.zeros(end - first)
        for tone, frequency in enumerate(CHORDS[CLASSES[plan.chords[segment]]]):
            tones += levels[segment, tone] * np.sin(2 * np.pi * frequency * own + phases[segment, tone])
        wave[first:end] += (_TONE * fade * tones).astype(np.float32)
    sound: Sound = np.rint(wave * 32767).clip(-32768, 32767).astype(np.int16)
    return sound


def render_sounding(config: SoundOrPictureConfig, split: str, number: int, label: int | None = None) -> Rendered:
    """Render one video with its sound; the same arguments give the same picture and sound.

    Args:
        config: The set it belongs to.
        split: train, val or test.
        number: Of the video in its split; classes take turns.
        label: Instead of the number's own: the video that this class would have shown in its place, with the same
            background, noise, places, phases and draws of segments.

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    label = number % len(CLASSES) if label is None else label
    key = [config.seed, _STREAM, SPLITS.index(split), number]
    shown, drawn, heard, muted = (np.random.default_rng([*key, stream]) for stream in range(4))
    plan = _plan(config, shown, label, float(muted.random()))
    frames = _picture(config, drawn, plan)
    return Rendered(frames, None if plan.silent else _sound(config, heard, plan), label, plan.facts)
