import re

import numpy as np
import pytest

from training.core.charts import Point, Series, confusion, frontier, heat, lines, number, pareto, ticks
from training.core.registration import Registry
from training.core.report import write_report
from training.core.report_clips import choose, coverage, film_strip

# Whichever test comes first waits for the session's project to be trained, evaluated and registered.
pytestmark = pytest.mark.timeout(300)


def test_pages_of_a_registered_model(registered):
    index = write_report(registered.settings)
    assert index == registered.settings.reports / "index.html"
    text = index.read_text()
    page = (index.parent / "adafocus-demo-1.html").read_text()
    assert "adafocus-demo-1.html" in text
    for words in (text, page):
        assert "120 of 122" in words
        # Readable without a network: nothing is fetched from anywhere.
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", words)
        assert "<script" not in words
    for words in ("Where the policy looked", "Lineage", "By class", "Training", "data:image/jpeg;base64", "Gate"):
        assert words in page
    assert "Wrong predictions" not in page  # there are none: the model is right everywhere
    assert "fullframe" in text


def test_unchanged_pages_are_not_written_again(registered):
    write_report(registered.settings)
    page = registered.settings.reports / "adafocus-demo-1.html"
    before = page.stat().st_mtime_ns
    write_report(registered.settings)
    assert page.stat().st_mtime_ns == before
    registry = Registry.open(registered.settings)
    version = registry.version("adafocus-demo", "1")
    registry.set_alias(version, "candidate")
    try:
        write_report(registered.settings)
        assert page.stat().st_mtime_ns != before
        assert "candidate" in page.read_text()
    finally:
        registry.drop_alias("adafocus-demo", "candidate")


def test_without_the_evaluated_shards_it_says_so(registered):
    folder = registered.settings.shards / "demo"
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    try:
        write_report(registered.settings)
        page = (registered.settings.reports / "adafocus-demo-1.html").read_text()
    finally:
        hidden.rename(folder)
    assert "The shards are not on this disk" in page
    assert "data:image/jpeg" not in page


def test_frontier_keeps_what_nothing_beats():
    points = [Point(1, 0.5, "a"), Point(2, 0.4, "b"), Point(2, 0.7, "c"), Point(3, 0.7, "d"), Point(4, 0.8, "e")]
    assert [p.label for p in frontier(points)] == ["a", "c", "e"]


def test_charts_escape_names_and_survive_odd_values():
    chart = pareto([Point(0.1, 0.5, "<b>&"), Point(5.0, 0.9, "x", low=0.8, high=0.95)], "GMAC", "top-1")
    assert "<b>&" not in chart
    assert "&lt;b&gt;&amp;" in chart
    assert "no model" in pareto([], "GMAC", "top-1").lower()
    assert pareto([Point(1.0, 0.5, "one")], "GMAC", "top-1").count("<circle") == 1
    curve = lines([Series("loss", [(1, 2.0), (2, float("nan")), (3, 1.0), (4, 0.5)])], "loss")
    assert "nan" not in curve
    assert lines([Series("loss", [(1, float("nan"))])], "loss") == ""
    assert "30 of 40" in confusion(np.array([[30, 10], [0, 5]]), ["a", "b"])
    assert heat(np.zeros((2, 2)), "nothing").count('class="heat"') == 0


def test_ticks_are_round():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.13, 0.52) == [0.2, 0.3, 0.4, 0.5]
    assert number(123456) == "1.2e5"
    assert number(0.01987) == "0.01987"


def test_coverage_by_hand():
    origins = np.array([[[0, 0], [16, 16]], [[0, 16], [16, 16]]])
    maps = coverage(origins, np.array([16, 16]), size=32, cells=2)
    assert maps[0].tolist() == [[0.5, 0.5], [0.0, 0.0]]
    assert maps[1].tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_chosen_clips_are_the_surest():
    label = np.array([0, 0, 1, 1, 0])
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2], [0.1, 0.9]], np.float32)
    right, wrong, total = choose(label, scores, right=2, wrong=1)
    assert right == [0, 2]  # one of each class, the surest
    assert wrong == [4]
    assert total == 2


def test_film_strip_draws_the_patch_where_it_is():
    import base64

    import cv2

    frames = np.zeros((2, 56, 56, 3), np.uint8)
    uri = film_strip(frames, np.array([[28, 28], [0, 0]]), 28)
    content = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert picture.shape == (112, 112 * 2 + 3, 3)
    first, second = picture[:, :112].max(-1), picture[:, 115:].max(-1)
    assert first[56:60, 60:110].max() > 100  # upper edge of the patch in the lower right quarter
    assert first[:50, :50].max() < 60
    assert second[:4, :50].max() > 100


def test_pages_of_report_stages_are_copied_and_linked(registered, tmp_path):
    from training.core.report import copy_pages

    settings = registered.settings.model_copy(update={"root": tmp_path})
    assert copy_pages(settings) == {}
    folder = settings.runs / "demo" / "resnet_rs_scaling"
    folder.mkdir(parents=True)
    (settings.runs / "demo" / "not_a_stage").mkdir()
    (settings.runs / "demo" / "not_a_stage" / "page.html").write_text("<title>no</title>")
    settings.reports.mkdir()
    (folder / "page.html").write_text("<html><title>Scaling &amp; more</title>first</html>")
    link = {"href": "demo-resnet_rs_scaling.html", "title": "Scaling & more"}
    assert copy_pages(settings) == {"demo": [link]}
    copied = settings.reports / link["href"]
    assert "first" in copied.read_text()
    (folder / "page.html").write_text("<html><title>Scaling</title>second</html>")
    copy_pages(settings)
    assert "second" in copied.read_text()
