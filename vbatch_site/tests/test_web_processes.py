"""What several web processes on one database agree upon."""

from collections.abc import Iterator

import pytest

from vbatch_site.tests.servers import Web


@pytest.fixture(scope="module")
def webs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, Web]]:
    home = tmp_path_factory.mktemp("webs")
    with Web(home) as first, Web(home, database=first.database) as second:
        yield first, second


def test_a_revoked_key_ends_at_once_in_all_processes(webs: tuple[Web, Web]) -> None:
    key = webs[0].manage("create_api_key", "revoked")
    assert [web.request("GET", "/v1/files", key=key)[0] for web in webs] == [200, 200]
    webs[0].execute("UPDATE vbatch_site_apikey SET revoked_at = now() WHERE prefix = %s", key[:12])
    assert [web.request("GET", "/v1/files", key=key)[0] for web in webs] == [401, 401]
