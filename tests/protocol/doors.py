"""Ways to read, and the client that keeps its cursor through all of them.

A client is a real one: what it knows is what was on the wire. It checks, beside what a case expects, what holds whatever
happens: that numbers follow one another but where a gap tells how many are missing, and that what it is sent is what was
published.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlencode

import httpx

from relay.keys import Keyring
from relay.query import SEALED, VERSIONS
from relay.seal import unseal
from tests.protocol.cases import Ask, Read
from tests.protocol.world import WAIT_S, Scene
from tests.servers import SEAL_KEY
from tests.streams import CODINGS, Block, Stream, open_stream
from tests.waiting import LIMIT_S

KEYRING = Keyring((SEAL_KEY,))
TRIES = 10  # to see a poll wait
NOTHING_S = "0.05"  # where nothing may come
# The ways to send a position in a page's query; EventSource's own header is taken too.
POSITION_NAMES = ("cursor", "last_event_id", "lastEventId", "lastEventID", "Last-Event-ID")


@dataclass
class Got:
    """What a client was told between two steps of a case."""

    resume: str | None = None
    gaps: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)  # by letter: how many, and the first number
    labels: list[str] = field(default_factory=list)


@dataclass
class Client:
    """What a client keeps between two connections, and how it takes what it is sent."""

    scene: Scene
    ask: Ask = field(default_factory=Ask)
    cursor: str = ""
    numbers: dict[str, int] = field(default_factory=dict)  # by letter, where it has one
    glimpsed: list[str] = field(default_factory=list)  # what it has got before the read that is to tell of it
    version: str = "v1"

    @property
    def topics(self) -> list[str]:
        return [self.scene.topic(letter) for letter in self.ask.topics]

    def url(self, kind: str, **more: str) -> str:
        fields: list[tuple[str, str]] = list(more.items())
        if self.ask.names:
            fields.append(("events", self.ask.names))
        if self.ask.k:
            fields.append(("k", str(self.ask.k)))
        path = f"/stream/{self.topics[0]}/{self.version}/{kind}"
        if len(self.topics) > 1:
            path = f"/stream/{self.version}/{kind}"
            fields += [("topic", topic) for topic in self.topics]
        return f"{path}?{urlencode(fields)}"

    def resumes(self, resume: str, got: Got) -> None:
        if resume in ("new", "reset"):
            self.numbers.clear()
        self.numbers = {letter: n for letter, n in self.numbers.items() if letter in self.ask.topics}
        got.resume = resume

    def misses(self, gap: dict[str, Any], got: Got) -> None:
        assert gap.keys() == {"topic", "lost", "first_n", "oldest"}
        letter, lost, first_n = self.scene.letter(gap["topic"]), gap["lost"], gap["first_n"]
        assert letter in self.ask.topics
        assert not any(label[0] == letter for label in got.labels), "a gap behind what is retained"
        if lost is not None and not self.ask.names and letter in self.numbers:
            assert lost == first_n - 1 - self.numbers[letter]
        self.numbers.pop(letter, None)
        if first_n is not None:
            self.numbers[letter] = first_n - 1
        if gap["oldest"] is not None:
            assert self.scene.by_id[gap["oldest"]].n == first_n
        assert letter not in got.gaps
        got.gaps[letter] = lost, first_n

    def opens(self, sealed: str, id: str) -> Any:
        """What is in a seal, which must say of which event it is."""
        record, now_ms = self.scene.by_id[id], int(time.time() * 1000)
        topic = self.scene.topic(record.label[0])
        asked_ms = now_ms, now_ms - int(LIMIT_S * 1000)  # a client keeps the keys that it has been given
        keys: dict[str, str | bytes] = {key.id: key.key for at_ms in asked_ms for key in KEYRING.given(topic, at_ms)}
        inside = json.loads(unseal(sealed, keys, now_ms))
        assert inside.keys() == {"id", "topic", "n", "event", "ts", "sealed_at", "data"}
        assert (inside["id"], inside["topic"], inside["n"], inside["event"]) == (id, topic, record.n, record.name)
        return inside["data"]

    def takes(self, id: str, name: str, data: Any, got: Got) -> None:
        record = self.scene.by_id.get(id)
        assert record, f"an event that nobody published: {id} {data}"
        assert (record.name, record.data) == (name, data)
        letter = record.label[0]
        known = self.numbers.get(letter)
        assert known is None or record.n == known + 1 or (self.ask.names and record.n > known), f"{record.label} after n={known}"
        self.numbers[letter] = record.n
        got.labels.append(record.label)

    def takes_item(self, item: dict[str, Any], got: Got) -> None:
        """An event of a page."""
        assert item.keys() == {"id", "topic", "n", "event", "ts", "data"}
        self._check_wrapper(item)
        self.takes(item["id"], item["event"], self._plain(item["data"], item["id"]), got)

    def takes_block(self, block: Block, got: Got) -> None:
        """A block of a stream."""
        if block.name == "gap":
            self.misses(block.json(), got)
        elif block.name not in ("hello", "sync"):
            if len(self.topics) == 1:
                data = block.data if self.version == SEALED else block.json()
                self.takes(block.last_event_id, block.name, self._plain(data, block.last_event_id), got)
            else:
                item = block.json()
                assert item.keys() == {"id", "topic", "n", "ts", "data"}
                self._check_wrapper(item)
                self.takes(item["id"], block.name, self._plain(item["data"], item["id"]), got)
        self.cursor = block.last_event_id

    def _plain(self, data: Any, id: str) -> Any:
        return self.opens(data, id) if self.version == SEALED else data

    def _check_wrapper(self, item: dict[str, Any]) -> None:
        record = self.scene.by_id.get(item["id"])
        assert record, item
        assert (self.scene.topic(record.label[0]), record.n) == (item["topic"], item["n"])
        assert f".{item['ts']}-" in item["id"]


class Door(Protocol):
    """A way to read."""

    async def read(self, client: Client, expected: Read) -> Got:
        """What a client is told if it reads on; it reads until it has as much as it expects, or can't be told more."""
        ...

    async def read_some(self, client: Client, expected: Read) -> Got:
        """One answer with so much, and no more."""
        ...

    async def lose_answer(self, client: Client) -> None: ...

    async def sync(self, client: Client) -> None: ...

    async def cut(self) -> None: ...


