"""The rules' world on real servers: what is done to their log is done to the model's, and the same promise judges what they say.

    async with open_servers(world) as servers:
        await play(servers, Life(asks, operations))      # raises Violation where the promise is broken

A relay and the model append by one rule, so the model's log can be kept equal to the real one to the last id: each answer to a
publisher must be the model's own, with the real milliseconds. From then on `promise.Client` judges real streams and pages as it
judges the model's, and a page must tell what the model's would, from the same cursor.

A relay decides itself when it reads on, so no sequence is quite the same twice: what a client is told of may come from a ring or
from the log, before or after what happens next. The promise is the same.

What stands for what takes too long: a topic whose stream was deleted for one that expired (its head lives on); with its head, and
with the journal, for one that is forgotten; a cursor of this moment with an older time in it for one that was kept for as long; a
count that is left out for entries that were trimmed before a tail came to them; another `master_replid` for a restart or a failover
that lost nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, cast
from urllib.parse import urlencode

import httpx
import valkey.asyncio

from relay import cursor as real
from relay.cursor import parse_cursor, write_cursor
from relay.event import Retention
from relay.log import Log as RealLog
from relay.log import open_log
from tests.protocol.world import RETENTION_MS, SECOND_EVENTS, World, new_topic, open_http
from tests.streams import Block, Stream, open_stream
from tests.waiting import LIMIT_S

from . import model
from .model import EARLIEST, OLD_MS, Appended, Ask, Bye, Cursor, Draft, Env, Event, Frame, Gap, Hello, Log, Page, Place, Shape, Shard, Sync
from .promise import Client, Violation

DEBUG = ("--enable-debug-command", "local")  # arguments of a Valkey that can take another `master_replid`
FILLERS = "XYZ"  # a topic for each shard that nobody reads
DOORS = 3  # two relays, and the polling function
LARGE = 1000
WAIT_S = 25  # the longest that a page may wait
PAGES_MAX = 200
BLOCKS_MAX = 2000
OLDER_MAX = 8  # cursors that a client keeps to come back with

T = TypeVar("T")
Start = Literal["kept", "older", "now", "earliest", "ancient"]


class Publish(NamedTuple):
    """One event by itself, several as a batch."""

    drafts: tuple[Draft, ...]
    by: int = 0

    def __repr__(self) -> str:
        events = (f"{draft.topic}:{draft.name}={draft.data}{f' by key {draft.key}' if draft.key else ''}" for draft in self.drafts)
        return f"Publish({', '.join(events)}, by={self.by})"


class Trim(NamedTuple):
    topic: str
    keep: int
    unseen: bool = False  # and nobody has it in a ring


class TrimJournal(NamedTuple):
    shard: int
    keep: int


class Expire(NamedTuple):
    topic: str


class Forget(NamedTuple):
    topic: str


class Miss(NamedTuple):
    """The tails find entries missing before these, so all rings are empty and all readers are behind."""

    published: Publish


class Renew(NamedTuple):
    """Another life of the server: an epoch ends."""


class Flush(NamedTuple):
    quiet: bool = False  # nothing comes after it by which a tail would notice


class Connect(NamedTuple):
    client: int
    process: int = 0
    start: Start = "kept"
    most: int = 0  # blocks that it reads at once
    during: Publish | None = None


class Read(NamedTuple):
    client: int
    most: int = 1000


class Cut(NamedTuple):
    client: int


class Poll(NamedTuple):
    client: int
    door: int = 0
    start: Start = "kept"
    limit: int = 100
    pages: int = 1
    during: Publish | None = None


class LongPoll(NamedTuple):
    """It waits until something is published, and at last that is something for it."""

    client: int
    door: int
    during: Publish | None = None


class Choose(NamedTuple):
    client: int
    topics: str


class Rush(NamedTuple):
    """All clients come back at once, each to its process, while one thing after the other is published."""

    processes: tuple[int, ...]
    during: tuple[Publish, ...]


Operation = Publish | Trim | TrimJournal | Expire | Forget | Miss | Renew | Flush | Connect | Read | Cut | Poll | LongPoll | Choose | Rush


class Life(NamedTuple):
    asks: tuple[Ask, ...]
    operations: tuple[Operation, ...]


class Mirror(Log):
    """A real log's events, under their real places. In a test nothing gets too old; who appends says how much is too much."""

    def _trimmed(self, events: tuple[Event, ...], events_max: int) -> tuple[Event, ...]:
        return events

    def _open_epoch(self, now: int, replid: int) -> None:
        if self.epoch:
            self.closed = {**self.closed, self.epoch: (self.last, now)}
        self.epoch, self.replid = next(self.env.tokens), replid

    def keep(self, topic: str, most: int) -> None:
        if topic in self.streams:
            kept = self.streams[topic]
            self.streams = {**self.streams, topic: kept[max(0, len(kept) - most) :]}

    def expire_topic(self, topic: str) -> None:
        self.streams = {name: events for name, events in self.streams.items() if name != topic}

    def forget(self, topic: str) -> None:
        self.expire_topic(topic)
        self.heads = {name: head for name, head in self.heads.items() if name != topic}


