"""Normalisation layers while training."""

from torch import nn


def eval_norms(module: nn.Module) -> None:
    """Put every batch norm below `module` into eval mode: it keeps its statistics; scale and shift still learn.

    To be called after each `module.train()`. With few clips per batch, or frames of one clip in a batch, the batch's
    own statistics are poor and destroy a pre-trained net's.
    """
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()
