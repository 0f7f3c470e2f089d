"""Texts of `fovea data init`: the specification as commented YAML, tables and next steps."""

import os
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from data_specs.box_sources import BoxSource
from data_specs.schema import ClipPolicy, ListedVideo, Source
from tasks.ops.survey import SizeEstimate

LABELS_INLINE = 20
"""Up to this many classes stand in the specification; more go to a label file."""


def samples_per_shard(total: int) -> int:
    """Return a shard size: enough shards to share out among workers, none of them tiny or huge."""
    return max(16, min(1000, 1 << max(4, (total // 24).bit_length() - 1)))


def _scalar(value: object) -> str:
    """Return a value as one line of YAML."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("...\n").strip()
    )


def spec_text(
    name: str,
    source: Source,
    labels: Sequence[str],
    split: str | dict[str, object],
    seed: int,
    clip: ClipPolicy,
    total: int,
    reasons: Sequence[str],
    sizes: SizeEstimate | None,
) -> str:
    """Return the specification as commented YAML."""
    lines = [f"# Data set {name}, proposed by `fovea data init`. What was seen:"]
    lines += [f"#   {line}" for reason in reasons for line in _wrapped(reason)]
    lines += [
        f"name: {name}",
        'version: "1"  # raise it when you change what the data set means',
        'description: ""',
        "licence: unknown  # say under which terms the videos may be used",
    ]
    if len(labels) <= LABELS_INLINE:
        lines += ["labels:  # in index order; append only", *(f"  - {_scalar(label)}" for label in labels)]
    else:
        lines.append(f"labels: {name}.txt  # data_specs/labels/{name}.txt, one per line, in index order; append only")
    lines += [
        "parts:  # append only: a new part makes new shards and leaves the old ones",
        "  - name: main",
        "    source:",
    ]
    fields = {"kind": source.kind, **source.model_dump(mode="json", exclude_defaults=True)}
    lines += [f"      {key}: {_scalar(value)}" for key, value in fields.items()]
    if isinstance(split, str):
        lines.append(f"    split: {split}  # as the source itself says")
    else:
        lines.append("    split:  # whole groups, stratified by class, decided by the seed")
        lines += [f"      {key}: {_scalar(value)}" for key, value in split.items()]
    mp4, jpgs = ("", "")
    if sizes is not None:
        mp4 = f"about {human_bytes(sizes.mp4)} in all"
        jpgs = f"jpgs with {sizes.jpgs_frames} frames: about {human_bytes(sizes.jpgs)}"
    note = f"{mp4}; {jpgs}, faster to read" if sizes else "or jpgs: faster to read"
    if isinstance(source, BoxSource):
        note = f"{mp4 + '; ' if mp4 else ''}with boxes nothing else, since it keeps all frames"
    lines += [
        "clip:",
        f"  representation: mp4  # {note}",
        f"  short_side: {clip.short_side}  # px; smaller sources are not enlarged",
        f"  fps: {_scalar(clip.fps)}" + ("  # as in the source" if clip.fps is None else ""),
        f"  audio: {clip.audio}  # keep, drop, or separate (a wav member)",
        "  # flow: dis  # optical flow as a member of each sample: only for mp4, costs bytes and time",
        "shards:",
        f"  samples_per_shard: {samples_per_shard(total)}",
        f"  seed: {seed}",
        "max_reject_share: 0.05  # the ingest stops when more of the listed videos than this cannot be used",
    ]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int = 108) -> list[str]:
    """Break a comment into lines."""
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) or [""]


def human_bytes(count: float) -> str:
    """Return a number of bytes for reading."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def with_inline_labels(text: str, labels: Sequence[str]) -> str:
    """Return the specification with its class names inline: their file is not written yet when it is checked."""
    if len(labels) <= LABELS_INLINE:
        return text
    return re.sub(r"(?m)^labels: .*$", lambda _: f"labels: {_scalar(list(labels))}", text, count=1)


def table_of_splits(rows: Sequence[ListedVideo], limit: int = 25) -> list[tuple[str, int, int, int, int]]:
    """Return (class, train, val, test, groups) for printing, and a line with the sums."""
    counts: dict[str, Counter[str]] = {}
    groups: dict[str, set[str]] = {}
    for row in rows:
        for label in row.label.split("|") if row.label else ["(none)"]:
            counts.setdefault(label, Counter())[row.split] += 1
            groups.setdefault(label, set()).add(row.group)
    lines = [(name, c["train"], c["val"], c["test"], len(groups[name])) for name, c in sorted(counts.items())]
    if len(lines) > limit:
        more = lines[limit:]
        lines = [
            *lines[:limit],
            (f"… {len(more)} more", sum(m[1] for m in more), sum(m[2] for m in more), sum(m[3] for m in more), 0),
        ]
    total = Counter(row.split for row in rows)
    return [*lines, ("all", total["train"], total["val"], total["test"], len({row.group for row in rows}))]


def next_commands(name: str) -> list[str]:
    """Return what to do after init."""
    return [
        f"fovea data check {name}            # validate the listing and a sample of the videos",
        f"dvc repro shards@{name}            # ingest: videos to shards",
        f"fovea reproduce {name}             # ingest, all training stages, evaluation",
        f"fovea data page {name}             # this page again, with the shards",
    ]


def relative(path: Path) -> str:
    """Return a path for reading: relative to the current folder where it is below it."""
    text = os.path.relpath(path)
    return str(path) if text.startswith("..") else text
