"""What a publisher and an address may ask in a second, of a whole fleet: of two relays and of the polling function."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relay.errors import LogUnavailable, TooMany
from relay.event import Retention
from relay.log import Log, open_log
from relay.rates import BURST_S, REFUSED_MAX, Rates, network
from tests.asking import Asker, asking, bearer, check_problem
from tests.servers import Relay, Valkey, free_port, topic, wait_until_listening
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.anyio

PER_S = 2
BURST = PER_S * BURST_S
LIMITS = {"RELAY_PUBLISH_PER_SECOND": str(PER_S), "RELAY_REQUESTS_PER_SECOND": str(PER_S), "RELAY_TRUSTED_PROXIES": "127.0.0.1"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[list[Asker]]:
    """Two relays, and the polling function."""
    folder = tmp_path_factory.mktemp("fleet")
    relays = [Relay(folder / name, valkey.url, LIMITS) for name in ("one", "other")]
    port = free_port()
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--factory", "--port", str(port), "fallback.app:create_app"]
    function = subprocess.Popen(command, env=relays[0].environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_listening(port, function)
        with asking(relays[0]) as one, asking(relays[1]) as other, Asker(f"http://127.0.0.1:{port}") as alone:
            yield [one, other, alone]
    finally:
        function.kill()
        function.wait(LIMIT_S)


def address() -> dict[str, str]:
    """Headers of a client whose address nobody else has."""
    return {**bearer(), "x-forwarded-for": ".".join(map(str, [10, *os.urandom(3)]))}


def check_limited(answer_headers: object, retry_after: str) -> None:
    assert 1 <= int(retry_after) <= 2 * BURST_S, answer_headers


def test_pages_are_limited_by_address_over_the_fleet(fleet: list[Asker]) -> None:
    mine, other = address(), address()
    path = f"/stream/{topic()}/v1/poll"
    answers = [fleet[number % 3].get(path, headers=mine) for number in range(3 * BURST)]
    taken = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert BURST <= len(taken) < 2 * BURST
    for answer in refused:
        check_problem(answer, 429, "rate_limited")
        check_limited(answer.headers, answer.headers["retry-after"])
    for asker in fleet:
        assert asker.get(path, headers=other).status_code == 200
    # One may be due again by now, and waits then.
    wait_for("one that would wait is refused too", lambda: fleet[2].get(path + "?wait=1", headers=mine).status_code == 429)


def test_an_event_source_is_told_to_come_back(fleet: list[Asker]) -> None:
    mine, path = address(), f"/stream/{topic()}/v1"
    while fleet[0].get(f"{path}/poll", headers=mine).status_code == 200:
        pass
    with fleet[1].live(f"{path}/live", headers=mine) as stream:
        bye = stream.next()
    assert (bye.name, bye.json()["reason"]) == ("bye", "busy")
    assert 0 < bye.json()["reconnect_ms"] <= 2000 * BURST_S
    with fleet[1].live(f"{path}/live", headers=address()) as stream:
        assert stream.next().name == "hello"


def test_whoever_comes_with_bad_tokens_is_limited_too(fleet: list[Asker]) -> None:
    mine = {**address(), "authorization": "Bearer x"}
    statuses = [fleet[0].get(f"/stream/{topic()}/v1/poll", headers=mine).status_code for _ in range(3 * BURST)]
    assert set(statuses) == {401, 429}


def test_events_are_limited_by_publisher_and_a_batch_counts_its_own(fleet: list[Asker]) -> None:
    own, headers = topic(), bearer(f"publisher-{topic()}")
    items = [{"topic": own, "data": number} for number in range(5 * BURST)]
    assert fleet[0].post("/stream/publish", [], headers=headers).status_code == 200
    assert fleet[0].post("/stream/publish", items, headers=headers).status_code == 200  # never too large, but the next waits for it
    for asker in fleet[:2]:
        check_problem(asker.post("/stream/publish", items[:1], headers=headers), 429, "rate_limited")
        check_problem(asker.post(f"/stream/{own}", {"data": 1}, headers=headers), 429, "rate_limited")
        assert asker.post(f"/stream/{own}", {"data": 2}, headers=bearer(f"other-{topic()}")).status_code == 201
    page = fleet[0].get(f"/stream/{own}/v1/poll?cursor=earliest&limit=500", headers=address()).json()
    assert [event["data"] for event in page["events"]] == [*range(5 * BURST), 2, 2]


def test_a_malformed_request_is_malformed_whatever_the_limit(fleet: list[Asker]) -> None:
    mine = address()
    for _ in range(2 * BURST):
        check_problem(fleet[0].get(f"/stream/{topic()}/v1/poll?k=x", headers=mine), 400, "bad_k")


def test_without_limits_nobody_is_limited_and_valkey_is_not_asked(asker: Asker, valkey: Valkey) -> None:
    for _ in range(3 * BURST):
        assert asker.get(f"/stream/{topic()}/v1/poll").status_code == 200
    assert not [key for key in valkey.ask("KEYS", "*:rate:*") if valkey.ask("TTL", key) == -1]


@pytest.fixture
async def log(valkey: Valkey) -> AsyncIterator[Log]:
    async with open_log(valkey.url, 1, Retention(60_000, 100, 100, 60_000)) as opened:
        yield opened


async def taken(log: Log, name: str, number: int, per_s: int = 1, burst_s: int = 10) -> bool:
    return await log.take(name, per_s, number, burst_s) == 0


async def test_what_was_taken_is_given_back_with_time(log: Log) -> None:
    name = topic()
    async with asyncio.timeout(LIMIT_S):
        assert [await taken(log, name, 1, 1000, 1) for _ in range(3)] == [True] * 3
        assert await taken(log, name, 1300, 1000, 1)
        back_s = await log.take(name, 1000, 1, 1)
        assert 0 < back_s < 0.4
        began = asyncio.get_running_loop().time()
        while not await taken(log, name, 1, 1000, 1):
            pass
        assert asyncio.get_running_loop().time() - began > back_s / 2


async def test_a_limit_leaves_nothing_behind(log: Log, valkey: Valkey) -> None:
    name = topic()
    assert await taken(log, name, 10)
    key = f"{{relay:0}}:rate:{name}"
    assert 9_000 < valkey.ask("PTTL", key) <= 10_000


class Counting:
    """A log that is asked how much is left: little, or it can't say."""

    def __init__(self, away: bool = False) -> None:
        self.asked, self.away = 0, away

    async def take(self, name: str, per_s: int, number: int, burst_s: int) -> float:
        self.asked += 1
        if self.away:
            raise LogUnavailable("gone")
        return 3.0


