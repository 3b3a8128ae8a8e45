"""The log in Valkey: append, read a range, follow the end, wait for more.

The one module that knows the events' keys. Each shard is one hash slot (`{relay:N}`), so that its scripts are atomic and a cluster
spreads shards, never splits one:

    {relay:0}:journal        stream: every event of the shard, in the one order that all its topics share
    {relay:0}:shard          hash: count, last id, epochs; from the first contact on, so that `0.0-0` is no end of anything
    {relay:0}:topic:<topic>  stream: the topic's events, under the journal's ids
    {relay:0}:head:<topic>   hash: the topic's number and last id; outlives its events
    {relay:0}:idem:<topic> <key>   hash: the first answer to an idempotency key
    {relay:0}:waited         nothing: written so that there is a write to wait for (RELAY_WAIT_REPLICAS)
    {relay:0}:shards         how many shards there are
    {relay:0}:fleet          hash: what each process says of itself
    {relay:0}:rate:<name>    when what was taken from a limit is paid back, in µs

An append is never repeated by the client library: its outcome is unknown when a connection dies, and only the publisher
can say, with a key, that it is the same one again. So an error here is `LogUnavailable` and nothing is retried.

Appends that come while a call is under way go out in one next call (`append`): under load, calls grow instead of queues.
"""

import asyncio
import hashlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from relay.cursor import Place
from relay.errors import Fenced, LogAway, LogUnavailable, NotReplicated, SettingsError
from relay.event import Event, Retention
from relay.lease import Fence
from relay.servers import ANSWER_S, Script, Server, Servers, load_script
from relay.span import Head, ShardRead, TopicRead

APPEND_EVENTS_MAX = 100  # a call; some 5 ms in which the server does nothing else
APPEND_BYTES_MAX = 1 << 20
WAITING_EVENTS_MAX = 10_000  # appends of this process that haven't been sent yet
WAITING_BYTES_MAX = 64 << 20
EPOCH_BYTES = 4
FLEET = "{relay:0}:fleet"
DESCRIBED = (
    "valkey_version", "used_memory", "maxmemory", "maxmemory_policy", "role", "uptime_in_seconds", "server_time_usec",
    "aof_enabled", "aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status",
)  # fmt: skip
Item = TypeVar("Item")


class NewEvent(msgspec.Struct, frozen=True):
    """An event that isn't in the log yet."""

    topic: str
    name: str
    data: bytes  # JSON on one line
    key: str | None = None  # idempotency key

    def fingerprint(self) -> bytes:
        """Tells whether a key is used again for the same event."""
        if self.key is None:
            return b""
        return hashlib.blake2b(self.name.encode() + b" " + self.data, digest_size=16).digest()


class Appended(msgspec.Struct, frozen=True):
    """The log's answer to one event: where it is, and whether it had been there already."""

    event: Event
    shard: int
    duplicate: bool = False
    reused: bool = False  # the key belongs to another event, which is the one named here; nothing was appended


class Retained(msgspec.Struct, frozen=True):
    """What the log has of a topic now."""

    topic: str
    events: int
    first: Event | None
    last: Event | None
    bytes: int  # of its stream in the server's memory, estimated by a sample


class Bounds(msgspec.Struct, frozen=True):
    """The most that one read takes from the log."""

    entries: int  # over all topics; at least one of each
    data_bytes: int


@lru_cache(maxsize=10_000)
def shard_of(topic: str, shards: int) -> int:
    return int.from_bytes(hashlib.blake2s(topic.encode(), digest_size=4).digest(), "big") % shards


SCRIPTS = ("append", "read", "contact", "rewound", "report", "rate")
APPEND, READ, CONTACT, REWOUND, REPORT, RATE = map(load_script, SCRIPTS)


