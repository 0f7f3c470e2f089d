"""Reading with real files and real streams on loopback."""

import contextlib
import itertools
import math
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from training.core.decode import decode_clip
from training.movinet.live.reader import LiveError, LiveReader

COUNT = 30


def ffmpeg(*arguments: str) -> None:
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", "-nostdin", *arguments], check=True, timeout=60)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, clip_drawer, mp4_encoder) -> Path:
    """30 frames at 10 per second, 48×64 pixels, the number written into each; a key frame every ten."""
    path = tmp_path_factory.mktemp("live") / "clip.mp4"
    mp4_encoder(clip_drawer(3, 1, 48, 64, COUNT), path, "-g", "10")
    return path


@pytest.fixture(scope="module")
def transport(clip) -> Path:
    path = clip.with_name("clip.ts")
    ffmpeg("-i", str(clip), "-c", "copy", "-f", "mpegts", str(path))
    return path


def read(source: str, **settings) -> tuple[list, LiveReader]:
    with LiveReader(source, **settings) as reader:
        frames = list(reader)
        for frame in frames:
            assert frame.pixels is not None
    assert not reader._thread.is_alive()
    return frames, reader


def read_to_error(reader: LiveReader) -> tuple[list, str]:
    """Return the frames and the message of the error that ended them."""
    frames = []
    try:
        for frame in reader:
            frames.append(frame)
    except LiveError as error:
        return frames, str(error)
    pytest.fail("it ended without an error")


@contextlib.contextmanager
def served(*answers: bytes, reset: bool = False, wait: threading.Event | None = None) -> Iterator[str]:
    """Answer connections to a TCP port, one after another, each with bytes; yields the URL."""
    server = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        for content in answers:
            try:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(content)
                    if wait is not None:
                        wait.wait(60)
                    if reset:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                return
        server.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.close()
        if wait is not None:
            wait.set()
        thread.join(20)


# --- recordings --------------------------------------------------------------------------------


def test_file_gives_exactly_the_frames_of_the_loaders_decoder(clip, frame_number):
    frames, reader = read(str(clip), queue=2)
    assert [frame.number for frame in frames] == list(range(COUNT))
    assert [frame_number(frame.pixels) for frame in frames] == list(range(COUNT))
    assert [frame.time_s for frame in frames] == pytest.approx([n / 10 for n in range(COUNT)])
    expected = decode_clip(clip, np.arange(COUNT), "pyav")
    assert np.array_equal(np.stack([frame.pixels for frame in frames]), expected)
    counts = reader.counts
    assert (counts.decoded, counts.read, counts.dropped, counts.corrupt, counts.gaps) == (COUNT, COUNT, 0, 0, 0)
    assert (reader.live, reader.rate) == (False, 10)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_is_applied_as_the_loader_does(clip, tmp_path, turn):
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", str(turn), "-i", str(clip), "-c", "copy", str(turned))
    frames, _ = read(str(turned))
    expected = decode_clip(turned, np.array([4]), "pyav")[0]
    assert np.array_equal(frames[4].pixels, expected)
    assert expected.shape == ((48, 64, 3) if turn == 180 else (64, 48, 3))
    assert not np.array_equal(decode_clip(clip, np.array([4]), "pyav")[0], expected)  # the control


def test_variable_rate_goes_by_timestamps(tmp_path, clip_drawer, mp4_encoder, frame_number):
    path = tmp_path / "variable.mp4"
    kept = [n for n in range(COUNT) if n % 3 == 0 or n % 5 == 0]
    choice = r"select='not(mod(n\,3))+not(mod(n\,5))'"
    mp4_encoder(clip_drawer(3, 1, 48, 64, COUNT), path, "-vf", choice, "-fps_mode", "vfr")
    frames, _ = read(str(path))
    assert [frame_number(frame.pixels) for frame in frames] == kept
    assert [frame.time_s for frame in frames] == pytest.approx([n / 10 for n in kept])


