"""The figures of §10 of the specification, and what a model executes."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training.core.cost import count_params
from training.lsts.backbone import SplitResNet
from training.lsts.config import AlignmentConfig, BackboneConfig
from training.lsts.cost import frame_costs, part_costs, published_cost, total_params
from training.lsts.fusion import Alignment, Low2High
from training.lsts.offsets import Offsets
from training.lsts.presets import LAYOUT

GRID = {"init": "grid", "radius": 4, "seed": 0, "learned": True, "clamp": 8.0}
GAUSSIAN = LAYOUT["alignment"]["offsets"]


class Convolutions(nn.Module):
    """The head's convolutions: 9 anchors, 30 classes and background, 2 sets of 4 box values, 7 × 7 bins."""

    def __init__(self):
        super().__init__()
        self.proposals = nn.ModuleList([nn.Conv2d(512, n, 1) for n in (18, 36)])
        self.regions = nn.ModuleList([nn.Conv2d(512, 49 * n, 1) for n in (31, 8)])

    def forward(self, features):
        first, second = features.chunk(2, 1)
        return [conv(first) for conv in self.proposals] + [conv(second) for conv in self.regions]


def alignment_config(layers, offsets):
    return AlignmentConfig(**{**LAYOUT["alignment"], "offsets": offsets, "quality": layers, "low2high": layers})


def parts_of(layers="code", offsets=GRID):
    with torch.device("meta"):
        head = Convolutions()
    return part_costs(BackboneConfig(**LAYOUT["backbone"]), alignment_config(layers, offsets), head, 600, 1000)


@pytest.fixture(scope="module")
def code():
    return parts_of()


@pytest.fixture(scope="module")
def paper():
    return parts_of("paper")


def test_parts(code, paper):
    """GMAC and millions of parameters, as the table has them."""
    table = {
        "low": (32.38, 6.31),
        "high": (131.63, 55.07),
        "low2high": (7.69, 3.21),
        "embedding": (0.63, 0.262),
        "quality": (0.72, 0.30),
        "head": (0.07 + 2.34, 0.03 + 0.98),
    }
    for name, (gmac, millions) in table.items():
        assert code[name].macs / 1e9 == pytest.approx(gmac, abs=0.006), name
        assert code[name].params / 1e6 == pytest.approx(millions, abs=0.006), name
    for name, gmac, millions in (("low2high", 19.77, 8.26), ("quality", 5.66, 2.36)):
        assert paper[name].macs / 1e9 == pytest.approx(gmac, abs=0.006), name
        assert paper[name].params / 1e6 == pytest.approx(millions, abs=0.006), name
    assert {name: code[name] for name in ("low", "high")} == {name: paper[name] for name in ("low", "high")}


def test_sampling(code):
    """81 and 40 locations, every channel interpolated; and by whole shifts: 1280 channels per shift and cell."""
    normal = parts_of(offsets=GAUSSIAN)
    assert code["sampling"].macs / 1e9 == pytest.approx(1.24, abs=0.005)
    assert normal["sampling"].macs / 1e9 == pytest.approx(0.61, abs=0.005)
    assert normal["shifts"].macs / 1e9 == pytest.approx(0.09, abs=0.015)
    assert code["shifts"].macs / code["sampling"].macs == pytest.approx(1 / 5, rel=0.01)
    assert (code["sampling"].params, normal["sampling"].params) == (162, 80)


def test_frames(code, paper):
    published = published_cost(code)
    assert published.single == pytest.approx(166.4, abs=0.05)
    assert published.key == pytest.approx(170.3, abs=0.05)
    assert published.other == pytest.approx(46.4, abs=0.05)
    assert published.average(10) == pytest.approx(58.8, abs=0.05)
    assert published.average(10) / published.single == pytest.approx(0.35, abs=0.005)
    assert published.average(10) == pytest.approx((published.key + 9 * published.other) / 10)
    printed = published_cost(paper)
    assert printed.average(10) == pytest.approx(79.6, abs=0.06)
    assert printed.average(10) / printed.single == pytest.approx(0.48, abs=0.005)


def test_intervals():
    published = published_cost(parts_of(offsets=GAUSSIAN))
    assert published.other == pytest.approx(45.8, abs=0.05)
    for interval, ratio in ((2, 0.65), (5, 0.42), (10, 0.35), (20, 0.31)):
        assert published.average(interval) / published.single == pytest.approx(ratio, abs=0.005)
    assert published.single / published.average(10) == pytest.approx(2.8, abs=0.1)


def test_parameters(code, paper):
    assert [n / 1e6 for n in total_params(code)] == pytest.approx([62.4, 67.2], abs=0.05)
    assert [n / 1e6 for n in total_params(paper)] == pytest.approx([62.4, 76.4], abs=0.05)
    # In units of 2^20, with the statistics of batch norm, the literature's figure for R-FCN.
    statistics = 2 * 52_672
    assert (total_params(code)[0] + statistics) / 2**20 == pytest.approx(59.6, abs=0.05)


