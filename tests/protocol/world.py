"""The servers of one log, and what can be done to that log: a Valkey, two relays, and the polling function."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
import msgspec
import valkey.asyncio

from relay.cursor import parse_cursor
from relay.event import Retention
from relay.log import APPEND, NewEvent, open_log, read_answer, shard_of
from relay.query import SEALED, VERSIONS
from tests.servers import SEAL_KEY, Relay, Valkey, free_port, token, wait_until_listening
from tests.streams import CODINGS, Stream, open_stream
from tests.waiting import LIMIT_S

# A node of a stream holds one entry, so that what a relay trims by whole nodes is exact.
ARGUMENTS = ("--stream-node-max-entries", "1")
ENV = {"RELAY_HEARTBEAT_SECONDS": "1", "SSE_ENCRYPTION_KEY": SEAL_KEY, "RELAY_MAX_STREAMS_PER_SUB": "5000"}
RETENTION_MS = 86_400_000  # the servers' default
SECOND_EVENTS = 5  # of a topic, which the second relay keeps
WAIT_S = "25"  # until something comes that must come
# Polls that nothing wakes, of a second each: together they take less of a server's time than the wait of one that something wakes.
IDLE_POLLS = 8
T = TypeVar("T")


@dataclass
class Function:
    """The polling API alone, in a server that knows nothing of the relay."""

    settings: Relay  # a relay that isn't started: its environment
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "Function":
        self.settings.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "granian", "--interface", "asgi", "--factory", "--no-ws", "--port", str(self.port)]
        with (self.settings.directory / "function.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "fallback.app:create_app"],
                env=self.settings.environ(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until_listening(self.port, self.process)
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(LIMIT_S)


class World:
    """One log of so many shards, and who serves it."""

    def __init__(self, directory: Path, shards: int) -> None:
        self.shards = shards
        self.valkey = Valkey(directory / "valkey", arguments=ARGUMENTS)
        env = {**ENV, "RELAY_SHARDS": str(shards)}
        self.first = Relay(directory / "first", self.valkey.url, env)
        self.second = Relay(directory / "second", self.valkey.url, {**env, "RELAY_RETENTION_EVENTS": str(SECOND_EVENTS)})
        self.function = Function(Relay(directory / "function", self.valkey.url, env))

    def start(self) -> "World":
        self.valkey.start()
        with ThreadPoolExecutor() as pool:
            for started in [pool.submit(server.start) for server in (self.first, self.second, self.function)]:
                started.result()
        return self

    def kill(self) -> None:
        for server in (self.first, self.second, self.function, self.valkey):
            if server.process:
                server.kill()

    def relays(self) -> list[Relay]:
        return [self.first, self.second]


class Record(msgspec.Struct, frozen=True):
    """An event that was published, as its publisher knows it."""

    label: str  # A3
    id: str
    n: int
    name: str
    data: Any


@dataclass
class Scene:
    """A world during one case: with topics of its own, and a record of what was published to them."""

    world: World
    http: httpx.AsyncClient
    valkey: "valkey.asyncio.Valkey"
    topics: dict[str, str] = field(default_factory=dict)  # by letter
    records: dict[str, list[Record]] = field(default_factory=dict)  # by letter, as published
    by_id: dict[str, Record] = field(default_factory=dict)
    by_key: dict[str, Record] = field(default_factory=dict)
    strangers: AsyncExitStack = field(default_factory=AsyncExitStack)  # streams that stay open beside the client
    copied: dict[bytes, bytes] = field(default_factory=dict)
    copied_records: dict[str, Record] = field(default_factory=dict)

    def topic(self, letter: str) -> str:
        """Letters go round the shards: A is in the first one, B in the second."""
        if letter not in self.topics:
            self.topics[letter] = new_topic(letter, (ord(letter) - ord("A")) % self.world.shards, self.world.shards)
        return self.topics[letter]

    def shard(self, letter: str) -> int:
        return shard_of(self.topic(letter), self.world.shards)

    def letter(self, topic: str) -> str:
        return next(letter for letter, name in self.topics.items() if name == topic)

    def find(self, letter: str, number: int) -> Record | None:
        """A topic's event by its number in the case; None if there is no such event yet."""
        published = self.records.get(letter, [])
        return published[number - 1] if number <= len(published) else None

    def is_past(self, cursor: str, letters: str) -> bool:
        """Whether all events of these topics are before a place."""
        places = parse_cursor(cursor).places
        newest = [parse_cursor(self.records[letter][-1].id).places for letter in letters if self.records.get(letter)]
        return all(place.at() <= places[shard].at() for each in newest for shard, place in each.items())

    # What is done to the log

    async def publish(self, relay: Relay, events: str, key: str | None = None, duplicate: bool = False) -> None:
        items: list[dict[str, Any]] = []
        labels: list[str] = []
        for event in events.split():
            letter, _, name = event.partition(":")
            number = len(self.records.setdefault(letter, [])) + 1 + sum(label[0] == letter for label in labels)
            labels.append(f"{letter}{number}")
            data = {"label": labels[-1], "text": "é\u2028\n\x00"}
            items.append({"topic": self.topic(letter), "event": name or "update", "data": data})
        if duplicate:
            assert key is not None
            first = self.by_key[key]
            items[0]["data"], labels = first.data, [first.label]
        answers = await self._post(relay, items, key)
        for item, label, answer in zip(items, labels, answers, strict=True):
            assert answer["duplicate"] is duplicate, answer
            record = Record(label, answer["id"], answer["n"], item["event"], item["data"])
            if duplicate:
                assert key is not None
                assert record == self.by_key[key]
                continue
            assert record.id not in self.by_id
            self.records[label[0]].append(record)
            self.by_id[record.id] = record
            if key:
                self.by_key[key] = record

    async def publish_unread(self, letters: str) -> None:
        keeps = Retention(RETENTION_MS, 10_000, 100_000, RETENTION_MS)
        async with open_log(self.world.valkey.url, self.world.shards, keeps) as log:
            for letter in letters.split():
                label = f"{letter}{len(self.records.setdefault(letter, [])) + 1}"
                event, shard = NewEvent(self.topic(letter), "update", json.dumps(label).encode()), self.shard(letter)
                keys, arguments = log.packed(shard, [event])
                async with self.valkey.pipeline(transaction=True) as pipe:
                    pipe.execute_command("EVAL", APPEND.text, len(keys), *keys, *arguments)
                    pipe.xtrim(f"{{relay:{shard}}}:journal", maxlen=0, approximate=False)
                    ((answer,), _) = await pipe.execute()
                appended = read_answer(event, shard, answer).event
                self.records[letter].append(Record(label, appended.cursor(shard), appended.n, "update", label))
                self.by_id[appended.cursor(shard)] = self.records[letter][-1]

    async def _post(self, relay: Relay, items: list[dict[str, Any]], key: str | None) -> list[dict[str, Any]]:
        if len(items) > 1:
            answer = await self.http.post(f"{relay.url}/stream/publish", json=items)
            assert answer.status_code == 200, answer.text
            return list(answer.json()["results"])
        item = items[0]
        body = {"event": item["event"], "data": item["data"]}
        headers = {"idempotency-key": key} if key else {}
        answer = await self.http.post(f"{relay.url}/stream/{item['topic']}", json=body, headers=headers)
        assert answer.status_code in (200, 201), answer.text
        assert answer.json()["duplicate"] is (answer.status_code == 200)
        return [answer.json()]

    async def trim(self, letter: str, keep: int) -> None:
        key = f"{{relay:{self.shard(letter)}}}:topic:{self.topic(letter)}"
        await self.valkey.xtrim(key, maxlen=keep, approximate=False)
        await self.drop_rings()

    async def forget(self, letters: str) -> None:
        for letter in letters:
            prefix = f"{{relay:{self.shard(letter)}}}:"
            await self.valkey.delete(f"{prefix}topic:{self.topic(letter)}", f"{prefix}head:{self.topic(letter)}")
            await self.valkey.xtrim(f"{prefix}journal", maxlen=0, approximate=False)

    async def drop_rings(self) -> None:
        """A count that is left out looks to a tail like an entry that was trimmed before it was read."""
        before = [await self._restarts(relay) for relay in self.world.relays()]
        for shard in range(self.world.shards):
            await cast(Awaitable[int], self.valkey.hincrby(f"{{relay:{shard}}}:shard", "s", 1))
        await self._fill(range(self.world.shards))
        await self._restarted(before, self.world.shards)

    async def flush(self, letter: str, quiet: bool) -> None:
        before = [await self._restarts(relay) for relay in self.world.relays()]
        lost = [self.shard(letter)] if letter else list(range(self.world.shards))
        if letter:
            keys = [key async for key in self.valkey.scan_iter(f"{{relay:{lost[0]}}}:*", count=1000)]
            await self.valkey.delete(*keys)
        else:
            await self.valkey.flushall()
        self.by_id = {id: record for id, record in self.by_id.items() if self.shard(record.label[0]) not in lost}
        self.by_key.clear()
        if not quiet:
            await self._fill(lost)
        await self._restarted(before, len(lost))

    async def copy(self) -> None:
        self.copied = {key: await self.valkey.dump(key) async for key in self.valkey.scan_iter("{relay:*", count=1000)}
        self.copied_records = dict(self.by_id)

    async def restore(self, emptied: bool) -> None:
        if emptied:
            await self.flush("", quiet=True)
        before = [await self._restarts(relay) for relay in self.world.relays()]
        async with self.valkey.pipeline(transaction=True) as pipe:
            pipe.flushall()
            for key, value in self.copied.items():
                pipe.restore(key, 0, value)
            await pipe.execute()
        self.by_id = dict(self.copied_records)
        self.by_key.clear()
        await self._restarted(before, 1)

    async def _fill(self, shards: Iterable[int]) -> None:
        """An event in each of these shards that is of no topic of the case."""
        topics = [new_topic("filler", shard, self.world.shards) for shard in shards]
        await self._post(self.world.first, [{"topic": topic, "event": "filler", "data": None} for topic in topics], None)

    # Who else there is

    async def let_in_strangers(self, letter: str, n: int) -> None:
        """The first in each audience of a topic: whoever comes after them has the same bytes."""
        url = f"/stream/{self.topic(letter)}"
        for relay in self.world.relays():
            page = (await self.http.get(f"{relay.url}{url}/v1/poll")).raise_for_status().json()
            position = {"last-event-id": with_number(page["cursor"], n)}
            for version, coding in [*product(VERSIONS[:1], CODINGS), (SEALED, "identity")]:
                headers = {**position, "accept-encoding": coding}
                stream = await self.strangers.enter_async_context(
                    open_stream(self.http, f"{relay.url}{url}/{version}/live", headers=headers)
                )
                hello = await stream.next()
                assert (hello.json()["resume"], hello.last_event_id) == ("exact", position["last-event-id"])
                self.strangers.callback(hold, stream)

    # What the servers say of themselves

    async def status(self, relay: Relay) -> dict[str, Any]:
        """Asked for so often that a real client's own work would take most of the time."""
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        try:
            writer.write(b"GET /stream/status HTTP/1.0\r\n\r\n")
            answer = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
        return dict(json.loads(answer.partition(b"\r\n\r\n")[2]))

    async def _restarts(self, relay: Relay) -> int:
        """Of its own tails. The status tells the fleet's, in which the others' are some seconds old."""
        figures = (await self.http.get(f"{relay.url}/metrics")).raise_for_status().text
        (line,) = [line for line in figures.splitlines() if line.startswith("relay_tail_restarts_total ")]
        return int(float(line.split()[1]))

    async def _restarted(self, before: list[int], more: int) -> None:
        """Returns when each relay's tails have noticed what became of the log."""
        async with asyncio.timeout(LIMIT_S):
            for relay, restarts in zip(self.world.relays(), before, strict=True):
                while await self._restarts(relay) < restarts + more:
                    await self._end_blocks()

    async def _end_blocks(self) -> None:
        """Has the tails, which block for a second, look now. Whoever else blocks is told that nothing came, and asks again."""
        for client in await self.valkey.client_list():
            if "b" in client["flags"]:
                await self.valkey.client_unblock(client["id"])

    async def begins_to_wait(self, poll: "asyncio.Task[Any]", url: str) -> bool:
        """Returns when it waits at this server. False: it was answered before that was seen."""
        async with asyncio.timeout(LIMIT_S):
            while not await self.waits(url):
                if poll.done():
                    return False
        return True

    async def woken(self, poll: "asyncio.Task[T]", url: str) -> T:
        """The answer to a poll that waits at this server and that something must have woken.

        At the end of its wait it would be told the same, so it counts that it is told before. The clock is the server's own: whatever
        has that stand still also holds up the polls that nothing wakes, which are asked one after the other meanwhile.
        """
        idle = f"{url}/stream/{new_topic('idle', 0, self.world.shards)}/v1/poll?wait=1"
        for _ in range(IDLE_POLLS):
            if (await asyncio.wait([poll], timeout=1))[0]:
                break
            (await self.http.get(idle)).raise_for_status()
        assert poll.done(), "a poll goes on waiting although there is something for it"
        return await poll

    async def waits(self, url: str) -> bool:
        """Whether somebody waits at this server for something to come."""
        relay = next((relay for relay in self.world.relays() if relay.url == url), None)
        if relay:
            return int((await self.status(relay))["waiting_polls"]) > 0
        # The tails block on the journals, and a waiting poll of the function on streams of topics.
        return int((await self.valkey.info("clients"))["total_blocking_keys"]) > self.world.shards


def hold(stream: Stream) -> None:
    """Whose answer nobody reads any more is closed once nothing refers to it."""


def with_number(cursor: str, n: int) -> str:
    """A single topic's cursor with another number in it."""
    place, _, tag = cursor.rpartition("-")
    return f"{place.rpartition('.')[0]}.{n}-{tag}"


def new_topic(kind: str, shard: int, shards: int) -> str:
    while True:
        topic = f"tests/{kind}/{secrets.token_hex(6)}"
        if shard_of(topic, shards) == shard:
            return topic


def open_http() -> httpx.AsyncClient:
    """A client with a token for everything. Without TLS here, loading its certificates would be most of a test's time."""
    headers = {"authorization": f"Bearer {token()}"}
    return httpx.AsyncClient(headers=headers, timeout=LIMIT_S, verify=False)
