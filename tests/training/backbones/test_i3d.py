"""I3D: published figures and shapes, SAME padding against padding by hand, inflation, published weights by name."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.backbones.i3d import I3D, LAYOUTS, MIXED
from training.core.cost import count_macs, count_params
from training.core.weights import WeightError, load_weights

NARROW = 1 / 8


def randomise(net, seed=0):
    """Give every norm a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.2)
        elif name.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif value.dim() == 1:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
    return net.eval()


def small(**options):
    torch.manual_seed(0)
    return randomise(I3D(num_classes=5, width=NARROW, **options))


def distance(ours, wanted):
    return float((ours - wanted).abs().max() / wanted.abs().max())


# --- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "gmac"), [(16, 27.79), (32, 55.58), (64, 111.15)])
def test_cost(frames, gmac):
    with torch.device("meta"):
        assert count_macs(I3D(num_classes=400), torch.empty(1, 3, frames, 224, 224)) / 1e9 == pytest.approx(
            gmac, abs=5.1e-3
        )


def test_parameters():
    """12.70 M, and 12.68 M with the 2 channels of flow, whose stem is 21,952 smaller."""
    with torch.device("meta"):
        colour, flow = I3D(num_classes=400), I3D(num_classes=400, in_channels=2)
        assert count_params(colour) == 12_697_264
        assert count_params(flow) == 12_675_312
        assert count_params(I3D(num_classes=400, width=0.5)) < 4e6


def test_published_shapes():
    wanted = {
        "conv1a": (64, 32, 112, 112),
        "conv2b": (64, 32, 56, 56),
        "mixed3b": (256, 32, 28, 28),
        "mixed3c": (480, 32, 28, 28),
        "mixed4b": (512, 16, 14, 14),
        "mixed4f": (832, 16, 14, 14),
        "mixed5b": (832, 8, 7, 7),
        "mixed5c": (1024, 8, 7, 7),
        "conv2c.pool": (192, 32, 28, 28),
        "mixed3c.pool": (480, 16, 14, 14),
    }
    seen = {}
    with torch.device("meta"):
        net = I3D(num_classes=400)
        for name, part in net.parts():
            part.register_forward_hook(
                lambda _, inputs, output, name=name: seen.update({name: tuple(output.shape[1:])})
            )
        for name, pool in net.pools.items():
            pool.register_forward_hook(
                lambda _, inputs, output, name=name: seen.update({f"{name}.pool": tuple(output.shape[1:])})
            )
        net.head.register_forward_pre_hook(lambda _, inputs: seen.update(pooled=tuple(inputs[0].shape[1:])))
        assert net(torch.empty(2, 3, 64, 224, 224)).shape == (2, 400)
    assert {name: seen[name] for name in wanted} == wanted
    assert seen["pooled"] == (1024, 7, 1, 1)


# --- SAME padding -----------------------------------------------------------------------------


def pad_by_hand(x, kernel, stride, value=0.0):
    """Pad the last three axes so that each of ⌈n/stride⌉ windows fits, the odd place last."""
    for axis in (2, 3, 4):
        k, s = kernel[axis - 2], stride[axis - 2]
        size = x.shape[axis]
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        shapes = [list(x.shape), list(x.shape)]
        shapes[0][axis], shapes[1][axis] = total // 2, total - total // 2
        x = torch.cat([torch.full(shapes[0], value), x, torch.full(shapes[1], value)], dim=axis)
    return x


