"""Guesses how a folder or table of videos is laid out, and which videos belong together.

Every guess carries its reason, so that `fovea data init` can say what it saw; a wrong one is corrected by an
option or in the written file.
"""

import csv
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_specs.box_sources import BoxSource
from data_specs.load import LABEL_SEPARATOR, did_you_mean
from data_specs.schema import CsvSource, FolderSource, Hmdb51Source, KineticsSource, Source, Ucf101Source
from tasks.ops.init_boxes import class_names_of, coco_source, imagenet_source, looks_like_imagenet
from tasks.ops.readers_base import SPLIT_NAMES, ReaderError, walk_files
from tasks.ops.readers_csv import read_rows

_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "video", "video_path", "clip", "name"),
    "label": ("label", "class", "class_name", "action", "category", "activity", "verb", "gloss"),
    "start": ("start", "start_s", "start_time", "time_start", "t_start", "begin"),
    "end": ("end", "end_s", "end_time", "time_end", "t_end", "stop"),
    "split": ("split", "subset", "set", "partition", "fold"),
    "group": ("group", "group_id", "source", "subject", "performer", "person", "actor", "who", "speaker", "scene",
              "video_id", "youtube_id"),
}  # fmt: skip
"""Field of the specification → names of columns that mean it, the likeliest first."""

_TABLES = (".csv", ".tsv")
_KINETICS = {"youtube_id", "time_start", "time_end", "split"}

GROUP_PATTERNS = (
    (r"^(v_.+_g\d+)_c\d+", "the group that UCF names carry (_gNN before _cNN)"),
    (r"^(.{11})_\d{6}_\d{6}\.", "the YouTube id before start and end"),
    (r"^(\d{8}[_-]\d{4,6})[_-]", "a date and time of recording at the start of the name"),
    (r"^(.+)[_-](?:clip|seg|part|c|s)?\d+\.[^.]+$", "the name without its last number"),
    (r"^((?:p|person|subject|actor|s)[_-]?\d+)[_-]", "a person's number at the start of the name"),
)
"""Patterns of file names that tell the source recording, tried in this order, and what each one sees."""

_MIN_GROUPS_PER_CLASS = 3


class InitError(ValueError):
    """Nothing can be guessed; the message says what was looked for and which option helps."""


@dataclass(frozen=True)
class Layout:
    """What kind of source a path is."""

    source: Source
    split: Literal["official", "policy"]
    """Whether the source has splits of its own."""
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """What the user said; None leaves a guess to be made."""

    path_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    extensions: tuple[str, ...] = FolderSource(root=".").extensions


def guess_layout(target: Path, options: Options, shown: "Shown") -> Layout:
    """Guess the layout of a folder or table.

    Args:
        target: Folder of videos or lists, a csv or tsv, or a json file in the layout of COCO-video.
        options: What the user said.
        shown: Turns a path into what stands in the specification.

    Raises:
        InitError: it is none of the known layouts.
    """
    if target.is_file() and target.suffix.lower() == ".json":
        root = options.root or target.parent
        found = coco_source(target, root, shown(root), shown(target))
        if isinstance(found, str):
            raise InitError(found)
        return Layout(found[0], "policy", found[1])
    if target.is_file():
        if target.suffix.lower() not in _TABLES:
            raise InitError(
                f"{target}: a file must be a csv, tsv or json (COCO-video); give the folder of the videos otherwise"
            )
        return _table(target, options, shown)
    if not target.is_dir():
        near = did_you_mean(target.name, (p.name for p in target.parent.iterdir())) if target.parent.is_dir() else ""
        raise InitError(f"{target} does not exist{near}")
    if looks_like_imagenet(target):
        vid, official, reasons = imagenet_source(target, shown(target))
        return Layout(vid, "official" if official else "policy", reasons)
    files = list(walk_files(target))
    videos = [f for f in files if os.path.splitext(f)[1].lower() in options.extensions]
    lists = _lists(target, files, videos, shown)
    if lists is not None:
        return lists
    tables = [f for f in files if f.lower().endswith(_TABLES) and "/" not in f]
    depths = {video.count("/") for video in videos}
    if videos and min(depths) >= 1:
        first = sorted({video.split("/")[0] for video in videos})
        if min(depths) >= 2 and all(name.lower() in SPLIT_NAMES for name in first):
            source = FolderSource(root=shown(target), splits_in_path=True)
            return Layout(
                source, "official", [f"folders {', '.join(first)} are splits; the folders in them are classes"]
            )
        if not options.label_column:
            told = [f"{len(first)} folders with videos are the classes"]
            if tables:
                told.append(f"{', '.join(tables)} is not used; give it instead of the folder if the classes are in it")
            return Layout(FolderSource(root=shown(target)), "policy", told)
    if len(tables) == 1:
        return _table(target / tables[0], options, shown)
    if not videos:
        raise InitError(
            f"{target}: no videos ({', '.join(options.extensions)}) and no list of them was found in {len(files)} files"
        )
    if tables:
        raise InitError(f"{target}: several tables ({', '.join(tables)}); give the one to use instead of the folder")
    loose = next(video for video in videos if "/" not in video)
    raise InitError(
        f"{target}: {loose!r} lies above the class folders; expected <class>/<video>, <split>/<class>/<video>, or "
        "a csv with the columns path and label beside the videos"
    )


