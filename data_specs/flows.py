"""The `flow` member of a sample: optical flow between neighbouring frames of its clip, as grey JPEG files.

Field t is the motion from frame t to frame t + 1, so a clip of L frames has L - 1 fields. Motion is kept within ±20
pixels of the stored clip, in 256 steps (0.157 px), as the two-stream networks and AdaMML (Panda et al. 2021)
keep theirs. A field is one grey JPEG file of height 2H: the horizontal component (to the right) above the vertical one
(down). The files are packed as `data_specs.jpgs` says, so single fields are read without decoding the others.

numpy, OpenCV and simplejpeg are imported by what needs them.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_specs.jpgs import pack_jpgs, unpack_jpgs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

FLOW_BOUND = 20.0
"""Pixels per frame: what moves further is stored as this."""

FLOW_QUALITY = 95
"""Of the JPEG files, 1 to 100."""

FLOW_MEMBER = "flow"
"""Extension of the member."""


# --- values ------------------------------------------------------------------------------------------------


def quantise(flow_THW2: "Floats") -> "Bytes":
    """Return flow in pixels as bytes: round((v + 20) · 255 / 40) of v within ±`FLOW_BOUND`; no motion is 128.

    Raises:
        ValueError: a value is not a number.
    """
    import numpy as np

    if np.isnan(flow_THW2).any():
        raise ValueError("flow has values that are not a number")
    kept = np.clip(flow_THW2, -FLOW_BOUND, FLOW_BOUND)
    fields: Bytes = np.rint((kept + FLOW_BOUND) * (255 / (2 * FLOW_BOUND))).astype(np.uint8)
    return fields


def dequantise(fields_THW2: "Bytes") -> "Floats":
    """Return stored bytes as flow in pixels, within half a step of what `quantise` was given."""
    import numpy as np

    return fields_THW2.astype(np.float32) * np.float32(2 * FLOW_BOUND / 255) - np.float32(FLOW_BOUND)


# --- member ------------------------------------------------------------------------------------------------


def field_files(fields_THW2: "Bytes") -> list[bytes]:
    """Return each field as a JPEG file, the horizontal component above the vertical one.

    Raises:
        ValueError: not fields (T,H,W,2) of bytes.
    """
    import numpy as np
    import simplejpeg

    if fields_THW2.ndim != 4 or fields_THW2.shape[3] != 2 or fields_THW2.dtype != np.uint8:
        raise ValueError(f"flow fields must be (T,H,W,2) of uint8, got {fields_THW2.shape} of {fields_THW2.dtype}")
    files = []
    for field_HW2 in fields_THW2:
        grey = np.ascontiguousarray(np.concatenate([field_HW2[..., 0], field_HW2[..., 1]])[..., None])
        files.append(simplejpeg.encode_jpeg(grey, quality=FLOW_QUALITY, colorspace="GRAY", colorsubsampling="Gray"))
    return files


def pack_flow(fields_THW2: "Bytes") -> bytes:
    """Return the member of quantised fields (T,H,W,2).

    Raises:
        ValueError: not fields of bytes, or none.
    """
    files = field_files(fields_THW2)
    if not files:
        raise ValueError("a flow member needs at least one field: two frames")
    return pack_jpgs(files)


def _files(member: bytes | bytearray | memoryview) -> list[memoryview]:
    try:
        return unpack_jpgs(member)
    except ValueError as error:
        raise ValueError(f"flow member: {error}") from error


def count_fields(member: bytes | bytearray | memoryview) -> int:
    """Return the number of fields of a member: one less than its clip has frames.

    Raises:
        ValueError: truncated, or not packed JPEG files.
    """
    return len(_files(member))


def unpack_flow(member: bytes | bytearray | memoryview, wanted: Sequence[int], out: "Bytes | None" = None) -> "Bytes":
    """Decode some fields of a member; the others cost nothing.

    Args:
        member: The bytes of the member.
        wanted: Numbers of fields, 0 is the motion from frame 0 to frame 1; any order, repeats allowed.
        out: (n,H,W,2) to write to instead of new memory.

    Returns:
        (n,H,W,2) bytes, see `dequantise`; `out` where it was given.

    Raises:
        ValueError: truncated or damaged member, no such field, fields of different sizes, or `out` does not fit.
    """
    import numpy as np

    files = _files(member)
    for number in wanted:
        if not 0 <= number < len(files):
            raise ValueError(f"flow member has fields 0 to {len(files) - 1}, field {number} was wanted")
    decode = _decoder()
    # Without any wanted field the first one tells the size.
    found = {number: _decoded(files[number], number, decode) for number in dict.fromkeys(wanted or [0])}
    height, width = next(iter(found.values())).shape
    for number, grey in found.items():
        if grey.shape != (height, width) or height % 2:
            raise ValueError(
                f"flow member: field {number} has {grey.shape[0]} rows of {grey.shape[1]}, a field has "
                f"an even number of rows and the size of the others ({height} of {width})"
            )
    shape = (len(wanted), height // 2, width, 2)
    if out is None:
        out = np.empty(shape, dtype=np.uint8)
    elif out.shape != shape or out.dtype != np.uint8:
        raise ValueError(f"out is {out.shape} of {out.dtype}, the wanted fields are {shape} of uint8")
    for place, number in enumerate(wanted):
        grey = found[number]
        out[place, ..., 0] = grey[: height // 2]
        out[place, ..., 1] = grey[height // 2 :]
    return out


def _decoder() -> "Callable[[memoryview], Bytes | None]":
    """Return what decodes a grey JPEG file here; it gives None, or raises ValueError, for what is none."""
    import numpy as np

    try:
        import simplejpeg
    except ModuleNotFoundError:
        import cv2

        return lambda file: cv2.imdecode(np.frombuffer(file, dtype=np.uint8), cv2.IMREAD_GRAYSCALE)
    return lambda file: simplejpeg.decode_jpeg(file, "GRAY")[..., 0]


def _decoded(file: memoryview, number: int, decode: "Callable[[memoryview], Bytes | None]") -> "Bytes":
    try:
        grey = decode(file)
    except ValueError as error:
        raise ValueError(f"flow member: field {number} cannot be decoded: {error}") from error
    if grey is None:
        raise ValueError(f"flow member: field {number} cannot be decoded")
    return grey


# --- extractors --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extractor:
    """A way to compute optical flow."""

    name: str
    version: int
    """Raised when the fields change, or how they are packed; it is part of the identity of the encoder, and so of every
    plan digest with flow."""
    least_side: int
    """Pixels; smaller frames are refused."""
    compute: "Callable[[Bytes], Floats]"
    """Frames (T,H,W,3), T at least 2, to flow (T-1,H,W,2) in pixels, x to the right before y down."""


_ONE_AT_A_TIME = threading.Lock()
"""OpenCV's number of threads is the process's."""


def _dis(frames_THWC: "Bytes") -> "Floats":
    """Dense inverse search (Kroeger et al. 2016), OpenCV's medium preset, on grey frames."""
    import cv2
    import numpy as np

    flow = np.empty((len(frames_THWC) - 1, *frames_THWC.shape[1:3], 2), dtype=np.float32)
    with _ONE_AT_A_TIME:
        threads = cv2.getNumThreads()
        # Stripes of a frame, one per thread, pass nothing on to each other: the result would depend on their number.
        cv2.setNumThreads(1)
        try:
            search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
            greys = (cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames_THWC)
            before = next(greys)
            for number, grey in enumerate(greys):
                flow[number] = search.calc(before, grey, None)
                before = grey
        finally:
            cv2.setNumThreads(threads)
    return flow


