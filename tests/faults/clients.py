"""Clients that live through faults: they come back, keep what they were told, and say where the promise was broken.

Both number what they publish and read, so that what is lost, repeated or out of order shows.
"""

import asyncio
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.servers import Valkey, token
from tests.streams import Block, Parser
from tests.waiting import LIMIT_S

PAUSE_S = (0.05, 0.3)  # before a client comes back: much less than it is told, so that tests are quick
PUBLISH_PAUSE_S = 0.005


class Progress:
    """Wakes those who wait for something to become true."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def made(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, is_so: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not is_so():
                await self._changed.wait()


async def until(is_so: Callable[[], Awaitable[object]]) -> None:
    """Asks until it is so. For what another process does in its own time."""
    async with asyncio.timeout(LIMIT_S):
        while not await is_so():  # noqa: ASYNC110  # nobody tells us
            await asyncio.sleep(0.02)


@dataclass
class Follower:
    """A client that keeps its cursor: one stream, opened again whenever it ends.

    `got` has the numbers since it was last told to begin anew, by topic. `told` has all else that it was told, in order.
    """

    http: httpx.AsyncClient
    url: str  # without a position
    query: str = ""  # of the first connect alone
    got: dict[str, list[int]] = field(default_factory=dict)
    told: list[Block] = field(default_factory=list)
    connects: int = 0
    cuts: int = 0  # ends that weren't told
    cursor: str = ""
    beats: int = 0
    progress: Progress = field(default_factory=Progress)

    async def run(self) -> None:
        """Until cancelled."""
        for attempt in itertools.count():
            try:
                await self._read()
            except (httpx.TransportError, EOFError):
                self.cuts += 1
                self.progress.made()
            await asyncio.sleep(PAUSE_S[min(attempt, 1)])

    async def _read(self) -> None:
        url = self.url if self.cursor or not self.query else f"{self.url}{'&' if '?' in self.url else '?'}{self.query}"
        headers = {"last-event-id": self.cursor} if self.cursor else None
        parser = Parser(self.cursor)
        async with self.http.stream("GET", url, headers=headers, timeout=LIMIT_S) as response:
            assert response.status_code == 200, await response.aread()
            self.connects += 1
            async for piece in response.aiter_bytes():
                blocks = parser.feed(piece)
                for block in blocks:
                    self.cursor = block.last_event_id
                    self._take(block)
                self.beats += parser.comments
                parser.comments = 0
                self.progress.made()
                if blocks and blocks[-1].name == "bye":
                    return
        raise EOFError

    def _take(self, block: Block) -> None:
        if block.name in ("hello", "gap", "bye", "sync"):
            self.told.append(block)
            if block.name == "hello" and block.json()["resume"] == "reset":
                self.got.clear()
        else:
            topic, number = read(block)
            self.got.setdefault(topic, []).append(number)

    def names(self, name: str) -> list[Any]:
        """What the blocks of this name said."""
        return [block.json() for block in self.told if block.name == name]

    @property
    def verdicts(self) -> list[str]:
        return [hello["resume"] for hello in self.names("hello")]

    @property
    def numbers(self) -> list[int]:
        """Of the one topic that has any."""
        (numbers,) = self.got.values() or [[]]
        return numbers

    async def reaches(self, number: int) -> None:
        await self.progress.until(lambda: self.numbers and self.numbers[-1] >= number)

    async def is_told(self, name: str, count: int = 1) -> None:
        await self.progress.until(lambda: len(self.names(name)) >= count)


def read(block: Block) -> tuple[str, int]:
    """The topic and the number of an event: of a stream of several topics from its wrapper."""
    data = block.json()
    return (data["topic"], data["data"]["i"]) if "topic" in data else ("", data["i"])


@dataclass
class Publisher:
    """Publishes 1, 2, 3… to a topic, each again with its key until it is acknowledged."""

    http: httpx.AsyncClient
    url: str  # where to publish to the topic
    acknowledged: int = 0
    going: asyncio.Event = field(default_factory=asyncio.Event)
    resting: bool = False
    refused: list[httpx.Response] = field(default_factory=list)
    cuts: int = 0
    progress: Progress = field(default_factory=Progress)

    async def run(self) -> None:
        """Until cancelled."""
        self.going.set()
        while True:
            self.resting = not self.going.is_set()
            self.progress.made()
            await self.going.wait()
            await self.publish()
            await asyncio.sleep(PUBLISH_PAUSE_S)

    async def rest(self) -> int:
        """Publishes nothing until `going` is set. The last number that is acknowledged."""
        self.going.clear()
        await self.progress.until(lambda: self.resting)
        return self.acknowledged

    async def publish(self) -> None:
        """The next number, once; it stays the next until it is acknowledged."""
        number = self.acknowledged + 1
        try:
            answer = await self.http.post(self.url, json={"data": {"i": number}}, headers={"idempotency-key": f"key-{number}"})
        except httpx.TransportError:
            self.cuts += 1
        else:
            if answer.status_code in (200, 201):
                self.acknowledged = number
            else:
                self.refused.append(answer)
        self.progress.made()

    async def has_published(self, number: int) -> None:
        await self.progress.until(lambda: self.acknowledged >= number)

    async def is_refused(self) -> None:
        """From now on, once more: what is acknowledged by then stays the last until the next try."""
        before = len(self.refused) + self.cuts
        await self.progress.until(lambda: len(self.refused) + self.cuts > before)


@dataclass
class Poller:
    """An old client: it asks for one page after the other, and lets each wait."""

    http: httpx.AsyncClient
    url: str
    cursor: str = "earliest"
    numbers: list[int] = field(default_factory=list)
    verdicts: set[str] = field(default_factory=set)
    refused: int = 0
    progress: Progress = field(default_factory=Progress)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                answer = await self.http.get(f"{self.url}?cursor={self.cursor}&wait=5")
            except httpx.TransportError:
                answer = None
            if answer is None or answer.status_code != 200:
                self.refused += 1
                await asyncio.sleep(PAUSE_S[0])
                continue
            page = answer.json()
            self.cursor = page["cursor"]
            self.numbers += [event["data"]["i"] for event in page["events"]]
            self.verdicts.add(page["resume"])
            self.progress.made()

    async def reaches(self, number: int) -> None:
        await self.progress.until(lambda: self.numbers and self.numbers[-1] >= number)


@asynccontextmanager
async def running(*clients: Follower | Publisher | Poller) -> AsyncIterator[None]:
    """They run for as long as the context lasts. What one of them raises, this raises."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.run()) for client in clients]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@asynccontextmanager
async def open_http(
    *, connections: int | None = None, keepalive: int | None = 100, tls: ssl.SSLContext | None = None, http2: bool = False
) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a token for everything, which opens as many connections as it is asked for."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=keepalive)
    headers = {"authorization": f"Bearer {token()}"}
    async with httpx.AsyncClient(headers=headers, timeout=LIMIT_S, limits=limits, verify=tls or True, http2=http2) as client:
        yield client


def upto(number: int) -> list[int]:
    return list(range(1, number + 1))


def retained(server: Valkey, topic: str, shard: int = 0) -> list[int]:
    """The numbers that the log has of a topic."""
    entries = server.ask("XRANGE", f"{{relay:{shard}}}:topic:{topic}", "-", "+")
    return [json.loads(fields[b"d"])["i"] for _, fields in entries]
