"""Prefect task that makes the shards: fan-out over Ray, progress, the cap on rejects."""

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from infra.settings import Settings
from tasks.fanout import Failure, fan_out
from tasks.ops.plan import IngestPlan
from tasks.ops.quarantine import QuarantineRow, check_share, count_reasons, write_quarantine
from tasks.ops.sample import context_of
from tasks.ops.shards import ShardJob, StoredShard, progress_path, read_stored, write_shard

log = logging.getLogger(__name__)

ARTIFACT_EVERY_S = 5.0
"""Seconds between two updates of the progress artifact (each is a request to the server)."""


class IngestError(RuntimeError):
    """Shards could not be made for reasons that are not the videos'."""


def store_folder(settings: Settings) -> Path:
    """Return the folder of finished shards."""
    return settings.work.absolute() / "shards"


def quarantine_path(dataset: str, settings: Settings) -> Path:
    """Return the list of rejects of the last run, also of one that the cap stopped."""
    return settings.work.absolute() / "quarantine" / f"{dataset}.csv"


def make_jobs(plan: IngestPlan, settings: Settings) -> list[ShardJob]:
    """Return the jobs of all shards that are not in the store, in the order of the plan."""
    settings = settings.model_copy(update={"root": settings.root.absolute()})  # workers may start in another folder
    store = store_folder(settings)
    temporary = settings.work / "tmp" / f"shards@{plan.spec.name}"
    spec = plan.spec
    contexts = {part.name: context_of(spec, part, plan.encoder, settings, plan.classes) for part in spec.parts}
    return [
        ShardJob(plan=shard, context=contexts[shard.part], store=store, temporary=temporary)
        for shard in plan.shards
        if read_stored(store, shard) is None
    ]


def _isolated(job: ShardJob) -> ShardJob:
    """Return the job for a second try after its process died."""
    return replace(job, context=replace(job.context, isolate=True))


class _Counter:
    """Counts finished videos: of finished shards exactly, of running ones by their progress files."""

    def __init__(self, plan: IngestPlan, jobs: list[ShardJob], show: Callable[[int], None]) -> None:
        self._open = {job.plan.digest: job for job in jobs}
        self.done = plan.num_videos - sum(len(job.plan.videos) for job in jobs)
        self._show = show

    def finish(self, job: ShardJob) -> None:
        """Count a shard as finished."""
        self._open.pop(job.plan.digest, None)
        self.done += len(job.plan.videos)
        progress_path(job).unlink(missing_ok=True)

    def show(self) -> None:
        """Show the present count."""
        running = 0
        for job in self._open.values():
            try:
                size = progress_path(job).stat().st_size
            except FileNotFoundError:
                continue
            running += min(size, len(job.plan.videos))  # more after a second try
        self._show(self.done + running)


def encode(plan: IngestPlan, settings: Settings, workers: int | None, show: Callable[[int], None]) -> None:
    """Make all missing shards of a data set.

    A video that cannot become a sample is a reject; a shard that cannot be made does not stop the others.

    Args:
        plan: of the data set.
        settings: roots, Ray address.
        workers: processes at once; None takes all, 0 this process.
        show: called with the number of finished videos.

    Raises:
        TooManyRejectsError: as soon as more videos are rejected than the data set allows.
        IngestError: shards failed; names them.
    """
    jobs = make_jobs(plan, settings)
    todo = {job.plan.digest for job in jobs}
    rejects: list[QuarantineRow] = []
    for shard in plan.shards:
        if shard.digest not in todo:
            stored = read_stored(store_folder(settings), shard)
            rejects.extend(stored.rejects if stored else ())
    if jobs:
        # What lies there belongs to killed runs; the caller holds the lock of the stage.
        shutil.rmtree(jobs[0].temporary, ignore_errors=True)
        jobs[0].temporary.mkdir(parents=True)
    log.info("%s: %d of %d shards are to be made", plan.spec.name, len(jobs), len(plan.shards))
    _check(plan, rejects, settings)
    counter = _Counter(plan, jobs, show)
    counter.show()
    failures: list[str] = []
    results = fan_out(
        write_shard,
        jobs,
        address=settings.ray_address,
        workers=workers,
        on_wait=counter.show,
        after_crash=_isolated,
    )
    with closing(results):  # type: ignore[type-var]
        for done in results:
            counter.finish(done.item)
            if isinstance(done.value, Failure):
                failures.append(f"{done.item.plan.name}: {done.value.message}")
                log.error("shard %s: %s\n%s", done.item.plan.name, done.value.message, done.value.trace)
            else:
                rejects.extend(done.value.rejects)
                _check(plan, rejects, settings)
            counter.show()
    if jobs:
        shutil.rmtree(jobs[0].temporary, ignore_errors=True)
    write_quarantine(quarantine_path(plan.spec.name, settings), rejects)
    if failures:
        more = f"\nand {len(failures) - 10} more" if len(failures) > 10 else ""
        raise IngestError(
            f"data set {plan.spec.name!r}: {len(failures)} of {len(plan.shards)} shards could not be made (the others "
            "are kept; start again to make only these):\n" + "\n".join(failures[:10]) + more
        )


def _check(plan: IngestPlan, rejects: list[QuarantineRow], settings: Settings) -> None:
    """Stop when the cap on rejects is passed for good, leaving the list for the user to look at."""
    if len(rejects) > plan.spec.max_reject_share * plan.num_videos:
        path = quarantine_path(plan.spec.name, settings)
        write_quarantine(path, rejects)
        check_share(count_reasons(rejects), plan.num_videos, plan.spec.max_reject_share, path, plan.spec.name)


@contextmanager
def progress_display(name: str, total: int, settings: Settings) -> Iterator[Callable[[int], None]]:
    """Draw a progress bar to stderr and keep a Prefect progress artifact; gives the function to call."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    artifact = create_progress_artifact(progress=0.0, key=f"ingest-{name.replace('_', '-')}", description="videos done")
    assert isinstance(artifact, UUID)
    shown_at, shown = time.monotonic(), 0

    with Progress(*columns, console=Console(stderr=True), disable=not settings.progress) as bar:
        line = bar.add_task(f"ingest {name}", total=total)

        def show(done: int) -> None:
            nonlocal shown_at, shown
            bar.update(line, completed=done)
            if done != shown and (done == total or time.monotonic() - shown_at >= ARTIFACT_EVERY_S):
                update_progress_artifact(artifact, progress=100.0 * done / max(1, total))
                shown_at, shown = time.monotonic(), done

        yield show


@task(name="encode shards", cache_policy=NO_CACHE)
def encode_shards(plan: IngestPlan, settings: Settings, workers: int | None = None) -> dict[str, int]:
    """Make all missing shards; returns reason → number of rejects."""
    with progress_display(plan.spec.name, plan.num_videos, settings) as show:
        encode(plan, settings, workers, show)
    return count_reasons(row for stored in all_stored(plan, settings) for row in stored.rejects)


def all_stored(plan: IngestPlan, settings: Settings) -> list[StoredShard]:
    """Return the stored shards of a plan.

    Raises:
        IngestError: one is missing.
    """
    found = []
    for shard in plan.shards:
        stored = read_stored(store_folder(settings), shard)
        if stored is None:
            raise IngestError(f"shard {shard.name} is not in {store_folder(settings)}; start the ingest again")
        found.append(stored)
    return found


def summarise(rejects: dict[str, int]) -> str:
    """Return counts of rejects as words."""
    total = sum(Counter(rejects).values())
    return f"{total} rejected" + (f" ({', '.join(f'{r} {n}' for r, n in rejects.items())})" if total else "")
