"""Content codings: what is chosen, and that each piece can be read as soon as it is there."""

import gzip
import json
import sys
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.answers import pack
from relay.coding import IDENTITY, STORED_BYTES_MAX, Coding, choose_coding, coding_chooser, gzip_coding, zstd_coding
from tests.asking import AUTH, Asker
from tests.servers import topic
from tests.streams import CODINGS, decoder

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

EVERY = {"gzip": gzip_coding(), "zstd": zstd_coding(), "identity": IDENTITY}
LARGE = {"rows": [{"name": "red", "value": number} for number in range(100)]}
each_coding = pytest.mark.parametrize("coding", EVERY.values(), ids=EVERY)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("deflate, br", ""),
        ("*", ""),
        ("zstd;q=0, gzip", "gzip"),
        ("zstd;q=0.5, gzip;q=0.8", "gzip"),
        ("gzip ; q=1.0 , zstd; q=1", "zstd"),
        ("gzip;q=0", ""),
        ("identity, gzip;q=0.5", ""),
        ("identity;q=0.5, gzip", "gzip"),
        ("gzip;q=much, zstd;", "zstd"),
        (";,q=,,gzip;;", ""),
    ],
)
def test_what_is_asked_for_is_chosen(accept: str, chosen: str) -> None:
    assert choose_coding(accept).name == chosen
    assert coding_chooser("auto")(accept).name == chosen
    assert coding_chooser("off")(accept) is IDENTITY


@given(st.text(max_size=60))
def test_whatever_is_asked_for_something_is_chosen(accept: str) -> None:
    assert choose_coding(accept) in EVERY.values()


PIECES = st.lists(st.tuples(st.booleans(), st.one_of(st.binary(max_size=300), st.text("abc", max_size=3000).map(str.encode))), max_size=12)


@each_coding
@given(pieces=PIECES)
def test_each_piece_is_whole_by_itself(coding: Coding, pieces: list[tuple[bool, bytes]]) -> None:
    """For whoever is there from the first on, and for whoever comes later."""
    sent = [coding.compress(piece) if shared else coding.wrap(piece) for shared, piece in pieces]
    for late in range(len(pieces)):
        decode = decoder(coding.name)
        assert decode(coding.head) == b""
        assert [decode(piece) for piece in sent[late:]] == [piece for _, piece in pieces[late:]]


@each_coding
@pytest.mark.parametrize("size", [0, 1, STORED_BYTES_MAX, STORED_BYTES_MAX + 1, 3 * STORED_BYTES_MAX])
def test_what_is_only_wrapped_may_be_of_any_size(coding: Coding, size: int) -> None:
    decode = decoder(coding.name)
    assert decode(coding.head + coding.wrap(b"x" * size)) == b"x" * size


@each_coding
def test_nothing_stays_nothing(coding: Coding) -> None:
    assert coding.compress(b"") == b""


def unpack(coding: str, content: bytes) -> bytes:
    match coding:
        case "gzip":
            return gzip.decompress(content)  # whole, with its checksum
        case "zstd":
            return zstd.decompress(content)
        case _:
            return content


@each_coding
@given(content=st.binary(max_size=2000))
def test_a_body_is_whole(coding: Coding, content: bytes) -> None:
    assert unpack(coding.name, coding.pack(content)) == content


@pytest.mark.parametrize(("size", "packed"), [(499, False), (500, True), (501, True), (64 << 10, True), ((64 << 10) + 1, True)])
@pytest.mark.anyio
async def test_a_body_is_packed_from_its_bound_on(size: int, packed: bool) -> None:
    headers: dict[str, str] = {}
    content = await pack(b"x" * size, gzip_coding(), headers)
    assert (content != b"x" * size, headers) == (packed, {"content-encoding": "gzip"} if packed else {})
    assert (gzip.decompress(content) if packed else content) == b"x" * size


# Over HTTP


def ask(asker: Asker, target: str, accept: str, **headers: str) -> tuple[Any, bytes]:
    """An answer, and its body as it came over the wire."""
    request = {**AUTH, "accept-encoding": accept, **headers}
    with asker.client.stream("GET", "/", headers=request, extensions={"target": target.encode()}) as answer:
        return answer, b"".join(answer.iter_raw())


@pytest.fixture(params=["relay", "function"])
def door(request: pytest.FixtureRequest) -> Any:
    with Asker(request.getfixturevalue(request.param).url) as asker:
        yield asker


