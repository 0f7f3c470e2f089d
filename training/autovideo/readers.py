"""Readers: what the videos are, where their labels stand, and how they are divided.

A reader writes the parts of a data set's specification (`data_specs/schema.py`); listing, probing, encoding and packing
are those of the data half, which `extractor/webdataset` (`packing.py`) calls as its own process. A set that this
project already has comes from `reader/dataset`.
"""

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from data_specs.schema import (
    CsvSource,
    FolderSource,
    Hmdb51Source,
    KineticsSource,
    SplitPolicy,
    Ucf101Source,
    digest,
)
from data_specs.strict import Strict
from training.autovideo.primitive import Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.shard_sets import open_shards
from training.autovideo.values import Context, Manifest, Value
from training.core.config import ConfigError

Official = Literal["official"]


class Split(Strict):
    """How videos without an official split are divided: seeded, whole groups, stratified by class."""

    train: float = Field(default=0.7, ge=0)
    val: float = Field(default=0.15, ge=0)
    test: float = Field(default=0.15, ge=0)
    seed: int = 0
    by: str = "source"
    """`source`: by source video; `regex:<pattern>`: first group of the pattern on the file name; `column:<name>`."""

    def policy(self) -> dict[str, Any]:
        """Return it as the specification has it."""
        values = {"train": self.train, "val": self.val, "test": self.test, "seed": self.seed, "group": self.by}
        return SplitPolicy.model_validate(values).model_dump(mode="json")


class ReaderConfig(PrimitiveConfig):
    """What readers share."""

    name: str | None = setting(None, help="name of the data set; null: made from the reader and its settings")
    licence: str = setting("unknown", help="under which terms the videos may be used")


class Reader(Primitive):
    """Base of the readers."""

    kind = "reader"
    determinism = "impure"  # folders and tables change without a word in the document
    outputs: ClassVar[Mapping[str, Port]] = {"manifest": Port.MANIFEST}
    Config: ClassVar[type[PrimitiveConfig]] = ReaderConfig

    def parts(self) -> list[dict[str, Any]]:
        """Return the parts of the specification, paths absolute."""
        raise NotImplementedError

    def labels(self) -> Sequence[str] | str:
        """Return the class names in index order, or the name of a label file that the package has."""
        raise NotImplementedError

    def produce(self, inputs: Mapping[str, Value], state: Any, context: Context) -> dict[str, Value]:
        """See `Primitive.produce`."""
        labels = self.labels()
        spec = {
            "version": "1",
            "licence": self.config.licence,
            "labels": labels if isinstance(labels, str) else list(labels),
            "parts": self.parts(),
        }
        name = self.config.name or f"{self.id.partition('/')[2]}_{digest(spec)[:8]}"
        return {"manifest": Manifest(name, spec)}


def existing(path: str, field: str, step: str) -> Path:
    """Return an absolute path.

    Raises:
        ConfigError: there is nothing at the path; the message names step and field.
    """
    full = Path(path).expanduser().absolute()
    if not full.exists():
        raise ConfigError(f"{step}: {field}: {full} does not exist")
    return full


def _by_number(names: Iterable[str]) -> list[str]:
    """Sort class names; numbers by value, so that class 10 comes after class 9."""
    unique = sorted(set(names))
    return sorted(unique, key=int) if all(re.fullmatch(r"-?[0-9]+", name) for name in unique) else unique


# --- data sets of this project ----------------------------------------------------------------


class DatasetConfig(PrimitiveConfig):
    """Which one."""

    name: str | None = setting(None, help="name of the data set; null: the one that the pipeline is run on")


