"""Sources of the kind `sse`: relays in a chain, and endpoints that lie."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.asking import Asker, asking
from tests.servers import Relay, Valkey, token, topic
from tests.updates.conftest import Watch, Watched
from tests.updates.jobs import JobProcess, toml
from tests.updates.upstreams import Answer, Handler, Upstream
from tests.waiting import wait_for

SOURCE: dict[str, Any] = {"kind": "sse", "items": None, "version": None, "key": None}


def chained(watch: Watch, relay: Relay, path: str, **keys: Any) -> Watched:
    return watch(**{**SOURCE, "url": f"{relay.url}{path}", "headers": {"Authorization": "Bearer ${TOKEN}"}, **keys})


@pytest.fixture(scope="module")
def upper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Relay, Asker]]:
    """A relay with a log of its own, whose streams are short."""
    env = {"RELAY_STREAM_MAX_SECONDS": "2", "RELAY_HEARTBEAT_SECONDS": "1"}
    relay = Relay(tmp_path_factory.mktemp("upper"), env=env)
    with asking(relay) as asker:
        yield relay, asker


def test_a_chained_topic_has_each_event_once_whoever_is_killed(upper: tuple[Relay, Asker], tmp_path: Any, valkey: Valkey) -> None:
    """The upper relay ends its streams, and is restarted; the job is killed and started again."""
    relay, asker = upper
    own, name = topic(), topic().replace("/", "-")
    url = f"{relay.url}/stream/{own}/v1/live?cursor=earliest"
    source = toml(**SOURCE, name=name, url=url, topic=own, headers={"Authorization": "Bearer ${TOKEN}"})
    job = JobProcess(tmp_path, valkey.url, source, {"TOKEN": token()})
    watched = Watched(name, own, job, valkey)
    asker.post(f"/stream/{own}", {"event": "first", "data": {"n": 0}})
    try:
        job.start()
        wait_for("the first is there", lambda: len(watched.data()) == 1)
        asker.publish(own, *({"n": number} for number in range(1, 150)))
        wait_for("some are there", lambda: len(watched.data()) > 1)
        job.kill()
        asker.publish(own, *({"n": number} for number in range(150, 200)))
        job.start()
        wait_for("all are there", lambda: len(watched.data()) >= 200)
        assert relay.stop() == 0
        relay.start()
        asker.publish(own, {"n": 200})
        wait_for("it is there too", lambda: len(watched.data()) >= 201)
        assert watched.data() == [{"n": number} for number in range(201)]
        assert watched.entries()[0][0] == "first"
        assert watched.entries()[1][0] == "update"
    finally:
        job.kill()
    assert "Traceback" not in job.log()


def test_a_chained_stream_of_several_topics_goes_to_the_same_ones(upper: tuple[Relay, Asker], watch: Watch, valkey: Valkey) -> None:
    relay, asker = upper
    names = [topic(), topic()]
    watched = chained(
        watch, relay, f"/stream/v1/live?cursor=earliest&topic={names[0]}&topic={names[1]}", topic="{/data/topic}", data="/data/data"
    )
    for number in range(4):
        asker.publish(names[number % 2], {"n": number})
    for index, name in enumerate(names):
        there = Watched(watched.name, name, watched.job, valkey)
        wait_for("they are there", lambda there=there, index=index: there.data() == [{"n": index}, {"n": index + 2}])  # type: ignore[misc]


# Endpoints that aren't relays


def streams(
    text: bytes, *, then: Callable[[Handler], None] | None = None, content_type: str = "text/event-stream; charset=utf-8"
) -> Answer:
    def write(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.end_headers()
        handler.wfile.write(text)
        if then:
            then(handler)
        handler.close_connection = True

    return Answer(write=write)


def test_any_endpoint_will_do_and_data_that_is_no_json_is_text(watch: Watch, up: Upstream) -> None:
    up.answer = streams(b'retry: 100\nid: 1\nevent: spin\ndata: {"a":\ndata: 1.10}\n\nid: 2\ndata: plain "text"\n\n')
    watched = watch(**SOURCE)
    wait_for("they are there", lambda: len(watched.data()) >= 2)
    wait_for("it comes back from there", lambda: up.asked[-1].get("last-event-id") == "2")
    wait_for("several times", lambda: len(up.asked) > 3)
    assert watched.entries() == [("spin", {"a": 1.1}), ("message", 'plain "text"')]


def test_an_event_without_an_id_of_its_own_needs_a_key_in_its_data(watch: Watch, up: Upstream) -> None:
    up.answer = streams(b'id: 1\ndata: {"k": "a"}\n\ndata: {"k": "b"}\n\ndata: {"k": "b"}\n\n')
    watched, other = watch(**SOURCE), watch(**{**SOURCE, "key": "/data/k", "event": "e"})
    wait_for("both have read it", lambda: watched.status().get("items_seen", 0) >= 3 and other.status().get("items_seen", 0) >= 3)
    assert watched.data() == [{"k": "a"}]
    assert "/id, its key" in watched.tells("can't become events")
    wait_for("both are there", lambda: other.entries() == [("e", {"k": "a"}), ("e", {"k": "b"})])


def silence(handler: Handler) -> None:
    """Until the client has had enough."""
    handler.rfile.read(1)


def endless_line(handler: Handler) -> None:
    try:
        while True:
            handler.wfile.write(b"x" * (1 << 18))
    except OSError:
        pass


LIES = {
    "a page": (streams(b"<html>", content_type="text/html"), "'text/html', which is no stream"),
    "an error": (Answer(status=503), "answers 503"),
    "no content": (Answer(status=204), "answers 204"),
    "a line without end": (streams(b"data: ", then=endless_line), "8 MiB without an event"),
    "silence": (streams(b":\n\n", then=silence), "is slow"),
}


@pytest.mark.parametrize(("lie", "told"), LIES.values(), ids=LIES)
def test_an_endpoint_that_lies_is_told_of_and_read_again(watch: Watch, up: Upstream, lie: Answer, told: str) -> None:
    up.answer = lie
    watched = watch(**SOURCE, timeout_ms=1500) if told == "is slow" else watch(**SOURCE)
    watched.tells(told)
    up.answer = streams(b"id: 1\ndata: 1\n\n")
    wait_for("it is there", lambda: watched.data() == [1])


def test_what_an_upper_relay_lost_is_told(watch: Watch, up: Upstream) -> None:
    gap = json.dumps({"topic": "a/b/c", "lost": 37, "first_n": 38, "oldest": "x"}).encode()
    up.answer = streams(b"event: hello\nid: 0\ndata: {}\n\nevent: gap\nid: 7\ndata: " + gap + b"\n\nid: 8\nevent: update\ndata: 1\n\n")
    watched = watch(**SOURCE)
    assert '"lost": 37' in watched.tells("its upstream told gap")
    wait_for("it is there", lambda: watched.data() == [1])
    wait_for("it is told of", lambda: watched.status().get("items_seen", 0) >= 1)
    assert watched.status()["skipped"] == 0
