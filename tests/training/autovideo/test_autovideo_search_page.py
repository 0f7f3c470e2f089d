"""The page of a search: what it says of full, small and failed searches, and that its charts tell the truth."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from training.autovideo.report import charts
from training.autovideo.report.records import read_leaderboard, short_names
from training.autovideo.report.run_page import RunReport
from training.autovideo.report.search_page import SearchReport
from training.autovideo.report.stage import with_lists
from training.core.config import ConfigError
from training.core.evaluate import Evaluation, Predictions
from training.core.metrics import classification_metrics

YAML = "schema: pipeline/v1\nname: best <of> all\n"


def trial(name: str, value: float | None, gmac: float | None = 10.0, **more: Any) -> dict[str, Any]:
    status = "finished" if value is not None else "failed"
    error = None if value is not None else "OutOfMemoryError: tried to allocate 2 GiB"
    row = {"name": name, "status": status, "value": value, "gmac": gmac, "params": 1_500_000, "seconds": 90.0}
    return row | {"choices": {}, "error": error, "front": False} | more


def board(**more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    trials = [
        trial(
            f"t{i:02d}",
            None if i == 5 else 0.4 + 0.01 * i,
            2.0 + 3 * i,
            choices={
                "net.use": ("recognition/tsm", "recognition/<c3d>")[i % 2],
                "net.lr": float(10 ** rng.uniform(-4, -1)),
                "aug.magnitude": i if i % 3 == 0 else None,
                "net.pretrained": "kinetics",
            },
            front=i in (0, 4, 11),
        )
        for i in range(12)
    ]
    values = {"trials": trials, "winner": "t11", "metric": "val/top1", "engine": "tpe", "refused": [], "budget": {}}
    return values | more


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    label = np.repeat(np.arange(3), 20)
    scores = np.full((60, 3), 0.2, np.float32)
    scores[np.arange(60), np.where(np.arange(60) % 4 == 0, (label + 1) % 3, label)] = 0.6
    keys = np.array([f"v{i:03d}" for i in range(60)])
    predictions = Predictions(keys, label, scores, {}, {}, ("jump", "wave & clap", "run"))
    Evaluation(classification_metrics(scores, label, "test"), predictions).save(tmp_path / "test")
    return tmp_path / "test"


class Checker(HTMLParser):
    """Notes tags that are closed in another order than they were opened in, and all text."""

    EMPTY = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        """`<rect/>` needs no end."""

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(folder: Path) -> str:
    """Return the words of a page, which must be well-formed."""
    text = (folder / "page.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert not checker.wrong
    assert not checker.open
    assert not re.search(r"<script|https?://", text)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).replace("nano", "")
    return " ".join(" ".join(checker.text).split())


def section(words: str, start: str, end: str) -> str:
    return words[words.index(start) : words.index(end)]


def test_a_full_search(tmp_path, evaluation):
    refused = [{"digest": "abcdef0123456789", "gmac": 250.0, "params": 9_000_000, "why": "250 GMAC, the limit is 200"}]
    budget = {"trials": {"used": 12, "limit": 20}, "gpu_hours": {"used": 1.25, "limit": None}}
    report = SearchReport(
        board(refused=refused, budget=budget), YAML, evaluation, {"net.lr": (0.6, 0.1), "net.use": (0.3, 0.05)}
    )
    figures = report.write(tmp_path / "page")
    words = read(tmp_path / "page")
    assert figures["search/trials"] == 12
    assert figures["search/finished"] == 11
    assert figures["search/failed"] == 1
    assert figures["search/front"] == 3
    assert figures["search/best_top1"] == pytest.approx(0.51)
    assert figures["test/top1"] == 0.75
    assert figures["test/majority"] == pytest.approx(1 / 3)
    assert figures["test/top1_low"] < 0.75 < figures["test/top1_high"]
    for part in (
        "t11 winner", "recognition/<c3d>", "OutOfMemoryError", "60.0 ± 10.0 %", "abcdef0123", "250 GMAC, the limit",
        "12 of 20", "1.25, no limit", "name: best <of> all", "wave & clap", "above the most frequent class", "75.0 %",
        "33.3 %", "1 finished"[2:],
    ):  # fmt: skip
        assert part in words, part
    assert "pretrained" not in section(words, "Leaderboard", "Accuracy and cost")  # the same in all trials
    facts = json.loads((tmp_path / "page" / "report.json").read_text())
    assert facts["ranking"][:2] == ["t11", "t10"]
    assert "t05" not in facts["ranking"]
    assert facts["figures"] == figures
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"page.html", "report.json"}


def test_the_leaderboard_is_in_the_order_of_the_values(tmp_path):
    trials = [trial("low", 0.2), trial("stopped", 0.9, status="stopped"), trial("broken", None), trial("high", 0.5)]
    SearchReport({"trials": trials, "winner": "high"}).write(tmp_path)
    words = section(read(tmp_path), "Leaderboard", "Accuracy and cost")
    places = [words.index(name) for name in ("high", "low", "stopped", "broken")]
    assert places == sorted(places)
    assert re.search(r"1 high winner finished 50\.0 % 10 20 1\.5 M", words)
    assert re.search(r"– stopped", words)  # a value before the end has no rank
    SearchReport({"trials": trials, "winner": "low", "metric": "val/nll", "mode": "min"}).write(tmp_path)
    words = section(read(tmp_path), "Leaderboard", "Accuracy and cost")
    assert re.search(r"1 low winner finished 0\.2 ", words)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ["No trial was started."]),
        ({"refused": [{"digest": "d", "why": "too large"}]}, ["all candidates were over a limit", "too large"]),
        ({"trials": [trial("only", 0.4)], "winner": "only"}, ["One trial finished", "nothing to compare", "40.0 %"]),
        ({"trials": [trial("a", None), trial("b", None)]}, ["No trial finished with a value", "OutOfMemoryError"]),
        (
            {"trials": [trial("a", 0.3), *(trial(f"b{i}", None) for i in range(4))], "winner": "a"},
            ["One trial finished", "4 failed, 1 finished", "No trial is marked as being on the front"],
        ),
        ({"trials": [trial("a", 0.3, None), trial("b", 0.4, None)]}, ["No trial has both a value and a cost"]),
        ({"trials": [trial("a", 0.3), trial("b", 0.4)]}, ["All trials made the same choices"]),
        ({"trials": [trial("a", 0.3), trial("b", 0.4)], "winner": "a"}, ["is not the trial with the best val/top1"]),
    ],
)
def test_small_searches(tmp_path, values, expected):
    figures = SearchReport(values).write(tmp_path / "page")
    words = read(tmp_path / "page")
    for part in expected:
        assert part in words
    finished = [row for row in values.get("trials", ()) if row["value"] is not None]
    assert ("search/best_top1" in figures) == bool(finished)
    assert "above the most frequent class" not in words


def test_why_there_is_no_importance(tmp_path):
    SearchReport(board(), importance="3 trials are too few, 20 are needed").write(tmp_path)
    words = read(tmp_path)
    assert "3 trials are too few, 20 are needed" in words
    assert "puts down to each choice" not in words


def test_a_model_that_is_no_better_than_the_most_frequent_class(tmp_path):
    label = np.array([0] * 15 + [1] * 5)
    scores = np.tile(np.array([[0.6, 0.4]], np.float32), (20, 1))
    predictions = Predictions(np.array([f"{i:02d}" for i in range(20)]), label, scores, {}, {}, ("a", "b"))
    Evaluation(classification_metrics(scores, label, "test"), predictions).save(tmp_path / "test")
    SearchReport(board(), YAML, tmp_path / "test").write(tmp_path / "page")
    words = read(tmp_path / "page")
    assert "not told apart from the most frequent class" in words
    assert "above the most frequent class" not in words


def test_several_labels_have_no_confusion(tmp_path):
    rng = np.random.default_rng(0)
    hot, scores = (rng.random((30, 3)) < 0.5).astype(int), rng.random((30, 3)).astype(np.float32)
    predictions = Predictions(np.array([f"{i:02d}" for i in range(30)]), hot, scores, {}, {}, ("a", "b", "c"))
    predictions.save(tmp_path / "test" / "predictions.npz")
    figures = SearchReport(board(), YAML, tmp_path / "test").write(tmp_path / "page")
    words = read(tmp_path / "page")
    assert "Videos have several labels" in words
    assert "mAP" in words
    assert 0 < figures["test/map"] < 1


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trials": [trial("a", 0.1), trial("a", 0.2)]}, "trials have the same name: a"),
        ({"trials": [trial("a", 0.1)], "winner": "b"}, "winner 'b' is none of the 1 trials"),
        ({"trails": []}, "trails"),
    ],
)
def test_a_leaderboard_that_is_none_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        SearchReport(values)


def test_an_evaluation_that_is_none_is_refused(tmp_path, evaluation):
    with pytest.raises(ConfigError, match=r"predictions\.npz is missing"):
        SearchReport(board(), YAML, tmp_path / "nothing").write(tmp_path / "page")
    assert not (tmp_path / "page").exists()
    (evaluation / "predictions.npz").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is not what an evaluation writes"):
        SearchReport(board(), YAML, evaluation).write(tmp_path / "page")


# --- charts -------------------------------------------------------------------------------------


def circles(svg: str) -> list[tuple[float, float]]:
    """Return the centres of the marks (not those of the legend), which must be well-formed XML."""
    root = ElementTree.fromstring(svg)
    return [(float(item.get("cx", 0)), float(item.get("cy", 0))) for item in root.iter("circle")]


def test_the_cost_axis_is_logarithmic_from_a_decade_on():
    narrow = read_leaderboard({"trials": [trial("a", 0.3, 10.0), trial("b", 0.4, 40.0), trial("c", 0.5, 70.0)]})
    wide = read_leaderboard({"trials": [trial("a", 0.3, 1.0), trial("b", 0.4, 10.0), trial("c", 0.5, 100.0)]})
    assert "logarithmic" not in charts.pareto(narrow)
    assert "logarithmic" in charts.pareto(wide)
    for found in (narrow, wide):
        (a, _), (b, _), (c, _) = sorted(circles(charts.pareto(found)))
        # Evenly spaced: by difference in one, by ratio in the other.
        assert b - a == pytest.approx(c - b, abs=0.2)


def test_the_front_is_joined_and_the_winner_marked():
    values = board()
    svg = charts.pareto(read_leaderboard(values))
    assert 'class="trace dashed"' in svg
    assert "t11, winner" in svg
    assert svg.count("var(--two)") == 1
    for row in values["trials"]:
        row["front"] = False
    svg = charts.pareto(read_leaderboard(values | {"winner": None}))
    assert 'class="trace dashed"' not in svg
    assert "winner" not in svg


def test_best_so_far_never_falls_and_ignores_what_was_stopped():
    rows = [trial("a", 0.3), trial("b", 0.2), trial("c", 0.9, status="stopped"), trial("d", 0.5), trial("e", None)]
    svg = charts.history(read_leaderboard({"trials": rows}))
    assert "best so far: 50.0 %" in svg
    line = re.search(r'class="trace" points="([^"]+)"', svg)
    assert line
    heights = [float(point.split(",")[1]) for point in line[1].split()]
    assert heights == sorted(heights, reverse=True)
    assert svg.count("var(--bad)") == 1
    falling = charts.history(read_leaderboard({"trials": rows, "mode": "min", "metric": "val/nll"}))
    assert "best so far: 0.2" in falling


def test_bars_are_as_long_as_the_importance():
    svg = charts.importance_bars({"small": (0.1, 0.02), "a.very.long.name.of.a.choice." + "x" * 60: (0.4, 0.05)})
    root = ElementTree.fromstring(svg)
    widths = [float(item.get("width", 0)) for item in root.iter("rect")]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    assert "…" in svg
    assert charts.importance_bars({}) == ""


def test_lines_of_choices():
    found = read_leaderboard(board())
    svg = charts.parallel(found, found.varied)
    root = ElementTree.fromstring(svg)
    lines = list(root.iter("polyline"))
    assert len(lines) == 11  # all with a value
    assert all(len((line.get("points") or "").split()) == len(found.varied) + 1 for line in lines)
    last = [float((line.get("points") or "").split()[-1].split(",")[1]) for line in lines]
    assert last == sorted(last, reverse=True)  # the best is drawn last, and highest
    assert "recognition/&lt;c3d&gt;" in svg
    assert charts.parallel(read_leaderboard({"trials": [trial("a", 0.1)]}), ["x"]) == ""


def test_names_are_as_short_as_they_can_be_told_apart():
    names = ["net.optim.lr", "aug.use", "net.use", "lr"]
    assert short_names(names) == {"net.optim.lr": "optim.lr", "aug.use": "aug.use", "net.use": "net.use", "lr": "lr"}


# --- a single run -------------------------------------------------------------------------------


def test_page_of_a_run(tmp_path, evaluation):
    curves = {"train/loss": [(0, 2.0), (1, 1.5), (2, 1.1)]}
    report = RunReport(YAML, {"eval": {"val/top1": 0.5, "val/nll": 0.25}}, evaluation, [("net", "eval")], curves)
    assert report.write(tmp_path / "page") == {"eval/val/top1": 0.5, "eval/val/nll": 0.25}
    words = read(tmp_path / "page")
    for part in ("val/top1 50.0 %", "val/nll 0.25", "net → eval", "wave & clap", "train/loss", "name: best <of> all"):
        assert part in words
    RunReport(YAML, {}).write(tmp_path / "empty")
    assert "No step of the pipeline evaluates" in read(tmp_path / "empty")


def test_settings_of_an_alternative_are_no_items_of_a_list():
    settings = {"net": "recognition/tsn", "net:recognition/tsn.lr": 0.1, "aug.of:augment/hflip.p": 0.5}
    items = {"aug.of": 2.0, "aug.of:augment/hflip": 2.0, "aug.of:augment/rotate": 1.0}
    assert with_lists({**settings, **items}) == {**settings, "aug.of": "rotate, hflip"}
