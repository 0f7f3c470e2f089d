"""`fovea pipeline …` and `fovea primitives …`: what they print, their exit codes, and as processes what they import."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from training.autovideo.catalogue import catalogue, configure
from training.autovideo.commands import pipeline, primitives
from training.autovideo.plain import read_yaml, write_yaml
from training.autovideo.recognisers import Recogniser
from training.autovideo.system import layouts_of
from training.core.config import ConfigError

FOLDER = Path(__file__).parent

CODE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import training.autovideo.catalogue as catalogue
catalogue.MODULES = ("small_primitives",)
catalogue.GROUP = "fovea.primitives.of.no.package"
sys.argv[0] = "fovea"
from infra.cli import main
try:
    main()
finally:
    names = {name if name.startswith("training.") else name.split(".")[0] for name in sys.modules}
    print("MODULES", *sorted(names), file=sys.stderr)
"""


def fovea(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", CODE, str(FOLDER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def here(*arguments: object) -> Result:
    """Run a command in this process, on the test's catalogue."""
    app = {"pipeline": pipeline.app, "primitives": primitives.app}[str(arguments[0])]
    return CliRunner().invoke(app, [str(item) for item in arguments[1:]])


def said(result: "subprocess.CompletedProcess[str]") -> str:
    """What stood on stderr, without the list of modules."""
    return "".join(line for line in result.stderr.splitlines(True) if not line.startswith("MODULES"))


def modules(result: "subprocess.CompletedProcess[str]") -> set[str]:
    return set(next(line for line in result.stderr.splitlines() if line.startswith("MODULES")).split()[1:])


@pytest.fixture
def good(example: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(write_yaml(example, blocks=("steps",)))
    return path


@pytest.fixture
def wrong(example: dict[str, Any], tmp_path: Path) -> Path:
    example["steps"][2]["with"]["frmes"] = 3
    example["steps"][4]["in"] = "shards"
    path = tmp_path / "wrong.yaml"
    path.write_text(write_yaml(example, blocks=("steps",)))
    return path


def test_lists_are_light_and_know_no_family() -> None:
    result = fovea("primitives", "list")
    assert result.returncode == 0, result.stderr
    loaded = modules(result)
    assert not loaded & {"torch", "numpy", "pandas", "ray", "mlflow", "prefect", "matplotlib"}
    families = {name.split(".")[1] for name in loaded if name.startswith("training.")}
    assert families == {"autovideo", "core", "registry"} & families
    assert {"typer", "small_primitives", "training.autovideo.catalogue"} <= loaded  # the control: the listing works
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["id", "kind", "in", "out", "summary", "package"]
    row = next(line for line in lines if line.startswith("ensembler/small_rest "))
    assert re.search(
        r"base: Predictions, others: Predictions…\?  +predictions: Predictions +Average .* small_primitives$", row
    )


@pytest.mark.usefixtures("small")
def test_list_of_a_kind() -> None:
    rows = json.loads(here("primitives", "list", "--kind", "augment", "--json").stdout)
    assert [row["id"] for row in rows] == ["augment/small_clock", "augment/small_flip"]
    assert rows[1]["inputs"] == {"clips": {"port": "Clip", "optional": False, "several": False}}
    assert rows[1]["package"] == "small_primitives"
    other = here("primitives", "list", "--kind", "augmnt")
    assert isinstance(other.exception, ConfigError)
    assert str(other.exception).startswith("no kind is called 'augmnt'; did you mean 'augment'?")


@pytest.mark.usefixtures("small")
def test_show() -> None:
    result = here("primitives", "show", "decoder/small")
    assert result.exit_code == 0
    assert result.stdout.startswith("decoder/small, version 1: decoder, pure, of small_primitives\n")
    assert re.search(r"^in: +shards: Shards$", result.stdout, re.M)
    line = r"^  frames +int +8 +≥ 1, ≤ 64 +frames +4 … 16 step 4 +Frames per clip\.$"
    assert re.search(line, result.stdout, re.M), result.stdout
    assert re.search(r"^  mode +Literal\['tsn', 'dense'\] +tsn +- +- +tsn \| dense", result.stdout, re.M)
    assert "  - {id: clip, use: decoder/small, in: shards, with: {frames: 8}}" in result.stdout


@pytest.mark.usefixtures("small")
def test_show_makes_an_example_and_shows_the_schema() -> None:
    found = json.loads(here("primitives", "show", "recognition/small", "--json").stdout)
    assert found["example"] == "{id: small, use: recognition/small, in: {clips: <Clip>}, with: {width: 8}}"
    assert found["schema"]["properties"]["width"]["minimum"] == 1
    assert found["config"]["lr"]["default"] == {"head": 0.1}
    assert found["config"]["width"]["required"] is True
    inside = json.loads(here("primitives", "show", "combine/small_some_of", "--json").stdout)
    assert inside["example"].endswith("with: {of: [{use: <primitive>}]}}")


def test_validate(good: Path, wrong: Path, tmp_path: Path) -> None:
    result = fovea("pipeline", "validate", good)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(rf"{good}: valid, 6 steps, digest [0-9a-f]{{12}}\n", result.stdout)
    assert said(result) == ""
    assert not modules(result) & {"torch", "numpy", "ray", "mlflow"}
    both = fovea("pipeline", "validate", good, wrong, tmp_path / "none.yaml")
    assert both.returncode == 1
    assert both.stdout == result.stdout
    assert said(both) == (
        f"{wrong}: step clip (decoder/small) is not valid:\n"
        "  frmes: Extra inputs are not permitted (got 3); did you mean 'frames'?\n"
        f"{wrong}: edge shards.shards -> net.clips: net (recognition/small) takes Clip there, shards (extractor/small) "
        f"gives Shards\n{tmp_path / 'none.yaml'}: No such file or directory\n"
    )


@pytest.mark.usefixtures("small")
def test_validate_as_json_and_with_warnings(good: Path, wrong: Path) -> None:
    good.write_text(good.read_text().replace("[net.model, eval.metrics]", "[net.model]"))
    result = here("pipeline", "validate", "--json", good, wrong)
    assert result.exit_code == 1
    rows = json.loads(result.stdout)
    assert [row["valid"] for row in rows] == [True, False]
    assert rows[0]["warnings"] == [f"{good}: step eval: no output needs it"]
    assert len(rows[0]["digest"]) == 64
    assert rows[1]["digest"] is None
    assert len(rows[1]["problems"]) == 2
    alone = here("pipeline", "validate", good)
    assert (alone.exit_code, alone.stderr) == (0, f"warning: {good}: step eval: no output needs it\n")


@pytest.mark.usefixtures("small")
def test_graph_explain_diff_resolve(good: Path, tmp_path: Path) -> None:
    assert here("pipeline", "graph", good, "--format", "mermaid").stdout.startswith("flowchart LR\n")
    assert here("pipeline", "graph", good, "--format", "svg").exit_code == 2
    assert re.search(r"^net +recognition/small", here("pipeline", "explain", good).stdout, re.M)
    assert json.loads(here("pipeline", "explain", good, "--json").stdout)["steps"][0]["id"] == "data"
    resolved = here("pipeline", "resolve", good).stdout
    assert read_yaml(resolved, "x")["steps"][0]["version"] == 3
    other = tmp_path / "other.yaml"
    other.write_text(resolved)
    assert here("pipeline", "diff", good, other).stdout.startswith("both compute the same")
    other.write_text(resolved.replace("width: 16", "width: 8"))
    assert "step net: with.width: 16 -> 8\n" in here("pipeline", "diff", good, other).stdout
    assert list(json.loads(here("pipeline", "diff", good, other, "--json").stdout)["changed"]) == ["net"]


@pytest.mark.parametrize("arguments", [("pipeline", "explain"), ("primitives", "show")])
def test_errors_of_users_are_one_message(wrong: Path, arguments: tuple[str, str]) -> None:
    pipelines = arguments[0] == "pipeline"
    result = fovea(*arguments, wrong if pipelines else "recognition/smal")
    assert (result.returncode, result.stdout) == (1, "")
    start = f"{wrong}: step clip" if pipelines else "no primitive is called 'recognition/smal'; did you mean"
    assert said(result).startswith(f"error: {start}")
    assert "Traceback" not in result.stderr


OURS = """
import sys, typer
from training.core.program import run_program
app = typer.Typer(pretty_exceptions_enable=False)
@app.command()
def f() -> None:
    raise RuntimeError("ours")
sys.argv = ["x"]
run_program(app, "x")
"""


def test_errors_of_ours_keep_their_trace() -> None:
    """The control of the above: not every exception becomes a message."""
    result = subprocess.run([sys.executable, "-c", OURS], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "RuntimeError: ours" in result.stderr


def test_every_primitive_is_shown_with_an_example() -> None:
    for name, item in catalogue().items():
        found = primitives.facts(item)
        assert primitives.page(found).startswith(f"{name}, version ")
        json.dumps(found)
        if item.kind == "learner" and name.startswith("recognition/"):
            step = read_yaml(found["example"], name)
            configure(step["use"], step["with"], name)


def test_recognisers_name_their_weight_layouts() -> None:
    for name, item in catalogue().items():
        if issubclass(item, Recogniser):
            config = configure(name, {"steps": 1}, name)
            (line,) = re.findall(r"Weight layouts: (.*)\.$", str(item.__doc__), re.M)
            assert set(re.sub(r" \([^)]*\)", "", line).split(", ")) == set(layouts_of(item(config))), name
