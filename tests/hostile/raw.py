"""Connections that say what they like, and what came back. Every wait has a limit."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.servers import Relay, token
from tests.waiting import LIMIT_S

TCP_REPAIR = 19  # linux/tcp.h: a socket in repair closes without a word to its peer


class Raw(asyncio.Protocol):
    """One connection. What came before its end is there also behind it, which a `StreamReader` that was reset doesn't give."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.got = bytearray()  # that nobody has taken
        self.ended = False  # by the other side
        self._moved = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data
        self._moved.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self._moved.set()

    def say(self, data: bytes) -> None:
        if not self.ended:
            self.transport.write(data)

    async def until(self, is_so: Callable[[], object]) -> None:
        """Until it is so, or the other side has ended it."""
        async with asyncio.timeout(LIMIT_S):
            while not is_so() and not self.ended:
                self._moved.clear()
                await self._moved.wait()

    async def hears(self, part: bytes) -> bytes:
        """What came up to and with this part."""
        await self.until(lambda: part in self.got)
        end = self.got.find(part)
        assert end >= 0, bytes(self.got[-1000:])
        return self._take(end + len(part))

    async def some(self) -> bytes:
        """What has come; nothing at the end."""
        await self.until(lambda: self.got)
        return self._take(len(self.got))

    async def rest(self) -> bytes:
        """What came until it was closed."""
        await self.until(lambda: False)
        return self._take(len(self.got))

    def _take(self, size: int) -> bytes:
        taken = bytes(self.got[:size])
        del self.got[:size]
        return taken

    def reset(self) -> None:
        """Leaves with a RST instead of a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def vanish(self) -> None:
        """Leaves without a word, as a machine does that loses its power. Needs CAP_NET_ADMIN."""
        self.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        self.transport.abort()

    @property
    def socket(self) -> socket.socket:
        found: socket.socket = self.transport.get_extra_info("socket")
        return found


@asynccontextmanager
async def connect(relay: Relay, *first: bytes) -> AsyncIterator[Raw]:
    async with asyncio.timeout(LIMIT_S):
        _, raw = await asyncio.get_running_loop().create_connection(Raw, "127.0.0.1", relay.port)
    try:
        for data in first:
            raw.say(data)
        yield raw
    finally:
        raw.transport.abort()


def request(line: str, *headers: str, body: bytes = b"", auth: bool = True) -> bytes:
    own = [f"Authorization: Bearer {token()}"] if auth else []
    return "\r\n".join([f"{line} HTTP/1.1", "Host: relay", *own, *headers, "", ""]).encode() + body


def answers(got: bytes) -> list[tuple[int, bytes]]:
    """Statuses and bodies of answers that stand one behind the other, each with its length."""
    found = []
    while got:
        head, _, got = got.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
        length = int(fields[b"content-length"])
        found.append((int(lines[0].split()[1]), got[:length]))
        got = got[length:]
    return found
