"""Valkey is killed, hangs, or hangs up: streams stay open, nobody else waits, and afterwards nothing is missing."""

import asyncio
import os
import re
from collections import Counter
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

BEATS = 60 if FULL_SIZE else 8  # a second each: by then the tail's pauses are as long as they get
SILENT_S = 2  # from then on a server that takes connections and says nothing is away
LOOKS = 20
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
    opened: int  # streams, until all was well

    async def readiness(self) -> tuple[int, str]:
        answer = await self.http.get(f"{self.relay.url}/readyz")
        return answer.status_code, answer.json()["valkey"]

    async def is_away(self) -> None:
        async def away() -> bool:
            return await self.readiness() == (200, "away")

        await until(away)

    async def refusals(self) -> Counter[str]:
        """How many requests were refused, by the cause that the relay tells its operator: once it has told all."""
        causes = Counter[str]()

        async def all_are_told() -> bool:
            (total,) = re.findall(r'relay_refused_total{code="unavailable"} (\d+)', (await self.http.get(f"{self.relay.url}/metrics")).text)
            causes.clear()
            for number, cause in re.findall(r"(\d+ more requests were|a request is) refused: (.+)", self.relay.log()):
                causes[cause] += int(number.split()[0].replace("a", "1"))
            return causes.total() == int(total)

        await until(all_are_told)
        return causes

    async def all_are_told_to_come_back(self) -> None:
        """While the log is away: nobody waits for it, since nobody asks it, and nobody is told anything final."""
        await self.publisher.rest()
        before = await self.refusals()
        await self.ask_everything()
        after = await self.refusals()
        self.publisher.going.set()
        assert after - before == {"the log is away": 12}

    async def ask_everything(self) -> None:
        url = f"{self.relay.url}/stream"
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
            assert one.verdicts == ["exact"]
        self.check_that_streams_stayed_open()

    def check_that_streams_stayed_open(self) -> None:
        assert sum(one.connects for one in self.followers) == self.opened


@pytest.fixture(scope="module")
def log(folder: Path) -> Iterator[Valkey]:
    server = Valkey(folder / "valkey", arguments=("--appendonly", "yes", *NO_REWRITE)).start()
    yield server
    server.kill()


@pytest.fixture
def relay(start_relay: StartRelay, log: Valkey, request: pytest.FixtureRequest) -> Iterator[Relay]:
    """Each test's own, so that no other asks its Valkey for anything."""
    relay = start_relay(log.url, getattr(request, "param", {}))
    yield relay
    relay.kill()


@pytest.fixture
async def scene(http: httpx.AsyncClient, relay: Relay, log: Valkey) -> AsyncIterator[Scene]:
    name, url = topic(), f"{relay.url}/stream"
    publisher = Publisher(http, f"{url}/{name}")
    of_one = [Follower(http, f"{url}/{name}/v1/live", "cursor=earliest") for _ in range(5)]
    of_two = [Follower(http, f"{url}/v1/live?topic={name}&topic={topic()}", "cursor=earliest") for _ in range(5)]
    async with running(publisher, *of_one, *of_two):
        for one in of_one + of_two:
            await one.reaches(20)
        opened = sum(one.connects for one in of_one + of_two)
        yield Scene(http, relay, log, name, publisher, of_one + of_two, opened)


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
    assert connections() < 20
    await has_one_tail(scene.log)


async def test_what_its_file_has_lost_is_told(scene: Scene) -> None:
    """The machine went down with it, say, and the last second was not on the disk yet."""
    scene.log.kill()
    await scene.is_away()
    await scene.publisher.rest()
    (path,) = scene.log.directory.glob("appendonlydir/*.incr.aof")
    os.truncate(path, path.stat().st_size - 5000)
    last = scene.publisher.acknowledged
    scene.log.start()
    scene.publisher.going.set()
    await scene.publisher.has_published(last + 20)
    kept = retained(scene.log, scene.topic)
    before = len([number for number in kept if number <= last])
    assert 0 < before < last, "nothing was lost, or all of it"
    for one in scene.followers:
        await one.reaches(last + 20)
        assert one.verdicts == ["exact", "reset"]
        assert one.numbers[: before + 20] == [*upto(before), *range(last + 1, last + 21)] == kept[: before + 20]
        assert all(gap["lost"] is None for gap in one.names("gap"))
    scene.check_that_streams_stayed_open()


@pytest.mark.parametrize("relay", [{"RELAY_VALKEY_SECONDS": str(SILENT_S)}], ids=["soon noticed"], indirect=True)
async def test_valkey_hangs_for_a_while(scene: Scene, connections: Callable[[], int]) -> None:
    beats = max(one.beats for one in scene.followers)
    scene.log.pause()
    await scene.is_away()
    await scene.all_are_told_to_come_back()
    await scene.all_get_heartbeats(BEATS)
    scene.log.resume()
    await scene.all_have_what_is_acknowledged()
    # The tail asks again after the longer and longer pauses of a server that is away: by the relay's clock, as its heartbeats are.
    assert connections() < 20 + max(one.beats for one in scene.followers) - beats
    await has_one_tail(scene.log)


async def test_valkey_hangs_up(scene: Scene, connections: Callable[[], int]) -> None:
    for _ in range(3):
        scene.log.ask("CLIENT", "KILL", "TYPE", "normal")
        await scene.all_have_what_is_acknowledged(20)
    assert connections() < 60
    await has_one_tail(scene.log)


async def has_one_tail(log: Valkey) -> None:
    """Between two reads it does something else, so what counts is the most that are seen in a row of looks."""
    looks: list[int] = []

    async def is_so() -> bool:
        looks.append(len([client for client in log.ask("CLIENT LIST") if client["cmd"] == "xread"]))
        return max(looks[-LOOKS:]) == 1 and len(looks) >= LOOKS

    await until(is_so)
