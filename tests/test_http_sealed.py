"""Sealed streams and pages over HTTP, and the keys that open them.

All that is said of pages and keys holds for the relay and for the polling function alike.
"""

import json
import re
import time
import zlib
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from typing import Any

import pytest

from relay.keys import Keyring
from relay.seal import unseal, write_base64
from tests.asking import AUTH, Asker, bearer, check_problem
from tests.iron import PACKAGES, run_iron
from tests.protocol.world import Function
from tests.servers import SEAL_KEY, Relay, Valkey, topic
from tests.waiting import wait_for

OLD_KEY = "the-key-before-the-one-that-seals-now-24680"


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Function]:
    settings = Relay(tmp_path_factory.mktemp("function"), valkey.url, {"SSE_ENCRYPTION_KEY": f"{SEAL_KEY},{OLD_KEY}"})
    process = Function(settings)
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Relay]:
    """A relay that seals for backends, and has some topics in no other way."""
    env = {"SSE_ENCRYPTION_KEY": SEAL_KEY, "RELAY_SEAL_KEYS": "shared", "RELAY_REQUIRE_SEALED": "tests/case/*"}
    process = Relay(tmp_path_factory.mktemp("backends"), valkey.url, env)
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Relay]:
    """A relay without a key, and without compression."""
    process = Relay(tmp_path_factory.mktemp("plain"), valkey.url, {"RELAY_COMPRESSION": "off"})
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture(params=["relay", "function"])
def door(request: pytest.FixtureRequest) -> Iterator[Asker]:
    with Asker(request.getfixturevalue(request.param).url) as asker:
        yield asker


def keys_of(asker: Asker, *topics: str) -> dict[str, str | bytes]:
    """What `unseal` opens with, as the relay gives it."""
    given = asker.page(f"/stream/keys?{'&'.join(f'topic={name}' for name in topics)}")["keys"]
    return {key["id"]: urlsafe_b64decode(key["key"] + "=") for key in given}


def publish(asker: Asker, name: str, *values: Any) -> list[dict[str, Any]]:
    """What the seals of these events must say."""
    answer = asker.post("/stream/publish", [{"topic": name, "data": value} for value in values])
    return [
        {"id": result["id"], "topic": name, "n": result["n"], "event": "update", "data": value}
        for result, value in zip(answer.json()["results"], values, strict=True)
    ]


def opened(sealed: str, keys: dict[str, str | bytes]) -> dict[str, Any]:
    return dict(json.loads(unseal(sealed, keys, int(time.time() * 1000))))


def check_inside(inside: dict[str, Any], published: dict[str, Any]) -> None:
    assert list(inside) == ["id", "topic", "n", "event", "ts", "sealed_at", "data"]
    assert {name: inside[name] for name in published} == published
    assert f".{inside['ts']}-" in inside["id"]
    assert inside["ts"] <= inside["sealed_at"] <= time.time() * 1000


def test_a_stream_of_one_topic_has_bare_seals(asker: Asker) -> None:
    own = topic()
    (first,) = publish(asker, own, {"é": 1})
    keys = keys_of(asker, own)
    with asker.live(f"/stream/{own}/v2/live?k=1") as stream:
        hello, block = stream.next(), stream.next()
        assert hello.json()["resume"] == "new"
        assert (block.name, block.last_event_id) == ("update", first["id"])
        check_inside(opened(block.data, keys), first)
        (second,) = publish(asker, own, "live")
        check_inside(opened(stream.next().data, keys), second)


def test_a_stream_of_several_topics_has_seals_in_its_wrapper(asker: Asker) -> None:
    one, other = topic(), topic()
    keys = keys_of(asker, one, other)
    assert len(keys) >= 2
    with asker.live(f"/stream/v2/live?topic={one}&topic={other}") as stream:
        stream.next()
        for published in [*publish(asker, one, "x"), *publish(asker, other, "y")]:
            wrapper = stream.next().json()
            assert list(wrapper) == ["id", "topic", "n", "ts", "data"]
            check_inside(opened(wrapper["data"], keys), published)


