"""The detection heads, by the kind that the settings name."""

from training.lsts.config import LSTSConfig, RFCNConfig
from training.lsts.dense import DenseHead
from training.lsts.head_base import Boxes, DetectionHead, Targets
from training.lsts.rfcn import RFCNHead

__all__ = ["Boxes", "DetectionHead", "Targets", "build_head"]


def build_head(config: LSTSConfig, classes: int) -> DetectionHead:
    """Return the head of `config.head.kind` for features of `config.backbone`; `classes` has no background."""
    return RFCNHead(config, classes) if isinstance(config.head, RFCNConfig) else DenseHead(config, classes)
