"""Loss, prediction and cost of a recogniser in a pipeline."""

import fnmatch
import functools
import importlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from training.autovideo.config import NetConfig
from training.autovideo.recognisers import Recogniser, RecogniserConfig
from training.core.config import ConfigError, OptimConfig
from training.core.cost import count_macs, count_params
from training.core.system import ClipBatch, CostRow, Prediction, RawBatch, StepOutput, System
from training.core.transforms import MEAN_STD, ClipTransform
from training.core.views import VIEWS_AT_ONCE, split_views
from training.core.weights import load_published

if TYPE_CHECKING:
    from training.autovideo.augment.augmentation import Augmentation

log = logging.getLogger(__name__)

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class Network(Protocol):
    """What a recogniser's network has beside `forward` (B,3,T,H,W) → (B,K)."""

    heads: tuple[str, ...]
    """Patterns of the classifier's parameter names."""

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return modules from input to classifier that together hold every parameter once."""

    def check_input(self, frames: int, height: int, width: int) -> None:
        """Raise ValueError with what the net needs, where it cannot take clips of this size."""


@dataclass(frozen=True)
class TargetBatch(ClipBatch):
    """A batch with the targets that the loss compares with."""

    target_BK: Tensor
    """float; one-hot, multi-hot, or mixed by an augmenter."""


def build_network(recogniser: Recogniser, classes: int) -> nn.Module:
    """Return a recogniser's network.

    Raises:
        ConfigError: the network cannot be built from these settings.
    """
    module, _, name = recogniser.network.partition(":")
    try:
        network: nn.Module = getattr(importlib.import_module(module), name)(recogniser.config, classes)
    except ValueError as error:
        raise ConfigError(f"{recogniser.id}: {error}") from None
    return network


def layouts_of(recogniser: Recogniser) -> dict[str, Any]:
    """Return the converters of a recogniser's weight layouts by name; `fovea` is our own names."""
    known: dict[str, Any] = {"fovea": None}
    if recogniser.layouts:
        module, _, name = recogniser.layouts.partition(":")
        known |= getattr(importlib.import_module(module), name)
    return known


def _absent(recogniser: Recogniser, layout: str) -> tuple[str, ...]:
    """Return patterns of what a file of this layout lacks by its nature (it is of a part of the net)."""
    module = importlib.import_module(recogniser.layouts.partition(":")[0]) if recogniser.layouts else None
    patterns: tuple[str, ...] = tuple(getattr(module, "PARTIAL", {}).get(layout, ()))
    return patterns


