"""Makes the `flow` member of a sample: optical flow of the stored clip's own frames, see `data_specs.flows`.

In this process and with one thread. Frames are decoded and searched a few at a time, so that the memory does not grow
with the length of the clip.
"""

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_specs.flows import extract, field_files, quantise
from data_specs.jpgs import pack_jpgs
from data_specs.schema import RejectReason
from tasks.ops.probe import RejectedError

_CHUNK = 32
"""Frames that are decoded at a time."""


def flow_member(mp4: bytes, num_frames: int, extractor: str) -> bytes:
    """Return the `flow` member of an encoded clip.

    Args:
        mp4: The encoded clip.
        num_frames: Frames that it has.
        extractor: Name of the extractor.

    Raises:
        RejectedError: the clip has one frame only, or other frames than it says.
        ValueError: unknown extractor.
    """
    if num_frames < 2:
        raise RejectedError(RejectReason.TOO_SHORT, f"{num_frames} frame, optical flow needs two")
    files: list[bytes] = []
    for frames_THWC in _overlapping(mp4):
        files += field_files(quantise(extract(extractor, frames_THWC)))
    if len(files) != num_frames - 1:
        raise RejectedError(
            RejectReason.ENCODE_FAILED, f"the encoded clip gives {len(files)} flow fields for {num_frames} frames"
        )
    return pack_jpgs(files)


def _overlapping(mp4: bytes) -> Iterator[NDArray[np.uint8]]:
    """Decode a clip in pieces (T,H,W,3), each of which begins with the last frame of the one before."""
    import av

    with av.open(io.BytesIO(mp4)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        piece: list[NDArray[np.uint8]] = []
        for frame in container.decode(video=0):
            piece.append(frame.to_ndarray(format="rgb24"))
            if len(piece) == _CHUNK:
                yield np.stack(piece)
                piece = piece[-1:]
        if len(piece) > 1:
            yield np.stack(piece)
