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
    views = split_views(video_BCTHW, num_frames)
    logits = torch.cat([logits_of(part) for part in torch.split(views, VIEWS_AT_ONCE)])
    return logits.float().softmax(-1).reshape(len(video_BCTHW), -1, logits.shape[-1])


def split_views(video_BCTHW: Tensor, num_frames: int) -> Tensor:
    """(B,C,V·T,H,W) → (B·V,C,T,H,W), the views of a clip behind one another."""
    clips, channels, frames, *side = video_BCTHW.shape
    split = video_BCTHW.reshape(clips, channels, frames // num_frames, num_frames, *side)
    return split.transpose(1, 2).flatten(0, 1)
