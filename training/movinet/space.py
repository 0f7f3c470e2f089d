"""Search space of MoViNet (Kondratyuk et al. 2021, arXiv 2103.11511, §3.1): architectures as tuples of indices.

A `Genotype` holds indices into the options of a `SpaceConfig`; `Space` draws, changes and builds them. Two genotypes
can be one architecture where two options round to the same channels: compare layouts, not genotypes.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field, model_validator

from training.backbones.movinet_layout import Block, Layer, MoViNetLayout, plain_round
from training.core.config import ConfigError, Strict
from training.movinet.genotype import LAYER_KINDS, BlockGenes, Genotype, LayerGenes

__all__ = [
    "LAYER_KINDS",
    "MOVINET_A2_OWN_DEPTHS",
    "MOVINET_A2_SPACE",
    "AllRefused",
    "BlockGenes",
    "Drawn",
    "Genotype",
    "LayerGenes",
    "Space",
    "SpaceConfig",
]

DRAWS = 5_000
"""Rejected draws after which a cost counts as out of reach; the published spaces need 7 to 30."""


class SpaceConfig(Strict):
    """Options of every choice. Channels are rounded to multiples of 8 (`plain_round`)."""

    stem: int = Field(ge=1)
    """Reference channels of the stem."""
    widths: tuple[int, ...] = Field(min_length=1)
    """Reference channels of each block."""
    strides: tuple[Literal[1, 2], ...]
    """Spatial stride of each block's first layer."""
    project: int = Field(ge=1)
    """Reference channels before pooling."""
    head: int = Field(ge=1)
    """Units of the dense layer; not searched, not rounded."""
    multipliers: tuple[float, ...] = Field(min_length=1)
    """Of the reference channels: of stem, project and each block."""
    kernels: tuple[str, ...] = Field(min_length=1)
    """Depthwise kernels of a layer as k_t×k×k, e.g. `5x3x3`."""
    expansions: tuple[float, ...] = Field(min_length=1)
    """Channels inside a layer, as multiples of `expansion_of`."""
    expansion_of: Literal["reference", "width"]
    """What expansions multiply: the block's reference width, which the released tables fit, or its width after the
    multiplier, which spreads the costs of members more."""
    gates: tuple[bool, ...] = Field(min_length=1)
    """Whether a layer may have squeeze-excitation, may lack it, or both."""
    min_layers: tuple[int, ...]
    """Of each block."""
    max_layers: tuple[int, ...]
    """Of each block."""

    @model_validator(mode="after")
    def _consistent(self) -> "SpaceConfig":
        for name in ("strides", "min_layers", "max_layers"):
            if len(getattr(self, name)) != len(self.widths):
                raise ValueError(f"{name} must have one entry per block, {len(self.widths)}, as widths has")
        for number, bounds in enumerate(zip(self.min_layers, self.max_layers, strict=True), start=2):
            if not 1 <= bounds[0] <= bounds[1]:
                raise ValueError(f"block {number}: layers must be 1 ≤ min_layers ≤ max_layers, got {list(bounds)}")
        for name in ("widths", "multipliers", "expansions"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} must be positive, got {list(getattr(self, name))}")
        for name in ("multipliers", "kernels", "expansions", "gates"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has an option twice: {list(values)}")
        parsed = self.kernel_sizes
        if len(set(parsed)) != len(parsed):
            raise ValueError(f"kernels has an option twice: {list(self.kernels)}")
        return self

    @property
    def kernel_sizes(self) -> tuple[tuple[int, int], ...]:
        """The kernels as (k_t, k).

        Raises:
            ValueError: a kernel that is not odd, not square or not of this form.
        """
        return tuple(Layer.parse(f"{text}:1").kernel for text in self.kernels)


MOVINET_A2_SPACE = SpaceConfig(
    stem=16,
    widths=(24, 48, 96, 96, 192),
    strides=(2, 2, 2, 1, 2),
    project=512,
    head=2048,
    multipliers=(0.75, 1.0, 1.25),
    kernels=("1x3x3", "1x5x5", "1x7x7", "5x1x1", "7x1x1", "3x3x3", "5x3x3"),
    expansions=(1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
    expansion_of="reference",
    gates=(True, False),
    min_layers=(1, 1, 1, 1, 1),
    max_layers=(10, 10, 10, 10, 10),
)
"""The published space of A2. Those of the other sizes are scaled by coefficients that were not published."""
MOVINET_A2_OWN_DEPTHS = MOVINET_A2_SPACE.model_copy(update={"max_layers": (3, 5, 5, 6, 7)})
"""The same with no block deeper than that of the released A2."""


class AllRefused(ConfigError):
    """All drawn members of the wanted cost were refused."""


@dataclass(frozen=True)
class Drawn:
    """A member with a cost near the wanted one."""

    genotype: Genotype
    cost: float
    draws: int
    """Members drawn until this one, itself included."""


class Space:
    """The members of a search space: draw, change, build.

    Args:
        config: the options.
    """

    def __init__(self, config: SpaceConfig) -> None:
        self.config = config
        self.kernels = config.kernel_sizes
        options = (config.multipliers, config.kernels, config.expansions, config.gates)
        self.counts: dict[str, int] = dict(zip(("width", *LAYER_KINDS), map(len, options), strict=True))
        """Number of options of a width, a kernel, an expansion and a gate."""

    # --- what a genotype is -------------------------------------------------------------------------

    def channels(self, reference: int, multiplier: int) -> int:
        """Return the channels of stem, project or a block."""
        return plain_round(reference * self.config.multipliers[multiplier])

    def expanded(self, block: int, width: int, expansion: int) -> int:
        """Return the channels inside a layer, of a block with the multiplier's index `width`."""
        reference = self.config.widths[block]
        base = reference if self.config.expansion_of == "reference" else self.channels(reference, width)
        return plain_round(base * self.config.expansions[expansion])

    def layout(self, genotype: Genotype) -> MoViNetLayout:
        """Build the architecture of a member.

        Raises:
            ValueError: the space has no such member; see `check`.
        """
        self.check(genotype)
        config = self.config
        blocks = []
        for index, genes in enumerate(genotype.blocks):
            layers = tuple(
                Layer(self.kernels[g.kernel], self.expanded(index, genes.width, g.expansion), config.gates[g.gate])
                for g in genes.layers
            )
            blocks.append(Block(self.channels(config.widths[index], genes.width), config.strides[index], layers))
        stem, project = (
            self.channels(reference, choice)
            for reference, choice in ((config.stem, genotype.stem), (config.project, genotype.project))
        )
        return MoViNetLayout(stem, tuple(blocks), project, config.head)

    def check(self, genotype: Genotype) -> None:
        """Check that the space has a member.

        Raises:
            ValueError: it has not; the message names the choice.
        """
        config, counts = self.config, self.counts
        chosen = [("stem", genotype.stem, counts["width"]), ("project", genotype.project, counts["width"])]
        if len(genotype.blocks) != len(config.widths):
            raise ValueError(f"the genotype has {len(genotype.blocks)} blocks, the space {len(config.widths)}")
        for index, block in enumerate(genotype.blocks):
            least, most = config.min_layers[index], config.max_layers[index]
            if not least <= len(block.layers) <= most:
                raise ValueError(
                    f"block {index + 2} of the genotype has {len(block.layers)} layers, not {least}–{most}"
                )
            chosen.append((f"width of block {index + 2}", block.width, counts["width"]))
            for number, genes in enumerate(block.layers):
                where = f"of layer {number} of block {index + 2}"
                chosen += [(f"{kind} {where}", getattr(genes, kind), counts[kind]) for kind in LAYER_KINDS]
        for name, value, count in chosen:
            if not 0 <= value < count:
                raise ValueError(f"{name}: the space has options 0 to {count - 1}, the genotype {value}")

    def count(self) -> int:
        """Count the members (genotypes)."""
        counts = self.counts
        layer = math.prod(counts[kind] for kind in LAYER_KINDS)
        total = counts["width"] ** 2
        for least, most in zip(self.config.min_layers, self.config.max_layers, strict=True):
            total *= counts["width"] * sum(layer**depth for depth in range(least, most + 1))
        return total

    def size_log10(self) -> float:
        """Return the decimal logarithm of the number of members."""
        return math.log10(self.count())

    # --- extremes -----------------------------------------------------------------------------------

    def largest_genotype(self) -> Genotype:
        """Return the member with the most of everything."""
        return self._extreme(largest=True)

    def smallest_genotype(self) -> Genotype:
        """Return the member with the least of everything."""
        return self._extreme(largest=False)

    def largest(self) -> MoViNetLayout:
        """Return the layout whose every tensor holds those of all members, kernels aside."""
        return self.layout(self.largest_genotype())

    def _extreme(self, *, largest: bool) -> Genotype:
        config = self.config
        pick = _last_max if largest else _first_min
        taps = [temporal * side**2 for temporal, side in self.kernels]
        genes = LayerGenes(pick(taps), pick(config.expansions), pick([int(gate) for gate in config.gates]))
        width = pick(config.multipliers)
        depths = config.max_layers if largest else config.min_layers
        return Genotype(width, width, tuple(BlockGenes(width, (genes,) * depth) for depth in depths))

    # --- draws --------------------------------------------------------------------------------------

    def sample(self, rng: random.Random) -> Genotype:
        """Draw a member: every choice uniform and independent, a block's depth among them."""
        widths = self.counts["width"]
        blocks = []
        for least, most in zip(self.config.min_layers, self.config.max_layers, strict=True):
            width, depth = rng.randrange(widths), rng.randint(least, most)
            blocks.append(BlockGenes(width, tuple(self.sample_layer(rng) for _ in range(depth))))
        return Genotype(rng.randrange(widths), rng.randrange(widths), tuple(blocks))

    def sample_layer(self, rng: random.Random) -> LayerGenes:
        """Draw a layer."""
        counts = self.counts
        return LayerGenes(*(rng.randrange(counts[kind]) for kind in LAYER_KINDS))

    def sample_near(
        self,
        rng: random.Random,
        cost: Callable[[MoViNetLayout], float],
        target: float,
        tolerance: float,
        *,
        draws: int = DRAWS,
        refuse: Callable[[MoViNetLayout], bool] = lambda layout: False,
    ) -> Drawn:
        """Draw members until one costs the target ± its share `tolerance`: uniform among such members.

        Args:
            rng: source of the draws.
            cost: of an architecture, in the unit of the target.
            target: wanted cost.
            tolerance: accepted |cost / target - 1|.
            draws: after how many to give up.
            refuse: members that are not wanted though their cost is right.

        Raises:
            AllRefused: only members that were refused cost that.
            ConfigError: none of the draws costs that; the message has the costs that were seen.
        """
        seen: list[float] = []
        for draw in range(1, draws + 1):
            genotype = self.sample(rng)
            layout = self.layout(genotype)
            value = cost(layout)
            seen.append(value)
            if abs(value / target - 1) <= tolerance and not refuse(layout):
                return Drawn(genotype, value, draw)
        seen.sort()
        within = sum(abs(value / target - 1) <= tolerance for value in seen)
        ends = [cost(self.layout(g)) for g in (self.smallest_genotype(), self.largest_genotype())]
        kind = AllRefused if within else ConfigError
        raise kind(
            f"no member of the search space was accepted in {draws} draws at the cost {target:.4g} ± {tolerance:.1%} "
            f"({within} cost that, and were refused). Drawn costs reach from {seen[0]:.4g} to {seen[-1]:.4g} with the "
            f"median {seen[draws // 2]:.4g}, those of the space's ends from {ends[0]:.4g} to {ends[1]:.4g}. Change the "
            "target, its tolerance or the space"
        )

    def mutate(self, genotype: Genotype, rng: random.Random) -> Genotype:
        """Change one choice: a kernel, expansion, gate, block's width or depth (by 1, at its end), stem or project.

        The kind is drawn among those that can change, then one of its changes anywhere. The architecture always
        changes: an option that rounds to the same channels is no change.

        Raises:
            ConfigError: a space with one architecture.
        """
        changes: dict[str, list[Callable[[], Genotype]]] = {}
        for name in ("stem", "project"):
            reference, now = getattr(self.config, name), getattr(genotype, name)
            for other in self._other_widths(reference, now):
                changes.setdefault("end", []).append(lambda n=name, o=other: replace(genotype, **{n: o}))  # type: ignore[misc]
        for index, block in enumerate(genotype.blocks):
            self._block_changes(genotype, index, block, rng, changes)
        if not changes:
            raise ConfigError("the search space has one architecture: there is nothing to change")
        kind = rng.choice(sorted(changes))
        return rng.choice(changes[kind])()

    def _block_changes(
        self,
        genotype: Genotype,
        index: int,
        block: BlockGenes,
        rng: random.Random,
        changes: dict[str, list[Callable[[], Genotype]]],
    ) -> None:
        def put(kind: str, make: Callable[[], BlockGenes]) -> None:
            def changed() -> Genotype:
                blocks = [*genotype.blocks[:index], make(), *genotype.blocks[index + 1 :]]
                return replace(genotype, blocks=tuple(blocks))

            changes.setdefault(kind, []).append(changed)

        for other in self._other_widths(self.config.widths[index], block.width):
            put("width", lambda o=other: replace(block, width=o))  # type: ignore[misc]
        if len(block.layers) < self.config.max_layers[index]:
            put("depth", lambda: replace(block, layers=(*block.layers, self.sample_layer(rng))))
        if len(block.layers) > self.config.min_layers[index]:
            put("depth", lambda: replace(block, layers=block.layers[:-1]))
        for number, genes in enumerate(block.layers):
            for kind in LAYER_KINDS:
                for other in range(self.counts[kind]):
                    if self._same(kind, index, block.width, getattr(genes, kind), other):
                        continue
                    layer = replace(genes, **{kind: other})
                    layers = (*block.layers[:number], layer, *block.layers[number + 1 :])
                    put(kind, lambda changed=layers: replace(block, layers=changed))  # type: ignore[misc]

    def _same(self, kind: str, block: int, width: int, now: int, other: int) -> bool:
        if kind == "expansion":
            return self.expanded(block, width, now) == self.expanded(block, width, other)
        return now == other

    def _other_widths(self, reference: int, now: int) -> list[int]:
        present = self.channels(reference, now)
        return [i for i in range(self.counts["width"]) if self.channels(reference, i) != present]


def _last_max(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: (values[index], index))


def _first_min(values: Sequence[float]) -> int:
    return min(range(len(values)), key=lambda index: (values[index], index))
