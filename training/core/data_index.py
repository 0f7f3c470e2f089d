"""Source `index`: reads samples of local shards by the offsets in their `.idx` files.

Any sample can be read at any time, so one permutation of the whole split per epoch needs no buffer,
evaluation takes each sample exactly once on any number of ranks, and the position in training is a
single number: the samples consumed so far by all ranks together.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from data_specs.schema import ClipRecord, IndexEntry, ShardIndex, ShardInfo, read_index
from training.core.data_sample import EXTRAS, Label, Sample
from training.core.sampling import epoch_order

__all__ = ["DataError", "IndexSource", "Source", "SplitIndex"]


class DataError(ValueError):
    """A shard folder is incomplete, damaged or does not fit the request; the message names file and field."""


class Source(Protocol):
    """Where batches of samples come from."""

    classes: tuple[str, ...]
    data_digest: str
    num_samples: int
    num_listed: int
    num_batches: int | None
    expected_keys: Sequence[str]
    multi_label: bool
    world_bound: bool
    """Whether the order depends on the number of ranks, so a state needs the same number."""

    def batches(self, position: int) -> Iterator[list[Sample]]:
        """Yield this rank's share of each global batch from a position (samples consumed by all ranks) on."""
        ...

    def place(self, position: int) -> dict[str, Any]:
        """Describe the next sample: epoch, shard, offset, key."""
        ...


