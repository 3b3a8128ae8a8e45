"""A stream client of ours: a strict parser of Server-Sent Events, and a connection whose every wait has a limit.

The parser follows the specification to the letter and takes bytes in pieces of any size; it is also what the encoder is
tested against.
"""

import asyncio
import json
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.waiting import LIMIT_S

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODINGS = ("gzip", "zstd", "identity")


def decoder(coding: str) -> Callable[[bytes], bytes]:
    """What takes the pieces of a stream as they come, and gives for each what can be read by then."""
    match coding:
        case "gzip":
            return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
        case "zstd":
            return Frames().decompress
        case _:
            assert coding in ("", "identity")
            return bytes


class Frames:
    """The standard library's decoder takes one frame."""

    def __init__(self) -> None:
        self._frame = zstd.ZstdDecompressor()

    def decompress(self, piece: bytes) -> bytes:
        found = b""
        while piece:
            found += self._frame.decompress(piece)
            piece = b""
            if self._frame.eof:
                piece = self._frame.unused_data
                self._frame = zstd.ZstdDecompressor()
        return found


@dataclass
class Block:
    """A dispatched event, with the id that the client then has."""

    name: str
    data: str
    last_event_id: str

    def json(self) -> Any:
        return json.loads(self.data)


@dataclass
class Parser:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation"""

    last_event_id: str = ""
    retry_ms: int | None = None
    comments: int = 0
    _pending: bytearray = field(default_factory=bytearray)
    _after_cr: bool = False
    _first: bool = True
    _name: str = ""
    _data: list[str] = field(default_factory=list)
    _id: str | None = None

    def feed(self, piece: bytes) -> list[Block]:
        blocks = []
        for byte in piece:
            if self._after_cr and byte == 0x0A:
                self._after_cr = False
                continue
            self._after_cr = byte == 0x0D
            if byte in (0x0A, 0x0D):
                line, self._pending = bytes(self._pending), bytearray()
                block = self._line(line)
                if block:
                    blocks.append(block)
            else:
                self._pending.append(byte)
        return blocks

    def _line(self, raw: bytes) -> Block | None:
        if self._first:
            self._first = False
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        line = raw.decode("utf-8", "replace")
        if not line:
            return self._dispatch()
        if line.startswith(":"):
            self.comments += 1
            return None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> Block | None:
        if self._id is not None:
            self.last_event_id = self._id
        name, data, self._name, self._data = self._name or "message", self._data, "", []
        return Block(name, "\n".join(data), self.last_event_id) if data else None


class Stream:
    """An open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.parser = Parser()
        self._pieces = response.aiter_raw()
        self._decode = decoder(response.headers.get("content-encoding", ""))
        self._blocks: list[Block] = []

    @property
    def pending(self) -> bool:
        """Whether a block is there that wasn't taken."""
        return bool(self._blocks)

    async def next(self, limit_s: float = LIMIT_S) -> Block:
        """The next block. Raises EOFError when the stream has ended, TimeoutError when nothing comes."""
        async with asyncio.timeout(limit_s):
            while not self._blocks:
                try:
                    self._blocks += self.parser.feed(self._decode(await anext(self._pieces)))
                except (StopAsyncIteration, httpx.RemoteProtocolError, httpx.ReadError):
                    raise EOFError from None
        return self._blocks.pop(0)

    async def take(self, count: int, limit_s: float = LIMIT_S) -> list[Block]:
        return [await self.next(limit_s) for _ in range(count)]

    async def until(self, name: str, limit_s: float = LIMIT_S) -> list[Block]:
        """Blocks up to and with the first of this name."""
        blocks = [await self.next(limit_s)]
        while blocks[-1].name != name:
            blocks.append(await self.next(limit_s))
        return blocks

    async def rest(self, limit_s: float = LIMIT_S) -> list[Block]:
        """Blocks up to the stream's end."""
        blocks = []
        try:
            while True:
                blocks.append(await self.next(limit_s))
        except EOFError:
            return blocks


@asynccontextmanager
async def open_stream(
    client: httpx.AsyncClient, url: str, *, headers: dict[str, str] | None = None, limit_s: float = LIMIT_S
) -> AsyncIterator[Stream]:
    """A stream whose answer is a 200 of the right type."""
    async with client.stream("GET", url, headers=headers, timeout=limit_s) as response:
        if response.status_code != 200:
            raise AssertionError(f"{response.status_code}: {(await response.aread())[:500]!r}")
        assert response.headers["content-type"] == "text/event-stream"
        yield Stream(response)
