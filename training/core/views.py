"""Several views per video at evaluation: their frames follow one another along T (`DataConfig.eval_views`)."""

from collections.abc import Callable

import torch
from torch import Tensor

VIEWS_AT_ONCE = 32
"""Views in one forward of evaluation: bounds memory, and is enough to fill a GPU."""


def view_scores(logits_of: Callable[[Tensor], Tensor], video_BCTHW: Tensor, num_frames: int) -> Tensor:
    """Return the class probabilities of each view, (B,V,K) fp32.

    Args:
        logits_of: maps clips (N,C,T,H,W) to logits (N,K).
        video_BCTHW: V·T frames per video.
        num_frames: T.
    """
    clips, channels, frames, *side = video_BCTHW.shape
    # (B,C,V·T,H,W) → (B·V,C,T,H,W)
    split = video_BCTHW.reshape(clips, channels, frames // num_frames, num_frames, *side)
    views = split.transpose(1, 2).flatten(0, 1)
    logits = torch.cat([logits_of(part) for part in torch.split(views, VIEWS_AT_ONCE)])
    return logits.float().softmax(-1).reshape(clips, -1, logits.shape[-1])
