import pytest

from training.movinet.space import Space, SpaceConfig

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


@pytest.fixture(scope="session")
def small_space() -> Space:
    """A space of nets that are quick to build."""
    return Space(SMALL)
