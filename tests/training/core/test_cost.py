"""MACs against arithmetic by hand, for every operator that the models use."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.core.cost import (
    CostError,
    cost_of,
    count_macs,
    count_params,
    expected_cost,
    latency_ms,
    list_models,
    resolve_overrides,
)


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Linear(8, 16), (3, 8), 3 * 8 * 16),
        (nn.Linear(8, 16), (8,), 8 * 16),
        (nn.Linear(8, 16, bias=False), (8,), 8 * 16),
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12), 10 * 12 * 9 * 3 * 8),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), (2, 8, 10, 10), 2 * 25 * 9 * 8),
        (nn.Conv3d(3, 4, 3, padding=1), (1, 3, 4, 6, 6), 4 * 36 * 27 * 3 * 4),
        (nn.Conv1d(3, 4, 3), (1, 3, 10), 8 * 3 * 3 * 4),
        (nn.GRU(8, 16, batch_first=True), (2, 5, 8), 2 * 5 * 3 * 16 * (8 + 16)),
        (nn.LSTM(8, 16, batch_first=True), (2, 5, 8), 2 * 5 * 4 * 16 * (8 + 16)),
        (nn.GRUCell(8, 16), (2, 8), 2 * 3 * 16 * (8 + 16)),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.MaxPool2d(2)), (1, 3, 8, 8), 0),
    ],
)
def test_operators(module, shape, macs):
    assert count_macs(module, torch.randn(shape)) == macs


def test_paper_sizes_of_recurrent_parts():
    """Classifier GRU(3328→1024) with 200 classes: 13.57 MMAC a step; policy GRU part of 9.95 MMAC."""
    classifier = nn.GRU(3328, 1024, batch_first=True, device="meta")
    head = nn.Linear(1024, 200, device="meta")
    step = count_macs(classifier, torch.empty(1, 1, 3328)) + count_macs(head, torch.empty(1, 1024))
    assert step / 1e6 == pytest.approx(13.57, abs=0.005)
    policy = nn.Sequential(nn.Conv2d(1280, 32, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 1024)).to(
        "meta"
    )
    step = count_macs(policy, torch.empty(1, 1280, 7, 7)) + 3 * 1024 * 2048 + 1024 * 49 + 1024
    assert step / 1e6 == pytest.approx(9.95, abs=0.01)


def attention_macs(batch, length, width):
    return batch * length * width * width * 4 + 2 * batch * length * length * width


def test_attention_is_counted_although_kernels_are_fused():
    batch, length, width = 2, 10, 16
    query = torch.randn(batch, 4, length, 4)
    assert count_macs(lambda q: F.scaled_dot_product_attention(q, q, q), query) == 2 * batch * 4 * length * length * 4
    layer = nn.TransformerEncoderLayer(width, 4, 32, batch_first=True)
    expected = attention_macs(batch, length, width) + batch * length * 2 * width * 32
    assert count_macs(layer, torch.randn(batch, length, width)) == expected


def test_inside_inference_mode():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    x = torch.randn(2, 10, 16)
    outside = count_macs(layer, x)
    with torch.inference_mode():
        assert count_macs(layer, x) == outside


def test_products_that_are_added_in_place():
    left, right = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    assert count_macs(lambda: torch.zeros(3, 4, 6).baddbmm_(left, right)) == 3 * 4 * 5 * 6
    assert count_macs(lambda: torch.baddbmm(torch.zeros(3, 4, 6), left, right)) == 3 * 4 * 5 * 6


def test_module_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    net[0].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    count_macs(net, torch.randn(2, 3, 8, 8))
    assert [m.training for m in net] == [False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net[0].weight.device.type == "cpu"
    assert net[0].weight.requires_grad


class TwoPaths(nn.Module):
    def __init__(self):
        super().__init__()
        self.cheap, self.dear = nn.Linear(4, 2), nn.Linear(4, 200)

    def forward(self, x):
        return self.cheap(x), self.dear(x)

    def glance(self, x):
        return self.cheap(x)


def test_method_of_a_module():
    net = TwoPaths()
    assert count_macs(net.glance, torch.randn(1, 4)) == 8
    assert count_macs(net, torch.randn(1, 4)) == 808


def test_shared_parameters_count_once_and_calls_each_time():
    layer = nn.Linear(4, 4, bias=False)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    assert count_params(net) == 16
    assert count_macs(net, torch.randn(1, 4)) == 32


def test_latency_percentiles_are_ordered():
    calls = []
    result = latency_ms(lambda: calls.append(1), warmup=2, repeats=10)
    assert len(calls) == 12
    assert 0 <= result["p50"] <= result["p95"]
    with pytest.raises(ValueError, match="repeats"):
        latency_ms(lambda: None, repeats=0)


def test_expected_cost_is_weighted_by_usage():
    parts = {"glance": 0.3, "crop": 1.3346}
    assert expected_cost(parts, {"glance": 16, "crop": 7.5}) == pytest.approx(16 * 0.3 + 7.5 * 1.3346)
    with pytest.raises(CostError, match=r"no usage for \['crop'\]"):
        expected_cost(parts, {"glance": 16})
    with pytest.raises(CostError, match=r"no cost for \['exit'\]"):
        expected_cost(parts, {"glance": 16, "crop": 1, "exit": 1})
    with pytest.raises(CostError, match="usage of part 'crop'"):
        expected_cost(parts, {"glance": 16, "crop": float("nan")})


def test_overrides_take_the_type_of_their_default():
    defaults = {"patch": 96, "width": 1.0, "glance": True, "net": "resnet50"}
    values = resolve_overrides("m", {"patch": "128", "width": "1.4", "glance": "False", "net": "x"}, defaults)
    assert values == {"patch": 128, "width": 1.4, "glance": False, "net": "x"}
    assert resolve_overrides("m", {}, defaults) == defaults
    with pytest.raises(CostError, match=r"no setting 'pach'.*did you mean 'patch'"):
        resolve_overrides("m", {"pach": "1"}, defaults)
    with pytest.raises(CostError, match=r"'patch' of model 'm' must be int, got '1\.5'"):
        resolve_overrides("m", {"patch": "1.5"}, defaults)
    with pytest.raises(CostError, match="must be bool"):
        resolve_overrides("m", {"glance": "1"}, defaults)


def test_every_listed_model_has_a_row_and_unknown_ones_a_hint():
    models = list_models()
    assert "adafocus_v1" in models
    for name in models:
        row = cost_of(name)
        assert row.gmac > 0
        assert row.params > 0
        assert row.as_dict()["gflop"] == 2 * row.gmac
        assert row.per in ("view", "video", "frame", "segment")
    with pytest.raises(CostError, match="did you mean 'adafocus_v1'"):
        cost_of("adafocus_v")


def test_adafocus_reproduces_the_published_totals():
    for patch, gmac in ((96, 17.18), (128, 26.52)):
        assert cost_of("adafocus_v1", {"patch": str(patch)}).gmac == pytest.approx(gmac, abs=0.01)
