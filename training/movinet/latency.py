"""Latency of architectures as a sum of measured parts: what a latency target needs, where counts do not tell times.

A part is a module at its sizes on one clip (batch 1). What the sum leaves out, launching the parts one behind another
and their common cache, is the same kind of error for all members; check it on the architectures that are found.
"""

import itertools
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from training.backbones.movinet_layers import ConvNorm, Depthwise, Skip, SqueezeExcite, option_name
from training.backbones.movinet_layout import Layer, MoViNetLayout, Place, Variant, places
from training.core.config import ConfigError
from training.core.cost import latency_ms
from training.layers.streaming import FrameConv
from training.movinet.space import Space
from training.movinet.target import CostModel

__all__ = ["LatencyTable", "Operation", "operations", "space_operations"]

FORMAT = 1


@dataclass(frozen=True)
class Operation:
    """A part of a network: kind, and what its time depends on."""

    kind: str
    """stem, expand, depthwise, gate, project (with the residual sum), skip, last, head."""
    side: int
    """Of its input, pixels."""
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1

    def __str__(self) -> str:
        sizes = f"{self.in_channels}-{self.out_channels}"
        return f"{self.kind}/{sizes}/{option_name(self.kernel)}/{self.stride}/{self.side}"


def operations(layout: MoViNetLayout, variant: Variant, size: int) -> list[Operation]:
    """Return the parts of an architecture, in order, each as often as it runs."""
    parts = [Operation("stem", size, 3, layout.stem, (1, 3), 2)]
    side = -(-size // 2)
    for place in places(layout):
        parts += _layer_operations(place, variant, side)
        side = -(-side // place.stride)
    parts.append(Operation("last", side, layout.blocks[-1].width, layout.project))
    parts.append(Operation("head", side, layout.project, layout.head))
    return parts


def _layer_operations(place: Place, variant: Variant, side: int) -> list[Operation]:
    layer, after = place.layer, -(-side // place.stride)
    parts = [
        Operation("expand", side, place.in_channels, layer.expand),
        Operation("depthwise", side, layer.expand, layer.expand, layer.kernel, place.stride),
        Operation("project", after, layer.expand, place.out_channels),
    ]
    if layer.gate and variant.squeeze != "none":
        parts.append(Operation("gate", after, layer.expand, layer.expand))
    if place.projects_skip:
        parts.append(Operation("skip", side, place.in_channels, place.out_channels, (1, 1), place.stride))
    return parts


def space_operations(space: Space, variant: Variant, size: int) -> list[Operation]:
    """Return all parts of which the members of a space consist, each once."""
    config, multipliers = space.config, range(space.counts["width"])
    found: dict[Operation, None] = {}
    stems = sorted({space.channels(config.stem, m) for m in multipliers})
    for channels in stems:
        found[Operation("stem", size, 3, channels, (1, 3), 2)] = None
    before, side = stems, -(-size // 2)
    for block, (reference, stride) in enumerate(zip(config.widths, config.strides, strict=True)):
        for first in (True, False) if config.max_layers[block] > 1 else (True,):
            for width in multipliers:
                own = space.channels(reference, width)
                expands = sorted({space.expanded(block, width, e) for e in range(space.counts["expansion"])})
                choices = itertools.product(before if first else [own], expands, space.kernels, config.gates)
                for channels, expand, kernel, gate in choices:
                    place = Place("", Layer(kernel, expand, gate), channels, own, stride if first else 1)
                    found |= dict.fromkeys(_layer_operations(place, variant, side))
            if first:
                side = -(-side // stride)
        before = sorted({space.channels(reference, m) for m in multipliers})
    for channels in sorted({space.channels(config.project, m) for m in multipliers}):
        found |= {Operation("last", side, width, channels): None for width in before}
        found[Operation("head", side, channels, config.head)] = None
    return list(found)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of the parts (median), and where they were measured."""

    variant: Variant
    frames: int
    size: int
    num_classes: int
    device: str
    torch_version: str
    times: Mapping[str, float] = field(default_factory=dict)
    """By the text of the operation."""

    def predict(self, layout: MoViNetLayout) -> float:
        """Return the sum over a network's parts, milliseconds per clip.

        Raises:
            ConfigError: a part that was not measured.
        """
        total = 0.0
        for operation in operations(layout, self.variant, self.size):
            if str(operation) not in self.times:
                raise ConfigError(
                    f"the latency table of {self.device} has no entry {operation}; it was measured for another space "
                    f"or another input than {self.frames}×{self.size}²"
                )
            total += self.times[str(operation)]
        return total

    @classmethod
    def measure(
        cls,
        parts: Iterable[Operation],
        model: CostModel,
        device: torch.device,
        *,
        warmup: int = 2,
        repeats: int = 7,
    ) -> "LatencyTable":
        """Time parts on a device, one clip at a time.

        Args:
            parts: what to time.
            model: variant and input.
            device: where.
            warmup: calls before the timed ones.
            repeats: timed calls; the median counts.
        """
        times = {}
        for operation in parts:
            call = _build(operation, model, device)
            times[str(operation)] = latency_ms(call, warmup=warmup, repeats=repeats)["p50"]
        where = (model.variant, model.frames, model.size, model.num_classes, _device_name(device), torch.__version__)
        return cls(*where, times)

    @classmethod
    def load_or_measure(
        cls, path: Path, space: Space, model: CostModel, device: torch.device, **options: int
    ) -> "LatencyTable":
        """Load a table, or measure all parts of a space and save them.

        Raises:
            ConfigError: the file is no table, or one of another device, input, variant or torch.
        """
        if not path.exists():
            cls.measure(space_operations(space, model.variant, model.size), model, device, **options).save(path)
        table = cls.load(path)
        expected = cls.measure((), model, device)
        for name in ("variant", "frames", "size", "num_classes", "device", "torch_version"):
            have, want = getattr(table, name), getattr(expected, name)
            if have != want:
                raise ConfigError(f"{path}: {name} is {have}, this search has {want}; remove the file to measure anew")
        return table

    def save(self, path: Path) -> None:
        """Write the table as JSON, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=".json")
        with os.fdopen(handle, "w") as file:
            json.dump({"format": FORMAT, **asdict(self)}, file, indent=1, sort_keys=True)
        Path(name).chmod(0o644)
        os.replace(name, path)

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Read what `save` wrote.

        Raises:
            ConfigError: another format.
        """
        try:
            values = json.loads(path.read_text())
            if values.pop("format") != FORMAT:
                raise ValueError("unknown format")
            return cls(**{**values, "variant": Variant(**values["variant"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is no latency table ({error}); remove it to measure anew") from None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {torch.get_num_threads()} threads"


def _build(operation: Operation, model: CostModel, device: torch.device) -> Callable[[], object]:
    """Return a call that runs a part on frames of one clip."""
    module = _module(operation, model).to(device).eval()
    images = torch.randn(model.frames, operation.in_channels, operation.side, operation.side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    count_B = torch.zeros(1, dtype=torch.int64, device=device)
    residual = images.new_ones(model.frames, operation.out_channels, operation.side, operation.side)
    residual = residual.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def call() -> Tensor:
        # Activations work in place where there is no gradient; the parts make memory of their own first.
        if operation.kind == "depthwise":
            result = module(images, 1, "", None, None)
        elif operation.kind == "gate":
            result = module(images, 1, count_B, "", None, None)
        elif operation.kind == "project":
            result = residual + module(images) * 0.5
        else:
            result = module(images)
        return result  # type: ignore[no-any-return]

    return call


class _Head(nn.Module):
    """Pooling and the two dense layers."""

    def __init__(self, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.dense, self.classifier = nn.Linear(channels, hidden), nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(T,C,H,W) → (1,K)."""
        pooled = images.mean((0, 2, 3))[None]
        logits: Tensor = self.classifier(nn.functional.silu(self.dense(pooled)))
        return logits


def _module(operation: Operation, model: CostModel) -> nn.Module:
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    variant, before, after = model.variant, operation.in_channels, operation.out_channels
    if operation.kind == "depthwise":
        return Depthwise(before, operation.kernel, operation.stride, variant, norm)
    if operation.kind == "gate":
        return SqueezeExcite(before, variant)
    if operation.kind == "skip":
        return Skip(before, after, operation.stride, norm)
    if operation.kind == "head":
        return _Head(before, after, model.num_classes)
    activation = None if operation.kind == "project" else variant.activation
    return ConvNorm(FrameConv(before, after, operation.kernel[1], operation.stride), after, norm, activation)