class MirrorShard(Shard):
    log: Mirror

    def __init__(self, env: Env, number: int) -> None:
        super().__init__(env, number)
        self.log = self.replica = Mirror(env)

    def flush(self) -> None:
        self._now_holds(Mirror(self.env))


@dataclass
class Servers:
    world: World
    http: httpx.AsyncClient
    valkey: valkey.asyncio.Valkey
    log: RealLog
    limit_s: float = LIMIT_S  # for what must come

    @property
    def doors(self) -> list[str]:
        return [self.world.first.url, self.world.second.url, self.world.function.url]


@asynccontextmanager
async def open_servers(world: World) -> AsyncIterator[Servers]:
    keeps = Retention(RETENTION_MS, 10_000, 100_000, RETENTION_MS)
    async with (
        open_http() as http,
        valkey.asyncio.Valkey.from_url(world.valkey.url) as client,
        open_log(world.valkey.url, world.shards, keeps) as log,
    ):
        yield Servers(world, http, client, log)


class Reality:
    """The servers during one life, and the model of their log. Topics are the life's own, and called by letters."""

    def __init__(self, servers: Servers, asks: Sequence[Ask]) -> None:
        self.servers = servers
        self.shape = Shape(shards=servers.world.shards)
        self.env = Env(self.shape)
        self.shards = [MirrorShard(self.env, number) for number in range(self.shape.shards)]
        self.topics = {
            letter: new_topic(letter, self.shape.shard_of(letter), self.shape.shards) for letter in (*self.shape.topics, *FILLERS)
        }
        self.letters = {topic: letter for letter, topic in self.topics.items()}
        self.events: dict[str, Event] = {}  # by the id that their publisher got; those of lost logs too
        self.epochs = {"0": 0}  # a real epoch's number in the model
        self.readers = [Reader(self, ask) for ask in asks]
        self.began: dict[int, int] = {}  # by shard, its count before this life's first event
        self.tell_time()

    def tell_time(self) -> None:
        """The model's clock, set so that what is old by its retention is what is old by the real one."""
        self.env.now = int(time.time() * 1000) - 2 * RETENTION_MS + OLD_MS

    def key(self, kind: str, letter: str) -> str:
        return f"{{relay:{self.shape.shard_of(letter)}}}:{kind}:{self.topics[letter]}"

    # What is done to the log, and to its model

    async def begin(self) -> None:
        """Takes over the log as those before have left it, and puts an event into each shard, that all places may be before one."""
        await self._take_over()
        for shard in self.shards:
            await self._trim_journal(shard.number, 0)
            self.began[shard.number] = shard.log.s
        await self.fill(range(self.shape.shards))

    async def _trim_journal(self, shard: int, keep: int) -> None:
        await self.servers.valkey.xtrim(f"{{relay:{shard}}}:journal", maxlen=keep, approximate=False)
        log = self.shards[shard].log
        log.journal = log.journal[max(0, len(log.journal) - keep) :]

    async def _take_over(self) -> None:
        """Makes the model's logs what the real ones are, each of which has its epoch from the first contact on."""
        served_by = (await self.servers.valkey.info("replication"))["master_replid"]
        for shard in self.shards:
            await self.servers.log.look(shard.number, real.EARLIEST)
            state: dict[bytes, bytes] = await cast(Awaitable[Any], self.servers.valkey.hgetall(f"{{relay:{shard.number}}}:shard"))
            text = {name.decode(): value.decode() for name, value in state.items()}
            log = shard.log
            log.s = int(text["s"])
            log.last, log.epoch = read_id(text["last"]), self._number(text["epoch"])
            log.replid = shard.replid if text["replid"] == served_by else -1
            past = {self._number(name[2:]): closed.split()[0] for name, closed in text.items() if name.startswith("e:")}
            log.closed = {epoch: (read_id(last), 0) for epoch, last in past.items()}

    def _number(self, epoch: str) -> int:
        """What an epoch is called in the model. One that it has never seen is of a log that was lost."""
        if epoch not in self.epochs:
            self.epochs[epoch] = next(self.env.tokens)
        return self.epochs[epoch]

    async def fill(self, shards: Iterable[int]) -> None:
        letters = [next(letter for letter in FILLERS if self.shape.shard_of(letter) == shard) for shard in shards]
        await self.publish(Publish(tuple(Draft(letter, "filler") for letter in letters)))

    async def publish(self, published: Publish) -> None:
        drafts, by = published
        reused = self._reuses(drafts)
        answer = await self._post(drafts, by)
        if reused:
            if (answer.status_code, answer.json()["code"]) != (422, "key_reused"):
                raise Violation(f"not refused: {answer.text}")
            return
        if answer.status_code not in (200, 201):
            raise Violation(f"not published: {answer.status_code} {answer.text}")
        results = answer.json()["results"] if len(drafts) > 1 else [answer.json()]
        for draft, result in zip(drafts, results, strict=True):
            self._append(draft, result, by)

    async def _post(self, drafts: Sequence[Draft], by: int) -> httpx.Response:
        http, url = self.servers.http, self.servers.doors[by]
        if len(drafts) > 1:
            items = [{"topic": self.topics[d.topic], "event": d.name, "data": json_of(d.data), "key": d.key} for d in drafts]
            return await http.post(f"{url}/stream/publish", json=items)
        (draft,) = drafts
        headers = {"idempotency-key": draft.key} if draft.key else {}
        body = {"event": draft.name, "data": json_of(draft.data)}
        return await http.post(f"{url}/stream/{self.topics[draft.topic]}", json=body, headers=headers)

    def _reuses(self, drafts: Sequence[Draft]) -> bool:
        """Whether a key of these belongs to another event."""
        keyed: dict[tuple[str, str], Draft] = {}
        for shard in self.shards:
            keyed |= {key: known.draft for key, known in shard.log.keys.items()}
        return any(draft.key and keyed.setdefault((draft.topic, draft.key), draft) != draft for draft in drafts)

    def _append(self, draft: Draft, result: Mapping[str, Any], by: int) -> None:
        shard = self.shards[self.shape.shard_of(draft.topic)]
        (place,) = parse_cursor(result["id"]).places.values()
        appended = shard.log.append(place.ms, shard.replid, draft)
        if place.epoch not in self.epochs and appended.place.epoch not in self.epochs.values():
            self.epochs[place.epoch] = appended.place.epoch
        told = Appended(self.place(place), result["n"], "duplicate" if result["duplicate"] else "new")
        if told != appended:
            raise Violation(f"appended otherwise: {draft} is {told}, by the rules {appended}")
        if appended.outcome == "new":
            self.events[result["id"]] = shard.log.ever[-1]
            if by == 1:
                shard.log.keep(draft.topic, SECOND_EVENTS)

    async def do_to_log(self, operation: Trim | TrimJournal | Expire | Forget | Miss | Renew | Flush) -> None:
        log = self.servers.valkey
        match operation:
            case Trim(letter, keep, unseen):
                await log.xtrim(self.key("topic", letter), maxlen=keep, approximate=False)
                self.log(letter).keep(letter, keep)
                if unseen:
                    shard = self.shape.shard_of(letter)
                    await self._miss({shard})
                    await self.fill([shard])
            case TrimJournal(number, keep):
                await self._trim_journal(number % self.shape.shards, keep)
            case Expire(letter):
                await log.delete(self.key("topic", letter))
                self.log(letter).expire_topic(letter)
            case Forget(letter):
                await log.delete(self.key("topic", letter), self.key("head", letter))
                self.log(letter).forget(letter)
                await self._trim_journal(self.shape.shard_of(letter), 0)
                for reader in self.readers:
                    reader.excuse(letter)
            case Miss(published):
                await self._miss({self.shape.shard_of(draft.topic) for draft in published.drafts})
                await self.publish(published)
            case Renew():
                await log.execute_command("DEBUG", "CHANGE-REPL-ID")  # type: ignore[no-untyped-call]
                for each in self.shards:
                    each.restart(0)
            case Flush(quiet):
                await log.flushall()
                for each in self.shards:
                    each.flush()
                    self.began[each.number] = 0
                await self._take_over()
                if not quiet:
                    await self.fill(range(self.shape.shards))

    def log(self, letter: str) -> Mirror:
        return self.shards[self.shape.shard_of(letter)].log

    async def _miss(self, shards: Iterable[int]) -> None:
        for number in shards:
            await cast(Awaitable[int], self.servers.valkey.hincrby(f"{{relay:{number}}}:shard", "s", 1))
            self.shards[number].log.s += 1

    async def meanwhile(self, during: Sequence[Publish], doing: Awaitable[T]) -> T:
        """What is published has its answers, and is in the model, before anybody judges what was said meanwhile."""

        async def publish() -> None:
            for each in during:
                await self.publish(each)

        publishing = asyncio.create_task(publish())
        try:
            return await doing
        finally:
            await publishing

    # What real servers say, in the model's words

    def place(self, place: real.Place) -> Place:
        return Place(self._number(place.epoch), place.at())

    def cursor(self, text: str, ask: Ask) -> Cursor | None:
        if not text:
            return None
        cursor = parse_cursor("0.0-0" if text == "earliest" else text)
        places = [EARLIEST if cursor.everywhere else None] * self.shape.shards
        for shard, place in cursor.places.items():
            places[shard] = self.place(place)
        n = cursor.number_on(self.topics[ask.topics]) if len(ask.topics) == 1 else None
        return Cursor(tuple(places), ask.topics if n is not None else None, n)

    def ancient(self, ask: Ask) -> str:
        """The place before all of this life, and that very long ago."""
        texts = {number: text for text, number in self.epochs.items()}
        places = {}
        for number in self.shape.shards_of(ask.topics):
            epoch, (ms, _) = self.shards[number].log.end()
            places[number] = real.Place(texts[epoch], ms - 3 * RETENTION_MS, self.began[number])
        return write_cursor(places)

    def check_whole(self, cursor: Cursor, ask: Ask) -> None:
        """Whoever came back with less would begin at now in the shards that are left out."""
        if any(cursor.places[shard] is None for shard in self.shape.shards_of(ask.topics)):
            raise Violation(f"not all shards: {cursor} on {ask}")

    def event(self, id: str, name: str, data: Any) -> Event:
        event = self.events.get(id)
        if event is None or (event.name, json_of(event.data)) != (name, data):
            raise Violation(f"never published: {id} {name} {str(data)[:80]}, but {event}")
        return event

    def wrapped(self, item: Mapping[str, Any], name: str) -> Event:
        event = self.event(item["id"], name, item["data"])
        if (item["topic"], item["n"], item["ts"]) != (self.topics[event.topic], event.n, event.place.id[0]):
            raise Violation(f"wrongly wrapped: {item} is {event}")
        return event

    def gap(self, body: Mapping[str, Any]) -> Gap:
        oldest = None
        if body["oldest"] is not None:
            (place,) = parse_cursor(body["oldest"]).places.values()
            oldest = self.place(place)
        return Gap(self.letters[body["topic"]], body["lost"], body["first_n"], oldest)

    def page(self, body: Mapping[str, Any], ask: Ask) -> Page:
        gaps = body["gap"] or []
        events = tuple(self.wrapped(item, item["event"]) for item in body["events"])
        cursor = self.cursor(body["cursor"], ask)
        assert cursor
        self.check_whole(cursor, ask)
        told = tuple(self.gap(gap) for gap in (gaps if isinstance(gaps, list) else [gaps]))
        return Page(events, cursor, body["more"], body["resume"], told)

    def frame(self, block: Block, ask: Ask) -> Frame:
        id = self.cursor(block.last_event_id, ask)
        if id:
            self.check_whole(id, ask)
        match block.name:
            case "hello":
                hello = block.json()
                cursor = self.cursor(hello["cursor"], ask)
                if cursor is None or cursor != id:
                    raise Violation(f"a hello of another id: {block}")
                return Frame(id, Hello(hello["resume"], cursor))
            case "gap":
                return Frame(id, self.gap(block.json()))
            case "sync":
                assert id
                return Frame(id, Sync(id))
            case "bye":
                return Frame(id, Bye(block.json()["reason"]))
            case name if len(ask.topics) == 1:
                return Frame(id, self.event(block.last_event_id, name, block.json()))
            case name:
                return Frame(id, self.wrapped(block.json(), name))


