"""Loader of clips: what systems, loop and evaluator see of the data.

`open_loader` joins a source (`index` or `stream`, D7) and the decoding threads into a
`webdataset.DataPipeline`. `ClipLoader` adds the position: it counts batches that were handed out, never
those that were only prefetched, so a checkpoint taken after a step continues with the next batch.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.core.config import DataConfig
from training.core.data_batches import BatchAssembler, batch_of_one
from training.core.data_index import DataError, IndexSource, Source
from training.core.data_sample import ClipReader, Sample, SampleError, any_video
from training.core.decode import DecodeError, count_frames, resolve_decoder
from training.core.frame_sampling import whole_videos
from training.core.system import RawBatch
from training.core.transforms import ClipTransform, source_rectangle

__all__ = [
    "ClipLoader",
    "ClipTransform",
    "CoverageError",
    "DataError",
    "DecodeError",
    "LoaderStateError",
    "SampleError",
    "check_coverage",
    "check_ranks",
    "load_clip",
    "open_loader",
    "resolve_decoder",
    "source_rectangle",
    "video_blocks",
]

log = logging.getLogger(__name__)

STATE_FORMAT = 1


class CoverageError(RuntimeError):
    """An evaluation missed samples or counted some twice."""


class LoaderStateError(ValueError):
    """A saved position belongs to other data, another seed or another decoder."""


class ClipLoader:
    """Batches of one rank; implements `training.core.system.Loader`."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        *,
        split: str,
        train: bool,
        seed: int,
        world: int,
        decoder: str,
        pin: bool,
        allow_decoder_change: bool = False,
    ) -> None:
        self.decoder = decoder
        self.classes = source.classes
        self.num_samples = source.num_samples
        self.num_listed = source.num_listed
        """Videos that the sources list for this split, rejected ones included."""
        self.num_batches = source.num_batches
        self.data_digest = source.data_digest
        self.whole_videos = config.sampling == "frames" and not train
        """Whether batches are blocks of a video, one video after another (`training/core/evaluate_frames.py`)."""
        self._source = source
        self._config = config
        self._split = split
        self._train = train
        self._seed = seed
        self._world = world
        self._allow_decoder_change = allow_decoder_change
        self._position = 0
        self._closed = False
        self._active: Iterator[RawBatch] | None = None
        self._assembler = BatchAssembler(
            config,
            decoder=decoder,
            train=train,
            seed=seed,
            num_classes=len(source.classes),
            multi_label=source.multi_label or config.sampling == "frames",
            pin=pin,
        )

    @property
    def expected_keys(self) -> Sequence[str]:
        """Keys of all samples of the split, over all ranks."""
        return self._source.expected_keys

    def __iter__(self) -> Iterator[RawBatch]:
        """Yield batches: in training endlessly from the current position on, in evaluation each sample once.

        A new iterator ends the one before.

        Raises:
            SampleError: a sample cannot be decoded; it is never skipped or replaced.
            RuntimeError: the loader was closed.
        """
        if self._closed:
            raise RuntimeError("this loader was closed; open a new one")
        self._stop()
        if not self._train:
            self._position = 0
        self._active = self._batches()
        return self._active

    def _batches(self) -> Iterator[RawBatch]:
        import webdataset as wds  # imports torch and takes a second; only processes that read need it

        start = self._position
        pipeline = wds.DataPipeline(lambda: self._plans(start), self._assembler.run)
        for batch in pipeline:
            # Before the yield: during the consumer's step this batch counts as used.
            self._position += self._config.batch_size
            yield batch

    def _plans(self, start: int) -> Iterator[list[Sample]]:
        plans = self._source.batches(start)
        if self._config.sampling == "frames" and not self._train:
            return whole_videos(plans, self._config)
        return plans

    def _stop(self) -> None:
        active, self._active = self._active, None
        if active is not None:
            active.close()  # type: ignore[attr-defined]
        self._assembler.cancel()

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch handed out; the same on every rank, JSON-able."""
        return {
            "format": STATE_FORMAT,
            "source": self._config.source,
            "split": self._split,
            "train": self._train,
            "seed": self._seed,
            "decoder": self.decoder,
            "data_digest": self.data_digest,
            "batch_size": self._config.batch_size,
            "world": self._world,
            "position": self._position,
            **self._source.place(self._position),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position; the number of ranks and the batch size may have changed.

        Raises:
            LoaderStateError: other data, seed, split, source or decoder; the message names the field.
        """
        if not self._train:
            raise LoaderStateError(
                "an evaluation loader has no position to restore; it always starts at the first sample"
            )
        own = self.state_dict()
        missing = [field for field in own if field not in state]
        if missing:
            raise LoaderStateError(f"loader state lacks the fields {', '.join(missing)}")
        fields = ["format", "source", "split", "train", "seed", "data_digest"]
        if self._source.world_bound:
            fields += ["world", "batch_size"]
        for field in fields:
            if state[field] != own[field]:
                raise LoaderStateError(
                    f"loader state was made with {field} = {state[field]!r}, this run has {own[field]!r}; "
                    "start afresh or restore what it was made with"
                )
        if state["decoder"] != self.decoder:
            change = f"loader state was made with decoder {state['decoder']!r}, this run decodes with {self.decoder!r}"
            if not self._allow_decoder_change:
                raise LoaderStateError(
                    f"{change}, which may give other pixels; make {state['decoder']!r} work here or pass "
                    "--allow-decoder-change (`dvc repro` takes FOVEA_ALLOW_DECODER_CHANGE=1)"
                )
            log.warning("%s, as allowed", change)
        place = self._source.place(int(state["position"]))
        if any(state[field] != value for field, value in place.items()):
            raise LoaderStateError(
                f"position {state['position']} is sample {place.get('key')!r} here, but {state.get('key')!r} in the "
                "loader state: the order of samples has changed"
            )
        self._stop()
        self._position = int(state["position"])

    def close(self) -> None:
        """End iteration and threads; may be called twice."""
        self._closed = True
        self._stop()
        self._assembler.close()


