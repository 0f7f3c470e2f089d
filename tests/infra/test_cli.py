"""The `fovea` command: light, complete, and passing on what it is told."""

import importlib
import subprocess
import sys

import pytest

from infra.cli import COMMANDS, usage

HEAVY = ("torch", "prefect", "ray", "mlflow", "typer", "pandas", "numpy", "dvc")


def fovea(*arguments: str, show_modules: bool = False) -> "subprocess.CompletedProcess[str]":
    code = "import sys; from infra.cli import main\n"
    code += f"sys.argv = ['fovea', *{list(arguments)!r}]\n"
    tail = "print('MODULES', *sorted({n.split('.')[0] for n in sys.modules}))" if show_modules else "pass"
    code += f"try: main()\nfinally: {tail}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def loaded(result: "subprocess.CompletedProcess[str]") -> set[str]:
    line = next(line for line in result.stdout.splitlines() if line.startswith("MODULES"))
    return set(line.split()[1:])


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    result = fovea("--help", show_modules=True)
    assert result.returncode == 0
    assert usage() in result.stdout
    assert all(f"  {word} " in result.stdout for word in COMMANDS)
    assert not loaded(result) & set(HEAVY)


def test_no_word_is_an_error_with_the_help() -> None:
    result = fovea()
    assert result.returncode == 2
    assert usage() in result.stdout


def test_data_commands_do_not_import_torch_or_prefect() -> None:
    result = fovea("data", "--help", show_modules=True)
    assert result.returncode == 0, result.stderr
    assert not loaded(result) & {"torch", "prefect", "ray", "mlflow"}
    assert "typer" in loaded(result)  # the control: the listing works


def test_training_commands_do_not_import_prefect() -> None:
    result = fovea("show", "--help", show_modules=True)
    assert result.returncode == 0, result.stderr
    assert "prefect" not in loaded(result)


def test_flow_help_starts_no_server() -> None:
    result = fovea("reproduce", "--help")
    assert result.returncode == 0, result.stderr
    assert "--target" in result.stdout
    assert "usage: fovea reproduce" in result.stdout


@pytest.mark.parametrize("word", sorted(COMMANDS))
def test_every_word_leads_to_a_program(word: str) -> None:
    module = importlib.import_module(COMMANDS[word].module)
    assert callable(module.main)


ONE_AFTER_ANOTHER = """
import sys
from infra.cli import main
for word in sys.argv[1:]:
    sys.argv = ["fovea", word, "--help"]
    try:
        main()
    except SystemExit as end:
        print("STATUS", word, end.code)
"""


def test_words_of_the_typer_programs_exist() -> None:
    """In one process: what takes long is importing torch."""
    words = [word for word, command in COMMANDS.items() if not command.strip]
    command = [sys.executable, "-c", ONE_AFTER_ANOTHER, *words, "surely-no-command"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    ends = [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("STATUS")]
    assert ends[:-1] == [[word, "0"] for word in words], result.stderr
    assert ends[-1] == ["surely-no-command", "2"]  # the control


def test_missing_package_is_named() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom infra.cli import main\n"
    code += "sys.argv = ['fovea', 'list', '--models']\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "needs the package 'torch'" in result.stderr
    assert "Traceback" not in result.stderr