EXTRACTORS: dict[str, Extractor] = {
    # OpenCV's search crashes on frames with a side of some 12 pixels.
    "dis": Extractor(name="dis", version=1, least_side=16, compute=_dis),
}


def extractor_of(name: str) -> Extractor:
    """Return an extractor.

    Raises:
        ValueError: unknown name.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"no flow extractor {name!r} (known: {', '.join(EXTRACTORS)})")
    return EXTRACTORS[name]


def extract(name: str, frames_THWC: "Bytes") -> "Floats":
    """Compute optical flow; the same frames give the same flow.

    Args:
        name: Of an extractor.
        frames_THWC: RGB frames (T,H,W,3), levels 0 to 255.

    Returns:
        (T-1,H,W,2): pixels from each frame to the next, x to the right before y down.

    Raises:
        ValueError: unknown extractor, fewer than two frames, or frames that are too small or no RGB bytes.
    """
    import numpy as np

    extractor = extractor_of(name)
    if frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3 or frames_THWC.dtype != np.uint8:
        raise ValueError(f"frames must be (T,H,W,3) of uint8, got {frames_THWC.shape} of {frames_THWC.dtype}")
    if len(frames_THWC) < 2:
        raise ValueError(f"flow needs two frames at least, got {len(frames_THWC)}")
    height, width = frames_THWC.shape[1:3]
    if min(height, width) < extractor.least_side:
        raise ValueError(
            f"frames of {width}x{height} pixels are too small for flow extractor {name!r}: a side must have "
            f"{extractor.least_side} at least"
        )
    return extractor.compute(frames_THWC)
