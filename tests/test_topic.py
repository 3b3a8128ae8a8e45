"""Topics, the patterns that grant them, and paths which came percent-encoded."""

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.edge import decoded_path, topic_of
from relay.errors import Malformed
from relay.topic import Patterns, decode_part, parse_topic, tag_of

LONGEST = "x" * 128

TOPICS = {
    "an example": "rounds/ROULETTE/123",
    "every kind of character": "Az09/._:-/a.b_c:d-e",
    "one character each": "a/b/c",
    "parts of 128": f"{LONGEST}/{LONGEST}/{LONGEST}",
    "three dots": ".../a/b",
    "a dot in front": ".a/..b/c..",
    "names of our own paths": "stream/live/poll",
    "words that are values elsewhere": "null/0/-1",
}

NO_TOPICS = {
    "empty": "",
    "one part": "rounds",
    "two parts": "rounds/ROULETTE",
    "four parts": "rounds/ROULETTE/123/4",
    "an empty part in front": "/ROULETTE/123",
    "an empty part between": "rounds//123",
    "an empty part behind": "rounds/ROULETTE/",
    "a part of 129": f"rounds/ROULETTE/{LONGEST}x",
    "a first part of 129": f"{LONGEST}x/ROULETTE/123",
    "a dot": "rounds/./123",
    "two dots": "rounds/../123",
    "two dots last": "rounds/ROULETTE/..",
    "a space": "rounds/ROULETTE/1 2",
    "a star": "rounds/*/123",
    "two stars": "rounds/ROULETTE/**",
    "an encoded character": "rounds/ROULETTE/%31",
    "a letter with an accent": "rounds/ROULETTÉ/123",
    "a digit of another script": "rounds/ROULETTE/٣",
    "a line end": "rounds/ROULETTE/123\n",
    "a NUL": "rounds/ROULETTE/123\0",
    "a backslash": "rounds\\ROULETTE\\123",
    "a query": "rounds/ROULETTE/123?k=1",
}


@pytest.mark.parametrize("text", TOPICS.values(), ids=TOPICS)
def test_a_topic_is_taken_as_it_is(text: str) -> None:
    assert parse_topic(text) == text


