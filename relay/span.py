"""What a read of one shard's log tells a reader: the events up to a place, and what is missing before them.

This is where gaps are found, and it is found in what was read, not in counters: a read after place c is complete exactly
when the first entry's `before` (the id of its topic's previous event) is not later than c; where there is no entry, when
the topic's last id isn't. Streams and pages judge their reads here, so they can't differ.
"""

import msgspec

from relay.cursor import Place, write_cursor
from relay.event import Event

NEVER = (0, 0)


class Head(msgspec.Struct, frozen=True):
    """What the log still knows of a topic when its events are gone."""

    n: int
    last: tuple[int, int]
    first_n: int  # of this life; before it, numbers were counted in another


class TopicRead(msgspec.Struct, frozen=True):
    """A topic's part of a read."""

    topic: str
    events: list[Event]
    ended: bool  # there is nothing more
    head: Head | None
    start: tuple[int, int]  # it began after this id


class ShardRead(msgspec.Struct, frozen=True):
    """What the read script answered. After a reset there are no topics."""

    shard: int
    reset: bool
    end: Place  # the journal's last
    now_ms: int  # by the server's clock
    topics: list[TopicRead]
    untraced: bool = False  # so long ago that a topic may have had events after the place of which nothing is left, no head either


class Gap(msgspec.Struct, frozen=True):
    """Events of a topic that are no longer retained, or may have been."""

    topic: str
    lost: int | None  # None where it can't be known
    first_n: int | None  # number of the first retained event, or of the next one if none is retained
    oldest: Event | None  # the first retained event
    place: Place  # just before it, or the read's end
    n: int | None  # the topic's number there

    def body(self, shard: int) -> dict[str, object]:
        oldest = self.oldest.cursor(shard) if self.oldest else None
        return {"topic": self.topic, "lost": self.lost, "first_n": self.first_n, "oldest": oldest}


class Span(msgspec.Struct, frozen=True):
    """Events after a place in the log's order, up to `end`; nothing beyond it is in here."""

    shard: int
    events: list[Event]
    end: Place
    more: bool  # the log has, or may have, more after `end`
    n: int | None  # a single topic's number at `end`
    gaps: list[Gap]
    starts: dict[str, tuple[int, int]]  # by topic, where a read of the newest k began


def judge(read: ShardRead, n: int | None) -> Span:
    """What a valid read after a place means for a reader that has counted `n` events of its single topic there.

    The end is the smallest last-read place of the topics that weren't read to their end, else the journal's last: a
    reader that goes on from there misses nothing of any topic.
    """
    assert not read.reset
    single = len(read.topics) == 1
    end = read.end
    gaps = []
    for topic in read.topics:
        gap = find_gap(topic, read.end, n if single else None, read.untraced)
        if gap:
            gaps.append(gap)
        if not topic.ended and topic.events[-1].place.at() < end.at():
            end = topic.events[-1].place
    if single:
        events = read.topics[0].events
    else:
        events = sorted(
            (event for topic in read.topics for event in topic.events if event.place.at() <= end.at()),
            key=lambda event: event.place.at(),
        )
    return Span(
        read.shard,
        events,
        end,
        more=end.at() < read.end.at(),
        n=number_at(read.topics[0], events, gaps, n, end) if single else None,
        gaps=gaps,
        starts={topic.topic: topic.start for topic in read.topics},
    )


def find_gap(topic: TopicRead, end: Place, n: int | None, untraced: bool) -> Gap | None:
    first, head = topic.events[0] if topic.events else None, topic.head
    before = first.before if first else head.last if head else NEVER
    if before <= topic.start:
        # Complete, unless there may have been what left no trace.
        if not untraced or (first.before != NEVER if first else head):
            return None
        lost, first_n = None, first.n if first else None
    else:
        first_n = first.n if first else head.n + 1 if head else None
        # A number outside of what this life can have had there is no number of it: of an earlier life, or made up.
        counted = head is not None and n is not None and first_n is not None and head.first_n - 1 <= n < first_n - 1
        lost = first_n - 1 - n if counted and n is not None and first_n is not None else None
    return Gap(
        topic.topic,
        lost,
        first_n,
        oldest=first,
        place=first.place.before() if first else end,
        n=first_n - 1 if first_n is not None else None,
    )


def lost_all(topic: TopicRead, end: Place) -> Gap:
    """A topic's gap after a reset: of what was before, nothing can be known."""
    first, head = topic.events[0] if topic.events else None, topic.head
    first_n = first.n if first else head.n + 1 if head else None
    return Gap(topic.topic, None, first_n, first, first.place.before() if first else end, first_n and first_n - 1)


def number_at(topic: TopicRead, events: list[Event], gaps: list[Gap], n: int | None, end: Place) -> int | None:
    """A single topic's number at the span's end, as far as it is known."""
    if topic.head and topic.head.last <= end.at():
        return topic.head.n
    if events:
        return events[-1].n
    if gaps:
        return gaps[-1].n
    # Without a head its next event begins a life, whose first number is the journal's count then.
    return n if n is not None or topic.head else end.s


def gap_cursor(gap: Gap, shard: int) -> str:
    """The id of a single topic's gap: a client that is cut right behind it is told of it again."""
    return write_cursor({shard: gap.place}, gap.n, gap.topic)
