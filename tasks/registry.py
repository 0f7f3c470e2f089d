"""Registration, promotion and the report of a data set's models, through the training command line.

They are not DVC stages (D9): a stage would be skipped after a pull or a cache hit although this MLflow store has
never seen the model. The commands are idempotent instead, keyed by the model's checksum. One process does all
three, since importing torch and MLflow takes longer than the work.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from infra.environment import apply_defaults
from infra.processes import Finished, run_streamed


class RegistryError(RuntimeError):
    """A command of the training side failed; the message has its last lines."""


def training(root: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Finished:
    """Run `python -m training …` and pass its output through.

    Raises:
        RegistryError: it ended with another status than 0.
    """
    full = dict(os.environ)
    apply_defaults(full)
    full.update(env or {})
    finished = run_streamed([sys.executable, "-m", "training", *arguments], root, full)
    if finished.returncode:
        raise RegistryError(
            f"`fovea {' '.join(arguments)}` failed with status {finished.returncode}:\n{finished.last_lines()}"
        )
    return finished


def finish(root: Path, dataset: str, env: Mapping[str, str] | None = None) -> Finished:
    """Register the data set's evaluated models, let the gate judge them and write the report page."""
    return training(root, "finish", dataset, env=env)


def promote(
    root: Path, dataset: str, accept: bool = False, reevaluate: bool = False, env: Mapping[str, str] | None = None
) -> Finished:
    """Let the gate compare challengers with champions of a data set and move the alias.

    Args:
        root: Project root.
        dataset: Data set whose models are judged.
        accept: Take a result that the gate calls underpowered.
        reevaluate: Evaluate a champion of other data on the challenger's data first.
        env: Further environment variables.
    """
    flags = [flag for flag, given in (("--accept", accept), ("--reevaluate", reevaluate)) if given]
    return training(root, "promote", dataset, *flags, env=env)
