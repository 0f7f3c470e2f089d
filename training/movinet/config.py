"""Configuration of the MoViNet stages that train, evaluate and stream. Section numbers are those of README.md."""

from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from training.backbones.movinet_layout import VARIANTS, MoViNetLayout, Variant, architecture
from training.core.config import FitConfig, StageConfig, Strict, WeightsFile


class VariantConfig(Strict):
    """How an architecture's layers compute: the fields of `training.backbones.movinet_layout.Variant`."""

    causal: bool
    conv: Literal["3d", "2plus1d"]
    squeeze: Literal["none", "2d", "3d", "2plus3d"]
    activation: Literal["silu", "hard_swish"]
    gate: Literal["sigmoid", "hard_sigmoid", "hard_sigmoid_keras"]
    head_activation: Literal["silu", "hard_swish"]
    positional: bool

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if not isinstance(values, str):
            return values
        if values not in VARIANTS:
            raise ValueError(f"unknown variant {values!r}; known: {', '.join(VARIANTS)}, or all fields")
        return asdict(VARIANTS[values])

    @model_validator(mode="after")
    def _is_a_variant(self) -> "VariantConfig":
        self.variant()
        return self

    def variant(self) -> Variant:
        """Return the backbone's record.

        Raises:
            ValueError: fields that exclude one another.
        """
        return Variant(**self.model_dump())


class NetConfig(Strict):
    """An architecture and how it is regularised; what is made of it is each stage's `variant`."""

    architecture: str | dict[str, Any]
    """Name of `training.backbones.movinet_layout.ARCHITECTURES` (a0 … a5, t0), or an entry of that table: stem,
    blocks (width, stride, layers), project, head. A search writes such an entry into `found.yaml`."""
    width: float = Field(gt=0)
    """Multiplies all widths of the architecture; 0.25 for small nets."""
    dropout: float = Field(ge=0, lt=1)
    """Before the classifier (0.2 for T0, A0, A1; 0.5 for the others)."""
    drop_path: float = Field(ge=0, lt=1)
    """Stochastic depth of the last layer; layer i of L has i/L of it (0.2)."""
    label_smoothing: float = Field(ge=0, lt=1)
    norm_eps: float = Field(gt=0)
    norm_momentum: float = Field(ge=0, le=1)
    """Weight of the newest batch, as in PyTorch: TensorFlow's 0.99 is 0.01. Short trainings want more."""

    @field_validator("architecture")
    @classmethod
    def _is_an_architecture(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        architecture(value)
        return value

    def layout(self) -> MoViNetLayout:
        """Return the backbone's layout."""
        return architecture(self.architecture).scaled(self.width)


class _MoViNetStage(StageConfig):
    model: NetConfig

    @model_validator(mode="after")
    def _dense_clips(self) -> "_MoViNetStage":
        if self.data.sampling != "dense":
            raise ValueError(
                f"data.sampling must be `dense`: the net sees neighbouring frames, not {self.data.sampling}"
            )
        return self


class TrainConfig(_MoViNetStage):
    """A net trained on whole clips (§7)."""

    variant: VariantConfig
    fit: FitConfig
    weights: WeightsFile | None
    """Where to start; None trains from scratch."""
    weights_layout: Literal["fovea", "atze00", "tensorflow"] = "fovea"
    """Names in the file: ours, the PyTorch port's, or those of the authors' checkpoints."""


class StreamConfig(_MoViNetStage):
    """The stream net, fine-tuned from the trained base net."""

    variant: VariantConfig
    fit: FitConfig
    subclips: int = Field(ge=1)
    """Parts into which a training clip is cut: 1 trains on whole clips; above, the state goes from part to part, each
    part has its own loss, no gradient crosses a cut, and the optimizer steps once per clip (§6.6)."""
    eval_subclip: int = Field(ge=1)
    """Frames per call at evaluation; the answer does not depend on it, memory does."""

    @model_validator(mode="after")
    def _streams(self) -> "StreamConfig":
        if not self.variant.causal:
            raise ValueError("variant must be causal: a base net cannot stream")
        if self.subclips > self.data.num_frames:
            raise ValueError(f"{self.subclips} subclips of {self.data.num_frames} frames: some would be empty")
        if self.data.eval_views > 1:
            raise ValueError("a stream is one view: set data.eval_clips and data.transform.eval_crops to 1")
        return self


class HalfConfig(TrainConfig):
    """One of the two nets of a half-rate ensemble (§1.3): member i sees the frames i, i + 2, … of a clip."""

    member: Literal["0", "1"]
    seeds: tuple[int, int]
    """`fit.seed` of each member: initial weights and order of the data differ."""

    @model_validator(mode="before")
    @classmethod
    def _apply(cls, values: Any) -> Any:
        try:
            return {**values, "fit": {**values["fit"], "seed": values["seeds"][int(values["member"])]}}
        except (KeyError, TypeError, ValueError, IndexError):
            return values  # validation names what is missing

    @model_validator(mode="after")
    def _two_halves(self) -> "HalfConfig":
        _check_halves(self)
        if self.seeds[0] == self.seeds[1]:
            raise ValueError("seeds of the two members must differ: equal nets make no ensemble")
        return self


class EvalConfig(_MoViNetStage):
    """Evaluation of the trained net as it is served."""


class EnsembleConfig(_MoViNetStage):
    """Two nets at half the frame rate, one frame apart (§1.3)."""

    @model_validator(mode="after")
    def _two_halves(self) -> "EnsembleConfig":
        _check_halves(self)
        return self


def _check_halves(config: StageConfig) -> None:
    if config.data.num_frames % 2 or config.data.eval_views > 1:
        raise ValueError("an ensemble at half rate needs an even data.num_frames, and one view")
