"""What becomes of a stream when something happens while it reads the log. Else streams are tested on the real one."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

import pytest

from relay import follow
from relay.cursor import Place, parse_cursor
from relay.event import Event, Retention
from relay.follow import Pace, Start, Streams
from relay.hub import Hub
from relay.log import Bounds, Log
from relay.records import Records
from relay.span import Gap, Head, ShardRead, TopicRead
from relay.standing import Standing
from tests.streams import Parser
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio

T = "a/b/t"
STANDING = Standing(cast(Log, None), cast(Records, None), None, 30)  # of people with whom all is well


def place(s: int) -> Place:
    return Place("e", 1000, s)


class SlowLog:
    """A topic without retained events, whose reads are answered by what was there when they began, and when it is told so."""

    retention = Retention(60_000, 100, 100, 60_000)

    def __init__(self, end: Place, n: int) -> None:
        self.end, self.head = end, Head(n, end.at(), 1)
        self.away: set[int] = set()
        self.began, self.answers = asyncio.Event(), asyncio.Event()

    def shard(self, topic: str) -> int:
        return 0

    async def read(self, shard: int, place: Place, topics: Sequence[str], bounds: Bounds, **_: object) -> ShardRead:
        read = ShardRead(shard, False, self.end, 2000, [TopicRead(topic, [], True, self.head, place.at()) for topic in topics])
        self.began.set()
        await self.answers.wait()
        return read


class Connection:
    """A client that takes everything and stays until it leaves."""

    def __init__(self) -> None:
        self.parser = Parser()
        self.ids: list[str] = []
        self.greeted, self.left = asyncio.Event(), asyncio.Event()

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        for block in self.parser.feed(message.get("body", b"")):
            self.ids.append(block.last_event_id)
            self.greeted.set()


class Unobserved:
    def resumed(self, verdict: str) -> None: ...
    def gap(self, gap: Gap) -> None: ...
    def ended(self, reason: str) -> None: ...


@pytest.mark.parametrize("meanwhile", ["nothing", "other events", "a new start"])
async def test_a_stream_from_now_has_a_number_only_if_it_was_counted_at_its_place(meanwhile: str) -> None:
    hub, log, connection = Hub(1), SlowLog(place(10), 4), Connection()
    hub.start(0, place(10))
    streams = Streams(cast(Log, log), hub, Pace(15, 25, 3600, 30), Unobserved(), lambda problem: None, STANDING)
    async with asyncio.timeout(LIMIT_S):
        running = asyncio.create_task(streams.run(Start((T,), "v1"), [], connection.receive, connection.send))
        await log.began.wait()
        if meanwhile == "other events":
            hub.advance(0, [Event("a/b/u", "update", 1, place(11), (0, 0), b"1")])
        elif meanwhile == "a new start":
            hub.restart(0, place(13))  # perhaps after some of this topic
        log.answers.set()
        await connection.greeted.wait()
        connection.left.set()
        await running
    cursor = parse_cursor(connection.ids[0])
    known = {"nothing": (10, 4), "other events": (11, 4), "a new start": (13, None)}
    assert (cursor.places[0].s, cursor.n) == known[meanwhile]


async def test_heartbeats_are_as_a_client_asks_else_rarer_the_more_streams_and_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "BEATS_A_SECOND_MAX", 1)
    hub, log = Hub(1), SlowLog(place(10), 4)
    hub.start(0, place(10))
    streams = Streams(cast(Log, log), hub, Pace(3, 7, 3600, 30), Unobserved(), lambda problem: None, STANDING)
    log.answers.set()
    asked = [0] * 12 + [5] * 40
    connections = [Connection() for _ in asked]
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as running:
        for connection, heartbeat_s in zip(connections, asked, strict=True):
            start = Start((T,), "v1", heartbeat_s=heartbeat_s)
            running.create_task(streams.run(start, [], connection.receive, connection.send))
            await connection.greeted.wait()
        readers = [reader for turns in streams._beats.values() for turn in turns for reader in turn]
        assert len(readers) == len(asked)
        assert sorted(reader.heartbeat_s for reader in readers) == sorted([3, 3, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7] + [5] * 40)
        assert {len(turns) / follow.SLOTS_A_SECOND for turns in streams._beats.values()} == {3, 4, 5, 6, 7}
        busy = [len(turn) for turn in streams._beats[5 * follow.SLOTS_A_SECOND]]
        assert max(busy) - min(busy) <= 1
        for connection in connections:
            connection.left.set()
    assert not any(turn for turns in streams._beats.values() for turn in turns)


async def test_streams_are_to_end_at_times_of_their_own_in_the_last_tenth_of_their_longest_life() -> None:
    hub, log = Hub(1), SlowLog(place(10), 4)
    hub.start(0, place(10))
    streams = Streams(cast(Log, log), hub, Pace(15, 25, 3600, 30), Unobserved(), lambda problem: None, STANDING)
    log.answers.set()
    connections = [Connection() for _ in range(60)]
    began_s = time.time()
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as running:
        for connection in connections:
            running.create_task(streams.run(Start((T,), "v1"), [], connection.receive, connection.send))
            await connection.greeted.wait()
        ends_s = [tick / follow.SLOTS_A_SECOND for tick in streams._deadlines]
        for connection in connections:
            connection.left.set()
    assert began_s + 3600 * (1 - follow.AGE_JITTER) <= min(ends_s)
    assert max(ends_s) <= time.time() + 3600 + 1 / follow.SLOTS_A_SECOND
    assert len(ends_s) > 30
    assert streams._deadlines == {}


@pytest.mark.parametrize("claimed", [0, 3, 10**15])
async def test_what_a_client_says_it_has_counted_is_told_to_nobody_else(claimed: int) -> None:
    hub, log = Hub(1), SlowLog(place(10), 4)
    hub.start(0, place(10))
    log.answers.set()
    streams = Streams(cast(Log, log), hub, Pace(15, 25, 3600, 30), Unobserved(), lambda problem: None, STANDING)
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as running:
        stranger, honest = Connection(), Connection()
        for connection, start in (
            (stranger, Start((T,), "v1", places={0: place(10)}, n=claimed)),
            (honest, Start((T,), "v1")),
        ):
            running.create_task(streams.run(start, [], connection.receive, connection.send))
            await connection.greeted.wait()
        await streams.drain(0)
    numbers = [[parse_cursor(id).n for id in connection.ids] for connection in (stranger, honest)]
    assert numbers == [[claimed, 4], [4, 4]]
