"""What a reader may ask for over HTTP: values, topics, paths, methods and positions at their bounds, through both doors."""

from typing import Any

import pytest

from tests.asking import AUTH, Asker, check_problem
from tests.servers import topic

DOORS = ("poll", "live")
CURSOR = "e0.5-6"


def topics(count: int) -> str:
    return "&".join(f"topic=tests/case/{number}" for number in range(count))


# Values. Every kind of mistake is in `test_query`; here the bounds, and that both doors keep to them.

GOOD = {
    "nothing": "",
    "k at its least": "k=0",
    "k at its most": "k=100",
    "k empty": "k=",
    "limit at its least": "limit=1",
    "limit at its most": "limit=500",
    "wait at its least": "wait=0",
    "event names": "events=update,a.b_c:d-e",
    "events empty": "events=",
    "heartbeat at its least": "heartbeat=5",
    "heartbeat at its most": "heartbeat=55",
    "now": "cursor=now",
    "earliest": "cursor=earliest",
    "an empty position": "cursor=&last_event_id=&lastEventId=&lastEventID=",
    "an empty token": "token=",
    "what nobody knows": "x=1&K=1e3",
}
BAD = {
    "k beyond": ("k=101", "bad_k"),
    "k below": ("k=-1", "bad_k"),
    "k with an exponent": ("k=1e3", "bad_k"),
    "k twice": ("k=1&k=2", "bad_query"),
    "limit below": ("limit=0", "bad_limit"),
    "limit beyond": ("limit=501", "bad_limit"),
    "wait just beyond": ("wait=25.1", "bad_wait"),
    "wait beyond": ("wait=26", "bad_wait"),
    "wait below": ("wait=-1", "bad_wait"),
    "wait in another script": ("wait=%D9%A3", "bad_wait"),
    "heartbeat below": ("heartbeat=4", "bad_heartbeat"),
    "heartbeat beyond": ("heartbeat=56", "bad_heartbeat"),
    "a bad event name": ("events=a%20b", "bad_events"),
    "a bad cursor": ("cursor=x", "bad_cursor"),
    "a bad last_event_id": ("last_event_id=x", "bad_cursor"),
    "a bad lastEventId": ("lastEventId=x", "bad_cursor"),
    "a bad lastEventID": ("lastEventID=x", "bad_cursor"),
    "a cursor too long": (f"cursor={'e' * 513}", "bad_cursor"),
    "a script": ("cursor=%3Cscript%3E%0a", "bad_cursor"),
    "no UTF-8": ("x=%ff", "bad_query"),
    "a token twice": ("token=a&token=b", "bad_query"),
}


@pytest.mark.parametrize("query", GOOD.values(), ids=GOOD)
def test_both_doors_take_a_value_within_its_bounds(asker: Asker, query: str) -> None:
    own = topic()
    page = asker.page(f"/stream/{own}/v1/poll?{query}")
    assert page["events"] == []
    with asker.live(f"/stream/{own}/v1/live?{query}") as stream:
        assert stream.next().name == "hello"


@pytest.mark.parametrize(("query", "code"), BAD.values(), ids=BAD)
def test_a_value_beyond_its_bound_is_refused(asker: Asker, query: str, code: str) -> None:
    headers = {} if "token" in query else AUTH
    of_pages = code in ("bad_limit", "bad_wait")  # a stream has neither
    for door in ("poll",) if of_pages else DOORS:
        check_problem(asker.get(f"/stream/tests/case/1/v1/{door}?{query}", headers=headers), 400, code)


@pytest.mark.parametrize("wait", ["0.05", "25"])
def test_a_wait_within_its_bounds_ends_when_something_comes(asker: Asker, wait: str) -> None:
    own = topic()
    asker.publish(own, 1)
    page = asker.page(f"/stream/{own}/v1/poll?cursor=earliest&wait={wait}")
    assert [event["data"] for event in page["events"]] == [1]
    assert page["poll_after_ms"] == 0


# Topics

SEVERAL = {
    "one": ("topic=a/b/c", 200, ""),
    "one, encoded": ("topic=a%2Fb%2Fc%3Ad", 200, ""),
    "the same twice": ("topic=a/b/c&topic=a/b/c", 200, ""),
    "100": (topics(100), 200, ""),
    "k × topics at its most": (f"k=10&{topics(100)}", 200, ""),
    "k × few topics at its most": (f"k=100&{topics(10)}", 200, ""),
    "none": ("", 400, "bad_topic"),
    "an empty one": ("topic=", 400, "bad_topic"),
    "one that is none": ("topic=a/b/c&topic=a/../c", 400, "bad_topic"),
    "101": (topics(101), 400, "bad_topic"),
    "k × topics beyond": (f"k=11&{topics(91)}", 400, "bad_k"),
    "k × few topics beyond": (f"k=100&{topics(11)}", 400, "bad_k"),
}


