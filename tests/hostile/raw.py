"""Connections that say what they like, and what came back. Every wait has a limit."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.servers import Relay, token
from tests.waiting import LIMIT_S

TCP_REPAIR = 19  # linux/tcp.h: a socket in repair closes without a word to its peer


@dataclass
class Raw:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def hears(self, part: bytes) -> bytes:
        """What came up to and with this part."""
        async with asyncio.timeout(LIMIT_S):
            return await self.reader.readuntil(part)

    async def rest(self, limit_s: float = LIMIT_S) -> bytes:
        """What came until it was closed."""
        got = b""
        async with asyncio.timeout(limit_s):
            try:
                while piece := await self.reader.read(1 << 16):
                    got += piece
            except ConnectionError:
                pass
        return got

    def reset(self) -> None:
        """Leaves with a RST instead of a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def vanish(self) -> None:
        """Leaves without a word, as a machine does that loses its power. Raises PermissionError without CAP_NET_ADMIN."""
        self.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        self.writer.transport.abort()

    @property
    def socket(self) -> socket.socket:
        found: socket.socket = self.writer.get_extra_info("socket")
        return found


@asynccontextmanager
async def connect(relay: Relay, *first: bytes) -> AsyncIterator[Raw]:
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    raw = Raw(reader, writer)
    try:
        for data in first:
            raw.say(data)
        yield raw
    finally:
        writer.transport.abort()


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
