"""Small networks and videos of LSTS."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from training.core.config import DataConfig
from training.core.system import FrameBoxes, RawBatch
from training.lsts.config import LSTSConfig, MethodConfig
from training.lsts.system import LSTSSystem

CLASSES = ("star", "disc", "cross")
MODEL = {
    "backbone": {
        "depth": 18,
        "width": 0.125,
        "split": 1,
        "stride": 8,
        "downsample": "second",
        "feature_channels": 32,
        "frozen_stages": 0,
        "weights": None,
    },
    "alignment": {
        "offsets": {"init": "gaussian", "count": 6, "sigma": 1.0, "seed": 0, "learned": True, "clamp": 4.0},
        "embed_channels": 8,
        "similarity": "softmax",
        "border": "zero",
        "quality": "code",
        "low2high": "code",
        "memory_ratio": 1.0,
    },
    "head": {"kind": "dense", "channels": 16, "convs": 1, "centre_radius": 1.5},
    "score_threshold": 0.0,
    "nms": 0.5,
    "max_boxes": 10,
}
DATA = {
    "num_frames": 3,
    "sampling": "frames",
    "frames": {"schedule": "offline", "interval": 10},
    "batch_size": 2,
    "transform": {
        "size": 32,
        "train_crop": "whole",
        "long_side": 64,
        "eval_short_side": 32,
        "flip": False,
        "normalise": "symmetric",
    },
}
METHOD = {"interval": 10, "schedule": "offline", "key": "srfu", "non_key": "dfa", "alignment": "sampled"}


def make_method(**changes: Any) -> MethodConfig:
    return MethodConfig.model_validate(METHOD | changes)


@pytest.fixture
def method_of() -> Callable[..., MethodConfig]:
    """Settings of a method, LSTS with D = 10 but for the changes."""
    return make_method


@pytest.fixture
def system_of() -> Callable[..., LSTSSystem]:
    """A small system with random weights, in eval mode."""

    def make(method: MethodConfig | None = None, *, seed: int = 0, head: dict[str, Any] | None = None) -> LSTSSystem:
        torch.manual_seed(seed)
        model = LSTSConfig.model_validate(MODEL | ({"head": head} if head else {}))
        data = DataConfig.model_validate(DATA)
        system = LSTSSystem(model, method or make_method(), data, "frozen", CLASSES)
        for module in system.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # statistics that do something
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        with torch.no_grad():
            for name, parameter in system.named_parameters():
                if any(part in name for part in ("srfu", "dfa", "low2high")) and parameter.dim() > 1:
                    parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
        return system.eval()

    return make


@pytest.fixture
def video_of() -> Callable[..., RawBatch]:
    """A video of noise with slow changes, as one block; with a true object that moves."""

    def make(frames: int, seed: int = 0, height: int = 32, width: int = 48) -> RawBatch:
        generator = torch.Generator().manual_seed(seed)
        blocks = torch.randint(0, 256, (height // 8, width // 8, 3), generator=generator).float()
        base = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)
        change = torch.randint(-60, 60, (frames, height, width, 3), generator=generator).float()
        number = torch.arange(frames)
        box = torch.stack([number % 20, number % 9, number % 20 + 14, number % 9 + 12], dim=1).float()
        return RawBatch(
            frames_BTHWC=(base + change).clamp(0, 255).to(torch.uint8)[None],
            size_B2=torch.tensor([[height, width]]),
            label_B=torch.zeros(1, len(CLASSES)),
            key=("video",),
            seed_B=torch.tensor([seed]),
            valid_B=torch.ones(1, dtype=torch.bool),
            number_BT=number[None],
            boxes=FrameBoxes(
                torch.ones(1, frames, dtype=torch.bool),
                box[None, :, None],
                torch.ones(1, frames, 1, dtype=torch.int64),
                torch.zeros(1, frames, 1, dtype=torch.int64),
            ),
            sizes=((height, width),),
        )

    return make


@pytest.fixture
def frames_of() -> Callable[..., RawBatch]:
    """Some frames of a video, as a block."""

    def cut(video: RawBatch, start: int, stop: int) -> RawBatch:
        part = slice(start, stop)
        assert video.boxes is not None
        boxes = FrameBoxes(*(value[:, part] for value in vars(video.boxes).values()))
        return replace(video, frames_BTHWC=video.frames_BTHWC[:, part], number_BT=video.number_BT[:, part], boxes=boxes)

    return cut
