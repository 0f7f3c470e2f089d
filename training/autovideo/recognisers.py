"""The seven algorithms as learners: what can be set of each net, and of its training.

A recogniser's settings become the config of the stage `autovideo_train` (`plan.py`), so it is trained, resumed, logged,
evaluated and served like every system. The networks are in `training/backbones`, built by `networks.py`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from training.autovideo.domains import choice, floats
from training.autovideo.primitive import Input, Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.values import Context, Model, Value
from training.core.config import WeightsFile

Freeze = Literal["none", "norms", "later_norms", "backbone"]


class RecogniserConfig(PrimitiveConfig):
    """What all recognisers share: initial weights, and the recipe of the training."""

    width: float = setting(1.0, help="multiplies all channel counts; 0.25 for small nets", gt=0, le=4)
    weights: WeightsFile | None = setting(None, help="published weights to start from: path and sha256")
    layout: str = setting("fovea", help="names of the tensors in that file; `fovea primitives show` lists them")
    freeze: Freeze = setting(
        "none",
        help="what is not trained: nothing, all normalisations, all but the first (TSN's partial BN), or all but the "
        "classifier",
    )
    freeze_parts: int = setting(0, help="further: the first n parts of the net, from the input on", ge=0)

    steps: int | None = setting(None, help="optimizer steps of the training; this or epochs", unit="steps", ge=1)
    epochs: float | None = setting(None, help="passes over the training videos; this or steps", unit="epochs", gt=0)
    batch_size: int = setting(
        16, help="clips per optimizer step, over all workers and micro-batches", search=choice(8, 16, 32), ge=1
    )
    accumulate: int = setting(1, help="micro-batches per optimizer step", ge=1)
    optimiser: Literal["sgd", "adam", "adamw"] = setting("sgd", help="optimizer", search=choice("sgd", "adamw"))
    lr: float = setting(0.01, help="learning rate at this batch size", search=floats(1e-4, 1e-1, log=True), gt=0)
    momentum: float = setting(0.9, help="of sgd", ge=0, lt=1)
    nesterov: bool = setting(False, help="of sgd")
    weight_decay: float = setting(5e-4, help="decay of weights", search=floats(1e-5, 1e-1, log=True), ge=0)
    decay: Literal["all", "kernels"] = setting("kernels", help="what decays: everything, or no biases and norms")
    policy: Literal["uniform", "tsn"] = setting(
        "uniform", help="`tsn`: biases learn twice as fast and do not decay, norms do not decay; only for tsn and tsm"
    )
    schedule: Literal["cosine", "constant", "steps"] = setting("cosine", help="of the learning rate")
    drop_at: tuple[float, ...] = setting((), help="of `steps`: shares of the run at which the rate drops")
    drop: float | None = setting(None, help="of `steps`: the factor", gt=0, lt=1)
    warmup_steps: int = setting(0, help="steps of linear warm-up", unit="steps", ge=0)
    loss: Literal["cross_entropy", "binary"] = setting(
        "cross_entropy", help="one class per video, or several (`binary`: a yes or no for each)"
    )
    label_smoothing: float = setting(0.0, help="share of the target that goes to all classes", ge=0, lt=1)
    clip_grad_norm: float | None = setting(None, help="largest norm of all gradients", gt=0)
    ema_decay: float | None = setting(None, help="decay of the moving average of weights", gt=0, lt=1)
    precision: Literal["fp32", "bf16"] = setting("fp32", help="of the training; bf16 where the device has it")
    compile: bool = setting(False, help="compile the network with torch.compile")
    eval_every: int = setting(0, help="steps between evaluations on val; 0: only at the end", unit="steps", ge=0)
    keep: Literal["last", "best"] = setting("last", help="which weights become the model")
    checkpoint_every: int = setting(50, help="steps between checkpoints", unit="steps", ge=1)
    log_every: int = setting(10, help="steps between log lines", unit="steps", ge=1)
    seed: int | None = setting(None, help="of initial weights and order; null: that of the pipeline")

    @model_validator(mode="after")
    def _length(self) -> "RecogniserConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give one of steps and epochs")
        if self.layout != "fovea" and self.weights is None:
            raise ValueError("layout names the tensors of a weight file: give weights, too")
        if self.nesterov and self.optimiser != "sgd":
            raise ValueError("nesterov goes with sgd, and only with it")
        return self


class Recogniser(Primitive):
    """Base of the recognisers, also of other people's: name a function that builds the network, and that is all."""

    kind = "learner"
    determinism = "seeded"
    inputs: ClassVar[Mapping[str, Input]] = {"clips": Input(Port.CLIP)}
    outputs: ClassVar[Mapping[str, Port]] = {"model": Port.MODEL}
    Config: ClassVar[type[PrimitiveConfig]] = RecogniserConfig

    network: ClassVar[str]
    """`module:function` of (config, number of classes) → `nn.Module` from (B,3,T,H,W) to logits (B,K), with `heads`
    (patterns of the classifier's parameters), `parts()` and `check_input(frames, height, width)`."""
    layouts: ClassVar[str] = ""
    """`module:mapping` from names of weight layouts to converters (`training.core.weights.Convert`); '' has only ours."""
    normalise: ClassVar[str] = "imagenet"
    """Statistics that its published weights expect (`TransformConfig.normalise`)."""

    def fit(self, inputs: Mapping[str, Value], context: Context) -> Model:
        """Train the net by the stage `autovideo_train`, on Ray or in this process as the settings say."""
        from training.autovideo.training import train

        return train(self, inputs, context)

    def produce(self, inputs: Mapping[str, Value], state: Any, context: Context) -> dict[str, Value]:
        """See `Primitive.produce`."""
        return {"model": state}


