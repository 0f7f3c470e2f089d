"""Controlled task `moving_sprites`: find moving objects, told apart by texture and outline, also in degraded frames.

One to four objects of six classes move over a textured background:

    disc       rows        plus       checks
    square     rays        trapezoid  chevrons
    diamond    columns     hourglass  rings

Every outline touches all four sides of its box, and all textures are their own mirror images in two colours. Nothing
but texture and outline tells the class: boxes, colours, motion, places, depth, number and degradations are drawn
without knowing it.

Motion, in the image (`motion`):

    isotropic_slow   along circles, up to 0.5 % of the object's size per frame: motion IoU above 0.9
    horizontal_fast  across the frame, 2 to 4 cells per 5 frames left or right, hardly up or down: motion IoU below 0.7
    mixed            each object is slow, medium (along circles, 1.25 to 1.9 % per frame: 0.7 to 0.9) or fast

Which frames are degraded (`regime`):

    clean    none
    non_key  all but the key frames of a schedule (`interval`, `schedule`): what a key frame shows can be carried over
    random   each with probability 0.5, key frames too: what several frames show has to be collected

A degraded frame has two or more of: motion blur along each object's velocity, defocus, occluder bars, noise.

What is in the picture has a box, and the other way round. In a frame of which less than a quarter of an object's box
lies inside, or where objects in front (later ones) hide more than 0.6 of what lies inside, the object is not drawn at
all. Boxes are clipped to the frame; occlusion and blur do not change them.

The task is that of LSTS (learnable spatio-temporal sampling, arXiv 1911.05253): frames in between are worth little by
themselves, and a memory is worth much when it is sampled where the objects were.
"""

from typing import Literal

from pydantic import Field, model_validator

from data_specs.schema import Strict

__all__ = ["CLASSES", "MOTION_IOU", "TASK", "MovingSpritesConfig", "Range", "key_frames"]

TASK: Literal["moving_sprites"] = "moving_sprites"

CLASSES = ("disc", "square", "diamond", "plus", "trapezoid", "hourglass")
"""In index order, by outline."""

MOTION_IOU = {"slow": (0.9, 1.0), "medium": (0.7, 0.9), "fast": (0.0, 0.7)}
"""Kind of motion → mean IoU of a box with those of the same object within 10 frames (FGFA's classes)."""

FAST_CELLS = (2.0, 4.0)
"""Cells per 5 frames, horizontally."""
FAST_FRAMES = 5

DEGRADED_SHARE = 0.5
"""Of the frames, in regime `random`."""

REFERENCE_SIZE = 192
"""Side of the frame for which lengths of degradations are given, pixels; they grow and shrink with the frame."""

LEAST_INSIDE = 0.25
"""Share of an object's box that must lie inside the frame."""
MOST_HIDDEN = 0.6
"""Share of that part which objects in front may cover."""

ASPECT = (0.8, 1.25)
"""Of width to height."""

Range = tuple[float, float]
"""Least and most of what is drawn uniformly."""

_DEGRADING = ("kinds", "blur", "defocus", "bars", "rough")


def key_frames(num_frames: int, interval: int, schedule: Literal["offline", "online"]) -> tuple[int, ...]:
    """Return the key frames of a video, increasing.

    Args:
        num_frames: Of the video.
        interval: D, frames from one key frame to the next.
        schedule: `offline`: at ⌊(D − 1)/2⌋ + i·D, one for each D frames that begin, the last one clipped to the end of
            the video; `online`: at i·D.
    """
    first = (interval - 1) // 2 if schedule == "offline" else 0
    return tuple(min(start + first, num_frames - 1) for start in range(0, num_frames, interval))


