"""Pointers, templates and what tells one item from another."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.updates.item import BadItem, Shape, parse_pointer, parse_template

# RFC 6901, section 5, and the names that JSON may have beside.
DOCUMENT = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8, "é": {"": {"x": None}}}
POINTERS: dict[str, Any] = {
    "": DOCUMENT, "/foo": ["bar", "baz"], "/foo/0": "bar", "/": 0, "/a~1b": 1, "/c%d": 2, "/e^f": 3, "/i\\j": 5, '/k"l': 6,
    "/ ": 7, "/m~0n": 8, "/é//x": None,
}  # fmt: skip
NOTHING = ["/none", "/foo/2", "/foo/01", "/foo/-", "/foo/-1", "/foo/x", "/foo/0/0", "/a~1b/c", "/é//x/y"]


@pytest.mark.parametrize("text", POINTERS)
def test_a_pointer_finds_what_it_names_as_a_value_and_as_text(text: str) -> None:
    pointer = parse_pointer(text)
    assert pointer.find(DOCUMENT) == POINTERS[text]
    assert msgspec.json.decode(pointer.find_raw(msgspec.Raw(msgspec.json.encode(DOCUMENT)))) == POINTERS[text]


@pytest.mark.parametrize("text", NOTHING)
def test_a_pointer_to_nothing_finds_nothing(text: str) -> None:
    for find in (
        lambda: parse_pointer(text).find(DOCUMENT),
        lambda: parse_pointer(text).find_raw(msgspec.Raw(msgspec.json.encode(DOCUMENT))),
    ):
        with pytest.raises(LookupError):
            find()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.lists(st.sampled_from(["0", "1", "", "a", "~", "/"]), max_size=3))
def test_both_ways_to_look_find_the_same(value: Any, names: list[str]) -> None:
    pointer = parse_pointer("".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names))
    raw = msgspec.Raw(msgspec.json.encode(value))
    try:
        found = pointer.find(value)
    except LookupError:
        with pytest.raises(LookupError):
            pointer.find_raw(raw)
    else:
        assert msgspec.json.decode(pointer.find_raw(raw)) == found


def test_a_template_is_filled_part_by_part() -> None:
    template = parse_template("a/{/x}-{/y}/c")
    assert template.fill({"x": "b", "y": 1.5}) == "a/b-1.5/c"
    bad: list[Any] = ["b/b", "..", "b b", "", None, True, [], {}, "é"]
    for value in bad:
        with pytest.raises(BadItem):
            template.fill({"x": value, "y": 1})


def test_a_template_that_is_one_pointer_takes_the_whole_from_there() -> None:
    assert parse_template("{/topic}").fill({"topic": "a/b/c"}) == "a/b/c"


def shape(name: str = "s", version: str | None = "/v") -> Shape:
    update = parse_template("update")
    return Shape(name, parse_template("a/b/c"), update, parse_pointer("/k"), parse_pointer(version) if version else None, parse_pointer(""))


def test_what_tells_items_apart_is_never_the_same_for_two() -> None:
    values = [
        {"k": "1", "v": "2"},
        {"k": 1, "v": "2"},
        {"k": "1", "v": 2},
        {"k": "1", "v": 2.5},
        {"k": "1@2", "v": ""},
        {"k": "1", "v": "@2"},
    ]
    digests = [shape().identify(value) for value in values] + [shape("t").identify(values[0]), shape(version=None).identify(values[0])]
    assert len(set(digests)) == len(digests)
    assert shape().identify({"k": "1", "v": "2", "more": 1}) == digests[0]