@primitive("reader/dataset")
class DatasetReader(Primitive):
    """A data set of this project whose shards `fovea reproduce` or `dvc repro` has made."""

    kind = "reader"
    determinism = "impure"
    outputs: ClassVar[Mapping[str, Port]] = {"shards": Port.SHARDS}
    Config: ClassVar[type[PrimitiveConfig]] = DatasetConfig

    def produce(self, inputs: Mapping[str, Value], state: Any, context: Context) -> dict[str, Value]:
        """See `Primitive.produce`."""
        name = self.config.name or context.dataset
        if not name:
            raise ConfigError(
                f"step {context.step!r}: reader/dataset needs a name here (`--dataset`, or `with: {{name: …}}`)"
            )
        folder = context.project.shards / name
        if not (folder / "index.json").is_file():
            raise ConfigError(f"step {context.step!r}: {folder} has no shards: run `dvc repro shards@{name}` first")
        return {"shards": open_shards(folder, name)}


# --- files ------------------------------------------------------------------------------------


class FolderConfig(ReaderConfig):
    """A folder of videos."""

    root: str = setting(help="folder with a folder per class, or per split and class")
    splits_in_path: bool = setting(False, help="the first folders are train, val and test")
    split: Split | Official = setting(Split(), help="how videos are divided; `official` with splits_in_path")

    @model_validator(mode="after")
    def _official(self) -> "FolderConfig":
        if self.splits_in_path != (self.split == "official"):
            raise ValueError("split: official goes with splits_in_path: true, and only with it")
        if (
            isinstance(self.split, Split)
            and abs((total := self.split.train + self.split.val + self.split.test) - 1) > 1e-6
        ):
            raise ValueError(f"split: train + val + test must be 1, got {total:g}")
        return self


@primitive("reader/folder")
class FolderReader(Reader):
    """A folder per class: `<root>/<class>/<video>`."""

    Config: ClassVar[type[PrimitiveConfig]] = FolderConfig

    def parts(self) -> list[dict[str, Any]]:
        """See `Reader.parts`."""
        root = existing(self.config.root, "root", self.id)
        source = FolderSource(root=str(root), splits_in_path=self.config.splits_in_path)
        split = "official" if self.config.split == "official" else self.config.split.policy()
        return [{"name": "all", "source": source.model_dump(mode="json"), "split": split}]

    def labels(self) -> Sequence[str]:
        """See `Reader.labels`."""
        root = existing(self.config.root, "root", self.id)
        folders = [root / name for name in ("train", "val", "test")] if self.config.splits_in_path else [root]
        names = _by_number(
            path.name for folder in folders if folder.is_dir() for path in folder.iterdir()
            if path.is_dir() and not path.name.startswith(".")
        )  # fmt: skip
        if not names:
            raise ConfigError(f"{self.id}: root: {root} has no folders, one per class")
        return names


class CsvConfig(ReaderConfig):
    """Tables."""

    train: str = setting(help="csv or tsv with a row per video")
    val: str | None = setting(None, help="table of the validation videos; null: divided from train")
    test: str | None = setting(None, help="table of the test videos; null: divided from train")
    media: str = setting(help="folder that the paths of the tables start from")
    path: str = setting("path", help="column of the path, or a template such as `{id}.webm`")
    label: str = setting("label", help="column of the class name")
    start: str | None = setting(None, help="column of the start in seconds")
    end: str | None = setting(None, help="column of the end in seconds")
    group: str | None = setting(None, help="column of the unit that is never divided")
    ignore: tuple[str, ...] = setting(("*",), help="known columns that are not used; `*`: all others")
    names: str | None = setting(None, help="text file with class names, line number = class index")
    split: Split = setting(Split(), help="how the train table is divided, for splits without a table of their own")