@pytest.mark.parametrize("text", NO_TOPICS.values(), ids=NO_TOPICS)
def test_what_is_no_topic_is_malformed(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_topic(text)
    assert caught.value.code == "bad_topic"
    assert "\n" not in caught.value.detail


@given(st.text(st.sampled_from("aZ0._:-/*%\0\n é"), max_size=30) | st.text(max_size=30))
def test_a_topic_holds_nothing_that_means_something_elsewhere(text: str) -> None:
    """It goes into SSE fields, JSON, keys of the log and log lines without being escaped."""
    try:
        topic = parse_topic(text)
    except Malformed:
        return
    assert re.fullmatch(r"[A-Za-z0-9._:/-]{5,386}", topic)
    assert not {"", ".", ".."} & set(topic.split("/"))


# Tags


@given(st.text(max_size=300))
def test_a_tag_fits_a_cursor(topic: str) -> None:
    assert re.fullmatch(r"[0-9a-z]{4}", tag_of(topic))


def test_a_tag_is_the_topics_alone() -> None:
    assert tag_of("a/b/c") == tag_of("a/b/c") == "povo"  # written in clients' cursors: another hash would end their numbers
    assert tag_of("a/b/c") != tag_of("a/b/d")


# Patterns: pattern, topics that it matches, topics that it doesn't

PATTERNS = {
    "a topic": ("rounds/ROULETTE/123", ["rounds/ROULETTE/123"], ["rounds/ROULETTE/1234", "rounds/ROULETTE/12", "Rounds/ROULETTE/123"]),
    "any last part": ("rounds/ROULETTE/*", ["rounds/ROULETTE/123"], ["rounds/CRAPS/123", "round/ROULETTE/123"]),
    "any part between": ("rounds/*/123", ["rounds/ROULETTE/123"], ["rounds/ROULETTE/124"]),
    "any first part": ("*/ROULETTE/123", ["rounds/ROULETTE/123"], ["rounds/CRAPS/123"]),
    "any parts": ("*/*/*", ["rounds/ROULETTE/123"], []),
    "the rest": ("rounds/**", ["rounds/ROULETTE/123", "rounds/a/b"], ["roundsx/ROULETTE/123", "round/s/123"]),
    "the last part as the rest": ("rounds/ROULETTE/**", ["rounds/ROULETTE/123"], ["rounds/CRAPS/123"]),
    "any part, then the rest": ("*/ROULETTE/**", ["rounds/ROULETTE/123"], ["rounds/CRAPS/123"]),
    "everything": ("**", ["rounds/ROULETTE/123", "a/b/c"], []),
    "a dot is a dot": ("a.b/c/d", ["a.b/c/d"], ["axb/c/d"]),
}

NO_PATTERNS = {
    "empty": "",
    "too short": "rounds/ROULETTE",
    "a star alone": "*",
    "two stars": "*/*",
    "too long": "rounds/ROULETTE/123/4",
    "nothing left for the rest": "rounds/ROULETTE/123/**",
    "the rest between": "rounds/**/123",
    "the rest twice": "**/**",
    "a star within a part": "rounds/ROUL*/123",
    "three stars": "rounds/***",
    "an empty part": "rounds//**",
    "a slash in front": "/rounds/**",
    "a slash behind": "rounds/**/",
    "a dot": "rounds/./**",
    "two dots": "rounds/../123",
    "a question mark": "rounds/ROULETTE/?",
    "a space": "rounds/ROULETTE/ *",
    "a part of 129": f"{LONGEST}x/**",
    "a line end": "**\n",
}


@pytest.mark.parametrize(("pattern", "matching", "others"), PATTERNS.values(), ids=PATTERNS)
def test_a_pattern_matches_whole_parts(pattern: str, matching: list[str], others: list[str]) -> None:
    patterns, bad = Patterns.parse([pattern])
    assert not bad
    assert patterns.texts() == [pattern]
    assert [topic for topic in matching if not patterns.match(topic)] == []
    assert [topic for topic in others if patterns.match(topic)] == []


@pytest.mark.parametrize("text", NO_PATTERNS.values(), ids=NO_PATTERNS)
def test_a_bad_pattern_grants_nothing_and_is_told_of(text: str) -> None:
    patterns, bad = Patterns.parse([text, "good/a/*"])
    assert bad == [text]
    assert patterns.texts() == ["good/a/*"]
    assert not patterns.match("rounds/ROULETTE/123")


def test_patterns_add_up() -> None:
    patterns, _ = Patterns.parse(["a/b/*", "rounds/**"])
    assert patterns.match("a/b/c")
    assert patterns.match("rounds/x/y")
    assert not patterns.match("a/c/b")
    assert not Patterns().match("a/b/c")


@given(st.lists(st.sampled_from(["a", "b", "*", "**", "", "."]), max_size=4).map("/".join), st.sampled_from(["a/b/a", "b/b/b"]))
def test_a_pattern_matches_as_its_words_say(text: str, topic: str) -> None:
    patterns, bad = Patterns.parse([text])
    expression = "/".join({"*": "[^/]+", "**": ".+", ".": r"\."}.get(part, part) for part in text.split("/"))
    assert patterns.match(topic) == (not bad and re.fullmatch(expression, topic) is not None)


# Paths: as they came, and what they mean

PATHS = {
    "plain": ("/stream/a/b/c/v1/poll", "/stream/a/b/c/v1/poll"),
    "an encoded colon": ("/stream/a/b%3Ac/d/v1/poll", "/stream/a/b:c/d/v1/poll"),
    "a colon in lower case": ("/stream/a/b%3ac/d/v1/poll", "/stream/a/b:c/d/v1/poll"),
    "letters that need no encoding": ("/str%65am/%61/b/c/%76%31/poll", "/stream/a/b/c/v1/poll"),
    "with a query": ("/stream/a%3A/b/c/v1/poll?topic=%2F", "/stream/a:/b/c/v1/poll"),
    "two dots": ("/stream/a/%2e%2e/c/v1/poll", "/stream/a/../c/v1/poll"),  # which is no topic
    "a half-encoded dot": ("/stream/a/.%2E/c/v1/poll", "/stream/a/../c/v1/poll"),
    "a type that is a word of ours": ("/stream/matches/live/7/v1/live", "/stream/matches/live%/7/v1/live"),  # see `topic_of`
    "such a type encoded": ("/stream/matches/l%69ve/7", "/stream/matches/live%/7"),
    "several topics": ("/stream/v1/live", "/stream/v1/live"),
    "several topics, with a slash behind": ("/stream/v1/live/", "/stream/v1/live/"),
}

BAD_PATHS = {
    "an encoded slash": "/stream/a/b%2Fc/v1/poll",
    "an encoded slash in lower case": "/stream/a%2fb/c/v1/poll",
    "encoded twice": "/stream/a/b%253Ac/d/v1/poll",
    "a slash encoded twice": "/stream/a/b%252Fc/v1/poll",
    "a broken escape": "/stream/a/b%zz/c/v1/poll",
    "an escape cut off": "/stream/a/b%2/c/v1/poll",
    "a lone percent sign": "/stream/a/%/c/v1/poll",
}


@pytest.mark.parametrize(("raw", "path"), PATHS.values(), ids=PATHS)
def test_a_path_is_split_first_and_then_decoded_once(raw: str, path: str) -> None:
    assert decoded_path({"raw_path": raw.encode(), "path": unquote(raw)}) == path


@pytest.mark.parametrize("raw", BAD_PATHS.values(), ids=BAD_PATHS)
def test_a_path_whose_decoding_would_change_its_parts_is_malformed(raw: str) -> None:
    with pytest.raises(Malformed):
        decoded_path({"raw_path": raw.encode(), "path": raw})


def test_any_valid_type_may_stand_in_a_path() -> None:
    for kind in ("live", "poll", "ROULETTE"):
        _, _, collection, marked, ident, *_ = decoded_path({"path": f"/stream/a/{kind}/b/v1/poll"}).split("/")
        assert topic_of({"collection": collection, "kind": marked, "ident": ident}) == f"a/{kind}/b"


def test_bytes_that_are_no_text_make_no_topic() -> None:
    assert decode_part("%C3%A9") == "é"
    with pytest.raises(Malformed):
        parse_topic(f"a/b/{decode_part('%FF')}")
