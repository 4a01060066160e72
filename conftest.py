"""Fixtures of all rooms."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from django.db import connection
from django.test import override_settings
from hypothesis import settings
from pytest_django.plugin import blocking_manager_key

from files.tests.s3 import S3
from vbatch_site.tests.servers import Server
from workers.tests import slurm as slurm_cluster
from workers.tests.slurm import Cluster

# For minutes and at random: `pytest --hypothesis-profile=deep workers/tests/test_state_machine.py`.
settings.register_profile(
    "deep", max_examples=1500, stateful_step_count=60, deadline=None, print_blob=True, derandomize=False
)
# What CI has by itself, everywhere: no deadline for a slow machine to miss, and the same cases each time.
settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that of two halves that run side by side none is left alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Put back what migrations have written: a test with transactions of its own empties all tables at its end."""
    yield
    marker = item.get_closest_marker("django_db")
    if nextitem is not None and marker is not None and marker.kwargs.get("transaction"):
        with item.config.stash[blocking_manager_key].unblock():
            connection.creation.deserialize_db_from_string(connection._test_serialized_contents)  # type: ignore[attr-defined]


@pytest.fixture(scope="session", autouse=True)
def _cheap_passwords() -> Iterator[None]:
    """Hash users' passwords without the third of a second that it takes to make guessing dear."""
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"]):
        yield


@pytest.fixture(scope="session")
def sim_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with the simulated engine, shared by tests that leave it as they found it."""
    with Server(tmp_path_factory.mktemp("sim")) as server:
        yield server
    server.kill_services()


@pytest.fixture(scope="session")
def broken_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which no engine starts."""
    with Server(tmp_path_factory.mktemp("broken"), VBATCH_SIM_STARTUP_FAIL="1") as server:
        yield server


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A real SLURM of this test run's own."""
    if missing := slurm_cluster.missing():
        reason = f"SLURM is not installed: {', '.join(missing)} missing (on Debian: apt-get install slurm-wlm munge)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Its daemons want a folder that every user may enter.
    with TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)
        with Cluster(Path(folder)) as cluster:
            yield cluster


@pytest.fixture(scope="session")
def bucket() -> Iterator[dict[str, str]]:
    """An empty bucket in an S3 server of this test run's own: the settings that lead to it."""
    with S3() as server:
        yield server.settings


@pytest.fixture
def new_home(tmp_path: Path) -> Path:
    """A folder for a server of the test's own."""
    return tmp_path / "home"
