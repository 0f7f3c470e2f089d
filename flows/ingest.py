"""Ingest of one data set: planned, encoded, published and verified shards.

`python -m flows.ingest <dataset>` is the body of the DVC stage `shards@<dataset>`. It may be killed at any time:
started again, it makes only the shards that were not finished, and the result is the same to the byte.
"""

import os
import sys
from typing import Annotated

import typer
from prefect import flow
from prefect.settings import (
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from data_specs.load import SpecError
from data_specs.schema import ShardIndex
from infra.locks import StageLockedError, die_with_parent, stage_lock
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


def main(
    dataset: Annotated[str, typer.Argument(help="Name of the data set, data_specs/datasets/<name>.yaml.")],
    workers: Annotated[int | None, typer.Option(help="Processes at once; 0: this process only.")] = None,
) -> None:
    """Make and publish the shards of one data set."""
    die_with_parent()
    settings = Settings()
    # Without a server Prefect starts one of its own, which on a busy machine takes longer than it waits by default.
    quiet = {PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120, PREFECT_SERVER_ANALYTICS_ENABLED: False}
    try:
        with temporary_settings({s: value for s, value in quiet.items() if s.name not in os.environ}):
            index = ingest(dataset, settings, workers)
    except _EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    samples = sum(shard.samples for shard in index.shards)
    size = sum(shard.bytes for shard in index.shards)
    print(
        f"{dataset}: {samples} samples in {len(index.shards)} shards, {size / 1e6:.1f} MB, {summarise(index.rejects)}; "
        f"{settings.shards / dataset}"
    )


if __name__ == "__main__":
    typer.run(main)
