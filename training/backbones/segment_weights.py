"""Published weight files of image networks, TSN and TSM in the names of `training.backbones.segment_nets.SegmentNet`.

Where TSM's code wraps a convolution to shift its input, the name of the weight has a `.net` in it. So a file tells
which blocks were shifted, and one that does not agree with the network is refused: its weights would load, and answer
badly.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from training.backbones.mobilenetv2 import BLOCKS
from training.core.weights import Convert

if TYPE_CHECKING:
    from training.backbones.segment_nets import SegmentNet

__all__ = ["LAYOUTS", "cross_modality"]

SHOWN = 3


def cross_modality(weight_OCHW: Tensor, in_channels: int) -> Tensor:
    """Return a first convolution for other inputs from that of an image net: its mean over RGB for every channel.

    As TSN's code does, without another scale: the sum over channels grows with their number.
    """
    return weight_OCHW.mean(1, keepdim=True).repeat(1, in_channels, 1, 1)


# --- names of blocks ------------------------------------------------------------------------------


def _mobilenet_index(layer: int, position: int) -> int:
    """Return the place in `features` of a block of MMAction2's `layer<n>`, n from 1."""
    return 1 + sum(count for _, _, count, _ in BLOCKS[: layer - 1]) + position


def _inverted(index: int, convs: list[str], norms: list[str], place: str) -> str | None:
    """Return our name of a member of an inverted residual's `conv`, None for one that the block does not have.

    Args:
        index: place in `features`; the first block has no expansion.
        convs: the file's names of the convolutions, expansion first.
        norms: those of the norms.
        place: one of them.
    """
    if index == 1:
        convs, norms = convs[:2], norms[:2]
    if place not in convs + norms:
        return None
    number = (convs if place in convs else norms).index(place)
    if number == len(convs) - 1:  # the projection is not a sequence of its own
        return f"features.{index}.conv.{number + (0 if place in convs else 1)}"
    return f"features.{index}.conv.{number}.{0 if place in convs else 1}"


_PATTERN_RESNET = re.compile(r"(layer[1-4])\.(net\.)?(\d+)\.(conv([123])|bn[123]|downsample\.\d)(\.net)?")
_PATTERN_MM_RESNET = re.compile(r"(layer[1-4])\.(net\.)?(\d+)\.(?:conv([123])|downsample)\.(conv|bn)(\.net)?")
_PATTERN_MM_MOBILENET = re.compile(r"layer([1-7])\.(\d+)\.conv\.([012])(\.net)?\.(conv|bn)")
_PATTERN_MIT_MOBILENET = re.compile(r"features\.(\d+)\.conv\.(\d)(\.net)?")


class _Names:
    """Translates owners (names without `.weight`), and collects what they tell about shift and temporal pool."""

    def __init__(self) -> None:
        self.shifted: set[str] = set()
        self.pooled = False

    def mit_resnet(self, owner: str) -> str | None:
        found = _PATTERN_RESNET.fullmatch(owner)
        if found is None:
            return owner if owner in ("conv1", "bn1") else None
        stage, pool, position, member, number, net = found.groups()
        self._note(f"{stage}.{position}", pool, net, number == "1")
        return f"{stage}.{position}.{member}"

    def mmaction2_resnet(self, owner: str) -> str | None:
        if owner in ("conv1.conv", "conv1.bn"):
            return "conv1" if owner == "conv1.conv" else "bn1"
        found = _PATTERN_MM_RESNET.fullmatch(owner)
        if found is None:
            return None
        stage, pool, position, number, member, net = found.groups()
        self._note(f"{stage}.{position}", pool, net, number == "1" and member == "conv")
        if number is None:
            return f"{stage}.{position}.downsample.{0 if member == 'conv' else 1}"
        return f"{stage}.{position}.{member}{number}"

    def mit_mobilenet(self, owner: str) -> str | None:
        if re.fullmatch(r"features\.(0|18)\.[01]", owner):
            return owner
        found = _PATTERN_MIT_MOBILENET.fullmatch(owner)
        if found is None:
            return None
        index, place, net = int(found[1]), found[2], found[3]
        self._note(f"features.{index}", None, net, place == "0")
        return _inverted(index, ["0", "3", "6"], ["1", "4", "7"], place)

    def mmaction2_mobilenet(self, owner: str) -> str | None:
        ends = {"conv1.conv": "0.0", "conv1.bn": "0.1", "conv2.conv": "18.0", "conv2.bn": "18.1"}
        if owner in ends:
            return f"features.{ends[owner]}"
        found = _PATTERN_MM_MOBILENET.fullmatch(owner)
        if found is None:
            return None
        layer, position, place, net, member = found.groups()
        index = _mobilenet_index(int(layer), int(position))
        self._note(f"features.{index}", None, net, place == "0")
        numbers = ["0", "1", "2"]
        return _inverted(index, [f"{n}.conv" for n in numbers], [f"{n}.bn" for n in numbers], f"{place}.{member}")

    def _note(self, block: str, pool: str | None, net: str | None, may_shift: bool) -> None:
        self.pooled |= pool is not None
        if net is not None:
            if not may_shift:
                raise ValueError(f"{block} is shifted before another convolution than the first of its branch")
            self.shifted.add(block)