class Shown:
    """Turns paths into what stands in a specification: relative to the project where they are below it."""

    def __init__(self, project: Path) -> None:
        self._project = project.resolve()
        self.outside: list[str] = []

    def __call__(self, path: Path) -> str:
        """Return the path relative to the project, or absolute."""
        # Not resolved: a link below the project to where the data lies is meant to be written as it is.
        full = Path(os.path.abspath(path))
        if full.is_relative_to(self._project):
            return full.relative_to(self._project).as_posix()
        self.outside.append(str(full))
        return str(full)


def _lists(target: Path, files: Sequence[str], videos: Sequence[str], shown: Shown) -> Layout | None:
    """Recognise the lists of UCF101 and HMDB51 anywhere below a folder."""
    root = shown(_classes_above(target, videos))
    ucf = next((f for f in files if f.endswith("trainlist01.txt")), None)
    if ucf is not None:
        folder = (target / ucf).parent
        if not (folder / "classInd.txt").exists():
            raise InitError(f"{folder} has trainlist01.txt but no classInd.txt")
        return Layout(
            Ucf101Source(root=root, lists=shown(folder)), "official", [f"{ucf} and classInd.txt are lists of UCF101"]
        )
    hmdb = [f for f in files if re.search(r"_test_split[123]\.txt$", f)]
    if hmdb:
        return Layout(
            Hmdb51Source(root=root, lists=shown((target / hmdb[0]).parent)),
            "official",
            [f"{len(hmdb)} files *_test_splitN.txt are lists of HMDB51 (split 1 is taken)"],
        )
    return None


def _classes_above(target: Path, videos: Sequence[str]) -> Path:
    """Return the folder that holds the class folders of the videos."""
    if not videos:
        return target
    steps = videos[0].split("/")
    return target.joinpath(*steps[:-2])


def _table(path: Path, options: Options, shown: Shown) -> Layout:
    """Guess the columns of a csv or tsv."""
    header, rows = read_rows(path)
    root = options.root or path.parent
    reasons = []
    if set(header) >= _KINETICS:
        first = next(rows, None)
        trimmed = True
        if first is not None:
            video = dict(zip(header, first[1], strict=True))["youtube_id"]
            trimmed = not (root / f"{video}.mp4").exists()
        told = [f"the columns of {path.name} are those of Kinetics; videos are {'cut already' if trimmed else 'whole'}"]
        return Layout(KineticsSource(root=shown(root), file=shown(path), trimmed=trimmed), "official", told)
    cells = [dict(zip(header, row, strict=True)) for _, row in rows]
    for name, value in options.where.items():
        if name not in header:
            raise InitError(f"{path}:1: no column {name!r} for --where{did_you_mean(name, header)}")
        cells = [row for row in cells if row[name] == value]
        if not cells:
            raise InitError(f"{path}: no row has {name} = {value!r}")
    taken: dict[str, str] = dict.fromkeys(options.where, "where")
    given = {
        "path": options.path_column,
        "label": options.label_column,
        "group": options.group_column,
        "split": options.split_column,
    }
    chosen: dict[str, str] = {}
    for meaning, wish in given.items():
        if wish is not None:
            if wish not in header:
                raise InitError(f"{path}:1: no column {wish!r} for the {meaning}{did_you_mean(wish, header)}")
            chosen[meaning] = wish
            taken[wish] = meaning
    for meaning, names in _COLUMNS.items():
        if meaning in chosen:
            continue
        lower = {name.lower(): name for name in header if name not in taken}
        found = next(
            (lower[name] for name in names if name in lower and _fits(meaning, lower[name], cells, root)), None
        )
        if found is not None:
            chosen[meaning] = found
            taken[found] = meaning
            reasons.append(f"column {found!r} is the {meaning}{_why(meaning)}")
    for meaning in ("path", "label"):
        if meaning not in chosen:
            raise InitError(
                f"{path}: none of the columns {', '.join(header)} looks like the {meaning}; "
                f"say which with --{meaning}-column"
            )
    ignore = tuple(name for name in header if name not in taken)
    if ignore:
        reasons.append(f"not used: {', '.join(ignore)}")
    if "start" in chosen and "end" not in chosen:
        reasons.append("there is a start but no end: a sample goes to the end of its video")
    source = CsvSource(
        root=shown(root),
        file=shown(path),
        where=dict(options.where),
        ignore=ignore,
        **{meaning: name for meaning, name in chosen.items()},  # type: ignore[arg-type]
    )
    return Layout(source, "official" if "split" in chosen else "policy", reasons)


