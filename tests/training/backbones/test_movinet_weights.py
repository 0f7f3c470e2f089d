"""Published layouts, written out here from the module structure of the public code, and weights from net to net."""

import hashlib

import numpy as np
import pytest
import safetensors.torch
import torch

from training.backbones.movinet import MoViNet
from training.backbones.movinet_layout import BASE, STREAM, Variant, architecture
from training.backbones.movinet_weights import (
    TRAINING_STATE,
    from_pytorch_port,
    from_tensorflow,
    transfer,
    transferable,
)
from training.core.config import WeightsFile
from training.core.weights import WeightError, load_published, load_weights

LAYOUT = architecture(
    {
        "stem": 8,
        "blocks": [
            {"width": 8, "stride": 2, "layers": "1x5x5:16"},
            {"width": 16, "stride": 2, "layers": "3x3x3:24 1x3x3:16"},
            # Another width without a stride, as in A3: a skip with a convolution and without pooling.
            {"width": 24, "stride": 1, "layers": "5x3x3:32 3x3x3:40"},
        ],
        "project": 40,
        "head": 48,
    }
)
OTHER = architecture("t0").scaled(0.125)
CAUSAL_3D = Variant(True, "3d", "2plus3d", "silu", "sigmoid", "silu")
FLAT_BASE = Variant(False, "2plus1d", "3d", "hard_swish", "hard_sigmoid_keras", "silu")
PORT_STREAM = Variant(True, "2plus1d", "2plus3d", "hard_swish", "hard_sigmoid_keras", "silu")
POSITIONAL = Variant(True, "2plus1d", "2plus3d", "hard_swish", "hard_sigmoid", "silu", positional=True)