class AutoVideoSystem(System):
    """The network of one learner, on the clips that the steps before it describe."""

    def __init__(self, config: NetConfig, classes: tuple[str, ...], root: Path | None = None) -> None:
        super().__init__()
        self.classes = classes
        self._settings: RecogniserConfig = config.settings
        recogniser = config.recogniser()
        self.net = build_network(recogniser, len(classes))
        self._name = recogniser.id.partition("/")[2]
        data = config.data
        self._num_frames, self._views = data.num_frames, data.eval_views
        self._sides = (data.transform.size, data.transform.eval_side)
        for side in self._sides:
            try:
                cast(Network, self.net).check_input(data.num_frames, side, side)
            except ValueError as error:
                raise ConfigError(f"{recogniser.id} cannot take the clips of this pipeline: {error}") from None
        # Augmenters work on pixels in 0…1, so the statistics come last.
        self._transform = ClipTransform(data.transform.model_copy(update={"normalise": "unit"}))
        self._mean, self._std = MEAN_STD[data.transform.normalise]
        self._uses = config.augment
        if root is not None and self._settings.weights is not None:
            self._load_published(recogniser, root)

    def _load_published(self, recogniser: Recogniser, root: Path) -> None:
        assert self._settings.weights is not None
        known = layouts_of(recogniser)
        if self._settings.layout not in known:
            raise ConfigError(
                f"{recogniser.id}: unknown weight layout {self._settings.layout!r}; known: {', '.join(known)}"
            )
        report = load_published(
            self.net,
            self._settings.weights,
            root,
            convert=known[self._settings.layout],
            ignore=(*cast(Network, self.net).heads, *_absent(recogniser, self._settings.layout)),
        )
        log.info("%s", report)

    # --- what is trained ----------------------------------------------------------------------

    def freeze(self) -> None:
        """Take what `freeze` and `freeze_parts` name out of the training.

        Raises:
            ConfigError: nothing is left to train, or the net has no groups of the policy.
        """
        for parameter in self._frozen_parameters():
            parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError(
                f"{self._name}: freeze {self._settings.freeze!r} with freeze_parts {self._settings.freeze_parts} "
                "leaves nothing to train: freeze less"
            )
        self.parameter_groups()  # says here, not after the workers have started, that a policy is not for this net

    def _frozen_parameters(self) -> Iterable[nn.Parameter]:
        for module in self._frozen_modules():
            yield from module.parameters()
        if self._settings.freeze == "backbone":
            heads = cast(Network, self.net).heads
            for name, parameter in self.net.named_parameters():
                if not any(fnmatch.fnmatchcase(name, pattern) for pattern in heads):
                    yield parameter

    def _frozen_modules(self) -> list[nn.Module]:
        """Return what is kept in eval mode: frozen norms would otherwise go on averaging."""
        parts = cast(Network, self.net).parts()
        if self._settings.freeze_parts >= len(parts):
            raise ConfigError(
                f"freeze_parts is {self._settings.freeze_parts}, and the net has {len(parts)} parts, the classifier "
                f"being the last: {', '.join(name for name, _ in parts)}"
            )
        frozen = [module for _, module in parts[: self._settings.freeze_parts]]
        norms = [module for module in self.net.modules() if isinstance(module, NORMS)]
        if self._settings.freeze in ("norms", "backbone"):
            frozen += norms
        elif self._settings.freeze == "later_norms":
            frozen += norms[1:]
        return frozen

    @override
    def train(self, mode: bool = True) -> "AutoVideoSystem":
        super().train(mode)
        if mode:
            for module in self._frozen_modules():
                module.eval()
        return self

    @override
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        if self._settings.policy == "uniform":
            return super().parameter_groups()
        from training.backbones.segment_nets import SegmentNet, tsn_groups

        if not isinstance(self.net, SegmentNet):
            raise ConfigError(f"policy `tsn` is for tsn and tsm, not for {self._name}: write `policy: uniform`")
        return tsn_groups(self.net)

    @override
    def optim_configs(self, config: OptimConfig) -> dict[str, OptimConfig]:
        # A backbone without biases in its convolutions has no such group.
        present = self.parameter_groups()
        return {"main": config.model_copy(update={"lr": {n: lr for n, lr in config.lr.items() if n in present}})}

    @override
    def undecayed(self) -> Iterable[nn.Parameter]:
        if self._settings.policy == "uniform":
            return ()
        from training.backbones.segment_nets import TSN_UNDECAYED

        return [p for name, group in self.parameter_groups().items() if name in TSN_UNDECAYED for p in group]

    # --- batches ------------------------------------------------------------------------------

    @override
    def prepare(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        batch = self._transform(raw, train=train)
        video_BCTHW = batch.video_BCTHW
        if not train:
            return ClipBatch(**{**vars(batch), "video_BCTHW": self._normalised(video_BCTHW)})
        target_BK = self._targets(batch.label_B)
        if self._augment is not None:
            video_BCTHW, mixed_BK = self._augment(video_BCTHW, batch.seed_B, target_BK)
            target_BK = target_BK if mixed_BK is None else mixed_BK
        return TargetBatch(**{**vars(batch), "video_BCTHW": self._normalised(video_BCTHW)}, target_BK=target_BK)

    @functools.cached_property
    def _augment(self) -> "Augmentation | None":
        """Made when the first training batch comes: a served model needs neither the augmenters nor their library."""
        from training.autovideo.augment.augmentation import Augmentation

        return Augmentation(self._uses) if self._uses else None

    def _normalised(self, video_BCTHW: Tensor) -> Tensor:
        result = torch.empty_like(video_BCTHW)
        for channel, (mean, std) in enumerate(zip(self._mean, self._std, strict=True)):
            torch.sub(video_BCTHW[:, channel], mean, out=result[:, channel])
            result[:, channel].div_(std)
        return result

    def _targets(self, label: Tensor) -> Tensor:
        if (label.dim() == 2) != (self._settings.loss == "binary"):
            kind = "several classes" if label.dim() == 2 else "one class"
            raise ConfigError(f"{self._name}: the data has {kind} per video, and loss is {self._settings.loss!r}")
        return label.float() if label.dim() == 2 else F.one_hot(label, len(self.classes)).float()

    @override
    def forward(self, batch: ClipBatch) -> StepOutput:
        assert isinstance(batch, TargetBatch), "training batches come from prepare(train=True)"
        logits = self.net(batch.video_BCTHW).float()
        smoothing = self._settings.label_smoothing
        if self._settings.loss == "binary":
            target_BK = batch.target_BK * (1 - smoothing) + smoothing / 2
            loss = F.binary_cross_entropy_with_logits(logits, target_BK)
            return StepOutput(loss)
        loss = F.cross_entropy(logits, batch.target_BK, label_smoothing=smoothing)
        return StepOutput(loss, {"accuracy": (logits.argmax(-1) == batch.label_B).float().mean().detach()})

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        views = split_views(batch.video_BCTHW, self._num_frames)
        logits = torch.cat([self.net(part) for part in torch.split(views, VIEWS_AT_ONCE)]).float()
        scores = logits.sigmoid() if self._settings.loss == "binary" else logits.softmax(-1)
        return Prediction(scores.reshape(len(batch.video_BCTHW), -1, scores.shape[-1]).mean(1))

    @override
    def networks(self) -> Iterable[nn.Module]:
        return (self.net,)

    @override
    def cost(self) -> dict[str, CostRow]:
        view = torch.empty(1, 3, self._num_frames, self._sides[1], self._sides[1], device="meta")
        gmac = self._views * count_macs(self.net, view) / 1e9
        shape = f"{self._views} × {self._num_frames}x3x{self._sides[1]}x{self._sides[1]}"
        return {"main": CostRow(self._name, count_params(self), gmac, shape, "video")}


def network_cost(recogniser: Recogniser, classes: int, frames: int, side: int, views: int = 1) -> tuple[float, int]:
    """Return GMAC per video and parameters, counted on the meta device: nothing is allocated.

    What only the training knows (rates, steps) changes neither, so a search counts every network once.

    Raises:
        ConfigError: the network cannot be built, or cannot take such clips.
    """
    recipe = set(RecogniserConfig.model_fields) - {"width"}
    settings = recogniser.config.model_dump_json(exclude=recipe)
    key = (type(recogniser), settings, classes, frames, side)
    if key not in _COUNTED:
        _COUNTED[key] = _count(recogniser, classes, frames, side)
    macs, params = _COUNTED[key]
    return views * macs / 1e9, params


_COUNTED: dict[tuple[type[Recogniser], str, int, int, int], tuple[int, int]] = {}


def _count(recogniser: Recogniser, classes: int, frames: int, side: int) -> tuple[int, int]:
    with torch.device("meta"):
        network = build_network(recogniser, classes)
    try:
        cast(Network, network).check_input(frames, side, side)
    except ValueError as error:
        raise ConfigError(f"{recogniser.id} cannot take the clips of this pipeline: {error}") from None
    network.eval()
    view = torch.empty(1, 3, frames, side, side, device="meta")
    # As a function: a module would be copied first, and this one is nobody else's.
    return count_macs(lambda clip: network(clip), view), count_params(network)
