"""What tests of several folders share: Prefect's services as real processes, and an S3 server."""

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

PREFECT = [sys.executable, "-m", "prefect"]


class Services:
    """Processes on loopback that end, with their groups, when the tests are over."""

    def __init__(self, root: Path, home: Path, env: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        others = {name: value for name, value in env.items() if not name.startswith("PREFECT_")}
        self.env = {
            **DEFAULTS,
            **others,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"http://127.0.0.1:{self._port}/api",
            "FOVEA_ROOT": str(root),
        }
        """Reaches the server; for commands of the tests."""
        self._root = root
        self._home = home
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the server, make pool and deployments, start a worker."""
        server = self._spawn("server", "start", "--host", "127.0.0.1", "--port", str(self._port), "--no-ui")
        deadline = time.monotonic() + 240
        while True:
            assert server.poll() is None, (self._home / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            try:
                urllib.request.urlopen(f"{self.env['PREFECT_API_URL']}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.3)
        self.ask("work-pool", "create", "fovea", "--type", "process")
        self.ask("--no-prompt", "deploy", "--prefect-file", "infra/prefect.yaml", "--all")
        self._spawn("worker", "start", "--pool", "fovea", "--limit", "1")

    def ask(self, *arguments: str) -> str:
        """Run a command of Prefect and return what it printed."""
        command = [*PREFECT, *arguments]
        result = subprocess.run(command, cwd=self._root, env=self.env, capture_output=True, text=True, check=False)
        worker = self._home / "worker.log"
        detail = worker.read_text()[-4000:] if worker.exists() else ""
        assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}\n{detail}"
        return result.stdout

    def end(self) -> None:
        """End every process."""
        for process in reversed(self._running):
            for number in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    os.killpg(process.pid, number)
                try:
                    process.wait(timeout=20)
                    break
                except subprocess.TimeoutExpired:
                    continue

    def _spawn(self, *arguments: str) -> "subprocess.Popen[bytes]":
        with (self._home / f"{arguments[0]}.log").open("wb") as log:
            process = subprocess.Popen(
                [*PREFECT, *arguments],
                cwd=self._root,
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Tests started in the background inherit an ignored SIGINT, which a worker would hand on.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self._running.append(process)
        return process


@pytest.fixture(scope="module")
def start_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path, dict[str, str]], Services]]:
    """Start Prefect's services for a project root with an environment; they end with the module's tests."""
    started: list[Services] = []

    def start(root: Path, env: dict[str, str]) -> Services:
        services = Services(root, tmp_path_factory.mktemp("prefect"), env)
        started.append(services)
        services.start()
        return services

    yield start
    for services in started:
        services.end()


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """Address of a real S3 server (moto) on loopback, with credentials for it in the environment.

    All moto servers of one process share their state: each module takes a bucket of its own name.
    """
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "dummy")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.delenv("AWS_PROFILE", raising=False)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield f"http://{host}:{port}"
        finally:
            server.stop()
