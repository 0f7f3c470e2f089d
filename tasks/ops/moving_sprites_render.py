"""Draws the videos of the task `moving_sprites`, see `tasks.ops.moving_sprites` for what they are.

Shapes: T frames, K frames that show an object, Y and X rows and columns of a frame or of a patch around an object.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.ops.moving_sprites import CLASSES, MovingSpritesConfig
from tasks.ops.moving_sprites_plan import (
    BACKGROUND,
    LOOK,
    NOISE,
    ROUGH,
    Sprite,
    VideoPlan,
    plan_video,
    stream,
)
from tasks.ops.synthetic import Frames

__all__ = ["BAR_DRAWS", "cover_with_bars", "draw_video", "patches", "render_sprites"]

Grey = NDArray[np.float32]

_DARK, _BRIGHT = (15.0, 65.0), (190.0, 240.0)
"""Grey levels of a texture's two colours, drawn per channel."""
_CYCLES = 3.5
"""Periods of a texture across an object."""
_EDGE = 2.5
"""Steepness of a texture's transitions: 1 is a sine, clipped."""

_BLOTCHES = ((4, 8.0), (8, 12.0), (24, 25.0))
"""Pitch of the background's blotches, pixels, and their standard deviation, grey levels."""
_MIDDLE = 115.0

_BAR_LEVELS = (50.0, 190.0)
_BARS = (2, 4)
"""Fewest and most bars across an object."""
_BAR_MARGIN = (0.05, 0.3)
"""By which bars stand out over an object, shares of its width and height."""
_DECOYS = 3
"""Most places with bars and without an object: bars must not say where to look."""

BAR_DRAWS = 11
"""Random numbers that bars over one object take."""
_DECOY_DRAWS = 4 + BAR_DRAWS

_Drawing = Callable[[Grey, Grey], Any]
"""Of coordinates u (to the right) and v (down), -1 to 1 within an object's box."""


def _plus(u: Grey, v: Grey) -> Any:
    across, along = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(across - 0.4, along - 1), np.maximum(along - 0.4, across - 1))


def _square(u: Grey, v: Grey) -> Any:
    return np.maximum(np.abs(u), np.abs(v)) - 1


_OUTLINES: dict[str, _Drawing] = {
    "disc": lambda u, v: np.sqrt(u * u + v * v) - 1,
    "square": _square,
    "diamond": lambda u, v: np.maximum(0.71 * (np.abs(u) + np.abs(v) - 1.15), _square(u, v)),
    "plus": _plus,
    "trapezoid": lambda u, v: np.maximum(np.abs(v) - 1, 0.95 * np.abs(u) - 0.32 * v - 0.63),
    "hourglass": lambda u, v: np.maximum(np.abs(v) - 1, 0.8 * np.abs(u) - 0.56 * np.abs(v) - 0.24),
}
"""Distance to the outline, negative inside; each touches all four sides of its box."""

_WAVE = np.pi * _CYCLES

_TEXTURES: dict[str, _Drawing] = {
    "disc": lambda u, v: np.sin(_WAVE * v),
    "square": lambda u, v: np.cos(8 * np.arctan2(v, u)),
    "diamond": lambda u, v: np.cos(_WAVE * u),
    "plus": lambda u, v: 2 * np.cos(_WAVE * u) * np.cos(_WAVE * v),
    "trapezoid": lambda u, v: np.cos(_WAVE * (v - np.abs(u))),
    "hourglass": lambda u, v: np.cos(_WAVE * np.sqrt(u * u + v * v)),
}
"""Whatever is positive has one colour, the rest the other."""


class _Look(NamedTuple):
    """Colours of an object (3,), where its texture is positive and where negative: either may be the bright one."""

    high: Grey
    low: Grey


# --- objects -----------------------------------------------------------------------------------------------


def patches(sprite: Sprite, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], Grey, Grey]:
    """Draw an object in some of its frames.

    Args:
        sprite: The object.
        chosen: (K,) frame numbers.

    Returns:
        Top left pixel (K,2) as x, y; opacity (K,Y,X), one pixel of transition; texture (K,Y,X), 0 to 1.
    """
    name = CLASSES[sprite.label]
    half = np.array([sprite.width, sprite.height]) / 2
    corner = np.floor(sprite.centre_T2[chosen] - half).astype(np.int64)
    sides = np.ceil(2 * half).astype(np.int64) + 1
    u, v = (
        (
            (corner[:, axis, None] + np.arange(sides[axis]) + 0.5 - sprite.centre_T2[chosen, axis, None]) / half[axis]
        ).astype(np.float32)
        for axis in range(2)
    )
    across, down = u[:, None, :], v[:, :, None]
    reach = np.float32(half.mean())
    opacity: Grey = (np.float32(0.5) - reach * _OUTLINES[name](across, down)).clip(0, 1)
    # Nothing of it lies outside of its box, of which a pixel at the border has a share.
    inside_x, inside_y = (
        (np.float32(0.5) + np.float32(half[axis]) * (1 - np.abs(at))).clip(0, 1)
        for axis, at in enumerate((across, down))
    )
    opacity = np.minimum(opacity, inside_x * inside_y)
    bright: Grey = (np.float32(0.5 * _EDGE) * _TEXTURES[name](across, down)).clip(-0.5, 0.5) + np.float32(0.5)
    return corner, opacity, np.broadcast_to(bright, opacity.shape)


