"""Configuration of stages: strict, frozen, read from `params/<dataset>.yaml`.

Rule for defaults: a field whose change would change a reported number has no default; plumbing may
have one. Shared blocks are Python types, not YAML inheritance.
"""

import copy
import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from data_specs.schema import Strict

__all__ = [
    "ConfigError",
    "DataConfig",
    "FitConfig",
    "FramesConfig",
    "OptimConfig",
    "SoundConfig",
    "StageConfig",
    "Strict",
    "TransformConfig",
    "WeightsFile",
    "apply_overrides",
    "load_section",
    "parse_yaml",
    "validate",
]


class ConfigError(ValueError):
    """A setting is missing, unknown or out of bounds; the message names file, section and field."""


class TransformConfig(Strict):
    """Clip-consistent crop, flip and normalisation, done once per clip on the device."""

    size: int = Field(ge=8)
    """Side of the square network input, pixels."""
    train_crop: Literal["multiscale", "random", "center", "area", "whole"]
    """`multiscale`: sides from {1, .875, .75, .66} of the short side, 13 anchors (AdaFocus §1.5); `area`: a box of
    random area and aspect ratio (scale jitter, Inception), see `area` and `aspect`; `whole`: no crop, the frame is
    scaled to a short side of `size` (`eval_size` at evaluation) unless its long side then exceeds `long_side`; for
    detection (sampling `frames`)."""
    long_side: int | None = Field(default=None, ge=8)
    """Only for `whole`: bound of the long side, pixels (1000)."""
    area: tuple[float, float] | None = None
    """Only for `area`: least and largest share of the frame's area, e.g. [0.08, 1]."""
    aspect: tuple[float, float] | None = None
    """Only for `area`: least and largest width / height of the box, e.g. [0.5, 2]."""
    train_short_side: tuple[int, int] | None = None
    """Only for `random`: the short side before the crop is drawn anew for each clip, evenly from the integers between
    these two, both included (256 and 320 for 224), pixels; None: it is `eval_short_side`."""
    eval_short_side: int = Field(ge=8)
    """Short side before the centre crop at evaluation, pixels (256 for 224)."""
    eval_size: int | None = Field(default=None, ge=8)
    """Side of the crop at evaluation, pixels; None: `size`."""
    eval_crops: Literal[1, 3] = 1
    """Crops per clip at evaluation: the centre, or start, centre and end along the longer side."""
    flip: bool
    """Horizontal flip with p = 0.5 in training; off where direction is the label."""
    normalise: Literal["imagenet", "symmetric", "unit", "kinetics", "kinetics_hara", "bninception"]
    """`imagenet`: mean and std of ImageNet; `symmetric`: to [-1, 1]; `unit`: to [0, 1]; `kinetics`: mean and std of
    Kinetics-400 as torchvision has them, `kinetics_hara`: as the 3D-ResNets do; `bninception`: the means of
    BN-Inception and one scale for all channels."""

    @property
    def eval_side(self) -> int:
        """Side of the network input at evaluation, pixels."""
        return self.eval_size or self.size

    @model_validator(mode="after")
    def _fits(self) -> "TransformConfig":
        if (self.train_crop == "whole") != (self.long_side is not None):
            raise ValueError("long_side goes with train_crop `whole`, and only with it")
        if self.long_side is not None:
            if self.long_side < max(self.size, self.eval_side):
                raise ValueError(f"long_side {self.long_side} is smaller than the short side")
            if self.eval_short_side != self.eval_side or self.eval_crops > 1:
                raise ValueError("whole frames have no crops: eval_short_side is the short side, eval_crops is 1")
        if self.eval_short_side < self.eval_side:
            raise ValueError(
                f"eval_short_side {self.eval_short_side} is smaller than the centre crop of {self.eval_side}, which "
                "would not fit into the clip"
            )
        for name, bounds in (("area", self.area), ("aspect", self.aspect)):
            if (self.train_crop == "area") != (bounds is not None):
                raise ValueError(f"{name} goes with train_crop `area`, and only with it")
            if bounds is not None and not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"{name} must be two numbers, 0 < least ≤ largest, got {list(bounds)}")
        if (sides := self.train_short_side) is not None:
            if self.train_crop != "random":
                raise ValueError("train_short_side goes with train_crop `random`, and only with it")
            if not self.size <= sides[0] <= sides[1]:
                raise ValueError(
                    f"train_short_side must be two numbers, size {self.size} ≤ least ≤ largest, got {list(sides)}"
                )
        if self.area is not None and self.area[1] > 1:
            raise ValueError(f"area is a share of the frame and at most 1, got {self.area[1]}")
        return self


