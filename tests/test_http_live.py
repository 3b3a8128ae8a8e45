"""Live streams over HTTP: how they begin, what keeps them alive, how they end, and how one is refused without ending an EventSource."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from relay.auth import LEEWAY_S
from tests.asking import AUTH, Asker, Live, asking, bearer, check_bye, check_problem
from tests.servers import Relay, Valkey, topic
from tests.streams import Block
from tests.waiting import LIMIT_S, wait_for

LIVE = "/stream/{}/v1/live"


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Asker]:
    """A relay whose streams live for a second, and which holds two."""
    env = {"RELAY_STREAM_MAX_SECONDS": "1", "RELAY_MAX_STREAMS": "2"}
    with asking(Relay(tmp_path_factory.mktemp("brief"), valkey.url, env)) as asker:
        yield asker


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Asker]:
    """A relay that holds three streams, of each subject two."""
    env = {"RELAY_MAX_STREAMS": "3", "RELAY_MAX_STREAMS_PER_SUB": "2", "RELAY_PUBLIC_TOPICS": "public/**"}
    with asking(Relay(tmp_path_factory.mktemp("narrow"), valkey.url, env)) as asker:
        yield asker


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Asker]:
    """A relay that begins one stream a second."""
    with asking(Relay(tmp_path_factory.mktemp("hasty"), valkey.url, {"RELAY_CONNECTS_PER_SECOND": "1"})) as asker:
        yield asker


def refusal(stream: Live, place: str = "") -> Block:
    """The only event of a stream that is refused: its id is the place that was asked for, if one was."""
    (bye,) = stream.rest()
    assert bye.name == "bye"
    assert bye.last_event_id == place
    assert b"hello" not in stream.text
    check_bye(stream, bye)
    return bye


# How a stream begins


def test_a_stream_has_the_headers_that_keep_it_moving(asker: Asker) -> None:
    with asker.live(LIVE.format(topic())) as stream:
        headers = stream.answer.headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert "content-length" not in headers


def test_hello_says_where_the_stream_goes_on(asker: Asker) -> None:
    own, before_s = topic(), time.time()
    headers = bearer(ttl_s=3600)
    with asker.live(LIVE.format(own), headers=headers) as stream:
        hello = stream.next()
        data, after_s = hello.json(), time.time()
        assert stream.text.startswith(b"retry: ")
        assert stream.parser.retry_ms
        assert 1000 <= stream.parser.retry_ms <= 10_000
        assert set(data) == {"cursor", "resume", "heartbeat_s", "time", "connection", "token_expires"}
        assert hello.name == "hello"
        assert data["cursor"] == hello.last_event_id
        page = asker.page(f"/stream/{own}/v1/poll?cursor={data['cursor']}")
        assert (page["resume"], page["events"]) == ("exact", [])
        assert (data["resume"], data["heartbeat_s"]) == ("new", 1)
        assert int(before_s * 1000) <= data["time"] <= after_s * 1000
        assert data["connection"].startswith("c-")
        assert int(before_s) + 3600 <= data["token_expires"] <= after_s + 3600


def test_each_stream_has_a_name_of_its_own(asker: Asker) -> None:
    names = set()
    for _ in range(3):
        with asker.live(LIVE.format(topic())) as stream:
            names.add(stream.next().json()["connection"])
    assert len(names) == 3


def test_an_event_comes_with_its_name_its_id_and_its_data_alone(asker: Asker) -> None:
    own = topic()
    with asker.live(LIVE.format(own)) as stream:
        stream.next()
        published = asker.post(f"/stream/{own}", {"event": "new_number", "data": {"value": 25}}).json()
        assert stream.next() == Block("new_number", '{"value": 25}', published["id"])


def test_on_several_topics_an_event_says_which_it_is_of(asker: Asker) -> None:
    one, other = topic(), topic()
    with asker.live(f"/stream/v1/live?topic={one}&topic={other}") as stream:
        stream.next()
        published = asker.post(f"/stream/{other}", {"event": "new_number", "data": {"value": 25}}).json()
        block = stream.next()
        data = block.json()
        assert block.name == "new_number"
        assert list(data) == ["id", "topic", "n", "ts", "data"]
        assert (data["id"], data["topic"], data["n"], data["data"]) == (published["id"], other, published["n"], {"value": 25})
        again = asker.page(f"/stream/v1/poll?topic={one}&topic={other}&cursor={block.last_event_id}")
        assert (again["resume"], again["events"]) == ("exact", [])


def test_the_newest_come_first_and_hello_is_before_them(asker: Asker) -> None:
    own = topic()
    ids = asker.publish(own, 0, 1, 2)
    with asker.live(f"{LIVE.format(own)}?k=2") as stream:
        hello, *events = [stream.next() for _ in range(3)]
        assert [block.last_event_id for block in events] == ids[1:]
    page = asker.page(f"/stream/{own}/v1/poll?cursor={hello.last_event_id}")
    assert (page["resume"], [event["id"] for event in page["events"]]) == ("exact", ids[1:])


def test_at_the_earliest_place_hello_is_before_everything(asker: Asker) -> None:
    own = topic()
    asker.publish(own, 0)
    with asker.live(f"{LIVE.format(own)}?cursor=earliest") as stream:
        assert stream.next().last_event_id == "0.0-0"
        assert stream.next().json() == 0


def test_a_filter_lets_its_names_through(asker: Asker) -> None:
    own = topic()
    with asker.live(f"{LIVE.format(own)}?events=wanted,other") as stream:
        stream.next()
        asker.post("/stream/publish", [{"topic": own, "event": name, "data": 1} for name in ("hidden", "wanted", "hidden", "other")])
        assert [stream.next().name for _ in range(2)] == ["wanted", "other"]


# What keeps it alive: the shared relay's heartbeat is a second


def test_a_client_may_say_how_often_it_wants_its_heartbeat(asker: Asker) -> None:
    with asker.live(LIVE.format(topic()) + "?heartbeat=25") as stream:
        assert stream.next().json()["heartbeat_s"] == 25


def test_a_quiet_stream_gets_a_comment(asker: Asker) -> None:
    with asker.live(LIVE.format(topic())) as stream:
        stream.next()
        stream.beats(1)


def test_a_stream_whose_filter_hid_events_gets_a_new_place_at_a_heartbeat(asker: Asker) -> None:
    own = topic()
    with asker.live(f"{LIVE.format(own)}?events=wanted") as stream:
        stream.next()
        (id,) = asker.publish(own, "hidden")
        sync = stream.next()
        assert sync.name == "sync"
        assert sync.last_event_id == sync.json()["cursor"] == id
        assert set(sync.json()) == {"cursor", "time"}


# How it ends


def test_a_stream_ends_with_its_token_and_the_leeway(asker: Asker) -> None:
    """A token that ended 28 s ago is good for 2 s more; the machine may need longer to begin a stream with one."""
    own = topic()
    for left_s in (2, 8, 32, 128):
        headers = bearer(ttl_s=left_s - LEEWAY_S)
        if asker.get(f"/stream/{own}/v1/poll", headers=headers).status_code == 401:
            continue
        with asker.client.stream("GET", LIVE.format(own), headers=headers) as answer:
            if answer.status_code == 401:
                continue
            stream = Live(answer)
            hello, bye = stream.rest()
            break
    assert hello.json()["token_expires"] + LEEWAY_S <= time.time()
    assert bye.json()["reason"] == "expired"
    assert bye.last_event_id == hello.last_event_id
    check_bye(stream, bye)


def test_a_stream_ends_at_its_longest_life_with_its_place(brief: Asker) -> None:
    """Which is its event's, if it lived to get it."""
    own, events = topic(), list[Block]()
    while not events:
        with brief.live(LIVE.format(own)) as stream:
            hello = stream.next()
            (id,) = brief.publish(own, 1)
            *events, bye = stream.rest()
        assert [event.json() for event in events] in ([], [1])
        assert (bye.name, bye.json()["reason"]) == ("bye", "max_age")
        assert bye.last_event_id == (id if events else hello.last_event_id)
        assert b"\nid: " + bye.last_event_id.encode() in stream.text.rpartition(b"event: bye")[2]
        check_bye(stream, bye)
    with brief.live(LIVE.format(own), headers={**AUTH, "last-event-id": bye.last_event_id}) as stream:
        assert stream.next().json()["resume"] == "exact"


