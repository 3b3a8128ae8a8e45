"""A reader's stream: first what the log holds, then what comes; no gap, no repeat.

The one rule which the code can't show: **join first, then read.** A reader is in the hub before its first read of the log
begins, and becomes live only where its place equals the hub's (`relay.hub`). So it doesn't matter when an event comes:
before the read, during it, or between two.

`run` is a stream's whole life, in the request's own task, which only waits for the client to leave. A second task exists
while the reader is behind (`_catch_up`): it takes chunks from the ring or the log and sends them one after the other,
until the reader is live. Whoever wants to send to a reader must see that no chunk is under way: `reader.sending`.

A read of the log is shared by all who ask for the same one while it is under way, with the bytes made of it; each goes on
from the place where the read ended, not from where the hub is then.
"""

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from relay import framing, sse
from relay.auth import NOBODY
from relay.coding import IDENTITY, Coding
from relay.cursor import EARLIEST, Place, write_cursor
from relay.errors import LogAway, LogUnavailable, Problem, TooMany, Unavailable
from relay.event import Event
from relay.guard import Permit
from relay.hub import CHUNK_BYTES, Hub, Reader, Send, body, push
from relay.log import Bounds, Log
from relay.span import Gap, Span, gap_cursor, judge, lost_all
from relay.standing import Standing

READ_ENTRIES = 2000
READ_TOPICS = 4  # a read takes a chunk's bytes for each topic, up to so many, since the bytes are shared out among them
RETRY_MS = (
    2000,
    5000,
)  # a client's pause before it reconnects, drawn for each so that a fleet doesn't come back at once
DRAIN_RETRY_MS = (500, 5000)
BEATS_A_SECOND_MAX = 1000  # heartbeats of a process; each costs some 10 µs
SLOTS_A_SECOND = 4  # heartbeats go out, and streams that are too old are ended, in this many parts a second
SPREAD_STEP_S = 0.01  # what is due within it is done at once
AGE_JITTER = 0.1  # a stream's longest life is drawn from the last tenth of it

logger = logging.getLogger("relay")

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]

