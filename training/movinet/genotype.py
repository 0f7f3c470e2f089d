"""Members of a MoViNet search space as tuples of indices into its options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LAYER_KINDS", "BlockGenes", "Genotype", "LayerGenes"]

LAYER_KINDS = ("kernel", "expansion", "gate")
"""Choices of a layer."""


@dataclass(frozen=True)
class LayerGenes:
    """Indices into kernels, expansions and gates."""

    kernel: int
    expansion: int
    gate: int


@dataclass(frozen=True)
class BlockGenes:
    """Index into the multipliers, and the layers that there are."""

    width: int
    layers: tuple[LayerGenes, ...]


@dataclass(frozen=True)
class Genotype:
    """One member of a space."""

    stem: int
    """Index into the multipliers."""
    project: int
    """Index into the multipliers."""
    blocks: tuple[BlockGenes, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; layers as [kernel, expansion, gate]."""
        blocks = [
            {"width": b.width, "layers": [[g.kernel, g.expansion, g.gate] for g in b.layers]} for b in self.blocks
        ]
        return {"stem": self.stem, "project": self.project, "blocks": blocks}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Genotype":
        """Read what `to_json` returned; `Space.check` says whether a space has it.

        Raises:
            ValueError: another form.
        """
        try:
            blocks = tuple(
                BlockGenes(int(block["width"]), tuple(LayerGenes(*map(int, genes)) for genes in block["layers"]))
                for block in values["blocks"]
            )
            return cls(int(values["stem"]), int(values["project"]), blocks)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"no genotype (stem, project, blocks of width and layers [kernel, expansion, gate]): {error!r}"
            ) from None
