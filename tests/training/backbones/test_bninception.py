"""BN-Inception: published figures, a plain form under the published names, weights for BGR pixels from 0 to 255."""

import pytest
import torch
import torch.nn.functional as F

from training.backbones.bninception import LAYOUTS, MEAN, STD, BNInception, public_name, rgb_first_conv
from training.core.cost import count_macs, count_params
from training.core.weights import WeightError, load_weights

NARROW = 1 / 8


def randomise(net, seed=0):
    """Give every norm and bias a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.2)
        elif name.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
        elif name.startswith("fc"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return net.eval()


def small(**options):
    torch.manual_seed(0)
    return randomise(BNInception(num_classes=5, width=NARROW, **options))


def distance(ours, wanted):
    return float((ours - wanted).abs().max() / wanted.abs().max())


# --- figures ----------------------------------------------------------------------------------


def test_figures():
    with torch.device("meta"):
        net = BNInception(num_classes=1000).eval()
        assert count_params(net) == 11_295_240
        assert count_params(net.lower) == 681_568  # ECO's 0.68 M
        assert count_params(net.lower) + count_params(net.upper) == 10_270_240  # and 10.27 M
        assert net.out_channels == 1024
        assert count_macs(net, torch.empty(1, 3, 224, 224)) / 1e9 == pytest.approx(2.03, abs=5e-3)
        block, double = net.lower(torch.empty(2, 3, 224, 224))
        assert (block.shape, double.shape) == ((2, 320, 28, 28), (2, 96, 28, 28))
        x = net.upper.inception_3c(block, double)
        assert x.shape == (2, 576, 14, 14)
        assert net.upper.inception_4d.out_channels == 608
        assert net.upper.inception_4e.out_channels == 1056
        assert net.upper(block, double).shape == (2, 1024, 7, 7)
        assert BNInception()(torch.empty(2, 3, 224, 224)).shape == (2, 1024)
        assert count_params(BNInception(num_classes=1000, width=0.5)) < 4e6


@pytest.mark.parametrize(("size", "places"), [(32, 1), (64, 2), (100, 3), (112, 4), (113, 4), (256, 8)])
def test_any_size(size, places):
    with torch.device("meta"):
        net = BNInception(width=NARROW).eval()
        assert net.features_map(torch.empty(1, 3, size, size)).shape[2:] == (places, places)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="at least 32×32 pixels, got 31×40"):
        small()(torch.zeros(1, 3, 31, 40))
    assert small(in_channels=10)(torch.zeros(1, 10, 32, 32)).shape == (1, 5)


# --- the plain form ---------------------------------------------------------------------------


def reference(state, images):
    """Pooled features of the plain form, from a state dict under the published names."""

    def unit(x, name, stride=1):
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)
        norm = [state[f"{name}_bn.{key}"].flatten() for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm).relu()

    def halve(x):
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    x = halve(unit(images, "conv1_7x7_s2", 2))
    x = halve(unit(unit(x, "conv2_3x3_reduce"), "conv2_3x3"))
    for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        name = f"inception_{block}"
        stride = 2 if block in ("3c", "4e") else 1
        triple = unit(unit(x, f"{name}_3x3_reduce"), f"{name}_3x3", stride)
        double = unit(unit(x, f"{name}_double_3x3_reduce"), f"{name}_double_3x3_1")
        double = unit(double, f"{name}_double_3x3_2", stride)
        if stride == 2:
            x = torch.cat([triple, double, halve(x)], 1)
            continue
        pooled = F.max_pool2d(x, 3, 1, 1) if block == "5b" else F.avg_pool2d(x, 3, 1, 1)
        x = torch.cat([unit(x, f"{name}_1x1"), triple, double, unit(pooled, f"{name}_pool_proj")], 1)
    return x.mean((2, 3))


def public_state(net, head="fc"):
    """The net's weights under the published names, for normalised RGB still."""
    return {
        (f"{head}.{name.removeprefix('fc.')}" if name.startswith("fc.") else public_name(name)): value.clone()
        for name, value in net.state_dict().items()
    }


def test_equals_the_plain_form():
    net = small()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = reference(public_state(net), images)
        net.fc = None
        assert distance(net(images), wanted) < 1e-5
        assert distance(net(images.to(memory_format=torch.channels_last)), wanted) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert distance(net(images).float(), wanted) < 0.05