def _smeared(opacity: Grey, weighed: Grey, velocity: NDArray[np.float64], length: float) -> tuple[Grey, Grey, int]:
    """Blur a patch along a direction.

    Args:
        opacity: (Y,X).
        weighed: (Y,X), texture times opacity.
        velocity: (2,) x, y; how fast it is does not count.
        length: Pixels.

    Returns:
        Both, larger by a margin on all sides, and the margin.
    """
    import cv2

    margin = int(np.ceil(length / 2)) + 1
    way = velocity / max(float(np.hypot(*velocity)), 1e-9)
    along = length * ((np.arange(4 * margin) + 0.5) / (4 * margin) - 0.5)
    grid = np.arange(-margin, margin + 1)
    # Each point of the line is shared out among the four pixels around it.
    columns, rows = ((1 - np.abs(along[:, None] * step - grid)).clip(0) for step in way)
    kernel = (rows.T @ columns / len(along)).astype(np.float32)
    height, width = opacity.shape
    both = np.zeros((height + 2 * margin, width + 2 * margin, 2), np.float32)
    both[margin:-margin, margin:-margin, 0] = opacity
    both[margin:-margin, margin:-margin, 1] = weighed
    # A line is its own mirror image about the middle, so that a correlation is a convolution.
    both = cv2.filter2D(both, -1, kernel, borderType=cv2.BORDER_CONSTANT)
    return both[..., 0], both[..., 1], margin


def _put(frame: Grey, corner: NDArray[np.int64], opacity: Grey, weighed: Grey, look: _Look) -> None:
    """Lay a patch over a frame (Y,X,3), in place; what is outside the frame is cut off."""
    (x, y), (height, width) = corner, opacity.shape
    top, left = max(-y, 0), max(-x, 0)
    bottom, right = min(height, len(frame) - y), min(width, frame.shape[1] - x)
    if bottom <= top or right <= left:
        return
    inside = (slice(top, bottom), slice(left, right))
    target = frame[y + top : y + bottom, x + left : x + right]
    covers = opacity[inside][..., None]
    target *= 1 - covers
    target += covers * look.low
    target += weighed[inside][..., None] * (look.high - look.low)


# --- what makes frames bad ---------------------------------------------------------------------------------


def cover_with_bars(frame: Grey, box: NDArray[np.float64], share: float, draws: NDArray[np.float64]) -> None:
    """Draw occluder bars over a box, in place; they cover exactly a given share of it and stand out on all sides.

    Args:
        frame: (Y,X,3).
        box: x0, y0, x1, y1.
        share: Of the box.
        draws: `BAR_DRAWS` random numbers from 0 to 1.
    """
    low, side = box[:2], box[2:] - box[:2]
    margins = (_BAR_MARGIN[0] + (_BAR_MARGIN[1] - _BAR_MARGIN[0]) * draws[:4].reshape(2, 2)) * side
    count = _BARS[0] + int(draws[4] * (_BARS[1] + 1 - _BARS[0]))
    axis = int(draws[5] < 0.5)
    level = (_BAR_LEVELS[0] + (_BAR_LEVELS[1] - _BAR_LEVELS[0]) * draws[7] + 30 * (draws[8:11] - 0.5)).astype(
        np.float32
    )
    (left, top), (right, bottom) = (
        edge.astype(np.int64).tolist() for edge in np.rint([low - margins[0], box[2:] + margins[1]]).clip(0, len(frame))
    )
    first, end = (left, right) if axis == 0 else (top, bottom)
    borders = (np.arange(first, end + 1) - low[axis]) / side[axis] * count + draws[6]
    # Bars up to a border, in periods; the difference between two borders is what a pixel has of them.
    so_far = np.floor(borders) * share + np.minimum(borders % 1, share)
    opacity = (np.diff(so_far) * side[axis] / count).astype(np.float32)
    target = frame[top:bottom, left:right]
    target += (opacity[:, None] if axis == 0 else opacity[:, None, None]) * (level - target)


def _decoys(frame: Grey, config: MovingSpritesConfig, share: float, draws: NDArray[np.float64]) -> None:
    """Draw bars at places of no object, in place, one for each row of random numbers (`_DECOY_DRAWS`)."""
    for own in draws:
        least, most = config.object_size
        side = config.size * (least + (most - least) * own[:2])
        low = config.size * own[2:4] - side / 2
        cover_with_bars(frame, np.concatenate([low, low + side]).clip(0, config.size), share, own[4:])


