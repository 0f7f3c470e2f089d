"""A copy of the project with a small data set of its own, on which the real dvc.yaml runs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def edit_yaml(path: Path, change: Callable[[dict], None]) -> None:
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


def shorten(values: dict) -> None:
    """Enough to learn the colour of the rim, which is all that the test needs."""
    # The gate wants at least 100 test clips.
    values["synthetic"] |= {"num_train": 72, "num_val": 12, "num_test": 108}
    values["adafocus_data"]["batch_size"] = 16
    for section, steps in (("pretrain", 60), ("warmup", 60), ("policy", 20), ("finetune", 20)):
        values[f"adafocus_{section}"]["fit"] |= {"steps": steps, "checkpoint_every": 10}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tracked files of the working tree in a folder that is a git and DVC repository of its own."""
    root = tmp_path_factory.mktemp("project") / "fovea"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    edit_yaml(root / "params" / "demo.yaml", shorten)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "copy"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    return root


@pytest.fixture(scope="session")
def project_env() -> dict[str, str]:
    """Training inside the stage's process: Ray has its own tests."""
    from infra.environment import DEFAULTS

    env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "FOVEA_", "RAY_"))}
    return {
        **DEFAULTS,
        **env,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FOVEA_TRAIN_WORKERS": "0",
        "FOVEA_TRAIN_CPUS_PER_WORKER": "1",  # another test runs beside this one
        "FOVEA_PROGRESS": "false",
        "FOVEA_DEVICE": "cpu",
    }
