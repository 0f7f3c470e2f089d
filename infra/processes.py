"""Child processes whose output is passed through as it comes and that end with their parent."""

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra import lifeline

TAIL_BYTES = 64_000
"""How much of the end of a child's output is kept."""

_running: "set[Supervised]" = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Finished:
    """A child that ended."""

    returncode: int
    tail: str
    """The end of its output (both streams), at most `TAIL_BYTES` bytes."""

    def last_lines(self, count: int = 15) -> str:
        """Return the last non-empty lines, without what a progress bar has overwritten."""
        lines = [line.rpartition("\r")[2].rstrip() for line in self.tail.replace("\r\n", "\n").split("\n")]
        return "\n".join([line for line in lines if line][-count:])


class Supervised:
    """A child on a lifeline: its process group ends when `end` is called or this process is gone."""

    def __init__(self, process: "subprocess.Popen[bytes]", lifeline: int):
        self._process = process
        self._lifeline: int | None = lifeline

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        return self._process.wait()

    def end(self) -> None:
        """Let go of the lifeline; does nothing the second time."""
        with _lock:
            _running.discard(self)
            if self._lifeline is not None:
                os.close(self._lifeline)
                self._lifeline = None


def supervise(
    command: Sequence[str],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Supervised:
    """Start a command in its own session, on a lifeline (`infra/lifeline.py`). Streams are as in `subprocess`."""
    end, hold = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", lifeline.__file__, str(end), *command],
            cwd=cwd,
            env=None if env is None else dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(end,),
            start_new_session=True,
        )
    except BaseException:
        os.close(hold)
        raise
    finally:
        os.close(end)
    return Supervised(process, hold)


def run_streamed(command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> Finished:
    """Run a command in its own process group, passing its output to our stderr at once.

    On a terminal the child gets a terminal too, so its progress bars move. When this process ends in whatever way,
    or `stop_all` is called, the group is ended.
    """
    terminal = sys.stderr.isatty()
    reader, writer = pty.openpty() if terminal else os.pipe()
    if terminal:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
            fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
    child = supervise(command, cwd, env, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
    os.close(writer)
    with _lock:
        _running.add(child)
    try:
        tail = _pass_through(reader, child)
        return Finished(child.wait(), tail.decode(errors="replace"))
    finally:
        os.close(reader)
        child.end()


def stop_all() -> None:
    """End every child of `run_streamed` that still runs; the waiting calls then return."""
    with _lock:
        running = list(_running)
    for child in running:
        child.end()


def _pass_through(reader: int, child: Supervised) -> bytes:
    """Copy the child's output to stderr until it ends; return the end of it."""
    tail = b""
    while True:
        ended = child.poll() is not None
        ready, _, _ = select.select([reader], [], [], 0 if ended else 0.2)
        if not ready:
            if ended:  # something that left the group may hold the pipe open for ever: do not wait for it
                return tail
            continue
        try:
            chunk = os.read(reader, 65536)
        except OSError:  # a terminal's reading end raises EIO when the other side is closed
            chunk = b""
        if not chunk:
            return tail
        tail = (tail + chunk)[-TAIL_BYTES:]
        sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()
