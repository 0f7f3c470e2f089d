"""ECO: published figures, a plain form under the published names, one input convention for all weights."""

import pytest
import torch
import torch.nn.functional as F

from training.backbones.bninception import BNInception, public_name
from training.backbones.eco import LAYOUTS, MEAN, PARTIAL, STD, ECOFull, ECOLite
from training.core.cost import count_macs, count_params
from training.core.weights import WeightError, load_weights

NARROW = 1 / 8
BOTH = pytest.mark.parametrize("network", [ECOLite, ECOFull])


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
    return net.eval()


def small(network=ECOLite):
    torch.manual_seed(0)
    return randomise(network(num_classes=5, width=NARROW))


def distance(ours, wanted):
    return float((ours - wanted).abs().max() / wanted.abs().max())


# --- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "frames", "gmac"),
    [
        (ECOLite, 4, 11.62),
        (ECOLite, 8, 23.24),
        (ECOLite, 16, 46.49),
        (ECOLite, 32, 92.97),
        (ECOFull, 4, 16.10),
        (ECOFull, 8, 32.21),
        (ECOFull, 16, 64.41),
        (ECOFull, 32, 128.83),
    ],
)
def test_cost(network, frames, gmac):
    with torch.device("meta"):
        cost = count_macs(network(num_classes=400), torch.empty(1, 3, frames, 224, 224)) / 1e9
    assert cost == pytest.approx(gmac, abs=5.1e-3)


def test_parameters():
    with torch.device("meta"):
        lite, full = ECOLite(num_classes=400), ECOFull(num_classes=400)
    assert count_params(lite) == 37_503_856
    assert count_params(full) == 47_502_128
    assert count_params(lite.lower) == 681_568
    assert count_params(lite.volume) == 36_617_088
    assert count_params(full.lower) + count_params(full.upper) == 10_270_240
    assert count_params(full.fc) == 614_800
    # The control: without the strided shortcuts, which one public port lacks, it would be 4.4 M less.
    down = sum(count_params(stage.a_down) for stage in (lite.volume.res4, lite.volume.res5))
    assert down == 27 * (128 * 256 + 256 * 512) + 256 + 512


def test_published_shapes():
    seen = {}
    with torch.device("meta"):
        net = ECOLite(num_classes=400)
        for name, part in net.volume.parts():
            part.register_forward_hook(
                lambda _, inputs, output, name=name: seen.update({name: tuple(output.shape[1:])})
            )
        net.volume.register_forward_pre_hook(lambda _, inputs: seen.update(volume=tuple(inputs[0].shape[1:])))
        assert net(torch.empty(2, 3, 16, 224, 224)).shape == (2, 400)
        assert ECOFull(num_classes=400).eval().pooled(torch.empty(2, 3, 16, 224, 224)).shape == (2, 1536)
    assert seen == {"volume": (96, 16, 28, 28), "res3": (128, 16, 28, 28), "res4": (256, 8, 14, 14)} | {
        "res5": (512, 4, 7, 7)
    }


# --- the plain form ---------------------------------------------------------------------------


def eco_name(name):
    """Published name of a tensor of ours."""
    if name.startswith("volume."):
        return "base_model." + name.removeprefix("volume.").replace(".", "", 1)
    if name.startswith("fc."):
        return f"new_{name}"
    return f"base_model.{public_name(name)}"


def public_state(net):
    """The net's weights under ECO-pytorch's names, with a first kernel of the size that pixels up to 255 need."""
    state = {eco_name(name): value.clone() for name, value in net.state_dict().items()}
    state["base_model.conv1_7x7_s2.weight"] /= 58
    return state


