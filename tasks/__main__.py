"""`python -m tasks`: listing of sources, care of data sets, state of the machine.

The command line `fovea data …` and `fovea doctor` ends here too. Commands import what they need when they
run, so that the listing, which DVC starts at every `repro`, starts fast.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: set up, check, look at, retry.")
app.add_typer(data_app, name="data")


@app.command()
def manifest(dataset: str) -> None:
    """List the sources of a data set with size and checksum: data/manifests/<dataset>.csv."""
    from data_specs.load import load_spec
    from infra.settings import Settings
    from tasks.ops.listing import write_manifest

    settings = Settings()
    print(write_manifest(load_spec(dataset), settings))


@app.command()
def doctor() -> None:
    """Say what this machine has for videos, training and storage, and what to do about what is missing."""
    from infra.settings import Settings
    from tasks.ops.doctor import examine, print_findings

    raise typer.Exit(print_findings(examine(Settings())))


@app.command()
def synthesize(params_file: Path, out: Path) -> None:
    """Make the procedural demo videos."""
    from tasks.ops.synthetic import main_cli

    main_cli(params_file, out)


def main() -> None:
    """Run the command line; errors of the user's input end with a message, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        app()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


_ = Annotated

if __name__ == "__main__":
    main()
