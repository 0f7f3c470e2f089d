"""Score of a member of the supernet with inherited weights: batch norm recalibrated, then one pass over clips."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.core.metrics import classification_metrics
from training.core.system import ClipBatch
from training.core.views import split_views, view_scores
from training.movinet.space import Genotype
from training.movinet.supernet import Supernet

__all__ = ["recalibrate", "score_child"]


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Replace the statistics of batch normalisation by those of some clips, in place.

    While they are gathered each batch is normalised by its own statistics, as in training; dropout and stochastic depth
    are off. The result is the mean and variance of all batches as if they were one, not the mean of their variances;
    behind the first normalisation it is that of inputs which were normalised batch by batch.

    Args:
        net: any network; its mode is kept.
        batches: what `net` is called with, one or more.

    Returns:
        The same network.

    Raises:
        ValueError: no batches.
    """
    modes = {module: module.training for module in net.modules()}
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = {norm: norm.momentum for norm in norms}
    moments = {norm: _Moments() for norm in norms}
    handles = [norm.register_forward_hook(moments[norm].add) for norm in norms]
    count = 0
    net.eval()
    try:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = 1.0  # the statistics are then those of the newest batch
        for batch in batches:
            net(batch)
            count += 1
        if count == 0:
            raise ValueError("recalibration needs at least one batch of clips")
        for norm in norms:
            moments[norm].store(norm)
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            norm.momentum = momenta[norm]
        for module, training in modes.items():
            module.training = training
    return net


class _Moments:
    """Mean and sum of squared deviations over batches (Chan et al.'s update), on the device."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Take in the statistics that the norm has just measured."""
        assert isinstance(norm.running_mean, Tensor)  # statistics are tracked
        assert isinstance(norm.running_var, Tensor)
        new = inputs[0].numel() // inputs[0].shape[1]
        mean, squares = norm.running_mean.double(), norm.running_var.double() * (new - 1)
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = new, mean, squares
            return
        total = self.count + new
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * (self.count * new / total)
        self.mean = self.mean + delta * (new / total)
        self.count = total

    def store(self, norm: _BatchNorm) -> None:
        """Write the statistics into the norm; one that did not run keeps its initial ones."""
        if self.mean is not None and self.squares is not None:
            assert norm.running_mean is not None  # as above
            assert norm.running_var is not None
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(self.squares / (self.count - 1))


def score_child(
    supernet: Supernet,
    genotype: Genotype,
    calibration: Iterable[ClipBatch],
    evaluation: Iterable[ClipBatch],
    *,
    num_frames: int,
    split: str = "val",
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, float]:
    """Return the metrics of a member with the supernet's weights; the supernet is not changed.

    Args:
        supernet: on the device where it is to be run.
        genotype: member of its space.
        calibration: clips for the statistics of batch normalisation, of the training split.
        evaluation: clips that are scored; rows that are not valid are left out.
        num_frames: of one view.
        split: prefix of the metrics' names.
        autocast: precision.

    Returns:
        See `training.core.metrics.classification_metrics`.

    Raises:
        ValueError: no clips for one of the two.
    """
    net = supernet.child(genotype)
    scores, labels = [], []
    with autocast():
        recalibrate(net, _views(calibration, num_frames))
        net.eval()
        with torch.inference_mode():
            for batch in evaluation:
                scores.append(view_scores(net, batch.video_BCTHW, num_frames).mean(1)[batch.valid_B])
                labels.append(batch.label_B[batch.valid_B])
    if not scores:
        raise ValueError("scoring needs at least one batch of clips")
    return classification_metrics(torch.cat(scores).cpu(), torch.cat(labels).cpu(), split)


def _views(batches: Iterable[ClipBatch], num_frames: int) -> Iterator[Tensor]:
    for batch in batches:
        yield split_views(batch.video_BCTHW[batch.valid_B], num_frames)
