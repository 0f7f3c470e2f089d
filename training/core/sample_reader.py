"""Samples by key, straight from the tars: for pages, examples and round trips, not for training."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_specs.jpgs import MAGIC, pack_jpgs, unpack_jpgs
from data_specs.schema import ClipRecord, IndexEntry, read_index
from training.core.config import DataConfig
from training.core.sampling import frame_positions, nearest_stored

if TYPE_CHECKING:
    from training.core.system import RawBatch


def read_samples(shards: Path, keys: Iterable[str], split: str | None = None) -> dict[str, dict[str, bytes]]:
    """Return key → extension → bytes, in the order of the keys.

    Args:
        shards: folder of a data set's shards.
        keys: samples to read.
        split: look only in this split's shards.

    Raises:
        KeyError: a key is in none of the shards.
    """
    wanted = list(dict.fromkeys(keys))
    index = read_index(shards)
    found: dict[str, dict[str, bytes]] = {}
    for shard in index.shards if split is None else index.of_split(split):
        tar = shards / shard.name
        entries = [
            entry
            for line in tar.with_suffix(".idx").read_text().splitlines()
            if (entry := IndexEntry.model_validate_json(line)).key in wanted
        ]
        if entries:
            found |= {entry.key: _members(tar, entry.members) for entry in entries}
        if len(found) == len(wanted):
            break
    missing = [key for key in wanted if key not in found]
    if missing:
        raise KeyError(f"{len(missing)} samples are not in the shards of {shards}, the first is {missing[0]!r}")
    return {key: found[key] for key in wanted}


def _members(tar: Path, members: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
    handle = os.open(tar, os.O_RDONLY)
    try:
        content = {name: os.pread(handle, size, offset) for name, (offset, size) in members.items()}
    finally:
        os.close(handle)
    for name, (_, size) in members.items():
        if len(content[name]) != size:
            raise OSError(f"{tar} is shorter than its index says (member {name}); pull it again (`dvc pull`)")
    return content


def source_name(sample: Mapping[str, bytes]) -> str:
    """Return the source video of a sample, as its `json` member names it."""
    return str(json.loads(sample["json"])["source"]) if "json" in sample else ""


def clip_of(sample: Mapping[str, bytes], config: DataConfig) -> bytes:
    """Return the pictures of a sample as bytes that `load_pictures` understands.

    Of a `jpgs` member only the frames that an evaluation with this config takes are kept, in order.

    Raises:
        KeyError: neither `mp4` nor `jpgs`.
    """
    if "mp4" in sample:
        return sample["mp4"]
    if "jpgs" not in sample:
        raise KeyError(f"a sample has neither mp4 nor jpgs (it has: {', '.join(sample)})")
    record = ClipRecord.model_validate_json(sample["json"])
    files = unpack_jpgs(sample["jpgs"])
    stored = record.frame_index or tuple(range(len(files)))
    places = nearest_stored(frame_positions(record.num_frames, config, train=False, seed=0), stored)
    return pack_jpgs([bytes(files[place]) for place in places])


def load_pictures(source: Path | bytes, config: DataConfig, *, decoder: str, key: str = "0") -> "RawBatch":
    """Decode a video, or a buffer of packed JPEG frames, as a batch of one, sampled as in evaluation."""
    import torch

    from training.core.data import load_clip
    from training.core.decode import decode_jpegs
    from training.core.sampling import clip_seed
    from training.core.system import RawBatch

    content = source
    if isinstance(source, Path) and source.is_file():
        with source.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                content = MAGIC + file.read()
    if not (isinstance(content, bytes) and content.startswith(MAGIC)):
        return load_clip(source, config, decoder=decoder, key=key)
    count = len(unpack_jpgs(content))
    # As many frames as the network takes: they were chosen already.
    places = np.arange(count) if count == config.eval_frames else frame_positions(count, config, train=False, seed=0)
    frames = decode_jpegs(content, places, decoder)
    return RawBatch(
        frames_BTHWC=torch.from_numpy(frames)[None],
        size_B2=torch.tensor([frames.shape[1:3]], dtype=torch.int64),
        label_B=torch.tensor([-1]),
        key=(key,),
        seed_B=torch.tensor([clip_seed(0, 0, key)], dtype=torch.int64),
        valid_B=torch.tensor([True]),
    )


def evaluated_clips(
    shards: Path, predictions: Path, split: str, count: int, config: DataConfig
) -> tuple[dict[str, bytes], dict[str, NDArray[np.float32]], tuple[str, ...]]:
    """Return clips, evenly spaced over the evaluated ones, with the scores that the evaluation gave them.

    Returns:
        key → clip, key → scores (K,), class names.
    """
    with np.load(predictions) as arrays:
        keys = arrays["key"]
        scores = arrays["scores"]
        classes = tuple(str(name) for name in arrays["classes"])
    chosen = np.unique(np.linspace(0, len(keys) - 1, min(count, len(keys))).round().astype(int))
    names = [str(keys[i]) for i in chosen]
    clips = {key: clip_of(sample, config) for key, sample in read_samples(shards, names, split).items()}
    return clips, {str(keys[i]): scores[i] for i in chosen}, classes
