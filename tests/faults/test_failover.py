"""A replica takes over: the service goes on by itself, and whoever saw an event that the replica never got is told so."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from relay.event import Retention
from relay.log import APPEND, APPEND_EVENTS_MAX, NewEvent, open_log
from tests.faults.clients import Follower, Publisher, retained, running, upto
from tests.faults.conftest import StartRelays
from tests.faults.network import Proxy, open_proxy
from tests.servers import Relay, Valkey, replica_of, topic
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.anyio

DAY_MS = 86_400_000
RETENTION = Retention(DAY_MS, 10_000, 100_000, DAY_MS)
LOST = 30


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """Where the relay of this module finds its Valkey: each test leads it to servers of its own."""
    with open_proxy() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def first(folder: Path) -> Iterator[Valkey]:
    server = Valkey(folder / "first")
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def relays(start_relays: StartRelays, proxy: Proxy, first: Valkey) -> list[Relay]:
    proxy.lead_to(first)
    return start_relays(2, proxy.url)


@dataclass
class Case:
    """A topic with a publisher, and two streams of it on each relay, of which one has another topic as well."""

    topic: str
    publisher: Publisher
    followers: list[Follower]
    opened: int = 0  # streams, until all was well

    def check_that_streams_stayed_open(self) -> None:
        assert sum(one.connects for one in self.followers) == self.opened

    async def rest(self) -> int:
        """Nothing is published for now, and all have what was."""
        last = await self.publisher.rest()
        await self.all_reach(last)
        return last

    async def all_reach(self, number: int) -> None:
        for one in self.followers:
            await one.reaches(number)


@asynccontextmanager
async def open_case(http: httpx.AsyncClient, *relays: Relay) -> AsyncIterator[Case]:
    name, other = topic(), topic()
    followers = []
    for relay in relays:
        followers += [
            Follower(http, f"{relay.url}/stream/{name}/v1/live", "cursor=earliest"),
            Follower(http, f"{relay.url}/stream/v1/live?topic={name}&topic={other}", "cursor=earliest"),
        ]
    case = Case(name, Publisher(http, f"{relays[0].url}/stream/{name}"), followers)
    async with running(case.publisher, *followers):
        await case.all_reach(20)
        case.opened = sum(one.connects for one in followers)
        yield case


def lead(proxy: Proxy, server: Valkey, relays: list[Relay]) -> None:
    """By way of nowhere, since a relay says that its Valkey is here until it has noticed that the old one isn't."""
    proxy.lead_to(None)
    for relay in relays:
        wait_for("the relay has lost the old server", partial(tells, relay, "away"))
    proxy.lead_to(server)
    for relay in relays:
        wait_for("the relay is on the other server", partial(tells, relay, "here"))


def tells(relay: Relay, of_valkey: str) -> bool:
    return bool(httpx.get(f"{relay.url}/readyz", timeout=LIMIT_S).json()["valkey"] == of_valkey)


def lose_link(primary: Valkey, replica: Valkey) -> None:
    """From now on the replica gets nothing from its primary."""
    replica.pause()
    primary.ask("CLIENT", "KILL", "TYPE", "replica")


async def append(server: Valkey, name: str, numbers: range) -> None:
    """Beside the relays, as another one would that found the server first."""
    async with open_log(server.url, 1, RETENTION, LIMIT_S) as log:
        await log.append([NewEvent(name, "update", b'{"i":%d}' % number) for number in numbers])


@pytest.mark.parametrize("written", [0, LOST, 2 * LOST])
async def test_what_the_replica_never_got_is_told(
    http: httpx.AsyncClient, relays: list[Relay], proxy: Proxy, directory: Path, written: int
) -> None:
    """Also when the new primary has written up to the old place, or past it, before the tails are back."""
    with ExitStack() as stack:
        primary = Valkey(directory / "primary").start()
        stack.callback(primary.kill)
        replica = replica_of(primary, directory / "replica")
        stack.callback(replica.kill)
        lead(proxy, primary, relays)
        async with open_case(http, *relays) as case:
            lose_link(primary, replica)
            shared = len(retained(primary, case.topic))
            await case.publisher.has_published(shared + LOST)
            await case.all_reach(shared + LOST)
            proxy.lead_to(None)
            await case.publisher.is_refused()
            last = case.publisher.acknowledged
            primary.kill()
            replica.resume()
            replica.ask("REPLICAOF", "NO", "ONE")
            before = len(retained(replica, case.topic))
            new = range(10_001, 10_001 + written)
            if new:
                await append(replica, case.topic, new)
            proxy.lead_to(replica)
            await case.publisher.has_published(last + 20)
            await case.all_reach(last + 20)
            for one in case.followers:
                assert one.verdicts == ["exact", "reset"]
                assert one.numbers[: before + written + 20] == [*upto(before), *new, *range(last + 1, last + 21)]
                assert [gap["lost"] for gap in one.names("gap")] == [None] * len(one.names("gap")) != []
            case.check_that_streams_stayed_open()


