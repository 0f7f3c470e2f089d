"""Videos of `sound_or_picture` in memory, as a loader: rendered, or decoded once from shards; for many epochs."""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.ops.sound_or_picture import SAMPLE_RATE, SoundOrPictureConfig
from tasks.ops.sound_or_picture_render import render_sounding
from training.core.config import DataConfig, SoundConfig, TransformConfig
from training.core.data import open_loader
from training.core.sampling import centre_frames, clip_positions, clip_seed, epoch_order, frame_positions
from training.core.system import RawBatch

Array = NDArray[Any]


@dataclass(frozen=True)
class Videos:
    """A split, as decoded."""

    frames_NTHWC: Array
    sound_NL: Array
    """int16; the picture starts with its first sample."""
    label_N: Array
    flags_NSK: Array
    """bool, whether the picture and the sound of a segment are informative."""


def render(config: SoundOrPictureConfig, split: str, count: int, processes: int) -> Videos:
    """Render a split."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        rows = list(pool.map(partial(render_sounding, config, split), range(count), chunksize=16))
    flags = [flags_of(row.facts) for row in rows]
    return Videos(
        np.stack([row.frames_THWC for row in rows]),
        np.stack([row.sound_N for row in rows if row.sound_N is not None]),
        np.array([row.label for row in rows]),
        np.array(flags),
    )


def read(shards: Path, split: str, flags: Mapping[str, Array], frames: int, fps: float) -> Videos:
    """Decode a split of packed videos of the task, whole, by the project's own loader.

    Args:
        shards: folder of shards.
        split: which.
        flags: sample key → (S,K) whether picture and sound are informative.
        frames: of each video.
        fps: frames per second.
    """
    data = DataConfig(
        num_frames=frames, sampling="clips", batch_size=16, decoder="pyav",
        sound=SoundConfig(rate=SAMPLE_RATE, samples=round(frames / fps * SAMPLE_RATE)),
        transform=TransformConfig(
            size=32, train_crop="center", eval_short_side=32, flip=False, normalise="symmetric"
        ),
    )  # fmt: skip
    loader = open_loader(shards, data, split=split, train=False, seed=0)
    batches = list(loader)
    loader.close()
    kept = [batch.valid_B.numpy() for batch in batches]
    keys = [key for batch in batches for key, valid in zip(batch.key, batch.valid_B.tolist(), strict=True) if valid]
    sounds = [batch.sound_BSN[:, 0].numpy() for batch in batches if batch.sound_BSN is not None]
    return Videos(
        np.concatenate([batch.frames_BTHWC.numpy()[ok] for batch, ok in zip(batches, kept, strict=True)]),
        np.concatenate([sound[ok] for sound, ok in zip(sounds, kept, strict=True)]),
        np.concatenate([batch.label_B.numpy()[ok] for batch, ok in zip(batches, kept, strict=True)]),
        np.stack([flags[key] for key in keys]),
    )


def flags_of(facts: Mapping[str, Any]) -> Array:
    """Return (S,K) bool, whether picture and sound of each segment are informative, from a row of truth.csv."""
    kinds = [str(facts[f"{kind}_informative"]) for kind in ("picture", "sound")]
    return np.array([[flag == "1" for flag in flags] for flags in kinds]).T


class MemoryLoader:
    """Implements `training.core.system.Loader` over decoded videos; frames and sound as the real loader takes them."""

    def __init__(self, videos: Videos, data: DataConfig, fps: float, *, train: bool, seed: int, device: torch.device):
        self.videos, self.data, self.train, self.seed, self.device = videos, data, train, seed, device
        self.fps = fps
        count = len(videos.label_N)
        self.expected_keys: Sequence[str] = [f"video-{number:06d}" for number in range(count)]
        self.num_listed = count
        self._frames = torch.from_numpy(videos.frames_NTHWC).to(device)
        self._sound = torch.from_numpy(videos.sound_NL).to(device)
        self._label = torch.from_numpy(videos.label_N).to(device)
        self._position = 0

    def __iter__(self) -> Iterator[RawBatch]:
        """Yield batches; endless in training."""
        size, count = self.data.batch_size, len(self.expected_keys)
        if not self.train:
            for start in range(0, count, size):
                yield self._batch([(0, number) for number in range(start, min(start + size, count))])
            return
        while True:
            chosen = []
            for place in range(self._position, self._position + size):
                epoch, within = divmod(place, count)
                chosen.append((epoch, int(self._order(epoch)[within])))
            self._position += size
            yield self._batch(chosen)

    def _order(self, epoch: int) -> Array:
        if getattr(self, "_known", (None,))[0] != epoch:
            self._known = (epoch, epoch_order(len(self.expected_keys), self.seed, epoch))
        return self._known[1]

    def _batch(self, chosen: list[tuple[int, int]]) -> RawBatch:
        frames, sounds, seeds = [], [], []
        length = self.videos.frames_NTHWC.shape[1]
        for epoch, number in chosen:
            seed = clip_seed(self.seed, epoch, self.expected_keys[number])
            numbers = frame_positions(length, self.data, train=self.train, seed=seed)
            frames.append(self._frames[number, torch.from_numpy(numbers).to(self.device)])
            if self.data.sound is not None:
                positions = clip_positions(length, self.data, train=self.train, seed=seed)
                starts = np.rint(centre_frames(positions) / self.fps * SAMPLE_RATE) - self.data.sound.samples // 2
                last = self._sound.shape[1] - self.data.sound.samples
                starts = np.clip(starts, 0, last).astype(int)
                sounds.append(
                    torch.stack([self._sound[number, s : s + self.data.sound.samples] for s in starts.tolist()])
                )
            seeds.append(seed)
        rows = [number for _, number in chosen]
        side = self._frames.shape[2:4]
        sound = torch.stack(sounds) if sounds else None
        return RawBatch(
            frames_BTHWC=torch.stack(frames),
            size_B2=torch.tensor([list(side)] * len(rows)),
            label_B=self._label[rows],
            key=tuple(self.expected_keys[number] for number in rows),
            seed_B=torch.tensor(seeds),
            valid_B=torch.ones(len(rows), dtype=torch.bool),
            sound_BSN=sound,
            has_sound_B=None if sound is None else torch.ones(len(rows), dtype=torch.bool),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
        self._position = int(state["position"])

    def close(self) -> None:
        """Nothing to release."""
