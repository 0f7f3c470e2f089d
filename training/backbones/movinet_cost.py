"""Size, multiply-accumulates and state of a MoViNet by formula, without tensors: for tables and for searches."""

from training.backbones.movinet_layout import MoViNetLayout, Variant, gate_widths, places

__all__ = ["conv_macs", "num_buffers", "num_parameters", "state_elements"]


def num_parameters(layout: MoViNetLayout, variant: Variant, num_classes: int | None = 600) -> int:
    """Count parameters; None: without the two dense layers."""
    total = _conv_norm(3 * 9, layout.stem)
    for place in places(layout):
        expand, (temporal, side) = place.layer.expand, place.layer.kernel
        total += _conv_norm(place.in_channels, expand) + _conv_norm(expand, place.out_channels) + 1  # ReZero
        if variant.conv == "3d" or temporal == 1:
            total += _conv_norm(temporal * side**2, expand)
        else:
            total += _conv_norm(side**2, expand) + _conv_norm(temporal, expand)
        if place.layer.gate and variant.squeeze != "none":
            inner, hidden = gate_widths(expand, variant.squeeze)
            total += (inner + 1) * hidden + (hidden + 1) * expand + variant.positional
        if place.projects_skip:
            total += _conv_norm(place.in_channels, place.out_channels)
    total += _conv_norm(places(layout)[-1].out_channels, layout.project)
    if num_classes is not None:
        total += (layout.project + 1) * layout.head + (layout.head + 1) * num_classes
    return total


def _conv_norm(fan_in: int, channels: int) -> int:
    return channels * (fan_in + 2)


def num_buffers(layout: MoViNetLayout, variant: Variant) -> int:
    """Count running means and variances of batch normalisation."""
    total = layout.stem + layout.project
    for place in places(layout):
        halves = 2 if variant.conv == "2plus1d" and place.layer.kernel[0] > 1 else 1
        total += (1 + halves) * place.layer.expand + place.out_channels * (1 + place.projects_skip)
    return 2 * total


def conv_macs(
    layout: MoViNetLayout, variant: Variant, frames: int, size: int, num_classes: int = 600
) -> dict[str, int]:
    """Count multiply-accumulates of convolutions and dense layers for one clip.

    Args:
        layout: architecture.
        variant: base or stream.
        frames: T; of a stream all frames in one call, with one answer after the last.
        size: side of the input, pixels.
        num_classes: K.

    Returns:
        `pointwise`, `depthwise`, `squeeze`, `stem`, `head`, and their sum `total`.
    """
    side = -(-size // 2)
    parts = {"stem": 27 * layout.stem * side**2 * frames, "pointwise": 0, "depthwise": 0, "squeeze": 0}
    for place in places(layout):
        expand, (temporal, kernel) = place.layer.expand, place.layer.kernel
        after = -(-side // place.stride)
        parts["pointwise"] += frames * place.in_channels * expand * side**2
        parts["pointwise"] += frames * expand * place.out_channels * after**2
        if place.projects_skip:
            parts["pointwise"] += frames * place.in_channels * place.out_channels * after**2
        taps = temporal * kernel**2
        if variant.conv == "2plus1d":
            taps = kernel**2 + (temporal if temporal > 1 else 0)
        parts["depthwise"] += frames * expand * taps * after**2
        if place.layer.gate and variant.squeeze != "none":
            inner, hidden = gate_widths(expand, variant.squeeze)
            once = variant.squeeze == "3d" and not variant.causal
            parts["squeeze"] += (inner + expand) * hidden * (1 if once else frames)
        side = after
    parts["pointwise"] += frames * places(layout)[-1].out_channels * layout.project * side**2
    parts["head"] = layout.project * layout.head + layout.head * num_classes
    return {**parts, "total": sum(parts.values())}


def state_elements(layout: MoViNetLayout, variant: Variant, size: int) -> dict[str, int]:
    """Count the elements that a stream carries from call to call, for one video, without the frame counter.

    Args:
        layout: architecture.
        variant: a causal one.
        size: side of the input, pixels.

    Returns:
        `buffers` of temporal convolutions, `pools` of gates, `head` pool, and `total`.

    Raises:
        ValueError: the variant is not causal.
    """
    if not variant.causal:
        raise ValueError("only causal nets carry a state")
    side = -(-size // 2)
    buffers = pools = 0
    for place in places(layout):
        after = -(-side // place.stride)
        # (2+1)D keeps what the spatial half made, which has its stride behind it.
        kept = after if variant.conv == "2plus1d" else side
        buffers += place.layer.expand * (place.layer.kernel[0] - 1) * kept**2
        pools += place.layer.expand if place.layer.gate and variant.squeeze in ("3d", "2plus3d") else 0
        side = after
    return {"buffers": buffers, "pools": pools, "head": layout.project, "total": buffers + pools + layout.project}
