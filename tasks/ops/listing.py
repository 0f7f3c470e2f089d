"""Lists what the sources of a data set hold: `data/manifests/<dataset>.csv` (one `ListedVideo` per row).

The listing is cheap when nothing changed: checksums of local files are kept in `.work/checksums-<dataset>.jsonl`
by path, size and time of change. Its bytes depend on the sources alone, so DVC sees a change only when there
is one. This module starts fast on purpose: no media library, no orchestrator.
"""

import csv
import hashlib
import io
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_specs.box_sources import BoxSource, nominal_rate
from data_specs.load import class_names
from data_specs.schema import KEY_PATTERN, SPLITS, DatasetSpec, ListedVideo, Part, SplitPolicy
from infra.settings import Settings
from tasks.ops import acquire
from tasks.ops.atomic import write_atomically as write_atomically
from tasks.ops.boxes import Annotation
from tasks.ops.checksums import Checksums
from tasks.ops.readers import group_by_rule, read_items
from tasks.ops.readers_base import RawItem, ReadContext, ReaderError, walk_files
from tasks.ops.readers_boxes import open_boxes
from tasks.ops.splits import SplitReport, assign_splits, report_splits

log = logging.getLogger(__name__)

_SLUG_LENGTH = 40
_HASH_LENGTH = 12
_NOT_IN_KEY = re.compile(r"[^a-z0-9]+")

_COLUMNS = ListedVideo._fields
assert _COLUMNS[-1] == "boxes"


@dataclass(frozen=True)
class Listing:
    """All rows of a data set, and what there is to say about them."""

    rows: list[ListedVideo]
    report: SplitReport
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """What was left out on purpose."""


def part_root(part: Part, settings: Settings) -> str:
    """Return where a part's videos lie: an absolute folder, or a URL without trailing slash."""
    root = part.source.root
    if acquire.is_remote(root):
        return root.rstrip("/")
    root = str(acquire.local_path(root))
    return str((settings.root / root).resolve()) if not os.path.isabs(root) else os.path.normpath(root)


def make_key(part: str, path: str, start_s: float | None, end_s: float | None) -> str:
    """Return the key of a sample: a readable slug of the file name and a hash of part, path and span.

    File names are no keys: webdataset cuts them at the first dot, and they may hold anything.
    """
    stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    slug = _NOT_IN_KEY.sub("_", plain).strip("_")[:_SLUG_LENGTH].strip("_") or "video"
    identity = f"{part}\0{path}" if start_s is None and end_s is None else f"{part}\0{path}\0{start_s}\0{end_s}"
    return f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:_HASH_LENGTH]}"


def build_listing(spec: DatasetSpec, settings: Settings) -> Listing:
    """List all parts of a data set, with splits, sizes and checksums.

    Raises:
        ReaderError: a source is not as the specification says, or lists a sample twice.
        FileNotFoundError: a local root does not exist.
    """
    rows: list[ListedVideo] = []
    warnings: list[str] = []
    notes: list[str] = []
    decided: dict[str, str] = {}
    first_of_root: dict[str, str] = {}
    with Checksums(spec.name, settings) as checksums:
        for part in spec.parts:
            root = part_root(part, settings)
            # Groups named by file belong to their folder: the same name under another root is another video.
            owner = first_of_root.setdefault(part.source.root, part.name)
            prefix = "" if owner == spec.parts[0].name else f"{owner}:"
            remote = _list_remote(root, settings) if acquire.is_remote(root) else None
            if remote is None and not os.path.isdir(root):
                raise FileNotFoundError(
                    f"{root} does not exist (source.root of part {part.name!r} of data set {spec.name!r})"
                )
            items, groups, left_out = _read_part(spec, part, root, remote, settings, prefix)
            notes += left_out
            splits = _split_part(part, items, groups, decided)
            decided.update((g, s) for g, s in zip(groups, splits, strict=True) if g not in decided)
            sizes = checksums.of_items(items, root, remote, nominal_rate(part.source) is not None)
            found = [
                ListedVideo(
                    part.name,
                    make_key(part.name, item.path, item.start_s, item.end_s),
                    item.path,
                    item.label,
                    split,
                    group,
                    item.start_s,
                    item.end_s,
                    size,
                    checksum,
                    item.boxes,
                )
                for item, group, split, (size, checksum) in zip(items, groups, splits, sizes, strict=True)
            ]
            missing = sum(row.size is None for row in found)
            if missing:
                warnings.append(f"part {part.name}: {missing} of {len(found)} listed videos are not in {root}")
            found.sort(key=lambda row: row.key)
            rows += found
        if checksums.ignored:
            left = ", ".join(f"{count} × {name}" for name, count in sorted(checksums.ignored.items()))
            notes.append(f"{checksums.ignored.total()} files beside pictures of frame folders left out ({left})")
    _check_unique(rows)
    report = report_splits(
        [r.group for r in rows], [r.label for r in rows], [r.split for r in rows], sorted(_wanted_splits(spec, rows))
    )
    return Listing(rows, report, (*warnings, *report.warnings), tuple(notes))


