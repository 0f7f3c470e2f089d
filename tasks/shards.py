"""Prefect tasks around planning, publishing and verifying shards, and the retry of rejected videos."""

from collections.abc import Collection
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from data_specs.load import class_names, load_spec
from data_specs.schema import RejectReason, ShardIndex
from infra.locks import stage_lock
from infra.settings import Settings
from tasks.media import all_stored, store_folder
from tasks.ops.encoder import encoder_of
from tasks.ops.listing import read_manifest
from tasks.ops.plan import IngestPlan, plan_shards
from tasks.ops.shards import ShardError, assemble, evict, read_stored, verify_shards


def lock_path(dataset: str, settings: Settings) -> Path:
    """Return the lock file of the stage `shards@<dataset>`."""
    return settings.work / f"shards@{dataset}.lock"


def make_plan(dataset: str, settings: Settings) -> IngestPlan:
    """Plan the shards of a data set from its specification and its manifest.

    Raises:
        FileNotFoundError: the sources were not listed yet.
        PlanError: the manifest does not fit the specification.
    """
    spec = load_spec(dataset)
    manifest = settings.manifests / f"{dataset}.csv"
    if not manifest.exists():
        raise FileNotFoundError(f"{manifest} is missing: list the sources first (`dvc repro manifest@{dataset}`)")
    encoder = encoder_of(settings, spec.clip.representation, spec.clip.flow)
    return plan_shards(spec, read_manifest(manifest), encoder, class_names(spec))


@task(name="plan shards", cache_policy=NO_CACHE)
def plan(dataset: str, settings: Settings) -> IngestPlan:
    """Plan the shards of a data set."""
    return make_plan(dataset, settings)


@task(name="assemble data set", cache_policy=NO_CACHE)
def publish(planned: IngestPlan, settings: Settings) -> ShardIndex:
    """Link the shards into `data/shards/<dataset>/` and write the index."""
    folder = settings.shards / planned.spec.name
    return assemble(planned, all_stored(planned, settings), store_folder(settings), folder)


@task(name="verify shards", cache_policy=NO_CACHE)
def verify(planned: IngestPlan, settings: Settings) -> None:
    """Compare the published files with the index.

    Raises:
        ShardError: a shard is damaged; it is removed from the store, so that the next run makes it again.
    """
    problems = verify_shards(settings.shards / planned.spec.name)
    for plan_digest in problems:
        evict(store_folder(settings), plan_digest)
    if problems:
        raise ShardError(
            "damaged shards (removed from the store; start the ingest again to make them anew):\n"
            + "\n".join(problems.values())
        )


def retry_failed(dataset: str, reasons: Collection[RejectReason] = (), settings: Settings | None = None) -> list[str]:
    """Forget the stored shards that hold rejects, so that the next ingest makes only these again.

    DVC does not know about it: run `dvc repro --single-item --force shards@<dataset>` afterwards.

    Args:
        dataset: name of the data set.
        reasons: only rejects for these; all when empty.
        settings: roots.

    Returns:
        Names of the shards that will be made again.

    Raises:
        StageLockedError: an ingest of this data set is running.
    """
    settings = settings or Settings()
    wanted = set(reasons) or set(RejectReason)
    again = []
    with stage_lock(lock_path(dataset, settings)):
        for shard in make_plan(dataset, settings).shards:
            stored = read_stored(store_folder(settings), shard)
            if stored is not None and any(row.reason in wanted for row in stored.rejects):
                evict(store_folder(settings), shard.digest)
                again.append(shard.name)
    return again
