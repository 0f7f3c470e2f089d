"""Controlled video tasks: the class depends on one thing, and everything else is matched.

Six tasks need more than one frame or a certain frame, two are their static counterparts:

    direction  eight directions of a moving sprite          order of frames
    speed      four speeds of a moving sprite               order of frames
    order      sprite flashes red then blue, or the reverse order of frames
    flicker    sprite brightens every 2, 3, 4 or 5 frames   order of frames
    late       sprite flashes red or blue, once, late       the last quarter of the clip
    static     orientation of a coarse texture              any frame, at any size
    detail     orientation of a texture of 3 pixels' pitch  any frame, at full size

In the first four, the frames of a video without their order are the same for all classes: but for the camera noise,
the video that another class would have shown in its place is a permutation of the same pictures. So what looks at one
frame drawn at random, or at all frames without their order (averages over time, networks without temporal kernels),
cannot beat chance, however strong it is. What sees the *number* of a frame can in `order` alone: an early red flash
makes red-then-blue likelier, in any such task.

Every second frame is not enough: opposite directions then look the same, so do the speeds 1 and 7, and 3 and 5, and
half of the flashes are not seen. Steps are that large and flashes that short on purpose, so that more frames can win.

The frame is a torus for the moving sprite: it leaves on one side and comes back on the other. Without that, border
contacts would tell directions and speeds.

Two tasks have settings of their own: `sound_or_picture` (`tasks.ops.sound_or_picture`), in which sound, picture or
either tells the class, and `moving_sprites` (`tasks.ops.moving_sprites`), in which objects have to be found.
"""

import math
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import Field, ValidationError, model_validator

from data_specs.load import did_you_mean
from data_specs.schema import Strict
from tasks.ops import moving_sprites, sound_or_picture
from tasks.ops.moving_sprites import MovingSpritesConfig
from tasks.ops.sound_or_picture import SoundOrPictureConfig

Task = Literal["direction", "speed", "order", "flicker", "late", "static", "detail"]
TASKS: tuple[Task, ...] = get_args(Task)

NEEDS: dict[Task, str] = {
    "direction": "order of the frames",
    "speed": "order of the frames",
    "order": "order of the frames",
    "flicker": "order of the frames",
    "late": "the last quarter of the clip",
    "static": "any frame, at any size",
    "detail": "any frame, at full size",
}
"""What the class can be told from."""

MIRRORED: tuple[Task, ...] = ("direction", "static", "detail")
"""Tasks in which a mirrored video belongs to another class."""

DIRECTIONS = {
    "right": (0, 1),
    "down_right": (1, 1),
    "down": (1, 0),
    "down_left": (1, -1),
    "left": (0, -1),
    "up_left": (-1, -1),
    "up": (-1, 0),
    "up_right": (-1, 1),
}
"""Class of `direction` → (y, x) step, y down."""

SPEEDS = (1, 3, 5, 7)
"""Sixteenths of the frame's side per frame. Odd, so that every speed visits all sixteen places."""

PERIODS = (2, 3, 4, 5)
"""Frames."""

ANGLES = (22.5, 67.5, 112.5, 157.5)
"""Degrees between the x axis and the direction across the stripes. Not on axis or diagonal, so that the four are one
another's mirror images, and none is easier to see after scaling."""

DETAIL_PITCH = 3.0
STATIC_PITCH = 12.0
"""Pixels from stripe to stripe."""

LATE_SHARE = 0.75
"""Share of the clip before the event of `late` can happen."""

GRID = 4
"""Places of the moving sprite of `direction`, per side of the frame."""

PLACES = 16
"""Places of the moving sprite of `speed`, around the frame; `direction` has as many in all."""


