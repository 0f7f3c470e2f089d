"""The generic flow on a throwaway DVC repository of shell stages."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.reproduce import ReproduceError, reproduce
from infra import processes
from tasks import dvc

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(300)]

Ran = Callable[[], list[str]]
STAGES = ["manifest", "shards", "toy_train-left", "toy_train-right", "toy_eval"]


def run(root: Path, **parameters: object) -> dict[str, str]:
    outcomes = reproduce(root=root, finish=False, **parameters)  # type: ignore[arg-type]
    return {item.stage: item.result for item in outcomes}


@pytest.fixture(scope="module")
def first(
    prefect_server: None, template_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """A repository in which every stage has run once, and what the flow said; tests copy it."""
    root = tmp_path_factory.mktemp("first") / "repository"
    shutil.copytree(template_repository, root)
    return root, run(root)


@pytest.fixture
def repeated(first: tuple[Path, dict[str, str]], repository: Path, ran_stages: Ran) -> Path:
    """The repository of the test after the first run, which `ran_stages` has still to tell."""
    shutil.rmtree(repository)
    shutil.copytree(first[0], repository)
    return repository


def test_second_run_executes_only_the_listing(
    first: tuple[Path, dict[str, str]], repeated: Path, ran_stages: Ran
) -> None:
    outcome = first[1]
    assert ran_stages() == STAGES
    assert set(outcome.values()) == {"ran"}
    # A family without a section in the data set's params file is not part of the run.
    assert "other_train@demo" not in outcome

    second = run(repeated)
    assert ran_stages() == ["manifest"]
    assert second == {name: "ran" if name == "manifest@demo" else "unchanged" for name in outcome}

    # The children knew the flow run and where its server is.
    runs = {line.split()[2] for line in (repeated / "environment.log").read_text().splitlines()}
    addresses = {line.split()[4] for line in (repeated / "environment.log").read_text().splitlines()}
    assert len(runs) == 1
    assert all(len(name) == 36 for name in runs)
    assert all(address.startswith("http://") for address in addresses)


def test_only_what_a_change_reaches_runs(repeated: Path, ran_stages: Ran) -> None:
    ran_stages()

    (repeated / "params/demo.yaml").write_text("toy_train: {left: 2, right: 1}\ntoy_eval: {x: 1}\n")
    found = run(repeated)
    # The left net runs; it makes the same output as before, so nothing after it does.
    assert ran_stages() == ["manifest", "toy_train-left"]
    assert found["toy_eval@demo"] == "unchanged"

    # New source data goes through the listing, which always runs, though `dvc status` was asked before it ran.
    (repeated / "sources/demo").write_text("three\n")
    run(repeated)
    assert ran_stages() == STAGES


def test_a_failure_stops_only_what_needs_it(repository: Path, ran_stages: Ran) -> None:
    (repository / "sources/trouble-left").write_text("fail")
    with pytest.raises(ReproduceError) as error:
        run(repository)
    assert ran_stages() == ["manifest", "shards", "toy_train-right"]
    message = str(error.value)
    assert "2 of 5 stages" in message
    assert "cannot train left" in message  # the command's own words
    assert "toy_eval@demo not started: needs toy_train@demo-left" in message

    (repository / "sources/trouble-left").unlink()
    found = run(repository)
    assert ran_stages() == ["manifest", "toy_train-left", "toy_eval"]
    assert found["toy_train@demo-right"] == "unchanged"


def test_targets_and_their_upstream(repository: Path, ran_stages: Ran) -> None:
    found = run(repository, targets=["toy_train@demo-left"])
    assert ran_stages() == STAGES[:3]
    assert "toy_eval@demo" not in found
    run(repository, targets=["toy_train"])
    assert ran_stages() == ["manifest", "toy_train-right"]
    # A bare name also reaches a stage without a section in the params file, which then says so itself.
    with pytest.raises(ReproduceError, match="other_train"):
        run(repository, targets=["other_train"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dataset": "dema"}, "no stage of dvc.yaml runs on data set 'dema'; known: demo"),
        ({"targets": ["toy_trian"]}, "unknown target 'toy_trian'; stages of demo: manifest@demo"),
    ],
)
def test_unknown_names_are_errors_that_list_the_known(
    repository: Path, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(dvc.UnknownStageError, match=message):
        run(repository, **parameters)
    assert not (repository / "ran.log").exists()


def test_independent_stages_run_at_once_when_allowed(repository: Path) -> None:
    # Each net waits for the other one's sign: with one job at a time this could never end.
    script = "mkdir -p runs; touch sign-$2; for i in $(seq 600); do ls sign-left sign-right >/dev/null 2>&1 && break; "
    script += "sleep 0.1; done; ls sign-left sign-right; cp data/$1.shards runs/$1-$2\n"
    (repository / "train.sh").write_text(script)
    found = run(repository, jobs=2)
    assert found["toy_eval@demo"] == "ran"


def wait_for(path: Path, seconds: float = 120) -> str:
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
    return path.read_text().strip()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_gone(pid: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


def test_stopping_ends_the_stage(repository: Path) -> None:
    """What a cancelled flow does (`stop_all`) ends the stage's command, and the flow returns."""
    (repository / "sources/trouble-left").write_text("sleep")
    stopped = threading.Thread(target=lambda: (wait_for(repository / "pid-left"), processes.stop_all()))
    stopped.start()
    with pytest.raises(ReproduceError, match="toy_train@demo-left failed"):
        run(repository)
    stopped.join()
    wait_gone(int((repository / "pid-left").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killing_the_flow_ends_the_stage(
    repository: Path, number: signal.Signals, ran_stages: Ran, server_url: str
) -> None:
    (repository / "sources/trouble-left").write_text("sleep")
    command = [sys.executable, "-m", "flows.reproduce", "demo", "--no-finish"]
    env = {**os.environ, "FOVEA_ROOT": str(repository), "PREFECT_API_URL": server_url}
    flow = subprocess.Popen(command, env=env, start_new_session=True)
    pid = int(wait_for(repository / "pid-left"))
    assert alive(pid)
    flow.send_signal(number)
    assert flow.wait(timeout=60) != 0
    wait_gone(pid)
    # At once again: no lock is left, finished stages are not done twice.
    ran_stages()
    (repository / "sources/trouble-left").unlink()
    run(repository)
    assert ran_stages() == ["manifest", "toy_train-left", "toy_train-right", "toy_eval"]
