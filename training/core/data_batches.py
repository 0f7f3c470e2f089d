"""Samples → batches: threads decode into one preallocated canvas, a few batches ahead.

The second stage of both pipelines (`index` and `stream`). Worker processes would have to copy every
clip through shared memory; the decoders release the interpreter lock, so threads cost nothing here.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.core.config import DataConfig
from training.core.decode import (
    DecodeError,
    count_frames,
    count_packets,
    decode_clip,
    decode_jpegs,
    reproduce_line,
)
from training.core.sampling import clip_seed, frame_positions, nearest_stored
from training.core.system import RawBatch

__all__ = ["BatchAssembler", "Sample", "SampleError", "decode_unknown"]

Frame = NDArray[np.uint8]
Label = int | tuple[int, ...]


class SampleError(RuntimeError):
    """A sample of a shard cannot be turned into frames; the message has key, shard, decoder and a command."""


class Sample(NamedTuple):
    """One clip to decode."""

    key: str
    label: Label
    epoch: int
    valid: bool
    """False for the padding of the last evaluation batch."""
    num_frames: int | None
    """None where no record says it (foreign tars): then it is counted."""
    size: tuple[int, int] | None
    """Height and width in pixels; None where no record says it."""
    frame_index: tuple[int, ...] | None
    """Which frames are stored, for `jpgs`."""
    origin: str
    """Path or URL of the tar."""
    extension: str
    read: Callable[[], bytes]
    """Returns the bytes of the clip."""


@dataclass
class _Pending:
    samples: Sequence[Sample]
    frames: Tensor | None
    """Canvas, when all sizes are known beforehand."""
    futures: list["Future[Frame]"]


class BatchAssembler:
    """Decodes lists of samples into `RawBatch`es, in order, `prefetch` batches ahead."""

    def __init__(
        self,
        config: DataConfig,
        *,
        decoder: str,
        train: bool,
        seed: int,
        num_classes: int,
        multi_label: bool,
        pin: bool,
    ) -> None:
        self._config = config
        self._decoder = decoder
        self._train = train
        self._seed = seed
        self._num_classes = num_classes
        self._multi_label = multi_label
        self._pin = pin
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[_Pending] = deque()
        self._buffers: list[NDArray[np.uint8]] = []

    def run(self, plans: Iterable[list[Sample]]) -> Iterator[RawBatch]:
        """Yield one batch per list of samples; an error surfaces at its own batch, not before."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._config.threads, thread_name_prefix="decode")
        iterator = iter(plans)
        failure: Exception | None = None
        try:
            while failure is None:
                try:
                    plan = next(iterator)
                except StopIteration:
                    break
                except Exception as error:
                    failure = error
                    break
                self._pending.append(self._start(plan))
                if len(self._pending) > self._config.prefetch:
                    yield self._finish(self._pending.popleft())
            while self._pending:
                yield self._finish(self._pending.popleft())
            if failure is not None:
                raise failure
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Drop the batches that are being prepared."""
        while self._pending:
            for future in self._pending.popleft().futures:
                future.cancel()

    def close(self) -> None:
        """Cancel and wait for the threads to end."""
        self.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._buffers.clear()

    def _start(self, samples: list[Sample]) -> _Pending:
        assert self._pool is not None
        sizes = [sample.size for sample in samples if sample.size is not None]
        if len(sizes) < len(samples):
            return _Pending(samples, None, [self._pool.submit(self._decode, sample, None) for sample in samples])
        frames = self._canvas(len(samples), sizes)
        canvas = frames.numpy()
        futures = []
        for place, (height, width) in enumerate(sizes):
            canvas[place, :, height:] = 0
            canvas[place, :, :height, width:] = 0
            futures.append(self._pool.submit(self._decode, samples[place], canvas[place, :, :height, :width]))
        return _Pending(samples, frames, futures)

    def _canvas(self, count: int, sizes: Sequence[tuple[int, int]]) -> Tensor:
        height, width = (max(axis) for axis in zip(*sizes, strict=True))
        frames = self._config.num_frames if self._train else self._config.eval_frames
        shape = (count, frames, height, width, 3)
        if self._pin:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(self._buffer(math.prod(shape)).reshape(shape))

    def _buffer(self, size: int) -> NDArray[np.uint8]:
        """Return uninitialised memory, that of a batch which nobody holds any more where possible.

        Fresh memory would be mapped page by page for each batch, which costs about a tenth of the
        decoding. A tensor or view made of a buffer holds a reference to it, so a buffer with no reference
        but the list's is free.
        """
        for place in range(len(self._buffers)):
            if sys.getrefcount(self._buffers[place]) > 2:  # the list's reference and the argument's
                continue
            if self._buffers[place].size < size:
                self._buffers[place] = np.empty(size, dtype=np.uint8)
            return self._buffers[place][:size]
        buffer = np.empty(size, dtype=np.uint8)
        if len(self._buffers) < self._config.prefetch + 3:
            self._buffers.append(buffer)
        return buffer[:size]

    def _finish(self, pending: _Pending) -> RawBatch:
        try:
            clips = [future.result() for future in pending.futures]
        except BaseException:
            for future in pending.futures:
                future.cancel()
            raise
        frames = pending.frames
        if frames is None:
            frames = self._canvas(len(clips), [clip.shape[1:3] for clip in clips]).zero_()
            canvas = frames.numpy()
            for place, clip in enumerate(clips):
                canvas[place, :, : clip.shape[1], : clip.shape[2]] = clip
        samples = pending.samples
        seeds = [clip_seed(self._seed, sample.epoch, sample.key) for sample in samples]
        return RawBatch(
            frames_BTHWC=frames,
            size_B2=self._tensor([clip.shape[1:3] for clip in clips], torch.int64),
            label_B=self._labels([sample.label for sample in samples]),
            key=tuple(sample.key for sample in samples),
            seed_B=self._tensor(seeds, torch.int64),
            valid_B=self._tensor([sample.valid for sample in samples], torch.bool),
        )

    def _tensor(self, values: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, pin_memory=self._pin)

    def _labels(self, labels: Sequence[Label]) -> Tensor:
        if not self._multi_label:
            return self._tensor(labels, torch.int64)
        hot = self._tensor(np.zeros((len(labels), self._num_classes)), torch.float32)
        for row, label in enumerate(labels):
            hot[row, [label] if isinstance(label, int) else list(label)] = 1
        return hot

    def _decode(self, sample: Sample, out: Frame | None) -> Frame:
        seed = clip_seed(self._seed, sample.epoch, sample.key)
        positions: NDArray[np.int64] | None = None
        try:
            content = sample.read()
            if sample.num_frames is None:
                return decode_unknown(content, self._config, decoder=self._decoder, train=self._train, seed=seed)
            positions = frame_positions(sample.num_frames, self._config, train=self._train, seed=seed)
            if sample.extension != "jpgs":
                return decode_clip(content, positions, self._decoder, out)
            if sample.frame_index is None:
                raise DecodeError("its record has no frame_index, which a jpgs sample must have")
            positions = nearest_stored(positions, sample.frame_index)
            return decode_jpegs(content, positions, self._decoder, out)
        except Exception as error:
            member = f"{sample.key}.{sample.extension}"
            command = reproduce_line(
                sample.origin, self._decoder, [0] if positions is None else list(positions), member
            )
            raise SampleError(
                f"sample {sample.key!r} of {sample.origin} (decoder {self._decoder}): {error}\n  repeat with: {command}"
            ) from error


def decode_unknown(
    source: Any, config: DataConfig, *, decoder: str, train: bool, seed: int, out: Frame | None = None
) -> Frame:
    """Decode a video whose length no record says.

    Counts packets first, which costs no decoding; when that promises more frames than there are,
    counts by decoding.

    Args:
        source: bytes or path.
        seed: of the frame choice, in training.

    Returns:
        (T,H,W,3) uint8.

    Raises:
        DecodeError: not decodable.
    """
    count = count_packets(source)
    if count < 1:
        raise DecodeError("it has no video frames")
    try:
        return decode_clip(source, frame_positions(count, config, train=train, seed=seed), decoder, out)
    except DecodeError:
        actual = count_frames(source)
        if actual == count or actual < 1:
            raise
        return decode_clip(source, frame_positions(actual, config, train=train, seed=seed), decoder, out)
