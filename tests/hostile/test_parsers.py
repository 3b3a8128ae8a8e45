"""Whatever comes from outside, a parser takes it or says why not: only the errors that it documents come out."""

import json
import string
from collections.abc import Callable
from typing import Any

import jwt
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay import edge, sse
from relay.auth import Identity, Verifier, parse_secret
from relay.cursor import Cursor, parse_cursor, write_cursor
from relay.denial import names_of_token
from relay.endpoints.publish import MANY, ONE, Body, checked, checked_item, decode
from relay.errors import Malformed, NotFound, Problem, TooLarge, Unauthorized, Unprocessable
from relay.event import NAME, RESERVED_NAMES
from relay.guard import Guard
from relay.query import ReadQuery, parse_fields, parse_read
from relay.topic import is_part, parse_topic
from tests import streams
from tests.asking import at_once
from tests.hostile.conftest import BOUNDED
from tests.servers import SECRET

NOW_S = 1_795_000_000
VERIFIER = Verifier(parse_secret(SECRET), 86400)
ROUTES = ("/stream/{}/v1/live", "/stream/{}/v1/poll", "/stream/{}")

HEADER = st.text(st.characters(max_codepoint=255), max_size=200)  # as a server hands it over, in latin-1
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
DEEP = b"[" * 20_000


def near(*pieces: str) -> st.SearchStrategy[str]:
    """Text made of what the real thing is made of, so that it gets further than noise would."""
    return st.lists(st.sampled_from(pieces) | st.text(max_size=3), max_size=14).map("".join)


NEAR_CURSOR = near("e", "0", "1", "9" * 16, ".", "-", "_", "1-", "11-", "e.1-1", "_2-e.1-1", ".7-abcd", "0.0-0", "٣", "\n", "\0")
NEAR_QUERY = near(
    "topic=", "a/b/c", "&", "k=", "limit=", "wait=", "events=", "cursor=", "lastEventId=", "last_event_id=", "token=", "now",
    "e.1-1", "1", "100", "25", ".", ",", "%", "%2F", "%FF", "%00", "+", ";", "=", "now", "earliest", "é",
)  # fmt: skip
NEAR_PATH = near("/", "a", "live", "poll", "stream", "v1", "%2F", "%2f", "%2E", "..", ".", "%25", "%FF", "%00", "%", "%zz", "?", ";", "é")
NEAR_STREAM = st.lists(
    st.sampled_from(
        [
            b"\r",
            b"\n",
            b"\r\n",
            b"data",
            b"id",
            b"event",
            b"retry",
            b":",
            b" ",
            b"\0",
            b"1",
            b"\xef\xbb\xbf",
            b"\xff",
            b"x",
            b"\xe2\x80\xa8",
        ]
    )
    | st.binary(max_size=3),
    max_size=30,
).map(b"".join)


def result(parse: Callable[[], Any], *expected: type[Exception]) -> Any:
    """What it gives; None for an error that it may raise. A problem tells its client something, in bytes that can be sent."""
    try:
        return parse()
    except expected as error:
        raised = error
    if isinstance(raised, Problem):
        assert len(raised.body()) < 8192
        assert msgspec.json.decode(raised.body())["detail"]
    return None


@BOUNDED
@given(NEAR_CURSOR | st.text())
def test_a_cursor_is_read_or_malformed(text: str) -> None:
    cursor = result(lambda: parse_cursor(text), Malformed)
    if cursor is not None:
        assert isinstance(cursor, Cursor)
        assert parse_cursor(write_cursor(cursor.places)).places == cursor.places
        assert text.startswith(write_cursor(cursor.places)) or cursor.n is None


@BOUNDED
@given(near("a", "/", ".", "..", "-", ":", "é", "\n", "x" * 128, "a/b/c") | st.text())
def test_a_topic_is_read_as_it_is_or_malformed(text: str) -> None:
    topic = result(lambda: parse_topic(text), Malformed)
    assert topic is None or (topic == text and len(topic) <= 386 and set(topic) <= set(string.ascii_letters + string.digits + "._:-/"))


@BOUNDED
@given(st.sampled_from(ROUTES), NEAR_PATH)
def test_a_path_keeps_its_parts_or_is_malformed(route: str, part: str) -> None:
    """As two servers hand it over: with what came over the wire, or with the decoded path alone."""
    raw = route.format(part).encode("utf-8", "surrogatepass")
    path = result(lambda: edge.decoded_path({"raw_path": raw, "path": raw.decode("utf-8", "surrogatepass")}), Malformed)
    if path is not None:
        assert path.count("/") == raw.partition(b"?")[0].count(b"/") or b"%" not in raw
        assert "%" not in path.replace(edge.MARK, "", 1)


@BOUNDED
@given(st.fixed_dictionaries({name: st.text(max_size=10) for name in ("collection", "kind", "ident")}))
def test_a_topic_of_a_path_is_read_or_malformed(params: dict[str, str]) -> None:
    topic = result(lambda: edge.topic_of(params), Malformed)
    assert topic is None or all(map(is_part, topic.split("/")))


