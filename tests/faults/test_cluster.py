"""A cluster of three primaries with replicas, and a log of three shards, one on each."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from relay.log import APPEND, shard_of
from tests.faults.clients import Follower, Publisher, retained, running, upto
from tests.faults.conftest import StartRelays
from tests.faults.network import open_proxy
from tests.faults.test_failover import LOST, lose_link
from tests.servers import Cluster, Relay, Valkey, topic
from tests.waiting import wait_for

pytestmark = pytest.mark.anyio

SHARDS = 3
HANDSHAKE_S = 10.0  # the cluster gives up a planned failover after five, and it is asked for again


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder / "cluster")
    try:
        yield cluster.start()
    finally:
        cluster.kill()


@pytest.fixture(scope="module")
def relays(start_relays: StartRelays, cluster: Cluster) -> list[Relay]:
    return start_relays(2, cluster.url, {"RELAY_SHARDS": str(SHARDS)})


def nodes_of(cluster: Cluster, shard: int) -> tuple[Valkey, Valkey]:
    return cluster.nodes_of(f"{{relay:{shard}}}:journal")


def topics_of_all_shards() -> list[str]:
    """The first is of shard 0, and so on."""
    found: dict[int, str] = {}
    while len(found) < SHARDS:
        name = topic()
        found[shard_of(name, SHARDS)] = name
    return [found[shard] for shard in range(SHARDS)]


@dataclass
class Case:
    """A topic on each shard with a publisher, and a stream of all of them on each relay."""

    topics: list[str]
    publishers: list[Publisher]
    followers: list[Follower]

    async def go_on(self, more: int = 20) -> None:
        """On all shards so many more events are published, and read."""
        wanted = [publisher.acknowledged + more for publisher in self.publishers]
        for publisher, number in zip(self.publishers, wanted, strict=True):
            await publisher.has_published(number)
        for one, (name, number) in itertools.product(self.followers, zip(self.topics, wanted, strict=True)):
            await one.progress.until(lambda one=one, name=name, number=number: number in one.got.get(name, []))  # type: ignore[misc]

    async def rest(self) -> None:
        """Nothing is published for now, and all have what was."""
        for publisher in self.publishers:
            await publisher.rest()
        await self.go_on(0)

    def resume(self) -> None:
        for publisher in self.publishers:
            publisher.going.set()


@asynccontextmanager
async def open_case(http: httpx.AsyncClient, relays: list[Relay]) -> AsyncIterator[Case]:
    topics = topics_of_all_shards()
    query = "&".join(f"topic={name}" for name in topics)
    followers = [Follower(http, f"{relay.url}/stream/v1/live?{query}", "cursor=earliest") for relay in relays]
    publishers = [Publisher(http, f"{relays[0].url}/stream/{name}") for name in topics]
    async with running(*publishers, *followers):
        case = Case(topics, publishers, followers)
        await case.go_on()
        yield case


async def test_one_cursor_serves_topics_of_all_shards(http: httpx.AsyncClient, relays: list[Relay]) -> None:
    async with open_case(http, relays) as case:
        await case.rest()
        cursor = case.followers[0].cursor
        before = [publisher.acknowledged for publisher in case.publishers]
        case.resume()
        await case.go_on()
        await case.rest()
        query = "&".join(f"topic={name}" for name in case.topics)
        page = (await http.get(f"{relays[1].url}/stream/v1/poll?{query}&cursor={cursor}&limit=500")).json()
        assert (page["resume"], page["more"]) == ("exact", False)
        for name, publisher, seen in zip(case.topics, case.publishers, before, strict=True):
            numbers = [event["data"]["i"] for event in page["events"] if event["topic"] == name]
            assert numbers == list(range(seen + 1, publisher.acknowledged + 1))


async def test_a_planned_failover_loses_nothing(http: httpx.AsyncClient, relays: list[Relay], cluster: Cluster) -> None:
    async with open_case(http, relays) as case:
        await asyncio.to_thread(change_places, cluster, 0)
        await case.go_on()
        await case.rest()
        for one in case.followers:
            assert (one.connects, one.verdicts) == (1, ["exact"])
            assert [one.got[name] for name in case.topics] == [upto(publisher.acknowledged) for publisher in case.publishers]
        case.resume()


def change_places(cluster: Cluster, shard: int) -> None:
    primary, replica = nodes_of(cluster, shard)
    asked_s = -math.inf

    def have_changed() -> bool:
        nonlocal asked_s
        if nodes_of(cluster, shard) == (replica, primary):
            return True
        if time.monotonic() > asked_s + HANDSHAKE_S:
            replica.ask("CLUSTER", "FAILOVER")
            asked_s = time.monotonic()
        return False

    wait_for("they have changed places", have_changed)


async def test_a_killed_primary_is_followed_by_its_replica(http: httpx.AsyncClient, relays: list[Relay], cluster: Cluster) -> None:
    """What the replica never got is told; what the other shards do goes on meanwhile."""
    primary, replica = nodes_of(cluster, 1)
    try:
        async with open_case(http, relays) as case:
            lose_link(primary, replica)
            await case.go_on(LOST)
            primary.kill()
            await case.publishers[1].is_refused()
            replica.resume()
            replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
            await case.go_on()
            await case.rest()
            assert [bool(publisher.refused) for publisher in case.publishers] == [False, True, False]
            servers = [nodes_of(cluster, 0)[0], replica, nodes_of(cluster, 2)[0]]
            kept = [retained(server, name, shard) for shard, (server, name) in enumerate(zip(servers, case.topics, strict=True))]
            assert kept[1] != upto(kept[1][-1])
            for one in case.followers:
                assert (one.connects, one.verdicts) == (1, ["exact", "reset"])
                assert [one.got[name] for name in case.topics] == kept
            case.resume()
    finally:
        primary.kill()
        replica.resume()
        primary.start()
        wait_for("it is a replica now", lambda: primary.info("master_link_status") == "up")


async def test_an_append_whose_answer_is_late_is_not_repeated(http: httpx.AsyncClient, relays: list[Relay], cluster: Cluster) -> None:
    primary, _ = nodes_of(cluster, 2)
    name = topics_of_all_shards()[2]
    url = f"{relays[0].url}/stream/{name}"
    with open_proxy() as proxy:
        proxy.lead_to(primary)
        primary.ask("CONFIG", "SET", "cluster-announce-port", proxy.port)
        try:
            wait_for("all are told of the other port", lambda: all(knows(node, proxy.port) for node in cluster.nodes))
            primary.ask("CLIENT", "KILL", "TYPE", "normal")
            publisher = Publisher(http, url)
            async with running(publisher):
                await publisher.has_published(1)
            proxy.hold_reply(APPEND.sha.encode())
            async with asyncio.TaskGroup() as group:
                sent = group.create_task(http.post(url, json={"data": {"i": 0}}))
                await proxy.is_holding()
                proxy.lead_to(primary)
            assert sent.result().status_code == 503
            assert retained(primary, name, 2).count(0) == 1
        finally:
            primary.ask("CONFIG", "SET", "cluster-announce-port", 0)


def knows(node: Valkey, port: int) -> bool:
    return any(owner[1] == port for _, _, owner, *_ in node.ask("CLUSTER", "SLOTS"))
