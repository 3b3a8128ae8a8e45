"""What is refused is counted, and told in the log once a cause and period."""

from collections import Counter

import pytest

from relay.errors import Problem, TooMany, Unauthorized, Unavailable
from relay.refusals import CAUSES_MAX, OTHERS, PERIOD_S, Refusals

FULL = TooMany("come back later", code="too_many_streams", cause="RELAY_MAX_STREAMS=3 is reached")
AWAY = Unavailable("try again", cause="the log is away")


class Scene:
    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self.now_s = 0.0
        self.counted: Counter[str] = Counter()
        self.log = log
        self.refusals = Refusals(self.count, lambda: self.now_s)

    def count(self, code: str) -> None:
        self.counted[code] += 1

    def refuse(self, problem: Problem, times: int = 1) -> None:
        for _ in range(times):
            self.refusals.refused(problem)

    def lines(self) -> list[str]:
        """Since the last look."""
        lines = [record.getMessage() for record in self.log.records]
        self.log.clear()
        return lines


@pytest.fixture
def scene(caplog: pytest.LogCaptureFixture) -> Scene:
    return Scene(caplog)


def test_a_cause_is_told_when_it_comes_up_and_then_by_its_number(scene: Scene) -> None:
    scene.refuse(FULL, 5000)
    scene.refuse(AWAY)
    assert scene.lines() == ["a request is refused: RELAY_MAX_STREAMS=3 is reached", "a request is refused: the log is away"]
    scene.refusals.flush()
    assert scene.lines() == []
    scene.now_s += PERIOD_S
    scene.refusals.flush()
    assert scene.lines() == ["4999 more requests were refused: RELAY_MAX_STREAMS=3 is reached"]
    assert scene.counted == {"too_many_streams": 5000, "unavailable": 1}


def test_a_cause_that_lasts_is_told_once_a_period_and_one_that_is_over_begins_anew(scene: Scene) -> None:
    scene.refuse(FULL)
    for _ in range(3):
        scene.lines()
        scene.refuse(FULL, 10)
        scene.now_s += PERIOD_S
        scene.refuse(FULL)  # without a clock that ticks, the next refusal tells the number
        assert scene.lines()[0].endswith("more requests were refused: RELAY_MAX_STREAMS=3 is reached")
    for _ in range(2):
        scene.now_s += PERIOD_S
        scene.refusals.flush()
    scene.lines()
    scene.refuse(FULL)
    assert scene.lines() == ["a request is refused: RELAY_MAX_STREAMS=3 is reached"]


def test_what_is_final_is_counted_and_not_told(scene: Scene) -> None:
    scene.refuse(Unauthorized("no", code="bad_token"), 100)
    assert (scene.counted["bad_token"], scene.lines()) == (100, [])


def test_causes_without_an_end_have_one(scene: Scene) -> None:
    for number in range(10 * CAUSES_MAX):
        scene.refuse(Unavailable("no", cause=f"cause {number}"))
    assert len(scene.lines()) == CAUSES_MAX + 1
    scene.now_s += PERIOD_S
    scene.refusals.flush()
    assert scene.lines() == [f"{9 * CAUSES_MAX - 1} more requests were refused: {OTHERS}"]
    assert scene.counted["unavailable"] == 10 * CAUSES_MAX
