"""Who a request is from: carriers in their order, origins, addresses. Requests are bare ASGI scopes."""

import math
import time
from typing import Any

import jwt
import pytest

from relay.auth import LEEWAY_S, NOBODY, Identity, Verifier, parse_secret
from relay.errors import Forbidden, NotSubscribed, Problem, Unauthorized
from relay.guard import Guard
from relay.topic import Patterns
from tests.asking import at_once
from tests.waiting import in_time, wait_for

SECRET = "a-secret-of-these-tests-0123456789-0123456789"
HOST = "relay.example:8080"
TOPIC = "rounds/ROULETTE/123"


def token(sub: str = "ada", *, subscribe: tuple[str, ...] = ("**",), status: str = "active", **claims: Any) -> str:
    body = {"sub": sub, "exp": int(time.time()) + 86400, "relay": {"subscribe": subscribe}, "subscription": {"status": status}}
    return jwt.encode({**body, **claims}, SECRET, "HS256")


def guard(**options: Any) -> Guard:
    return Guard(Verifier(parse_secret(SECRET), 2 * 86400), **options)


def request(method: str = "GET", query: str = "", client: str = "192.0.2.7", **headers: str) -> dict[str, Any]:
    """A scope; `_` in a header's name is `-`."""
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in {"host": HOST, **headers}.items()]
    return {"method": method, "query_string": query.encode(), "client": (client, 1), "headers": pairs}


OWN = {"sec_fetch_site": "same-origin"}
A, B, C, D = (token(sub) for sub in "abcd")

# Request, and who it is from: '' is nobody, None a refusal.
CARRIERS: dict[str, tuple[dict[str, Any], str | None]] = {
    "none": (request(), ""),
    "a header": (request(authorization=f"Bearer {A}"), "a"),
    "a header in other capitals": (request(authorization=f"bearer  {A} "), "a"),
    "a query": (request(query=f"k=1&token={B}"), "b"),
    "a cookie of the host": (request(cookie=f"__Host-relay_token={C}", **OWN), "c"),
    "a cookie": (request(cookie=f"relay_token={D}", **OWN), "d"),
    "all": (request(authorization=f"Bearer {A}", query=f"token={B}", cookie=f"__Host-relay_token={C}; relay_token={D}", **OWN), "a"),
    "a query and cookies": (request(query=f"token={B}", cookie=f"__Host-relay_token={C}; relay_token={D}", **OWN), "b"),
    "both cookies": (request(cookie=f"relay_token={D}; __Host-relay_token={C}", **OWN), "c"),
    "a bad header and a good query": (request(authorization="Bearer x", query=f"token={B}"), None),
    "a bad query and a good cookie": (request(query="token=x", cookie=f"relay_token={D}", **OWN), None),
    "an empty query and a cookie": (request(query="token=", cookie=f"relay_token={D}", **OWN), "d"),
    "an empty cookie and a good one": (request(cookie=f"__Host-relay_token=; relay_token={D}", **OWN), "d"),
    "another scheme": (request(authorization="Basic YTpi"), None),
    "a scheme alone": (request(authorization="Bearer"), None),
    "a scheme and a space": (request(authorization="Bearer  "), None),
    "a token alone": (request(authorization=A), None),
    "POST with a header": (request("POST", authorization=f"Bearer {A}"), "a"),
    "POST with a query": (request("POST", query=f"token={B}"), ""),
    "POST with a cookie": (request("POST", cookie=f"relay_token={D}", **OWN), ""),
    "POST with a cookie of our origin": (request("POST", cookie=f"relay_token={D}", origin=f"https://{HOST}"), ""),
    "a cookie of our origin": (request(cookie=f"relay_token={D}", origin=f"http://{HOST}"), "d"),
    "a cookie of a foreign origin": (request(cookie=f"relay_token={D}", origin="https://evil.example"), ""),
    "a cookie of a foreign origin that says otherwise": (request(cookie=f"relay_token={D}", origin="https://evil.example", **OWN), ""),
    "a cookie of no origin": (request(cookie=f"relay_token={D}"), ""),
    "a cookie of the same site": (request(cookie=f"relay_token={D}", sec_fetch_site="same-site"), ""),
    "a cookie of another site": (request(cookie=f"relay_token={D}", sec_fetch_site="cross-site"), ""),
    "a cookie of an address typed in": (request(cookie=f"relay_token={D}", sec_fetch_site="none"), ""),
    "a cookie of a null origin": (request(cookie=f"relay_token={D}", origin="null"), ""),
    "a cookie among others": (request(cookie=f"a=b; relay_token={D}; c=d", **OWN), "d"),
    "a cookie behind one that is odd": (request(cookie=f'prefs={{"a":"b,c"}}; =x; y; [z]=1; relay_token={D}', **OWN), "d"),
    "cookies without a space": (request(cookie=f"a=b;relay_token={D}", **OWN), "d"),
    "a cookie twice": (request(cookie=f"relay_token={C}; relay_token={D}", **OWN), "c"),
    "a cookie of a longer name": (request(cookie=f"xrelay_token={D}; relay_token2={D}", **OWN), ""),
}