class Streaming:
    """Server-Sent Events. The stream stays open."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._stack = AsyncExitStack()
        self._stream: Stream | None = None
        self._codings = itertools.cycle(CODINGS)

    async def read(self, client: Client, expected: Read) -> Got:
        return await self.take(client, expected, len(expected.events.split()) - len(client.glimpsed))

    async def read_some(self, client: Client, expected: Read) -> Got:
        await self.cut()
        got = await self.read(client, expected)
        await self.cut()
        return got

    async def take(self, client: Client, expected: Read, events: int) -> Got:
        got = Got()
        if self._stream is None:
            self._stream = await self._open(client)
        else:
            got.resume = "exact"
        while (
            got.resume is None
            or (expected.resume == "reset" != got.resume)
            or len(got.gaps) < len(expected.gaps)
            or len(got.labels) < events
        ):
            try:
                block = await self._stream.next()
            except (TimeoutError, EOFError) as error:
                raise AssertionError(f"after {got} came nothing more: {error!r}") from error
            if block.name == "hello":
                hello = block.json()
                assert hello["cursor"] == block.last_event_id
                at_now = hello["resume"] == "new" and client.ask.start == "now" and not client.ask.k
                if at_now and not client.scene.is_past(hello["cursor"], client.ask.topics):
                    await self.cut()  # now is where the process is, which on a busy machine may have yet to read what was published
                    self._stream = await self._open(client)
                    continue
                if hello["resume"] == "reset":  # what it got before is dropped with all the rest
                    got = Got()
                assert not got.labels
                client.resumes(hello["resume"], got)
            client.takes_block(block, got)
        return got

    async def _open(self, client: Client) -> Stream:
        # What an EventSource does: it reconnects to the same URL, and what it has seen goes into the header.
        headers = {"last-event-id": client.cursor} if client.cursor else {}
        headers["accept-encoding"] = next(self._codings)
        opening = open_stream(client.scene.http, self.url + client.url("live", cursor=client.ask.start), headers=headers)
        return await self._stack.enter_async_context(opening)

    async def lose_answer(self, client: Client) -> None:
        await self.cut()
        await self._open(client)
        await self.cut()

    async def sync(self, client: Client) -> None:
        assert self._stream
        while not client.scene.is_past(client.cursor, client.ask.topics):  # one may come before the hidden events do
            block = await self._stream.next()
            assert (block.name, block.json()["cursor"]) == ("sync", block.last_event_id)
            client.cursor = block.last_event_id

    async def cut(self) -> None:
        await self._stack.aclose()
        self._stream = None


class Polling:
    """Pages, one after the other while there are more."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._names = itertools.cycle(POSITION_NAMES)

    async def read(self, client: Client, expected: Read) -> Got:
        got = Got()
        while self._take(client, await self._ask(client), got):
            pass
        return got

    async def read_some(self, client: Client, expected: Read) -> Got:
        await self.cut()
        return await self.page(client)

    async def page(self, client: Client, **query: str) -> Got:
        """One page, whether or not there are more."""
        got = Got()
        self._take(client, await self._ask(client, **query), got)
        return got

    def _take(self, client: Client, page: dict[str, Any], got: Got) -> bool:
        """Takes a page. Whether there is more."""
        assert page.keys() == {"events", "cursor", "more", "poll_after_ms", "resume", "gap"}
        assert len(page["events"]) <= client.ask.limit
        gaps = page["gap"] or []
        assert isinstance(gaps, list) == (not gaps or len(client.topics) > 1)
        if got.resume is None:
            client.resumes(page["resume"], got)
        else:
            assert page["resume"] == ("gap" if gaps else "exact")
        for gap in gaps if isinstance(gaps, list) else [gaps]:
            letter = client.scene.letter(gap["topic"])
            if letter in got.gaps:  # told again, since the page before ended in front of it
                assert got.gaps[letter] == (gap["lost"], gap["first_n"])
            else:
                client.misses(gap, got)
        for item in page["events"]:
            client.takes_item(item, got)
        client.cursor = page["cursor"]
        return bool(page["more"])

    async def _ask(self, client: Client, **more: str) -> dict[str, Any]:
        answer = await self._get(client, **more)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def _get(self, client: Client, **more: str) -> httpx.Response:
        more["limit"] = str(client.ask.limit)
        name = next(self._names)
        headers = {}
        if not client.cursor:
            more["cursor"] = client.ask.start
        elif name == "Last-Event-ID":
            headers[name] = client.cursor
        else:
            more[name] = client.cursor
        return await client.scene.http.get(self.url + client.url("poll", **more), headers=headers)

    async def lose_answer(self, client: Client) -> None:
        await self._get(client)

    async def sync(self, client: Client) -> None:
        await self.cut()
        got = await Polling.read(self, client, Read())
        assert got == Got("exact")

    async def cut(self) -> None: ...


