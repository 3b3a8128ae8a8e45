"""Publishing that waits for replicas says 201 when they have the event, and 503 in time when they don't."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import valkey

from relay.errors import NotReplicated
from relay.event import Retention
from relay.log import NewEvent, open_log
from tests.faults.clients import retained, until
from tests.faults.conftest import StartRelay
from tests.servers import Relay, Valkey, replica_of, topic
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.anyio

DAY_MS = 86_400_000
WAIT_S = 0.5
WAIT_MAX_S = 60.0


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
    """It waits as long as it may, for a replica that is there and has little of the machine."""
    return start_relay(primary.url, {"RELAY_WAIT_REPLICAS": "1", "RELAY_WAIT_SECONDS": str(WAIT_MAX_S)})


@pytest.fixture(scope="module")
def brief(start_relay: StartRelay, primary: Valkey) -> Relay:
    return start_relay(primary.url, {"RELAY_WAIT_REPLICAS": "1", "RELAY_WAIT_SECONDS": str(WAIT_S)})


def said(heard: Any) -> Iterator[str]:
    while True:
        yield heard.next_command()["command"]


async def publish(http: httpx.AsyncClient, relay: Relay, name: str, number: int) -> tuple[int, str]:
    """The status and the code of the answer."""
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
    http: httpx.AsyncClient, relay: Relay, brief: Relay, primary: Valkey, replica: Valkey, gone: str
) -> None:
    """Valkey is asked to wait for so long, and no longer."""
    name = topic()
    assert await publish(http, relay, name, 0) == (201, "")
    if gone == "stopped":
        replica.pause()
    else:
        replica.kill()
    batch = [{"topic": name, "data": {"i": 2}, "key": "k2"}]
    with valkey.Valkey(port=primary.port, socket_timeout=LIMIT_S) as client, client.monitor() as heard:
        # Also when it is there already, the replica still hasn't got it.
        for _ in range(3):
            assert await publish(http, brief, name, 1) == (503, "not_replicated")
        answer = await http.post(f"{brief.url}/stream/publish", json=batch)
        commands = [next(command for command in said(heard) if command.startswith("WAIT ")) for _ in range(4)]
    assert commands == [f"WAIT 1 {WAIT_S * 1000:.0f}"] * 4
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
    metrics = (await http.get(f"{brief.url}/metrics")).text
    assert 'relay_refused_total{code="not_replicated"}' in metrics


async def test_a_server_that_does_not_know_the_script_yet_is_waited_for_too(primary: Valkey, replica: Valkey) -> None:
    primary.ask("SCRIPT", "FLUSH")
    name = topic()
    event = NewEvent(name, "update", b'{"i":1}')
    async with open_log(primary.url, 1, Retention(DAY_MS, 100, 100, DAY_MS, replicas=1, replicas_s=WAIT_MAX_S), LIMIT_S) as log:
        await log.append([event])
        assert retained(replica, name) == [1]
    async with open_log(primary.url, 1, Retention(DAY_MS, 100, 100, DAY_MS, replicas=2, replicas_s=0.05), LIMIT_S) as log:

        async def one_has_it() -> bool:
            """It may need longer for once."""
            with pytest.raises(NotReplicated, match=r"[01] of 2 replicas") as caught:
                await log.append([event])
            return str(caught.value).startswith("1")

        await until(one_has_it)
