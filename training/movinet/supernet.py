"""Weight-sharing supernet of a MoViNet search space (one-shot; TuNAS, Bender et al. 2020).

One `MoViNet` of the space's largest layout holds all weights: a depthwise part per kernel, and a skip convolution in
every block. A member of the space is a `MoViNet` of its own layout without memory (on the meta device), called with
the leading slices of the supernet's tensors. So the members' arithmetic is that of the stand-alone nets.
"""

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from training.backbones.movinet import MoViNet
from training.backbones.movinet_layers import Bottleneck, Past, SqueezeExcite, option_name
from training.backbones.movinet_layout import MoViNetLayout, Place, Variant, places
from training.layers.streaming import State
from training.movinet.space import BlockGenes, Genotype, Space

__all__ = ["Choice", "Supernet", "warmed"]

CACHE = 256
"""Members whose modules are kept; building one takes some 50 ms."""


@dataclass(frozen=True)
class Choice:
    """What the supernet runs: a member of the space, during the warm-up with mixtures in some layers."""

    layout: MoViNetLayout
    mixed_kernels: frozenset[str] = frozenset()
    """Layers (`blocks.<i>.<j>`) with the mean of all kernels instead of one."""
    mixed_gates: frozenset[str] = frozenset()
    """Layers with the mean of gated and ungated."""


def warmed(space: Space, genotype: Genotype, share: float, rng: random.Random) -> Choice:
    """Return what is trained in the place of a member during the warm-up (TuNAS §3 of the released code).

    With probability 1 - `share`, and independently for each choice: a kernel, or a gate, becomes the mean of all its
    options; a width (stem, project, block's width, expansion) becomes the largest. A block's depth counts as a width:
    layers that are added have drawn kernels and expansions.

    Args:
        space: of the genotype.
        genotype: a drawn member.
        share: of the warm-up that is over; from 1 on the member itself is returned.
        rng: source of the draws.
    """
    if share >= 1:
        return Choice(space.layout(genotype))

    def hit() -> bool:
        return rng.random() >= share

    largest = space.largest_genotype()
    blocks, kernels, gates = [], set(), set()
    for i, block in enumerate(genotype.blocks):
        top, layers = largest.blocks[i], list(block.layers)
        if hit():
            layers += [space.sample_layer(rng) for _ in range(len(top.layers) - len(layers))]
        for j, genes in enumerate(layers):
            if hit():
                layers[j] = replace(genes, expansion=top.layers[0].expansion)
            if hit():
                kernels.add(f"blocks.{i}.{j}")
            if hit() and len(space.config.gates) > 1:
                gates.add(f"blocks.{i}.{j}")
                # A mixture needs the gate.
                layers[j] = replace(layers[j], gate=space.config.gates.index(True))
        blocks.append(BlockGenes(top.width if hit() else block.width, tuple(layers)))
    stem = largest.stem if hit() else genotype.stem
    project = largest.project if hit() else genotype.project
    return Choice(space.layout(Genotype(stem, project, tuple(blocks))), frozenset(kernels), frozenset(gates))


