"""Readers of the split lists of UCF101 and HMDB51."""

import re
from collections.abc import Iterator
from pathlib import Path

from data_specs.load import did_you_mean
from data_specs.schema import Hmdb51Source, Ucf101Source
from tasks.ops.readers_base import RawItem, ReadContext, ReaderError, lines_of

_UCF_GROUP = re.compile(r"^(v_.+_g\d+)_c\d+\.")
_HMDB_USE = {"1": "train", "2": "test", "0": None}


def _read_class_index(path: Path, context: ReadContext) -> dict[str, str]:
    """Read classInd.txt: number (from 1), class name. Returns number → name."""
    names: dict[str, str] = {}
    for line, text in lines_of(path):
        number, _, name = text.partition(" ")
        if not number.isdigit() or int(number) != len(names) + 1 or not name:
            raise ReaderError(f"{path}:{line}: {text!r} is not `{len(names) + 1} <class>` (numbers count from 1)")
        names[number] = context.check_label(name, f"{path}:{line}")
    return names


def read_ucf101(source: Ucf101Source, context: ReadContext) -> Iterator[RawItem]:
    """Read UCF101: classInd.txt, trainlistNN.txt (`<class>/<video> <number>`), testlistNN.txt (`<class>/<video>`).

    The group is what the file name says: `v_<class>_gNN` (25 groups of one background or person per class).
    """
    folder = context.file(source.lists)
    names = _read_class_index(context.file(str(folder / "classInd.txt")), context)
    for split in ("train", "test"):
        path = context.file(str(folder / f"{split}list{source.split_number:02d}.txt"))
        context.origin = str(path)
        for line, text in lines_of(path):
            where = f"{path}:{line}"
            video, _, number = text.rpartition(" ") if split == "train" else (text, "", "")
            label, slash, name = video.partition("/")
            if not slash or "/" in name:
                raise ReaderError(f"{where}: {text!r} is not <class>/<video>{' <number>' if split == 'train' else ''}")
            context.check_label(label, where)
            if split == "train" and names.get(number) != label:
                raise ReaderError(
                    f"{where}: class number {number!r} is {names.get(number)!r} in classInd.txt, "
                    f"the folder says {label!r}"
                )
            match = _UCF_GROUP.match(name)
            if match is None:
                raise ReaderError(f"{where}: {name!r} is not v_<class>_gNN_cNN.<extension>, so its group is unknown")
            yield RawItem(video, label, split, match[1], None, None, line)


def read_hmdb51(source: Hmdb51Source, context: ReadContext) -> Iterator[RawItem]:
    """Read HMDB51: `<class>_test_split<N>.txt` with `<video> <use>`; use 1 = train, 2 = test, 0 = not used.

    The group is the film: the file name up to `_<class>_`.
    """
    folder = context.file(source.lists)
    ending = f"_test_split{source.split_number}.txt"
    files = sorted(folder.glob(f"*{ending}"))
    if not files:
        raise ReaderError(f"{folder}: no <class>{ending} found")
    unused = 0
    for path in files:
        context.origin = str(path)
        label = context.check_label(path.name.removesuffix(ending), str(path))
        for line, text in lines_of(path):
            where = f"{path}:{line}"
            video, _, use = text.rpartition(" ")
            video = video.strip()
            if use not in _HMDB_USE or not video or "/" in video:
                near = did_you_mean(use, _HMDB_USE)
                raise ReaderError(f"{where}: {text!r} is not `<video> <use>` with use 0, 1 or 2{near}")
            split = _HMDB_USE[use]
            if split is None:
                unused += 1
                continue
            film, found, _ = video.partition(f"_{label}_")
            yield RawItem(f"{label}/{video}", label, split, film if found else video, None, None, line)
    if unused:
        context.notes.append(f"{folder}: {unused} videos are in neither split {source.split_number} (use 0)")
