"""Valkey has no memory left, or no disk: publishers are told to come back, readers notice nothing, and afterwards it goes on."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
from valkey.exceptions import ResponseError

from relay.refusals import PERIOD_S
from tests.asking import Asker, check_problem
from tests.faults.conftest import StartRelay
from tests.needs import need
from tests.servers import Valkey, topic
from tests.waiting import wait_for

BEFORE = [1, 2, 3]
# Reads are counted too, in Valkey, which can't be done meanwhile.
ENV = {"RELAY_REQUESTS_PER_SECOND": "1000"}

Full = Callable[[Valkey], AbstractContextManager[str]]


@pytest.fixture(scope="module")
def log(folder: Path) -> Iterator[Valkey]:
    server = Valkey(folder / "valkey", arguments=("--appendonly", "yes")).start()
    yield server
    server.kill()


@contextmanager
def no_memory(log: Valkey) -> Iterator[str]:
    log.ask("CONFIG", "SET", "maxmemory", 1 << 20)
    try:
        yield "OOM"
    finally:
        log.ask("CONFIG", "SET", "maxmemory", 0)


@contextmanager
def no_disk(log: Valkey) -> Iterator[str]:
    need("Linux")  # it alone sets the limits of another process
    log.fill_disk()
    try:
        # It finds out when it writes its file, and has said yes to that write before: after that, it says no.
        with suppress(ResponseError):  # where the relay has written in between
            log.ask("SET", "something", "x" * 100)
        wait_for("it can't write its file", lambda: log.info("aof_last_write_status") == "err")
        yield "MISCONF"
    finally:
        log.free_disk()
    wait_for("it can write its file", lambda: log.info("aof_last_write_status") == "ok")


@contextmanager
def no_replicas(log: Valkey) -> Iterator[str]:
    log.ask("CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        yield "NOREPLICAS"
    finally:
        log.ask("CONFIG", "SET", "min-replicas-to-write", 0)


@pytest.mark.parametrize("full", [no_memory, no_disk, no_replicas], ids=["memory", "disk", "replicas"])
def test_publishers_are_told_to_come_back_and_readers_go_on(start_relay: StartRelay, log: Valkey, full: Full) -> None:
    relay = start_relay(log.url, ENV)
    began = time.monotonic()
    own = topic()
    with Asker(relay.url) as asker, asker.live(f"/stream/{own}/v1/live") as live:
        assert live.next().name == "hello"
        ids = asker.publish(own, *BEFORE)
        assert [live.next().json() for _ in BEFORE] == BEFORE
        with full(log) as reason:
            for _ in range(3):
                check_problem(asker.post(f"/stream/{own}", {"data": 0}), 503, "unavailable")
                check_problem(asker.post("/stream/publish", [{"topic": own, "data": 0, "key": "a"}] * 2), 503, "unavailable")
            assert asker.log(own) == BEFORE
            assert asker.page(f"/stream/{own}/v1/poll?cursor={ids[0]}&wait=5")["cursor"] == ids[-1]
            assert asker.page(f"/stream/{own}/v1/poll?cursor={ids[-1]}&wait=1")["events"] == []
            for query in ("k=3", "cursor=earliest"):
                with asker.live(f"/stream/{own}/v1/live?{query}") as other:
                    assert [other.next().name for _ in range(4)] == ["hello", "update", "update", "update"]
            live.beats(3)  # a second each, in which this process can't tell the fleet that it lives
            assert asker.page("/readyz") == {"status": "ready", "valkey": "here"}
            # One that has ended and could not say so is forgotten by and by.
            wait_for("it is alone", lambda: asker.page("/stream/status")["processes"] == 1)
        assert asker.publish(own, 4)
        assert live.next().json() == 4
        assert asker.log(own) == [*BEFORE, 4]
    lines = relay.log().count(f"a request is refused: the log takes no events: {reason}")
    assert 1 <= lines <= 1 + (time.monotonic() - began) / PERIOD_S  # when it comes up, and again after a period without any
    assert relay.stop() == 0
