"""Who reads what in this process, and the pushing of each batch to all of them.

**Why not `litestar.channels`**: it keeps a queue per subscriber, which drops in silence when it is full, encodes for each
subscriber, and wakes a task for each. Here nothing is kept per reader but its place; the log is the buffer.

**Places.** For each shard the hub has a place in the journal, up to which the tail has read, and a ring of the newest
entries before it. A reader is *live*, and then its place is the hub's in every shard it reads; or *behind*, and then it has
places of its own and a task (`relay.follow`) that reads on from there. It becomes live only in `go_live`, which doesn't
await, and only where places are equal: one that is ahead, since it has read in the log what the tail has yet to read, is
behind too. So no event is pushed twice or passed over, whatever the order in which reads and batches come.

**Audiences.** Readers that get the same bytes (topics, version, filter, coding) are one audience. For each batch and each audience
that it touches, one chunk is made of all its topics' events in journal order, compressed, and given to everyone. What is sealed in it is
good for one turn of the sealer, then it is made anew.

**Pushing.** The server takes a chunk when `send` is called, not when its result is awaited, and answers with something
that is already done unless the connection's channel is full. So a push to 10,000 readers is a plain loop without a task or
an await. A chunk that wasn't taken at once is under way all the same: nothing more may be sent to that reader until it has
been, or the order is lost; the reader is behind from then on. Nothing in this file awaits.
"""

import asyncio
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from relay import framing, sse
from relay.coding import Coding
from relay.cursor import EARLIEST, Place
from relay.envelope import Sealer
from relay.event import Event
from relay.query import Versions

RING_EVENTS_MAX = 10_000
RING_BYTES_MAX = 16 << 20
# What a reader gets at once. A connection whose client takes nothing holds about five of them.
CHUNK_BYTES = 256 << 10
JOINED_MAX = 32  # chunks that an audience keeps for those who ask for the same one
DONE = object()

Send = Callable[[Any], Awaitable[None]]


def body(chunk: bytes, more: bool = True) -> dict[str, object]:
    """The ASGI message of a part of a response."""
    return {"type": "http.response.body", "body": chunk, "more_body": more}


def push(send: Send, message: dict[str, object]) -> Awaitable[None] | None:
    """Starts a send. None: it was taken at the call; else what to await before the next one."""
    sending = send(message)
    # An awaitable that is done ends at its first step, and stepping one that isn't does no harm to a later await.
    return None if next(sending.__await__(), DONE) is DONE else sending


class Reader:
    """One open stream. While it is live it has no places: they are the hub's."""

    __slots__ = (
        "audience",
        "beats",
        "catching_up",
        "connection",
        "cursor_ms",
        "deadline_tick",
        "ending",
        "expires",
        "greeted",
        "handler",
        "heartbeat_s",
        "hidden",
        "live",
        "looked",
        "n",
        "newest",
        "places",
        "renewing",
        "send",
        "sending",
        "starts",
        "token_expires",
        "told",
    )  # fmt: skip

    def __init__(self, send: Send, audience: "Audience") -> None:
        self.send = send
        self.audience = audience
        self.connection = ""  # its name in log lines
        self.places: dict[int, Place] | None = None
        self.n: int | None = None  # a single topic's number at its place, or at the one where it became live; perhaps its client's word
        self.newest: int | None = None  # k, with which it begins, and begins anew after a reset
        self.starts: dict[str, tuple[int, int]] | None = None  # topics of which it wants only what is after a later id
        self.told: dict[str, Place] | None = None  # on several topics, where the gaps end that it was told of
        self.looked: dict[int, int] | None = None  # the hub's step when the last read that found the journal's end began
        self.live = False
        self.greeted = False
        self.renewing = False  # a reset: it is told that everything begins anew
        self.sending: Awaitable[None] | None = None  # a chunk under way
        self.catching_up: asyncio.Task[None] | None = None
        self.handler: asyncio.Task[Any] | None = None
        self.ending: str | None = None  # why it is to end, or has ended
        self.cursor_ms = 0  # of the last id that it was sent by itself, not with its audience
        # How many events its audience's filter had hidden at its last id; None: it has caught up past some that nobody counted.
        self.hidden: int | None = 0
        self.deadline_tick = 0
        self.heartbeat_s = 0.0
        self.beats: set[Reader] = set()  # those who get their heartbeats together with it
        self.token_expires: int | None = None
        self.expires = False  # whether its deadline is its token's or its subscription's end

    @property
    def number(self) -> int | None:
        """Its single topic's number at its place. While it is live, its own holds as long as the audience has none: nothing came since."""
        shared = self.audience.n
        return self.n if self.places is not None or shared is None else shared


