"""Configuration of the 3D ResNet-RS stages. Section numbers are those of Du et al. 2021 (arXiv 2109.01696) as the
released code has them."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from training.backbones.resnet3d_layout import BLOCKS, ResNet3DLayout
from training.core.config import DataConfig, FitConfig, StageConfig, Strict, WeightsFile
from training.core.trials import SearchConfig as BaseSearchConfig


class NetConfig(Strict):
    """One network: the fields of `training.backbones.resnet3d_layout.ResNet3DLayout`, and regularisers."""

    depth: int
    """Key of `BLOCKS`: 50 to 350, or 26, 38, 56 for small nets."""
    width: float = Field(gt=0)
    """Of the published channel counts; 0.25 for small nets."""
    stem: Literal["v0", "v1"]
    """`v1`: three convolutions (ResNet-D), as ResNet-RS; `v0`: one 5×7×7, as R3D."""
    stem_temporal_kernel: int = Field(ge=1)
    stem_temporal_stride: int = Field(ge=1)
    pool_t: Literal[1, 2]
    """Temporal stride of the stem's pooling; 2 about halves the cost."""
    temporal: str
    """Temporal kernels of the groups: 1133 (ResNet-RS), 3333, 3311, 1313, 1111, r3d50."""
    se_ratio: float = Field(ge=0, le=1)
    """Squeeze-excitation; 0: none."""
    gating: Literal["last", "all", "none"]
    """Blocks with self-gating; the released code has the last of each group, the text every block."""
    gate_order: Literal["code", "paper"]
    """Self-gating before squeeze-excitation, or after it."""
    padding: Literal["same", "symmetric"]
    """`same`: TensorFlow's, for imported weights and exact figures; `symmetric`: PyTorch's."""
    drop_path: float = Field(ge=0, lt=1)
    """Stochastic depth; group g drops with the rate drop_path·(g+1)/5."""
    dropout: float = Field(ge=0, lt=1)
    """Before the classifier (0.5)."""
    label_smoothing: float = Field(ge=0, lt=1)
    norm_eps: float = Field(gt=0)
    norm_momentum: float = Field(ge=0, le=1)
    """Weight of the newest batch, as in PyTorch. The released recipe is 1 with an EMA of decay 0.9999, which averages
    the buffers too; the same is a momentum of 0.0001 (§6.1)."""
    weights: WeightsFile | None
    """Where to start; None trains from scratch."""
    weights_layout: Literal["fovea", "pytorchvideo"] = "fovea"
    """Names of the file's tensors; `pytorchvideo` is that of its slow_r50."""

    @model_validator(mode="after")
    def _is_a_net(self) -> "NetConfig":
        self.layout()
        return self

    def layout(self) -> ResNet3DLayout:
        """Return the backbone's layout.

        Raises:
            ValueError: there is no such net; the message names the field.
        """
        fields = ResNet3DLayout.__dataclass_fields__
        return ResNet3DLayout(**{name: getattr(self, name) for name in fields})


class _ResNetRSStage(StageConfig):
    model: NetConfig

    @model_validator(mode="after")
    def _dense_clips(self) -> "_ResNetRSStage":
        if self.data.sampling != "dense":
            raise ValueError(
                f"data.sampling must be `dense`: the net sees neighbouring frames, not {self.data.sampling}"
            )
        return self


class TrainConfig(_ResNetRSStage):
    """One net, trained with the recipe of §3."""

    fit: FitConfig


class GridConfig(TrainConfig):
    """One point of the planned grid: the recipe of `resnet_rs_train`, with the net and the input changed."""

    depth: int
    frames: int = Field(ge=1)
    size: int = Field(ge=16)
    width: float = Field(gt=0)
    seed: int

    @model_validator(mode="before")
    @classmethod
    def _apply(cls, values: Any) -> Any:
        return at_point(values) if isinstance(values, Mapping) and set(AXES) <= set(values) else values


AXES = ("depth", "frames", "size", "width", "seed")
"""Axes of the planned grid, as in params.yaml."""