@BOUNDED
@given(st.binary() | NEAR_QUERY.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_fields_are_text_or_malformed(query: bytes) -> None:
    fields = result(lambda: parse_fields(query), Malformed)
    assert fields is None or all(values for values in fields.values())


@BOUNDED
@given(st.sampled_from(["v1", "v2", "", "V1"]), st.sampled_from([None, "a/b/c"]), NEAR_QUERY, HEADER | NEAR_CURSOR)
@example("v1", None, "topic=a/b/c&k=10&cursor=e.1-1", "x" * 9000)
def test_what_a_reader_asks_is_within_its_bounds_or_refused(version: str, topic: str | None, query: str, last_event_id: str) -> None:
    read = result(lambda: parse_read(version, topic, query.encode("utf-8", "surrogatepass"), last_event_id), Malformed, NotFound)
    if read is not None:
        assert isinstance(read, ReadQuery)
        assert 1 <= len(read.topics) <= 100
        assert read.newest * len(read.topics) <= 1000
        assert 1 <= read.limit <= 500
        assert 0 <= read.wait_s <= 25
        assert read.names is None or all(map(NAME.fullmatch, read.names))


@BOUNDED
@given(HEADER | NEAR_CURSOR)
def test_last_event_id_is_never_refused(text: str) -> None:
    """A 400 would end an EventSource for good."""
    position = parse_read("v1", "a/b/c", b"", text).position
    assert position.in_header == bool(text)
    assert position.reset or (position.cursor is None) == (not text)


def refuse_or_identify(token: str) -> Identity | None:
    found: Identity | None = result(lambda: VERIFIER.verify(token, NOW_S), Unauthorized)
    return found


@BOUNDED
@given(HEADER | near(".", "eyJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJub25lIn0", "e30", "=", "W10", "bnVsbA", "-", "_"))
@example("." * 4096)
@example("eyJhbGciOiJIUzI1NiJ9." + "W1tb" * 900 + ".")
@example("é.é.é")
def test_what_nobody_signed_is_no_token(text: str) -> None:
    assert refuse_or_identify(text) is None


@BOUNDED
@given(st.binary(max_size=60), JSON)
@example(b"null", {"alg": "HS256"})
@example(b"[]", {"alg": "HS256"})
@example(DEEP[:2000], {"alg": "HS256"})
@example(b"{}", {"alg": "HS256", "crit": ["exp"]})
@example(b"{}", {"alg": "HS256", "b64": False})
@example(b"{}", {"alg": ["HS256"]})
def test_whatever_is_signed_is_refused_where_it_holds_no_claims(payload: bytes, head: Any) -> None:
    """The signature is right: it is what a broken issuer might make."""
    signing = [jwt.utils.base64url_encode(part).decode() for part in (json.dumps(head).encode(), payload)]
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(".".join(signing).encode(), SECRET.encode())
    assert refuse_or_identify(".".join([*signing, jwt.utils.base64url_encode(signature).decode()])) is None


CLAIMS = st.fixed_dictionaries(
    {},
    optional={
        "sub": st.just("ada") | JSON,
        "exp": st.just(4_000_000_000) | JSON,
        "iat": JSON,
        "nbf": JSON,
        "jti": JSON,
        "aud": JSON,
        "relay": st.fixed_dictionaries({}, optional=dict.fromkeys(("subscribe", "publish", "admin"), JSON)) | JSON,
        "subscription": st.fixed_dictionaries({}, optional={"status": st.just("active") | JSON, "until": JSON}) | JSON,
    },
)


@BOUNDED
@given(CLAIMS)
@example({"sub": "ada", "exp": 4_000_000_000, "subscription": {"status": "active", "until": float("inf")}})
@example({"sub": "ada", "exp": 4_000_000_000, "subscription": {"status": "active", "until": float("nan")}})
@example({"sub": "ada", "exp": 4_000_000_000, "subscription": {"status": "active", "until": 10**400}})
@example({"sub": "ada", "exp": float("inf")})
@example({"sub": "ada", "exp": float("nan")})
@example({"sub": "ada", "exp": 10**400})
@example({"sub": "\ud800", "exp": 4_000_000_000, "jti": "\ud800"})
@example({"sub": "ada", "exp": 4_000_000_000, "iat": float("-inf")})
def test_whatever_claims_say_a_token_is_somebodys_or_refused(claims: dict[str, Any]) -> None:
    """And what is granted can be asked for, without an error of another kind."""
    guard = Guard(Verifier(parse_secret(SECRET), 10**10))
    token = jwt.encode({}, SECRET, "HS256") if not claims else signed(claims)
    scope = {"type": "http", "method": "GET", "query_string": b"", "headers": [(b"authorization", f"Bearer {token}".encode())]}
    permit = result(lambda: at_once(guard.may_read(scope, ["a/b/c"])), Problem)
    assert permit is None or isinstance(permit.ends_s, int)
    identity = result(lambda: at_once(guard.identify(scope)), Unauthorized)
    if identity is not None:
        assert isinstance(identity.grants.publish.match("a/b/c"), bool)
        names_of_token(identity)[0].encode()


def signed(claims: dict[str, Any]) -> str:
    """PyJWT would refuse to write some of these."""
    return jwt.api_jws.encode(json.dumps(claims).encode(), SECRET, "HS256")


@BOUNDED
@given(
    st.lists(st.tuples(st.sampled_from([b"authorization", b"cookie", b"origin", b"host", b"sec-fetch-site", b"x-forwarded-for"]), HEADER)),
    NEAR_QUERY,
)
def test_no_header_breaks_the_guard(pairs: list[tuple[bytes, str]], query: str) -> None:
    guard = Guard(VERIFIER, trusted_proxies=["0.0.0.0/0", "::/0"])
    headers = [(name, value.encode("latin-1")) for name, value in pairs]
    scope = {
        "type": "http", "method": "GET", "client": ("192.0.2.7", 1), "headers": headers, "query_string": query.encode("utf-8", "replace"),
    }  # fmt: skip
    result(lambda: at_once(guard.may_read(scope, ["a/b/c"])), Problem)
    result(lambda: guard.check_origin(scope), Problem)
    assert len(guard.address(scope)) <= 64
    for name, value in guard.origin_headers(scope):
        assert b"\n" not in name + value or any(b"\n" in own for _, own in headers)  # the server lets none through


NEAR_JSON = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b'"', b":", b",", b'"data"', b'"event"', b'"topic"', b'"key"', b'"a/b/c"', b"1", b"null", b"1e999",
         b"\\", b"\n", b"\xff", b"\\ud800", b"-", b" ", b"\xef\xbb\xbf", b'{"data":1}', b'{"topic":"a/b/c","data":1}'],
    ),
    max_size=16,
).map(b"".join)  # fmt: skip
BODIES = (
    st.binary()
    | NEAR_JSON
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps({"data": value, "event": "x"}).encode())
    | JSON.map(lambda value: json.dumps([{"topic": "a/b/c", "data": value, "key": "k"}]).encode())
)


