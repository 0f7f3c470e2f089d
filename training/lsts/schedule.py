"""Which frames are key frames: blocks of a video, each served by the features of one key frame (§8).

Offline, a block of D frames has its key in the middle; online, the key comes first. A video, or what follows a cut, is
divided into blocks of D frames from its first frame on, and the last block has what is left: for n frames there are
⌈n / D⌉ blocks, also where the last one is a single frame.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Block", "Schedule", "blocks_of"]


@dataclass(frozen=True)
class Block:
    """Consecutive frames with one key."""

    start: int
    """First frame."""
    length: int
    key: int
    """The key frame's number."""
    first: bool
    """Whether a video or a shot starts here: there is no memory."""

    @property
    def frames(self) -> range:
        """Numbers of the frames."""
        return range(self.start, self.start + self.length)

    @property
    def others(self) -> list[int]:
        """Numbers of the frames that are no key."""
        return [number for number in self.frames if number != self.key]


class Schedule:
    """Divides a stream of frames into blocks, as soon as these can be computed.

    Offline, a block waits for its last frame. Online, a frame never waits: a block may come in pieces, the first of
    which begins with the key.
    """

    def __init__(self, interval: int, order: Literal["offline", "online"]) -> None:
        if interval < 1:
            raise ValueError(f"a key frame every {interval} frames is not possible")
        self._interval = interval
        self._offline = order == "offline"
        self._start = 0
        """First frame that was not given out."""
        self._key_start = 0
        """Online: first frame of the block that is running."""
        self._seen = 0
        self._cut = True

    def push(self, count: int, cuts: tuple[int, ...] = ()) -> list[Block]:
        """Take the next frames.

        Args:
            count: how many.
            cuts: numbers of those that start a new shot; frame 0 always does.

        Returns:
            Blocks, or pieces of blocks, that are complete now.
        """
        end, blocks = self._seen + count, []
        for edge in (*(cut for cut in sorted(set(cuts)) if cut > 0), None):
            if edge is not None and not self._seen <= edge < end:
                raise ValueError(f"frame {edge} is none of the frames {self._seen} to {end - 1}")
            blocks += self._until(end if edge is None else edge, closed=edge is not None)
        self._seen = end
        return blocks

    def finish(self) -> list[Block]:
        """Return what is left: no frame comes any more."""
        return self._until(self._seen, closed=True)

    def _until(self, end: int, *, closed: bool) -> list[Block]:
        """Give out the frames before `end`; where that is the end of a shot, all of them."""
        blocks = []
        while self._start < end:
            if self._offline:
                length = min(self._interval, end - self._start)
                if length < self._interval and not closed:
                    break
                key = min(self._start + (self._interval - 1) // 2, self._start + length - 1)
            else:
                if self._cut or self._start == self._key_start + self._interval:
                    self._key_start = self._start
                length = min(self._key_start + self._interval, end) - self._start
                key = self._key_start
            blocks.append(Block(self._start, length, key, self._cut))
            self._start += length
            self._cut = False
        if closed and self._start == end:
            self._cut = True
        return blocks


def blocks_of(num_frames: int, interval: int, order: Literal["offline", "online"]) -> list[Block]:
    """Return all blocks of a video without cuts."""
    schedule = Schedule(interval, order)
    return [*schedule.push(num_frames), *schedule.finish()]
