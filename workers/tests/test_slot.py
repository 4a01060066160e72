"""An engine slot leaves no engine behind, whatever fails."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections

from vbatch_site.tests.servers import MODEL, words_of
from workers import process, registry
from workers.models import Worker
from workers.slot import Slot


def _engines() -> list[psutil.Process]:
    """Return the engines that this process itself started, and their guards; servers of other tests have their own."""
    guards = [process for process in psutil.Process(os.getpid()).children() if "workers.sim" in words_of(process)]
    return [process for guard in guards for process in (guard, *guard.children(recursive=True))]


def _closing(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call, and leave no connection behind in a thread that lives on."""
    try:
        return function(*arguments)
    finally:
        connections.close_all()


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_an_engine_that_answers_is_stopped_when_what_comes_after_fails(settings: Any, tmp_path: Path) -> None:
    settings.VBATCH_ENGINE, settings.VBATCH_HOME = "sim", tmp_path
    running: list[int] = []

    async def database(function: Callable[..., Any], *arguments: Any) -> Any:
        if function is registry.ready:
            running.append(len(_engines()))
            raise OperationalError("it went away, and everything is to stop")
        return await sync_to_async(_closing)(function, *arguments)

    with pytest.raises(OperationalError):
        asyncio.run(Slot("a-worker", {}, database).load(MODEL))
    assert running == [2]  # the engine, and its guard
    assert _engines() == []


@pytest.mark.django_db
def test_a_worker_gets_its_row_whatever_its_host_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 64)
    holder = process.new_holder()
    registry.beat(holder)
    assert Worker.objects.get().host == "h" * 64
    assert process.new_holder() != holder
