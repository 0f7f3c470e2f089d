"""Optical flow of a clip: the stored fields of a sample, or extracted where a video comes without them.

Which fields a clip needs is `training.core.sampling.field_positions`; how they are stored, `data_specs.flows`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from data_specs.flows import extract, quantise, unpack_flow
from training.core.decode_rungs import DecodeError

__all__ = ["extracted_fields", "still_fields", "stored_fields"]

Field = NDArray[np.uint8]
Pictures = Callable[[Sequence[int]], NDArray[np.uint8]]

METHOD = "dis"
"""What a video without stored flow is given."""


def stored_fields(member: bytes, numbers: Sequence[int], out: Field | None = None) -> Field:
    """Return fields of a `flow` member by number, (n,H,W,2) uint8.

    Raises:
        DecodeError: broken member, or fewer fields than the clip needs.
    """
    try:
        return unpack_flow(member, numbers, out)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"its stored flow cannot be decoded: {error}") from error


def extracted_fields(numbers: Sequence[int], pictures: Pictures) -> dict[int, Field]:
    """Extract fields of a video by number, as the ingest does with `clip.flow: dis`.

    Args:
        numbers: each from a frame to the next.
        pictures: returns frames (n,H,W,3) by number; asked once for each stretch of neighbouring ones.

    Returns:
        number → (H,W,2) uint8.
    """
    fields: dict[int, Field] = {}
    wanted = np.unique(np.asarray(numbers, dtype=np.int64))
    for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1):
        if len(run):
            frames = pictures([*run.tolist(), int(run[-1]) + 1])
            fields |= dict(zip(run.tolist(), quantise(extract(METHOD, frames)), strict=True))
    return fields


def still_fields(count: int, size: tuple[int, int]) -> Field:
    """Return fields without motion, for a video of a single frame."""
    return np.asarray(quantise(np.zeros((count, *size, 2), dtype=np.float32)), dtype=np.uint8)
