import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.locks import StageLockedError, stage_lock

HOLD = "import sys, time; from pathlib import Path; from infra.locks import stage_lock\n"


def hold(path: Path, rest: str = "time.sleep(60)") -> subprocess.Popen[str]:
    """Start a process that holds the lock; returns when it does."""
    code = f"{HOLD}with stage_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    {rest}"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_lock_can_be_taken_again_and_again(tmp_path):
    for _ in range(3):
        with stage_lock(tmp_path / "work" / "stage.lock", wait_s=0):
            assert (tmp_path / "work" / "stage.lock").read_text() == f"{os.getpid()}\n"


def test_second_holder_fails_naming_the_first(tmp_path):
    path = tmp_path / "stage.lock"
    holder = hold(path)
    try:
        with pytest.raises(StageLockedError, match=f"process {holder.pid} "), stage_lock(path, wait_s=0.3):
            pass
    finally:
        end(holder)


def test_waiting_is_enough_when_the_first_ends(tmp_path):
    path = tmp_path / "stage.lock"
    holder = hold(path, "time.sleep(0.5)")
    with stage_lock(path, wait_s=20):
        assert path.read_text() == f"{os.getpid()}\n"
    end(holder)


def test_killed_holder_frees_the_lock_though_its_child_lives(tmp_path):
    path = tmp_path / "stage.lock"
    child = "import subprocess; c = subprocess.Popen(['sleep', '60']); print(c.pid, flush=True); time.sleep(60)"
    holder = hold(path, child)
    assert holder.stdout is not None
    orphan = int(holder.stdout.readline())
    try:
        end(holder)
        os.kill(orphan, 0)  # it lives
        with stage_lock(path, wait_s=0.5):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_lock_is_freed_after_an_error(tmp_path):
    path = tmp_path / "stage.lock"
    with pytest.raises(ZeroDivisionError), stage_lock(path):
        raise ZeroDivisionError
    with stage_lock(path, wait_s=0):
        pass


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux")
@pytest.mark.parametrize("asks", [True, False])
def test_dies_with_its_parent_only_when_asked(asks):
    call = "from infra.locks import die_with_parent; assert die_with_parent()\n" if asks else ""
    child = f"{call}import os, time; print(os.getpid(), flush=True); time.sleep(30)"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + (20 if asks else 1)
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(pid) != asks
    if not asks:
        os.kill(pid, signal.SIGKILL)
    process.stdout.close()