@BOUNDED
@given(BODIES, HEADER)
@example(DEEP, "k")
@example(b'{"data":' + DEEP + b"}", "k")
@example(b'{"data":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}", "k")
@example(b'{"data":1,"event":' + DEEP + b"}", "k")
@example(b'{"data":1e999}', "k")
@example(b'{"data":' + b"9" * 5000 + b"}", "k")
@example(b'{"data":-}', "k")
@example(b'{"data":"\\ud800"}', "k")
@example(b'{"data":1,"data":2}', "k")
@example(b'{"data":"\xff"}', "k")
def test_an_event_is_taken_or_refused(body: bytes, key: str) -> None:
    def publish() -> Any:
        return checked("a/b/c", decode(ONE, body), key or None, 65536)

    event = result(publish, Malformed, Unprocessable, TooLarge)
    if event is not None:
        assert NAME.fullmatch(event.name)
        assert event.name not in RESERVED_NAMES
        assert b"\n" not in event.data
        assert b"\r" not in event.data
        assert msgspec.json.encode(msgspec.Raw(event.data)) == event.data
        # One event of data, whatever it holds.
        assert [block.data for block in streams.Parser().feed(sse.block(event.name, event.data))] == [event.data.decode()]


@BOUNDED
@given(BODIES)
@example(DEEP)
@example(b'[{"topic":"a/b/c","data":' + DEEP + b"}]")
@example(b'[{"topic":"\\ud800/b/c","data":1}]')
@example(b'[{"topic":"a/b/c","data":1,"key":"\\ud800"}]')
@example(b'[{"topic":"a/b/c","data":1,"key":""}]')
def test_a_batch_is_taken_or_its_bad_item_named(body: bytes) -> None:
    def publish() -> Any:
        return [checked_item(index, item, 65536) for index, item in enumerate(decode(MANY, body))]

    result(publish, Malformed, Unprocessable, TooLarge)


@BOUNDED
@given(NEAR_STREAM, st.lists(st.integers(0, 100), max_size=6))
def test_both_readers_of_streams_read_the_same_in_pieces_of_any_size(wire: bytes, cuts: list[int]) -> None:
    """Ours, which reads lines, and the one of the tests, which reads bytes."""
    ours, theirs = sse.Parser(), streams.Parser()
    ends = [*sorted({cut for cut in cuts if cut < len(wire)}), len(wire)]
    got, expected = [], []
    for begin, end in zip([0, *ends], ends, strict=False):
        got += ours.feed(wire[begin:end])
        expected += theirs.feed(wire[begin:end])
    # A line that ends in a CR is held until it is known whether a LF follows.
    got += ours.feed(b"\n")
    expected += theirs.feed(b"\n")
    assert [(one.name, one.data, one.last_id) for one in got] == [(one.name, one.data, one.last_event_id) for one in expected]
    assert (ours.last_id, ours.retry_ms) == (theirs.last_event_id, theirs.retry_ms)


def test_the_decoder_of_an_event_takes_no_more_than_its_members() -> None:
    assert {field.name for field in msgspec.structs.fields(Body)} == {"data", "event"}
    with pytest.raises(Unprocessable):
        decode(ONE, b'{"data":1,"id":"forged"}')
