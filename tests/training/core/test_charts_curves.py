import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from training.core.charts_compare import Mark
from training.core.charts_curves import Line, choices, histogram, line_swatch, plane, shares


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_plane_begins_at_zero_cost_and_cuts_off_what_is_out_of_range():
    line = Line("a <b>", [(10, 0.2), (20, 0.8), (30, 0.9)], titles=["one", "two", "three"], band=(0.1, 0.1, 0.0))
    mark = Mark(20, 0.8, "here", "label & more", low=0.7, high=0.9)
    text = plane([line], [mark, Mark(5, 0.1, "far below", "hidden")], "cost", "accuracy", y_range=(0.5, 1.0))
    parsed(text)
    assert "<title>two</title>" in text
    assert "<title>one</title>" not in text  # its dot is below the range
    assert "label &amp; more" in text
    assert "hidden" not in text
    assert "a &lt;b&gt;" in text
    assert re.search(r'<text class="tick" x="56.0"[^>]*>0<', text)  # the axis begins at 0
    assert "hidden" in plane([line], [Mark(5, 0.1, "far below", "hidden")], "cost", "accuracy")


def test_a_line_far_below_is_named_at_the_edge_and_a_near_one_is_drawn():
    line = Line("a", [(10, 0.90), (20, 0.95)])
    assert "↓ chance" in plane([line], [], "cost", "accuracy", across=[(0.1, "chance")])
    near = plane([line], [], "cost", "accuracy", across=[(0.89, "chance")])
    assert 'class="across"' in near
    assert "↓" not in near
    assert "Nothing to draw" in plane([], [], "cost", "accuracy")


def test_labels_avoid_curves_and_one_another():
    flat = Line("a", [(0, 0.5), (100, 0.5)])
    marks = [Mark(x, 0.5, "", f"mark {x}") for x in (40, 42, 44)]
    text = plane([flat], marks, "cost", "accuracy", y_range=(0.0, 1.0))
    places = [(float(x), float(y)) for x, y in re.findall(r'<text class="label" x="([\d.]+)" y="([\d.]+)"', text)]
    curve = float(re.findall(r'points="[\d.]+,([\d.]+)', text)[0])
    assert len(places) == 3
    assert all(abs(y - 4 - curve) >= 9 for _, y in places)
    assert len({y for _, y in places if y < curve} | {y for _, y in places if y > curve}) >= 2


def test_shares_run_on_in_further_columns():
    few = parsed(shares(["a", "b"], ["rgb", "audio"], np.array([[0.0, 1.0], [0.25, np.nan]])))
    assert [text.text for text in few.iter("text") if text.get("class", "").startswith("count")] == ["0", "100", "25"]
    names = [f"class <{i}>" for i in range(400)]
    text = shares(names, ["rgb", "audio"], np.full((400, 2), 0.5), ["n videos"] * 400)
    width, height = (float(value) for value in parsed(text).get("viewBox", "").split()[2:])
    assert width <= 1080
    assert height < 2400
    assert text.count(">rgb<") > 3  # each column of the page has its heading
    assert text.count('class="heat"') == 800
    assert shares([], ["rgb"], np.zeros((0, 1))) == ""


def test_histogram_scales_both_to_one():
    text = histogram([3, 1], [1, 3], ["0", "1"], "rgb", "segments")
    assert "0: 75.0%, by chance 25.0%" in text
    assert text.count('class="chance"') == 2
    assert histogram([0, 0], [], ["0", "1"], "rgb", "segments") == ""


@pytest.mark.parametrize("available", [None, np.array([[True, True], [True, False]])])
def test_choices_show_used_skipped_and_absent(available):
    used = np.array([[True, False], [False, False]])
    root = parsed(choices(["rgb", "audio"], used, available))
    kinds = [rect.get("class") for rect in root.iter("rect")]
    assert kinds == ["used", "skipped", "skipped", "skipped" if available is None else "absent"]
    assert parsed(line_swatch("var(--one)", True)).get("class") == "swatch"
