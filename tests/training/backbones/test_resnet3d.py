"""The network against a plain one written from the description; its forms, its facts, published weights by name."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from training.backbones import VIDEO_BACKBONES, build_backbone
from training.backbones.resnet3d import ResNet3D, from_pytorchvideo
from training.backbones.resnet3d_layout import r3d50_layout, rs_layout, slowonly50_layout
from training.core.weights import WeightError, load_weights
from training.layers.norms import eval_norms
from training.layers.sync_batchnorm import convert_sync_batchnorm

CHANNELS_LAST = torch.channels_last_3d
NARROW = 1 / 16
"""8, 8, 16 and 32 channels: the second group's shortcut is the max-pool, the others' are convolutions."""


def relative(ours, expected):
    return float((ours - expected).abs().max() / expected.abs().max())


def draw_state(net, seed=0):
    """Give every parameter and statistic a value of its own, so that no mistake hides behind zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith(("bias", "running_mean")):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
        elif "gating" in name or ".se." in name:
            value.copy_(torch.randn(value.shape, generator=generator) * value.shape[1] ** -0.5 * 2)
    return net


def build(layout, **options):
    torch.manual_seed(0)
    return draw_state(ResNet3D(layout, **options))


# --- the reference ----------------------------------------------------------------------------


def reference(net, video, *, training=False):
    """Map and logits of the plain form: one 3-D operator after another, every gate with its own mean."""
    layout, state = net.layout, dict(net.named_parameters()) | dict(net.named_buffers())

    def pads(x, kernel, stride):
        amounts = []
        for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
            total = k - s if size % s == 0 else k - size % s
            before = k // 2 if layout.padding == "symmetric" else max(total, 0) // 2
            amounts += [before, k // 2 if layout.padding == "symmetric" else max(total, 0) - before]
        return amounts

    def conv(x, name, stride=(1, 1, 1)):
        weight = state[f"{name}.weight"]
        return F.conv3d(F.pad(x, pads(x, weight.shape[2:], stride)), weight, stride=stride)

    def norm(x, name):
        statistics = [state[f"{name}.{key}"].clone() for key in ("running_mean", "running_var")]
        affine = [state[f"{name}.{key}"] for key in ("weight", "bias")]
        return F.batch_norm(x, *statistics, *affine, training=training, eps=layout.norm_eps)

    def dense(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def self_gating(x, name):
        if f"{name}.gating.dense.weight" not in state:
            return x
        return x * dense(x.mean((2, 3, 4)), f"{name}.gating.dense").sigmoid()[..., None, None, None]

    def squeeze_excitation(x, name):
        if f"{name}.se.reduce.weight" not in state:
            return x
        hidden = dense(x.mean((2, 3, 4)), f"{name}.se.reduce").relu()
        return x * dense(hidden, f"{name}.se.expand").sigmoid()[..., None, None, None]

    x = video
    for number in range(1, 2 if layout.stem == "v0" else 4):
        stride = (layout.stem_temporal_stride, 2, 2) if number == 1 else (1, 1, 1)
        x = norm(conv(x, f"stem.conv{number}", stride), f"stem.bn{number}").relu()
    kernel, stride = (1 if layout.pool_t == 1 else 3, 3, 3), (layout.pool_t, 2, 2)
    x = F.max_pool3d(F.pad(x, pads(x, kernel, stride), value=-math.inf), kernel, stride)
    for group in range(1, 5):
        for index in range(layout.blocks[group - 1]):
            name = f"layer{group}.{index}"
            stride = (1, 2, 2) if group > 1 and index == 0 else (1, 1, 1)
            shortcut = x[:, :, :, :: stride[1], :: stride[2]]
            if f"{name}.downsample.0.weight" in state:
                shortcut = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            y = norm(conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2", stride), f"{name}.bn2").relu()
            y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
            for gate in (self_gating, squeeze_excitation)[:: 1 if layout.gate_order == "code" else -1]:
                y = gate(y, name)
            x = (y + shortcut).relu()
    return x, dense(x.mean((2, 3, 4)), "fc")


LAYOUTS = {
    "rs": rs_layout(26, width=NARROW),
    "rs-pooled-paper-all": rs_layout(26, width=NARROW, pool_t=2, gate_order="paper", gating="all", temporal="1313"),
    "rs-symmetric": rs_layout(26, width=NARROW, padding="symmetric", temporal="3333"),
    "r3d": r3d50_layout(depth=26, width=NARROW),
    "slowonly": slowonly50_layout(depth=26, width=NARROW),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@layouts
@pytest.mark.parametrize("shape", [(2, 3, 8, 32, 32), (1, 3, 7, 45, 50)])
def test_both_forms_equal_the_reference(layout, shape):
    folded = build(layout, num_classes=5).eval()
    plain = ResNet3D(layout, num_classes=5, folded=False).eval()
    assert plain.load_state_dict(folded.state_dict()).missing_keys == []
    video = torch.rand(shape)
    with torch.no_grad():
        wanted_map, wanted = reference(folded, video)
        for net in (folded, plain):
            assert relative(net.features_map(video), wanted_map) <= 1e-6
            assert relative(net(video), wanted) <= 1e-6


@layouts
def test_training_equals_the_reference(layout):
    """With batch statistics: outputs, gradients, and running statistics, in float64."""
    video = torch.rand(3, 3, 8, 32, 32, dtype=torch.float64)
    results = []
    for form in ("folded", "plain", "reference"):
        net = ResNet3D(layout, num_classes=5, dropout=0, folded=form == "folded").double()
        draw_state(net).load_state_dict(build(layout, num_classes=5).double().state_dict())
        for module in net.modules():
            if hasattr(module, "drop_path"):
                module.drop_path.rate = 0.0
        inputs = video.clone().requires_grad_()
        logits = reference(net, inputs, training=True)[1] if form == "reference" else net(inputs)
        (logits * torch.linspace(-1, 1, 5, dtype=torch.float64)).sum().backward()
        statistics = {name: value for name, value in net.named_buffers() if form != "reference"}
        results.append((logits.detach(), inputs.grad, {n: p.grad for n, p in net.named_parameters()}, statistics))
    wanted = results[2]
    for ours in results[:2]:
        assert relative(ours[0], wanted[0]) < 1e-12
        assert relative(ours[1], wanted[1]) < 1e-9
        for name, grad in wanted[2].items():
            # What comes before a norm may have a gradient of zero in exact arithmetic.
            assert (ours[2][name] - grad).abs().max() <= 1e-9 * grad.abs().max() + 1e-13, name
    for name, value in results[0][3].items():
        assert torch.allclose(value, results[1][3][name], rtol=1e-10), name
    start = build(layout, num_classes=5).state_dict()
    assert not torch.allclose(results[0][3]["stem.bn1.running_mean"].float(), start["stem.bn1.running_mean"])


def test_plain_form_in_either_memory_format():
    net = build(rs_layout(26, width=NARROW), folded=False).eval()
    video = torch.rand(2, 3, 8, 32, 32)
    with torch.no_grad():
        expected = net.features_map(video)
        net.to(memory_format=CHANNELS_LAST)
        ours = net.features_map(video.contiguous(memory_format=CHANNELS_LAST))
    assert expected.is_contiguous()
    assert relative(ours, expected) <= 1e-6


def test_folded_form_stays_in_channels_last_memory():
    net = build(rs_layout(26, width=NARROW)).eval()
    seen = {}
    for name, module in net.named_modules():
        if not list(module.children()) and not isinstance(module, nn.Linear | nn.Dropout):
            module.register_forward_hook(
                lambda _, inputs, output, name=name: seen.update(
                    {name: output.dim() < 5 or output.is_contiguous(memory_format=CHANNELS_LAST)}
                )
            )
    with torch.no_grad():
        net.features_map(torch.rand(2, 3, 8, 64, 64))
    assert len(seen) > 50
    assert [name for name, kept in seen.items() if not kept] == []


def test_parameters_may_be_channels_last_too():
    net = build(rs_layout(26, width=NARROW), num_classes=3).eval()
    video = torch.rand(2, 3, 8, 32, 32)
    with torch.no_grad():
        expected = net(video)
        state = {name: value.clone() for name, value in net.state_dict().items()}
        net.to(memory_format=CHANNELS_LAST)
        assert relative(net(video), expected) <= 1e-6
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


# --- precision, compilation, norms ------------------------------------------------------------


def test_autocast():
    net = build(rs_layout(26, width=NARROW), num_classes=5).eval()
    video = torch.rand(2, 3, 8, 32, 32)
    means = []
    net.layer4[1].se.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0].dtype))
    with torch.no_grad():
        expected = net(video)
        with torch.autocast("cpu", torch.bfloat16):
            features, logits = net.features_map(video), net(video)
    assert features.dtype == torch.bfloat16
    assert relative(logits.float(), expected) < 0.05
    assert set(means) == {torch.float32}
    with torch.no_grad():
        assert net.bfloat16()(video.bfloat16()).dtype == torch.bfloat16


def assert_compiles(build_part, video):
    """One graph, no recompilation, the same numbers and the same draws."""
    part = build_part()
    torch.manual_seed(0)
    expected = part(video).detach()
    # Batch norm counts its batches, so the second run starts from the same state.
    compiled = torch.compile(build_part(), backend="eager", fullgraph=True)
    torch.manual_seed(0)
    assert relative(compiled(video).detach(), expected) <= 1e-6
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(video)


def test_stem_and_blocks_compile_to_one_graph():
    def part():
        net = build(rs_layout(26, width=NARROW, temporal="3333"))
        return nn.Sequential(net.stem, net.layer1)

    assert_compiles(part, torch.rand(2, 3, 4, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_network_compiles_to_one_graph(training):
    layout = rs_layout(26, width=NARROW)
    assert_compiles(lambda: build(layout, num_classes=5).train(training), torch.rand(2, 3, 4, 32, 32))


def test_norms_follow_the_projects_conversions():
    net = build(rs_layout(26, width=NARROW), num_classes=5, dropout=0)
    keys = list(net.state_dict())
    for module in net.modules():
        if hasattr(module, "drop_path"):
            module.drop_path.rate = 0.0
    video = torch.rand(3, 3, 8, 32, 32)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    expected = net(video).detach()
    trained = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(start)
    eval_norms(net)
    net(video)
    assert all(torch.equal(value, start[name]) for name, value in net.state_dict().items())
    net.train()
    convert_sync_batchnorm(net)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert torch.allclose(net(video), expected, rtol=1e-3, atol=1e-4)
    finally:
        dist.destroy_process_group()
    assert list(net.state_dict()) == keys
    assert all(torch.allclose(v, trained[n], rtol=1e-3, atol=1e-4) for n, v in net.state_dict().items())
    assert not torch.allclose(trained["layer4.1.bn3.running_var"], start["layer4.1.bn3.running_var"], rtol=1e-3)


# --- facts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "frames", "size", "expected"),
    [
        (rs_layout(26, width=NARROW), 16, 64, (8, 2, 2)),
        (rs_layout(26, width=NARROW, pool_t=2), 16, 64, (4, 2, 2)),
        (rs_layout(26, width=NARROW), 15, 65, (8, 3, 3)),
        (slowonly50_layout(depth=26, width=NARROW), 5, 96, (5, 3, 3)),
        (r3d50_layout(depth=26, width=NARROW), 32, 32, (8, 1, 1)),
    ],
)
def test_output_strides(layout, frames, size, expected):
    with torch.device("meta"):
        net = ResNet3D(layout)
        features = net.features_map(torch.empty(2, 3, frames, size, size))
    assert features.shape == (2, layout.out_channels, *expected)
    assert net.out_channels == layout.out_channels == 128


@pytest.mark.parametrize(("padding", "before", "after"), [("same", 19, 21), ("symmetric", 20, 20)])
def test_receptive_field_of_depth_50(padding, before, after):
    """41 input frames at pool_t=1; "same" padding moves them one frame later."""
    layout = rs_layout(50, width=NARROW, se_ratio=0.0, gating="none", padding=padding)
    video = torch.rand(1, 3, 96, 32, 32, requires_grad=True)
    build(layout).eval().features_map(video)[:, :, 24].abs().sum().backward()
    seen = video.grad.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist()
    assert seen == list(range(48 - before, 48 + after + 1))


def test_gates_see_the_whole_clip():
    """With them every output frame depends on every input frame."""
    video = torch.rand(1, 3, 96, 32, 32, requires_grad=True)
    build(rs_layout(50, width=NARROW)).eval().features_map(video)[:, :, 24].abs().sum().backward()
    assert video.grad.abs().amax((0, 1, 3, 4)).all()


def test_evaluation_does_not_depend_on_the_batch():
    net = build(rs_layout(26, width=NARROW), num_classes=5).eval()
    video = torch.rand(4, 3, 8, 32, 32)
    with torch.no_grad():
        together = net(video)
        assert relative(net(video.flip(0)).flip(0), together) <= 1e-6
        assert relative(torch.cat([net(clip[None]) for clip in video]), together) <= 1e-6
        net.train()
        assert relative(net(video[:2]), together[:2]) > 1e-3


def test_head():
    net = build(rs_layout(26, width=NARROW), num_classes=5).eval()
    video = torch.rand(2, 3, 8, 32, 32)
    with torch.no_grad():
        pooled = net.features_map(video).mean((2, 3, 4))
        assert torch.allclose(net(video), pooled @ net.fc.weight.T + net.fc.bias, atol=1e-5)
        net.fc = None
        assert torch.allclose(net(video), pooled, atol=1e-6)
    headless = build(rs_layout(26, width=NARROW))
    assert [name for name in headless.state_dict() if name.startswith("fc")] == []


def test_dropout_acts_before_the_head_in_training():
    net = build(rs_layout(26, width=NARROW), num_classes=5, dropout=0.5).eval()
    video = torch.rand(2, 3, 8, 32, 32)
    with torch.no_grad():
        expected = net(video)
        net.dropout.train()
        torch.manual_seed(0)
        ours = net(video)
        torch.manual_seed(0)
        pooled = F.dropout(net.features_map(video).mean((2, 3, 4)), 0.5)
        assert torch.allclose(ours, net.fc(pooled), atol=1e-5)
        assert not torch.allclose(ours, expected, atol=1e-3)


def test_order_of_the_gates():
    video = torch.rand(2, 3, 8, 32, 32)
    nets = [build(rs_layout(26, width=NARROW, gate_order=order)).eval() for order in ("code", "paper")]
    assert all(map(torch.equal, nets[0].state_dict().values(), nets[1].state_dict().values()))
    assert list(nets[0].state_dict()) == list(nets[1].state_dict())
    with torch.no_grad():
        code, paper = (net(video) for net in nets)
    assert relative(code, paper) > 1e-3


def test_stochastic_depth_of_a_block():
    """Per sample: the branch is missing, or there and rescaled; the rates grow with the group."""
    net = build(rs_layout(26, width=NARROW, drop_path=0.9))
    rates = [block.drop_path.rate for number in range(1, 5) for block in getattr(net, f"layer{number}")]
    assert rates == pytest.approx([rate for rate in (0.36, 0.54, 0.72, 0.9) for _ in range(2)])
    block = net.layer4[1]
    x = torch.randn(64, 128, 2, 2, 2).relu()
    with torch.no_grad():
        block.eval()
        whole = block(x)
        branch = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))))
        gated = branch * block._factor(branch)[:, :, None, None, None]
        assert torch.allclose(whole, (x + gated).relu(), atol=1e-5)
        block.train()
        eval_norms(block)
        torch.manual_seed(0)
        ours = block(x)
    dropped = (ours == x).flatten(1).all(1)
    kept = torch.isclose(ours, (x + gated / 0.1).relu(), atol=1e-4).flatten(1).all(1)
    assert torch.equal(dropped, ~kept)
    assert 0 < kept.sum() < 20


