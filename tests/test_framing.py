"""Events as clients get them: as a block of a stream of one topic, of several, and as an item of a page."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import framing
from relay.cursor import Place, parse_cursor
from relay.event import RESERVED_NAMES, Event, is_publishable_name
from relay.publishing import encode, new_event
from relay.topic import tag_of
from tests.streams import Block, Parser

TOPIC = "rounds/ROULETTE/123"
PLACE = Place("3f9k", 1795486599120, 90121)


def event(data: bytes = b'{"number":25}', *, topic: str = TOPIC, name: str = "update", s: int = 90121, n: int = 8812) -> Event:
    return Event(topic, name, n, Place("3f9k", 1795486599120, s), (1795486597000, s - 1), data)


def test_an_events_own_id_is_a_cursor_of_its_topic() -> None:
    id = event().cursor(0)
    assert id == f"3f9k.1795486599120-90121.8812-{tag_of(TOPIC)}"
    assert parse_cursor(id).places == {0: PLACE}
    assert parse_cursor(id).number_on(TOPIC) == 8812
    assert parse_cursor(event().cursor(3)).places == {3: PLACE}


def test_on_a_single_topic_data_is_the_publishers_alone() -> None:
    (block,) = Parser().feed(framing.blocks([event()], 0, True, {}))
    assert block == Block("update", '{"number":25}', event().cursor(0))


def test_on_several_topics_data_says_which_it_is_of() -> None:
    (block,) = Parser().feed(framing.blocks([event()], 0, False, {0: PLACE}))
    assert block.name == "update"
    assert block.last_event_id == "3f9k.1795486599120-90121"
    assert list(block.json()) == ["id", "topic", "n", "ts", "data"]
    assert block.json() == {"id": event().cursor(0), "topic": TOPIC, "n": 8812, "ts": 1795486599120, "data": {"number": 25}}


def test_over_several_shards_an_id_moves_in_its_own_shard_alone() -> None:
    other = Place("q", 7, 8)
    blocks = Parser().feed(framing.blocks([event(s=5), event(s=6)], 0, False, {0: Place("3f9k", 1, 4), 2: other}))
    assert [parse_cursor(block.last_event_id).places for block in blocks] == [
        {0: Place("3f9k", 1795486599120, s), 2: other} for s in (5, 6)
    ]


def test_a_page_item_says_all_of_an_event() -> None:
    item = json.loads(framing.page_item(event(name="quake"), 1))
    assert list(item) == ["id", "topic", "n", "event", "ts", "data"]
    assert item == {
        "id": event().cursor(1),
        "topic": TOPIC,
        "n": 8812,
        "event": "quake",
        "ts": 1795486599120,
        "data": {"number": 25},
    }


def test_nothing_makes_nothing() -> None:
    assert framing.blocks([], 0, True, {}) == framing.blocks([], 0, False, {0: PLACE}) == b""


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(JSON, st.sampled_from([None, 1, "\r\n", "\r"]))
def test_json_comes_through_every_door_as_it_was(value: Any, indent: int | str | None) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if isinstance(indent, str):
        text = json.dumps(value, ensure_ascii=False, indent=0).replace("\n", indent)
    published = event(new_event(TOPIC, text.encode(), "update", None, 1 << 20).data)
    (single,) = Parser().feed(framing.blocks([published], 0, True, {}))
    (wrapped,) = Parser().feed(framing.blocks([published], 0, False, {0: PLACE}))
    item = json.loads(framing.page_item(published, 0))
    assert single.json() == wrapped.json()["data"] == item["data"] == value
    assert "\n" not in single.data


@given(JSON)
def test_values_from_python_come_through_as_they_were(value: Any) -> None:
    assert json.loads(new_event(TOPIC, encode(value), "update", None, 1 << 20).data) == value


# Names

NAMES = {"one character": "x", "every kind": "Az09._:-", "64 characters": "x" * 64, "a word of EventSource": "message"}
NO_NAMES = {
    "empty": "",
    "65 characters": "x" * 65,
    "a space": "a b",
    "a line end": "a\n",
    "a forged field": "a\ndata: x",
    "a CR": "a\r",
    "a NUL": "a\0",
    "a comma": "a,b",
    "an accent": "é",
    **{f"reserved: {name}": name for name in sorted(RESERVED_NAMES)},
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_may_be_published(name: str) -> None:
    assert is_publishable_name(name)


@pytest.mark.parametrize("name", NO_NAMES.values(), ids=NO_NAMES)
def test_a_name_may_not_be_published(name: str) -> None:
    assert not is_publishable_name(name)


def test_the_streams_own_names_are_reserved() -> None:
    assert {"hello", "gap", "bye", "sync", "error", "open"} == RESERVED_NAMES