HEADERS = [
    (b"content-type", sse.CONTENT_TYPE),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Start(msgspec.Struct, frozen=True):
    """Where a stream begins, and whose it is."""

    topics: tuple[str, ...]
    version: str
    coding: Coding = IDENTITY
    names: frozenset[str] | None = None
    places: dict[int, Place] | None = None  # None: at the journal's end
    n: int | None = None
    reset: bool = False  # its position is none of ours
    newest: int = 0  # k
    heartbeat_s: float = 0  # as the client asks; 0: as the relay likes
    permit: Permit = Permit(NOBODY, ())

    def cursor(self) -> str:
        """The position that its client gave, as a cursor; empty if it gave none, or none of ours."""
        single = self.topics[0] if len(self.topics) == 1 else ""
        return write_cursor(self.places, self.n if single else None, single) if self.places else ""


class Pace(msgspec.Struct, frozen=True):
    heartbeat_s: float
    heartbeat_max_s: float  # how far that may stretch while very many streams are open
    stream_max_s: float
    send_s: float


class Observer(Protocol):
    """Who counts what happens to streams."""

    def resumed(self, verdict: str) -> None: ...
    def gap(self, gap: Gap) -> None: ...
    def ended(self, reason: str) -> None: ...


class Landing(msgspec.Struct, frozen=True):
    """What a read of the log brings to whoever asked for it: one for all who share it."""

    reset: bool
    gaps: list[Gap]
    places: dict[int, Place]
    n: int | None
    starts: dict[str, tuple[int, int]] | None
    chunk: bytes
    empty: bool  # nothing of its topics came after the place
    began: dict[int, Place]  # the places at which its events begin
    began_n: int | None
    looked: dict[int, int]  # for the shards read to their end: the hub's step when the read began


class Streams:
    """All open streams of this process."""

    def __init__(self, log: Log, hub: Hub, pace: Pace, observer: Observer, refused: Callable[[Problem], None], standing: Standing) -> None:
        self.log, self.hub, self.pace, self.observer, self.refused, self.standing = log, hub, pace, observer, refused, standing
        self._reads: dict[object, asyncio.Task[Landing]] = {}
        # By the parts of a second from one heartbeat to the next: whose turn it is in each of these parts.
        self._beats: dict[int, list[set[Reader]]] = {}
        self._joined = 0
        self._deadlines: dict[int, set[Reader]] = {}  # by the part of a second, of Unix time
        self.draining = False
        hub.catch_up = self._start_catching_up

    async def run(self, start: Start, headers: Headers, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        """Serves one stream until its client leaves or it ends. Only the request's own task calls this.

        Raises Unavailable before anything was sent.
        """
        self._check_available(start.topics)
        coding = start.coding
        if coding.name:
            headers = [*headers, (b"content-encoding", coding.name.encode()), (b"vary", b"Accept-Encoding")]
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})
        if coding.head:
            await send(body(coding.head))
        reader = self.hub.join(start.topics, start.names, start.version, coding, send, self.log.shard)
        held = self.standing.enter(start.permit, partial(self.end, reader))
        self._set_up(reader, start)
        self.standing.review(held)
        del start, headers  # nothing of the request is kept for the hours that a stream may last
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            if not reader.ending:
                raise
            # We ended it ourselves: `_finish` cancels this task, the only way to wake it from its wait.
            if reader.handler:
                reader.handler.uncancel()
        finally:
            self.standing.leave(held)
            self._take_down(reader)

    def _check_available(self, topics: Iterable[str]) -> None:
        if self.draining:
            raise Unavailable("this relay is stopping: another one serves you", cause="this process is stopping")
        if not self.hub.ready:
            raise Unavailable("this relay has just started", cause="the end of the log is not known yet")
        # The ring might still do, but nobody could say whether its places are still valid.
        if not self.log.away.isdisjoint(map(self.log.shard, topics)):
            raise Unavailable.of(LogAway())

    def _set_up(self, reader: Reader, start: Start) -> None:
        reader.connection = f"c-{secrets.token_urlsafe(6)}"
        reader.handler = asyncio.current_task()
        reader.token_expires = start.permit.identity.expires_s
        reader.newest = start.newest or None
        shards = reader.audience.by_shard
        if start.reset:
            self._begin_anew(reader)
        elif start.places is not None:
            # A shard that the cursor doesn't name starts at the journal's end.
            reader.places = {shard: start.places.get(shard, self.hub.rings[shard].place) for shard in shards}
            reader.n = start.n
        now = time.time()
        age = self.pace.stream_max_s * random.uniform(1 - AGE_JITTER, 1)
        must_end_s = start.permit.ends_s or math.inf
        reader.expires = must_end_s <= now + age
        reader.deadline_tick = max(math.ceil(min(now + age, must_end_s) * SLOTS_A_SECOND), int(now * SLOTS_A_SECOND) + 1)
        self._deadlines.setdefault(reader.deadline_tick, set()).add(reader)
        reader.heartbeat_s = start.heartbeat_s or self._heartbeat_s()
        turns = max(1, round(reader.heartbeat_s * SLOTS_A_SECOND))
        self._joined += 1  # one after the other, so that they are spread evenly
        reader.beats = self._beats.setdefault(turns, [set() for _ in range(turns)])[self._joined % turns]
        reader.beats.add(reader)
        if not self._begin_live(reader):
            self._start_catching_up(reader)

    def _heartbeat_s(self) -> float:
        """How often a new stream that asks for nothing else gets a heartbeat: less often where very many want theirs."""
        stretched = math.ceil(self.hub.statistics().readers / BEATS_A_SECOND_MAX)
        return max(self.pace.heartbeat_s, min(stretched, self.pace.heartbeat_max_s))

    def _take_down(self, reader: Reader) -> None:
        self.hub.remove(reader)
        reader.beats.discard(reader)
        due = self._deadlines.get(reader.deadline_tick)
        if due is not None:
            due.discard(reader)
            if not due:
                del self._deadlines[reader.deadline_tick]
        if reader.catching_up and reader.catching_up is not asyncio.current_task():
            reader.catching_up.cancel()
        reader.handler = None
        self.observer.ended(reader.ending or "left")

    # Catching up

    def _start_catching_up(self, reader: Reader) -> None:
        reader.catching_up = asyncio.create_task(self._catch_up(reader))

    async def _catch_up(self, reader: Reader) -> None:
        try:
            await self._follow(reader)
        except LogUnavailable as error:
            # Before its hello, it can't be told anything true; later it waits for the log like everybody.
            self.refused(Unavailable.of(error))
            self.end(reader, "unavailable")
        except TimeoutError:
            logger.warning("a client took nothing for %g s: closed", self.pace.send_s, extra={"connection": reader.connection})
            reader.ending = "slow"
            self._finish(reader)
        except Exception:
            logger.exception("a stream failed", extra={"connection": reader.connection})
            reader.ending = "failed"
            self._finish(reader)
        finally:
            reader.catching_up = None

    async def _follow(self, reader: Reader) -> None:
        """Brings a reader to the hub's place, chunk by chunk, and makes it live."""
        while True:
            await self._sent(reader)
            if reader.ending:
                return self._say_bye(reader)
            if reader.places is None:
                await self._find_start(reader)
            assert reader.places is not None
            if reader.renewing:
                await self._take_from_log(reader)
                continue
            at_hub = all(self.hub.rings[shard].place == place for shard, place in reader.places.items())
            if at_hub and not reader.greeted:
                self._send(reader, self._hello(reader, "exact"))
            elif at_hub:
                if self.hub.go_live(reader):
                    return
            elif not self._take_from_ring(reader):
                await self._take_from_log(reader)

    async def _sent(self, reader: Reader) -> None:
        """Until no chunk is under way. To be awaited after every other await and before a send: a heartbeat may have begun.

        Raises TimeoutError for a client that takes nothing.
        """
        if reader.sending is not None:
            async with asyncio.timeout(self.pace.send_s):
                await reader.sending
            reader.sending = None

    def _begin_live(self, reader: Reader) -> bool:
        """A stream without a position begins at the hub's place: where all is known, it is live at once, without a task."""
        audience = reader.audience
        if reader.places is not None or reader.newest or (audience.single and audience.n is None):
            return False
        self._greet_at_hub(reader)
        return reader.sending is None and self.hub.go_live(reader)

    def _greet_at_hub(self, reader: Reader) -> None:
        reader.places = self.hub.places(reader.audience)
        reader.n = reader.audience.n
        self._send(reader, self._hello(reader, "new"))

    async def _find_start(self, reader: Reader) -> None:
        """A stream without a position: the newest k of each topic, or the hub's own place."""
        audience = reader.audience
        if reader.newest:
            landing = await self._read(reader, dict.fromkeys(audience.by_shard, EARLIEST), reader.newest)
            await self._sent(reader)
            return self._land(reader, landing)
        if audience.single and audience.n is None:
            await self._count(reader)
            await self._sent(reader)
        self._greet_at_hub(reader)

    async def _count(self, reader: Reader) -> None:
        """Finds a single topic's number at the hub's place, so that a later gap can be counted.

        The audience has joined, so an event that comes while this waits sets the number itself. Where the hub starts again
        at the journal's end meanwhile, it passes over events that nobody counts.
        """
        audience, places = reader.audience, self.hub.places(reader.audience)
        landing = await self._read(reader, places, None)
        went_on = all(self.hub.rings[shard].find(place) is not None for shard, place in places.items())
        if audience.n is None and went_on and landing.empty and not landing.gaps:
            audience.n = landing.n

    def _take_from_ring(self, reader: Reader) -> bool:
        """What the ring has after the reader's place, if it is one of the ring's. False: it has to be read from the log."""
        audience = reader.audience
        assert reader.places is not None
        if reader.starts or not (reader.greeted or self._is_known(reader)):
            return False
        for shard, place in reader.places.items():
            ring = self.hub.rings[shard]
            s = ring.find(place) if place != ring.place else None
            if s is None:
                continue
            if len(reader.places) == 1:
                chunk, end = audience.part_after(s, ring)
            else:
                own = [event for event in ring.after(s) if event.topic in audience.members and audience.wants(event)]
                part = first_bytes(own, CHUNK_BYTES)
                chunk = audience.coding.compress(framing.blocks(part, shard, False, reader.places, audience.seal))
                end = ring.place if len(part) == len(own) else part[-1].place
            hello = b"" if reader.greeted else self._hello(reader, "exact")
            if audience.single:
                known = end == ring.place and audience.n is not None
                reader.n = audience.n if known else self._number(reader, ring.between(s, end.s))
            reader.places[shard] = end
            self._move_on(reader)
            if chunk:
                reader.cursor_ms = end.ms
            self._send(reader, hello + chunk)
            return True
        return False

    def _is_known(self, reader: Reader) -> bool:
        """Whether the ring, or the hub's place, answers for every shard: only then is the verdict known without the log."""
        assert reader.places is not None
        rings = self.hub.rings
        return all(rings[shard].find(place) is not None for shard, place in reader.places.items())

    def _number(self, reader: Reader, events: Iterable[Any]) -> int | None:
        numbers = [event.n for event in events if event.topic == reader.audience.single]
        return numbers[-1] if numbers else reader.n

    async def _take_from_log(self, reader: Reader) -> None:
        places, looked = reader.places, reader.looked or {}
        assert places is not None
        behind = {
            shard: place
            for shard, place in places.items()
            if reader.renewing or (place != self.hub.rings[shard].place and looked.get(shard) != self.hub.rings[shard].step)
        }
        moved = self.hub.moved
        if not behind:  # it has read what the tail has yet to read
            await moved.wait()
            return
        try:
            landing = await self._read(reader, behind, reader.newest if reader.renewing else None)
        except LogUnavailable:
            if not reader.greeted:
                raise
            await moved.wait()
            return
        await self._sent(reader)
        self._land(reader, landing)

    def _land(self, reader: Reader, landing: Landing) -> None:
        """A read of the log is back: it tells what it found, and the reader is where the read ended."""
        if landing.reset:
            return self._begin_anew(reader)
        parts = []
        if reader.places is None or reader.renewing:  # the events' beginning is the place to resume from
            verdict = "reset" if reader.renewing else "new"
            reader.places, reader.n = dict(landing.began), landing.began_n
            parts.append(self._hello(reader, verdict))
        elif not reader.greeted:
            parts.append(self._hello(reader, "gap" if landing.gaps else "exact"))
        for gap in landing.gaps:
            self.observer.gap(gap)
        if landing.gaps and not reader.audience.single:
            reader.told = {**(reader.told or {}), **{gap.topic: gap.place for gap in landing.gaps}}
        parts.append(landing.chunk)
        reader.places = {**reader.places, **landing.places}
        reader.n, reader.starts = landing.n, landing.starts
        reader.looked = {**(reader.looked or {}), **landing.looked}
        reader.renewing = False
        self._move_on(reader)
        if landing.chunk:
            reader.cursor_ms = max(place.ms for place in reader.places.values())
        self._send(reader, b"".join(parts))

    def _move_on(self, reader: Reader) -> None:
        """It has moved on, and its last id may be before what its filter hid."""
        if reader.audience.names is not None:
            reader.hidden = None

    def _begin_anew(self, reader: Reader) -> None:
        """A reset: in all shards, since the client drops all that it has."""
        reader.places = dict.fromkeys(reader.audience.by_shard, EARLIEST)
        reader.n, reader.renewing = 0, True
        reader.looked = reader.starts = reader.told = None

    # Reads of the log, shared

    async def _read(self, reader: Reader, places: Mapping[int, Place], newest: int | None) -> Landing:
        audience = reader.audience
        all_places = tuple(sorted((reader.places or {}).items()))
        starts = tuple(sorted((reader.starts or {}).items()))
        told = frozenset((reader.told or {}).items())
        key = (audience.key, tuple(places.items()), all_places, reader.n, reader.renewing, newest, starts, told)
        task = self._reads.get(key)
        if task is None:
            task = asyncio.create_task(self._read_once(reader, dict(places), newest))
            self._reads[key] = task
            task.add_done_callback(lambda task: self._forget(key, task))
        return await asyncio.shield(task)

    def _forget(self, key: object, task: asyncio.Task[Landing]) -> None:
        del self._reads[key]
        if not task.cancelled():
            task.exception()  # whoever still waits raises it; if all have left, nobody misses it

    async def _read_once(self, reader: Reader, places: dict[int, Place], newest: int | None) -> Landing:
        audience, renewing = reader.audience, reader.renewing
        n, starts, all_places = reader.n, reader.starts or {}, dict(reader.places or places)
        told = reader.told or {}
        steps = {shard: self.hub.rings[shard].step for shard in places}
        bounds = Bounds(READ_ENTRIES, CHUNK_BYTES * min(READ_TOPICS, len(audience.topics)))
        reads = await asyncio.gather(
            *(
                self.log.read(shard, place, audience.by_shard[shard], bounds, newest=newest, starts=starts)
                for shard, place in places.items()
            )
        )
        if any(read.reset for read in reads):
            return Landing(True, [], {}, None, None, b"", False, {}, None, {})
        spans = [judge(read, n) for read in reads]
        # A gap of several topics is found at each read until the oldest entry is passed, and told once.
        gaps = [gap for span in spans for gap in span.gaps if told.get(gap.topic) != gap.place]
        began, began_n = {read.shard: places[read.shard] for read in reads}, n
        if newest:
            began = {span.shard: start_of(span) for span in spans}
            began_n = first_number(spans[0]) if audience.single else None
        if renewing:
            gaps = [lost_all(topic, read.end) for read in reads for topic in read.topics]
        # Of several topics all gaps come first, without an id: they may be told again after a cut.
        parts = [gap_block(gap, self.log.shard(gap.topic), bool(audience.single)) for gap in gaps]
        at = {**all_places, **began}
        for span in spans:
            wanted = [event for event in span.events if audience.wants(event)]
            parts.append(framing.blocks(wanted, span.shard, bool(audience.single), at, audience.seal))
            at[span.shard] = span.end
        return Landing(
            False,
            gaps,
            {span.shard: span.end for span in spans},
            spans[0].n if audience.single else None,
            still_starting(spans) if newest or starts else None,
            audience.coding.compress(b"".join(parts)),
            not any(span.events for span in spans),
            began,
            began_n,
            {span.shard: steps[span.shard] for span in spans if not span.more},
        )

    # Sending

    def _send(self, reader: Reader, chunk: bytes) -> None:
        assert reader.sending is None
        if chunk:
            reader.sending = push(reader.send, body(chunk))

    def _cursor(self, reader: Reader) -> str:
        audience = reader.audience
        places = reader.places or self.hub.places(audience)
        return write_cursor(places, reader.number if audience.single else None, audience.single)

    def _hello(self, reader: Reader, verdict: str) -> bytes:
        cursor = self._cursor(reader)
        reader.greeted = True
        assert reader.places is not None
        reader.cursor_ms = max(place.ms for place in reader.places.values())
        reader.hidden = reader.audience.hidden
        self.observer.resumed(verdict)
        data = {
            "cursor": cursor,
            "resume": verdict,
            "heartbeat_s": reader.heartbeat_s,
            "time": int(time.time() * 1000),
            "connection": reader.connection,
            "token_expires": reader.token_expires,
        }
        return reader.audience.coding.wrap(sse.retry(random.randint(*RETRY_MS)) + sse.block("hello", msgspec.json.encode(data), id=cursor))

    # Ends

    def end(self, reader: Reader, reason: str) -> None:
        """Ends a stream with a `bye`. If a chunk is under way, the bye comes behind it."""
        if reader.ending:
            return
        reader.ending = reason
        if reader.live:
            self.hub.fall_behind(reader, None)
        if reader.sending is None:
            if reader.catching_up and reader.catching_up is not asyncio.current_task():
                reader.catching_up.cancel()
            self._say_bye(reader)
        elif reader.catching_up is None:
            self._start_catching_up(reader)

    def _say_bye(self, reader: Reader) -> None:
        assert reader.ending
        # While it is to be told of a reset, it must come back with what it has. (Before its hello that is what it came with.)
        known = (reader.greeted or reader.places is not None) and not reader.renewing
        cursor = self._cursor(reader) if known else ""
        push(reader.send, body(reader.audience.coding.wrap(bye(reader.ending, cursor)), more=False))
        self._finish(reader)

    def _finish(self, reader: Reader) -> None:
        if reader.handler:
            reader.handler.cancel()

    async def drain(self, within_s: float) -> None:
        """Ends all streams, spread over the time: so that clients come back spread, and since the server has been seen to
        crash when many end in one moment."""
        open_now = [reader for turns in self._beats.values() for turn in turns for reader in turn]
        async for reader in spread(open_now, within_s):
            self.end(reader, "drain")

    # The clock

    async def beat(self) -> None:
        """Heartbeats and deadlines of all streams, until cancelled."""
        loop = asyncio.get_running_loop()
        next_s, due, part = loop.time(), int(time.time() * SLOTS_A_SECOND), 0
        while True:
            next_s += 1 / SLOTS_A_SECOND
            await asyncio.sleep(max(0, next_s - loop.time()))
            part += 1
            for turns in self._beats.values():
                for reader in list(turns[part % len(turns)]):
                    self._beat(reader)
            while due < int(time.time() * SLOTS_A_SECOND):
                due += 1
                for reader in list(self._deadlines.get(due, ())):
                    self.end(reader, "expired" if reader.expires else "max_age")

    def _beat(self, reader: Reader) -> None:
        if reader.sending is not None or reader.ending or not reader.greeted:
            return
        audience = reader.audience
        if reader.live and self._is_stale(reader):
            cursor = self._cursor(reader)
            reader.cursor_ms = max(self.hub.rings[shard].place.ms for shard in audience.by_shard)
            reader.hidden = audience.hidden
            data = {"cursor": cursor, "time": int(time.time() * 1000)}
            message = body(audience.coding.wrap(sse.block("sync", msgspec.json.encode(data), id=cursor)))
        elif time.monotonic() - audience.pushed_at < 1 / SLOTS_A_SECOND and reader.live:
            return
        else:
            message = audience.heartbeat
        sending = push(reader.send, message)
        if sending is None:
            return
        if reader.live:
            self.hub.fall_behind(reader, sending)
            self._start_catching_up(reader)
        else:
            reader.sending = sending

    def _is_stale(self, reader: Reader) -> bool:
        """Whether the client's last id is far behind its place: its filter hid events, or its topics are quiet."""
        audience = reader.audience
        if reader.hidden is None or (audience.hides and reader.hidden < audience.hidden):
            return True
        known_ms = max(reader.cursor_ms, audience.pushed_ms)
        hub_ms = max(self.hub.rings[shard].place.ms for shard in audience.by_shard)
        quiet_ms = int(time.time() * 1000) - known_ms
        return hub_ms > known_ms and quiet_ms > self.log.retention.retention_ms / 4


