"""What `client.js` decides: the next transport, how long to wait, when to give up; and how it reads ids, URLs and headers."""

import itertools
from typing import Any

import pytest

from tests.browser.node import run
from tests.servers import topic

LIVED = {"greeted": True, "livedMs": 5000, "heard": False}

Step = dict[str, Any]


def decide(*outcomes: Step, random: float = 0.5, **health: Any) -> list[Step]:
    """The steps that follow these outcomes, one after the other."""
    script = """
    let health = { ...client.HEALTHY, ...given.health };
    return given.outcomes.map(outcome => {
      const step = client.decide(health, outcome, client.LIMITS, () => given.random);
      health = step.health || health;
      return step;
    });
    """
    steps: list[Step] = run(script, {"outcomes": outcomes, "health": health, "random": random})
    return steps


def levels(steps: list[Step]) -> list[int | None]:
    return [step["fall"]["level"] if step.get("fall") else None for step in steps]


# Falling back


def test_without_a_hello_in_time_it_stops_streaming_at_once() -> None:
    (step,) = decide({"kind": "silent"})
    assert (step["fall"]["level"], step["waitMs"]) == (1, 0)


def test_a_bye_without_a_hello_is_an_answer_and_no_reason_to_stop_streaming() -> None:
    steps = decide(*[{"kind": "bye", "reason": "busy", "waitMs": 7000}] * 20)
    assert levels(steps) == [None] * 20
    assert [step["waitMs"] for step in steps] == [7350] * 20


def test_one_short_stream_or_two_are_no_reason_to_stop_streaming_but_a_row_of_them_is() -> None:
    assert levels(decide(*[{"kind": "cut", **LIVED}] * 4)) == [None, None, None, 1]
    assert levels(decide({"kind": "cut", **LIVED, "livedMs": 40_000}, *[{"kind": "cut", **LIVED}] * 3)) == [None] * 4
    bye = {"kind": "bye", "reason": "drain", "waitMs": 1, **LIVED}
    assert levels(decide(*[{"kind": "cut", **LIVED}] * 3, bye, *[{"kind": "cut", **LIVED}] * 3)) == [None] * 7


def test_a_relay_that_is_away_is_no_reason_to_stop_streaming() -> None:
    assert levels(decide({"kind": "cut", **LIVED}, *[{"kind": "failed", "livedMs": 1}] * 30)) == [None] * 31


def test_a_stream_that_falls_silent_is_begun_anew_and_given_up_only_if_nothing_came_after_the_hello() -> None:
    assert levels(decide(*[{"kind": "stalled", **LIVED, "heard": True}] * 9)) == [None] * 9
    steps = decide(*[{"kind": "stalled", **LIVED}] * 4)
    assert levels(steps) == [None, None, None, 1]
    assert [step["waitMs"] for step in steps] == [0] * 4


def test_answers_that_wait_are_given_up_when_two_in_a_row_are_cut_while_they_wait() -> None:
    cut = {"kind": "failed", "waitS": 20, "livedMs": 9000}
    gateway = {"kind": "status", "status": 504, "waitS": 20, "livedMs": 9000}
    page = {"kind": "page", "more": False, "waitS": 20, "paceMs": 0, "empty": True, "livedMs": 20_000}
    assert levels(decide(cut, gateway)) == [None, 2]
    assert levels(decide(cut, page, cut)) == [None] * 3
    assert levels(decide(cut, {**page, "waitS": 0}, cut)) == [None, None, 2], "a page that didn't wait shows nothing"
    assert levels(decide(*[{**cut, "livedMs": 10}] * 9)) == [None] * 9, "nothing was answered: the relay is away"
    assert levels(decide({"kind": "status", "status": 429, "afterMs": 2000, "waitS": 20, "livedMs": 9})) == [2]


def test_something_else_than_a_stream_is_no_stream() -> None:
    assert levels(decide({"kind": "mime", "stream": True}, {"kind": "mime"})) == [1, None]