class Audience:
    """Readers that get the same bytes."""

    def __init__(
        self,
        topics: tuple[str, ...],
        names: frozenset[str] | None,
        version: str,
        shards: dict[int, list[str]],
        sealer: Sealer | None,
        coding: Coding,
    ) -> None:
        self.key = (topics, names, version, coding.name)
        self.topics = topics
        self.members = frozenset(topics)
        self.names = names
        self.seal = sealer.seal if sealer else None
        self.coding = coding
        self.heartbeat = body(coding.wrap(sse.HEARTBEAT))
        self.by_shard = shards
        self.single = topics[0] if len(topics) == 1 else ""
        self.readers = 0
        self.live: set[Reader] = set()
        # A single topic's number at the hub's place, if known: by the log or by an event, never by what a client says.
        self.n: int | None = None
        self.pushed_ms = 0  # of the newest event that was pushed to it
        self.hidden = 0  # how many events of its topics its filter hid
        self.hides = False  # whether the newest of them all is such a one
        self.pushed_at = 0.0  # by the monotonic clock
        # Of its only shard, the entries of the ring that are its own, after `since`; as blocks once somebody needed them.
        self._sequence: list[int] = []
        self._blocks: list[Event | bytes] = []
        self._joined: dict[tuple[int, int | None], tuple[bytes, Place]] = {}
        self._sealer = sealer
        self._turn = sealer.turn() if sealer else None  # in which the blocks were sealed
        self.since = 0

    def wants(self, event: Event) -> bool:
        return self.names is None or event.name in self.names

    def add(self, events: Sequence[Event], ring: "Ring") -> None:
        """Remembers a batch's events, to encode them once whoever needs them first."""
        stale = bisect_right(self._sequence, ring.base.s)
        del self._sequence[:stale], self._blocks[:stale]
        self._sequence += [event.place.s for event in events]
        self._blocks += events
        self._joined.clear()

    def forget(self, since: int) -> None:
        self._sequence, self._blocks, self._joined, self.since = [], [], {}, since

    def chunk_after(self, s: int, ring: "Ring") -> bytes:
        """Its blocks after an entry of the ring, up to the ring's end. Of an audience of one shard."""
        return self._blocks_after(s, ring, None)[0]

    def part_after(self, s: int, ring: "Ring") -> tuple[bytes, Place]:
        """The same, but no more than a reader should have under way at once, and the place where that ends."""
        return self._blocks_after(s, ring, CHUNK_BYTES)

    def _blocks_after(self, s: int, ring: "Ring", most: int | None) -> tuple[bytes, Place]:
        if self._sealer and self._turn != (turn := self._sealer.turn()):
            self._turn = turn
            self.forget(ring.place.s)
        if s < self.since:  # the ring holds more of it, from before there was this audience
            older = [event for event in ring.between(s, self.since) if event.topic in self.members and self.wants(event)]
            self._sequence[:0] = [event.place.s for event in older]
            self._blocks[:0] = older
            self.since = s
        part = self._joined.get((s, most))
        if part is None:
            blocks, at, end = self._blocks, {ring.shard: ring.place}, ring.place
            found: list[bytes] = []
            size = 0
            for index in range(bisect_right(self._sequence, s), len(blocks)):
                block = blocks[index]
                if isinstance(block, Event):
                    block = blocks[index] = framing.blocks([block], ring.shard, bool(self.single), at, self.seal)
                found.append(block)
                size += len(block)
                if most is not None and size >= most and index + 1 < len(blocks):
                    end = ring.entry(self._sequence[index]).place
                    break
            if len(self._joined) >= JOINED_MAX:
                self._joined.clear()
            part = self._joined[s, most] = self.coding.compress(b"".join(found)), end
        return part


