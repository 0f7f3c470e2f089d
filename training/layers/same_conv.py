"""2-D convolution with TensorFlow's "same" padding."""

import torch.nn.functional as F
from torch import Tensor, nn

from training.layers.conv3d import pad_amounts, pad_for_conv


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: the odd pixel of padding goes to the bottom and right.

    Differs from symmetric padding only where the stride is above 1: on an even input a 3×3 kernel with
    stride 2 is centred on odd pixels instead of even ones, so weights trained one way do not fit the other.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N,C,H,W) → (N,out_channels,⌈H/stride⌉,⌈W/stride⌉)."""
        amounts = [
            pad_amounts(size, kernel, stride, "same")
            for size, kernel, stride in zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
        ]
        padded, padding = pad_for_conv(input, amounts)
        return F.conv2d(padded, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
