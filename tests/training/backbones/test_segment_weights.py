"""Public weight files of image nets, TSN and TSM: names written down here, strict loading, what they tell of shifts."""

import itertools

import pytest
import torch
from torch import nn

from training.backbones.segment_nets import LAYOUTS, SegmentNet
from training.core.weights import WeightError, load_weights

WIDTH = 1 / 8
STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
MOBILE = ((1, 1), (6, 2), (6, 3), (6, 4), (6, 3), (6, 3), (6, 1))
"""Expansion and repetitions."""


def resnet_names(depth, layout, shift_every=0, pool=False):
    """(public owner, torchvision's owner, is a norm?) of each layer, in order."""
    members = 2 if depth < 50 else 3
    mm = layout == "mmaction2"
    prefix = {"mmaction2": "backbone.", "mit": "base_model.", "torchvision": ""}[layout]
    yield (f"{prefix}conv1.conv" if mm else f"{prefix}conv1"), "conv1", False
    yield (f"{prefix}conv1.bn" if mm else f"{prefix}bn1"), "bn1", True
    for stage, count in enumerate(STAGES[depth], start=1):
        for block in range(count):
            ours = f"layer{stage}.{block}"
            name = f"{prefix}layer{stage}.net.{block}" if pool and stage == 2 else f"{prefix}{ours}"
            for n in range(1, members + 1):
                net = ".net" if n == 1 and shift_every and block % shift_every == 0 else ""
                yield (f"{name}.conv{n}.conv{net}" if mm else f"{name}.conv{n}{net}"), f"{ours}.conv{n}", False
                yield (f"{name}.conv{n}.bn" if mm else f"{name}.bn{n}"), f"{ours}.bn{n}", True
            if block == 0 and (stage > 1 or members == 3):
                for n, leaf in enumerate(("conv", "bn")):
                    yield f"{name}.downsample.{leaf if mm else n}", f"{ours}.downsample.{n}", n == 1


def mobilenet_names(layout, shift=False):
    mm = layout == "mmaction2"
    prefix = {"mmaction2": "backbone.", "mit": "base_model.", "torchvision": "", "mit_online": ""}[layout]
    first = ("conv1.conv", "conv1.bn") if mm else ("features.0.0", "features.0.1")
    yield prefix + first[0], "features.0.0", False
    yield prefix + first[1], "features.0.1", True
    index = 0
    for stage, (expansion, count) in enumerate(MOBILE, start=1):
        for position in range(count):
            index += 1
            # The last member, the projection, is not a sequence of its own in torchvision's net.
            members = 2 if expansion == 1 else 3
            for n in range(members):
                net = ".net" if shift and n == 0 and position > 0 else ""
                last = n == members - 1
                ours = [f"features.{index}.conv.{n}" + ("" if last else ".0")]
                ours.append(f"features.{index}.conv.{n + 1}" if last else f"features.{index}.conv.{n}.1")
                if mm:
                    theirs = [f"layer{stage}.{position}.conv.{n}{net}.{leaf}" for leaf in ("conv", "bn")]
                elif layout == "torchvision":
                    theirs = ours
                else:
                    theirs = [f"features.{index}.conv.{3 * n}{net}", f"features.{index}.conv.{3 * n + 1}"]
                yield prefix + theirs[0], ours[0], False
                yield prefix + theirs[1], ours[1], True
    last = ("conv2.conv", "conv2.bn") if mm else ("features.18.0", "features.18.1")
    yield prefix + last[0], "features.18.0", False
    yield prefix + last[1], "features.18.1", True


HEADS = {"torchvision": "fc", "mmaction2": "cls_head.fc_cls", "mit": "new_fc", "mit_online": "classifier"}


def public_state(net, names, head):
    """A state dict in a public layout with values of its own, and the same in our names."""
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    theirs, ours = {}, {}
    for public, owner, is_norm in itertools.chain(names, [(head, None, None)]):
        leaves = NORM if is_norm else ("weight",) if owner else ("weight", "bias")
        for leaf in leaves:
            name = f"backbone.{owner}.{leaf}" if owner else f"fc.{leaf}"
            shape = shapes[name]
            value = torch.tensor(3) if shape == () else torch.rand(shape, generator=generator) * 0.2 + 0.1
            assert f"{public}.{leaf}" not in theirs
            theirs[f"{public}.{leaf}"] = ours[name] = value
    assert set(ours) == set(shapes)
    return theirs, ours


def build(backbone, **options):
    torch.manual_seed(1)
    return SegmentNet(backbone, num_classes=4, width=WIDTH, **options).eval()


