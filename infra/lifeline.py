"""Run one command so that nothing of it outlives the process that asked for it, however that one ends.

    python lifeline.py <fd> <command> [<argument>…]

`fd` is the reading end of a pipe whose writing end only the asking process holds: end of file means that it is
gone, by `kill -9` too. Then the whole process group gets SIGTERM and, after `GRACE_S`, SIGKILL. Kept to the
standard library's cheapest modules, since it starts once per stage.
"""

import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

GRACE_S = 10.0
POLL_S = 0.05


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """Do nothing. A handler, since SIG_IGN would be inherited by the command."""


def _others_alive(group: int) -> bool:
    """Return whether the group has a member besides this process (zombies of ours do not count)."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            return True
    return False


def end_group() -> None:
    """End every other process of this group: SIGTERM, then SIGKILL after the grace period."""
    group = os.getpgrp()
    os.killpg(group, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    if os.path.isdir("/proc"):
        while _others_alive(group):
            if time.monotonic() > deadline:
                os.killpg(group, signal.SIGKILL)
            time.sleep(POLL_S)
    else:
        time.sleep(1)
        os.killpg(group, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status (128 + n after signal n)."""
    lifeline = int(arguments[0])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _ignore)
    child = subprocess.Popen(arguments[1:])
    while child.poll() is None:
        ready, _, _ = select.select([lifeline], [], [], POLL_S)
        if ready:
            end_group()
            child.wait()
            return 128 + signal.SIGTERM
    if os.path.isdir("/proc") and _others_alive(os.getpgrp()):
        end_group()  # the command was killed and left its own children behind
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