class ControlledConfig(Strict):
    """A set of videos of one controlled task."""

    task: Task
    seed: int = Field(default=0, ge=0)
    num_train: int = Field(ge=1)
    num_val: int = Field(ge=1)
    num_test: int = Field(ge=1)
    size: int = Field(default=64, ge=32, le=1024, multiple_of=2)
    """Side of the square frames, pixels; even, because chroma is stored at half size."""
    num_frames: int = Field(default=32, ge=2, le=1024)
    fps: int = Field(default=8, ge=1, le=120)
    noise: float = Field(default=4.0, ge=0, le=40)
    """Standard deviation of the camera noise, fresh for every pixel and frame, grey levels."""
    min_gap: int | None = Field(default=None, ge=0)
    """Only for `order`: the least number of frames between the two flashes; None is 1."""

    @model_validator(mode="after")
    def _task_fits(self) -> "ControlledConfig":
        task, size, frames = self.task, self.size, self.num_frames
        classes = len(class_names(task))
        for split, count in (("train", self.num_train), ("val", self.num_val), ("test", self.num_test)):
            if count < classes:
                raise ValueError(f"num_{split} {count} is less than the {classes} classes of task {task!r}")
        if task in ("static", "detail") and size < 48:
            raise ValueError(
                f"size {size} is too small for task {task!r}: 48 at least, for a few stripes in the sprite"
            )
        if task in ("direction", "speed") and frames % PLACES:
            raise ValueError(
                f"num_frames {frames} does not fit task {task!r}: must be a multiple of {PLACES}, so that all classes "
                "visit the same places equally often"
            )
        if task == "flicker" and (frames < 2 * max(PERIODS) or frames % 2):
            raise ValueError(
                f"num_frames {frames} does not fit task 'flicker': must be at least {2 * max(PERIODS)}, two of the "
                "longest periods, and even, so that half of the frames can be bright"
            )
        if task == "late" and frames < 4:
            raise ValueError(f"num_frames {frames} is too few for task 'late': 4 at least, for a last quarter")
        if task != "order" and self.min_gap is not None:
            raise ValueError(f"min_gap is a setting of task 'order', not of {task!r}")
        if task == "order" and frames < self.least_gap + 2:
            raise ValueError(
                f"num_frames {frames} is too few for task 'order': two flashes and min_gap {self.least_gap} need "
                f"{self.least_gap + 2}"
            )
        return self

    @property
    def least_gap(self) -> int:
        """Frames between the two flashes of `order`, at least."""
        return 1 if self.min_gap is None else self.min_gap

    @property
    def side(self) -> int:
        """Side of the square sprite, pixels."""
        return self.size // (2 if self.task in ("static", "detail") else 4)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return class_names(self.task)

    @property
    def needs(self) -> str:
        """What the class can be told from."""
        return NEEDS[self.task]

    @property
    def mirrored(self) -> bool:
        """Whether a mirrored video belongs to another class."""
        return self.task in MIRRORED

    @property
    def about(self) -> dict[str, object]:
        """What `task.json` says beyond the configuration."""
        return {"sprite_side": self.side}

    @property
    def late_frame(self) -> int:
        """First frame in which the event of `late` can happen."""
        return math.ceil(LATE_SHARE * self.num_frames)


def class_names(task: Task) -> tuple[str, ...]:
    """Return the class names of a task in index order."""
    return {
        "direction": tuple(DIRECTIONS),
        "speed": tuple(f"speed_{speed}" for speed in SPEEDS),
        "order": ("red_blue", "blue_red"),
        "flicker": tuple(f"period_{period}" for period in PERIODS),
        "late": ("red", "blue"),
        "static": tuple(f"angle_{int(angle)}" for angle in ANGLES),
        "detail": tuple(f"angle_{int(angle)}" for angle in ANGLES),
    }[task]


def checked_config(values: Mapping[str, object]) -> ControlledConfig | SoundOrPictureConfig | MovingSpritesConfig:
    """Return the configuration, or say in plain words what is wrong with it.

    Raises:
        ValueError: unknown task or field, value out of bounds, or values that do not fit the task.
    """
    models: dict[str, type[ControlledConfig | SoundOrPictureConfig | MovingSpritesConfig]] = {
        **dict.fromkeys(TASKS, ControlledConfig),
        sound_or_picture.TASK: SoundOrPictureConfig,
        moving_sprites.TASK: MovingSpritesConfig,
    }
    task = str(values.get("task"))
    if task not in models:
        raise ValueError(f"no task {task!r}{did_you_mean(task, models)} (known: {', '.join(models)})")
    model = models[task]
    fields = set[str]().union(*(other.model_fields for other in models.values()))
    foreign = [name for name in values if name in fields and name not in model.model_fields]
    if foreign:
        shared = set(fields).intersection(*(other.model_fields for other in models.values()))
        own = ", ".join(name for name in model.model_fields if name not in shared)
        raise ValueError(f"{', '.join(foreign)}: no setting of task {task!r}, which has {own}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        told = [
            ": ".join([*map(str, item["loc"]), item["msg"].removeprefix("Value error, ")]) for item in error.errors()
        ]
        raise ValueError("; ".join(told)) from None
