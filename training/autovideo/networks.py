"""Builds the networks of the recognisers from their settings."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from training.backbones.c3d import C3D
from training.backbones.eco import ECOFull, ECOLite
from training.backbones.hara_resnet3d import LAYOUTS as HARA_LAYOUTS
from training.backbones.hara_resnet3d import HaraResNet3D
from training.backbones.i3d import I3D
from training.backbones.i3d_resnet import I3DResNet
from training.backbones.segment_nets import SegmentNet
from training.backbones.video_resnet import LAYOUTS as TORCHVISION_LAYOUTS
from training.backbones.video_resnet import VideoResNet
from training.core.weights import Convert

R3D_LAYOUTS: Mapping[str, Convert] = {**TORCHVISION_LAYOUTS, **HARA_LAYOUTS}
"""Weight layouts of `recognition/r3d`; each fits the form of its name only."""

R2PLUS1D_LAYOUTS: Mapping[str, Convert] = R3D_LAYOUTS
"""Weight layouts of `recognition/r2plus1d`."""


def _shared(config: Any, classes: int) -> dict[str, Any]:
    return {"num_classes": classes, "dropout": config.dropout, "width": config.width}


def tsn(config: Any, classes: int) -> nn.Module:
    """Return TSN (`recognisers.TSNConfig`)."""
    return SegmentNet(config.backbone, consensus=config.consensus, **_shared(config, classes))


def tsm(config: Any, classes: int) -> nn.Module:
    """Return TSM (`recognisers.TSMConfig`)."""
    return SegmentNet(
        config.backbone,
        consensus=config.consensus,
        shift=True,
        shift_div=config.shift_div,
        temporal_pool=config.temporal_pool,
        **_shared(config, classes),
    )


def i3d(config: Any, classes: int) -> nn.Module:
    """Return I3D over Inception-v1."""
    return I3D(**_shared(config, classes))


def i3d_resnet(config: Any, classes: int) -> nn.Module:
    """Return I3D over ResNet-50."""
    return I3DResNet(**_shared(config, classes))


def eco_lite(config: Any, classes: int) -> nn.Module:
    """Return ECO Lite."""
    return ECOLite(**_shared(config, classes))


def eco_full(config: Any, classes: int) -> nn.Module:
    """Return ECO Full."""
    return ECOFull(**_shared(config, classes))


def c3d(config: Any, classes: int) -> nn.Module:
    """Return C3D (`recognisers.C3DConfig`)."""
    return C3D(adaptive=config.adaptive, batch_norm=config.norms, **_shared(config, classes))


def r2plus1d(config: Any, classes: int) -> nn.Module:
    """Return R(2+1)D in the form that the settings name (`recognisers.R2Plus1DConfig`)."""
    shared = _shared(config, classes)
    if config.form == "hara":
        return HaraResNet3D(config.depth, form="r2plus1d", **shared)
    return VideoResNet(
        f"r2plus1d_{config.depth}", midplanes="conv" if config.form == "paper" else "block", **shared
    )  # fmt: skip


def r3d(config: Any, classes: int) -> nn.Module:
    """Return R3D in the form that the settings name (`recognisers.R3DConfig`)."""
    if config.form == "hara":
        return HaraResNet3D(config.depth, **_shared(config, classes))
    return VideoResNet(f"r3d_{config.depth}", **_shared(config, classes))
