"""Connections that are opened to be in the way: all are closed in the end, and nobody else waits for them."""

import asyncio
import json
import time
from contextlib import AsyncExitStack

import pytest

from tests.asking import JSON, Asker, check_problem
from tests.hostile.conftest import REQUEST_S
from tests.hostile.raw import Raw, answers, connect, request
from tests.needs import need
from tests.servers import Relay, token, topic
from tests.waiting import wait_for

pytestmark = pytest.mark.anyio

SILENT = 1000
OTHERS_S = 2.0  # an answer to those who behave; alone it takes some ms
CLOSED_S = 5 * REQUEST_S

# What a client says before it says no more.
STOPS = {
    "before the first byte": b"",
    "after one byte": b"P",  # both HTTP/1.1 and HTTP/2 begin so
    "in the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nS",
    "in the request's line": b"GET /stream/v1/li",
    "in the headers": b"GET /healthz HTTP/1.1\r\nHost: relay\r\nX: y",
    "after an empty line": b"\r\n",
    "after an answer": b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n",
    "in a second request": b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\nGET /heal",
}


def connections(asker: Asker) -> int:
    return int(asker.page("/stream/status")["connections"])


def check_others(asker: Asker, name: str) -> None:
    """One who behaves publishes and reads, and is answered at once."""
    began = time.monotonic()
    asker.publish(name, {"i": 1})
    assert asker.log(name)[-1] == {"i": 1}
    assert time.monotonic() - began < OTHERS_S


@pytest.mark.parametrize("said", STOPS.values(), ids=STOPS)
async def test_a_client_that_stops_is_closed(target: Relay, said: bytes) -> None:
    async with connect(target, said) as raw:
        await raw.rest(CLOSED_S)


async def test_a_client_that_sends_its_head_byte_by_byte_is_closed(target: Relay, other: Asker) -> None:
    """The limit is for the whole head: each byte is no new start."""
    head = request("GET /healthz", f"X: {'x' * 4000}")

    async def drip(raw: Raw) -> None:
        for byte in head:
            raw.say(bytes([byte]))
            await asyncio.sleep(REQUEST_S / 50)

    async with connect(target) as raw:
        dripping = asyncio.create_task(drip(raw))
        await asyncio.to_thread(check_others, other, topic())
        assert await raw.rest(CLOSED_S) == b""
        dripping.cancel()


