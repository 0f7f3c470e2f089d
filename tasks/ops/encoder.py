"""Runs ffmpeg: which program, with which limits, and what its log says about the source."""

import functools
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from data_specs.flows import extractor_of
from data_specs.schema import Encoder, RejectReason
from infra.settings import Settings
from tasks.ops.probe import RejectedError

REVISION = 1
"""Raised when a change of this package changes the bytes of clips; part of every plan digest."""

JPGS_REVISION = 2
"""The same for samples of representation `jpgs` alone. 2: their records have the clip's length in `num_frames`."""

_STREAM = re.compile(r"Input stream #0:(\d+) \(\w+\): (\d+) packets read.*?; (\d+) frames decoded; (\d+) decode errors")
_READ = re.compile(r"Input stream #0:(\d+) \(\w+\): (\d+) packets read")
_OUTPUT = re.compile(r"Output stream #(\d+):(\d+) \(video\): (\d+) frames encoded")
_CONTEXT = re.compile(r"\[[^\[\]]+ @ 0x[0-9a-f]+\]\s*")
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
_NOT_THE_VIDEO = ("No space left on device", "Cannot allocate memory", "Too many open files", "Read-only file system")
_KILLED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}


class EncoderError(RuntimeError):
    """ffmpeg could not work for a reason that is not the video's: it was killed, or the disk is full."""


@dataclass(frozen=True)
class StreamCount:
    """What ffmpeg read of one stream of the source."""

    packets: int
    frames: int
    errors: int


@dataclass(frozen=True)
class EncoderLog:
    """Outcome of a run of ffmpeg that ended by itself."""

    returncode: int
    stdout: bytes
    streams: dict[int, StreamCount]
    """By index of the stream in the source."""
    outputs: dict[int, int]
    """Number of the output → its video frames."""
    corrupt_frames: int
    """Frames that were shown although the decoder knew them to be damaged."""
    errors: tuple[str, ...]
    """Error lines, without addresses (a log must not differ between two equal runs)."""

    @property
    def first_error(self) -> str:
        """The first error line, or what is known instead."""
        return self.errors[0] if self.errors else f"ffmpeg ended with code {self.returncode}"


def ffmpeg_path(settings: Settings) -> str:
    """Return the ffmpeg of the settings, else the static one of the imageio-ffmpeg wheel."""
    if settings.ffmpeg:
        return settings.ffmpeg
    import imageio_ffmpeg

    path: str = imageio_ffmpeg.get_ffmpeg_exe()
    return path


@functools.lru_cache(maxsize=8)
def _ffmpeg_version(path: str) -> str:
    """Return the version that an ffmpeg states."""
    try:
        done = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise EncoderError(f"ffmpeg at {path} does not run: {error}; `fovea doctor` says what was found") from error
    found = re.match(r"ffmpeg version (\S+)", done.stdout)
    if not found:
        raise EncoderError(f"{path} is no ffmpeg: `{path} -version` starts with {done.stdout[:60]!r}")
    return found[1]


def encoder_of(settings: Settings, representation: str, flow: str | None = None) -> Encoder:
    """Return the identity of the programs that decide the bytes of a sample.

    Args:
        settings: Which ffmpeg.
        representation: Of the clip policy.
        flow: Of the clip policy: the extractor of optical flow, None without.

    Raises:
        EncoderError: no ffmpeg.
        ValueError: unknown extractor.
    """
    ffmpeg = _ffmpeg_version(ffmpeg_path(settings))
    if flow is not None:
        import av
        import cv2

        name = f"ffmpeg/{REVISION}+{flow}/{extractor_of(flow).version}"
        programs = f"opencv {cv2.__version__}+simplejpeg {version('simplejpeg')}+av {av.__version__}"
        return Encoder(name=name, version=f"{ffmpeg}+{programs}")
    if representation == "jpgs":
        return Encoder(
            name=f"ffmpeg+simplejpeg/{REVISION}+jpgs/{JPGS_REVISION}", version=f"{ffmpeg}+{version('simplejpeg')}"
        )
    return Encoder(name=f"ffmpeg/{REVISION}", version=ffmpeg)


def read_log(returncode: int, stdout: bytes, text: str) -> EncoderLog:
    """Read a log of `-loglevel level+verbose`."""
    streams = {int(n): StreamCount(int(p), 0, 0) for n, p in _READ.findall(text)}
    streams |= {int(n): StreamCount(int(p), int(f), int(e)) for n, p, f, e in _STREAM.findall(text)}
    errors = []
    corrupt = 0
    for line in text.splitlines():
        if "[error]" in line or "[fatal]" in line:
            plain = _CONTEXT.sub("", line).replace("[error]", "").replace("[fatal]", "").strip()
            errors.append(_ADDRESS.sub("0x", plain))
        elif "corrupt decoded frame" in line:
            corrupt += 1
    outputs = {int(number): int(frames) for number, _, frames in _OUTPUT.findall(text)}
    return EncoderLog(returncode, stdout, streams, outputs, corrupt, tuple(errors))


def run_ffmpeg(command: Sequence[str], timeout_s: float) -> EncoderLog:
    """Run one ffmpeg command to its end.

    Args:
        command: program and arguments.
        timeout_s: seconds after which the process is killed.

    Raises:
        RejectedError: reason `timeout`.
        EncoderError: the process was killed from outside, or disk or memory ran out.
    """
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise RejectedError(RejectReason.TIMEOUT, f"ffmpeg did not end within {timeout_s:g} s") from error
    if done.returncode == -signal.SIGXCPU:  # of -timelimit
        raise RejectedError(RejectReason.TIMEOUT, f"ffmpeg did not end within {timeout_s:g} s of processor time")
    text = done.stderr.decode(errors="replace")
    if done.returncode in _KILLED:
        raise EncoderError(f"ffmpeg was ended by {signal.Signals(-done.returncode).name} from outside")
    if done.returncode:
        problem = next((words for words in _NOT_THE_VIDEO if words in text), None)
        if problem:
            raise EncoderError(f"ffmpeg ended with code {done.returncode}: {problem}")
    return read_log(done.returncode, done.stdout, text)
