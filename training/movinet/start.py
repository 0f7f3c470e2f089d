"""Weights that a training starts from: published files, and a trained base net for its stream."""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from training.backbones.movinet import MoViNet
from training.core.config import WeightsFile
from training.core.weights import load_published, load_weights

log = logging.getLogger(__name__)


def start_from_base(net: MoViNet, base: Mapping[str, Tensor]) -> None:
    """Copy what a stream net shares with the trained base net.

    All tensors of equal name and shape: stem, expansions, projections, skips, head, kernels of one frame, and where
    both have the same `conv` the other kernels too. Gates that see another input start anew as a whole.

    Args:
        net: the stream net.
        base: state of the base net's system, names `net.…`.
    """
    own = net.state_dict()
    state = {name.removeprefix("net."): tensor for name, tensor in base.items()}
    same_gates = all(name in state and state[name].shape == own[name].shape for name in own if ".gate.reduce." in name)
    shared = {
        name: tensor
        for name, tensor in state.items()
        if name in own and own[name].shape == tensor.shape and (same_gates or ".gate." not in name)
    }
    report = load_weights(net, shared, strict=False)
    log.info(
        "start from the base net: %d of %d tensors, new: %s", len(report.matched), len(own), sorted(report.missing)
    )


def start_from_file(net: MoViNet, file: WeightsFile, layout: str, root: Path) -> None:
    """Copy published weights; the classifier may have other classes, everything else has to fit.

    Raises:
        WeightError: see `load_published`.
    """
    log.info("%s", load_published(net, file, root, ignore=("classifier.*",)))
