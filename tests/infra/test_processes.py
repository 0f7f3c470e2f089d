"""Children pass their output through at once and never outlive the process that asked for them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infra.processes import Finished, run_streamed, stop_all

PYTHON = sys.executable


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def until(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_status_and_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = "echo to out; echo to err >&2; echo $WORD; pwd; exit 3"
    finished = run_streamed(["sh", "-c", script], tmp_path, {**os.environ, "WORD": "given"})
    assert finished.returncode == 3
    assert finished.tail.splitlines() == ["to out", "to err", "given", str(tmp_path)]
    assert capfd.readouterr().err == finished.tail


def test_a_signal_becomes_a_status(tmp_path: Path) -> None:
    assert run_streamed(["sh", "-c", "kill -9 $$"], tmp_path).returncode == 137
    assert run_streamed(["sh", "-c", "true"], tmp_path).returncode == 0


def test_output_comes_while_the_child_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = f"echo first; while ! test -e {tmp_path}/go; do sleep 0.02; done; echo second"
    worker = threading.Thread(target=run_streamed, args=(["sh", "-c", script], tmp_path))
    worker.start()
    seen = ""
    deadline = time.monotonic() + 60
    while "first" not in seen and time.monotonic() < deadline:
        seen += capfd.readouterr().err
        time.sleep(0.02)
    assert seen == "first\n"
    (tmp_path / "go").touch()
    worker.join()
    assert capfd.readouterr().err == "second\n"


def test_long_output_keeps_its_end(tmp_path: Path) -> None:
    finished = run_streamed([PYTHON, "-c", "for i in range(30_000): print(i)"], tmp_path)
    assert finished.tail.endswith("29998\n29999\n")
    assert len(finished.tail) <= 64_000


def test_last_lines_without_progress() -> None:
    finished = Finished(1, "start\n 10%\r 50%\r100%\n\nerror: disk full\r\n\n")
    assert finished.last_lines() == "start\n100%\nerror: disk full"
    assert finished.last_lines(1) == "error: disk full"


@pytest.mark.parametrize("stubborn", [False, True])
def test_stop_all_ends_the_whole_group(tmp_path: Path, stubborn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if stubborn:  # a child that ignores SIGTERM is killed after the grace period: make that period short
        source = Path(run_streamed.__code__.co_filename).with_name("lifeline.py").read_text()
        short = tmp_path / "lifeline.py"
        short.write_text(source.replace("GRACE_S = 10.0", "GRACE_S = 0.5"))
        monkeypatch.setattr("infra.lifeline.__file__", str(short))
    trap = "trap '' TERM;" if stubborn else ""
    script = f"{trap} sleep 300 & echo $! > {tmp_path}/grandchild; echo $$ > {tmp_path}/child; wait; sleep 300"
    results: list[Finished] = []
    worker = threading.Thread(target=lambda: results.append(run_streamed(["sh", "-c", script], tmp_path)))
    worker.start()
    until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip())
    pids = [int((tmp_path / name).read_text()) for name in ("child", "grandchild")]
    assert all(alive(pid) for pid in pids)  # the control
    stop_all()
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert results[0].returncode != 0
    until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_group_ends_with_its_asker(tmp_path: Path, number: signal.Signals) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/grandchild; echo $$ > {tmp_path}/child; wait"
    code = f"""
from pathlib import Path
from infra.processes import run_streamed
run_streamed(["sh", "-c", {script!r}], Path({str(tmp_path)!r}))
"""
    asker = subprocess.Popen([PYTHON, "-c", code])
    until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip())
    pids = [int((tmp_path / name).read_text()) for name in ("child", "grandchild")]
    assert all(alive(pid) for pid in pids)
    asker.send_signal(number)
    asker.wait(timeout=60)
    until(lambda: not any(alive(pid) for pid in pids))


def test_what_a_killed_command_leaves_behind_ends(tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/grandchild; kill -9 $$"
    assert run_streamed(["sh", "-c", script], tmp_path).returncode == 137
    until(lambda: not alive(int((tmp_path / "grandchild").read_text())))


def test_a_terminal_is_handed_on(tmp_path: Path) -> None:
    """With stderr on a terminal the child has one too, so that progress bars move; without, it has none."""
    import pty

    code = f"""
from pathlib import Path
from infra.processes import run_streamed
child = "import sys; print('terminal', sys.stdout.isatty(), sys.stderr.isatty())"
run_streamed([{PYTHON!r}, "-c", child], Path({str(tmp_path)!r}))
"""
    master, slave = pty.openpty()
    subprocess.run([PYTHON, "-c", code], check=True, stderr=slave)
    assert b"terminal True True" in os.read(master, 4096)
    os.close(master)
    os.close(slave)
    plain = subprocess.run([PYTHON, "-c", code], check=True, stderr=subprocess.PIPE)
    assert b"terminal False False" in plain.stderr
