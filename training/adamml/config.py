"""Configuration of the AdaMML stages. Section numbers are those of this folder's README."""

from typing import Any, Literal

from pydantic import Field, model_validator

from training.core.config import DataConfig, FitConfig, OptimConfig, SoundConfig, StageConfig, Strict, WeightsFile

Modality = Literal["rgb", "flow", "rgbdiff", "audio"]
"""`rgbdiff`: differences of neighbouring frames, computed on the device; cheap, and the policy's proxy for flow."""

PICTURES: tuple[Modality, ...] = ("rgb", "rgbdiff")
"""Modalities that are made of decoded frames."""


class NetConfig(Strict):
    """A 2-D backbone by name (`training.backbones`), run on the frames of a segment."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    weights: WeightsFile | None
    """Where to start; None trains from scratch. The first convolution of a net over other than 3 channels starts from
    the mean of the weights' three."""
    norms: Literal["batch", "fixed"]
    """`batch`: batch norm uses the batch's statistics in training; `fixed`: those it came with."""


class SpectrogramConfig(Strict):
    """Log-spectrogram of one stretch of sound; the defaults of the paper give 256 × 256 of 30,720 samples."""

    n_fft: int = Field(ge=2)
    """Length of the transform, samples: n_fft // 2 + 1 bins (511 gives 256)."""
    window: int = Field(ge=2)
    """Length of the Hann window, samples (240: 10 ms)."""
    hop: int = Field(ge=1)
    """Samples from column to column (120: 5 ms)."""
    epsilon: float = Field(gt=0)
    """ε in ln(|X|² + ε) (1e-6): silence is ln ε = −13.8155."""

    @model_validator(mode="after")
    def _window_fits(self) -> "SpectrogramConfig":
        if self.window > self.n_fft:
            raise ValueError(f"window {self.window} is longer than n_fft {self.n_fft}")
        return self

    def shape(self, samples: int) -> tuple[int, int]:
        """Return bins and columns of a stretch of so many samples."""
        return self.n_fft // 2 + 1, 1 + (samples + 2 * (self.n_fft // 2) - self.n_fft) // self.hop


class AdaMMLConfig(Strict):
    """The networks: a sub-network per modality, fused late, and the policy that chooses among them."""

    modalities: tuple[Modality, ...] = Field(min_length=1)
    """What can be recognised from, in the order of the decisions."""
    proxies: dict[Modality, Modality]
    """Modality → what the policy sees in its place, e.g. {flow: rgbdiff}; the others it sees themselves."""
    size: int = Field(ge=8)
    """Side of the frames, pixels; equal to the transform's size."""
    num_frames: int = Field(ge=1)
    """T, frames (or stacks) per segment; equal to the data block's."""
    nets: dict[Modality, NetConfig]
    """Sub-network of each modality."""
    dropout: float = Field(ge=0, lt=1)
    """Before each sub-network's linear layer (0.5)."""
    policy_nets: dict[Modality, NetConfig]
    """Extractor of each modality that the policy sees, proxies in the place of what they stand for."""
    policy_frames: int = Field(ge=1)
    """Of the T frames those that the policy sees: every (T / policy_frames)-th from the first on (4 of 8)."""
    policy_size: int = Field(ge=8)
    """Side to which they are reduced, pixels (160)."""
    joint: int = Field(ge=1)
    """Width of the policy's two joint layers (2048)."""
    hidden: int = Field(ge=1)
    """Width of its LSTM (256)."""
    recurrent: bool
    """Off: the heads see the joint feature of their own segment only (§4)."""
    feed_back: bool
    """Whether the LSTM also gets the logits of the segment before: the public code does, the formula does not."""
    shared_decision: bool
    """One decision for all modalities of a segment (an ablation)."""
    spectrogram: SpectrogramConfig | None
    """How sound becomes a picture; needed where `audio` is a modality."""
    constants: Literal["measured", "corrected", "release"]
    """What a segment costs: `measured`, MACs as executed; `release`, the constants of the public code (convolutions
    only, only for the paper's sizes), of which that of the rgbdiff policy is 1.96 times too high; `corrected`, the
    same with that one mended."""
    mean: Literal["segments", "used"]
    """What a video's score is divided by: the number of its segments, skipped ones included (the public code), or the
    fusion weights of what was used, which makes scores of different videos comparable (mAP)."""
    least_one: bool
    """Use the surest modality of the surest segment where everything would be skipped; off, such a video has the
    score 0 in every class (the public code)."""

    @property
    def policy_modalities(self) -> tuple[Modality, ...]:
        """What the policy sees, in the order of `modalities`."""
        return tuple(self.proxies.get(name, name) for name in self.modalities)

    @property
    def inputs(self) -> tuple[Modality, ...]:
        """Everything that some network sees."""
        return tuple(dict.fromkeys((*self.modalities, *self.policy_modalities)))

    @model_validator(mode="after")
    def _fits(self) -> "AdaMMLConfig":
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities names one twice: {list(self.modalities)}")
        if strange := sorted(set(self.proxies) - set(self.modalities)):
            raise ValueError(f"proxies stands in for {strange}, which are none of the modalities")
        if len(set(self.policy_modalities)) < len(self.modalities):
            raise ValueError(f"the policy would see {list(self.policy_modalities)}: no modality may occur twice")
        for field, nets, wanted in (
            ("nets", self.nets, self.modalities),
            ("policy_nets", self.policy_nets, self.policy_modalities),
        ):
            if set(nets) != set(wanted):
                raise ValueError(f"{field} must have one net for each of {list(wanted)}, it has {sorted(nets)}")
        if self.num_frames % self.policy_frames:
            raise ValueError(f"policy_frames {self.policy_frames} must divide num_frames {self.num_frames}")
        if self.policy_size > self.size:
            raise ValueError(f"policy_size {self.policy_size} is larger than the frames ({self.size} px)")
        if ("audio" in self.inputs) != (self.spectrogram is not None):
            raise ValueError("spectrogram goes with the modality `audio`, and only with it")
        if self.feed_back and not self.recurrent:
            raise ValueError("feed_back is an input of the LSTM: it needs recurrent")
        return self


