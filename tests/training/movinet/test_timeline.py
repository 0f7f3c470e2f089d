"""Labelled segments against answers: reading, counting, and the page."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from training.core.config import ConfigError
from training.movinet.live.session import Answer
from training.movinet.live.timeline import (
    MEMORY_POINTS,
    Seen,
    Segment,
    Timeline,
    page_path,
    read_names,
    read_segments,
    runs_of,
)

REAL_DATA = Path(os.environ.get("FOVEA_TEST_DATA", "../shared/data")).resolve()
REAL = REAL_DATA / "room_actions_untrimmed" / "labels_activitynet_style.json"
CLASSES = ("run", "walk", "sit")


def answer(time_s: float, name: str, score: float = 0.5) -> Answer:
    return Answer(time_s, round(time_s * 10), (name,), (score,), 0, 1.0, 1.0)


def layout(*rows: tuple[float, float, str], video: str = "v") -> dict:
    return {"database": {video: {"annotations": [{"segment": row[:2], "label": row[2]} for row in rows]}}}


@pytest.fixture
def write(tmp_path):
    def to_file(content: object, name: str = "labels.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


def test_segments_come_in_order_with_the_models_classes(write):
    path = write(layout((4, 5.5, "going"), (0, 2, "run"), (2, 3, "dance")))
    assert read_segments(path, None, CLASSES, {"going": "walk"}) == [
        Segment(0.0, 2.0, "run", "run"),
        Segment(2.0, 3.0, "dance", None),
        Segment(4.0, 5.5, "going", "walk"),
    ]


def test_video_is_chosen_by_its_key(write):
    both = {"database": layout((0, 1, "run"))["database"] | layout((0, 1, "sit"), video="w")["database"]}
    path = write(both)
    assert [read_segments(path, key, CLASSES, {})[0].name for key in ("v", "w")] == ["run", "sit"]
    with pytest.raises(ConfigError, match=r"labels\.json: `database` has 2 videos \(v, w\); choose one with --video"):
        read_segments(path, None, CLASSES, {})
    with pytest.raises(ConfigError, match=r"labels\.json: `database` has no video 'x', but v, w"):
        read_segments(path, "x", CLASSES, {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "labels.json is no JSON: Expecting"),
        ([], "labels.json: `database` must be a table of videos"),
        ({"database": {}}, "labels.json: `database` must be a table of videos"),
        ({"database": {"v": []}}, "labels.json: database.v.annotations must be a list of segments"),
        ({"database": {"v": {"annotations": []}}}, "labels.json: database.v.annotations must be a list of segments"),
        ({"database": {"v": {"annotations": [{"segment": [1, 2]}]}}}, "annotations[0] must have a `segment` [start, "),
        (layout((0, 1, "run"), ("0", 2, "run")), "annotations[1] must have a `segment` [start, end] in seconds"),
        (layout((0, 1, "run"), (3, 2, "sit")), "annotations[1].segment (sit) must end after it starts"),
        (layout((2, 2, "run")), "got [2, 2]"),
        (layout((-1, 2, "run")), "at 0 s or later"),
        (layout((0, float("nan"), "run")), "got [0, nan]"),
        (layout((0, float("inf"), "run")), "got [0, inf]"),
        (
            layout((0, 1, "hop"), (1, 2, "fly")),
            "none of the labels (fly, hop) is a class of the model (run, s",
        ),
    ],
)
def test_errors_of_the_segments_name_file_and_field(write, content, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        read_segments(write(content), None, CLASSES, {})


def test_names_are_a_table_of_texts_that_the_model_knows(write, tmp_path):
    assert read_names(write("going: walk\n'on': run\n", "n.yaml"), CLASSES) == {"going": "walk", "on": "run"}
    for content, words in (
        ("- walk", "n.yaml must be a table `label: class`"),
        ("a: [", "n.yaml is no YAML: while parsing"),
        ("on: run", "n.yaml: True: 'run' must be two texts; put quotes"),
        ("going: 3", "n.yaml: 'going': 3 must be two texts"),
        ("going: stroll", "n.yaml: going: stroll is no class of the model; it knows run, sit, walk"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            read_names(write(content, "n.yaml"), CLASSES)
    for path, words in ((tmp_path / "none", "none cannot be read: No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=words):
            read_names(path, CLASSES)
    (tmp_path / "b").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="b is no text in UTF-8"):
        read_segments(tmp_path / "b", None, CLASSES, {})


def test_a_segment_has_its_start_and_not_its_end():
    timeline = Timeline(CLASSES, [Segment(1.0, 2.0, "r", "run"), Segment(2.0, 3.0, "w", "walk")])
    truths = {0.98: None, 1.0: "run", 1.98: "run", 2.0: "walk", 2.98: "walk", 3.0: None}
    assert {time: timeline.truth_at(time) for time in truths} == truths
    # Timestamps of some files are rounded: a border hit to a millisecond is the border.
    assert timeline.truth_at(1.9995) == "walk"
    assert timeline.truth_at(1.998) == "run"


def test_where_segments_overlap_the_last_begun_one_with_a_class_counts():
    segments = [Segment(0, 10, "a", "run"), Segment(2, 8, "b", "walk"), Segment(4, 6, "dance", None)]
    timeline = Timeline(CLASSES, segments)
    assert [timeline.truth_at(time) for time in (1, 3, 5, 7, 9)] == ["run", "walk", "walk", "walk", "run"]
    timeline.note(answer(0.0, "run"), None)
    words = "Where segments overlap"
    assert words in timeline.render(title="t", facts=[])
    timeline.segments = segments[:1]
    assert words not in timeline.render(title="t", facts=[])


@pytest.fixture
def case() -> Timeline:
    """Run 0-3 s, walk 3-5 s, dance (no class) 5-6 s; an answer per second from 0 to 7."""
    segments = [Segment(0, 3, "run", "run"), Segment(3, 5, "going", "walk"), Segment(5, 6, "dance", None)]
    timeline = Timeline(CLASSES, segments)
    for second, name in enumerate(["run", "run", "walk", "walk", "run", "run", "sit", "sit"]):
        timeline.note(answer(float(second), name), 100_000_000 + second)
    return timeline


def test_metrics_by_hand(case):
    """Labelled are seconds 0 to 4: run run run walk walk; said: run run walk walk run."""
    assert case.metrics() == {
        "frames": 8,
        "labelled_frames": 5,
        "frame_top1": 3 / 5,
        "frame_mean_class": pytest.approx((2 / 3 + 1 / 2) / 2),
        "majority_top1": 3 / 5,
    }
    assert case.of_classes() == [
        {"name": "run", "frames": 3, "hits": 2, "said": 3},
        {"name": "walk", "frames": 2, "hits": 1, "said": 2},
        {"name": "sit", "frames": 0, "hits": 0, "said": 0},
    ]


def test_without_a_labelled_answer_there_is_no_accuracy():
    timeline = Timeline(CLASSES, [Segment(50, 60, "run", "run")])
    timeline.note(answer(0.0, "run"), None)
    assert timeline.metrics() == {"frames": 1, "labelled_frames": 0}
    assert "None of the 1 answers lies in a segment" in timeline.render(title="t", facts=[])


def test_runs_are_stretches_of_one_answer_and_one_verdict(case):
    assert runs_of(case.seen) == [
        (0, 2, "run", "hit"),
        (2, 3, "walk", "miss"),
        (3, 4, "walk", "hit"),
        (4, 5, "run", "miss"),
        (5, 6, "run", "none"),
        (6, 7, "sit", "none"),
    ]
    assert runs_of([]) == []
    assert runs_of([Seen(2.0, "run", 1.0, None)]) == [(2.0, 2.0, "run", "none")]


def test_memory_is_thinned_and_keeps_its_peaks():
    timeline = Timeline(CLASSES, [Segment(0, 1, "run", "run")])
    count = 10 * MEMORY_POINTS
    for number in range(count):
        timeline.note(answer(number / 10, "run"), 900 if number == 777 else 100 + (number == count - 1))
    assert MEMORY_POINTS <= len(timeline.memory) < 2 * MEMORY_POINTS
    assert len(timeline.seen) == count
    assert max(size for _, size in timeline.memory) == 900
    assert timeline.memory[-1][1] == 101
    times = [time for time, _ in timeline.memory]
    assert times == sorted(set(times))


class Page(HTMLParser):
    """Collects the tags with their attributes, and fails at wrong nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, css: str) -> int:
        return sum(set(css.split()) <= set((attrs.get("class") or "").split()) for _, attrs in self.tags)


