"""What the contract's tests share."""

from collections.abc import Iterator

import pytest

from vbatch_site.tests.servers import Server


@pytest.fixture(scope="session")
def short_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose batches may have a window of a minute, and only 2,000 tokens in line."""
    settings = {"VBATCH_COMPLETION_WINDOWS": "24h,60s", "VBATCH_ENQUEUED_TOKEN_LIMIT": "2000"}
    with Server(tmp_path_factory.mktemp("short"), **settings) as server:
        yield server


@pytest.fixture(scope="session")
def other_key(sim_server: Server) -> str:
    """A key of another project on the shared server."""
    return sim_server.manage("create_api_key", "other", "--project", "other")
