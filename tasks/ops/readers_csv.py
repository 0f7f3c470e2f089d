"""Readers of tables: csv or tsv with named columns, and the Kinetics csv."""

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TextIO

from data_specs.load import did_you_mean
from data_specs.schema import CsvSource, KineticsSource
from tasks.ops.readers_base import RawItem, ReadContext, ReaderError, known_split


class _Reader(Protocol):
    """What `csv.reader` returns (the standard library names no type for it)."""

    line_num: int

    def __next__(self) -> list[str]: ...


_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


def guess_delimiter(path: Path) -> str:
    """Return the delimiter of a table: tab for `.tsv`, else the commonest of `,`, `;` and tab in its first line."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = re.sub(r'"[^"]*"', "", file.readline())
    return max(",;\t", key=head.count)


def read_rows(path: Path, numbered: bool = False) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Open a table.

    Args:
        path: csv or tsv, UTF-8, with or without byte order mark.
        numbered: The file has no header; columns are called `0`, `1`, ….

    Returns:
        Names of the columns, and an iterator of (line, cells); blank lines are passed over.

    Raises:
        ReaderError: no header, a name twice, a row with another number of cells, or a broken quotation.
    """
    delimiter = guess_delimiter(path)
    file = path.open(encoding="utf-8-sig", newline="")
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        first = next(reader, None)
    except (csv.Error, UnicodeDecodeError) as error:
        file.close()
        raise ReaderError(f"{path}:1: {error}") from error
    if not first:
        file.close()
        raise ReaderError(f"{path}:1: no header line with the names of the columns")
    header = [str(number) for number in range(len(first))] if numbered else [name.strip() for name in first]
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        file.close()
        raise ReaderError(f"{path}:1: column {sorted(twice)[0]!r} is given twice")
    return header, _rows(path, file, reader, len(header), first if numbered else None)


def _rows(
    path: Path, file: TextIO, reader: "_Reader", width: int, first: list[str] | None
) -> Iterator[tuple[int, list[str]]]:
    """Give the rows of an open table and close it."""
    with file:
        if first is not None:
            yield 1, first
        while True:
            # A quoted cell may span lines: the row's number is that of its first line.
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                raise ReaderError(f"{path}:{line}: {error}") from error
            if not row:
                continue
            if len(row) != width:
                raise ReaderError(f"{path}:{line}: {len(row)} cells, the header has {width}")
            yield line, row


def read_csv(source: CsvSource, context: ReadContext) -> Iterator[RawItem]:
    """Read a csv or tsv, one row per sample.

    `path` may also be a template such as `{id}.webm`, filled from the columns in braces. A file without
    header is read by giving columns as numbers: `path: "0"`, `label: "1"`.
    """
    path = context.file(source.file)
    context.origin = str(path)
    from_template = _PLACEHOLDER.findall(source.path)
    named = {
        "path": from_template or [source.path],
        "label": [source.label],
        "start": [source.start],
        "end": [source.end],
        "split": [source.split],
        "group": [source.group],
        "where": list(source.where),
        "split.group": [context.group_column],
    }
    used = {name: key for key, names in named.items() for name in names if name is not None}
    header, rows = read_rows(path, numbered=all(name.isdigit() for name in used))
    for name, key in used.items():
        if name not in header:
            raise ReaderError(
                f"{path}:1: no column {name!r} (field {key}){did_you_mean(name, header)} (columns: {', '.join(header)})"
            )
    unknown = [name for name in header if name not in used and name not in source.ignore]
    if unknown and "*" not in source.ignore:
        raise ReaderError(
            f"{path}:1: unknown column {unknown[0]!r}{did_you_mean(unknown[0], used)}; name the columns that are not "
            f'used in `ignore` ({", ".join(unknown)}), or give ignore: ["*"]'
        )
    at = {name: number for number, name in enumerate(header)}
    keep = [(at[name], value) for name, value in source.where.items()]
    group_at = at.get(context.group_column or source.group or "", -1)
    matched = total = 0
    for line, row in rows:
        total += 1
        if any(row[number] != value for number, value in keep):
            continue
        matched += 1
        where = f"{path}:{line}"
        cells = dict(zip(header, row, strict=True)) if from_template else {}
        name = _PLACEHOLDER.sub(lambda match: cells[match[1]], source.path) if cells else row[at[source.path]]  # noqa: B023
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ReaderError(f"{where}: {source.path}: {name!r} must be a path below the root, or a URL")
        split = known_split(row[at[source.split]], f"{where}: {source.split}") if source.split else None
        group = row[group_at].strip() if group_at >= 0 else None
        if group == "":
            raise ReaderError(
                f"{where}: {header[group_at]}: is empty; a group must say which samples stay together "
                "(leave the group out of the specification to group by video)"
            )
        yield RawItem(
            name,
            context.check_label(row[at[source.label]].strip(), f"{where}: {source.label}"),
            split,
            group,
            _seconds(row[at[source.start]], f"{where}: {source.start}") if source.start else None,
            _seconds(row[at[source.end]], f"{where}: {source.end}") if source.end else None,
            line,
        )
    if not matched:
        rule = f"; none of {total} rows has {dict(source.where)}" if source.where and total else ""
        raise ReaderError(f"{path}: no rows{rule}")


def _seconds(text: str, where: str) -> float | None:
    """Return a time in seconds, None for an empty cell.

    Raises:
        ReaderError: it is not a finite number.
    """
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ReaderError(f"{where}: {text!r} is not a number of seconds")
    return value


def read_kinetics(source: KineticsSource, context: ReadContext) -> Iterator[RawItem]:
    """Read a Kinetics csv: label, youtube_id, time_start, time_end, split[, is_cc].

    Trimmed videos are `<id>_<start:06>_<end:06>.mp4`; untrimmed ones `<id>.mp4`, cut at the times given.
    The group is the YouTube video.
    """
    path = context.file(source.file)
    context.origin = str(path)
    header, rows = read_rows(path)
    for name in _KINETICS_COLUMNS:
        if name not in header and not (name == "label" and "test" in path.stem):
            raise ReaderError(
                f"{path}:1: no column {name!r}{did_you_mean(name, header)}; a Kinetics csv has "
                f"{', '.join(_KINETICS_COLUMNS)}[, is_cc]"
            )
    unknown = [name for name in header if name not in (*_KINETICS_COLUMNS, "is_cc")]
    if unknown:
        raise ReaderError(f"{path}:1: unknown column {unknown[0]!r}; a Kinetics csv has no such column")
    at = {name: number for number, name in enumerate(header)}
    seen = False
    for line, row in rows:
        seen = True
        where = f"{path}:{line}"
        start = _seconds(row[at["time_start"]], f"{where}: time_start")
        end = _seconds(row[at["time_end"]], f"{where}: time_end")
        if start is None or end is None:
            raise ReaderError(f"{where}: time_start or time_end is empty")
        video = row[at["youtube_id"]]
        if not video or "/" in video:
            raise ReaderError(f"{where}: youtube_id: {video!r} is not the id of a video")
        label = context.check_label(row[at["label"]], f"{where}: label") if "label" in at else ""
        yield RawItem(
            f"{video}_{int(start):06d}_{int(end):06d}.mp4" if source.trimmed else f"{video}.mp4",
            label,
            known_split(row[at["split"]], f"{where}: split"),
            video,
            None if source.trimmed else start,
            None if source.trimmed else end,
            line,
        )
    if not seen:
        raise ReaderError(f"{path}: no rows")
