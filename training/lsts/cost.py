"""What frames cost: multiply-accumulates of the parts (§10), and of the frames of a model as it runs.

`part_costs` counts as the published figures do: every frame computes both descriptors and both maps' quality, and
sampling interpolates every channel of K locations. `frame_costs` counts what is executed: what a key frame leaves for
its other frames is computed once (§15.5), and sampling is products of whole shifts (§15.1) in blocks of
`sampling.DEFAULT_BLOCK` cells. On a CUDA device blocks are larger, which is not counted.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from training.core.cost import count_macs, count_params
from training.lsts.backbone import SplitResNet
from training.lsts.config import AlignmentConfig, BackboneConfig
from training.lsts.fusion import AlignedKey, Alignment, Low2High, QualityNet, new_conv
from training.lsts.offsets import Offsets, initial_offsets, touched_shifts

if TYPE_CHECKING:
    from training.lsts.model import LSTS


class PartCost(NamedTuple):
    """Of one part at one use."""

    macs: int
    params: int


def part_costs(
    backbone: BackboneConfig, alignment: AlignmentConfig, head: nn.Module, height: int, width: int
) -> dict[str, PartCost]:
    """Count the parts for frames of a size.

    Args:
        backbone: of the backbone.
        alignment: of the alignment.
        head: its call on features counts; built on the meta device, it costs nothing to build.
        height: pixels.
        width: pixels.

    Returns:
        `low`, `high`, `low2high`, `embedding` (one convolution), `quality` (of one map), `sampling` (K locations),
        `shifts` (the same sums by whole shifts) and `head`.
    """
    with torch.device("meta"):
        net = SplitResNet(backbone)
        low2high = Low2High(net.low_channels, net.channels, alignment.low2high)
        embedding = new_conv(net.channels, alignment.embed_channels, 1)
        quality = QualityNet(net.channels, alignment.quality)
        image = torch.empty(1, 3, height, width)
        rows, columns = net.feature_size(height, width)
        low_map = torch.empty(1, net.low_channels, rows, columns)
        features = torch.empty(1, net.channels, rows, columns)
    table = initial_offsets(alignment.offsets)
    both = alignment.embed_channels + net.channels
    cells, count = rows * columns, len(table)
    low_params = sum(count_params(module) for module in net.low_parts())
    return {
        "low": PartCost(count_macs(net.low, image), low_params),
        "high": PartCost(count_macs(net.high, low_map), count_params(net) - low_params),
        "low2high": PartCost(count_macs(low2high, low_map), count_params(low2high)),
        "embedding": PartCost(count_macs(embedding, features), count_params(embedding)),
        "quality": PartCost(count_macs(quality, features), count_params(quality)),
        # Per location and channel four corners, and one product with the query or with the share.
        "sampling": PartCost(cells * count * both * (4 + 1), 2 * count),
        # Corners are mixed after the similarity and before the sum, for all channels at once.
        "shifts": PartCost(cells * (touched_shifts(table) * both + 2 * 4 * count), 2 * count),
        "head": PartCost(count_macs(head, features), count_params(head)),
    }


class PublishedCost(NamedTuple):
    """GMAC per frame as the published figures count."""

    single: float
    """The single-frame detector."""
    key: float
    """A key frame that is fused with the memory."""
    other: float
    """A frame that is no key."""

    def average(self, interval: int) -> float:
        """Return the average of one key frame and `interval` − 1 others."""
        return (self.key + (interval - 1) * self.other) / interval


def published_cost(parts: Mapping[str, PartCost]) -> PublishedCost:
    """Add up the parts by frame type (§10)."""
    gmac = {name: part.macs / 1e9 for name, part in parts.items()}
    aligned = 2 * gmac["embedding"] + 2 * gmac["quality"] + gmac["sampling"]
    single = gmac["low"] + gmac["high"] + gmac["head"]
    return PublishedCost(single, single + aligned, gmac["low"] + gmac["low2high"] + gmac["head"] + aligned)


def total_params(parts: Mapping[str, PartCost]) -> tuple[int, int]:
    """Return the parameters of the single-frame detector and of LSTS: two alignments, one table of offsets."""
    single = sum(parts[name].params for name in ("low", "high", "head"))
    aligned = 4 * parts["embedding"].params + 2 * parts["quality"].params
    return single, single + parts["low2high"].params + aligned + parts["sampling"].params


class FrameCosts(NamedTuple):
    """What a frame costs, GMAC, at one input size."""

    first: float
    """A key frame without memory."""
    key: float
    """A key frame that is fused with the memory."""
    other: float
    """A frame that is no key."""
    prepare: float
    """What a key frame leaves for the others, once."""


def frame_costs(model: "LSTS", height: int, width: int) -> FrameCosts:
    """Count what the frames of a model cost as it runs; parts that it does not have cost nothing.

    Args:
        model: its weights and offsets may lie anywhere.
        height: pixels of the input.
        width: pixels.
    """
    backbone = model.backbone
    rows, columns = backbone.feature_size(height, width)
    with torch.device("meta"):
        image = torch.empty(1, 3, height, width)
        low_map = torch.empty(1, backbone.low_channels, rows, columns)
        features = torch.empty(1, backbone.channels, rows, columns)
    low, head = count_macs(backbone.low, image), count_macs(model.head, features)
    first = low + count_macs(backbone.high, low_map) + head
    key, other, prepare = first, 0, 0
    if model.srfu is not None:
        key += sum(_alignment_macs(model.srfu, features))
    if model.dfa is not None and model.low2high is not None:
        prepare, aligned = _alignment_macs(model.dfa, features)
        other = low + count_macs(model.low2high, low_map) + aligned + head
    return FrameCosts(*(macs / 1e9 for macs in (first, key, other, prepare)))


class _Use(nn.Module):
    """An alignment with its offsets, which it does not own, so that both are copied to the meta device."""

    def __init__(self, alignment: Alignment) -> None:
        super().__init__()
        self.alignment = alignment
        self.offsets: Offsets | None = alignment.offsets

    def key(self, memory: Tensor) -> AlignedKey:
        return self.alignment.key(memory)

    @override
    def forward(self, memory: Tensor) -> Tensor:
        displacement = None if self.offsets is not None else memory.new_empty(1, 2, *memory.shape[2:])
        fused: Tensor = self.alignment(self.alignment.key(memory), memory, displacement_N2HW=displacement)[0]
        return fused


def _alignment_macs(alignment: Alignment, features: Tensor) -> tuple[int, int]:
    """Return what a memory costs once, and what each frame costs that is aligned with it."""
    use = _Use(alignment)
    if alignment.offsets is not None:
        with torch.no_grad():
            alignment.offsets.refresh()
    prepare = count_macs(use.key, features)
    return prepare, count_macs(use, features) - prepare