@pytest.mark.parametrize("kind", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", ["/stream/tests/case/slow-body", "/stream/publish"])
async def test_a_body_that_does_not_come_is_told_and_closed(target: Relay, other: Asker, path: str, kind: str) -> None:
    """Also one that goes on coming, a byte now and then: the limit is for all of it."""
    piece = b"1" if "Length" in kind else b"1\r\n1\r\n"

    async def drip(raw: Raw) -> None:
        while True:
            raw.say(piece)
            await asyncio.sleep(REQUEST_S / 20)

    async with connect(target, request(f"POST {path}", "Content-Type: application/json", kind)) as raw:
        dripping = asyncio.create_task(drip(raw))
        await asyncio.to_thread(check_others, other, topic())
        got = await raw.hears(b"}")
        dripping.cancel()
        await raw.rest(CLOSED_S)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert json.loads(got.partition(b"\r\n\r\n")[2])["code"] == "too_slow"


async def test_a_body_that_nobody_reads_keeps_nothing(target: Relay) -> None:
    """A refusal doesn't wait for it, and the connection can't be used again."""
    async with connect(target, request(f"POST /stream/{topic()}", "Content-Length: 1000", auth=False), b"1") as raw:
        got = await raw.rest(CLOSED_S)
    assert got.startswith(b"HTTP/1.1 401 ")


async def test_streams_and_publishes_go_on_beside_a_thousand_silent_connections(target: Relay, other: Asker) -> None:
    name = topic()
    async with AsyncExitStack() as stack:
        raws = await asyncio.gather(*(stack.enter_async_context(connect(target)) for _ in range(SILENT)))

        def follow() -> None:
            with other.live(f"/stream/{name}/v1/live") as stream, Asker(target.url) as publisher:
                assert stream.next().name == "hello"
                for number in range(20):
                    began = time.monotonic()
                    publisher.publish(name, {"i": number})
                    assert json.loads(stream.next().data) == {"i": number}
                    assert time.monotonic() - began < OTHERS_S

        await asyncio.to_thread(follow)
        await asyncio.gather(*(raw.rest(CLOSED_S) for raw in raws))


@pytest.mark.parametrize("leave", ["close", "half close", "reset", "vanish"])
async def test_a_stream_ends_when_its_client_leaves_in_whatever_way(target: Relay, other: Asker, leave: str) -> None:
    """One that vanished is found out by a heartbeat, whose answer comes from a machine that knows nothing of the connection."""
    before = connections(other)
    async with connect(target, request(f"GET /stream/{topic()}/v1/live")) as raw:
        await raw.hears(b"event: hello")
        assert connections(other) == before + 1
        match leave:
            case "close":
                raw.writer.close()
            case "half close":
                raw.writer.write_eof()
            case "reset":
                raw.reset()
            case "vanish":
                need("CAP_NET_ADMIN")  # to leave without a word
                raw.vanish()
        await asyncio.to_thread(wait_for, "the reader is gone", lambda: connections(other) == before)


HEADS = {
    "a long target": request(f"GET /{'x' * 9000}"),
    "a long query": request(f"GET /healthz?{'x=y&' * 3000}"),
    "a long header": request("GET /healthz", f"X: {'x' * 9000}"),
    "many headers": request("GET /healthz", *["x: y"] * 3000),
    "a long cookie": request("GET /healthz", f"Cookie: {'a=b; ' * 2000}"),
    "a megabyte without an end": b"GET /healthz HTTP/1.1\r\nX: " + b"x" * (1 << 20),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
async def test_an_enormous_head_is_refused_and_closed(target: Relay, head: bytes) -> None:
    async with connect(target, head) as raw:
        got = await raw.rest(CLOSED_S)
    assert got.startswith(b"HTTP/1.1 431 ") or got == b""  # a reset may overtake the answer


async def test_a_head_just_below_the_limit_is_taken(target: Relay) -> None:
    head = request("GET /healthz", "X: ", "Connection: close", auth=False)
    async with connect(target, head.replace(b"X: ", b"X: " + b"x" * (8192 - len(head)))) as raw:
        assert (await raw.rest()).startswith(b"HTTP/1.1 200 ")


NO_HTTP = {
    "a line of TLS": bytes.fromhex("16030100f8010000f40303") + bytes(240),
    "no version": b"GET /healthz\r\n\r\n",
    "a version of the future": b"GET /healthz HTTP/9.9\r\nHost: relay\r\n\r\n",
    "rubbish": b"\xff\0\x80" * 100 + b"\r\n\r\n",
    "a header with a NUL": b"GET /healthz HTTP/1.1\r\nHost: relay\r\nX: \0\r\n\r\n",
    "a folded header": b"GET /healthz HTTP/1.1\r\nHost: relay\r\nX: a\r\n b\r\n\r\n",
    "a space before the colon": b"GET /healthz HTTP/1.1\r\nHost : relay\r\n\r\n",
    "two lengths": b"POST /stream/publish HTTP/1.1\r\nHost: relay\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n[]",
    "a negative length": b"POST /stream/publish HTTP/1.1\r\nHost: relay\r\nContent-Length: -1\r\n\r\n[]",
    "another transfer coding": b"POST /stream/publish HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: rot13\r\n\r\n[]",
    "a chunk of no size": request("POST /stream/publish", "Transfer-Encoding: chunked", body=b"x\r\n[]\r\n0\r\n\r\n"),
    "a chunk of endless size": request("POST /stream/publish", "Transfer-Encoding: chunked", body=b"f" * 100 + b"\r\n[]\r\n"),
}


@pytest.mark.parametrize("said", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_no_http_is_refused_and_closed(target: Relay, other: Asker, said: bytes) -> None:
    async with connect(target, said) as raw:
        got = await raw.rest(CLOSED_S)
    assert got == b"" or got.startswith(b"HTTP/1.1 4"), got[:200]
    assert other.get("/healthz").status_code == 200


async def test_a_length_and_chunks_at_once_are_one_request(target: Relay) -> None:
    """RFC 9112, section 6.3: chunks count, and the connection ends. So what is behind them is no request to anybody."""
    name = topic()
    smuggled = request(f"POST /stream/{name}", "Content-Type: application/json", "Content-Length: 10", body=b'{"data":1}')
    both = request("POST /stream/publish", "Content-Length: 3", "Transfer-Encoding: chunked", body=b"2\r\n[]\r\n0\r\n\r\n" + smuggled)
    async with connect(target, both) as raw:
        got = await raw.rest(CLOSED_S)
    assert len(answers(got)) <= 1
    with Asker(target.url) as asker:
        assert asker.log(name) == []


async def test_pipelined_requests_are_done_and_answered_in_order(target: Relay) -> None:
    name = topic()
    posts = [
        request(f"POST /stream/{name}", "Content-Type: application/json", f"Content-Length: {len(body)}", body=body)
        for body in (b'{"data":%d}' % number for number in range(30))
    ]
    last = request("GET /stream/v9/poll", "Connection: close")
    async with connect(target, b"".join(posts) + last) as raw:
        got = answers(await raw.rest())
    assert [status for status, _ in got] == [201] * 30 + [404]
    with Asker(target.url) as asker:
        page = asker.page(f"/stream/{name}/v1/poll?cursor=earliest")
    assert [event["data"] for event in page["events"]] == list(range(30))
    assert [json.loads(body)["id"] for _, body in got[:-1]] == [event["id"] for event in page["events"]]


async def test_a_request_behind_a_stream_waits_for_its_end(target: Relay, other: Asker) -> None:
    """It is bounded by the server's buffer, and neither ends the stream nor is answered in the middle of it."""
    before = connections(other)
    live = request(f"GET /stream/{topic()}/v1/live")
    async with connect(target, live + request("GET /healthz") * 1000) as raw:
        await raw.hears(b"event: hello")
        await raw.hears(b"\n:\n\n")
        assert connections(other) == before + 1
    await asyncio.to_thread(wait_for, "the reader is gone", lambda: connections(other) == before)


async def test_a_body_beyond_its_bound_is_refused_before_it_is_there(target: Relay, other: Asker) -> None:
    head = request(f"POST /stream/{topic()}", "Content-Type: application/json", "Content-Length: 999999999999")
    async with connect(target, head) as raw:
        assert (await raw.rest(CLOSED_S)).startswith(b"HTTP/1.1 413 ")
    problem = other.ask("POST", f"/stream/{topic()}", headers={**JSON, "authorization": f"Bearer {token()}"}, content=b" " * 100_000)
    check_problem(problem, 413, "too_large")