class MovingSpritesConfig(Strict):
    """A set of videos of the task `moving_sprites`."""

    task: Literal["moving_sprites"] = TASK
    seed: int = Field(default=0, ge=0)
    num_train: int = Field(ge=1)
    num_val: int = Field(ge=1)
    num_test: int = Field(ge=1)
    size: int = Field(default=REFERENCE_SIZE, ge=64, le=1024, multiple_of=2)
    """Side of the square frames, pixels; even, because chroma is stored at half size."""
    num_frames: int = Field(default=60, ge=2, le=1024)
    fps: int = Field(default=25, ge=1, le=120)
    noise: float = Field(default=4.0, ge=0, le=40)
    """Standard deviation of the camera noise, fresh for every pixel and frame, grey levels."""
    objects: tuple[int, int] = (1, 4)
    """Fewest and most objects of a video."""
    object_size: Range = (0.18, 0.34)
    """Root of an object's area of box, in sides of the frame."""
    motion: Literal["isotropic_slow", "horizontal_fast", "mixed"] = "mixed"
    cell: Literal[8, 16] = 8
    """Pixels per feature cell, the unit of fast motion."""
    camera: float = Field(default=0.0, ge=0, le=4)
    """Most cells per 5 frames by which the background moves; the objects' motion is that in the image in any case."""
    regime: Literal["clean", "non_key", "random"] = "clean"
    interval: int | None = Field(default=None, ge=1)
    """Only for `non_key`: frames from key frame to key frame; None is 10."""
    schedule: Literal["offline", "online"] | None = None
    """Only for `non_key`: see `key_frames`; None is offline."""
    kinds: tuple[int, int] = (2, 3)
    """Fewest and most of the four degradations that a degraded frame has at the same time."""
    blur: Range = (7.0, 21.0)
    """Length of the motion blur, pixels of a frame of 192."""
    defocus: Range = (1.5, 4.0)
    """Standard deviation of the Gaussian blur of the whole frame, pixels of a frame of 192."""
    bars: Range = (0.3, 0.7)
    """Share of an object's box that occluder bars cover."""
    rough: Range = (20.0, 50.0)
    """Standard deviation of the added noise, grey levels of a frame of 192; less in proportion in smaller frames, whose
    objects have fewer pixels, and the same in larger ones."""
    label_every: int = Field(default=4, ge=1)
    """In training videos, objects are labelled in every n-th frame, the first one drawn; elsewhere in all frames."""

    @model_validator(mode="after")
    def _task_fits(self) -> "MovingSpritesConfig":
        limits: dict[str, Range] = {
            "objects": (1, 8),
            "object_size": (0.1, 0.5),
            "kinds": (1, 4),
            "blur": (0, 64),
            "defocus": (0.1, 32),
            "bars": (0.05, 0.95),
            "rough": (0, 100),
        }
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} {low:g} to {high:g} must be a range within {least:g} to {most:g}")
        if self.regime != "non_key" and (self.interval, self.schedule) != (None, None):
            raise ValueError(f"interval and schedule are settings of regime 'non_key', not of {self.regime!r}")
        if self.regime == "clean":
            moot = [name for name in _DEGRADING if getattr(self, name) != type(self).model_fields[name].default]
            if moot:
                raise ValueError(f"{', '.join(moot)}: no frame of regime 'clean' is degraded")
        if self.label_every > self.num_frames:
            raise ValueError(f"label_every {self.label_every} is more than the {self.num_frames} frames of a video")
        widest = self.object_size[1] * self.size * ASPECT[1] ** 0.5
        # Mean IoU with a box that is 5.5 steps away: (w − s) / (w + s) < 0.7.
        if self.motion != "isotropic_slow" and widest > 5.5 * self.slowest_fast * 1.7 / 0.3:
            raise ValueError(
                f"objects up to {widest:.0f} px wide are not fast at {FAST_CELLS[0]:g} cells of {self.cell} px per "
                f"{FAST_FRAMES} frames (motion IoU above 0.7): a larger cell, a smaller size or object_size"
            )
        return self

    @property
    def slowest_fast(self) -> float:
        """Least speed of a fast object, pixels per frame."""
        return FAST_CELLS[0] * self.cell / FAST_FRAMES

    @property
    def scale(self) -> float:
        """What lengths of degradations are multiplied with."""
        return self.size / REFERENCE_SIZE

    @property
    def key_frames(self) -> tuple[int, ...]:
        """Frames that regime `non_key` leaves clean; none in other regimes."""
        if self.regime != "non_key":
            return ()
        return key_frames(self.num_frames, self.interval or 10, self.schedule or "offline")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return CLASSES

    @property
    def needs(self) -> str:
        """What the class can be told from."""
        return "texture and outline of each object, in frames that show them"

    @property
    def mirrored(self) -> bool:
        """Whether a mirrored object belongs to another class."""
        return False

    @property
    def about(self) -> dict[str, object]:
        """What `task.json` says beyond the configuration."""
        return {"key_frames": self.key_frames, "motion_iou": MOTION_IOU}
