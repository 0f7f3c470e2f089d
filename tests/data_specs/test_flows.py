"""The `flow` member: known motion goes in and comes out."""

import subprocess
import sys
from typing import get_args

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data_specs.flows import (
    EXTRACTORS,
    FLOW_BOUND,
    count_fields,
    dequantise,
    extract,
    extractor_of,
    pack_flow,
    quantise,
    unpack_flow,
)
from data_specs.jpgs import pack_jpgs, unpack_jpgs
from data_specs.schema import ClipPolicy

Frames = NDArray[np.uint8]


def moving(step: tuple[int, int], count: int = 6, size: tuple[int, int] = (48, 64)) -> Frames:
    """A textured plane (T,H,W,3) that moves by (x, y) pixels per frame."""
    rng = np.random.default_rng(0)
    x, y = step
    height, width = size
    margin = (count - 1) * max(abs(x), abs(y))
    plane = cv2.GaussianBlur(rng.uniform(0, 255, (height + 2 * margin, width + 2 * margin, 3)), (0, 0), 1.5)
    plane = np.interp(plane, (plane.min(), plane.max()), (0, 255)).astype(np.uint8)
    corners = [(margin - t * y, margin - t * x) for t in range(count)]
    return np.stack([plane[top : top + height, left : left + width] for top, left in corners])


