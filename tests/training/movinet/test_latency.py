import json
import random

import pytest
import torch

from training.backbones.movinet_layout import BASE, STREAM, Block, MoViNetLayout
from training.core.config import ConfigError
from training.movinet.latency import LatencyTable, operations, space_operations
from training.movinet.space import Space
from training.movinet.target import CostModel


def invented(space: Space, variant=STREAM, size: int = 32) -> LatencyTable:
    """A table whose times are made up: a part costs what it multiplies."""
    times = {
        str(op): 1e-6 * op.in_channels * op.out_channels * op.side**2 * op.kernel[0] * op.kernel[1]
        for op in space_operations(space, variant, size)
    }
    return LatencyTable(variant, 4, size, 5, "none", "none", times)


@pytest.mark.parametrize("variant", [BASE, STREAM])
def test_parts_of_all_members_are_in_the_table(small_space, variant):
    table, rng = invented(small_space, variant), random.Random(0)
    used = set()
    members = [small_space.largest_genotype(), small_space.smallest_genotype()]
    for genotype in [*members, *(small_space.sample(rng) for _ in range(2500))]:
        used |= set(map(str, operations(small_space.layout(genotype), variant, 32)))
    assert used <= set(table.times)
    # Nothing is measured in vain; what draws have not met is rare.
    assert len(used) > 0.85 * len(table.times)


def test_latency_is_the_sum_of_parts_and_grows_with_them(small_space):
    table = invented(small_space)
    layout = small_space.largest()
    parts = operations(layout, STREAM, 32)
    assert table.predict(layout) == pytest.approx(sum(table.times[str(part)] for part in parts))
    # One layer more of the second block costs exactly that layer's parts.
    block = layout.blocks[1]
    shallow = MoViNetLayout(
        layout.stem, (layout.blocks[0], Block(block.width, block.stride, block.layers[:1])), layout.project, layout.head
    )
    extra = list(parts)
    for part in operations(shallow, STREAM, 32):
        extra.remove(part)
    assert sorted(part.kind for part in extra) == ["depthwise", "expand", "gate", "project"]
    difference = table.predict(layout) - table.predict(shallow)
    assert difference == pytest.approx(sum(table.times[str(part)] for part in extra))
    assert difference > 0


def test_missing_part_is_named(small_space):
    table = invented(small_space)
    with pytest.raises(ConfigError, match="has no entry"):
        table.predict(small_space.largest().scaled(2))


@pytest.mark.parametrize("variant", [BASE, STREAM])
def test_table_is_measured_saved_and_found_again(small_space, variant, tmp_path):
    space = Space(
        small_space.config.model_copy(
            update={"widths": (8,), "strides": (2,), "min_layers": (1,), "max_layers": (2,), "expansions": (2.0,)}
        )
    )
    model = CostModel(variant, 2, 16, 3)
    path = tmp_path / "work" / "latency.json"
    options = {"warmup": 0, "repeats": 1}
    table = LatencyTable.load_or_measure(path, space, model, torch.device("cpu"), **options)
    assert all(time > 0 for time in table.times.values())
    assert set(table.times) == set(map(str, space_operations(space, variant, 16)))
    assert table.predict(space.largest()) > 0
    assert LatencyTable.load_or_measure(path, space, model, torch.device("cpu")) == table
    with pytest.raises(ConfigError, match="frames is 2, this search has 4"):
        LatencyTable.load_or_measure(path, space, CostModel(variant, 4, 16, 3), torch.device("cpu"))
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "device": "another"}))
    with pytest.raises(ConfigError, match="device is another"):
        LatencyTable.load_or_measure(path, space, model, torch.device("cpu"))
    path.write_text("{")
    with pytest.raises(ConfigError, match="no latency table"):
        LatencyTable.load(path)
    assert [file.name for file in path.parent.iterdir()] == ["latency.json"]
