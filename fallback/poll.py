"""Polling: one page of events, at once or when there is something in it; and a client for it.

The same handlers serve inside the relay and alone on a function (`fallback.app`); they differ in how they wait.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response

from fallback import described
from fallback.page import Page, body, cache_headers, etag, pace_ms, read_page
from relay.answers import is_known, json_answer, pack
from relay.coding import IDENTITY, Coding
from relay.cursor import Cursor, Place
from relay.edge import topic_of
from relay.files import JAVASCRIPT, LIBRARY, file_handler
from relay.guard import COOKIES, Guard, Permit, header
from relay.log import Log
from relay.query import ReadQuery, Versions, parse_fields, parse_read
from relay.rates import Rates
from relay.span import Gap
from relay.topic import tag_of

POLLER = Path(__file__).parent / "static/poller.js"
VARY = "Origin, Authorization, Cookie, Last-Event-ID, Accept-Encoding"

# Waits until the topics may have something after these places, or the time is over. False: there is no use in asking again.
Wait = Callable[[dict[int, Place], float], Awaitable[bool]]


class Observer(Protocol):
    """Who counts pages."""

    def paged(self, verdict: str, status: int) -> None: ...
    def gap(self, gap: Gap) -> None: ...


class Waiting(Protocol):
    """How to wait for topics. Entered before the first read, so that nothing comes unseen between a read and a wait."""

    def __call__(self, topics: Iterable[str], permit: Permit, who: str) -> AbstractAsyncContextManager[Wait]: ...


def poll_handlers(
    guard: Guard,
    log: Log,
    rates: Rates,
    versions: Versions,
    choose_coding: Callable[[str], Coding],
    waiting: Waiting,
    observer: Observer,
    load: Callable[[], float],
) -> list[HTTPRouteHandler]:
    async def answer(request: Request[Any, Any, Any], version: str, topic: str | None) -> Response[bytes]:
        scope: Any = request.scope
        query = parse_read(version, topic, scope["query_string"], header(scope, b"last-event-id"), versions)
        sealer = versions.sealer_of(query.version)
        read = partial(read_page, log, sealer.seal if sealer else None)
        await rates.request(guard.address(scope))
        permit = await guard.may_read(scope, query.topics)
        if query.wait_s:
            place = waiting(query.topics, permit, permit.identity.sub or guard.address(scope))
            waited = await while_connected(request.receive, wait_for_page(read, query, place, lambda: guard.may_read(scope, query.topics)))
            if waited is None:
                return Response(b"", status_code=204)  # the client has left
            page = waited
        else:
            page = await read(query)
        for gap in page.gaps:
            observer.gap(gap)
        headers = {**cache_headers(query, page, anonymous=is_anonymous(scope, guard, query)), "vary": VARY}
        # What is sealed was compressed before it was, where that was worth it.
        coding = IDENTITY if sealer else choose_coding(header(scope, b"accept-encoding"))
        tag = "" if sealer else etag(query, page, coding.name)
        if tag:
            headers["etag"] = tag
        if tag and is_known(header(scope, b"if-none-match"), tag):
            observer.paged(page.resume, 304)
            return Response(b"", status_code=304, headers=headers)
        observer.paged(page.resume, 200)
        content = await pack(body(query, log, page, pace_ms(query, page, load())), coding, headers)
        return json_answer(content, headers=headers)

    @get(
        "/stream/{collection:str}/{kind:str}/{ident:str}/{version:str}/poll",
        operation_class=described.POLL_TOPIC,
    )
    async def poll_topic(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await answer(request, request.path_params["version"], topic_of(request.path_params))

    @get("/stream/{version:str}/poll", operation_class=described.POLL)
    async def poll(request: Request[Any, Any, Any]) -> Response[bytes]:
        return await answer(request, request.path_params["version"], None)

    return [poll_topic, poll, file_handler("/stream/poller.js", POLLER, JAVASCRIPT, LIBRARY, choose_coding, described.POLLER)]


def is_anonymous(scope: Any, guard: Guard, query: ReadQuery) -> bool:
    """Whether the answer depends on nobody: public topics, and no credential that might have opened more."""
    cookie = header(scope, b"cookie")
    return (
        all(guard.public.match(topic) for topic in query.topics)
        and not header(scope, b"authorization")
        and "token" not in parse_fields(scope["query_string"])
        and not any(name in cookie for name in COOKIES)
    )


async def wait_for_page(
    read: Callable[[ReadQuery], Awaitable[Page]],
    query: ReadQuery,
    place: AbstractAsyncContextManager[Wait],
    check: Callable[[], Awaitable[Permit]],
) -> Page:
    """The first page with something in it, or an empty one when the time is over.

    What the filter hides, or other topics, move the cursor, so each look goes on from where the last one ended. `check` raises
    what the client is told if it may not read any more: behind each wait, in which that may have come.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + query.wait_s
    async with place as wait:
        page = await read(query)
        resume, going_on = page.resume, True
        while going_on and page.silent() and (left_s := deadline - loop.time()) > 0:
            going_on = await wait(page.places, left_s)
            await check()
            page = await read(onward(query, page)) if going_on else page
    # The answer is for where the client asked from: that it waited doesn't make a first page a resumed one.
    return msgspec.structs.replace(page, resume=resume) if page.resume == "exact" else page


async def while_connected(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, Page]) -> Page | None:
    """The work's result; None if the client leaves, at which it ends, so that nobody's wait takes a place."""

    async def client_leaves() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(client_leaves())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def onward(query: ReadQuery, page: Page) -> ReadQuery:
    """The same question, from where a page ended."""
    tag = tag_of(query.topics[0]) if page.n is not None else ""
    position = msgspec.structs.replace(query.position, cursor=Cursor(page.places, page.n, tag), reset=False)
    return msgspec.structs.replace(query, position=position)
