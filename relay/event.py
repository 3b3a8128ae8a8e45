"""An event as the log holds it, how long it does, and on how many servers."""

import itertools
import re

import msgspec

from relay.cursor import Place
from relay.topic import tag_of

NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")
DEFAULT_NAME = "update"
RESERVED_NAMES = frozenset({"hello", "gap", "bye", "sync", "error", "open"})  # the stream's own, or EventSource's

NESTING_MAX = 512  # half of what Python's own decoder takes, and more than most others do
STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # one that never ends, ends with the text
STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
NO_BRACKETS = bytes(set(range(256)) - set(STEPS))


class Event(msgspec.Struct, frozen=True):
    topic: str
    name: str
    n: int  # dense on its topic, from the first of its life
    place: Place
    before: tuple[int, int]  # the id of the topic's previous event; (0, 0) for the first of a life
    data: bytes  # the publisher's JSON text, on one line

    @property
    def ts(self) -> int:
        """When it was appended, in ms since 1970 by the log's clock."""
        return self.place.ms

    def cursor(self, shard: int) -> str:
        """Its own id: a cursor of its topic alone."""
        place = self.place
        cursor = f"{place.epoch}.{place.ms}-{place.s}.{self.n}-{tag_of(self.topic)}"
        return f"{shard}-{cursor}" if shard else cursor


class Retention(msgspec.Struct, frozen=True):
    """How long the log keeps what: age is the promise, counts guard memory. And how many replicas have to have it so long after."""

    retention_ms: int
    topic_events: int
    journal_events: int
    idempotency_ms: int
    replicas: int = 0
    replicas_s: float = 1.0


def nesting(text: bytes) -> int:
    """How deep arrays and objects stand in each other, in what may be JSON.

    Counted here, since a decoder's own limit is the interpreter's: some 1,000 up to Python 3.11, 10,000 and more later.
    """
    steps = map(STEPS.__getitem__, STRINGS.sub(b"", text).translate(None, NO_BRACKETS))
    return max(itertools.accumulate(steps), default=0)


def is_nested_too_deeply(text: bytes, most: int = NESTING_MAX) -> bool:
    """The brackets are only looked at where there are so many that it may be."""
    return text.count(b"[") + text.count(b"{") > most and nesting(text) > most


def is_publishable_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None and name not in RESERVED_NAMES