def reference(net, video):
    """Logits of the plain form: every layer padded by hand, and max-pools with 0, as both public ports do."""
    state = net.state_dict()

    def unit(x, name, stride=1):
        weight = state[f"{name}.conv.weight"]
        x = F.conv3d(pad_by_hand(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        mean, var, scale, shift = (
            state[f"{name}.norm.{key}"][:, None, None, None]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-3).sqrt() * scale + shift).clamp(min=0)

    def pool(x, kernel, stride):
        return F.max_pool3d(pad_by_hand(x, kernel, stride), kernel, stride)

    x = pool(unit(video, "conv1a", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "conv2b"), "conv2c"), (1, 3, 3), (1, 2, 2))
    for name in MIXED:
        branches = [
            unit(x, f"{name}.branch0"),
            unit(unit(x, f"{name}.branch1.0"), f"{name}.branch1.1"),
            unit(unit(x, f"{name}.branch2.0"), f"{name}.branch2.1"),
            unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.branch3.1"),
        ]
        x = torch.cat(branches, dim=1)
        if name == "mixed3c":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if name == "mixed4f":
            x = pool(x, (2, 2, 2), (2, 2, 2))
    x = F.avg_pool3d(x, [min(k, n) for k, n in zip((2, 7, 7), x.shape[2:], strict=True)], stride=1)
    logits = F.conv3d(x, state["head.weight"], state["head.bias"])
    return logits.flatten(2).mean(2)


@pytest.mark.parametrize("frames", [16, 17, 18, 19, 23])
def test_equals_the_plain_form_at_every_remainder(frames):
    net = small()
    video = torch.randn(1, 3, frames, 37, 50)
    with torch.no_grad():
        wanted = reference(net, video)
        assert distance(net(video), wanted) < 1e-5
        for module in net.modules():
            if hasattr(module, "padding_kind"):
                module.padding_kind = "symmetric"
        if frames == 16:
            assert distance(net(video), wanted) > 1e-3  # the control: where padding lies does matter


@pytest.mark.parametrize(("size", "windows"), [(32, 1), (64, 1), (112, 1), (224, 1), (256, 4)])
def test_the_heads_window_is_no_larger_than_the_map(size, windows):
    with torch.device("meta"):
        net = I3D(num_classes=5, width=NARROW)
        seen = []
        net.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:].numel()))
        assert net(torch.empty(1, 3, 16, size, size)).shape == (1, 5)
    assert seen == [windows]


# --- inflation --------------------------------------------------------------------------------


class ImageInception(nn.Module):
    """Inception-v1 over images with SAME padding, under torchvision's names of `googlenet`."""

    def __init__(self, width=NARROW):
        super().__init__()

        def unit(inside, outside, kernel):
            return nn.ModuleDict(
                {"conv": nn.Conv2d(inside, outside, kernel, bias=False), "bn": nn.BatchNorm2d(outside, eps=1e-3)}
            )

        def scaled(channels):
            return max(8, round(channels * width / 8) * 8)

        self.conv1 = unit(3, scaled(64), 7)
        self.conv2 = unit(scaled(64), scaled(64), 1)
        self.conv3 = unit(scaled(64), scaled(192), 3)
        inside = scaled(192)
        names = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
        for name, channels in zip(names, MIXED.values(), strict=True):
            a, b, c, d, e, f = map(scaled, channels)
            block = nn.ModuleDict({"branch1": unit(inside, a, 1)})
            block["branch2"] = nn.ModuleList([unit(inside, b, 1), unit(b, c, 3)])
            block["branch3"] = nn.ModuleList([unit(inside, d, 1), unit(d, e, 3)])
            block["branch4"] = nn.ModuleList([nn.Identity(), unit(inside, f, 1)])
            setattr(self, f"inception{name}", block)
            inside = a + c + e + f
        self.aux1 = nn.Linear(4, 7)
        self.fc = nn.Linear(inside, 7)

    def features(self, frame):
        def pad(x, kernel, stride):
            return pad_by_hand(x.unsqueeze(2), (1, kernel, kernel), (1, stride, stride)).squeeze(2)

        def run(part, x, stride=1):
            conv = part["conv"]
            x = F.conv2d(pad(x, conv.kernel_size[0], stride), conv.weight, stride=stride)
            return part["bn"](x).relu()

        def pool(x, kernel, stride):
            return F.max_pool2d(pad(x, kernel, stride), kernel, stride)

        x = pool(run(self.conv1, frame, 2), 3, 2)
        x = pool(run(self.conv3, run(self.conv2, x)), 3, 2)
        for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
            block = getattr(self, f"inception{name}")
            x = torch.cat(
                [
                    run(block["branch1"], x),
                    run(block["branch2"][1], run(block["branch2"][0], x)),
                    run(block["branch3"][1], run(block["branch3"][0], x)),
                    run(block["branch4"][1], pool(x, 3, 1)),
                ],
                dim=1,
            )
            x = {"3b": lambda x: pool(x, 3, 2), "4e": lambda x: pool(x, 2, 2)}.get(name, lambda x: x)(x)
        return x


