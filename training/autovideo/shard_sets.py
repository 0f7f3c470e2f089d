"""Opens finished shards as a value of a pipeline."""

from pathlib import Path

from data_specs.schema import read_index
from training.autovideo.values import Shards
from training.core.config import ConfigError


def open_shards(folder: Path, dataset: str) -> Shards:
    """Return a folder of shards as a value.

    Raises:
        ConfigError: two splits hold the same videos (a test that is the validation decides nothing).
    """
    index = read_index(folder)
    splits = sorted({shard.split for shard in index.shards if shard.samples})
    prints = {split: index.data_digest(split) for split in splits}
    for first in splits:
        for second in splits:
            if first < second and prints[first] == prints[second]:
                raise ConfigError(f"{folder}: the splits {first} and {second} are the same videos")
    return Shards(folder=folder, dataset=dataset, fingerprints=prints, classes=tuple(index.classes))


def num_samples(folder: Path, split: str) -> int:
    """Return how many videos a split has."""
    return sum(shard.samples for shard in read_index(folder).shards if shard.split == split)
