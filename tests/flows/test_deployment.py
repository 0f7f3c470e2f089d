"""The deployments with real processes on loopback: server, work pool, worker, `prefect deployment run`."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.environment import DEFAULTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect"]


def environment(home: Path, port: int) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **DEFAULTS,
        **env,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "FOVEA_ROOT": str(ROOT),
    }


class Services:
    """Processes that end, with their groups, when the test is over."""

    def __init__(self, env: dict[str, str], logs: Path) -> None:
        self.env = env
        self.logs = logs
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with (self.logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*PREFECT, *arguments],
                cwd=ROOT,
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Tests started in the background inherit an ignored SIGINT, which a worker would hand on.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.running.append(process)
        return process

    def ask(self, *arguments: str) -> str:
        result = subprocess.run(
            [*PREFECT, *arguments], cwd=ROOT, env=self.env, capture_output=True, text=True, check=False
        )
        worker = self.logs / "worker.log"
        detail = worker.read_text()[-4000:] if worker.exists() else ""
        assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}\n{detail}"
        return result.stdout

    def end(self) -> None:
        for process in reversed(self.running):
            for number in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    os.killpg(process.pid, number)
                try:
                    process.wait(timeout=20)
                    break
                except subprocess.TimeoutExpired:
                    continue


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Services(environment(home, port), home)
    try:
        server = found.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
        deadline = time.monotonic() + 240
        while True:
            assert server.poll() is None, (home / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.3)
        found.ask("work-pool", "create", "fovea", "--type", "process")
        found.ask("--no-prompt", "deploy", "--prefect-file", "infra/prefect.yaml", "--all")
        found.start("worker", "worker", "start", "--pool", "fovea", "--limit", "1")
        yield found
    finally:
        found.end()


def test_every_deployment_is_made(services: Services) -> None:
    listed = services.ask("deployment", "ls")
    for name in ("reproduce/reproduce", "promote/promote", "nightly/nightly", "ingest/ingest"):
        assert name.split("/")[0] in listed


def test_a_worker_reproduces_a_data_set(
    services: Services, repository: Path, ran_stages: Callable[[], list[str]]
) -> None:
    arguments = ["deployment", "run", "reproduce/reproduce", "-p", "dataset=demo", "-p", f"root={repository}"]
    services.ask(*arguments, "-p", "finish=false", "--watch")
    assert ran_stages() == ["manifest", "shards", "toy_train-left", "toy_train-right", "toy_eval"]
    # The stages spoke to the worker's server, under the worker's flow run.
    line = (repository / "environment.log").read_text().splitlines()[0]
    assert line.endswith(services.env["PREFECT_API_URL"])
    services.ask(*arguments, "-p", "finish=false", "--watch")
    assert ran_stages() == ["manifest"]


def test_a_failing_stage_fails_the_run(services: Services, repository: Path) -> None:
    """The control: `--watch` does not say that all is well when it is not."""
    (repository / "sources/trouble-left").write_text("fail")
    arguments = ["deployment", "run", "reproduce/reproduce", "-p", f"root={repository}", "-p", "finish=false"]
    with pytest.raises(AssertionError, match="toy_train@demo-left"):
        services.ask(*arguments, "--watch")
