"""One process of many does a job, and none that did it before writes any more."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.errors import Fenced, LogUnavailable
from relay.event import Retention
from relay.lease import Fence, Lease, lead, lease_key, new_holder
from relay.log import APPEND, APPEND_EVENTS_MAX, Log, NewEvent, open_log
from tests.faults.network import open_proxy
from tests.servers import Valkey, topic
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.anyio

LIFE_S = 0.6
SHARDS = 3
HOUR_MS = 3_600_000
PATIENCE_S = 60.0  # with a Valkey that gets little of a busy machine


@pytest.fixture
async def log(valkey: Valkey) -> AsyncIterator[Log]:
    """Of several shards: the shared server doesn't mind, since nobody asks it how many there are."""
    async with open_log(valkey.url, SHARDS, Retention(HOUR_MS, 1000, 100_000, HOUR_MS), PATIENCE_S) as log:
        yield log


@pytest.fixture
def name() -> str:
    return topic().replace("/", "-")


def lease_of(log: Log, name: str, life_s: float = LIFE_S) -> Lease:
    return Lease(log.servers, log.shards, name, new_holder(), life_s)


def topic_of(log: Log, shard: int) -> str:
    return next(name for name in (topic() for _ in range(1000)) if log.shard(name) == shard)


async def taken(lease: Lease) -> Fence:
    fence = await lease.take()
    assert fence
    return fence


def number(fence: Fence) -> int:
    return int(fence.value.split()[0])


async def test_one_holds_it_until_it_leaves(log: Log, name: str) -> None:
    one, other = lease_of(log, name, 60), lease_of(log, name, 60)
    first = await taken(one)
    assert await other.take() is None
    assert await one.keep(first)
    await one.leave(first)
    second = await taken(other)
    assert number(second) > number(first)
    assert not await one.keep(first)
    await one.leave(first)
    assert await other.keep(second)


async def test_it_ends_by_itself(log: Log, name: str) -> None:
    one, other = lease_of(log, name, 0.05), lease_of(log, name)
    first = await taken(one)
    async with asyncio.timeout(LIMIT_S):
        while not (second := await other.take()):
            pass
    assert number(second) > number(first)
    assert not await one.keep(first)


async def test_whoever_had_it_before_appends_nothing_on_any_shard(log: Log, name: str) -> None:
    one, other = lease_of(log, name), lease_of(log, name)
    topics = [topic_of(log, shard) for shard in range(SHARDS)]
    events = [NewEvent(topic, "update", b"1") for topic in topics]
    first = await taken(one)
    assert [answer.event.topic for answer in await log.append_fenced(events, first)] == topics
    await one.leave(first)
    second = await taken(other)
    for event in events:
        with pytest.raises(Fenced):
            await log.append_fenced([event], first)
    # Whoever publishes without a lease, and whoever has it now, is not concerned.
    assert [answer.event.n for answer in await log.append(events)] == [
        answer.event.n - 1 for answer in await log.append_fenced(events, second)
    ]


async def test_many_events_are_in_order_over_several_calls(log: Log, name: str) -> None:
    fence = await taken(lease_of(log, name, 60))
    names = [topic_of(log, 0), topic_of(log, 1)]
    events = [NewEvent(names[number % 2], "update", b"%d" % number, f"k{number}") for number in range(2 * APPEND_EVENTS_MAX + 50)]
    answers = await log.append_fenced(events, fence)
    assert [answer.event.data for answer in answers] == [event.data for event in events]
    for name in names:
        numbers = [answer.event.n for answer in answers if answer.event.topic == name]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    again = await log.append_fenced(events, fence)
    assert [(one.event.n, one.duplicate) for one in again] == [(one.event.n, True) for one in answers]


async def test_a_shard_that_knows_a_higher_number_gets_a_higher_one(log: Log, valkey: Valkey, name: str) -> None:
    """As after a failover of one shard's server but not of the other's."""
    valkey.ask("HSET", "{relay:2}:shard", f"f:{name}", "41 somebody")
    fence = await taken(lease_of(log, name))
    assert number(fence) > 41
    assert await log.append_fenced([NewEvent(topic_of(log, 2), "update", b"1")], fence)


async def test_a_log_that_was_lost_keeps_out_who_wrote_to_it_before(tmp_path: Path, name: str) -> None:
    """Numbers begin anew there, and the same number isn't the same holder."""
    server = Valkey(tmp_path).start()
    try:
        async with open_log(server.url, 1, Retention(HOUR_MS, 100, 100, HOUR_MS), PATIENCE_S) as log:
            first = await taken(lease_of(log, name))
            server.ask("FLUSHALL")
            event = NewEvent(topic(), "update", b"1")
            with pytest.raises(Fenced):
                await log.append_fenced([event], first)
            second = await taken(lease_of(log, name))
            assert number(second) == number(first)
            with pytest.raises(Fenced):
                await log.append_fenced([event], first)
            assert await log.append_fenced([event], second)
    finally:
        server.kill()


