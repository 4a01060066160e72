"""What a person tells a worker is done by its runner, and loses nothing."""

from typing import Any

from vbatch_site.tests.servers import MODEL, Server, chat_line, wait_until

OTHER = "Qwen/Qwen2.5-0.5B-Instruct"


def _tell(server: Server, wanted: str) -> None:
    server.execute("UPDATE workers_worker SET wanted = %s WHERE stopped_at IS NULL", wanted)


def _engines(server: Server) -> list[Any]:
    live = (
        "SELECT m.name FROM workers_service s JOIN workers_servedmodel m ON m.id = s.model_id WHERE s.state = 'running'"
    )
    return [name for (name,) in server.query(live)]


def test_a_worker_drains_and_goes_on_gives_its_gpu_up_and_loads_what_it_is_told(sim_server: Server) -> None:
    server = sim_server
    server.wait(server.create([chat_line("warm")]))
    assert _engines(server) == [MODEL]

    _tell(server, "drain")
    # Two signs of life later it has heard.
    seen = server.query("SELECT seen_at FROM workers_worker WHERE stopped_at IS NULL")[0][0]
    beats = "SELECT 1 FROM workers_worker WHERE stopped_at IS NULL AND seen_at > %s + interval '2.5 s'"
    wait_until(lambda: server.query(beats, seen))
    waiting = server.create([chat_line("later")])
    server.wait(waiting, statuses=["in_progress"])
    seen = server.query("SELECT seen_at FROM workers_worker WHERE stopped_at IS NULL")[0][0]
    wait_until(lambda: server.query(beats, seen))
    assert server.batch(waiting)["request_counts"]["completed"] == 0
    assert _engines(server) == [MODEL], "a drained worker keeps its model"

    _tell(server, "stop")
    wait_until(lambda: not _engines(server))
    assert server.batch(waiting)["request_counts"]["completed"] == 0

    _tell(server, "")
    assert server.wait(waiting)["request_counts"]["completed"] == 1

    order = (
        "UPDATE workers_worker SET load_id = m.id, load_asked_at = now() FROM workers_servedmodel m WHERE m.name = %s"
    )
    server.execute(f"{order} AND stopped_at IS NULL", OTHER)
    wait_until(lambda: _engines(server) == [OTHER], 60)
    wait_until(lambda: not server.query("SELECT 1 FROM workers_worker WHERE load_id IS NOT NULL"))

    _tell(server, "unload")
    wait_until(lambda: not _engines(server))
    wait_until(lambda: server.query("SELECT 1 FROM workers_worker WHERE stopped_at IS NULL AND wanted = ''"))
    assert server.wait(server.create([chat_line("again")]))["request_counts"]["completed"] == 1
