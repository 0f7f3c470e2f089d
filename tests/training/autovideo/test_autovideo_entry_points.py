"""Primitives of a package outside ours: installed as a wheel, listed, shown, used; and packages that are broken."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from training.autovideo import catalogue
from training.core.config import ConfigError

PACKAGE = Path(__file__).parent / "example_package"

CODE = """
import sys
sys.path.append(sys.argv.pop(1))
import training.autovideo.catalogue as catalogue
catalogue.MODULES = ("small_primitives",)
sys.argv[0] = "fovea"
from infra.cli import main
main()
"""

PIPELINE = """
schema: pipeline/v1
name: foreign
seed: 1
steps:
  - {id: data, use: reader/small}
  - {id: shards, use: extractor/small, in: data}
  - {id: clip, use: decoder/small, in: shards}
  - {id: tint, use: augment/example_tint, in: clip, with: {p: 0.25}}
  - {id: more, use: combine/small_some_of, in: tint, with: {of: [{use: augment/example_tint}]}}
  - {id: net, use: recognition/small, in: more, with: {width: 8}}
  - {id: eval, use: evaluator/small, in: [net, clip]}
  - {id: count, use: evaluator/example_count, in: eval}
outputs: [count]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example package as pip installs it, without a network."""
    source = tmp_path_factory.mktemp("source") / "package"  # building leaves folders beside the source
    shutil.copytree(PACKAGE, source)
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet",
               "--disable-pip-version-check", "--target", str(target), str(source)]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr
    return target


def broken(folder: Path, name: str, value: str, code: str = "") -> Path:
    """A folder with a package of one entry point, as far as Python looks at it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fovea.primitives]\n{name} = {value}\n")
    (folder / f"{name}.py").write_text(code)
    return folder


@pytest.fixture
def site(small: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder on the path of this process, beside the small primitives."""
    monkeypatch.setattr(catalogue, "GROUP", "fovea.primitives")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("bad", "first", "second"):
        sys.modules.pop(name, None)


def fovea(site: Path | None, *arguments: object) -> "subprocess.CompletedProcess[str]":
    paths = [*([str(site)] if site else []), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    command = [sys.executable, "-c", CODE, str(PACKAGE.parent), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_an_installed_package_is_listed_and_shown(installed: Path) -> None:
    result = fovea(installed, "primitives", "list")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if "/example_" in line]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("augment/example_tint", "augment", "fovea-example-primitives"),
        ("evaluator/example_count", "evaluator", "fovea-example-primitives"),
    ]
    shown = fovea(installed, "primitives", "show", "augment/example_tint").stdout
    assert "of fovea-example-primitives\n" in shown
    assert "Share of the tint." in shown
    assert "{id: tint, use: augment/example_tint, in: clip, with: {p: 0.5, strength: 0.2}}" in shown
    without = fovea(None, "primitives", "list")  # the control
    assert without.returncode == 0
    assert "example_tint" not in without.stdout


def test_its_augmenter_changes_pixels(installed: Path) -> None:
    code = (
        "import torch\n"
        "from training.autovideo.augment.augmentation import Augmentation\n"
        "from training.autovideo.use import Use\n"
        "tint = Augmentation([Use(use='augment/example_tint', settings={'p': 1.0, 'strength': 0.5})])\n"
        "video, _ = tint(torch.zeros(2, 3, 2, 4, 5), torch.arange(2))\n"
        "print(video.mean(dim=(0, 2, 3, 4)).tolist())"
    )
    paths = os.pathsep.join([str(installed), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": paths}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert result.stdout == "[0.5, 0.0, 0.0]\n", result.stderr


def test_a_document_uses_it(installed: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(PIPELINE)
    result = fovea(installed, "pipeline", "validate", path)
    assert result.returncode == 0, result.stderr
    assert "valid, 8 steps" in result.stdout
    path.write_text(PIPELINE.replace("p: 0.25", "p: 25"))
    wrong = fovea(installed, "pipeline", "validate", path)
    assert wrong.returncode == 1
    assert "step tint (augment/example_tint) is not valid:\n  p: " in wrong.stderr
    path.write_text(PIPELINE)
    without = fovea(None, "pipeline", "validate", path)
    assert without.returncode == 1
    assert "step tint: no primitive is called 'augment/example_tint'" in without.stderr


ONE = """
from training.autovideo.primitive import Primitive, primitive
@primitive("{name}")
class One(Primitive):
    kind = "exporter"
"""


@pytest.mark.parametrize(
    ("value", "code", "parts"),
    [
        (
            "bad",
            "import a_package_that_is_missing",
            ("cannot be loaded", "ModuleNotFoundError", "a_package_that_is_missing"),
        ),
        ("bad:Nothing", "", ("cannot be loaded", "AttributeError", "Nothing")),
        ("bad", "x = 1", ("neither a primitive nor a module with primitives",)),
        ("bad:x", "x = 1", ("neither a primitive nor a module with primitives",)),
        ("bad", ONE.format(name="No name"), ("cannot be loaded", "'No name' is no name of a primitive")),
        (
            "bad",
            ONE.format(name="reader/small"),
            ("two primitives are called 'reader/small'", "small_primitives.Reader", "bad.One"),
        ),
    ],
)
def test_a_broken_package_is_named(value: str, code: str, parts: tuple[str, ...], site: Path) -> None:
    broken(site, "bad", value, code)
    with pytest.raises(ConfigError) as caught:
        catalogue.catalogue()
    assert all(part in str(caught.value) for part in ("entry point 'bad'", value, *parts)), str(caught.value)


def test_a_broken_package_ends_the_command(tmp_path: Path) -> None:
    result = fovea(broken(tmp_path, "bad", "bad:Nothing"), "primitives", "list")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: entry point 'bad' = 'bad:Nothing'")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("value", ["bad", "bad:One"])
def test_the_same_package_in_order(site: Path, value: str) -> None:
    """The control of the broken ones; also an entry point that names one class."""
    broken(site, "bad", value, ONE.format(name="exporter/one"))
    assert catalogue.catalogue()["exporter/one"].__module__ == "bad"


def test_two_packages_with_one_name(site: Path) -> None:
    for name in ("first", "second"):
        broken(site, name, name, ONE.format(name="exporter/one"))
    with pytest.raises(ConfigError, match=r"'exporter/one': first\.One, and second\.One .* uninstall the package"):
        catalogue.catalogue()
