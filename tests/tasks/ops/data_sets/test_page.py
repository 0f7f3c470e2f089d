"""The data page: complete, self-contained, true to what is stored."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_specs.load import load_spec
from data_specs.schema import ListedVideo
from infra.settings import Settings
from tasks.ops.page import duration, write_page
from tasks.ops.page_charts import bins, histogram, scatter
from tasks.ops.page_previews import choose, preview


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "source", "br", "line", "rect", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect", "circle"):
            assert self.open.pop() == tag


def test_page_with_shards(project: Settings) -> None:
    path = write_page(load_spec("toys"), project)
    assert path == project.reports / "data" / "toys" / "index.html"
    text = path.read_text(encoding="utf-8")
    parser = Links()
    parser.feed(text)
    assert parser.open == []
    # Self-contained: every link is a file of this folder, every file of the folder is linked.
    assert {path.parent / link for link in parser.found} == {p for p in path.parent.rglob("*") if p.is_file()} - {path}
    assert "stored samples" in text
    assert "truncated" in text
    assert "python -m tasks.ops.sample toys" in text
    assert re.search(r'<td class="n">10</td><td class="n">\d\d\.\d%</td>', text)  # coverage of `expected`
    animated = [p for p in path.parent.rglob("*.webp")]
    assert len(animated) == 12  # six of each class
    with Image.open(animated[0]) as image:
        assert image.is_animated
        assert image.n_frames > 3


def test_page_before_ingest_and_again(project: Settings) -> None:
    (project.shards / "toys" / "index.json").unlink()
    path = write_page(load_spec("toys"), project)
    text = path.read_text(encoding="utf-8")
    assert "No shards are on this machine yet" in text
    assert "cannot be decoded" in text or "1 cannot be used" in text
    (path.parent / "old.txt").write_text("left over")
    calls: list[tuple[int, int]] = []
    write_page(load_spec("toys"), project, lambda done, total: calls.append((done, total)))
    assert not (path.parent / "old.txt").exists()
    assert calls[-1][0] == calls[-1][1]
    assert [p.name for p in path.parent.parent.iterdir()] == ["toys"]


def test_names_are_escaped(project: Settings, video_maker: Callable[..., None]) -> None:
    video_maker(project.root / "raw" / "left" / "<b>x&_1.mp4")
    (project.manifests / "toys.csv").unlink()
    text = write_page(load_spec("toys"), project).read_text(encoding="utf-8")
    assert "<b>x" not in text


@given(values=st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=50))
def test_bins_hold_every_value(values: list[float]) -> None:
    edges, counts = bins(values)
    assert sum(counts) == len(values)
    assert len(edges) == len(counts) + 1
    assert len(counts) <= 62
    slack = 1e-6 * max(1.0, max(values))
    assert edges[0] <= min(values) + slack
    assert edges[-1] >= max(values) - slack


def test_charts() -> None:
    assert histogram([], "x", "s") == ""
    assert "<b>25</b> fps, all of them" in histogram([25.0] * 3, "x", "fps")
    svg = histogram([1.0, 1.1, 7.0], 'a "title"', "s")
    assert svg.count("<rect") == 2 or svg.count("<rect") == 3
    assert "&quot;title&quot;" in svg
    assert scatter([], "x", ("a", "b")) == ""
    assert scatter([(1, 2), (1, 2), (3, 4)], "x", ("a", "b")).count("<circle") == 2
    assert [duration(s) for s in (5, 600, 36000)] == ["5 s", "10 min", "10.0 h"]


def row(number: int, label: str, group: str) -> ListedVideo:
    return ListedVideo("main", f"k-{number}", f"{label}/{number}.mp4", label, "train", group, None, None, 1, "")


def test_choose_takes_every_class_and_different_groups() -> None:
    rows = [row(n, f"c{n % 4}", f"g{n % 8}") for n in range(400)]
    chosen = choose(rows)
    assert chosen == choose(list(rows))
    assert {r.label for r in chosen} == {"c0", "c1", "c2", "c3"}
    assert {r.group for r in chosen} == {f"g{n}" for n in range(8)}
    many = choose([row(n, f"c{n}", "g") for n in range(500)], most=60)
    assert len(many) == 60


@pytest.mark.parametrize("data", [b"", b"not a video"])
def test_undecodable_preview_has_no_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    assert preview(row(0, "a", "g"), str(path), tmp_path).file == ""
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
