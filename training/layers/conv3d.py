"""3-D convolution and max-pooling over videos, computed as 2-D ones over frames where that is the same.

With "same" padding shapes and values are TensorFlow's, with "symmetric" padding PyTorch's: they differ where the stride
is above 1 and the padding odd, where TensorFlow puts the odd place last.

Folded: a video of layout (B,T,H,W,C) in memory (`torch.channels_last_3d`) is, without a copy, a batch of B·T images of
layout `torch.channels_last`, and a kernel of one frame is a 2-D convolution of these. All forms keep that layout, so
none of the operators between them has to change it. Parameters are the same, with the same shapes, folded or not.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.layers.initial import variance_scaling_

Padding = Literal["same", "symmetric"]
Triple = tuple[int, int, int]


def pad_amounts(size: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Return the places added before and after an axis of `size` places."""
    if padding == "symmetric":
        return kernel // 2, kernel // 2
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def fold_frames(x_BCTHW: Tensor) -> Tensor:
    """Return a video's frames as images (B·T,C,H,W) in `channels_last` memory; a view if that is its memory already."""
    video = x_BCTHW.contiguous(memory_format=torch.channels_last_3d)
    # For a single channel or pixel, several layouts are the same memory, and the strides may be another's.
    return video.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def unfold_frames(images_NCHW: Tensor, batch: int, frames: int) -> Tensor:
    """Undo `fold_frames`; always a view."""
    return images_NCHW.view(batch, frames, *images_NCHW.shape[1:]).transpose(1, 2)


def by_video(frames: Tensor, batch: int) -> Tensor:
    """(B·T,…) → (B,T,…), a view."""
    return frames.view(batch, -1, *frames.shape[1:])


def pad_for_conv(x: Tensor, amounts: Sequence[tuple[int, int]]) -> tuple[Tensor, list[int]]:
    """Return x, padded with 0 if the convolution cannot do it, and what the convolution is to add on both sides."""
    if all(before == after for before, after in amounts):
        return x, [before for before, _ in amounts]
    flat = [amount for pair in reversed(amounts) for amount in pair]  # F.pad starts with the last axis.
    return F.pad(x, flat), [0] * len(amounts)


