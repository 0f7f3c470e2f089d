"""Published weights by path and layout: one net of each family of layouts, strictly, with a head of other classes."""

import hashlib

import pytest
import torch
from torch import Tensor

from training.backbones.bninception import BNInception, public_name
from training.backbones.eco import ECOLite
from training.backbones.i3d import I3D
from training.backbones.segment_nets import SegmentNet
from training.backbones.video_resnet import VideoResNet
from training.core.config import ConfigError
from training.core.weights import WeightError

CLASSES = ("blue", "green", "red")
SMALL = {"frames": 3, "size": 16, "width": 0.125}
TSN = {**SMALL, "backbone": "resnet18"}


def randomised(net, seed=11):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.1)
    return net


def tsm_names(state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Put the names of a shifted ResNet-18 into those of MIT's or MMAction2's files."""
    result = {}
    for name, value in state.items():
        if name.startswith("fc."):
            result[name.replace("fc.", "new_fc." if layout == "mit" else "cls_head.fc_cls.")] = value
            continue
        path = name.removeprefix("backbone.")
        block, _, member = path.rpartition(".")[0].rpartition(".")
        leaf = path.rpartition(".")[2]
        if layout == "mmaction2":
            if block.endswith("downsample"):
                member = "conv" if member == "0" else "bn"
            else:
                member = f"conv{member[-1]}.{'conv' if member.startswith('conv') else 'bn'}"
        if block and member.startswith("conv1") and not member.endswith("bn"):
            member += ".net"
        prefix = "base_model." if layout == "mit" else "backbone."
        result[f"{prefix}{block}.{member}.{leaf}" if block else f"{prefix}{member}.{leaf}"] = value
    return result


PIERGIAJ = {
    "branch0": "b0", "branch1.0": "b1a", "branch1.1": "b1b", "branch2.0": "b2a", "branch2.1": "b2b", "branch3.1": "b3b",
    "conv1a": "Conv3d_1a_7x7", "conv2b": "Conv3d_2b_1x1", "conv2c": "Conv3d_2c_3x3",
}  # fmt: skip


def piergiaj_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, value in state.items():
        new = name.replace("conv.", "conv3d.").replace("norm.", "bn.").replace("head.", "logits.conv3d.")
        for ours, theirs in PIERGIAJ.items():
            new = new.replace(f"{ours}.", f"{theirs}.")
        result[new.replace("mixed", "Mixed_")] = value
    return result


def eco_3d_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the 3-D part as its start file has it, with more input channels in its first kernel."""
    part = {
        "base_model." + name.removeprefix("volume.").replace(".", "", 1): value
        for name, value in state.items()
        if name.startswith("volume.")
    }
    first = part["base_model.res3a_2.weight"]
    part["base_model.res3a_2.weight"] = torch.cat([first, first[:, :4]], dim=1)
    return part | {"base_model.conv1_bn.bias": torch.zeros(8)}


def eco_2d_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {public_name(name): value for name, value in state.items() if not name.startswith("fc.")}


def source(layout: str):
    """Return primitive, clip, weights of a net of other classes, and the same as a file of the layout has them."""
    if layout == "torchvision":
        state = randomised(VideoResNet("r3d_18", num_classes=5, width=0.125)).state_dict()
        return "r3d", {"frames": 3, "size": 16}, state, dict(state)
    if layout in ("mit", "mmaction2"):
        state = randomised(SegmentNet("resnet18", num_classes=5, width=0.125, shift=True)).state_dict()
        return "tsm", {"frames": 3, "size": 16, "backbone": "resnet18"}, state, tsm_names(state, layout)
    if layout == "piergiaj":
        state = randomised(I3D(num_classes=5, width=0.125)).state_dict()
        return "i3d", {"frames": 16, "size": 32}, state, piergiaj_names(state)
    if layout == "bninception":
        state = randomised(BNInception(num_classes=5, width=0.125)).state_dict()
        return "eco_lite", {"frames": 4, "size": 32}, state, eco_2d_names(state)
    state = randomised(ECOLite(num_classes=5, width=0.125)).state_dict()
    return "eco_lite", {"frames": 4, "size": 32}, state, eco_3d_names(state)


PARTS = {"bninception": "lower.", "c3d_resnet18": "volume."}
"""Layout of a file of a part of the net → that part."""


def stored(folder, state) -> dict[str, str]:
    path = folder / "weights.pt"
    torch.save(state, path)
    return {"path": "weights.pt", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize("layout", ["torchvision", "mit", "mmaction2", "piergiaj", "bninception", "c3d_resnet18"])
def test_published_weights(layout, tmp_path, train_config, build_system):
    use, clip, own, file = source(layout)
    net = {**clip, "width": 0.125, "weights": stored(tmp_path, file), "layout": layout}
    fresh = build_system(train_config(f"recognition/{use}", **clip, width=0.125), CLASSES).net.state_dict()
    loaded = build_system(train_config(f"recognition/{use}", **net), CLASSES, tmp_path).net.state_dict()
    heads = ("fc.", "head.")
    for name, value in loaded.items():
        if name.startswith(heads) or not name.startswith(PARTS.get(layout, "")):
            assert torch.equal(value, fresh[name]), "heads of other classes start anew, as does what the file lacks"
        elif name == "lower.conv1_7x7_s2.conv.weight":
            assert torch.allclose(value, own[name].flip(1) * 58)
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(value, own[name])
            assert not torch.equal(value, fresh[name])
    # A saved model has its own weights, and needs no file.
    build_system(train_config(f"recognition/{use}", **net), CLASSES, None)

    # Strict: a tensor that is missing, or of another name.
    name = next(name for name in file if name.endswith("running_var") and "Logits" not in name)
    net["weights"] = stored(tmp_path, {("x" + key if key == name else key): value for key, value in file.items()})
    with pytest.raises(WeightError, match=r"missing +1"):
        build_system(train_config(f"recognition/{use}", **net), CLASSES, tmp_path)


def test_wrong_files_and_layouts_are_refused(tmp_path, train_config, build_system):
    net = VideoResNet("r3d_18", num_classes=5, width=0.125)
    weights = stored(tmp_path, net.state_dict())
    settings = {**SMALL, "weights": weights, "layout": "torchvision"}
    build_system(train_config("recognition/r3d", **settings), CLASSES, tmp_path)

    def refused(error, message, **changes):
        with pytest.raises(error, match=message):
            build_system(train_config("recognition/r3d", **{**settings, **changes}), CLASSES, tmp_path)

    refused(WeightError, f"has the sha256 {weights['sha256']}", weights={**weights, "sha256": "0" * 64})
    refused(WeightError, "no such weight file", weights={**weights, "path": "nothing.pt"})
    refused(ConfigError, "unknown weight layout 'torchvison'; known: fovea, torchvision, hara", layout="torchvison")
    refused(ConfigError, "sha256", weights={**weights, "sha256": "short"})
    # That of the net of the same name with a pool, and of another depth.
    refused(WeightError, "does not fit the network", form="hara", layout="hara", size=32)
    refused(WeightError, "does not fit the network", depth=34)
    i3d = train_config("recognition/i3d", frames=16, size=32, width=0.125, weights=weights, layout="hassony2")
    with pytest.raises(WeightError, match="fits the network"):
        build_system(i3d, CLASSES, tmp_path)


def test_tsn_weights_do_not_load_into_tsm(tmp_path, train_config, build_system):
    """D4: the pretrained TSM of the public code was TSN."""
    tsn = SegmentNet("resnet18", num_classes=5, width=0.125)
    file = {name.replace(".net.", "."): value for name, value in tsm_names(tsn.state_dict(), "mit").items()}
    net = {**TSN, "weights": stored(tmp_path, file), "layout": "mit"}
    with pytest.raises(WeightError, match="temporal shift in 0 blocks"):
        build_system(train_config("recognition/tsm", **net), CLASSES, tmp_path)
    build_system(train_config("recognition/tsn", **net), CLASSES, tmp_path)