async def test_an_append_that_was_cut_off_is_repeated_once(valkey: Valkey, name: str) -> None:
    own = topic()
    with open_proxy() as proxy:
        proxy.lead_to(valkey)
        async with open_log(proxy.url, 1, Retention(HOUR_MS, 1000, 100_000, HOUR_MS), PATIENCE_S) as log:
            fence = await taken(lease_of(log, name, 60))
            events = [NewEvent(own, "update", b"1", "a"), NewEvent(own, "update", b"2", "b")]
            proxy.hold_reply(APPEND.sha.encode())
            cut_off = asyncio.create_task(log.append_fenced(events, fence))
            await asyncio.to_thread(proxy.held.wait, LIMIT_S)
            proxy.lead_to(valkey)
            with pytest.raises(LogUnavailable):
                await cut_off
            assert [answer.duplicate for answer in await log.append_fenced(events, fence)] == [True, True]
    assert valkey.ask("XLEN", f"{{relay:0}}:topic:{own}") == 2


# Leading


class Worker:
    """Does its job until it is stopped, and tells."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.fences: list[Fence] = []
        self.begun, self.ended, self.done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(self, fence: Fence) -> None:
        self.fences.append(fence)
        self.begun.set()
        self.ended.clear()
        try:
            await self.done.wait()
        finally:
            self.begun.clear()
            self.ended.set()

    async def __aenter__(self) -> "Worker":
        self.task = asyncio.create_task(lead(self.lease, self.work))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(LIMIT_S):
        await event.wait()


async def test_the_work_ends_when_the_lease_is_lost_and_begins_again_under_another_number(log: Log, valkey: Valkey, name: str) -> None:
    async with Worker(lease_of(log, name)) as worker:
        await soon(worker.begun)
        valkey.ask("DEL", lease_key(name))
        await soon(worker.ended)
        await soon(worker.begun)
        assert number(worker.fences[1]) > number(worker.fences[0])


class Asked(Lease):
    """Tells how often it was asked for."""

    times = 0

    async def take(self) -> Fence | None:
        fence = await super().take()
        self.times += 1
        return fence


async def test_another_waits_and_goes_on_when_the_first_stops(log: Log, name: str) -> None:
    async with Worker(lease_of(log, name, 2 * LIMIT_S)) as one:
        await soon(one.begun)
        asked = Asked(log.servers, log.shards, name, new_holder(), LIFE_S)
        other = Worker(asked)
        async with other:
            await asyncio.to_thread(wait_for, "it has asked several times", lambda: asked.times > 3)
            assert not other.begun.is_set()
            one.task.cancel()
            await soon(one.ended)
            await soon(other.begun)
            assert number(other.fences[0]) > number(one.fences[0])


class Stalls:
    """How long this process stood still, at the longest: by a clock that should tick all the time."""

    longest_s = 0.0

    async def tick(self) -> None:
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(0.01)
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    async def __aenter__(self) -> "Stalls":
        self._task = asyncio.create_task(self.tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()


async def test_a_leader_that_is_cut_off_ends_before_another_begins(log: Log, valkey: Valkey, name: str) -> None:
    """By clocks that go on. A leader that stands still finds out later, and until then its fence keeps it out."""
    with open_proxy() as proxy:
        proxy.lead_to(valkey)
        async with Stalls() as stalls, open_log(proxy.url, SHARDS, log.retention, PATIENCE_S) as far, Worker(lease_of(far, name)) as one:
            await soon(one.begun)
            async with Worker(lease_of(log, name)) as other:
                proxy.lead_to(None)
                await soon(other.begun)
                assert one.ended.is_set() or stalls.longest_s > LIFE_S / 10
                await soon(one.ended)
                proxy.lead_to(valkey)
                with pytest.raises(Fenced):
                    await far.append_fenced([NewEvent(topic(), "update", b"1")], one.fences[0])
                assert await log.append_fenced([NewEvent(topic(), "update", b"1")], other.fences[0])


async def test_whoever_is_stopped_at_any_step_leaves_no_lease_behind(log: Log, valkey: Valkey, name: str) -> None:
    for steps in range(40):
        worker = Worker(lease_of(log, name, 60))
        async with worker:
            for _ in range(steps):
                await asyncio.sleep(0)
        assert valkey.ask("EXISTS", lease_key(name)) == 0, steps


async def test_work_that_fails_is_no_secret(log: Log, name: str) -> None:
    async def fail(fence: Fence) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await lead(lease_of(log, name), fail)
    assert await lease_of(log, name).take()
