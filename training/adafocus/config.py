"""Configuration of the AdaFocus V1 stages. Section and table numbers are those of the ICCV 2021 paper's code."""

from typing import Any, Literal

from pydantic import Field, model_validator

from training.core.config import FitConfig, StageConfig, Strict, WeightsFile

Arm = Literal["policy", "random", "center", "gaussian"]
"""Where patches come from: the learned policy, uniform at random, the centre, or a Gaussian around it."""


class NetConfig(Strict):
    """A backbone by name (`training.backbones`)."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    weights: WeightsFile | None
    """Where to start; None trains from scratch."""
    norms: Literal["batch", "fixed"]
    """`batch`: batch norm uses the batch's statistics in training; `fixed`: those it came with, for pre-trained nets
    and small batches, and the only choice for nets whose norms were folded into the convolutions."""


class AdaFocusConfig(Strict):
    """The networks: glance f_G, local f_L, policy π and classifier f_C."""

    size: int = Field(ge=8)
    """Side of the frames, pixels; equal to the transform's size."""
    num_frames: int = Field(ge=1)
    """T; equal to the data block's."""
    glance: NetConfig
    glance_size: int = Field(ge=8)
    """Side to which f_G's input is reduced, pixels; `size` gives it full frames, as in the paper."""
    local: NetConfig
    patch: int = Field(ge=8)
    """P, pixels; multiples of 32 waste nothing in a ResNet."""
    grid: int = Field(ge=2)
    """n; the policy chooses one of n×n lattice positions per frame."""
    policy_channels: int = Field(ge=1)
    """Channels of the policy's 1×1 convolution (32)."""
    policy_hidden: int = Field(ge=1)
    """Width of the policy's linear layer and GRU (1024)."""
    classifier_hidden: int = Field(ge=1)
    """Width of f_C's GRU (1024)."""
    classifier_dropout: float = Field(ge=0, lt=1)
    use_glance: bool
    """Whether f_C also gets f_G's vector."""

    @model_validator(mode="after")
    def _fits(self) -> "AdaFocusConfig":
        if self.patch > self.size:
            raise ValueError(f"patch {self.patch} does not fit into frames of {self.size} px")
        if self.glance_size > self.size:
            raise ValueError(f"glance_size {self.glance_size} is larger than the frames ({self.size} px)")
        return self


class _AdaFocusStage(StageConfig):
    model: AdaFocusConfig

    @model_validator(mode="after")
    def _data_fits_model(self) -> "_AdaFocusStage":
        if self.data.transform.size != self.model.size:
            raise ValueError(
                f"data.transform.size {self.data.transform.size} and model.size {self.model.size} must be equal"
            )
        if self.data.num_frames != self.model.num_frames:
            raise ValueError(f"data.num_frames {self.data.num_frames} and model.num_frames must be equal")
        return self


class PretrainConfig(_AdaFocusStage):
    """Stage 0: one of the two CNNs as a frame classifier; loss on the mean frame logit."""

    net: Literal["glance", "local"]
    dropout: float = Field(ge=0, lt=1)
    train_frames: int = Field(ge=1)
    """Frames of a clip that a training step sees, drawn anew each time; the paper takes all T."""
    fit: FitConfig

    @model_validator(mode="after")
    def _enough_frames(self) -> "PretrainConfig":
        if self.train_frames > self.data.num_frames:
            raise ValueError(f"train_frames {self.train_frames} exceeds the clip's {self.data.num_frames} frames")
        return self


class WarmupConfig(_AdaFocusStage):
    """Stage I: f_L and f_C on random patches, f_G frozen. Groups `local`, `classifier`."""

    fit: FitConfig


class PolicyConfig(_AdaFocusStage):
    """Stage II: π alone, by PPO. Group `policy`."""

    reward: Literal["random", "confidence", "previous", "padding"]
    """What the step's confidence is compared with: a random patch (the paper), nothing, the step before, or a
    patch of zero features."""
    baseline_draws: int = Field(ge=1)
    """Random patches that the reward averages over (1)."""
    discount: float = Field(ge=0, le=1)
    """γ (0.7)."""
    clip: float = Field(gt=0)
    """ε of the clipped ratio (0.2)."""
    entropy_weight: float = Field(ge=0)
    """0.01."""
    value_weight: float = Field(ge=0)
    """0.5."""
    passes: int = Field(ge=1)
    """K, optimizer steps per roll-out; at 1 the ratio is 1 and the update is advantage actor-critic."""
    fit: FitConfig


class FinetuneConfig(_AdaFocusStage):
    """Stage III: f_C (and f_L) on greedy patches; every other arm gets the same start and the same budget."""

    train: Literal["classifier", "local_and_classifier"]
    """The public code trains f_C only, the paper says f_L and f_C."""
    arms: tuple[Arm, ...] = Field(min_length=1)
    """`policy` is the model; the others are fine-tuned beside it on the same batches, for comparison."""
    fit: FitConfig

    @model_validator(mode="after")
    def _has_policy(self) -> "FinetuneConfig":
        if "policy" not in self.arms or len(set(self.arms)) != len(self.arms):
            raise ValueError(f"arms must contain 'policy' and no arm twice, got {self.arms}")
        return self


class EvalConfig(_AdaFocusStage):
    """Evaluation of the fine-tuned model and its arms beside the two pre-trained CNNs on full frames."""