@pytest.mark.parametrize(("query", "status", "code"), SEVERAL.values(), ids=SEVERAL)
def test_a_request_names_up_to_100_topics_and_1000_events(asker: Asker, query: str, status: int, code: str) -> None:
    if status == 400:
        for door in DOORS:
            check_problem(asker.get(f"/stream/v1/{door}?{query}"), 400, code)
    else:
        assert asker.page(f"/stream/v1/poll?{query}")["resume"] == "new"
        with asker.live(f"/stream/v1/live?{query}") as stream:
            assert stream.next().json()["resume"] == "new"


def test_a_topic_without_events_is_empty_and_no_404(asker: Asker) -> None:
    page = asker.page(f"/stream/{topic()}/v1/poll?k=5")
    assert (page["events"], page["more"], page["resume"], page["gap"]) == ([], False, "new", None)


# Paths, through both doors: before and behind the topic

LONGEST = "x" * 128
PATHS = {
    "plain": ("a/b/c/v1", 200, ""),
    "every character": ("Az09/._:-/a.b_c:d-e/v1", 200, ""),
    "an encoded colon": ("a/b%3Ac/d/v1", 200, ""),
    "encoded letters": ("%61/b/c/%76%31", 200, ""),
    "parts of 128": (f"a/{LONGEST}/{LONGEST}/v1", 200, ""),
    "types with names of ours": ("stream/live/poll/v1", 200, ""),
    "a type of ours, encoded": ("status/p%6fll/live/v1", 200, ""),
    "a part of 129": (f"a/b/{LONGEST}x/v1", 400, "bad_topic"),
    "a dot": ("a/./c/v1", 400, "bad_topic"),
    "two dots": ("a/../c/v1", 400, "bad_topic"),
    "encoded dots": ("a/%2e%2e/c/v1", 400, "bad_topic"),
    "half-encoded dots": ("a/.%2E/c/v1", 400, "bad_topic"),
    "an encoded dot": ("a/b/%2e/v1", 400, "bad_topic"),
    "an encoded slash": ("a/b%2Fc/d/v1", 400, "bad_topic"),
    "a slash encoded in a shorter path": ("a/b%2fc/v1", 400, "bad_topic"),
    "a colon encoded twice": ("a/b%253Ac/d/v1", 400, "bad_path"),
    "a broken escape": ("a/b%zz/c/v1", 400, "bad_path"),
    "a space": ("a/b%20c/d/v1", 400, "bad_topic"),
    "a NUL": ("a/b%00/c/v1", 400, "bad_topic"),
    "no UTF-8": ("a/b%ff/c/v1", 400, "bad_topic"),
    "a star": ("a/*/c/v1", 400, "bad_topic"),
    "an unknown version": ("a/b/c/v9", 404, "unknown_version"),
    "a version in capitals": ("a/b/c/V1", 404, "unknown_version"),
    "a part too few": ("a/b/v1", 404, "not_found"),
    "a part too many": ("a/b/c/d/v1", 404, "not_found"),
    "an empty part": ("a//c/v1", 404, "not_found"),
}


@pytest.mark.parametrize(("path", "status", "code"), PATHS.values(), ids=PATHS)
def test_a_path_is_split_before_it_is_decoded(asker: Asker, path: str, status: int, code: str) -> None:
    if status == 200:
        assert asker.page(f"/stream/{path}/poll")["resume"] == "new"
        with asker.live(f"/stream/{path}/live") as stream:
            assert stream.next().name == "hello"
    else:
        for door in DOORS:
            check_problem(asker.get(f"/stream/{path}/{door}"), status, code)


@pytest.mark.parametrize("kind", ["live", "poll", "publish", "status", "v1"])
def test_a_type_may_be_any_word(asker: Asker, kind: str) -> None:
    own = topic().replace("case", kind)
    assert asker.post(f"/stream/{own}", {"data": kind}).status_code == 201
    assert asker.log(own) == [kind]


NOWHERE = [
    "/nothing",
    "/stream",
    "/stream/",
    "/stream/a",
    "/stream/v9/poll?topic=a/b/c",
    "/stream/v9/live?topic=a/b/c",
    "/.env",
    "/x" * 200,
]


@pytest.mark.parametrize("target", NOWHERE)
def test_an_unknown_path_is_404(asker: Asker, target: str) -> None:
    answer = asker.get(target)
    check_problem(answer, 404, answer.json()["code"])
    assert answer.json()["code"] in ("not_found", "unknown_version")


# Methods

METHODS = {
    "/stream/a/b/c/v1/live": "GET",
    "/stream/a/b/c/v1/poll": "GET",
    "/stream/v1/live?topic=a/b/c": "GET",
    "/stream/v1/poll?topic=a/b/c": "GET",
    "/stream/a/b/c": "POST",
    "/stream/publish": "POST",
    "/stream/status": "GET",
    "/healthz": "GET",
    "/readyz": "GET",
    "/metrics": "GET",
}


