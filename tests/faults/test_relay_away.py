"""The relay goes away: killed, asked to stop, too old, or rolled over. Its clients go on where they were."""

import asyncio
import os
import signal

import httpx
import pytest

from tests.faults.clients import Follower, Publisher, open_http, running, until, upto
from tests.faults.conftest import StartRelay
from tests.faults.slow import open_slow
from tests.servers import Relay, Valkey, token, topic
from tests.streams import Block, open_stream

pytestmark = pytest.mark.anyio

ADMIN = {"authorization": f"Bearer {token(admin=['status'])}"}
DRAIN_S = 2
LAST_WORDS_S = 1  # which the relay leaves to those that it has told to go
SLACK_S = 1.5


async def some_worker(relay: Relay) -> tuple[int, int]:
    """A process of the relay's, and how many streams it has: whichever takes a new connection."""
    async with open_http() as http:
        status = (await http.get(f"{relay.url}/stream/status", headers=ADMIN)).json()
    return status["pid"], status["connections"]


async def test_a_killed_worker_is_replaced(start_relay: StartRelay, valkey: Valkey, http: httpx.AsyncClient) -> None:
    relay = start_relay(valkey.url, {"RELAY_WORKERS": "2"})
    name = topic()
    publisher = Publisher(http, f"{relay.url}/stream/{name}")
    followers = [Follower(http, f"{relay.url}/stream/{name}/v1/live", "cursor=earliest") for _ in range(10)]
    async with running(publisher, *followers):
        for one in followers:
            await one.reaches(20)
        killed: set[int] = set()
        workers: set[int] = set()

        async def one_with_streams_is_found() -> bool:
            pid, streams = await some_worker(relay)
            killed.update([pid] if streams else [])
            return bool(killed)

        async def there_are_two() -> bool:
            workers.add((await some_worker(relay))[0])
            return len(workers - killed) == 2

        await until(one_with_streams_is_found)
        os.kill(next(iter(killed)), signal.SIGKILL)
        await until(there_are_two)
        last = publisher.acknowledged + 20
        await publisher.has_published(last)
        for one in followers:
            await one.reaches(last)
            assert one.numbers[:last] == upto(last)
            assert set(one.verdicts) == {"exact"}
            # A worker that has just started may refuse a stream for a moment, in the form that is tried again.
            assert one.connects >= 1 + one.cuts
        assert sum(one.cuts for one in followers) > 0
    assert relay.stop() == 0


async def test_a_relay_that_is_asked_to_stop_ends_its_clients_one_by_one(
    start_relay: StartRelay, valkey: Valkey, http: httpx.AsyncClient
) -> None:
    """One of them hangs, and holds nobody back."""
    relay = start_relay(valkey.url, {"RELAY_DRAIN_SECONDS": str(DRAIN_S)})
    assert relay.process
    loop, name, url = asyncio.get_running_loop(), topic(), f"{relay.url}/stream"
    byes: list[tuple[float, Block]] = []

    async def stream() -> None:
        async with open_stream(http, f"{url}/{name}/v1/live?cursor=earliest") as opened:
            await opened.until("update")
            ready.release()
            (block,) = await opened.rest()
            byes.append((loop.time() - asked, block))

    async def poll() -> tuple[float, httpx.Response]:
        answer = await http.get(f"{url}/{topic()}/v1/poll?wait=20")
        return loop.time() - asked, answer

    async def polls_wait() -> bool:
        """One that the relay hasn't accepted yet is reset when it stops listening."""
        return bool((await http.get(f"{url}/status")).json()["waiting_polls"] == len(polls))

    asked = loop.time()
    ready = asyncio.Semaphore(0)
    posted = (await http.post(f"{url}/{name}", json={"data": {"i": 1}})).json()
    async with asyncio.TaskGroup() as group, open_slow(relay, topic()) as slow:
        await slow.fill(http)
        for _ in range(100):
            group.create_task(stream())
        polls = [group.create_task(poll()) for _ in range(5)]
        for _ in range(100):
            await asyncio.wait_for(ready.acquire(), 20)
        await until(polls_wait)
        asked = loop.time()
        relay.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(relay.process.wait, 20)
        ended_s = loop.time() - asked
    assert code == 0
    assert ended_s < DRAIN_S + LAST_WORDS_S + SLACK_S
    with pytest.raises(httpx.ConnectError):
        await http.get(f"{relay.url}/readyz")
    for _, bye in byes:
        assert (bye.name, bye.json()["reason"]) == ("bye", "drain")
        # What other topics had since doesn't change the topic's own number.
        assert bye.last_event_id.rpartition(".")[2] == posted["id"].rpartition(".")[2]
    ends = [at for at, _ in byes]
    assert len(ends) == 100
    assert max(ends) < DRAIN_S + SLACK_S
    assert max(ends) - min(ends) > DRAIN_S / 2
    # When each comes back is drawn for it, so that the survivors are asked at an even rate.
    pauses = [bye.json()["reconnect_ms"] for _, bye in byes]
    assert len(set(pauses)) > 50
    assert 500 <= min(pauses) < 1500 < 4000 < max(pauses) <= 5000
    for at, answer in [one.result() for one in polls]:
        assert (answer.status_code, answer.json()["events"]) == (200, [])
        assert at < DRAIN_S + SLACK_S


async def test_streams_that_are_too_old_end_at_times_of_their_own(start_relay: StartRelay, valkey: Valkey, http: httpx.AsyncClient) -> None:
    most_s = 3.0
    relay = start_relay(valkey.url, {"RELAY_STREAM_MAX_SECONDS": str(most_s)})
    loop, name, url = asyncio.get_running_loop(), topic(), f"{relay.url}/stream"
    posted = (await http.post(f"{url}/{name}", json={"data": {"i": 1}})).json()

    async def stream() -> tuple[float, Block]:
        began = loop.time()
        async with open_stream(http, f"{url}/{name}/v1/live?cursor=earliest") as opened:
            bye = (await opened.rest())[-1]
        return loop.time() - began, bye

    ended = await asyncio.gather(*(stream() for _ in range(60)))
    for _, bye in ended:
        assert (bye.name, bye.json()["reason"], bye.last_event_id) == ("bye", "max_age", posted["id"])
        assert 2000 <= bye.json()["reconnect_ms"] <= 5000
    ages = [at for at, _ in ended]
    assert 0.85 * most_s < min(ages)
    assert max(ages) < most_s + SLACK_S
    assert max(ages) - min(ages) > 0.2