@pytest.mark.parametrize(("scope", "sub"), CARRIERS.values(), ids=CARRIERS)
def test_the_first_carrier_that_has_a_token_counts(scope: dict[str, Any], sub: str | None) -> None:
    if sub is None:
        with pytest.raises(Unauthorized):
            at_once(guard().identify(scope))
    else:
        assert at_once(guard().identify(scope)).sub == sub


def test_cookies_that_came_as_several_headers_are_one() -> None:
    """RFC 9113, section 8.2.3: HTTP/2 may split them."""
    scope = request(**OWN)
    scope["headers"] += [(b"cookie", b"a=b"), (b"cookie", f"relay_token={D}".encode())]
    assert at_once(guard().identify(scope)).sub == "d"


def test_a_query_token_may_be_turned_off() -> None:
    with pytest.raises(Unauthorized, match="Authorization"):
        at_once(guard(query_token="off").identify(request(query=f"token={A}")))
    assert at_once(guard(query_token="off").identify(request(query=f"token={A}", authorization=f"Bearer {A}"))).sub == "a"


async def ticket_of(text: str) -> Identity:
    return Identity(f"ticket {text}", expires_s=int(time.time()) + (-40 if text == "old" else 40))


def test_a_query_may_hold_a_ticket_too_or_alone() -> None:
    both, alone, none = (guard(query_token=kind, ticket=ticket_of) for kind in ("jwt", "ticket", "off"))
    for one in (both, alone):
        assert at_once(one.identify(request(query="token=new"))).sub == "ticket new"
        with pytest.raises(Unauthorized, match="expired"):
            at_once(one.identify(request(query="token=old")))
        for scope in (request(authorization="Bearer new"), request(cookie="relay_token=new", **OWN)):
            with pytest.raises(Unauthorized):
                at_once(one.identify(scope))
        assert at_once(one.identify(request("POST", query="token=new"))) is NOBODY
    assert at_once(both.identify(request(query=f"token={A}"))).sub == "a"
    with pytest.raises(Unauthorized, match="POST /stream/ticket"):
        at_once(alone.identify(request(query=f"token={A}")))
    with pytest.raises(Unauthorized):
        at_once(none.identify(request(query="token=new")))


def test_two_tokens_in_the_query_are_malformed() -> None:
    with pytest.raises(Problem) as caught:
        at_once(guard().identify(request(query=f"token={A}&token={A}")))
    assert caught.value.status == 400


# Tokens that were checked before are remembered


def test_a_remembered_token_ends_when_it_ends() -> None:
    """Its leeway leaves it some seconds."""

    def look(life_s: float) -> bool:
        one = guard()
        scope = request(authorization=f"Bearer {token(exp=math.ceil(time.time() + min(life_s, LEEWAY_S - 1)) - LEEWAY_S)}")

        def has_ended() -> bool:
            try:
                return at_once(one.identify(scope)).sub != "ada"
            except Unauthorized as problem:
                return problem.code == "token_expired"

        if has_ended():
            return False
        wait_for("the token has ended", has_ended)
        return True

    in_time(look)


def test_no_token_is_taken_for_another_and_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.guard.VERIFIED_MAX", 2)
    one = guard()
    for _ in range(2):
        for text, sub in ((A, "a"), (B, "b"), (C, "c"), (D, "d")):
            assert at_once(one.identify(request(authorization=f"Bearer {text}"))).sub == sub
            with pytest.raises(Unauthorized):
                at_once(one.identify(request(authorization=f"Bearer {text}x")))
    assert len(one._verified) == 2


# Decisions, in the order 401, 402, 403