class Reader:
    """One client of real servers: a browser or a poller, or the one after the other."""

    def __init__(self, reality: Reality, ask: Ask) -> None:
        self.reality, self.ask = reality, ask
        self.client = Client(reality.env, reality.shards, ask)
        self.kept = ""  # its cursor as it was sent
        self.older: deque[Reader] = deque(maxlen=OLDER_MAX)
        self.stream: Stream | None = None
        self._stack = AsyncExitStack()

    @property
    def servers(self) -> Servers:
        return self.reality.servers

    def fork(self) -> Reader:
        """The same client, that goes on by itself."""
        other = Reader(self.reality, self.ask)
        other.client.promise = self.client.promise.copy()
        other.client.cursor, other.kept = self.client.cursor, self.kept
        return other

    def excuse(self, letter: str) -> None:
        """Who is so far behind that a topic was forgotten since has an old cursor, and that is another client: an ancient one."""
        for reader in (self, *self.older):
            promise = reader.client.promise
            promise.excused.update(event for event in self.reality.log(letter).ever if event.topic == letter)

    # Where it goes on

    async def begin(self, start: Start) -> None:
        await self.cut()
        if start == "older" and self.older:
            self.take_over(self.older[0])
        elif start in ("now", "earliest", "ancient"):
            self.take_over(Reader(self.reality, self.ask))
            if start != "now":
                self.kept = "earliest" if start == "earliest" else self.reality.ancient(self.ask)
                self.client.cursor = self.reality.cursor(self.kept, self.ask)
                assert self.client.cursor
                self.client.promise.begins_at(self.client.cursor)

    def take_over(self, other: Reader) -> None:
        heard, other = self.client.heard, other.fork()
        self.ask, self.client, self.kept = other.ask, other.client, other.kept
        self.client.heard = heard

    async def choose(self, topics: str) -> None:
        await self.cut()
        self.ask = self.ask._replace(topics=topics)
        self.client.ask = self.ask
        self.client.promise.choose(topics)
        self.client.cursor = self.reality.cursor(self.kept, self.ask)  # what its number counts depends on what is asked

    def _url(self, door: int, kind: str, **more: object) -> str:
        topics = [self.reality.topics[letter] for letter in self.ask.topics]
        fields: list[tuple[str, object]] = [*more.items(), ("k", self.ask.k)]
        if self.ask.only:
            fields.append(("events", self.ask.only))
        path = f"{topics[0]}/v1" if len(topics) == 1 else "v1"
        if len(topics) > 1:
            fields += [("topic", topic) for topic in topics]
        return f"{self.servers.doors[door]}/stream/{path}/{kind}?{urlencode(fields)}"

    @property
    def is_clear(self) -> bool:
        """Whether it can be said what it is owed, if more is published while it comes. Of the newest k, it can't."""
        return bool(self.kept) or not self.ask.k

    def if_clear(self, during: Publish | None) -> Sequence[Publish]:
        return [during] if during and self.is_clear else []

    def remember(self) -> None:
        if self.kept:
            self.older.append(self.fork())

    # Streams

    async def connect(self, process: int, during: Sequence[Publish] = ()) -> None:
        await self.cut()
        headers, cursor = {"last-event-id": self.kept}, ""
        if self.kept in ("", "earliest"):
            headers, cursor = {}, self.kept
        opening = open_stream(self.servers.http, self._url(process, "live", cursor=cursor), headers=headers)
        self.stream = await self.reality.meanwhile(during, self._stack.enter_async_context(opening))
        self.client.greeted = False
        self.client.promise.connected()

    async def cut(self) -> None:
        await self._stack.aclose()
        self.stream = None

    async def read(self, most: int = BLOCKS_MAX) -> None:
        """Takes blocks while there are some, and waits for those that it is owed."""
        if self.stream is None:
            return
        for _ in range(most):
            owed = "" if self.stream.pending else self._owed()
            if not self.stream.pending and not owed:
                return
            try:
                block = await self.stream.next(self.servers.limit_s)
            except (TimeoutError, EOFError) as error:
                raise Violation(f"nothing came: {error!r}, but {owed}") from error
            self._take(block)
        if most == BLOCKS_MAX:
            raise Violation(f"endless stream: {self._owed()}")

    def _owed(self) -> str:
        """What must still come on the open stream; empty if it may say nothing more."""
        promise = self.client.promise
        if not self.client.greeted or promise.gaps_due:
            return "a gap is due" if self.client.greeted else "there was no hello"
        try:
            promise.settled("open stream")
        except Violation as violation:
            return str(violation)
        return ""

    def _take(self, block: Block) -> None:
        frame = self.reality.frame(block, self.ask)
        match frame.data:
            case Bye(reason):
                raise Violation(f"ended: {reason}")
            case Hello(resume, _):
                if self.client.greeted and resume != "reset":
                    raise Violation(f"greeted again: {frame}")
                if not self.client.greeted and (resume == "new") != (not self.kept):
                    raise Violation(f"wrong resume: {frame}, who came with {self.kept or 'nothing'}")
            case Gap() as gap:
                self._check_counted(gap)
        self.client.receive(frame)
        self.kept = block.last_event_id

    def _check_counted(self, gap: Gap) -> None:
        """Where a client has its number on its only topic, in the present life, it is told how many are missing."""
        promise, cursor = self.client.promise, self.client.cursor
        if len(self.ask.topics) > 1 or gap.lost is not None or promise.dropped or promise.losses != promise._losses():
            return
        head = self.reality.log(gap.topic).heads.get(gap.topic)
        if cursor and cursor.n is not None and head and gap.first_n and cursor.n >= head.first_n - 1:
            raise Violation(f"not counted: {gap} at {cursor}")

    # Pages

    async def poll(self, door: int, limit: int, pages: int, during: Sequence[Publish] = ()) -> Page:
        """Pages while there are more, and the last of them."""
        await self.cut()
        for _ in range(pages):
            expected = None if during else model.page(self.reality.env, self.reality.shards, self.ask, self.client.cursor, limit)
            page = await self._page(door, limit, during)
            if expected:
                self._compare(page, expected, limit)
                if not page.more:
                    self.client.promise.settled("page")
            if not page.more:
                return page
            during = ()
        if pages == PAGES_MAX:
            raise Violation("endless pages")
        return page

    async def long_poll(self, door: int, during: Sequence[Publish]) -> None:
        """What is published while it waits ends its wait. It needs a place to wait from: now is wherever it is asked."""
        if not self.kept:
            await self.poll(door, 1, PAGES_MAX)
        wanted = Publish((Draft(self.ask.topics[0], self.ask.only or "x"),))
        page = await self._page(door, 100, [*during, wanted], wait=WAIT_S)
        if not page.events and not page.more and page.resume == "exact":  # its wait was over before the publisher had its answer
            page = await self._page(door, 100, [], wait=WAIT_S)
        if not page.events and not page.more and page.resume == "exact":
            raise Violation(f"nothing came: {page}")

    async def _page(self, door: int, limit: int, during: Sequence[Publish], wait: float = 0) -> Page:
        await self.cut()
        url = self._url(door, "poll", cursor=self.kept, limit=limit, wait=wait)
        try:
            async with asyncio.timeout(self.servers.limit_s):
                answer = await self.reality.meanwhile(during, self.servers.http.get(url))
        except TimeoutError as error:
            raise Violation(f"nothing came: {url}") from error
        if answer.status_code != 200:
            raise Violation(f"no page: {answer.status_code} {answer.text}")
        self.client.promise.connected()
        page = self.reality.page(answer.json(), self.ask)
        if len(page.events) > limit:
            raise Violation(f"more than asked for: {page}")
        self.client.receive_page(page)
        self.kept = answer.json()["cursor"]
        return page

    def _compare(self, page: Page, expected: Page, limit: int) -> None:
        """A page says what the model's does, from the same cursor. Where it ends may differ, if there is more."""
        if (page.resume, set(page.gaps)) != (expected.resume, set(expected.gaps)):
            raise Violation(f"wrong page: {page.resume} {page.gaps}, by the rules {expected.resume} {expected.gaps}")
        whole = len(page.events) < limit or len(self.reality.shape.shards_of(self.ask.topics)) == 1
        if self.ask.only is None and whole and sorted(page.events) != sorted(expected.events):
            raise Violation(f"wrong page: {page.events}, by the rules {expected.events}")
        same_end = page.cursor.places == expected.cursor.places
        if same_end and expected.cursor.n not in (None, page.cursor.n):
            raise Violation(f"wrong number: {page.cursor}, by the rules {expected.cursor}")


