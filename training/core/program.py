"""Command lines of the training half: errors of users are one message, not a stack trace."""

import sys

import typer

from infra.environment import apply_defaults
from infra.locks import StageLockedError
from infra.startup import tame_collector
from training.core.config import ConfigError
from training.core.failures import StageFailed


def run_program(app: typer.Typer, name: str) -> int:
    """Run a typer app on `sys.argv` and return the exit code.

    Nothing heavy is imported for it: an error of a module that is not loaded cannot have been raised.
    """
    apply_defaults()
    tame_collector()
    try:
        app(prog_name=name, standalone_mode=True)
    except (ConfigError, StageFailed, StageLockedError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        checkpoint = sys.modules.get("training.core.checkpoint")
        if checkpoint is None or not isinstance(error, checkpoint.CheckpointError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
