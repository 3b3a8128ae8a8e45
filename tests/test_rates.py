"""What a publisher and an address may ask in a second, of a whole fleet: of two relays and of the polling function."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from relay.errors import LogUnavailable, TooMany
from relay.log import Log, open_log
from relay.rates import BURST_S, REFUSED_MAX, Rates, network
from tests.asking import Asker, asking, bearer, check_problem
from tests.protocol.world import Function
from tests.servers import DEFAULT_RETENTION, Relay, Valkey, topic
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.anyio

PER_S = 2
BURST = PER_S * BURST_S
BATCH = 1000  # events, the most that come at once: what they owe isn't paid back while a test runs
OWED_S = BATCH / PER_S - BURST_S
LIMITS = {"RELAY_PUBLISH_PER_SECOND": str(PER_S), "RELAY_REQUESTS_PER_SECOND": str(PER_S), "RELAY_TRUSTED_PROXIES": "127.0.0.1"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[list[Asker]]:
    """Two relays, and the polling function."""
    folder = tmp_path_factory.mktemp("fleet")
    one, other, alone = (Relay(folder / name, valkey.url, LIMITS) for name in ("one", "other", "function"))
    with ExitStack() as stack:
        yield [stack.enter_context(asking(server)) for server in (one, other, Function(alone))]


@pytest.fixture
async def log(valkey: Valkey) -> AsyncIterator[Log]:
    async with open_log(valkey.url, 1, DEFAULT_RETENTION, LIMIT_S) as opened:
        yield opened


class Address:
    """A client's, which nobody else has."""

    def __init__(self, **headers: str) -> None:
        self.ip = f"10.{'.'.join(str(byte) for byte in hashlib.sha256(topic().encode()).digest()[:3])}"
        self.headers = {**bearer(), **headers, "x-forwarded-for": self.ip}
        self.limit = limit_of("request", self.ip)

    async def spend(self, log: Log) -> None:
        """From now on it asks too much, for longer than a test takes."""
        assert await log.take(self.limit, PER_S, BATCH, BURST_S) == 0


def limit_of(kind: str, who: str) -> str:
    return f"{kind}:{hashlib.blake2s(who.encode(), digest_size=12).hexdigest()}"


def key_of(limit: str) -> str:
    return f"{{relay:0}}:rate:{limit}"


def now_s(valkey: Valkey) -> float:
    """By the clock that limits are counted with."""
    seconds, microseconds = valkey.ask("TIME")
    return float(seconds) + float(microseconds) / 1e6


def check_limited(answer: httpx.Response) -> None:
    check_problem(answer, 429, "rate_limited")
    assert 1 <= int(answer.headers["retry-after"]) <= 2 * OWED_S + 1


def test_pages_are_limited_by_address_over_the_fleet(fleet: list[Asker], valkey: Valkey) -> None:
    mine = Address()
    path = f"/stream/{topic()}/v1/poll"
    began_s = now_s(valkey)
    answers = [fleet[number % 3].get(path, headers=mine.headers) for number in range(3 * BURST)]
    passed_s = now_s(valkey) - began_s
    taken = [answer for answer in answers if answer.status_code == 200]
    assert BURST <= len(taken) <= BURST + 1 + passed_s * PER_S
    for answer in answers:
        if answer.status_code != 200:
            check_limited(answer)


async def test_whoever_has_spent_all_is_refused_by_the_whole_fleet(fleet: list[Asker], log: Log) -> None:
    mine, other = Address(), Address()
    path = f"/stream/{topic()}/v1/poll"
    await mine.spend(log)
    for asker in fleet:
        check_limited(asker.get(path, headers=mine.headers))
        check_limited(asker.get(path + "?wait=1", headers=mine.headers))
        assert asker.get(path, headers=other.headers).status_code == 200


async def test_an_event_source_is_told_to_come_back(fleet: list[Asker], log: Log) -> None:
    mine, path = Address(), f"/stream/{topic()}/v1/live"
    await mine.spend(log)
    with fleet[1].live(path, headers=mine.headers) as stream:
        bye = stream.next()
    assert (bye.name, bye.json()["reason"]) == ("bye", "busy")
    assert 0 < bye.json()["reconnect_ms"] <= 2000 * OWED_S
    with fleet[1].live(path, headers=Address().headers) as stream:
        assert stream.next().name == "hello"


