"""System: what a batch means. The loop decides when, `ray_runner` where.

Shape suffixes used in this package: B batch, T frames, C channels, H height, W width, K classes,
P patch side, G parameter group. `video_BCTHW` is float and normalised, `frames_BTHWC` is uint8.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from data_specs.boxes import ClipBoxes
from training.core.config import ConfigError, OptimConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.core.detections import VideoRunner
    from training.core.evaluate import Predictions
    from training.core.lazy_video import LazyVideo


@dataclass(frozen=True)
class FrameBoxes:
    """Objects of the frames of a batch; rows are filled up to the largest number of objects N of a frame."""

    labelled_BT: Tensor
    """bool, whether the objects of a frame are known; where not, its rows are empty."""
    box_BTN4: Tensor
    """float32 x0, y0, x1, y1, edges in pixels (`data_specs/boxes.py`): of the stored clip in a `RawBatch`, of the
    network input in a batch that a system prepared."""
    label_BTN: Tensor
    """int64 class index, −1 where there is no object."""
    track_BTN: Tensor
    """int64 number of the object in its video, −1 where there is none."""

    def to(self, device: torch.device) -> "FrameBoxes":
        """Move tensors; pinned host memory is copied asynchronously."""
        return replace(self, **_moved(self, device))

    def __getitem__(self, rows: slice) -> "FrameBoxes":
        """Return some videos."""
        return FrameBoxes(*(getattr(self, f.name)[rows] for f in fields(self)))


class VideoFacts(NamedTuple):
    """What is known of a video that comes in blocks."""

    num_frames: int
    objects: ClipBoxes | None


@dataclass(frozen=True)
class RawBatch:
    """A batch as the loader hands it over: uint8 frames on the host.

    Frames of different sizes lie in the top left corner of a common canvas, zero elsewhere.
    """

    frames_BTHWC: Tensor
    """uint8."""
    size_B2: Tensor
    """int64, height and width of each clip inside the canvas, pixels."""
    label_B: Tensor
    """int64 (B,), or float multi-hot (B,K) for multi-label data sets."""
    key: tuple[str, ...]
    seed_B: Tensor
    """int64; seeds of the per-clip draws, a function of (seed, epoch, sample), so augmentation does
    not depend on rank, worker count or thread order."""
    valid_B: Tensor
    """bool; False marks padding of the last evaluation batch, never counted."""
    sound_BSN: Tensor | None = None
    """int16 mono samples around each of S clips (`data.sound`); zeros where there is none."""
    has_sound_B: Tensor | None = None
    """bool, whether the video has sound; given together with `sound_BSN`."""
    flow_BTHWC: Tensor | None = None
    """uint8 stored optical flow (`data.flow`), C = x, y; as `data_specs.flows` has it, on a canvas as the frames'."""
    number_BT: Tensor | None = None
    """int64 frame numbers (`sampling: frames`)."""
    boxes: FrameBoxes | None = None
    """Objects of the frames (`sampling: frames`); None where nothing is known."""
    sizes: tuple[tuple[int, int], ...] = ()
    """`size_B2` on the host (`sampling: frames`), so that nothing has to wait for the device."""
    video: VideoFacts | None = None
    """Of a block of a video that is evaluated: what is known of the whole video."""

    def to(self, device: torch.device) -> "RawBatch":
        """Move tensors; pinned host memory is copied asynchronously."""
        return replace(self, **_moved(self, device))


@dataclass(frozen=True)
class ClipBatch:
    """A batch as the networks see it."""

    video_BCTHW: Tensor
    label_B: Tensor
    key: tuple[str, ...]
    seed_B: Tensor
    valid_B: Tensor
    box_B4: Tensor
    """float, crop that was resized to the input: y0, x0, height, width in stored pixels."""
    flip_B: Tensor
    """bool, whether the clip was mirrored after the crop."""

    def row(self, index: int) -> Self:
        """Return one clip as a batch of one. Of a subclass with fields of its own, these must have rows, too."""
        return type(self)(**{name: _row(value, index) for name, value in vars(self).items()})


def _row(value: Any, index: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _row(item, index) for key, item in value.items()}
    return value[index : index + 1]


def _moved(batch: Any, device: torch.device) -> dict[str, Any]:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved: dict[str, Any] = {
        name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)
    }
    return moved | {name: value.to(device) for name, value in values.items() if isinstance(value, FrameBoxes)}


