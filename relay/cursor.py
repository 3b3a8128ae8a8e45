"""A place in the log, and the cursor that a client keeps of it.

A place is an epoch and an id in a shard's journal: an entry's, or the one just before an entry (the same millisecond,
one less in the sequence). Ids rise within a journal. Epochs tell two lives of a log apart, so two places are equal only
if both are; which one is later is known only once both are known to be valid.

A cursor is written `epoch.ms-s`, on a single topic with the topic's number there and a short hash of the topic behind it:

    3f9k2a.1795486599120-90121.8812-q7h2

Over several shards it has a part for each, joined by `_`; a part of another shard than the first starts with its number:

    3f9k2a.1795486599120-90121_2-9bb01c.1795486599125-77

A shard that a cursor doesn't name starts at the journal's end. `0.0-0` alone is the earliest place of every shard.
"""

import re
from collections.abc import Mapping

import msgspec

from relay.errors import Malformed
from relay.topic import tag_of

CURSOR_BYTES_MAX = 512
SHARDS_MAX = 12  # so that a cursor with a part of 42 bytes for each shard fits its 512
PART = re.compile(
    r"(?:([1-9][0-9]?)-)?"  # shard, unless it is the first
    r"([0-9a-z]{1,16})\.(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})"  # epoch, ms, s
    r"(?:\.(0|[1-9][0-9]{0,15})-([0-9a-z]{1,8}))?"  # the topic's number and tag
)


class Place(msgspec.Struct, frozen=True):
    """Where in a shard's journal: after everything up to this id."""

    epoch: str
    ms: int
    s: int

    def at(self) -> tuple[int, int]:
        """The id, to be compared with another of the same journal."""
        return self.ms, self.s

    def __str__(self) -> str:
        return f"{self.epoch}.{self.ms}-{self.s}"

    def before(self) -> "Place":
        """The place just before the entry at this one. Nothing has to be looked up, since `s` is dense."""
        return Place(self.epoch, self.ms, self.s - 1)


EARLIEST = Place("0", 0, 0)


class Cursor(msgspec.Struct, frozen=True):
    """What a client sends back: a place for each shard that it names, and its number on a single topic."""

    places: dict[int, Place]
    n: int | None = None
    tag: str = ""

    @property
    def everywhere(self) -> bool:
        """Whether it is the earliest place of every shard, named or not."""
        return self.places == {0: EARLIEST}

    def number_on(self, topic: str) -> int | None:
        """How many events the topic had had at this place, if the cursor was counted on this topic."""
        if self.everywhere:
            return 0
        return self.n if self.tag == tag_of(topic) else None


def parse_cursor(text: str) -> Cursor:
    """Reads a cursor strictly: what `write_cursor` can't have written is Malformed."""
    if len(text) > CURSOR_BYTES_MAX:
        raise Malformed(f"the cursor has more than {CURSOR_BYTES_MAX} characters", code="bad_cursor")
    places: dict[int, Place] = {}
    n, tag = None, ""
    for part in text.split("_"):
        match = PART.fullmatch(part)
        if not match:
            raise Malformed(
                f"{part[:80]!r} is no cursor: send back, unchanged, one that the relay gave, or now, or earliest",
                code="bad_cursor",
            )
        shard = int(match[1] or 0)
        if shard <= max(places, default=-1) or shard >= SHARDS_MAX:
            raise Malformed(f"the cursor names shard {shard} twice or out of order, or there can be no such shard", code="bad_cursor")
        places[shard] = Place(match[2], int(match[3]), int(match[4]))
        if match[5]:
            n, tag = int(match[5]), match[6]
    if n is not None and len(places) > 1:
        raise Malformed("a cursor of several shards has no number", code="bad_cursor")
    return Cursor(places, n, tag)


def write_cursor(places: Mapping[int, Place], n: int | None = None, topic: str = "") -> str:
    """The cursor of these places; with the number and tag of its topic, if it is a single topic's and the number is known."""
    parts = [f"{shard}-{place}" if shard else str(place) for shard, place in sorted(places.items())]
    if n is not None and places != {0: EARLIEST}:
        parts[-1] += f".{n}-{tag_of(topic)}"
    return "_".join(parts)
