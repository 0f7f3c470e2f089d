"""The networks of LSTS and how features travel through them (§5, §7). Suffixes: N frames, C channels, H, W cells.

Nothing here knows of videos or schedules: `training/lsts/runner.py` walks through videos, `forward_example` through
training examples.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.core.weights import WeightReport
from training.lsts.backbone import SplitResNet
from training.lsts.config import LSTSConfig, MethodConfig
from training.lsts.fusion import AlignedKey, Alignment, Low2High, identity_where
from training.lsts.heads import Boxes, DetectionHead, build_head
from training.lsts.offsets import Offsets

__all__ = ["LSTS", "displacements"]


class _Part(nn.Module):
    """A method of a module as a module of its own, so that it can be compiled."""

    def __init__(self, method: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.method = method  # not a module: nothing is registered twice

    def forward(self, x: Tensor) -> Tensor:
        return self.method(x)


class LSTS(nn.Module):
    """Backbone, detection head and, where the method needs them, alignment of the memory."""

    def __init__(self, config: LSTSConfig, method: MethodConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.method = method
        self.backbone = SplitResNet(config.backbone)
        # In a tuple they are not registered.
        self._parts = (_Part(self.backbone.low), _Part(self.backbone.high), _Part(self._light))
        self.head: DetectionHead = build_head(config, classes)
        channels = self.backbone.channels
        alignment = config.alignment
        if method.offsets is not None:
            alignment = alignment.model_copy(update={"offsets": method.offsets})
        self.offsets: Offsets | None = None
        self.srfu: Alignment | None = None
        self.dfa: Alignment | None = None
        self.low2high: Low2High | None = None
        if method.key == "srfu" or method.non_key == "dfa":
            # Where the true displacements are known nothing is compared.
            self.offsets = Offsets(alignment.offsets) if method.alignment == "sampled" else None
            if method.key == "srfu":
                self.srfu = Alignment(alignment, channels, self.offsets)
            if method.non_key == "dfa":
                self.dfa = Alignment(alignment, channels, self.offsets)
                self.low2high = Low2High(self.backbone.low_channels, channels, alignment.low2high)

    # --- one frame -----------------------------------------------------------------------------

    def low(self, image_N3HW: Tensor) -> Tensor:
        """Return low-level features (N,C',H,W), the sum before its ReLU."""
        return self._parts[0](image_N3HW)

    def high(self, low_NCHW: Tensor) -> Tensor:
        """Return the features of the whole network (N,C,H,W); the only call of the high-level part."""
        return self._parts[1](low_NCHW)

    def _light(self, low_NCHW: Tensor) -> Tensor:
        assert self.low2high is not None
        return self.low2high(low_NCHW)

    # --- memory --------------------------------------------------------------------------------

    def remember(
        self,
        own_NCHW: Tensor,
        memory: Tensor | None,
        same_N: Tensor | None = None,
        displacement_N2HW: Tensor | None = None,
    ) -> Tensor:
        """Return T of a key frame: its own features F fused with the aligned memory (SRFU).

        Args:
            own_NCHW: F.
            memory: of the key frame before, (N,C,H,W); None: there is none, and T = F.
            same_N: bool, whether the key frame is that key frame again: T is then the memory itself.
            displacement_N2HW: for `alignment: truth`, where each cell was in the memory's frame, relative to it.
        """
        if memory is None or self.srfu is None:
            return own_NCHW
        fused, _ = self.srfu(self.srfu.key(memory), own_NCHW, displacement_N2HW=displacement_N2HW)
        return fused if same_N is None else identity_where(same_N, memory, fused)

    def updated(self, own_NCHW: Tensor, fused_NCHW: Tensor) -> Tensor:
        """Return the memory after a key frame, ρ·T + (1 − ρ)·F."""
        ratio = self.config.alignment.memory_ratio
        if ratio == 1 or own_NCHW is fused_NCHW:
            return fused_NCHW
        return ratio * fused_NCHW + (1 - ratio) * own_NCHW

    def prepare(self, memory: Tensor) -> AlignedKey | None:
        """Return what the other frames need of a memory, computed once per key frame (§15.5)."""
        return None if self.dfa is None else self.dfa.key(memory)

    def aggregate(
        self,
        low_NCHW: Tensor,
        key: AlignedKey,
        displacement_N2HW: Tensor | None = None,
        rows_N: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Return T of frames that are no keys: light features fused with the aligned memory (DFA).

        Args:
            low_NCHW: their low-level features.
            key: the memory as `prepare` returns it; one for all frames, or that of `rows_N` each.

        Returns:
            T (N,C,H,W) and what the alignment has to tell.
        """
        assert self.dfa is not None
        return self.dfa(key, self._parts[2](low_NCHW), rows_N, displacement_N2HW=displacement_N2HW)

    def detect(self, feature_NCHW: Tensor, size_N2: Tensor) -> Boxes:
        """Return the boxes of frames, in pixels of the input."""
        return self.head.detect(self.head(feature_NCHW), size_N2)

    # --- training ------------------------------------------------------------------------------

    def forward_example(
        self, image_BT3HW: Tensor, number_BT: Tensor, displacement_BS2HW: Tensor | None = None
    ) -> Tensor:
        """Return the features T of the labelled frame of training examples (§7).

        The example is: key frames from the oldest on, then the labelled frame. Where two frames in a row are the same
        one, the features pass unchanged, bit for bit.

        Args:
            image_BT3HW: frames.
            number_BT: their numbers in the video.
            displacement_BS2HW: for `alignment: truth`, per step from each frame but the first to the one before.

        Returns:
            T (B,C,H,W).
        """
        batch, frames = number_BT.shape
        last = self.method.every_frame
        low = self.low(image_BT3HW.flatten(0, 1)).unflatten(0, (batch, frames))
        keys = frames if last else frames - 1
        own = self.high(low[:, :keys].flatten(0, 1)).unflatten(0, (batch, keys))
        fused = own[:, 0]
        memory = fused
        for place in range(1, keys):
            same = number_BT[:, place] == number_BT[:, place - 1]
            step = None if displacement_BS2HW is None else displacement_BS2HW[:, place - 1]
            fused = self.remember(own[:, place], memory, same, step)
            memory = self.updated(own[:, place], fused)
        if last:
            return fused
        key = self.prepare(memory)
        assert key is not None
        step = None if displacement_BS2HW is None else displacement_BS2HW[:, -1]
        result, _ = self.aggregate(low[:, -1], key, step)
        same = number_BT[:, -1] == number_BT[:, -2]
        return identity_where(same, memory, result)

    def compilable(self) -> tuple[nn.Module, ...]:
        """Return what is worth compiling: both parts of the backbone, the light branch, the head."""
        return (*self._parts[: 2 if self.low2high is None else 3], self.head)

    # --- parts ---------------------------------------------------------------------------------

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return trained parameters by group: `backbone`, `head`, `alignment`, `offsets`; empty ones left out."""
        offsets = [] if self.offsets is None else [p for p in self.offsets.parameters() if p.requires_grad]
        taken = {id(parameter) for parameter in offsets}
        aligning = [module for module in (self.srfu, self.dfa, self.low2high) if module is not None]
        groups = {
            "backbone": list(self.backbone.parameters()),
            "head": list(self.head.parameters()),
            "alignment": [p for module in aligning for p in module.parameters() if id(p) not in taken],
            "offsets": offsets,
        }
        trained = {name: [p for p in members if p.requires_grad] for name, members in groups.items()}
        return {name: members for name, members in trained.items() if members}

    def load_detector(self, state: Mapping[str, Tensor]) -> None:
        """Take backbone and head from the weights of a single-frame detector.

        Raises:
            ValueError: they do not fit.
        """
        own = {name: value for name, value in state.items() if name.split(".")[0] in ("backbone", "head")}
        missing, unexpected = self.load_state_dict(own, strict=False)
        wanted = [name for name in missing if name.split(".")[0] in ("backbone", "head")]
        if wanted or unexpected:
            raise ValueError(f"the detector's weights do not fit: missing {wanted[:5]}, unexpected {unexpected[:5]}")

    def load_weights(self, root: Path) -> WeightReport | None:
        """Load published weights of the backbone, where the config names some; returns what fitted."""
        return self.backbone.load(root)


def displacements(
    here_box_NG4: Tensor,
    here_track_NG: Tensor,
    there_box_NG4: Tensor,
    there_track_NG: Tensor,
    cells: tuple[int, int],
    stride: int,
) -> Tensor:
    """Return where each cell's object was in another frame, relative to the cell: the oracle `alignment: truth`.

    Args:
        here_box_NG4, here_track_NG: objects of the frames whose cells are asked, pixels of the input.
        there_box_NG4, there_track_NG: objects of the other frames.
        cells: height and width of the feature maps.
        stride: pixels per cell.

    Returns:
        (N,2,H,W) x, y in cells; 0 outside of objects, and in objects that the other frame does not show. Of
        overlapping objects the smallest counts.
    """
    match_NGG = (here_track_NG[:, :, None] == there_track_NG[:, None]) & (here_track_NG >= 0)[:, :, None]
    centre = (here_box_NG4[..., :2] + here_box_NG4[..., 2:]) / 2
    other = (there_box_NG4[..., :2] + there_box_NG4[..., 2:]) / 2
    moved_NGG2 = other[:, None] - centre[:, :, None]
    moved_NG2 = (moved_NGG2 * match_NGG[..., None]).sum(2) / stride
    height, width = cells
    device = here_box_NG4.device
    y = (torch.arange(height, device=device) + 0.5)[:, None] * stride
    x = (torch.arange(width, device=device) + 0.5)[None] * stride
    box = here_box_NG4[..., None, None]
    inside = (x >= box[:, :, 0]) & (x < box[:, :, 2]) & (y >= box[:, :, 1]) & (y < box[:, :, 3])
    inside = inside & match_NGG.any(2)[..., None, None]
    area = (box[:, :, 2] - box[:, :, 0]) * (box[:, :, 3] - box[:, :, 1])
    best = torch.where(inside, area, torch.inf).argmin(1, keepdim=True)
    chosen = moved_NG2.transpose(1, 2)[..., None, None].expand(-1, -1, -1, height, width)
    picked = chosen.gather(2, best[:, None].expand(-1, 2, -1, -1, -1))[:, :, 0]
    return picked * inside.any(1)[:, None]
