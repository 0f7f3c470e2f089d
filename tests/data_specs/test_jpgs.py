import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.jpgs import pack_jpgs, unpack_jpgs

jpeg = st.binary(max_size=40).map(lambda content: b"\xff\xd8" + content)


@given(st.lists(jpeg, min_size=1, max_size=20))
def test_round_trip(frames):
    packed = pack_jpgs(frames)
    assert [bytes(frame) for frame in unpack_jpgs(packed)] == frames
    assert len(packed) == 8 + 4 * len(frames) + sum(map(len, frames))


def test_frames_are_views():
    buffer = bytearray(pack_jpgs([b"\xff\xd8first", b"\xff\xd8second"]))
    second = unpack_jpgs(buffer)[1]
    buffer[-1:] = b"!"
    assert bytes(second) == b"\xff\xd8secon!"


@pytest.mark.parametrize("frames", [[], [b"\x89PNG"], [b"\xff\xd8ok", b""]])
def test_only_jpegs_are_packed(frames):
    with pytest.raises(ValueError, match=r"at least one frame|not a JPEG"):
        pack_jpgs(frames)


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (b"JPG", "shorter than its header"),
        (b"RIFF" + struct.pack("<I", 1) + b"1234", "not a jpgs member"),
        (b"JPGS" + struct.pack("<I", 9) + b"1234", "too short for the sizes"),
        (pack_jpgs([b"\xff\xd8abc"])[:-1], "its header says"),
        (pack_jpgs([b"\xff\xd8abc"]) + b"\0", "its header says"),
    ],
)
def test_foreign_and_damaged_members_are_refused(buffer, message):
    with pytest.raises(ValueError, match=message):
        unpack_jpgs(buffer)