class _AdaMMLStage(StageConfig):
    model: AdaMMLConfig

    @property
    def inputs(self) -> tuple[Modality, ...]:
        """What this stage's networks see."""
        return self.model.inputs

    @model_validator(mode="after")
    def _reads_what_is_seen(self) -> "_AdaMMLStage":
        check_data(self.model, self.data, self.inputs)
        # Nothing is decoded that no network sees; the resolved config shows it. Frozen for everyone else.
        object.__setattr__(self, "data", self.reads())
        return self

    def reads(self) -> DataConfig:
        """Return the data block as this stage's loader gets it."""
        return data_for(self.data, self.inputs)


def check_data(model: AdaMMLConfig, data: DataConfig, inputs: tuple[Modality, ...]) -> None:
    """Check that a loader with these settings hands over what networks on `inputs` need.

    Raises:
        ValueError: with the field and what it must be.
    """
    if data.sampling != "clips":
        raise ValueError(f"data.sampling must be `clips`: a segment is a clip, got {data.sampling!r}")
    if data.transform.size != model.size:
        raise ValueError(f"data.transform.size {data.transform.size} and model.size {model.size} must be equal")
    if data.num_frames != model.num_frames:
        raise ValueError(f"data.num_frames {data.num_frames} and model.num_frames must be equal")
    if {"flow", "rgbdiff"} & set(inputs) and data.stack < 2:
        raise ValueError("data.stack must be at least 2 for differences or flow, one more than fields in a stack (6)")
    if "audio" in inputs:
        if data.sound is None:
            raise ValueError("data.sound is missing, which the modality `audio` needs")
        assert model.spectrogram is not None  # by AdaMMLConfig
        if data.sound.samples < model.spectrogram.n_fft:
            raise ValueError(f"data.sound.samples {data.sound.samples} is shorter than one window of the spectrogram")
    if "flow" in inputs and not data.flow:
        raise ValueError("data.flow must be true for the modality `flow`")


def data_for(data: DataConfig, inputs: tuple[Modality, ...]) -> DataConfig:
    """Return the data block with everything left out that networks on `inputs` do not need."""
    pictures: Literal["stacks", "positions", "none"] = "none"
    if "rgbdiff" in inputs:
        pictures = "stacks"
    elif "rgb" in inputs:
        pictures = "positions"
    sound: SoundConfig | None = data.sound if "audio" in inputs else None
    return data.model_copy(update={"pictures": pictures, "sound": sound, "flow": data.flow and "flow" in inputs})


