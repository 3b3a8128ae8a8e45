"""Clients that take nothing, or too late: they cost a bounded amount, delay nobody, and are told what they have missed."""

import re
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import httpx
import pytest

from relay.connections import UNSENT_BYTES
from relay.server import raise_file_limit
from tests.faults.clients import until, upto
from tests.faults.conftest import StartRelay
from tests.faults.slow import Slow, open_slow
from tests.needs import need
from tests.servers import Relay, Valkey, token, topic

pytestmark = pytest.mark.anyio

ADMIN = {"authorization": f"Bearer {token(admin=['status'])}"}
SEND_S = 1
PATIENT = {"RELAY_SEND_SECONDS": "600"}
QUICK = 1 << 20  # window of a client that keeps up
UNSENT_MB = 4 * UNSENT_BYTES / (1 << 20)  # of one client, in the kernel, which would take 2.7 MB if it weren't told
SIZE = 8000  # of an event


@pytest.fixture(scope="module")
def log(folder: Path) -> Iterator[Valkey]:
    # A node of a stream holds few entries, so that what is trimmed by whole nodes is near to what is asked for.
    server = Valkey(folder / "valkey", arguments=("--stream-node-max-entries", "10")).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def patient(start_relay: StartRelay, log: Valkey) -> Relay:
    """It waits for a client that takes nothing for as long as it may."""
    return start_relay(log.url, PATIENT)


@pytest.fixture(scope="module")
def strict(start_relay: StartRelay, log: Valkey) -> Relay:
    """It waits a second, and what it publishes pushes out what is more than 200 events old."""
    return start_relay(log.url, {"RELAY_SEND_SECONDS": str(SEND_S), "RELAY_RETENTION_EVENTS": "200"})


async def process_of(http: httpx.AsyncClient, relay: Relay) -> int:
    return int((await http.get(f"{relay.url}/stream/status", headers=ADMIN)).json()["pid"])


def memory_mb(pid: int) -> float:
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def connections() -> list[tuple[int, int]]:
    """The ports of both ends, of all on this machine; proc_net_tcp."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [(int(line[1].partition(":")[2], 16), int(line[2].partition(":")[2], 16)) for line in lines]


async def at(client: Slow, number: int) -> bool:
    return client.numbers[-1:] == [number]


async def publish(http: httpx.AsyncClient, relay: Relay, name: str, numbers: range, size: int = 0) -> list[str]:
    """Their ids."""
    ids: list[str] = []
    for first in range(numbers.start, numbers.stop, 500):
        part = range(first, min(first + 500, numbers.stop))
        batch = [{"topic": name, "data": {"i": number, "filling": "x" * size}} for number in part]
        answer = await http.post(f"{relay.url}/stream/publish", json=batch)
        ids += [result["id"] for result in answer.raise_for_status().json()["results"]]
    return ids


async def behind(http: httpx.AsyncClient, relay: Relay) -> int:
    return int((await http.get(f"{relay.url}/stream/status")).json()["behind"])


async def fill_rings(http: httpx.AsyncClient, relay: Relay) -> None:
    """With others' events: from then on a relay's memory grows for its clients alone."""
    await publish(http, relay, topic(), range(2500), SIZE)


async def latency_ms(http: httpx.AsyncClient, relay: Relay, name: str, clients: list[Slow], count: int = 50) -> list[float]:
    """Of events one by one, to all of these clients, which are reading."""
    for client in clients:
        client.took_ms.clear()
    for _ in range(count):
        (await http.post(f"{relay.url}/stream/{name}", json={"data": {"sent": time.time()}})).raise_for_status()

    async def all_have_them() -> bool:
        return all(len(client.took_ms) == count for client in clients)

    await until(all_have_them)
    return sorted(ms for client in clients for ms in client.took_ms)


async def test_one_that_stops_reading_gets_it_all_later(http: httpx.AsyncClient, patient: Relay) -> None:
    """Ten times as much that it doesn't take costs no more, and others have theirs while it still takes nothing."""
    name, some, last = topic(), 2500, 9501
    pid = await process_of(http, patient)
    await fill_rings(http, patient)
    async with open_slow(patient, name) as slow, open_slow(patient, name, window=QUICK) as quick, quick.reading():
        usual = await latency_ms(http, patient, name, [quick])
        await publish(http, patient, name, range(1, some), SIZE)
        await until(lambda: at(quick, some - 1))
        before = memory_mb(pid)
        await publish(http, patient, name, range(some, last), SIZE)
        await until(lambda: at(quick, last - 1))
        meanwhile = await latency_ms(http, patient, name, [quick])
        grown = memory_mb(pid) - before
        assert await behind(http, patient) == 1
        await publish(http, patient, name, range(last, last + 1))
        await slow.read_to(last)
        assert slow.numbers == upto(last)
        assert [event for event, _ in slow.told] == ["hello"]
    print(f"\nothers' p50 {median(usual):.1f} ms before, {median(meanwhile):.1f} ms meanwhile; it grew by {grown:.0f} MB")
    assert grown < (last - some) * SIZE / 1e6 / 2


