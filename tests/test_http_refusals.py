"""Whatever a relay refuses, at whichever door, is in its metrics by code; what is temporary is in its log, once a cause."""

import math
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from relay.refusals import PERIOD_S
from tests.asking import AUTH, JSON, Asker, asking, bearer, check_problem
from tests.servers import Relay, Valkey, topic
from tests.waiting import wait_for

ENV = {"RELAY_MAX_STREAMS": "3", "RELAY_MAX_STREAMS_PER_SUB": "2", "RELAY_CONNECTS_PER_SECOND": "1000"}
LINE = re.compile(r"(?:a request is|(\d+) more requests were) refused: (.*)")


@pytest.fixture(scope="module")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture
def small(tmp_path: Path, own_valkey: Valkey) -> Relay:
    return Relay(tmp_path, own_valkey.url, ENV)


@pytest.fixture
def asker(small: Relay) -> Iterator[Asker]:
    with asking(small) as asker:
        yield asker


def counted(asker: Asker) -> dict[str, int]:
    text = asker.get("/metrics").text
    return {code: int(float(number)) for code, number in re.findall(r'relay_refused_total\{code="(\w+)"\} (\S+)', text)}


def told(relay: Relay) -> Counter[str]:
    """How many refusals of each cause the log speaks of."""
    numbers: Counter[str] = Counter()
    for number, cause in LINE.findall(relay.log()):
        numbers[cause] += int(number or 1)
    return numbers


def lines(relay: Relay) -> int:
    return len(LINE.findall(relay.log()))


def lines_max(causes: int, began_s: float) -> int:
    """Each cause has a line when it comes up, and one at the end of each period since."""
    return causes * (2 + math.ceil((time.monotonic() - began_s) / PERIOD_S))


def test_limits_are_counted_and_told_once_a_cause(small: Relay, asker: Asker) -> None:
    live, poll = f"/stream/{topic()}/v1/live", f"/stream/{topic()}/v1/poll?wait=5"
    began_s = time.monotonic()
    with ExitStack() as held:
        for sub in ("ada", "ada", "bob"):
            assert held.enter_context(asker.live(live, headers=bearer(sub))).next().name == "hello"
        for _ in range(20):
            with asker.live(live, headers=bearer("eve")) as stream:
                assert stream.next().name == "bye"
            check_problem(asker.get(poll, headers=bearer("eve")), 429, "too_many_streams")
    assert counted(asker) == {"too_many_streams": 40}
    wait_for("the period is over", lambda: told(small) == {"RELAY_MAX_STREAMS=3 is reached": 40})
    assert lines(small) <= lines_max(1, began_s)


def test_what_is_final_is_counted_and_not_told(small: Relay, asker: Asker) -> None:
    for _ in range(3):
        asker.get(f"/stream/{topic()}/v1/live", headers={"authorization": "Bearer x"})
        asker.get(f"/stream/{topic()}/v1/poll", headers={})
        asker.get("/nothing")
        asker.get("/stream/a/b/c%2541/v1/live")
        asker.post(f"/stream/{topic()}", {"data": 1, "event": "hello"})
        asker.get("/stream/publish")
    assert counted(asker) == dict.fromkeys(["bad_token", "no_token", "not_found", "bad_path", "bad_event", "method_not_allowed"], 3)
    assert lines(small) == 0


def test_an_outage_is_told_once_and_counted_at_every_door(small: Relay, asker: Asker, own_valkey: Valkey) -> None:
    own, began_s = topic(), time.monotonic()
    try:
        own_valkey.kill()
        wait_for("the relay notices", lambda: asker.page("/readyz")["valkey"] == "away")
        before = counted(asker).get("unavailable", 0)
        for _ in range(10):
            with asker.live(f"/stream/{own}/v1/live") as stream:
                assert stream.next().name == "bye"
            for answer in (
                asker.get(f"/stream/{own}/v1/poll", headers=AUTH),
                asker.get(f"/stream/{own}/v1/poll?wait=5", headers=AUTH),
                asker.post(f"/stream/{own}", {"data": 1}, headers=JSON),
                asker.post("/stream/publish", [{"topic": own, "data": 1}]),
            ):
                check_problem(answer, 503, "unavailable")
        assert counted(asker)["unavailable"] - before == 50
        assert lines(small) <= lines_max(len(told(small)), began_s)
        assert len(told(small)) <= 3  # what was under way when it went away has a cause of its own
        assert told(small)["the log is away"] > 0
    finally:
        own_valkey.start()
