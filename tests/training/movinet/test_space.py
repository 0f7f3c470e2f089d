import json
import math
import random

import numpy as np
import pytest

from training.backbones.movinet_cost import conv_macs
from training.backbones.movinet_layout import ARCHITECTURES, BASE, architecture, places
from training.core.config import ConfigError, validate
from training.movinet.space import (
    MOVINET_A2_OWN_DEPTHS,
    MOVINET_A2_SPACE,
    Genotype,
    Space,
    SpaceConfig,
)
from training.movinet.target import Budget, CostModel, TargetConfig

SPACES = {"10 layers": MOVINET_A2_SPACE, "own depths": MOVINET_A2_OWN_DEPTHS}


def per_frame(layout) -> float:
    return conv_macs(layout, BASE, 50, 224)["total"] / 50e6


@pytest.mark.parametrize(("name", "expected"), [("own depths", 53.4), ("10 layers", 99.6)])
def test_number_of_members_is_that_of_the_reference(name, expected):
    assert Space(SPACES[name]).size_log10() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("name", "percentiles", "share"),
    [("own depths", (159, 230, 318), 0.143), ("10 layers", (254, 387, 548), 0.033)],
)
def test_costs_of_members_are_those_of_the_reference(name, percentiles, share):
    space = Space(SPACES[name].model_copy(update={"expansion_of": "width"}))
    rng = random.Random(0)
    costs = np.array([per_frame(space.layout(space.sample(rng))) for _ in range(500)])
    # Sampling error of the percentiles of 500 draws is about 3 %.
    np.testing.assert_allclose(np.percentile(costs, (10, 50, 90)), percentiles, rtol=0.08)
    spread = math.sqrt(share * (1 - share) / len(costs))
    assert abs((np.abs(costs / 231 - 1) <= 0.05).mean() - share) < 4 * spread


def test_expansion_of_the_reference_width_narrows_the_costs():
    """Control: with the other reading of the expansion the percentiles above do not hold."""
    rng = random.Random(0)
    space = Space(MOVINET_A2_OWN_DEPTHS)
    costs = np.array([per_frame(space.layout(space.sample(rng))) for _ in range(500)])
    assert np.percentile(costs, 90) < 0.94 * 318


def test_released_a2_lies_in_the_space_but_for_some_expansions():
    released, space = architecture("a2"), Space(MOVINET_A2_OWN_DEPTHS)
    config = space.config
    assert [len(block.layers) for block in released.blocks] == list(config.max_layers)
    found = total = 0
    for index, block in enumerate(released.blocks):
        assert block.width in {space.channels(config.widths[index], i) for i in range(3)}
        allowed = {space.expanded(index, 0, i) for i in range(6)}
        for layer in block.layers:
            assert layer.kernel in space.kernels
            found, total = found + (layer.expand in allowed), total + 1
    assert found / total > 0.9
    # Control: multiples of the multiplied width miss most of them.
    other = Space(config.model_copy(update={"expansion_of": "width"}))
    kept = sum(
        layer.expand in {other.expanded(index, 0, i) for i in range(6)}
        for index, block in enumerate(released.blocks)
        for layer in block.layers
    )
    assert kept / total < 0.6


def test_largest_holds_every_member(small_space):
    space = small_space
    largest, rng = space.largest(), random.Random(1)
    wide = {place.name: place for place in places(largest)}
    for _ in range(200):
        layout = space.layout(space.sample(rng))
        assert layout.stem <= largest.stem
        assert layout.project <= largest.project
        for place in places(layout):
            assert place.layer.expand <= wide[place.name].layer.expand
            assert place.out_channels <= wide[place.name].out_channels
    smallest = space.layout(space.smallest_genotype())
    assert smallest.num_layers == sum(space.config.min_layers)
    assert not any(place.layer.gate for place in places(smallest))


def test_genotype_is_plain_json_and_comes_back(small_space):
    genotype = small_space.sample(random.Random(2))
    text = json.dumps(genotype.to_json())
    assert Genotype.from_json(json.loads(text)) == genotype
    with pytest.raises(ValueError, match="no genotype"):
        Genotype.from_json({"stem": 0, "project": 0})
    with pytest.raises(ValueError, match="no genotype"):
        Genotype.from_json({"stem": 0, "project": 0, "blocks": [{"width": 0, "layers": [[1, 2]]}]})


