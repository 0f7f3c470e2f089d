"""Drawings of architectures."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from training.backbones.movinet_layout import ARCHITECTURES, MoViNetLayout, architecture
from training.movinet.report.drawing import LEAST, UNIT, colour_of, draw, kernel_text, legend

SMALL = {
    "stem": 8,
    "blocks": [{"width": 8, "stride": 2, "layers": "1x5x5:16 7x1x1:32/no-gate"},
               {"width": 16, "stride": 1, "layers": "3x3x3:64"}],
    "project": 24,
    "head": 32,
}  # fmt: skip


def layers(chart: str) -> list[ElementTree.Element]:
    return [item for item in ElementTree.fromstring(chart).iter("g") if item.get("class") == "layer"]


def box(layer: ElementTree.Element) -> tuple[float, float, float]:
    rect = layer.find("rect")
    assert rect is not None
    return float(rect.get("x", 0)), float(rect.get("y", 0)), float(rect.get("width", 0))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("width", [1.0, 0.25])
def test_every_layer_has_its_box_inside_the_picture(name: str, width: float) -> None:
    layout = architecture(name).scaled(width)
    chart = draw(layout, 172)
    found = layers(chart)
    assert len(found) == layout.num_layers
    places = [box(layer) for layer in found]
    assert all(x + wide <= 530 - 10 for x, _, wide in places)
    # Boxes of one line do not touch.
    for (x, y, wide), (other, below, _) in itertools.pairwise(places):
        assert below > y or other > x + wide


def test_what_a_box_says() -> None:
    chart = draw(MoViNetLayout.parse(SMALL), 64)
    first, second, third = layers(chart)
    assert box(third)[2] == UNIT * 4 == box(second)[2]
    assert box(first)[2] == max(LEAST, UNIT * 2)
    words = ["".join(layer.itertext()) for layer in (first, second)]
    assert "1×5×5, 16 channels inside, with gate" in words[0]
    assert "7×1×1, 32 channels inside, without gate" in words[1]
    assert [len(layer.findall("circle")) for layer in (first, second, third)] == [1, 0, 1]
    assert colour_of(1) in first.get("style", "")
    assert colour_of(7) in second.get("style", "")
    read = " ".join(re.findall(r">([^<]+)<", chart))
    for piece in ("32²", "16²", "8 wide, ↓2", "16 wide", "block 3", "24 wide"):
        assert piece in read
    assert "²" not in re.sub(r"\d×\d²", "", " ".join(re.findall(r">([^<]+)<", draw(MoViNetLayout.parse(SMALL), 0))))


def test_legend_names_what_is_drawn() -> None:
    assert [words for _, words in legend([MoViNetLayout.parse(SMALL)])] == ["1 frame", "3 frames", "7 frames", "gate"]
    assert [words for _, words in legend([])] == []
    assert kernel_text((5, 3)) == "5×3²"
    assert len({colour_of(size) for size in (1, 3, 5, 7)}) == 4
    assert colour_of(9) == colour_of(7)