@pytest.mark.parametrize("accept", CODINGS)
def test_a_page_comes_as_it_was_asked_for(asker: Asker, door: Asker, accept: str) -> None:
    own = topic()
    asker.publish(own, *[LARGE] * 5)
    target = f"/stream/{own}/v1/poll?cursor=earliest"
    plain, expected = ask(door, target, "identity")
    answer, body = ask(door, target, accept)
    assert answer.headers.get("content-encoding", "identity") == accept
    assert int(answer.headers["content-length"]) == len(body)
    assert "accept-encoding" in answer.headers["vary"].lower()
    assert json.loads(unpack(accept, body))["events"] == json.loads(expected)["events"]
    assert accept == "identity" or len(body) < len(expected) / 5
    assert (answer.headers["etag"] == plain.headers["etag"]) == (accept == "identity")
    again, nothing = ask(door, target, accept, **{"if-none-match": answer.headers["etag"]})
    assert (again.status_code, nothing) == (304, b"")


def test_a_large_page_is_packed_too(asker: Asker, door: Asker) -> None:
    """Aside, so that no stream waits for it."""
    own = topic()
    asker.publish(own, *[LARGE] * 100)
    answer, body = ask(door, f"/stream/{own}/v1/poll?cursor=earliest", "gzip")
    assert len(json.loads(gzip.decompress(body))["events"]) == 100
    assert answer.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("accept", CODINGS)
def test_a_small_page_comes_as_it_is(asker: Asker, door: Asker, accept: str) -> None:
    answer, body = ask(door, f"/stream/{topic()}/v1/poll", accept)
    assert "content-encoding" not in answer.headers
    assert json.loads(body)["events"] == []


@pytest.mark.parametrize("path", ["/stream/client.js", "/stream/poller.js"])
def test_a_file_is_compressed_and_told_apart(asker: Asker, path: str) -> None:
    answers = {accept: ask(asker, path, accept) for accept in CODINGS}
    bodies = {accept: unpack(accept, body) for accept, (_, body) in answers.items()}
    assert len(set(bodies.values())) == 1
    assert len({answer.headers["etag"] for answer, _ in answers.values()}) == 3
    assert all(len(answers[accept][1]) < len(bodies[accept]) / 2 for accept in ("gzip", "zstd"))


@pytest.mark.parametrize("accept", CODINGS)
def test_a_stream_comes_as_it_was_asked_for_and_goes_on_in_another_coding(asker: Asker, accept: str) -> None:
    own, other = topic(), CODINGS[CODINGS.index(accept) - 1]
    (first,) = asker.publish(own, LARGE)
    target = f"/stream/{own}/v1/live?cursor=earliest"
    with asker.live(target, headers={**AUTH, "accept-encoding": accept}) as stream:
        assert stream.answer.headers.get("content-encoding", "identity") == accept
        assert [stream.next().name, stream.next().json()] == ["hello", LARGE]
        asker.publish(own, LARGE, "small")
        seen = [stream.next() for _ in range(2)]
        assert [block.json() for block in seen] == [LARGE, "small"]
        stream.beats(1)
    (last,) = asker.publish(own, "while it was away")
    headers = {**AUTH, "accept-encoding": other, "last-event-id": seen[-1].last_event_id}
    with asker.live(target, headers=headers) as stream:
        assert stream.next().json()["resume"] == "exact"
        assert stream.next().last_event_id == last
    assert first != last


def test_a_refusal_and_a_sealed_stream_come_as_they_are(asker: Asker) -> None:
    own = topic()
    with asker.live(f"/stream/{own}/v2/live", headers={**AUTH, "accept-encoding": "gzip"}) as stream:
        assert "content-encoding" not in stream.answer.headers
        assert stream.next().name == "hello"


def test_a_stream_of_gzip_has_no_trailer_and_says_goodbye_all_the_same() -> None:
    """What a client has that ends after the last piece: everything."""
    coding, decode = gzip_coding(), zlib.decompressobj(16 + zlib.MAX_WBITS)
    sent = coding.head + coding.wrap(b"event: hello\n\n") + coding.compress(b"data: 1\n\n" * 50) + coding.wrap(b"event: bye\n\n")
    assert decode.decompress(sent) == b"event: hello\n\n" + b"data: 1\n\n" * 50 + b"event: bye\n\n"
    assert decode.flush() == b""
