"""Bring a data set's stages up to date: one Prefect task per DVC stage, edges from DVC's graph.

    python -m flows.reproduce [dataset] [--target <stage>]… [--jobs <n>] [--no-finish]

`dvc.yaml` is the only DAG; this flow reads it and asks `dvc status` once. A clean stage starts no process. A stage
runs when DVC calls it stale, when it always runs (listings of sources), or when an upstream stage that ran made
other outputs than dvc.lock knew. When one stage fails, branches that do not need it go on. Prefect's own caching is
off: DVC alone decides what is stale. After the stages the models are registered, judged and reported (D9).
"""

import argparse
import queue
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    from infra.launch import run

    sys.exit(run("flows.reproduce"))  # imports this module again by its name, with the server already starting

import networkx as nx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from infra import processes
from infra.launch import wait_for_server
from infra.settings import Settings
from tasks import dvc, registry
from tasks.notify import StageOutcome, publish

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

TRAINING_TAG = "gpu"
"""Tag of tasks that train; a concurrency limit on it caps them over all flows of a server."""

FINISH = "register, promote, report"

_early: dict[Path, "Future[dvc.Inspection]"] = {}
"""What `main` asks DVC while Prefect's temporary server is still starting, by project root."""


class ReproduceError(RuntimeError):
    """Stages failed; the message names each and what was not started because of it."""


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{stage}")
def run_stage(stage: str, reasons: tuple[str, ...], root: Path, env: Mapping[str, str]) -> StageOutcome:
    """Run one stage through DVC, or only note that it is unchanged (no reasons)."""
    if not reasons:
        return StageOutcome(stage, "unchanged")
    get_run_logger().info("%s runs because: %s", stage, "; ".join(reasons))
    more = f" and {len(reasons) - 4} more" if len(reasons) > 4 else ""
    print(f"\n== {stage} ({'; '.join(reasons[:4])}{more})", file=sys.stderr, flush=True)
    start = time.monotonic()
    dvc.repro(root, stage, env)
    return StageOutcome(stage, "ran", reasons, time.monotonic() - start)


@task(cache_policy=NO_CACHE, persist_result=False, name=FINISH)
def run_finish(root: Path, dataset: str, env: Mapping[str, str]) -> StageOutcome:
    """Register, judge and report the data set's models."""
    start = time.monotonic()
    registry.finish(root, dataset, env)
    return StageOutcome(FINISH, "ran", ("always runs",), time.monotonic() - start)


class _Run:
    """One pass over the graph: starts what may start, notes what cannot."""

    def __init__(self, graph: "nx.DiGraph[str]", seen: dvc.Inspection, root: Path, jobs: int, env: Mapping[str, str]):
        self.graph = graph
        self.seen = seen
        self.root = root
        self.jobs = jobs
        self.env = env
        self.outcomes: dict[str, StageOutcome] = {}
        self.changed: set[str] = set()
        """Stages whose outputs differ from what dvc.lock said at the start."""
        self.futures: dict[str, PrefectFuture[StageOutcome]] = {}
        self.reasons: dict[str, tuple[str, ...]] = {}
        """Started stage → why; empty for clean ones, which start no process."""
        self.busy: set[str] = set()
        self.ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def go(self) -> None:
        """Run everything that can run."""
        waiting = list(nx.lexicographical_topological_sort(self.graph))
        while waiting or self.busy:
            waiting = [stage for stage in waiting if not self._settle(stage)]
            if self.busy:
                self._collect(self.ended.get())

    def _settle(self, stage: str) -> bool:
        """Start a stage or decide that it cannot start; return False when it has to wait."""
        before = list(self.graph.predecessors(stage))
        if any(name not in self.outcomes for name in before):
            return False
        lost = [name for name in before if self.outcomes[name].result in ("failed", "not started")]
        if lost:
            self.outcomes[stage] = StageOutcome(stage, "not started", (f"needs {', '.join(sorted(lost))}",))
            return True
        reasons = tuple(self.seen.stale.get(stage, ())) or tuple(
            f"{name} made another output" for name in before if name in self.changed
        )
        if reasons and sum(bool(self.reasons[name]) for name in self.busy) >= self.jobs:
            return False
        self.reasons[stage] = reasons
        self.busy.add(stage)
        tags = {TRAINING_TAG} if reasons and dvc.is_training(stage) else set()
        upstream = [self.futures[name] for name in before if name in self.futures]
        future = run_stage.with_options(tags=tags).submit(
            stage, reasons, self.root, self.env, return_state=False, wait_for=upstream
        )
        self.futures[stage] = future
        future.add_done_callback(lambda _: self.ended.put(stage))
        return True

    def _collect(self, stage: str) -> None:
        self.busy.remove(stage)
        result = self.futures[stage].result(raise_on_failure=False)
        if not isinstance(result, StageOutcome):
            self.outcomes[stage] = StageOutcome(stage, "failed", (str(result),))
            return
        self.outcomes[stage] = result
        if result.result == "ran" and dvc.locked_outputs(self.root).get(stage) != self.seen.outputs.get(stage):
            self.changed.add(stage)