def test_entry_of_a_member_can_be_read_as_an_architecture(small_space):
    layout = small_space.layout(small_space.sample(random.Random(3)))
    assert architecture(layout.entry()) == layout
    assert layout.entry() not in ARCHITECTURES.values()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": 9}, "stem"),
        ({"blocks": []}, "0 blocks"),
        ({"blocks": [{"width": 0, "layers": []}, {"width": 0, "layers": [[0, 0, 0]]}]}, "block 2 .* 0 layers"),
        (
            {"blocks": [{"width": 0, "layers": [[0, 7, 0]]}, {"width": 0, "layers": [[0, 0, 0]]}]},
            "expansion of layer 0",
        ),
        ({"blocks": [{"width": 5, "layers": [[0, 0, 0]]}, {"width": 0, "layers": [[0, 0, 0]]}]}, "width of block 2"),
    ],
)
def test_genotype_of_another_space_is_refused(small_space, change, message):
    genotype = Genotype.from_json({**small_space.smallest_genotype().to_json(), **change})
    with pytest.raises(ValueError, match=message):
        small_space.layout(genotype)


def test_draws_depend_on_the_seed_only(small_space):
    def draws(seed):
        rng = random.Random(seed)
        return [small_space.sample(rng) for _ in range(5)]

    assert draws(4) == draws(4)
    assert draws(4) != draws(5)


def test_members_near_a_cost_are_within_the_tolerance_and_counted():
    space = Space(MOVINET_A2_OWN_DEPTHS.model_copy(update={"expansion_of": "width"}))
    rng = random.Random(0)
    drawn = [space.sample_near(rng, per_frame, 231, 0.05) for _ in range(25)]
    assert all(abs(d.cost / 231 - 1) <= 0.05 and d.cost == per_frame(space.layout(d.genotype)) for d in drawn)
    # A share of 14 % of the members: 7 draws each in the mean.
    assert 3 < np.mean([d.draws for d in drawn]) < 14


def test_cost_out_of_reach_is_refused_with_what_can_be_reached(small_space):
    model = CostModel(BASE, 8, 64, 10)
    with pytest.raises(ConfigError, match=r"in 50 draws .* Drawn costs reach from"):
        small_space.sample_near(random.Random(0), lambda layout: model.of(layout, "gmac"), 99.0, 0.05, draws=50)


def differing(a: Genotype, b: Genotype) -> list[str]:
    kinds = [name for name in ("stem", "project") if getattr(a, name) != getattr(b, name)]
    for one, two in zip(a.blocks, b.blocks, strict=True):
        kinds += ["width"] if one.width != two.width else []
        kinds += ["depth"] * abs(len(one.layers) - len(two.layers))
        for left, right in zip(one.layers, two.layers, strict=False):
            kinds += [k for k in ("kernel", "expansion", "gate") if getattr(left, k) != getattr(right, k)]
    return kinds


def test_mutation_changes_one_choice_and_the_architecture(small_space):
    rng, seen = random.Random(0), set()
    genotype = small_space.sample(rng)
    for _ in range(400):
        child = small_space.mutate(genotype, rng)
        assert len(differing(genotype, child)) == 1
        assert small_space.layout(child) != small_space.layout(genotype)
        seen |= set(differing(genotype, child))
        genotype = child
    assert seen == {"stem", "project", "width", "depth", "kernel", "expansion", "gate"}


def test_space_of_one_member_cannot_be_mutated(small_space):
    one = {"multipliers": (1.0,), "kernels": ("3x3x3",), "expansions": (2.0,), "gates": (True,), "max_layers": (1, 1)}
    space = Space(small_space.config.model_copy(update=one))
    assert space.count() == 1
    with pytest.raises(ConfigError, match="one architecture"):
        space.mutate(space.largest_genotype(), random.Random(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [2]}, "one entry per block"),
        ({"min_layers": [2, 3]}, "min_layers ≤ max_layers"),
        ({"kernels": ["3x3x5"]}, "height and width"),
        ({"kernels": ["3x3x3", "3×3×3"]}, "twice"),
        ({"gates": [True, True]}, "twice"),
        ({"expansions": [0.0]}, "positive"),
        ({"surely_not_a_key": 1}, "surely_not_a_key"),
    ],
)
def test_settings_that_make_no_space_are_refused(small_space, change, message):
    with pytest.raises(ConfigError, match=message):
        validate(SpaceConfig, {**small_space.config.model_dump(), **change}, "space")


def test_costs_of_a_base_net_have_no_state(small_space):
    model = CostModel(BASE, 8, 64, 10)
    assert set(model.facts(small_space.largest())) == {"gmac", "params"}
    with pytest.raises(ConfigError, match="no state"):
        model.of(small_space.largest(), "state_mb")
    with pytest.raises(ConfigError, match="no latency table"):
        model.of(small_space.largest(), "latency_ms")
    budget = Budget(TargetConfig(kind="gmac", value=2.0, tolerance=0.1), model)
    assert budget.within(2.19)
    assert not budget.within(2.21)
    assert not budget.within(math.nan)
