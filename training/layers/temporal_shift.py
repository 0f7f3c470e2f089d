"""Temporal shift (Lin et al. 2019, "TSM", arXiv 1811.08383): channels change places with the neighbouring frames.

Written with slices and concatenation, never in place, so that it exports and its input may still be needed.
"""

import torch
from torch import Tensor

__all__ = ["shift_step", "shifted_channels", "temporal_shift"]


def shifted_channels(channels: int, div: int) -> int:
    """Return how many channels move in each direction: ⌊channels/div⌋.

    Raises:
        ValueError: `div` below 2, or so few channels that none would move.
    """
    if div < 2:
        raise ValueError(f"the share of shifted channels must be at most a half (div ≥ 2), got div={div}")
    if channels < div:
        raise ValueError(f"none of {channels} channels would be shifted with div={div}")
    return channels // div


def temporal_shift(x: Tensor, frames: int, div: int = 8, *, causal: bool = False) -> Tensor:
    """Move the first channels one frame back in time and the next ones one frame forward; empty places become zero.

    Args:
        x: (B·T,C,H,W), the T frames of a clip one after another; a channels_last input gives a channels_last result.
        frames: T.
        div: C/div channels move in each direction.
        causal: only the first C/div channels move, forward, so that a frame sees no later one (the online variant).

    Returns:
        (B·T,C,H,W).

    Raises:
        ValueError: the batch is no multiple of `frames`, or see `shifted_channels`.
    """
    rows, channels = x.shape[:2]
    if frames < 1 or rows % frames:
        raise ValueError(f"{rows} frames are no whole number of clips of {frames}")
    fold = shifted_channels(channels, div)
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    # Clips in whichever order their elements lie.
    images = x.permute(0, 2, 3, 1) if channels_last else x
    clips = images.reshape(-1, frames, *images.shape[1:])
    axis = 4 if channels_last else 2
    first = clips.narrow(axis, 0, fold)
    blank = torch.zeros_like(first[:, :1])
    if causal:
        moved = [torch.cat((blank, first[:, :-1]), 1), clips.narrow(axis, fold, channels - fold)]
    else:
        second = clips.narrow(axis, fold, fold)
        moved = [
            torch.cat((first[:, 1:], blank), 1),
            torch.cat((blank, second[:, :-1]), 1),
            clips.narrow(axis, 2 * fold, channels - 2 * fold),
        ]
    shifted = torch.cat(moved, axis).flatten(0, 1)
    return shifted.permute(0, 3, 1, 2) if channels_last else shifted


def shift_step(frame: Tensor, past: Tensor | None, div: int = 8) -> tuple[Tensor, Tensor]:
    """Shift one frame of a stream: what `temporal_shift(…, causal=True)` gives for it in the whole clip.

    Args:
        frame: (B,C,H,W).
        past: state after the frame before, (B,⌊C/div⌋,H,W); None: the first frame.
        div: C/div channels come from the frame before.

    Returns:
        Shifted frame (B,C,H,W), and the state after it; no gradient crosses a state.

    Raises:
        ValueError: a state of another shape, or see `shifted_channels`.
    """
    fold = shifted_channels(frame.shape[1], div)
    first, rest = frame[:, :fold], frame[:, fold:]
    if past is None:
        past = torch.zeros_like(first)
    elif past.shape != first.shape:
        raise ValueError(
            f"the state has the shape {tuple(past.shape)}, this frame needs {tuple(first.shape)}: it is of another "
            f"net, input size or batch"
        )
    # A copy: a view would keep the whole frame alive.
    return torch.cat((past.to(frame.dtype), rest), 1), first.detach().clone()
