"""One Prefect server for all tests of this folder, and a DVC repository of small shell stages."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.environment import apply_defaults

apply_defaults()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect's own test harness: a server with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def server_url(prefect_server: None) -> str:
    """Address of that server, for processes: each would start one of its own."""
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


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
    import shutil

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
