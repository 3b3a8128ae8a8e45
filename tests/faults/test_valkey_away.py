"""Valkey is killed, hangs, or hangs up: streams stay open, nobody else waits, and afterwards nothing is missing."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.faults.clients import Follower, Publisher, retained, running, until, upto
from tests.faults.conftest import FULL_SIZE, StartRelay
from tests.servers import Relay, Valkey, topic
from tests.streams import open_stream

pytestmark = pytest.mark.anyio

AT_ONCE_S = 2.0  # on a machine that has other things to do as well
HANGS_S = 60.0 if FULL_SIZE else 8.0  # by then the tail's pauses are as long as they get, and an open stream has lived on heartbeats
NOTICED_S = 3.0 + AT_ONCE_S  # the tail waits so long for a server that takes connections and says nothing
NO_REWRITE = ("--auto-aof-rewrite-percentage", "0")


@dataclass
class Scene:
    """A relay on a Valkey with an append-only file; a topic with a publisher; and its readers, of whom some read another too."""

    http: httpx.AsyncClient
    relay: Relay
    log: Valkey
    topic: str
    publisher: Publisher
    followers: list[Follower]

    async def readiness(self) -> tuple[int, str]:
        answer = await self.http.get(f"{self.relay.url}/readyz")
        return answer.status_code, answer.json()["valkey"]

    async def is_away(self) -> None:
        async def away() -> bool:
            return await self.readiness() == (200, "away")

        await until(away, NOTICED_S)

    async def all_are_told_to_come_back(self) -> None:
        """While the log is away: nobody waits for it, and nobody is told anything final."""
        loop, url = asyncio.get_running_loop(), f"{self.relay.url}/stream"
        began = loop.time()
        requests = (
            self.http.get(f"{url}/{self.topic}/v1/poll"),
            self.http.get(f"{url}/{self.topic}/v1/poll?wait=5&cursor=earliest"),
            self.http.post(f"{url}/{self.topic}", json={"data": 1}),
            self.http.post(f"{url}/publish", json=[{"topic": self.topic, "data": 1, "key": "a"}]),
        )
        for answer in await asyncio.gather(*requests):
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
        for query in ("", "?k=3", "?cursor=earliest", f"?last_event_id={self.followers[0].cursor}"):
            for name in (self.topic, topic()):
                async with open_stream(self.http, f"{url}/{name}/v1/live{query}") as stream:
                    (block,) = await stream.rest()
                assert (block.name, block.json()["reason"]) == ("bye", "unavailable")
                assert stream.parser.retry_ms == block.json()["reconnect_ms"] > 0
        assert await self.readiness() == (200, "away")
        assert loop.time() - began < AT_ONCE_S

    async def all_get_heartbeats(self, count: int) -> None:
        before = [one.beats for one in self.followers]
        for one, beats in zip(self.followers, before, strict=True):
            await one.progress.until(lambda one=one, beats=beats: one.beats >= beats + count)  # type: ignore[misc]

    async def all_have_what_is_acknowledged(self, more: int = 50) -> None:
        """After so many more events: once and in order, and the streams were open all the time."""
        await self.publisher.has_published(self.publisher.acknowledged + more)
        last = self.publisher.acknowledged
        for one in self.followers:
            await one.reaches(last)
            assert one.numbers[:last] == upto(last)
            assert (one.connects, one.verdicts) == (1, ["exact"])


@pytest.fixture(scope="module")
def log(folder: Path) -> Iterator[Valkey]:
    server = Valkey(folder / "valkey", arguments=("--appendonly", "yes", *NO_REWRITE)).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def relay(start_relay: StartRelay, log: Valkey) -> Relay:
    return start_relay(log.url)


@pytest.fixture
async def scene(http: httpx.AsyncClient, relay: Relay, log: Valkey) -> AsyncIterator[Scene]:
    name, url = topic(), f"{relay.url}/stream"
    publisher = Publisher(http, f"{url}/{name}")
    of_one = [Follower(http, f"{url}/{name}/v1/live", "cursor=earliest") for _ in range(5)]
    of_two = [Follower(http, f"{url}/v1/live?topic={name}&topic={topic()}", "cursor=earliest") for _ in range(5)]
    async with running(publisher, *of_one, *of_two):
        for one in of_one + of_two:
            await one.reaches(20)
        yield Scene(http, relay, log, name, publisher, of_one + of_two)


@pytest.fixture
def connections(log: Valkey) -> Callable[[], int]:
    """How many the relay has opened since the test began, or since Valkey was started."""
    before = log.info("total_connections_received")

    def count() -> int:
        now = log.info("total_connections_received")
        return int(now - before if now >= before else now)

    return count


async def test_valkey_is_killed_and_started_again(scene: Scene, connections: Callable[[], int]) -> None:
    scene.log.kill()
    await scene.is_away()
    await scene.all_are_told_to_come_back()
    await scene.all_get_heartbeats(2)
    scene.log.start()
    await scene.all_have_what_is_acknowledged()
    assert scene.publisher.slowest_s < AT_ONCE_S
    assert connections() < 10
    assert tails(scene.log) == 1


async def test_what_its_file_has_lost_is_told(scene: Scene) -> None:
    """The machine went down with it, say, and the last second was not on the disk yet."""
    scene.log.kill()
    await scene.is_away()
    (path,) = scene.log.directory.glob("appendonlydir/*.incr.aof")
    os.truncate(path, path.stat().st_size - 5000)
    last = scene.publisher.acknowledged
    scene.log.start()
    await scene.publisher.has_published(last + 20)
    kept = retained(scene.log, scene.topic)
    before = len([number for number in kept if number <= last])
    assert 0 < before < last, "nothing was lost, or all of it"
    for one in scene.followers:
        await one.reaches(last + 20)
        assert one.verdicts == ["exact", "reset"]
        assert one.connects == 1
        assert one.numbers[: before + 20] == [*upto(before), *range(last + 1, last + 21)] == kept[: before + 20]
        assert all(gap["lost"] is None for gap in one.names("gap"))


@pytest.mark.slow
async def test_valkey_hangs_for_a_while(scene: Scene, connections: Callable[[], int]) -> None:
    goes_on = asyncio.Event()

    def go_on() -> None:
        scene.log.resume()
        goes_on.set()

    asyncio.get_running_loop().call_later(HANGS_S, go_on)
    scene.log.pause()
    await scene.is_away()
    await scene.all_are_told_to_come_back()
    await scene.all_get_heartbeats(2)
    assert scene.publisher.slowest_s < NOTICED_S
    assert not goes_on.is_set(), "too slow to see anything"
    await asyncio.wait_for(goes_on.wait(), HANGS_S)
    await scene.all_have_what_is_acknowledged()
    # The tail asks again after the longer and longer pauses of a server that is away.
    assert connections() < 10 + HANGS_S
    assert tails(scene.log) == 1


async def test_valkey_hangs_up(scene: Scene, connections: Callable[[], int]) -> None:
    for _ in range(3):
        scene.log.ask("CLIENT", "KILL", "TYPE", "normal")
        await scene.all_have_what_is_acknowledged(20)
    assert connections() < 30
    assert tails(scene.log) == 1


def tails(log: Valkey) -> int:
    return len([client for client in log.ask("CLIENT LIST") if client["cmd"] == "xread"])