def open_loader(
    shards: Path,
    config: DataConfig,
    *,
    split: str,
    train: bool,
    seed: int,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
    allow_decoder_change: bool = False,
) -> ClipLoader:
    """Open the loader of one rank on a shard folder.

    Args:
        shards: folder with `index.json`; with source `stream` also a folder of foreign tars with `labels.txt`.
        train: endless and shuffled; otherwise each sample once, in order.
        seed: of order, frame choice and augmentation.
        pin: put batches into page-locked memory (GPU).
        allow_decoder_change: let a position be restored that another rung of the decoder ladder saved.

    Raises:
        DataError: incomplete or damaged folder, unknown split, or a batch size that ranks cannot share.
        DecodeError: the decoder cannot be used on this machine.
    """
    check_ranks(config, rank, world)
    source: Source
    shared: dict[str, Any] = {
        "batch_size": config.batch_size,
        "train": train,
        "seed": seed,
        "rank": rank,
        "world": world,
        # Of a detector's samples, the objects are the labels.
        "needs_label": config.frames is None,
    }
    repeats = None if config.frames is None else config.frames.repeats
    if config.source == "index":
        source = IndexSource(shards, split, repeats=repeats, **shared)
    elif repeats:
        raise DataError("frames.repeats needs source `index`: a stream gives each sample once per epoch")
    else:
        from training.core.data_stream import open_folder

        source = open_folder(shards, split, **shared)
    return ClipLoader(
        source,
        config,
        split=split,
        train=train,
        seed=seed,
        world=world,
        decoder=resolve_decoder(config.decoder),
        pin=pin,
        allow_decoder_change=allow_decoder_change,
    )


def check_ranks(config: DataConfig, rank: int, world: int) -> None:
    """Raise `DataError` when a rank does not exist or ranks cannot share a batch equally."""
    if not 0 <= rank < world:
        raise DataError(f"rank {rank} is not one of {world} ranks")
    if config.batch_size % world:
        raise DataError(f"data.batch_size {config.batch_size} cannot be divided between {world} ranks")


def load_clip(source: Path | bytes, config: DataConfig, *, decoder: str, key: str = "0") -> RawBatch:
    """Decode one video from anywhere as a batch of one, sampled as in evaluation.

    With `data.sound` it comes with its sound, zeros where the video has none; with `data.flow`, with optical flow that
    is extracted from its frames.

    Args:
        source: a video file, or its bytes.
        decoder: rung of the model's training, or `auto`.
        key: names the clip in the batch; seeds its draws.

    Returns:
        A batch without label (−1).

    Raises:
        FileNotFoundError: no such file.
        DecodeError: not a video, or damaged; the message names the file.
    """
    name = str(source) if isinstance(source, Path) else f"video of {len(source)} bytes"
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"{source} is not a file")
    rung = resolve_decoder(decoder)
    reader = ClipReader(any_video(source, key), config, decoder=rung, train=False, seed=0, extract=True)
    try:
        return batch_of_one(reader.read(), config, key=key, seed=reader.seed)
    except DecodeError as error:
        raise DecodeError(f"{name}: {error}") from error


def video_blocks(
    source: Path | bytes, config: DataConfig, *, decoder: str, key: str = "0", num_frames: int | None = None
) -> Iterator[RawBatch]:
    """Yield one video from anywhere in blocks of frames, batches of one without label (−1) and without objects.

    Args:
        source: a video file, or its bytes.
        config: of a detector (`sampling: frames`).
        decoder: rung of the model's training, or `auto`.
        key: names the video in the batches.
        num_frames: how many can be decoded; None counts them.

    Raises:
        FileNotFoundError: no such file.
        DecodeError: not a video, or damaged; the message names the file.
    """
    assert config.frames is not None
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"{source} is not a file")
    rung = resolve_decoder(decoder)
    name = str(source) if isinstance(source, Path) else f"video of {len(source)} bytes"
    try:
        count = count_frames(source) if num_frames is None else num_frames
        if count < 1:
            raise DecodeError("it has no video frames")
        sample = any_video(source, key)._replace(num_frames=count)
        for plan in whole_videos([[sample]], config):
            reader = ClipReader(plan[0], config, decoder=rung, train=False, seed=0)
            yield batch_of_one(reader.read(), config, key=key, seed=reader.seed)
    except DecodeError as error:
        raise DecodeError(f"{name}: {error}") from error


def check_coverage(keys: Sequence[str], expected: Sequence[str]) -> None:
    """Assert that an evaluation saw each expected sample exactly once.

    Args:
        keys: of all ranks, without padding.
        expected: keys of the split.

    Raises:
        CoverageError: with the first missing, doubled and unknown keys and their numbers.
    """
    counts = Counter(keys)
    wanted = set(expected)
    problems = {
        "missing": [key for key in expected if key not in counts],
        "evaluated more than once": [key for key, count in counts.items() if count > 1],
        "not in the split": [key for key in counts if key not in wanted],
    }
    found = [
        f"{len(names)} {what} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        for what, names in problems.items()
        if names
    ]
    if found:
        raise CoverageError(f"of {len(expected)} samples: {'; '.join(found)}")