def every(depth):
    return 2 if depth == 101 else 1


CASES = [
    *(
        (f"resnet{depth}", layout, shift)
        for depth, layout, shift in itertools.product((18, 50), ("mmaction2", "mit"), (False, True))
    ),
    ("resnet101", "mmaction2", True),
    ("resnet101", "mit", True),
    *itertools.product(("mobilenetv2",), ("mmaction2", "mit"), (False, True)),
]


def names_of(backbone, layout, shift, pool=False):
    if backbone == "mobilenetv2":
        return mobilenet_names(layout, shift)
    depth = int(backbone.removeprefix("resnet"))
    return resnet_names(depth, layout, every(depth) if shift else 0, pool)


@pytest.mark.parametrize(("backbone", "layout", "shift"), CASES)
def test_files_load(backbone, layout, shift):
    net = build(backbone, shift=shift)
    theirs, ours = public_state(net, names_of(backbone, layout, shift), HEADS[layout])
    if shift:
        wrapped = {name.partition(".net.")[0] for name in theirs if ".net." in name}
        assert len(wrapped) == len(net.shifted)
    assert load_weights(net, theirs, convert=LAYOUTS[layout]).complete
    assert all(torch.equal(value, ours[name]) for name, value in net.state_dict().items())

    # D4: a net built with another shift would load these tensors, and is refused.
    other = build(backbone, shift=not shift)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(WeightError, match=rf"build the network with shift={shift}"):
        load_weights(other, theirs, convert=LAYOUTS[layout])
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())

    name = next(name for name in theirs if ("layer3" in name or "features.7" in name) and name.endswith("_mean"))
    theirs[name.replace("layer3", "layer5").replace("features.7", "features.77")] = theirs.pop(name)
    with pytest.raises(WeightError, match=r"missing +1"):
        load_weights(net, theirs, convert=LAYOUTS[layout])


