"""What a reader asks for, from the query and one header; the same for streams and pages."""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl

import msgspec

from relay.cursor import EARLIEST, Cursor, Place, parse_cursor
from relay.envelope import Sealer
from relay.errors import Malformed, NotFound
from relay.event import NAME
from relay.topic import Patterns, parse_topic

TOPICS_MAX = 100
NEWEST_MAX = 100  # k
NEWEST_EVENTS_MAX = 1000  # k × topics
NAMES_MAX = 100
LIMIT_MAX = 500
LIMIT_DEFAULT = 100
WAIT_MAX_S = 25.0  # below the 30 s after which many an edge gives up
HEARTBEAT_S = (5, 55)  # the least and most that a client may ask for
FIELDS_MAX = 150
PLAIN, SEALED = VERSIONS = ("v1", "v2")
# In the order in which they count. EventSource polyfills and older clients send their id by one of these names.
POSITION_NAMES = ("last_event_id", "lastEventId", "lastEventID", "cursor")
WAIT = re.compile(r"[0-9]{1,2}(\.[0-9]{1,3})?")


class Position(msgspec.Struct, frozen=True):
    """Where a reader wants to go on."""

    cursor: Cursor | None = None  # None: at the journal's end
    reset: bool = False  # it sent something that is none of our cursors, where a 400 would end it for good
    in_header: bool = False
    in_cursor: bool = False  # a cursor in the query's `cursor`, so that the URL alone says which page it is


class Versions(msgspec.Struct, frozen=True):
    """Which versions this relay has, beside `v1`."""

    sealer: Sealer | None = None  # None: it has no key to seal with
    only_sealed: Patterns = Patterns()  # topics that are had in no other way

    def sealer_of(self, version: str) -> Sealer | None:
        return self.sealer if version == SEALED else None

    def check(self, version: str) -> None:
        """Raises NotFound."""
        if version not in VERSIONS:
            raise NotFound(f"there is no version {version[:40]!r}: use {' or '.join(VERSIONS)}", code="unknown_version")
        if version == SEALED and not self.sealer:
            raise NotFound(f"this relay has no key to seal with, so it has no {SEALED}: use v1", code="sealing_off")

    def check_topics(self, version: str, topics: Iterable[str]) -> None:
        """Raises NotFound."""
        closed = next((topic for topic in topics if self.only_sealed.match(topic)), None) if version != SEALED else None
        if closed:
            raise NotFound(f"{closed} is had sealed alone: use {SEALED}", code="only_sealed")


class ReadQuery(msgspec.Struct, frozen=True):
    topics: tuple[str, ...]
    version: str
    position: Position
    newest: int
    names: frozenset[str] | None
    limit: int
    wait_s: float
    heartbeat_s: int  # 0: as the relay likes


def parse_fields(query: bytes) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except (UnicodeDecodeError, ValueError) as error:
        raise Malformed("the query is not percent-encoded UTF-8, or has too many fields", code="bad_query") from error
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def one(fields: Mapping[str, list[str]], name: str) -> str:
    """A field's value; empty counts as absent."""
    values = fields.get(name, [])
    if len(values) > 1:
        raise Malformed(f"{name} stands {len(values)} times in the query: give it once", code="bad_query")
    return values[0] if values else ""


def whole_number(fields: Mapping[str, list[str]], name: str, least: int, most: int, default: int) -> int:
    text = one(fields, name)
    if not text:
        return default
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not least <= int(text) <= most:
        raise Malformed(f"{name}={text[:40]!r} is not a whole number from {least} to {most}", code=f"bad_{name}")
    return int(text)


def parse_read(version: str, topic: str | None, query: bytes, last_event_id: str, versions: Versions = Versions()) -> ReadQuery:
    """Raises NotFound for a version that there is not, and Malformed for all else that can't be understood.

    `topic` comes from the path; without one, the query names them.
    """
    versions.check(version)
    fields = parse_fields(query)
    topics = (topic,) if topic else parse_topics(fields.get("topic", []))
    versions.check_topics(version, topics)
    newest = whole_number(fields, "k", 0, NEWEST_MAX, 0)
    if newest * len(topics) > NEWEST_EVENTS_MAX:
        raise Malformed(f"k={newest} of {len(topics)} topics is more than {NEWEST_EVENTS_MAX} events", code="bad_k")
    wait = one(fields, "wait") or "0"
    if not WAIT.fullmatch(wait) or float(wait) > WAIT_MAX_S:
        raise Malformed(f"wait={wait[:40]!r} is not a number of seconds from 0 to {WAIT_MAX_S:g}", code="bad_wait")
    return ReadQuery(
        topics,
        version,
        parse_position(fields, last_event_id),
        newest,
        parse_names(one(fields, "events")),
        whole_number(fields, "limit", 1, LIMIT_MAX, LIMIT_DEFAULT),
        float(wait),
        whole_number(fields, "heartbeat", *HEARTBEAT_S, 0),
    )


def parse_topics(texts: list[str]) -> tuple[str, ...]:
    topics = tuple(sorted({parse_topic(text) for text in texts}))
    if not topics:
        raise Malformed("no topic: add ?topic=collection/type/id, up to 100 times", code="bad_topic")
    if len(topics) > TOPICS_MAX:
        raise Malformed(f"{len(topics)} topics in one request: {TOPICS_MAX} at most", code="bad_topic")
    return topics


def parse_names(text: str) -> frozenset[str] | None:
    if not text:
        return None
    names = frozenset(text.split(","))
    bad = next((name for name in names if not NAME.fullmatch(name)), None)
    if bad is not None or len(names) > NAMES_MAX:
        raise Malformed(
            f"events={text[:80]!r} is not a list of at most {NAMES_MAX} event names, joined by commas",
            code="bad_events",
        )
    return names


def parse_position(fields: Mapping[str, list[str]], last_event_id: str) -> Position:
    if last_event_id:
        try:
            return Position(parse_cursor(last_event_id), in_header=True)
        except Malformed:
            return Position(reset=True, in_header=True)
    for name in POSITION_NAMES:
        text = one(fields, name)
        if not text:
            continue
        if name == "cursor" and text == "now":
            return Position()
        if name == "cursor" and text == "earliest":
            return Position(Cursor({0: EARLIEST}))
        return Position(parse_cursor(text), in_cursor=name == "cursor")
    return Position()


def places_of(cursor: Cursor, shards: set[int]) -> dict[int, Place]:
    """The places that the cursor names in these shards."""
    if cursor.everywhere:
        return dict.fromkeys(shards, EARLIEST)
    return {shard: place for shard, place in cursor.places.items() if shard in shards}
