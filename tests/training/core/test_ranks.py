"""Fits with gradient exchange equal those without; what the processes run is in ranks.py."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from training.core.distributed import Group

SCRIPT = Path(__file__).with_name("ranks.py")
STEPS, SUBCLIPS = 5, 3


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


# --- one process in a group of its own ---------------------------------------------------------


@pytest.fixture
def data_parallel():
    """Call a function inside of a process group."""

    def call(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            return function()
        finally:
            dist.destroy_process_group()

    return call


@pytest.mark.parametrize("accumulate", [1, 2])
def test_partial_passes_exchange_nothing(data_parallel, accumulate):
    code = runpy.run_path(str(SCRIPT))

    def train(partial: str) -> dict[str, Any]:
        return code["train"](code["Recurrent"](partial), Group(), accumulate=accumulate)

    alone = train("but the last")
    assert alone["exchanges"] == 0
    exchanges = {"but the last": STEPS, "none": STEPS * SUBCLIPS, "all": 0}
    for partial, count in exchanges.items():
        wrapped = data_parallel(lambda partial=partial: train(partial))
        assert wrapped["exchanges"] == count
        assert differ(alone["weights"], wrapped["weights"]) < 1e-6


def test_wrapper_searches_for_unused_parameters_when_the_system_says_so(data_parallel):
    code = runpy.run_path(str(SCRIPT))

    def train(unused: bool) -> dict[str, Any]:
        return code["train"](code["Paths"](unused), Group(), accumulate=1)

    assert differ(train(True)["weights"], data_parallel(lambda: train(True))["weights"]) < 1e-6
    with pytest.raises(RuntimeError, match="find_unused_parameters=True"):
        data_parallel(lambda: train(False))


# --- two processes -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Results by process: `0-of-1`, `0-of-2` and `1-of-2`."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), "2"],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        runpy.run_path(str(SCRIPT))["run"](folder, 0, 1)
        for process in processes:
            text, _ = process.communicate(timeout=240)
            assert process.returncode == 0, text
    finally:
        for process in processes:
            process.kill()
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in ("0-of-1", "0-of-2", "1-of-2")}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_sub_clips_exchange_gradients_once_per_step(results, accumulate):
    one, first, second = (results[name] for name in ("0-of-1", "0-of-2", "1-of-2"))
    case = f"but the last/{accumulate}"
    assert differ(first[case]["weights"], second[case]["weights"]) == 0
    assert differ(one[case]["weights"], first[case]["weights"]) < 1e-6
    assert first[case]["exchanges"] == STEPS
    # Without `partial` the result is the same, and each pass waits for the other ranks.
    each = f"none/{accumulate}"
    assert differ(one[case]["weights"], first[each]["weights"]) < 1e-6
    assert first[each]["exchanges"] == STEPS * SUBCLIPS
    # Control: when no pass exchanges gradients, the ranks drift apart; alone, nothing changes.
    never = f"all/{accumulate}"
    assert first[never]["exchanges"] == 0
    assert differ(first[never]["weights"], second[never]["weights"]) > 1e-3
    assert differ(one[case]["weights"], one[never]["weights"]) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_parameters_may_be_unused_when_the_system_says_so(results, accumulate):
    one, first, second = (results[name][f"paths/{accumulate}"] for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert differ(first["weights"], second["weights"]) == 0
    assert differ(one["weights"], first["weights"]) < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_undeclared_unused_parameters_are_an_error(results):
    """Negative control of the test above."""
    for rank in (0, 1):
        assert "find_unused_parameters=True" in results[f"{rank}-of-2"]["undeclared"]["error"]