def draw(net, seed=0):
    """Give every parameter and statistic a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var") or (value.dim() == 1 and name.endswith("norm.weight")):
            value.copy_(noise.abs() * 0.3 + 0.7)
        elif value.dim() <= 1:
            value.copy_(noise * 0.3 + (0.5 if name.endswith(("scale", "position")) else 0))
        else:
            value.copy_(noise * (2 / value[0].numel()) ** 0.5)
    return net.eval()


def build(layout, variant, classes=7, seed=0):
    torch.manual_seed(seed)
    return draw(MoViNet(layout, variant, num_classes=classes), seed)


def answers(net):
    video = torch.rand(2, 3, 5, 33, 36, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return net(video)


def write_norm(state, prefix, norm, names):
    for ours, theirs in names.items():
        if hasattr(norm, ours):
            state[prefix + theirs] = getattr(norm, ours).detach().clone()


# --- Atze00/MoViNet-pytorch -------------------------------------------------------------------------

TORCH_NORM = {name: name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


def port_state(net):
    """A state dict in the layout of the PyTorch port: its ConvBlock3D around Conv2d or Conv3d, one after another."""
    flat = net.variant.conv == "2plus1d"
    name = "conv2d" if flat else "conv3d"
    state = {}

    def block(prefix, weight, norm=None, bias=None):
        """`weight` is (out,in,h,w) where it is for one frame."""
        weight = weight.detach().clone()
        state[f"{prefix}.{name}.weight"] = weight if flat or weight.dim() == 5 else weight[:, :, None]
        if bias is not None:
            state[f"{prefix}.{name}.bias"] = bias.detach().clone()
        if norm is not None:
            write_norm(state, f"{prefix}.norm.", norm, TORCH_NORM)

    def linear(prefix, layer):
        block(prefix, layer.weight[:, :, None, None], bias=layer.bias)

    block("conv1.conv_1", net.stem.conv.weight, net.stem.norm)
    for i, layers in enumerate(net.blocks):
        for j, layer in enumerate(layers):
            front = f"blocks.b{i}_l{j}"
            deep = layer.depthwise
            state[f"{front}.alpha"] = layer.scale.detach().clone()
            block(f"{front}.expand.conv_1", layer.expand.conv.weight, layer.expand.norm)
            if deep.spatial is not None:
                block(f"{front}.deep.conv_1", deep.spatial.conv.weight, deep.spatial.norm)
            if deep.temporal is not None and flat:
                block(f"{front}.deep.conv_2", deep.temporal.weight[..., None], deep.norm)
            elif deep.temporal is not None:
                block(f"{front}.deep.conv_1", deep.temporal.weight, deep.norm)
            linear(f"{front}.se.fc1.conv_1", layer.gate.reduce)
            linear(f"{front}.se.fc2.conv_1", layer.gate.expand)
            block(f"{front}.project.conv_1", layer.project.conv.weight, layer.project.norm)
            if layer.skip is not None:
                index = 1 if layer.skip.stride == 2 else 0
                block(f"{front}.res.{index}.conv_1", layer.skip.conv.weight, layer.skip.norm)
    block("conv7.conv_1", net.project.conv.weight, net.project.norm)
    linear("classifier.0.conv_1", net.dense)
    linear("classifier.3.conv_1", net.classifier)
    return state


# --- TensorFlow -------------------------------------------------------------------------------------

KERAS_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def variable_arrays(net, conv):
    """Arrays under the names of TensorFlow's variables; `conv` is TensorFlow's conv type."""
    arrays = {}

    def put(front, weight, norm, *, temporal=False, depthwise=False, number=None, bias=None):
        weight = weight.detach().numpy()
        end = "_temporal" if temporal else ""
        if conv == "2plus1d":
            kind = "depthwise_conv2d" if depthwise else "conv2d"
            inner = f"{kind}_{number}" if number else kind
            leaf = "depthwise_kernel" if depthwise else "kernel"
            # (C,1,h,w) → (h,w,C,1), (out,in,1,1) → (1,1,in,out)
            value = np.transpose(weight, (2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
            arrays[f"{front}/conv2d{end}/{inner}/{leaf}:0"] = value
            biased = f"{front}/conv2d{end}/{inner}/bias:0"
        else:
            if weight.ndim == 4:
                weight = weight[:, :, None]
            arrays[f"{front}/conv3d{end}/kernel:0"] = np.transpose(weight, (2, 3, 4, 1, 0))
            biased = f"{front}/conv3d{end}/bias:0"
        if bias is not None:
            arrays[biased] = bias.detach().numpy()
        for ours, theirs in KERAS_NORM.items() if norm is not None else ():
            arrays[f"{front}/bn{end}/{theirs}:0"] = getattr(norm, ours).detach().numpy()

    put("stem/stem", net.stem.conv.weight, net.stem.norm)
    for i, layers in enumerate(net.blocks):
        for j, layer in enumerate(layers):
            front = f"b{i}/l{j}/bneck"
            deep = layer.depthwise
            # ReZero's variable is made in the constructor, outside of its layer's name scope.
            arrays[f"b{i}/l{j}/scale:0"] = layer.scale.detach().numpy()
            put(f"{front}/expansion", layer.expand.conv.weight, layer.expand.norm)
            if deep.spatial is not None:
                put(f"{front}/feature", deep.spatial.conv.weight, deep.spatial.norm, depthwise=True)
            if deep.temporal is not None and net.variant.conv == "2plus1d":
                # 4-D for 2-D kernels, (k_t,1,1) else
                weight = deep.temporal.weight[..., None] if conv == "2plus1d" else deep.temporal.weight[..., None, None]
                put(f"{front}/feature", weight, deep.norm, temporal=True, depthwise=True, number=1)
            elif deep.temporal is not None:
                put(f"{front}/feature", deep.temporal.weight, deep.norm)
            for key, number, dense in (("se_reduce", 1, layer.gate.reduce), ("se_expand", 2, layer.gate.expand)):
                put(f"{front}/se/{key}", dense.weight[:, :, None, None], None, number=number, bias=dense.bias)
            put(f"{front}/projection", layer.project.conv.weight, layer.project.norm, number=3)
            if layer.skip is not None:
                put(f"{front}/skip/skip_project", layer.skip.conv.weight, layer.skip.norm, number=4)
    put("head/project", net.project.conv.weight, net.project.norm)
    for number, (key, dense) in enumerate((("head", net.dense), ("classifier", net.classifier))):
        weight = dense.weight[:, :, None, None]
        put(f"classifier_head/{key}", weight, None, number=number, bias=dense.bias)
    return arrays


def graph_arrays(net, conv, backbone):
    """Arrays under the names of a checkpoint's object graph."""
    end = "/.ATTRIBUTES/VARIABLE_VALUE"
    arrays = {}

    def put(front, weight, norm, *, temporal=False, depthwise=False, bias=None):
        weight = weight.detach().numpy()
        name = "_conv_temporal" if temporal else "_conv"
        if conv == "2plus1d":
            order, leaf = ((2, 3, 0, 1), "depthwise_kernel") if depthwise else ((2, 3, 1, 0), "kernel")
            arrays[f"{front}/{name}/_conv/{leaf}{end}"] = np.transpose(weight, order)
            biased = f"{front}/{name}/_conv/bias{end}"
        else:
            weight = weight if weight.ndim == 5 else weight[:, :, None]
            arrays[f"{front}/{name}/kernel{end}"] = np.transpose(weight, (2, 3, 4, 1, 0))
            biased = f"{front}/{name}/bias{end}"
        if bias is not None:
            arrays[biased] = bias.detach().numpy()
        for ours, theirs in KERAS_NORM.items() if norm is not None else ():
            key = "_batch_norm_temporal" if temporal else "_batch_norm"
            arrays[f"{front}/{key}/{theirs}{end}"] = getattr(norm, ours).detach().numpy()

    layers = [layer for block in net.blocks for layer in block]
    put(f"{backbone}/layer_with_weights-0/_stem", net.stem.conv.weight, net.stem.norm)
    for number, layer in enumerate(layers, start=1):
        front = f"{backbone}/layer_with_weights-{number}"
        deep = layer.depthwise
        arrays[f"{front}/_mobile_bottleneck/_rezero/scale{end}"] = layer.scale.detach().numpy()
        put(f"{front}/_expansion", layer.expand.conv.weight, layer.expand.norm)
        if deep.spatial is not None:
            put(f"{front}/_feature", deep.spatial.conv.weight, deep.spatial.norm, depthwise=True)
        if deep.temporal is not None and net.variant.conv == "2plus1d":
            weight = deep.temporal.weight[..., None] if conv == "2plus1d" else deep.temporal.weight[..., None, None]
            put(f"{front}/_feature", weight, deep.norm, temporal=True, depthwise=True)
        elif deep.temporal is not None:
            put(f"{front}/_feature", deep.temporal.weight, deep.norm)
        for key, dense in (("_se_reduce", layer.gate.reduce), ("_se_expand", layer.gate.expand)):
            put(f"{front}/_attention/{key}", dense.weight[:, :, None, None], None, bias=dense.bias)
        if layer.gate.position is not None:
            arrays[f"{front}/_attention/_pos_encoding/_rezero/scale{end}"] = layer.gate.position.detach().numpy()
        put(f"{front}/_projection", layer.project.conv.weight, layer.project.norm)
        if layer.skip is not None:
            put(f"{front}/_skip/_projection", layer.skip.conv.weight, layer.skip.norm)
    put(f"{backbone}/layer_with_weights-{len(layers) + 1}/_project", net.project.conv.weight, net.project.norm)
    for key, dense in (("_head", net.dense), ("_classifier", net.classifier)):
        put(f"model/layer_with_weights-1/{key}", dense.weight[:, :, None, None], None, bias=dense.bias)
    return arrays


