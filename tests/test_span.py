"""Gaps are found in what was read: `judge` alone, with reads as the script answers them."""

from collections.abc import Sequence
from typing import Any

import pytest

from relay.cursor import Place, parse_cursor
from relay.event import Event
from relay.span import Gap, Head, ShardRead, Span, TopicRead, gap_cursor, judge, lost_all

NOW_MS = 1000
END = Place("e", 990, 20)
T, U = "a/b/t", "a/b/u"
End = tuple[int, int]


def place(ms: int, s: int) -> Place:
    return Place("e", ms, s)


def event(n: int, at: End, before: End, topic: str = T) -> Event:
    return Event(topic, "update", n, place(*at), before, b"1")


def topic(events: Sequence[Event], head: Head | None, *, name: str = T, ended: bool = True, start: End = (900, 10)) -> TopicRead:
    return TopicRead(name, list(events), ended, head, start)


def read(*topics: TopicRead, untraced: bool = False) -> ShardRead:
    return ShardRead(0, False, END, NOW_MS, list(topics), untraced)


def verdict(span: Span) -> tuple[list[Any], Place, bool, int | None]:
    """Each gap's (lost, first_n), the end, whether there is more, and the number there."""
    return [(gap.lost, gap.first_n) for gap in span.gaps], span.end, span.more, span.n


# What was read after place (900, 10) by a reader that has counted 5, and the verdict.
ONE_TOPIC: dict[str, tuple[TopicRead, int | None, tuple[list[Any], Place, bool, int | None]]] = {
    "nothing came": (topic([], Head(5, (880, 9), 1)), 5, ([], END, False, 5)),
    "nothing came, its last is the place": (topic([], Head(5, (900, 10), 1)), 5, ([], END, False, 5)),
    "the next one": (topic([event(6, (950, 15), (880, 9))], Head(6, (950, 15), 1)), 5, ([], END, False, 6)),
    "the next ones": (
        topic([event(6, (950, 15), (900, 10)), event(7, (960, 17), (950, 15))], Head(7, (960, 17), 1)),
        5,
        ([], END, False, 7),
    ),
    "the next, and no number known": (topic([event(6, (950, 15), (880, 9))], Head(6, (950, 15), 1)), None, ([], END, False, 6)),
    "one is missing": (topic([event(7, (950, 15), (940, 12))], Head(7, (950, 15), 1)), 5, ([(1, 7)], END, False, 7)),
    "many are missing": (topic([event(43, (950, 15), (901, 11))], Head(43, (950, 15), 1)), 5, ([(37, 43)], END, False, 43)),
    "missing, and no number known": (
        topic([event(7, (950, 15), (940, 12))], Head(7, (950, 15), 1)),
        None,
        ([(None, 7)], END, False, 7),
    ),
    "all that came is gone": (topic([], Head(9, (950, 15), 1)), 5, ([(4, 10)], END, False, 9)),
    "all that came is gone, and no number known": (topic([], Head(9, (950, 15), 1)), None, ([(None, 10)], END, False, 9)),
    "counted in an earlier life": (
        topic([event(30, (950, 15), (940, 12))], Head(30, (950, 15), 28)),
        5,
        ([(None, 30)], END, False, 30),
    ),
    "counted up to this life": (
        topic([event(30, (950, 15), (940, 12))], Head(30, (950, 15), 28)),
        27,
        ([(2, 30)], END, False, 30),
    ),
    "more was counted than there is": (
        topic([event(7, (950, 15), (940, 12))], Head(7, (950, 15), 1)),
        10**15,
        ([(None, 7)], END, False, 7),
    ),
    "what is missing was counted": (topic([event(7, (950, 15), (940, 12))], Head(7, (950, 15), 1)), 6, ([(None, 7)], END, False, 7)),
    "more was counted than ever came, and all is gone": (topic([], Head(9, (950, 15), 1)), 10, ([(None, 10)], END, False, 9)),
    "a first life begins": (topic([event(15, (950, 15), (0, 0))], Head(15, (950, 15), 15)), 10, ([], END, False, 15)),
    "no head, and nothing ever came": (topic([], None), 5, ([], END, False, 5)),
    "no head, no number": (topic([], None), None, ([], END, False, 20)),
    "there is more": (
        topic([event(6, (950, 15), (900, 10))], Head(9, (980, 19), 1), ended=False),
        5,
        ([], place(950, 15), True, 6),
    ),
    "missing, and there is more": (
        topic([event(7, (950, 15), (940, 12))], Head(9, (980, 19), 1), ended=False),
        5,
        ([(1, 7)], place(950, 15), True, 7),
    ),
}


