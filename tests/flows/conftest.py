"""One Prefect server for all tests of this folder."""

from collections.abc import Iterator

import pytest

from infra.environment import apply_defaults

apply_defaults()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect's own test harness: a server with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def server_url(prefect_server: None) -> str:
    """Address of that server, for processes: each would start one of its own."""
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())
