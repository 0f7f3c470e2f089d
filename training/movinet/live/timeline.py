"""A stream's answers against labelled segments of an untrimmed video: per-frame accuracy and a picture over time.

Segments are in ActivityNet's layout: `{"database": {"<video>": {"annotations": [{"segment": [start_s, end_s], "label":
"…"}]}}}`. Where its labels have other names than the model's classes, a table says which mean the same.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import yaml

from training.core.charts import Frame, number, svg, ticks
from training.core.config import ConfigError
from training.core.pages import markup, render_page, write_text
from training.movinet.live.session import Answer, Summary
from training.movinet.live.timing import EXACT_S

MEMORY_POINTS = 2000
"""Measurements of memory that are kept at most; beyond, two neighbours become their maximum."""


@dataclass(frozen=True)
class Segment:
    """A labelled part of a video: from its start, up to but not including its end."""

    start_s: float
    end_s: float
    label: str
    """As the annotation has it."""
    name: str | None
    """The model's class; None where it has none for this label."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The answer after one frame."""

    time_s: float
    name: str
    score: float
    truth: str | None
    """Class of the segment in which the frame lies; None: no segment, or one whose label is no class."""


def read_segments(path: Path, video: str | None, classes: Sequence[str], names: Mapping[str, str]) -> list[Segment]:
    """Read the segments of one video.

    Args:
        path: JSON in ActivityNet's layout.
        video: its key in `database`; None: the only one.
        classes: of the model.
        names: label → class, for labels that are named otherwise.

    Returns:
        Segments in order of their starts.

    Raises:
        ConfigError: another layout, no such video, a segment that ends before it starts, or no label that means a
            class of the model. The message names file and field.
    """
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict) or not database:
        raise ConfigError(f"{path}: `database` must be a table of videos, as in ActivityNet's layout")
    if video is None and len(database) > 1:
        raise ConfigError(f"{path}: `database` has {len(database)} videos ({_few(database)}); choose one with --video")
    video = next(iter(database)) if video is None else video
    if video not in database:
        raise ConfigError(f"{path}: `database` has no video {video!r}, but {_few(database)}")
    entry = database[video]
    rows = entry.get("annotations") if isinstance(entry, dict) else None
    place = f"{path}: database.{video}.annotations"
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{place} must be a list of segments")
    found = [_segment(row, f"{place}[{index}]", classes, names) for index, row in enumerate(rows)]
    if not any(segment.name for segment in found):
        raise ConfigError(
            f"{place}: none of the labels ({_few({segment.label for segment in found})}) is a class of the model "
            f"({_few(classes)}); say which mean the same with --names"
        )
    return sorted(found, key=lambda segment: segment.start_s)


def _segment(row: Any, place: str, classes: Sequence[str], names: Mapping[str, str]) -> Segment:
    match row:
        case {"segment": [int() | float() as start, int() | float() as end], "label": str() as label}:
            pass
        case _:
            raise ConfigError(f"{place} must have a `segment` [start, end] in seconds and a `label`, got {row!r:.100}")
    if not (0 <= start < end and math.isfinite(end)):
        raise ConfigError(f"{place}.segment ({label}) must end after it starts, at 0 s or later; got [{start}, {end}]")
    name = names.get(label, label)
    return Segment(float(start), float(end), label, name if name in classes else None)


def read_names(path: Path, classes: Sequence[str]) -> dict[str, str]:
    """Read a YAML table label: class.

    Raises:
        ConfigError: something else than a table of texts, or a class that the model does not have.
    """
    try:
        content = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a table `label: class`")
    for label, name in content.items():
        if not isinstance(label, str) or not isinstance(name, str):
            raise ConfigError(
                f"{path}: {label!r}: {name!r} must be two texts; put quotes around what YAML reads otherwise"
            )
        if name not in classes:
            raise ConfigError(f"{path}: {label}: {name} is no class of the model; it knows {_few(classes)}")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8") from None


def _few(names: Iterable[str], most: int = 12) -> str:
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def page_path(page: Path | None, source: str, inputs: Iterable[Path]) -> Path:
    """Return where the page goes; its JSON has the same name and ends in `.json`.

    Args:
        page: as the user says; None: named after the source, in the working directory.
        source: video, URL or device.
        inputs: files that must not be written over.

    Raises:
        ConfigError: another ending than `.html`, a folder, or a JSON that is one of the inputs.
    """
    if page is None:
        stem = Path(source).stem if Path(source).exists() else re.sub(r"[^\w.-]+", "-", source).strip("-.")
        page = Path(f"{stem}.timeline.html")
    if page.suffix != ".html" or page.is_dir():
        raise ConfigError(f"{page}: the page must be a file whose name ends in .html")
    if any(page.with_suffix(".json").resolve() == path.resolve() for path in inputs):
        raise ConfigError(f"{page}: its JSON would replace {page.with_suffix('.json')}; name the page otherwise")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{page}: its folder cannot be made: {error.strerror}") from None
    return page


