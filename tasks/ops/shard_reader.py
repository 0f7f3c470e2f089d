"""Reads samples back from finished shards, by the offsets of their `.idx`: for checks and pages, not for training."""

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_specs.schema import ClipRecord, IndexEntry, ShardIndex, ShardInfo


class StoredSample(NamedTuple):
    """Where one sample lies."""

    shard: Path
    info: ShardInfo
    entry: IndexEntry

    def read(self, extension: str) -> bytes:
        """Return one member.

        Raises:
            ValueError: the shard is shorter than its index says.
        """
        offset, size = self.entry.members[extension]
        with open(self.shard, "rb") as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) != size:
            raise ValueError(
                f"{self.shard}: member {self.entry.key}.{extension} ends early ({len(data)} of {size} bytes)"
            )
        return data

    def record(self) -> ClipRecord:
        """Return the `json` member."""
        return ClipRecord.model_validate_json(self.read("json"))

    @property
    def video(self) -> str | None:
        """Extension of the member with the pictures."""
        return next((name for name in ("mp4", "jpgs") if name in self.entry.members), None)


def read_idx(path: Path) -> Iterator[IndexEntry]:
    """Read the offsets beside a tar.

    Raises:
        ValueError: a line is no entry; the message names file and line.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield IndexEntry.model_validate(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not an index entry: {error}") from error


def stored_samples(folder: Path, index: ShardIndex) -> list[StoredSample]:
    """Return all samples of a data set in the order of its shards."""
    found = []
    for info in sorted(index.shards, key=lambda shard: shard.name):
        tar = folder / info.name
        found += [StoredSample(tar, info, entry) for entry in read_idx(tar.with_suffix(".idx"))]
    return found


def some(samples: Sequence[StoredSample], limit: int, seed: int = 0) -> list[StoredSample]:
    """Return at most `limit` samples, chosen by the seed, in stored order."""
    if len(samples) <= limit:
        return list(samples)
    return [samples[n] for n in sorted(random.Random(seed).sample(range(len(samples)), limit))]
