"""A cursor is written one way, and read only if it is written that way."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relay.cursor import CURSOR_BYTES_MAX, EARLIEST, SHARDS_MAX, Cursor, Place, parse_cursor, write_cursor
from relay.errors import Malformed
from relay.topic import tag_of

TOPIC = "rounds/ROULETTE/123"
TAG = tag_of(TOPIC)
BIG = 10**16 - 1  # the most digits that a part has

# Text, and what it says: places by shard, and the number on TOPIC.
BOTH_WAYS = {
    "earliest": ("0.0-0", {0: EARLIEST}, None),
    "a place": ("3f9k2a.1795486599120-90121", {0: Place("3f9k2a", 1795486599120, 90121)}, None),
    "a topic's": (f"3f9k2a.1795486599120-90121.8812-{TAG}", {0: Place("3f9k2a", 1795486599120, 90121)}, 8812),
    "a topic's first": (f"e.1-1.1-{TAG}", {0: Place("e", 1, 1)}, 1),
    "before a topic's first": (f"e.1-0.0-{TAG}", {0: Place("e", 1, 0)}, 0),
    "the longest of one shard": (f"{'z' * 16}.{BIG}-{BIG}.{BIG}-{TAG}", {0: Place("z" * 16, BIG, BIG)}, BIG),
    "another shard": ("2-9bb01c.1795486599125-77", {2: Place("9bb01c", 1795486599125, 77)}, None),
    "another shard's topic": (f"11-e.5-6.7-{TAG}", {11: Place("e", 5, 6)}, 7),
    "the earliest of another shard": ("1-0.0-0", {1: EARLIEST}, None),
    "two shards": ("e.5-6_2-f.7-8", {0: Place("e", 5, 6), 2: Place("f", 7, 8)}, None),
    "the earliest of two shards": ("0.0-0_1-0.0-0", {0: EARLIEST, 1: EARLIEST}, None),
    "all shards": (
        "_".join(["e.1-1", *(f"{shard}-e.1-1" for shard in range(1, SHARDS_MAX))]),
        {shard: Place("e", 1, 1) for shard in range(SHARDS_MAX)},
        None,
    ),
}

MALFORMED = {
    "empty": "",
    "a word": "now",
    "no id": "e",
    "no sequence": "e.1",
    "an empty sequence": "e.1-",
    "an empty epoch": ".1-1",
    "an empty ms": "e.-1",
    "a minus": "e.-1-1",
    "a plus": "e.+1-1",
    "a leading zero in ms": "e.01-1",
    "a leading zero in the sequence": "e.1-01",
    "a double zero": "e.00-0",
    "a leading zero in the number": f"e.1-1.01-{TAG}",
    "17 digits of ms": f"e.{BIG + 1}-1",
    "17 digits of the sequence": f"e.1-{BIG + 1}",
    "17 digits of the number": f"e.1-1.{BIG + 1}-{TAG}",
    "an epoch of 17": "z" * 17 + ".1-1",
    "an epoch in capitals": "E.1-1",
    "an epoch with a sign": "e!.1-1",
    "a tag of 9": "e.1-1.1-abcdefghi",
    "no tag": "e.1-1.1",
    "an empty tag": "e.1-1.1-",
    "a tag in capitals": "e.1-1.1-ABCD",
    "a number without a value": f"e.1-1.-{TAG}",
    "more behind the tag": f"e.1-1.1-{TAG}.",
    "the first shard by its number": "0-e.1-1",
    "a leading zero in the shard": "01-e.1-1",
    "a shard of three digits": "100-e.1-1",
    "one shard too many": f"{SHARDS_MAX}-e.1-1",
    "the same shard twice": "e.1-1_e.1-1",
    "another shard twice": "1-e.1-1_1-e.1-1",
    "shards out of order": "1-e.1-1_e.1-1",
    "a number on two shards": f"e.1-1.1-{TAG}_1-e.1-1",
    "a number on the second of two shards": f"e.1-1_1-e.1-1.1-{TAG}",
    "an empty part": "e.1-1_",
    "an empty first part": "_e.1-1",
    "a space before": " e.1-1",
    "a space behind": "e.1-1 ",
    "a line end behind": "e.1-1\n",
    "a NUL behind": "e.1-1\0",
    "digits of another script": "e.1٣-1",
    "a full-width digit": "e.１-1",
    "an encoded character": "e%2e1-1",
    "an id of Valkey alone": "1795486599120-90121",
    "a list": "e.1-1,e.1-2",
    "too long": "z" * (CURSOR_BYTES_MAX + 1),
}


@pytest.mark.parametrize(("text", "places", "n"), BOTH_WAYS.values(), ids=BOTH_WAYS)
def test_a_cursor_is_written_and_read_the_same_way(text: str, places: dict[int, Place], n: int | None) -> None:
    assert write_cursor(places, n, TOPIC) == text
    assert parse_cursor(text) == Cursor(places, n, TAG if n is not None else "")


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_what_no_relay_can_have_written_is_malformed(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_cursor(text)
    assert caught.value.code == "bad_cursor"


def test_a_cursor_has_at_most_512_bytes() -> None:
    places = {shard: Place("e" * 16, 10**12, 1) for shard in range(SHARDS_MAX)}
    for index in range(CURSOR_BYTES_MAX - len(write_cursor(places))):  # a digit more at a time
        place = places[index % SHARDS_MAX]
        places[index % SHARDS_MAX] = Place(place.epoch, place.ms, place.s * 10)
    assert len(write_cursor(places)) == CURSOR_BYTES_MAX
    assert parse_cursor(write_cursor(places)).places == places
    places[0] = Place("e" * 16, 10**12, places[0].s * 10)
    with pytest.raises(Malformed, match="more than 512"):
        parse_cursor(write_cursor(places))


def test_an_error_shows_little_of_what_was_sent() -> None:
    with pytest.raises(Malformed) as caught:
        parse_cursor("<script>\n" * 50)
    assert len(caught.value.detail) < 300
    assert "\n" not in caught.value.detail


def test_a_number_counts_only_on_the_topic_that_it_was_counted_on() -> None:
    cursor = parse_cursor(f"e.5-6.7-{TAG}")
    assert cursor.number_on(TOPIC) == 7
    assert cursor.number_on("rounds/ROULETTE/124") is None
    assert parse_cursor("e.5-6").number_on(TOPIC) is None


def test_at_the_earliest_place_no_topic_has_had_an_event() -> None:
    assert parse_cursor("0.0-0").everywhere
    assert parse_cursor("0.0-0").number_on(TOPIC) == 0
    assert write_cursor({0: EARLIEST}, 0, TOPIC) == "0.0-0"
    assert not parse_cursor("1-0.0-0").everywhere


def test_the_place_before_an_entry_is_known_without_looking_it_up() -> None:
    assert Place("e", 5, 6).before() == Place("e", 5, 5)


def test_places_are_equal_only_if_epoch_and_id_are() -> None:
    assert Place("e", 5, 6) == Place("e", 5, 6)
    assert Place("e", 5, 6) != Place("f", 5, 6)
    assert Place("e", 5, 6) != Place("e", 5, 7)


# Properties

PLACES = st.builds(
    Place,
    st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=16),
    st.integers(0, BIG),
    st.integers(0, BIG),
)


@given(st.dictionaries(st.integers(0, SHARDS_MAX - 1), PLACES, min_size=1), st.none() | st.integers(0, BIG))
def test_every_cursor_that_is_written_is_read(places: dict[int, Place], n: int | None) -> None:
    known = n if len(places) == 1 and places != {0: EARLIEST} else None
    text = write_cursor(places, known, TOPIC)
    assume(len(text) <= CURSOR_BYTES_MAX)
    assert parse_cursor(text) == Cursor(places, known, TAG if known is not None else "")


@st.composite
def rubbish(draw: st.DrawFn) -> str:
    """A cursor with a few characters changed, or any text at all."""
    text = draw(st.sampled_from([text for text, _, _ in BOTH_WAYS.values()]))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text("0123456789-._aez AZ\n\0٣é", max_size=3)) + text[at + draw(st.integers(0, 2)) :]
    return draw(st.sampled_from([text, draw(st.text(max_size=40))]))


@given(rubbish())
def test_rubbish_is_malformed_or_a_cursor_to_the_letter(text: str) -> None:
    try:
        cursor = parse_cursor(text)
    except Malformed:
        return
    number = "" if cursor.n is None else f".{cursor.n}-{cursor.tag}"
    assert write_cursor(cursor.places) + number == text
