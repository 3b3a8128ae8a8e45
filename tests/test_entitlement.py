"""Is the subscription active: the four forms, what open streams see of a change, and what is said when nobody can tell."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from relay.cli import main
from tests.asking import Asker, Live, asking, bearer, check_problem
from tests.protocol.world import Function
from tests.servers import Relay, Valkey, topic
from tests.test_revocation import POLL_S, all_of, answer_to_a_wait, ask_apart, end_of
from tests.waiting import LIMIT_S, in_time, wait_for

LIVE, POLL = "/stream/tests/case/1/v1/live", "/stream/tests/case/1/v1/poll"
Answers = dict[str, tuple[int, dict[str, str], bytes]]


class Service:
    """Subscriptions as an operator's own service answers them. It remembers who was asked for."""

    def __init__(self) -> None:
        self.answers: Answers = {}
        self.asked: list[str] = []
        self.hanging = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                sub = query["sub"][0]
                assert query["of"] == ["relay"]
                service.asked.append(sub)
                if sub == "hangs":
                    service.hanging.wait(LIMIT_S)
                status, headers, body = service.answers.get(sub, (404, {}, b"{}"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/subscription?of=relay"

    def says(self, sub: str, status: str | None, **more: object) -> None:
        self.answers[sub] = (200, {}, json.dumps({"status": status, **more}).encode())

    def close(self) -> None:
        self.hanging.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def by_valkey(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Asker]:
    """It looks at open streams so rarely that they hear of a change only by being told."""
    env = {"RELAY_SUBSCRIPTION": "valkey", "RELAY_SUBSCRIPTION_RECHECK_SECONDS": "3600", "RELAY_PUBLIC_TOPICS": "public/**"}
    with asking(Relay(tmp_path_factory.mktemp("valkey-form"), valkey.url, env)) as asker:
        yield asker


@pytest.fixture(scope="module")
def by_valkey_often(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Asker]:
    env = {"RELAY_SUBSCRIPTION": "valkey", "RELAY_SUBSCRIPTION_RECHECK_SECONDS": "1"}
    with asking(Relay(tmp_path_factory.mktemp("often"), valkey.url, env)) as asker:
        yield asker


@pytest.fixture(scope="module")
def http_relay(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey, service: Service) -> Relay:
    """What the service answers counts as long as may be."""
    env = {"RELAY_SUBSCRIPTION": "http", "RELAY_SUBSCRIPTION_URL": service.url, "RELAY_SUBSCRIPTION_RECHECK_SECONDS": "3600"}
    return Relay(tmp_path_factory.mktemp("http-form"), valkey.url, env)


@pytest.fixture(scope="module")
def by_http(http_relay: Relay) -> Iterator[Asker]:
    with asking(http_relay) as asker:
        yield asker


@pytest.fixture(scope="module")
def by_http_often(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey, service: Service) -> Iterator[Asker]:
    env = {"RELAY_SUBSCRIPTION": "http", "RELAY_SUBSCRIPTION_URL": service.url, "RELAY_SUBSCRIPTION_RECHECK_SECONDS": "1"}
    with asking(Relay(tmp_path_factory.mktemp("http-often"), valkey.url, env)) as asker:
        yield asker


def write(valkey: Valkey, sub: str, **fields: object) -> None:
    """By hand."""
    valkey.ask("HSET", f"relay:subscription:{sub}", *(part for pair in fields.items() for part in pair))


def command(monkeypatch: pytest.MonkeyPatch, valkey: Valkey, *arguments: str) -> None:
    monkeypatch.setenv("RELAY_VALKEY_URL", valkey.url)
    monkeypatch.setenv("RELAY_VALKEY_SECONDS", str(LIMIT_S))
    monkeypatch.setenv("RELAY_SUBSCRIPTION", "valkey")
    with pytest.raises(SystemExit) as caught:
        main(["subscription", *arguments])
    assert caught.value.code == 0


# By the token


def test_a_stream_ends_when_the_claimed_subscription_does(asker: Asker) -> None:
    def look(life_s: float) -> bool:
        until = time.time() + life_s
        headers = bearer("claims", subscription={"status": "active", "until": until})
        blocks = all_of(asker, LIVE, headers)
        if [block.name for block in blocks[:1]] != ["hello"]:
            return False
        assert blocks[0].json()["token_expires"] > until + 1000
        assert blocks[-1].json()["reason"] == "expired"
        assert time.time() >= until
        check_problem(asker.get(LIVE, headers=headers), 402, "not_subscribed")
        return True

    in_time(look)


# By Valkey

# What the hash holds, and whether that is a subscription.
HASHES: dict[str, tuple[dict[str, object], bool]] = {
    "nothing": ({}, False),
    "active": ({"status": "active"}, True),
    "active, until later": ({"status": "active", "until": 4102444800}, True),
    "active, with an empty end": ({"status": "active", "until": ""}, True),
    "over": ({"status": "active", "until": 1000}, False),
    "inactive": ({"status": "inactive"}, False),
    "in other letters": ({"status": "Active"}, False),
    "an end alone": ({"until": 4102444800}, False),
    "an end that is none": ({"status": "active", "until": "tomorrow"}, False),
    "an end that never comes": ({"status": "active", "until": "inf"}, False),
    "no number": ({"status": "active", "until": "nan"}, False),
    "no text": ({"status": b"\xff"}, False),
}


@pytest.mark.parametrize("case", HASHES)
def test_a_hash_is_a_subscription_or_not(by_valkey: Asker, valkey: Valkey, case: str) -> None:
    fields, active = HASHES[case]
    sub = f"hash of {case}"
    if fields:
        write(valkey, sub, **fields)
    headers = bearer(sub, status="inactive" if active else "active")  # what the token claims is none of its business
    if active:
        assert by_valkey.get(POLL, headers=headers).status_code == 200
        with by_valkey.live(LIVE, headers=headers) as stream:
            assert stream.next().name == "hello"
    else:
        check_problem(by_valkey.get(POLL, headers=headers), 402, "not_subscribed")
        check_problem(by_valkey.get(LIVE, headers=headers), 402, "not_subscribed")


def test_neither_publishing_nor_public_topics_need_a_subscription(by_valkey: Asker) -> None:
    assert by_valkey.get("/stream/public/a/b/v1/poll", headers=bearer("without")).status_code == 200
    by_valkey.publish(topic(), 1)


def test_a_subscription_set_by_the_command_is_seen_at_once(by_valkey: Asker, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = bearer("quick")
    check_problem(by_valkey.get(POLL, headers=headers), 402, "not_subscribed")
    command(monkeypatch, valkey, "set", "quick", "--status", "active")

    with by_valkey.live(LIVE, headers=headers) as stream:
        assert stream.next().name == "hello"
        command(monkeypatch, valkey, "set", "quick", "--status", "past_due")
        assert end_of(stream) == "revoked"
    command(monkeypatch, valkey, "set", "quick", "--status", "active")
    waited = answer_to_a_wait(
        lambda: ask_apart(by_valkey, f"{POLL}?wait={POLL_S}", headers),
        lambda: by_valkey.page("/stream/status", headers={})["waiting_polls"] == 1,
        lambda: command(monkeypatch, valkey, "set", "quick", "--status", "past_due"),
        lambda: command(monkeypatch, valkey, "set", "quick", "--status", "active"),
    )
    check_problem(waited, 402, "not_subscribed")
    check_problem(by_valkey.get(LIVE, headers=headers), 402, "not_subscribed")


def test_who_else_has_a_stream_keeps_it(by_valkey: Asker, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    write(valkey, "stays", status="active")
    name = topic()
    with by_valkey.live(f"/stream/{name}/v1/live", headers=bearer("stays")) as stream:
        assert stream.next().name == "hello"
        command(monkeypatch, valkey, "set", "goes", "--status", "inactive")
        command(monkeypatch, valkey, "set", "stays", "--status", "active")
        by_valkey.client.post(f"/stream/{name}", headers=bearer("publisher"), json={"data": 1})
        assert stream.next().data == "1"


def test_a_change_by_hand_is_seen_within_the_recheck(by_valkey_often: Asker, valkey: Valkey) -> None:
    write(valkey, "slow", status="active")
    with by_valkey_often.live(LIVE, headers=bearer("slow")) as stream:
        assert stream.next().name == "hello"
        valkey.ask("DEL", "relay:subscription:slow")
        assert end_of(stream) == "revoked"


def test_an_end_that_is_set_while_a_stream_is_open_ends_it_then(by_valkey_often: Asker, valkey: Valkey) -> None:
    write(valkey, "ending", status="active")
    with by_valkey_often.live(LIVE, headers=bearer("ending")) as stream:
        assert stream.next().name == "hello"
        write(valkey, "ending", until=time.time() + 1.5)
        assert end_of(stream) in ("expired", "revoked")  # the end itself, or a look right behind it
        assert time.time() >= float(valkey.ask("HGET", "relay:subscription:ending", "until")) - 0.1


# By a service

UNDECIDED: dict[str, tuple[int, dict[str, str], bytes]] = {
    "fails": (500, {}, b"{}"),
    "knows no such path": (404, {}, b"{}"),
    "redirects": (302, {"location": "/subscription?of=relay&sub=payer"}, b""),
    "lies": (200, {"content-type": "text/html"}, b"<html>sorry</html>"),
    "says nothing": (200, {}, b""),
    "says too much": (200, {}, b'{"status":"active","x":"' + b"x" * 70_000 + b'"}'),
    "forgets the status": (200, {}, b'{"active":true}'),
    "has another end": (200, {}, b'{"status":"active","until":"tomorrow"}'),
    "has a list": (200, {}, b'["active"]'),
    "compresses": (200, {"content-encoding": "gzip"}, b"\x1f\x8b"),
}


def answered(asker: Asker, sub: str) -> httpx.Response:
    """What a page is answered once the service was asked in time: its answer counts only if it comes within two seconds."""
    answer = asker.get(POLL, headers=bearer(sub))
    while answer.status_code == 503:
        answer = asker.get(POLL, headers=bearer(sub))
    return answer


@contextmanager
def greeted(asker: Asker, target: str, sub: str) -> Iterator[Live]:
    """A stream behind its hello, for which the service was asked in time."""
    while True:
        with asker.live(target, headers=bearer(sub)) as stream:
            if stream.next().name == "hello":
                yield stream
                return


def is_told_to_come_back(asker: Asker, headers: dict[str, str]) -> None:
    """Nobody can tell now: that is never final."""
    check_problem(asker.get(POLL, headers=headers), 503, "unavailable")
    with asker.live(LIVE, headers=headers) as stream:
        assert end_of(stream) == "unavailable"
        assert len(stream.parser.last_event_id) == 0


@pytest.mark.parametrize("case", UNDECIDED)
def test_a_service_that_says_nothing_sensible_decides_nothing(by_http: Asker, service: Service, case: str) -> None:
    service.says("payer", "active")
    service.answers[case] = UNDECIDED[case]
    is_told_to_come_back(by_http, bearer(case))


def test_a_service_that_hangs_or_is_away_decides_nothing(by_http: Asker, service: Service, tmp_path: Path, valkey: Valkey) -> None:
    check_problem(by_http.get(POLL, headers=bearer("hangs")), 503, "unavailable")
    assert not service.hanging.is_set()
    service.says("payer", "active")
    assert answered(by_http, "payer").status_code == 200
    env = {"RELAY_SUBSCRIPTION": "http", "RELAY_SUBSCRIPTION_URL": "http://127.0.0.1:1/?key=secret-of-billing"}
    relay = Relay(tmp_path, valkey.url, env)
    with asking(relay) as asker:
        is_told_to_come_back(asker, bearer("payer"))
        assert "RELAY_SUBSCRIPTION_URL" in relay.log()
        assert "secret-of-billing" not in relay.log()


def test_a_service_says_who_has_a_subscription(by_http: Asker, service: Service) -> None:
    cases: list[tuple[str, str | None, dict[str, object], int]] = [
        ("pays & stays/ö", "active", {}, 200),
        ("paid", "active", {"until": time.time() + 3600, "plan": "gold"}, 200),
        ("has paid", "active", {"until": 1000}, 402),
        ("cancelled", "cancelled", {}, 402),
        ("unknown", None, {}, 402),
    ]
    for sub, status, more, expected in cases:
        service.says(sub, status, **more)
        assert answered(by_http, sub).status_code == expected
        assert service.asked[-1] == sub


def test_a_service_is_spared_by_those_who_pay_and_asked_again_by_those_who_do_not(by_http: Asker, service: Service) -> None:
    service.says("often", "active")
    assert answered(by_http, "often").status_code == 200
    asked = service.asked.count("often")
    for _ in range(5):
        assert by_http.get(POLL, headers=bearer("often")).status_code == 200
    assert service.asked.count("often") == asked
    service.says("late", "unpaid")
    check_problem(answered(by_http, "late"), 402, "not_subscribed")
    service.says("late", "active")
    assert answered(by_http, "late").status_code == 200


def test_open_streams_go_on_while_nobody_can_tell_and_end_when_it_is_told(by_http_often: Asker, service: Service) -> None:
    service.says("open", "active")
    name = topic()
    with greeted(by_http_often, f"/stream/{name}/v1/live", "open") as stream:
        service.answers["open"] = UNDECIDED["fails"]
        asked = service.asked.count("open")
        wait_for("it is asked three times", lambda: service.asked.count("open") >= asked + 3)
        by_http_often.client.post(f"/stream/{name}", headers=bearer("publisher"), json={"data": 1})
        assert stream.next().data == "1"
        service.says("open", "unpaid")
        assert end_of(stream) == "revoked"


def test_the_polling_function_asks_the_same(http_relay: Relay, service: Service, valkey: Valkey, tmp_path: Path) -> None:
    service.says("function", "active")
    service.answers["broken"] = UNDECIDED["fails"]
    with asking(Function(http_relay)) as function:
        assert answered(function, "function").status_code == 200
        check_problem(function.get(POLL, headers=bearer("broken")), 503, "unavailable")
    settings = Relay(tmp_path, valkey.url, {"RELAY_SUBSCRIPTION": "valkey"})
    write(valkey, "polls", status="active")
    with asking(Function(settings)) as function:
        assert function.get(POLL, headers=bearer("polls")).status_code == 200
        valkey.ask("DEL", "relay:subscription:polls")
        check_problem(function.get(POLL, headers=bearer("polls")), 402, "not_subscribed")