class SoundConfig(Strict):
    """Sound beside the pictures: one stretch per clip, mono."""

    rate: int = Field(ge=1000)
    """Samples per second after resampling (24000)."""
    samples: int = Field(ge=1)
    """Length of the stretch (30720: 1.28 s), centred on the clip; see `training/core/sound.py`."""


class FramesConfig(Strict):
    """Which frames of a video a detector is shown.

    Training draws a labelled frame c and, before it in the clip's order, `num_frames` − 1 key frames, each an interval
    D older than the next, clipped to the video. The newest is c + U{−D/2 … D/2 − 1} with `offline`, where a key frame
    lies in the middle of the frames that it serves, and c + U{−D … −1} with `online`; of the older ones, number i is
    c + U{−i·D … −i·D + D/2 − 1} with `offline` and c + U{−i·D − D/2 … −i·D − 1} with `online` (LSTS §7: i = 1 there).
    Evaluation takes every frame of every video once, in order.
    """

    schedule: Literal["offline", "online"]
    interval: int = Field(ge=1)
    """D, frames from key frame to key frame (10)."""
    per_video: int | None = Field(default=None, ge=1)
    """How many labelled frames of a video training draws from, spaced evenly over those with objects (15 on ImageNet
    VID); None: all of them."""
    repeats: dict[str, int] = Field(default_factory=dict)
    """Part of the data set → how often each of its videos comes in an epoch; parts that are not named come once."""
    block: int = Field(default=60, ge=1)
    """Frames of a video that are decoded and handed over together at evaluation."""


class DataConfig(Strict):
    """What a loader hands to a system."""

    num_frames: int = Field(ge=1)
    """Frames per clip, T."""
    sampling: Literal["segments", "dense", "clips", "frames"]
    """`segments`: T equal parts, one random frame each in training, the middle one in evaluation;
    `dense`: T frames `stride` apart, random start in training, centred in evaluation; `clips`: several such clips per
    video in training, too, `train_clips` of them, spread over it (see `frame_positions`); `frames`: labelled frames
    with key frames around them in training, whole videos at evaluation, with their objects (see `frames`)."""
    frames: FramesConfig | None = None
    """Only for `frames`, which needs it."""
    stride: int = Field(default=1, ge=1)
    """Only for `dense` and `clips`."""
    stride_jitter: int = Field(default=0, ge=0)
    """Only for `dense`: r > 0 draws the stride of each training clip from the integers s with
    max(1, stride − r) ≤ s < stride + r, as TensorFlow's pipeline does; evaluation keeps `stride`."""
    centre: Literal["span", "period"] = "span"
    """Only for `dense`: length of the clip that is centred at evaluation: from first to last frame, (T − 1)·stride + 1,
    or T·stride, as TensorFlow's pipeline and the even spacing of `eval_clips` count it."""
    overrun: Literal["repeat", "loop"] = "repeat"
    """Only for `dense`: beyond the end of a short video its last frame repeats, or it starts again."""
    short_start: Literal["first", "any"] = "first"
    """Only for `overrun: loop`: where training starts in a video shorter than the clip: its first frame, or any."""
    eval_clips: int = Field(default=1, ge=1)
    """Only for `dense` and `clips`: clips per video at evaluation, evenly spaced from its start to its end."""
    train_clips: int = Field(default=1, ge=1)
    """Only for `clips`: clips per video in training, each starting at random within its share of the video."""
    stack: int = Field(default=1, ge=1)
    """Only for `clips`: frames that are read from each position on, for stacks of differences or of optical flow:
    one more than the stack has fields (6 for 5)."""
    pictures: Literal["stacks", "positions", "none"] = "stacks"
    """Only for `clips`: `stacks` decodes all frames of each stack, `positions` the first one of each, `none` no frame
    at all (for nets that only listen, or only see stored flow)."""
    sound: SoundConfig | None = None
    """Only for `clips`: also hand over the sound around each clip."""
    flow: bool = False
    """Only for `clips`: also hand over the stored optical flow, `stack` − 1 fields from each position on."""
    batch_size: int = Field(ge=1)
    """Clips per step over all workers."""
    transform: TransformConfig
    source: Literal["index", "stream"] = "index"
    """D7: `index` reads by offset (local, exact resume); `stream` is a webdataset pipeline (remote tars)."""
    decoder: Literal["auto", "torchcodec", "pyav", "opencv"] = "auto"
    """Rung of the ladder (D8); `auto` is resolved once and the result stored in config and checkpoint."""
    threads: int = Field(default=2, ge=1)
    prefetch: int = Field(default=2, ge=1)
    """Batches decoded ahead."""

    @model_validator(mode="after")
    def _dense_only(self) -> "DataConfig":
        if self.sampling in ("segments", "frames") and (self.eval_clips > 1 or self.stride > 1):
            raise ValueError("stride and eval_clips go with sampling `dense` or `clips`, and only with them")
        if self.sampling != "dense" and (self.stride_jitter > 0 or self.centre != "span" or self.overrun != "repeat"):
            raise ValueError("stride_jitter, centre and overrun go with sampling `dense`, and only with it")
        several = self.train_clips > 1 or self.stack > 1 or self.pictures != "stacks"
        if self.sampling != "clips" and (several or self.sound is not None or self.flow):
            raise ValueError("train_clips, stack, pictures, sound and flow go with sampling `clips`, and only with it")
        if (self.sampling == "frames") != (self.frames is not None):
            raise ValueError("frames goes with sampling `frames`, and only with it")
        if (self.sampling == "frames") != (self.transform.train_crop == "whole"):
            raise ValueError("sampling `frames` shows whole frames: train_crop `whole` goes with it, and only with it")
        if self.flow and self.stack < 2:
            raise ValueError(f"flow needs a stack of at least 2 frames, one more than fields, got {self.stack}")
        if self.pictures == "none" and self.sound is None and not self.flow:
            raise ValueError("pictures `none` leaves nothing to look at: sound or flow must be given")
        if self.sampling == "clips" and self.transform.eval_crops > 1:
            raise ValueError("eval_crops is for whole videos: sampling `clips` takes the centre crop only")
        if self.short_start != "first" and self.overrun != "loop":
            raise ValueError("short_start goes with overrun `loop`, and only with it")
        if self.centre != "span" and self.eval_clips > 1:
            raise ValueError("centre is for one clip per video; the clips of eval_clips are spaced evenly")
        return self

    @property
    def clip_frames(self) -> int:
        """Frames that are decoded per clip."""
        return self.num_frames * {"stacks": self.stack, "positions": 1, "none": 0}[self.pictures]

    @property
    def train_frames(self) -> int:
        """Frames that are decoded per video in training."""
        return self.clip_frames * self.train_clips

    @property
    def eval_frames(self) -> int:
        """Frames that are decoded per video at evaluation."""
        return self.clip_frames * self.eval_clips

    @property
    def eval_views(self) -> int:
        """Views per video at evaluation, V = clips × crops; their frames follow one another along T."""
        return self.eval_clips * self.transform.eval_crops