# --- what runs --------------------------------------------------------------------------------


def network(layers="code", offsets=GAUSSIAN, *, srfu=True, dfa=True, sampled=True):
    config = alignment_config(layers, offsets)
    with torch.device("meta"):
        table = Offsets(config.offsets) if sampled else None
        backbone = SplitResNet(BackboneConfig(**LAYOUT["backbone"]))
        return SimpleNamespace(
            backbone=backbone,
            head=Convolutions(),
            srfu=Alignment(config, 1024, table) if srfu else None,
            dfa=Alignment(config, 1024, table) if dfa else None,
            low2high=Low2High(1024, 1024, layers) if dfa else None,
        )


def test_what_runs_is_less_than_what_is_published():
    """Descriptors and quality of the memory once per key, and sampling by shifts."""
    published, executed = published_cost(parts_of(offsets=GAUSSIAN)), frame_costs(network(), 600, 1000)
    assert executed.first == pytest.approx(published.single, rel=1e-12)
    # Once per key: descriptors, and the first layer of the quality.
    assert executed.prepare == pytest.approx(2 * 0.6276, abs=0.001)
    assert executed.other < published.other - 1
    # Low-level and light network, head, both of a frame's 1×1 convolutions, the rest of two maps' quality.
    known = 32.375 + 7.688 + 2.409 + 2 * 0.628 + 2 * 0.088
    assert executed.other == pytest.approx(known + 0.5, abs=0.2)
    assert executed.key == pytest.approx(published.single + 4 * 0.628 + 2 * 0.088 + 0.5, abs=0.2)
    average = (executed.key + executed.prepare + 9 * executed.other) / 10
    assert 0.33 < average / executed.first < 0.35


def test_parts_that_a_method_lacks_cost_nothing():
    plain = frame_costs(network(srfu=False, dfa=False), 600, 1000)
    assert plain == (plain.first, plain.first, 0, 0)
    updating = frame_costs(network(dfa=False), 600, 1000)
    assert updating.key > updating.first
    assert (updating.other, updating.prepare) == (0, 0)
    # The oracle warps instead: no descriptors, no products, every layer of both maps' quality.
    oracle = frame_costs(network(sampled=False), 600, 1000)
    assert oracle.prepare == 0
    assert oracle.key - oracle.first == pytest.approx(2 * 0.716, abs=0.001)


def test_counting_leaves_a_model_on_the_host_as_it_was():
    """The offsets that two alignments share lie on the host, the count on meta tensors."""
    config = BackboneConfig(**{**LAYOUT["backbone"], "depth": 18, "split": 1, "width": 0.125, "feature_channels": 64})
    alignment = AlignmentConfig(**{**LAYOUT["alignment"], "embed_channels": 8})
    offsets = Offsets(alignment.offsets)
    backbone = SplitResNet(config)
    model = SimpleNamespace(
        backbone=backbone,
        head=nn.Conv2d(64, 4, 1),
        srfu=Alignment(alignment, 64, offsets),
        dfa=Alignment(alignment, 64, offsets),
        low2high=Low2High(backbone.low_channels, 64, "code"),
    )
    costs = frame_costs(model, 96, 128)
    assert 0 < costs.prepare < costs.other < costs.first < costs.key
    assert model.dfa.offsets is offsets
    assert not offsets.table.is_meta
    # A table that reaches further has more shifts.
    with torch.no_grad():
        offsets.table.mul_(2)
    assert frame_costs(model, 96, 128).other > costs.other
    assert count_params(model.dfa) == count_params(model.srfu)


@pytest.mark.skipif(importlib.util.find_spec("training.lsts.model") is None, reason="the model is not there yet")
def test_named_model():
    from training.core.config import ConfigError
    from training.lsts.presets import MODELS

    row = MODELS["lsts_r101"]({})
    assert row.gmac == pytest.approx(58.2, abs=0.05)
    assert row.params / 1e6 == pytest.approx(67.2, abs=0.05)
    assert row.measured["ratio"] == pytest.approx(0.35, abs=0.005)
    grid = "{init: grid, radius: 4, seed: 0, learned: true, clamp: 8}"
    printed = MODELS["lsts_r101"](
        {"alignment.offsets": grid, "alignment.quality": "paper", "alignment.low2high": "paper"}
    )
    assert printed.gmac == pytest.approx(79.6, abs=0.06)
    assert MODELS["lsts_r101"]({"interval": "2"}).measured["ratio"] == pytest.approx(0.65, abs=0.005)
    smaller = MODELS["lsts_r101"]({"backbone.depth": "50", "height": "320", "width": "480"})
    assert smaller.gmac < row.gmac / 3
    with pytest.raises(ConfigError, match="no setting hight"):
        MODELS["lsts_r101"]({"hight": "3"})
    with pytest.raises(ConfigError, match="interval"):
        MODELS["lsts_r101"]({"interval": "0"})
    with pytest.raises(ConfigError, match="quality"):
        MODELS["lsts_r101"]({"alignment.quality": "best"})
