"""A writer of TFLite files, enough to make a quantised MobileNetV2 without TensorFlow.

Written from the FlatBuffers format and the public schema, independently of the reader.
"""

import re
import struct

import numpy as np
import pytest
from torch import nn


class Writer:
    """Builds a FlatBuffer front to back: objects are laid out in order, references patched when known."""

    def __init__(self):
        self.data = bytearray(8)
        self.later = []

    def reference(self, position, build):
        """Fill the 4 bytes at `position` with the offset of what `build` writes later."""
        self.later.append((position, build))

    def run(self, root):
        self.reference(0, root)
        while self.later:
            position, build = self.later.pop(0)
            target = build()
            struct.pack_into("<I", self.data, position, target - position)
        self.data[4:8] = b"TFL3"
        return bytes(self.data)

    def align(self, size):
        self.data += bytes(-len(self.data) % size)

    def table(self, fields):
        """`fields`: index → (struct code, value) or a builder of a referenced object."""
        count = max(fields, default=-1) + 1
        self.align(2)
        vtable = len(self.data)
        self.data += bytes(4 + 2 * count)
        self.align(8)
        start = len(self.data)
        self.data += struct.pack("<i", start - vtable)
        for index, field in fields.items():
            code = "I" if callable(field) else field[0]
            self.align(struct.calcsize(f"<{code}"))
            struct.pack_into("<H", self.data, vtable + 4 + 2 * index, len(self.data) - start)
            position = len(self.data)
            self.data += struct.pack(f"<{code}", 0 if callable(field) else field[1])
            if callable(field):
                self.reference(position, field)
        struct.pack_into("<HH", self.data, vtable, 4 + 2 * count, len(self.data) - start)
        return start

    def numbers(self, values):
        """Vector of numbers; data starts 16-byte aligned."""
        self.data += bytes(-(len(self.data) + 4) % 16)
        start = len(self.data)
        self.data += struct.pack("<I", values.size) + values.tobytes()
        return start

    def tables(self, builders):
        self.align(4)
        start = len(self.data)
        self.data += struct.pack("<I", len(builders)) + bytes(4 * len(builders))
        for index, build in enumerate(builders):
            self.reference(start + 4 + 4 * index, build)
        return start


CODES = {"add": 0, "conv": 3, "depthwise_conv": 4, "fully_connected": 9, "softmax": 25, "pad": 34, "mean": 40}


class GraphWriter:
    """Collects tensors and operators of one graph."""

    def __init__(self):
        self.tensors, self.operators, self.buffers = [], [], [np.empty(0, np.uint8)]

    def activation(self, name="activation"):
        self.tensors.append((name, (1,), 9, 0, np.array([0.1], np.float32), np.array([0]), 0))
        return len(self.tensors) - 1

    def constant(self, name, stored, scale, zero_point, axis):
        types = {"int8": 9, "uint8": 3, "int32": 2, "float32": 0}
        self.buffers.append(np.frombuffer(stored.tobytes(), np.uint8))
        entry = (name, stored.shape, types[stored.dtype.name], len(self.buffers) - 1, scale, zero_point, axis)
        self.tensors.append(entry)
        return len(self.tensors) - 1

    def operator(self, kind, inputs, options=None):
        output = self.activation()
        self.operators.append((kind, inputs, [output], options))
        return output

    def build(self, codes=CODES):
        writer, names = Writer(), list(codes)

        def tensor(entry):
            name, shape, kind, buffer, scale, zero_point, axis = entry
            quantization = {}
            if scale is not None:
                quantization = {
                    2: lambda: writer.numbers(scale),
                    3: lambda: writer.numbers(zero_point.astype("<i8")),
                    6: ("i", axis),
                }
            return lambda: writer.table(
                {
                    0: lambda: writer.numbers(np.array(shape, "<i4")),
                    1: ("b", kind),
                    2: ("I", buffer),
                    3: lambda: writer.numbers(np.frombuffer(name.encode(), np.uint8)),
                    4: lambda: writer.table(quantization),
                }
            )

        def operator(entry):
            kind, inputs, outputs, options = entry
            fields = {
                0: ("I", names.index(kind)),
                1: lambda: writer.numbers(np.array(inputs, "<i4")),
                2: lambda: writer.numbers(np.array(outputs, "<i4")),
            }
            if options is not None:
                fields[4] = lambda: writer.table(options)
            return lambda: writer.table(fields)

        def code(number):
            # Both fields, as today's converters write them.
            return lambda: writer.table({0: ("b", min(number, 127)), 3: ("i", number)})

        def subgraph():
            return writer.table(
                {
                    0: lambda: writer.tables([tensor(entry) for entry in self.tensors]),
                    1: lambda: writer.numbers(np.array([0], "<i4")),
                    2: lambda: writer.numbers(np.array([len(self.tensors) - 1], "<i4")),
                    3: lambda: writer.tables([operator(entry) for entry in self.operators]),
                }
            )

        def buffer(raw):
            return lambda: writer.table({0: lambda: writer.numbers(raw)} if raw.size else {})

        return writer.run(
            lambda: writer.table(
                {
                    0: ("I", 3),
                    1: lambda: writer.tables([code(codes[name]) for name in names]),
                    2: lambda: writer.tables([subgraph]),
                    4: lambda: writer.tables([buffer(raw) for raw in self.buffers]),
                }
            )
        )