class OptimConfig(Strict):
    """Optimizer, parameter groups and learning-rate schedule."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"]
    """`rmsprop` is TensorFlow's, not torch's (`training/core/rmsprop.py`); its weight decay is coupled, like sgd's."""
    lr: dict[str, float]
    """Learning rate by parameter-group name; each system names its groups. Rate at global batch size."""
    momentum: float = 0.9
    """Only for sgd and rmsprop."""
    nesterov: bool = False
    """Only for sgd."""
    rho: float | None = Field(default=None, ge=0, lt=1)
    """Only for rmsprop: decay rate ρ of the average of squared gradients."""
    eps: float | None = Field(default=None, gt=0)
    """Only for rmsprop: ε, added to the average of squares inside the root."""
    square_avg_init: Literal["zeros", "ones"] = "zeros"
    """Only for rmsprop: the average of squares before the first step; Keras has zeros, timm's port ones."""
    weight_decay: float = Field(ge=0)
    decay: Literal["all", "kernels"] = "all"
    """`kernels`: only weights of convolutions and linear layers decay, no biases and no scales of normalisation.
    What a system names in `System.undecayed` never decays."""
    schedule: Literal["cosine", "constant", "steps"]
    """`steps`: times `drop` at each of `drop_at`."""
    drop_at: tuple[float, ...] = ()
    """Only for `steps`: shares of the run's steps, increasing, e.g. [0.5, 0.75] for epochs 10 and 15 of 20."""
    drop: float | None = Field(default=None, gt=0, lt=1)
    """Only for `steps`: the factor, e.g. 0.1."""
    warmup_steps: int = Field(ge=0)

    @model_validator(mode="after")
    def _of_this_optimizer(self) -> "OptimConfig":
        rmsprop = self.name == "rmsprop"
        for name, given in (("rho", self.rho is not None), ("eps", self.eps is not None)):
            if given != rmsprop:
                raise ValueError(f"{name} goes with the optimizer `rmsprop`, and only with it")
        if self.square_avg_init != "zeros" and not rmsprop:
            raise ValueError("square_avg_init goes with the optimizer `rmsprop`, and only with it")
        if (self.schedule == "steps") != (bool(self.drop_at) and self.drop is not None):
            raise ValueError("drop_at and drop go with the schedule `steps`, and only with it; it needs both")
        if self.schedule != "steps" and (self.drop_at or self.drop is not None):
            raise ValueError("drop_at and drop go with the schedule `steps`, and only with it")
        if any(not 0 < share < 1 for share in self.drop_at) or list(self.drop_at) != sorted(set(self.drop_at)):
            raise ValueError(f"drop_at must be increasing shares between 0 and 1, got {list(self.drop_at)}")
        if self.nesterov and self.name != "sgd":
            raise ValueError(f"nesterov goes with the optimizer `sgd`, and {self.name} would ignore it")
        return self