async def spread(items: list[T], within_s: float) -> AsyncIterator[T]:
    """In random order, evenly over the time."""
    random.shuffle(items)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for index, item in enumerate(items):
        early_s = began + within_s * index / len(items) - loop.time()
        if early_s > SPREAD_STEP_S:
            await asyncio.sleep(early_s)
        yield item


def bye(reason: str, cursor: str = "", pause_s: float | None = None) -> bytes:
    """The last block. The client's pause is drawn for each, so that they don't come back at once."""
    retry_ms = random.randint(*(DRAIN_RETRY_MS if reason == "drain" else RETRY_MS)) if pause_s is None else round(pause_s * 1000)
    data = {"reason": reason, "reconnect_ms": retry_ms}
    return sse.block("bye", msgspec.json.encode(data), id=cursor, retry_ms=retry_ms)


async def refuse(send: Send, problem: Problem, headers: Headers, start: Start) -> None:
    """A stream that can't be served now: a 200 with a bye, since any other status ends an EventSource for good.

    Its id is the position that the client came with: there are clients that take a block without an id for one with an
    empty id if it is the first of a connection, and would come back with none.
    """
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})
    reason = "busy" if isinstance(problem, TooMany) else "unavailable"
    await send(body(bye(reason, start.cursor(), problem.retry_after_s), more=False))


def start_of(span: Span) -> Place:
    """The place before a span of the newest k: just before its first event."""
    return span.events[0].place.before() if span.events else span.end


def first_number(span: Span) -> int | None:
    return span.events[0].n - 1 if span.events else span.n


def first_bytes(events: list[Event], most: int) -> list[Event]:
    """As many of the first events as have so many bytes of data; at least one."""
    size = 0
    for index, event in enumerate(events):
        size += len(event.data)
        if size >= most:
            return events[: index + 1]
    return events


def still_starting(spans: Iterable[Span]) -> dict[str, tuple[int, int]] | None:
    """The topics that begin only after the end of their span."""
    later = {topic: start for span in spans for topic, start in span.starts.items() if start > span.end.at()}
    return later or None


def gap_block(gap: Gap, shard: int, with_id: bool) -> bytes:
    data = msgspec.json.encode(gap.body(shard))
    return sse.block("gap", data, id=gap_cursor(gap, shard) if with_id else "")