FOREIGN = {"origin": "https://evil.example"}
INACTIVE = f"Bearer {token(status='inactive', subscribe=())}"
UNGRANTED = f"Bearer {token(subscribe=('rounds/CRAPS/*',))}"
DECISIONS: dict[str, tuple[dict[str, str], int]] = {
    "a token with all it needs": ({"authorization": f"Bearer {A}"}, 200),
    "no token, of a foreign origin": (FOREIGN, 401),
    "a bad token, of a foreign origin": ({"authorization": "Bearer x", **FOREIGN}, 401),
    "not subscribed, not granted, of a foreign origin": ({"authorization": INACTIVE, **FOREIGN}, 402),
    "not granted": ({"authorization": UNGRANTED}, 403),
    "of a foreign origin": ({"authorization": f"Bearer {A}", **FOREIGN}, 403),
}


@pytest.mark.parametrize(("headers", "status"), DECISIONS.values(), ids=DECISIONS)
def test_what_is_missing_is_told_in_a_fixed_order(headers: dict[str, str], status: int) -> None:
    try:
        at_once(guard().may_read(request(**headers), [TOPIC]))
    except Problem as problem:
        found = problem.status
    else:
        found = 200
    assert found == status


def test_the_topic_that_is_not_granted_is_named() -> None:
    scope = request(authorization=UNGRANTED)
    with pytest.raises(Forbidden, match="rounds/ROULETTE/123"):
        at_once(guard().may_read(scope, ["rounds/CRAPS/1", TOPIC]))
    assert at_once(guard().may_read(scope, ["rounds/CRAPS/1"])).identity.sub == "ada"


def test_public_topics_need_no_token_but_a_bad_one_is_refused() -> None:
    open_guard = guard(public=Patterns.parse(["public/**"])[0])
    assert at_once(open_guard.may_read(request(), ["public/a/b"])).identity == NOBODY
    assert at_once(open_guard.may_read(request(authorization=INACTIVE), ["public/a/b"])).identity.sub == "ada"
    with pytest.raises(Unauthorized):
        at_once(open_guard.may_read(request(authorization="Bearer x"), ["public/a/b"]))
    with pytest.raises(Unauthorized):
        at_once(open_guard.may_read(request(), ["public/a/b", TOPIC]))
    with pytest.raises(Forbidden):
        at_once(open_guard.may_read(request(**FOREIGN), ["public/a/b"]))


def test_without_subscriptions_nobody_needs_one() -> None:
    scope = request(authorization=f"Bearer {token(status='inactive')}")
    with pytest.raises(NotSubscribed):
        at_once(guard().may_read(scope, [TOPIC]))
    assert at_once(guard(subscription=None).may_read(scope, [TOPIC])).identity.sub == "ada"


def test_publishing_needs_a_token_and_no_subscription() -> None:
    assert at_once(guard().may_act(request("POST", authorization=f"Bearer {token(status='inactive')}"))).sub == "ada"
    with pytest.raises(Unauthorized):
        at_once(guard().may_act(request("POST", query=f"token={A}")))
    with pytest.raises(Forbidden):
        at_once(guard().may_act(request("POST", authorization=f"Bearer {A}", **FOREIGN)))


def test_only_administrators_see_the_status() -> None:
    assert not at_once(guard().sees_status(request()))
    assert not at_once(guard().sees_status(request(authorization=f"Bearer {A}")))
    admin = token(relay={"admin": ["status"]})
    assert at_once(guard().sees_status(request(authorization=f"Bearer {admin}")))


def test_a_stream_ends_with_its_token_or_its_subscription() -> None:
    exp = int(time.time()) + 60
    scope = request(authorization=f"Bearer {token(exp=exp)}")
    until = {"status": "active", "until": exp - 20.5}
    limited = request(authorization=f"Bearer {token(exp=exp, subscription=until)}")
    assert at_once(guard().may_read(scope, [TOPIC])).ends_s == exp + 30
    assert at_once(guard().may_read(limited, [TOPIC])).ends_s == exp - 20
    assert at_once(guard(subscription=None).may_read(limited, [TOPIC])).ends_s == exp + 30
    assert at_once(guard(public=Patterns.parse(["**"])[0]).may_read(limited, [TOPIC])).ends_s == exp + 30
    assert at_once(guard(public=Patterns.parse(["**"])[0]).may_read(request(), [TOPIC])).ends_s is None