def _out_of_focus(frame: Grey, sigma: float) -> Grey:
    import cv2

    blurred: Grey = cv2.GaussianBlur(frame, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    return blurred


# --- background --------------------------------------------------------------------------------------------


def _background(rng: np.random.Generator, height: int, width: int) -> Grey:
    """Return blotches of several sizes (Y,X,3), in faint colours."""
    import cv2

    picture = np.full((height, width, 3), _MIDDLE, np.float32)
    for pitch, spread in _BLOTCHES:
        coarse = rng.standard_normal((height // pitch + 3, width // pitch + 3, 1), dtype=np.float32)
        tint = rng.standard_normal((*coarse.shape[:2], 3), dtype=np.float32)
        grid = (np.float32(spread) * (coarse + np.float32(0.3) * tint)).astype(np.float32)
        large = cv2.resize(grid, None, fx=pitch, fy=pitch, interpolation=cv2.INTER_CUBIC)
        picture += large[pitch : pitch + height, pitch : pitch + width]
    return picture


def _seen(background: Grey, place: NDArray[np.float64], size: int) -> Grey:
    """Return the part of a background (size,size,3) at x, y, bilinear between pixels."""
    x, y = place.astype(int)
    ax, ay = (np.float32(rest) for rest in place - (x, y))
    if ax == 0 and ay == 0:
        return background[y : y + size, x : x + size].copy()
    rows = background[y : y + size + 1, x : x + size + 1]
    mixed = rows[:-1] + ay * (rows[1:] - rows[:-1])
    part: Grey = mixed[:, :-1] + ax * (mixed[:, 1:] - mixed[:, :-1])
    return part


# --- videos ------------------------------------------------------------------------------------------------


def draw_video(config: MovingSpritesConfig, split: str, number: int, plan: VideoPlan) -> Frames:
    """Draw a planned video: frames (T,H,W,3); the same arguments give the same frames.

    Raises:
        ValueError: unknown split.
    """
    size = config.size
    look, scenery, noise = (stream(config, split, number, which) for which in (LOOK, BACKGROUND, NOISE))
    reach = np.ceil(plan.camera_T2.max(axis=0)).astype(int) + 1
    background = _background(scenery, size + reach[1], size + reach[0])
    drawn = []
    for sprite in plan.sprites:
        levels = (_DARK, _BRIGHT) if look.random() < 0.5 else (_BRIGHT, _DARK)
        colours = _Look(*(look.uniform(*level, 3).astype(np.float32) for level in levels))
        chosen = np.flatnonzero(sprite.shown_T)
        corner, opacity, bright = patches(sprite, chosen)
        drawn.append((colours, dict(zip(chosen.tolist(), range(len(chosen)), strict=True)), corner, opacity, bright))
    still = not plan.camera_T2.any()
    frames = np.empty((config.num_frames, size, size, 3), dtype=np.uint8)
    for t in range(config.num_frames):
        frame = background[:size, :size].copy() if still else _seen(background, plan.camera_T2[t], size)
        bad = plan.degraded[t]
        bars = None
        if bad is not None and bad.bars:
            rng = stream(config, split, number, ROUGH, t)
            _decoys(frame, config, bad.bars, rng.random((int(rng.integers(_DECOYS + 1)), _DECOY_DRAWS)))
            bars = rng.random((len(drawn), BAR_DRAWS))
        for place, (sprite, (colours, rows, corner, opacity, bright)) in enumerate(
            zip(plan.sprites, drawn, strict=True)
        ):
            row = rows.get(t)
            if row is None:
                continue
            covers, weighed, at = opacity[row], opacity[row] * bright[row], corner[row]
            if bad is not None and bad.blur:
                covers, weighed, margin = _smeared(covers, weighed, sprite.velocity_T2[t], bad.blur)
                at = at - margin
            _put(frame, at, covers, weighed, colours)
            if bad is not None and bars is not None:
                cover_with_bars(frame, sprite.box_T4[t], bad.bars, bars[place])
        if bad is not None and bad.defocus:
            frame = _out_of_focus(frame, bad.defocus)
        spread = config.noise if bad is None else float(np.hypot(config.noise, bad.rough))
        if spread:
            frame += np.float32(spread) * noise.standard_normal((size, size, 1), dtype=np.float32)
        frames[t] = np.rint(frame, out=frame).clip(0, 255, out=frame)
    return frames


def render_sprites(config: MovingSpritesConfig, split: str, number: int) -> tuple[Frames, VideoPlan]:
    """Render one video, and tell what it shows; the same arguments give the same frames.

    Raises:
        ValueError: unknown split.
    """
    plan = plan_video(config, split, number)
    return draw_video(config, split, number, plan), plan