async def play(servers: Servers, life: Life, trace: list[str]) -> None:
    """Raises Violation where the promise is broken. Writes down what was done, and what was heard of it."""
    reality = Reality(servers, life.asks)
    try:
        await reality.begin()
        for operation in life.operations:
            await do(reality, operation, trace)
        trace.append("settle")
        await settle(reality)
    finally:
        note(reality, trace)
        for reader in reality.readers:
            await reader.cut()


async def do(reality: Reality, operation: Operation, trace: list[str]) -> None:
    reality.tell_time()
    trace.append(str(operation))
    match operation:
        case Publish():
            await reality.publish(operation)
        case Connect(client, process, start, most, during):
            reader = reality.readers[client]
            await reader.begin(start)
            await reader.connect(process, reader.if_clear(during))
            await reader.read(most)
        case Rush(processes, during):
            coming = [(reader, process) for reader, process in zip(reality.readers, processes, strict=True) if reader.is_clear]
            await reality.meanwhile(during, asyncio.gather(*(reader.connect(process) for reader, process in coming)))
        case Read(client, most):
            await reality.readers[client].read(most)
        case Cut(client):
            await reality.readers[client].cut()
        case Poll(client, door, start, limit, pages, during):
            reader = reality.readers[client]
            await reader.begin(start)
            await reader.poll(door, limit, pages, reader.if_clear(during))
        case LongPoll(client, door, during):
            await reality.readers[client].long_poll(door, [during] if during else [])
        case Choose(client, topics):
            await reality.readers[client].choose(topics)
        case _:
            await reality.do_to_log(operation)
    if isinstance(operation, Connect | Read | Poll | LongPoll):
        reality.readers[operation.client].remember()
    note(reality, trace)


