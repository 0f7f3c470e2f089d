"""AdaFocus V1: glance net, policy, local net and recurrent classifier; architecture and inference only.

Frames are (B,C,T,H,W) as everywhere; suffixes: D feature width, A actions, P patch side.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.adafocus.config import AdaFocusConfig
from training.adafocus.policy import GridPolicy
from training.backbones import build_backbone
from training.core.cost import count_macs, count_params, meta_copy
from training.layers.patches import crop_patches, origins_from_actions


class RecurrentClassifier(nn.Module):
    """f_C: GRU over concatenated features, dropout, linear; logits at every step, the last is the prediction."""

    def __init__(self, features: int, hidden: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.gru = nn.GRU(features, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, features_BTD: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits (B,T,K) and the hidden states of all steps (B,T,hidden)."""
        hidden, _ = self.gru(features_BTD, state)
        return self.fc(self.dropout(hidden)).float(), hidden


class Glance(NamedTuple):
    """What f_G saw: maps (B,T,C,h,w) for the policy, vectors (B,T,C) for the classifier."""

    maps_BTChw: Tensor
    vector_BTC: Tensor


@dataclass(frozen=True)
class OnlineState:
    """Recurrent state between frames of a stream; None before the first."""

    policy: Tensor
    classifier: Tensor


def frames_of(video_BCTHW: Tensor) -> Tensor:
    """Return the frames as one batch (B·T,C,H,W) in channels_last, the layout that convolutions run fastest in."""
    return video_BCTHW.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def glance_input(frames: Tensor, size: int) -> Tensor:
    """Reduce frames to the glance size with antialiasing, so that fine texture is gone and not folded over."""
    if frames.shape[-1] == size:
        return frames
    if frames.shape[-1] % size == 0:
        return F.avg_pool2d(frames, frames.shape[-1] // size)
    return F.interpolate(frames, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


class AdaFocus(nn.Module):
    """The four networks of AdaFocus V1."""

    def __init__(self, config: AdaFocusConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.glance = build_backbone(config.glance.name, **config.glance.options)
        self.local = build_backbone(config.local.name, **config.local.options)
        self.policy = GridPolicy(
            self.glance.out_channels,
            self._map_cells(),
            config.policy_channels,
            config.policy_hidden,
            config.grid**2,
        )
        self.classifier = self.new_classifier()

    def new_classifier(self) -> RecurrentClassifier:
        """Return an f_C of this model's shape with fresh weights."""
        glance = self.glance.out_channels if self.config.use_glance else 0
        return RecurrentClassifier(
            glance + self.local.out_channels,
            self.config.classifier_hidden,
            self.num_classes,
            self.config.classifier_dropout,
        )

    def _map_cells(self) -> int:
        side = self.config.glance_size
        with torch.no_grad():
            maps = meta_copy(self.glance).eval().features_map(torch.empty(1, 3, side, side, device="meta"))
        return maps.shape[-2:].numel()

    # --- parts ---

    def look(self, video_BCTHW: Tensor) -> Glance:
        """Run f_G on all frames at once."""
        batch = video_BCTHW.shape[0]
        maps = self.glance.features_map(glance_input(frames_of(video_BCTHW), self.config.glance_size))
        maps = maps.unflatten(0, (batch, -1))
        return Glance(maps, maps.mean((-2, -1)))

    def patch_features(self, video_BCTHW: Tensor, origin_BT2: Tensor, local: nn.Module | None = None) -> Tensor:
        """Run f_L on one patch per frame, (B,T,D), all patches in one batch (§4, two-phase)."""
        batch = video_BCTHW.shape[0]
        patches = crop_patches(frames_of(video_BCTHW), origin_BT2.flatten(0, 1), self.config.patch)
        return (local or self.local)(patches).unflatten(0, (batch, -1))

    def fuse(self, glance: Glance, local_BTD: Tensor) -> Tensor:
        """Return f_C's input: f_G's and f_L's vectors side by side."""
        if not self.config.use_glance:
            return local_BTD
        return torch.cat((glance.vector_BTC, local_BTD), dim=-1)

    def greedy_origins(self, glance: Glance) -> Tensor:
        """Return the policy's most probable patch origins (B,T,2), pixels (y, x)."""
        output, _ = self.policy(glance.maps_BTChw)
        return self.origins(output.logits_BTA.argmax(-1))

    def origins(self, action: Tensor) -> Tensor:
        """Return patch origins of lattice actions."""
        return origins_from_actions(action, self.config.grid, self.config.size, self.config.patch)

    # --- inference ---

    def forward(self, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Offline inference: logits of every step (B,T,K) and the patch origins (B,T,2)."""
        glance = self.look(video_BCTHW)
        origins = self.greedy_origins(glance)
        logits, _ = self.classifier(self.fuse(glance, self.patch_features(video_BCTHW, origins)))
        return logits, origins

    def step(self, frame_BCHW: Tensor, state: OnlineState | None = None) -> tuple[Tensor, Tensor, OnlineState]:
        """Online inference of one frame: logits (B,K), origin (B,2) and the state for the next frame."""
        video = frame_BCHW[:, :, None]
        glance = self.look(video)
        output, policy_state = self.policy(glance.maps_BTChw, None if state is None else state.policy)
        origin = self.origins(output.logits_BTA.argmax(-1))
        features = self.fuse(glance, self.patch_features(video, origin))
        logits, hidden = self.classifier(features, None if state is None else state.classifier)
        return logits[:, 0], origin[:, 0], OnlineState(policy_state, hidden.transpose(0, 1).contiguous())

    # --- cost ---

    def gmac_parts(self) -> dict[str, float]:
        """Return GMAC per video of each part: glance, policy, local, classifier."""
        config = self.config
        steps = config.num_frames

        def frame(side: int) -> Tensor:
            return torch.empty(1, 3, side, side, device="meta")

        cells = self.policy.encode.in_features // config.policy_channels
        maps = torch.empty(1, 1, self.glance.out_channels, cells, 1, device="meta")
        features = torch.empty(1, 1, self.classifier.gru.input_size, device="meta")
        parts = {
            "glance": count_macs(self.glance.features_map, frame(config.glance_size)),
            "policy": count_macs(self.policy, maps),
            "local": count_macs(self.local, frame(config.patch)),
            "classifier": count_macs(self.classifier, features),
        }
        return {name: steps * macs / 1e9 for name, macs in parts.items()}

    def num_params(self) -> int:
        """Return the number of parameters that inference needs."""
        return count_params(self)
