"""The `jpgs` member of a sample: several JPEG files in one buffer, readable without copying.

A tar member per frame would cost 512 bytes of header and one index entry per frame. Layout, little endian:

    offset 0    4 bytes   magic b"JPGS"
    offset 4    uint32    n, number of JPEG files
    offset 8    uint32×n  size of each file in bytes
    then        the n files one after the other, in display order, without padding

The total length is exactly 8 + 4·n + the sum of the sizes; anything else is refused.
"""

import struct
from collections.abc import Sequence

MAGIC = b"JPGS"
_HEAD = struct.Struct("<4sI")


def pack_jpgs(frames: Sequence[bytes]) -> bytes:
    """Pack JPEG files, in display order, into one buffer.

    Raises:
        ValueError: no frames, or a frame without the JPEG start marker.
    """
    if not frames:
        raise ValueError("a jpgs member needs at least one frame")
    for number, frame in enumerate(frames):
        if frame[:2] != b"\xff\xd8":
            raise ValueError(f"frame {number} of {len(frames)} is not a JPEG file (starts with {frame[:4]!r})")
    sizes = struct.pack(f"<{len(frames)}I", *(len(frame) for frame in frames))
    return b"".join((_HEAD.pack(MAGIC, len(frames)), sizes, *frames))


def unpack_jpgs(buffer: bytes | bytearray | memoryview) -> list[memoryview]:
    """Return the JPEG files of a `jpgs` member as views into `buffer` (no copy), in display order.

    Raises:
        ValueError: not a jpgs member, or its length does not fit its header (truncated or padded).
    """
    view = memoryview(buffer).cast("B")
    if len(view) < _HEAD.size:
        raise ValueError(f"jpgs member of {len(view)} bytes is shorter than its header of {_HEAD.size}")
    magic, count = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise ValueError(f"not a jpgs member: starts with {magic!r} instead of {MAGIC!r}")
    start = _HEAD.size + 4 * count
    if len(view) < start:
        raise ValueError(f"jpgs member of {len(view)} bytes is too short for the sizes of its {count} frames")
    sizes = struct.unpack_from(f"<{count}I", view, _HEAD.size)
    if len(view) != start + sum(sizes):
        raise ValueError(f"jpgs member has {len(view)} bytes, its header says {start + sum(sizes)}")
    frames = []
    for size in sizes:
        frames.append(view[start : start + size])
        start += size
    return frames
