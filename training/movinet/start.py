"""Weights that a training starts from: published files, and a trained base net for its stream."""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from training.backbones.movinet import MoViNet
from training.backbones.movinet_weights import TRAINING_STATE, from_pytorch_port, from_tensorflow, transferable
from training.core.config import WeightsFile
from training.core.weights import WeightError, load_published, load_weights

log = logging.getLogger(__name__)

CONVERTERS = {"fovea": None, "atze00": from_pytorch_port, "tensorflow": from_tensorflow}


def start_from_base(net: MoViNet, base: Mapping[str, Tensor]) -> None:
    """Copy what a stream net shares with the trained base net of its architecture (`transferable`).

    Args:
        net: the stream net.
        base: state of the base net's system, names `net.…`.

    Raises:
        WeightError: the nets are of different architectures.
    """
    shared = transferable({name.removeprefix("net."): tensor for name, tensor in base.items()}, net)
    report = load_weights(net, shared, strict=False)
    if strange := [name for name in report.missing if ".depthwise." not in name and ".gate." not in name]:
        raise WeightError(f"the base net is of another architecture: it has no {strange[0]!r} of this shape")
    new = sorted({".".join(name.split(".")[:4]) for name in report.missing})
    log.info("start from the base net: %d tensors taken over; trained anew: %s", len(report.matched), ", ".join(new))


def start_from_file(net: MoViNet, file: WeightsFile, layout: str, root: Path) -> None:
    """Copy published weights; the classifier may have other classes, everything else has to fit.

    Raises:
        WeightError: see `load_published`.
    """
    ignore = [*TRAINING_STATE] if layout == "tensorflow" else []
    log.info("%s", load_published(net, file, root, convert=CONVERTERS[layout], ignore=(*ignore, "classifier.*")))