def reference(state, video):
    """Logits of the plain form for the reference's own input, frame by frame."""
    state = {name.removeprefix("base_model."): value for name, value in state.items()}

    def norm(x, name):
        return F.batch_norm(
            x, *(state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        ).relu()

    def unit(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return norm(F.conv2d(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2), f"{name}_bn")

    def conv(x, name, stride=1):
        return F.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, 1)

    def halve(x):
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    maps, features = [], []
    for frame in video.unbind(2):
        x = halve(unit(frame, "conv1_7x7_s2", 2))
        x = halve(unit(unit(x, "conv2_3x3_reduce"), "conv2_3x3"))
        for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
            name = f"inception_{block}"
            double = unit(unit(x, f"{name}_double_3x3_reduce"), f"{name}_double_3x3_1")
            if block == "3c":
                maps.append(double)
                if "inception_3c_3x3.weight" not in state:
                    break
            stride = 2 if block in ("3c", "4e") else 1
            branches = [unit(unit(x, f"{name}_3x3_reduce"), f"{name}_3x3", stride)]
            branches.append(unit(double, f"{name}_double_3x3_2", stride))
            if stride == 2:
                branches.append(halve(x))
            else:
                branches.insert(0, unit(x, f"{name}_1x1"))
                pooled = F.max_pool2d(x, 3, 1, 1) if block == "5b" else F.avg_pool2d(x, 3, 1, 1)
                branches.append(unit(pooled, f"{name}_pool_proj"))
            x = torch.cat(branches, 1)
        else:
            features.append(x.mean((2, 3)))
    volume = torch.stack(maps, 2)
    total = conv(volume, "res3a_2")
    for stage in "345":
        if stage != "3":
            x = norm(total, f"res{int(stage) - 1}b_bn")
            total = conv(norm(conv(x, f"res{stage}a_1", 2), f"res{stage}a_1_bn"), f"res{stage}a_2")
            total = total + conv(x, f"res{stage}a_down", 2)
        x = norm(conv(norm(total, f"res{stage}a_bn"), f"res{stage}b_1"), f"res{stage}b_1_bn")
        total = total + conv(x, f"res{stage}b_2")
    pooled = norm(total, "res5b_bn").mean((2, 3, 4))
    if features:
        pooled = torch.cat([torch.stack(features).mean(0), pooled], 1)
    return F.linear(pooled, state["new_fc.weight"], state["new_fc.bias"])


@BOTH
@pytest.mark.parametrize("frames", [4, 8])
def test_published_weights_with_our_input_are_the_reference_with_its_own(network, frames):
    """Defect D3: the reference wants BGR pixels from 0 to 255 less (104,117,128), and was given something else."""
    state = public_state(small(network))
    pixels = torch.randint(0, 256, (2, 3, frames, 64, 64)).float()  # RGB
    net = network(num_classes=5, width=NARROW).eval()
    ours = (pixels / 255 - torch.tensor(MEAN)[:, None, None, None]) / torch.tensor(STD)[:, None, None, None]
    mean = torch.tensor([104.0, 117.0, 128.0])[:, None, None, None]
    with torch.no_grad():
        wanted = reference(state, pixels.flip(1) - mean)
        load_weights(net, state, convert=LAYOUTS["eco_pytorch"])
        assert float(ours.abs().max()) < 4
        assert torch.allclose(net(ours), wanted, atol=1e-4)
        # Controls: a colour order too few or too many, and the defect's own input.
        assert not torch.allclose(net(ours.flip(1)), wanted, atol=1e-2)
        assert not torch.allclose(reference(state, pixels - mean), wanted, atol=1e-2)
        assert not torch.allclose(reference(state, pixels / 255 - mean), wanted, atol=1e-2)
        first = net.lower.conv1_7x7_s2.conv.weight
        first.copy_(first.flip(1))
        assert not torch.allclose(net(ours), wanted, atol=1e-2)


@BOTH
def test_published_names(network):
    with torch.device("meta"):
        names = {eco_name(name): tuple(v.shape) for name, v in network(num_classes=400).state_dict().items()}
    expected = {
        "base_model.conv1_7x7_s2.weight": (64, 3, 7, 7),
        "base_model.inception_3c_double_3x3_1_bn.weight": (96,),
        "base_model.res3a_2.weight": (128, 96, 3, 3, 3),
        "base_model.res3a_2.bias": (128,),
        "base_model.res3a_bn.running_mean": (128,),
        "base_model.res3b_1.weight": (128, 128, 3, 3, 3),
        "base_model.res3b_1_bn.bias": (128,),
        "base_model.res3b_2.weight": (128, 128, 3, 3, 3),
        "base_model.res4a_1.weight": (256, 128, 3, 3, 3),
        "base_model.res4a_down.weight": (256, 128, 3, 3, 3),
        "base_model.res5a_1_bn.running_var": (512,),
        "base_model.res5b_bn.weight": (512,),
        "new_fc.weight": (400, 1536 if network is ECOFull else 512),
    }
    assert {name: names[name] for name in expected} == expected
    assert ("base_model.inception_5b_pool_proj.weight" in names) == (network is ECOFull)


@BOTH
def test_a_file_that_does_not_fit_is_refused(network):
    state = public_state(small(network))
    other = dict(state)
    other["base_model.res4a_shortcut.weight"] = other.pop("base_model.res4a_down.weight")
    with pytest.raises(WeightError, match=r"volume\.res4\.a_down\.weight"):
        load_weights(small(network), other, convert=LAYOUTS["eco_pytorch"])
    wrong = ECOLite if network is ECOFull else ECOFull
    with pytest.raises(WeightError, match="inception_3c"):
        load_weights(small(wrong), state, convert=LAYOUTS["eco_pytorch"], ignore=wrong.heads)


# --- starting from two files ------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("head", ["fc", "last_linear"])
def test_2d_part_from_bninception(network, head):
    source = randomise(BNInception(num_classes=7, width=NARROW), seed=3)
    state = {
        (name.replace("fc.", f"{head}.") if name.startswith("fc.") else public_name(name)): value
        for name, value in source.state_dict().items()
    }
    net = small(network)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ignore = (*PARTIAL["bninception"], *net.heads)
    load_weights(net, state, convert=LAYOUTS["bninception"], ignore=ignore)
    own = source.state_dict()
    for name, value in net.state_dict().items():
        if name == "lower.conv1_7x7_s2.conv.weight":
            assert torch.equal(value, own[name].flip(1) * 58)
        else:
            assert torch.equal(value, own[name] if name.startswith(("lower.", "upper.")) else before[name]), name
    for wrong in ("conv2_3x3.weight", "inception_3c_double_3x3_1_bn.bias", "inception_3b_3x3.bias"):
        renamed = {(f"{name}_" if name == wrong else name): value for name, value in state.items()}
        with pytest.raises(WeightError, match="missing"):
            load_weights(net, renamed, convert=LAYOUTS["bninception"], ignore=ignore)


def test_3d_part_from_c3d_resnet18():
    """Its `res3a_2` has more input channels (here 40) than the frames' maps (here 16), of which the first stay."""
    source = small()
    state = {eco_name(name): value for name, value in source.state_dict().items() if name.startswith("volume.")}
    kernel = torch.randn(16, 40, 3, 3, 3)
    state["base_model.res3a_2.weight"] = kernel
    state |= {
        "base_model.conv1.weight": torch.zeros(8, 3, 3, 7, 7),
        "base_model.conv1_bn.bias": torch.zeros(8),
        "base_model.res2b_2.weight": torch.zeros(8, 8, 3, 3, 3),
        "base_model.res3a_1.weight": torch.zeros(40, 8, 3, 3, 3),
        "base_model.res3a_1_bn.weight": torch.zeros(40),
        "base_model.res3a_down.weight": torch.zeros(40, 8, 3, 3, 3),
        "new_fc.weight": torch.zeros(400, 64),
    }
    torch.manual_seed(1)
    net = ECOLite(num_classes=5, width=NARROW)
    ignore = (*PARTIAL["c3d_resnet18"], *net.heads)
    load_weights(net, state, convert=LAYOUTS["c3d_resnet18"], ignore=ignore)
    maps = net.lower.out_channels
    assert torch.equal(net.volume.res3.a_2.weight, kernel[:, :maps])
    assert torch.equal(net.volume.res5.b_2.weight, source.volume.res5.b_2.weight)
    state["base_model.res3a_2.weight"] = kernel[:, : maps - 1]
    with pytest.raises(WeightError, match="input channels"):
        load_weights(net, state, convert=LAYOUTS["c3d_resnet18"], ignore=ignore)
    state["base_model.res3a_2.weight"] = kernel
    state["base_model.res5c_2.weight"] = state.pop("base_model.res5b_2.weight")
    with pytest.raises(WeightError, match=r"volume\.res5\.b_2\.weight"):
        load_weights(net, state, convert=LAYOUTS["c3d_resnet18"], ignore=ignore)


def test_the_cut_kernel_at_published_size():
    with torch.device("meta"):
        net = ECOLite(num_classes=2)
        state = {"base_model.res3a_2.weight": torch.empty(128, 128, 3, 3, 3)}
        assert LAYOUTS["c3d_resnet18"](state, net)["volume.res3.a_2.weight"].shape == (128, 96, 3, 3, 3)


# --- form -------------------------------------------------------------------------------------


@BOTH
def test_colours_and_time_reach_the_volume_intact(network):
    """Frame t has the value t in one colour; the volume is what the 2-D part makes of each frame by itself."""
    net = small(network)
    clip = torch.zeros(2, 3, 8, 32, 32)
    clip[0, 1] = torch.arange(8.0)[:, None, None]
    clip[1, 2] = -torch.arange(8.0)[:, None, None]
    seen = []
    net.volume.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(clip)
        wanted = torch.stack([net.lower(clip[:, :, frame])[1] for frame in range(8)], dim=2)
        assert distance(seen[0], wanted) < 1e-5
        # Defect D2: a stack (T,C,H,W) reshaped to (C,T,H,W) instead of transposed.
        net(clip.transpose(1, 2).reshape(clip.shape))
        assert distance(seen[1], wanted) > 1e-2


@BOTH
def test_parts_hold_everything(network):
    net = small(network)
    held = [id(parameter) for _, part in net.parts() for parameter in part.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in net.parameters())
    assert [net.get_submodule(name) for name, _ in net.parts()] == [part for _, part in net.parts()]


@BOTH
def test_memory_format_and_precision(network):
    net = small(network)
    clip = torch.randn(2, 3, 4, 33, 40)
    with torch.no_grad():
        wanted = net(clip)
        assert distance(net(clip.to(memory_format=torch.channels_last_3d)), wanted) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert distance(net(clip).float(), wanted) < 0.1


@BOTH
def test_training_reaches_every_parameter(network):
    net = small(network).train()
    net(torch.randn(2, 3, 4, 64, 64)).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in net.parameters())