def test_page_has_chart_figures_tables_and_facts(case):
    text = case.render(title="Timeline of clip", facts=[("model", "m/1"), ("lost", "nothing")])
    page = Page(text)
    assert page.count("truth") == 2
    assert [page.count(f"said {kind}") for kind in ("hit", "miss", "none")] == [2, 2, 2]
    assert page.count("memory") == 1
    for words in ("60.0 %", "58.3 %", "of 5 labelled frames right", "m/1", "nothing", "going: 3.0 to 5.0 s"):
        assert words in page.text
    assert "Labels that are no class of the model, not counted: dance." in page.text
    assert "by fovea stream" in page.text
    assert "MLflow" not in page.text
    assert "<script" not in text
    assert "http" not in text


def test_names_are_escaped_everywhere():
    evil = '<b id="x">&"bold"</b>'
    timeline = Timeline((evil, "run"), [Segment(0, 2, evil, evil), Segment(2, 3, evil * 2, None)])
    for second in range(3):
        timeline.note(answer(second, evil), None)
    page = Page(timeline.render(title=evil, facts=[(evil, evil)]))
    assert not [tag for tag, attrs in page.tags if tag == "b" and attrs.get("id")]
    assert page.text.count(evil) >= 7
    assert page.count("memory") == 0  # a system that does not tell


