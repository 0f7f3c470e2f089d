"""MoViNet (Kondratyuk et al. 2021, arXiv 2103.11511): searched mobile video networks, base and stream.

The architecture is a `MoViNetLayout`, what is made of it a `Variant`. A stream's state is an argument and a result:

    state = net.initial_state(batch=1, size=(172, 172))
    for clip in clips:                      # any number of frames each
        logits, state = net.stream(clip, state)
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones.movinet_layers import Bottleneck, ConvNorm, Past, activate, frame_means
from training.backbones.movinet_layout import MoViNetLayout, Variant, places
from training.layers.conv3d import by_video, fold_frames
from training.layers.initial import truncated_normal_, variance_scaling_
from training.layers.streaming import FrameConv, State, running_mean

__all__ = ["Answers", "MoViNet", "StreamStep"]

Answers = Literal["last", "running", "frame"]
"""One answer after the last frame (B,K); the answer so far after each frame (B,T,K); each frame's own (B,T,K), pooled
over its places only (what earlier frames left in the buffers still counts)."""

COUNT = "count"
HEAD = "head"


class MoViNet(nn.Module):
    """A network over videos (B,3,T,H,W) of any length and size.

    Args:
        layout: architecture.
        variant: base or stream.
        num_classes: None leaves out the two dense layers: `forward` then gives pooled features.
        dropout: before the classifier (0.2 for T0, A0, A1; 0.5 for the others).
        drop_path: rate of stochastic depth of the last layer; layer i of L has i/L of it.
        norm_eps: of batch normalisation.
        norm_momentum: weight of the newest batch (TensorFlow's momentum 0.99).
        kernels: kernel options by layer name, for a supernet.
        project_skips: layers whose skip has a convolution though it needs none, for a supernet.
    """

    def __init__(
        self,
        layout: MoViNetLayout,
        variant: Variant,
        *,
        num_classes: int | None = None,
        dropout: float = 0.2,
        drop_path: float = 0.2,
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.01,
        kernels: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        project_skips: bool = False,
    ) -> None:
        super().__init__()
        self.layout, self.variant, self.dropout = layout, variant, dropout
        norm = partial(nn.BatchNorm2d, eps=norm_eps, momentum=norm_momentum)
        self.stem = ConvNorm(FrameConv(3, layout.stem, 3, 2), layout.stem, norm, variant.activation)
        self.places = places(layout)
        layers = []
        for number, place in enumerate(self.places, start=1):
            first = place.name.endswith(".0")
            layer = Bottleneck(
                place,
                variant,
                norm,
                drop_path * number / len(self.places),
                kernels.get(place.name) if kernels else None,
                True if project_skips and first else None,
            )
            layers.append(layer)
        self.blocks = nn.ModuleList()
        for block in layout.blocks:
            self.blocks.append(nn.ModuleList(layers[: len(block.layers)]))
            layers = layers[len(block.layers) :]
        self.project = ConvNorm(
            FrameConv(layout.blocks[-1].width, layout.project, 1), layout.project, norm, variant.activation
        )
        self.out_channels = layout.project
        self.dense = self.classifier = None
        if num_classes is not None:
            self.dense = nn.Linear(layout.project, layout.head)
            self.classifier = nn.Linear(layout.head, num_classes)
            variance_scaling_(self.dense.weight, 2.0)
            truncated_normal_(self.classifier.weight, 0.01)
            nn.init.zeros_(self.dense.bias)
            nn.init.zeros_(self.classifier.bias)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Return the logits (B,K) of whole clips; pooled features (B,P) of a net without classes."""
        return self.answers(video_BCTHW)[0]

    def stream(
        self, video_BCTHW: Tensor, state: Mapping[str, Tensor], answers: Answers = "last"
    ) -> tuple[Tensor, State]:
        """Continue videos by some frames.

        For any partition of a video into calls the answers are those of one call (in eval mode, up to rounding).

        Args:
            video_BCTHW: the next frames, one or more, of every video of the batch.
            state: of `initial_state` or of the call before; unchanged.
            answers: which answers to return.

        Returns:
            Logits, and the state after the last frame.

        Raises:
            ValueError: a net that is not causal, or a state of another net, size or batch.
        """
        self._check(video_BCTHW, state)
        present: State = {}
        logits, count_B = self.answers(video_BCTHW, answers, state, present)
        present[COUNT] = count_B + video_BCTHW.shape[2]
        if unknown := sorted(set(state) - set(present)):
            raise ValueError(f"the state has {', '.join(unknown[:5])}, which this net lacks: it is of another net")
        return logits, {name: present[name] for name in state}

    def answers(
        self, video_BCTHW: Tensor, answers: Answers = "last", past: Past = None, present: State | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits, and how many frames of each video came before, (B,); see `stream` for the arguments."""
        if not self.variant.causal and answers == "running":
            raise ValueError("a base net has no running answer: it sees later frames")
        batch = video_BCTHW.shape[0]
        count_B = _no_frames(video_BCTHW) if past is None else past[COUNT]
        images = self._features(video_BCTHW, count_B, past, present)
        pooled = by_video(frame_means(images), batch)
        if self.variant.causal:
            running = running_mean(pooled, count_B, HEAD, past, present)
            pooled = {"last": running[:, -1], "running": running, "frame": pooled}[answers]
        elif answers == "last":
            pooled = pooled.mean(1)
        return self.classify(pooled), count_B

    def classify(self, pooled: Tensor) -> Tensor:
        """Map pooled features (…,P) to logits (…,K)."""
        if self.dense is None or self.classifier is None:
            return pooled
        hidden = activate(self.dense(pooled.to(self.dense.weight.dtype)), self.variant.head_activation)
        logits: Tensor = self.classifier(F.dropout(hidden, self.dropout, self.training))
        return logits

    def features_map(self, video_BCTHW: Tensor) -> Tensor:
        """Return the features before pooling, (B,P,T,h,w)."""
        images = self._features(video_BCTHW, _no_frames(video_BCTHW), None, None)
        return by_video(images, video_BCTHW.shape[0]).transpose(1, 2)

    def initial_state(
        self,
        batch: int,
        size: tuple[int, int],
        *,
        window: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """Return the state before the first frame.

        Args:
            batch: number of videos.
            size: height and width of the input, pixels.
            window: means are over at most this many frames; None: over all since the first one.
            device: where; None: where the weights are.
            dtype: of the convolutions' buffers, which they keep; None: that of the weights. Sums are at least
                float32: a bfloat16 sum stops growing.

        Raises:
            ValueError: a net that is not causal, or a window without frames.
        """
        if not self.variant.causal:
            raise ValueError("only causal nets stream; this one is a base net")
        if window is not None and window < 1:
            raise ValueError(f"the window must have at least one frame, got {window}")
        like: Tensor = self.project.conv.weight  # type: ignore[assignment]  # a parameter, not a module
        device = like.device if device is None else device
        dtype = like.dtype if dtype is None else dtype
        wide = torch.promote_types(dtype, torch.float32)
        state: State = {COUNT: torch.zeros(batch, dtype=torch.int64, device=device)}

        def pool(name: str, channels: int) -> None:
            shape = (batch, channels) if window is None else (batch, window - 1, channels)
            state[name] = torch.zeros(shape, dtype=wide, device=device)

        sides = [-(-side // 2) for side in size]
        for place in self.places:
            after = [-(-side // place.stride) for side in sides]
            if place.layer.kernel[0] > 1:
                kept = after if self.variant.conv == "2plus1d" else sides
                shape = (batch, place.layer.expand, place.layer.kernel[0] - 1, *kept)
                buffer = torch.zeros(shape, dtype=dtype, device=device)
                state[f"{place.name}.conv"] = buffer.contiguous(memory_format=torch.channels_last_3d)
            if place.layer.gate and self.variant.squeeze in ("3d", "2plus3d"):
                pool(f"{place.name}.pool", place.layer.expand)
            sides = after
        pool(HEAD, self.layout.project)
        return state

    def _features(self, video_BCTHW: Tensor, count_B: Tensor, past: Past, present: State | None) -> Tensor:
        if video_BCTHW.dim() != 5 or video_BCTHW.shape[1] != 3 or video_BCTHW.shape[2] < 1:
            raise ValueError(f"MoViNet takes videos (N,3,T,H,W) of one frame or more, got {tuple(video_BCTHW.shape)}")
        batch = video_BCTHW.shape[0]
        images: Tensor = self.stem(fold_frames(video_BCTHW))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            for layer in block:
                images = layer(images, batch, count_B, past, present)
        features: Tensor = self.project(images)
        return features

    def _check(self, video_BCTHW: Tensor, state: Mapping[str, Tensor]) -> None:
        if not self.variant.causal:
            raise ValueError("only causal nets stream; this one is a base net")
        if COUNT not in state or HEAD not in state:
            raise ValueError("this is no state of a stream; `initial_state` makes one")
        if len(state[COUNT]) != video_BCTHW.shape[0]:
            raise ValueError(f"the state is of {len(state[COUNT])} videos, the clip of {video_BCTHW.shape[0]}")


def _no_frames(video_BCTHW: Tensor) -> Tensor:
    return torch.zeros(video_BCTHW.shape[0], dtype=torch.int64, device=video_BCTHW.device)


class StreamStep(nn.Module):
    """`forward(clip, state) → (logits, state)`: what is exported and compiled."""

    def __init__(self, net: MoViNet, answers: Answers = "last") -> None:
        super().__init__()
        self.net, self.answers = net, answers

    def forward(self, video_BCTHW: Tensor, state: State) -> tuple[Tensor, State]:
        """See `MoViNet.stream`."""
        return self.net.stream(video_BCTHW, state, self.answers)
