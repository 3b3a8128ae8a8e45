"""Sentinel makes a replica the primary: the relay asks for it, and goes on by itself."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.faults.clients import retained, upto
from tests.faults.conftest import StartRelays
from tests.faults.test_failover import LOST, lose_link, open_case
from tests.servers import SERVICE, Relay, Sentinels, Valkey, replica_of
from tests.waiting import wait_for

pytestmark = pytest.mark.anyio

AT_ONCE_S = 2.0
NOTICED_S = 5.0
FAILOVER_S = 15.0  # of which Sentinel needs two to four


@dataclass
class Service:
    """A primary, its replica, and three sentinels that watch them."""

    primary: Valkey
    replica: Valkey
    sentinels: Sentinels

    def change_over(self) -> None:
        """The old primary comes back as the replica of the new one."""
        self.primary.kill()
        self.primary.arguments = ("--replicaof", f"127.0.0.1 {self.replica.port}")
        self.primary.start()
        self.primary, self.replica = self.replica, self.primary
        wait_for("the replica follows", lambda: self.replica.info("master_link_status") == "up")
        wait_for("all sentinels know", lambda: all(map(self.is_known_to, self.sentinels.servers)))

    def is_known_to(self, sentinel: Valkey) -> bool:
        (state,) = sentinel.ask("SENTINEL MASTERS").values()
        (replica,) = sentinel.ask("SENTINEL SLAVES", SERVICE)
        return state["port"] == self.primary.port and not (replica["is_sdown"] or replica["is_disconnected"])


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    primary = Valkey(folder / "primary").start()
    replica = replica_of(primary, folder / "replica")
    sentinels = Sentinels(folder, primary).start()
    yield Service(primary, replica, sentinels)
    for server in (primary, replica, *sentinels.servers):
        server.kill()


@pytest.fixture(scope="module")
def relays(start_relays: StartRelays, service: Service) -> list[Relay]:
    return start_relays(2, service.sentinels.url)


@pytest.fixture
def changing_over(service: Service) -> Iterator[None]:
    yield
    service.change_over()


@pytest.mark.usefixtures("changing_over")
async def test_a_killed_primary_is_followed_by_its_replica(http: httpx.AsyncClient, relays: list[Relay], service: Service) -> None:
    async with open_case(http, *relays) as case:
        last = await case.rest()
        offset = service.primary.info("master_repl_offset")
        wait_for("the replica has it all", lambda: service.replica.info("slave_repl_offset") >= offset)
        service.primary.kill()
        case.publisher.going.set()
        await case.publisher.has_published(last + 20, FAILOVER_S)
        await case.all_reach(last + 20)
        assert case.publisher.refused
        assert case.publisher.slowest_s < AT_ONCE_S
        case.check_that_streams_stayed_open()
        for one in case.followers:
            assert one.verdicts == ["exact"]
            assert one.numbers[: last + 20] == upto(last + 20)


@pytest.mark.usefixtures("changing_over")
async def test_a_primary_that_hangs_comes_back_too_late(http: httpx.AsyncClient, relays: list[Relay], service: Service) -> None:
    """Its replica, which lacked the newest events, is the primary by then. They are told as lost, and it is left alone."""
    async with open_case(http, *relays) as case:
        lose_link(service.primary, service.replica)
        last = case.publisher.acknowledged + LOST
        await case.publisher.has_published(last)
        await case.all_reach(last)
        service.primary.pause()
        service.replica.resume()
        last = case.publisher.acknowledged
        await case.publisher.has_published(last + 20, FAILOVER_S)
        service.primary.resume()
        last += 40
        await case.publisher.has_published(last)
        # Whoever was still waiting for the old primary when it went on would hear of nothing until Sentinel has come to
        # speak with it, which takes it ten seconds.
        async with asyncio.timeout(NOTICED_S):
            await case.all_reach(last)
        case.check_that_streams_stayed_open()
        kept = retained(service.replica, case.topic)
        assert kept != upto(kept[-1])
        for one in case.followers:
            assert one.verdicts == ["exact", "reset"]
            assert one.numbers[: len(kept)] == kept[: len(one.numbers)]
