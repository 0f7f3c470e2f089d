"""TSN (Wang et al. 2016, arXiv 1608.00859; 2018, 1705.02953) and TSM (Lin et al. 2019, 1811.08383).

An image network looks at each of T segments; a consensus of the segments' logits is the answer. TSM is the same net
with channels of the residual branches shifted between neighbouring segments.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from training.backbones.frame_nets import build_frame_net, run_block
from training.backbones.segment_weights import LAYOUTS, cross_modality
from training.backbones.video_input import check_minimum, clip_size
from training.layers.temporal_pool import pool_frames
from training.layers.temporal_shift import shift_step, temporal_shift

__all__ = [
    "FLOW_RATES",
    "LAYOUTS",
    "TSN_RATES",
    "TSN_UNDECAYED",
    "Consensus",
    "ConsensusKind",
    "SegmentNet",
    "State",
    "cross_modality",
    "partial_norms",
    "rgb_differences",
    "tsn_groups",
]

ConsensusKind = Literal["avg", "max", "topk", "weighted"]

State = dict[str, Tensor]
"""Of a stream: name of a shifted block → its share of the frame before, (B,C/shift_div,H,W)."""

DROPOUT: dict[bool, float] = {False: 0.8, True: 0.5}
"""Shifted? → rate before `fc` with which the paper's RGB nets are trained on Kinetics."""


class Consensus(nn.Module):
    """Logits of a video from those of its segments, before the softmax.

    `avg`: their mean. `max`: each class's largest. `topk`: the mean of each class's `top_k` largest. `weighted`: their
    sum with one learned weight per segment, at first the mean.

    Raises:
        ValueError: unknown kind, `top_k` below 1, or `weighted` without a number of segments.
    """

    def __init__(self, kind: ConsensusKind = "avg", *, segments: int | None = None, top_k: int = 3) -> None:
        super().__init__()
        if kind not in ("avg", "max", "topk", "weighted"):
            raise ValueError(f"consensus must be avg, max, topk or weighted, got {kind!r}")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.kind, self.segments, self.top_k = kind, segments, top_k
        self.weight: nn.Parameter | None = None
        if kind == "weighted":
            if segments is None or segments < 1:
                raise ValueError(f"a weighted consensus needs the number of segments, got {segments}")
            self.weight = nn.Parameter(torch.full((segments,), 1 / segments))

    def check(self, segments: int) -> None:
        """Refuse a number of segments that the consensus cannot take.

        Raises:
            ValueError: `topk` with fewer than `top_k`, `weighted` with another number than its weights have.
        """
        if self.kind == "topk" and segments < self.top_k:
            raise ValueError(f"a consensus of the {self.top_k} largest needs as many segments, got {segments}")
        if self.kind == "weighted" and segments != self.segments:
            raise ValueError(f"the consensus has weights for {self.segments} segments, got {segments}")

    def forward(self, logits_BTK: Tensor) -> Tensor:
        """(B,T,K) → (B,K)."""
        if self.kind == "max":
            return logits_BTK.amax(1)
        if self.kind == "topk":
            return logits_BTK.topk(self.top_k, dim=1).values.mean(1)
        if self.weight is not None:
            return (logits_BTK * self.weight[:, None]).sum(1)
        return logits_BTK.mean(1)


