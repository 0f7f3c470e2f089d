"""A stream's answers against labelled segments of an untrimmed video: per-frame accuracy and a picture over time.

Segments are in ActivityNet's layout: `{"database": {"<video>": {"annotations": [{"segment": [start_s, end_s], "label":
"…"}]}}}`. Where its labels have other names than the model's classes, a table says which mean the same.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import yaml

from training.core.charts import Frame, number, svg, ticks
from training.core.config import ConfigError
from training.core.pages import markup, render_page
from training.movinet.live import Answer


@dataclass(frozen=True)
class Segment:
    """A labelled part of a video."""

    start_s: float
    end_s: float
    label: str
    """As the annotation has it."""
    name: str | None
    """The model's class; None where it has none for this label."""


@dataclass(frozen=True)
class Seen:
    """The answer after one frame."""

    time_s: float
    name: str
    score: float
    truth: str | None
    """Class of the segment in which the frame lies; None: no segment, or one whose label is no class."""


def read_segments(path: Path, video: str, classes: Sequence[str], names: Mapping[str, str]) -> list[Segment]:
    """Read the segments of one video.

    Args:
        path: JSON in ActivityNet's layout.
        video: its key in `database`; a file of one video needs none ("").
        classes: of the model.
        names: label → class, for labels that are named otherwise.

    Raises:
        ConfigError: another layout, no such video, a segment that ends before it starts, a class in `names` that the
            model does not have, or no label that means one of its classes.
    """
    try:
        database = json.loads(path.read_text())["database"]
        if not video and len(database) == 1:
            (video,) = database
        annotations = database[video]["annotations"]
        rows = [(float(row["segment"][0]), float(row["segment"][1]), str(row["label"])) for row in annotations]
    except KeyError as error:
        raise ConfigError(
            f"{path}: no {error.args[0]!r}; ActivityNet's layout is database → video → annotations"
        ) from None
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(f"{path} is not in ActivityNet's layout: {error}") from None
    if strange := sorted(set(names.values()) - set(classes)):
        raise ConfigError(f"the table of names has {', '.join(strange)}; the model knows {', '.join(classes)}")
    for start, end, label in rows:
        if end <= start:
            raise ConfigError(f"{path}: segment {label!r} of {video} ends at {end} s, before it starts at {start} s")
    found = [
        Segment(start, end, label, name if (name := names.get(label, label)) in classes else None)
        for start, end, label in rows
    ]
    if not any(segment.name for segment in found):
        labels = ", ".join(sorted({segment.label for segment in found}))
        raise ConfigError(
            f"{path}: none of the labels ({labels}) is a class of the model ({', '.join(classes)}); "
            "say which mean the same with --names"
        )
    return sorted(found, key=lambda segment: segment.start_s)


def read_names(path: Path) -> dict[str, str]:
    """Read a YAML table label: class.

    Raises:
        ConfigError: something else than a table of texts.
    """
    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict) or not all(isinstance(v, str) for pair in content.items() for v in pair):
        raise ConfigError(f"{path} must be a table `label: class`")
    return content


@dataclass
class Timeline:
    """What a stream said over a video, beside what the segments say."""

    classes: tuple[str, ...]
    segments: Sequence[Segment]
    seen: list[Seen] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Time in seconds, resident memory of the process in bytes."""

    def note(self, answer: Answer, resident_bytes: int | None) -> None:
        """Add an answer."""
        truth = next((s.name for s in self.segments if s.start_s <= answer.time_s < s.end_s), None)
        self.seen.append(Seen(answer.time_s, answer.classes[0], answer.scores[0], truth))
        if resident_bytes is not None:
            self.memory.append((answer.time_s, float(resident_bytes)))

    def metrics(self) -> dict[str, float]:
        """Return accuracy over labelled frames (`frame_top1`), its mean over classes, and that of the commonest class.

        Raises:
            ConfigError: no answer lies in a labelled segment.
        """
        labelled = [seen for seen in self.seen if seen.truth is not None]
        if not labelled:
            raise ConfigError("no answer lies in a segment whose label is a class of the model")
        counts = Counter(seen.truth for seen in labelled)
        hits = Counter(seen.truth for seen in labelled if seen.name == seen.truth)
        return {
            "frames": float(len(self.seen)),
            "labelled_frames": float(len(labelled)),
            "frame_top1": sum(hits.values()) / len(labelled),
            "frame_mean_class": sum(hits[name] / counts[name] for name in counts) / len(counts),
            "majority_top1": max(counts.values()) / len(labelled),
        }

    def of_classes(self) -> list[dict[str, Any]]:
        """Return, for each class of the segments, its labelled frames and how many were recognised."""
        rows = []
        for name in self.classes:
            truth = [seen for seen in self.seen if seen.truth == name]
            said = sum(seen.name == name for seen in self.seen if seen.truth is not None)
            rows.append({"name": name, "frames": len(truth), "hits": sum(s.name == name for s in truth), "said": said})
        return rows

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
        )

    def as_json(self) -> str:
        """Return answers, segments and metrics."""
        content = {
            "metrics": self.metrics(),
            "classes": self.of_classes(),
            "segments": [vars(segment) for segment in self.segments],
            "answers": [vars(seen) for seen in self.seen],
        }
        return json.dumps(content, indent=1) + "\n"


ROW = 26


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
    left = 20 + round(7 * max(len(name) for name in rows))
    height = 40 + ROW * len(rows)
    frame = Frame(width, height, 0.0, end, 0.0, float(len(rows)), left=left, top=6, bottom=34)
    parts = [f'<text class="axis" x="{width // 2}" y="{height - 4}" text-anchor="middle">seconds</text>']
    for tick in ticks(0.0, end, 10):
        x, base = frame.px(tick), height - 34
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 15}" text-anchor="middle">{number(tick)}</text>')
    top = {name: 6 + ROW * number for number, name in enumerate(rows)}
    for name in rows:
        parts.append(f'<text class="tick" x="{left - 8}" y="{top[name] + 17}" text-anchor="end">{escape(name)}</text>')
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
    frame = Frame(width, 180, 0.0, memory[-1][0], 0.0, max(values) * 1.15, left=56, top=22, bottom=34, y_ticks=4)
    parts = frame.axes("seconds", "MB", percent=False)
    points = " ".join(f"{frame.px(time):.1f},{frame.py(size / 1e6):.1f}" for time, size in memory)
    parts.append(f'<polyline class="memory" points="{points}"/>')
    return svg(width, 180, parts, "Resident memory over the video")