class FrameNetConfig(RecogniserConfig):
    """Nets over single frames."""

    backbone: Literal[
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenetv2", "mobilenetv2_tf"
    ] = setting("resnet50", help="network over each frame; `_tf` pads as TensorFlow, for weights from there")
    dropout: float = setting(0.5, help="before the classifier", search=floats(0.0, 0.8), ge=0, lt=1)
    consensus: Literal["avg", "max", "topk"] = setting("avg", help="how the frames' logits become those of the video")


class TSNConfig(FrameNetConfig):
    """TSN."""

    dropout: float = setting(0.8, help="before the classifier", search=floats(0.0, 0.8), ge=0, lt=1)


@primitive("recognition/tsn")
class TSN(Recogniser):
    """Temporal Segment Networks (Wang et al. 2016): a 2D net on each segment's frame, logits averaged."""

    Config: ClassVar[type[PrimitiveConfig]] = TSNConfig
    network = "training.autovideo.networks:tsn"
    layouts = "training.backbones.segment_nets:LAYOUTS"


class TSMConfig(FrameNetConfig):
    """TSM."""

    shift_div: int = setting(
        8, help="1/shift_div of the channels move one step each way", search=choice(4, 8, 16), ge=2
    )
    temporal_pool: bool = setting(False, help="halve the number of frames after the first stage")


@primitive("recognition/tsm")
class TSM(Recogniser):
    """Temporal Shift Module (Lin et al. 2019): TSN whose residual branches see neighbouring frames, at no cost."""

    Config: ClassVar[type[PrimitiveConfig]] = TSMConfig
    network = "training.autovideo.networks:tsm"
    layouts = "training.backbones.segment_nets:LAYOUTS"


class ClipNetConfig(RecogniserConfig):
    """Nets over clips."""

    dropout: float = setting(0.5, help="before the classifier", search=floats(0.0, 0.8), ge=0, lt=1)


@primitive("recognition/i3d")
class I3D(Recogniser):
    """Inflated Inception-v1 (Carreira and Zisserman 2017); at least 16 frames."""

    Config: ClassVar[type[PrimitiveConfig]] = ClipNetConfig
    network = "training.autovideo.networks:i3d"
    layouts = "training.backbones.i3d:LAYOUTS"
    normalise = "symmetric"


