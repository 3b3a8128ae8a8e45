"""Publishing that waits for replicas says 201 when they have the event, and 503 in time when they don't."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from relay.errors import NotReplicated
from relay.event import Retention
from relay.log import NewEvent, open_log
from tests.faults.clients import retained
from tests.faults.conftest import StartRelay
from tests.servers import Relay, Valkey, replica_of, topic
from tests.waiting import wait_for

pytestmark = pytest.mark.anyio

WAIT_S = 0.5
IN_TIME_S = 10.0  # on a machine that has other things to do as well


@pytest.fixture(scope="module")
def primary(folder: Path) -> Iterator[Valkey]:
    server = Valkey(folder / "primary").start()
    yield server
    server.kill()


@pytest.fixture
def replica(primary: Valkey, tmp_path: Path) -> Iterator[Valkey]:
    server = replica_of(primary, tmp_path)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def relay(start_relay: StartRelay, primary: Valkey) -> Relay:
    return start_relay(primary.url, {"RELAY_WAIT_REPLICAS": "1", "RELAY_WAIT_SECONDS": str(WAIT_S)})


async def publish(http: httpx.AsyncClient, relay: Relay, name: str, number: int) -> tuple[int, str]:
    """The status and the code of the answer, which is in time."""
    async with asyncio.timeout(IN_TIME_S):
        answer = await http.post(f"{relay.url}/stream/{name}", json={"data": {"i": number}}, headers={"idempotency-key": f"k{number}"})
    return answer.status_code, answer.json().get("code", "")


async def test_an_event_that_the_replica_has_is_acknowledged(
    http: httpx.AsyncClient, relay: Relay, primary: Valkey, replica: Valkey
) -> None:
    name = topic()
    assert await asyncio.gather(*(publish(http, relay, name, number) for number in range(20))) == [(201, "")] * 20
    assert sorted(retained(replica, name)) == list(range(20))


@pytest.mark.parametrize("gone", ["stopped", "killed"])
async def test_without_the_replica_publishers_are_told_in_time_and_may_repeat(
    http: httpx.AsyncClient, relay: Relay, primary: Valkey, replica: Valkey, gone: str
) -> None:
    name = topic()
    assert await publish(http, relay, name, 0) == (201, "")
    if gone == "stopped":
        replica.pause()
    else:
        replica.kill()
    # Also when it is there already, the replica still hasn't got it.
    for _ in range(3):
        assert await publish(http, relay, name, 1) == (503, "not_replicated")
    batch = [{"topic": name, "data": {"i": 2}, "key": "k2"}]
    answer = await http.post(f"{relay.url}/stream/publish", json=batch)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_replicated")
    assert int(answer.headers["retry-after"]) > 0
    if gone == "stopped":
        replica.resume()
    else:
        replica.start()
    wait_for("the replica follows", lambda: replica.info("master_link_status") == "up")
    assert await publish(http, relay, name, 1) == (200, "")
    assert (await http.post(f"{relay.url}/stream/publish", json=batch)).status_code == 200
    assert retained(primary, name) == retained(replica, name) == [0, 1, 2]
    metrics = (await http.get(f"{relay.url}/metrics")).text
    assert 'relay_refused_total{code="not_replicated"}' in metrics


async def test_a_server_that_does_not_know_the_script_yet_is_waited_for_too(primary: Valkey, replica: Valkey) -> None:
    primary.ask("SCRIPT", "FLUSH")
    name = topic()
    event = NewEvent(name, "update", b'{"i":1}')
    async with open_log(primary.url, 1, Retention(60_000, 100, 100, 60_000, replicas=1)) as log:
        await log.append([event])
        assert retained(replica, name) == [1]
    async with open_log(primary.url, 1, Retention(60_000, 100, 100, 60_000, replicas=2, replicas_s=0.05)) as log:
        with pytest.raises(NotReplicated, match="1 of 2 replicas"):
            await log.append([event])