# How one is refused: temporary, so a 200 that an EventSource survives


def test_a_stream_too_many_is_told_to_come_back(narrow: Asker) -> None:
    with ExitStack() as held:
        for sub in ("a", "b", "c"):
            stream = held.enter_context(narrow.live(LIVE.format(topic()), headers=bearer(sub)))
            assert stream.next().name == "hello"
        with narrow.live(LIVE.format(topic()), headers=bearer("d")) as stream:
            assert stream.answer.headers["content-type"] == "text/event-stream"
            assert refusal(stream).json()["reason"] == "busy"
        problem = check_problem(narrow.get(f"/stream/{topic()}/v1/poll?wait=5", headers=bearer("d")), 429, "too_many_streams")
        assert problem["title"]
        assert narrow.get(f"/stream/{topic()}/v1/poll", headers=bearer("d")).status_code == 200  # it holds nothing
        check_problem(narrow.get(LIVE.format(topic()), headers={}), 401, "no_token")  # what is final comes first
    wait_for_room(narrow)
    with narrow.live(LIVE.format(topic()), headers=bearer("d")) as stream:
        assert stream.next().name == "hello"


def wait_for_room(asker: Asker) -> None:
    """Until streams that were left have been taken down."""
    wait_for("all streams have ended", lambda: not asker.page("/stream/status")["connections"])


