"""Reads samples back from finished shards, by the offsets of their `.idx`: for checks and pages, not for training."""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_specs.schema import ClipRecord, IndexEntry, ShardIndex, ShardInfo
from tasks.ops.shards import RECORD_MEMBER, read_entries


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
        return ClipRecord.model_validate_json(self.read(RECORD_MEMBER))

    @property
    def video(self) -> str | None:
        """Extension of the member with the pictures."""
        return next((name for name in ("mp4", "jpgs") if name in self.entry.members), None)


def stored_samples(folder: Path, index: ShardIndex) -> list[StoredSample]:
    """Return all samples of a data set in the order of its shards."""
    found = []
    for info in sorted(index.shards, key=lambda shard: shard.name):
        tar = folder / info.name
        found += [StoredSample(tar, info, entry) for entry in read_entries(tar.with_suffix(".idx"))]
    return found


def some(samples: Sequence[StoredSample], limit: int, seed: int = 0) -> list[StoredSample]:
    """Return at most `limit` samples, chosen by the seed, in stored order."""
    if len(samples) <= limit:
        return list(samples)
    return [samples[n] for n in sorted(random.Random(seed).sample(range(len(samples)), limit))]
