"""MoViNet weights from two public layouts, and from one net to another of the same architecture.

    load_published(net, file, root, convert=from_tensorflow)                           # training.core.weights
    load_published(net, file, root, convert=from_pytorch_port, ignore=("classifier.*",))

`from_pytorch_port` reads state dicts of Atze00/MoViNet-pytorch. `from_tensorflow` reads arrays of the authors'
TensorFlow models in a `.npz` or `.safetensors` file, under either of the names that TensorFlow has for them:

    reader = tf.train.load_checkpoint(folder)                # checkpoints of the model garden
    end = "/.ATTRIBUTES/VARIABLE_VALUE"
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith(end)]
    np.savez("a0.npz", **{name: reader.get_tensor(name) for name in names})

    model = hub.KerasLayer(url)                              # TensorFlow Hub
    np.savez("a0.npz", **{variable.name: variable.numpy() for variable in model.variables})

Checkpoints also have the optimiser's values: `ignore=TRAINING_STATE` lists these instead of refusing them. The second
way cannot export stream A3, A4 and A5: there all scalars of positional encodings are called `scale:0`, and one is left.

The released stream nets want `gate="hard_sigmoid_keras"` (§13.1), and files say nothing about activations. A converter
returns what it does not know under its old name, and the strict loading then refuses it by that name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training.backbones.movinet import MoViNet

__all__ = [
    "TRAINING_STATE",
    "TransferReport",
    "from_pytorch_port",
    "from_tensorflow",
    "transfer",
    "transferable",
]

TRAINING_STATE = ("optimizer/*", "*/.OPTIMIZER_SLOT/*", "save_counter/*", "global_step/*")
"""Patterns for what a checkpoint has besides the network, for `ignore`."""

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def from_pytorch_port(state: Mapping[str, Tensor], net: MoViNet) -> dict[str, Tensor]:
    """Translate a state dict of Atze00/MoViNet-pytorch.

    The port's `causal=False, conv_type="3d"` is the variant `BASE`; its pretrained stream nets are `STREAM` with
    `gate="hard_sigmoid_keras"`; its causal 3-D nets have squeeze `2plus3d` with SiLU and a true sigmoid. It has no
    positional encoding, and with `tf_like=False` its weights belong to another network (§13.10).

    Args:
        state: names of that repository → tensors.
        net: the network that they are for.

    Returns:
        Our names → tensors; unknown names are kept.

    Raises:
        ValueError: two names that become one.
    """
    return _translated(state, net, _port_name, lambda name, tensor: tensor)


def from_tensorflow(state: Mapping[str, Tensor], net: MoViNet) -> dict[str, Tensor]:
    """Translate names and kernels of the authors' TensorFlow models; see the module for the file.

    Known are the names of variables (`b0/l0/bneck/expansion/conv3d/kernel:0`, also `block0_layer0/…`) and those of
    object graphs (`model/layer_with_weights-0/layer_with_weights-1/_expansion/_conv/kernel/.ATTRIBUTES/…`, also
    `backbone/layer_with_weights-1/…`), of conv types `3d`, `3d_2plus1d` and `2plus1d`.

    Args:
        state: TensorFlow's names → tensors; kernels (…,in,out), depthwise 2-D ones (h,w,channels,1).
        net: the network that they are for.

    Returns:
        Our names → tensors; unknown names are kept.

    Raises:
        ValueError: two names that become one.
    """

    def value(name: str, tensor: Tensor) -> Tensor:
        name = name.removesuffix(_GRAPH_END).removesuffix(":0")
        if name.endswith("/depthwise_kernel") and tensor.dim() == 4:
            return tensor.permute(2, 3, 0, 1)
        if name.endswith("/kernel") and tensor.dim() >= 2:
            return tensor.permute(-1, -2, *range(tensor.dim() - 2))
        return tensor

    return _translated(state, net, _tensorflow_name, value)


def _translated(
    state: Mapping[str, Tensor],
    net: MoViNet,
    rename: Callable[[str, MoViNet], str | None],
    value: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    result: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in state.items():
        new = rename(name, net)
        if new is None:
            new = name
        elif new in shapes:
            tensor = _without_unit_axes(value(name, tensor), len(shapes[new]))
        if new in result:
            raise ValueError(f"{origin[new]!r} and {name!r} would both become {new!r}")
        result[new], origin[new] = tensor, name
    return result


def _without_unit_axes(kernel: Tensor, dims: int) -> Tensor:
    """Drop the axes that a kernel (out,in,k_t,k,k) has too many: those in front of space, or those after time.

    Axes longer than 1 stay, and loading reports the shape.
    """
    extra = kernel.dim() - dims
    if extra <= 0 or dims < 2:
        return kernel
    first = 3 if dims == 3 else 2
    if any(size != 1 for size in kernel.shape[first : first + extra]):
        return kernel
    return kernel.flatten(first - 1, first + extra - 1)


# --- our names --------------------------------------------------------------------------------------


def _our_name(layer: str, part: str, leaf: str, net: MoViNet) -> str | None:
    """Return our name of a tensor; None: this net has no such thing.

    Args:
        layer: `stem`, `project`, `dense`, `classifier`, or `blocks.<i>.<j>`.
        part: of a block: `expand`, `depthwise` (all of it, or its spatial half), `temporal` (the other half), `reduce`
            and `excite` (gate), `project`, `skip`, `scale`, `position`.
        leaf: `kernel`, `bias`, or `norm.<name in PyTorch>`; empty for scalars.
        net: the network.
    """
    linear = {"kernel": "weight", "bias": "bias"}
    if layer in ("dense", "classifier"):
        return f"{layer}.{linear[leaf]}" if leaf in linear else None
    if part in ("reduce", "excite"):
        gate = "reduce" if part == "reduce" else "expand"
        return f"{layer}.gate.{gate}.{linear[leaf]}" if leaf in linear else None
    if part in ("scale", "position"):
        return f"{layer}.scale" if part == "scale" else f"{layer}.gate.position"
    if leaf == "bias":
        return None  # norms follow all other convolutions
    leaf = "conv.weight" if leaf == "kernel" else leaf
    if part in ("depthwise", "temporal"):
        place = next((place for place in net.places if place.name == layer), None)
        if place is None:
            return None
        halves = net.variant.conv == "2plus1d" and place.layer.kernel[0] > 1
        if part == "temporal" and not halves:
            return None
        if part == "depthwise" and (halves or place.layer.kernel[0] == 1):
            return f"{layer}.depthwise.spatial.{leaf}"
        return f"{layer}.depthwise.{'temporal.weight' if leaf == 'conv.weight' else leaf}"
    return f"{layer}.{part}.{leaf}" if part else f"{layer}.{leaf}"


# --- Atze00/MoViNet-pytorch -------------------------------------------------------------------------

_PORT = re.compile(
    r"(?:(?P<end>conv1|conv7|classifier\.0|classifier\.3)|blocks\.b(?P<i>\d+)_l(?P<j>\d+)\.(?P<part>expand|deep|se\.fc1|"
    r"se\.fc2|project|res\.[01]))\.conv_(?P<half>[12])\.(?:conv[23]d\.(?P<conv>weight|bias)|(?P<norm>norm\.\w+))"
)
_PORT_ENDS = {"conv1": "stem", "conv7": "project", "classifier.0": "dense", "classifier.3": "classifier"}
_PORT_PARTS = {"expand": "expand", "deep": "depthwise", "se.fc1": "reduce", "se.fc2": "excite", "project": "project"}
_PORT_ALPHA = re.compile(r"blocks\.b(\d+)_l(\d+)\.alpha")


def _port_name(name: str, net: MoViNet) -> str | None:
    if alpha := _PORT_ALPHA.fullmatch(name):
        return _our_name(f"blocks.{alpha[1]}.{alpha[2]}", "scale", "", net)
    match = _PORT.fullmatch(name)
    if match is None or (match["half"] == "2" and match["part"] != "deep"):
        return None
    leaf = match["norm"] or ("kernel" if match["conv"] == "weight" else "bias")
    if match["end"]:
        return _our_name(_PORT_ENDS[match["end"]], "", leaf, net)
    layer = f"blocks.{match['i']}.{match['j']}"
    if match["part"].startswith("res"):
        # Before the convolution stands the pooling, if there is one.
        stride = next((place.stride for place in net.places if place.name == layer), 0)
        return _our_name(layer, "skip", leaf, net) if match["part"] == f"res.{stride - 1}" else None
    return _our_name(layer, "temporal" if match["half"] == "2" else _PORT_PARTS[match["part"]], leaf, net)


# --- TensorFlow -------------------------------------------------------------------------------------

_GRAPH_END = "/.ATTRIBUTES/VARIABLE_VALUE"

_FRONTS = (
    (re.compile(r"stem/stem/"), "stem"),
    (re.compile(r"head/project/"), "project"),
    (re.compile(r"classifier_head(?:_\d+)?/head/"), "dense"),
    (re.compile(r"classifier_head(?:_\d+)?/classifier/"), "classifier"),
    (re.compile(r"model/layer_with_weights-1/_head/"), "dense"),
    (re.compile(r"model/layer_with_weights-1/_classifier/"), "classifier"),
)
_BLOCK = re.compile(r"(?:b(\d+)/l(\d+)|block(\d+)_layer(\d+))/(?:bneck/)?")
_GRAPH_LAYER = re.compile(r"(?:model/layer_with_weights-0|backbone)/layer_with_weights-(\d+)/")

_PARTS = {
    "expansion/": "expand",
    "feature/": "depthwise",
    "projection/": "project",
    "se/se_reduce/": "reduce",
    "se/se_expand/": "excite",
    "skip/skip_project/": "skip",
    "_expansion/": "expand",
    "_feature/": "depthwise",
    "_projection/": "project",
    "_attention/_se_reduce/": "reduce",
    "_attention/_se_expand/": "excite",
    "_skip/_projection/": "skip",
}
_SCALARS = {
    "scale": "scale",
    "rezero/scale": "scale",
    "_mobile_bottleneck/_rezero/scale": "scale",
    "_mobile_bottleneck/_rezero/_scale": "scale",
    "_attention/_pos_encoding/_rezero/scale": "position",
    "_attention/_pos_encoding/_rezero/_scale": "position",
}
_CONV = re.compile(
    r"(?:conv[23]d|_conv)(_temporal)?/(?:(?:(?:depthwise_)?conv2d(?:_\d+)?|_conv)/)?(kernel|depthwise_kernel|bias)"
)
_BATCH_NORM = re.compile(
    r"(?:conv2d(?:_temporal)?/)?(?:bn|_batch_norm)(_temporal)?/(gamma|beta|moving_mean|moving_variance)"
)


def _tensorflow_name(name: str, net: MoViNet) -> str | None:
    layer, rest = _tensorflow_layer(name.removesuffix(_GRAPH_END).removesuffix(":0"), net)
    part = ""
    if layer.startswith("blocks."):
        if rest in _SCALARS:
            return _our_name(layer, _SCALARS[rest], "", net)
        front = next((front for front in _PARTS if rest.startswith(front)), None)
        if front is None:
            return None
        part, rest = _PARTS[front], rest.removeprefix(front)
    conv = _CONV.fullmatch(rest)
    match = conv or _BATCH_NORM.fullmatch(rest)
    if not layer or match is None:
        return None
    leaf = match[2].removeprefix("depthwise_") if conv else f"norm.{_NORM[match[2]]}"
    if match[1]:
        return _our_name(layer, "temporal", leaf, net) if part == "depthwise" else None
    return _our_name(layer, part, leaf, net)


def _tensorflow_layer(name: str, net: MoViNet) -> tuple[str, str]:
    """Return the layer (empty if unknown) and what of the name follows."""
    for pattern, layer in _FRONTS:
        if match := pattern.match(name):
            return layer, name[match.end() :]
    if match := _BLOCK.match(name):
        i, j = (match[1], match[2]) if match[1] else (match[3], match[4])
        return f"blocks.{i}.{j}", name[match.end() :]
    if match := _GRAPH_LAYER.match(name):
        number, rest = int(match[1]), name[match.end() :]
        if number == 0 and rest.startswith("_stem/"):
            return "stem", rest.removeprefix("_stem/")
        if number == len(net.places) + 1 and rest.startswith("_project/"):
            return "project", rest.removeprefix("_project/")
        if 1 <= number <= len(net.places):
            return net.places[number - 1].name, rest
    return "", name


# --- from net to net --------------------------------------------------------------------------------


@dataclass(frozen=True)
class TransferReport:
    """What went from one net into another. Names are those of parts: `blocks.0.0.gate`, `stem`, `classifier`."""

    copied: tuple[str, ...]
    kept: tuple[str, ...]
    """Parts of the target that the source lacks or has in another form: they keep their values."""
    unused: tuple[str, ...]
    """Parts that only the source has."""

    def __str__(self) -> str:
        lines = [f"{len(self.copied)} parts copied"]
        for kind, names in (("kept as they were", self.kept), ("not used", self.unused)):
            if names:
                lines.append(f"  {len(names)} {kind}: {', '.join(names)}")
        return "\n".join(lines)


def transferable(state: Mapping[str, Tensor], net: MoViNet) -> dict[str, Tensor]:
    """Return the tensors of another variant's state dict that mean the same in this net.

    A part goes whole or not at all: the statistics after a convolution, or the bias of a gate, are worth nothing
    without the weights before them. So what goes from a base net

    - to a causal 3-D net: all but gates of another squeeze;
    - to a (2+1)-D stream: all but these and the depthwise parts with k_t above 1. There is no exact way to write a
      kernel k_t×k×k as 1×k×k, norm, activation and k_t×1×1: they are to be trained.

    Args:
        state: of a net of the same architecture, in our names.
        net: the target.
    """
    own = net.state_dict()
    theirs, ours = _by_part(state), _by_part(own)
    same = [
        part
        for part, names in ours.items()
        if part in theirs and names == theirs[part] and all(state[name].shape == own[name].shape for name in names)
    ]
    return {name: state[name] for part in same for name in sorted(ours[part])}


def transfer(source: MoViNet, target: MoViNet) -> TransferReport:
    """Copy what is `transferable` of one net into another, for fine-tuning; the target keeps dtypes and devices.

    Raises:
        ValueError: the nets are of different architectures, but for the number of classes.
    """
    if source.layout != target.layout:
        raise ValueError("weights go between variants of one architecture; these nets have different layouts")
    state, own = source.state_dict(), target.state_dict()
    found = transferable(state, target)
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    copied, ours, theirs = _by_part(found), _by_part(own), _by_part(state)
    return TransferReport(
        copied=tuple(copied),
        kept=tuple(part for part in ours if part not in copied),
        unused=tuple(part for part in theirs if part not in ours),
    )


def _by_part(state: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """Return part → names of its tensors."""
    parts: dict[str, set[str]] = {}
    for name in state:
        pieces = name.split(".")
        parts.setdefault(".".join(pieces[: 4 if pieces[0] == "blocks" else 1]), set()).add(name)
    return parts
