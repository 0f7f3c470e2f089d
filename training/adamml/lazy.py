"""One video, decoded on demand: first what the policy sees, then the frames of what it chose."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.adamml.config import Modality
from training.adamml.inputs import SegmentTransform, shrink
from training.core.data_batches import batch_of_one
from training.core.data_sample import Decoded
from training.core.sampling import stack_positions
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
        empty = np.zeros((len(self.video.positions_VT), settings.samples), np.int16)
        self.sound_SN = torch.from_numpy(empty if sound is None else sound).to(self.device)

    def decode(self, wanted: Mapping[Modality, Index], step: int = 1, also: Sequence[int] = ()) -> None:
        """Decode the pictures that `segments` will be asked for: one pass over the file instead of one per modality.

        Args:
            wanted: modality → (n,) segments.
            step: of every step-th frame (or stack) only.
            also: further frames.
        """
        numbers = set(also)
        for name, chosen in wanted.items():
            positions = self.video.positions_VT[chosen][:, ::step]
            if name == "rgb":
                numbers.update(positions.ravel().tolist())
            elif name == "rgbdiff":
                numbers.update(self._stacks(positions).ravel().tolist())
            elif name == "flow":
                numbers.update(self.video.flow_sources(positions))
        self.video.pictures(sorted(numbers))

    def segments(self, name: Modality, chosen: Index, step: int = 1) -> Tensor:
        """Return the inputs (n,T,C,H,W) of a modality.

        Args:
            name: the modality.
            chosen: (n,) segments.
            step: takes every step-th frame (or stack) only; of sound always everything.
        """
        if name == "audio":
            return self.transform.spectrograms(self.sound_SN[None, torch.from_numpy(chosen).to(self.device)])[0]
        positions = self.video.positions_VT[chosen][:, ::step]
        if name == "rgb":
            return self._pictures(positions)
        if name == "rgbdiff":
            return self.transform.differences(self._pictures(self._stacks(positions))[None])[0]
        fields = torch.from_numpy(self.video.flow(positions)).to(self.device)
        raw = self._raw(())
        batch = self.transform.pictures(raw, train=False)
        return self.transform.crop_flow(fields[None], raw, batch, len(chosen), positions.shape[1])[0]

    def batch(self) -> ClipBatch:
        """Return the video without pictures: key, seed, crop."""
        return self.transform.pictures(self._raw(()), train=False)

    def _stacks(self, positions: Index) -> Index:
        """Return the frames (n,T,q) of stacks at positions (n,T)."""
        stack = self.transform.data.stack
        return stack_positions(positions, stack, self.video.num_frames).reshape(*positions.shape, stack)

    def _pictures(self, numbers: Index) -> Tensor:
        """Return normalised frames (*numbers.shape,3,H,W)."""
        video_CTHW = self.transform.pictures(self._raw(numbers.ravel()), train=False).video_BCTHW[0]
        frames: Tensor = video_CTHW.transpose(0, 1).unflatten(0, numbers.shape)  # type: ignore[no-untyped-call]
        return frames

    def _raw(self, numbers: Index | Sequence[int]) -> RawBatch:
        pictures = Decoded(self.video.pictures(numbers), None, None)
        silent = self.transform.data.model_copy(update={"sound": None})
        return batch_of_one(pictures, silent, key=self.video.key, seed=self.video.seed).to(self.device)


def predict_lazily(system: "AdaMMLSystem", video: "LazyVideo", device: torch.device) -> tuple[Prediction, ClipBatch]:
    """Predict one video: the policy's frames of all segments are decoded, then the other frames of chosen ones.

    Damage to frames that nothing looks at goes unnoticed.

    Returns:
        What `AdaMMLSystem.predict` says of the whole video; the video as a batch without pictures.

    Raises:
        DecodeError: sound or pictures that are looked at cannot be decoded.
        MiscountError: the video has fewer frames than packets.
    """
    config, net = system.net.config, system.net
    source = LazySegments(system.transform, video, device)
    every = np.arange(len(video.positions_VT))
    step = config.num_frames // config.policy_frames
    source.decode(dict.fromkeys(config.policy_modalities, every), step, video.witness)
    views: dict[str, Tensor] = {}
    for name in config.policy_modalities:
        value = source.segments(name, every, step)
        views[name] = value if name == "audio" else shrink(value, config.policy_size)
    logits, _ = net.policy.unroll(net.policy.features(views)[None], None)
    available = torch.ones(1, len(every), len(config.modalities), dtype=torch.bool, device=device)
    if "audio" in config.modalities:
        available[..., config.modalities.index("audio")] = source.has_sound
    batch = source.batch()
    decision = net.decision(logits, available, system.mode, threshold=system.threshold, seed_B=batch.seed_B)
    used_SK = decision.used_BSK[0].cpu().numpy()
    source.decode({name: np.flatnonzero(used_SK[:, place]) for place, name in enumerate(config.modalities)})
    answer = net.answer(lambda name, rows: source.segments(name, rows.cpu().numpy()), decision)
    return system.prediction(answer, available), batch