class SplitIndex:
    """Columns over all samples of one split, in order of shard name and place."""

    def __init__(self, folder: Path, split: str, *, needs_label: bool = True) -> None:
        self.folder = folder
        self.info: ShardIndex = read_index(folder)
        shards = self.info.of_split(split)
        if not shards:
            have = ", ".join(sorted({s.split for s in self.info.shards})) or "none"
            raise DataError(f"{folder} has no shards of split {split!r} (splits with shards: {have})")
        self.extension = self.info.representation
        self.shards = [shard.name for shard in shards]
        self.keys: list[str] = []
        self.labels: list[Label] = []
        self.extras: list[dict[str, tuple[int, int]]] = []
        """Name → offset and size of each sample's members of `EXTRAS`."""
        columns: list[tuple[int, ...]] = []
        for number, shard in enumerate(shards):
            for entry in read_entries(folder, shard):
                columns.append((number, entry.num_frames, *self._members(entry, shard)))
                self.extras.append({name: entry.members[name] for name in EXTRAS if name in entry.members})
                self.keys.append(entry.key)
                self.labels.append(_label(entry, shard, len(self.info.classes), needs_label))
        table = np.array(columns, dtype=np.int64)
        self.shard, self.num_frames, self.offset, self.size, self.record_offset, self.record_size = table.T
        self.multi_label = any(isinstance(label, tuple) for label in self.labels)
        if len(set(self.keys)) < len(self.keys):
            seen: set[str] = set()
            doubled = [key for key in self.keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
            raise DataError(f"{folder}, split {split!r}: keys occur more than once: {', '.join(doubled[:5])}")
        # Height and width by sample, known after a sample's record was first read: saves reading
        # the record again in later epochs.
        self._frame_size: NDArray[np.int32] = np.zeros((len(self.keys), 2), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, number: int) -> bytes:
        """Return the bytes of a sample's clip."""
        return self._pread(number, int(self.offset[number]), int(self.size[number]))

    def record(self, number: int) -> ClipRecord:
        """Return the record of a sample.

        Raises:
            DataError: the bytes at its offset are not the record of this sample.
        """
        content = self._pread(number, int(self.record_offset[number]), int(self.record_size[number]))
        try:
            record = ClipRecord.model_validate_json(content)
        except ValidationError as error:
            raise DataError(f"sample {self.keys[number]!r} of {self.path(number)}: broken record: {error}") from None
        if record.key != self.keys[number]:
            raise DataError(
                f"{self.path(number)}: at the offset of sample {self.keys[number]!r} lies {record.key!r}; "
                "tar and .idx do not belong together, make the shard again"
            )
        return record

    def frame_size(self, number: int) -> tuple[int, int]:
        """Return height and width of a sample's frames, pixels."""
        if not self._frame_size[number, 0]:
            record = self.record(number)
            self._frame_size[number] = record.height, record.width
        height, width = self._frame_size[number].tolist()
        return height, width

    def path(self, number: int) -> str:
        """Return the tar of a sample."""
        return str(self.folder / self.shards[self.shard[number]])

    def sample(self, number: int, epoch: int, *, valid: bool = True) -> Sample:
        """Return what is needed to decode a sample."""
        record = self.record(number) if self.extension == "jpgs" else None
        return Sample(
            key=self.keys[number],
            label=self.labels[number],
            epoch=epoch,
            valid=valid,
            num_frames=record.num_frames if record else int(self.num_frames[number]),
            size=self.frame_size(number),
            frame_index=record.frame_index if record else None,
            origin=self.path(number),
            extension=self.extension,
            read=partial(self.read, number),
            fps=record.fps if record else None,
            extras={name: partial(self._pread, number, *place) for name, place in self.extras[number].items()},
        )

    def _members(self, entry: IndexEntry, shard: ShardInfo) -> tuple[int, int, int, int]:
        try:
            return (*entry.members[self.extension], *entry.members["json"])
        except KeyError as error:
            raise DataError(
                f"{self.folder / shard.name}: sample {entry.key!r} has no member {error} (it has "
                f"{', '.join(entry.members)})"
            ) from None

    def _pread(self, number: int, offset: int, size: int) -> bytes:
        # A descriptor per read costs microseconds and leaves nothing to close; a clip takes milliseconds.
        path = self.path(number)
        handle = os.open(path, os.O_RDONLY)
        try:
            content = os.pread(handle, size, offset)
        finally:
            os.close(handle)
        if len(content) != size:
            raise DataError(f"{path} ends within sample {self.keys[number]!r}; pull or make the shard again")
        return content


def read_entries(folder: Path, shard: ShardInfo) -> list[IndexEntry]:
    """Read and check the `.idx` of a shard.

    Raises:
        DataError: tar or `.idx` missing, of another size, or not the file that `index.json` lists.
    """
    tar, idx = folder / shard.name, (folder / shard.name).with_suffix(".idx")
    for path in (tar, idx):
        if not path.exists():
            raise DataError(f"{path} is missing; run `dvc pull {folder}` or `dvc repro shards@{folder.name}`")
    if tar.stat().st_size != shard.bytes:
        raise DataError(f"{tar} has {tar.stat().st_size} bytes, index.json says {shard.bytes}; pull it again")
    content = idx.read_bytes()
    if hashlib.sha256(content).hexdigest() != shard.idx_sha256:
        raise DataError(f"{idx} is not the file that index.json lists (sha256 differs); pull it again")
    try:
        entries = [IndexEntry.model_validate_json(line) for line in content.splitlines()]
    except ValidationError as error:
        raise DataError(f"{idx} has a broken line: {error}") from None
    if len(entries) != shard.samples:
        raise DataError(f"{idx} has {len(entries)} samples, index.json says {shard.samples}")
    return entries


def _label(entry: IndexEntry, shard: ShardInfo, num_classes: int, needs_label: bool) -> Label:
    if entry.label is None and not needs_label:
        return ()
    if entry.label is None:
        raise DataError(f"{shard.name}: sample {entry.key!r} has no class label, which a clip loader needs")
    for label in (entry.label,) if isinstance(entry.label, int) else entry.label:
        if not 0 <= label < num_classes:
            raise DataError(
                f"{shard.name}: sample {entry.key!r} has label {label}, but there are {num_classes} classes"
            )
    return entry.label


def _visits(index: SplitIndex, repeats: Mapping[str, int]) -> NDArray[np.int64]:
    parts = {shard.name: shard.part for shard in index.info.shards}
    if strange := sorted(set(repeats) - set(parts.values())):
        raise DataError(
            f"{index.folder}: repeats names the parts {strange}, the data set has {sorted(set(parts.values()))}"
        )
    counts = np.array([repeats.get(parts[name], 1) for name in index.shards])[index.shard]
    if counts.sum() < 1:
        raise DataError(f"{index.folder}: with repeats {dict(repeats)} no sample is left to train on")
    samples = np.repeat(np.arange(len(index), dtype=np.int64), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([samples, np.arange(len(samples), dtype=np.int64) - first], axis=1)


class IndexSource:
    """Batches of one rank from a `SplitIndex`; the global order is the same on any number of ranks."""

    world_bound = False

    def __init__(
        self,
        shards: Path,
        split: str,
        *,
        batch_size: int,
        train: bool,
        seed: int,
        rank: int,
        world: int,
        needs_label: bool = True,
        repeats: Mapping[str, int] | None = None,
    ) -> None:
        """Open a split.

        Args:
            needs_label: refuse samples without a class; otherwise they have no class.
            repeats: only in training: part of the data set → how often each of its samples comes in an epoch; each time
                with other draws. Parts that are not named come once.

        Raises:
            DataError: incomplete or damaged folder, or no such split or part.
        """
        self._index = SplitIndex(shards, split, needs_label=needs_label)
        self._visits = _visits(self._index, repeats or {}) if train and repeats else None
        """(V,2) sample and number of the visit, for each visit of an epoch; None: each sample once."""
        self._batch_size = batch_size
        self._share = batch_size // world
        self._rank = rank
        self._train = train
        self._seed = seed
        self._orders: dict[int, NDArray[np.int64]] = {}
        self.classes = self._index.info.classes
        self.data_digest = self._index.info.data_digest(split)
        self.num_samples = len(self._index)
        self.num_listed = self._index.info.listed.get(split, self.num_samples)
        self.num_batches = None if train else -(-self.num_samples // batch_size)
        self.expected_keys: Sequence[str] = self._index.keys
        self.multi_label = self._index.multi_label

    def batches(self, position: int) -> Iterator[list[Sample]]:
        """Yield this rank's samples: endless in training, padded with invalid ones at the end of an evaluation."""
        while self._train or position < self.num_samples:
            start = position + self._rank * self._share
            yield [self._sample(place) for place in range(start, start + self._share)]
            position += self._batch_size

    def place(self, position: int) -> dict[str, Any]:
        """Describe the next sample of the global order."""
        epoch, number = self._number(position)
        index = self._index
        return {
            "epoch": epoch,
            "shard": index.shards[index.shard[number]],
            "offset": int(index.offset[number]),
            "key": index.keys[number],
        }

    def _number(self, position: int) -> tuple[int, int]:
        visits = self._visits
        length = self.num_samples if visits is None else len(visits)
        epoch, place = divmod(position, length)
        if epoch not in self._orders:
            # A batch touches at most a few neighbouring epochs; keep two orders.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = epoch_order(length, self._seed, epoch)
        chosen = int(self._orders[epoch][place])
        if visits is None:
            return epoch, chosen
        # What is drawn for a sample depends on its epoch: each visit counts as one of its own.
        return epoch * int(visits[:, 1].max() + 1) + int(visits[chosen, 1]), int(visits[chosen, 0])

    def _sample(self, position: int) -> Sample:
        if self._train:
            epoch, number = self._number(position)
            return self._index.sample(number, epoch)
        valid = position < self.num_samples
        return self._index.sample(position if valid else self.num_samples - 1, 0, valid=valid)