async def test_whoever_was_refused_is_refused_until_its_time_without_asking_again() -> None:
    log, clock = Counting(), [100.0]
    rates = Rates(log, 0, 1, lambda: clock[0])  # type: ignore[arg-type]
    for _ in range(5):
        with pytest.raises(TooMany) as caught:
            await rates.request("192.0.2.1")
        assert 3.0 <= (caught.value.retry_after_s or 0) <= 6.0
    assert log.asked == 1
    clock[0] += 3.1
    with pytest.raises(TooMany):
        await rates.request("192.0.2.1")
    assert log.asked == 2
    for number in range(REFUSED_MAX + 10):
        with pytest.raises(TooMany):
            await rates.request(f"host-{number}")
    assert len(rates._refused) == REFUSED_MAX


async def test_while_nobody_can_say_nobody_is_limited() -> None:
    log = Counting(away=True)
    rates = Rates(log, 1, 1)  # type: ignore[arg-type]
    for _ in range(3):
        await rates.request("192.0.2.1")
        await rates.publish("ada", 1000)
    assert log.asked == 6


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_an_address_counts_for_its_customer(address: str, counted: str) -> None:
    assert network(address) == counted


def test_a_relay_out_of_memory_limits_nobody_who_reads(tmp_path: Path) -> None:
    server = Valkey(tmp_path / "valkey").start()
    try:
        with asking(Relay(tmp_path, server.url, LIMITS)) as asker:
            path, mine = f"/stream/{topic()}/v1/poll", address()
            assert asker.get(path, headers=mine).status_code == 200
            server.ask("CONFIG", "SET", "maxmemory", "1")
            wait_for("it takes nothing more", lambda: asker.post(f"/stream/{topic()}", {"data": 1}).status_code == 503)
            for _ in range(2 * BURST):
                assert asker.get(path, headers=mine).status_code == 200
    finally:
        server.kill()