@primitive("recognition/i3d_resnet")
class I3DResNet(Recogniser):
    """Inflated ResNet-50 (Wang et al. 2018)."""

    Config: ClassVar[type[PrimitiveConfig]] = ClipNetConfig
    network = "training.autovideo.networks:i3d_resnet"
    layouts = "training.backbones.i3d_resnet:LAYOUTS"


@primitive("recognition/eco_lite")
class ECOLite(Recogniser):
    """ECO Lite (Zolfaghari et al. 2018): BN-Inception's first part per frame, a 3D ResNet over the frames' maps."""

    Config: ClassVar[type[PrimitiveConfig]] = ClipNetConfig
    network = "training.autovideo.networks:eco_lite"
    layouts = "training.backbones.eco:LAYOUTS"
    normalise = "bninception"


@primitive("recognition/eco_full")
class ECOFull(Recogniser):
    """ECO Full: Lite beside the whole BN-Inception, averaged over frames."""

    Config: ClassVar[type[PrimitiveConfig]] = ClipNetConfig
    network = "training.autovideo.networks:eco_full"
    layouts = "training.backbones.eco:LAYOUTS"
    normalise = "bninception"


class C3DConfig(ClipNetConfig):
    """C3D."""

    adaptive: bool = setting(False, help="pool to the size of the classifier: any clip length and picture size")
    norms: bool = setting(False, help="batch normalisation after each convolution")


@primitive("recognition/c3d")
class C3D(Recogniser):
    """C3D (Tran et al. 2015): exactly 16 frames of 112 × 112, unless adaptive."""

    Config: ClassVar[type[PrimitiveConfig]] = C3DConfig
    network = "training.autovideo.networks:c3d"
    layouts = "training.backbones.c3d:LAYOUTS"
    normalise = "kinetics"


class R2Plus1DConfig(ClipNetConfig):
    """R(2+1)D."""

    depth: Literal[18, 34] = setting(18, help="layers")
    form: Literal["tv", "paper", "hara"] = setting(
        "tv", help="`tv`: torchvision's (one middle width per block); `paper`: one per convolution; `hara`: 3D-ResNets"
    )
    dropout: float = setting(0.0, help="before the classifier", search=floats(0.0, 0.8), ge=0, lt=1)


@primitive("recognition/r2plus1d")
class R2Plus1D(Recogniser):
    """R(2+1)D (Tran et al. 2018): each 3D convolution divided into one over space and one over time."""

    Config: ClassVar[type[PrimitiveConfig]] = R2Plus1DConfig
    network = "training.autovideo.networks:r2plus1d"
    layouts = "training.autovideo.networks:R2PLUS1D_LAYOUTS"
    normalise = "kinetics"


class R3DConfig(ClipNetConfig):
    """R3D."""

    depth: Literal[10, 18, 34, 50, 101, 152, 200] = setting(18, help="layers; torchvision's form has 18 and 34")
    form: Literal["tv", "hara"] = setting("tv", help="`tv`: torchvision's, no pooling; `hara`: that of the 3D-ResNets")
    dropout: float = setting(0.0, help="before the classifier", search=floats(0.0, 0.8), ge=0, lt=1)

    @model_validator(mode="after")
    def _exists(self) -> "R3DConfig":
        if self.form == "tv" and self.depth not in (18, 34):
            raise ValueError(f"form tv has the depths 18 and 34, not {self.depth}; form hara has 10 to 200")
        return self


@primitive("recognition/r3d")
class R3D(Recogniser):
    """R3D (Tran et al. 2018; Hara et al. 2018): a 3D ResNet; the two forms differ four- to fivefold in cost."""

    Config: ClassVar[type[PrimitiveConfig]] = R3DConfig
    network = "training.autovideo.networks:r3d"
    layouts = "training.autovideo.networks:R3D_LAYOUTS"
    normalise = "kinetics"
