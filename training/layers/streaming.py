"""Temporal operators of streams: they see no later frame, and what they need of earlier ones is handed on.

State goes in and comes out; modules keep none. A video may be cut into calls anywhere: the answers are those of one
call over the whole video, because the state holds what convolutions and means have seen of the frames before.

Frames are folded into the batch: images (B·T,C,H,W), in `torch.channels_last` memory, of B videos of T frames.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.layers.conv3d import by_video, pad_amounts, pad_for_conv
from training.layers.initial import variance_scaling_
from training.layers.same_conv import SameConv2d

State = dict[str, Tensor]
"""What a stream carries: name → tensor with the videos along the first axis. See `select`, `join`, `state_bytes`."""


class FrameConv(SameConv2d):
    """Convolution of frames, without bias, initialised as Keras' HeNormal."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups, bias=False)

    def reset_parameters(self) -> None:
        """Initialise the weight (called by the constructor)."""
        variance_scaling_(self.weight, 2.0)

    def forward(self, input: Tensor) -> Tensor:
        """(N,C,H,W) → (N,out_channels,⌈H/stride⌉,⌈W/stride⌉)."""
        if input.is_cuda and self.kernel_size == self.stride == (1, 1) and self.groups == 1:
            # A matrix product of what lies in memory as (N,H,W,C): cuDNN plans anew for every shape, which costs a
            # supernet, whose shapes differ each step, more than the arithmetic.
            return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1)).permute(0, 3, 1, 2)
        return super().forward(input)


class TemporalConv(nn.Module):
    """Depthwise convolution over time, k_t×1×1; weight (C,1,k_t).

    As a sum of shifted frames: no 3-D kernel takes part, the memory layout stays, and compilers fuse it with what
    surrounds it.
    """

    def __init__(self, channels: int, kernel: int, *, causal: bool) -> None:
        super().__init__()
        self.kernel, self.causal = kernel, causal
        self.weight = nn.Parameter(variance_scaling_(torch.empty(channels, 1, kernel), 2.0))

    def extra_repr(self) -> str:
        """Say what `repr` shows."""
        return f"{self.weight.shape[0]}, kernel={self.kernel}, causal={self.causal}"

    def forward(
        self, images: Tensor, batch: int, key: str, past: Mapping[str, Tensor] | None, present: State | None
    ) -> Tensor:
        """Convolve along the frames of each video.

        Args:
            images: (B·T,C,H,W).
            batch: B.
            key: name of the buffer (B,C,k_t-1,H,W) in the states.
            past: state before the first frame; None: zeros.
            present: receives the state after the last frame; None: not wanted.
        """
        frames_BTHWC = by_video(images.permute(0, 2, 3, 1), batch)
        count = frames_BTHWC.shape[1]
        before = self.kernel - 1 if self.causal else (self.kernel - 1) // 2
        kept = None
        if past is None:
            padded = F.pad(frames_BTHWC, (0, 0, 0, 0, 0, 0, before, self.kernel - 1 - before))
        else:
            kept = _carried(past, key, (batch, images.shape[1], self.kernel - 1, *images.shape[2:]))
            padded = torch.cat([kept.permute(0, 2, 3, 4, 1).to(frames_BTHWC.dtype), frames_BTHWC], dim=1)
        if present is not None:
            present[key] = _last(padded, 1, self.kernel - 1, kept).permute(0, 4, 1, 2, 3)
        if padded.is_meta:  # cost counters know convolutions, not sums of shifted frames
            return self.as_conv(padded)
        taps = self.weight[:, 0].to(padded.dtype).unbind(1)
        total = padded[:, :count] * taps[0]
        for shift, tap in enumerate(taps[1:], start=1):
            total = torch.addcmul(total, padded[:, shift : shift + count], tap)
        return total.flatten(0, 1).permute(0, 3, 1, 2)

    def as_conv(self, padded_BTHWC: Tensor) -> Tensor:
        """Return the same as one 3-D convolution of the padded frames, (B·T,C,H,W)."""
        weight = self.weight[..., None, None].to(padded_BTHWC.dtype)
        output = F.conv3d(padded_BTHWC.permute(0, 4, 1, 2, 3), weight, groups=len(weight))
        return output.transpose(1, 2).flatten(0, 1)


