"""Kernels for videos from kernels for images (Carreira & Zisserman 2017, "Quo Vadis, Action Recognition?")."""

from torch import Tensor


def inflate_2d(weight: Tensor, frames: int) -> Tensor:
    """Repeat an image kernel along time and divide by the number of repetitions.

    On a video whose frames are all the same, the result gives what the kernel gives on one of them, wherever the
    convolution sees no padding in time.

    Args:
        weight: (out,in,k_h,k_w).
        frames: size of the new kernel along time.

    Returns:
        (out,in,frames,k_h,k_w), with memory of its own.

    Raises:
        ValueError: not a kernel of a 2-D convolution, or `frames` below 1.
    """
    if weight.dim() != 4:
        raise ValueError(f"only kernels (out,in,k_h,k_w) can be inflated, got the shape {tuple(weight.shape)}")
    if frames < 1:
        raise ValueError(f"a kernel needs at least 1 frame, got {frames}")
    return weight.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames
