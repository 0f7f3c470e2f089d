"""The installed wheel, away from the repository: imports, lists, and predicts one video."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from training.autovideo.fitted import FittedPipeline
from training.autovideo.pipeline import PipelineRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[4]

IMPORT_ALL = """
import importlib, json, pathlib, sys
import training, training.autovideo
folder = pathlib.Path(training.autovideo.__file__).parent
names = []
for path in sorted(folder.rglob("*.py")):
    parts = path.relative_to(folder).with_suffix("").parts
    name = ".".join(("training.autovideo", *(part for part in parts if part != "__init__")))
    importlib.import_module(name)
    names.append(name)
import torch
print(json.dumps({"at": training.__file__, "names": names, "cuda": torch.cuda.is_available()}))
"""


def run(*command: object, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows or would know, in a folder where the build may leave what it likes."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the sources are no git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    root = tmp_path_factory.mktemp("source") / "fovea"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    return root


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without the network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", out]
    run(*command, source, cwd=out, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (path,) = out.glob("fovea-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(
    wheel: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """Folder in which the wheel is installed, and the environment of a machine without GPU that has only that."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", target, wheel]
    run(*command, cwd=target, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return target, {**environment, "PYTHONPATH": str(target), "CUDA_VISIBLE_DEVICES": ""}


def test_everything_of_autovideo_is_in_the_wheel(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("training/autovideo/")}
    family = source / "training" / "autovideo"
    expected = {
        path.relative_to(source).as_posix()
        for path in family.rglob("*")
        if path.is_file() and path.suffix in (".py", ".j2", ".yaml", ".txt", ".json", ".css", ".js")
    }
    assert expected - inside == set(), "not packaged: see [tool.setuptools] of pyproject.toml"
    assert any(name.endswith(".j2") for name in inside)
    assert any("/commands/" in name for name in inside)
    assert not any(name.endswith((".pyc", ".md")) or "/tests/" in name for name in inside)


def test_it_imports_without_a_gpu(installed: tuple[Path, dict[str, str]], tmp_path: Path, last_json: Any) -> None:
    target, env = installed
    found = last_json(run(sys.executable, "-c", IMPORT_ALL, cwd=tmp_path, env=env))
    assert Path(found["at"]) == target / "training" / "__init__.py"
    assert not found["cuda"]
    assert {"training.autovideo.fitted", "training.autovideo.commands.search"} <= set(found["names"])


def test_the_command_lists_the_primitives(installed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    target, env = installed
    script = target / "bin" / "fovea"
    assert script.is_file()
    rows = json.loads(run(sys.executable, script, "primitives", "list", "--json", cwd=tmp_path, env=env))
    here = json.loads(
        run(
            sys.executable, "-m", "infra.cli", "primitives", "list", "--json",
            cwd=tmp_path, env={**env, "PYTHONPATH": str(ROOT)},
        )
    )  # fmt: skip
    assert {row["id"] for row in rows} == {row["id"] for row in here}
    assert {"reader/d3m", "recognition/tsn", "evaluator/topk"} <= {row["id"] for row in rows}


def test_it_predicts_one_video(
    installed: tuple[Path, dict[str, str]], ran: PipelineRun, videos: Path, tmp_path: Path, last_json: Any
) -> None:
    _, env = installed
    fitted = FittedPipeline.of(ran)
    fitted.save(tmp_path / "saved")
    empty = tmp_path / "empty"
    empty.mkdir()
    video = videos / "blue" / "g2_6.mp4"
    expected = fitted.predict(video)
    command = [sys.executable, "-m", "infra.cli", "pipeline", "predict", tmp_path / "saved", video, "--json"]
    row = last_json(run(*command, cwd=empty, env=env))
    assert tuple(row["classes"]) == expected.classes
    assert row["scores"] == pytest.approx(expected.scores, abs=1e-6)
    assert not list(empty.iterdir()), "a prediction leaves nothing behind"