async def test_a_log_that_was_flushed_is_told(http: httpx.AsyncClient, relays: list[Relay], proxy: Proxy, first: Valkey) -> None:
    lead(proxy, first, relays)
    async with open_case(http, *relays) as case:
        first.ask("FLUSHALL")
        for one in case.followers:
            await one.is_told("hello", 2)
        await case.publisher.has_published(case.publisher.acknowledged + 20)
        await case.rest()
        kept = retained(first, case.topic)
        assert kept[0] > 1
        for one in case.followers:
            assert one.verdicts == ["exact", "reset"]
            assert one.numbers == kept == list(range(kept[0], kept[-1] + 1))
        case.check_that_streams_stayed_open()


async def test_an_append_whose_answer_is_late_is_not_repeated(
    http: httpx.AsyncClient, relays: list[Relay], proxy: Proxy, first: Valkey
) -> None:
    lead(proxy, first, relays)
    name, url = topic(), f"{relays[0].url}/stream"
    n = (await http.post(f"{url}/{name}", json={"data": {"i": 1}})).json()["n"]
    proxy.hold_reply(APPEND.sha.encode())
    async with asyncio.TaskGroup() as group:
        sent = group.create_task(http.post(f"{url}/{name}", json={"data": {"i": 2}}, headers={"idempotency-key": "two"}))
        await proxy.is_holding()
        # It has no answer yet, so what comes meanwhile isn't sent, and fails with it. What comes later finds a server.
        others = [group.create_task(http.post(f"{url}/{name}", json={"data": {"i": number}})) for number in range(3, 23)]
        for _ in range(5):
            await http.get(f"{relays[0].url}/healthz")
        proxy.lead_to(first)
    answers = [sent.result(), *(one.result() for one in others)]
    assert answers[0].status_code == 503
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status_code == 503)
    taken = [number for number, answer in enumerate(answers, 2) if answer.status_code == 201]
    assert len(taken) + sum(answer.status_code == 503 for answer in answers) == 21
    kept = retained(first, name)
    assert (kept[:2], sorted(kept)) == ([1, 2], [1, 2, *taken])
    wait_for("the relay has found it again", partial(tells, relays[0], "here"))
    again = await http.post(f"{url}/{name}", json={"data": {"i": 2}}, headers={"idempotency-key": "two"})
    assert (again.status_code, again.json()["n"], again.json()["duplicate"]) == (200, n + 1, True)
    after = await http.post(f"{url}/{name}", json={"data": {"i": 23}})
    assert (after.status_code, after.json()["n"]) == (201, n + 1 + len(taken) + 1)
    assert retained(first, name) == [*kept, 23]


async def test_a_batch_that_fails_midway_keeps_its_order(http: httpx.AsyncClient, relays: list[Relay], proxy: Proxy, first: Valkey) -> None:
    """What comes after the call that failed isn't in the log before the publisher has repeated it."""
    lead(proxy, first, relays)
    name, url = topic(), f"{relays[0].url}/stream"
    batch = [{"topic": name, "data": {"i": number}, "key": f"key-{number}"} for number in upto(500)]
    assert (await http.post(f"{url}/publish", json=batch[:1])).status_code == 200
    proxy.hold_reply(APPEND.sha.encode())
    async with asyncio.TaskGroup() as group:
        sent = group.create_task(http.post(f"{url}/publish", json=batch))
        await proxy.is_holding()
        proxy.lead_to(first)
    assert sent.result().status_code == 503
    assert retained(first, name) == upto(APPEND_EVENTS_MAX)
    wait_for("the relay has found it again", partial(tells, relays[0], "here"))
    answer = await http.post(f"{url}/publish", json=batch)
    assert [one["duplicate"] for one in answer.json()["results"]] == [True] * APPEND_EVENTS_MAX + [False] * (500 - APPEND_EVENTS_MAX)
    assert retained(first, name) == upto(500)