def note(reality: Reality, trace: list[str]) -> None:
    """What clients have heard since the last time."""
    for number, reader in enumerate(reality.readers):
        heard = reader.client.heard
        if heard:
            trace.append(f"    client {number}: {', '.join(' '.join(map(str, each)) for each in heard)}")
            heard.clear()


async def settle(reality: Reality) -> None:
    """All catch up, by streams and by pages, and must then have all that they are owed, and no more."""
    reality.tell_time()
    letters = sorted({letter for reader in reality.readers for letter in reader.ask.topics})
    last = Publish(tuple(Draft(letter, "x") for letter in letters))
    await reality.publish(last)
    for number, reader in enumerate(reality.readers):
        for twin in [reader.fork(), *(older.fork() for older in list(reader.older)[:1])]:
            await twin.poll((number + 2) % DOORS, 3, PAGES_MAX)
        if reader.stream is None:
            await reader.connect(number % 2)
        await reader.read()
    # What was sent too much, if it is the last thing, comes before these.
    await reality.publish(last)
    for number, reader in enumerate(reality.readers):
        await reader.read()
        page = await reader.fork().poll(number % DOORS, 100, 1)
        if page.events or page.more or page.resume != "exact":
            raise Violation(f"not at the end: {page}")


def json_of(data: int) -> int | str:
    """A draft's data as it is published: a large number is so many characters."""
    return data if data < LARGE else "x" * data


def read_id(text: str) -> model.Id:
    ms, _, s = text.partition("-")
    return int(ms), int(s)