def test_initial_values():
    torch.manual_seed(0)
    net = ResNet3D(rs_layout(26, width=0.5), num_classes=400)
    for name, value in net.named_parameters():
        if "bn" in name or "downsample.1" in name:
            # Also the last norm of a block: no block starts as the identity.
            assert torch.equal(value, torch.full_like(value, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not value.any(), name
        elif name == "fc.weight":
            assert 0.0499 < value.abs().max() <= 0.05
            assert value.std().item() == pytest.approx(0.1 / 12**0.5, rel=0.01)
        elif "gating" in name:
            assert value.std().item() == pytest.approx(0.0088, rel=0.02)
        elif value.numel() > 20_000:
            assert value.std().item() == pytest.approx(math.prod(value.shape[1:]) ** -0.5, rel=0.03), name


def test_every_norm_has_the_layouts_settings():
    with torch.device("meta"):
        net = ResNet3D(rs_layout(26, width=NARROW, norm_eps=1e-3, norm_momentum=1.0))
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm3d)]
    assert len(norms) == 3 + 8 * 3 + 3
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 1.0)}


def test_every_parameter_gets_a_gradient():
    net = build(rs_layout(26, width=NARROW), num_classes=3)
    net(torch.rand(4, 3, 8, 64, 64)).square().mean().backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 8, 32, 32)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"takes videos \(N,3,T,H,W\), got \(2, "):
        build(rs_layout(26, width=NARROW))(torch.rand(shape))


