"""Fixtures of all rooms."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vbatch_site.tests.servers import Server


@pytest.fixture(scope="session")
def sim_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with the simulated engine, shared by tests that leave it as they found it."""
    with Server(tmp_path_factory.mktemp("sim")) as server:
        yield server
    server.kill_services()


@pytest.fixture
def new_home(tmp_path: Path) -> Path:
    """A folder for a server of the test's own."""
    return tmp_path / "home"
