"""What tests of several folders share: Prefect's services as real processes, an S3 server, and a repository of small
shell stages."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.environment import DEFAULTS

PREFECT = [sys.executable, "-m", "prefect"]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Beside another process, threads of small operators wait for each other (before torch is imported).
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("FOVEA_TRAIN_CPUS_PER_WORKER", "1")

HEAVY = {
    "tests/e2e": True,
    "tests/training/core/test_ray.py": True,
    "tests/training/resnet_rs/test_scaling_claims.py": False,
    "tests/training/movinet/test_search_claims.py": False,
    "tests/training/adamml/test_adamml_claims.py": True,
    "tests/training/lsts/test_lsts_claims.py": True,
    "tests/flows": True,
    "tests/training/core/registry": True,
    "tests/training/test_every_stage.py": True,
    "tests/training/autovideo/execution": True,
    "tests/training/core/test_search.py": False,
    "tests/training/core/test_run.py": True,
    "tests/training/backbones/test_backbones.py": False,
    "tests/tasks/test_fanout.py": True,
    "tests/test_architecture.py": False,
}
"""Files and folders that take long, the longest first: whether their tests share something that is costly to make, and
so stay in one process. The first entry that fits counts; the tests of any other file stay together."""


def _place(nodeid: str) -> tuple[int, str]:
    """Return a test's place among the heavy ones and the name of what runs in one process with it."""
    file = nodeid.partition("::")[0]
    for place, (start, together) in enumerate(HEAVY.items()):
        if file == start or file.startswith(f"{start}/"):
            return place, start if together else nodeid
    return len(HEAVY), file


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes long first, so that no process is left with it at the end; the rest keeps its random order."""
    items.sort(key=lambda item: _place(item.nodeid)[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole groups of tests, in the order above (`-n 2 --dist loadgroup`).

    xdist's own groups, marks that it writes into a test's id, do not reach pytest 9.2's ids.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _place(nodeid)[1]

    config.option.loadscopereorder = False
    return Groups(config, log)


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


PIPELINE = """
stages:
  manifest:
    matrix:
      data: ${datasets}
    cmd: mkdir -p data && cat sources/${item.data} > data/${item.data}.csv && echo manifest >> ran.log
    always_changed: true
    deps:
    - specs/${item.data}
    outs:
    - data/${item.data}.csv
  shards:
    matrix:
      data: ${datasets}
    cmd: cp data/${item.data}.csv data/${item.data}.shards && echo shards >> ran.log
    deps:
    - data/${item.data}.csv
    outs:
    - data/${item.data}.shards
  toy_train:
    matrix:
      data: ${datasets}
      net: [left, right]
    cmd: sh train.sh ${item.data} ${item.net}
    deps:
    - data/${item.data}.shards
    params:
    - params/${item.data}.yaml:
      - toy_train.${item.net}
    outs:
    - runs/${item.data}-${item.net}
  toy_eval:
    matrix:
      data: ${datasets}
    cmd: cat runs/${item.data}-left runs/${item.data}-right > runs/${item.data}-eval && echo toy_eval >> ran.log
    deps:
    - runs/${item.data}-left
    - runs/${item.data}-right
    params:
    - params/${item.data}.yaml:
      - toy_eval
    outs:
    - runs/${item.data}-eval
  other_train:
    matrix:
      data: ${datasets}
    cmd: echo other > runs/${item.data}-other
    deps:
    - data/${item.data}.shards
    params:
    - params/${item.data}.yaml:
      - other_train
    outs:
    - runs/${item.data}-other
"""

TRAIN = """
set -e
grep -q fail sources/trouble-$2 2>/dev/null && { echo "cannot train $2" >&2; exit 3; }
grep -q sleep sources/trouble-$2 2>/dev/null && { echo $$ > pid-$2; sleep 300; }
mkdir -p runs
# Only the first line of the data matters to this "training".
head -1 data/$1.shards > runs/$1-$2
echo "$2 for $FOVEA_FLOW_RUN_ID at $PREFECT_API_URL" >> environment.log
echo toy_train-$2 >> ran.log
"""


@pytest.fixture(scope="session")
def template_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC repository with the pipeline above, never run."""
    root = tmp_path_factory.mktemp("repository")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text("datasets:\n- demo\n")
    (root / "train.sh").write_text(TRAIN)
    for folder in ("sources", "specs", "params"):
        (root / folder).mkdir()
    (root / "sources/demo").write_text("one\ntwo\n")
    (root / "specs/demo").write_text("demo\n")
    # No section `other_train`: that family is not used on this data set.
    (root / "params/demo.yaml").write_text("toy_train: {left: 1, right: 1}\ntoy_eval: {x: 1}\n")
    (root / ".gitignore").write_text("/data\n/runs\n/*.log\n/pid-*\n")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})
    return root


@pytest.fixture
def repository(template_repository: Path, tmp_path: Path) -> Path:
    """A fresh copy of the repository."""
    root = tmp_path / "repository"
    shutil.copytree(template_repository, root)
    return root


def ran(root: Path) -> list[str]:
    """Return the stages whose commands were executed, in order."""
    log = root / "ran.log"
    return log.read_text().split() if log.exists() else []


@pytest.fixture
def ran_stages(repository: Path) -> Callable[[], list[str]]:
    """Function that returns what was executed since it was last called."""
    seen = 0

    def new() -> list[str]:
        nonlocal seen
        lines = ran(repository)
        fresh, seen = lines[seen:], len(lines)
        return fresh

    return new
