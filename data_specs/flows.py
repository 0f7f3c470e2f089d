"""The `flow` member of a sample: optical flow from each frame to the next, as 8-bit pictures.

Field t leads from frame t to frame t + 1, so a clip of L frames has L − 1. Each is one grayscale JPEG of twice the
height, x above y; all are packed as a `jpgs` member is.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_specs.jpgs import pack_jpgs, unpack_jpgs

BOUND = 20.0
"""Pixels per frame; what is faster is clipped."""


def extract(method: str, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the flow between neighbouring frames (T,H,W,3): (T−1,H,W,2) pixels, x and y."""
    import importlib

    cv2: Any = importlib.import_module("cv2")
    if method != "dis":
        raise ValueError(f"there is no optical flow {method!r} (known: dis)")
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    fields = [dis.calc(first, second, None) for first, second in itertools.pairwise(grey)]
    return np.stack(fields).astype(np.float32) if fields else np.empty((0, *frames.shape[1:3], 2), np.float32)


def quantise(flow: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map −20 … 20 pixels to 0 … 255."""
    scaled = np.rint((np.clip(flow, -BOUND, BOUND) + BOUND) * (255 / (2 * BOUND)))
    return np.asarray(scaled.astype(np.uint8))


def pack_flow(fields: NDArray[np.uint8], quality: int = 90) -> bytes:
    """Pack fields (n,H,W,2) into a member."""
    import simplejpeg

    pictures = np.concatenate([fields[..., 0], fields[..., 1]], axis=1)[..., None]
    return pack_jpgs(
        [simplejpeg.encode_jpeg(np.ascontiguousarray(p), quality=quality, colorspace="GRAY") for p in pictures]
    )


def unpack_flow(member: bytes, wanted: Sequence[int], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Return fields of a member by number, (n,H,W,2); `out` if given.

    Raises:
        ValueError: broken member, no such field, or another size than `out`.
    """
    import simplejpeg

    files = unpack_jpgs(member)
    known: dict[int, NDArray[np.uint8]] = {}
    for place, number in enumerate(int(w) for w in wanted):
        if number not in known:
            if not 0 <= number < len(files):
                raise ValueError(f"field {number} is wanted, but {len(files)} are stored")
            both = np.asarray(simplejpeg.decode_jpeg(files[number], "GRAY"))[..., 0]
            half = both.shape[0] // 2
            known[number] = np.stack([both[:half], both[half:]], axis=-1)
        field = known[number]
        if out is None:
            out = np.empty((len(wanted), *field.shape), dtype=np.uint8)
        elif field.shape != out.shape[1:]:
            raise ValueError(f"a field has {field.shape[0]}×{field.shape[1]} pixels, expected {out.shape[1:3]}")
        out[place] = field
    if out is None:
        raise ValueError("no fields asked for")
    return out