def test_long_names_are_shortened_in_the_chart_only():
    name = "a very long name of an action that would push the chart out of the page"
    timeline = Timeline((name,), [Segment(0, 2, name, name)])
    timeline.note(answer(0, name), None)
    page = Page(timeline.render(title="t", facts=[]))
    assert f"{name[:35]}…" in page.text
    assert page.text.count(name) == 4  # hints of row, segment and bar; the table


def test_page_and_json_are_written_side_by_side(case, tmp_path):
    page = page_path(tmp_path / "new" / "p.html", "clip.mp4", [])
    case.write(page, title="t", facts=[("model", "m")])
    assert sorted(path.name for path in page.parent.iterdir()) == ["p.html", "p.json"]
    content = json.loads((tmp_path / "new" / "p.json").read_text())
    assert content["metrics"] == case.metrics()
    assert content["answers"][2] == {"time_s": 2.0, "name": "walk", "score": 0.5, "truth": "run"}
    assert content["segments"][1] == {"start_s": 3, "end_s": 5, "label": "going", "name": "walk"}
    assert (content["run"], content["classes"][0]["hits"], len(content["answers"])) == ({"model": "m"}, 2, 8)
    Page(page.read_text())


def test_page_is_named_after_the_source_and_replaces_no_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.b.mp4").touch()
    assert page_path(None, str(tmp_path / "a.b.mp4"), []) == Path("a.b.timeline.html")
    assert page_path(None, "udp://127.0.0.1:5000?x=1", []) == Path("udp-127.0.0.1-5000-x-1.timeline.html")
    (tmp_path / "d.html").mkdir()
    for wrong in ("p.htm", "d.html"):
        with pytest.raises(ConfigError, match=f"{wrong}: the page must be a file whose name ends in"):
            page_path(Path(wrong), "s", [])
    with pytest.raises(ConfigError, match=r"labels\.html: its JSON would replace labels\.json"):
        page_path(Path("labels.html"), "s", [tmp_path / "labels.json"])
    with pytest.raises(ConfigError, match="its folder cannot be made"):
        page_path(tmp_path / "a.b.mp4" / "p.html", "s", [])


@pytest.mark.skipif(not REAL.exists(), reason="the untrimmed videos are not here")
def test_the_labels_of_a_real_recording():
    table = {"walk": "walking", "sitdown": "sitting_down", "falled": "lying_on_floor"}
    classes = ("falling", "lying_on_floor", "sitting_down", "walking")
    found = read_segments(REAL, None, classes, table)
    assert {s.name for s in found} == {*classes, None}
    assert {s.label for s in found if s.name is None} == {"lying", "standup"}
    assert found[0] == Segment(4.375, 7.5, "walk", "walking")
    assert Timeline(classes, found).truth_at(7.5) == "sitting_down"
