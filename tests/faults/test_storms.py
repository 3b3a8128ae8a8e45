"""Everybody comes at once, while publishers go on at full speed: nobody loses, repeats or reorders anything, and the log is asked
a few times, not by each client.

`FULL_SIZE=1 pytest -n0 -s tests/faults/test_storms.py` takes the crowds of `.github/FAULTS.md` and says what it measured.
"""

import asyncio
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pytest

from relay.refusals import PERIOD_S
from tests.bench.run import SOURCES, Delivered
from tests.bench.servers import compile_tools
from tests.faults.clients import open_http, until
from tests.faults.conftest import FULL_SIZE, StartRelay
from tests.faults.test_slow_clients import memory_mb, process_of
from tests.needs import need
from tests.servers import Relay, Valkey, token, topic
from tests.streams import open_stream
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio

BACK = 100  # events since the cursor that a client comes back with
COME_BACK = 5000 if FULL_SIZE else 1000
CONNECT = 10_000 if FULL_SIZE else 1500
TOPICS = 10
PUBLISHERS = 5
BATCH = 20
MOST = 800  # events of a topic while a crowd comes, so that neither log nor ring lets go of what it wants, however slow it is
FILLING, LARGE_FILLING = 150, 2000  # bytes
HURRY = 400 if FULL_SIZE else 160  # clients of a relay that begins a quarter of them in a second
ARRIVED = 1000  # of whom it waits to be there, before a relay may serve the first: the kernel holds no more than 4096
CROWD_S = 4 * LIMIT_S  # for all of a crowd
AT_ONCE = 1_000_000  # connects a second: as fast as the client can


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client of the benchmarks, which checks every number of thousands of streams."""
    need("a C compiler")
    return compile_tools(tmp_path_factory.mktemp("tools")) / "load"


@pytest.fixture(scope="module")
def log(folder: Path) -> Iterator[Valkey]:
    server = Valkey(folder / "valkey").start()
    yield server
    server.kill()


@pytest.fixture
def relay(start_relay: StartRelay, log: Valkey) -> Iterator[Relay]:
    relay = start_relay(log.url, {"RELAY_MAX_STREAMS_PER_SUB": str(2 * CONNECT), "RELAY_SEND_SECONDS": "600"})
    yield relay
    relay.kill()


@dataclass
class Topics:
    """Topics whose events are numbered from 0, and stamped as the load client wants it."""

    http: httpx.AsyncClient
    relay: Relay
    counts: Counter[int]
    name: str = field(default_factory=topic)
    batches: int = 0
    slowest_s: float = 0.0

    async def publish(self, numbers: Sequence[int], count: int, filling: int = FILLING) -> None:
        """So many to each of these topics."""
        now = time.monotonic_ns()
        events = [
            {"topic": f"{self.name}-{number}", "data": {"t": now, "i": self.counts[number] + i, "filling": "x" * filling}}
            for i in range(count)
            for number in numbers
        ]
        began = time.monotonic()
        (await self.http.post(f"{self.relay.url}/stream/publish", json=events)).raise_for_status()
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.batches += 1
        self.counts.update(dict.fromkeys(numbers, count))

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """At full speed: each publisher has topics of its own, and the next batch when the last one is answered. In the end all
        topics have as many."""
        going = True

        async def publish(numbers: Sequence[int]) -> None:
            while going and self.counts[numbers[0]] < MOST:
                await self.publish(numbers, BATCH)

        mine = sorted(self.counts)
        parts = [mine[first::PUBLISHERS] for first in range(min(PUBLISHERS, len(mine)))]
        await asyncio.gather(*(self.publish(part, BATCH) for part in parts))  # their connections are open before the crowd comes
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(publish(part))
            try:
                yield
            finally:
                going = False
        for number in mine:
            if missing := max(self.counts.values()) - self.counts[number]:
                await self.publish([number], missing)


@asynccontextmanager
async def crowd(load: Path, relay: Relay, pid: int, path: str, streams: int, topics: int = 1) -> AsyncIterator[asyncio.subprocess.Process]:
    """So many clients, which connect in the same moment: the relay stands still until they are there. Each has its hello."""
    arguments = ["--port", relay.port, "--path", path, "--header", f"Authorization: Bearer {token()}", "--hello", "event: hello"]
    arguments += ["--streams", streams, "--pending", streams, "--connect-rate", AT_ONCE, "--topics", topics, "--sources", SOURCES]

    async def are_there() -> bool:
        assert process.returncode is None
        return arrived(relay.port) >= min(streams, ARRIVED)

    with ExitStack() as standing_still:
        standing_still.callback(os.kill, pid, signal.SIGCONT)
        os.kill(pid, signal.SIGSTOP)
        process = await asyncio.create_subprocess_exec(load, *map(str, arguments), stdin=-1, stdout=-1)
        try:
            await until(are_there)
            standing_still.close()
            assert process.stdout
            assert await asyncio.wait_for(process.stdout.readline(), CROWD_S) == b"ready\n"
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def arrived(port: int) -> int:
    """How many clients on this machine have a connection to a port; proc_net_tcp."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[2].endswith(f":{port:04X}") and line[3] == "01" for line in lines)