@pytest.mark.parametrize(
    ("level", "stream", "event_source", "expected"),
    [
        (level, stream, event_source, "poll" if level == 2 else "long-poll" if level == 1 else first)
        for level, (stream, event_source, first) in itertools.product(
            (0, 1, 2), [(True, True, "sse"), (True, False, "sse"), (False, True, "event-source"), (False, False, "long-poll")]
        )
    ],
)
def test_the_transport_is_the_best_that_browser_and_way_allow(level: int, stream: bool, event_source: bool, expected: str) -> None:
    given = {"can": {"stream": stream, "eventSource": event_source}, "level": level, "reason": "so"}
    transport, why = run("return client.chooseTransport(given)", given)
    assert transport == expected
    assert why


def test_what_is_asked_for_beats_every_verdict() -> None:
    given = {"can": {"stream": True, "eventSource": True}, "level": 1, "reason": "", "forced": "poll"}
    assert run("return client.chooseTransport(given)", given) == ["poll", "asked for"]


def test_when_an_event_source_fails_a_page_tells_why() -> None:
    steps = decide(*[{"kind": "unexplained", "livedMs": 5}, {"kind": "page", "more": False, "paceMs": 1000}] * 4)
    assert [step["health"]["ask"] for step in steps] == [True, False] * 4
    assert levels(steps)[-2:] == [1, None]


# Waiting


def test_failures_are_followed_by_longer_and_longer_pauses_with_jitter() -> None:
    def waits(random: float) -> list[float]:
        return [step["waitMs"] for step in decide(*[{"kind": "failed", "livedMs": 1}] * 9, random=random)]

    assert waits(1) == [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]
    assert waits(0) == [wait / 2 for wait in waits(1)]


def test_success_ends_the_row_of_failures() -> None:
    page = {"kind": "page", "more": False, "paceMs": 1000}
    steps = decide(*[{"kind": "failed", "livedMs": 1}] * 5, page, {"kind": "failed", "livedMs": 1}, random=1)
    assert steps[-1]["waitMs"] == 1000


def test_what_the_relay_says_about_coming_back_is_kept_to() -> None:
    (bye,) = decide({"kind": "bye", "reason": "drain", "waitMs": 3000, "greeted": True}, random=0)
    assert (bye["waitMs"], bye.get("wakes")) == (3000, None)
    (cut,) = decide({"kind": "cut", **LIVED, "retryMs": 4000}, random=0)
    assert cut["waitMs"] == 4000
    (busy,) = decide({"kind": "status", "status": 503, "afterMs": 30_000}, random=0)
    assert (busy["waitMs"] >= 30_000, busy["wakes"]) == (True, False), "not even a user who comes back may shorten it"


def test_pages_are_asked_for_at_the_pace_that_the_relay_names_with_jitter() -> None:
    page = {"kind": "page", "more": False, "paceMs": 5000, "livedMs": 9}
    assert [round(decide(page, random=random)[0]["waitMs"]) for random in (0, 1)] == [4000, 6000]
    assert decide({**page, "more": True})[0]["waitMs"] == 0


def test_a_long_poll_is_asked_again_at_once_unless_it_did_not_wait() -> None:
    page = {"kind": "page", "more": False, "paceMs": 0, "waitS": 20, "empty": True, "livedMs": 20_000}
    assert decide(page)[0]["waitMs"] == 0
    assert decide({**page, "empty": False, "livedMs": 5})[0]["waitMs"] == 0
    assert decide({**page, "livedMs": 5})[0]["waitMs"] >= 1000


def test_retry_after_is_seconds_or_a_date() -> None:
    given = ["7", "Tue, 24 Nov 2026 10:00:30 GMT", "Tue, 24 Nov 2026 09:00:00 GMT", "soon", "", None]
    assert run("return given.map(value => client.retryAfterMs(value, Date.UTC(2026, 10, 24, 10)))", given) == [7000, 30_000, 0, 0, 0, 0]