def test_training_drops_each_kind_of_feature():
    net = small(ECOFull).train()
    net.dropout.p, net.frame_dropout.p = 1.0, 0.0
    clip = torch.randn(2, 3, 4, 64, 64)
    image = net.upper.out_channels
    pooled = net.pooled(clip)
    assert bool((pooled[:, image:] == 0).all())
    assert bool((pooled[:, :image] != 0).any())
    net.dropout.p, net.frame_dropout.p = 0.0, 1.0
    pooled = net.pooled(clip)
    assert bool((pooled[:, :image] == 0).all())
    assert bool((pooled[:, image:] != 0).any())


@pytest.mark.parametrize(("frames", "size"), [(6, 64), (1, 64), (0, 64), (4, 31)])
def test_unusable_input_is_refused(frames, size):
    with pytest.raises(ValueError, match="a multiple of 4 frames of at least 32×32"):
        small()(torch.zeros(1, 3, frames, size, size))


def assert_exports_and_compiles(part, video):
    with torch.no_grad():
        wanted = part(video)
        exported = torch.export.export(part, (video,)).module()(video)
        compiled = torch.compile(part, backend="eager", fullgraph=True)(video)
    for result in (exported, compiled):
        torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@BOTH
def test_exports_and_compiles(network):
    assert_exports_and_compiles(small(network), torch.randn(2, 3, 4, 32, 32))


def test_volume_net_exports_and_compiles():
    assert_exports_and_compiles(small().volume, torch.randn(1, 16, 4, 8, 8))
