"""Let the gate compare the newest evaluated model of a data set with its champion, and move the alias.

    python -m flows.promote [dataset] [--accept] [--reevaluate]

The decision and the move are the training side's (`fovea promote`), so that they are the same by hand, in
`reproduce` and on a schedule. This flow gives it a place, a schedule and a record.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    from infra.launch import run

    sys.exit(run("flows.promote"))  # imports this module again by its name, with the server already starting

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from infra import processes
from infra.launch import wait_for_server
from infra.settings import Settings
from tasks import registry


@task(cache_policy=NO_CACHE, persist_result=False)
def judge(root: Path, dataset: str, accept: bool, reevaluate: bool) -> str:
    """Run the gate; return what it said."""
    return registry.promote(root, dataset, accept, reevaluate).last_lines(60)


@flow(name="promote", flow_run_name="promote-{dataset}")
def promote(dataset: str = "demo", accept: bool = False, reevaluate: bool = False, root: Path | None = None) -> str:
    """Judge a data set's challenger and move the champion alias if it passes.

    Args:
        dataset: Data set whose models are judged.
        accept: Take a result that the gate calls underpowered (fewer than 100 test samples).
        reevaluate: Evaluate a champion of other data on the challenger's data first.
        root: Project root; None takes the one of the settings.

    Raises:
        tasks.registry.RegistryError: the gate could not judge.
    """
    try:
        verdict = judge((root or Settings().root).absolute(), dataset, accept, reevaluate)
    except BaseException:
        processes.stop_all()
        raise
    create_markdown_artifact(f"# promote {dataset}\n\n```\n{verdict}\n```\n", key="verdict", description=dataset)
    return verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow from the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description="Judge a data set's challenger.")
    parser.add_argument("dataset", nargs="?", default="demo")
    parser.add_argument("--accept", action="store_true", help="take an underpowered result")
    parser.add_argument("--reevaluate", action="store_true", help="evaluate a champion of other data again")
    given = parser.parse_args(arguments)
    wait_for_server()
    try:
        promote(given.dataset, given.accept, given.reevaluate)
    except registry.RegistryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