class Log:
    """One log, of one or more shards. Opened by `open_log`."""

    def __init__(self, url: str, shards: int, retention: Retention, answer_s: float = ANSWER_S) -> None:
        self.shards = shards
        self.retention = retention
        self.servers = Servers(url, answer_s)
        # Shards that the tail can't reach: whoever asks is told at once, instead of finding out for itself.
        self.away: set[int] = set()
        self._appenders = [Appender(self.servers, shard, retention) for shard in range(shards)]

    def shard(self, topic: str) -> int:
        return shard_of(topic, self.shards)

    def by_shard(self, topics: Iterable[str]) -> dict[int, list[str]]:
        grouped: dict[int, list[str]] = {}
        for topic in topics:
            grouped.setdefault(self.shard(topic), []).append(topic)
        return grouped

    async def check_shards(self) -> None:
        """Raises LogUnavailable, or SettingsError where the log was made with another number of shards."""
        async with self.servers.of(0) as server:
            stored = int(await server.call("GET", "{relay:0}:shards") or 0)
            if not stored:  # asked first, since a log that is full takes no SET
                await server.call("SET", "{relay:0}:shards", self.shards, "NX")
                stored = int(await server.call("GET", "{relay:0}:shards") or 0)
        if stored != self.shards:
            raise SettingsError([f"RELAY_SHARDS={self.shards}, but the log has {stored}: set RELAY_SHARDS={stored}"])

    async def append(self, events: Sequence[NewEvent]) -> list[Appended]:
        """Appends in order within each shard, and answers in the order given. Raises LogUnavailable; then some may be in."""
        for event in events:
            self._check_reachable(self.shard(event.topic))
        if len(events) == 1:
            return [await self._appenders[self.shard(events[0].topic)].append(events[0])]
        answers: list[asyncio.Future[Appended]] = []
        try:
            for event in events:
                answers.append(self._appenders[self.shard(event.topic)].add(event))
        except LogUnavailable:
            for answer in answers:
                answer.cancel()
            raise
        return list(await asyncio.gather(*answers))

    async def append_fenced(self, events: Sequence[NewEvent], fence: Fence) -> list[Appended]:
        """Appends in order within each shard, apart from what others append. Raises Fenced once another holder has the lease, or
        LogUnavailable; then some may be in, and the same call repeated appends those with a key only once."""
        answers: dict[int, Appended] = {}
        for shard in {self.shard(event.topic): None for event in events}:
            self._check_reachable(shard)
            own = [index for index, event in enumerate(events) if self.shard(event.topic) == shard]
            for part in parts(own, lambda index: len(events[index].data)):
                answers |= zip(part, await self._appenders[shard].call([events[index] for index in part], fence), strict=True)
        return [answers[index] for index in range(len(events))]

    async def append_with(
        self, script: Script, shard: int, event: NewEvent, keys: Sequence[str] = (), arguments: Sequence[str | int] = ()
    ) -> Any:
        """Appends an event that has no topic of readers, by a script that ends as the append script does. Returns its answer."""
        appended = self.packed(shard, [event])
        async with self.servers.of(shard) as server:
            return await script.call(server, [*appended[0], *keys], [*appended[1], *arguments])

    def packed(self, shard: int, events: list[NewEvent]) -> tuple[list[str], list[str | int | bytes]]:
        """The keys and the arguments of the append script."""
        return self._appenders[shard].packed(events)

    async def find_reused_key(self, events: Sequence[NewEvent]) -> int | None:
        """The index of the first event whose key is already another event's, in the log or among these."""
        keyed = [(index, event) for index, event in enumerate(events) if event.key is not None]
        fingerprints: dict[tuple[str, str | None], bytes] = {}
        for index, event in keyed:
            if fingerprints.setdefault((event.topic, event.key), event.fingerprint()) != event.fingerprint():
                return index
        for shard in {self.shard(event.topic) for _, event in keyed}:
            self._check_reachable(shard)
            own = [(index, event) for index, event in keyed if self.shard(event.topic) == shard]
            async with self.servers.of(shard) as server:
                stored = await server.call_many([("HGET", idempotency_key(shard, event), "hash") for _, event in own])
            for (index, event), hash in zip(own, stored, strict=True):
                if hash not in (None, event.fingerprint()):
                    return index
        return None

    async def read(
        self,
        shard: int,
        place: Place,
        topics: Sequence[str],
        bounds: Bounds,
        *,
        newest: int | None = None,
        starts: Mapping[str, tuple[int, int]] = {},
    ) -> ShardRead:
        """Topics of one shard after a place, or their `newest` events.

        `starts` names topics that are read only after another, later id. No topics: only whether the place is valid.
        """
        self._check_reachable(shard)
        return await self.look(shard, place, topics, bounds, newest=newest, starts=starts)

    async def look(
        self,
        shard: int,
        place: Place,
        topics: Sequence[str] = (),
        bounds: Bounds = Bounds(1, 1),
        *,
        newest: int | None = None,
        starts: Mapping[str, tuple[int, int]] = {},
    ) -> ShardRead:
        """The same, even if the shard was away a moment ago: the tail's way to find out that it is back."""
        count = max(1, bounds.entries // max(1, len(topics)))
        keys = [f"{{relay:{shard}}}:shard", f"{{relay:{shard}}}:journal"]
        arguments: list[str | int] = [place.epoch, f"{place.ms}-{place.s}", count]
        arguments += [bounds.data_bytes // max(1, len(topics)), "" if newest is None else newest, self.retention.retention_ms]
        for topic in topics:
            keys += [f"{{relay:{shard}}}:topic:{topic}", f"{{relay:{shard}}}:head:{topic}"]
            start = starts.get(topic)
            arguments.append(f"{start[0]}-{start[1]}" if start and start > place.at() else "")
        async with self.servers.of(shard) as server:
            answer = await READ.call(server, keys, arguments)
            while answer[0] == b"new":  # and again where the log is lost between the two
                await CONTACT.call(server, keys[:1], [new_epoch()])
                answer = await READ.call(server, keys, arguments)
        end = Place(answer[1].decode(), *parse_id(answer[2]))
        if answer[0] == b"reset":
            return ShardRead(shard, True, end, int(answer[3]), [])
        found = [read_topic(topic, part) for topic, part in zip(topics, answer[5], strict=True)]
        return ShardRead(shard, False, end, int(answer[3]), found, untraced=bool(answer[4]))

    async def end_rewound(self, shard: int, known: Place) -> bool:
        """Ends the epoch of a place that was the log's for certain, if the log has been replaced by a copy from before it."""
        keys = [f"{{relay:{shard}}}:shard", f"{{relay:{shard}}}:journal"]
        async with self.servers.of(shard) as server:
            return bool(await REWOUND.call(server, keys, [known.epoch, f"{known.ms}-{known.s}", new_epoch()]))

    def _check_reachable(self, shard: int) -> None:
        if shard in self.away:
            raise LogAway("it was away a moment ago")

    async def follow(self, shard: int, place: Place, most: int, block_ms: int) -> list[Event]:
        """What the journal has after a place; waits up to `block_ms` for something to come. Says nothing of gaps."""
        journal = f"{{relay:{shard}}}:journal"
        command = ("XREAD", "COUNT", most, "BLOCK", block_ms, "STREAMS", journal, f"{place.ms}-{place.s}")
        async with self.servers.of(shard) as server:
            answer = await server.call(*command, block_s=block_ms / 1000)
        return [read_entry(id, fields) for _, entries in answer or () for id, fields in entries]

    async def wait(self, places: Mapping[int, Place], topics: Iterable[str], wait_s: float) -> None:
        """Returns when a topic has something after its place, or when the time is over."""

        async def wait_on(shard: int, names: list[str]) -> None:
            place = places[shard]
            keys = [f"{{relay:{shard}}}:topic:{name}" for name in names]
            ids = [f"{place.ms}-{place.s}"] * len(names)
            block_ms = max(1, int(wait_s * 1000))
            async with self.servers.of(shard) as server:
                await server.call("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *keys, *ids, block_s=wait_s)

        waits = [asyncio.ensure_future(wait_on(*part)) for part in self.by_shard(topics).items()]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in done:
                wait.result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def retained(self, topics: Iterable[str]) -> list[Retained]:
        """For people who look after it. Not in one step: where events come and go, the parts may be of different moments."""
        found: list[Retained] = []
        for shard, names in self.by_shard(topics).items():
            self._check_reachable(shard)
            commands: list[tuple[str | int, ...]] = []
            for name in names:
                key = f"{{relay:{shard}}}:topic:{name}"
                commands += [("XLEN", key), ("XRANGE", key, "-", "+", "COUNT", 1), ("XREVRANGE", key, "+", "-", "COUNT", 1)]
                commands.append(("MEMORY", "USAGE", key))
            async with self.servers.of(shard) as server:
                answers = await server.call_many(commands)
            for index, name in enumerate(names):
                count, first, last, size = answers[4 * index : 4 * index + 4]
                oldest, newest = (read_entry(*entries[0]) if entries else None for entries in (first, last))
                found.append(Retained(name, count, oldest, newest, size or 0))
        return sorted(found, key=lambda one: one.topic)

    async def describe(self, shard: int = 0) -> dict[str, str]:
        """The own figures of a shard's server, for people who look after it."""
        async with self.servers.of(shard) as server:
            info = (await server.call("INFO")).decode()
        found = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        return {name: found[name] for name in DESCRIBED if name in found}

    async def take(self, name: str, per_s: int, number: int, burst_s: int) -> float:
        """Takes a number from a limit. Returns 0, or in how many seconds to come back."""
        shard = self.shard(name)
        self._check_reachable(shard)
        each_us = 1e6 / per_s
        async with self.servers.of(shard) as server:
            refused_us = await RATE.call(server, [f"{{relay:{shard}}}:rate:{name}"], [f"{each_us:.3f}", number, int(burst_s * 1e6)])
        return int(refused_us) / 1e6

    async def report(self, process: str, figures: bytes, life_ms: int) -> None:
        """Leaves what a process says of itself, for so long."""
        self._check_reachable(0)
        async with self.servers.of(0) as server:
            await REPORT.call(server, [FLEET], [process, figures, life_ms])

    async def reports(self, life_ms: int) -> dict[str, bytes]:
        """What processes have said of themselves within this time, by process."""
        self._check_reachable(0)
        async with self.servers.of(0) as server:
            (seconds, microseconds), stored = await server.call_many([("TIME",), ("HGETALL", FLEET)])
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        parted = {name.decode(): value.partition(b" ") for name, value in zip(stored[::2], stored[1::2], strict=True)}
        return {name: figures for name, (at_ms, _, figures) in parted.items() if int(at_ms) + life_ms >= now_ms}

    async def retract(self, process: str) -> None:
        self._check_reachable(0)
        async with self.servers.of(0) as server:
            await server.call("HDEL", FLEET, process)

    async def close(self) -> None:
        for appender in self._appenders:
            await appender.close()
        await self.servers.close()


class Appender:
    """Sends a shard's appends, one call at a time; what comes meanwhile waits for the next call, in order."""

    def __init__(self, servers: Servers, shard: int, retention: Retention) -> None:
        self.servers = servers
        self.shard = shard
        self.retention = retention
        self._waiting: deque[tuple[NewEvent, asyncio.Future[Appended]]] = deque()
        self._waiting_bytes = 0
        self._sending: asyncio.Task[Any] | None = None  # whoever makes the call that is under way

    async def append(self, event: NewEvent) -> Appended:
        """One event. Where no call is under way, it is made in the caller's own task, which spares it two turns of the loop."""
        if self._sending is not None:
            return await self.add(event)
        self._sending = asyncio.current_task()
        try:
            return (await self.call([event]))[0]
        except LogUnavailable as error:
            self._fail(self._take_all(), error)
            raise
        finally:
            self._sending = asyncio.create_task(self._send_all()) if self._waiting else None

    def add(self, event: NewEvent) -> asyncio.Future[Appended]:
        if len(self._waiting) >= WAITING_EVENTS_MAX or self._waiting_bytes >= WAITING_BYTES_MAX:
            raise LogUnavailable("more events wait to be appended than this process holds")
        answer: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, answer))
        self._waiting_bytes += len(event.data)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        return answer

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._send(self._take())
        finally:
            self._sending = None

    def _take(self) -> list[tuple[NewEvent, asyncio.Future[Appended]]]:
        part: list[tuple[NewEvent, asyncio.Future[Appended]]] = []
        size = 0
        while self._waiting and len(part) < APPEND_EVENTS_MAX and size < APPEND_BYTES_MAX:
            event, answer = self._waiting.popleft()
            self._waiting_bytes -= len(event.data)
            if not answer.done():  # else nobody waits for it any more: not sent, so not in the log
                part.append((event, answer))
                size += len(event.data)
        return part

    def _take_all(self) -> list[tuple[NewEvent, asyncio.Future[Appended]]]:
        """After a call that failed, what waits isn't sent: the rest of a batch must not be in the log before what its publisher
        will repeat, and nobody waits for one call after the other to fail."""
        part = list(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        return part

    async def _send(self, part: list[tuple[NewEvent, asyncio.Future[Appended]]]) -> None:
        try:
            answers = await self.call([event for event, _ in part]) if part else []
        except LogUnavailable as error:
            return self._fail([*part, *self._take_all()], error)
        except Exception as error:  # each of those who wait for this call raises it
            return self._fail(part, error)
        for (_, future), answer in zip(part, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    def _fail(self, part: list[tuple[NewEvent, asyncio.Future[Appended]]], error: Exception) -> None:
        for _, future in part:
            if not future.done():
                future.set_exception(error)

    def packed(self, events: list[NewEvent]) -> tuple[list[str], list[str | int | bytes]]:
        """The keys and the arguments of the append script."""
        prefix = f"{{relay:{self.shard}}}:"
        keys = [prefix + "journal", prefix + "shard"]
        kept = self.retention
        arguments: list[str | int | bytes] = [kept.retention_ms, kept.journal_events, kept.topic_events]
        arguments += [kept.idempotency_ms, new_epoch()]
        for event in events:
            head = f"{prefix}head:{event.topic}"
            keys += [f"{prefix}topic:{event.topic}", head, idempotency_key(self.shard, event) if event.key else head]
            arguments += [event.topic, event.name, event.data, event.fingerprint()]
        return keys, arguments

    async def call(self, events: list[NewEvent], fence: Fence | None = None) -> list[Appended]:
        """One call of the script, which waits for no other."""
        keys, arguments = self.packed(events)
        if fence:
            arguments += [fence.field, fence.value]
        async with self.servers.of(self.shard) as server:
            if self.retention.replicas:
                answers = await self._call_and_wait(server, keys, arguments)
            else:
                answers = await APPEND.call(server, keys, arguments)
        if answers == b"fenced":
            raise Fenced("another process has the lease now")
        return [read_answer(event, self.shard, answer) for event, answer in zip(events, answers, strict=True)]

    async def _call_and_wait(self, server: Server, keys: list[str], arguments: list[str | int | bytes]) -> Any:
        """WAIT looks at the last write of its own connection. A key that is known already writes nothing, and would be answered as
        if all had it, so there is always a write before it."""
        least, within_s = self.retention.replicas, self.retention.replicas_s
        written = ("SET", f"{{relay:{self.shard}}}:waited", 1)
        wait = ("WAIT", least, max(1, round(within_s * 1000)))  # 0 would be for ever
        answers, _, have = await APPEND.call_and(server, keys, arguments, written, wait, block_s=within_s)
        if have < least:
            raise NotReplicated(f"{have} of {least} replicas had what was published after {within_s:g} s")
        return answers

    async def close(self) -> None:
        if self._sending:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        for _, answer in self._waiting:
            if not answer.done():
                answer.set_exception(LogUnavailable("the process ends"))


def parts(items: Sequence[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """In order, each no larger than a call may be, or of one item."""
    part: list[Item] = []
    size = 0
    for item in items:
        if part and (len(part) == APPEND_EVENTS_MAX or size + size_of(item) > APPEND_BYTES_MAX):
            yield part
            part, size = [], 0
        part.append(item)
        size += size_of(item)
    if part:
        yield part


@asynccontextmanager
async def open_log(url: str, shards: int, retention: Retention, answer_s: float = ANSWER_S) -> AsyncIterator[Log]:
    log = Log(url, shards, retention, answer_s)
    try:
        yield log
    finally:
        await log.close()


def new_epoch() -> str:
    """A token that no other life of a log has, of `0-9a-z`, and never the earliest place's `0`."""
    return "e" + secrets.token_hex(EPOCH_BYTES)[:7]


def idempotency_key(shard: int, event: NewEvent) -> str:
    return f"{{relay:{shard}}}:idem:{event.topic} {event.key}"


def parse_id(id: bytes) -> tuple[int, int]:
    ms, _, s = id.partition(b"-")
    return int(ms), int(s)


def read_entry(id: bytes, fields: list[bytes]) -> Event:
    """An entry of a stream, with the fields in the order in which the append script writes them.

    Each process reads each event of the log, so this is one of its hot spots.
    """
    _, topic, _, epoch, _, n, _, before, _, name, _, data = fields
    ms, s = id.split(b"-")
    before_ms, before_s = before.split(b"-")
    place = Place(epoch.decode(), int(ms), int(s))
    return Event(topic.decode(), name.decode(), int(n), place, (int(before_ms), int(before_s)), data)


def read_topic(topic: str, part: list[Any]) -> TopicRead:
    entries, ended, (n, last, first_n), start = part
    events = [read_entry(id, fields) for id, fields in entries]
    head = Head(int(n), parse_id(last), int(first_n)) if n else None
    ended = bool(ended) or (head is not None and events != [] and events[-1].place.at() == head.last)
    return TopicRead(topic, events, ended, head, parse_id(start))


def read_answer(event: NewEvent, shard: int, answer: list[Any]) -> Appended:
    id, n, status, epoch = answer
    place = Place(epoch.decode(), *parse_id(id))
    known = Event(event.topic, event.name, int(n), place, (0, 0), event.data)
    return Appended(known, shard, duplicate=status == 1, reused=status == 2)
