"""A client that takes from its stream only when it is told to."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.servers import Relay, token
from tests.waiting import LIMIT_S

WINDOW_BYTES = 4096  # so small that what it doesn't take stays with the relay and its kernel
PIECE = 1 << 16
FILLING = {"filling": "x" * 8000}
FILLING_EVENTS = 500  # in one batch


class Slow:
    """It remembers the numbers of events, how long those took that say when they were sent, and all else that it was told."""

    def __init__(self, relay: Relay, topic: str, reader: asyncio.StreamReader, port: int) -> None:
        self.relay, self.topic, self.reader, self.port = relay, topic, reader, port
        self.last_event_id = ""
        self.numbers: list[int] = []
        self.took_ms: list[float] = []
        self.told: list[tuple[str, Any]] = []
        self._left = b""

    async def read(self) -> None:
        """What there is, at least a byte. Raises EOFError at the end."""
        piece = await asyncio.wait_for(self.reader.read(PIECE), LIMIT_S)
        if not piece:
            raise EOFError
        *blocks, self._left = (self._left + piece).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
            self.last_event_id = fields.get(b"id", self.last_event_id.encode()).decode()
            if b"data" in fields:
                self._take(fields[b"event"].decode(), json.loads(fields[b"data"]))

    def _take(self, name: str, data: Any) -> None:
        if name != "update":
            self.told.append((name, data))
        elif "sent" in data:
            self.took_ms.append((time.time() - data["sent"]) * 1000)
        elif "i" in data:
            self.numbers.append(data["i"])

    async def read_to(self, number: int) -> None:
        while not self.numbers or self.numbers[-1] < number:
            await self.read()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """It takes all that comes, for as long as the context lasts."""

        async def read() -> None:
            while True:
                await self.read()

        task = asyncio.create_task(read())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def fill(self, http: httpx.AsyncClient) -> None:
        """Publishes to its topic until the relay can't get rid of it, or has given it up."""
        batch = [{"topic": self.topic, "data": FILLING} for _ in range(FILLING_EVENTS)]
        async with asyncio.timeout(LIMIT_S):
            while True:
                (await http.post(f"{self.relay.url}/stream/publish", json=batch)).raise_for_status()
                status = (await http.get(f"{self.relay.url}/stream/status")).json()
                if status["behind"] or not status["connections"]:
                    return


@asynccontextmanager
async def open_slow(relay: Relay, topic: str, query: str = "", window: int = WINDOW_BYTES) -> AsyncIterator[Slow]:
    """Its stream is open, with nothing read of it but the head."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", relay.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=window)
    try:
        # HTTP/1.0: the body comes as it is, without the lengths of its chunks.
        writer.write(f"GET /stream/{topic}/v1/live{query} HTTP/1.0\r\nAuthorization: Bearer {token()}\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
        assert head.startswith(b"HTTP/1.0 200 "), head
        yield Slow(relay, topic, reader, writer.get_extra_info("sockname")[1])
    finally:
        writer.transport.abort()
