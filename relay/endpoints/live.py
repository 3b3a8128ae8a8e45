"""Live streams: who may have one, and where it begins. `relay.follow` serves it once Litestar is done."""

from collections.abc import Callable
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response

from relay.answers import answer_error, as_problem
from relay.coding import IDENTITY, Coding
from relay.edge import Hold, topic_of
from relay.endpoints import described
from relay.errors import LogUnavailable, Problem
from relay.follow import Start
from relay.guard import Guard, header
from relay.log import Log
from relay.query import SEALED, ReadQuery, Versions, parse_read, places_of
from relay.rates import Rates


class Refused(Start, frozen=True, kw_only=True):
    """A stream that can't be had now: told in a way that an EventSource survives."""

    problem: Problem


class Admitted(Start, frozen=True):
    """A stream, and who it counts for."""

    who: str = ""


def live_handlers(
    guard: Guard, log: Log, rates: Rates, versions: Versions, choose_coding: Callable[[str], Coding]
) -> list[HTTPRouteHandler]:
    async def answer(request: Request[Any, Any, Any], version: str, topic: str | None) -> Response[Any]:
        scope: Any = request.scope
        query = parse_read(version, topic, scope["query_string"], header(scope, b"last-event-id"), versions)
        try:
            await rates.request(guard.address(scope))
            permit = await guard.may_read(scope, query.topics)
        except (Problem, LogUnavailable) as error:
            # In no name of this frame, to which its traceback leads back: a flood of bad tokens would fill memory with such cycles.
            if as_problem(error).temporary:
                return Hold(Refused(**begin(query, log), problem=as_problem(error)))
            raise
        return Hold(
            Admitted(
                **begin(query, log),
                # What is sealed was compressed before it was, where that was worth it.
                coding=IDENTITY if query.version == SEALED else choose_coding(header(scope, b"accept-encoding")),
                permit=permit,
                who=permit.identity.sub or guard.address(scope),
            )
        )

    @get(
        "/stream/{collection:str}/{kind:str}/{ident:str}/{version:str}/live",
        operation_class=described.LIVE_TOPIC,
        exception_handlers={Exception: answer_error},
    )
    async def live_topic(request: Request[Any, Any, Any]) -> Response[Any]:
        return await answer(request, request.path_params["version"], topic_of(request.path_params))

    @get("/stream/{version:str}/live", operation_class=described.LIVE, exception_handlers={Exception: answer_error})
    async def live(request: Request[Any, Any, Any]) -> Response[Any]:
        return await answer(request, request.path_params["version"], None)

    return [live_topic, live]


def begin(query: ReadQuery, log: Log) -> dict[str, Any]:
    """Where the stream begins: the part of a `Start` that the query says."""
    start: dict[str, Any] = {
        "topics": query.topics,
        "version": query.version,
        "names": query.names,
        "newest": query.newest,
        "heartbeat_s": query.heartbeat_s,
    }
    cursor = query.position.cursor
    if query.position.reset:
        return {**start, "reset": True}
    if cursor is None:
        return start
    places = places_of(cursor, set(log.by_shard(query.topics)))
    n = cursor.number_on(query.topics[0]) if len(query.topics) == 1 else None
    return {**start, "places": places, "n": n}
