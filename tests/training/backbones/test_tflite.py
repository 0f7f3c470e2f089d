"""TFLite import: a written file comes back, foreign files are refused, and the real one is a working net."""

import hashlib
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F
from torch import nn

from training.backbones.mobilenetv2 import MobileNetV2
from training.backbones.tflite import load_mobilenetv2, main, read_graph
from training.core.weights import WeightError, load_weights

REAL_DATA = Path(os.environ.get("FOVEA_TEST_DATA", "../shared/data")).resolve()
REAL = REAL_DATA / "weights" / "mobilenet_v2_1.0_224_quant.tflite"
needs_real_file = pytest.mark.skipif(not REAL.exists(), reason="the pre-trained TFLite file is not here")


@pytest.fixture(scope="module")
def folded():
    torch.manual_seed(0)
    net = MobileNetV2(num_classes=10, width=0.35, padding="tf_same").eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.running_var, 1 - module.eps)
            nn.init.normal_(module.bias, std=0.3)
    return net


@pytest.mark.parametrize("per_channel", [True, False])
def test_written_file_comes_back(folded, write_tflite, tmp_path, per_channel):
    """int8 per channel and uint8 with a zero point; the error is at most half a quantisation step."""
    net, report = load_mobilenetv2(write_tflite(folded, tmp_path / "net.tflite", per_channel=per_channel))
    assert report.complete
    ours = net.state_dict()
    for name, value in folded.state_dict().items():
        if name.endswith("weight") and value.dim() == 4:
            flat = value.flatten(1).abs().amax(1) if per_channel else (value.max() - value.min()).expand(len(value))
            step = (flat / (127 if per_channel else 255)).view(-1, 1, 1, 1)
            assert ((ours[name] - value).abs() <= step * (0.51 if per_channel else 1.01)).all(), name
        elif name.endswith("bias"):
            assert torch.allclose(ours[name], value, atol=2e-3), name
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        exact, imported = folded(x), net(x)
    close = F.cosine_similarity(exact - exact.mean(), imported - imported.mean()).min()
    assert close > (0.99 if per_channel else 0.9)


def test_command_writes_safetensors(folded, write_tflite, tmp_path, capsys):
    source, target = write_tflite(folded, tmp_path / "net.tflite"), tmp_path / "out" / "net.safetensors"
    main([str(source), str(target)])
    printed = capsys.readouterr().out
    assert "all tensors fit" in printed
    with safetensors.safe_open(target, "pt") as file:
        assert "padding tf_same" in file.metadata()["made_from"]
    checksum = hashlib.sha256(target.read_bytes()).hexdigest()
    assert checksum in printed
    main([str(source), str(target)])
    assert hashlib.sha256(target.read_bytes()).hexdigest() == checksum
    fresh = MobileNetV2(num_classes=10, width=0.35, padding="tf_same").eval()
    assert load_weights(fresh, target).complete
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fresh(x), load_mobilenetv2(source)[0](x))
    assert [p.name for p in target.parent.iterdir()] == ["net.safetensors"]


def test_command_on_a_bad_file(tmp_path, capsys):
    (tmp_path / "bad.tflite").write_bytes(b"no flatbuffer at all")
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "bad.tflite"), str(tmp_path / "out.safetensors")])
    assert caught.value.code == 1
    assert "is not a TFLite file" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_truncated_file_is_refused(folded, write_tflite, tmp_path):
    path = write_tflite(folded, tmp_path / "net.tflite")
    whole = path.read_bytes()
    for share in (0.0001, 0.01, 0.2, 0.5, 0.9):
        path.write_bytes(whole[: max(int(len(whole) * share), 12)])
        with pytest.raises(WeightError, match=r"net\.tflite|computed"):
            load_mobilenetv2(path)
    with pytest.raises(WeightError, match="no such weight file"):
        read_graph(tmp_path / "none.tflite")


