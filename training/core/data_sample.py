"""One sample → what a batch takes of it: chosen frames, the sound around each clip, stored optical flow."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from data_specs.boxes import BOXES_MEMBER, ClipBoxes
from training.core.config import DataConfig
from training.core.decode import (
    DecodeError,
    coded_size,
    count_frames,
    count_packets,
    decode_clip,
    decode_jpegs,
    reproduce_line,
)
from training.core.decode_rungs import Source
from training.core.flow import extracted_fields, still_fields, stored_fields
from training.core.sampling import (
    centre_frames,
    clip_positions,
    clip_seed,
    field_positions,
    frame_positions,
    nearest_stored,
)
from training.core.sound import presentation_times, read_sound, reproduce_sound, start_beside
from training.core.system import VideoFacts

if TYPE_CHECKING:
    from training.core.frame_sampling import FrameObjects

__all__ = ["EXTRAS", "ClipReader", "Decoded", "Label", "Sample", "SampleError", "any_video", "promised_frames"]

Frame = NDArray[np.uint8]
Index = NDArray[np.int64]
Label = int | tuple[int, ...]

EXTRAS = ("wav", "m4a", "flow", BOXES_MEMBER)
"""Members beside the clip that a sample can be read with: its sound, its optical flow, and its objects."""


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
    read: Callable[[], Source]
    """Returns the bytes of the clip."""
    fps: float | None = None
    """Frames per second of a `jpgs` clip, which has no clock."""
    extras: Mapping[str, Callable[[], bytes]] = MappingProxyType({})
    """Those of `EXTRAS` that it has: name → bytes."""
    block: tuple[int, int] | None = None
    """Of a video that is evaluated block by block: first frame, and the one after the last."""

    def objects(self) -> ClipBoxes:
        """Read its objects.

        Raises:
            DecodeError: it has no member of them, or a broken one.
        """
        if BOXES_MEMBER not in self.extras:
            raise DecodeError(
                f"it has no member `{BOXES_MEMBER}`: its data set was ingested from a source without boxes"
            )
        try:
            return ClipBoxes.model_validate_json(self.extras[BOXES_MEMBER]())
        except ValidationError as error:
            raise DecodeError(f"broken member `{BOXES_MEMBER}`: {error}") from None


def any_video(source: Source, key: str) -> Sample:
    """Return a video of which nothing is known as a sample without label (−1)."""
    origin = "" if isinstance(source, bytes) else str(source)
    return Sample(key, -1, 0, True, None, None, None, origin, "mp4", lambda: source)


class Decoded(NamedTuple):
    """What was read of one sample."""

    frames: Frame
    """(T,H,W,3) uint8; T may be 0."""
    sound: NDArray[np.int16] | None
    """(V,N) int16; None where there is none, or none is wanted."""
    flow: Frame | None
    """(F,H,W,2) uint8; None where none is wanted."""
    number_T: Index | None = None
    """Frame numbers (`sampling: frames`)."""
    objects: "FrameObjects | None" = None
    """Objects of these frames; None where none are known."""
    video: VideoFacts | None = None
    """Of a block: what is known of the whole video."""


class ClipReader:
    """Reads one sample as `config` wants it."""

    def __init__(
        self, sample: Sample, config: DataConfig, *, decoder: str, train: bool, seed: int, extract: bool = False
    ) -> None:
        """Prepare to read.

        Args:
            sample: what to read.
            config: which parts of it.
            decoder: a rung, not `auto`.
            train: choose frames as in training, else as in evaluation.
            seed: the run's; the sample's own draws depend on its key and epoch, too.
            extract: extract optical flow where none is stored, instead of refusing the sample.
        """
        self._sample = sample
        self._config = config
        self._decoder = decoder
        self._train = train
        self._extract = extract
        self._content: Source = b""
        self.seed = clip_seed(seed, sample.epoch, sample.key)
        self.command = ""
        """Repeats the part that was read last."""

    def checked(self, frames: Frame | None = None, flow: Frame | None = None) -> Decoded:
        """Read, and name sample, shard and command when that fails.

        Args:
            frames: (T,H,W,3) array to write into.
            flow: (F,H,W,2) array to write into.

        Raises:
            SampleError: any part cannot be read.
        """
        sample = self._sample
        try:
            return self.read(frames, flow)
        except Exception as error:
            raise SampleError(
                f"sample {sample.key!r} of {sample.origin} (decoder {self._decoder}): {error}\n"
                f"  repeat with: {self.command}"
            ) from error

    def read(self, frames: Frame | None = None, flow: Frame | None = None) -> Decoded:
        """Read pictures, sound and flow.

        Raises:
            DecodeError: one of them cannot be decoded.
        """
        config = self._config
        self._repeats([0])
        self._content = self._sample.read()
        if config.sampling == "frames":
            return self._frames(frames)
        count, frames = self._counted(frames)
        sound = self.sound(count)
        if config.flow:
            flow = self._flow(count, frames, flow)
        return Decoded(frames, sound, flow if config.flow else None)

    def _frames(self, out: Frame | None) -> Decoded:
        """Read a training example of a detector, or a block of a video that is evaluated."""
        # `frame_sampling` builds on this module.
        from training.core.frame_sampling import objects_of, training_frames

        sample = self._sample
        if sample.extension == "jpgs":
            raise DecodeError("frames of a jpgs sample do not follow one another; ingest it as mp4")
        clip = sample.objects() if self._train or BOXES_MEMBER in sample.extras else None
        if sample.block is not None:
            numbers = np.arange(*sample.block, dtype=np.int64)
        else:
            assert clip is not None, "only training chooses frames by itself"
            count = sample.num_frames or promised_frames(self._content, self._config)
            numbers = training_frames(clip, count, self._config, self.seed)
        self._repeats(list(numbers))
        frames = decode_clip(self._content, numbers, self._decoder, out)
        objects = None if clip is None else objects_of(clip, numbers)
        video = None if sample.block is None else VideoFacts(sample.num_frames or 0, clip)
        return Decoded(frames, None, None, numbers, objects, video)

    def _repeats(self, positions: Sequence[int], extension: str | None = None) -> None:
        member = f"{self._sample.key}.{extension or self._sample.extension}"
        self.command = reproduce_line(self._sample.origin, self._decoder, positions, member)

    def _counted(self, out: Frame | None) -> tuple[int, Frame]:
        """Return number of frames and pictures.

        Where no record says it, packets are counted first, which costs no decoding; when that promises more frames
        than there are, decoding counts.
        """
        if self._sample.num_frames is not None:
            return self._sample.num_frames, self._pictures(self._sample.num_frames, out)
        count = promised_frames(self._content, self._config)
        try:
            return count, self._pictures(count, out)
        except DecodeError:
            actual = count_frames(self._content)
            if actual == count or actual < 1:
                raise
            return actual, self._pictures(actual, out)

    def _pictures(self, count: int, out: Frame | None) -> Frame:
        sample = self._sample
        positions = frame_positions(count, self._config, train=self._train, seed=self.seed)
        if len(positions) == 0:
            return np.empty((0, *(sample.size or coded_size(self._content)), 3), np.uint8) if out is None else out
        self._repeats(list(positions))
        if sample.extension != "jpgs":
            return decode_clip(self._content, positions, self._decoder, out)
        places = nearest_stored(positions, self._stored())
        self._repeats(list(places))
        return decode_jpegs(_bytes(self._content), places, self._decoder, out)

    def _stored(self) -> tuple[int, ...]:
        if self._sample.frame_index is None:
            raise DecodeError("its record has no frame_index, which a jpgs sample must have")
        return self._sample.frame_index

    def _clips(self, count: int) -> Index:
        return clip_positions(count, self._config, train=self._train, seed=self.seed)

    def sound(self, count: int) -> NDArray[np.int16] | None:
        """Read the sound around each clip of a video of so many frames, (V,N); None where it has, or is to have, none.

        That of the member `wav` or `m4a` where there is one, else of the video itself.

        Raises:
            DecodeError: it is there and cannot be decoded.
        """
        if (config := self._config.sound) is None:
            return None
        self._content = self._content or self._sample.read()
        sample, positions_VT = self._sample, self._clips(count)
        name = next((name for name in ("wav", "m4a") if name in sample.extras), None)
        if sample.extension == "jpgs":
            if name is None:
                return None
            if not sample.fps:
                raise DecodeError("its record has no frame rate, which the sound of a jpgs sample needs")
            # Those are seen whose pictures are stored.
            stored = self._stored()
            centres = centre_frames(np.asarray(stored, np.int64)[nearest_stored(positions_VT, stored)])
            times = np.arange(int(centres.max()) + 1) / sample.fps
            clock: Source | None = sample.extras["m4a"]() if "m4a" in sample.extras else None
        else:
            centres = centre_frames(positions_VT)
            if name is None:
                member = f"{sample.key}.{sample.extension}"
                self.command = reproduce_sound(sample.origin, config, centres.tolist(), member)
                return read_sound(self._content, centres, config)
            times = presentation_times(self._content)
            clock = self._content
        member, rate = f"{sample.key}.{name}", f"{sample.fps or 25:g}"
        self.command = reproduce_sound(sample.origin, config, centres.tolist(), member, "0", rate)
        sound = sample.extras[name]()
        # A wav has no clock of its own: it is the same sound as in the mp4 or m4a, which has.
        start = 0.0 if clock is None or name == "m4a" else start_beside(sound, clock)
        return read_sound(sound, centres, config, times=times, start=None if name == "m4a" else start)

    def _flow(self, count: int, frames: Frame, out: Frame | None) -> Frame:
        config, sample = self._config, self._sample
        positions_VT = self._clips(count)
        numbers = field_positions(positions_VT, config.stack, count)
        if count == 1:
            fields = still_fields(len(numbers), frames.shape[1:3])
        elif "flow" in sample.extras:
            self._repeats(list(numbers), "flow")
            return stored_fields(sample.extras["flow"](), numbers.tolist(), out)
        elif not self._extract:
            raise DecodeError("it has no member `flow`; ingest its data set with `clip.flow: dis`, or set flow: false")
        elif sample.extension == "jpgs":
            raise DecodeError("it has no stored flow, and pictures that do not follow one another give none")
        else:
            known = dict(zip(self._decoded(count), frames, strict=True))
            made = extracted_fields(numbers.tolist(), lambda wanted: self._missing(wanted, known))
            fields = np.stack([made[number] for number in numbers.tolist()])
        if out is not None:
            out[:] = fields
            return out
        return fields

    def _decoded(self, count: int) -> list[int]:
        numbers: list[int] = frame_positions(count, self._config, train=self._train, seed=self.seed).tolist()
        return numbers

    def _missing(self, wanted: Sequence[int], known: Mapping[int, Frame]) -> Frame:
        """Return frames by number, decoding only those that are not there yet."""
        absent = [number for number in wanted if number not in known]
        more = decode_clip(self._content, np.array(absent), self._decoder) if absent else ()
        found = {**known, **dict(zip(absent, more, strict=True))}
        return np.stack([found[number] for number in wanted])


def promised_frames(source: Source, config: DataConfig) -> int:
    """Count the frames of a video by its packets; where pictures will be decoded, that may prove to be too many.

    Raises:
        DecodeError: not a video, or one without frames.
    """
    count = len(presentation_times(source)) if config.pictures == "none" else count_packets(source)
    if count < 1:
        raise DecodeError("it has no video frames")
    return count


def _bytes(content: Source) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()
