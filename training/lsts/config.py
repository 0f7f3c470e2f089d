"""Configuration of the LSTS stages. Section numbers are those of this folder's README."""

from typing import Literal

from pydantic import Field, model_validator

from training.core.config import DataConfig, FitConfig, StageConfig, Strict, WeightsFile


class BackboneConfig(Strict):
    """ResNet with a dilated last stage, cut into a low-level and a high-level network (§2)."""

    depth: Literal[18, 34, 50, 101]
    width: float = Field(gt=0)
    """Share of the published channel counts; 1 is published, less is for small machines."""
    split: int = Field(ge=0)
    """How many residual blocks of stage 4 the low-level network has (4: res4b3 of ResNet-101)."""
    stride: Literal[8, 16]
    """Pixels per feature cell; 16 as published. With 8, stage 4 has stride 1 and dilation 2, stage 5 dilation 4."""
    downsample: Literal["first", "second"]
    """Which convolution of a bottleneck has the stride: the 1×1 before (Caffe's weights) or the 3×3 (torchvision's)."""
    feature_channels: int = Field(ge=2, multiple_of=2)
    """Channels of the features after the last convolution (1024), which is 3×3 with dilation 6."""
    frozen_stages: int = Field(ge=0, le=5)
    """How many stages are not trained, the stem being the first (2)."""
    weights: WeightsFile | None
    """ImageNet weights in torchvision's layout; None starts from scratch."""


class OffsetsConfig(Strict):
    """Where the alignment looks: K displacements in feature cells, the same for the whole network (§3)."""

    init: Literal["grid", "gaussian"]
    """`grid`: {−r … r}², K = (2r + 1)²; `gaussian`: K draws from N(0, σ²)."""
    radius: int | None = Field(default=None, ge=0)
    """Only for `grid`: r (4; 0 is one location, the cell itself)."""
    count: int | None = Field(default=None, ge=1)
    """Only for `gaussian`: K (40)."""
    sigma: float | None = Field(default=None, gt=0)
    """Only for `gaussian`: σ, cells (1)."""
    seed: int
    """Of the draws."""
    learned: bool
    """Whether they are trained."""
    clamp: float = Field(gt=0)
    """Largest |x| and |y|, cells (8): beyond the image there is no gradient that would bring an offset back."""

    @model_validator(mode="after")
    def _of_this_init(self) -> "OffsetsConfig":
        grid = self.init == "grid"
        if grid != (self.radius is not None) or grid == (self.count is not None) or grid == (self.sigma is not None):
            raise ValueError(
                "init `grid` needs radius, `gaussian` needs count and sigma, and neither takes the other's"
            )
        return self


class AlignmentConfig(Strict):
    """The LSTS operator and what fuses its result (§3 to §5)."""

    offsets: OffsetsConfig
    embed_channels: int = Field(ge=1)
    """Channels of the descriptors that are compared (256)."""
    similarity: Literal["softmax", "scaled", "cosine"]
    """`softmax` of plain dot products as published; `scaled` divides them by the root of the channel count; `cosine`
    compares directions, times a learned temperature."""
    border: Literal["zero", "mask"]
    """Locations outside the map: similarity and value 0 as published, or left out of the softmax."""
    quality: Literal["code", "paper"]
    """Layers of the fusion's weights: 1×1, 3×3, 3×3 as the public code has them, or 3×3, 1×1, 1×1 as printed."""
    low2high: Literal["code", "paper"]
    """Layers from low-level features to high-level ones: 1×1, 3×3, 3×3, or three 3×3 as printed."""
    memory_ratio: float = Field(gt=0, le=1)
    """ρ: the memory becomes ρ·T + (1 − ρ)·F (1)."""


class RFCNConfig(Strict):
    """Region proposals and position-sensitive pooling (§6)."""

    kind: Literal["rfcn"]
    anchor_scales: tuple[float, ...] = Field(min_length=1)
    """Sides of the square anchors, in units of 16 pixels (8, 16, 32)."""
    anchor_ratios: tuple[float, ...] = Field(min_length=1)
    """Height / width (0.5, 1, 2)."""
    proposals_before: int = Field(ge=1)
    """Best-scored boxes before their non-maximum suppression (6000)."""
    proposals: int = Field(ge=1)
    """… and after it (300)."""
    bins: int = Field(ge=1)
    """Side of the pooling grid (7)."""
    hard_examples: int = Field(ge=1)
    """Regions with the largest losses that train (128, OHEM)."""


class DenseConfig(Strict):
    """A single-stage head without anchors (FCOS-style): per cell class scores, distances to four sides, centre-ness."""

    kind: Literal["dense"]
    channels: int = Field(ge=1)
    """Of the two towers."""
    convs: int = Field(ge=0)
    """3×3 convolutions per tower."""
    centre_radius: float = Field(gt=0)
    """Cells within this many strides of an object's centre, and inside its box, are positive (1.5)."""


class LSTSConfig(Strict):
    """The networks."""

    backbone: BackboneConfig
    alignment: AlignmentConfig
    head: RFCNConfig | DenseConfig = Field(discriminator="kind")
    score_threshold: float = Field(ge=0, lt=1)
    """Boxes with lower scores are not reported (1e-4)."""
    nms: float = Field(gt=0, lt=1)
    """IoU of the non-maximum suppression per class (0.3)."""
    max_boxes: int = Field(ge=1)
    """Most boxes per frame (300)."""


