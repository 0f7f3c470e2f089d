import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from training.core.charts_compare import CHARACTER
from training.resnet_rs.scaling import Allowed, analyse
from training.resnet_rs.scaling_page import render

GAINS = {"depth": 0.05, "frames": 0.04, "size": 0.01}


@pytest.fixture
def page(cost):
    """Page of some records."""

    def run(records, **options):
        result = analyse(records, cost, Allowed(depth=(25, 50, 100)), resamples=200)
        return render(result, records, **options)

    return run


@pytest.fixture
def search(simulate):
    """Three levels of trials, all stopped."""

    def run(**changed):
        levels = {
            "small": [(25, 8, 64, 0.25), (25, 16, 48, 0.25), (50, 4, 64, 0.25)],
            "medium": [(25, 16, 64, 0.25), (50, 8, 64, 0.25), (25, 8, 96, 0.25)],
            "large": [(50, 16, 64, 0.25), (100, 8, 64, 0.25), (25, 32, 64, 0.25)],
        }
        trials = []
        for level, places in levels.items():
            fields = {"source": "search", "level": level, "status": "stopped", "steps": 100}
            trials += simulate(places, GAINS, **(fields | changed))
        return trials

    return run


def checked(text):
    """The page's charts as trees, after what holds for every page."""
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).lower()
    assert text.count("<table>") == text.count("</table>")
    return [ElementTree.fromstring(chart) for chart in re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL)]


def words(text):
    """What is read: no tags, one space between words."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)).split())


def boxes(chart):
    """Name, left, right and base line of a chart's texts, with the width that the chart module assumes."""
    found = []
    for item in chart.iter("text"):
        wide, x, y = CHARACTER * len(item.text or ""), float(item.get("x", 0)), float(item.get("y", 0))
        left = x - {"middle": wide / 2, "end": wide}.get(item.get("text-anchor", ""), 0)
        found.append((item.text, left, left + wide, y))
    return found


def overlaps(chart):
    return [
        (one[0], two[0])
        for one, two in itertools.combinations(boxes(chart), 2)
        if abs(one[3] - two[3]) < 11 and one[1] < two[2] - 2 and two[1] < one[2] - 2
    ]


def test_overlaps_are_found():
    """The control of the tests below."""
    chart = '<svg><text x="9" y="10">one</text><text x="12" y="14">two</text><text x="9" y="40">three</text></svg>'
    assert overlaps(ElementTree.fromstring(chart)) == [("one", "two")]


def test_full_grid(simulate, page, grid):
    text = page(simulate(grid, GAINS, seeds=3, clips=600, noise=0.01), title="What to scale", dataset="demo")
    cloud, gains, trades = checked(text)
    read = words(text)
    for piece in ("What to scale", "600 validation clips", "3 seeds", "54 finished trainings", "1 GFLOP = 2 GMAC"):
        assert piece in read
    for piece in ("depth 25", "depth 50", "params/demo.yaml", "McNemar", "Holm", "Another seed changes top-1 by"):
        assert piece in read
    assert "width – not estimable: only one value, 0.25" in read
    assert text.count('<td class="cell"') == 18
    points = [item for item in cloud.iter("g") if item.get("class") == "point"]
    assert len(points) == 18
    assert [overlaps(chart) for chart in (cloud, gains, trades)] == [[], [], []]
    assert not re.search(r'class="point hollow"', text)


def test_yaml_block_can_be_read(simulate, page, grid):
    text = page(simulate(grid, GAINS, clips=600))
    block = re.search(r"<pre>(.*?)</pre>", text, re.DOTALL).group(1)
    content = yaml.safe_load(block)
    assert set(content) == {"resnet_rs_model", "resnet_rs_data"}
    assert content["resnet_rs_data"]["transform"]["size"] % 16 == 0
    assert "params/&lt;dataset&gt;.yaml" in text


def test_tiny_grid(simulate, page):
    places = list(itertools.product((25, 50), (4, 8), (64,), (0.25,)))
    text = page(simulate(places, GAINS, clips=10))
    charts = checked(text)
    assert all(overlaps(chart) == [] for chart in charts)
    assert "Only 10 clips" in text
    assert "one seed" in text
    assert "the data do not separate the axes" in text
    assert "the model meets every training exactly" in text


def test_search_of_stopped_trials_only(search, page):
    text = page(search())
    charts = checked(text)
    assert text.count('<g class="point hollow"') == 9 + 1  # and one in the legend
    assert all(overlaps(chart) == [] for chart in charts)
    read = words(text)
    assert "No training was finished, so nothing is estimated" in read
    assert "nothing is recommended" in read
    assert read.count("none finished") == 3
    assert read.count(" 100 stopped ") == 9
    assert "<pre>" not in text
    positions = [read.rindex(f"{level} 25-") for level in ("small", "medium", "large")]
    assert positions == sorted(positions)


def test_search_beside_a_grid(simulate, search, page, grid):
    trials = search(steps=1000)
    trials = [replace(trial, status="finished") if i % 3 else trial for i, trial in enumerate(trials)]
    text = page([*simulate(grid, GAINS), *trials])
    assert all(overlaps(chart) == [] for chart in checked(text))
    assert text.count('<g class="point hollow"') == 3 + 1
    read = words(text)
    assert "3 trials were stopped early" in read
    assert "none finished" not in read
    for level in ("small", "medium", "large"):
        assert f"level {level}" in read


def test_one_record_says_why_nothing_is_estimated(simulate, page):
    text = page(simulate([(25, 8, 64, 0.25)]))
    checked(text)
    read = words(text)
    assert "There is one configuration only" in read
    assert read.count("not estimable") == 4 + 5
    assert "No two finished configurations cost the same" in read
    assert "nothing is recommended" in read


def test_no_gain_is_said(simulate, page, grid):
    text = page(simulate(grid, {"depth": -0.05, "frames": -0.05, "size": -0.05}, clips=1000))
    assert "no gain is expected" in text
    assert "next configuration" not in text


def test_trial_that_left_no_predictions(simulate, page, grid):
    records = simulate(grid, GAINS)
    gone = replace(
        records[0], name="gone", source="search", level="a", status="stopped", steps=5, last_top1=0.125,
        key=np.array([]), label=np.array([], int), correct=np.array([], bool),
    )  # fmt: skip
    assert "12.5 %" in page([*records, gone])
    assert "gone" in page([*records, replace(gone, last_top1=None)])


def test_names_are_escaped(simulate, page, grid):
    trials = simulate(grid[:2], source="search", level="<b>&", name="<i>", status="stopped")
    text = page([replace(trial, name=f"<i>{i}") for i, trial in enumerate(trials)], title="<u>", dataset="<s>")
    checked(text)
    assert not any(tag in text for tag in ("<b>&", "<i>", "<u>", "<s>"))
    assert "&lt;b&gt;&amp;" in text


def test_long_lists_of_comparisons_are_cut_and_say_so(simulate, page):
    places = [(depth, 6400 // depth // 8, 64, 0.25) for depth in (25, 40, 50, 80, 100, 160, 200, 400)]
    text = page(simulate(places, GAINS, base=0.4))
    assert text.count("more frames, less depth</td>") == 25
    assert "25 of 28, all are in scaling.json" in words(text)
