"""Max-pooling over time of frames that are folded into the batch."""

import torch
from torch import Tensor


def pool_frames(x: Tensor, frames: int) -> Tensor:
    """Take the maximum over time with kernel 3, stride 2 and one place of −∞ at both ends.

    Values and gradients are those of `nn.MaxPool3d((3, 1, 1), (2, 1, 1), (1, 0, 0))` over (N,C,T,H,W), but the frames
    stay where they are: maxima of every second frame with its neighbours, no copies into another order of axes.

    Args:
        x: (N·T,C,H,W), the T frames of a clip one after another; a channels_last input gives a channels_last result.
        frames: T; 1 returns `x` itself.

    Returns:
        (N·⌈T/2⌉,C,H,W).

    Raises:
        ValueError: the batch is no multiple of `frames`.
    """
    rows, channels, height, width = x.shape
    if frames < 1 or rows % frames:
        raise ValueError(f"{rows} frames are no whole number of clips of {frames}")
    if frames == 1:
        return x
    clips, kept, size = rows // frames, (frames + 1) // 2, channels * height * width
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    # Frames as rows, in whichever order their elements lie.
    rows_NTM = (x.permute(0, 2, 3, 1) if channels_last else x).reshape(clips, frames, size)
    even, odd = rows_NTM[:, ::2], rows_NTM[:, 1::2]
    pooled = _larger(even[:, : frames // 2], odd)
    if frames % 2:
        pooled = torch.cat((pooled, even[:, -1:]), 1)
    pooled = torch.cat((pooled[:, :1], _larger(odd[:, : kept - 1], pooled[:, 1:])), 1)
    if channels_last:
        return pooled.reshape(clips * kept, height, width, channels).permute(0, 3, 1, 2)
    return pooled.reshape(clips * kept, channels, height, width)


def _larger(earlier: Tensor, later: Tensor) -> Tensor:
    """Return the maximum, NaN if one is; of equal frames the gradient goes to the earlier one, as pooling has it."""
    if torch.is_grad_enabled() and (earlier.requires_grad or later.requires_grad):
        # The gradient of `maximum` is shared out evenly between equal values, which after a ReLU are many.
        return torch.where((later > earlier) | later.isnan(), later, earlier)
    return torch.maximum(earlier, later)