# Origins

ORIGINS: dict[str, tuple[str, str, bool]] = {
    "none": ("", HOST, True),
    "our own": (f"https://{HOST}", HOST, True),
    "our own over plain http": (f"http://{HOST}", HOST, True),
    "another port": ("https://relay.example:8081", HOST, False),
    "our own without its port": ("https://relay.example", HOST, False),
    "a host above ours": ("https://relay.example:8080.evil.example", HOST, False),
    "a host below ours": (f"https://evil.{HOST}", HOST, False),
    "ours as a user": (f"https://{HOST}@evil.example", HOST, False),
    "null": ("null", HOST, False),
    "null on a host of that name": ("null", "null", False),
    "no origin at all": ("x", HOST, False),
    "an empty host": ("https://", "", False),
    "no host": ("x", "", False),
    "a broken address": ("http://[", HOST, False),
    "an address": ("http://[::1]:8080", "[::1]:8080", True),
}


@pytest.mark.parametrize(("origin", "host", "allowed"), ORIGINS.values(), ids=ORIGINS)
def test_by_default_an_origin_is_allowed_if_it_is_the_host(origin: str, host: str, allowed: bool) -> None:
    scope = request(host=host, origin=origin) if origin else request(host=host)
    assert guard().allows_origin(scope) is allowed


def test_allowed_origins_are_exact_and_take_the_place_of_the_default() -> None:
    strict = guard(origins=["https://app.example"])
    assert strict.allows_origin(request(origin="https://app.example"))
    assert strict.allows_origin(request())
    for origin in (
        "http://app.example",
        "https://app.example:443",
        "https://app.example/",
        "https://APP.example",
        f"https://{HOST}",
        "null",
    ):
        assert not strict.allows_origin(request(origin=origin))
    assert not guard(origins=["null"]).allows_origin(request(origin="null"))  # any sandboxed page has that one


def test_an_allowed_origin_is_named_and_a_refused_one_is_not() -> None:
    assert dict(guard().origin_headers(request(origin=f"https://{HOST}")))[b"access-control-allow-origin"] == f"https://{HOST}".encode()
    assert guard().origin_headers(request(**FOREIGN)) == [(b"vary", b"Origin")]
    assert guard().origin_headers(request()) == [(b"vary", b"Origin")]


# Addresses: client, X-Forwarded-For, trusted proxies, and whose it is

ADDRESSES: dict[str, tuple[str, str, list[str], str]] = {
    "no proxy": ("192.0.2.7", "", [], "192.0.2.7"),
    "nobody is trusted": ("192.0.2.7", "198.51.100.1", [], "192.0.2.7"),
    "a trusted proxy": ("10.0.0.1", "198.51.100.1", ["10.0.0.0/8"], "198.51.100.1"),
    "what the client made up": ("10.0.0.1", "203.0.113.9, 198.51.100.1", ["10.0.0.0/8"], "198.51.100.1"),
    "two trusted proxies": ("10.0.0.1", "198.51.100.1, 10.0.0.2", ["10.0.0.0/8"], "198.51.100.1"),
    "an untrusted client": ("192.0.2.7", "10.0.0.5", ["10.0.0.0/8"], "192.0.2.7"),
    "only proxies": ("10.0.0.1", "10.0.0.3,10.0.0.2", ["10.0.0.0/8"], "10.0.0.3"),
    "rubbish": ("10.0.0.1", "x", ["10.0.0.0/8"], "x"),
    "rubbish behind an address": ("10.0.0.1", "198.51.100.1, x", ["10.0.0.0/8"], "x"),
    "an empty header": ("10.0.0.1", " , ", ["10.0.0.0/8"], "10.0.0.1"),
    "another kind of address": ("::1", "2001:db8::1", ["10.0.0.0/8", "::1"], "2001:db8::1"),
}


@pytest.mark.parametrize(("client", "forwarded", "trusted", "address"), ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_is_the_last_that_no_trusted_proxy_has(client: str, forwarded: str, trusted: list[str], address: str) -> None:
    assert guard(trusted_proxies=trusted).address(request(client=client, x_forwarded_for=forwarded)) == address


def test_an_address_is_short() -> None:
    assert len(guard(trusted_proxies=["10.0.0.0/8"]).address(request(client="10.0.0.1", x_forwarded_for="x" * 5000))) <= 64
