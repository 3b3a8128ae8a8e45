"""Tokens over HTTP: who may do what, by which carrier, from which origin, in which order refusals come; and where no token is."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.asking import AUTH, JSON, Asker, asking, bearer, check_problem
from tests.servers import Relay, Valkey, token, topic

POLL = "/stream/tests/case/1/v1/poll"
LIVE = "/stream/tests/case/1/v1/live"
PUBLIC = "/stream/public/case/1/v1/poll"
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}
APP = "https://app.example.com"


@pytest.fixture(scope="module")
def strict_asker(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Asker]:
    """A relay whose operator has said more."""
    env = {
        "RELAY_ALLOWED_ORIGINS": f"{APP}, http://localhost:3000",
        "RELAY_QUERY_TOKEN": "off",
        "RELAY_JWT_AUDIENCE": "relay",
        "RELAY_JWT_ISSUER": "https://id.example.com",
        "RELAY_JWT_GRANTS_CLAIM": "/app/relay",
        "RELAY_SUBSCRIPTION": "off",
        "RELAY_LOG_FORMAT": "json",
    }
    with asking(Relay(tmp_path_factory.mktemp("strict"), valkey.url, env)) as asker:
        yield asker


def own_origin(asker: Asker) -> dict[str, str]:
    return {"origin": str(asker.client.base_url).rstrip("/")}


# The order: 400, 401, 402, 403

FOREIGN = {"origin": "https://evil.example"}
INACTIVE = bearer(subscribe=[], status="inactive")
ORDER: dict[str, tuple[str, dict[str, str], int, str]] = {
    "all is wrong": ("?k=101", {**FOREIGN, "authorization": "Bearer x"}, 400, "bad_k"),
    "a bad value and no token": ("?limit=0", {}, 400, "bad_limit"),
    "a bad cursor and no subscription": ("?cursor=x", INACTIVE, 400, "bad_cursor"),
    "no token, of a foreign origin": ("", FOREIGN, 401, "no_token"),
    "a bad token, of a foreign origin": ("", {**FOREIGN, "authorization": "Bearer x"}, 401, "bad_token"),
    "a token that has ended, and no subscription": ("", bearer(ttl_s=-60, status="inactive"), 401, "token_expired"),
    "no subscription, no grant, of a foreign origin": ("", {**INACTIVE, **FOREIGN}, 402, "not_subscribed"),
    "no subscription": ("", bearer(status="inactive"), 402, "not_subscribed"),
    "a subscription that is over": ("", bearer(subscription={"status": "active", "until": 1}), 402, "not_subscribed"),
    "no subscription claim": ("", bearer(subscription=None), 402, "not_subscribed"),
    "no grant, of a foreign origin": ("", {**bearer(subscribe=["a/**"]), **FOREIGN}, 403, "topic_not_granted"),
    "no grant": ("", bearer(subscribe=["tests/case/2", "tests/**/1", "*"]), 403, "topic_not_granted"),
    "a grant to publish": ("", bearer(subscribe=[], publish=["**"]), 403, "topic_not_granted"),
    "a foreign origin": ("", {**AUTH, **FOREIGN}, 403, "origin_refused"),
}


@pytest.mark.parametrize("path", [POLL, LIVE])
@pytest.mark.parametrize(("query", "headers", "status", "code"), ORDER.values(), ids=ORDER)
def test_what_is_wrong_is_told_in_one_order(asker: Asker, path: str, query: str, headers: dict[str, str], status: int, code: str) -> None:
    check_problem(asker.get(path + query, headers=headers), status, code)


def test_the_topic_that_is_not_granted_is_named(asker: Asker) -> None:
    headers = bearer(subscribe=["a/b/c"])
    answer = asker.get("/stream/v1/live?topic=a/b/c&topic=tests/case/9", headers=headers)
    assert "tests/case/9" in check_problem(answer, 403, "topic_not_granted")["detail"]
    assert asker.page("/stream/v1/poll?topic=a/b/c", headers=headers)["resume"] == "new"


# Tokens

TOKENS: dict[str, tuple[str, int]] = {
    "a good one": (token(), 200),
    "of another secret": (token(secret="x" * 40), 401),
    "without an end": (token(exp=None), 401),
    "with an end that is a text": (token(exp=str(int(time.time()) + 60)), 401),
    "that ends too late": (token(ttl_s=31 * 86400), 401),
    "that holds 30 days": (token(ttl_s=30 * 86400), 200),
    "without a subject": (token(sub=None), 401),  # type: ignore[arg-type]
    "with an empty subject": (token(""), 401),
    "not valid yet": (token(nbf=int(time.time()) + 86400), 401),
    "rubbish": ("x.y.z", 401),
    "a subject that forges lines": (token("a\n[STREAM] ERROR forged\r\n"), 200),
    "whose patterns are none": (token(relay={"subscribe": "**"}), 403),
}


@pytest.mark.parametrize(("text", "status"), TOKENS.values(), ids=TOKENS)
def test_a_token_holds_or_not(asker: Asker, text: str, status: int) -> None:
    for answer in (asker.get(POLL, headers={"authorization": f"Bearer {text}"}), asker.get(f"{POLL}?token={text}", headers={})):
        assert answer.status_code == status
        assert text not in answer.text


def test_a_token_has_4096_bytes_at_most(asker: Asker) -> None:
    made = sorted((token(pad="x" * size) for size in range(2840, 2880)), key=len)
    fits = [text for text in made if len(text) <= 4096][-1]
    beyond = made[made.index(fits) + 1]
    assert (len(fits), len(beyond)) == (4096, 4097)
    assert asker.get(POLL, headers={"authorization": f"Bearer {fits}"}).status_code == 200
    assert asker.get(f"{POLL}?token={fits}", headers={}).status_code == 200
    for answer in (
        asker.get(POLL, headers={"authorization": f"Bearer {beyond}"}),
        asker.get(f"{POLL}?token={beyond}", headers={}),
        asker.get(POLL, headers={"authorization": f"Bearer {'x' * 4097}"}),
    ):
        assert "4096" in check_problem(answer, 401, "bad_token")["detail"]


def test_a_relay_checks_what_its_operator_set(strict_asker: Asker) -> None:
    good: dict[str, Any] = {"iss": "https://id.example.com", "aud": "relay", "app": {"relay": {"subscribe": ["**"]}}}
    assert strict_asker.get(POLL, headers=bearer(status="inactive", **good)).status_code == 200  # subscriptions are off
    check_problem(strict_asker.get(POLL, headers=bearer(**{**good, "aud": "other"})), 401, "bad_token")
    check_problem(strict_asker.get(POLL, headers=bearer(**{**good, "iss": "https://evil.example"})), 401, "bad_token")
    check_problem(strict_asker.get(POLL, headers=bearer(**{**good, "app": {}})), 403, "topic_not_granted")
    answer = strict_asker.get(f"{POLL}?token={token(**good)}", headers={})
    assert "Authorization" in check_problem(answer, 401, "bad_token")["detail"]


# Carriers

GOOD, BAD = token(), "x.y.z"
CARRIERS: dict[str, tuple[str, dict[str, str], int]] = {
    "a header": ("", {"authorization": f"Bearer {GOOD}"}, 200),
    "the query": (f"?token={GOOD}", {}, 200),
    "a cookie of the host": ("", {"cookie": f"__Host-relay_token={GOOD}", **SAME_ORIGIN}, 200),
    "a cookie": ("", {"cookie": f"relay_token={GOOD}", **SAME_ORIGIN}, 200),
    "a cookie behind an odd one": ("", {"cookie": f'a={{"b":"c d"}}; relay_token={GOOD}', **SAME_ORIGIN}, 200),
    "a good header before a bad query": (f"?token={BAD}", {"authorization": f"Bearer {GOOD}"}, 200),
    "a bad header before a good query": (f"?token={GOOD}", {"authorization": f"Bearer {BAD}"}, 401),
    "a good query before a bad cookie": (f"?token={GOOD}", {"cookie": f"relay_token={BAD}", **SAME_ORIGIN}, 200),
    "a bad query before a good cookie": (f"?token={BAD}", {"cookie": f"relay_token={GOOD}", **SAME_ORIGIN}, 401),
    "a cookie from nowhere": ("", {"cookie": f"relay_token={GOOD}"}, 401),
    "a cookie of another site": ("", {"cookie": f"relay_token={GOOD}", "sec-fetch-site": "cross-site"}, 401),
    "a cookie of the same site": ("", {"cookie": f"relay_token={GOOD}", "sec-fetch-site": "same-site"}, 401),
    "a cookie of a foreign origin": ("", {"cookie": f"relay_token={GOOD}", **FOREIGN, **SAME_ORIGIN}, 401),
    "a cookie of a null origin": ("", {"cookie": f"relay_token={GOOD}", "origin": "null", **SAME_ORIGIN}, 401),
}


@pytest.mark.parametrize("path", [POLL, LIVE])
@pytest.mark.parametrize(("query", "headers", "status"), CARRIERS.values(), ids=CARRIERS)
def test_the_first_carrier_that_has_a_token_counts(asker: Asker, path: str, query: str, headers: dict[str, str], status: int) -> None:
    if path == LIVE and status == 200:
        with asker.live(path + query, headers=headers) as stream:
            assert stream.next().name == "hello"
    else:
        assert asker.get(path + query, headers=headers).status_code == status


def test_a_cookie_of_an_allowed_origin_counts(asker: Asker) -> None:
    assert asker.get(POLL, headers={"cookie": f"relay_token={GOOD}", **own_origin(asker)}).status_code == 200


@pytest.mark.parametrize(("target", "value"), [("/stream/tests/case/1", {"data": 1}), ("/stream/publish", [])])
def test_publishing_takes_the_header_alone(asker: Asker, target: str, value: object) -> None:
    content = b'{"data":1}' if isinstance(value, dict) else b"[]"
    cookie = {**JSON, "cookie": f"__Host-relay_token={GOOD}; relay_token={GOOD}"}
    for headers in ({**cookie, **SAME_ORIGIN}, {**cookie, **own_origin(asker)}):
        check_problem(asker.ask("POST", f"{target}?token={GOOD}", headers=headers, content=content), 401, "no_token")


# Public topics


def test_public_topics_need_no_token_but_a_bad_one_is_refused(asker: Asker) -> None:
    assert asker.get(PUBLIC, headers={}).status_code == 200
    assert asker.get(PUBLIC, headers=bearer(subscribe=[], status="inactive")).status_code == 200
    with asker.live("/stream/public/case/1/v1/live", headers={}) as stream:
        assert stream.next().json()["token_expires"] is None
    for target, headers in ((PUBLIC, {"authorization": f"Bearer {BAD}"}), (f"{PUBLIC}?token={BAD}", {}), (PUBLIC, bearer(ttl_s=-60))):
        answer = asker.get(target, headers=headers)
        check_problem(answer, 401, answer.json()["code"])
    check_problem(asker.get("/stream/v1/poll?topic=public/case/1&topic=tests/case/1", headers={}), 401, "no_token")
    check_problem(asker.ask("POST", "/stream/public/case/1", headers=JSON, content=b'{"data":1}'), 401, "no_token")
    check_problem(asker.get(PUBLIC, headers=FOREIGN), 403, "origin_refused")


# Origins


def test_the_own_origin_is_allowed_and_told_so(asker: Asker) -> None:
    origin = own_origin(asker)
    answer = asker.get(POLL, headers={**AUTH, **origin})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin["origin"]
    assert answer.headers["access-control-allow-credentials"] == "true"
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert {"etag", "retry-after"} <= exposed
    with asker.live(LIVE, headers={**AUTH, **origin}) as stream:
        assert stream.answer.headers["access-control-allow-origin"] == origin["origin"]


def test_an_allowed_origin_can_read_what_went_wrong(asker: Asker) -> None:
    origin = own_origin(asker)
    for target, status in ((POLL, 401), (f"{POLL}?k=101", 400), ("/nothing", 404), ("/stream/a/b%2Fc/d/v1/poll", 400)):
        answer = asker.get(target, headers=origin)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == origin["origin"]


REFUSED = {
    "foreign": "https://evil.example",
    "null": "null",
    "another port": "http://127.0.0.1:1",
    "another spelling": "http://localhost",
    "a broken one": "http://[",
    "no origin": "x",
    "a list": "https://evil.example http://127.0.0.1",
}


@pytest.mark.parametrize("origin", REFUSED.values(), ids=REFUSED)
def test_a_foreign_origin_is_refused_at_every_door(asker: Asker, origin: str) -> None:
    headers = {**AUTH, "origin": origin}
    answers = [
        asker.get(POLL, headers=headers),
        asker.get(LIVE, headers=headers),
        asker.post("/stream/tests/case/1", {"data": 1}, headers={**JSON, **headers}),
        asker.post("/stream/publish", [], headers={**JSON, **headers}),
    ]
    for answer in answers:
        check_problem(answer, 403, "origin_refused")
        assert "access-control-allow-origin" not in answer.headers
        assert "evil" not in answer.text


def test_a_refusal_logs_the_origin_and_the_setting(asker: Asker, relay: Relay) -> None:
    asker.get(POLL, headers={**AUTH, "origin": "https://forgotten.example"})
    (line,) = [line for line in relay.log().splitlines() if "forgotten.example" in line]
    assert "RELAY_ALLOWED_ORIGINS" in line


ALLOWED = {APP: True, "http://localhost:3000": True, "http://app.example.com": False, f"{APP}:443": False, "null": False}


@pytest.mark.parametrize(("origin", "allowed"), ALLOWED.items())
def test_allowed_origins_are_exact(strict_asker: Asker, origin: str, allowed: bool) -> None:
    answer = strict_asker.get("/stream/status", headers={"origin": origin})
    assert answer.status_code == (200 if allowed else 403)
    assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)


def test_where_origins_are_set_the_host_is_none_of_them(strict_asker: Asker) -> None:
    check_problem(strict_asker.get("/stream/status", headers=own_origin(strict_asker)), 403, "origin_refused")


PREFLIGHTS = [POLL, LIVE, "/stream/v1/live?topic=a/b/c", "/stream/tests/case/1", "/stream/publish", "/nothing"]


@pytest.mark.parametrize("target", PREFLIGHTS)
def test_a_preflight_needs_no_token(strict_asker: Asker, target: str) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,idempotency-key"}
    answer = strict_asker.ask("OPTIONS", target, headers={**asked, "origin": APP})
    assert answer.status_code == 204
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["access-control-allow-origin"] == APP
    assert {name.strip() for name in answer.headers["access-control-allow-methods"].split(",")} >= {"GET", "POST"}
    names = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert names >= {"authorization", "content-type", "last-event-id", "if-none-match", "idempotency-key"}


def test_a_preflight_of_a_foreign_origin_allows_nothing(strict_asker: Asker) -> None:
    for origin in ("https://evil.example", "null", "http://["):
        answer = strict_asker.ask("OPTIONS", POLL, headers={"access-control-request-method": "GET", "origin": origin})
        assert not [name for name in answer.headers if name.startswith("access-control-allow")]


# Where no token is


def test_no_token_is_in_any_log_line(tmp_path: Path, valkey: Valkey) -> None:
    relay = Relay(tmp_path, valkey.url)
    tokens = [token(f"sub-{index}") for index in range(4)] + [token("bad", secret="y" * 40), token("old", ttl_s=-60)]
    with asking(relay) as asker:
        for text in tokens:
            for target in (POLL, LIVE.replace("live", "nothing"), f"{POLL}?k=101"):
                asker.get(f"{target}{'&' if '?' in target else '?'}token={text}", headers={})
                asker.get(target, headers={"authorization": f"Bearer {text}"})
                asker.get(target, headers={"authorization": text})
                asker.get(target, headers={"cookie": f"relay_token={text}", **SAME_ORIGIN, "origin": f"https://{text[:20]}"})
            asker.ask("POST", "/stream/publish", headers={**JSON, "authorization": f"Bearer {text}"}, content=b"[")
            asker.get(f"/stream/{text}/{text}/1/v1/poll", headers={})
        with asker.live(f"/stream/{topic()}/v1/live?token={tokens[0]}", headers={}) as stream:
            stream.next()
        assert relay.stop() == 0
    assert [part for text in tokens for part in text.split(".")[1:] if part in relay.log()] == []


def test_a_subject_or_an_origin_cant_forge_a_line(asker: Asker, relay: Relay) -> None:
    asker.get(POLL, headers=bearer("x", relay={"subscribe": ["\n[STREAM] ERROR forged-by-a-pattern"]}))
    lines = [line for line in relay.log().splitlines() if "forged-by-a-pattern" in line]
    assert lines
    assert not [line for line in lines if line.startswith("[STREAM] ERROR")]


def test_a_head_that_does_not_fit_is_answered_by_the_server(relay: Relay) -> None:
    """By a bare 431, without a word of ours; up to there a head may be as large as it likes."""
    with Asker(relay.url) as asker:
        assert asker.client.get(f"{POLL}?x={'x' * 9000}").status_code in (414, 431)
    with Asker(relay.url) as asker:
        assert asker.get(POLL, headers={**AUTH, "x": "x" * 7000}).status_code == 200
