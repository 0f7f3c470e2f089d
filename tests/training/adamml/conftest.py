"""A small AdaMML, its settings, and batches of noise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from training.adamml.config import AdaMMLConfig
from training.adamml.inputs import SegmentBatch, SegmentTransform
from training.core.config import DataConfig
from training.core.system import RawBatch

TINY = {"options": {"channels": [4, 8]}, "weights": None, "norms": "batch"}


@pytest.fixture(scope="session")
def small_model() -> Callable[..., AdaMMLConfig]:
    """Makes an `AdaMMLConfig` over named modalities; keywords replace fields."""

    def make(*modalities: str, **changes: Any) -> AdaMMLConfig:
        names = modalities or ("rgb", "audio")
        proxies = changes.get("proxies", {})
        values: dict[str, Any] = {
            "modalities": names,
            "proxies": {},
            "size": 16,
            "num_frames": 4,
            "nets": {name: {"name": "tiny_local", **TINY} for name in names},
            "dropout": 0.0,
            "policy_nets": {proxies.get(name, name): {"name": "tiny_glance", **TINY} for name in names},
            "policy_frames": 2,
            "policy_size": 8,
            "joint": 12,
            "hidden": 6,
            "recurrent": True,
            "feed_back": True,
            "shared_decision": False,
            "spectrogram": {"n_fft": 31, "window": 24, "hop": 10, "epsilon": 1e-6} if "audio" in names else None,
            "constants": "measured",
            "mean": "segments",
            "least_one": False,
        }
        return AdaMMLConfig.model_validate(values | changes)

    return make


@pytest.fixture(scope="session")
def small_data() -> Callable[..., DataConfig]:
    """Makes the data block that goes with `small_model`; keywords replace fields."""

    def make(**changes: Any) -> DataConfig:
        values: dict[str, Any] = {
            "num_frames": 4,
            "sampling": "clips",
            "stride": 2,
            "train_clips": 3,
            "eval_clips": 3,
            "sound": {"rate": 4000, "samples": 200},
            "batch_size": 4,
            "transform": {
                "size": 16,
                "train_crop": "random",
                "eval_short_side": 18,
                "flip": True,
                "normalise": "imagenet",
            },
        }
        return DataConfig.model_validate(values | changes)

    return make


@pytest.fixture(scope="session")
def noise_batch() -> Callable[..., RawBatch]:
    """Makes a raw batch of noise that fits a data block; the last video is silent."""

    def make(data: DataConfig, videos: int = 4, *, train: bool = False, seed: int = 0, classes: int = 3) -> RawBatch:
        generator = torch.Generator().manual_seed(seed)
        segments = data.train_clips if train else data.eval_clips
        frames = data.train_frames if train else data.eval_frames

        def pixels(count: int, channels: int) -> torch.Tensor:
            shape = (videos, count, 20, 26, channels)
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

        sound = None
        if data.sound is not None:
            sound = torch.randint(-9000, 9000, (videos, segments, data.sound.samples), generator=generator)
            sound = sound.to(torch.int16)
            sound[-1] = 0
        return RawBatch(
            frames_BTHWC=pixels(frames, 3),
            size_B2=torch.tensor([[20, 26]] * videos),
            label_B=torch.arange(videos) % classes,
            key=tuple(f"video-{number}" for number in range(videos)),
            seed_B=torch.arange(videos) + 100 * seed,
            valid_B=torch.ones(videos, dtype=torch.bool),
            sound_BSN=sound,
            has_sound_B=None if sound is None else torch.tensor([True] * (videos - 1) + [False]),
            flow_BTHWC=pixels(segments * data.num_frames * (data.stack - 1), 2) if data.flow else None,
        )

    return make


@pytest.fixture(scope="session")
def segments_of(noise_batch) -> Callable[..., SegmentBatch]:
    """Makes a prepared batch of noise for a model and a data block."""

    def make(model: AdaMMLConfig, data: DataConfig, *, train: bool = False, **options: Any) -> SegmentBatch:
        raw = noise_batch(data, train=train, **options)
        return SegmentTransform(model, data, model.inputs)(raw, train=train)

    return make