def at_point(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's values with the point's axes written into net, input and seed.

    The short side at evaluation keeps its ratio to the input's side.
    """
    result = dict(values)
    try:
        model, data, fit = dict(values["model"]), dict(values["data"]), dict(values["fit"])
        transform = dict(data["transform"])
        size = int(values["size"])
        ratio = transform["eval_short_side"] / transform["size"]
        model |= {key: values[key] for key in ("depth", "width", "pool_t", "temporal", "se_ratio") if key in values}
        transform |= {"eval_short_side": evaluated_short_side(size, ratio), "size": size, "eval_size": None}
        data |= {"num_frames": int(values["frames"]), "transform": transform}
        fit |= {"seed": int(values["seed"])}
    except (KeyError, TypeError, ValueError):
        return result  # validation names what is missing
    return result | {"model": model, "data": data, "fit": fit}


def evaluated_short_side(size: int, ratio: float) -> int:
    """Return the short side at evaluation, pixels, that is to a size what it was to another."""
    return round(size * ratio)


class Space(Strict):
    """Axes of the search; every combination is a candidate (§10)."""

    depth: tuple[int, ...] = Field(min_length=1)
    frames: tuple[int, ...] = Field(min_length=1)
    size: tuple[int, ...] = Field(min_length=1)
    width: tuple[float, ...] = Field(min_length=1)
    pool_t: tuple[Literal[1, 2], ...] = Field(min_length=1)
    temporal: tuple[str, ...] = Field(min_length=1)
    se_ratio: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _depths(self) -> "Space":
        unknown = [depth for depth in self.depth if depth not in BLOCKS]
        if unknown:
            raise ValueError(f"depth {unknown[0]} is not one of {', '.join(map(str, BLOCKS))}")
        return self


class SearchConfig(TrainConfig, BaseSearchConfig):
    """Scaling at constant cost: trainings whose cost per view is that of a level, ± `tolerance`.

    `stopping` (ASHA) works within a level only. Early epochs favour small nets: look at what the scaling page says of
    rungs and final values before trusting it.
    """

    space: Space
    levels: tuple[float, ...] = Field(min_length=1)
    """Costs, GMAC per view. Trials are compared, and stopped early, only within a level."""
    tolerance: float = Field(gt=0, lt=1)
    """Accepted |cost / level - 1| (0.05)."""
    trials_per_level: int = Field(ge=1)
    """Candidates of a level that are trained: all, or as many drawn at random."""
    seed: int
    """Of that draw."""

    @model_validator(mode="after")
    def _levels(self) -> "SearchConfig":
        if min(self.levels) <= 0 or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"levels must be positive and different, got {list(self.levels)}")
        return self


class ScalingConfig(_ResNetRSStage):
    """The scaling report of grid and search."""

    bootstrap: int = Field(ge=100)
    """Resamples of its confidence intervals."""
    seed: int
    """Of the resampling."""


class EvalConfig(_ResNetRSStage):
    """Evaluation of the trained net as it is served: the views of the data section."""


class ViewsConfig(_ResNetRSStage):
    """Evaluation of the trained net by many views per video (§3.1: 10 clips × 3 crops)."""

    clips: int = Field(ge=1)
    crops: Literal[1, 3]
    eval_size: int = Field(ge=16)
    """Side of the crops, pixels (256 for nets trained at 224)."""

    @model_validator(mode="before")
    @classmethod
    def _apply(cls, values: Any) -> Any:
        try:
            size = int(values["eval_size"])
            transform = {**values["data"]["transform"], "eval_crops": values["crops"]}
            transform |= {"eval_size": size, "eval_short_side": size}
            return {**values, "data": {**values["data"], "eval_clips": values["clips"], "transform": transform}}
        except (KeyError, TypeError, ValueError):
            return values

    def single(self) -> DataConfig:
        """Return the data block for one view."""
        transform = self.data.transform.model_copy(update={"eval_crops": 1})
        return self.data.model_copy(update={"eval_clips": 1, "transform": transform})
