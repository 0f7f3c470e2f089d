"""Readers: one per kind of source, each giving the raw items that the source lists.

A reader takes names and annotations as they are and checks them: a file, line and field stand in every
error. Splits and groups that the source does not state are decided later (`tasks.ops.splits`).
Paths of list files are relative to the project root, or absolute.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator

from data_specs.schema import FolderSource, Part
from tasks.ops.readers_base import RawItem, ReadContext, ReaderError, known_split
from tasks.ops.readers_boxes import read_boxed
from tasks.ops.readers_csv import read_csv, read_kinetics
from tasks.ops.readers_lists import read_hmdb51, read_ucf101


def _read_folder(source: FolderSource, context: ReadContext) -> Iterator[RawItem]:
    """Read `[<split>/]<class>/…/<video>`."""
    depth = 2 if source.splits_in_path else 1
    layout = "<split>/<class>/<video>" if source.splits_in_path else "<class>/<video>"
    context.origin = source.root
    extensions = {extension.lower() for extension in source.extensions}
    other: Counter[str] = Counter()
    seen = False
    for path in context.list_folder():
        steps = path.split("/")
        extension = os.path.splitext(steps[-1])[1].lower()
        if extension not in extensions:
            other[extension or "none"] += 1
            continue
        where = f"{source.root}/{path}"
        if len(steps) <= depth:
            raise ReaderError(f"{where}: lies above the class folders; the layout is {layout}")
        split = known_split(steps[0], where) if source.splits_in_path else None
        seen = True
        yield RawItem(path, context.check_label(steps[depth - 1], where), split, None, None, None, 0)
    if other:
        found = ", ".join(f"{count} × {name}" for name, count in sorted(other.items()))
        context.notes.append(f"{source.root}: {other.total()} files with other extensions left out ({found})")
    if not seen:
        raise ReaderError(f"{source.root}: no video found (layout {layout}, extensions {', '.join(source.extensions)})")


def read_items(part: Part, context: ReadContext) -> Iterator[RawItem]:
    """Give the samples that one part's source lists.

    Args:
        part: Part of a data set.
        context: Project root, class names and a way to list the part's files.

    Raises:
        ReaderError: a file, line or field is not as the specification says.
    """
    source = part.source
    match source.kind:
        case "folder":
            return _read_folder(source, context)
        case "csv":
            return read_csv(source, context)
        case "kinetics":
            return read_kinetics(source, context)
        case "ucf101":
            return read_ucf101(source, context)
        case "hmdb51":
            return read_hmdb51(source, context)
        case _:
            return read_boxed(source, context)


def group_by_rule(rule: str, item: RawItem) -> str | None:
    """Return the group that a split policy's rule gives, or None for the source video.

    Raises:
        ReaderError: the pattern does not match the file name.
    """
    if rule.startswith("regex:"):
        pattern = rule.removeprefix("regex:")
        name = item.path.rsplit("/", 1)[-1]
        match = re.search(pattern, name)
        if match is None or match.group(1) is None:
            raise ReaderError(f"{item.path}: the file name does not match split.group regex {pattern!r}")
        return str(match.group(1))
    return item.group