def test_inflated_net_on_a_still_video_is_the_image_net():
    torch.manual_seed(1)
    image, net = randomise(ImageInception(), seed=1), small()
    report = load_weights(net, image.state_dict(), convert=LAYOUTS["torchvision_googlenet"], ignore=net.heads)
    assert report.complete
    frame = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = image.features(frame)[0]
        still = net.features_map(frame.unsqueeze(2).expand(-1, -1, 128, -1, -1))[0]
    # A place of the map sees 99 frames, so of 16 places those in the middle see no padding.
    assert distance(still[:, 7], wanted) < 1e-5
    assert distance(still[:, 8], wanted) < 1e-5
    assert distance(still[:, 0], wanted) > 1e-3
    state = {name: value for name, value in image.state_dict().items() if "4d.branch4" not in name}
    with pytest.raises(WeightError, match=r"mixed4e\.branch3\.1\.conv"):
        load_weights(net, state, convert=LAYOUTS["torchvision_googlenet"], ignore=net.heads)


# --- published weights ------------------------------------------------------------------------

BRANCHES = {"branch0": "b0", "branch1.0": "b1a", "branch1.1": "b1b", "branch2.0": "b2a", "branch2.1": "b2b"}
BRANCHES["branch3.1"] = "b3b"
STEM = {"conv1a": "Conv3d_1a_7x7", "conv2b": "Conv3d_2b_1x1", "conv2c": "Conv3d_2c_3x3"}


def public_state(net, layout):
    """The net's weights under a public layout's names, written from the two repositories' modules."""
    state = {}
    for name, value in net.state_dict().items():
        layer, _, rest = name.partition(".")
        norm = "bn" if layout == "piergiaj" else "batch3d"
        rest = rest.replace("conv.", "conv3d.").replace("norm.", f"{norm}.")
        if layer == "head":
            new = f"{'logits' if layout == 'piergiaj' else 'conv3d_0c_1x1'}.conv3d.{rest}"
        elif layer in STEM:
            new = f"{STEM[layer]}.{rest}" if layout == "piergiaj" else f"{STEM[layer].replace('C', 'c', 1)}.{rest}"
        else:
            branch = next(branch for branch in BRANCHES if rest.startswith(f"{branch}."))
            rest = rest.removeprefix(f"{branch}.")
            block = layer.removeprefix("mixed")
            if layout == "piergiaj":
                new = f"Mixed_{block}.{BRANCHES[branch]}.{rest}"
            else:
                new = f"mixed_{block}.{branch.replace('branch', 'branch_')}.{rest}"
        state[new] = value.clone()
    return state


@pytest.mark.parametrize(
    ("layout", "some", "renamed"),
    [
        (
            "piergiaj",
            {
                "Conv3d_1a_7x7.conv3d.weight",
                "Mixed_3b.b1a.bn.weight",
                "Mixed_5c.b3b.conv3d.weight",
                "logits.conv3d.bias",
            },
            ("Mixed_4f.b2b.conv3d.weight", "Mixed_4f.b2c.conv3d.weight"),
        ),
        (
            "hassony2",
            {
                "conv3d_1a_7x7.conv3d.weight",
                "mixed_3b.branch_1.0.conv3d.weight",
                "mixed_5c.branch_3.1.batch3d.running_var",
                "conv3d_0c_1x1.conv3d.bias",
            },
            ("mixed_4f.branch_2.1.conv3d.weight", "mixed_4f.branch_2.2.conv3d.weight"),
        ),
    ],
)
def test_public_weights(layout, some, renamed):
    source, net = small(), small()
    state = public_state(source, layout)
    assert some < set(state)
    clip = torch.randn(1, 3, 16, 32, 32)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
        assert not torch.allclose(net(clip), source(clip), atol=1e-3)
        load_weights(net, state, convert=LAYOUTS[layout])
        assert torch.equal(net(clip), source(clip))
        load_weights(I3D(num_classes=3, width=NARROW), state, convert=LAYOUTS[layout], ignore=I3D.heads)
    state[renamed[1]] = state.pop(renamed[0])
    with pytest.raises(WeightError, match=r"mixed4f\.branch2\.1\.conv\.weight"):
        load_weights(net, state, convert=LAYOUTS[layout])