class FitConfig(Strict):
    """How long and how to train; the loop counts steps, not epochs."""

    steps: int = Field(ge=1)
    seed: int
    optim: OptimConfig
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""
    clip_grad_norm: float | None
    """Largest norm of all gradients together; None turns it off."""
    clip_grad_each: float | None = Field(default=None, gt=0)
    """Largest norm of each parameter's gradient by itself (Keras' `clipnorm`); not together with `clip_grad_norm`."""
    ema_decay: float | None
    """Decay of the exponential moving average of weights and buffers; None turns it off."""
    ema_warmup: bool = False
    """Let the decay grow with the steps s as min(decay, (1 + s)/(10 + s)): short runs forget their first weights."""
    precision: Literal["fp32", "bf16"]
    """bf16 autocast where the device has it; fp32 otherwise, with a log line."""
    compile: bool = False
    """Compile the system's networks with torch.compile (`System.networks`); the first step then takes minutes."""
    eval_every: int = Field(ge=0)
    """Steps between evaluations on `val`; 0 evaluates only at the end."""
    keep: Literal["last", "best"]
    """Which weights become the model: the last, or the best on `val` by the stage's primary metric."""
    checkpoint_every: int = Field(default=50, ge=1)
    log_every: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _one_clipping(self) -> "FitConfig":
        if self.clip_grad_norm is not None and self.clip_grad_each is not None:
            raise ValueError("clip_grad_norm and clip_grad_each exclude one another: set one of them to null")
        return self


class WeightsFile(Strict):
    """Published weights that a net starts from.

    The checksum stands in the params file beside the path, so another file under the same name makes the stage
    stale, and a wrong one is refused.
    """

    path: str
    """State dict in the backbone's public key layout; relative to the project root, or absolute."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class StageConfig(Strict):
    """Base of every stage's config."""

    data: DataConfig


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def validate(model: type[ConfigT], values: object, where: str) -> ConfigT:
    """Validate `values` and turn pydantic's errors into one `ConfigError` that names each field.

    Raises:
        ConfigError: with `where`, the dotted field, what is wrong and close matches for unknown keys.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            field = ".".join(str(part) for part in item["loc"])
            hint = ""
            if item["type"] == "extra_forbidden":
                close = difflib.get_close_matches(str(item["loc"][-1]), _known_fields(model), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
            lines.append(f"  {field}: {item['msg']} (got {item.get('input')!r:.80}){hint}")
        raise ConfigError(f"{where} is not valid:\n" + "\n".join(lines)) from None


def _known_fields(model: type[BaseModel]) -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(name)
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names += _known_fields(annotation)
    return names


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says, as `yaml.safe_load`; by libyaml, eight times as fast, where PyYAML has it.

    Raises:
        yaml.YAMLError: no YAML.
    """
    return yaml.load(text, Loader=_LOADER)


def load_section(path: Path, section: str) -> dict[str, Any]:
    """Return one stage's section of a params file.

    Raises:
        ConfigError: file or section missing.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist; `fovea data init` writes one for a new data set")
    content = parse_yaml(path.read_text()) or {}
    if section not in content:
        close = difflib.get_close_matches(section, content, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{path} has no section {section!r} (it has: {', '.join(content)}){hint}")
    values = content[section]
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: section {section!r} must be a mapping, got {type(values).__name__}")
    return values


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy with dotted `key=value` overrides applied; values are parsed as YAML.

    Raises:
        ConfigError: an override without `=`, or a path through something that is not a mapping.
    """
    result: dict[str, Any] = copy.deepcopy(values)
    for item in overrides:
        dotted, sep, text = item.partition("=")
        if not sep:
            raise ConfigError(f"override {item!r} must look like key=value")
        *parents, leaf = dotted.split(".")
        node = result
        for name in parents:
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                raise ConfigError(f"override {item!r}: {name!r} is not a mapping")
            node = child
        node[leaf] = parse_yaml(text)
    return result
