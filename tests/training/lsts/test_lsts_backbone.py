"""The split network against a plain one written from the description; weights in torchvision's layout."""

import hashlib

import pytest
import torch
import torch.nn.functional as F

from training.backbones.resnet import DEPTHS, ResNet
from training.core.config import ConfigError, WeightsFile
from training.core.weights import WeightError
from training.layers.norms import eval_norms
from training.lsts.backbone import SplitResNet
from training.lsts.config import BackboneConfig


def configured(**changes):
    values = {
        "depth": 18,
        "width": 0.125,
        "split": 1,
        "stride": 16,
        "downsample": "second",
        "feature_channels": 16,
        "frozen_stages": 2,
        "weights": None,
    }
    return BackboneConfig(**{**values, **changes})


def built(seed=0, **changes):
    """A network in which every parameter and statistic has a value of its own."""
    torch.manual_seed(seed)
    net = SplitResNet(configured(**changes))
    for name, value in net.state_dict().items():
        if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("bias", "running_mean")):
            value.normal_(std=0.3)
    return net.double().eval()


def plainly(net, image):
    """The two results, operator by operator, from the state dict."""
    state, config = net.state_dict(), net.config
    kind, counts = DEPTHS[config.depth]

    def conv(x, name, stride=1, dilation=1):
        kernel = state[f"{name}.weight"].shape[-1]
        pad = 3 if kernel == 7 else dilation * (kernel // 2)
        step = dilation if kernel == 3 else 1
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, pad, step)

    def norm(x, name):
        values = [state[f"{name}.{v}"] for v in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values, False, 0.1, 1e-5)

    x = norm(conv(image, "conv1", 2), "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    low = before = x
    for stage in range(4):
        stride = (1, 2, 2, 1)[stage] if config.stride == 16 else (1, 2, 1, 1)[stage]
        dilation = (1, 1, 1, 2)[stage] if config.stride == 16 else (1, 1, 2, 4)[stage]
        for position in range(counts[stage]):
            if (stage, position) == (2, config.split):
                low = before
            name, side = f"layer{stage + 1}.{position}", stride if position == 0 else 1
            shortcut = x
            if f"{name}.downsample.0.weight" in state:
                shortcut = norm(conv(x, f"{name}.downsample.0", side), f"{name}.downsample.1")
            if kind == "basic":
                x = norm(conv(x, f"{name}.conv1", side, dilation), f"{name}.bn1").relu()
                x = norm(conv(x, f"{name}.conv2", 1, dilation), f"{name}.bn2")
            else:
                sides = (side, 1) if config.downsample == "first" else (1, side)
                x = norm(conv(x, f"{name}.conv1", sides[0]), f"{name}.bn1").relu()
                x = norm(conv(x, f"{name}.conv2", sides[1], dilation), f"{name}.bn2").relu()
                x = norm(conv(x, f"{name}.conv3"), f"{name}.bn3")
            before = x + shortcut
            x = before.relu()
        if stage == 2 and config.split == counts[2]:
            low = before
    return low, conv(x, "feat", 1, 6).relu()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"split": 0, "stride": 8},
        {"split": 2},
        {"stride": 8, "depth": 34, "split": 3},
        {"depth": 50, "downsample": "first", "split": 4},
        {"depth": 50, "downsample": "second", "split": 2, "stride": 8},
        {"depth": 50, "downsample": "first", "split": 6, "stride": 8},
    ],
)
def test_both_parts_are_what_the_description_says(changes):
    net = built(**changes)
    image = torch.randn(2, 3, 70, 53, dtype=torch.float64)
    with torch.no_grad():
        low = net.low(image)
        kept = low.clone()
        features = net.high(low)
        expected_low, expected = plainly(net, image)
    assert torch.equal(low, kept), "the high-level network changed the map that low2high needs"
    assert float((low - expected_low).abs().max()) < 1e-10 * float(expected_low.abs().max())
    assert float((features - expected).abs().max()) < 1e-10 * float(expected.abs().max())
    assert float(low.min()) < 0, "the sum before its ReLU"
    assert float(features.min()) == 0 < float(features.max())
    size = net.feature_size(70, 53)
    assert low.shape == (2, net.low_channels, *size)
    assert features.shape == (2, net.channels, *size)
    assert torch.equal(net(image), features)


def test_where_the_stride_is_matters():
    """Control of the comparison above."""
    first, second = (built(depth=50, downsample=where) for where in ("first", "second"))
    second.load_state_dict(first.state_dict())
    image = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        assert float((first.low(image) - second.low(image)).abs().max()) > 0.1


