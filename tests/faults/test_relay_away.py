"""The relay goes away: killed, asked to stop, too old, or rolled over. Its clients go on where they were."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from relay.follow import AGE_JITTER, SPREAD_STEP_S
from tests.faults.clients import Follower, Publisher, open_http, running, until, upto
from tests.faults.conftest import StartRelay
from tests.faults.slow import open_slow
from tests.needs import need
from tests.servers import Relay, Valkey, token, topic
from tests.streams import Block, open_stream
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.anyio

ADMIN = {"authorization": f"Bearer {token(admin=['status'])}"}
DRAIN_S = 4
STREAMS = 100


async def some_worker(relay: Relay) -> tuple[int, int]:
    """A process of the relay's, and how many streams it has by itself: whichever takes a new connection."""
    async with open_http() as http:
        status = (await http.get(f"{relay.url}/stream/status", headers=ADMIN)).json()
    return status["pid"], status["fleet"][0]["connections"]


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
    """One of them hangs, and holds nobody back.

    The relay's launcher would kill a worker that needs some seconds more than the drain, as on a machine that lets it stand still. So
    it is stopped for as long as it has nothing to do but count them.
    """
    need("Linux")  # which tells of a process whose parent doesn't ask that it has ended
    relay = start_relay(valkey.url, {"RELAY_DRAIN_SECONDS": str(DRAIN_S), "RELAY_SEND_SECONDS": "600"})
    assert relay.process
    worker, _ = await some_worker(relay)
    loop, name, url = asyncio.get_running_loop(), topic(), f"{relay.url}/stream"
    byes: list[tuple[float, Block]] = []

    async def stream() -> None:
        async with open_stream(http, f"{url}/{name}/v1/live?cursor=earliest") as opened:
            await opened.until("update")
            ready.release()
            (block,) = await opened.rest()
            byes.append((loop.time() - asked, block))

    async def poll() -> httpx.Response:
        """Again where its wait was over before the relay was asked to stop."""
        while True:
            answer = await http.get(f"{url}/{topic()}/v1/poll?wait=20")
            if asked:
                return answer

    async def polls_wait() -> bool:
        """One that the relay hasn't accepted yet is reset when it stops listening."""
        return bool((await http.get(f"{url}/status")).json()["waiting_polls"] == len(polls))

    async def has_ended() -> bool:
        return is_over(worker)

    asked = 0.0
    ready = asyncio.Semaphore(0)
    posted = (await http.post(f"{url}/{name}", json={"data": {"i": 1}})).json()
    async with asyncio.TaskGroup() as group, open_slow(relay, topic()) as slow:
        await slow.fill(http)
        for _ in range(STREAMS):
            group.create_task(stream())
        for _ in range(STREAMS):
            await ready.acquire()
        polls = [group.create_task(poll()) for _ in range(5)]
        await until(polls_wait)
        asked = loop.time()
        relay.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_for, "the worker is told", lambda: "streams end within" in relay.log())
        relay.process.send_signal(signal.SIGSTOP)
        try:
            await until(has_ended)
        finally:
            relay.process.send_signal(signal.SIGCONT)
        code = await asyncio.to_thread(relay.process.wait, LIMIT_S)
    assert code == 0
    assert "refused to gracefully stop" not in relay.log()
    with pytest.raises(httpx.ConnectError):
        await http.get(f"{relay.url}/readyz")
    for _, bye in byes:
        assert (bye.name, bye.json()["reason"]) == ("bye", "drain")
        # What other topics had since doesn't change the topic's own number.
        assert bye.last_event_id.rpartition(".")[2] == posted["id"].rpartition(".")[2]
    # Spread evenly: none sooner than at its turn. (So had the slow one.)
    ends = sorted(at for at, _ in byes)
    assert len(ends) == STREAMS
    assert all(at > DRAIN_S * turn / (STREAMS + 1) - SPREAD_STEP_S for turn, at in enumerate(ends))
    # When each comes back is drawn for it, so that the survivors are asked at an even rate.
    pauses = [bye.json()["reconnect_ms"] for _, bye in byes]
    assert len(set(pauses)) > 50
    assert 500 <= min(pauses) < 1500 < 4000 < max(pauses) <= 5000
    for answer in [one.result() for one in polls]:
        assert (answer.status_code, answer.json()["events"]) == (200, [])


def is_over(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


async def test_streams_that_are_too_old_end_at_times_of_their_own(start_relay: StartRelay, valkey: Valkey, http: httpx.AsyncClient) -> None:
    """None before the last tenth of that; `test_follow.py` sees the times that they are given."""
    most_s = 3.0
    relay = start_relay(valkey.url, {"RELAY_STREAM_MAX_SECONDS": str(most_s)})
    loop, name, url = asyncio.get_running_loop(), topic(), f"{relay.url}/stream"
    (await http.post(f"{url}/{name}", json={"data": {"i": 1}})).raise_for_status()

    async def stream() -> tuple[float, list[Block]]:
        began = loop.time()
        async with open_stream(http, f"{url}/{name}/v1/live?cursor=earliest") as opened:
            blocks = await opened.rest()
        return loop.time() - began, blocks

    ended = await asyncio.gather(*(stream() for _ in range(60)))
    for _, blocks in ended:
        bye, place = blocks[-1], blocks[-2].last_event_id if len(blocks) > 1 else "0.0-0"
        assert (bye.name, bye.json()["reason"], bye.last_event_id) == ("bye", "max_age", place)
        assert 2000 <= bye.json()["reconnect_ms"] <= 5000
    assert min(at for at, _ in ended) >= (1 - AGE_JITTER) * most_s