def test_by_name():
    with torch.device("meta"):
        net = build_backbone("resnet3d_rs50", num_classes=7, pool_t=2, width=0.25, dropout=0.1, folded=False)
        assert net.layout == rs_layout(50, pool_t=2, width=0.25)
        assert (net.fc.out_features, net.dropout.p, net.stem.conv1.folded) == (7, 0.1, False)
        assert build_backbone("r3d50", width=NARROW).layout == r3d50_layout(width=NARROW)
        assert build_backbone("slowonly50", width=NARROW).layout == slowonly50_layout(width=NARROW)
    assert sum(name.startswith(("resnet3d_", "r3d", "slowonly")) for name in VIDEO_BACKBONES) == 12
    with pytest.raises(ValueError, match=r"has no option widht; it has: num_classes, .*width"):
        build_backbone("resnet3d_rs50", widht=0.5)
    with pytest.raises(ValueError, match="pool_t must be one of 1, 2"):
        build_backbone("resnet3d_rs50", pool_t=4)
    with pytest.raises(ValueError, match="did you mean 'slowonly50'"):
        build_backbone("slowonly5O")


# --- published weights ------------------------------------------------------------------------


def pytorchvideo_layout(classes=400, width=64):
    """Names and shapes of PyTorchVideo's `slow_r50`, written down independently of the network."""

    def norm(name, channels):
        shapes = {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
        return shapes | {f"{name}.num_batches_tracked": ()}

    layout = {"blocks.0.conv.weight": (width, 3, 1, 7, 7), **norm("blocks.0.norm", width)}
    inputs = width
    for stage, (count, taps) in enumerate(zip((3, 4, 6, 3), (1, 1, 3, 3), strict=True), start=1):
        inside = width * 2 ** (stage - 1)
        for index in range(count):
            name = f"blocks.{stage}.res_blocks.{index}"
            if index == 0:
                layout[f"{name}.branch1_conv.weight"] = (4 * inside, inputs, 1, 1, 1)
                layout |= norm(f"{name}.branch1_norm", 4 * inside)
            shapes = [(inside, inputs, taps, 1, 1), (inside, inside, 1, 3, 3), (4 * inside, inside, 1, 1, 1)]
            for letter, shape in zip("abc", shapes, strict=True):
                layout[f"{name}.branch2.conv_{letter}.weight"] = shape
                layout |= norm(f"{name}.branch2.norm_{letter}", shape[0])
            inputs = 4 * inside
    return layout | {"blocks.5.proj.weight": (classes, inputs), "blocks.5.proj.bias": (classes,)}


def test_pytorchvideo_names_and_shapes():
    layout = pytorchvideo_layout()
    with torch.device("meta"):
        net = ResNet3D(slowonly50_layout(), num_classes=400)
    ours = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert {from_pytorchvideo(name): shape for name, shape in layout.items()} == ours
    counted = [n for n in layout if not n.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert sum(math.prod(layout[name]) for name in counted) == 32_454_096


def test_pytorchvideo_weights_load(tmp_path):
    """Every tensor fits and none is left over; a foreign name is refused."""
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.tensor(3) if shape == () else torch.rand(shape, generator=generator) + 0.1
        for name, shape in pytorchvideo_layout(classes=11, width=8).items()
    }
    path = tmp_path / "slow_r50.pyth"
    torch.save({"state_dict": state}, path)
    layout = slowonly50_layout(width=1 / 8)
    net = ResNet3D(layout, num_classes=11)
    report = load_weights(net, path, rename=from_pytorchvideo)
    assert report.complete
    assert len(report.matched) == len(state)
    loaded = net.state_dict()
    assert all(torch.equal(loaded[from_pytorchvideo(name)], value) for name, value in state.items())

    with pytest.raises(WeightError, match=r"blocks.0.conv.weight"):
        load_weights(net, path)
    headless = ResNet3D(layout)
    assert len(load_weights(headless, path, rename=from_pytorchvideo, ignore=("fc.*",)).matched) == len(state) - 2
    with pytest.raises(WeightError, match="unexpected"):
        load_weights(headless, path, rename=from_pytorchvideo)
    for old, new in (
        ("blocks.3.res_blocks.2.branch2.conv_a.weight", "blocks.3.res_blocks.2.branch2.conv_d.weight"),
        ("blocks.4.res_blocks.0.branch1_norm.bias", "blocks.5.res_blocks.0.branch1_norm.bias"),
    ):
        renamed = dict(state)
        renamed[new] = renamed.pop(old)
        with pytest.raises(WeightError, match=new.replace(".", r"\.")):
            load_weights(net, renamed, rename=from_pytorchvideo)