def test_published_sizes():
    with torch.device("meta"):
        net = SplitResNet(configured(depth=101, width=1.0, split=4, downsample="first", feature_channels=1024))
        low = net.low(torch.empty(1, 3, 600, 1000))
        assert low.shape == (1, 1024, 38, 63)
        assert net.high(low).shape == (1, 1024, 38, 63)
    assert net.feature_size(600, 1000) == (38, 63)
    assert net.feature_size(608, 1008) == (38, 63)
    assert net.feature_size(609, 1009) == (39, 64)
    assert (net.low_channels, net.channels) == (1024, 1024)
    # 3, 4 and 4 blocks are low, of 33.
    assert len(net.low_parts()) == 2 + 3 + 4 + 4
    convs = {name: m for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert convs["layer3.0.conv1"].stride == convs["layer3.0.downsample.0"].stride == (2, 2)
    assert convs["layer3.0.conv2"].stride == convs["layer4.0.conv1"].stride == (1, 1)
    assert convs["layer4.0.conv2"].dilation == convs["layer4.2.conv2"].padding == (2, 2)
    assert convs["feat"].dilation == convs["feat"].padding == (6, 6)
    assert [name for name, conv in convs.items() if conv.bias is not None] == ["feat"]


def test_cuts_that_do_not_exist():
    with pytest.raises(ConfigError, match="stage 4 of a ResNet-18 has 2 blocks"):
        SplitResNet(configured(split=3))
    with pytest.raises(ConfigError, match="needs stride 8"):
        SplitResNet(configured(split=0))


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [0, 1, 2, 5])
def test_frozen_stages(stages):
    net = SplitResNet(configured(frozen_stages=stages))
    net.high(net.low(torch.randn(1, 3, 64, 64))).sum().backward()
    frozen = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is None}
    order = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    assert frozen == {name for part in order[:stages] for name in part}
    assert {id(p) for part in net.frozen() for p in part.parameters()} == {
        id(p) for p in net.parameters() if not p.requires_grad
    }


def test_statistics_stay_while_scales_learn():
    net = SplitResNet(configured())
    net.train()
    eval_norms(net)
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert float(net.layer3[0].bn1.weight.grad.abs().max()) > 0
    net.train()
    net(torch.randn(2, 3, 64, 64))
    assert not torch.equal(dict(net.named_buffers())["layer3.0.bn1.running_mean"], before["layer3.0.bn1.running_mean"])


# --- published weights ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A classifier's weights, as files of them are laid out."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(ResNet(18, 1000).state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_load_by_path_and_checksum(published):
    path, sha256 = published
    net = SplitResNet(configured(width=1.0, weights=WeightsFile(path=path.name, sha256=sha256)))
    feat = net.feat.weight.detach().clone()
    report = net.load(path.parent)
    assert report.complete
    assert set(report.ignored) == {"fc.weight", "fc.bias", "feat.weight", "feat.bias"}
    assert torch.equal(net.feat.weight, feat)
    classifier = ResNet(18, 1000)
    classifier.load_state_dict(torch.load(path, weights_only=True))
    image = torch.randn(1, 3, 64, 64)
    net.eval()
    classifier.eval()
    with torch.no_grad():
        low = net.low(image)
        # The classifier's own blocks up to the cut.
        expected = classifier.layer3[0](classifier.layer2(classifier.layer1(classifier.stem(image))))
    assert torch.equal(low.relu(), expected)


def test_weights_that_do_not_fit(published):
    path, sha256 = published

    def load(**changes):
        named = {"path": path.name, "sha256": sha256} | changes.pop("file", {})
        net = SplitResNet(configured(**{"width": 1.0, "weights": WeightsFile(**named), **changes}))
        before = {name: value.clone() for name, value in net.state_dict().items()}
        try:
            net.load(path.parent)
        finally:
            assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    with pytest.raises(WeightError, match="the params file says"):
        load(file={"sha256": "0" * 64})
    with pytest.raises(WeightError, match="no such weight file"):
        load(file={"path": "other.pth"})
    with pytest.raises(WeightError, match=r"mismatched[\s\S]*layer1.0.conv1.weight"):
        load(width=0.5)
    with pytest.raises(WeightError, match=r"missing[\s\S]*layer1.2.conv1.weight"):
        load(depth=34)
    assert SplitResNet(configured()).load(path.parent) is None