def as_tensors(arrays):
    return {name: torch.tensor(array).contiguous() for name, array in arrays.items()}


# --- both, through the loading of published weights ------------------------------------------------


def published(path):
    return WeightsFile(path=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    "variant", [BASE, CAUSAL_3D, FLAT_BASE, PORT_STREAM], ids=["base", "causal-3d", "base-2plus1d", "stream"]
)
def test_port_state_loads_and_answers_are_equal(tmp_path, variant):
    net, other = build(LAYOUT, variant), build(LAYOUT, variant, seed=1)
    before = answers(other)
    path = tmp_path / "port.pth"
    torch.save(port_state(net), path)
    report = load_published(other, published(path), tmp_path, convert=from_pytorch_port)
    assert report.complete
    assert len(report.matched) == len(net.state_dict())
    torch.testing.assert_close(answers(other), answers(net), rtol=0, atol=0)
    assert not torch.allclose(before, answers(other))


@pytest.mark.parametrize(
    ("variant", "conv"),
    [(BASE, "3d"), (CAUSAL_3D, "3d"), (STREAM, "3d_2plus1d"), (STREAM, "2plus1d")],
    ids=["base", "causal-3d", "stream-3d-kernels", "stream-2d-kernels"],
)
def test_tensorflow_variables_load_and_answers_are_equal(tmp_path, variant, conv):
    net, other = build(LAYOUT, variant), build(LAYOUT, variant, seed=1)
    path = tmp_path / "variables.npz"
    np.savez(path, **variable_arrays(net, conv))
    report = load_published(other, published(path), tmp_path, convert=from_tensorflow)
    assert report.complete
    assert all(name.endswith("num_batches_tracked") for name in report.defaulted)
    assert len(report.matched) + len(report.defaulted) == len(net.state_dict())
    torch.testing.assert_close(answers(other), answers(net), rtol=0, atol=0)


