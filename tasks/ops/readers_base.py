"""What all readers of sources share: the raw item, what a reader may ask for, and how errors are told."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_specs.load import LABEL_SEPARATOR, did_you_mean

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits as they occur in the wild → ours."""


class ReaderError(ValueError):
    """A source that cannot be read as its specification says; the message names file, line and field."""


class RawItem(NamedTuple):
    """One sample as its source states it."""

    path: str
    """Relative to the part's root (`/` between folders), or a URL."""
    label: str
    """Class name; several joined by `|`; empty when the source gives none."""
    split: str | None
    group: str | None
    """What the source itself calls the unit of splitting; None: the source video."""
    start_s: float | None
    end_s: float | None
    line: int
    """Line of `ReadContext.origin` that lists it (1 = first); 0 when nothing but the folder does."""
    boxes: str = ""
    """sha256 of its annotated boxes; empty where the source has none."""


class AnnotatedVideo(NamedTuple):
    """A video of a source with boxes."""

    path: str
    """Folder, image or video file, relative to the part's root."""
    split: str | None
    line: int
    """As of `RawItem`."""


@dataclass
class ReadContext:
    """What a reader may ask for besides its own section of the specification."""

    project: Path
    """Project root."""
    classes: tuple[str, ...]
    list_folder: Callable[[], Iterable[str]]
    """Relative paths of all files below the part's root, local or remote."""
    group_column: str | None = None
    """Column that the split policy groups by."""
    origin: str = ""
    """Set by the reader: the file that `RawItem.line` counts in."""
    notes: list[str] = field(default_factory=list)
    """Set by the reader: what was left out, and why."""
    root: str = ""
    """The part's root: absolute folder, or URL."""
    part: str = ""
    """Name of the part."""
    cache: Path | None = None
    """File in which what was read of annotations is kept between listings."""

    def __post_init__(self) -> None:
        self._known = set(self.classes)

    def check_label(self, label: str, where: str) -> str:
        """Return a label whose classes (joined by `|`) are all known.

        Raises:
            ReaderError: one is not.
        """
        for name in label.split(LABEL_SEPARATOR) if label not in self._known and label else ():
            if name not in self._known:
                raise ReaderError(
                    f"{where}: class {name!r} is not in `labels` of the specification"
                    f"{did_you_mean(name, self._known)} ({len(self._known)} classes known)"
                )
        return label

    def file(self, name: str) -> Path:
        """Return a list file, which must exist.

        Raises:
            ReaderError: it does not.
        """
        return existing(name, self.project)


def existing(name: str, project: Path) -> Path:
    """Return a list or annotation file (or folder) by its name in a specification; it must exist.

    Raises:
        ReaderError: it does not.
    """
    path = Path(name) if os.path.isabs(name) else project / name
    if not path.exists():
        near = did_you_mean(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise ReaderError(f"{path} does not exist{near}")
    return path


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Give the numbered lines of a list, without line ends and blank lines."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def known_split(name: str, where: str) -> str:
    """Return our name of a split.

    Raises:
        ReaderError: the name says none.
    """
    split = SPLIT_NAMES.get(name.strip().lower())
    if split is None:
        raise ReaderError(f"{where}: split {name!r} is none of {', '.join(SPLIT_NAMES)}")
    return split


def walk_files(root: Path) -> Iterator[str]:
    """Give the relative paths of all files below a folder in sorted order, hidden ones left out."""
    for folder, names, files in os.walk(root, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        base = os.path.relpath(folder, root)
        for name in sorted(files):
            if not name.startswith("."):
                yield name if base == "." else f"{base}/{name}".replace(os.sep, "/")