def test_published_names():
    with torch.device("meta"):
        names = {public_name(name): tuple(value.shape) for name, value in BNInception().state_dict().items()}
    assert len(names) == 69 * 7  # weight and bias of each convolution, five tensors of its norm
    for name, shape in {
        "conv1_7x7_s2.weight": (64, 3, 7, 7),
        "conv1_7x7_s2_bn.running_mean": (64,),
        "conv2_3x3_reduce.bias": (64,),
        "inception_3a_1x1.weight": (64, 192, 1, 1),
        "inception_3a_double_3x3_2_bn.weight": (96,),
        "inception_3c_double_3x3_1.weight": (96, 64, 3, 3),
        "inception_3c_3x3.weight": (160, 128, 3, 3),
        "inception_4c_double_3x3_2.weight": (160, 160, 3, 3),
        "inception_4e_double_3x3_reduce.weight": (192, 608, 1, 1),
        "inception_4e_double_3x3_2.weight": (256, 256, 3, 3),
        "inception_5b_pool_proj.weight": (128, 1024, 1, 1),
    }.items():
        assert names[name] == shape


# --- published weights ------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "head"), [("yjxiong", "fc"), ("cadene", "last_linear")])
def test_published_weights_with_our_input_are_the_reference_with_its_own(layout, head):
    """The file's net gets BGR pixels less (104,117,128), ours normalised RGB."""
    state = public_state(small(), head)
    state["conv1_7x7_s2.weight"] /= 58  # a file's kernels are of the size that pixels up to 255 need
    if layout == "yjxiong":  # its norms have an axis more
        state = {name: value[None] if "_bn." in name and value.dim() == 1 else value for name, value in state.items()}
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).float()  # RGB
    with torch.no_grad():
        bgr = pixels.flip(1) - torch.tensor([104.0, 117.0, 128.0])[:, None, None]
        wanted = F.linear(reference(state, bgr), state[f"{head}.weight"], state[f"{head}.bias"])
        net = BNInception(num_classes=5, width=NARROW).eval()
        load_weights(net, state, convert=LAYOUTS[layout])
        ours = (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        assert float(ours.abs().max()) < 4
        assert torch.allclose(net(ours), wanted, atol=1e-4)
        assert not torch.allclose(net(ours.flip(1)), wanted, atol=1e-2)
        # Controls: names alone are not enough, nor is one of the two changes of the first kernel.
        for change in (lambda weight: weight, lambda weight: weight.flip(1), lambda weight: weight * 58):
            net.lower.conv1_7x7_s2.conv.weight.copy_(change(state["conv1_7x7_s2.weight"]))
            assert not torch.allclose(net(ours), wanted, atol=1e-2)


def test_files_that_do_not_fit_are_refused():
    state = public_state(small())
    net = small()
    renamed = {name.replace("inception_4e_3x3_bn.", "inception_4e_3x3_norm."): value for name, value in state.items()}
    with pytest.raises(WeightError, match=r"upper\.inception_4e\.conv3x3\.bn\.weight"):
        load_weights(net, renamed, convert=LAYOUTS["yjxiong"])
    with pytest.raises(WeightError, match="last_linear"):
        load_weights(net, public_state(small(), "last_linear"), convert=LAYOUTS["yjxiong"])
    flow = public_state(small(in_channels=10))
    with pytest.raises(WeightError, match="3 channels, BGR"):
        load_weights(small(in_channels=10), flow, convert=LAYOUTS["yjxiong"])
    with pytest.raises(ValueError, match="3 channels"):
        rgb_first_conv(torch.zeros(4, 3))


# --- form -------------------------------------------------------------------------------------


def test_parts_hold_everything():
    net = small()
    held = [id(parameter) for _, part in net.parts() for parameter in part.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in net.parameters())
    assert [net.get_submodule(name) for name, _ in net.parts()] == [part for _, part in net.parts()]


def test_training_reaches_every_parameter():
    net = small().train()
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in net.parameters())


def assert_exports_and_compiles(part, images):
    with torch.no_grad():
        wanted = part(images)
        exported = torch.export.export(part, (images,)).module()(images)
        compiled = torch.compile(part, backend="eager", fullgraph=True)(images)
    for result in (exported, compiled):
        torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)


def test_lower_part_exports_and_compiles():
    assert_exports_and_compiles(small().lower, torch.randn(2, 3, 32, 32))


@pytest.mark.slow
def test_exports_and_compiles():
    assert_exports_and_compiles(small(), torch.randn(2, 3, 112, 112))