@pytest.mark.parametrize("backbone", ["model/layer_with_weights-0", "backbone"])
@pytest.mark.parametrize(
    ("variant", "conv"),
    [(BASE, "3d"), (POSITIONAL, "3d_2plus1d"), (POSITIONAL, "2plus1d")],
    ids=["base", "stream-3d-kernels", "stream-2d-kernels"],
)
def test_tensorflow_checkpoints_load_and_answers_are_equal(tmp_path, variant, conv, backbone):
    net, other = build(LAYOUT, variant), build(LAYOUT, variant, seed=1)
    arrays = graph_arrays(net, conv, backbone)
    path = tmp_path / "checkpoint.safetensors"
    safetensors.torch.save_file(as_tensors(arrays), path)
    assert load_published(other, published(path), tmp_path, convert=from_tensorflow).complete
    torch.testing.assert_close(answers(other), answers(net), rtol=0, atol=0)


def test_training_state_of_a_checkpoint_is_refused_unless_ignored(tmp_path):
    net, other = build(LAYOUT, BASE), build(LAYOUT, BASE, seed=1)
    end = ".ATTRIBUTES/VARIABLE_VALUE"
    more = {
        f"save_counter/{end}": np.array(3),
        f"optimizer/iter/{end}": np.array(7),
        f"global_step/{end}": np.array(7),
        f"backbone/layer_with_weights-1/_expansion/_conv/kernel/.OPTIMIZER_SLOT/optimizer/rms/{end}": np.ones(3),
    }
    np.savez(tmp_path / "c.npz", **graph_arrays(net, "3d", "backbone"), **more)
    with pytest.raises(WeightError, match="optimizer/iter"):
        load_weights(other, tmp_path / "c.npz", convert=from_tensorflow)
    report = load_weights(other, tmp_path / "c.npz", convert=from_tensorflow, ignore=TRAINING_STATE)
    assert report.complete
    assert set(report.ignored) == set(more)
    torch.testing.assert_close(answers(other), answers(net), rtol=0, atol=0)


@pytest.fixture(params=["port-base", "port-stream", "variables-stream", "graph-base"])
def case(request):
    """A net, its state in a public layout, and the converter."""
    kind, _, variant = request.param.partition("-")
    net = build(LAYOUT, BASE if variant == "base" else PORT_STREAM)
    if kind == "port":
        return net, port_state(net), from_pytorch_port
    conv = "3d" if variant == "base" else "2plus1d"
    arrays = variable_arrays(net, conv) if kind == "variables" else graph_arrays(net, conv, "backbone")
    return net, as_tensors(arrays), from_tensorflow


def test_every_name_has_a_place_of_its_own(case):
    net, state, convert = case
    found = {}
    for name, value in state.items():
        ((ours, converted),) = convert({name: value}, net).items()
        assert ours not in found, name
        assert converted.shape == net.state_dict()[ours].shape, name
        found[ours] = name
    assert {name for name in net.state_dict() if name not in found and "num_batches" not in name} == set()


