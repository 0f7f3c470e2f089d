"""Maps a function over items on Ray: one task per item, bounded in flight, errors as values.

The only file of `tasks` that imports ray. A cluster is joined when an address is given; otherwise a local one is
started for the length of the map. `workers=0` runs in this process instead, for debugging.
"""

import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from infra.environment import apply_defaults

Item = TypeVar("Item")
Result = TypeVar("Result")

CRASHES_ALLOWED = 3
"""Times that the process of one item may die before the item counts as failed."""

_TEMPORARY = "fovea-ray-"


@dataclass(frozen=True)
class Failure:
    """What became of an item whose function raised, or whose process died again and again."""

    message: str
    """Type and message of the error."""
    trace: str
    crashed: bool
    """The process died; nothing was raised."""


@dataclass(frozen=True)
class Done(Generic[Item, Result]):
    """One finished item."""

    item: Item
    value: Result | Failure


def fan_out(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    address: str | None = None,
    workers: int | None = None,
    on_wait: Callable[[], None] | None = None,
    after_crash: Callable[[Item], Item] | None = None,
) -> Iterator[Done[Item, Result]]:
    """Apply a function to every item and yield the results as they come.

    Args:
        function: module-level function; its process may be killed and it may be called again for the same item.
        items: arguments.
        address: Ray cluster; None starts a local one.
        workers: processes at once; None takes every processor, 0 this process.
        on_wait: called about twice a second while items run.
        after_crash: changes an item before it is tried again because its process died.
    """
    if not items:
        return
    if workers == 0:
        yield from _in_process(function, items, on_wait)
        return
    with _ray(address, workers) as ray:
        yield from _on_ray(ray, function, items, workers, on_wait, after_crash)


def _in_process(
    function: Callable[[Item], Result], items: Sequence[Item], on_wait: Callable[[], None] | None
) -> Iterator[Done[Item, Result]]:
    for item in items:
        try:
            value: Result | Failure = function(item)
        except Exception as error:
            value = Failure(f"{type(error).__name__}: {error}", traceback.format_exc(), crashed=False)
        yield Done(item, value)
        if on_wait:
            on_wait()


def _on_ray(
    ray: Any,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None,
    on_wait: Callable[[], None] | None,
    after_crash: Callable[[Item], Item] | None,
) -> Iterator[Done[Item, Result]]:
    # Ray's own retries are off: a second try after a crash is made with the changed item.
    remote = ray.remote(num_cpus=1, max_retries=0)(function)
    at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    limit = at_once + 2  # the next ones wait in Ray, so that no processor waits for us
    waiting = list(reversed(items))
    crashes: dict[int, int] = {}
    running: dict[Any, tuple[int, Item]] = {}
    number = 0
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                item = waiting.pop()
                running[remote.remote(item)] = (number, item)
                number += 1
            finished, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
            for reference in finished:
                identity, item = running.pop(reference)
                try:
                    yield Done(item, ray.get(reference))
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
                    yield Done(item, Failure(f"{type(cause).__name__}: {cause}", str(error), crashed=False))
                except ray.exceptions.RayError as error:
                    crashes[identity] = crashes.get(identity, 0) + 1
                    if crashes[identity] >= CRASHES_ALLOWED or not ray.is_initialized():
                        message = f"its process died {crashes[identity]} times, last: {type(error).__name__}"
                        yield Done(item, Failure(message, str(error), crashed=True))
                    else:
                        changed = after_crash(item) if after_crash else item
                        running[remote.remote(changed)] = (identity, changed)
            if on_wait:
                on_wait()
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


@contextmanager
def _ray(address: str | None, workers: int | None) -> Iterator[Any]:
    """Give a running Ray: the one of this process, the cluster at an address, or a local one for the block."""
    apply_defaults()  # before Ray is imported
    import ray

    if ray.is_initialized():
        yield ray
        return
    if address and address != "local":
        ray.init(address=address, log_to_driver=False)
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    _remove_left_over()
    # Short: Ray's sockets lie below it, and a socket's path may have 107 characters.
    temporary = tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-", dir="/tmp")
    try:
        ray.init(
            address="local",
            num_cpus=workers or len(os.sched_getaffinity(0)),
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 * 2**20,  # only small records travel
            _temp_dir=temporary,
        )
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_left_over() -> None:
    """Remove the temporary folders of this user's runs whose process is gone (they were killed)."""
    for folder in Path("/tmp").glob(f"{_TEMPORARY}*-*"):
        pid = folder.name.removeprefix(_TEMPORARY).split("-")[0]
        try:
            if pid.isdigit() and folder.stat().st_uid == os.getuid() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue
