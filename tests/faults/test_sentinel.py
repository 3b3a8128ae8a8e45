"""Sentinel makes a replica the primary: the relay asks for it, and goes on by itself."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.faults.clients import retained, upto
from tests.faults.conftest import StartRelays
from tests.faults.test_failover import LOST, append, lose_link, open_case
from tests.servers import SERVICE, Relay, Sentinels, Valkey, is_named, replica_of
from tests.waiting import wait_for

pytestmark = pytest.mark.anyio


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
        replicas = sentinel.ask("SENTINEL SLAVES", SERVICE)
        there = [not (replica["is_sdown"] or replica["is_disconnected"]) for replica in replicas]
        return is_named(self.primary, sentinel) and self.sentinels.knows_all(sentinel) and there == [True]

    def have_the_old_one_forgotten(self) -> None:
        """Sentinel would come to speak with it when it is back, and cut its clients off."""
        for sentinel in self.sentinels.servers:
            sentinel.ask("SENTINEL", "RESET", SERVICE)


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with ExitStack() as stack:
        primary = Valkey(folder / "primary").start()
        stack.callback(primary.kill)
        replica = replica_of(primary, folder / "replica")
        stack.callback(replica.kill)
        sentinels = Sentinels(folder, primary)
        stack.callback(sentinels.kill)
        yield Service(primary, replica, sentinels.start())


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
        seen = len(relays[0].log())
        case.publisher.going.set()
        # Who publishes doesn't find out for itself, once the tail has.
        await asyncio.to_thread(wait_for, "publishers are told", lambda: "refused: the log is away" in relays[0].log()[seen:])
        await asyncio.to_thread(service.sentinels.fail_over, service.replica)
        await case.publisher.has_published(last + 20)
        await case.all_reach(last + 20)
        assert case.publisher.refused
        case.check_that_streams_stayed_open()
        for one in case.followers:
            assert one.verdicts == ["exact"]
            assert one.numbers[: last + 20] == upto(last + 20)


@pytest.mark.usefixtures("changing_over")
async def test_a_primary_that_hangs_comes_back_too_late(http: httpx.AsyncClient, relays: list[Relay], service: Service) -> None:
    """Its replica, which lacked the newest events, is the primary by then. They are told as lost, and it is left alone."""
    async with open_case(http, *relays) as case:
        lose_link(service.primary, service.replica)
        await case.publisher.has_published(case.publisher.acknowledged + LOST)
        last = await case.rest()
        service.primary.pause()
        service.replica.resume()
        await asyncio.to_thread(service.sentinels.fail_over, service.replica)
        service.have_the_old_one_forgotten()
        await append(service.replica, case.topic, range(last + 1, last + 21))
        case.publisher.acknowledged = last + 20
        service.primary.resume()
        # The tails were waiting for the old primary all the time: it answers now, and they find out for themselves.
        await case.all_reach(last + 20)
        case.publisher.going.set()
        await case.publisher.has_published(last + 40)
        await case.rest()
        case.check_that_streams_stayed_open()
        kept = retained(service.replica, case.topic)
        assert kept != upto(kept[-1])
        assert retained(service.primary, case.topic) == upto(last)
        for one in case.followers:
            assert one.verdicts == ["exact", "reset"]
            assert one.numbers == kept