def test_missing_renamed_and_misshapen_tensors_are_named(case):
    net, state, convert = case
    fresh = build(LAYOUT, net.variant, seed=1)
    before = answers(fresh)
    kernels = [name for name, value in state.items() if value.dim() >= 4]
    for name in (kernels[0], kernels[len(kernels) // 2], kernels[-1]):
        (ours,) = convert({name: state[name]}, net)
        rest = {other: value for other, value in state.items() if other != name}
        if "num_batches" not in name:
            with pytest.raises(WeightError, match=f"missing.*\n.*{ours}"):
                load_weights(fresh, rest, convert=convert)
        with pytest.raises(WeightError, match=r"unexpected.*\n.*nothing/like/it"):
            load_weights(fresh, rest | {"nothing/like/it": state[name]}, convert=convert)
        # Channels in the wrong order, and one tap too few: both have another shape.
        for wrong in (state[name].transpose(0, 1), state[name].flatten(0, 1)[1:]):
            if wrong.shape != state[name].shape:
                with pytest.raises(WeightError, match=f"mismatched.*\n.*{ours}"):
                    load_weights(fresh, rest | {name: wrong}, convert=convert)
    torch.testing.assert_close(answers(fresh), before, rtol=0, atol=0)


def test_files_of_another_variant_are_refused():
    base, stream = build(LAYOUT, BASE), build(LAYOUT, PORT_STREAM)
    with pytest.raises(WeightError, match="does not fit"):
        load_weights(stream, port_state(base), convert=from_pytorch_port)
    with pytest.raises(WeightError, match="does not fit"):
        load_weights(base, as_tensors(variable_arrays(stream, "2plus1d")), convert=from_tensorflow)


def test_two_names_of_one_tensor_are_refused():
    net = build(LAYOUT, BASE)
    twice = as_tensors(graph_arrays(net, "3d", "backbone") | graph_arrays(net, "3d", "model/layer_with_weights-0"))
    with pytest.raises(WeightError, match=r"backbone/.*model/.*would both become 'stem.conv.weight'"):
        load_weights(net, twice, convert=from_tensorflow)


def test_a_skip_counts_its_pooling():
    net = build(LAYOUT, BASE)
    state = port_state(net)
    skips = {name.rpartition(".conv_1")[0] for name in state if ".res." in name}
    assert {name[-1] for name in skips} == {"0", "1"}
    moved = {name.replace("b0_l0.res.1", "b0_l0.res.0"): value for name, value in state.items()}
    with pytest.raises(WeightError, match=r"blocks\.b0_l0\.res\.0"):
        load_weights(net, moved, convert=from_pytorch_port)


def test_positional_scalars_without_their_layers_are_missed():
    """TensorFlow calls all of these variables `scale:0`: such a file lacks them, and loading says so."""
    net = build(LAYOUT, POSITIONAL)
    arrays = variable_arrays(net, "2plus1d") | {"scale:0": np.array(0.5, np.float32)}
    with pytest.raises(WeightError, match=r"gate\.position"):
        load_weights(net, as_tensors(arrays), convert=from_tensorflow)


@pytest.mark.parametrize("layout", ["port", "tensorflow"])
def test_the_file_is_compared_with_its_checksum(tmp_path, layout):
    net = build(LAYOUT, BASE)
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(port_state(net) if layout == "port" else as_tensors(variable_arrays(net, "3d")), path)
    convert = from_pytorch_port if layout == "port" else from_tensorflow
    other = build(LAYOUT, BASE, seed=1)
    with pytest.raises(WeightError, match="sha256"):
        load_published(other, WeightsFile(path=path.name, sha256="0" * 64), tmp_path, convert=convert)
    assert load_published(other, published(path), tmp_path, convert=convert).complete


def test_a_file_for_600_classes_starts_a_net_for_fewer(tmp_path):
    torch.manual_seed(0)
    net, few = build(LAYOUT, BASE, classes=600), build(LAYOUT, BASE, classes=5, seed=1)
    np.savez(tmp_path / "w.npz", **variable_arrays(net, "3d"))
    with pytest.raises(WeightError, match=r"classifier\.weight: network \(5,"):
        load_weights(few, tmp_path / "w.npz", convert=from_tensorflow)
    own = few.classifier.weight.detach().clone()
    report = load_weights(few, tmp_path / "w.npz", convert=from_tensorflow, ignore=("classifier.*",))
    assert report.complete
    assert {"classifier.weight", "classifier.bias"} <= set(report.ignored)
    torch.testing.assert_close(few.classifier.weight, own, rtol=0, atol=0)
    torch.testing.assert_close(few.dense.weight, net.dense.weight, rtol=0, atol=0)


def test_a_file_with_classes_starts_a_net_without(tmp_path):
    net, bare = build(LAYOUT, BASE), build(LAYOUT, BASE, classes=None, seed=1)
    for state, convert in (
        (port_state(net), from_pytorch_port),
        (as_tensors(variable_arrays(net, "3d")), from_tensorflow),
    ):
        with pytest.raises(WeightError, match=r"unexpected.*\n.*dense\.weight"):
            load_weights(bare, state, convert=convert)
        assert load_weights(bare, state, convert=convert, ignore=("dense.*", "classifier.*")).complete


def test_layers_are_numbered_as_in_public_logs():
    """In issue 10730 of tensorflow/models, A0's layer 5 has a skip with a convolution: its first of 56 channels."""
    with torch.device("meta"):
        net = MoViNet(architecture("a0"), BASE, num_classes=600)
    name = "model/layer_with_weights-0/layer_with_weights-5/_skip/_projection/_conv/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    ((ours, value),) = from_tensorflow({name: torch.zeros(1, 1, 1, 32, 56)}, net).items()
    assert ours == "blocks.2.0.skip.conv.weight"
    assert value.shape == net.state_dict()[ours].shape


def test_npz_files_hold_numbers_only(tmp_path):
    net = build(LAYOUT, BASE)
    np.savez(tmp_path / "w.npz", **variable_arrays(net, "3d"), graph=np.array(b"object graph"))
    with pytest.raises(WeightError, match="graph has the type"):
        load_weights(net, tmp_path / "w.npz", convert=from_tensorflow)
    (tmp_path / "broken.npz").write_bytes((tmp_path / "w.npz").read_bytes()[:1000])
    with pytest.raises(WeightError, match="cannot be read"):
        load_weights(net, tmp_path / "broken.npz", convert=from_tensorflow)
    np.savez(tmp_path / "objects.npz", thing=np.array([{}], dtype=object))
    with pytest.raises(WeightError, match="cannot be read"):
        load_weights(net, tmp_path / "objects.npz", convert=from_tensorflow)


# --- from net to net --------------------------------------------------------------------------------


def test_a_causal_net_takes_all_of_a_base_net_with_the_same_gates():
    base, causal = build(LAYOUT, BASE), build(LAYOUT, Variant(True, "3d", "3d", "silu", "sigmoid", "silu"), seed=1)
    report = transfer(base, causal)
    assert report.kept == report.unused == ()
    for name, value in base.state_dict().items():
        torch.testing.assert_close(causal.state_dict()[name], value, rtol=0, atol=0)


def test_a_causal_3d_net_takes_all_but_the_gates_of_another_squeeze():
    base, causal = build(LAYOUT, BASE), build(LAYOUT, CAUSAL_3D, seed=1)
    own = {name: value.clone() for name, value in causal.state_dict().items()}
    report = transfer(base, causal)
    assert set(report.kept) == {f"{place.name}.gate" for place in base.places}
    assert report.unused == ()
    for name, value in causal.state_dict().items():
        # The gate's last bias has the same shape in both, and stays all the same.
        expected = own[name] if ".gate." in name else base.state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_a_stream_takes_no_halves_of_temporal_kernels():
    base, stream = build(LAYOUT, BASE), build(LAYOUT, STREAM, classes=3, seed=1)
    own = {name: value.clone() for name, value in stream.state_dict().items()}
    report = transfer(base, stream)
    temporal = {f"{place.name}.depthwise" for place in base.places if place.layer.kernel[0] > 1}
    gates = {f"{place.name}.gate" for place in base.places}
    assert temporal
    assert set(report.kept) == temporal | gates | {"classifier"}
    assert f"{base.places[0].name}.depthwise" in report.copied  # 1×5×5
    assert "dense" in report.copied
    moved = transferable(base.state_dict(), stream)
    for name, value in stream.state_dict().items():
        torch.testing.assert_close(value, moved.get(name, own[name]), rtol=0, atol=0)
    assert "kept as they were" in str(report)


def test_nets_of_other_architectures_are_refused():
    with pytest.raises(ValueError, match="different layouts"):
        transfer(build(LAYOUT, BASE), build(OTHER, BASE))