class SegmentNet(nn.Module):
    """TSN, and with `shift` TSM.

    A segment is one place of T: an RGB frame (3 channels), 5 differences of RGB frames (15, see `rgb_differences`) or 5
    pairs of flow maps (10). Convolutions start from the normal distribution of He et al. (fan-out), `fc` from one of
    deviation 0.001 with bias 0, as in both papers' code.

    Args:
        backbone: one of `FRAME_NETS`.
        num_classes: classes of the head `fc`.
        dropout: rate before `fc`; None: the papers' for RGB, 0.8 for TSN and 0.5 for TSM.
        width: multiplier of all channel counts of the backbone.
        in_channels: channels of a segment.
        consensus: see `Consensus`; that of the papers' results is `avg`.
        segments: T, where the consensus is `weighted`.
        top_k: of the consensus `topk`.
        shift: shift channels in the residual branches (placement `residual`); None: no.
        shift_div: one of so many channels moves back in time, another forward.
        causal: only the forward shift, as the online variant needs, see `step`.
        temporal_pool: halve the frames (⌈T/2⌉) after `layer1`, by maxima of three; ResNets only.

    Raises:
        ValueError: unknown backbone or consensus, `causal` without `shift`, `causal` with `temporal_pool`, or a
            `temporal_pool` that the backbone does not have.
    """

    heads: ClassVar[tuple[str, ...]] = ("fc.*", "consensus.*")

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        num_classes: int = 400,
        dropout: float | None = None,
        width: float = 1.0,
        in_channels: int = 3,
        consensus: ConsensusKind = "avg",
        segments: int | None = None,
        top_k: int = 3,
        shift: bool | None = None,
        shift_div: int = 8,
        causal: bool = False,
        temporal_pool: bool = False,
    ) -> None:
        super().__init__()
        if causal and (not shift or temporal_pool):
            raise ValueError("causal is a kind of shift, and has no temporal pool: a pool sees later frames")
        self.in_channels, self.shift_div = in_channels, shift_div
        self.causal, self.temporal_pool = causal, temporal_pool
        self.backbone = build_frame_net(backbone, width=width, in_channels=in_channels)
        if temporal_pool and self.backbone.pool_before is None:
            raise ValueError(f"{backbone} has no variant with a temporal pool")
        self.shifted: frozenset[str] = frozenset(self.backbone.shift_places() if shift else ())
        """Names of the blocks whose branch reads a shifted input."""
        self.dropout = nn.Dropout(DROPOUT[bool(shift)] if dropout is None else dropout)
        self.fc = nn.Linear(self.backbone.out_channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)
        self.consensus = Consensus(consensus, segments=None if segments is None else self._left(segments), top_k=top_k)

    def _left(self, frames: int) -> int:
        return (frames + 1) // 2 if self.temporal_pool else frames

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Return the modules from the input to the classifier, which together hold every parameter once."""
        names = [*(f"backbone.{name}" for name in self.backbone.part_names()), "fc"]
        if self.consensus.weight is not None:
            names.append("consensus")
        return [(name, self.get_submodule(name)) for name in names]

    def check_input(self, frames: int, height: int, width: int) -> None:
        """Refuse clips that the net cannot take.

        Raises:
            ValueError: no frame, sides below 16 pixels, or a number of frames that does not fit the consensus.
        """
        check_minimum("a segment network", (frames, height, width), (1, 16, 16))
        self.consensus.check(self._left(frames))

    # --- clips --------------------------------------------------------------------------------------

    def _logits(self, images: Tensor, frames: int, shift: Callable[[str, Tensor, int], Tensor]) -> tuple[Tensor, int]:
        """Return logits (B·frames left,K) of images (B·T,C,H,W), and how many frames are left.

        `shift` gets a block's name, its input and the frames of it, and returns what the branch reads.
        """
        x = self.backbone.stem(images)
        for name, block in self.backbone.blocks():
            if self.temporal_pool and name == self.backbone.pool_before:
                x, frames = pool_frames(x, frames), self._left(frames)
            x = run_block(block, x, shift(name, x, frames)) if name in self.shifted else block(x)
        return cast(Tensor, self.fc(self.dropout(x.mean(dim=(2, 3))))), frames

    def segment_logits(self, video_BCTHW: Tensor) -> Tensor:
        """(B,C,T,H,W) → logits of each segment (B,T,num_classes); (B,⌈T/2⌉,num_classes) with `temporal_pool`.

        Raises:
            ValueError: see `check_input`.
        """
        size = clip_size(video_BCTHW, self.in_channels)
        self.check_input(*size)

        def shift(name: str, x: Tensor, frames: int) -> Tensor:
            return temporal_shift(x, frames, self.shift_div, causal=self.causal)

        logits, frames = self._logits(video_BCTHW.transpose(1, 2).flatten(0, 1), size[0], shift)
        return logits.reshape(-1, frames, logits.shape[1])

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """(B,C,T,H,W) → logits (B,num_classes)."""
        return cast(Tensor, self.consensus(self.segment_logits(video_BCTHW)))

    # --- streams ------------------------------------------------------------------------------------

    def step(self, frame_BCHW: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, State]:
        """Answer one frame of a stream: the row of `segment_logits` that it has in the whole clip.

        Args:
            frame_BCHW: the frame.
            state: after the frame before; None: the first frame.

        Returns:
            Logits (B,num_classes), and the state after the frame.

        Raises:
            ValueError: the net shifts in both directions or not at all, or the state is of another net or size.
        """
        if not self.causal:
            raise ValueError("a stream of single frames needs a net with shift=True and causal=True")
        if state is not None and set(state) != self.shifted:
            raise ValueError(f"the state is of another net: {sorted(set(state) ^ self.shifted)[:5]} not in both")
        after: State = {}

        def shift(name: str, x: Tensor, frames: int) -> Tensor:
            branch, after[name] = shift_step(x, None if state is None else state[name], self.shift_div)
            return branch

        return self._logits(frame_BCHW, 1, shift)[0], after


def rgb_differences(video_BCTHW: Tensor, length: int = 5) -> Tensor:
    """Turn runs of neighbouring frames into segments of differences, TSN's modality RGBDiff.

    Args:
        video_BCTHW: (B,C,T·(length+1),H,W), the length+1 frames of a segment one after another.
        length: differences per segment.

    Returns:
        (B,C·length,T,H,W): per segment the later frame minus the earlier one, first differences first.

    Raises:
        ValueError: the frames are no whole number of segments.
    """
    batch, channels, frames, height, width = video_BCTHW.shape
    if frames % (length + 1):
        raise ValueError(f"{frames} frames are no whole number of segments of {length + 1}")
    runs = video_BCTHW.reshape(batch, channels, -1, length + 1, height, width)
    return (runs[:, :, :, 1:] - runs[:, :, :, :-1]).permute(0, 3, 1, 2, 4, 5).flatten(1, 2)


# --- training -----------------------------------------------------------------------------------

TSN_RATES: dict[str, float] = {
    "first_conv_weight": 1.0,
    "first_conv_bias": 2.0,
    "normal_weight": 1.0,
    "normal_bias": 2.0,
    "norm": 1.0,
}
"""Group of `tsn_groups` → multiplier of the learning rate."""

FLOW_RATES: dict[str, float] = {**TSN_RATES, "first_conv_weight": 5.0, "first_conv_bias": 10.0}
"""The same for nets on flow: their first convolution is far from where it started."""

TSN_UNDECAYED: tuple[str, ...] = ("first_conv_bias", "normal_bias", "norm")
"""Groups without weight decay."""


def tsn_groups(net: SegmentNet) -> dict[str, list[nn.Parameter]]:
    """Sort the parameters that are trained into TSN's groups, each into exactly one; empty groups are left out.

    Raises:
        ValueError: a parameter of a kind of module that has no group.
    """
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in TSN_RATES}
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kind = "first_conv" if module is net.backbone.first_conv else "normal"
            names = {"weight": f"{kind}_weight", "bias": f"{kind}_bias"}
        elif isinstance(module, nn.BatchNorm2d):
            names = {"weight": "norm", "bias": "norm"}
        else:
            names = {"weight": "normal_weight"} if isinstance(module, Consensus) else {}
        for name, parameter in module.named_parameters(recurse=False):
            if name not in names:
                raise ValueError(f"TSN has no parameter group for {path}.{name}")
            if parameter.requires_grad:
                groups[names[name]].append(parameter)
    return {name: parameters for name, parameters in groups.items() if parameters}


def partial_norms(net: SegmentNet) -> list[nn.BatchNorm2d]:
    """Return the batch norms that TSN freezes ("partial BN"): all but the first.

    Their scale and shift need no gradient, and after each `net.train()` they go back into eval mode.
    """
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)][1:]
