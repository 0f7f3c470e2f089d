"""Ingest of one data set: planned, encoded, published and verified shards.

`python -m flows.ingest <dataset>` is the body of the DVC stage `shards@<dataset>`. It may be killed at any time:
started again, it makes only the shards that were not finished, and the result is the same to the byte.
"""

import argparse
import sys
from collections.abc import Sequence

if __name__ == "__main__":
    from infra.launch import run
    from infra.locks import die_with_parent

    die_with_parent()
    sys.exit(run("flows.ingest"))  # imports this module again by its name, with the server already starting

from prefect import flow

from data_specs.load import SpecError
from data_specs.schema import ShardIndex
from infra.launch import wait_for_server
from infra.locks import StageLockedError, stage_lock
from infra.settings import Settings
from tasks.media import IngestError, encode_shards, summarise
from tasks.ops.encoder import EncoderError
from tasks.ops.plan import PlanError
from tasks.ops.quarantine import TooManyRejectsError
from tasks.ops.shards import ShardError
from tasks.shards import lock_path, plan, publish, verify

_EXPECTED = (
    EncoderError,
    FileNotFoundError,
    IngestError,
    PlanError,
    ShardError,
    SpecError,
    StageLockedError,
    TooManyRejectsError,
)
"""Errors whose message says all; anything else shows where it came from."""


@flow(name="ingest", flow_run_name="ingest-{dataset}", validate_parameters=False)
def ingest(dataset: str, settings: Settings | None = None, workers: int | None = None) -> ShardIndex:
    """Make and publish the shards of one data set.

    Args:
        dataset: name of the data set; its manifest must exist.
        settings: roots and addresses; read from the environment when None.
        workers: processes at once; None takes all, 0 this process.
    """
    settings = settings or Settings()
    with stage_lock(lock_path(dataset, settings)):
        planned = plan(dataset, settings)
        encode_shards(planned, settings, workers)
        index = publish(planned, settings)
        verify(planned, settings)
    return index


def main(arguments: Sequence[str] | None = None) -> int:
    """Ingest one data set from the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.ingest", description="Make and publish a data set's shards.")
    parser.add_argument("dataset", help="name of the data set: data_specs/datasets/<name>.yaml")
    parser.add_argument("--workers", type=int, help="processes at once (default: all; 0: this process only)")
    given = parser.parse_args(arguments)
    settings = Settings()
    wait_for_server()
    try:
        index = ingest(given.dataset, settings, given.workers)
    except _EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    samples = sum(shard.samples for shard in index.shards)
    size = sum(shard.bytes for shard in index.shards)
    print(
        f"{given.dataset}: {samples} samples in {len(index.shards)} shards, {size / 1e6:.1f} MB, "
        f"{summarise(index.rejects)}; {settings.shards / given.dataset}"
    )
    return 0