def test_other_architectures_are_refused(folded, write_tflite, tflite_codes, tmp_path):
    path = tmp_path / "net.tflite"
    with pytest.raises(WeightError, match="stride"):
        load_mobilenetv2(write_tflite(folded, path, change=lambda n, o: {**o, 2: ("i", 3)} if n == 6 else o))
    with pytest.raises(WeightError, match="ReLU6"):
        load_mobilenetv2(write_tflite(folded, path, change=lambda n, o: {**o, 3: ("b", 3)} if n == 2 else o))
    with pytest.raises(WeightError, match="operator number 97"):
        load_mobilenetv2(write_tflite(folded, path, codes={**tflite_codes, "pad": 97, "mean": 97}))


def run_graph(graph, x_NCHW):
    """Execute the file's operators one by one, knowing nothing of MobileNetV2's structure."""
    values = {graph.inputs[0]: x_NCHW}

    def constant(index):
        return torch.from_numpy(np.array(graph.tensors[index].values))

    for op in graph.operators:
        first = values[op.inputs[0]]
        if op.kind in ("conv", "depthwise_conv"):
            weight, bias = constant(op.inputs[1]), constant(op.inputs[2])
            weight = weight.permute(3, 0, 1, 2) if op.kind == "depthwise_conv" else weight.permute(0, 3, 1, 2)
            if op.same_padding:
                kernel, size = weight.shape[2], first.shape[2]
                total = max((-(-size // op.stride) - 1) * op.stride + kernel - size, 0)
                first = F.pad(first, (total // 2, total - total // 2) * 2)
            groups = len(weight) if op.kind == "depthwise_conv" else 1
            result = F.conv2d(first, weight, bias, op.stride, groups=groups)
            result = result.clamp(0, 6) if op.relu6 else result
        elif op.kind == "pad":
            (top, bottom), (left, right) = constant(op.inputs[1])[1:3].int().tolist()
            result = F.pad(first, (left, right, top, bottom))
        elif op.kind == "add":
            result = first + values[op.inputs[1]]
        elif op.kind == "mean":
            result = first.mean((2, 3))
        elif op.kind == "fully_connected":
            result = F.linear(first, constant(op.inputs[1]), constant(op.inputs[2]))
        elif op.kind == "softmax":
            result = first.softmax(1)
        else:
            result = first
        values[op.outputs[0]] = result
    return values[graph.outputs[0]]


@needs_real_file
def test_real_network_equals_its_graph():
    net, report = load_mobilenetv2(REAL)
    assert report.complete
    torch.manual_seed(0)
    x = F.interpolate(torch.rand(1, 3, 28, 28), 224, mode="bilinear") * 2 - 1
    with torch.no_grad():
        expected = run_graph(read_graph(REAL), x)
        assert torch.allclose(net(x).softmax(1), expected, atol=1e-4)
        symmetric = MobileNetV2(num_classes=1000).eval()
        load_weights(symmetric, net.state_dict())
        assert not torch.allclose(symmetric(x).softmax(1), expected, atol=1e-2), "padding makes no difference?"


def to_input(path):
    """Short side 256, centre 224, [-1, 1]."""
    image = cv2.imread(str(path))[:, :, ::-1]
    scale = 256 / min(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    top, left = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
    crop = np.ascontiguousarray(image[top : top + 224, left : left + 224])
    return torch.from_numpy(crop).permute(2, 0, 1).float() / 127.5 - 1


@needs_real_file
def test_real_network_sees_the_airplane():
    """Frames of a video labelled airplane: warplane (895) or airliner (404) is in every top 3."""
    paths = sorted(REAL_DATA.glob("vid_frames/*/*.JPEG"))[::16]
    if not paths:
        pytest.skip("the frames are not here")
    x = torch.stack([to_input(path) for path in paths])
    net, _ = load_mobilenetv2(REAL)
    with torch.no_grad():
        top = net(x).topk(3).indices
        assert ((top == 895) | (top == 404)).any(1).all()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                order = torch.randperm(module.weight.numel(), generator=torch.Generator().manual_seed(0))
                module.weight.data = module.weight.data.flatten()[order].view_as(module.weight)
        top = net(x).topk(3).indices
        assert not ((top == 895) | (top == 404)).any()
