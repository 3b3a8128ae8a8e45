"""What a reader may ask for, and at which bound it is told that it can't."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.cursor import EARLIEST, Cursor, Place
from relay.errors import Malformed, NotFound
from relay.query import VERSIONS, Position, ReadQuery, parse_fields, parse_read, places_of

TOPIC = "rounds/ROULETTE/123"
CURSOR = "e.5-6.7-abcd"
PARSED = Cursor({0: Place("e", 5, 6)}, 7, "abcd")


def read(query: str, header: str = "", topic: str | None = TOPIC) -> ReadQuery:
    return parse_read("v1", topic, query.encode(), header)


def topics(count: int) -> str:
    return "&".join(f"topic=a/b/{number}" for number in range(count))


DEFAULTS: dict[str, Any] = {"newest": 0, "names": None, "limit": 100, "wait_s": 0.0, "heartbeat_s": 0, "position": Position()}
VALUES: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("", {}),
    "k at its least": ("k=0", {"newest": 0}),
    "k at its most": ("k=100", {"newest": 100}),
    "k empty": ("k=", {}),
    "k with zeros in front": ("k=007", {"newest": 7}),
    "limit at its least": ("limit=1", {"limit": 1}),
    "limit at its most": ("limit=500", {"limit": 500}),
    "limit empty": ("limit=", {}),
    "wait at its least": ("wait=0", {"wait_s": 0.0}),
    "wait at its most": ("wait=25", {"wait_s": 25.0}),
    "wait at its most with a fraction": ("wait=25.000", {"wait_s": 25.0}),
    "wait with a fraction": ("wait=0.25", {"wait_s": 0.25}),
    "wait empty": ("wait=", {}),
    "heartbeat at its least": ("heartbeat=5", {"heartbeat_s": 5}),
    "heartbeat at its most": ("heartbeat=55", {"heartbeat_s": 55}),
    "heartbeat empty": ("heartbeat=", {}),
    "one event name": ("events=update", {"names": frozenset({"update"})}),
    "event names": ("events=a,b:c", {"names": frozenset({"a", "b:c"})}),
    "event names encoded": ("events=a%2Cb", {"names": frozenset({"a", "b"})}),
    "an event name twice": ("events=a,a", {"names": frozenset({"a"})}),
    "100 event names": (f"events={','.join(map(str, range(100)))}", {"names": frozenset(map(str, range(100)))}),
    "events empty": ("events=", {}),
    "fields that nobody knows": ("x=1&_=1795486599120&K=7", {}),
    "all at once": ("k=3&limit=5&wait=1&events=a&token=t", {"newest": 3, "limit": 5, "wait_s": 1.0, "names": frozenset({"a"})}),
}

BAD_VALUES = {
    "k beyond": ("k=101", "bad_k"),
    "k below": ("k=-1", "bad_k"),
    "k with an exponent": ("k=1e3", "bad_k"),
    "k with a fraction": ("k=1.0", "bad_k"),
    "k with a space": ("k=%201", "bad_k"),
    "k with a plus": ("k=%2B1", "bad_k"),
    "k in hexadecimal": ("k=0x1", "bad_k"),
    "k in another script": ("k=%D9%A3", "bad_k"),
    "k with an underscore": ("k=1_0", "bad_k"),
    "k with a line end": ("k=1%0A", "bad_k"),
    "k of many digits": (f"k={'9' * 5000}", "bad_k"),
    "k twice": ("k=1&k=1", "bad_query"),
    "limit below": ("limit=0", "bad_limit"),
    "limit beyond": ("limit=501", "bad_limit"),
    "limit negative": ("limit=-5", "bad_limit"),
    "limit in words": ("limit=all", "bad_limit"),
    "wait just beyond": ("wait=25.1", "bad_wait"),
    "wait beyond by little": ("wait=25.001", "bad_wait"),
    "wait beyond": ("wait=26", "bad_wait"),
    "wait far beyond": ("wait=999999", "bad_wait"),
    "wait below": ("wait=-1", "bad_wait"),
    "wait without an end": ("wait=inf", "bad_wait"),
    "wait that is no number": ("wait=nan", "bad_wait"),
    "wait with an exponent": ("wait=1e1", "bad_wait"),
    "wait with a unit": ("wait=1s", "bad_wait"),
    "wait in another script": ("wait=%D9%A3", "bad_wait"),
    "wait twice": ("wait=1&wait=2", "bad_query"),
    "heartbeat below": ("heartbeat=4", "bad_heartbeat"),
    "heartbeat beyond": ("heartbeat=56", "bad_heartbeat"),
    "heartbeat with a fraction": ("heartbeat=5.5", "bad_heartbeat"),
    "heartbeat twice": ("heartbeat=5&heartbeat=5", "bad_query"),
    "101 event names": (f"events={','.join(map(str, range(101)))}", "bad_events"),
    "an empty event name": ("events=a,,b", "bad_events"),
    "an event name too long": (f"events={'x' * 65}", "bad_events"),
    "an event name with a space": ("events=a%20b", "bad_events"),
    "events twice": ("events=a&events=b", "bad_query"),
    "a cursor that is none": ("cursor=x", "bad_cursor"),
    "a cursor too long": (f"cursor={'e' * 513}", "bad_cursor"),
    "a cursor with a space behind": (f"cursor={CURSOR}%20", "bad_cursor"),
    "now in capitals": ("cursor=NOW", "bad_cursor"),
    "now as an id": ("last_event_id=now", "bad_cursor"),
    "earliest as an id": ("lastEventId=earliest", "bad_cursor"),
    "a cursor twice": (f"cursor={CURSOR}&cursor={CURSOR}", "bad_query"),
    "no UTF-8": ("x=%ff", "bad_query"),
    "a name that is no UTF-8": ("%ff=x", "bad_query"),
    "151 fields": ("&".join(f"x{number}=" for number in range(151)), "bad_query"),
}


@pytest.mark.parametrize(("query", "values"), VALUES.values(), ids=VALUES)
def test_a_query_says_what_a_reader_wants(query: str, values: dict[str, Any]) -> None:
    assert read(query) == ReadQuery((TOPIC,), "v1", **{**DEFAULTS, **values})


@pytest.mark.parametrize(("query", "code"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_value_beyond_its_bound_is_malformed(query: str, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        read(query)
    assert caught.value.code == code
    assert len(caught.value.detail) < 300


def test_bytes_that_are_not_encoded_are_malformed() -> None:
    with pytest.raises(Malformed):
        parse_fields("x=é".encode())


@pytest.mark.parametrize("version", ["v0", "v9", "V1", "1", "", "v1 ", "v" * 1000])
def test_there_is_no_other_version(version: str) -> None:
    with pytest.raises(NotFound) as caught:
        parse_read(version, TOPIC, b"k=101", "")
    assert caught.value.code == "unknown_version"
    assert version not in VERSIONS


# Topics

TOPICS: dict[str, tuple[str, Sequence[str] | str]] = {
    "one": ("topic=a/b/c", ["a/b/c"]),
    "encoded": ("topic=a%2Fb%2Fc%3Ad", ["a/b/c:d"]),
    "in any order": ("topic=b/b/b&topic=a/a/a", ["a/a/a", "b/b/b"]),
    "the same twice": ("topic=a/b/c&topic=a/b/c", ["a/b/c"]),
    "100": (topics(100), sorted(f"a/b/{number}" for number in range(100))),
    "none": ("", "bad_topic"),
    "an empty one": ("topic=", "bad_topic"),
    "one that is none": ("topic=a/b/c&topic=a/b", "bad_topic"),
    "one that is encoded twice": ("topic=a/b/c%253A", "bad_topic"),
    "101": (topics(101), "bad_topic"),
    "k × topics at its most": (f"k=10&{topics(100)}", sorted(f"a/b/{number}" for number in range(100))),
    "k × few topics at its most": (f"k=100&{topics(10)}", sorted(f"a/b/{number}" for number in range(10))),
    "k × topics beyond": (f"k=11&{topics(91)}", "bad_k"),
    "k × few topics beyond": (f"k=100&{topics(11)}", "bad_k"),
}


@pytest.mark.parametrize(("query", "outcome"), TOPICS.values(), ids=TOPICS)
def test_a_query_names_up_to_100_topics(query: str, outcome: Sequence[str] | str) -> None:
    if isinstance(outcome, str):
        with pytest.raises(Malformed) as caught:
            read(query, topic=None)
        assert caught.value.code == outcome
    else:
        assert list(read(query, topic=None).topics) == outcome


def test_a_topic_in_the_path_is_the_only_one() -> None:
    assert read("topic=other/a/b").topics == (TOPIC,)


# Positions: query, header, what it means

IN_CURSOR = Position(PARSED, in_cursor=True)
IN_ID = Position(PARSED)
IN_HEADER = Position(PARSED, in_header=True)
RESET = Position(reset=True, in_header=True)
POSITIONS = {
    "none": ("", "", Position()),
    "cursor": (f"cursor={CURSOR}", "", IN_CURSOR),
    "now": ("cursor=now", "", Position()),
    "earliest": ("cursor=earliest", "", Position(Cursor({0: EARLIEST}))),
    "earliest by its place": ("cursor=0.0-0", "", Position(Cursor({0: EARLIEST}), in_cursor=True)),
    "last_event_id": (f"last_event_id={CURSOR}", "", IN_ID),
    "lastEventId": (f"lastEventId={CURSOR}", "", IN_ID),
    "lastEventID": (f"lastEventID={CURSOR}", "", IN_ID),
    "the header": ("", CURSOR, IN_HEADER),
    "the header before all others": ("last_event_id=f.1-1&lastEventId=f.1-1&lastEventID=f.1-1&cursor=f.1-1", CURSOR, IN_HEADER),
    "last_event_id before lastEventId": (f"lastEventId=f.1-1&last_event_id={CURSOR}&cursor=f.1-1", "", IN_ID),
    "lastEventId before lastEventID": (f"lastEventID=f.1-1&lastEventId={CURSOR}&cursor=f.1-1", "", IN_ID),
    "lastEventID before cursor": (f"cursor=f.1-1&lastEventID={CURSOR}", "", IN_ID),
    "an id before now": (f"cursor=now&lastEventID={CURSOR}", "", IN_ID),
    "empty counts as absent": (f"last_event_id=&lastEventId=&lastEventID=&cursor={CURSOR}", "", IN_CURSOR),
    "an empty cursor counts as absent": ("cursor=", "", Position()),
    "other spellings count as absent": (f"lasteventid={CURSOR}&Cursor={CURSOR}&Last-Event-ID={CURSOR}", "", Position()),
    "a malformed header is a reset": ("", "x", RESET),
    "a malformed header before a cursor": (f"cursor={CURSOR}", "x", RESET),
    "now in the header": ("", "now", RESET),
    "another script in the header": ("", "e.٣-1", RESET),
    "a header too long": ("", "e" * 513, RESET),
}


@pytest.mark.parametrize(("query", "header", "position"), POSITIONS.values(), ids=POSITIONS)
def test_a_position_is_taken_from_where_it_is_found_first(query: str, header: str, position: Position) -> None:
    assert read(query, header).position == position


def test_a_cursor_says_where_its_shards_are() -> None:
    cursor = Cursor({0: Place("e", 1, 1), 2: Place("e", 2, 2)})
    assert places_of(cursor, {1, 2}) == {2: Place("e", 2, 2)}
    assert places_of(Cursor({0: EARLIEST}), {1, 2}) == {1: EARLIEST, 2: EARLIEST}


# Properties


def read_or_problem(query: bytes, header: str) -> ReadQuery | Malformed:
    try:
        return parse_read("v1", None, query, header)
    except Malformed as problem:
        return problem


@given(st.text(max_size=30), st.sampled_from(["k", "limit", "wait", "events", "cursor", "lastEventId", "topic", "x", "token"]), st.text())
def test_any_text_is_understood_or_malformed(value: str, name: str, header: str) -> None:
    found = read_or_problem(f"topic=a/b/c&{urlencode({name: value})}".encode(), header)
    if isinstance(found, Malformed):
        assert found.body().startswith(b"{")  # its detail can be written, whatever was sent
    else:
        assert 0 <= found.newest <= 100
        assert 1 <= found.limit <= 500
        assert 0 <= found.wait_s <= 25


@given(st.binary(max_size=60))
def test_any_bytes_are_understood_or_malformed(query: bytes) -> None:
    assert read_or_problem(query, "")


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_fields_come_through_their_encoding(fields: dict[str, str]) -> None:
    query = "&".join(f"{quote(name)}={quote(value)}" for name, value in fields.items())
    assert parse_fields(query.encode()) == {name: [value] for name, value in fields.items()}