def _wanted_splits(spec: DatasetSpec, rows: Iterable[ListedVideo]) -> set[str]:
    """Return the splits in which classes are expected: those asked for by a policy, and those that occur."""
    asked = {s for part in spec.parts if isinstance(part.split, SplitPolicy) for s in SPLITS if getattr(part.split, s)}
    return asked | {row.split for row in rows if row.label}


def _read_part(
    spec: DatasetSpec,
    part: Part,
    root: str,
    remote: dict[str, tuple[int, str]] | None,
    settings: Settings,
    prefix: str,
) -> tuple[list[RawItem], list[str], list[str]]:
    """Read one part's source. Returns (items, group of each, notes)."""
    rule = part.split.group if isinstance(part.split, SplitPolicy) else "source"

    def list_folder() -> Iterable[str]:
        return sorted(remote) if remote is not None else walk_files(Path(root))

    context = ReadContext(
        settings.root,
        class_names(spec),
        list_folder,
        root=root,
        part=part.name,
        cache=settings.work / f"annotations-{spec.name}-{part.name}.jsonl",
        group_column=rule.removeprefix("column:") if rule.startswith("column:") else None,
    )
    items: list[RawItem] = []
    groups: list[str] = []
    seen: dict[tuple[str, float | None, float | None], str] = {}
    for item in read_items(part, context):
        where = f"{context.origin}:{item.line}" if item.line else f"{context.origin}/{item.path}"
        identity = (item.path, item.start_s, item.end_s)
        if identity in seen:
            raise ReaderError(
                f"{where}: {item.path!r} with the same start and end is already listed at {seen[identity]}; "
                "a video of several classes takes one row with the classes joined by `|`"
            )
        seen[identity] = where
        if not _is_text(item.path):
            raise ReaderError(f"{where}: the name {item.path!r} is not valid UTF-8; rename the file")
        if not item.label and not item.boxes and (item.split or part.split) != "test":
            raise ReaderError(f"{where}: {item.path!r} has no class; only videos of split test may have none")
        items.append(item)
        groups.append(group_by_rule(rule, item) or prefix + item.path)
    return items, groups, [f"part {part.name}: {note}" for note in context.notes]


def listed_annotation(
    source: BoxSource, root: str, project: Path, classes: tuple[str, ...], path: str
) -> Annotation | None:
    """Read the boxes of one video as the listing reads them.

    Args:
        source: Of the part.
        root: Root of the part.
        project: Project root.
        classes: Class names in index order.
        path: The video, as listed.

    Returns:
        The annotation, None when the video does not belong to the data set any more.

    Raises:
        ReaderError: it cannot be read.
    """
    annotation, _ = open_boxes(source, root, project.absolute(), classes).read(path)
    return annotation