def test_readers_of_one_topic_get_the_same_seals_and_these_are_counted(asker: Asker) -> None:
    def count() -> float:
        found = re.search(r"^relay_seals_total (.*)$", asker.get("/metrics").text, re.MULTILINE)
        assert found
        return float(found[1])

    own, before = topic(), count()
    with asker.live(f"/stream/{own}/v2/live") as one, asker.live(f"/stream/{own}/v2/live") as other:
        for stream in (one, other):
            stream.next()
        publish(asker, own, 1, 2, 3)
        assert [one.next().data for _ in range(3)] == [other.next().data for _ in range(3)]
    wait_for("the seals are counted", lambda: count() >= before + 3)


def test_without_compression_everything_comes_as_it_is(plain: Relay) -> None:
    own, headers = topic(), {**AUTH, "accept-encoding": "gzip, zstd"}
    with Asker(plain.url) as asker:
        asker.publish(own, "x" * 2000)
        with asker.live(f"/stream/{own}/v1/live?k=1", headers=headers) as stream:
            assert [stream.next().name, stream.next().json()] == ["hello", "x" * 2000]
        for answer in (stream.answer, asker.get(f"/stream/{own}/v1/poll?k=1", headers=headers), asker.get("/stream/client.js")):
            assert "content-encoding" not in answer.headers


def test_large_data_was_compressed_before_it_was_sealed(asker: Asker, door: Asker) -> None:
    own, value = topic(), [{"name": "red", "value": number} for number in range(100)]
    publish(asker, own, value)
    keys = keys_of(asker, own)
    with asker.live(f"/stream/{own}/v2/live?k=1") as stream:
        sealed = [stream.next(), stream.next()][1].data
    (item,) = door.page(f"/stream/{own}/v2/poll?cursor=earliest")["events"]
    for inside in (opened(sealed, keys), opened(item["data"], keys)):
        assert inside["compression"] == "deflate-raw"
        assert json.loads(zlib.decompress(urlsafe_b64decode(inside["data"] + "=="), wbits=-15)) == value
    assert len(sealed) < len(json.dumps(value)) / 2


def test_a_cursor_is_good_in_either_version(asker: Asker) -> None:
    own = topic()
    ids = asker.publish(own, 1, 2, 3)
    keys = keys_of(asker, own)
    with asker.live(f"/stream/{own}/v2/live?cursor={ids[0]}") as stream:
        assert stream.next().json()["resume"] == "exact"
        assert [opened(stream.next().data, keys)["data"] for _ in range(2)] == [2, 3]
    assert [event["data"] for event in asker.page(f"/stream/{own}/v1/poll?cursor={ids[1]}")["events"]] == [3]


def test_a_page_has_seals_and_is_kept_by_nobody(door: Asker, asker: Asker) -> None:
    own = topic()
    keys = keys_of(door, own)
    published = publish(asker, own, {"x": 1}, None)
    answer = door.get(f"/stream/{own}/v2/poll?cursor=earliest")
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers
    for item, event in zip(answer.json()["events"], published, strict=True):
        assert list(item) == ["id", "topic", "n", "event", "ts", "data"]
        check_inside(opened(item["data"], keys), event)


def test_an_event_is_sealed_once_for_all_doors(asker: Asker) -> None:
    """But where half of a seal's life ends between two looks: then all of another round are the same."""
    own, other = topic(), topic()
    asker.publish(own, 1)

    def looks() -> set[str]:
        seen = {asker.page(f"/stream/{own}/v2/poll?cursor=earliest&limit={limit}")["events"][0]["data"] for limit in (1, 2)}
        with asker.live(f"/stream/{own}/v2/live?k=1") as stream:
            stream.next()
            seen.add(stream.next().data)
        with asker.live(f"/stream/v2/live?k=1&topic={own}&topic={other}") as stream:
            stream.next()
            seen.add(stream.next().json()["data"])
        return seen

    wait_for("all are the same", lambda: len(looks()) == 1)


def test_what_the_relay_seals_opens_in_npm(asker: Asker) -> None:
    own = topic()
    (published,) = publish(asker, own, {"large": 2**53 - 1, "é": "\u2028"})
    password = {id: {"raw": write_base64(key)} for id, key in keys_of(asker, own).items() if isinstance(key, bytes)}
    (event,) = asker.page(f"/stream/{own}/v2/poll?cursor=earliest")["events"]
    for answer in run_iron([{"lib": lib, "unseal": event["data"], "password": password} for lib in PACKAGES]):
        check_inside(answer["ok"], published)


