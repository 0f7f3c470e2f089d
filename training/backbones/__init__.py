"""Backbones shared by families, with weight import by path."""

from training.backbones.factory import BACKBONES, build_backbone

__all__ = ["BACKBONES", "build_backbone"]