def _is_text(name: str) -> bool:
    """Tell whether a file name can be written as UTF-8 (names on disk are bytes, not all of them text)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split_part(part: Part, items: list[RawItem], groups: list[str], decided: dict[str, str]) -> list[str]:
    """Return the split of each item of one part."""
    if part.split == "official":
        # The schema of each source makes sure that there is one; only ImageNet's folders may have another name.
        foreign = next((item.path for item in items if item.split is None), None)
        if foreign is not None:
            raise ReaderError(f"part {part.name}: {foreign!r} does not lie below train, val or test; say its split")
        return [item.split or "" for item in items]
    if isinstance(part.split, SplitPolicy):
        assigned = assign_splits(groups, [item.label for item in items], part.split, decided)
        return [assigned[group] for group in groups]
    return [part.split] * len(items)


def _check_unique(rows: list[ListedVideo]) -> None:
    """Check that no two samples share a key."""
    seen: dict[str, ListedVideo] = {}
    for row in rows:
        other = seen.setdefault(row.key, row)
        if other is not row:
            raise ReaderError(f"{row.path!r} and {other.path!r} get the same key {row.key!r}; rename one of the files")


def _list_remote(url: str, settings: Settings) -> dict[str, tuple[int, str]]:
    """Return path below a URL → (size, etag)."""
    return {f.path: (f.size, f.checksum) for f in acquire.list_files(url, endpoint_url=settings.s3_endpoint_url)}


def manifest_path(dataset: str, settings: Settings) -> Path:
    """Return where the manifest of a data set lies."""
    return settings.manifests / f"{dataset}.csv"


def write_manifest(spec: DatasetSpec, settings: Settings) -> Path:
    """List the sources of a data set, write its manifest, and its class names beside it. Returns the manifest.

    Raises:
        ReaderError: a source is not as the specification says.
    """
    listing = build_listing(spec, settings)
    for note in listing.notes:
        log.info("%s: %s", spec.name, note)
    for warning in listing.warnings:
        log.warning("%s: %s", spec.name, warning)
    path = manifest_path(spec.name, settings)
    write_atomically(path.with_suffix(".labels.txt"), "".join(f"{name}\n" for name in class_names(spec)).encode())
    write_atomically(path, manifest_bytes(listing.rows))
    return path


def manifest_bytes(rows: Iterable[ListedVideo]) -> bytes:
    """Return the text of a manifest: the same rows always give the same bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    rows = list(rows)
    # The last column is only there where some video has boxes: other manifests stay what they were.
    width = len(_COLUMNS) if any(row.boxes for row in rows) else len(_COLUMNS) - 1
    writer.writerow(_COLUMNS[:width])
    for row in rows:
        # A lone carriage return ends a row for the reader, but the writer does not quote it by itself.
        (quoting if "\r" in row.path or "\r" in row.group or "\r" in row.label else writer).writerow(row[:width])
    return text.getvalue().encode("utf-8")


def read_manifest(path: Path) -> list[ListedVideo]:
    """Read a manifest.

    Raises:
        FileNotFoundError: it was not written yet.
        ValueError: it is not a manifest of this version; the message names file and line.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run `python -m tasks manifest {path.stem}`")
    valid_key = re.compile(KEY_PATTERN).match
    intern = sys.intern
    rows: list[ListedVideo] = []
    keys: set[str] = set()
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header not in (_COLUMNS, _COLUMNS[:-1]):
            raise ValueError(f"{path}:1: columns are {header}, must be {_COLUMNS}; write the manifest again")
        for row in reader:
            try:
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} cells, the header has {len(header)} columns")
                part, key, name, label, split, group, start, end, size, checksum, *boxes = row
                item = ListedVideo(
                    intern(part),
                    key,
                    name,
                    intern(label),
                    intern(split),
                    group if group != name else name,
                    float(start) if start else None,
                    float(end) if end else None,
                    int(size) if size else None,
                    checksum,
                    boxes[0] if boxes else "",
                )
            except ValueError as error:
                raise ValueError(f"{path}:{reader.line_num}: {error}; write the manifest again") from error
            if split not in SPLITS or not valid_key(key) or key in keys:
                raise ValueError(
                    f"{path}:{reader.line_num}: split {split!r} or key {key!r} is not valid or the key occurs twice"
                )
            keys.add(key)
            rows.append(item)
    return rows