# --- form -------------------------------------------------------------------------------------


def test_colours_and_time_reach_the_first_layer_intact():
    """Frame t has the value t in one colour; compared with the kernel applied by hand to the frames it covers."""
    net = small()
    with torch.no_grad():
        clip = torch.zeros(1, 3, 16, 32, 32)
        clip[0, 2] = torch.arange(16.0)[:, None, None]
        ours, weight = net.conv1a.conv(clip), net.conv1a.conv.weight
        for place in range(8):
            wanted = torch.zeros_like(ours[:, :, 0])
            for tap in range(7):
                frame = 2 * place + tap - 2  # SAME on an even length: 2 places before, 3 after
                if 0 <= frame < 16:
                    wanted += F.conv2d(F.pad(clip[:, :, frame], (2, 3, 2, 3)), weight[:, :, tap], stride=2)
            assert distance(ours[:, :, place], wanted) < 1e-5
        # Defect D2: a stack (T,C,H,W) reshaped to (C,T,H,W) instead of transposed.
        scrambled = clip.transpose(1, 2).reshape(1, 3, 16, 32, 32)
        assert distance(net.conv1a.conv(scrambled), ours) > 1e-2


def test_both_forms_are_equal_and_parts_hold_everything():
    folded, plain = small(), small(folded=False)
    clip = torch.randn(2, 3, 17, 40, 33)
    with torch.no_grad():
        assert distance(folded(clip), plain(clip)) < 1e-5
        assert distance(folded(clip.to(memory_format=torch.channels_last_3d)), plain(clip)) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert distance(folded(clip).float(), plain(clip).float()) < 0.1
    held = [id(parameter) for _, part in folded.parts() for parameter in part.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in folded.parameters())


def test_unusable_input_is_refused():
    with pytest.raises(ValueError, match="at least 16 frames of 32×32 pixels, got 8 of 224×224"):
        I3D(num_classes=2, width=NARROW).check_input(8, 224, 224)
    with pytest.raises(ValueError, match="got 16 of 32×31"):
        small()(torch.zeros(1, 3, 16, 32, 31))
    assert small(in_channels=2)(torch.zeros(1, 2, 16, 32, 32)).shape == (1, 5)
    with pytest.raises(ValueError, match="width"):
        I3D(num_classes=5, width=0)


def test_training_reaches_every_parameter():
    net = small().train()
    net(torch.randn(2, 3, 16, 32, 32)).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    assert all(bool(parameter.grad.isfinite().all()) for parameter in net.parameters())


def test_initial_deviation():
    torch.manual_seed(0)
    net = I3D(num_classes=5)
    weight = net.conv2c.conv.weight.detach()
    bound = 2 / math.sqrt(64 * 27)
    assert float(weight.abs().max()) <= bound * 1.0001
    assert float(weight.std()) == pytest.approx(0.8796 / math.sqrt(64 * 27), rel=0.02)


def assert_exports_and_compiles(part, clip):
    with torch.no_grad():
        wanted = part(clip)
        assert torch.allclose(torch.export.export(part, (clip,)).module()(clip), wanted, atol=1e-5)
        assert torch.allclose(torch.compile(part, backend="eager", fullgraph=True)(clip), wanted, atol=1e-5)


def test_a_block_exports_and_compiles():
    net = small()
    part = nn.Sequential(net.conv1a, net.pools["conv1a"], net.conv2b, net.conv2c, net.mixed3b)
    assert_exports_and_compiles(part.eval(), torch.randn(1, 3, 17, 32, 32))


@pytest.mark.slow
def test_exports_and_compiles():
    assert_exports_and_compiles(small(), torch.randn(1, 3, 17, 32, 32))
