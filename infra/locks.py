"""One writer per stage: an exclusive file lock, and a process that dies with its parent.

`kill -9` of a stage's parent (DVC, a shell) leaves the stage running and frees the parent's own lock. A
stage therefore takes its own lock, which the kernel frees when the last process holding it is gone, and
asks the kernel to be killed with its parent. Only the standard library: used by ingest and training.
"""

import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StageLockedError(RuntimeError):
    """Another process holds the lock of this stage."""


def die_with_parent() -> bool:
    """Ask the kernel to kill this process (SIGKILL) when its parent ends; Linux only.

    The signal follows the *thread* that started this process: a parent which starts processes from a short-lived
    thread would end them early. A shell in between counts as the parent, which is why dvc.yaml's commands start
    with `exec`. Call it first thing in a stage's entry point. Returns False where the platform cannot do it. Exits
    at once when the parent is already gone.
    """
    if not sys.platform.startswith("linux"):
        return False
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        return False
    if os.getppid() != parent:  # it ended between the two calls: nobody would send the signal any more
        os.kill(os.getpid(), signal.SIGKILL)
    return True


@contextmanager
def stage_lock(path: Path, wait_s: float = 10.0) -> Iterator[None]:
    """Hold an exclusive lock on `path` for the length of the block.

    The file stays (removing a locked file lets two processes lock two different files of one name) and contains
    the pid of the holder. The descriptor is not inherited by child processes, so an orphaned child cannot keep a
    dead stage locked.

    Args:
        path: lock file, e.g. `.work/shards@demo.lock`; its folder is made.
        wait_s: seconds to wait for the present holder.

    Raises:
        StageLockedError: still held after `wait_s`; the message names the holder's pid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise StageLockedError(
                        f"{path} is held by process {holder} after waiting {wait_s:g} s: the same stage is still "
                        f"running; wait for it or end it (`kill {holder}`), then start again"
                    ) from None
                time.sleep(min(0.1, wait_s / 10 or 0.01))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # frees the lock
