"""The outermost layer, around Litestar: paths as they came over the wire, origins, the headers of every answer, and streams.

**Streams run out here.** A handler decides who may have a stream and answers `Hold`, which sends nothing; once Litestar has
returned, with all that it keeps for a request, the stream is run with the server's own `receive` and `send`. An idle
stream then costs no more than a bare ASGI application's, and a push is one call without a coroutine around it.

**Paths** are split as they came, then each part is decoded once. Servers hand applications a path that is decoded before
it is split, where `%2F` adds a part. And Litestar prefers a literal part to a parameter and never goes back: the topic
`matches/live/7` it would look for under `/stream/{version}/live`. So a type that is such a word gets a mark on its way to
the handler, which `topic_of` takes away.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from litestar import Litestar
from litestar.response import Response

from relay.answers import TOLD, problem_message
from relay.errors import Malformed, Problem
from relay.guard import PREFLIGHT, Guard, header
from relay.topic import decode_part, parse_topic
from relay.turns import Turns

HOLD = "relay.hold"
LITERALS = ("live", "poll")  # what stands behind a version where a topic has its type
MARK = "%"  # no decoded path has one
# Pages and streams say themselves how long they may be kept; whatever doesn't may not be.
COMMON = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store")]

logger = logging.getLogger("relay")

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
# Serves a held stream: what the handler left, the headers that go with it, and the server's own two functions.
Runner = Callable[[Any, list[tuple[bytes, bytes]], Receive, Send], Awaitable[None]]


class Hold(Response[None]):
    """A handler's answer which means: run this stream when Litestar is done."""

    def __init__(self, stream: msgspec.Struct) -> None:
        super().__init__(None)
        self.stream = stream

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        async def leave(scope: Any, receive: Receive, send: Send) -> None:
            scope[HOLD] = self.stream

        return leave


class Edge:
    """The ASGI application that the server runs."""

    def __init__(self, app: Litestar, guard: Guard, refused: Callable[[Problem], None], run: Runner | None = None) -> None:
        self.app, self.guard, self.refused, self.run = app, guard, refused, run
        self.turns = Turns()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = self.guard.origin_headers(scope)
        if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
            return await self._answer_preflight(scope, headers, send)
        answer = with_headers(send, COMMON + headers)
        try:
            scope["path"] = decoded_path(scope)
        except Problem as problem:
            self.refused(problem)
            for message in problem_message(problem):
                await answer(message)
            return None
        if scope["method"] == "GET" and scope["path"].startswith("/stream/"):
            await self.turns.take()  # readers come in crowds
        await self.app(scope, receive, answer)
        told = scope.pop(TOLD, None)  # not left there: its traceback leads back to the scope
        if told is not None:
            self.refused(told)
        stream = scope.get(HOLD)
        if stream is not None and self.run:
            # A stream lasts for hours, and its scope would with it: the caller's frame holds the dict, so it is emptied.
            scope.clear()
            await self.run(stream, headers, receive, send)
        return None

    async def _answer_preflight(self, scope: Any, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        """Needs no token (Fetch Standard, section 4.8); without the allowing headers the browser refuses for us."""
        allowed = PREFLIGHT if self.guard.allows_origin(scope) else []
        await send({"type": "http.response.start", "status": 204, "headers": [*COMMON, *headers, *allowed]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def add(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *merged(message["headers"], headers)]
        await send(message)

    return add


def merged(own: list[tuple[bytes, bytes]], common: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The common headers that an answer hasn't set itself. (A page's own `Vary` names Origin too.)"""
    names = {name.lower() for name, _ in own}
    return [(name, value) for name, value in common if name not in names]


def decoded_path(scope: Any) -> str:
    """The path with each part decoded once. Raises Malformed where that would change its parts."""
    raw = scope.get("raw_path") or b""
    if b"%" in raw:
        parts = [decode_part(part) for part in raw.partition(b"?")[0].decode("latin-1").split("/")]
    else:
        parts = scope["path"].split("/")
    if any("%" in part for part in parts):
        raise Malformed("the path is percent-encoded twice", code="bad_path")
    if any(parts[4:]) and parts[3] in LITERALS:  # /stream/collection/type/id…
        parts[3] += MARK
    return "/".join(parts)


def topic_of(params: Mapping[str, str]) -> str:
    """The topic that a path names. Raises Malformed."""
    return parse_topic(f"{params['collection']}/{params['kind'].removesuffix(MARK)}/{params['ident']}")
