"""Sub-networks of segments: sizes, pools over time, published weights."""

import hashlib

import pytest
import torch
from torch import nn

from training.adamml.config import NetConfig
from training.adamml.networks import SegmentNet, channels_of, fold_frames
from training.core.config import WeightsFile
from training.core.cost import count_params
from training.core.weights import WeightError
from training.layers.temporal_pool import pool_frames

TINY = {"channels": (4, 6, 8)}


def net_of(name="tiny_glance", channels=3, num_classes=5, dropout=0.0, *, norms="batch", options=None):
    options = TINY if options is None and name.startswith("tiny") else options or {}
    torch.manual_seed(0)
    return SegmentNet(NetConfig(name=name, options=options, weights=None, norms=norms), channels, num_classes, dropout)


def with_statistics(net):
    """Put a net into eval mode with the statistics of a batch of noise, so that no activation dies out."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(torch.randn(4, 1, net.channels, 48, 48))
    return net.eval()


# --- sizes (§3) ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modality", "name", "params"),
    [
        ("rgb", "resnet50", 23_571_551),
        ("flow", "resnet50", 23_593_503),
        ("rgbdiff", "resnet50", 23_609_183),
        ("audio", "mobilenetv2", 2_263_007),
    ],
)
def test_parameters_with_31_classes(modality, name, params):
    with torch.device("meta"):
        assert count_params(net_of(name, channels_of(modality, 6), 31, 0.5)) == params


def test_channels_of_modalities():
    assert [channels_of(modality, 6) for modality in ("rgb", "audio", "flow", "rgbdiff")] == [3, 1, 10, 15]
    assert [channels_of(modality, 2) for modality in ("flow", "rgbdiff")] == [2, 3]
    assert channels_of("rgb", 1) == 3
    with pytest.raises(ValueError, match="at least 2"):
        channels_of("flow", 1)
    with pytest.raises(ValueError, match="unknown modality 'depth'"):
        channels_of("depth", 6)


# --- time (§3) ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frames", "watched", "sizes"),
    [
        ("resnet50", 8, ("conv1", "layer1", "layer2", "layer3", "layer4"), [8, 8, 4, 2, 1]),
        ("mobilenetv2", 4, ("features.6", "features.7", "features.13", "features.14", "features.18"), [4, 2, 2, 1, 1]),
        ("mobilenetv2", 1, ("features.6", "features.7", "features.14"), [1, 1, 1]),
        ("resnet18", 5, ("layer1", "layer2", "layer3", "layer4"), [5, 3, 2, 1]),
    ],
)
def test_frames_become_fewer_from_stage_to_stage(name, frames, watched, sizes):
    with torch.device("meta"):
        net, x = net_of(name).eval(), torch.empty(3, frames, 3, 64, 64)
    seen = {}
    for part in watched:

        def look(module, inputs, part=part):
            seen[part] = inputs[0].shape[0] // 3

        net.backbone.get_submodule(part).register_forward_pre_hook(look)
    assert net(x).shape == (3, 5)
    assert [seen[part] for part in watched] == sizes
    assert net.frames_left(frames) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny_local", TINY),
        ("mobilenetv2", {"width": 0.35}),
        ("resnet18", {}),
        pytest.param("resnet50", {}, marks=pytest.mark.slow),
    ],
)
def test_a_still_segment_scores_as_its_frame(name, options):
    """Pools over equal frames change nothing: the score is that of the frame in a net without pools."""
    net = with_statistics(net_of(name, options=options)).double()
    image = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        pooled = net.backbone(image)
        expected = net.head(pooled).float()
        still = image[:, None].expand(-1, 8, -1, -1, -1)
        assert torch.allclose(net(image[:, None]), expected, atol=1e-6)
        assert torch.allclose(net(still), expected, atol=1e-6)
        moving = torch.cat((still[:, :7], torch.randn(2, 1, 3, 48, 48, dtype=torch.float64)), 1)
        assert not torch.allclose(net(moving), expected, atol=1e-3)


def test_frames_that_remain_are_averaged_after_the_linear_layer():
    net = with_statistics(net_of())
    x = torch.randn(2, 8, 3, 16, 16)
    assert net.frames_left(8) == 2
    first, second, third = net.backbone.parts()
    with torch.no_grad():
        maps = third(pool_frames(second(pool_frames(first(x.flatten(0, 1)), 8)), 4))
        logits = net.head(maps.mean((2, 3))).view(2, 2, 5)
        assert torch.allclose(net(x), logits.mean(1), atol=1e-6)


def test_without_classes_features_come_out():
    net = with_statistics(net_of(num_classes=None))
    assert net.head is None
    x = torch.randn(2, 4, 3, 16, 16)
    with torch.no_grad():
        features = net(x)
        assert features.shape == (2, net.out_channels) == (2, 8)
        torch.manual_seed(0)
        with_head = with_statistics(net_of())
        with_head.backbone.load_state_dict(net.backbone.state_dict())
        assert torch.allclose(with_head(x), with_head.head(features), atol=1e-6)


def test_logits_are_fp32_under_autocast():
    net = net_of().eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.randn(1, 4, 3, 16, 16)).dtype == torch.float32


def test_segments_do_not_mix():
    net = with_statistics(net_of())
    x = torch.randn(3, 4, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(net(x)[1:2], net(x[1:2]), atol=1e-6)


# --- layout, modes, gradients -------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_run_in_channels_last(channels):
    net = net_of(channels=channels).eval()
    seen = []
    net.backbone.stages[2].register_forward_hook(lambda *args: seen.append(args[2]))
    net(torch.randn(2, 4, channels, 16, 16))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not seen[0].is_contiguous()


def test_folding_copies_only_what_lies_otherwise():
    rows = torch.randn(2, 4, 8, 8, 3).permute(0, 1, 4, 2, 3)
    sound = torch.randn(2, 1, 1, 8, 8)
    planes = torch.randn(2, 4, 3, 8, 8)
    for x, copied in ((rows, False), (sound, False), (planes, True)):
        folded = fold_frames(x)
        assert torch.equal(folded, x.flatten(0, 1))
        assert (folded.data_ptr() != x.data_ptr()) == copied


def test_fixed_norms_keep_their_statistics():
    x = torch.randn(2, 4, 3, 16, 16)
    for norms, moves in (("fixed", False), ("batch", True)):
        net = net_of(norms=norms).train()
        before = net.backbone.stages[0][1].running_mean.clone()
        net(x)
        assert net.head[0].training
        assert torch.equal(net.backbone.stages[0][1].running_mean, before) != moves


@pytest.mark.parametrize(("name", "options"), [("tiny_local", TINY), ("resnet18", {})])
def test_every_parameter_gets_a_gradient(name, options):
    net = net_of(name, options=options)
    net(torch.randn(2, 4, 3, 32, 32)).square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_compiles_into_one_graph():
    net = with_statistics(net_of())
    x = torch.randn(2, 4, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(torch.compile(net, fullgraph=True, backend="eager")(x), net(x), atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'r3d50' takes videos"):
        net_of("r3d50")
    with pytest.raises(ValueError, match="must not have in_channels"):
        net_of(options={"in_channels": 3})
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        net_of("resnet5O")


# --- published weights (§3) ---------------------------------------------------------------------


def published(folder, source, head, **extra):
    """Write the state dict of a net over RGB images as a public file."""
    state = {**source.state_dict(), f"{head}.weight": torch.zeros(1000, 4), f"{head}.bias": torch.zeros(1000), **extra}
    path = folder / "weights.pth"
    torch.save(state, path)
    return WeightsFile(path=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("channels", [1, 3, 10, 15])
@pytest.mark.parametrize(
    ("name", "options", "stem", "head"),
    [
        ("resnet18", {}, "conv1.weight", "fc"),
        ("mobilenetv2", {}, "features.0.0.weight", "classifier.1"),
        ("tiny_glance", TINY, "stages.0.0.weight", "fc"),
    ],
)
def test_stem_of_other_channels_starts_from_the_mean(tmp_path, name, options, stem, head, channels):
    source = with_statistics(net_of(name, num_classes=None, options=options)).backbone
    torch.manual_seed(1)
    net = SegmentNet(NetConfig(name=name, options=options, weights=None, norms="batch"), channels, 5, 0.0)
    own_head = net.head[1].weight.clone()
    report = net.load(published(tmp_path, source, head), tmp_path)
    assert report.complete
    theirs, ours = source.state_dict(), net.backbone.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if key != stem)
    if channels == 3:
        assert torch.equal(ours[stem], theirs[stem])
    else:
        mean = theirs[stem].mean(1)
        assert all(torch.equal(ours[stem][:, channel], mean) for channel in range(channels))
    assert torch.equal(net.head[1].weight, own_head)


def test_a_file_for_as_many_channels_is_taken_as_it_is(tmp_path):
    source = net_of(channels=10, num_classes=None).backbone
    torch.manual_seed(1)
    net = SegmentNet(NetConfig(name="tiny_glance", options=TINY, weights=None, norms="batch"), 10, 5, 0.0)
    net.load(published(tmp_path, source, "fc"), tmp_path)
    assert torch.equal(net.backbone.stages[0][0].weight, source.stages[0][0].weight)


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    ten = net_of(channels=10, num_classes=None).backbone
    net = net_of(channels=4)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(WeightError, match=r"mismatched.*\n.*stages\.0\.0\.weight"):
        net.load(published(tmp_path, ten, "fc"), tmp_path)
    with pytest.raises(WeightError, match="sha256"):
        net.load(WeightsFile(path="weights.pth", sha256="0" * 64), tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