def test_keys_are_of_the_topics_that_were_asked_for(door: Asker) -> None:
    own, other = topic(), topic()
    before_ms = time.time() * 1000
    answer = door.get(f"/stream/keys?topic={own}&topic={other}&topic={own}")
    behind_ms = time.time() * 1000
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    given = answer.json()["keys"]
    assert {key["topic"] for key in given} == {own, other}
    assert all(list(key) == ["topic", "id", "key", "from", "until"] for key in given)
    assert len({key["id"] for key in given}) == len({key["key"] for key in given}) == len(given)
    assert any(key["from"] <= behind_ms and before_ms < key["until"] for key in given)
    assert all(key["until"] - key["from"] == 3_600_000 for key in given)


def test_in_a_rotation_the_keys_of_both_masters_are_given(function: Function) -> None:
    own, before_ms = topic(), int(time.time() * 1000)
    with Asker(function.url) as asker:
        given = keys_of(asker, own)
    for master in (SEAL_KEY, OLD_KEY):
        assert {key.id for now_ms in (before_ms, int(time.time() * 1000)) for key in Keyring((master,)).given(own, now_ms)} & given.keys()


def test_keys_are_had_by_whoever_may_read_and_by_nobody_else(door: Asker) -> None:
    own = topic()
    check_problem(door.get("/stream/keys", headers={}), 400, "bad_topic")
    check_problem(door.get("/stream/keys?topic=a", headers=bearer(status="cancelled")), 400, "bad_topic")
    check_problem(door.get(f"/stream/keys?topic={own}", headers={}), 401, "no_token")
    check_problem(door.get(f"/stream/keys?topic={own}", headers=bearer(status="cancelled", subscribe=[])), 402, "not_subscribed")
    refused = door.get(f"/stream/keys?topic={own}&topic=a/b/c", headers=bearer(subscribe=["tests/**"]))
    check_problem(refused, 403, "topic_not_granted")
    assert "a/b/c" in refused.json()["detail"]
    many = "&".join(f"topic=a/b/{number}" for number in range(101))
    check_problem(door.get(f"/stream/keys?{many}"), 400, "bad_topic")
    check_problem(door.get(f"/stream/keys?topic={own}", headers={**bearer(), "origin": "https://elsewhere.example"}), 403, "origin_refused")


def test_a_page_of_the_own_origin_may_read_keys(asker: Asker, relay: Relay) -> None:
    answer = asker.get(f"/stream/keys?topic={topic()}", headers={**bearer(), "origin": relay.url})
    assert answer.headers["access-control-allow-origin"] == relay.url


def test_a_relay_without_a_key_says_so(plain: Relay) -> None:
    own = topic()
    with Asker(plain.url) as asker:
        for path in (f"/stream/{own}/v2/live", f"/stream/v2/live?topic={own}", f"/stream/{own}/v2/poll", f"/stream/keys?topic={own}"):
            check_problem(asker.get(path), 404, "sealing_off")


def test_a_relay_that_seals_for_backends_gives_no_keys(backends: Relay) -> None:
    own = topic()
    with Asker(backends.url) as asker:
        (published,) = publish(asker, own, "x")
        (event,) = asker.page(f"/stream/{own}/v2/poll?cursor=earliest")["events"]
        check_problem(asker.get(f"/stream/keys?topic={own}"), 404, "keys_shared")
    (answer, other) = run_iron([{"lib": lib, "unseal": event["data"], "password": SEAL_KEY} for lib in PACKAGES])
    assert answer == other
    check_inside(answer["ok"], published)


def test_topics_that_must_be_sealed_are_had_in_no_other_way(backends: Relay) -> None:
    own = topic()
    with Asker(backends.url) as asker:
        for path in (f"/stream/{own}/v1/live", f"/stream/v1/live?topic=a/b/c&topic={own}", f"/stream/{own}/v1/poll"):
            check_problem(asker.get(path), 404, "only_sealed")
        assert asker.get("/stream/a/b/c/v1/poll").status_code == 200
        with asker.live(f"/stream/{own}/v2/live") as stream:
            assert stream.next().name == "hello"
    assert "WebCrypto" in backends.log()
