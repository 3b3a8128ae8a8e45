"""Sources of the kind `sse`: another endpoint of Server-Sent Events, a relay's or any, read on and on.

An item is `{"id","event","data"}`; its id is its key, and what the next connection sends as `Last-Event-ID`. An event without an id
of its own has the last one's by the specification, so it has none here: it needs a key in its data. Relays can be chained this way:
their control events aren't items, and what they tell of gaps is logged.
"""

import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec

from relay import sse
from relay.updates.feed import Batch, FeedError, Look
from relay.updates.outbound import answer_of, check_status, open_client
from relay.updates.sources import Source

EVENT_BYTES_MAX = 8 << 20  # that may come without an event in them
RETRY_S = (0.1, 60.0)
CONTROL = frozenset({"hello", "gap", "bye", "sync"})

logger = logging.getLogger("relay")


@asynccontextmanager
async def open_stream(source: Source) -> AsyncIterator[Look]:
    async with open_client(source) as client:

        async def look(place: str | None) -> AsyncGenerator[Batch, None]:
            async with begun(client, source, place) as response:
                parser, last_id, pending = sse.Parser(), place or "", 0
                async for piece in response.aiter_raw():
                    received = parser.feed(piece)
                    pending = 0 if received else pending + len(piece)
                    if pending > EVENT_BYTES_MAX:
                        raise FeedError(f"sends {EVENT_BYTES_MAX >> 20} MiB without an event")
                    items = []
                    for event in received:
                        if event.name in CONTROL:
                            tell(source, event)
                        else:
                            items.append(item_of(event, event.last_id if event.last_id != last_id else None))
                        last_id = event.last_id or last_id
                    yield Batch(items, last_id or None, pause_s=pause_s(parser.retry_ms))

        yield look


@asynccontextmanager
async def begun(client: httpx.AsyncClient, source: Source, place: str | None) -> AsyncIterator[httpx.Response]:
    """A stream that goes on from there, of which nothing is read yet. Raises FeedError where it is none."""
    headers = {"accept": "text/event-stream", "accept-encoding": "identity", "cache-control": "no-cache"}
    if place:
        headers["last-event-id"] = place
    async with answer_of(client, source, headers) as response:
        check_status(response)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != sse.CONTENT_TYPE.decode() or "content-encoding" in response.headers:
            raise FeedError(f"answers {kind[:80]!r}, which is no stream")
        yield response


def item_of(event: sse.Received, id: str | None) -> msgspec.Raw:
    """With the data to the letter; what is no JSON is a JSON string."""
    data = event.data.encode()
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        data = msgspec.json.encode(event.data)
    return msgspec.Raw(b'{"id":%b,"event":%b,"data":%b}' % (msgspec.json.encode(id), msgspec.json.encode(event.name), data))


def pause_s(retry_ms: int | None) -> float | None:
    """Before the next connection, as the upstream asked, with jitter and within reason."""
    return None if retry_ms is None else min(max(retry_ms / 1000, RETRY_S[0]), RETRY_S[1]) * random.uniform(1, 1.5)


def tell(source: Source, event: sse.Received) -> None:
    """What is missing upstream is missing here."""
    if event.name == "gap" or (event.name == "hello" and '"reset"' in event.data):
        logger.warning("source %s: its upstream told %s: %s", source.name, event.name, event.data[:300], extra={"job": True})