def unsent_mb(port: int) -> float:
    """What the kernel holds for clients of the relay; proc_net_tcp."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(line[4].partition(":")[0], 16) for line in lines if line[1].endswith(f":{port:04X}")) / (1 << 20)


async def test_a_thousand_at_once_leave_the_others_alone(http: httpx.AsyncClient, patient: Relay) -> None:
    """What they cost is had when they fall behind; ten times as much that they don't take costs a part of that."""
    need("Linux")  # elsewhere the kernel takes what it likes, and doesn't say
    raise_file_limit()
    name, others = topic(), topic()
    pid = await process_of(http, patient)
    await fill_rings(http, patient)
    async with AsyncExitStack() as stack:
        quick = [await stack.enter_async_context(open_slow(patient, others, window=QUICK)) for _ in range(20)]
        for client in quick:
            await stack.enter_async_context(client.reading())
        usual = await latency_ms(http, patient, others, quick)
        before = memory_mb(pid)
        slow = [await stack.enter_async_context(open_slow(patient, name)) for _ in range(1000)]

        batches = 0

        async def all_are_behind() -> bool:
            nonlocal batches
            batches += 1
            await publish(http, patient, name, range(500), 1000)
            return await behind(http, patient) == len(slow)

        await until(all_are_behind)
        meanwhile = await latency_ms(http, patient, others, quick)
        cost = memory_mb(pid) - before
        for _ in range(10 * batches):
            await publish(http, patient, name, range(500), 1000)
        await latency_ms(http, patient, others, quick)
        grown, unsent = memory_mb(pid) - before - cost, unsent_mb(patient.port)
        assert await behind(http, patient) == len(slow)
    print(
        f"\nothers' p50 {median(usual):.1f} ms before, {median(meanwhile):.1f} ms meanwhile; {batches} batches cost {cost:.0f} MB, "
        f"{10 * batches} more {grown:.0f} MB; the kernel has {unsent:.0f} MB"
    )
    assert grown < cost / 2
    assert unsent < len(slow) * UNSENT_MB


async def test_many_far_behind_are_sent_no_more_than_they_take(http: httpx.AsyncClient, start_relay: StartRelay, log: Valkey) -> None:
    """They come back all at once, each with another cursor, and megabytes behind: of all these the relay has a part in its memory."""
    relay = start_relay(log.url, PATIENT)  # with no memory that others have left behind
    name, last = topic(), 3600
    pid = await process_of(http, relay)
    ids = await publish(http, relay, name, range(1, last + 1), SIZE)
    before = memory_mb(pid)
    async with AsyncExitStack() as stack:
        places = range(1, 41)
        clients = [await stack.enter_async_context(open_slow(relay, name, f"?cursor={ids[place - 1]}")) for place in places]

        async def all_wait() -> bool:
            return await behind(http, relay) == len(clients)

        await until(all_wait)
        grown = memory_mb(pid) - before
        await clients[0].read_to(last)
        await clients[-1].read_to(last)
        assert clients[0].numbers == list(range(places[0] + 1, last + 1))
        assert clients[-1].numbers == list(range(places[-1] + 1, last + 1))
    owed = sum(last - place for place in places) * SIZE / 1e6
    print(f"\nof {owed:.0f} MB that {len(places)} clients are owed, the relay has taken {grown:.0f} MB")
    assert grown < owed / 4


async def test_one_that_hangs_is_closed(http: httpx.AsyncClient, strict: Relay) -> None:
    """And its connection with it, even though it never takes what was sent."""
    need("Linux")  # elsewhere its connection stays until it leaves
    name = topic()
    async with open_slow(strict, name) as slow:
        await slow.fill(http)

        async def is_ended() -> bool:
            return bool(re.search(r"\[STREAM c-[\w-]+\] WARNING a client took nothing for 1 s: closed", strict.log()))

        async def is_closed() -> bool:
            return (strict.port, slow.port) not in connections()

        await until(is_ended)
        await until(is_closed)
        metrics = (await http.get(f"{strict.url}/metrics")).text
        assert 'relay_stream_ends_total{reason="slow"} 1.0' in metrics
        with pytest.raises(ConnectionResetError):
            await slow.read_to(1)


async def test_one_that_fell_out_of_retention_is_told_its_gap(http: httpx.AsyncClient, patient: Relay, strict: Relay) -> None:
    """On the stream that was open all the time, and on a new one; each has missed another part."""
    name, last = topic(), 6000
    async with open_slow(patient, name) as open_all_the_time:
        async with open_slow(patient, name) as cut, cut.reading():
            await publish(http, strict, name, range(1, 11))
            await until(lambda: at(cut, 10))
        await publish(http, strict, name, range(11, last + 1), SIZE)
        await open_all_the_time.read_to(last)
        async with open_slow(patient, name, f"?last_event_id={cut.last_event_id}") as back:
            await back.read_to(last)
    assert [event for event, _ in open_all_the_time.told] == ["hello", "gap"]
    assert [(event, data.get("resume")) for event, data in back.told] == [("hello", "gap"), ("gap", None)]
    missed = []
    for client, seen in ((open_all_the_time, 0), (back, 10)):
        numbers, (_, gap) = client.numbers, client.told[1]
        ends = next((index for index, number in enumerate(numbers) if number != seen + index + 1), 0)
        assert numbers == [*range(seen + 1, seen + ends + 1), *range(numbers[ends], last + 1)]
        assert gap["lost"] == numbers[ends] - (seen + ends + 1) > 1000
        missed.append(gap["lost"])