# Tokens, and the end


def test_a_refused_token_is_renewed_once_and_then_it_is_the_end() -> None:
    refused = {"kind": "status", "status": 401, "code": "token_expired", "renewable": True}
    first, second = decide(refused, refused)
    assert (first["renew"], first["waitMs"]) == (True, 0)
    assert second["end"] == {"reason": "token_expired", "status": 401}
    assert "end" in decide({**refused, "renewable": False})[0]
    assert decide(refused, {"kind": "left", "greeted": True}, refused)[-1]["renew"]


def test_a_stream_that_ended_with_its_token_comes_back_with_a_new_one() -> None:
    (step,) = decide({"kind": "bye", "reason": "expired", "waitMs": 2000, "greeted": True})
    assert step["renew"]


@pytest.mark.parametrize("status", [400, 402, 403, 404, 405, 410, 431])
def test_what_is_final_is_final(status: int) -> None:
    (step,) = decide({"kind": "status", "status": status, "code": "so", "detail": "because"})
    assert step["end"] == {"reason": "so", "status": status, "detail": "because"}


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_is_temporary_is_tried_again(status: int) -> None:
    (step,) = decide({"kind": "status", "status": status, "livedMs": 5})
    assert step["waitMs"] > 0


# Reading what is given


def test_ids_are_ordered_by_their_place() -> None:
    ids = ["e.99-5.1-t", "e.100-2.2-t", "e.100-10.3-t", "f.101-11", "3-f.102-12.4-t"]
    script = "const places = given.map(client.placeOf); return places.map(a => places.map(b => client.isAfter(a, b)))"
    assert run(script, ids) == [[row > column for column in range(5)] for row in range(5)]
    assert run("return given.map(client.placeOf)", ["", "now", "earliest", "e.1", "e.1-2.x", None]) == [None] * 6
    assert run("return given.map(id => client.placeOf(id).n)", ids) == [1, 2, 3, None, 4]


def test_topics_are_split_by_number_by_k_and_by_room() -> None:
    def split(count: int, k: int, room: int) -> list[int]:
        topics = [f"rounds/ROULETTE/{number:03}" for number in range(count)]  # 26 characters in a request
        groups: list[list[str]] = run("return client.splitTopics(given[0], given[1], given[2])", [topics, k, room])
        assert [topic for group in groups for topic in group] == topics
        return [len(group) for group in groups]

    assert split(100, 0, 8000) == [100]
    assert split(101, 10, 8000) == [100, 1]
    assert split(25, 100, 8000) == [10, 10, 5]
    assert split(30, 0, 260) == [10, 10, 10]
    assert split(2, 0, 5) == [1, 1], "each request has one topic, whatever the room"


def test_a_long_token_leaves_less_room_for_topics() -> None:
    assert run("return [0, 1000, 4096].map(client.roomFor)") == [5392, 4392, 1296]


def test_the_url_of_a_stream_says_what_to_read() -> None:
    own = topic()
    urls = {
        f"https://a.example/stream/{own}/v2/live?token=t&k=3&events=a,b": {
            "base": "https://a.example", "topics": [own], "version": "v2", "token": "t", "k": 3, "events": ["a", "b"],
        },
        f"https://a.example/edge/stream/v1/live?topic={own}&topic=a/b/c&cursor=earliest": {
            "base": "https://a.example/edge", "topics": [own, "a/b/c"], "version": "v1", "cursor": "earliest",
        },
        "https://a.example/stream/matches/live/7/v1/live?last_event_id=e.1-2&cursor=now": {
            "base": "https://a.example", "topics": ["matches/live/7"], "version": "v1", "cursor": "e.1-2",
        },
        "https://a.example/stream/a/b/x%3Ay/v1/poll": {"base": "https://a.example", "topics": ["a/b/x:y"], "version": "v1"},
        "https://a.example/stream/status": None,
    }  # fmt: skip
    assert run("return given.map(client.readUrl)", list(urls)) == list(urls.values())