class DepthwiseConv3d(nn.Module):
    """Depthwise convolution k_t×k×k with TensorFlow's "same" padding in space; weight (C,1,k_t,k,k)."""

    def __init__(self, channels: int, kernel: tuple[int, int], stride: int, *, causal: bool) -> None:
        super().__init__()
        temporal, side = kernel
        self.kernel, self.stride, self.causal = kernel, stride, causal
        self.weight = nn.Parameter(variance_scaling_(torch.empty(channels, 1, temporal, side, side), 2.0))

    def extra_repr(self) -> str:
        """Say what `repr` shows."""
        temporal, side = self.kernel
        return f"{self.weight.shape[0]}, {temporal}x{side}x{side}, stride={self.stride}, causal={self.causal}"

    def forward(
        self, images: Tensor, batch: int, key: str, past: Mapping[str, Tensor] | None, present: State | None
    ) -> Tensor:
        """Convolve the videos; see `TemporalConv.forward`. The buffer has the size of the input."""
        video_BCTHW = by_video(images, batch).transpose(1, 2)
        temporal, side = self.kernel
        half = (temporal - 1) // 2
        amounts = [(0, 0) if self.causal else (half, half)]
        amounts += [pad_amounts(size, side, self.stride, "same") for size in images.shape[2:]]
        if self.causal:
            kept = None
            if past is None:
                video_BCTHW = F.pad(video_BCTHW, (0, 0, 0, 0, temporal - 1, 0))
            else:
                kept = _carried(past, key, (batch, images.shape[1], temporal - 1, *images.shape[2:]))
                video_BCTHW = torch.cat([kept.to(video_BCTHW.dtype), video_BCTHW], dim=2)
            if present is not None:
                present[key] = _last(video_BCTHW, 2, temporal - 1, kept)
        padded, padding = pad_for_conv(video_BCTHW, amounts)
        output = F.conv3d(padded, self.weight, None, (1, self.stride, self.stride), padding, groups=len(self.weight))
        return output.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _last(frames: Tensor, axis: int, count: int, like: Tensor | None) -> Tensor:
    """Return the last frames as memory of their own: a view would keep all frames alive. No gradient crosses it.

    A state keeps its dtype from call to call, whatever the layers compute in.
    """
    last = frames.detach().narrow(axis, frames.shape[axis] - count, count)
    return last.to(frames.dtype if like is None else like.dtype, copy=True)


def _carried(past: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in past:
        raise ValueError(f"the state has no {key}: it is of another net")
    if past[key].shape != shape:
        raise ValueError(
            f"the state's {key} has the shape {tuple(past[key].shape)}, this input needs {shape}: it is of another "
            f"net, input size or batch"
        )
    return past[key]


def running_mean(
    mean_BTC: Tensor, count_B: Tensor, key: str, past: Mapping[str, Tensor] | None, present: State | None
) -> Tensor:
    """Return the mean over all frames so far, for each frame: (B,T,C), at least float32.

    The state is the sum (B,C), or, for the mean over a window of the last W frames, these frames' means (B,W-1,C).

    Args:
        mean_BTC: spatial means of the frames.
        count_B: frames before the first, int64.
        key: name of the state.
        past: state before the first frame; None: a new video.
        present: receives the state after the last frame.
    """
    mean = mean_BTC.to(torch.promote_types(mean_BTC.dtype, torch.float32))
    seen_BT = count_B[:, None] + torch.arange(1, mean.shape[1] + 1, device=mean.device)
    carried = None
    if past is not None:
        kept_frames = past[key].shape[1:-1] if key in past else ()  # W-1 where there is a window
        carried = _carried(past, key, (mean.shape[0], *kept_frames, mean.shape[2]))
    old = None if carried is None else carried.to(mean.dtype)
    if old is not None and old.dim() == 3:
        window = old.shape[1] + 1
        whole = torch.cat([old, mean], dim=1)
        if present is not None:
            present[key] = _last(whole, 1, window - 1, carried)
        sums = F.pad(whole.cumsum(1), (0, 0, 1, 0))
        return (sums[:, window:] - sums[:, :-window]) / seen_BT.clamp_max(window)[..., None]
    sums = mean.cumsum(1) if old is None else old[:, None] + mean.cumsum(1)
    if present is not None:
        present[key] = sums[:, -1].detach().to(sums.dtype if carried is None else carried.dtype, copy=True)
    return sums / seen_BT[..., None]


def positional_encoding(time_BT: Tensor, channels: int) -> Tensor:
    """Return the encoding (B,T,channels) of frame numbers: sines of even places, then cosines of odd ones (MoViNet).

    In float64: a camera's frame number outgrows what float32 can turn into an angle.
    """
    place = torch.arange(channels, device=time_BT.device)
    rate = torch.pow(10000.0, -(2 * (place // 2)).double() / channels)
    angle = time_BT.double()[..., None] * rate
    return torch.cat([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1)


# --- states of several streams ----------------------------------------------------------------------


def select(state: Mapping[str, Tensor], videos: Tensor) -> State:
    """Return the states of some videos, in the given order: streams that stay, or leave."""
    return {name: tensor.index_select(0, videos.to(tensor.device)) for name, tensor in state.items()}


def join(*states: Mapping[str, Tensor]) -> State:
    """Put the states of several batches into one.

    Raises:
        ValueError: states of different nets, input sizes or windows.
    """
    names = list(states[0])
    for state in states[1:]:
        if list(state) != names:
            raise ValueError(f"states of different nets: {sorted(set(names) ^ set(state))[:5]} are not in all of them")
        for name in names:
            if state[name].shape[1:] != states[0][name].shape[1:]:
                shapes = tuple(states[0][name].shape[1:]), tuple(state[name].shape[1:])
                raise ValueError(
                    f"states of different inputs or windows: {name} has shapes {shapes[0]} and {shapes[1]}"
                )
    return {name: torch.cat([state[name] for state in states]) for name in names}


def detached(state: Mapping[str, Tensor]) -> State:
    """Return the state without its history of computation."""
    return {name: tensor.detach() for name, tensor in state.items()}


def state_bytes(state: Mapping[str, Tensor]) -> int:
    """Return the memory of a state, bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