class Supernet(nn.Module):
    """All members of a space with shared weights.

    Batch norm statistics are shared like the weights, and updated in place by whatever runs in training mode: they are
    a mixture over members. `recalibrate` those of a child before its scores mean anything. No member is
    normalised over several processes, which run different ones; `mean_statistics` makes the shared statistics equal.

    Args:
        space: the members.
        variant: base or stream.
        num_classes: of the classifier.
        dropout: before the classifier.
        drop_path: rate of stochastic depth of a member's last layer.
        norm_eps: of batch normalisation.
        norm_momentum: weight of the newest batch.

    Raises:
        ValueError: a space with and without gates, for a variant that has none.
    """

    def __init__(
        self,
        space: Space,
        variant: Variant,
        num_classes: int,
        *,
        dropout: float = 0.2,
        drop_path: float = 0.0,
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        if variant.squeeze == "none" and space.config.gates != (False,):
            raise ValueError("the variant has no squeeze-excitation; set gates of the space to [false]")
        self.space, self.variant = space, variant
        self._options: dict[str, Any] = {
            "num_classes": num_classes,
            "dropout": dropout,
            "drop_path": drop_path,
            "norm_eps": norm_eps,
            "norm_momentum": norm_momentum,
        }
        layout = space.largest()
        kernels = {place.name: space.kernels for place in places(layout)}
        self.net = MoViNet(layout, variant, kernels=kernels, project_skips=True, **self._options)
        self._members: OrderedDict[Choice, _Member] = OrderedDict()
        self._places: dict[bool, list[tuple[str, nn.Module, str]]] = {}

    def forward(self, video_BCTHW: Tensor, choice: Genotype | Choice) -> Tensor:
        """Return the logits (B,K) of a member.

        With gradients, every parameter of the supernet gets one: zeros for what the member does not have.

        Args:
            video_BCTHW: clips (B,3,T,H,W).
            choice: a member, or what `warmed` returned.
        """
        choice = self._choice(choice)
        member = self._member(choice)
        member.net.train(self.training)
        own = self._own(buffers=True)
        buffers = {s.name: s.view(own[s.source]) for s in member.buffers}
        parameters = self._own(buffers=False)
        slices = _Inherit.apply(member.parameters, tuple(parameters), *parameters.values())  # type: ignore[no-untyped-call]
        named = dict(zip((s.name for s in member.parameters), slices, strict=True))
        logits: Tensor = functional_call(member.net, {**buffers, **named}, (video_BCTHW,))
        return logits

    @torch.no_grad()
    def mean_statistics(self) -> None:
        """Set batch norm statistics to their means over all processes, which all call this, after backward."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        tensors = [tensor for tensor in self._own(buffers=True).values() if tensor.is_floating_point()]
        flat = torch.cat(tensors)
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        torch._foreach_copy_(tensors, list(torch.split(flat, [len(tensor) for tensor in tensors])))

    def child(self, genotype: Genotype | Choice) -> MoViNet:
        """Return a member as a net of its own with copies of the weights, in the supernet's mode.

        Raises:
            ValueError: a choice with mixtures, which is no net.
        """
        choice = self._choice(genotype)
        if choice.mixed_kernels or choice.mixed_gates:
            raise ValueError("a mixture of the warm-up is no member of the space")
        with torch.device("meta"):
            net = MoViNet(choice.layout, self.variant, **self._options)
        own = {**self._own(buffers=False), **self._own(buffers=True)}
        state = {
            s.name: s.view(own[s.source]).detach().clone(memory_format=torch.contiguous_format)
            for s in (*_slices(self, net, choice, buffers=False), *_slices(self, net, choice, buffers=True))
        }
        net.load_state_dict(state, assign=True)
        return net.train(self.training)

    def skeleton(self, genotype: Genotype | Choice) -> MoViNet:
        """Return a member without memory, on the meta device: for counting."""
        with torch.device("meta"):
            return MoViNet(self._choice(genotype).layout, self.variant, **self._options)

    def _own(self, *, buffers: bool) -> dict[str, Tensor]:
        """Return the net's parameters or buffers by name; a walk through all modules would cost 10 ms each time."""
        if buffers not in self._places:
            named = self.net.named_buffers() if buffers else self.net.named_parameters()
            split = [(name, *name.rpartition(".")[::2]) for name, _ in named]
            self._places[buffers] = [(name, self.net.get_submodule(path), leaf) for name, path, leaf in split]
        # Looked up each time: a move to another device makes new tensors.
        return {name: getattr(module, leaf) for name, module, leaf in self._places[buffers]}

    def _choice(self, choice: Genotype | Choice) -> Choice:
        return Choice(self.space.layout(choice)) if isinstance(choice, Genotype) else choice

    def _member(self, choice: Choice) -> "_Member":
        if choice in self._members:
            self._members.move_to_end(choice)
            return self._members[choice]
        kernels = {name: self.space.kernels for name in choice.mixed_kernels}
        with torch.device("meta"):
            net = MoViNet(choice.layout, self.variant, kernels=kernels, **self._options)
            for layer in _layers(net):
                if layer.name in choice.mixed_gates:
                    assert layer.gate is not None  # `warmed` switches it on
                    layer.gate = _HalfGate(layer.gate.expand.out_features, self.variant)
        parameters, buffers = (tuple(_slices(self, net, choice, buffers=flag)) for flag in (False, True))
        member = self._members[choice] = _Member(net, parameters, buffers)
        if len(self._members) > CACHE:
            self._members.popitem(last=False)
        return member

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles build their members anew.
        return {**self.__dict__, "_members": OrderedDict(), "_places": {}}


@dataclass(frozen=True)
class _Slice:
    """A tensor of a member as the leading part of a supernet's tensor."""

    name: str
    source: str
    shape: tuple[int, ...]
    halves: bool
    """Two equal parts along the last axis are sliced each for itself: a gate over [cumulative mean; frame's mean]."""

    def view(self, tensor: Tensor) -> Tensor:
        """Return the part of the tensor; a view, but for halves."""
        part = self.part(tensor)
        return part.flatten(1) if self.halves else part

    def part(self, tensor: Tensor) -> Tensor:
        """Return the part as a view; (h,2,E) for halves."""
        if self.halves:
            return tensor.view(len(tensor), 2, -1)[: self.shape[0], :, : self.shape[1] // 2]
        for axis, length in enumerate(self.shape):
            if tensor.shape[axis] != length:
                tensor = tensor.narrow(axis, 0, length)
        return tensor


@dataclass(frozen=True)
class _Member:
    net: MoViNet
    parameters: tuple[_Slice, ...]
    buffers: tuple[_Slice, ...]


class _Inherit(torch.autograd.Function):
    """All slices of a member at once: one node of the graph, whose backward fills one block of zeros.

    A slice per tensor would cost two kernels each in backward, and parameters without part no gradient at all.
    """

    @staticmethod
    def forward(ctx: Any, slices: Sequence[_Slice], names: Sequence[str], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.slices, ctx.names = slices, names
        ctx.set_materialize_grads(False)
        ctx.forms = [(tensor.shape, tensor.stride()) for tensor in tensors]
        ctx.like = tensors[0].new_empty(0)
        own = dict(zip(names, tensors, strict=True))
        return tuple(piece.view(own[piece.source]) for piece in slices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        block = ctx.like.new_zeros(sum(shape.numel() for shape, _ in ctx.forms))
        results, start = {}, 0
        for name, (shape, stride) in zip(ctx.names, ctx.forms, strict=True):
            results[name] = block.as_strided(shape, stride, start)
            start += shape.numel()
        into, values = [], []
        for piece, grad in zip(ctx.slices, grads, strict=True):
            if grad is not None:
                part = piece.part(results[piece.source])
                into.append(part)
                values.append(grad.reshape(part.shape))
        if into:
            torch._foreach_copy_(into, values)
        return (None, None, *results.values())


class _HalfGate(SqueezeExcite):
    """The mean of gated and ungated frames."""

    def forward(
        self, images: Tensor, batch: int, count_B: Tensor, key: str, past: Past, present: State | None
    ) -> Tensor:
        return 0.5 * (images + super().forward(images, batch, count_B, key, past, present))


def _layers(net: MoViNet) -> Iterable[Bottleneck]:
    return [module for module in net.modules() if isinstance(module, Bottleneck)]


def _slices(supernet: Supernet, net: MoViNet, choice: Choice, *, buffers: bool) -> Iterable[_Slice]:
    """Yield where each tensor of a member lies in the supernet."""
    single: dict[str, Place] = {p.name: p for p in net.places if p.name not in choice.mixed_kernels}
    named = net.named_buffers() if buffers else net.named_parameters()
    own = supernet._own(buffers=buffers)
    for name, tensor in named:
        layer, is_depthwise, rest = name.partition(".depthwise.")
        source = name
        if is_depthwise and layer in single:
            source = f"{layer}.depthwise.options.{option_name(single[layer].layer.kernel)}.{rest}"
        halves = name.endswith(".gate.reduce.weight") and supernet.variant.squeeze == "2plus3d"
        shape = tuple(tensor.shape)
        if source not in own or any(a > b for a, b in zip(shape, own[source].shape, strict=True)):
            raise ValueError(f"the supernet does not hold {name} of shape {shape}: the net is no member of its space")
        yield _Slice(name, source, shape, halves)
