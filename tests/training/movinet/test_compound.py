import itertools

import pytest

from training.backbones.movinet import MoViNet
from training.backbones.movinet_cost import conv_macs
from training.backbones.movinet_layout import BASE, STREAM, architecture
from training.core.config import ConfigError
from training.movinet.compound import scale_family


def test_family_has_the_wanted_costs_and_grows_on_every_axis():
    layout = architecture("a0")
    members = scale_family(layout, STREAM, 50, 172, (0.5, 1, 2, 4), seed=0, draws=200)
    one = conv_macs(layout, STREAM, 50, 172)["total"] / 1e9
    for member in members:
        gmac = conv_macs(member.layout, STREAM, member.frames, member.size)["total"] / 1e9
        assert gmac == member.gmac
        assert abs(gmac / (member.factor * one) - 1) <= 0.05
        assert architecture(member.entry()["architecture"]) == member.layout
        assert member.layout.head == layout.head
    assert members[1].layout == layout
    for small, large in itertools.pairwise(members):
        assert (small.size, small.frames) <= (large.size, large.frames)
        assert small.layout.num_layers <= large.layout.num_layers
    assert members[3].layout.num_layers > layout.num_layers > 0
    coefficients = {member.coefficients for member in members}
    assert len(coefficients) == 1


def test_members_can_be_built_and_depend_on_the_seed():
    first, again, other = (scale_family(architecture("a0"), BASE, 16, 64, (2,), seed, draws=60) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert MoViNet(first[0].layout, BASE, num_classes=3).layout == first[0].layout


def test_first_layer_keeps_its_place_when_blocks_shrink_or_grow():
    layout = architecture("a2")
    for factor in (0.25, 4):
        (member,) = scale_family(layout, BASE, 50, 224, (factor,), 0, axes=("depth",), tolerance=0.6, draws=1)
        for block, old in zip(member.layout.blocks, layout.blocks, strict=True):
            assert block.layers[0] == old.layers[0]
            assert set(block.layers) <= set(old.layers)
            assert block.width == old.width
        assert (member.size, member.frames) == (224, 50)


def test_costs_that_cannot_be_met_are_refused():
    with pytest.raises(ConfigError, match="Allow more axes"):
        scale_family(architecture("a0"), BASE, 2, 64, (1.3,), 0, axes=("frames",), tolerance=0.01, draws=5)
    with pytest.raises(ConfigError, match="axes must be"):
        scale_family(architecture("a0"), BASE, 2, 64, (2,), 0, axes=("colour",))
    with pytest.raises(ConfigError, match="factors"):
        scale_family(architecture("a0"), BASE, 2, 64, (), 0)
