"""Samples by key, straight from the tars: for pages, examples and round trips, not for training."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_specs.jpgs import MAGIC, pack_jpgs, unpack_jpgs
from data_specs.schema import ClipRecord, IndexEntry, read_index
from training.core.config import DataConfig
from training.core.data_sample import EXTRAS, ClipReader, Decoded, Sample, any_video
from training.core.decode import DecodeError, decode_jpegs, resolve_decoder
from training.core.sampling import clip_seed, frame_positions, nearest_stored

if TYPE_CHECKING:
    from training.core.system import RawBatch

NAME = "sample"
TAR_START = f"{NAME}.json\0".encode()
"""First bytes of a tar that `pack_sample` made: the name of its first member."""


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
    """Return a sample as bytes that `load_pictures` reads as an evaluation with this config does.

    A video as it is, where nothing beside it is read; of a `jpgs` member only the frames that the evaluation takes,
    in order. Where sound or optical flow lies in a member of its own, or no frame is taken, the sample as a tar.

    Raises:
        KeyError: neither `mp4` nor `jpgs`.
    """
    clip = next((name for name in ("mp4", "jpgs") if name in sample), None)
    if clip is None:
        raise KeyError(f"a sample has neither mp4 nor jpgs (it has: {', '.join(sample)})")
    wanted = {"wav": config.sound is not None, "m4a": config.sound is not None, "flow": config.flow}
    beside = [name for name in EXTRAS if name in sample and wanted.get(name)]
    if beside or (clip == "jpgs" and config.pictures == "none"):
        return pack_sample({name: sample[name] for name in ("json", clip, *beside)})
    if clip == "mp4":
        return sample["mp4"]
    record = ClipRecord.model_validate_json(sample["json"])
    files = unpack_jpgs(sample["jpgs"])
    stored = record.frame_index or tuple(range(len(files)))
    places = nearest_stored(frame_positions(record.num_frames, config, train=False, seed=0), stored)
    return pack_jpgs([bytes(files[place]) for place in places])


def pack_sample(members: Mapping[str, bytes]) -> bytes:
    """Return a tar of one sample, `json` first: with all that a loader reads of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("json", *(name for name in members if name != "json")):
            info = tarfile.TarInfo(f"{NAME}.{name}")
            info.size = len(members[name])
            tar.addfile(info, io.BytesIO(members[name]))
    return buffer.getvalue()


def unpack_sample(content: bytes) -> dict[str, bytes]:
    """Return extension → bytes of a tar of one sample.

    Raises:
        DecodeError: damaged.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            files = {info.name.partition(".")[2]: tar.extractfile(info) for info in tar}
            return {name: file.read() for name, file in files.items() if file is not None}
    except (tarfile.TarError, EOFError) as error:
        raise DecodeError(f"the packed sample cannot be read: {error}") from error


def load_pictures(source: Path | bytes, config: DataConfig, *, decoder: str, key: str = "0") -> "RawBatch":
    """Decode a video, or what `clip_of` returns, as a batch of one, sampled as in evaluation.

    Packed pictures have no sound, whatever `config` wants.

    Raises:
        FileNotFoundError: no such file.
        DecodeError: it cannot be decoded, or has not what `config` wants.
    """
    from training.core.data import load_clip
    from training.core.data_batches import batch_of_one

    content = _contents(source)
    if content is None:
        return load_clip(source, config, decoder=decoder, key=key)
    if content.startswith(TAR_START):
        rung = resolve_decoder(decoder)
        reader = ClipReader(_packed(content, key), config, decoder=rung, train=False, seed=0, extract=True)
        return batch_of_one(reader.read(), config, key=key, seed=reader.seed)
    if config.flow:
        raise DecodeError("packed pictures have no optical flow, which this model looks at")
    count = len(unpack_jpgs(content))
    # As many frames as the network takes: they were chosen already.
    places = np.arange(count) if count == config.eval_frames else frame_positions(count, config, train=False, seed=0)
    clip = Decoded(decode_jpegs(content, places, decoder), None, None)
    return batch_of_one(clip, config, key=key, seed=clip_seed(0, 0, key))


def as_sample(source: Path | bytes, key: str = "0") -> Sample:
    """Return a video, or a sample that `clip_of` packed, to be read part by part.

    Raises:
        FileNotFoundError: no such file.
        DecodeError: pictures without a video.
    """
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"{source} is not a file")
    content = _contents(source)
    sample = any_video(source, key) if content is None else None
    if sample is None and content is not None and content.startswith(TAR_START):
        sample = _packed(content, key)
    if sample is None or sample.extension == "jpgs":
        raise DecodeError("it is pictures, not a video")
    return sample


def _contents(source: Path | bytes) -> bytes | None:
    """Return the bytes of what `clip_of` made, None for a video."""
    starts = (MAGIC, TAR_START)
    if isinstance(source, bytes):
        return source if source.startswith(starts) else None
    if not source.is_file():
        return None
    with source.open("rb") as file:
        start = file.read(len(TAR_START))
        return start + file.read() if start.startswith(starts) else None


def _packed(content: bytes, key: str) -> Sample:
    """Return a tar of one sample as the loader's source `index` would."""
    members = unpack_sample(content)
    clip = next((name for name in ("mp4", "jpgs") if name in members), None)
    if clip is None:
        raise DecodeError(f"the packed sample has neither mp4 nor jpgs (it has: {', '.join(members)})")
    record = ClipRecord.model_validate_json(members["json"])
    return Sample(
        key=key,
        label=-1,
        epoch=0,
        valid=True,
        num_frames=record.num_frames,
        size=(record.height, record.width),
        frame_index=record.frame_index,
        origin="",
        extension=clip,
        read=lambda: members[clip],
        fps=record.fps,
        extras={name: partial(members.__getitem__, name) for name in EXTRAS if name in members},
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