class Ring:
    """One shard's newest entries in journal order, up to the hub's place. `s` is dense in it."""

    def __init__(self, shard: int, place: Place = EARLIEST) -> None:
        self.shard = shard
        self.place = self.base = place
        self.step = 0  # counts what the tail did: batches, empty blocks, reconnects
        self.events: list[Event] = []
        self.bytes = 0

    def extend(self, events: Sequence[Event]) -> None:
        self.events += events
        self.bytes += sum([len(event.data) for event in events])
        self.place = events[-1].place
        if len(self.events) > 2 * RING_EVENTS_MAX or self.bytes > RING_BYTES_MAX:
            self._trim()

    def _trim(self) -> None:
        # By halves, so that the cost of moving a list is shared by many batches.
        surplus = len(self.events) // 2
        self.base = self.events[surplus - 1].place if surplus else self.base
        self.bytes -= sum([len(event.data) for event in self.events[:surplus]])
        del self.events[:surplus]

    def restart(self, place: Place) -> None:
        self.place = self.base = place
        self.events, self.bytes = [], 0

    def find(self, place: Place) -> int | None:
        """The `s` from which a reader at this place goes on, if it is in the ring: an entry of it, or just before one."""
        if place == self.base:
            return place.s
        index = place.s - self.base.s - 1
        if 0 <= index < len(self.events) and self.events[index].place == place:
            return place.s
        if -1 <= index < len(self.events) - 1 and self.events[index + 1].place.before() == place:
            return place.s
        return None

    def entry(self, s: int) -> Event:
        return self.events[s - self.base.s - 1]

    def after(self, s: int) -> list[Event]:
        return self.events[s - self.base.s :]

    def between(self, s: int, upto: int) -> list[Event]:
        return self.events[s - self.base.s : upto - self.base.s]


class Statistics(msgspec.Struct, frozen=True):
    readers: int
    behind: int
    audiences: int
    topics: int
    deliveries: int
    events: int