@pytest.mark.parametrize("options", [{}, {"correct_ts_overflow": "0"}])
def test_timestamps_that_wrap_or_start_late(clip, tmp_path, options):
    import av

    path = tmp_path / "wrap.ts"
    offset = str((1 << 33) // 90_000 - 1)
    ffmpeg("-i", str(clip), "-c", "copy", "-muxdelay", "0", "-output_ts_offset", offset, "-f", "mpegts", str(path))
    with av.open(str(path), options=options) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert (stamps[-1] < stamps[0]) == bool(options)  # without libavformat's help it wraps
    frames, reader = read(str(path), options=options)
    assert [frame.time_s for frame in frames] == pytest.approx([n / 10 for n in range(COUNT)])
    assert reader.counts.gaps == 0
    assert {frame.breaks for frame in frames} == {0}


def test_gaps_and_restarts_are_counted_and_time_never_goes_back(transport, clip, tmp_path):
    later = tmp_path / "later.ts"
    ffmpeg("-i", str(clip), "-c", "copy", "-output_ts_offset", "8", "-f", "mpegts", str(later))
    content = transport.read_bytes()
    both = tmp_path / "both.ts"
    both.write_bytes(content + later.read_bytes() + content)
    frames, reader = read(str(both))
    assert len(frames) == 3 * COUNT
    times = np.array([frame.time_s for frame in frames])
    assert np.all(np.diff(times) > 0)
    assert times[COUNT] == pytest.approx(8.0)
    assert times[2 * COUNT] == pytest.approx(times[2 * COUNT - 1] + 0.1)
    assert [frame.breaks for frame in frames] == [0] * 2 * COUNT + [1] * COUNT
    assert reader.counts.gaps == 2
    assert read(str(both), gap_s=60)[1].counts.gaps == 1


def test_closing_early_ends_the_thread(clip):
    with LiveReader(str(clip), queue=2) as reader:
        assert next(iter(reader)).number == 0
    assert not reader._thread.is_alive()
    assert reader.counts.decoded < COUNT  # it waited for room, so there was something to end
    assert reader.ended


# --- real time ---------------------------------------------------------------------------------


def finish_reading(reader: LiveReader, count: int) -> None:
    while reader.counts.decoded < count:
        time.sleep(0.01)


def test_slow_consumer_loses_the_oldest_frames_and_all_are_counted(clip):
    with LiveReader(str(clip), realtime=True, queue=4) as reader:
        first = reader.take(20)
        assert first is not None
        finish_reading(reader, COUNT)
        rest = list(reader)
    assert [first.number, *(frame.number for frame in rest)] == [0, 26, 27, 28, 29]
    counts = reader.counts
    assert (counts.decoded, counts.read, counts.dropped) == (COUNT, 5, COUNT - 5)
    assert reader.live


def test_real_time_hands_no_frame_on_before_its_time(clip):
    frames, _ = read(str(clip), realtime=True, queue=COUNT)
    early = [f.arrived_s - frames[0].arrived_s - f.time_s for f in frames]
    assert min(early) > -0.02  # a lower bound only: a busy machine is late, never early


# --- streams on loopback -----------------------------------------------------------------------


def test_transport_stream_over_tcp_gives_the_frames_and_ends(transport, frame_number):
    with served(transport.read_bytes()) as url:
        frames, reader = read(url, queue=COUNT)
    assert reader.live
    assert [frame_number(frame.pixels) for frame in frames] == list(range(COUNT))
    assert [frame.time_s for frame in frames] == pytest.approx([n / 10 for n in range(COUNT)])
    assert reader.counts.dropped == 0


def test_live_stream_does_not_wait_for_the_consumer(transport):
    with served(transport.read_bytes()) as url, LiveReader(url, queue=3) as reader:
        finish_reading(reader, COUNT)
        frames = list(reader)
    assert [frame.number for frame in frames] == [27, 28, 29]
    assert reader.counts.dropped == COUNT - 3


def test_sender_that_dies_is_an_error_after_its_frames(transport):
    half = transport.read_bytes()[: 188 * 60]
    with served(half, reset=True) as url, LiveReader(url, queue=COUNT) as reader:
        _, message = read_to_error(reader)
    assert message.startswith(url)
    assert "ended unexpectedly after" in message or "cannot be opened" in message  # the reset may overtake the data
    with served(half) as url:
        frames, reader = read(url, queue=COUNT)  # the control: closing properly is an end
    assert 0 < len(frames) < COUNT


def test_sender_that_falls_silent_is_given_up(transport):
    silent = threading.Event()
    with served(transport.read_bytes(), wait=silent) as url, LiveReader(url, queue=COUNT, timeout_s=0.5) as reader:
        seen, message = read_to_error(reader)
    assert re.search(r"ended unexpectedly after 2\.\d s: nothing came for 0\.5 s", message)
    assert len(seen) >= COUNT - 3  # the decoder's last frames wait for packets that never come


def test_lost_sender_is_opened_again(transport):
    content = transport.read_bytes()
    with served(content, content) as url, LiveReader(url, queue=3 * COUNT, reconnect=1, timeout_s=0.5) as reader:
        seen, message = read_to_error(reader)
    assert "cannot be opened" in message  # the third time nobody answers
    assert [frame.breaks for frame in seen] == [0] * COUNT + [1] * COUNT
    assert np.all(np.diff([frame.time_s for frame in seen]) > 0)
    assert reader.counts.reconnects == 2


def test_lost_packets_are_counted_and_reading_goes_on(transport, tmp_path):
    content = transport.read_bytes()
    packets = [content[i : i + 188] for i in range(0, len(content), 188)]
    path = tmp_path / "lost.ts"
    path.write_bytes(b"".join(packet for n, packet in enumerate(packets) if n < 20 or n % 29 != 3))
    frames, reader = read(str(path))
    assert reader.counts.corrupt > 0
    assert sum(frame.corrupt for frame in frames) > 0
    assert frames[-1].time_s > 2  # not the end of it
    assert read(str(transport))[1].counts.corrupt == 0  # the control


def test_damaged_packets_of_a_file_are_not_fatal(clip, tmp_path):
    content = bytearray(clip.read_bytes())
    for place in range(len(content) // 2, len(content) - 200, 97):
        content[place] ^= 0xFF
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    frames, reader = read(str(path))
    assert reader.counts.corrupt > 0
    assert len(frames) > COUNT // 3


@pytest.fixture
def udp_sender(transport) -> Iterator[Callable[[], str]]:
    """Return a function that starts ffmpeg sending the clip again and again by UDP, and returns the URL."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []

    def start() -> str:
        command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-re", "-stream_loop", "-1", "-i", str(transport)]
        command += ["-c", "copy", "-f", "mpegts", f"udp://127.0.0.1:{port}?pkt_size=1316"]
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return f"udp://127.0.0.1:{port}"

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_transport_stream_over_udp(udp_sender, frame_number):
    seen = []
    with LiveReader(udp_sender(), timeout_s=30) as reader:
        for frame in reader:
            seen.append((frame.time_s, frame_number(frame.pixels)))
            if len(seen) == 12:
                break
    assert not reader._thread.is_alive()
    assert reader.live
    times, numbers = zip(*seen, strict=True)
    assert times[0] == 0 or reader.counts.dropped
    assert np.all(np.diff(times) > 0)
    steps = np.diff(times).round(1)
    assert [(b - a) % COUNT for a, b in itertools.pairwise(numbers)] == [round(10 * step) % COUNT for step in steps]


def test_format_opens_devices():
    """`lavfi` is FFmpeg's own device, the only one that every machine has."""
    frames, reader = read("testsrc=size=64x48:rate=10:duration=1", format="lavfi", queue=10)
    assert len(frames) == 10
    assert reader.live


# --- what cannot be read -----------------------------------------------------------------------


def test_cut_off_file_is_an_error_after_its_frames(clip, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[: math.ceil(clip.stat().st_size * 0.6)])
    with LiveReader(str(path)) as reader:
        seen, message = read_to_error(reader)
    assert re.search(r"cut\.mp4: ends after \d+ of the 30 frames", message)
    assert 0 < len(seen) < COUNT


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(LiveError, match=r"nothing\.mp4 does not exist; give a file, a URL"):
        LiveReader(str(tmp_path / "nothing.mp4"))
    junk = tmp_path / "junk.mp4"
    junk.write_bytes(b"junk" * 1000)
    with pytest.raises(LiveError, match=r"junk\.mp4: cannot be opened: it is not a video"):
        read(str(junk))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(LiveError, match=f"{url}: cannot be opened: Connection refused"):
        read(url)
    sound = tmp_path / "sound.wav"
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", str(sound))
    with pytest.raises(LiveError, match=r"sound\.wav: it has no video stream"):
        read(str(sound))
    with pytest.raises(ValueError, match="at least one frame"):
        LiveReader(str(junk), queue=0)