@dataclass(frozen=True)
class StepOutput:
    """Result of a training forward."""

    loss: Tensor
    """Scalar, fp32."""
    logs: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars on the device; the loop reads them only when it logs."""


@dataclass(frozen=True)
class Prediction:
    """Result of an inference forward, one row per clip."""

    scores_BK: Tensor
    """Probabilities of the main model."""
    arms: Mapping[str, Tensor] = field(default_factory=dict)
    """Scores (B,K) of paired comparison models (other policies, other nets), by name."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Further per-clip facts (patch origins, chosen modalities, exits), first axis B. Two names have a meaning:
    `gmac` (B,), what a clip's prediction cost where that depends on the clip, becomes the metric `gmac_per_video`;
    `choices` (B,S,R), what was used of each of S clips of the video, is drawn under it (see `choice_names`), and with
    it `available` (B,S,R), what could have been used."""


class UpdateContext(Protocol):
    """What the loop lends to `System.update`."""

    system: nn.Module
    """The system as wrapped for data parallelism: call this one for losses that need gradients."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Precision of this run."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Scale for accumulation and run backward."""
        ...

    def partial(self) -> AbstractContextManager[Any]:
        """Let the ranks keep their gradients to themselves in here, forward and backward together.

        For all but the last of several backward passes of a batch: the last one, outside, exchanges the sums. With
        one process it does nothing. Without it results are the same, at one exchange per pass.
        """
        ...

    def step(self, name: str = "main") -> dict[str, Tensor]:
        """Clip, step and zero one optimizer; returns logs (gradient norm)."""
        ...


class System(nn.Module):
    """Model, loss, metrics and cost of one stage.

    The whole System is what data parallelism wraps; frozen parts have `requires_grad_(False)`.
    Parameters with gradients must all take part in `forward`, on every rank and in every step, unless
    `unused_parameters` says otherwise. What depends on the progress of a run (a temperature, a warm-up of a part)
    is set in `on_step` as a function of the step, so that a resumed run needs no state for it.
    """

    classes: tuple[str, ...]
    """Class names in index order."""

    def prepare(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        """Turn uint8 frames on the device into the network input."""
        raise NotImplementedError

    def forward(self, batch: ClipBatch) -> StepOutput:
        """Return the training loss of a batch."""
        raise NotImplementedError

    def on_step(self, step: int, steps: int) -> None:
        """Hear that a step begins; called before its first batch is prepared, once however many batches it has.

        Not called in evaluation, nor on loaded models and averages of weights: `predict` must not depend on what is
        set here, unless it lies in a buffer. torch's generators are seeded by (seed, step, rank) before the call.

        Args:
            step: optimizer steps done so far, 0 to steps - 1; after a resume it goes on where the run was.
            steps: of the whole run, `fit.steps`.
        """

    def update(self, batch: ClipBatch, ctx: UpdateContext) -> dict[str, Tensor]:
        """One optimisation on a (micro-)batch; default: forward, backward. The loop steps after it.

        Overridden where a batch needs several steps; such a system sets `owns_step = True` and calls `ctx.step`
        itself. Or where it needs several backward passes, as for the sub-clips of a video with carried state: all
        but the last pass then run in `ctx.partial()`, losses are divided by their number, and what is carried is
        detached before it leaves `forward`.
        """
        with ctx.autocast():
            output: StepOutput = ctx.system(batch)
        ctx.backward(output.loss)
        return {"loss": output.loss.detach(), **output.logs}

    def optim_configs(self, config: OptimConfig) -> dict[str, OptimConfig]:
        """Return the settings of each optimizer; by default one called `main`, with those of `fit.optim`.

        A system that alternates between optimizers returns several, and says in `active` which of them step.
        """
        return {"main": config}

    active: tuple[str, ...] | None = None
    """Optimizers that step after a batch, set in `on_step`; None: all. What the others hold must get no gradients."""
    owns_step: bool = False
    unused_parameters: bool = False
    """Whether a trained parameter may take no part in the loss of a rank or of a step (sampled paths). Data
    parallelism then searches each pass for such parameters, which costs time, and no optimizer kernel is chosen that
    needs every gradient. A parameter that no rank used in a step stays as it is, without decay or momentum."""
    objective: tuple[str, str] = ("loss", "min")
    """Which log shows that training works on a batch, and in which direction; not the loss for reinforcement."""

    def predict(self, batch: ClipBatch) -> Prediction:
        """Return scores in eval mode; each row depends on its own clip only."""
        raise NotImplementedError

    def predict_lazily(self, video: "LazyVideo", device: torch.device) -> "tuple[Prediction, ClipBatch] | None":
        """Predict one video, decoding only what is looked at; the same answer as `prepare` and `predict` give.

        None, the default: the system looks at everything, and is given it decoded.
        """
        return None

    def predict_all(self, batch: ClipBatch) -> Prediction:
        """Return scores of the main model and of its paired comparison models; evaluation calls this."""
        return self.predict(batch)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by group name; each name is a key of `OptimConfig.lr` of one optimizer."""
        return {"main": [p for p in self.parameters() if p.requires_grad]}

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Parameters without weight decay, beside those that `OptimConfig.decay` leaves out; by default none."""
        return ()

    def optimizers(self, config: OptimConfig) -> dict[str, torch.optim.Optimizer]:
        """Optimizers by name, as `optim_configs` says; with several, each has the groups that its `lr` names."""
        from training.core.optim import build_optimizer

        groups, unused = self.parameter_groups(), self.unused_parameters
        configs = self.optim_configs(config)
        if len(configs) == 1:
            return {
                name: build_optimizer(groups, only, self.undecayed(), unused=unused) for name, only in configs.items()
            }
        named = [group for each in configs.values() for group in each.lr]
        if sorted(named) != sorted(groups):
            raise ConfigError(
                f"the lr of {', '.join(configs)} together name the groups {named}; each of the system's groups "
                f"({', '.join(groups)}) must be named once"
            )
        spared = {id(parameter): parameter for parameter in self.undecayed()}
        optimizers = {}
        for name, each in configs.items():
            own = {group: groups[group] for group in each.lr}
            ids = {id(parameter) for members in own.values() for parameter in members}
            undecayed = [parameter for key, parameter in spared.items() if key in ids]
            optimizers[name] = build_optimizer(own, each, undecayed, unused=unused)
        return optimizers

    def networks(self) -> Iterable[nn.Module]:
        """Modules from tensors to tensors, worth compiling (`fit.compile`)."""
        return ()

    def cost(self) -> dict[str, "CostRow"]:
        """Cost per video of the main model (key `main`) and of each arm, from the built network."""
        raise NotImplementedError

    def metrics(self, predictions: "Predictions") -> dict[str, float]:
        """Return further figures of an evaluation, without the split's name before them; by default none.

        Computed once, from the predictions of all ranks.
        """
        return {}

    def tables(self) -> "dict[str, NDArray[Any]]":
        """Return arrays that the model learned and pages show, by name; by default none.

        Evaluation keeps them in `predictions.npz`, so that a report needs no model.
        """
        return {}

    def video_runners(self, *, arms: bool) -> "dict[str, VideoRunner]":
        """Return what goes through one video, of a system that finds objects (`sampling: frames`).

        Args:
            arms: also those of paired comparison models, under their names.

        Returns:
            At least `main`; new ones at each call, so that nothing of one video reaches the next.
        """
        raise NotImplementedError

    choice_names: tuple[str, ...] = ()
    """What `Prediction.extras["choices"]` (B,S,R) says of each of the S clips of a video: names of its R columns."""

    def export_state(self) -> dict[str, Tensor]:
        """Tensors that the saved model consists of."""
        return self.state_dict()


@dataclass(frozen=True)
class CostRow:
    """Cost of one model; GFLOP = 2 × GMAC (D13)."""

    model: str
    params: int
    gmac: float
    input: str
    per: str
    """view, video, frame or segment."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Further figures of the model, e.g. state_bytes; they become metrics."""

    @property
    def gflop(self) -> float:
        """Giga floating-point operations."""
        return 2 * self.gmac

    def as_dict(self) -> dict[str, Any]:
        """Return the row as `fovea cost --json` prints it."""
        return {
            "model": self.model,
            "params": self.params,
            "gmac": self.gmac,
            "gflop": self.gflop,
            "input": self.input,
            "per": self.per,
        }


class Loader(Protocol):
    """Batches of one rank, with a state that survives a kill and a change of rank count."""

    def __iter__(self) -> Iterator[RawBatch]:
        """Yield batches; endless in training, each sample exactly once in evaluation."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able position after the last batch that was yielded and *used* (not merely prefetched)."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position; refuses a state of other data, seed or decoder."""
        ...

    def close(self) -> None:
        """Release threads and file handles."""
        ...


Logger = Callable[[int, dict[str, float]], None]