async def has_all(process: asyncio.subprocess.Process, events: int) -> Delivered:
    """What the crowd got when each has so many."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"%d\n" % events)
    await process.stdin.drain()
    return msgspec.json.decode(await asyncio.wait_for(process.stdout.readline(), CROWD_S), type=Delivered)


def calls(log: Valkey, command: str) -> int:
    """How often it was called since the server began, from scripts too."""
    return int(log.ask("INFO", "commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def check(delivered: Delivered, events: int) -> None:
    assert (delivered.lost, delivered.repeated, delivered.reordered, delivered.closed) == (0, 0, 0, 0)
    assert delivered.events == delivered.streams * events


def tell(clients: int, there_s: float, delivered: Delivered, reads: int, grown_mb: float, topics: Topics) -> None:
    all_s = there_s + delivered.seconds
    print(
        f"\n{clients} are there after {there_s:.1f} s, have all {delivered.events // clients} events after {all_s:.1f} s; {reads} XRANGE, "
        f"{grown_mb:.0f} MB; slowest of {topics.batches} batches {topics.slowest_s * 1000:.0f} ms"
    )


async def test_a_crowd_that_comes_back_to_a_new_process_is_answered_by_a_few_reads(load: Path, relay: Relay, log: Valkey) -> None:
    """The process that they were on was killed, so nothing that they want is in memory."""
    async with open_http() as http:
        topics = Topics(http, relay, Counter({0: 0}))
        path = f"/stream/{topics.name}-0/v1"
        cursor = (await http.get(f"{relay.url}{path}/poll")).json()["cursor"]
        await topics.publish([0], BACK, LARGE_FILLING)
        relay.kill()
        relay.start()
        pid = await process_of(http, relay)
        memory, reads = memory_mb(pid), calls(log, "xrange")
        async with AsyncExitStack() as stack:
            async with topics.publishing():
                began = time.monotonic()
                clients = await stack.enter_async_context(crowd(load, relay, pid, f"{path}/live?last_event_id={cursor}", COME_BACK))
                there_s = time.monotonic() - began
            delivered = await has_all(clients, topics.counts[0])
        reads, grown = calls(log, "xrange") - reads, memory_mb(pid) - memory
    tell(COME_BACK, there_s, delivered, reads, grown, topics)
    check(delivered, topics.counts[0])
    assert reads < COME_BACK / 20
    assert grown < COME_BACK * BACK * LARGE_FILLING / 1e6 / 2  # it holds what they want for all of them, not for each


async def test_a_crowd_connects_at_once_while_publishers_go_on(load: Path, relay: Relay, log: Valkey) -> None:
    """To a process that has what they want in memory."""
    async with open_http() as http:
        topics = Topics(http, relay, Counter(dict.fromkeys(range(TOPICS), 0)))
        cursor = (await http.get(f"{relay.url}/stream/{topics.name}-0/v1/poll")).json()["cursor"]
        await topics.publish(range(TOPICS), BACK, LARGE_FILLING)
        pid = await process_of(http, relay)
        memory, reads = memory_mb(pid), calls(log, "xrange")
        async with AsyncExitStack() as stack:
            async with topics.publishing():
                began = time.monotonic()
                path = f"/stream/{topics.name}-%d/v1/live?last_event_id={cursor}"
                clients = await stack.enter_async_context(crowd(load, relay, pid, path, CONNECT, TOPICS))
                there_s = time.monotonic() - began
            delivered = await has_all(clients, topics.counts[0])
        reads, grown = calls(log, "xrange") - reads, memory_mb(pid) - memory
    tell(CONNECT, there_s, delivered, reads, grown, topics)
    check(delivered, topics.counts[0])
    assert reads < CONNECT / 20
    assert grown < CONNECT * BACK * LARGE_FILLING / 1e6 / 2


async def test_a_crowd_beyond_the_limit_comes_in_at_the_pace_that_it_is_told(start_relay: StartRelay, log: Valkey) -> None:
    """Each by itself, as an EventSource does; and none is told of in the log by itself. That each is refused once is shown where the
    clock is the test's own (`test_admission.py`): whoever stands still for a while comes too late, with others."""
    per_s = HURRY // 4
    relay = start_relay(log.url, {"RELAY_CONNECTS_PER_SECOND": str(per_s)})
    refused = Counter[int]()
    name = topic()
    everybody = asyncio.Barrier(HURRY + 1)

    async def come(http: httpx.AsyncClient, number: int) -> None:
        while True:
            async with open_stream(http, f"{relay.url}/stream/{name}/v1/live") as stream:
                block = await stream.next(LIMIT_S)
                if block.name == "hello":
                    await everybody.wait()
                    assert (await stream.next(LIMIT_S)).json() == {"i": 1}
                    return
                assert block.json()["reason"] == "busy"
                refused[number] += 1
            await asyncio.sleep(block.json()["reconnect_ms"] / 1000)

    async with open_http() as http, asyncio.TaskGroup() as group:
        began = time.monotonic()
        for number in range(HURRY):
            group.create_task(come(http, number))
        await asyncio.wait_for(everybody.wait(), CROWD_S)
        took_s = time.monotonic() - began
        (await http.post(f"{relay.url}/stream/{name}", json={"data": {"i": 1}})).raise_for_status()
        metrics = (await http.get(f"{relay.url}/metrics")).text
    most = max(refused.values(), default=0)
    print(f"\n{HURRY} at {per_s}/s: all are there after {took_s:.1f} s, refused {refused.total()} times, none more than {most} times")
    told = re.findall(r'relay_refused_total{code="too_many_connects"} (\d+)', metrics)
    assert sum(map(int, told)) == refused.total()
    lines = relay.log().count("RELAY_CONNECTS_PER_SECOND")
    assert lines <= 2 + 2 * (time.monotonic() - began) / PERIOD_S  # when it comes up, and then with a number
