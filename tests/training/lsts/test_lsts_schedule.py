"""Key frames of videos of any length, whole, in pieces and with cuts (§8; acceptance test 12)."""

import pytest

from training.lsts.schedule import Block, Schedule, blocks_of

LENGTHS = range(1, 36)


def expected_keys(frames: int, interval: int, order: str) -> list[int]:
    """Return the key frames as the paper's code lists them."""
    count = -(-frames // interval)
    if order == "online":
        return [interval * i for i in range(count)]
    return [min(frames - 1, (interval - 1) // 2 + interval * i) for i in range(count)]


@pytest.mark.parametrize("order", ["offline", "online"])
@pytest.mark.parametrize("interval", [1, 2, 5, 10, 20])
def test_every_frame_comes_once_with_the_key_of_its_block(order, interval):
    for frames in LENGTHS:
        blocks = blocks_of(frames, interval, order)
        assert [number for block in blocks for number in block.frames] == list(range(frames))
        keys = list(dict.fromkeys(block.key for block in blocks))
        assert keys == expected_keys(frames, interval, order)
        for block in blocks:
            # A block of LSTS is D consecutive frames, whatever its key.
            assert {number // interval for number in block.frames} == {block.key // interval}
            assert block.first == (block.start == 0)


def test_ten_frames_have_their_key_in_the_middle():
    assert blocks_of(24, 10, "offline") == [
        Block(0, 10, 4, True),
        Block(10, 10, 14, False),
        Block(20, 4, 23, False),
    ]


@pytest.mark.parametrize("frames", [1, 11, 21, 31])
def test_a_last_block_of_one_frame_is_its_own_key(frames):
    """The public code gives such a frame the boxes of the block before."""
    last = blocks_of(frames, 10, "offline")[-1]
    assert (last.start, last.length, last.key) == (frames - 1, 1, frames - 1)


@pytest.mark.parametrize("order", ["offline", "online"])
@pytest.mark.parametrize("piece", [1, 3, 7, 10, 13])
def test_pieces_give_the_same_keys(order, piece):
    for frames in LENGTHS:
        schedule = Schedule(10, order)
        blocks: list[Block] = []
        for start in range(0, frames, piece):
            blocks += schedule.push(min(piece, frames - start))
            if order == "online":
                # A frame never waits for a later one.
                assert blocks[-1].frames[-1] == min(start + piece, frames) - 1
        blocks += schedule.finish()
        assert schedule.finish() == []
        whole = {number: block.key for block in blocks_of(frames, 10, order) for number in block.frames}
        assert {number: block.key for block in blocks for number in block.frames} == whole
        assert sum(block.length for block in blocks) == frames


@pytest.mark.parametrize("order", ["offline", "online"])
def test_a_cut_starts_anew(order):
    for cut in range(1, 24):
        schedule = Schedule(10, order)
        blocks = [*schedule.push(16, (cut,) if cut < 16 else ()), *schedule.push(9, (cut,) if cut >= 16 else ())]
        blocks += schedule.finish()
        keys = {number: block.key for block in blocks for number in block.frames}
        before = {n: b.key for b in blocks_of(cut, 10, order) for n in b.frames}
        after = {n + cut: b.key + cut for b in blocks_of(25 - cut, 10, order) for n in b.frames}
        assert keys == before | after
        assert [block.start for block in blocks if block.first] == [0, cut]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="every 0 frames"):
        Schedule(0, "offline")
    with pytest.raises(ValueError, match="frame 12 is none"):
        Schedule(10, "online").push(5, (12,))
