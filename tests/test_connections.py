"""What the kernel is told of connections. What comes of it is seen in `hostile` and `faults`, on the real server."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from relay import connections
from relay.connections import UNSENT_BYTES, limit_sends
from tests.needs import need
from tests.servers import free_port
from tests.waiting import LIMIT_S


@pytest.mark.anyio
async def test_a_server_that_listens_late_has_its_sends_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    need("Linux")
    port, looks = free_port(), 0
    find = connections.sockets_on

    def look(port: int) -> Iterator[socket.socket]:
        nonlocal looks
        looks += 1
        return find(port)

    monkeypatch.setattr(connections, "sockets_on", look)
    monkeypatch.setattr(connections, "STEP_S", (0, 0))
    async with asyncio.timeout(LIMIT_S):
        limiting = asyncio.create_task(limit_sends(port, 7))
        while looks < 1000:  # noqa: ASYNC110  # by the clock, a minute and a half
            await asyncio.sleep(0)
        with socket.create_server(("127.0.0.1", port)) as server:
            await limiting
            assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
            assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES
