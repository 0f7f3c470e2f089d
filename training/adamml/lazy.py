"""One video, decoded on demand: first what the policy sees, then the frames of what it chose."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.adamml.config import Modality
from training.adamml.inputs import SegmentTransform, shrink
from training.core.system import ClipBatch, Prediction, RawBatch

if TYPE_CHECKING:
    from training.adamml.system import AdaMMLSystem
    from training.core.lazy_video import LazyVideo

Index = NDArray[np.int64]


class LazySegments:
    """Gives inputs of chosen segments of one video; what nobody asks for is never decoded.

    Values equal those of `SegmentTransform` on the whole video: every frame is cropped and reduced by itself.
    """

    def __init__(self, transform: SegmentTransform, video: "LazyVideo", device: torch.device) -> None:
        self.transform = transform
        self.video = video
        self.device = device
        self.sound_SN = torch.zeros(0)
        self.has_sound = False
        if "audio" in transform.inputs:
            self._read_sound()

    def _read_sound(self) -> None:
        sound = self.video.sound()
        settings = self.transform.data.sound
        assert settings is not None  # by the stage's config
        self.has_sound = sound is not None
        empty = np.zeros((len(self.video.positions), settings.samples), np.int16)
        self.sound_SN = torch.from_numpy(empty if sound is None else sound).to(self.device)

    def segments(self, name: Modality, chosen: Index, step: int = 1) -> Tensor:
        """Return the inputs (n,T,C,H,W) of a modality.

        Args:
            name: the modality.
            chosen: (n,) segments.
            step: takes every step-th frame (or stack) only.
        """
        if name == "audio":
            return self.transform.spectrograms(self.sound_SN[None, torch.from_numpy(chosen).to(self.device)])[0]
        positions = self.video.positions[chosen][:, ::step]
        if name == "rgb":
            return self._pictures(positions)
        within = np.arange(self.transform.data.stack)
        if name == "rgbdiff":
            numbers = np.minimum(positions[..., None] + within, self.video.num_frames - 1)
            return self.transform.differences(self._pictures(numbers)[None])[0]
        fields = torch.from_numpy(self.video.flow((positions[..., None] + within[:-1]).ravel()))
        raw = self._raw(np.zeros(0, np.int64))
        batch = self.transform.pictures(raw, train=False)
        return self.transform.crop_flow(fields[None].to(self.device), raw, batch, len(chosen), positions.shape[1])[0]

    def _pictures(self, numbers: Index) -> Tensor:
        """Return normalised frames (*numbers.shape,3,H,W)."""
        video_CTHW = self.transform.pictures(self._raw(numbers.ravel()), train=False).video_BCTHW[0]
        return video_CTHW.transpose(0, 1).unflatten(0, numbers.shape)

    def _raw(self, numbers: Index) -> RawBatch:
        height, width = self.video.size
        frames = torch.from_numpy(self.video.pictures(numbers)).to(self.device)
        return RawBatch(
            frames_BTHWC=frames[None],
            size_B2=torch.tensor([[height, width]], device=self.device),
            label_B=torch.tensor([-1], device=self.device),
            key=("0",),
            seed_B=torch.zeros(1, dtype=torch.int64, device=self.device),
            valid_B=torch.tensor([True], device=self.device),
        )


def predict_lazily(system: "AdaMMLSystem", video: "LazyVideo", device: torch.device) -> tuple[Prediction, ClipBatch]:
    """Predict one video: the policy's frames of all segments are decoded, then the other frames of chosen ones."""
    config, net = system.net.config, system.net
    source = LazySegments(system.transform, video, device)
    every = np.arange(len(video.positions))
    step = config.num_frames // config.policy_frames
    views = {}
    for name in config.policy_modalities:
        value = source.segments(name, every, 1 if name == "audio" else step)
        views[name] = value if name == "audio" else shrink(value, config.policy_size)
    logits, _ = net.policy.unroll(net.policy.features(views)[None], None)
    available = torch.ones(1, len(every), len(config.modalities), dtype=torch.bool, device=device)
    if "audio" in config.modalities:
        available[..., config.modalities.index("audio")] = source.has_sound
    batch = system.transform.pictures(source._raw(every[:0]), train=False)
    decision = net.decision(logits, available, system.mode, threshold=system.threshold, seed_B=batch.seed_B)
    answer = net.answer(lambda name, rows: source.segments(name, rows.cpu().numpy()), decision)
    return system.prediction(answer, available), batch
