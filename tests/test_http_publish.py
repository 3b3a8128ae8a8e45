"""Publishing over HTTP: what is taken, what is refused, and that what is refused leaves nothing in the log."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.asking import AUTH, JSON, Asker, bearer, check_problem
from tests.servers import Relay, topic

EVENT_BYTES = 65536
BATCH_BYTES = 8 << 20


@pytest.fixture
def once(relay: Relay) -> Iterator[Asker]:
    """Connections of its own, for bodies that the server stops reading."""
    with Asker(relay.url) as asker:
        yield asker


# One event


def test_an_event_is_answered_with_where_it_is(asker: Asker) -> None:
    own = topic()
    answer = asker.post(f"/stream/{own}", {"event": "update", "data": {"number": 25}})
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    published = answer.json()
    assert set(published) == {"id", "topic", "n", "duplicate"}
    assert (published["topic"], published["duplicate"]) == (own, False)
    (event,) = asker.page(f"/stream/{own}/v1/poll?cursor=earliest")["events"]
    assert (event["id"], event["n"], event["event"], event["data"]) == (published["id"], published["n"], "update", {"number": 25})


def test_numbers_are_dense(asker: Asker) -> None:
    own = topic()
    numbers = [asker.post(f"/stream/{own}", {"data": index}).json()["n"] for index in range(3)]
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]


def test_an_event_needs_data_alone(asker: Asker) -> None:
    own = topic()
    assert asker.post(f"/stream/{own}", {"data": None}).status_code == 201
    (event,) = asker.page(f"/stream/{own}/v1/poll?cursor=earliest")["events"]
    assert (event["event"], event["data"]) == ("update", None)


# Data as it is sent, and as it comes out, to the letter.
LETTERS = {
    "a number": b"25",
    "a number with zeros behind": b"1.50",
    "a number that no double holds": b"123456789012345678901234567890",
    "a text": '"é 漢 🎲"'.encode(),
    "escapes": rb'"\u00e9\/\ud83c\udfb2\u0000\n"',
    "line ends of Unicode": '"a\u2028b\u2029c\x85"'.encode(),
    "a byte order mark in a text": '"\ufeff"'.encode(),
    "spaces": b'{ "a" :\t[ 1 , 2 ] }',
    "a name twice": b'{"a":1,"a":2}',
    "a forged block": rb'"1\n\nevent: bye\ndata: x\n\n"',
    "nothing much": b'""',
    "512 brackets": b"[" * 512 + b"]" * 512,
}


@pytest.mark.parametrize("data", LETTERS.values(), ids=LETTERS)
def test_data_stays_as_it_was_written(asker: Asker, data: bytes) -> None:
    own = topic()
    assert asker.post(f"/stream/{own}", b'{"data":' + data + b"}").status_code == 201
    assert b'"data":' + data + b"}" in asker.get(f"/stream/{own}/v1/poll?cursor=earliest").content
    with asker.live(f"/stream/{own}/v1/live?cursor=earliest") as stream:
        assert [stream.next().name for _ in range(2)] == ["hello", "update"]
        assert b"data: " + data + b"\n\n" in stream.text


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_between_tokens_become_spaces(asker: Asker, end: bytes) -> None:
    own = topic()
    assert asker.post(f"/stream/{own}", end.join([b'{"data":{', b'"a":', b"1}}"])).status_code == 201
    with asker.live(f"/stream/{own}/v1/live?cursor=earliest") as stream:
        assert [stream.next().name for _ in range(2)] == ["hello", "update"]
        assert b'"a":' in stream.text.splitlines()[-2]
    assert asker.log(own) == [{"a": 1}]


TYPES = {
    "JSON": ("application/json", 201),
    "in capitals": ("Application/JSON", 201),
    "with a charset": ("application/json; charset=utf-8", 201),
    "a kind of JSON": ("application/cloudevents+json", 201),
    "none": ("", 201),
    "text": ("text/plain", 415),
    "text with JSON in its name": ("text/plain; x=application/json", 415),
    "a form": ("application/x-www-form-urlencoded", 415),
    "parts": ("multipart/form-data; boundary=x", 415),
    "nearly JSON": ("application/jsonx", 415),
    "lines of JSON": ("application/x-ndjson", 415),
}


@pytest.mark.parametrize(("media_type", "status"), TYPES.values(), ids=TYPES)
def test_a_body_is_json_by_its_header(asker: Asker, media_type: str, status: int) -> None:
    own = topic()
    for target, value in ((f"/stream/{own}", {"data": 1}), ("/stream/publish", [{"topic": own, "data": 1}])):
        answer = asker.post(target, value, headers={"content-type": media_type})
        if status == 415:
            check_problem(answer, 415, "wrong_media_type")
        else:
            assert answer.status_code in (200, 201)
    assert asker.log(own) == ([] if status == 415 else [1, 1])


BODIES: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "bad_json"),
    "a word": (b"data", 400, "bad_json"),
    "cut off": (b'{"data":1', 400, "bad_json"),
    "two values": (b'{"data":1}{"data":2}', 400, "bad_json"),
    "quotes of another kind": (b"{'data':1}", 400, "bad_json"),
    "a comma too many": (b'{"data":[1,]}', 400, "bad_json"),
    "a comment": (b'{"data":1/**/}', 400, "bad_json"),
    "a zero in front": (b'{"data":01}', 400, "bad_json"),
    "NaN": (b'{"data":NaN}', 400, "bad_json"),
    "Infinity": (b'{"data":[-Infinity]}', 400, "bad_json"),
    "a byte order mark": (b'\xef\xbb\xbf{"data":1}', 400, "bad_json"),
    "UTF-16": ('{"data":1}'.encode("utf-16"), 400, "bad_json"),
    "no UTF-8": (b'{"data":"\xff"}', 400, "bad_json"),
    "an encoded surrogate": (b'{"data":"\xed\xa0\x80"}', 400, "bad_json"),
    "a lone surrogate": (rb'{"data":"\ud800"}', 400, "bad_json"),
    "surrogates in the wrong order": (rb'{"data":"\udc00\ud800"}', 400, "bad_json"),
    "a control character": (b'{"data":"\x01"}', 400, "bad_json"),
    "a line end in a text": (b'{"data":"a\nb"}', 400, "bad_json"),
    "NUL": (b"\0", 400, "bad_json"),
    "513 brackets": (b'{"data":' + b"[" * 513 + b"]" * 513 + b"}", 422, "bad_data"),
    "30,000 brackets": (b'{"data":' + b"[" * 30_000 + b"]" * 30_000 + b"}", 400, "bad_json"),
    "an array": (b"[]", 422, "wrong_shape"),
    "a number": (b"7", 422, "wrong_shape"),
    "null": (b"null", 422, "wrong_shape"),
    "no data": (b"{}", 422, "wrong_shape"),
    "data by another name": (b'{"Data":1}', 422, "wrong_shape"),
    "a member that nobody knows": (b'{"data":1,"x":2}', 422, "wrong_shape"),
    "a key in the body": (b'{"data":1,"key":"k"}', 422, "wrong_shape"),
    "an event that is a number": (b'{"data":1,"event":7}', 422, "wrong_shape"),
    "an event that is null": (b'{"data":1,"event":null}', 422, "wrong_shape"),
    "an empty event": (b'{"data":1,"event":""}', 422, "bad_event"),
    "an event with a space": (b'{"data":1,"event":"a b"}', 422, "bad_event"),
    "an event with a line end": (rb'{"data":1,"event":"a\n"}', 422, "bad_event"),
    "an event of 65": (b'{"data":1,"event":"' + b"x" * 65 + b'"}', 422, "bad_event"),
    **{
        f"the event {name}": (json.dumps({"data": 1, "event": name}).encode(), 422, "bad_event")
        for name in ("hello", "gap", "bye", "sync", "error", "open")
    },
    "a number beyond all": (b'{"data":1e999}', 422, "bad_data"),
    "data a byte too large": (b'{"data":"' + b"x" * (EVENT_BYTES - 1) + b'"}', 413, "event_too_large"),
    "a body too large": (b'{"data":1}' + b" " * 70_000, 413, "too_large"),
    "100,000 brackets": (b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 413, "too_large"),
}


@pytest.mark.parametrize(("body", "status", "code"), BODIES.values(), ids=BODIES)
def test_a_body_that_is_refused_leaves_nothing(once: Asker, asker: Asker, body: bytes, status: int, code: str) -> None:
    own = topic()
    check_problem(once.post(f"/stream/{own}", body), status, code)
    assert asker.log(own) == []


@pytest.mark.parametrize("name", ["x" * 64, "Az09._:-", "message"])
def test_a_name_at_its_bounds_is_taken(asker: Asker, name: str) -> None:
    own = topic()
    assert asker.post(f"/stream/{own}", {"data": 1, "event": name}).status_code == 201
    assert asker.page(f"/stream/{own}/v1/poll?cursor=earliest")["events"][0]["event"] == name


def test_data_at_its_bound_is_taken(asker: Asker) -> None:
    own = topic()
    data = "x" * (EVENT_BYTES - 2)
    assert asker.post(f"/stream/{own}", {"data": data}).status_code == 201
    assert asker.log(own) == [data]


def test_bounds_of_data_count_bytes(asker: Asker) -> None:
    data = '"' + "é" * (EVENT_BYTES // 2) + '"'
    check_problem(asker.post(f"/stream/{topic()}", f'{{"data":{data}}}'.encode()), 413, "event_too_large")


# Idempotency keys

KEYS = {"one character": "k", "255 characters": "k" * 255, "every kind": "".join(map(chr, range(33, 127)))}
BAD_KEYS = {"none": "", "256 characters": "k" * 256, "a space": "a b", "an accent": "é", "a tab": "a\tb"}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_the_same_key_again_has_the_first_answer(asker: Asker, key: str) -> None:
    own = topic()
    first = asker.post(f"/stream/{own}", {"data": {"a": 1}}, headers={"idempotency-key": key})
    asker.publish(own, "between")
    again = asker.post(f"/stream/{own}", {"data": {"a": 1}}, headers={"idempotency-key": key})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == {**first.json(), "duplicate": True}
    assert asker.log(own) == [{"a": 1}, "between"]


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_key_is_1_to_255_visible_ascii_characters(asker: Asker, key: str) -> None:
    own = topic()
    check_problem(asker.post(f"/stream/{own}", {"data": 1}, headers={"idempotency-key": key.encode()}), 422, "bad_key")
    check_problem(asker.post("/stream/publish", [{"topic": own, "data": 1, "key": key}]), 422, "bad_key", index=0)
    assert asker.log(own) == []


def test_a_key_of_another_event_is_refused(asker: Asker) -> None:
    own = topic()
    key = {"idempotency-key": "k"}
    assert asker.post(f"/stream/{own}", {"data": 1}, headers=key).status_code == 201
    for other in ({"data": 2}, {"data": 1, "event": "other"}, {"data": "1"}):
        check_problem(asker.post(f"/stream/{own}", other, headers=key), 422, "key_reused")
    assert asker.post(f"/stream/{own}", {"data": 1, "event": "update"}, headers=key).json()["duplicate"]
    assert asker.log(own) == [1]


def test_a_key_is_its_topics_alone(asker: Asker) -> None:
    one, other = topic(), topic()
    key = {"idempotency-key": "k"}
    assert [asker.post(f"/stream/{own}", {"data": 1}, headers=key).status_code for own in (one, other)] == [201, 201]


def test_a_key_counts_the_same_alone_and_in_a_batch(asker: Asker) -> None:
    own = topic()
    (first,) = asker.post("/stream/publish", [{"topic": own, "data": 1, "key": "k"}]).json()["results"]
    again = asker.post(f"/stream/{own}", {"data": 1}, headers={"idempotency-key": "k"})
    assert (again.status_code, again.json()) == (200, {**first, "duplicate": True})


# Batches


def test_a_batch_is_appended_in_order_and_answered_in_order(asker: Asker) -> None:
    one, other = topic(), topic()
    items = [{"topic": (one, other)[index % 3 == 0], "event": f"e{index}", "data": index} for index in range(7)]
    answer = asker.post("/stream/publish", items)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["topic"] for result in results] == [item["topic"] for item in items]
    assert not any(result["duplicate"] for result in results)
    page = asker.page(f"/stream/v1/poll?cursor=earliest&topic={one}&topic={other}")
    assert [(event["id"], event["event"], event["data"]) for event in page["events"]] == [
        (result["id"], f"e{index}", index) for index, result in enumerate(results)
    ]


def test_an_empty_batch_is_none(asker: Asker) -> None:
    answer = asker.post("/stream/publish", [])
    assert (answer.status_code, answer.json()) == (200, {"results": []})


def test_a_batch_may_be_repeated_with_keys(asker: Asker) -> None:
    own = topic()
    items = [{"topic": own, "data": index, "key": f"k{index}"} for index in range(5)]
    partly = asker.post("/stream/publish", items[:3]).json()["results"]
    results = asker.post("/stream/publish", items).json()["results"]
    assert [result["duplicate"] for result in results] == [True, True, True, False, False]
    assert [result["id"] for result in results[:3]] == [result["id"] for result in partly]
    assert asker.log(own) == [0, 1, 2, 3, 4]


def test_a_key_twice_in_a_batch_appends_once(asker: Asker) -> None:
    own = topic()
    results = asker.post("/stream/publish", [{"topic": own, "data": 1, "key": "k"}] * 2).json()["results"]
    assert [result["duplicate"] for result in results] == [False, True]
    assert asker.log(own) == [1]


ITEMS: dict[str, tuple[Any, int, str]] = {
    "a number": (7, 422, "wrong_shape"),
    "null": (None, 422, "wrong_shape"),
    "a list": ([], 422, "wrong_shape"),
    "no topic": ({"data": 1}, 422, "wrong_shape"),
    "no data": ({"topic": "a/b/c"}, 422, "wrong_shape"),
    "a topic that is a number": ({"topic": 7, "data": 1}, 422, "wrong_shape"),
    "a member that nobody knows": ({"topic": "a/b/c", "data": 1, "x": 1}, 422, "wrong_shape"),
    "a key that is a number": ({"topic": "a/b/c", "data": 1, "key": 7}, 422, "wrong_shape"),
    "an event that is null": ({"topic": "a/b/c", "data": 1, "event": None}, 422, "wrong_shape"),
    "a topic that is none": ({"topic": "a/../c", "data": 1}, 422, "bad_topic"),
    "a topic that is encoded": ({"topic": "a/b/c%3A", "data": 1}, 422, "bad_topic"),
    "an event that is reserved": ({"topic": "a/b/c", "data": 1, "event": "bye"}, 422, "bad_event"),
    "an empty key": ({"topic": "a/b/c", "data": 1, "key": ""}, 422, "bad_key"),
    "data too large": ({"topic": "a/b/c", "data": "x" * (EVENT_BYTES - 1)}, 413, "event_too_large"),
}


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(("item", "status", "code"), ITEMS.values(), ids=ITEMS)
def test_a_bad_item_is_named_and_nothing_of_its_batch_is_appended(asker: Asker, item: Any, status: int, code: str, at: int) -> None:
    own = topic()
    good = {"topic": own, "data": 1}
    items = [good, good, good]
    items[at] = item
    check_problem(asker.post("/stream/publish", items), status, code, index=at)
    assert asker.log(own) == []


def test_an_item_whose_key_is_anothers_is_named_and_nothing_is_appended(asker: Asker) -> None:
    own = topic()
    asker.post(f"/stream/{own}", {"data": 1}, headers={"idempotency-key": "k"})
    items = [{"topic": own, "data": 5}, {"topic": own, "data": 2, "key": "k"}]
    check_problem(asker.post("/stream/publish", items), 422, "key_reused", index=1)
    items = [{"topic": own, "data": 5, "key": "q"}, {"topic": own, "data": 6}, {"topic": own, "data": 7, "key": "q"}]
    check_problem(asker.post("/stream/publish", items), 422, "key_reused", index=2)
    assert asker.log(own) == [1]


def test_an_item_that_is_not_granted_is_named_and_nothing_is_appended(asker: Asker) -> None:
    own = topic()
    items = [{"topic": own, "data": 1}, {"topic": "other/b/c", "data": 1}]
    answer = asker.post("/stream/publish", items, headers=bearer(publish=["tests/**"]))
    assert "other/b/c" in check_problem(answer, 403, "topic_not_granted", index=1)["detail"]
    assert asker.log(own) == []


BATCHES = {
    "an object": (b"{}", 422, "wrong_shape"),
    "null": (b"null", 422, "wrong_shape"),
    "no JSON": (b"[", 400, "bad_json"),
    "NaN in an item": (b'[{"topic":"a/b/c","data":NaN}]', 400, "bad_json"),
    "no UTF-8 in an item": (b'[{"topic":"a/b/c","data":"\xff"}]', 400, "bad_json"),
    "100,000 brackets": (b"[" * 100_000, 400, "bad_json"),
    "100,000 brackets of data": (b'[{"topic":"a/b/c","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}]", 400, "bad_json"),
}


@pytest.mark.parametrize(("body", "status", "code"), BATCHES.values(), ids=BATCHES)
def test_a_batch_that_is_none_is_refused(asker: Asker, body: bytes, status: int, code: str) -> None:
    answer = asker.post("/stream/publish", body)
    check_problem(answer, status, code, index=answer.json().get("index"))


def test_a_batch_has_1000_events_at_most(asker: Asker) -> None:
    own = topic()
    item = {"topic": own, "data": 1}
    check_problem(asker.post("/stream/publish", [item] * 1001), 413, "too_many_events")
    assert asker.log(own) == []
    answer = asker.post("/stream/publish", [item] * 1000)
    assert answer.status_code == 200
    numbers = [result["n"] for result in answer.json()["results"]]
    assert numbers == list(range(numbers[0], numbers[0] + 1000))


def test_a_batch_has_8_mib_at_most(once: Asker) -> None:
    own = topic()
    batch = json.dumps([{"topic": own, "data": 1}]).encode()
    full = batch + b" " * (BATCH_BYTES - len(batch))
    assert once.post("/stream/publish", full).status_code == 200
    check_problem(once.post("/stream/publish", full + b" "), 413, "too_large")
    assert once.log(own) == [1]


def test_a_body_without_a_length_has_the_same_bound(once: Asker) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100_000

    answer = once.client.post("/stream/publish", headers={**AUTH, **JSON}, content=pieces())
    check_problem(answer, 413, "too_large")


# Who may


def test_publishing_needs_a_grant_and_no_subscription(asker: Asker) -> None:
    own = topic()
    for path, value in ((f"/stream/{own}", {"data": 1}), ("/stream/publish", [{"topic": own, "data": 1}])):
        granted = bearer(subscribe=[], publish=["tests/*/*"], status="inactive")
        assert asker.post(path, value, headers=granted).status_code in (200, 201)
        problem = check_problem(
            asker.post(path, value, headers=bearer(publish=["tests/case/x"])),
            403,
            "topic_not_granted",
            index=0 if path.endswith("publish") else None,
        )
        assert own in problem["detail"]
    assert asker.log(own) == [1, 1]


def test_a_bad_topic_is_found_before_the_token_is_missed(asker: Asker) -> None:
    for target in ("/stream/a/%2e%2e/c", "/stream/a/b%2Fc/d", "/stream/a/b/%zz"):
        answer = asker.ask("POST", target, headers=JSON, content=b'{"data":1}')
        assert answer.status_code == 400
    check_problem(asker.ask("POST", "/stream/a/b/c", headers=JSON, content=b'{"data":1}'), 401, "no_token")


def test_a_publisher_that_leaves_within_its_body_leaves_nothing(asker: Asker) -> None:
    own = topic()

    def pieces() -> Iterator[bytes]:
        yield b'{"data":1'
        raise EOFError

    with pytest.raises(EOFError):
        asker.client.post(f"/stream/{own}", headers={**AUTH, **JSON}, content=pieces())
    assert asker.log(own) == []
