"""Backbones shared by families, with weight import by path."""

from training.backbones.factory import BACKBONES, VIDEO_BACKBONES, ImageBackbone, build_backbone

__all__ = ["BACKBONES", "VIDEO_BACKBONES", "ImageBackbone", "build_backbone"]
