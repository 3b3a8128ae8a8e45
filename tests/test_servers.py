"""Connections to Valkey: kept while they are good, and only then used again."""

import asyncio
import select
import time
from collections.abc import AsyncIterator

import pytest

from relay import servers
from relay.servers import Server, limit
from tests.servers import Valkey
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server(valkey: Valkey) -> AsyncIterator[Server]:
    opened = Server(valkey.url, LIMIT_S)
    yield opened
    await opened.close()


async def test_a_connection_is_used_again(server: Server) -> None:
    assert await server.call("CLIENT", "ID") == await server.call("CLIENT", "ID")


async def test_a_connection_that_was_dropped_is_not_used_again_even_if_the_loop_has_not_seen_it(server: Server, valkey: Valkey) -> None:
    """As in a function, whose loop runs only while it answers."""
    first = await server.call("CLIENT", "ID")
    assert valkey.ask("CLIENT", "KILL", "ID", first) == 1  # blocks, so the loop sees nothing
    assert await server.call("CLIENT", "ID") != first


async def test_a_connection_that_was_idle_for_long_is_not_used_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await server.call("CLIENT", "ID")
    monkeypatch.setattr(servers, "IDLE_MAX_S", 0.0)
    assert await server.call("CLIENT", "ID") != first


async def test_a_limit_ends_what_is_silent() -> None:
    with pytest.raises(TimeoutError):
        async with limit(0.02):
            await asyncio.Event().wait()


async def test_an_answer_that_came_while_this_process_stood_still_is_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a freeze, or when others have all of the machine."""
    await server.call("PING")
    ((connection, _),) = server._idle
    assert connection._writer
    answer = connection._writer.get_extra_info("socket")
    monkeypatch.setattr(server, "_answer_s", 0.2)
    call = asyncio.ensure_future(server.call("PING"))
    await asyncio.sleep(0)  # it is sent
    until_s = time.monotonic() + 0.3
    assert select.select([answer], [], [], LIMIT_S)[0]  # nothing of this process goes on
    time.sleep(max(0, until_s - time.monotonic()))  # noqa: ASYNC251
    assert await call == b"PONG"
