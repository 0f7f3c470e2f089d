"""Opens finished shards as a value of a pipeline."""

import hashlib
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

from data_specs.schema import IndexEntry, ShardIndex, read_index
from training.autovideo.values import Shards
from training.core.config import ConfigError


def open_shards(folder: Path, dataset: str) -> Shards:
    """Return a folder of shards as a value.

    Raises:
        ConfigError: two splits hold the same videos (a test that is the validation decides nothing).
    """
    index = read_index(folder)
    splits = sorted({shard.split for shard in index.shards if shard.samples})
    for first, second in itertools.combinations(splits, 2):
        if _same_videos(folder, index, first, second):
            raise ConfigError(f"{folder}: the splits {first} and {second} are the same videos")
    prints = {split: index.data_digest(split) for split in splits}
    return Shards(folder=folder, dataset=dataset, fingerprints=prints, classes=tuple(index.classes))


def num_samples(folder: Path, split: str) -> int:
    """Return how many videos a split has."""
    return sum(shard.samples for shard in read_index(folder).shards if shard.split == split)


def _same_videos(folder: Path, index: ShardIndex, first: str, second: str) -> bool:
    """Whether two splits hold the same videos, under whatever names.

    Fingerprints do not tell: file names and records in the shards have the split in them. Sizes are compared first, and
    bytes only where all of them agree, which they hardly ever do by chance.
    """
    counts = [sum(shard.samples for shard in index.of_split(split)) for split in (first, second)]
    if counts[0] != counts[1]:
        return False
    return all(
        _contents(folder, index, first, hashed) == _contents(folder, index, second, hashed) for hashed in (False, True)
    )


def _contents(folder: Path, index: ShardIndex, split: str, hashed: bool) -> Counter[Any]:
    """Return what the samples of a split are, as sizes or checksums of their members, without their records."""
    found: Counter[Any] = Counter()
    for shard in index.of_split(split):
        path = folder / shard.name
        with path.open("rb") as tar:
            for line in path.with_suffix(".idx").read_text().splitlines():
                members = []
                for name, (offset, size) in sorted(IndexEntry.model_validate_json(line).members.items()):
                    if name == "json":
                        continue
                    mark: Any = size
                    if hashed:
                        tar.seek(offset)
                        mark = hashlib.sha256(tar.read(size)).hexdigest()
                    members.append((name, mark))
                found[tuple(members)] += 1
    return found
