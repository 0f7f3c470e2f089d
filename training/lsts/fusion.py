"""What the operator is used for: descriptors, alignment, and the weights of the sum with a frame's own features.

Suffixes: N frames, M memories (key frames), C channels, E of descriptors, K locations, H, W cells, L cells of a laid
out memory.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from training.lsts.config import AlignmentConfig
from training.lsts.offsets import Offsets
from training.lsts.sampling import Canvas, at_least_fp32, gather_bilinear, lay_out_memory, sample_factorised

Layers = Literal["code", "paper"]

STD = 0.01
"""Standard deviation of new convolutions' weights; their biases are zero."""

TEMPERATURE = 10.0
"""Factor of cosines before training."""


def new_conv(in_channels: int, out_channels: int, kernel: Literal[1, 3], *, dilation: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the map's size, with bias, initialised as all new ones are (§7)."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    nn.init.normal_(conv.weight, std=STD)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def share_channels(channels: int, part: int) -> int:
    """Return a fraction of a number of channels, at least 1: 1024 / 4 is 256."""
    return max(channels // part, 1)


class Low2High(nn.Sequential):
    """Low-level features to what stands for high-level ones on other than key frames (§5).

    Args:
        low_channels: of the input.
        channels: of the result.
        layers: `code`: 1×1, 3×3, 3×3 of a quarter, a quarter and all channels; `paper`: 3×3 each, of a quarter, a half
            and all channels.
    """

    def __init__(self, low_channels: int, channels: int, layers: Layers) -> None:
        first = share_channels(channels, 4)
        second, kernel = (first, 1) if layers == "code" else (share_channels(channels, 2), 3)
        super().__init__(
            new_conv(low_channels, first, 1 if kernel == 1 else 3),
            nn.ReLU(inplace=True),
            new_conv(first, second, 3),
            nn.ReLU(inplace=True),
            new_conv(second, channels, 3),
        )


class QualityNet(nn.Module):
    """One logit per cell, of how much a map should count (§4). No activations in between.

    Args:
        channels: of the maps.
        layers: `code`: 1×1, 3×3, 3×3; `paper`: 3×3, 1×1, 1×1; of a quarter, a 64th and one channel.
    """

    def __init__(self, channels: int, layers: Layers) -> None:
        super().__init__()
        widths = (share_channels(channels, 4), share_channels(channels, 64), 1)
        kernels: tuple[Literal[1, 3], ...] = (1, 3, 3) if layers == "code" else (3, 1, 1)
        self.conv1 = new_conv(channels, widths[0], kernels[0])
        self.conv2 = new_conv(widths[0], widths[1], kernels[1])
        self.conv3 = new_conv(widths[1], widths[2], kernels[2])

    def rest(self, first_NCHW: Tensor) -> Tensor:
        """Return logits (N,1,H,W) from the first layer's result."""
        logits: Tensor = self.conv3(self.conv2(first_NCHW))
        return logits

    @override
    def forward(self, map_NCHW: Tensor) -> Tensor:
        """(N,C,H,W) → logits (N,1,H,W)."""
        return self.rest(self.conv1(map_NCHW))


def warp(memory_MCHW: Tensor, displacement_N2HW: Tensor) -> Tensor:
    """Return A(p) = R(p + u(p)): bilinear, zero outside. An oracle where the true displacements are known.

    Args:
        memory_MCHW: R; M is 1 or N.
        displacement_N2HW: u, x and y in cells: where in the memory the content of each cell is.
    """
    height, width = displacement_N2HW.shape[2:]
    device, dtype = displacement_N2HW.device, displacement_N2HW.dtype
    x = displacement_N2HW[:, 0] + torch.arange(width, device=device, dtype=dtype)
    y = displacement_N2HW[:, 1] + torch.arange(height, device=device, dtype=dtype)[:, None]
    return gather_bilinear(memory_MCHW, x, y).to(memory_MCHW.dtype)


def identity_where(flag_N: Tensor, kept_NCHW: Tensor, computed_NCHW: Tensor) -> Tensor:
    """Return `kept` bit for bit in the rows whose flag is set: where both frames of a pair are the same one (§7)."""
    return torch.where(flag_N[:, None, None, None], kept_NCHW, computed_NCHW)


class AlignedKey(NamedTuple):
    """What the alignment needs of M memories, computed once for all frames that are aligned with them."""

    memory_MCHW: Tensor
    """R."""
    sampled: tuple[Tensor, Tensor, Canvas] | None
    """Laid out: R, and with it the first layer of its quality without bias, (M,L,C'), and f(R) (M,L,E), fp32 at least;
    None where nothing is sampled."""

    def rows(self, row_N: Tensor) -> "AlignedKey":
        """Return one memory per frame (int64 row numbers)."""
        memory = self.memory_MCHW.index_select(0, row_N)
        if self.sampled is None:
            return AlignedKey(memory, None)
        values, descriptors, canvas = self.sampled
        return AlignedKey(memory, (values.index_select(0, row_N), descriptors.index_select(0, row_N), canvas))


class AlignmentAux(NamedTuple):
    """How a result came about."""

    own_N1HW: Tensor
    """Weight of the frame's own features, fp32; the aligned memory has the rest."""
    share_NKHW: Tensor | None
    """S, where it was asked for."""


class Alignment(nn.Module):
    """One use of the operator, with the weights of the sum (§3, §4): SRFU and DFA are one each.

    Args:
        config: of the operator and the fusion.
        channels: C of memories and frames.
        offsets: shared by all uses, and owned by none: it is no part of this module's state. None: nothing is sampled,
            frames come with their displacements.
    """

    def __init__(self, config: AlignmentConfig, channels: int, offsets: Offsets | None) -> None:
        super().__init__()
        self.config = config
        self.quality = QualityNet(channels, config.quality)
        self.embed_memory: nn.Conv2d | None = None
        self.embed_query: nn.Conv2d | None = None
        self.temperature: nn.Parameter | None = None
        if offsets is not None:
            self.embed_memory = new_conv(channels, config.embed_channels, 1)
            self.embed_query = new_conv(channels, config.embed_channels, 1)
            if config.similarity == "cosine":
                self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        # In a tuple it is not registered.
        self._offsets = (offsets,)

    @property
    def offsets(self) -> Offsets | None:
        """The table of displacements."""
        return self._offsets[0]

    @property
    def commutes(self) -> bool:
        """Whether the first layer of an aligned map's quality can be had from the memory's (§15.5).

        Alignment is linear and the same for every channel, so a 1×1 convolution may come before it; one of 3×3 may not.
        """
        return self.config.quality == "code"

    def key(self, memory_MCHW: Tensor) -> AlignedKey:
        """Compute what all frames share that are aligned with these memories."""
        if self.offsets is None:
            return AlignedKey(memory_MCHW, None)
        assert self.embed_memory is not None
        if not torch.compiler.is_compiling():
            self.offsets.refresh()
        canvas = Canvas.of(memory_MCHW, self.offsets.window)
        if self.commutes:
            quality, descriptors = _together(memory_MCHW, (self.quality.conv1, False), (self.embed_memory, True))
            # Under autocast the memory is mixed in the precision that convolutions have.
            values = torch.cat([memory_MCHW.to(quality.dtype), quality], dim=1)
        else:
            descriptors = self.embed_memory(memory_MCHW)
            values = memory_MCHW.to(descriptors.dtype)
        descriptors = descriptors.to(at_least_fp32(descriptors.dtype))
        if self.config.similarity == "cosine":
            descriptors = F.normalize(descriptors, dim=1)
        return AlignedKey(memory_MCHW, (lay_out_memory(values, canvas), lay_out_memory(descriptors, canvas), canvas))

    def forward(
        self,
        key: AlignedKey,
        query_NCHW: Tensor,
        rows_N: Tensor | None = None,
        *,
        displacement_N2HW: Tensor | None = None,
        shares: bool = False,
    ) -> tuple[Tensor, AlignmentAux]:
        """Fuse frames with their aligned memories.

        Args:
            key: of `key`.
            query_NCHW: the frames' own features.
            rows_N: int64, which memory belongs to each frame; None: N is a multiple of M, and the first N / M frames
                belong to the first memory, and so on.
            displacement_N2HW: true displacements, see `warp`, to be used in the place of the sampling.
            shares: whether to return S.

        Returns:
            T (N,C,H,W) of the query's type, and how it came about.

        Raises:
            ValueError: numbers of frames and memories that do not go together, maps of another size, or neither offsets
                nor displacements.
        """
        if rows_N is not None:
            key = key.rows(rows_N)
        frames, memories = len(query_NCHW), len(key.memory_MCHW)
        if frames % memories:
            raise ValueError(f"{frames} frames cannot share {memories} memories evenly; say which by rows")
        if query_NCHW.shape[1:] != key.memory_MCHW.shape[1:]:
            raise ValueError(
                f"frames of {tuple(query_NCHW.shape[1:])} channels and cells cannot be aligned with memories of "
                f"{tuple(key.memory_MCHW.shape[1:])}"
            )
        share: Tensor | None = None
        if displacement_N2HW is not None:
            memory = key.memory_MCHW.repeat_interleave(frames // memories, dim=0)
            aligned = warp(memory, displacement_N2HW).to(query_NCHW.dtype)
            own, other = self.quality(query_NCHW), self.quality(aligned)
        elif key.sampled is None:
            raise ValueError("an alignment without offsets needs the displacements of each frame")
        elif self.commutes:
            assert self.embed_query is not None
            first, embedded = _together(query_NCHW, (self.quality.conv1, True), (self.embed_query, True))
            mixed, share = self._sample(key.sampled, embedded, shares)
            channels = query_NCHW.shape[1]
            aligned, other = mixed.split([channels, mixed.shape[1] - channels], dim=1)
            assert self.quality.conv1.bias is not None
            other = other + self.quality.conv1.bias.to(other.dtype)[:, None, None]
            own, other = self.quality.rest(torch.cat([first, other.to(first.dtype)])).chunk(2)
        else:
            assert self.embed_query is not None
            aligned, share = self._sample(key.sampled, self.embed_query(query_NCHW), shares)
            own, other = self.quality(query_NCHW), self.quality(aligned.to(query_NCHW.dtype))
        # A softmax over two logits. The sum is one step from one map to the other: equal maps give just that map.
        weight = (own - other).to(at_least_fp32(own.dtype)).sigmoid()
        fused = torch.lerp(aligned.to(query_NCHW.dtype), query_NCHW, weight.to(query_NCHW.dtype))
        return fused, AlignmentAux(weight, share)

    def _sample(
        self, sampled: tuple[Tensor, Tensor, Canvas], embedded_NEHW: Tensor, shares: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the aligned values and S; the frames' descriptors are scaled here."""
        assert self.offsets is not None
        values, descriptors, canvas = sampled
        embedded_NEHW = embedded_NEHW.to(at_least_fp32(embedded_NEHW.dtype))
        if self.config.similarity == "scaled":
            embedded_NEHW = embedded_NEHW / math.sqrt(embedded_NEHW.shape[1])
        elif self.config.similarity == "cosine":
            assert self.temperature is not None
            embedded_NEHW = F.normalize(embedded_NEHW, dim=1) * self.temperature
        return sample_factorised(
            values, descriptors, embedded_NEHW, self.offsets(), canvas, border=self.config.border, shares=shares
        )


def _together(map_NCHW: Tensor, *layers: tuple[nn.Conv2d, bool]) -> tuple[Tensor, ...]:
    """Apply 1×1 convolutions to the same map as one; of each: whether with its bias."""
    weights = torch.cat([conv.weight for conv, _ in layers])
    biases = []
    for conv, with_bias in layers:
        assert conv.bias is not None
        biases.append(conv.bias if with_bias else torch.zeros_like(conv.bias))
    return F.conv2d(map_NCHW, weights, torch.cat(biases)).split([conv.out_channels for conv, _ in layers], dim=1)
