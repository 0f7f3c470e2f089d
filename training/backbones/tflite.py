"""MobileNetV2 from a quantised TensorFlow Lite file, as a state dict in torchvision's layout.

    python -m training.backbones.tflite in.tflite out.safetensors

The file is a FlatBuffer; the dozen tables needed are read here, so neither TensorFlow nor its converter has
to be installed. Quantised tensors become float32, `(q - zero_point) · scale`, per tensor or per channel.
Batch norm is folded into the convolutions of such files, so each norm becomes the addition of the bias.

Use the result with `MobileNetV2(padding="tf_same")`, inputs in [-1, 1] and `norms: fixed`: in training the batch's
own mean and variance would take the place of mean 0 and variance 1, and the network would compute something else.
"""

import argparse
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_specs.files import sha256_of
from training.backbones.mobilenetv2 import MobileNetV2
from training.core.weights import WeightError, WeightReport, load_weights

FILE_IDENTIFIER = b"TFL3"

TENSOR_TYPES: dict[int, str] = {0: "<f4", 1: "<f2", 2: "<i4", 3: "<u1", 4: "<i8", 7: "<i2", 9: "<i1"}
"""TensorType of the schema → numpy type."""

OPERATORS: dict[int, str] = {
    0: "add",
    1: "average_pool",
    3: "conv",
    4: "depthwise_conv",
    6: "dequantize",
    9: "fully_connected",
    22: "reshape",
    25: "softmax",
    34: "pad",
    40: "mean",
    114: "quantize",
}
"""BuiltinOperator of the schema → name, as far as MobileNetV2 needs them."""

RELU6 = 3
"""ActivationFunctionType of the schema."""


# --- FlatBuffers ------------------------------------------------------------------------------


class _Table:
    """A table of a FlatBuffer: fields by index, absent ones have the schema's default."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position
        self.vtable = position - struct.unpack_from("<i", data, position)[0]
        self.vtable_size = struct.unpack_from("<H", data, self.vtable)[0]

    def _field(self, index: int) -> int | None:
        slot = 4 + 2 * index
        if slot >= self.vtable_size:
            return None
        offset = struct.unpack_from("<H", self.data, self.vtable + slot)[0]
        return self.position + offset if offset else None

    def scalar(self, index: int, kind: str, default: int = 0) -> int:
        """Return an inline number; `kind` is a struct code."""
        field = self._field(index)
        return default if field is None else int(struct.unpack_from(f"<{kind}", self.data, field)[0])

    def table(self, index: int) -> "_Table | None":
        """Return a sub-table."""
        field = self._field(index)
        return None if field is None else _Table(self.data, _follow(self.data, field))

    def _vector(self, index: int) -> tuple[int, int]:
        """Start and length of a vector; length 0 when absent."""
        field = self._field(index)
        if field is None:
            return 0, 0
        start = _follow(self.data, field)
        return start + 4, struct.unpack_from("<I", self.data, start)[0]

    def array(self, index: int, dtype: str) -> NDArray[Any]:
        """Return a vector of numbers."""
        start, length = self._vector(index)
        return np.frombuffer(self.data, dtype, length, start)

    def tables(self, index: int) -> Iterator["_Table"]:
        """Yield a vector of tables."""
        start, length = self._vector(index)
        for item in range(length):
            yield _Table(self.data, _follow(self.data, start + 4 * item))

    def text(self, index: int) -> str:
        """Return a string."""
        return bytes(self.array(index, "<u1")).decode(errors="replace")


def _follow(data: bytes, position: int) -> int:
    return position + int(struct.unpack_from("<I", data, position)[0])


# --- the graph --------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuantisedTensor:
    """A tensor of the graph; `values` is float32, or None for activations."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    values: NDArray[np.float32] | None