def _why(meaning: str) -> str:
    """Return the reason to add to the guess of a column."""
    return {
        "path": " (these files exist)",
        "split": " (its values are names of splits)",
        "group": " (rows with the same value stay together)",
    }.get(meaning, "")


def _fits(meaning: str, name: str, cells: Sequence[Mapping[str, str]], root: Path) -> bool:
    """Tell whether the values of a column can mean what its name says."""
    values = [row[name].strip() for row in cells]
    if not values:
        return False
    if meaning == "path":
        some = values[:: max(1, len(values) // 20)]
        return all(values) and any((root / value).is_file() for value in some if not os.path.isabs(value))
    if meaning == "split":
        return all(value.lower() in SPLIT_NAMES for value in values)
    if meaning == "group":
        return all(values) and 3 <= len(set(values)) < len(values)
    if meaning in ("start", "end"):
        return all(re.fullmatch(r"\d*\.?\d*", value) for value in values) and any(values)
    return all(values)


def guess_groups(files: Sequence[str], labels: Sequence[str]) -> tuple[str, list[str]]:
    """Guess from file names which videos come from one recording.

    Args:
        files: Paths of the videos.
        labels: Class of each.

    Returns:
        Rule for `SplitPolicy.group`, and what was seen.
    """
    names = [file.rsplit("/", 1)[-1] for file in files]
    told = []
    for pattern, what in GROUP_PATTERNS:
        matches = [re.search(pattern, name) for name in names]
        if not all(matches):
            continue
        groups = [match[1] for match in matches if match]
        if not 1 < len(set(groups)) < len(names):
            continue
        members = defaultdict(set)
        for group, label in zip(groups, labels, strict=True):
            members[label].add(group)
        typical = statistics.median(len(found) for found in members.values())
        if typical < _MIN_GROUPS_PER_CLASS:
            told.append(
                f"the names look like groups ({what}: {groups[0]!r}), but a class would have {typical:g} of them, too "
                "few for three splits; every video is its own group"
            )
            break
        size = len(names) / len(set(groups))
        told.append(f"{len(set(groups))} groups of {size:.1f} videos by {what}, such as {groups[0]!r} in {names[0]!r}")
        return f"regex:{pattern}", told
    return "source", told or [
        "no groups in the file names: every video is its own group; if several were cut from one recording, "
        "say so in split.group, or test results will be too good"
    ]


def distinct_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the class names that occur, sorted (numbers by value)."""
    names = {name for label in labels for name in label.split(LABEL_SEPARATOR) if name}
    if all(name.isdigit() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def raw_labels(layout: Layout, project: Path, target: Path) -> tuple[str, ...]:
    """Return the class names that a source itself states, before there is a specification.

    Raises:
        InitError: it states none.
    """
    source = layout.source
    names: list[str]
    if isinstance(source, BoxSource):
        return class_names_of(source, project)
    if isinstance(source, FolderSource):
        depth = 1 if source.splits_in_path else 0
        names = [
            file.split("/")[depth]
            for file in walk_files(project / source.root)
            if file.count("/") > depth and os.path.splitext(file)[1].lower() in source.extensions
        ]
    elif isinstance(source, Ucf101Source):
        text = (project / source.lists / "classInd.txt").read_text(encoding="utf-8-sig")
        return tuple(line.split(" ", 1)[1].strip() for line in text.splitlines() if " " in line)
    elif isinstance(source, Hmdb51Source):
        ending = f"_test_split{source.split_number}.txt"
        names = [path.name.removesuffix(ending) for path in (project / source.lists).glob(f"*{ending}")]
    else:
        column = source.label if isinstance(source, CsvSource) else "label"
        where = source.where if isinstance(source, CsvSource) else {}
        header, rows = read_rows(project / source.file)
        at = header.index(column)
        keep = [(header.index(name), value) for name, value in where.items()]
        try:
            names = [row[at].strip() for _, row in rows if all(row[n] == value for n, value in keep)]
        except csv.Error as error:  # pragma: no cover (read_rows names the line)
            raise ReaderError(f"{source.file}: {error}") from error
    labels = distinct_labels(names)
    if not labels:
        raise InitError(f"{target}: no class names found")
    return labels
