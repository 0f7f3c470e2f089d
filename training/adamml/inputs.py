"""What the networks see of a segment, made on the device: frames, differences, flow, spectrograms.

Shape suffixes here: B videos, S segments, T frames (or stacks) of a segment, q frames of a stack, C channels, N samples
of sound, F frequency bins, L columns of a spectrogram. One crop and one flip per video hold for all its modalities.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.adamml.config import AdaMMLConfig, Modality, SpectrogramConfig
from training.core.config import DataConfig
from training.core.system import ClipBatch, RawBatch
from training.core.transforms import MEAN_STD, ClipTransform, resample_clips

FLOW_STD = 0.22633
"""Standard deviation of flow pictures in [0, 1], whose mean is 0.5 (§2: that of ImageNet)."""

FULL_SCALE = 32768.0
"""Value of a full-scale 16-bit sample: waveforms are in [-1, 1)."""


@dataclass(frozen=True)
class SegmentBatch(ClipBatch):
    """Videos as segments."""

    inputs: Mapping[str, Tensor]
    """Modality → (B,S,T,C,H,W) float; sound as (B,S,1,1,F,L)."""
    available: Mapping[str, Tensor]
    """Modality → (B,S) bool, whether the video has it at all."""


def log_spectrogram(sound: Tensor, config: SpectrogramConfig) -> Tensor:
    """Return ln(|X|² + ε) of waveforms (§2: Hann window, centred, zeros beyond the ends, linear frequency axis).

    Args:
        sound: (…, N) int16, or float in [-1, 1].
        config: sizes.

    Returns:
        (…, F, L) float32; silence is ln ε everywhere.
    """
    wave = sound.float() / FULL_SCALE if sound.dtype == torch.int16 else sound.float()
    window = torch.hann_window(config.window, device=wave.device)
    # Complex products have no low precision, and the logarithm of small powers would not survive one.
    with torch.autocast(wave.device.type, enabled=False):
        spectrum = torch.stft(
            wave.flatten(0, -2),
            config.n_fft,
            hop_length=config.hop,
            win_length=config.window,
            window=window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        result: Tensor = (power + config.epsilon).log()
    spectrogram: Tensor = result.unflatten(0, wave.shape[:-1])  # type: ignore[no-untyped-call]
    return spectrogram


class SegmentTransform:
    """Turns a raw batch into segments of all modalities that a stage's networks see."""

    def __init__(self, model: AdaMMLConfig, data: DataConfig, inputs: tuple[Modality, ...]) -> None:
        self.inputs = inputs
        self.model = model
        self.data = data
        self.pictures = ClipTransform(data.transform)
        mean, std = MEAN_STD[data.transform.normalise]
        self._resting = [(0.5 - m) / s for m, s in zip(mean, std, strict=True)]

    def __call__(self, raw: RawBatch, *, train: bool) -> SegmentBatch:
        """Crop, flip, normalise; see `SegmentBatch` for the shapes.

        Raises:
            ValueError: the batch lacks sound or flow that the networks need: it was read with other settings.
        """
        batch = self.pictures(raw, train=train)
        segments = self.segments_of(raw)
        everywhere = torch.ones_like(raw.valid_B)[:, None].expand(-1, segments)
        inputs: dict[str, Tensor] = {}
        available: dict[str, Tensor] = dict.fromkeys(self.inputs, everywhere)
        if {"rgb", "rgbdiff"} & set(self.inputs):
            stacks = self.stacks(batch.video_BCTHW, segments)
            if "rgb" in self.inputs:
                inputs["rgb"] = stacks[:, :, :, 0]
            if "rgbdiff" in self.inputs:
                inputs["rgbdiff"] = self.differences(stacks)
        if "flow" in self.inputs:
            if raw.flow_BTHWC is None:
                raise ValueError("the batch has no flow: it was not read with data.flow")
            inputs["flow"] = self.crop_flow(raw.flow_BTHWC, raw, batch, segments, self.data.num_frames)
        if "audio" in self.inputs:
            if raw.sound_BSN is None or raw.has_sound_B is None:
                raise ValueError("the batch has no sound: it was not read with data.sound")
            inputs["audio"] = self.spectrograms(raw.sound_BSN)
            available["audio"] = raw.has_sound_B[:, None].expand(-1, segments)
        ordered: dict[str, Tensor] = {name: inputs[name] for name in self.inputs}
        return SegmentBatch(**vars(batch), inputs=ordered, available=available)

    def segments_of(self, raw: RawBatch) -> int:
        """Return how many segments the videos of a batch were read in; training and evaluation may differ."""
        if raw.sound_BSN is not None:
            return raw.sound_BSN.shape[1]
        if self.data.clip_frames:
            return raw.frames_BTHWC.shape[1] // self.data.clip_frames
        assert raw.flow_BTHWC is not None  # by the config: something is read
        return raw.flow_BTHWC.shape[1] // (self.data.num_frames * (self.data.stack - 1))

    def stacks(self, video_BCTHW: Tensor, segments: int) -> Tensor:
        """Return the decoded frames as (B,S,T,q,3,H,W), q = 1 where only one frame per position was decoded."""
        per_position = self.data.stack if self.data.pictures == "stacks" else 1
        each = (segments, self.data.num_frames, per_position)
        frames: Tensor = video_BCTHW.unflatten(2, each)  # type: ignore[no-untyped-call]
        return frames.permute(0, 2, 3, 4, 1, 5, 6)

    def differences(self, stacks: Tensor) -> Tensor:
        """Return differences of neighbouring frames, (B,S,T,3·(q−1),H,W), from normalised stacks (B,S,T,q,3,H,W).

        As the public code has it, (b − a + 255)/2 normalised like a picture, but without its rounding to 8 bits.
        """
        between = (stacks[:, :, :, 1:] - stacks[:, :, :, :-1]) / 2
        resting = torch.tensor(self._resting, dtype=stacks.dtype).to(stacks.device, non_blocking=True)
        return (between + resting[:, None, None]).flatten(3, 4)

    def crop_flow(self, fields_BTHWC: Tensor, raw: RawBatch, batch: ClipBatch, segments: int, stacks: int) -> Tensor:
        """Return flow stacks (B,S,T,2·(q−1),H,W), x and y in turns, by the crop and flip of the pictures.

        What moves right moves left in a mirrored picture: there x is inverted.

        Args:
            fields_BTHWC: uint8 stored fields, those of a stack after one another.
            raw: for the size of the pictures.
            batch: for the crop.
            segments: S.
            stacks: T.
        """
        side = batch.video_BCTHW.shape[-1]
        cropped = resample_clips(fields_BTHWC, raw.size_B2, batch.box_B4, batch.flip_B, side)
        x, y = cropped.unbind(1)
        x = torch.where(batch.flip_B[:, None, None, None], 255 - x, x)
        fields = torch.stack((x, y), dim=2)  # (B, S·T·(q−1), 2, H, W)
        stacked: Tensor = fields.unflatten(1, (segments, stacks, self.data.stack - 1))  # type: ignore[no-untyped-call]
        return (stacked.flatten(3, 4) / 255 - 0.5) / FLOW_STD

    def spectrograms(self, sound_BSN: Tensor) -> Tensor:
        """Return (B,S,1,1,F,L)."""
        assert self.model.spectrogram is not None  # by AdaMMLConfig
        return log_spectrogram(sound_BSN, self.model.spectrogram)[:, :, None, None]


def policy_view(name: Modality, value: Tensor, config: AdaMMLConfig) -> Tensor:
    """Return what the policy sees of a modality: a part of the frames at low resolution; of sound everything.

    Args:
        name: the modality.
        value: (…,T,C,H,W), as recognition sees it.
        config: sizes.

    Returns:
        (…,T',C,h,w).
    """
    if name == "audio":
        return value
    return shrink(value[..., :: config.num_frames // config.policy_frames, :, :, :], config.policy_size)


def shrink(frames: Tensor, side: int) -> Tensor:
    """Reduce frames (…,C,H,W), which are square, to a side in pixels."""
    if frames.shape[-1] == side:
        return frames
    # Plain bilinear without anti-aliasing, as in the public code (§2).
    small = F.interpolate(frames.flatten(0, -4), size=(side, side), mode="bilinear", align_corners=False)
    result: Tensor = small.unflatten(0, frames.shape[:-3])  # type: ignore[no-untyped-call]
    return result
