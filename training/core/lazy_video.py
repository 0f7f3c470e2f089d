"""A video that is read as far as it is asked for: the clips of an evaluation, picture by picture.

For models that decide first what they look at: what they skip is never decoded, and optical flow is extracted only
where it is wanted. What is read is what `load_pictures` would have given, to the bit.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.core.config import DataConfig
from training.core.data_sample import ClipReader, promised_frames
from training.core.decode import coded_size, count_frames, count_key_frames, decode_clip, resolve_decoder
from training.core.decode_rungs import DecodeError
from training.core.flow import extracted_fields, still_fields, stored_fields
from training.core.sample_reader import as_sample
from training.core.sampling import clip_positions, clip_seed, field_positions, frame_positions

__all__ = ["LazyVideo", "MiscountError"]

Frame = NDArray[np.uint8]


class MiscountError(DecodeError):
    """The file has fewer frames than packets, so its clips lie elsewhere: open it again with `num_frames=actual`."""

    def __init__(self, promised: int, actual: int) -> None:
        super().__init__(f"it has {actual} frames, not {promised} as its packets promise; open it with num_frames")
        self.actual = actual


class LazyVideo:
    """One video; not for several threads at once."""

    def __init__(
        self,
        source: Path | bytes,
        config: DataConfig,
        decoder: str,
        *,
        key: str = "0",
        num_frames: int | None = None,
    ) -> None:
        """Find out the length; nothing is decoded.

        Args:
            source: a video, or a sample that `clip_of` packed.
            config: with sampling `clips`; what it takes of the pictures does not matter here.
            decoder: a rung, or `auto`.
            key: names the video and seeds its draws, as in `load_pictures`.
            num_frames: its length where that is known; else its packets are counted.

        Raises:
            FileNotFoundError: no such file.
            DecodeError: not a video.
            ValueError: another sampling.
        """
        if config.sampling != "clips":
            raise ValueError(f"a video is read piece by piece with sampling `clips` only, got `{config.sampling}`")
        sample = as_sample(source, key)
        self._content = sample.read()
        self._sample = sample._replace(read=lambda: self._content)
        self._config = config
        self._decoder = resolve_decoder(decoder)
        self._pictures: dict[int, Frame] = {}
        self._fields: dict[int, Frame] = {}
        self._sound: tuple[NDArray[np.int16] | None] | None = None
        self.key = key
        self.seed = clip_seed(0, 0, key)
        """Of this video's draws, as of a batch of one."""
        known = num_frames or sample.num_frames
        self.num_frames = known or promised_frames(self._content, config)
        """L."""
        self.positions_VT = clip_positions(self.num_frames, config, train=False, seed=0)
        """Positions of the V clips, as in evaluation."""
        whole = frame_positions(self.num_frames, config, train=False, seed=0)
        self.witness = () if known or len(whole) == 0 else (int(whole.max()),)
        """Where packets were counted: the last frame that is decoded of a video which is read whole. Fewer frames than
        packets would show there. Whoever wants the same answer as from the whole video must ask for it, too."""
        self.decoded = 0
        """Pictures that were decoded so far."""
        self.extracted = 0
        """Fields of optical flow that were extracted so far, or decoded where they are stored."""

    @property
    def pays(self) -> bool:
        """Whether reading on demand saves anything.

        A decoder begins at a key frame. Where there are fewer of them than clips, it passes over the same pictures for
        each request, and that costs more than what is skipped; unless flow is extracted, which costs most of all.
        """
        if self._config.flow and "flow" not in self._sample.extras:
            return True
        return count_key_frames(self._content) >= len(self.positions_VT)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels: of its pictures, or before one was decoded, as container or record say."""
        for picture in self._pictures.values():
            return picture.shape[0], picture.shape[1]
        return self._sample.size or coded_size(self._content)

    def pictures(self, frames: Sequence[int] | NDArray[np.int64]) -> Frame:
        """Return frames by number, (n,H,W,3) uint8; those that were not asked for before are decoded now.

        Raises:
            DecodeError: one cannot be decoded, or there is none of this number.
            MiscountError: the file is shorter than it promises.
        """
        wanted = _numbers(frames)
        missing = sorted(set(wanted) - self._pictures.keys())
        if missing and not 0 <= missing[0] <= missing[-1] < self.num_frames:
            raise DecodeError(f"frames {missing[0]} to {missing[-1]} are wanted, but it has {self.num_frames}")
        if missing:
            try:
                made = decode_clip(self._content, np.array(missing, dtype=np.int64), self._decoder)
            except DecodeError:
                if (actual := count_frames(self._content)) != self.num_frames:
                    raise MiscountError(self.num_frames, actual) from None
                raise
            self.decoded += len(missing)
            self._pictures |= dict(zip(missing, made, strict=True))
        return _stacked([self._pictures[number] for number in wanted], (*self.size, 3))

    def sound(self) -> NDArray[np.int16] | None:
        """Return the sound around each clip, (V,N) int16; None where it has, or is to have, none.

        Raises:
            DecodeError: it is there and cannot be decoded.
        """
        if self._sound is None:
            reader = ClipReader(self._sample, self._config, decoder=self._decoder, train=False, seed=0)
            self._sound = (reader.sound(self.num_frames),)
        return self._sound[0]

    def flow_sources(self, positions: Sequence[int] | NDArray[np.int64]) -> list[int]:
        """Return the pictures that `flow` would need: none of fields that are stored, or were extracted before."""
        if "flow" in self._sample.extras:
            return []
        if self.num_frames == 1:
            return [0]
        missing = set(self._field_numbers(positions)) - self._fields.keys()
        return sorted({number + step for number in missing for step in (0, 1)})

    def _field_numbers(self, positions: Sequence[int] | NDArray[np.int64]) -> list[int]:
        places = np.array(_numbers(positions), dtype=np.int64)
        return _numbers(field_positions(places, self._config.stack, self.num_frames))

    def flow(self, positions: Sequence[int] | NDArray[np.int64]) -> Frame:
        """Return `stack` − 1 fields from each position on, (n·(stack − 1),H,W,2) uint8.

        Stored ones where the sample has them. Else they are extracted, from pictures that are decoded for it and
        count as decoded.

        Raises:
            DecodeError: pictures or stored fields cannot be decoded.
            MiscountError: the file is shorter than it promises.
        """
        wanted = self._field_numbers(positions)
        if self.num_frames == 1:
            self.pictures([0])
            return still_fields(len(wanted), self.size)
        missing = sorted(set(wanted) - self._fields.keys())
        if missing:
            if "flow" in self._sample.extras:
                made = dict(zip(missing, stored_fields(self._sample.extras["flow"](), missing), strict=True))
            else:
                # All pictures in one go: each call to a decoder starts at the front of the file.
                self.pictures(self.flow_sources(positions))
                made = extracted_fields(missing, self.pictures)
            self.extracted += len(missing)
            self._fields |= made
        return _stacked([self._fields[number] for number in wanted], (*self.size, 2))


def _numbers(values: Sequence[int] | NDArray[np.int64]) -> list[int]:
    return [int(value) for value in np.asarray(values, dtype=np.int64).ravel()]


def _stacked(parts: list[Frame], shape: tuple[int, ...]) -> Frame:
    return np.stack(parts) if parts else np.empty((0, *shape), dtype=np.uint8)