def quantise(weight, axis, per_channel):
    """Return stored values, scales and zero points: int8 per channel, or uint8 with one zero point."""
    if per_channel:
        others = tuple(i for i in range(weight.ndim) if i != axis)
        scale = (np.abs(weight).max(axis=others) / 127).astype(np.float32)
        shape = [1] * weight.ndim
        shape[axis] = -1
        return np.round(weight / scale.reshape(shape)).astype(np.int8), scale, np.zeros(len(scale), np.int64)
    low, high = weight.min(), weight.max()
    scale = np.array([(high - low) / 255], np.float32)
    zero = int(np.round(-low / scale[0]))
    return np.clip(np.round(weight / scale[0]) + zero, 0, 255).astype(np.uint8), scale, np.array([zero])


def write_mobilenetv2(net, path, *, per_channel=True, change=None, codes=CODES):
    """Write a MobileNetV2 whose norms only add a bias.

    `change(number, options)` may alter the options of convolution `number`.
    """
    graph = GraphWriter()
    current = graph.activation("input")
    convs = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for number, ((name, conv), norm) in enumerate(zip(convs, norms, strict=True)):
        depthwise = conv.groups > 1
        weight = conv.weight.detach().numpy().transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
        axis = 3 if depthwise else 0
        values, scale, zero = quantise(np.ascontiguousarray(weight), axis, per_channel)
        bias_scale = (scale * 1e-3).astype(np.float32)
        bias = np.round(norm.bias.detach().numpy() / bias_scale).astype(np.int32)
        projection = re.fullmatch(r"features\.\d+\.conv\.\d+", name) is not None
        options = {0: ("b", 0), 1: ("i", conv.stride[0]), 2: ("i", conv.stride[0])}
        options[4 if depthwise else 3] = ("b", 0 if projection else 3)
        if change is not None:
            options = change(number, options)
        inputs = [
            current,
            graph.constant(name, values, scale, zero, axis),
            graph.constant(f"{name}.bias", bias, bias_scale, np.zeros(len(bias_scale), np.int64), 0),
        ]
        current = graph.operator("depthwise_conv" if depthwise else "conv", inputs, options)
    head = net.classifier[1]
    values, scale, zero = quantise(head.weight.detach().numpy(), 0, False)
    inputs = [
        graph.operator("mean", [current]),
        graph.constant("head", values, scale, zero, 0),
        graph.constant("head.bias", head.bias.detach().numpy(), None, None, 0),
    ]
    graph.operator("softmax", [graph.operator("fully_connected", inputs)])
    path.write_bytes(graph.build(codes))
    return path


@pytest.fixture(scope="session")
def write_tflite():
    """The writer, as a function."""
    return write_mobilenetv2


@pytest.fixture(scope="session")
def tflite_codes():
    """Operator numbers that the writer declares."""
    return dict(CODES)