def smooth_fields(count: int = 4, size: tuple[int, int] = (24, 32)) -> NDArray[np.float32]:
    """Flow (T,H,W,2) that differs by field, place and component."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    return np.stack([np.stack([x / 4 + t, 3 - y / 3 - 2 * t], -1) for t in range(count)]).astype(np.float32)


@pytest.mark.parametrize("step", [(2, -3), (-4, 1), (0, 0)])
def test_known_motion_survives(step: tuple[int, int]) -> None:
    flow = extract("dis", moving(step))
    assert flow.shape == (5, 48, 64, 2)
    assert flow.dtype == np.float32
    member = pack_flow(quantise(flow))
    assert count_fields(member) == 5
    read = dequantise(unpack_flow(member, range(5)))
    for field in read:
        assert np.abs(np.median(field, axis=(0, 1)) - step).max() < 0.3


def test_another_motion_is_noticed() -> None:
    """Negative control: components exchanged, backwards in time, or a frame repeated, and the motion is another."""
    frames = moving((2, -3))
    backwards = np.median(extract("dis", np.ascontiguousarray(frames[::-1])), axis=(1, 2))
    assert np.abs(backwards - (-2, 3)).max() < 0.3
    frames[3] = frames[2]
    medians = np.median(extract("dis", frames), axis=(1, 2))
    assert np.abs(medians[2]).max() < 0.3
    assert np.abs(medians[1] - (2, -3)).max() < 0.3


def test_steps_and_bounds() -> None:
    values = np.array([-1e9, -20.5, -20, -19.9, 0, 7, 20, 20.5, np.inf], np.float32)
    stored = quantise(values.reshape(1, 1, -1, 1).repeat(2, 3))
    assert stored[0, 0, :, 0].tolist() == [0, 0, 0, 1, 128, 172, 255, 255, 255]
    back = dequantise(stored)[0, 0, :, 1]
    assert np.abs(back - values.clip(-FLOW_BOUND, FLOW_BOUND)).max() <= 20 / 255 + 1e-5
    with pytest.raises(ValueError, match="not a number"):
        quantise(np.full((1, 2, 2, 2), np.nan, np.float32))


def test_what_moves_further_than_the_bound_is_stored_as_the_bound() -> None:
    fields = smooth_fields(1)
    fields[..., 0], fields[..., 1] = 35, -50
    read = dequantise(unpack_flow(pack_flow(quantise(fields)), [0]))
    assert np.abs(read - (20, -20)).max() < 0.3


def test_components_and_fields_keep_their_places() -> None:
    fields = quantise(smooth_fields())
    read = unpack_flow(pack_flow(fields), range(4))
    assert read.shape == fields.shape
    assert np.abs(read.astype(int) - fields).max() <= 6
    exchanged = np.abs(read.astype(int) - fields[..., ::-1])
    assert exchanged.mean() > 20


def test_only_wanted_fields_are_decoded() -> None:
    fields = quantise(smooth_fields(6))
    member = pack_flow(fields)
    whole = unpack_flow(member, range(6))
    out = np.zeros((3, 24, 32, 2), np.uint8)
    assert unpack_flow(member, [4, 0, 4], out) is out
    assert np.array_equal(out, whole[[4, 0, 4]])
    assert unpack_flow(member, []).shape == (0, 24, 32, 2)
    # A field that is no picture is in no one's way until it is wanted.
    files = [bytes(file) for file in unpack_jpgs(member)]
    spoilt = pack_jpgs([*files[:3], b"\xff\xd8 no picture", *files[4:]])
    assert np.array_equal(unpack_flow(spoilt, [2, 4]), whole[[2, 4]])
    with pytest.raises(ValueError, match="flow member: field 3 cannot be decoded"):
        unpack_flow(spoilt, [2, 3])


def test_opencv_reads_what_simplejpeg_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    member = pack_flow(quantise(smooth_fields()))
    whole = unpack_flow(member, range(4))
    files = [bytes(file) for file in unpack_jpgs(member)]
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    other = unpack_flow(member, range(4))
    assert np.abs(other.astype(int) - whole).max() <= 1
    with pytest.raises(ValueError, match="flow member: field 1 cannot be decoded"):
        unpack_flow(pack_jpgs([files[0], b"\xff\xd8 no picture"]), [1])


def test_errors_name_what_is_wrong() -> None:
    member = pack_flow(quantise(smooth_fields()))
    for length in (3, 12, len(member) - 1):
        with pytest.raises(ValueError, match=r"flow member: .*jpgs member"):
            unpack_flow(member[:length], [0])
        with pytest.raises(ValueError, match=r"flow member: .*jpgs member"):
            count_fields(member[:length])
    with pytest.raises(ValueError, match="flow member: not a jpgs member"):
        unpack_flow(b"x" * 100, [0])
    for wanted in (4, -1):
        with pytest.raises(ValueError, match=f"has fields 0 to 3, field {wanted} was wanted"):
            unpack_flow(member, [0, wanted])
    with pytest.raises(ValueError, match=r"out is \(2, 24, 32, 2\) of uint8, the wanted fields are \(1, 24, 32, 2\)"):
        unpack_flow(member, [0], np.zeros((2, 24, 32, 2), np.uint8))
    with pytest.raises(ValueError, match=r"must be \(T,H,W,2\) of uint8, got \(4, 24, 32, 2\) of float32"):
        pack_flow(smooth_fields())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one field"):
        pack_flow(quantise(smooth_fields())[:0])
    sizes = [bytes(unpack_jpgs(pack_flow(quantise(smooth_fields(1, size))))[0]) for size in ((24, 32), (26, 32))]
    with pytest.raises(ValueError, match="field 1 has 52 rows of 32"):
        unpack_flow(pack_jpgs(sizes), [0, 1])
    odd = cv2.imencode(".jpg", np.zeros((7, 8), np.uint8))[1].tobytes()
    with pytest.raises(ValueError, match=r"field 0 has 7 rows of 8, .* even number of rows"):
        unpack_flow(pack_jpgs([odd]), [0])


def test_extractors_are_those_of_the_specification() -> None:
    named = get_args(get_args(ClipPolicy.model_fields["flow"].annotation)[0])
    assert set(EXTRACTORS) == set(named)
    assert all(extractor_of(name).name == name for name in named)
    with pytest.raises(ValueError, match=r"no flow extractor 'tvl1' \(known: dis\)"):
        extract("tvl1", moving((1, 0)))


def test_what_has_no_flow_is_refused() -> None:
    frames = moving((1, 0))
    with pytest.raises(ValueError, match="two frames at least, got 1"):
        extract("dis", frames[:1])
    with pytest.raises(ValueError, match=r"frames must be \(T,H,W,3\) of uint8, got \(6, 48, 64\)"):
        extract("dis", frames[..., 0])
    with pytest.raises(ValueError, match="frames of 64x15 pixels are too small for flow extractor 'dis'"):
        extract("dis", frames[:, :15])
    assert extract("dis", frames[:, :16, :16]).shape == (5, 16, 16, 2)


def test_flow_does_not_depend_on_threads_or_on_other_frames() -> None:
    frames = moving((3, 1), size=(128, 160))
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(4)
        flow = extract("dis", frames)
        assert cv2.getNumThreads() == 4
        cv2.setNumThreads(1)
        assert np.array_equal(extract("dis", frames), flow)
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(extract("dis", frames[2:4])[0], flow[2])


def test_the_contract_is_light() -> None:
    code = "import sys, data_specs.flows; print(sorted({'numpy', 'cv2', 'simplejpeg'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
