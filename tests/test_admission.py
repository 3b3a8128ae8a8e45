"""How many streams a process holds, in all and of each who asks, and how many it begins in a second."""

import heapq
import math
from contextlib import ExitStack

import pytest

from relay.admission import LATEST_S, SOONEST_S, Admission, Beginning
from relay.errors import TooMany


def test_a_process_holds_as_many_as_it_may_and_no_more() -> None:
    admission = Admission(3, 10)
    with ExitStack() as held:
        for number in range(3):
            held.enter_context(admission.hold(f"sub-{number}"))
        with pytest.raises(TooMany) as caught, admission.hold("sub-3"):
            pass
        assert caught.value.code == "too_many_streams"
        assert caught.value.retry_after_s
        assert admission.held == 3
    assert admission.held == 0


def test_one_who_asks_holds_as_many_as_each_may() -> None:
    admission = Admission(10, 2)
    with admission.hold("ada"), admission.hold("ada"):
        with pytest.raises(TooMany, match="you hold 2 streams"), admission.hold("ada"):
            pass
        with admission.hold("bob"):
            assert admission.held == 3
    with admission.hold("ada"):
        assert admission.held == 1


def test_a_place_is_given_back_however_it_ends() -> None:
    admission = Admission(1, 1)
    for error in (RuntimeError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), admission.hold("ada"):
            raise error
    with admission.hold("ada"):
        pass


def test_who_holds_nothing_costs_nothing() -> None:
    admission = Admission(10, 2)
    for number in range(100):
        with admission.hold(f"sub-{number}"):
            pass
    assert not admission._each


def test_a_refusal_takes_no_place() -> None:
    admission = Admission(10, 1)
    with admission.hold("ada"):
        for _ in range(3):
            with pytest.raises(TooMany), admission.hold("ada"):
                pass
        assert admission.held == 1
        assert admission._each == {"ada": 1}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def pause_s(beginning: Beginning) -> float:
    """0: it may begin."""
    try:
        beginning.check()
    except TooMany as problem:
        return problem.retry_after_s or math.nan
    return 0


def test_as_many_begin_at_once_as_may_in_a_second() -> None:
    clock = Clock()
    beginning = Beginning(10, clock)
    assert [pause_s(beginning) > 0 for _ in range(12)] == [False] * 10 + [True] * 2
    for _ in range(30):  # from then on as many as the time allows
        clock.now_s += 0.1001
        assert pause_s(beginning) == 0
        assert pause_s(beginning) > 0
    clock.now_s += 3600  # a quiet hour saves up for a second
    assert [pause_s(beginning) > 0 for _ in range(12)] == [False] * 10 + [True] * 2


def test_whoever_is_refused_is_told_a_time_of_its_own() -> None:
    beginning = Beginning(10, Clock())
    told = [pause for _ in range(110) if (pause := pause_s(beginning))]
    assert told == pytest.approx([SOONEST_S + (number + 1) / 10 for number in range(100)])


def test_a_crowd_that_does_as_it_is_told_comes_in_at_the_pace_that_is_served() -> None:
    """A token bucket that said "in 5 to 15 s" to all would have refused most of these again."""
    clock = Clock()
    beginning = Beginning(100, clock)
    crowd = [clock.now_s] * 3000
    refusals = 0
    while crowd:
        clock.now_s = heapq.heappop(crowd)
        if pause := pause_s(beginning):
            refusals += 1
            heapq.heappush(crowd, clock.now_s + pause)
    assert refusals < 1.01 * 2900
    assert clock.now_s - 1000 < 31 + SOONEST_S


def test_nobody_is_told_to_come_back_later_than_in_a_minute() -> None:
    beginning = Beginning(1, Clock())
    told = [pause_s(beginning) for _ in range(1000)]
    assert max(told) <= LATEST_S
    assert len({round(pause, 3) for pause in told[100:]}) > 800


def test_who_gets_no_place_does_not_count_as_begun() -> None:
    admission = Admission(1, 1, Beginning(2, Clock()))
    with admission.hold("ada"):
        for _ in range(5):
            with pytest.raises(TooMany, match="as many streams"), admission.hold("bob"):
                pass
    with admission.hold("bob"):
        pass
    with pytest.raises(TooMany, match="in a second"), admission.hold("bob"):
        pass
    assert admission.held == 0
