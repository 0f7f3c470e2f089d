import math
import re
from xml.etree import ElementTree

import pytest

from training.core.charts_compare import Interval, Mark, forest, palette, scatter, swatch
from training.core.pages import markup, render_page, write_text


def texts(chart):
    return [item.text for item in ElementTree.fromstring(chart).iter("text")]


def test_scatter_draws_what_it_is_given():
    marks = [
        Mark(1.0, 0.5, "a & b", label="<one>", low=0.4, high=0.6),
        Mark(10.0, 0.7, "two", hollow=True, shape="diamond"),
        Mark(5.0, math.nan, "unknown"),
    ]
    chart = scatter(marks, "GMAC", "top-1", line=[(1.0, 0.5), (10.0, 0.7)], rules=[(2.0, "two G"), (2.02, "more G")])
    assert chart.count('class="point"') == 1
    assert chart.count('class="point hollow"') == 1
    assert chart.count('class="whisker"') == 1
    assert chart.count('class="rule"') == 2
    assert "nan" not in chart
    assert "<one>" in texts(chart)  # escaped in the text, itself again once read
    # Names of lines that stand close are written above one another.
    heights = re.findall(r'y="(\d+)" text-anchor="middle">(?:two|more) G', chart)
    assert len(set(heights)) == 2
    front = re.search(r'class="frontier" points="([^"]+)"', chart).group(1).split()
    assert len(front) == 3  # a step, not a slope
    assert "<svg" not in scatter([], "GMAC", "top-1")
    assert scatter([Mark(1.0, 0.5, "only")], "GMAC", "top-1").count('class="point"') == 1


def test_forest_rows():
    rows = [
        Interval("gain", 0.02, 0.01, 0.03, "4 pairs"),
        Interval("loss", -0.02, -0.03, -0.01, "5 pairs", minor=True),
        Interval("<none>", None, note="not estimable"),
    ]
    chart = forest(rows, "points", scale=100)
    tree = ElementTree.fromstring(chart)
    zero = float(next(item.get("x1") for item in tree.iter("line") if item.get("class") == "zero"))
    gain, loss = [float(item.get("cx")) for item in tree.iter("circle")]
    assert loss < zero < gain
    assert gain - zero == pytest.approx(zero - loss, abs=0.2)
    assert {"+2.0 [+1.0, +3.0]", "-2.0 [-3.0, -1.0]", "<none>", "not estimable"} <= set(texts(chart))
    assert "zero" not in forest([Interval("none", None, note="why")], "points")
    assert "<svg" not in forest([], "points")
    wide = forest([Interval("x" * 200, 0.1, 0.0, 0.2, "note")], "points")
    assert float(ElementTree.fromstring(wide).get("viewBox").split()[2]) > 1080


def test_palette_and_swatch():
    assert len(set(palette(5))) == 5
    assert len(set(palette(9))) == 9
    assert palette(0) == []
    assert "hollow" in swatch(hollow=True)


def test_pages_of_other_packages_share_the_style_sheet(tmp_path):
    with pytest.raises(Exception, match="is undefined"):
        render_page("training.core", "index.html.j2")
    text = render_page("training.core", "index.html.j2", datasets=[], written="today")
    assert "Written today from the MLflow store" in text
    assert "--paper" in text
    assert str(markup("<b>")) == "<b>"
    write_text(tmp_path / "page.html", text)
    assert (tmp_path / "page.html").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
