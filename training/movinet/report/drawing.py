"""Drawing of an architecture as SVG: a row of boxes per block, a box per layer.

Like `training.core.charts`: text only, colours from the page's style sheet, a `<title>` on every box.
"""

from collections.abc import Sequence
from html import escape

from training.backbones.movinet_layout import Block, Layer, MoViNetLayout
from training.core.charts import svg
from training.core.charts_compare import CHARACTER

UNIT = 20.0
"""Pixels of a box per multiple of the block's width that its expansion is."""
LEAST = 34.0
"""Pixels of the narrowest box: its kernel has to fit in."""
HEIGHT = 40
GAP = 4
LEFT = 112
COLOURS = {1: "var(--five)", 3: "var(--one)", 5: "var(--two)", 7: "var(--four)"}
"""By temporal kernel; larger ones look like the last."""


def draw(layout: MoViNetLayout, side: int, *, width: int = 530) -> str:
    """Draw an architecture; boxes of two drawings compare, since a box's width is expansion / block width.

    Args:
        layout: the architecture, with the widths that were trained.
        side: of the input, pixels; 0: unknown, no resolutions are written.
        width: pixels.
    """
    parts: list[str] = []
    side = -(-side // 2)
    y = _plain(parts, 4, "stem", f"{kernel_text((1, 3))}, {layout.stem} wide, stride 2", _square(side), width)
    for number, block in enumerate(layout.blocks, start=2):
        side = -(-side // block.stride)
        y = _block(parts, y, number, block, side, width)
    last = f"{layout.project} wide → mean over time and space → {layout.head} → classes"
    y = _plain(parts, y, "head", last, _square(side), width)
    return svg(width, y, parts, f"architecture of {layout.num_layers} layers")


def kernel_text(kernel: tuple[int, int]) -> str:
    """Return a kernel k_t×k×k in the short form k_t×k²."""
    return f"{kernel[0]}×{kernel[1]}²"


def colour_of(temporal: int) -> str:
    """Return the colour of a temporal kernel size."""
    return COLOURS.get(temporal, COLOURS[7])


def _square(side: int) -> str:
    return f"{side}²" if side else ""


def _plain(parts: list[str], y: int, name: str, text: str, right: str, width: int) -> int:
    """Add stem or head; return where the next row starts."""
    parts.append(f'<rect class="ground" x="0" y="{y}" width="{width}" height="26" rx="4"/>')
    parts.append(f'<text class="major" x="10" y="{y + 17}">{name}</text>')
    parts.append(f'<text class="tick" x="{LEFT}" y="{y + 17}">{escape(text)}</text>')
    parts.append(f'<text class="tick" x="{width - 10}" y="{y + 17}" text-anchor="end">{right}</text>')
    return y + 26 + GAP + 2


def _block(parts: list[str], y: int, number: int, block: Block, side: int, width: int) -> int:
    lines = _lines(block, width - LEFT - 10 - int(CHARACTER * 5))
    high = max(len(lines) * (HEIGHT + GAP) - GAP + 16, 56)
    parts.append(f'<rect class="ground" x="0" y="{y}" width="{width}" height="{high}" rx="4"/>')
    parts.append(f'<text class="major" x="10" y="{y + 23}">block {number}</text>')
    parts.append(f'<text class="tick" x="10" y="{y + 41}">{block.width} wide{", ↓2" * (block.stride == 2)}</text>')
    parts.append(f'<text class="tick" x="{width - 10}" y="{y + 23}" text-anchor="end">{_square(side)}</text>')
    for row, line in enumerate(lines):
        x = float(LEFT)
        for layer, wide in line:
            parts.append(_box(layer, x, y + 8 + row * (HEIGHT + GAP), wide))
            x += wide + GAP
    return y + high + GAP + 2


def _lines(block: Block, room: int) -> list[list[tuple[Layer, float]]]:
    """Return the layers with the widths of their boxes, on as many lines as they need."""
    lines: list[list[tuple[Layer, float]]] = [[]]
    used = 0.0
    for layer in block.layers:
        wide = min(max(LEAST, UNIT * layer.expand / block.width, CHARACTER * len(str(layer.expand)) + 8), room)
        if lines[-1] and used + wide > room:
            lines.append([])
            used = 0.0
        lines[-1].append((layer, wide))
        used += wide + GAP
    return lines


def _box(layer: Layer, x: float, y: int, wide: float) -> str:
    temporal, spatial = layer.kernel
    gate = "with gate" if layer.gate else "without gate"
    title = f"{temporal}×{spatial}×{spatial}, {layer.expand} channels inside, {gate}"
    middle = x + wide / 2
    mark = f'<circle class="gate" cx="{x + wide - 6:.1f}" cy="{y + HEIGHT - 6}" r="2.6"/>' if layer.gate else ""
    return (
        f'<g class="layer" style="color:{colour_of(temporal)}"><title>{escape(title)}</title>'
        f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{HEIGHT}" rx="3"/>'
        f'<text class="kernel" x="{middle:.1f}" y="{y + 17}" text-anchor="middle">{kernel_text(layer.kernel)}</text>'
        f'<text class="tick" x="{middle:.1f}" y="{y + 32}" text-anchor="middle">{layer.expand}</text>{mark}</g>'
    )


def legend(layouts: Sequence[MoViNetLayout]) -> list[tuple[str, str]]:
    """Return marks and words for what the drawings show."""
    layers = [layer for layout in layouts for block in layout.blocks for layer in block.layers]
    entries = []
    for size in sorted({layer.kernel[0] for layer in layers}):
        box = f'<g class="layer" style="color:{colour_of(size)}"><rect x="1" y="1" width="12" height="12" rx="2"/></g>'
        entries.append((_swatch(box), f"{size} frame{'s' * (size > 1)}"))
    if any(layer.gate for layer in layers):
        entries.append((_swatch('<g class="layer"><circle class="gate" cx="7" cy="7" r="2.8"/></g>'), "gate"))
    return entries


def _swatch(inside: str) -> str:
    return f'<svg class="swatch" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">{inside}</svg>'