def test_one_subject_too_often_is_told_to_come_back_and_others_are_not(narrow: Asker) -> None:
    wait_for_room(narrow)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(narrow.live(LIVE.format(topic()), headers=bearer("a"))).next()
        with narrow.live(LIVE.format(topic()), headers=bearer("a")) as stream:
            assert refusal(stream).json()["reason"] == "busy"
        check_problem(narrow.get(f"/stream/{topic()}/v1/poll?wait=5", headers=bearer("a")), 429, "too_many_streams")
        with narrow.live(LIVE.format(topic()), headers=bearer("b")) as stream:
            assert stream.next().name == "hello"


def test_without_a_subject_the_address_counts(narrow: Asker) -> None:
    wait_for_room(narrow)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(narrow.live("/stream/public/a/b/v1/live", headers={})).next()
        with narrow.live("/stream/public/a/b/v1/live", headers={}) as stream:
            assert refusal(stream).json()["reason"] == "busy"


def test_a_crowd_beyond_what_begins_in_a_second_is_told_when_to_come(hasty: Asker) -> None:
    """How far apart these times are, `test_admission.py` shows, by a clock of its own."""

    def come(_: int) -> int:
        """In how many ms to come again; 0: it may stay."""
        with hasty.live(LIVE.format(topic())) as stream:
            block = stream.next()
            if block.name == "hello":
                return 0
            assert (block.name, block.json()["reason"]) == ("bye", "busy")
            assert stream.parser.retry_ms == block.json()["reconnect_ms"]
            return int(block.json()["reconnect_ms"])

    def poll(_: int) -> httpx.Response:
        return hasty.get(f"/stream/{topic()}/v1/poll?wait=1")

    told: list[int] = []
    refused: list[httpx.Response] = []
    with ThreadPoolExecutor(20) as crowd:
        while len(told) < 10:  # a machine that is slow lets more of them begin
            told += filter(None, crowd.map(come, range(20)))
        while not refused:
            refused += [answer for answer in crowd.map(poll, range(20)) if answer.status_code != 200]
    assert 1000 <= min(told) <= max(told) <= 60_000
    for problem in refused:
        check_problem(problem, 429, "too_many_connects")
        assert 1 <= int(problem.headers["retry-after"]) <= 60
    assert hasty.get(f"/stream/{topic()}/v1/poll").status_code == 200  # it begins nothing that lasts


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path / "valkey").start()
    yield server
    server.kill()


def test_while_the_log_is_away_streams_are_told_to_come_back_and_others_when(tmp_path: Path, own_valkey: Valkey) -> None:
    relay = Relay(tmp_path / "relay", own_valkey.url, {"RELAY_HEARTBEAT_SECONDS": "1"})
    own, other = topic(), topic()
    several = f"/stream/v1/live?topic={own}&topic={other}"
    with asking(relay) as asker:
        with asker.live(LIVE.format(own)) as held:
            held.next()
            (id,) = asker.publish(own, 1)
            held.next()
            own_valkey.kill()
            wait_for("the relay notices", lambda: asker.get("/readyz").json() == {"status": "ready", "valkey": "away"})
            one = LIVE.format(own)
            places = {
                one: "",
                LIVE.format(other): "",
                several: "",
                f"{several}&k=1": "",
                f"{one}?cursor=earliest": "0.0-0",
                f"{one}?cursor={id}": id,
            }
            for target, place in places.items():
                with asker.live(target) as stream:
                    assert refusal(stream, place).json()["reason"] == "unavailable"
            for answer in (
                asker.get(f"/stream/{own}/v1/poll"),
                asker.get(f"/stream/{own}/v1/poll?wait=5"),
                asker.post(f"/stream/{own}", {"data": 1}),
                asker.post("/stream/publish", [{"topic": own, "data": 1, "key": "k"}]),
            ):
                check_problem(answer, 503, "unavailable")
            check_problem(asker.get(LIVE.format(own), headers={}), 401, "no_token")
            check_problem(asker.get(f"{LIVE.format(own)}?k=101"), 400, "bad_k")
            assert asker.get("/healthz").status_code == 200
            assert asker.page("/stream/status")["valkey"] == "away"
            held.beats(1)  # an open stream stays, and waits for the log
            own_valkey.start()
            again = held.next()  # the new server has nothing of the old one's: the stream begins anew
            assert (again.name, again.json()["resume"]) == ("hello", "reset")
        assert asker.get("/readyz").json()["valkey"] == "here"
    assert "Traceback" not in relay.log()


@pytest.mark.parametrize("half", [False, True])
def test_a_client_that_leaves_is_noticed(narrow: Asker, half: bool) -> None:
    wait_for_room(narrow)
    url = narrow.client.base_url
    with socket.create_connection((url.host, url.port), LIMIT_S) as connection:
        lines = [f"GET {LIVE.format(topic())} HTTP/1.1", f"Host: {url.host}", f"Authorization: {AUTH['authorization']}", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        assert connection.recv(100)
        wait_for("it is counted", lambda: narrow.page("/stream/status")["connections"] == 1)
        if half:
            connection.shutdown(socket.SHUT_WR)
            wait_for_room(narrow)
    wait_for_room(narrow)
