"""Loss, prediction over views and cost of a 3D ResNet."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from training.backbones.resnet3d import ResNet3D, from_pytorchvideo
from training.core.config import DataConfig
from training.core.cost import count_macs, count_params
from training.core.system import ClipBatch, CostRow, Prediction, RawBatch, StepOutput, System
from training.core.transforms import ClipTransform
from training.core.views import view_scores
from training.core.weights import load_published
from training.resnet_rs.config import NetConfig

log = logging.getLogger(__name__)


class ResNetRS(System):
    """A 3D ResNet on dense clips; scores are the mean over views of the class probabilities."""

    def __init__(self, model: NetConfig, data: DataConfig, classes: tuple[str, ...], root: Path | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.label_smoothing = model.label_smoothing
        self.net = ResNet3D(model.layout(), num_classes=len(classes), dropout=model.dropout)
        self._transform = ClipTransform(data.transform)
        self._num_frames = data.num_frames
        self._views = data.eval_views
        self._side = data.transform.eval_side
        if root is not None and model.weights is not None:
            rename = from_pytorchvideo if model.weights_layout == "pytorchvideo" else None
            log.info("%s", load_published(self.net, model.weights, root, ignore=("fc.*",), rename=rename))

    @override
    def prepare(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        return self._transform(raw, train=train)

    @override
    def forward(self, batch: ClipBatch) -> StepOutput:
        logits = self.net(batch.video_BCTHW).float()
        loss = F.cross_entropy(logits, batch.label_B, label_smoothing=self.label_smoothing)
        return StepOutput(loss, {"accuracy": (logits.argmax(-1) == batch.label_B).float().mean().detach()})

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        return Prediction(self.view_scores(batch).mean(1))

    def view_scores(self, batch: ClipBatch) -> Tensor:
        """Return the class probabilities of each view, (B,V,K) fp32."""
        return view_scores(self.net, batch.video_BCTHW, self._num_frames)

    @override
    def networks(self) -> Iterable[nn.Module]:
        return (self.net,)

    @override
    def cost(self) -> dict[str, CostRow]:
        view = torch.empty(1, 3, self._num_frames, self._side, self._side, device="meta")
        gmac = self._views * count_macs(self.net, view) / 1e9
        shape = f"{self._views} × {self._num_frames}x3x{self._side}x{self._side}"
        return {"main": CostRow("resnet_rs", count_params(self), gmac, shape, "video")}