def _check(names: _Names, network: "SegmentNet") -> None:
    """Refuse a file of a net with another shift or temporal pool."""
    if names.shifted != network.shifted:
        differing = sorted(names.shifted ^ network.shifted)
        known = f"{', '.join(differing[:SHOWN])}{', …' * (len(differing) > SHOWN)}"
        message = (
            f"the file is of a net with temporal shift in {len(names.shifted)} blocks, this one has it in "
            f"{len(network.shifted)} (they differ in {known})"
        )
        if not (names.shifted and network.shifted):
            message += f"; build the network with shift={bool(names.shifted)}"
        raise ValueError(message)
    if names.shifted and network.causal:
        raise ValueError("the file is of a net that shifts in both directions, this one is causal")
    if names.pooled != network.temporal_pool:
        raise ValueError(f"the file is of a net with temporal_pool={names.pooled}, this one has the opposite")


# --- layouts --------------------------------------------------------------------------------------


def _is_resnet(network: "SegmentNet") -> bool:
    return network.backbone.pool_before is not None


def _translated(state: Mapping[str, Tensor], prefix: str, translate: Any, heads: tuple[str, ...]) -> dict[str, Tensor]:
    """Put the backbone's tensors, all under `prefix`, and the head's into our names; others keep theirs."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        plain = name.removeprefix("module.")
        owner, _, leaf = plain.rpartition(".")
        new: str | None = None
        if owner in heads:
            new = "fc"
        elif owner.startswith(prefix):
            translated = translate(owner.removeprefix(prefix))
            new = None if translated is None else f"backbone.{translated}"
        key = name if new is None else f"{new}.{leaf}"
        if key in result:
            raise ValueError(f"two tensors of the file would both become {key!r}, one is {name!r}")
        result[key] = value
    return result


def _torchvision(state: Mapping[str, Tensor], network: "SegmentNet") -> Mapping[str, Tensor]:
    result = _translated(state, "", lambda owner: owner, ("fc", "classifier.1"))
    first = next(name for name, module in network.named_modules() if module is network.backbone.first_conv)
    weight = result.get(f"{first}.weight")
    if weight is not None and weight.dim() == 4 and weight.shape[1] == 3 != network.in_channels:
        result[f"{first}.weight"] = cross_modality(weight, network.in_channels)
    return result


def _mmaction2(state: Mapping[str, Tensor], network: "SegmentNet") -> Mapping[str, Tensor]:
    names = _Names()
    translate = names.mmaction2_resnet if _is_resnet(network) else names.mmaction2_mobilenet
    result = _translated(state, "backbone.", translate, ("cls_head.fc_cls",))
    _check(names, network)
    return result


def _mit(state: Mapping[str, Tensor], network: "SegmentNet") -> Mapping[str, Tensor]:
    names = _Names()
    translate = names.mit_resnet if _is_resnet(network) else names.mit_mobilenet
    heads = ("new_fc", "base_model.fc", "base_model.classifier")
    result = _translated(state, "base_model.", translate, heads)
    _check(names, network)
    return result


def _mit_online(state: Mapping[str, Tensor], network: "SegmentNet") -> Mapping[str, Tensor]:
    if _is_resnet(network) or not network.causal:
        raise ValueError("the layout mit_online is that of MobileNetV2 with shift=True and causal=True")
    return _translated(state, "", _Names().mit_mobilenet, ("classifier",))


LAYOUTS: dict[str, Convert] = {
    "torchvision": _torchvision,
    "mmaction2": _mmaction2,
    "mit": _mit,
    "mit_online": _mit_online,
}
"""Layout of a weight file → converter for `load_weights`.

`torchvision`: an image net; load it with `ignore=net.heads`. Its first convolution goes through `cross_modality` where
the net's inputs are not RGB. `mmaction2`: TSN and TSM of MMAction2 (`backbone.layer1.0.conv1.conv.net.weight`,
`cls_head.fc_cls`). `mit`: TSN and TSM of the authors of TSM (`base_model.layer1.0.conv1.net.weight`, `new_fc`).
`mit_online`: their MobileNetV2 for streams, whose names do not tell about its shift.
"""