async def test_whoever_comes_with_bad_tokens_is_limited_too(fleet: list[Asker], log: Log, valkey: Valkey) -> None:
    mine, path = Address(authorization="Bearer x"), f"/stream/{topic()}/v1/poll"

    def counts() -> bool:
        return fleet[0].get(path, headers=mine.headers).status_code == 401 and valkey.ask("EXISTS", key_of(mine.limit)) == 1

    wait_for("it is counted, and that is seen before it is forgotten", counts)
    await mine.spend(log)
    check_limited(fleet[0].get(path, headers=mine.headers))


def test_events_are_limited_by_publisher_and_a_batch_counts_its_own(fleet: list[Asker]) -> None:
    own, headers = topic(), bearer(f"publisher-{topic()}")
    items = [{"topic": own, "data": number} for number in range(BATCH)]
    assert fleet[0].post("/stream/publish", [], headers=headers).status_code == 200
    assert fleet[0].post("/stream/publish", items, headers=headers).status_code == 200  # never too large, but the next waits for it
    for asker in fleet[:2]:
        check_limited(asker.post("/stream/publish", items[:1], headers=headers))
        check_limited(asker.post(f"/stream/{own}", {"data": 1}, headers=headers))
        assert asker.post(f"/stream/{own}", {"data": 2}, headers=bearer(f"other-{topic()}")).status_code == 201
    page = fleet[0].get(f"/stream/{own}/v1/poll?k=3", headers=Address().headers).json()
    last = page["events"][0]["n"]
    assert [(event["n"], event["data"]) for event in page["events"]] == [(last, BATCH - 1), (last + 1, 2), (last + 2, 2)]


def test_a_malformed_request_is_malformed_whatever_the_limit(fleet: list[Asker]) -> None:
    mine = Address()
    for _ in range(2 * BURST):
        check_problem(fleet[0].get(f"/stream/{topic()}/v1/poll?k=x", headers=mine.headers), 400, "bad_k")


def test_without_limits_nobody_is_limited_and_valkey_is_not_asked(asker: Asker, valkey: Valkey) -> None:
    key = key_of(limit_of("request", "127.0.0.1"))
    due = valkey.ask("GET", key)  # of another relay's limit, if there was one
    for _ in range(3 * BURST):
        assert asker.get(f"/stream/{topic()}/v1/poll").status_code == 200
        assert valkey.ask("GET", key) in (due, None)


async def test_what_was_taken_is_given_back_with_time(log: Log, valkey: Valkey) -> None:
    name, per_s, back_s = topic(), 1000, 0.0
    assert [await log.take(name, per_s, 1, 1) for _ in range(3)] == [0] * 3
    async with asyncio.timeout(LIMIT_S):
        while not back_s:  # it was given back before it was asked for
            assert await log.take(name, per_s, 1300, 1) == 0
            asked_s = now_s(valkey)
            back_s = await log.take(name, per_s, 1, 1)
        assert back_s < 1.3
        while await log.take(name, per_s, 1, 1):
            pass
    assert now_s(valkey) - asked_s >= back_s


async def test_a_limit_leaves_nothing_behind(log: Log, valkey: Valkey) -> None:
    name, per_s = topic(), 1
    before_s = now_s(valkey)
    assert await log.take(name, per_s, BATCH, BATCH) == 0
    ends_s = valkey.ask("PEXPIRETIME", key_of(name)) / 1000
    assert before_s - 0.001 <= ends_s - BATCH / per_s <= now_s(valkey) + 0.001


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


async def test_a_relay_out_of_memory_limits_nobody_who_reads(tmp_path: Path) -> None:
    server = Valkey(tmp_path / "valkey")
    try:
        server.start()
        with asking(Relay(tmp_path, server.url, LIMITS)) as asker:
            path, spent, mine = f"/stream/{topic()}/v1/poll", Address(), Address()
            async with open_log(server.url, 1, DEFAULT_RETENTION, LIMIT_S) as log:
                await spent.spend(log)
                await mine.spend(log)
            check_limited(asker.get(path, headers=spent.headers))
            server.ask("CONFIG", "SET", "maxmemory", "1")
            wait_for("it takes nothing more", lambda: asker.post(f"/stream/{topic()}", {"data": 1}).status_code == 503)
            for _ in range(2 * BURST):
                assert asker.get(path, headers=mine.headers).status_code == 200
    finally:
        server.kill()