def is_silent(page: dict[str, Any]) -> bool:
    return (page["events"], page["resume"], page["gap"] or None) == ([], "exact", None)


class LongPolling(Polling):
    """Pages that wait for something to come: the next one is asked for as soon as there is nothing more."""

    def __init__(self, url: str, *, told_of_resets: bool) -> None:
        super().__init__(url)
        self._told_of_resets = told_of_resets
        self._next: asyncio.Task[dict[str, Any]] | None = None

    async def read(self, client: Client, expected: Read) -> Got:
        got = Got()
        events = len(expected.events.split()) - len(client.glimpsed)
        if expected == Read() or (expected.resume == "reset" and not self._told_of_resets):
            await self.cut()
        if self._next is None:
            async with asyncio.timeout(LIMIT_S):
                page = await self._ask(client, wait=WAIT_S if events or expected.gaps else NOTHING_S)
        else:
            page = await self._waited(client)
        while self._take(client, page, got) or len(got.labels) < events:
            async with asyncio.timeout(LIMIT_S):
                page = await self._ask(client, wait=WAIT_S)
        await self._start_next(client)
        return got

    async def _waited(self, client: Client) -> dict[str, Any]:
        assert self._next
        waited, self._next = self._next, None
        try:
            async with asyncio.timeout(LIMIT_S):
                page = await client.scene.woken(waited, self.url)
                return await self._ask(client, wait=WAIT_S) if is_silent(page) else page  # the wait was over before anything came
        except httpx.TransportError:  # the server was killed
            return await self._ask(client, wait=WAIT_S)

    async def _start_next(self, client: Client) -> None:
        """Asks, and goes on when the poll waits at the server. One whose wait is over before that is seen is asked again."""
        for _ in range(TRIES):
            self._next = asyncio.create_task(self._ask(client, wait=WAIT_S))
            if await client.scene.begins_to_wait(self._next, self.url):
                return
            page = await self._next
            assert is_silent(page), f"a poll was answered although nothing came: {page}"
        raise AssertionError("polls don't wait")

    async def cut(self) -> None:
        if self._next:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
            self._next = None


class Mixed:
    """A client that changes the way at every read, and whether it is sealed, with the cursor of the one before.

    It begins with the `first` one.
    """

    def __init__(self, doors: Sequence[Door], first: int) -> None:
        self._doors = itertools.islice(itertools.cycle(doors), first % len(doors), None)
        self._versions = itertools.islice(itertools.cycle(VERSIONS), first // len(doors) % len(VERSIONS), None)
        self._door = doors[0]

    async def read(self, client: Client, expected: Read) -> Got:
        await self._door.cut()
        self._door, client.version = next(self._doors), next(self._versions)
        return await self._door.read(client, expected)

    async def read_some(self, client: Client, expected: Read) -> Got:
        await self._door.cut()
        self._door, client.version = next(self._doors), next(self._versions)
        return await self._door.read_some(client, expected)

    async def lose_answer(self, client: Client) -> None:
        await self._door.lose_answer(client)

    async def sync(self, client: Client) -> None:
        await self._door.sync(client)

    async def cut(self) -> None:
        await self._door.cut()