class UnimodalConfig(_AdaMMLStage):
    """Stage 1: one sub-network by itself, a classifier of single segments (§7)."""

    modality: Modality
    fit: FitConfig

    @property
    def inputs(self) -> tuple[Modality, ...]:
        """What this stage's network sees."""
        return (self.modality,)

    def reads(self) -> DataConfig:
        """Return the data block as the loader gets it: one segment per video in training (§7)."""
        return super().reads().model_copy(update={"train_clips": 1})

    @model_validator(mode="after")
    def _one_of_the_modalities(self) -> "UnimodalConfig":
        if self.modality not in self.model.modalities:
            raise ValueError(
                f"modality {self.modality!r} is none of model.modalities {list(self.model.modalities)}; change one of "
                "them, or the list `adamml_grid.modality` of params.yaml"
            )
        return self


class _RecognitionConfig(_AdaMMLStage):
    fit: FitConfig


class WarmupConfig(_RecognitionConfig):
    """Stage 2: sub-networks and fusion weights learn under the decisions of an untrained policy."""

    temperature: float = Field(gt=0)
    """τ of the gradient through a decision (5); it changes no decision."""


class JointConfig(_RecognitionConfig):
    """Stage 3: recognition and policy in turns, a pass over the training split each (§7)."""

    price: float = Field(ge=0)
    """Factor of all λ: the axis along which accuracy is traded for cost; 1 is the paper's."""
    weights: dict[Modality, float]
    """λ per modality: what using it costs, relative to an error (rgb 1, audio 0.05)."""
    wrong: float = Field(ge=0)
    """γ (10): added to the loss of a video that is classified wrongly. Its gradient is 0: it shows in the log only."""
    penalty: Literal["gated_square", "mean"]
    """`gated_square`: Σ λ_k·ū_k² on videos that are classified correctly (the paper); `mean`: Σ λ_k·ū_k on all."""
    temperature: float = Field(gt=0)
    """τ of the first round (5)."""
    temperature_decay: float = Field(gt=0, le=1)
    """Factor of τ from round to round (0.965)."""
    round_steps: int = Field(ge=1)
    """Optimizer steps of each half of a round: a pass over the training split."""
    freeze_norms: bool
    """Keep the batch norm (and dropout) of the half that is not trained in eval mode; the public code does not."""
    tolerance: float = Field(ge=0, lt=1)
    """The rule by which the model is chosen, fixed beforehand: of the rounds whose top-1 on `val` is at most this much
    below that of all modalities together, the cheapest; where there is none, the most accurate."""
    policy_optim: OptimConfig
    """Of the policy (Adam); `fit.optim` is the recognition's."""

    @model_validator(mode="after")
    def _prices_fit(self) -> "JointConfig":
        if set(self.weights) != set(self.model.modalities):
            raise ValueError(f"weights must have one λ for each of {list(self.model.modalities)}")
        if min(self.weights.values()) < 0:
            raise ValueError("weights must not be negative")
        if self.fit.steps % (2 * self.round_steps):
            raise ValueError(
                f"fit.steps {self.fit.steps} must be a multiple of 2 · round_steps {2 * self.round_steps}: whole rounds"
            )
        if self.fit.eval_every % (2 * self.round_steps):
            raise ValueError(
                f"fit.eval_every {self.fit.eval_every} must be a multiple of 2 · round_steps {2 * self.round_steps}: "
                "within a round recognition and policy do not belong together"
            )
        return self


class FinetuneConfig(_RecognitionConfig):
    """Stage 4: recognition alone, from the chosen round, under its policy."""

    price: float = Field(ge=0)
    """Of the joint stage that this one continues."""


class EvalConfig(_AdaMMLStage):
    """Evaluation of the fine-tuned model, skipping for real, beside fusion and single modalities."""

    price: float = Field(ge=0)
    """Of the evaluated model."""
    decide: Literal["argmax", "sample", "threshold"]
    """`argmax`: the likelier of use and skip; `sample`: drawn, as in training and in the public code's tests;
    `threshold`: use where its probability exceeds `threshold`."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Only for `threshold`."""
    draws: int = Field(ge=1)
    """Random policies, and sampled decisions, that the reported means are over (5)."""


class ReportConfig(_AdaMMLStage):
    """The page of all evaluations of a data set."""
