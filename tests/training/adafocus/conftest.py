from pathlib import Path
from typing import Any

import pytest
import torch

from training.adafocus.config import AdaFocusConfig, FinetuneConfig, PolicyConfig
from training.adafocus.system import Finetune, PatchPolicy
from training.core.config import parse_yaml
from training.core.system import ClipBatch

CLASSES = ("one", "two", "three")


def sections() -> dict[str, Any]:
    return parse_yaml((Path(__file__).parents[2] / "params.tiny.yaml").read_text())


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Sections of tests/params.tiny.yaml."""
    return sections()


def make_batch(count: int = 5, steps: int = 4, size: int = 32, seed: int = 0) -> ClipBatch:
    generator = torch.Generator().manual_seed(seed)
    return ClipBatch(
        video_BCTHW=torch.randn(count, 3, steps, size, size, generator=generator),
        label_B=torch.randint(0, len(CLASSES), (count,), generator=generator),
        key=tuple(map(str, range(count))),
        seed_B=torch.randint(0, 2**62, (count,), generator=generator),
        valid_B=torch.ones(count, dtype=torch.bool),
        box_B4=torch.tensor([[0.0, 0, size, size]]).repeat(count, 1),
        flip_B=torch.zeros(count, dtype=torch.bool),
    )


@pytest.fixture
def batch() -> ClipBatch:
    return make_batch()


@pytest.fixture
def new_batch():
    return make_batch


@pytest.fixture
def model_config() -> AdaFocusConfig:
    return AdaFocusConfig(**sections()["adafocus_model"])


@pytest.fixture
def new_policy():
    """Make a stage II system with random batch-norm statistics; keyword arguments override its section."""

    def make(*, model: dict[str, Any] | None = None, **changes: Any) -> PatchPolicy:
        values = sections()
        section = {**values["adafocus_policy"], **changes}
        architecture = {**values["adafocus_model"], **(model or {})}
        data = {**values["adafocus_data"], "num_frames": architecture["num_frames"]}
        data["transform"] = {**data["transform"], "size": architecture["size"]}
        torch.manual_seed(1)
        system = PatchPolicy(PolicyConfig(data=data, model=architecture, **section), CLASSES)
        randomise_norms(system)
        system.freeze()
        return system

    return make


@pytest.fixture
def new_finetune():
    def make(**changes: Any) -> Finetune:
        values = sections()
        config = FinetuneConfig(
            **{
                "data": values["adafocus_data"],
                "model": values["adafocus_model"],
                **values["adafocus_finetune"],
                **changes,
            },
        )
        torch.manual_seed(2)
        system = Finetune(config, CLASSES)
        randomise_norms(system)
        system.freeze()
        return system

    return make


def randomise_norms(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for child in module.modules():
        if isinstance(child, torch.nn.BatchNorm2d):
            child.running_mean.normal_(0, 0.2, generator=generator)
            child.running_var.uniform_(0.5, 1.5, generator=generator)
