"""Connections that are opened to be in the way: all are closed in the end, and nobody else waits for them."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import repeat

import pytest

from relay.connections import PREFACE_BYTES
from tests.asking import JSON, Asker, check_problem
from tests.hostile.conftest import HASTY_S
from tests.hostile.raw import Raw, answers, connect, request
from tests.needs import need
from tests.servers import Relay, token, topic
from tests.waiting import LIMIT_S, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SILENT = 1000

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


async def readers(asker: Asker, number: int) -> None:
    """Waits until so many are here."""
    await asyncio.to_thread(wait_for, f"{number} readers", lambda: asker.page("/stream/status")["connections"] == number)


def check_others(asker: Asker) -> None:
    """One who behaves publishes and reads."""
    name = topic()
    asker.publish(name, {"i": 1})
    assert asker.log(name) == [{"i": 1}]


@asynccontextmanager
async def dripping(raw: Raw, pieces: Iterable[bytes], every_s: float) -> AsyncIterator[None]:
    """Says a piece now and then."""

    async def drip() -> None:
        for piece in pieces:
            raw.say(piece)
            await asyncio.sleep(every_s)

    task = asyncio.create_task(drip())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.parametrize("said", STOPS.values(), ids=STOPS)
async def test_a_client_that_stops_is_closed(hasty: Relay, said: bytes) -> None:
    if len(said) < PREFACE_BYTES:
        need("Linux")
    async with connect(hasty, said) as raw:
        await raw.rest()


async def test_a_client_that_sends_its_head_byte_by_byte_is_closed(hasty: Relay) -> None:
    """The limit is for the whole head: each byte is no new start."""
    head = request("GET /healthz", f"X: {'x' * 4000}")
    async with connect(hasty) as raw, dripping(raw, (bytes([byte]) for byte in head), HASTY_S / 50):
        assert await raw.rest() == b""


BODIES = {"a length": ("Content-Length: 1000", b"1"), "chunks": ("Transfer-Encoding: chunked", b"1\r\n1\r\n")}


@pytest.mark.parametrize(("kind", "piece"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("path", ["/stream/tests/case/slow-body", "/stream/publish"])
async def test_a_body_that_does_not_come_is_told_and_closed(hasty: Relay, path: str, kind: str, piece: bytes) -> None:
    """Also one that goes on coming, a byte now and then: the limit is for all of it."""
    got = b""
    async with asyncio.timeout(LIMIT_S):
        while not got:  # the head was too slow by itself
            head = request(f"POST {path}", "Content-Type: application/json", kind)
            async with connect(hasty, head) as raw, dripping(raw, repeat(piece), HASTY_S / 20):
                got = await raw.rest()
    assert got.startswith(b"HTTP/1.1 408 ")
    assert json.loads(got.partition(b"\r\n\r\n")[2])["code"] == "too_slow"


async def test_others_are_served_while_heads_and_bodies_come_byte_by_byte(target: Relay, other: Asker) -> None:
    head = request("GET /healthz", f"X: {'x' * 4000}")
    async with AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(connect(target)) for _ in range(1 + len(BODIES))]
        await stack.enter_async_context(dripping(raws[0], (bytes([byte]) for byte in head[:-1]), HASTY_S / 50))
        for raw, (kind, piece) in zip(raws[1:], BODIES.values(), strict=True):
            raw.say(request("POST /stream/publish", "Content-Type: application/json", kind))
            await stack.enter_async_context(dripping(raw, repeat(piece, 900), HASTY_S / 20))
        await asyncio.to_thread(check_others, other)
        assert [(raw.ended, bytes(raw.got)) for raw in raws] == [(False, b"")] * len(raws)


async def test_a_body_that_nobody_reads_keeps_nothing(target: Relay) -> None:
    """A refusal doesn't wait for it, and the connection can't be used again."""
    async with connect(target, request(f"POST /stream/{topic()}", "Content-Length: 1000", auth=False), b"1") as raw:
        got = await raw.rest()
    assert got.startswith(b"HTTP/1.1 401 ")


async def test_streams_and_publishes_go_on_beside_a_thousand_silent_connections(target: Relay, other: Asker) -> None:
    name = topic()
    async with AsyncExitStack() as stack:
        raws = await asyncio.gather(*(stack.enter_async_context(connect(target)) for _ in range(SILENT)))

        def follow() -> None:
            with other.live(f"/stream/{name}/v1/live") as stream, Asker(target.url) as publisher:
                assert stream.next().name == "hello"
                for number in range(20):
                    publisher.publish(name, {"i": number})
                    assert json.loads(stream.next().data) == {"i": number}

        await asyncio.to_thread(follow)
        assert not any(raw.ended for raw in raws)


async def test_a_thousand_silent_connections_are_all_closed(hasty: Relay) -> None:
    need("Linux")
    async with AsyncExitStack() as stack:
        raws = await asyncio.gather(*(stack.enter_async_context(connect(hasty)) for _ in range(SILENT)))
        await asyncio.gather(*(raw.rest() for raw in raws))


@pytest.mark.parametrize("leave", ["close", "half close", "reset", "vanish"])
async def test_a_stream_ends_when_its_client_leaves_in_whatever_way(target: Relay, other: Asker, leave: str) -> None:
    """One that vanished is found out by a heartbeat, whose answer comes from a machine that knows nothing of the connection."""
    await readers(other, 0)
    async with connect(target, request(f"GET /stream/{topic()}/v1/live")) as raw:
        await raw.hears(b"event: hello")
        await readers(other, 1)
        match leave:
            case "close":
                raw.transport.close()
            case "half close":
                raw.transport.write_eof()
            case "reset":
                raw.reset()
            case "vanish":
                need("CAP_NET_ADMIN")
                raw.vanish()
        await readers(other, 0)


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
        got = await raw.rest()
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
        got = await raw.rest()
    assert got == b"" or got.startswith(b"HTTP/1.1 4"), got[:200]
    assert other.get("/healthz").status_code == 200


async def test_a_length_and_chunks_at_once_are_one_request(target: Relay) -> None:
    """RFC 9112, section 6.3: chunks count, and the connection ends. So what is behind them is no request to anybody."""
    name = topic()
    smuggled = request(f"POST /stream/{name}", "Content-Type: application/json", "Content-Length: 10", body=b'{"data":1}')
    both = request("POST /stream/publish", "Content-Length: 3", "Transfer-Encoding: chunked", body=b"2\r\n[]\r\n0\r\n\r\n" + smuggled)
    async with connect(target, both) as raw:
        got = await raw.rest()
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
    await readers(other, 0)
    live = request(f"GET /stream/{topic()}/v1/live")
    async with connect(target, live + request("GET /healthz") * 1000) as raw:
        await raw.hears(b"event: hello")
        await raw.hears(b"\n:\n\n")
        await readers(other, 1)
    await readers(other, 0)


async def test_a_body_beyond_its_bound_is_refused_before_it_is_there(target: Relay, other: Asker) -> None:
    head = request(f"POST /stream/{topic()}", "Content-Type: application/json", "Content-Length: 999999999999")
    async with connect(target, head) as raw:
        assert (await raw.rest()).startswith(b"HTTP/1.1 413 ")
    problem = other.ask("POST", f"/stream/{topic()}", headers={**JSON, "authorization": f"Bearer {token()}"}, content=b" " * 100_000)
    check_problem(problem, 413, "too_large")
