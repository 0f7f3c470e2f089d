"""Controlled task `sound_or_picture`: what tells the class changes from video to video and second to second.

Twelve classes in three groups of four:

    sound_0 … sound_3      told apart by chords in the sound alone
    picture_0 … picture_3  told apart by glyphs in the picture alone
    both_0 … both_3        told apart by either

A video is a row of equal segments. A segment's picture shows the class's glyph or the background alone, its sound has
the class's chord or noise alone; which, is drawn per segment and modality. What does not matter may mislead: a `sound`
video can show glyphs of random `picture` classes, a `picture` video can sound like random `sound` classes.

The group, and with it the modality that matters, is told in every segment by a cue that needs no close look: the hue of
the background and the frequency of a hum. So a system can learn to skip what says nothing before it has paid for it,
which is what adaptive selection of modalities (AdaMML, Panda et al. 2021) is for.

Nothing that is drawn depends on the class within a group: videos of two classes with the same number differ in their
glyphs and chords only.
"""

from typing import Literal

from pydantic import Field, model_validator

from data_specs.schema import Strict

TASK: Literal["sound_or_picture"] = "sound_or_picture"

GROUPS = ("sound", "picture", "both")
"""What tells the classes of a group apart."""

CLASSES_PER_GROUP = 4
CLASSES = tuple(f"{group}_{number}" for group in GROUPS for number in range(CLASSES_PER_GROUP))
"""In index order: class index = 4 · group + number."""

SAMPLE_RATE = 24_000
"""Of the sound, Hz; one channel."""

LEAST_SEGMENT_S = 1.28
"""The shortest segment, seconds: a spectrogram of 256 steps of 5 ms has to fit."""

_TONE_STEP_HZ = 330


def _chord(number: int) -> tuple[int, int, int]:
    """Return one of eight chords of three tones, Hz: 400 to 7990, and 330 or more between any two of all 24.

    A window of 10 ms tells tones apart that are 200 Hz or more from each other.
    """
    low, middle, high = (400 + _TONE_STEP_HZ * (number + 8 * octave) for octave in range(3))
    return low, middle, high


CHORDS: dict[str, tuple[int, int, int]] = {
    f"{group}_{number}": _chord(2 * number + odd)
    for odd, group in enumerate(("sound", "both"))
    for number in range(CLASSES_PER_GROUP)
}
"""Class → frequencies of its tones, Hz. Those of the two groups take turns along the axis."""

HUM_HZ: dict[str, float] = {"sound": 120.0, "picture": 180.0, "both": 250.0}
"""Group → frequency of its hum; every video has its own within 2 %."""

HUE_DEG: dict[str, float] = {"sound": 0.0, "picture": 120.0, "both": 240.0}
"""Group → hue of the background, degrees (0 red, 120 green, 240 blue); every segment has its own within 25."""

MOST_SILENT = 2 / 3
"""Share of `picture` and `both` videos: those of `sound` must be heard."""


class SoundOrPictureConfig(Strict):
    """A set of videos of the task `sound_or_picture`."""

    task: Literal["sound_or_picture"] = TASK
    seed: int = Field(default=0, ge=0)
    num_train: int = Field(ge=1)
    num_val: int = Field(ge=1)
    num_test: int = Field(ge=1)
    size: int = Field(default=64, ge=32, le=1024, multiple_of=2)
    """Side of the square frames, pixels; even, because chroma is stored at half size."""
    segments: int = Field(default=5, ge=1, le=64)
    """Per video."""
    segment_frames: int = Field(default=8, ge=1, le=256)
    """Frames of a segment."""
    fps: int = Field(default=6, ge=1, le=120)
    noise: float = Field(default=4.0, ge=0, le=40)
    """Standard deviation of the camera noise, fresh for every pixel and frame, grey levels."""
    informative: float = Field(default=0.4, ge=0, le=1)
    """Probability that a segment's picture, or its sound, shows the class; one segment per video always does."""
    distractors: float = Field(default=0.3, ge=0, le=1)
    """Probability that a segment shows (group `sound`) or sounds like (group `picture`) a class of the other group."""
    silent: float = Field(default=0.0, ge=0, le=MOST_SILENT)
    """Share of the videos, expected over all groups, that have no sound stream; none of them is of group `sound`."""

    @model_validator(mode="after")
    def _task_fits(self) -> "SoundOrPictureConfig":
        for split, count in (("train", self.num_train), ("val", self.num_val), ("test", self.num_test)):
            if count < len(CLASSES):
                raise ValueError(f"num_{split} {count} is less than the {len(CLASSES)} classes of task {TASK!r}")
        if self.segment_s < LEAST_SEGMENT_S:
            raise ValueError(
                f"segment_frames {self.segment_frames} at fps {self.fps} are {self.segment_s:.2f} s, a segment of task "
                f"{TASK!r} must last {LEAST_SEGMENT_S} s at least: more frames, or fewer per second"
            )
        return self

    @property
    def segment_s(self) -> float:
        """Length of a segment, seconds."""
        return self.segment_frames / self.fps

    @property
    def num_frames(self) -> int:
        """Frames of a video."""
        return self.segments * self.segment_frames

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return CLASSES

    @property
    def needs(self) -> str:
        """What the class can be told from."""
        return "sound, picture or either, as hue and hum of the scene say"

    @property
    def mirrored(self) -> bool:
        """Whether a mirrored video belongs to another class: glyphs are their own mirror images."""
        return False

    @property
    def about(self) -> dict[str, object]:
        """What `task.json` says beyond the configuration."""
        return {
            "groups": GROUPS,
            "segment_s": self.segment_s,
            "sample_rate": SAMPLE_RATE,
            "chords_hz": CHORDS,
            "hum_hz": HUM_HZ,
            "hue_deg": HUE_DEG,
        }

    def first_sample(self, segment: int) -> int:
        """Return the number of the first sample of the sound that belongs to a segment (or its end: `segments`)."""
        return round(segment * self.segment_frames * SAMPLE_RATE / self.fps)