class MethodConfig(Strict):
    """What is computed on which frame: LSTS, its parts, and what it is compared with (the README has a table).

    single-frame detector: `interval: 1, key: plain`; the same features at every frame, aggregated: `interval: 1,
    key: srfu`; reused boxes: `non_key: hold`; alignment at the cell itself: offsets of a grid with radius 0.
    """

    interval: int = Field(ge=1)
    """Frames from key frame to key frame (10)."""
    schedule: Literal["offline", "online"]
    """`offline`: a key frame lies in the middle of the frames that it serves; `online`: before them (causal)."""
    key: Literal["srfu", "plain"]
    """Features of a key frame: fused with the aligned memory, or its own."""
    non_key: Literal["dfa", "hold"]
    """Other frames: own low-level features fused with the aligned memory, or the key frame's boxes again."""
    alignment: Literal["sampled", "truth"]
    """`sampled`: learned locations; `truth`: warped by the true displacements of the objects, an oracle."""
    scene_cut: float | None = Field(default=None, gt=0)
    """A frame that differs more than this from the one before starts a new shot, without memory: mean absolute
    difference of their 16×16 thumbnails, grey levels of 255. None: no cuts are looked for."""
    offsets: OffsetsConfig | None = None
    """In place of those of the model's alignment."""

    @property
    def every_frame(self) -> bool:
        """Whether the whole network runs on each frame that is answered by itself."""
        return self.interval == 1 or self.non_key == "hold"

    @model_validator(mode="after")
    def _fits(self) -> "MethodConfig":
        if self.interval == 1 and self.non_key != "hold":
            raise ValueError("with interval 1 every frame is a key frame: write `non_key: hold`")
        if self.alignment == "truth" and self.offsets is not None:
            raise ValueError("alignment `truth` samples nothing: it takes no offsets")
        return self


def data_for(data: DataConfig, frames: int, method: MethodConfig | None = None) -> DataConfig:
    """Return the data block with the frames of a training example that a stage needs.

    Args:
        data: as written.
        frames: T, key frames and the labelled one.
        method: whose key frames the example has; None: as written.

    Raises:
        ValueError: it is not one of a detector.
    """
    if data.frames is None:
        raise ValueError(f"data.sampling must be `frames`, with a block `frames`, got {data.sampling!r}")
    chosen = data.frames
    if method is not None and method.interval > 1:
        chosen = chosen.model_copy(update={"interval": method.interval, "schedule": method.schedule})
    return data.model_copy(update={"num_frames": frames, "frames": chosen})


BatchNorm = Literal["frozen", "trained"]
"""`frozen`: batch norm keeps the statistics it came with, its scale and shift are trained (as published); `trained`:
for networks that start from scratch."""


class _Fits(StageConfig):
    model: LSTSConfig
    fit: FitConfig


class SingleConfig(_Fits):
    """The single-frame detector, on labelled frames."""

    batch_norm: BatchNorm

    @model_validator(mode="after")
    def _one_frame(self) -> "SingleConfig":
        # Frozen for everyone else; the resolved config shows it.
        object.__setattr__(self, "data", data_for(self.data, 1))
        return self


class TrainConfig(_Fits):
    """Features that travel: key frames and a labelled frame, by one of the methods."""

    method: str
    methods: dict[str, MethodConfig]
    batch_norm: BatchNorm
    train_backbone: bool = True
    """Off: the detector's backbone stays as it is, and alignment, light branch and head learn to use it; a step then
    costs less than half."""

    @property
    def chosen(self) -> MethodConfig:
        """Settings of the method."""
        return self.methods[self.method]

    @model_validator(mode="after")
    def _knows_the_method(self) -> "TrainConfig":
        check_method(self.method, self.methods)
        frames = self.data.num_frames
        if self.chosen.key == "plain":
            # Older key frames have no influence.
            frames = 1 if self.chosen.every_frame else 2
        elif frames < 2:
            raise ValueError("data.num_frames counts key frames and the labelled one: 3 trains a memory of depth 1")
        object.__setattr__(self, "data", data_for(self.data, frames, self.chosen))
        return self


def check_method(method: str, methods: dict[str, MethodConfig]) -> None:
    """Raise `ValueError` when a method has no settings."""
    if method not in methods:
        raise ValueError(
            f"method {method!r} is none of methods ({', '.join(methods)}); add its settings there, or take it out of "
            "the list `lsts_grid.method` of params.yaml"
        )


class EvalConfig(StageConfig):
    """A trained method on the test split, beside the single-frame detector and other ways to use its networks."""

    model: LSTSConfig
    method: str
    methods: dict[str, MethodConfig]
    seq_nms: bool
    """Also report `map50` and `map50_lenient` after Seq-NMS, with `_seq` at the end. It wants many overlapping boxes:
    raise `nms` and `max_boxes` of the model for it."""
    single: bool
    """Compare with the single-frame detector that the method started from, on every frame."""
    variants: dict[str, MethodConfig] = Field(default_factory=dict)
    """Name → other settings under which the same networks are evaluated, too (intervals, reused boxes)."""

    @model_validator(mode="after")
    def _knows_the_method(self) -> "EvalConfig":
        check_method(self.method, self.methods)
        if strange := {"main", "single"} & set(self.variants):
            raise ValueError(f"variants must not be called {', '.join(strange)}")
        object.__setattr__(self, "data", data_for(self.data, 1, self.methods[self.method]))
        return self


class ReportConfig(StageConfig):
    """The page of all evaluations of a data set."""

    model: LSTSConfig