class Hub:
    """The places, rings, audiences and readers of one process."""

    def __init__(self, shards: int, versions: Versions = Versions()) -> None:
        self.rings = [Ring(shard) for shard in range(shards)]
        self._unknown = set(range(shards))  # shards of which no tail has said yet where it is
        self.moved = asyncio.Event()  # set, and replaced, at each step of a tail
        # What brings a reader to the journal's end; `relay.follow` is above this module, so it puts itself here.
        self.catch_up: Callable[[Reader], None] = lambda reader: None
        self._versions = versions
        self._audiences: dict[object, Audience] = {}
        self._by_topic: dict[str, list[Audience]] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._readers = 0
        self._behind = 0
        self._deliveries = 0
        self._events = 0

    def statistics(self) -> Statistics:
        return Statistics(self._readers, self._behind, len(self._audiences), len(self._by_topic), self._deliveries, self._events)

    def busiest(self, most: int) -> list[dict[str, object]]:
        """The topics with the most streams."""
        counts = {topic: sum(audience.readers for audience in of) for topic, of in self._by_topic.items()}
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
        return [{"topic": topic, "connections": count} for topic, count in ranked]

    # Readers

    def join(
        self,
        topics: Iterable[str],
        names: frozenset[str] | None,
        version: str,
        coding: Coding,
        send: Send,
        shard_of: Callable[[str], int],
    ) -> Reader:
        """A new reader, behind. An audience lasts as long as it has readers."""
        ordered = tuple(sorted(set(topics)))
        audience = self._audiences.get((ordered, names, version, coding.name))
        if audience is None:
            by_shard: dict[int, list[str]] = {}
            for topic in ordered:
                by_shard.setdefault(shard_of(topic), []).append(topic)
            audience = Audience(ordered, names, version, by_shard, self._versions.sealer_of(version), coding)
            audience.forget(self.rings[min(by_shard)].place.s)
            self._audiences[audience.key] = audience
            for topic in ordered:
                self._by_topic.setdefault(topic, []).append(audience)
        audience.readers += 1
        self._readers += 1
        self._behind += 1
        return Reader(send, audience)

    def remove(self, reader: Reader) -> None:
        audience = reader.audience
        self._behind -= not reader.live
        reader.live = False
        audience.live.discard(reader)
        audience.readers -= 1
        self._readers -= 1
        if audience.readers:
            return
        del self._audiences[audience.key]
        for topic in audience.topics:
            self._by_topic[topic].remove(audience)
            if not self._by_topic[topic]:
                del self._by_topic[topic]

    def places(self, audience: Audience) -> dict[int, Place]:
        return {shard: self.rings[shard].place for shard in audience.by_shard}

    def go_live(self, reader: Reader) -> bool:
        """Makes a reader live if its place is the hub's in every shard."""
        audience = reader.audience
        assert reader.places is not None
        if any(self.rings[shard].place != place for shard, place in reader.places.items()):
            return False
        # Its number stays its own: a client may have said it, and the audience's is told to all.
        reader.places = reader.starts = reader.looked = reader.told = None
        reader.live = True
        audience.live.add(reader)
        self._behind -= 1
        return True

    def fall_behind(self, reader: Reader, sending: Awaitable[None] | None) -> None:
        """From now on a live reader has a place of its own: the hub's of this moment."""
        reader.audience.live.discard(reader)
        reader.live = False
        reader.n = reader.number
        reader.places = self.places(reader.audience)
        reader.sending = sending
        self._behind += 1

    # What the tail does

    def advance(self, shard: int, events: Sequence[Event]) -> list[Reader]:
        """A batch: the next entries of the journal. Returns the readers that didn't take it at once."""
        ring = self.rings[shard]
        before = ring.place.s
        touched: dict[Audience, list[Event]] = {}
        for event in events:
            for audience in self._by_topic.get(event.topic, ()):
                if audience.single:
                    audience.n = event.n
                audience.hides = not audience.wants(event)
                if audience.hides:
                    audience.hidden += 1
                else:
                    touched.setdefault(audience, []).append(event)
            for waiting in self._waiting.get(event.topic, ()):
                waiting.set()
        ring.extend(events)
        self._events += len(events)
        self._step(ring)
        unfinished: list[Reader] = []
        for audience, own in touched.items():
            unfinished += self._push(audience, own, ring, before)
        return unfinished

    def _push(self, audience: Audience, events: list[Event], ring: Ring, before: int) -> list[Reader]:
        one_shard = len(audience.by_shard) == 1
        if one_shard:
            audience.add(events, ring)
        if not audience.live:
            return []
        if one_shard:
            chunk = audience.chunk_after(before, ring)
        else:
            chunk = audience.coding.compress(framing.blocks(events, ring.shard, False, self.places(audience), audience.seal))
        message = body(chunk)
        unfinished = []
        for reader in audience.live:
            sending = reader.send(message)
            if next(sending.__await__(), DONE) is not DONE:
                unfinished.append((reader, sending))
        audience.pushed_ms = events[-1].place.ms
        audience.pushed_at = time.monotonic()
        self._deliveries += len(audience.live) * len(events)
        for reader, sending in unfinished:
            self.fall_behind(reader, sending)
            self.catch_up(reader)
        return [reader for reader, _ in unfinished]

    @property
    def ready(self) -> bool:
        return not self._unknown

    def start(self, shard: int, place: Place) -> None:
        """The tail has found the journal's end."""
        self._unknown.discard(shard)
        self.restart(shard, place)

    def idle(self, shard: int) -> None:
        """The tail looked and found nothing, or has a connection again."""
        self._step(self.rings[shard])

    def restart(self, shard: int, place: Place) -> None:
        """The hub's place isn't in the journal any more, or entries are missing after it: on from the journal's last place.

        Each reader finds out for itself, by its own read, what became of its own place.
        """
        ring = self.rings[shard]
        affected = [audience for audience in self._audiences.values() if shard in audience.by_shard]
        behind = [reader for audience in affected for reader in audience.live]
        for reader in behind:
            self.fall_behind(reader, None)
        ring.restart(place)
        for audience in affected:
            audience.n = None
            audience.forget(place.s)
        self._step(ring)
        for reader in behind:
            self.catch_up(reader)
        self.wake()

    def _step(self, ring: Ring) -> None:
        ring.step += 1
        self.moved.set()
        self.moved = asyncio.Event()

    # What a waiting poll does

    def watch(self, topics: Iterable[str]) -> asyncio.Event:
        """An event that is set when one of the topics has something new. To be given back with `unwatch`."""
        waiting = asyncio.Event()
        for topic in topics:
            self._waiting.setdefault(topic, set()).add(waiting)
        return waiting

    def wake(self) -> None:
        """Lets all who wait look again."""
        for events in self._waiting.values():
            for waiting in events:
                waiting.set()

    def unwatch(self, topics: Iterable[str], waiting: asyncio.Event) -> None:
        for topic in topics:
            self._waiting[topic].discard(waiting)
            if not self._waiting[topic]:
                del self._waiting[topic]