def test_round_trip_through_a_file(tmp_path):
    """As the authors of TSM save it, with what data parallelism puts in front."""
    one, two = build("resnet18", shift=True), build("resnet18", shift=True)
    theirs, _ = public_state(one, names_of("resnet18", "mit", True), "new_fc")
    path = tmp_path / "tsm.pth"
    torch.save({"epoch": 50, "state_dict": {f"module.{name}": value for name, value in theirs.items()}}, path)
    assert load_weights(one, path, convert=LAYOUTS["mit"]).complete
    assert load_weights(two, {f"module.{k}": v for k, v in theirs.items()}, convert=LAYOUTS["mit"]).complete
    video = torch.randn(1, 3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(one(video), two(video))
        assert not torch.equal(one(video), build("resnet18", shift=True)(video))


def test_the_heads_other_names_and_ignoring_it():
    net = build("resnet18")
    names = list(names_of("resnet18", "mit", False))
    theirs, _ = public_state(net, names, "base_model.fc")  # without dropout the authors keep the net's own
    assert load_weights(net, theirs, convert=LAYOUTS["mit"]).complete
    torch.manual_seed(0)
    fine = SegmentNet("resnet18", num_classes=9, width=WIDTH)
    with pytest.raises(WeightError, match=r"fc\.weight"):
        load_weights(fine, theirs, convert=LAYOUTS["mit"])
    assert load_weights(fine, theirs, convert=LAYOUTS["mit"], ignore=fine.heads).complete
    with pytest.raises(WeightError, match=r"would both become 'fc\.weight'"):
        load_weights(net, {**theirs, "new_fc.weight": theirs["base_model.fc.weight"]}, convert=LAYOUTS["mit"])


def test_shift_of_some_blocks_only_is_refused():
    """A file of a deep net's rule, every second block, is of another net."""
    net = build("resnet18", shift=True)
    theirs, _ = public_state(net, resnet_names(18, "mmaction2", shift_every=2), HEADS["mmaction2"])
    with pytest.raises(WeightError, match=r"shift in 4 blocks, this one has it in 8 \(they differ in layer1\.1, "):
        load_weights(net, theirs, convert=LAYOUTS["mmaction2"])
    wrong = {name.replace("layer1.0.conv2.conv.", "layer1.0.conv2.conv.net."): v for name, v in theirs.items()}
    with pytest.raises(WeightError, match=r"layer1\.0 is shifted before another convolution than the first"):
        load_weights(net, wrong, convert=LAYOUTS["mmaction2"])


def test_both_directions_are_not_one():
    net = build("resnet18", shift=True, causal=True)
    theirs, _ = public_state(net, names_of("resnet18", "mit", True), "new_fc")
    with pytest.raises(WeightError, match="shifts in both directions, this one is causal"):
        load_weights(net, theirs, convert=LAYOUTS["mit"])


@pytest.mark.parametrize("layout", ["mmaction2", "mit"])
@pytest.mark.parametrize("shift", [False, True])
def test_temporal_pool(layout, shift):
    net = build("resnet18", shift=shift, temporal_pool=True)
    theirs, ours = public_state(net, names_of("resnet18", layout, shift, pool=True), HEADS[layout])
    assert load_weights(net, theirs, convert=LAYOUTS[layout]).complete
    assert all(torch.equal(value, ours[name]) for name, value in net.state_dict().items())
    with pytest.raises(WeightError, match="temporal_pool=True, this one has the opposite"):
        load_weights(build("resnet18", shift=shift), theirs, convert=LAYOUTS[layout])


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenetv2"])
@pytest.mark.parametrize("in_channels", [3, 10, 15])
def test_image_nets(backbone, in_channels):
    """The head is left out; a first convolution for other inputs is the mean over RGB, repeated."""
    image_net = build(backbone)
    theirs, ours = public_state(image_net, names_of(backbone, "torchvision", False), HEADS["torchvision"])
    head = "classifier.1" if backbone == "mobilenetv2" else "fc"
    theirs = {name.replace("fc.", f"{head}.") if name.startswith("fc.") else name: v for name, v in theirs.items()}
    theirs[f"{head}.weight"], theirs[f"{head}.bias"] = torch.zeros(1000, 7), torch.zeros(1000)
    for shift in (False, True):  # an image net says nothing about the shift
        net = build(backbone, in_channels=in_channels, shift=shift)
        fc = net.fc.weight.detach().clone()
        assert load_weights(net, theirs, convert=LAYOUTS["torchvision"], ignore=net.heads).complete
        assert torch.equal(net.fc.weight, fc)
        first = "backbone.features.0.0.weight" if backbone == "mobilenetv2" else "backbone.conv1.weight"
        for name, value in net.state_dict().items():
            if name == first and in_channels != 3:
                assert torch.allclose(value, ours[name].mean(1, keepdim=True).expand_as(value))
            elif not name.startswith("fc."):
                assert torch.equal(value, ours[name]), name
    with pytest.raises(WeightError, match=r"fc\.weight"):
        load_weights(net, theirs, convert=LAYOUTS["torchvision"])
    with pytest.raises(WeightError, match=r"missing"):
        load_weights(net, theirs, ignore=net.heads)
    name = next(name for name in theirs if "running_mean" in name)
    theirs[f"other.{name}"] = theirs.pop(name)
    with pytest.raises(WeightError, match=r"missing +1"):
        load_weights(net, theirs, convert=LAYOUTS["torchvision"], ignore=net.heads)


def test_mobilenet_for_streams():
    net = build("mobilenetv2", shift=True, causal=True)
    theirs, ours = public_state(net, mobilenet_names("mit_online"), "classifier")
    assert load_weights(net, theirs, convert=LAYOUTS["mit_online"]).complete
    assert all(torch.equal(value, ours[name]) for name, value in net.state_dict().items())
    for other in (build("mobilenetv2", shift=True), build("resnet18", shift=True, causal=True)):
        with pytest.raises(WeightError, match="MobileNetV2 with shift=True and causal=True"):
            load_weights(other, theirs, convert=LAYOUTS["mit_online"])


def test_a_member_that_no_block_has_is_refused():
    net = build("mobilenetv2")
    for layout, name in (
        ("mmaction2", "backbone.layer1.0.conv.2.conv.weight"),
        ("mit", "base_model.features.1.conv.6.w"),
    ):
        theirs, _ = public_state(net, mobilenet_names(layout), HEADS[layout])
        theirs[name] = torch.zeros(3)
        with pytest.raises(WeightError, match=rf"unexpected +1\n +{name}"):
            load_weights(net, theirs, convert=LAYOUTS[layout])


def test_a_file_of_another_backbone_is_refused():
    net = build("resnet18")
    theirs, _ = public_state(net, names_of("resnet18", "mmaction2", False), HEADS["mmaction2"])
    for other in (build("mobilenetv2"), build("resnet50")):
        assert isinstance(other, nn.Module)
        with pytest.raises(WeightError, match="missing"):
            load_weights(other, theirs, convert=LAYOUTS["mmaction2"])