@dataclass(frozen=True)
class Operator:
    """One operation, in execution order; fields that a kind lacks are 0."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    same_padding: bool
    stride: int
    relu6: bool


@dataclass(frozen=True)
class Graph:
    """The first sub-graph of the file."""

    tensors: tuple[QuantisedTensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_graph(path: Path) -> Graph:
    """Read a TFLite file.

    Raises:
        WeightError: no such file, not TFLite, damaged, or with operators that MobileNetV2 does not have.
    """
    if not path.is_file():
        raise WeightError(f"{path}: no such weight file")
    data = path.read_bytes()
    if data[4:8] != FILE_IDENTIFIER:
        raise WeightError(f"{path} is not a TFLite file (identifier {data[4:8]!r}, expected {FILE_IDENTIFIER!r})")
    try:
        return _read_model(_Table(data, _follow(data, 0)), path)
    except (struct.error, IndexError, ValueError, TypeError) as error:
        if isinstance(error, WeightError):
            raise
        raise WeightError(f"{path} is damaged: {error}") from error


def _read_model(model: _Table, path: Path) -> Graph:
    buffers = [buffer.array(0, "<u1") for buffer in model.tables(4)]
    # The code was a byte at first; later files have both fields and the larger one counts.
    codes = [max(code.scalar(0, "b"), code.scalar(3, "i")) for code in model.tables(1)]
    subgraph = next(model.tables(2), None)
    if subgraph is None:
        raise WeightError(f"{path} holds no graph")
    return Graph(
        tensors=tuple(_read_tensor(table, buffers, path) for table in subgraph.tables(0)),
        operators=tuple(_read_operator(table, codes, path) for table in subgraph.tables(3)),
        inputs=tuple(subgraph.array(1, "<i4").tolist()),
        outputs=tuple(subgraph.array(2, "<i4").tolist()),
    )


def _read_tensor(table: _Table, buffers: list[NDArray[np.uint8]], path: Path) -> QuantisedTensor:
    name, shape = table.text(3), tuple(table.array(0, "<i4").tolist())
    kind = table.scalar(1, "b")
    if kind not in TENSOR_TYPES:
        raise WeightError(f"{path}: tensor {name!r} has type number {kind}, which is not read here")
    dtype = TENSOR_TYPES[kind]
    scale, zero_point, axis = np.empty(0, np.float32), np.empty(0, np.int64), 0
    quantization = table.table(4)
    if quantization is not None:
        scale, zero_point = quantization.array(2, "<f4"), quantization.array(3, "<i8")
        axis = quantization.scalar(6, "i")
    raw = buffers[table.scalar(2, "I")]
    values = None
    if len(raw):
        stored = raw.view(dtype).reshape(shape)
        values = _dequantise(stored, scale, zero_point, axis)
    return QuantisedTensor(name, shape, dtype, scale, zero_point, values)


def _dequantise(
    stored: NDArray[Any], scale: NDArray[np.float32], zero_point: NDArray[np.int64], axis: int
) -> NDArray[np.float32]:
    if not len(scale):
        return stored.astype(np.float32)
    along = [1] * stored.ndim
    if len(scale) > 1:
        along[axis] = len(scale)
    zero = zero_point if len(zero_point) else np.zeros(len(scale), np.int64)
    # Biases are 32 bits wide: the difference is taken in 64 bits, the product in double precision.
    exact = (stored.astype(np.int64) - zero.reshape(along)) * scale.astype(np.float64).reshape(along)
    return exact.astype(np.float32)


def _read_operator(table: _Table, codes: list[int], path: Path) -> Operator:
    code = codes[table.scalar(0, "I")]
    if code not in OPERATORS:
        raise WeightError(f"{path} uses operator number {code}, which MobileNetV2 does not have")
    kind = OPERATORS[code]
    options = table.table(4)
    same, stride, activation = False, 0, 0
    if kind in ("conv", "depthwise_conv") and options is not None:
        same = options.scalar(0, "b") == 0
        stride = options.scalar(2, "i")
        activation = options.scalar(3 if kind == "conv" else 4, "b")
    inputs, outputs = table.array(1, "<i4").tolist(), table.array(2, "<i4").tolist()
    return Operator(kind, tuple(inputs), tuple(outputs), same, stride, activation == RELU6)


# --- to MobileNetV2 ---------------------------------------------------------------------------


def mobilenetv2_state(graph: Graph, *, eps: float = 1e-5) -> dict[str, Tensor]:
    """Return the graph's weights as a state dict of `MobileNetV2` in torchvision's layout.

    A folded batch norm becomes weight 1, mean 0, variance 1 - eps and the convolution's bias: in eval mode
    exactly the addition of the bias. Such statistics are not those of the activations, so training needs
    `norms: fixed`.

    Raises:
        WeightError: another architecture: number, shape, stride or activation of a layer differs.
    """
    layers = [op for op in graph.operators if op.kind in ("conv", "depthwise_conv")]
    heads = [op for op in graph.operators if op.kind == "fully_connected"]
    if not layers or len(heads) != 1:
        raise WeightError(f"expected convolutions and one fully connected layer, got {len(layers)} and {len(heads)}")
    head_weight = _values(graph, heads[0], 1)
    with torch.device("meta"):
        network = MobileNetV2(num_classes=head_weight.shape[0], padding="tf_same", width=_width(graph, layers))
    convs = [(name, m) for name, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [name for name, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    activated = _followed_by_activation(network)
    if len(convs) != len(layers):
        raise WeightError(f"MobileNetV2 has {len(convs)} convolutions, the file {len(layers)}")
    state: dict[str, Tensor] = {}
    for (name, conv), norm, op in zip(convs, norms, layers, strict=True):
        weight = _values(graph, op, 1)
        # Stored as (out, height, width, in), or (1, height, width, channels) where depth-wise.
        weight = weight.transpose(3, 0, 1, 2) if op.kind == "depthwise_conv" else weight.transpose(0, 3, 1, 2)
        ours = (tuple(conv.weight.shape), conv.stride[0], name in activated)
        theirs = (weight.shape, op.stride, op.relu6)
        if ours != theirs:
            raise WeightError(
                f"layer {name}: MobileNetV2 has (shape, stride, ReLU6) {ours}, the file's tensor "
                f"{graph.tensors[op.inputs[1]].name!r} {theirs}"
            )
        channels = weight.shape[0]
        state[f"{name}.weight"] = _tensor(weight)
        state[f"{norm}.weight"] = torch.ones(channels)
        state[f"{norm}.bias"] = _tensor(_values(graph, op, 2))
        state[f"{norm}.running_mean"] = torch.zeros(channels)
        state[f"{norm}.running_var"] = torch.full((channels,), 1 - eps)
        state[f"{norm}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    state["classifier.1.weight"] = _tensor(head_weight)
    state["classifier.1.bias"] = _tensor(_values(graph, heads[0], 2))
    return state


def _width(graph: Graph, layers: list[Operator]) -> float:
    """Width multiplier, from the channels of the widest projection (320 at width 1)."""
    projections = [op for op in layers if op.kind == "conv" and not op.relu6]
    if not projections:
        raise WeightError("the file has no linear projection: not a MobileNetV2")
    return int(_values(graph, projections[-1], 1).shape[0]) / 320


def _followed_by_activation(network: MobileNetV2) -> set[str]:
    """Names of the convolutions whose `_conv_norm` block ends in ReLU6."""
    return {
        f"{name}.0"
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Sequential) and len(module) == 3 and isinstance(module[2], torch.nn.ReLU6)
    }


def _values(graph: Graph, op: Operator, position: int) -> NDArray[np.float32]:
    if position >= len(op.inputs):
        raise WeightError(f"a {op.kind} has no input number {position}")
    tensor = graph.tensors[op.inputs[position]]
    if tensor.values is None:
        raise WeightError(f"tensor {tensor.name!r} should be a constant of the file, but is computed")
    return tensor.values


def _tensor(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def load_mobilenetv2(path: Path) -> tuple[MobileNetV2, WeightReport]:
    """Build the network of a TFLite file, in eval mode, with its weights.

    Raises:
        WeightError: see `read_graph` and `mobilenetv2_state`.
    """
    graph = read_graph(path)
    state = mobilenetv2_state(graph)
    layers = [op for op in graph.operators if op.kind in ("conv", "depthwise_conv")]
    network = MobileNetV2(state["classifier.1.bias"].numel(), padding="tf_same", width=_width(graph, layers))
    report = load_weights(network, state)
    return network.eval(), report


def convert(source: Path, target: Path) -> WeightReport:
    """Convert a TFLite file to safetensors; the target appears only when complete.

    Raises:
        WeightError: see `read_graph` and `mobilenetv2_state`.
    """
    network, report = load_mobilenetv2(source)
    # One entry: of several, the library writes the order at random, and the file's checksum shall say what it is.
    metadata = {"made_from": f"{source.name}; use with padding tf_same, normalise symmetric, norms fixed"}
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(safetensors.torch.save(network.state_dict(), metadata))
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return report


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.backbones.tflite",
        description="Convert a quantised MobileNetV2 from TFLite to safetensors in torchvision's layout.",
    )
    parser.add_argument("source", type=Path, help="the .tflite file")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        report = convert(options.source, options.target)
    except WeightError as error:
        parser.exit(1, f"error: {error}\n")
    print(report)
    print(f"wrote {options.target}. In params/<dataset>.yaml, with `normalise: symmetric`:")
    print(
        f"  {{name: mobilenetv2, options: {{padding: tf_same}}, norms: fixed,\n"
        f"   weights: {{path: {options.target}, sha256: {sha256_of(options.target)}}}}}"
    )


if __name__ == "__main__":
    main()