def child_environment() -> dict[str, str]:
    """Return what children must know of this flow run: Prefect's address and the run's id."""
    with get_client(sync_client=True) as client:
        return {"PREFECT_API_URL": str(client.api_url).rstrip("/"), "FOVEA_FLOW_RUN_ID": str(flow_run.get_id() or "")}


@flow(name="reproduce", flow_run_name="reproduce-{dataset}")
def reproduce(
    dataset: str = "demo",
    targets: list[str] | None = None,
    jobs: int = 1,
    finish: bool = True,
    root: Path | None = None,
) -> list[StageOutcome]:
    """Bring a data set's stages up to date, then register, judge and report its models.

    Args:
        dataset: A line of `datasets:` in params.yaml.
        targets: Stage instances or bare stage names; None means all stages of the data set. With targets, `finish`
            has no effect.
        jobs: How many stages may run at once. A fit uses the whole machine by itself, so 1 unless stages are placed
            on a cluster.
        finish: Register, judge and report afterwards.
        root: Project root; None takes the one of the settings.

    Raises:
        ReproduceError: a stage failed; others that do not need it have run.
        tasks.dvc.UnknownStageError: no such data set or target.
    """
    root = (root or Settings().root).absolute()
    early = _early.pop(root, None)
    seen = early.result() if early else dvc.inspect(root)
    graph = dvc.select(seen.graph, root, dataset, targets or ())
    env = child_environment()
    run = _Run(graph, seen, root, max(1, jobs), env)
    try:
        run.go()
        outcomes = [run.outcomes[name] for name in nx.lexicographical_topological_sort(graph)]
        lost = [item for item in outcomes if item.result in ("failed", "not started")]
        if finish and not targets and not lost:
            outcomes.append(run_finish(root, dataset, env))
    except BaseException:
        processes.stop_all()  # cancelled or interrupted: no child may go on alone
        raise
    publish(f"reproduce {dataset}", outcomes)
    if lost:
        lines = "\n".join(f"  {item.stage} {item.result}: {'; '.join(item.reasons)}" for item in lost)
        raise ReproduceError(f"{len(lost)} of {len(graph)} stages of {dataset} are not up to date:\n{lines}")
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow from the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="fovea reproduce", description="Bring a data set's stages up to date.")
    parser.add_argument("dataset", nargs="?", default="demo")
    parser.add_argument("--target", action="append", default=[], metavar="STAGE", help="only this and what it needs")
    parser.add_argument("--jobs", type=int, default=1, help="stages at once (default 1: a fit uses the whole machine)")
    parser.add_argument("--no-finish", action="store_true", help="do not register, promote and report")
    given = parser.parse_args(arguments)
    root = Settings().root.absolute()
    start = time.monotonic()
    print(f"{given.dataset}: asking DVC, starting Prefect", file=sys.stderr)
    with ThreadPoolExecutor(1) as pool:
        _early[root] = pool.submit(dvc.inspect, root)
        wait_for_server()
        try:
            outcomes = reproduce(given.dataset, given.target or None, given.jobs, not given.no_finish, root)
        except (ReproduceError, dvc.DvcError, registry.RegistryError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    ran = [item for item in outcomes if item.result == "ran"]
    for item in ran:
        print(f"  {item.stage:<44} {item.seconds:7.1f} s  {'; '.join(item.reasons[:3])}")
    print(
        f"{given.dataset}: {len(ran)} steps ran, {len(outcomes) - len(ran)} unchanged, {time.monotonic() - start:.1f} s"
    )
    return 0
