import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tasks.fanout import Failure, fan_out


@dataclass(frozen=True)
class Work:
    number: int
    folder: str = ""
    what: str = "square"
    tried: bool = False


def do(work: Work) -> int:
    if work.what == "raise":
        raise ValueError(f"number {work.number} is odd")
    if work.what == "die" or (work.what == "die once" and not work.tried):
        os.kill(os.getpid(), signal.SIGKILL)
    if work.what == "count":
        # Each running task is a file; the most seen at once is what `workers` must bound.
        mine = Path(work.folder, f"running-{work.number}")
        mine.touch()
        time.sleep(0.2)
        seen = len(list(Path(work.folder).glob("running-*")))
        mine.unlink()
        return seen
    return work.number**2


def tried(work: Work) -> Work:
    return replace(work, tried=True)


def results(*arguments: object, **options: object) -> dict[int, int | Failure]:
    return {done.item.number: done.value for done in fan_out(do, *arguments, **options)}


def test_in_process_errors_are_values():
    found = results([Work(1), Work(2, what="raise"), Work(3)], workers=0)
    assert (found[1], found[3]) == (1, 9)
    assert isinstance(found[2], Failure)
    assert found[2].message == "ValueError: number 2 is odd"
    assert "in do" in found[2].trace
    assert not found[2].crashed


def test_nothing_to_do_starts_nothing():
    assert results([]) == {}
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_waiting_is_reported_in_process():
    calls: list[int] = []
    results([Work(1), Work(2)], workers=0, on_wait=lambda: calls.append(1))
    assert len(calls) == 2


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for the tests of this module; `fan_out` takes the one that runs."""
    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}.items():
        os.environ.setdefault(name, value)
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("local_ray")
class TestOnRay:
    def test_errors_are_values(self):
        found = results([Work(n, what="raise" if n == 3 else "square") for n in range(6)])
        assert isinstance(found[3], Failure)
        assert found[3].message == "ValueError: number 3 is odd"
        assert {n: v for n, v in found.items() if n != 3} == {0: 0, 1: 1, 2: 4, 4: 16, 5: 25}

    def test_a_dead_process_is_replaced_and_its_item_changed(self):
        found = results([Work(2, what="die once"), Work(3)], after_crash=tried)
        assert found == {2: 4, 3: 9}

    def test_an_item_that_always_dies_fails_alone(self):
        found = results([Work(2, what="die"), Work(3), Work(4)])
        assert (found[3], found[4]) == (9, 16)
        assert isinstance(found[2], Failure)
        assert found[2].crashed
        assert "died 3 times" in found[2].message

    def test_bounded(self, tmp_path):
        found = results([Work(n, str(tmp_path), "count") for n in range(8)])
        assert 1 <= max(v for v in found.values() if isinstance(v, int)) <= 2
        assert len(found) == 8

    def test_waiting_is_reported(self, tmp_path):
        calls: list[int] = []
        results([Work(1, str(tmp_path), "count")], on_wait=lambda: calls.append(1))
        assert calls

    def test_leaving_early_ends_the_rest(self, tmp_path):
        running = fan_out(do, [Work(n, str(tmp_path), "count") for n in range(50)])
        next(running)
        running.close()
        import ray

        assert ray.is_initialized()
        assert results([Work(5)]) == {5: 25}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_own_ray_is_started_and_ended(tmp_path):
    import subprocess

    left = Path(f"/tmp/fovea-ray-{2**22 + 1}-test")  # above the largest pid
    left.mkdir(exist_ok=True)
    code = (
        "import glob, json, os, ray\nfrom tasks.fanout import fan_out\n"
        "print(sorted(d.value for d in fan_out(json.dumps, [1, 2], workers=1)))\n"
        "print(ray.is_initialized(), glob.glob(f'/tmp/fovea-ray-{os.getpid()}-*'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-2:] == ["['1', '2']", "False []"]
    assert not left.exists()