@pytest.mark.parametrize(("found", "n", "expected"), ONE_TOPIC.values(), ids=ONE_TOPIC)
def test_a_read_of_one_topic_tells_what_is_missing(
    found: TopicRead, n: int | None, expected: tuple[list[Any], Place, bool, int | None]
) -> None:
    span = judge(read(found), n)
    assert verdict(span) == expected
    assert span.events == found.events


# The same after a place at (700, 10), so long ago that heads may have been forgotten.
UNTRACED: dict[str, tuple[TopicRead, list[Any]]] = {
    "no head": (topic([], None, start=(700, 10)), [(None, None)]),
    "a head": (topic([], Head(5, (690, 9), 1), start=(700, 10)), []),
    "a first of a life": (topic([event(15, (950, 15), (0, 0))], Head(15, (950, 15), 15), start=(700, 10)), [(None, 15)]),
    "an event with one before it": (topic([event(6, (950, 15), (690, 9))], Head(6, (950, 15), 1), start=(700, 10)), []),
}


@pytest.mark.parametrize(("found", "gaps"), UNTRACED.values(), ids=UNTRACED)
def test_a_place_older_than_any_trace_may_have_missed_something(found: TopicRead, gaps: list[Any]) -> None:
    told = judge(read(found, untraced=True), 5)
    assert [(gap.lost, gap.first_n) for gap in told.gaps] == gaps
    assert judge(read(found), 5).gaps == []


# Several topics


def test_topics_are_merged_in_the_journals_order() -> None:
    first = [event(6, (910, 11), (900, 10)), event(7, (940, 14), (910, 11))]
    second = [event(2, (910, 12), (0, 0), U), event(3, (950, 15), (910, 12), U)]
    span = judge(read(topic(first, Head(7, (940, 14), 1)), topic(second, Head(3, (950, 15), 2), name=U)), None)
    assert [(one.topic, one.place.s) for one in span.events] == [(T, 11), (U, 12), (T, 14), (U, 15)]
    assert (span.gaps, span.end, span.more, span.n) == ([], END, False, None)


def test_nothing_beyond_the_topic_that_was_read_least_is_told() -> None:
    first = [event(6, (910, 11), (900, 10)), event(7, (940, 14), (910, 11))]
    second = [event(2, (910, 12), (0, 0), U)]
    span = judge(
        read(topic(first, Head(7, (940, 14), 1)), topic(second, Head(9, (980, 19), 2), name=U, ended=False)),
        None,
    )
    assert [one.place.s for one in span.events] == [11, 12]
    assert (span.end, span.more) == (place(910, 12), True)


def test_each_topic_has_a_gap_of_its_own_and_none_is_counted() -> None:
    """A cursor of several topics has no number: a client subtracts its own."""
    first, second = [event(9, (940, 14), (930, 13))], [event(8, (950, 15), (945, 14), U)]
    span = judge(read(topic(first, Head(9, (940, 14), 1)), topic(second, Head(8, (950, 15), 1), name=U)), 5)
    assert [(gap.topic, gap.lost, gap.first_n) for gap in span.gaps] == [(T, None, 9), (U, None, 8)]


def test_a_topic_that_began_later_is_judged_from_where_it_began() -> None:
    found = topic([event(9, (940, 14), (930, 13))], Head(9, (940, 14), 1), start=(940, 13))
    span = judge(read(found), None)
    assert span.gaps == []
    assert span.starts == {T: (940, 13)}


# What is told


def test_a_gap_names_the_first_retained_event() -> None:
    first = event(7, (950, 15), (940, 12))
    (gap,) = judge(read(topic([first], Head(7, (950, 15), 1))), 5).gaps
    assert gap.body(0) == {"topic": T, "lost": 1, "first_n": 7, "oldest": first.cursor(0)}


def test_a_client_that_is_cut_behind_a_gap_is_told_of_it_again() -> None:
    """Its id is the place just before the first retained event, with the number before that."""
    (gap,) = judge(read(topic([event(7, (950, 15), (940, 12))], Head(7, (950, 15), 1))), 5).gaps
    cursor = parse_cursor(gap_cursor(gap, 0))
    assert cursor.places == {0: place(950, 14)}
    assert cursor.number_on(T) == 6


def test_where_nothing_is_retained_a_gap_is_at_the_end_of_what_was_read() -> None:
    (gap,) = judge(read(topic([], Head(9, (950, 15), 1))), 5).gaps
    assert gap == Gap(T, 4, 10, None, END, 9)
    assert gap.body(0)["oldest"] is None


def test_a_reset_loses_what_cant_be_counted() -> None:
    first = event(7, (950, 15), (940, 12))
    assert lost_all(topic([first], Head(7, (950, 15), 1)), END) == Gap(T, None, 7, first, place(950, 14), 6)
    assert lost_all(topic([], Head(7, (950, 15), 1)), END) == Gap(T, None, 8, None, END, 7)
    assert lost_all(topic([], None), END) == Gap(T, None, None, None, END, None)
