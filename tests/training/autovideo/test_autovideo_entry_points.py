"""Primitives of a package outside ours: installed as a wheel, listed, shown, used; and packages that are broken."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert "Probability per clip." in shown
    assert "{id: tint, use: augment/example_tint, in: clip, with: {p: 0.5, strength: 0.2}}" in shown
    without = fovea(None, "primitives", "list")  # the control
    assert without.returncode == 0
    assert "example_tint" not in without.stdout


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
def test_a_broken_package_is_named(tmp_path: Path, value: str, code: str, parts: tuple[str, ...]) -> None:
    result = fovea(broken(tmp_path, "bad", value, code), "primitives", "list")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert all(part in result.stderr for part in ("entry point 'bad'", value, *parts)), result.stderr


def test_the_same_package_in_order(tmp_path: Path) -> None:
    """The control of the broken ones; also an entry point that names one class."""
    for value in ("bad", "bad:One"):
        result = fovea(broken(tmp_path / value, "bad", value, ONE.format(name="exporter/one")), "primitives", "list")
        assert result.returncode == 0, result.stderr
        assert "exporter/one" in result.stdout


def test_two_packages_with_one_name(tmp_path: Path) -> None:
    for name in ("first", "second"):
        broken(tmp_path, name, name, ONE.format(name="exporter/one"))
    result = fovea(tmp_path, "primitives", "list")
    assert result.returncode == 1
    assert "two primitives are called 'exporter/one': first.One, and second.One" in result.stderr
    assert "uninstall the package" in result.stderr
