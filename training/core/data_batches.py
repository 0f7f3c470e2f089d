"""Samples → batches: threads decode into one preallocated canvas, a few batches ahead.

The second stage of both pipelines (`index` and `stream`). Worker processes would have to copy every
clip through shared memory; the decoders release the interpreter lock, so threads cost nothing here.
"""

import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.core.config import DataConfig
from training.core.data_sample import ClipReader, Decoded, Label, Sample
from training.core.frame_sampling import collate_objects
from training.core.sampling import clip_seed
from training.core.system import RawBatch

__all__ = ["BatchAssembler", "batch_of_one"]


@dataclass
class _Pending:
    samples: Sequence[Sample]
    frames: Tensor | None
    """Canvas, when all sizes are known beforehand."""
    flow: Tensor | None
    """The same for optical flow, where it is wanted."""
    futures: list["Future[Decoded]"]


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
        # Batches, and within them frames and flow, are of different sizes: each kind has its own memory.
        self._buffers: dict[str, list[NDArray[np.uint8]]] = {"frames": [], "flow": []}

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
        for buffers in self._buffers.values():
            buffers.clear()

    def _start(self, samples: list[Sample]) -> _Pending:
        assert self._pool is not None
        sizes = [sample.size for sample in samples if sample.size is not None]
        if len(sizes) < len(samples):
            return _Pending(samples, None, None, [self._pool.submit(self._read, sample) for sample in samples])
        frames, flow = self._canvas(sizes, samples), self._flow_canvas(sizes)
        futures = []
        for place, (height, width) in enumerate(sizes):
            views: list[NDArray[np.uint8] | None] = []
            for canvas in (frames, flow):
                if canvas is None:
                    views.append(None)
                    continue
                clip = canvas[place].numpy()
                clip[:, height:] = 0
                clip[:, :height, width:] = 0
                views.append(clip[:, :height, :width])
            futures.append(self._pool.submit(self._read, samples[place], *views))
        return _Pending(samples, frames, flow, futures)

    def _canvas(self, sizes: Sequence[tuple[int, int]], samples: Sequence[Sample]) -> Tensor:
        block = samples[0].block
        frames = self._frames_per_video() if block is None else block[1] - block[0]
        return self._empty("frames", (len(sizes), frames, *_largest(sizes), 3))

    def _flow_canvas(self, sizes: Sequence[tuple[int, int]]) -> Tensor | None:
        config = self._config
        if not config.flow:
            return None
        fields = self._clips_per_video() * config.num_frames * (config.stack - 1)
        return self._empty("flow", (len(sizes), fields, *_largest(sizes), 2))

    def _frames_per_video(self) -> int:
        return self._config.train_frames if self._train else self._config.eval_frames

    def _clips_per_video(self) -> int:
        return self._config.train_clips if self._train else self._config.eval_clips

    def _empty(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        if self._pin:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(self._buffer(self._buffers[kind], math.prod(shape)).reshape(shape))

    def _buffer(self, buffers: list[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
        """Return uninitialised memory, that of a batch which nobody holds any more where possible.

        Fresh memory would be mapped page by page for each batch, which costs about a tenth of the
        decoding. A tensor or view made of a buffer holds a reference to it, so a buffer with no reference
        but the list's is free.
        """
        for place in range(len(buffers)):
            if sys.getrefcount(buffers[place]) > 2:  # the list's reference and the argument's
                continue
            if buffers[place].size < size:
                buffers[place] = np.empty(size, dtype=np.uint8)
            return buffers[place][:size]
        buffer = np.empty(size, dtype=np.uint8)
        if len(buffers) < self._config.prefetch + 3:
            buffers.append(buffer)
        return buffer[:size]

    def _finish(self, pending: _Pending) -> RawBatch:
        try:
            clips = [future.result() for future in pending.futures]
        except BaseException:
            for future in pending.futures:
                future.cancel()
            raise
        sizes = [_size(clip) for clip in clips]
        frames, flow = pending.frames, pending.flow
        if frames is None:
            frames, flow = self._canvas(sizes, pending.samples), self._flow_canvas(sizes)
            _fill(frames, [clip.frames for clip in clips])
            if flow is not None:
                _fill(flow, [clip.flow for clip in clips if clip.flow is not None])
        sound, has_sound = self._sound(clips)
        samples = pending.samples
        seeds = [clip_seed(self._seed, sample.epoch, sample.key) for sample in samples]
        return RawBatch(
            frames_BTHWC=frames,
            size_B2=self._tensor(sizes, torch.int64),
            label_B=self._labels([sample.label for sample in samples]),
            key=tuple(sample.key for sample in samples),
            seed_B=self._tensor(seeds, torch.int64),
            valid_B=self._tensor([sample.valid for sample in samples], torch.bool),
            sound_BSN=sound,
            has_sound_B=has_sound,
            flow_BTHWC=flow,
            **self._objects(clips),
        )

    def _objects(self, clips: Sequence[Decoded]) -> dict[str, Any]:
        """Return the fields of `RawBatch` that only `sampling: frames` fills."""
        if self._config.sampling != "frames":
            return {}
        numbers = np.stack([clip.number_T for clip in clips if clip.number_T is not None])
        known = [clip.objects for clip in clips if clip.objects is not None]
        return {
            "number_BT": self._tensor(numbers, torch.int64),
            "boxes": collate_objects(known, pin=self._pin) if len(known) == len(clips) else None,
            "sizes": tuple(_size(clip) for clip in clips),
            "video": clips[0].video,
        }

    def _sound(self, clips: Sequence[Decoded]) -> tuple[Tensor | None, Tensor | None]:
        if (config := self._config.sound) is None:
            return None, None
        shape = (len(clips), self._clips_per_video(), config.samples)
        sound = torch.zeros(shape, dtype=torch.int16, pin_memory=self._pin)
        for place, clip in enumerate(clips):
            if clip.sound is not None:
                sound[place] = torch.from_numpy(clip.sound)
        return sound, self._tensor([clip.sound is not None for clip in clips], torch.bool)

    def _tensor(self, values: Any, dtype: torch.dtype) -> Tensor:
        # torch does not pin what it makes of an array.
        tensor = torch.tensor(values, dtype=dtype)
        return tensor.pin_memory() if self._pin else tensor

    def _labels(self, labels: Sequence[Label]) -> Tensor:
        if not self._multi_label:
            return self._tensor(labels, torch.int64)
        hot = self._tensor(np.zeros((len(labels), self._num_classes)), torch.float32)
        for row, label in enumerate(labels):
            hot[row, [label] if isinstance(label, int) else list(label)] = 1
        return hot

    def _read(
        self, sample: Sample, frames: NDArray[np.uint8] | None = None, flow: NDArray[np.uint8] | None = None
    ) -> Decoded:
        reader = ClipReader(sample, self._config, decoder=self._decoder, train=self._train, seed=self._seed)
        return reader.checked(frames, flow)


def batch_of_one(clip: Decoded, config: DataConfig, *, key: str, seed: int) -> RawBatch:
    """Return a clip that was read as in evaluation as a batch without label (−1)."""
    sound = has_sound = None
    if config.sound is not None:
        sound = torch.zeros((1, config.eval_clips, config.sound.samples), dtype=torch.int16)
        has_sound = torch.tensor([clip.sound is not None])
        if clip.sound is not None:
            sound[0] = torch.from_numpy(clip.sound)
    return RawBatch(
        frames_BTHWC=torch.from_numpy(clip.frames)[None],
        size_B2=torch.tensor([_size(clip)], dtype=torch.int64),
        label_B=torch.tensor([-1]),
        key=(key,),
        seed_B=torch.tensor([seed], dtype=torch.int64),
        valid_B=torch.tensor([True]),
        sound_BSN=sound,
        has_sound_B=has_sound,
        flow_BTHWC=None if clip.flow is None else torch.from_numpy(clip.flow)[None],
        number_BT=None if clip.number_T is None else torch.from_numpy(clip.number_T)[None],
        sizes=(_size(clip),),
        video=clip.video,
    )


def _size(clip: Decoded) -> tuple[int, int]:
    """Return height and width of a clip; what was decoded knows better than the container."""
    seen = clip.flow if clip.flow is not None and not len(clip.frames) else clip.frames
    return seen.shape[1], seen.shape[2]


def _largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    height, width = (max(axis) for axis in zip(*sizes, strict=True))
    return height, width


def _fill(canvas: Tensor, clips: Sequence[NDArray[np.uint8]]) -> None:
    pixels = canvas.zero_().numpy()
    for place, clip in enumerate(clips):
        pixels[place, :, : clip.shape[1], : clip.shape[2]] = clip
