from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.core.checkpoint import save_model
from training.core.config import parse_yaml, validate
from training.core.stage import StageInputs
from training.movinet.space import Space, SpaceConfig
from training.movinet.system import MoViNetSystem
from training.registry import all_stages

SMALL = SpaceConfig(
    stem=16,
    widths=(16, 32),
    strides=(2, 2),
    project=64,
    head=24,
    multipliers=(0.5, 1.0, 1.5),
    kernels=("1x3x3", "3x3x3", "5x1x1"),
    expansions=(1.5, 2.0, 3.0),
    expansion_of="reference",
    gates=(True, False),
    min_layers=(1, 1),
    max_layers=(2, 2),
)

PARAMS = Path(__file__).parents[2] / "params.tiny.yaml"


@pytest.fixture(scope="session")
def small_space() -> Space:
    """A space of nets that are quick to build."""
    return Space(SMALL)


def noise(level: int, frames: int, side: int = 64, seed: int = 0) -> np.ndarray:
    """Return frames (T,side,side,3) of noise above a brightness of 0 … 215."""
    return level + np.random.default_rng(seed).integers(0, 40, (frames, side, side, 3)).astype(np.uint8)


def write_model(
    folder: Path,
    stage: str = "movinet_stream",
    *,
    classes: tuple[str, ...] = ("white", "black"),
    seed: int = 0,
    data: dict[str, Any] | None = None,
    transform: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Save a model of a stage with the tiny settings: untrained, but ReZero's branches and positions count.

    Args:
        classes: with ("white", "black") the last layer is set so that a clip's brightness decides.
        data, transform: changes of the data block and of its transform.
        changes: of the stage's config.
    """
    sections = parse_yaml(PARAMS.read_text())
    entry = all_stages()[stage]
    values = {name: sections[section] for name, section in entry.shared.items()} | sections[stage] | changes
    values["data"] = values["data"] | (data or {})
    values["data"]["transform"] = values["data"]["transform"] | (transform or {})
    config = validate(entry.config, values, f"{stage} of the tests")
    torch.manual_seed(seed)
    system = entry.build(StageInputs(config, classes, upstream={}))
    if isinstance(system, MoViNetSystem):
        with torch.no_grad():
            for name, parameter in system.named_parameters():
                if name.endswith((".scale", ".position")):
                    parameter.uniform_(0.5, 1.0)
            system.net.classifier.weight.normal_(std=0.5)
            if classes == ("white", "black"):
                decide_by_brightness(system)
    save_model(
        folder,
        system.state_dict(),
        stage=stage,
        dataset="tiny",
        config=config.model_dump(mode="json"),
        classes=classes,
        decoder="pyav",
    )
    return folder


def decide_by_brightness(system: MoViNetSystem) -> None:
    """Set the last layer to the difference of what it is given for bright and dark clips."""
    hidden: list[torch.Tensor] = []
    net = system.net.eval()
    handle = net.classifier.register_forward_hook(lambda _layer, inputs, _output: hidden.append(inputs[0][0]))
    for level in (200, 0):
        net(torch.from_numpy(noise(level, 8, 32)).permute(3, 0, 1, 2)[None].float() / 255)
    handle.remove()
    bright, dark = hidden
    weight = 6 * (bright - dark) / (bright - dark).square().sum()
    net.classifier.weight.copy_(torch.stack([weight, -weight]))
    middle = weight @ (bright + dark) / 2
    net.classifier.bias.copy_(torch.stack([-middle, middle]))


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """`write_model`."""
    return write_model


@pytest.fixture(scope="session")
def stream_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of `movinet_stream`: classes white and black, by brightness; do not write into it."""
    return write_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="session")
def draw_noise() -> Callable[..., np.ndarray]:
    """`noise`."""
    return noise