class FoldedConv3d(nn.Conv3d):
    """Convolution without bias; weight (out,in,k_t,k_h,k_w), initialised by `variance_scaling_`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: (T,H,W), odd.
        stride: (T,H,W).
        padding: kind of padding.
        folded: whether to compute in channels-last memory and in the form that is fast there; False: as a 3-D
            convolution of whatever layout the input has.

    Raises:
        ValueError: an even kernel size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stride: Triple = (1, 1, 1),
        *,
        padding: Padding = "same",
        folded: bool = True,
    ) -> None:
        if any(size % 2 == 0 for size in kernel_size):
            raise ValueError(f"kernel sizes must be odd, got {kernel_size}")
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)
        self.padding_kind: Padding = padding
        self.folded = folded

    def reset_parameters(self) -> None:
        """Initialise the weight (called by the constructor)."""
        variance_scaling_(self.weight)

    def extra_repr(self) -> str:
        """Say what `repr` shows."""
        shape = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{shape}, padding_kind={self.padding_kind}, folded={self.folded}"

    def forward(self, input: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,out_channels,⌈T/stride⌉,⌈H/stride⌉,⌈W/stride⌉)."""
        if not self.folded:
            return self._direct(input)
        if self.kernel_size[0] == 1:
            return self._per_frame(input)
        if input.is_cuda:
            if self.in_channels * self.kernel_size[0] <= 32:
                return self._windows(input)
        elif self.stride[0] == 1 and self.out_channels <= self.in_channels:
            return self._shifted_sum(input)
        output = self._direct(input.contiguous(memory_format=torch.channels_last_3d))
        # Without oneDNN the CPU's 3-D convolution gives another layout back.
        return output.contiguous(memory_format=torch.channels_last_3d)

    def _amounts(self, x_BCTHW: Tensor) -> list[tuple[int, int]]:
        sizes = zip(x_BCTHW.shape[2:], self.kernel_size, self.stride, strict=True)
        return [pad_amounts(size, kernel, stride, self.padding_kind) for size, kernel, stride in sizes]

    def _direct(self, x_BCTHW: Tensor) -> Tensor:
        padded, padding = pad_for_conv(x_BCTHW, self._amounts(x_BCTHW))
        return F.conv3d(padded, self.weight, None, self.stride, padding)

    def _images(self, images_NCHW: Tensor, weight: Tensor, amounts: Sequence[tuple[int, int]]) -> Tensor:
        padded, padding = pad_for_conv(images_NCHW, amounts)
        return F.conv2d(padded, weight, None, self.stride[1:], padding)

    def _per_frame(self, x_BCTHW: Tensor) -> Tensor:
        """Kernels of one frame: a 2-D convolution of the frames."""
        amounts = self._amounts(x_BCTHW)
        frames = x_BCTHW if self.stride[0] == 1 else x_BCTHW[:, :, :: self.stride[0]]
        images = self._images(fold_frames(frames), self.weight.squeeze(2), amounts[1:])
        return unfold_frames(images, frames.shape[0], frames.shape[2])

    def _windows(self, x_BCTHW: Tensor) -> Tensor:
        """Few input channels, where cuDNN's 3-D kernels are slow: frames under the kernel as an image's channels."""
        amounts = self._amounts(x_BCTHW)
        padded = F.pad(x_BCTHW, (0, 0, 0, 0, *amounts[0])) if any(amounts[0]) else x_BCTHW
        windows = padded.unfold(2, self.kernel_size[0], self.stride[0])
        batch, frames = windows.shape[0], windows.shape[2]
        # One copy, from any layout to (N,H,W,C·k_t) in memory.
        images = windows.permute(0, 2, 3, 4, 1, 5).flatten(4).flatten(0, 1).permute(0, 3, 1, 2)
        return unfold_frames(self._images(images, self.weight.flatten(1, 2), amounts[1:]), batch, frames)

    def _shifted_sum(self, x_BCTHW: Tensor) -> Tensor:
        """No temporal stride, fewer output channels: products with each tap at once, then their sum shifted in time.

        Reads the large input once. On CPU the 3-D kernels for channels-last memory take twice as long.
        """
        amounts = self._amounts(x_BCTHW)
        batch, frames, taps = x_BCTHW.shape[0], x_BCTHW.shape[2], self.kernel_size[0]
        weight = self.weight.permute(2, 0, 1, 3, 4).flatten(0, 1)
        products = self._images(fold_frames(x_BCTHW), weight, amounts[1:])
        # In memory the products lie as (B,T,H,W,taps·out); `unbind` is undone by one `stack` in the backward pass.
        products = products.permute(0, 2, 3, 1)
        products = products.view(batch, frames, *products.shape[1:3], taps, self.out_channels)
        total: Tensor | None = None
        for tap, product in enumerate(products.unbind(-2)):
            shift = amounts[0][0] - tap  # Frame t of the output takes this tap from frame t - shift.
            if abs(shift) >= frames:
                continue
            shifted = product if shift == 0 else F.pad(product, (0, 0, 0, 0, 0, 0, shift, -shift))
            total = shifted if total is None else total + shifted
        assert total is not None  # the middle tap is always there
        return total.permute(0, 4, 1, 2, 3)


class FoldedMaxPool3d(nn.Module):
    """Max-pooling; places beyond the edge count as −∞.

    Args:
        kernel_size: (T,H,W), odd.
        stride: (T,H,W).
        padding: kind of padding.
        folded: pool the frames as images where the window is one frame long.
    """

    def __init__(self, kernel_size: Triple, stride: Triple, *, padding: Padding = "same", folded: bool = True) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.padding_kind, self.folded = padding, folded

    def extra_repr(self) -> str:
        """Say what `repr` shows."""
        kind, folded = self.padding_kind, self.folded
        return f"{self.kernel_size}, stride={self.stride}, padding_kind={kind}, folded={folded}"

    def forward(self, input: Tensor) -> Tensor:
        """(B,C,T,H,W) → (B,C,⌈T/stride⌉,⌈H/stride⌉,⌈W/stride⌉)."""
        # One more place after than before is what `ceil_mode` adds at the end of an axis, without a copy.
        before = [
            pad_amounts(size, kernel, stride, self.padding_kind)[0]
            for size, kernel, stride in zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
        ]
        ceil_mode = self.padding_kind == "same"
        if self.folded and self.kernel_size[0] == self.stride[0] == 1:
            images = F.max_pool2d(
                fold_frames(input), self.kernel_size[1:], self.stride[1:], before[1:], ceil_mode=ceil_mode
            )
            return unfold_frames(images, input.shape[0], input.shape[2])
        if self.folded:
            input = input.contiguous(memory_format=torch.channels_last_3d)
        return F.max_pool3d(input, self.kernel_size, self.stride, before, ceil_mode=ceil_mode)