@primitive("reader/csv")
class CsvReader(Reader):
    """One table, or one for each split."""

    Config: ClassVar[type[PrimitiveConfig]] = CsvConfig

    def _tables(self) -> dict[str, Path]:
        given = {name: getattr(self.config, name) for name in ("train", "val", "test")}
        return {name: existing(path, name, self.id) for name, path in given.items() if path is not None}

    def parts(self) -> list[dict[str, Any]]:
        """See `Reader.parts`."""
        config, tables = self.config, self._tables()
        media = existing(config.media, "media", self.id)
        parts = []
        for name, table in tables.items():
            source = CsvSource(
                root=str(media),
                file=str(table),
                path=config.path,
                label=config.label,
                start=config.start,
                end=config.end,
                group=config.group,
                ignore=tuple(config.ignore),
            )
            split: Any = name
            if name == "train" and len(tables) < 3:
                split = self._policy(set(tables))
            parts.append({"name": name, "source": source.model_dump(mode="json"), "split": split})
        return parts

    def _policy(self, tables: set[str]) -> dict[str, Any]:
        """Divide the train table among the splits that have no table."""
        split = self.config.split
        shares = {name: getattr(split, name) for name in ("train", "val", "test")}
        for name in tables - {"train"}:
            shares[name] = 0.0
        total = sum(shares.values())
        if total <= 0:
            raise ConfigError(f"{self.id}: split: nothing is left for train")
        return Split(**{name: share / total for name, share in shares.items()}, seed=split.seed, by=split.by).policy()

    def labels(self) -> Sequence[str]:
        """See `Reader.labels`."""
        if self.config.names is not None:
            return existing(self.config.names, "names", self.id).read_text().removesuffix("\n").split("\n")
        names: set[str] = set()
        for table in self._tables().values():
            header, rows = _table(table)
            if self.config.label.isdigit() and self.config.label not in header:  # no header: columns go by number
                header, rows = [str(number) for number in range(len(header))], [header, *rows]
            if self.config.label not in header:
                raise ConfigError(f"{table} has no column {self.config.label!r}; it has {', '.join(header)}")
            at = header.index(self.config.label)
            names |= {label for row in rows if len(row) > at for label in row[at].strip().split("|") if label}
        return _by_number(names)


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table, read as the ingest reads it (`tasks.ops.readers_csv`)."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = re.sub(r'"[^"]*"', "", file.readline())
        file.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
        rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
    if not rows:
        raise ConfigError(f"{path} is empty; it needs a header line")
    return [name.strip() for name in rows[0]], rows[1:]


class D3MConfig(ReaderConfig):
    """A folder in the layout of D3M and of AutoVideo's own sets."""

    root: str = setting(help="folder with train.csv, test.csv and media/")
    names: str | None = setting(
        None, help="text file with class names: its first line is the name of label 0; null: the numbers are the names"
    )
    split: Split = setting(Split(train=0.9, val=0.1, test=0.0), help="how train.csv is divided into train and val")


@primitive("reader/d3m")
class D3MReader(Reader):
    """AutoVideo's data layout: train.csv and test.csv with d3mIndex, video, label, and a media folder."""

    Config: ClassVar[type[PrimitiveConfig]] = D3MConfig

    def _csv(self) -> CsvReader:
        root = existing(self.config.root, "root", self.id)
        test = root / "test.csv"
        values = {
            "train": str(root / "train.csv"),
            "test": str(test) if test.exists() else None,
            "media": str(root / "media"),
            "path": "video",
            "label": "label",
            "ignore": ["d3mIndex"],
            "split": self.config.split.model_dump(),
            "names": None,
        }
        return CsvReader(CsvConfig.model_validate(values))

    def parts(self) -> list[dict[str, Any]]:
        """See `Reader.parts`."""
        parts = self._csv().parts()
        for part in parts:
            header, _ = _table(Path(part["source"]["file"]))
            if header != ["d3mIndex", "video", "label"]:
                raise ConfigError(
                    f"{part['source']['file']}: the header must be d3mIndex,video,label, it is {','.join(header)}; "
                    "reader/csv takes other tables"
                )
        return parts

    def labels(self) -> Sequence[str]:
        """See `Reader.labels`; the numbers of the column `label` are names like any others, also with gaps."""
        numbers = self._csv().labels()
        if self.config.names is None:
            return numbers
        return [self._named(number) for number in numbers]

    def _named(self, number: str) -> str:
        path = existing(self.config.names, "names", self.id)
        names = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        if not number.isdecimal() or int(number) >= len(names):
            raise ConfigError(f"{self.id}: names: {path} has {len(names)} lines, and no name for label {number!r}")
        return names[int(number)].strip()

    def produce(self, inputs: Mapping[str, Value], state: Any, context: Context) -> dict[str, Value]:
        """See `Primitive.produce`; with `names`, tables with names instead of numbers are written and listed."""
        made = super().produce(inputs, state, context)
        manifest = made["manifest"]
        if self.config.names is None or not isinstance(manifest, Manifest):
            return made
        parts = []
        for part in manifest.spec["parts"]:
            header, rows = _table(Path(part["source"]["file"]))
            lines = [header, *([index, video, self._named(label.strip())] for index, video, label in rows)]
            path = context.data.root / "tables" / f"{digest([list(line) for line in lines])[:16]}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".tmp-{os.getpid()}")
            with temporary.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(lines)
            os.replace(temporary, path)
            parts.append({**part, "source": {**part["source"], "file": str(path)}})
        return {"manifest": Manifest(manifest.dataset, {**manifest.spec, "parts": parts})}


class ListConfig(ReaderConfig):
    """Data sets with lists of their own."""

    root: str = setting(help="folder of the videos")
    lists: str = setting(help="folder of the lists that come with the data set")
    split_number: Literal[1, 2, 3] = setting(1, help="which of the official splits")
    labels: str = setting(help="label file of the package (data_specs/labels), e.g. hmdb51.txt")
    split: Split = setting(Split(train=0.9, val=0.1, test=0.0), help="how the official training list is divided")


@primitive("reader/ucf101")
class Ucf101Reader(Reader):
    """UCF101 with its lists (classInd.txt, trainlistNN.txt, testlistNN.txt)."""

    Config: ClassVar[type[PrimitiveConfig]] = ListConfig

    def parts(self) -> list[dict[str, Any]]:
        """See `Reader.parts`."""
        source = Ucf101Source(
            root=str(existing(self.config.root, "root", self.id)),
            lists=str(existing(self.config.lists, "lists", self.id)),
            split_number=self.config.split_number,
        )
        return [{"name": "all", "source": source.model_dump(mode="json"), "split": "official"}]

    def labels(self) -> str:
        """See `Reader.labels`."""
        name: str = self.config.labels
        return name


@primitive("reader/hmdb51")
class Hmdb51Reader(Reader):
    """HMDB51 with its lists (`<class>_test_split<N>.txt`)."""

    Config: ClassVar[type[PrimitiveConfig]] = ListConfig

    def parts(self) -> list[dict[str, Any]]:
        """See `Reader.parts`."""
        source = Hmdb51Source(
            root=str(existing(self.config.root, "root", self.id)),
            lists=str(existing(self.config.lists, "lists", self.id)),
            split_number=self.config.split_number,
        )
        return [{"name": "all", "source": source.model_dump(mode="json"), "split": "official"}]

    def labels(self) -> str:
        """See `Reader.labels`."""
        name: str = self.config.labels
        return name


class KineticsConfig(ReaderConfig):
    """Kinetics."""

    root: str = setting(help="folder of the videos")
    train: str = setting(help="csv of the training videos: label, youtube_id, time_start, time_end, split")
    val: str | None = setting(None, help="csv of the validation videos")
    trimmed: bool = setting(True, help="videos are already cut: <id>_<start>_<end>.mp4")
    labels: str = setting(help="label file of the package (data_specs/labels), e.g. kinetics400.txt")


@primitive("reader/kinetics")
class KineticsReader(Reader):
    """Kinetics with its csv files."""

    Config: ClassVar[type[PrimitiveConfig]] = KineticsConfig

    def parts(self) -> list[dict[str, Any]]:
        """See `Reader.parts`."""
        root = existing(self.config.root, "root", self.id)
        parts = []
        for name in ("train", "val"):
            if (table := getattr(self.config, name)) is not None:
                source = KineticsSource(
                    root=str(root), file=str(existing(table, name, self.id)), trimmed=self.config.trimmed
                )
                parts.append({"name": name, "source": source.model_dump(mode="json"), "split": name})
        return parts

    def labels(self) -> str:
        """See `Reader.labels`."""
        name: str = self.config.labels
        return name