@pytest.mark.parametrize(("target", "right"), METHODS.items())
def test_another_method_is_405_and_told_the_right_one(asker: Asker, target: str, right: str) -> None:
    for method in {"HEAD", "GET", "POST", "PUT", "PATCH", "DELETE"} - {right}:
        answer = asker.ask(method, target)
        assert answer.status_code == 405
        allowed = {name.strip() for name in answer.headers["allow"].split(",")}
        assert right in allowed
        assert allowed <= {right, "OPTIONS"}
        if method == "HEAD":
            assert answer.content == b""
        else:
            check_problem(answer, 405, "method_not_allowed")


# Positions: what each kind means is in `tests/protocol`; here, where it is taken from


@pytest.fixture(scope="module")
def ids(asker: Asker) -> list[str]:
    """Three events, of which the first two cursors tell apart."""
    return asker.publish("positions/of/readers", 0, 1, 2)


# Query and header, with {0} and {1} for the first events' ids; then the verdict and the data that follows.
POSITIONS: dict[str, tuple[str, str, str, list[int]]] = {
    "none": ("", "", "new", []),
    "now": ("cursor=now", "", "new", []),
    "k": ("k=2", "", "new", [1, 2]),
    "cursor": ("cursor={0}", "", "exact", [1, 2]),
    "last_event_id": ("last_event_id={0}", "", "exact", [1, 2]),
    "lastEventId": ("lastEventId={0}", "", "exact", [1, 2]),
    "lastEventID": ("lastEventID={0}", "", "exact", [1, 2]),
    "the header": ("", "{0}", "exact", [1, 2]),
    "the header first": ("last_event_id={1}&lastEventId={1}&lastEventID={1}&cursor={1}", "{0}", "exact", [1, 2]),
    "last_event_id second": ("cursor={1}&lastEventId={1}&last_event_id={0}&lastEventID={1}", "", "exact", [1, 2]),
    "lastEventId third": ("cursor={1}&lastEventID={1}&lastEventId={0}", "", "exact", [1, 2]),
    "lastEventID fourth": ("cursor={1}&lastEventID={0}", "", "exact", [1, 2]),
    "empty is absent": ("last_event_id=&lastEventId=&lastEventID=&cursor={0}", "", "exact", [1, 2]),
    "a position beats k": ("k=3&cursor={1}", "", "exact", [2]),
    "a position in the header beats k": ("k=3", "{1}", "exact", [2]),
    "a foreign one": (f"cursor={CURSOR}", "", "reset", [0, 1, 2]),
    "a foreign id": (f"last_event_id={CURSOR}.3-abcd", "", "reset", [0, 1, 2]),
    "a foreign one in the header": ("", CURSOR, "reset", [0, 1, 2]),
    "a foreign one with k": (f"k=1&cursor={CURSOR}", "", "reset", [2]),
    "a malformed one in the header": ("", "x", "reset", [0, 1, 2]),
    "a malformed one in the header with k": ("k=2", "x", "reset", [1, 2]),
    "a malformed header, a good cursor": ("cursor={1}", "undefined", "reset", [0, 1, 2]),
    "a header that is no ASCII": ("", "é", "reset", [0, 1, 2]),
    "a header too long": ("", "e" * 513, "reset", [0, 1, 2]),
    "the number of another topic": ("cursor={0}x", "", "exact", [1, 2]),
}


@pytest.mark.parametrize(("query", "header", "resume", "data"), POSITIONS.values(), ids=POSITIONS)
def test_a_position_is_taken_from_where_it_is_found_first(
    asker: Asker, ids: list[str], query: str, header: str, resume: str, data: list[int]
) -> None:
    headers: Any = {**AUTH, **({"last-event-id": header.format(*ids).encode("latin-1")} if header else {})}
    page = asker.page(f"/stream/positions/of/readers/v1/poll?{query.format(*ids)}", headers=headers)
    assert page["resume"] == resume
    assert [event["data"] for event in page["events"]] == data
    assert (page["gap"] is not None) == (resume == "reset")
    with asker.live(f"/stream/positions/of/readers/v1/live?{query.format(*ids)}", headers=headers) as stream:
        hello = stream.next()
        assert hello.json()["resume"] == resume
        assert hello.last_event_id == hello.json()["cursor"]
        if resume == "reset":
            gap = stream.next()
            assert (gap.name, gap.json()["lost"]) == ("gap", None)
        assert [stream.next().json() for _ in data] == data


def test_every_id_that_was_given_resumes_behind_it(asker: Asker, ids: list[str]) -> None:
    for index, id in enumerate(ids):
        page = asker.page(f"/stream/positions/of/readers/v1/poll?cursor={id}")
        assert (page["resume"], [event["data"] for event in page["events"]]) == ("exact", list(range(index + 1, 3)))
