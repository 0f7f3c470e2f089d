"""What keeps the project in shape: imports, dvc.yaml, settings, one place for backward, files that parse."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_specs", "infra", "tasks", "flows", "training")

BACKWARD_ALLOWED = {
    "training/core/system.py": "UpdateContext's contract and the default update",
    "training/core/loop.py": "the one loop",
}
"""Files in which `.backward(` may occur; a family's own update is added here with its reason."""


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def modules() -> list[str]:
    names = []
    for path in sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__" and "templates" not in parts:
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_packages_are_those_of_this_checkout() -> None:
    """An older installation of the same names would be tested instead of the checkout."""
    for name in PACKAGES:
        assert Path(str(importlib.import_module(name).__file__)).is_relative_to(ROOT)


def test_no_module_does_work_when_imported(tmp_path: Path) -> None:
    """Import everything from an empty folder that cannot be written: no files, environment, seeds or network."""
    code = """
import importlib, os, random, socket, sys, threading
def refuse(*_): raise AssertionError("network at import")
import torch, prefect, mlflow, ray  # their own imports may do what they like
before, threads, state, seed = dict(os.environ), threading.active_count(), random.getstate(), torch.initial_seed()
socket.socket.connect = refuse
for name in sys.argv[1:]:
    importlib.import_module(name)
    after = dict(os.environ)
    assert after == before, (name, {k: after.get(k) for k in set(after) ^ set(before)})
    assert random.getstate() == state, f"{name} seeds the random numbers"
    assert torch.initial_seed() == seed, f"{name} seeds torch"
    assert threading.active_count() == threads, f"{name} starts a thread"
"""
    here = tmp_path / "empty"
    here.mkdir(mode=0o555)
    # Root may write anywhere, so what is written is looked for as well.
    home = {"HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path / "home/prefect")}
    (tmp_path / "home").mkdir()
    subprocess.run([sys.executable, "-c", code, *modules()], cwd=here, check=True, env={**os.environ, **home})
    assert list(here.iterdir()) == []


def test_import_contracts_hold() -> None:
    result = _lint(ROOT)
    assert result.returncode == 0, result.stdout


def _lint(root: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    env = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=env)


LAYERS = "flows stand on tasks, both halves on data_specs, all on infra"
HALVES = "the orchestrating half knows neither torch nor training"
PREFECT = "no Prefect below tasks, none in training"
VIOLATIONS = (
    ("flows/promote.py", "training.registry", HALVES),
    ("tasks/dvc.py", "torch", HALVES),
    ("tasks/ops/plan.py", "prefect", PREFECT),
    ("tasks/ops/plan.py", "tasks.dvc", "plain functions know nothing of the Prefect wrappers around them"),
    ("training/core/loop.py", "prefect", PREFECT),
    ("training/core/loop.py", "tasks.ops.plan", LAYERS),
    ("training/core/loop.py", "ray", "ray in three places"),
    ("training/core/loop.py", "mlflow", "mlflow in tracking, registry and serving"),
    ("training/core/loop.py", "training.adafocus", "core and the shared parts know no family"),
    ("data_specs/schema.py", "tasks.ops.plan", LAYERS),
    ("training/core/data.py", "boto3", "S3 in one place; training reads files"),
)
"""File, what it wrongly imports, and the contract that says so."""


def test_import_contracts_notice(tmp_path: Path) -> None:
    """The negative control of the contracts: each of these imports is reported, and by the contract that forbids it."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, name, _ in VIOLATIONS:
        wrong = tmp_path / path
        wrong.write_text(f"{wrong.read_text()}\nimport {name}\n")
    result = _lint(tmp_path)
    assert result.returncode == 1, result.stdout
    # After the list of contracts: a heading, underlined, and the chains of imports, "- " before the first of each.
    parts = re.split(r"^(.+)\n-{4,}\n", result.stdout.partition("Broken contracts")[2], flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    for path, name, contract in VIOLATIONS:
        module = path.removesuffix(".py").replace("/", ".")
        line = rf"^- +{re.escape(module)} -> {re.escape(name)} \(l\.\d+\)$"
        assert re.search(line, found.get(contract, ""), re.MULTILINE), (path, name, contract, result.stdout)


def test_every_family_is_in_the_contracts() -> None:
    """A family that the contracts do not name would be free to import another."""
    import tomllib

    from training.registry import FAMILIES

    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = {item["name"]: item for item in content["tool"]["importlinter"]["contracts"]}
    assert set(contracts["families know nothing of one another"]["modules"]) == set(FAMILIES.values())
    assert set(contracts["core and the shared parts know no family"]["forbidden_modules"]) == set(FAMILIES.values())
    packages = set(content["tool"]["setuptools"]["packages"])
    found = {name for name in modules() if (ROOT / name.replace(".", "/")).is_dir()}
    assert found == packages


def test_training_imports_no_prefect_in_fact() -> None:
    """What the contracts cannot see: imports by name."""
    names = [name for name in modules() if name.split(".")[0] in ("training", "data_specs") or "ops" in name]
    code = "import sys, importlib\nfor n in sys.argv[1:]: importlib.import_module(n)\n"
    code += "assert 'prefect' not in sys.modules, 'prefect'"
    subprocess.run([sys.executable, "-c", code, *names], check=True)


def test_orchestration_imports_no_torch_in_fact() -> None:
    names = [name for name in modules() if name.split(".")[0] in ("data_specs", "infra", "tasks", "flows")]
    code = "import sys, importlib\nfor n in sys.argv[1:]: importlib.import_module(n)\n"
    code += "found = {'torch', 'training', 'mlflow'} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code, *names], check=True)


# --- dvc.yaml and settings ---------------------------------------------------------------------


def test_dvc_file_says_what_the_stages_say() -> None:
    from training.core.dvcfile import check

    assert check(ROOT) == []


def test_dvc_drift_is_noticed_both_ways(tmp_path: Path) -> None:
    from training.core.dvcfile import MARKER, check, write

    for package in ("training", "tasks", "data_specs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    original = (ROOT / "dvc.yaml").read_text()
    path = tmp_path / "dvc.yaml"
    path.write_text(original)
    assert check(tmp_path) == []
    assert write(tmp_path) is False

    stages = yaml.safe_load(original)["stages"]
    lost = next(name for name in stages if "training run" in stages[name]["cmd"])
    head, _, _ = original.partition(MARKER)
    path.write_text(f"{head}{MARKER}\n")
    assert any(f"stage {lost!r} is registered but not in dvc.yaml" in line for line in check(tmp_path))
    assert write(tmp_path) is True
    assert path.read_text() == original

    path.write_text(original + "  more_train:\n    cmd: python -m training run more_train@x\n    outs: [x]\n")
    assert check(tmp_path) == ["dvc.yaml: stage 'more_train' is not registered by any family"]

    path.write_text(original.replace("CODE_VERSION.fit", "CODE_VERSION.evaluate"))
    assert any(".params lacks" in line and "CODE_VERSION.fit" in line for line in check(tmp_path))

    path.write_text(original)
    (tmp_path / "training/adafocus/more.py").write_text('"""New."""\n')
    assert any("training/adafocus/more.py" in line for line in check(tmp_path))
    (tmp_path / "training/adafocus/more.py").unlink()

    path.write_text(original.replace("    - tasks/ops/sample.py\n", "    - tasks/ops/splits.py\n"))
    found = check(tmp_path)
    assert any("lacks tasks/ops/sample.py" in line for line in found)
    assert any("has tasks/ops/splits.py" in line for line in found)


def test_dvc_reads_the_same_parameters_from_python_as_python() -> None:
    """`CODE_VERSION` and `SHARD_FORMAT` are parameters of stages; DVC reads them from the source text."""
    from dvc.fs import LocalFileSystem
    from dvc.utils.serialize import LOADERS

    from data_specs.schema import SHARD_FORMAT
    from training.core.stage import CODE_VERSION

    read = LOADERS[".py"]
    local = LocalFileSystem()
    assert read(str(ROOT / "training/core/stage.py"), fs=local)["CODE_VERSION"] == dict(CODE_VERSION)
    assert read(str(ROOT / "data_specs/schema.py"), fs=local)["SHARD_FORMAT"] == SHARD_FORMAT


def test_sections_of_the_demo_are_the_stages() -> None:
    from training.registry import all_stages, family_of

    lists = yaml.safe_load((ROOT / "params.yaml").read_text())
    for dataset in lists["datasets"]:
        sections = set(yaml.safe_load((ROOT / f"params/{dataset}.yaml").read_text()))
        stages = [stage for stage in all_stages().values() if dataset in lists[family_of(stage.name)]]
        shared = {name for stage in stages for name in stage.shared.values()}
        assert sections - {"synthetic"} == {stage.name for stage in stages} | shared


def test_each_family_has_a_template_and_a_list_of_data_sets() -> None:
    from training.core.config import ConfigError, validate
    from training.registry import FAMILIES, all_stages, family_of

    lists = yaml.safe_load((ROOT / "params.yaml").read_text())
    for family in FAMILIES:
        assert isinstance(lists[family], list)
        template = yaml.safe_load((ROOT / f"params/templates/{family}.yaml").read_text())
        stages = [stage for stage in all_stages().values() if family_of(stage.name) == family]
        assert set(template) == {stage.name for stage in stages} | {s for g in stages for s in g.shared.values()}
        for stage in stages:
            for ref in stage.instances("any", ROOT):
                values = template[stage.name] | {f: template[s] for f, s in stage.shared.items()}
                values |= dict(zip(stage.matrix, ref.items, strict=True))
                if not stage.found:
                    validate(stage.config, values, str(ref))
                    continue
                # All that is missing is what a search will find, and what follows from it.
                missing = [
                    name for name, f in stage.config.model_fields.items() if f.is_required() and name not in values
                ]
                assert {*stage.found} <= {*missing}
                with pytest.raises(ConfigError) as caught:
                    validate(stage.config, values, str(ref))
                assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == missing


def test_data_stages_of_the_flow_are_those_of_the_file() -> None:
    from tasks.dvc import DATA_STAGES

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(DATA_STAGES) == {name for name, entry in stages.items() if "training run" not in entry["cmd"]}


def test_dependencies_are_files() -> None:
    """D4: of the sources; a folder would hash `__pycache__`. Data folders are outputs of other stages."""
    for name, entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        for dep in entry.get("deps", []):
            assert dep.startswith(("data/", "runs/")) or dep.endswith((".py", ".yaml")), f"{name}: {dep}"


# --- shape of the sources ----------------------------------------------------------------------


def calls_of_backward(path: Path) -> list[int]:
    """Lines with a call of `<something>.backward(…)` other than on a context, which scales and accumulates."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward":
            target = node.func.value
            if not (isinstance(target, ast.Name) and target.id in ("ctx", "context")):
                found.append(node.lineno)
    return found


def test_one_loop(tmp_path: Path) -> None:
    found = {
        path.relative_to(ROOT).as_posix(): lines
        for path in sources()
        if (lines := calls_of_backward(path)) and path.relative_to(ROOT).as_posix() not in BACKWARD_ALLOWED
    }
    assert found == {}
    control = tmp_path / "loop.py"
    control.write_text("def f(loss, ctx):\n    loss.backward()\n    ctx.backward(loss)\n")
    assert calls_of_backward(control) == [2]


def test_no_relative_imports_and_no_catch_all_modules() -> None:
    names = [path.relative_to(ROOT).as_posix() for path in sources()]
    assert not [name for name in names if re.search(r"/(utils|helpers|misc|common)\.py$", name)]


# --- deployment files --------------------------------------------------------------------------

UNRUN = (
    "infra/docker/orchestrator.Dockerfile",
    "infra/docker/train.Dockerfile",
    "infra/compose.yaml",
    "infra/ray/cluster.yaml",
)


@pytest.mark.parametrize("name", UNRUN)
def test_files_that_ci_cannot_run_say_so(name: str) -> None:
    assert re.match(r"# Not run in CI", (ROOT / name).read_text())


def instructions(text: str) -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


@pytest.mark.parametrize("name", UNRUN[:2])
def test_images_parse_and_name_packages_of_the_project(name: str) -> None:
    import tomllib

    found = instructions((ROOT / name).read_text())
    assert {word for word, _ in found} <= {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "CMD", "ARG"}
    assert found[0][0] == "FROM"
    for word, rest in found:
        if word == "COPY":
            assert all(source == "." or (ROOT / source).exists() for source in rest.split()[:-1])
    # Everything that they install is pinned, and the split is the one that the contracts promise.
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {re.split(r"[\[<>=!~ ]", item)[0].lower() for item in project["dependencies"]}
    wanted = set()
    for _, rest in found:
        for part in re.findall(r"pip install -c constraints\.txt ([^;&]*)", rest):
            wanted |= {item.strip('"').partition("[")[0].lower() for item in part.split()}
    assert {"ray", "boto3"} <= wanted
    assert wanted - {"prefect", "torchcodec", "asyncpg", "psycopg2-binary"} <= known
    normal = {name.replace("_", "-") for name in pinned}
    assert {item.replace("_", "-") for item in wanted} - {"torchcodec", "psycopg2-binary"} <= normal
    assert ("prefect" in wanted) == ("orchestrator" in name)


def test_compose_and_cluster_and_deployments_parse() -> None:
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert ("image" in service) != ("build" in service), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network"
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).exists()
    cluster = yaml.safe_load((ROOT / "infra/ray/cluster.yaml").read_text())
    assert cluster["head_node_type"] in cluster["available_node_types"]
    for command in (*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]):
        assert "ray start" not in command or "RAY_AUTH_MODE=disabled" in command


def test_deployments_name_flows_and_their_parameters() -> None:
    content = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())
    assert {item["name"] for item in content["deployments"]} == {"reproduce", "promote", "nightly", "ingest"}
    for item in content["deployments"]:
        path, _, function = item["entrypoint"].partition(":")
        tree = ast.parse((ROOT / path).read_text())
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
        assert len(found) == 1, item["entrypoint"]
        arguments = {argument.arg for argument in found[0].args.args}
        assert set(item.get("parameters", {})) <= arguments
