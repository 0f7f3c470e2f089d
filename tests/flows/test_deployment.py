"""The deployments with real processes on loopback: server, work pool, worker, `prefect deployment run`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services(start_services: Callable[..., Any]) -> Any:
    return start_services(ROOT, dict(os.environ))


def test_every_deployment_is_made(services: Any) -> None:
    listed = services.ask("deployment", "ls")
    for name in ("reproduce/reproduce", "promote/promote", "nightly/nightly", "ingest/ingest"):
        assert name.split("/")[0] in listed


def test_a_worker_reproduces_a_data_set(services: Any, repository: Path, ran_stages: Callable[[], list[str]]) -> None:
    arguments = ["deployment", "run", "reproduce/reproduce", "-p", "dataset=demo", "-p", f"root={repository}"]
    services.ask(*arguments, "-p", "finish=false", "--watch")
    assert ran_stages() == ["manifest", "shards", "toy_train-left", "toy_train-right", "toy_eval"]
    # The stages spoke to the worker's server, under the worker's flow run.
    line = (repository / "environment.log").read_text().splitlines()[0]
    assert line.endswith(services.env["PREFECT_API_URL"])
    services.ask(*arguments, "-p", "finish=false", "--watch")
    assert ran_stages() == ["manifest"]


def test_a_failing_stage_fails_the_run(services: Any, repository: Path) -> None:
    """The control: `--watch` does not say that all is well when it is not."""
    (repository / "sources/trouble-left").write_text("fail")
    arguments = ["deployment", "run", "reproduce/reproduce", "-p", f"root={repository}", "-p", "finish=false"]
    with pytest.raises(AssertionError, match="toy_train@demo-left"):
        services.ask(*arguments, "--watch")