@dataclass
class Timeline:
    """What a stream said over a video, beside what the segments say.

    Where segments overlap, the one that began last counts, of those whose label is a class.
    """

    classes: tuple[str, ...]
    segments: Sequence[Segment]
    """In order of their starts."""
    seen: list[Seen] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Time in seconds, resident memory of the process in bytes."""

    def note(self, answer: Answer, resident_bytes: int | None) -> None:
        """Add an answer."""
        truth = self.truth_at(answer.time_s)
        self.seen.append(Seen(answer.time_s, answer.classes[0], answer.scores[0], truth))
        if resident_bytes is not None:
            self.memory.append((answer.time_s, float(resident_bytes)))
        if len(self.memory) >= 2 * MEMORY_POINTS:
            pairs = zip(self.memory[::2], self.memory[1::2], strict=True)
            self.memory = [(time, max(size, other)) for (time, size), (_, other) in pairs]

    def truth_at(self, time_s: float) -> str | None:
        """Return the class of the segment at a time; None: nothing is labelled there, or with no class."""
        # Timestamps may be rounded to milliseconds: a frame on a border belongs to what starts there.
        at = time_s + EXACT_S
        return next((s.name for s in reversed(self.segments) if s.name is not None and s.start_s <= at < s.end_s), None)

    def metrics(self) -> dict[str, float]:
        """Return counts of answers and, if any is labelled, accuracy over these.

        `frame_top1`; its mean over the classes of the segments (`frame_mean_class`); and what the commonest of them
        alone would get (`majority_top1`).
        """
        rows = [row for row in self.of_classes() if row["frames"]]
        labelled = sum(row["frames"] for row in rows)
        metrics = {"frames": float(len(self.seen)), "labelled_frames": float(labelled)}
        if rows:
            metrics |= {
                "frame_top1": sum(row["hits"] for row in rows) / labelled,
                "frame_mean_class": sum(row["hits"] / row["frames"] for row in rows) / len(rows),
                "majority_top1": max(row["frames"] for row in rows) / labelled,
            }
        return metrics

    def of_classes(self) -> list[dict[str, Any]]:
        """Return, for each class, its labelled frames, how many were recognised, and how many were called so."""
        labelled = [seen for seen in self.seen if seen.truth is not None]
        frames, said = Counter(seen.truth for seen in labelled), Counter(seen.name for seen in labelled)
        hits = Counter(seen.name for seen in labelled if seen.name == seen.truth)
        return [{"name": n, "frames": frames[n], "hits": hits[n], "said": said[n]} for n in self.classes]

    def render(self, *, title: str, facts: Sequence[tuple[str, str]]) -> str:
        """Return the page; `facts` are lines (name, value) about the run."""
        return render_page(
            "training.movinet",
            "timeline.html.j2",
            title=title,
            metrics=self.metrics(),
            facts=facts,
            classes=[row for row in self.of_classes() if row["frames"] or row["said"]],
            timeline=markup(timeline_chart(self)),
            memory=markup(memory_chart(self.memory)) if len(self.memory) > 1 else "",
            unknown=sorted({segment.label for segment in self.segments if segment.name is None}),
            overlap=any(self.segments[i].end_s > s.start_s for i, s in enumerate(self.segments[1:])),
        )

    def as_json(self, facts: Sequence[tuple[str, str]] = ()) -> str:
        """Return metrics, segments, answers and facts, an answer per line."""
        content = {
            "metrics": self.metrics(),
            "run": dict(facts),
            "classes": self.of_classes(),
            "segments": [asdict(segment) for segment in self.segments],
        }
        answers = ",\n".join(f"  {json.dumps(asdict(seen))}" for seen in self.seen)
        return f'{json.dumps(content, indent=1)[:-2]},\n "answers": [\n{answers}\n ]\n}}\n'

    def write(self, page: Path, *, title: str, facts: Sequence[tuple[str, str]]) -> None:
        """Write the page, and its JSON next to it; each appears when it is complete."""
        write_text(page.with_suffix(".json"), self.as_json(facts))
        write_text(page, self.render(title=title, facts=facts))


def run_facts(model: str, source: str, window: int | None, summary: Summary) -> list[tuple[str, str]]:
    """Return what the page says about a run."""
    every = "every frame" if summary.model_rate is None else f"{summary.model_rate:.4g} frames per second"
    facts = [
        ("model", model),
        ("source", f"{source}, {summary.source_rate:.4g} frames per second"),
        ("seen by the network", f"{summary.selected} frames ({every})"),
        ("means over", "all frames since the last reset" if window is None else f"{window} frames at most"),
        ("ended", f"{summary.ended}, after {summary.seconds:.1f} s"),
        ("lost", f"{summary.dropped} frames dropped, {summary.corrupt} corrupt, {summary.gaps} gaps"),
        ("resets", str(summary.resets)),
        ("state", f"{summary.state_bytes / 1e6:.3g} MB"),
    ]
    if summary.latency_ms_p50 is not None and summary.latency_ms_p95 is not None:
        facts.append(("latency", f"p50 {summary.latency_ms_p50:.1f} ms, p95 {summary.latency_ms_p95:.1f} ms"))
    if summary.rss_growth_bytes is not None and summary.rss_peak_growth_bytes is not None:
        growth, peak = summary.rss_growth_bytes / 1e6, summary.rss_peak_growth_bytes / 1e6
        facts.append(("memory since the first answer", f"{growth:+.1f} MB, at most {peak:+.1f} MB"))
    return facts


ROW = 26
"""Height of a class in the chart, pixels."""
LONGEST = 36
"""Letters of a class name in the chart; the rest is in its hint."""


def runs_of(seen: Sequence[Seen]) -> list[tuple[float, float, str, str]]:
    """Return stretches of equal answer and equal verdict: start, end, class, verdict (hit, miss, none)."""
    found: list[tuple[float, float, str, str]] = []
    for index, item in enumerate(seen):
        verdict = "none" if item.truth is None else "hit" if item.name == item.truth else "miss"
        end = seen[index + 1].time_s if index + 1 < len(seen) else item.time_s
        if found and found[-1][2:] == (item.name, verdict):
            found[-1] = (found[-1][0], end, item.name, verdict)
        else:
            found.append((item.time_s, end, item.name, verdict))
    return found


def timeline_chart(timeline: Timeline, width: int = 1080) -> str:
    """Draw a row per class: pale bands are labelled segments, dark bars what the stream said."""
    used = {segment.name for segment in timeline.segments} | {seen.name for seen in timeline.seen}
    rows = [name for name in timeline.classes if name in used]
    end = max([seen.time_s for seen in timeline.seen] + [segment.end_s for segment in timeline.segments])
    left = 20 + round(6.6 * min(LONGEST, max(len(name) for name in rows)))
    height = 40 + ROW * len(rows)
    frame = Frame(width, height, 0.0, end, 0.0, float(len(rows)), left=left, top=6, bottom=34)
    parts = [f'<text class="axis" x="{(left + width) // 2}" y="{height - 4}" text-anchor="middle">seconds</text>']
    for tick in ticks(0.0, end, 10):
        x, base = frame.px(tick), height - 34
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 15}" text-anchor="middle">{number(tick)}</text>')
    top = {name: 6 + ROW * place for place, name in enumerate(rows)}
    for name in rows:
        short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{top[name] + 17}" text-anchor="end">{escape(short)}'
            f"<title>{escape(name)}</title></text>"
        )
        line = top[name] + ROW
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 12}" y1="{line}" y2="{line}"/>')
    for segment in timeline.segments:
        if segment.name is not None:
            x, wide = frame.px(segment.start_s), frame.px(segment.end_s) - frame.px(segment.start_s)
            hint = escape(f"{segment.label}: {segment.start_s:.1f} to {segment.end_s:.1f} s")
            parts.append(
                f'<rect class="truth" x="{x:.1f}" y="{top[segment.name] + 2}" width="{wide:.1f}" height="{ROW - 4}">'
                f"<title>{hint}</title></rect>"
            )
    for start, stop, name, verdict in runs_of(timeline.seen):
        x, wide = frame.px(start), max(frame.px(stop) - frame.px(start), 1.0)
        hint = escape(f"{name}: {start:.1f} to {stop:.1f} s")
        parts.append(
            f'<rect class="said {verdict}" x="{x:.1f}" y="{top[name] + 8}" width="{wide:.1f}" height="{ROW - 16}">'
            f"<title>{hint}</title></rect>"
        )
    return svg(width, height, parts, "Answers of the stream and labelled segments over time")


def memory_chart(memory: Sequence[tuple[float, float]], width: int = 1080) -> str:
    """Draw the resident memory of the process over the video, MB."""
    values = [size / 1e6 for _, size in memory]
    frame = Frame(width, 180, 0.0, memory[-1][0] or 1.0, 0.0, max(values) * 1.15, left=56, top=22, bottom=34, y_ticks=4)
    parts = frame.axes("seconds", "MB", percent=False)
    points = " ".join(f"{frame.px(time):.1f},{frame.py(size / 1e6):.1f}" for time, size in memory)
    parts.append(f'<polyline class="memory" points="{points}"/>')
    return svg(width, 180, parts, "Resident memory over the video")
