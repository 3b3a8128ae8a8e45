"""Pages over HTTP: what is in one, where it ends, how long it may be kept and by whom, and what hasn't changed.

All of it holds for the relay and for the polling function alike.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from fallback.page import Page, etag
from relay.cursor import Place
from relay.query import parse_read
from relay.span import Gap
from tests.asking import AUTH, Asker, asking, bearer, check_problem, start_poll, start_waiting_poll
from tests.protocol.world import Function
from tests.servers import Relay, token, topic
from tests.waiting import LIMIT_S

FOREIGN = "e0.5-6"
MIB = 1 << 20


class Reader(Asker):
    """Reads from one server, and publishes through another."""

    def __init__(self, url: str, publisher: Asker) -> None:
        super().__init__(url)
        self.publisher = publisher

    def ask(self, method: str, target: str, *, headers: Any = AUTH, content: Any = None) -> httpx.Response:
        if method == "POST":
            return self.publisher.ask(method, target, headers=headers, content=content)
        return super().ask(method, target, headers=headers)


@pytest.fixture(scope="module")
def relay_asker(relay: Relay) -> Iterator[Asker]:
    with Asker(relay.url) as asker:
        yield asker


@pytest.fixture(scope="module", params=["relay", "function"])
def asker(request: pytest.FixtureRequest, relay: Relay, relay_asker: Asker) -> Iterator[Asker]:
    """Asks both, one after the other."""
    url = relay.url if request.param == "relay" else request.getfixturevalue("function").url
    with Reader(url, relay_asker) as reader:
        yield reader


def public_topic() -> str:
    return topic().replace("tests/", "public/")


# What is in a page


def test_a_page_says_all_that_a_client_needs(asker: Asker) -> None:
    own = topic()
    ids = asker.publish(own, {"a": 1}, [2])
    page = asker.page(f"/stream/{own}/v1/poll?cursor=earliest")
    assert list(page) == ["events", "cursor", "more", "poll_after_ms", "resume", "gap"]
    assert [list(event) for event in page["events"]] == [["id", "topic", "n", "event", "ts", "data"]] * 2
    assert [event["id"] for event in page["events"]] == ids
    assert page["cursor"] == ids[-1]
    assert (page["more"], page["gap"]) == (False, None)
    assert 1000 <= page["poll_after_ms"] <= 30_000


def test_a_gap_is_one_object_or_a_list(asker: Asker) -> None:
    one, other = topic(), topic()
    asker.publish(one, 1)
    gap = asker.page(f"/stream/{one}/v1/poll?cursor={FOREIGN}")["gap"]
    assert set(gap) == {"topic", "lost", "first_n", "oldest"}
    assert (gap["topic"], gap["lost"]) == (one, None)
    gaps = asker.page(f"/stream/v1/poll?cursor={FOREIGN}&topic={one}&topic={other}")["gap"]
    assert sorted(gap["topic"] for gap in gaps) == sorted([one, other])


# Where a page ends: `more` says that there is more, and that it may be asked for at once


def pages(asker: Asker, target: str, most: int = 20) -> list[Any]:
    found = [asker.page(f"{target}&cursor=earliest")]
    while found[-1]["more"]:
        assert found[-1]["poll_after_ms"] == 0
        assert len(found) < most
        found.append(asker.page(f"{target}&cursor={found[-1]['cursor']}"))
    assert found[-1]["poll_after_ms"] >= 1000
    return found


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (6, [5])])
def test_a_page_ends_at_its_limit(asker: Asker, limit: int, sizes: list[int]) -> None:
    own = topic()
    asker.publish(own, *range(5))
    found = pages(asker, f"/stream/{own}/v1/poll?limit={limit}")
    assert [len(page["events"]) for page in found] == sizes
    assert [event["data"] for page in found for event in page["events"]] == list(range(5))


def test_a_page_has_100_events_unless_it_is_asked_for_others(asker: Asker) -> None:
    own = topic()
    asker.publish(own, *range(501))
    assert [len(page["events"]) for page in pages(asker, f"/stream/{own}/v1/poll?")] == [100] * 5 + [1]
    assert [len(page["events"]) for page in pages(asker, f"/stream/{own}/v1/poll?limit=500")] == [500, 1]


def test_a_page_ends_at_one_mib(asker: Asker) -> None:
    own = topic()
    for index in range(3):
        asker.publish(own, *(f"{index * 10 + number}:{'x' * 60_000}" for number in range(10)))
    target = f"/stream/{own}/v1/poll?limit=500"
    first = asker.get(f"{target}&cursor=earliest")
    assert 0.9 * MIB < len(first.content) < MIB + 1000
    found = pages(asker, target)
    assert len(found) == 2
    assert [int(event["data"].partition(":")[0]) for page in found for event in page["events"]] == list(range(30))


def test_a_page_ends_at_5000_entries_looked_at(asker: Asker) -> None:
    own = topic()
    for _ in range(6):
        asker.post("/stream/publish", [{"topic": own, "event": "hidden", "data": 1}] * 1000)
    asker.post(f"/stream/{own}", {"event": "wanted", "data": 2})
    target = f"/stream/{own}/v1/poll?events=wanted"
    found = pages(asker, target)
    assert [[event["data"] for event in page["events"]] for page in found] == [[], [2]]
    assert found[0]["resume"] == found[1]["resume"] == "exact"


def test_a_page_of_several_topics_is_in_the_logs_order(asker: Asker) -> None:
    one, other = topic(), topic()
    order = [one, other, one, one, other]
    asker.post("/stream/publish", [{"topic": own, "data": index} for index, own in enumerate(order)])
    found = pages(asker, f"/stream/v1/poll?limit=2&topic={one}&topic={other}")
    assert [(event["topic"], event["data"]) for page in found for event in page["events"]] == list(zip(order, range(5), strict=True))


# How long a page may be kept, and by whom

EVENTS, FULL, EMPTY = "public, max-age=1", "public, max-age=60", "no-cache"
PRIVATE, NEVER = "private, no-cache", "no-store"


@pytest.fixture(scope="module")
def kept(asker: Asker) -> dict[str, str]:
    """Names for the table: public topics with three events, ids of the first and last, and one topic that is not public."""
    own, other, closed = public_topic(), public_topic(), topic()
    ids = asker.publish(own, 0, 1, 2)
    asker.publish(other, 0)
    asker.publish(closed, 0)
    end = asker.page(f"/stream/{own}/v1/poll")["cursor"]
    return {"own": own, "other": other, "closed": closed, "first": ids[0], "last": end, "token": token()}


ONE, CLOSED, BOTH = "/stream/{own}/v1/poll?", "/stream/{closed}/v1/poll?", "/stream/v1/poll?topic={own}&topic={other}&"
KEPT: dict[str, tuple[str, dict[str, str], str]] = {
    "public, with events": (ONE + "cursor={first}", {}, EVENTS),
    "public, with more": (ONE + "cursor={first}&limit=1", {}, FULL),
    "public, empty": (ONE + "cursor={last}", {}, EMPTY),
    "public, all of it hidden": (ONE + "cursor={first}&events=other", {}, EMPTY),
    "several public topics": (BOTH + "cursor={first}", {}, EVENTS),
    "public, from the earliest place by its id": (ONE + "cursor=0.0-0", {}, EVENTS),
    "public, with other cookies": (ONE + "cursor={first}", {"cookie": "a=b"}, EVENTS),
    "public, with a token": (ONE + "cursor={first}", AUTH, PRIVATE),
    "public, with a token in the query": (ONE + "cursor={first}&token={token}", {}, PRIVATE),
    "public, with a token in a query that is encoded": (ONE + "cursor={first}&%74oken={token}", {}, PRIVATE),
    "public, with a cookie": (ONE + "cursor={first}", {"cookie": "relay_token={token}", "sec-fetch-site": "same-origin"}, PRIVATE),
    "public, with a cookie that doesn't count": (ONE + "cursor={first}", {"cookie": "__Host-relay_token={token}"}, PRIVATE),
    "public, from now": (ONE + "cursor=now", {}, PRIVATE),
    "public, from the earliest": (ONE + "cursor=earliest", {}, PRIVATE),
    "public, without a position": (ONE, {}, PRIVATE),
    "public, the newest": (ONE + "k=2", {}, PRIVATE),
    "public, with an id that is no cursor": (ONE + "last_event_id={first}", {}, PRIVATE),
    "public, with an id and a cursor": (ONE + "lastEventId={first}&cursor={first}", {}, PRIVATE),
    "public, after a reset": (ONE + f"cursor={FOREIGN}", {}, PRIVATE),
    "public, with a header": (ONE, {"last-event-id": "{first}"}, NEVER),
    "public, with a header and a cursor": (ONE + "cursor={first}", {"last-event-id": "{first}"}, NEVER),
    "public, with a header that is malformed": (ONE + "cursor={first}", {"last-event-id": "x"}, NEVER),
    "public, with an empty header": (ONE + "cursor={first}", {"last-event-id": ""}, EVENTS),
    "closed": (CLOSED + "cursor={first}", AUTH, PRIVATE),
    "closed, with more": (CLOSED + "cursor=0.0-0&limit=1", AUTH, PRIVATE),
    "closed, with a header": (CLOSED, {**AUTH, "last-event-id": "{first}"}, NEVER),
    "public and closed": (BOTH + "topic={closed}&cursor={first}", AUTH, PRIVATE),
}


@pytest.mark.parametrize(("target", "headers", "expected"), KEPT.values(), ids=KEPT)
def test_only_what_the_url_alone_says_may_be_shared(
    asker: Asker, kept: dict[str, str], target: str, headers: dict[str, str], expected: str
) -> None:
    answer = asker.get(target.format(**kept), headers={name: value.format(**kept) for name, value in headers.items()})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == expected
    assert answer.headers["vary"] == "Origin, Authorization, Cookie, Last-Event-ID, Accept-Encoding"
    assert answer.headers["etag"]


def test_a_page_that_may_be_kept_for_a_minute_says_to_go_on_at_once(asker: Asker, kept: dict[str, str]) -> None:
    page = asker.page((ONE + "cursor={first}&limit=1").format(**kept), headers={})
    assert (page["more"], page["poll_after_ms"], page["resume"]) == (True, 0, "exact")


# What hasn't changed


def test_a_page_that_has_not_changed_is_304(asker: Asker) -> None:
    own = topic()
    (id,) = asker.publish(own, 1)
    target = f"/stream/{own}/v1/poll?cursor={id}"
    first = asker.get(target)
    tag = first.headers["etag"]
    assert tag.startswith('"')
    assert tag.endswith('"')
    for sent in (tag, f"W/{tag}", f'"x", {tag}', f'"x",W/{tag}'):
        again = asker.get(target, headers={**AUTH, "if-none-match": sent})
        assert (again.status_code, again.content) == (304, b"")
        for name in ("etag", "cache-control", "vary"):
            assert again.headers[name] == first.headers[name]
    for other in ('"x"', tag.strip('"'), f'"{tag}"', ""):
        assert asker.get(target, headers={**AUTH, "if-none-match": other}).status_code == 200
    asker.publish(own, 2)
    changed = asker.get(target, headers={**AUTH, "if-none-match": tag})
    assert changed.status_code == 200
    assert [event["data"] for event in changed.json()["events"]] == [2]
    assert changed.headers["etag"] != tag


def test_what_is_asked_for_otherwise_has_another_tag(asker: Asker) -> None:
    one, other = topic(), topic()
    asker.publish(one, 1)
    targets = [
        f"/stream/{one}/v1/poll?cursor=earliest",
        f"/stream/{one}/v1/poll?cursor=earliest&limit=1",
        f"/stream/{one}/v1/poll?cursor=earliest&events=update",
        f"/stream/{one}/v1/poll?cursor=now",
        f"/stream/{one}/v1/poll?k=1",
        f"/stream/{other}/v1/poll?cursor=earliest",
        f"/stream/v1/poll?topic={one}&topic={other}&cursor=earliest",
    ]
    tags = [asker.get(target).headers["etag"] for target in targets]
    assert len(set(tags)) == len(targets)


def test_what_is_told_otherwise_has_another_tag() -> None:
    """Two clients with different numbers at one place are told that different numbers are missing, of the same events."""
    query = parse_read("v1", "a/b/t", b"cursor=earliest", "")
    places, page = {0: Place("e", 990, 20)}, Page([], {}, 9, False, "gap", [], 990, 1000)
    gaps = [[Gap("a/b/t", lost, 10, None, places[0], 9)] for lost in (None, 4, 5)]
    pages = [msgspec.structs.replace(page, places=places, gaps=told, more=more) for told in gaps for more in (False, True)]
    assert len({etag(query, each, "") for each in pages}) == len(pages)


def test_a_tag_is_compared_only_after_the_token(asker: Asker) -> None:
    own = topic()
    asker.publish(own, 1)
    target = f"/stream/{own}/v1/poll?cursor=earliest"
    tag = {"if-none-match": asker.get(target).headers["etag"]}
    assert asker.get(target, headers={**AUTH, **tag}).status_code == 304
    check_problem(asker.get(target, headers=tag), 401, "no_token")
    check_problem(asker.get(target, headers={**bearer(ttl_s=-60), **tag}), 401, "token_expired")
    check_problem(asker.get(target, headers={**bearer(status="inactive"), **tag}), 402, "not_subscribed")
    check_problem(asker.get(target, headers={**bearer(subscribe=[]), **tag}), 403, "topic_not_granted")
    assert asker.get(f"{target}&k=101", headers={**AUTH, **tag}).status_code == 400


# Waiting


def test_a_poll_that_waits_gets_what_comes(asker: Asker) -> None:
    own = topic()
    start = asker.page(f"/stream/{own}/v1/poll")["cursor"]
    target = f"/stream/{own}/v1/poll?cursor={start}&wait=25"
    poll, found = start_poll(asker, target)
    (id,) = asker.publish(own, 1)
    poll.join(LIMIT_S)
    (page,) = found
    if not page["events"]:  # its wait was over before
        page = asker.page(target)
    assert [event["id"] for event in page["events"]] == [id]
    assert (page["resume"], page["poll_after_ms"]) == ("exact", 0)


def test_a_poll_of_the_relay_is_counted_while_it_waits(relay_asker: Asker) -> None:
    own = topic()
    target = f"/stream/v1/poll?topic={own}&topic={topic()}&cursor=earliest&wait=25"
    poll, found = start_waiting_poll(relay_asker, target)
    (id,) = relay_asker.publish(own, 1)
    poll.join(LIMIT_S)
    (page,) = found
    if not page["events"]:  # its wait was over before
        page = relay_asker.page(target)
    assert [event["id"] for event in page["events"]] == [id]
    assert relay_asker.page("/stream/status")["waiting_polls"] == 0


def test_a_wait_that_is_over_is_an_empty_page_or_304(asker: Asker) -> None:
    own = topic()
    target = f"/stream/{own}/v1/poll?cursor={asker.page(f'/stream/{own}/v1/poll')['cursor']}"
    empty = asker.get(f"{target}&wait=0.05")
    assert (empty.json()["events"], empty.json()["more"], empty.json()["poll_after_ms"]) == ([], False, 0)
    again = asker.get(f"{target}&wait=0.05", headers={**AUTH, "if-none-match": empty.headers["etag"]})
    assert again.status_code == 304


def test_a_wait_goes_on_past_what_its_filter_hides(asker: Asker) -> None:
    own = topic()
    start = asker.page(f"/stream/{own}/v1/poll")["cursor"]
    asker.post("/stream/publish", [{"topic": own, "event": "hidden", "data": index} for index in range(3)])
    page = asker.page(f"/stream/{own}/v1/poll?cursor={start}&events=wanted&wait=0.05")
    assert (page["events"], page["resume"]) == ([], "exact")
    assert page["cursor"] == asker.page(f"/stream/{own}/v1/poll")["cursor"]


# The function alone

NOWHERE = ("/", "/stream/a/b/c/v1/live", "/stream/v1/live?topic=a/b/c", "/stream/status", "/metrics", "/healthz", "/readyz")


def test_the_function_has_pages_and_nothing_else(function: Function) -> None:
    poll = "/stream/a/b/c/v1/poll"
    with Asker(function.url) as asker:
        for target in NOWHERE:
            check_problem(asker.get(target), 404, "not_found")
        for target in ("/stream/a/b/c", "/stream/publish"):
            check_problem(asker.post(target, {"data": 1}), 404, "not_found")
        check_problem(asker.post(poll, {}), 405, "method_not_allowed")
        check_problem(asker.get(poll.replace("v1", "v9")), 404, "unknown_version")
        check_problem(asker.get("/stream/a/%2e%2e/c/v1/poll"), 400, "bad_topic")
        check_problem(asker.get(poll, headers={}), 401, "no_token")
        check_problem(asker.get(poll, headers={**AUTH, "origin": "https://evil.example"}), 403, "origin_refused")
        assert asker.page("/stream/matches/poll/7/v1/poll")["events"] == []


def test_a_function_whose_log_is_away_says_when_to_come_back(tmp_path: Path) -> None:
    with asking(Function(Relay(tmp_path, "valkey://127.0.0.1:1/0"))) as asker:
        for query in ("", "?wait=5", "?cursor=earliest"):
            check_problem(asker.get(f"/stream/a/b/c/v1/poll{query}"), 503, "unavailable")
