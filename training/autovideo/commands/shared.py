"""What the commands that run something share."""

import logging
import sys
from typing import Annotated, Any

import typer

from training.core.config import ConfigError

__all__ = ["Dataset", "Executor", "Json", "executor_of", "talk"]

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Dataset = Annotated[str, typer.Option(help="Data set that `reader/dataset` reads where it names none.")]
Executor = Annotated[str, typer.Option(help="`local` trains in this process, `ray` through Ray.")]


def talk() -> None:
    """Let steps say on stderr what they do."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("alembic", "mlflow", "ray"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def executor_of(name: str) -> Any:
    """Return the executor of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ("local", "ray"):
        raise ConfigError(f"--executor must be local or ray, got {name!r}")
    return name
