"""The command `fovea`: finds the program behind the first word and imports only that one.

`fovea data …` never imports torch and `fovea run …` never imports Prefect, so either half works in an image that
lacks the other (D1).
"""

import importlib
import sys
from typing import NamedTuple

from infra.environment import apply_defaults


class Command(NamedTuple):
    """One first word."""

    module: str
    """Module whose `main()` takes over, reading `sys.argv`."""
    help: str
    strip: bool = False
    """Whether the first word is dropped from `sys.argv`: programs without subcommands."""


COMMANDS: dict[str, Command] = {
    "data": Command("tasks.__main__", "set up, check, look at and retry data sets"),
    "doctor": Command("tasks.__main__", "what this machine has for videos, training and storage"),
    "reproduce": Command("flows.reproduce", "bring a data set's stages up to date, through Prefect", strip=True),
    "list": Command("training.__main__", "stages, or with --models the models that `cost` knows"),
    "show": Command("training.__main__", "the resolved configuration of a stage instance"),
    "run": Command("training.__main__", "one stage instance, as DVC runs it; --set key=value to try something"),
    "cost": Command("training.__main__", "multiply-accumulates and parameters of a model"),
    "register": Command("training.__main__", "put an evaluated model into the registry"),
    "promote": Command("training.__main__", "let the gate judge the challenger"),
    "report": Command("training.__main__", "write the static page of all registered models"),
    "finish": Command("training.__main__", "register, promote and report in one process"),
    "lineage": Command("training.__main__", "where a registered model comes from"),
    "predict": Command("training.__main__", "classes of a video or of a folder of videos"),
    "stream": Command("training.movinet.live.cli", "answers while a video, URL or camera runs", strip=True),
    "pipeline": Command(
        "training.autovideo.commands.pipeline", "check, explain, compare and run pipelines", strip=True
    ),
    "search": Command("training.autovideo.commands.search", "search over whole pipelines under a budget", strip=True),
    "primitives": Command("training.autovideo.commands.primitives", "the steps that pipelines are made of", strip=True),
    "ui": Command("infra.ui", "MLflow's and Prefect's pages on this machine", strip=True),
}
"""First word → program. Words that are not here go to `training`, where a family may have its own program."""


def usage() -> str:
    """Return the help text."""
    lines = ["usage: fovea <command> …", "", "Raw videos to promoted models for efficient video recognition.", ""]
    lines += [f"  {word:<10} {command.help}" for word, command in COMMANDS.items()]
    lines += ["", "`fovea <command> --help` says more. Model families may add commands of their own; see `fovea list`."]
    return "\n".join(lines)


def main() -> None:
    """Run the command that the first word names.

    Raises:
        SystemExit: always, with the command's status.
    """
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("fovea"))
        raise SystemExit(0)
    apply_defaults()
    command = COMMANDS.get(arguments[0], Command("training.__main__", ""))
    if command.strip:
        sys.argv = [f"fovea {arguments[0]}", *arguments[1:]]
    try:
        if command.module.startswith("flows."):
            status = importlib.import_module("infra.launch").run(command.module)
        else:
            status = importlib.import_module(command.module).main()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("training", "tasks", "flows", "infra", "data_specs"):
            raise
        print(f"error: `fovea {arguments[0]}` needs the package {error.name!r}, not installed here", file=sys.stderr)
        raise SystemExit(1) from error
    raise SystemExit(status)


if __name__ == "__main__":
    main()
