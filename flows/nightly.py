"""Every data set of params.yaml brought up to date, one after another, with one summary.

    python -m flows.nightly [dataset]… [--push]

A data set that fails does not stop the others; the run fails at the end and names it.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    from infra.launch import run

    sys.exit(run("flows.nightly"))  # imports this module again by its name, with the server already starting

import yaml
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.reproduce import ReproduceError, reproduce
from infra.launch import wait_for_server
from infra.settings import Settings
from tasks import dvc, registry
from tasks.notify import StageOutcome, publish


class NightlyError(RuntimeError):
    """At least one data set is not up to date."""


def listed_datasets(root: Path) -> list[str]:
    """Return the data sets of params.yaml.

    Raises:
        NightlyError: the file has no list of that name.
    """
    path = root / "params.yaml"
    datasets = (yaml.safe_load(path.read_text()) or {}).get("datasets") if path.exists() else None
    if not isinstance(datasets, list):
        raise NightlyError(f"{path} must have a list `datasets:`, got {datasets!r}")
    return [str(name) for name in datasets]


@task(cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=[10, 60])
def push(root: Path) -> None:
    """Send new data and models to the DVC remote."""
    dvc.push(root)


@flow(name="nightly")
def nightly(datasets: list[str] | None = None, push_data: bool = False, root: Path | None = None) -> list[StageOutcome]:
    """Reproduce, register, judge and report every data set.

    Args:
        datasets: None means all of params.yaml.
        push_data: Whether to send data and models to the DVC remote afterwards.
        root: Project root; None takes the one of the settings.

    Raises:
        NightlyError: data sets that are not up to date, with the reason of each.
    """
    root = (root or Settings().root).absolute()
    outcomes = []
    for dataset in datasets or listed_datasets(root):
        start = time.monotonic()
        try:
            steps = reproduce(dataset, root=root)
        except (ReproduceError, dvc.DvcError, registry.RegistryError) as error:
            outcomes.append(StageOutcome(dataset, "failed", (str(error),), time.monotonic() - start))
            continue
        ran = tuple(step.stage for step in steps if step.result == "ran")
        outcomes.append(StageOutcome(dataset, "ran", ran, time.monotonic() - start))
    if push_data:
        push(root)
    publish("nightly", outcomes)
    failed = [item for item in outcomes if item.result == "failed"]
    if failed:
        raise NightlyError("\n".join(f"{item.stage}: {'; '.join(item.reasons)}" for item in failed))
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow from the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.nightly", description="Every data set, one after another.")
    parser.add_argument("datasets", nargs="*")
    parser.add_argument("--push", action="store_true", help="send data and models to the DVC remote afterwards")
    given = parser.parse_args(arguments)
    wait_for_server()
    try:
        nightly(given.datasets or None, given.push)
    except (NightlyError, dvc.DvcError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
